"""The built site, as a reader's browser sees it."""

import functools
import http.server
import json
import os
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml
from bs4 import BeautifulSoup

from kdutils.pages import plots

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
SITE = Path(os.environ.get("KDUTILS_SITE", ROOT / "_build" / "html")).resolve()
# Not ours to mend: (axe's rule, what the element's HTML holds).
UPSTREAM = (
    ("aria-required-children", "citation-list"),  # docutils calls a bibliography a list, and its entries not items
)

pytestmark = pytest.mark.skipif(not SITE.exists(), reason=f"no site at {SITE.name}: run `make site` first")


def toc() -> list[str]:
    table = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    chapters = [chapter for part in table["parts"] for chapter in part["chapters"]]
    return [table["root"], *(page["file"] for c in chapters for page in (c, *c.get("sections", ())))]


def pages() -> list[Path]:
    return [SITE / f"{name}.html" for name in toc()]


@functools.cache
def parsed(page: Path) -> BeautifulSoup:
    return BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")


@functools.cache
def anchors(page: Path) -> set[str]:
    return {element[key] for element in parsed(page).find_all(True) for key in ("id", "name") if element.get(key)}


def test_every_page_of_the_contents_is_there_and_no_other():
    assert sorted(p.name for p in (SITE / "book").glob("*.html")) == sorted(p.name for p in pages())


@pytest.mark.parametrize("name", toc())
def test_no_page_holds_a_traceback(name):
    text = (SITE / f"{name}.html").read_text(encoding="utf-8")
    assert "Traceback (most recent call last)" not in text and "CellExecutionError" not in text


@pytest.mark.parametrize("name", [*toc(), "index", "search", "genindex", "404"])
def test_every_internal_link_resolves(name):
    page, broken = SITE / f"{name}.html", []
    for element in parsed(page).find_all(True):
        for link in (element.get("href"), element.get("src")):
            url = urlsplit(link or "")
            if not link or link == "#" or element.name == "base" or url.scheme or url.netloc:
                continue
            target = (page.parent / unquote(url.path)).resolve() if url.path else page
            setting = target.name == "playground.html" and "=" in url.fragment  # test_playground_page reads these
            if not target.is_file() or (
                url.fragment
                and target.suffix == ".html"
                and not setting
                and unquote(url.fragment) not in anchors(target)
            ):
                broken.append(link)
    assert broken == []


@pytest.mark.parametrize("name", [n for n in toc() if n[5:7].isdigit()])
def test_launch_buttons_open_files_that_exist(name):
    repository = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["repository"]
    owner, branch = urlsplit(repository["url"]).path, repository["branch"]
    opened = {}
    for link in (urlsplit(a["href"]) for a in parsed(SITE / f"{name}.html").find_all("a", href=True)):
        if link.netloc == "colab.research.google.com":
            opened["colab"] = link.path.removeprefix(f"/github{owner}/blob/{branch}/")
        elif link.netloc == "mybinder.org":
            assert link.path == f"/v2/gh{owner}/{branch}"
            opened["binder"] = parse_qs(link.query)["urlpath"][0].removeprefix("lab/tree/")
    assert opened == dict.fromkeys(("binder", "colab"), f"{name}.ipynb")
    assert (ROOT / f"{name}.ipynb").is_file()


@pytest.mark.parametrize("name", [n for n in toc() if n[5:7].isdigit()])
def test_chapter_says_what_it_takes(name):
    line = parsed(SITE / f"{name}.html").select_one("h1 + p.kd-facts")
    assert line, "under the title belongs the line that _ext/reader.py writes"
    assert re.match(r"\d+ min to read · [\d.]+ min to train \(.+\) · last executed with Python .+, torch .+", line.text)
    assert "{" not in line.text and ":::" not in parsed(SITE / f"{name}.html").article.text


@pytest.mark.parametrize("name", toc())
def test_every_page_can_be_passed_on(name):
    page = parsed(SITE / f"{name}.html")
    said = {m["property"]: m["content"] for m in page.find_all("meta", property=True)}
    assert (said["og:title"] and len(said["og:description"]) > 40) or name.endswith("references"), said
    root = said["og:url"].removesuffix(f"{name}.html")
    assert root.startswith("https://") and (SITE / said["og:image"].removeprefix(root)).is_file()
    assert page.find("link", rel="icon")["href"].endswith("favicon.svg")


