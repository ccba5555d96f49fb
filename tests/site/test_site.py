"""The built site, as a reader's browser sees it."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parents[2]
SITE = Path(os.environ.get("KDUTILS_SITE", ROOT / "_build" / "html"))
NODE_PACKAGES = ("playwright-core@1.65.1", "@axe-core/playwright@4.13.0")
# Not ours to mend: the name of ipywidgets' slider handle, docutils' roles in a bibliography, and the theme's
# focusable scrollable regions.
UPSTREAM = ("noUi-handle", "doc-biblio", "citation", "scrollable-region-focusable")

pytestmark = pytest.mark.skipif(not SITE.exists(), reason=f"no site at {SITE.name}: run `make site` first")


def pages() -> list[Path]:
    return [SITE / "book" / f"{Path(name).name}.html" for name in toc()]


def toc() -> list[str]:
    table = yaml.safe_load((ROOT / "_toc.yml").read_text())
    return [table["root"], *(chapter["file"] for chapter in table["chapters"])]


def parsed(page: Path) -> BeautifulSoup:
    return BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")


def test_every_page_of_the_contents_is_there_and_no_other():
    assert sorted(p.name for p in (SITE / "book").glob("*.html")) == sorted(p.name for p in pages())


@pytest.mark.parametrize("name", toc())
def test_no_page_holds_a_traceback(name):
    text = (SITE / f"{name}.html").read_text(encoding="utf-8")
    assert "Traceback (most recent call last)" not in text and "CellExecutionError" not in text


@pytest.mark.parametrize("name", toc())
def test_every_internal_link_resolves(name):
    page = SITE / f"{name}.html"
    soup, broken = parsed(page), []
    for tag, attribute in (("a", "href"), ("link", "href"), ("script", "src"), ("img", "src")):
        for element in soup.find_all(tag, **{attribute: True}):
            url = urlsplit(element[attribute])
            if url.scheme or url.netloc or element[attribute] == "#":
                continue
            target = (page.parent / unquote(url.path)).resolve() if url.path else page
            fragment = unquote(url.fragment)
            if not target.exists() or (fragment and target.suffix == ".html" and not parsed(target).find(id=fragment)):
                broken.append(element[attribute])
    assert broken == []


@pytest.mark.parametrize("name", [n for n in toc() if n[5:7].isdigit()])
def test_launch_buttons_open_files_that_exist(name):
    links = [a["href"] for a in parsed(SITE / f"{name}.html").find_all("a", href=True) if "colab.research" in a["href"]]
    assert links and all((ROOT / link.split("/blob/main/")[1]).exists() for link in links)


@pytest.fixture(scope="module")
def findings() -> list[dict]:
    """What headless Chromium reports, a page each."""
    chromium, node = _chromium(), shutil.which("node")
    if chromium is None or node is None:
        pytest.skip(
            "browser checks need Chromium and Node.js on the PATH: install both (Debian: chromium, nodejs, npm)"
        )
    home = ROOT / "_build" / "node"
    if not (home / "node_modules" / "@axe-core").exists():
        home.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--no-save", "--ignore-scripts", "--silent", "--prefix", str(home), *NODE_PACKAGES]
        if subprocess.run(command, check=False).returncode:
            pytest.skip(f"browser checks need the npm packages {', '.join(NODE_PACKAGES)}: connect to npm once")
    shots = ROOT / "_build" / "screenshots"
    shots.mkdir(exist_ok=True)
    command = [node, str(Path(__file__).with_name("visit.mjs")), chromium, str(shots), *map(str, pages())]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env={**os.environ, "NODE_HOME": str(home)}
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def _chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", "chromium"]):
            subprocess.run(command, check=False, timeout=400, capture_output=True)
        found = shutil.which("chromium")
    return found


@pytest.mark.parametrize("kind", ["outside", "failed", "console", "alt"])
def test_pages_open_cleanly(findings, kind):
    assert {f["page"]: f[kind] for f in findings if f[kind]} == {}


def test_all_math_is_typeset(findings):
    assert {f["page"]: f["raw"] for f in findings if f["raw"]} == {} and any(f["math"] for f in findings)


def test_no_page_scrolls_sideways(findings):
    assert {
        f["page"]: (f["overflow"], f["phoneOverflow"]) for f in findings if max(f["overflow"], f["phoneOverflow"]) > 0
    } == {}


def test_no_serious_accessibility_violation(findings):
    mine = {f["page"]: [v for v in f["axe"] if not any(name in v for name in UPSTREAM)] for f in findings}
    assert {page: found for page, found in mine.items() if found} == {}