@pytest.mark.parametrize("name", toc())
def test_nothing_stops_the_reading_of_a_page(name):
    """Files of scripts wait until the page is read; what is written in it does not stand behind styles."""
    page = parsed(SITE / f"{name}.html")
    assert [s["src"] for s in page.find_all("script", src=True) if not s.has_attr("defer")] == []
    late = page.find("link", rel="stylesheet").find_all_next("script", src=False, type=None)
    assert [script.text[:60] for script in late] == []


def test_front_page_maps_the_chapters():
    cards = parsed(SITE / "book" / "index.html").select("ul.kd-map a")
    assert [f"book/{a['href']}" for a in cards] == [f"{n}.html" for n in toc() if n[5:7].isdigit()]
    assert all(a.select(".kd-strip span") for a in cards)


def test_lost_readers_find_back_from_any_depth():
    page = parsed(SITE / "404.html")
    root = parsed(SITE / "book" / "index.html").find("meta", property="og:url")["content"].split("book/")[0]
    first = page.head.find(["base", "link", "script"])
    assert first.name == "base" and root.endswith(first["href"]), "links must start from the site's root"
    assert not [a["href"] for a in page.find_all("a", href=True) if a["href"].startswith(("/", ".."))]


PREFIXES = ("/", "/a-book/", "/fork/", "/pr/12/", "/a-book/pr-preview/pr-12/")


@pytest.fixture
def host() -> Iterator[str]:
    """The site below several paths of one host, which shows the nearest 404 page above an address that is not there."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = unquote(urlsplit(self.path).path)
            prefix = max((p for p in PREFIXES if wanted.startswith(p)), key=len)
            file = SITE / wanted.removeprefix(prefix)
            self.send_response(200 if file.is_file() else 404)
            kind = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}.get(file.suffix, "text/html")
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write((file if file.is_file() else SITE / "404.html").read_bytes())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_lost_readers_find_back_under_any_path(browse, host):
    places = ("404.html", "book/no/such/page.html")
    found = browse("lost.mjs", *(f"{host}{prefix}{place}" for prefix in PREFIXES for place in places))
    assert len(found) == len(PREFIXES) * len(places)
    for report, prefix in zip(found, [prefix for prefix in PREFIXES for _ in places], strict=True):
        assert report["styled"], report["address"]
        assert report["links"] == [f"{host}{prefix}book/index.html", f"{host}{prefix}search.html"]


def test_a_lost_page_opened_as_a_file_finds_back(browse):
    (report,) = browse("lost.mjs", (SITE / "404.html").as_uri())
    assert report["links"] == [(SITE / name).as_uri() for name in ("book/index.html", "search.html")]
    assert report["styled"]


def test_a_branch_that_pages_shows_keeps_its_underscores():
    assert (SITE / ".nojekyll").is_file(), "else GitHub Pages leaves out _static and _images"


def test_style_sheet_has_the_colours_of_the_figures():
    sheet = (SITE / "_static" / "palette.css").read_text(encoding="utf-8")
    assert all(f".kd-{name} {{ background: {colour}; }}" in sheet for name, colour in plots.COLOURS.items())


@pytest.fixture(scope="module")
def findings(browse) -> list[dict]:
    """What a reader would trip over, a page each."""
    shots = ROOT / "_build" / "screenshots"
    shots.mkdir(exist_ok=True)
    return browse("visit.mjs", shots, *pages(), SITE / "search.html", SITE / "genindex.html")


@pytest.mark.parametrize("kind", ["outside", "failed", "console", "alt"])
def test_pages_open_cleanly(findings, kind):
    assert {f["page"]: f[kind] for f in findings if f[kind]} == {}


def test_all_math_is_typeset(findings):
    assert {f["page"]: f["raw"] for f in findings if f["raw"]} == {} and any(f["math"] for f in findings)


def test_all_explorers_are_drawn(findings):
    assert {f["page"]: f["widgets"] for f in findings if f["widgets"]["drawn"] != f["widgets"]["stored"]} == {}


def test_widgets_that_need_a_kernel_say_so():
    texts = {name: (SITE / f"{name}.html").read_text(encoding="utf-8") for name in toc()}
    kernel = {name for name, text in texts.items() if "@jupyter-widgets/controls" in text}
    assert {name for name, text in texts.items() if "controls need a running kernel" in text} == kernel
    assert not [name for name, text in texts.items() if "embed-amd" in text]


@pytest.mark.parametrize("width", ["desktop", "tablet", "phone"])
@pytest.mark.parametrize("kind", ["sideways", "cut", "covered"])
def test_nothing_is_cut_off(findings, kind, width):
    """The page itself does not scroll; code says where it goes on; an equation stays beside its number."""
    assert {f["page"]: f[kind][width] for f in findings if f[kind][width]} == {}


def test_pages_are_light(findings):
    """As a server sends them, compressed.

    `before` is what a page cannot be used without: on a slow phone's 1.6 Mbit/s, 300 kB take a second and a half.
    """
    weights = {f["page"]: f["weight"] for f in findings}
    assert {page: w for page, w in weights.items() if w["all"] > 1_500_000 or w["before"] > 300_000} == {}
    images = {page.stem: parsed(page).select(".bd-article img") for page in pages()}
    assert any(images.values()) and not [i["src"] for found in images.values() for i in found if i["loading"] != "lazy"]
    assert all(w["all"] > w["before"] > 20_000 for w in weights.values()), "these were not weighed"


def test_figures_of_the_dark_theme_are_dark(findings):
    shades = {f["page"]: f["dark"] for f in findings if f["dark"]}
    assert shades and {page: shade for page, shade in shades.items() if "invert" not in shade} == {}


def test_sidebar_has_parts_and_numbered_chapters():
    page, table = parsed(SITE / "book" / "index.html"), yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    side = page.select_one("nav.bd-links")
    assert [p.text for p in side.select("p.caption")] == [part["caption"] for part in table["parts"]]
    chapters = [a.text for a in side.select("a") if re.match(r"\d\d_", a["href"])]
    names = [n for n in toc() if n[5:7].isdigit()]
    assert [text.split(".")[0] for text in chapters] == [str(i + 1) for i in range(len(names))]
    for number, name in enumerate(names, 1):
        assert parsed(SITE / f"{name}.html").article.h1.text.startswith(f"{number}. ")


def test_search_knows_the_names_of_kdutils():
    import reference

    index = (SITE / "searchindex.js").read_text(encoding="utf-8")
    objects = json.loads(index.removeprefix("Search.setIndex(").removesuffix(")"))["objects"]
    known = {f"{module}.{entry[4] if isinstance(entry, list) else entry}" for module, entries in objects.items()
             for entry in entries}  # fmt: skip
    assert set(reference.names()) <= known, sorted(set(reference.names()) - known)[:5]


def test_every_page_has_a_plain_copy():
    listed = (SITE / "llms.txt").read_text(encoding="utf-8")
    for name in toc():
        text = (SITE / f"{name}.md").read_text(encoding="utf-8")
        assert text.startswith("# ") and f'href="{Path(name).name}.md"' in (SITE / f"{name}.html").read_text("utf-8")
        assert f"({name}.md)" in listed or name == toc()[0]
        if name[5:7].isdigit():
            assert "```python\n" in text and "[Figure: " in text and "## Exercises" in text
            assert "data:image" not in text and "<svg" not in text and "eval-rst" not in text


def test_paper_shows_the_text_and_nothing_is_cut(findings):
    assert {f["page"]: f["print"] for f in findings if f["print"] and f["page"] != "search"} == {}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_serious_accessibility_violation(findings, theme):
    def ours(violation):
        return not any(violation["rule"] == rule and text in violation["html"] for rule, text in UPSTREAM)

    mine = {f["page"]: list(filter(ours, f["axe"][theme])) for f in findings}
    assert {page: found for page, found in mine.items() if found} == {}
