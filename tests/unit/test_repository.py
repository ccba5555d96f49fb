"""The repository's own files agree with one another, and the programs on its pages run."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


ADDRESS = yaml.safe_load(read("_config.yml"))["repository"]["url"]
CHAPTERS = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "book").glob("[0-9]*.ipynb"))
TEXTS = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "book" / "text").glob("*.md"))


def stated(name):
    """The addresses of the repository that a file states."""
    if name == "pyproject.toml":
        return [tomllib.loads(read(name))["project"]["urls"]["Repository"]]
    if name == "CITATION.cff":
        return [yaml.safe_load(read(name))["repository-code"]]
    return re.findall(r"(?:git clone |git\+)(https://[^\s\"\\]+)", read(name))


@pytest.mark.parametrize(
    "name", ["pyproject.toml", "CITATION.cff", "README.md", "tools/template/text.md", *TEXTS, *CHAPTERS]
)
def test_one_address(name):
    mend = f"in {name}: state {ADDRESS}, as _config.yml does; to change it everywhere, `make address URL=...`"
    assert stated(name) == [ADDRESS], mend


@pytest.fixture
def tools(monkeypatch):
    for folder in ("tools", "_ext"):
        monkeypatch.syspath_prepend(str(ROOT / folder))


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("https://github.com/me/book", "https://github.com/me/book"),
        ("https://github.com/me/book.git", "https://github.com/me/book"),
        ("https://github.com/me/book.git/", "https://github.com/me/book"),
        ("https://github.com/me/book//", "https://github.com/me/book"),
        (" https://github.com/me/me.github.io.git ", "https://github.com/me/me.github.io"),
        ("https://github.com/My-Team/a.b_c-d", "https://github.com/My-Team/a.b_c-d"),
    ],
)
def test_addresses_are_taken_without_their_ending(tools, given, address):
    import address as tool

    assert tool.clean(given) == address


@pytest.mark.parametrize(
    "given",
    ["", "book", "me/book", "http://github.com/me/book", "https://gitlab.com/me/book", "git@github.com:me/book.git",
     "https://github.com/me", "https://github.com/me/", "https://github.com/me/.git", "https://github.com/me/..",
     "https://github.com/me/book/tree/main", "https://github.com/me/book#readme", "https://github.com/me/book?a=b",
     "https://github.com/me/a book", "https://github.com/me/bo'ok", "https://github.com/me/größe",
     "https://www.github.com/me/book", "https://github.com/me/book\nx"],
)  # fmt: skip
def test_other_addresses_are_refused(tools, given):
    import address as tool

    with pytest.raises(ValueError, match=r"say make address URL=https://github.com/OWNER/NAME") as error:
        tool.clean(given)
    assert len(str(error.value).splitlines()) == 1
    command = [sys.executable, ROOT / "tools" / "address.py", given]
    if given in ("", "http://github.com/me/book"):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 1 and done.stderr.startswith("not an address") and not done.stdout


def test_an_address_is_changed_wherever_it_stands(tools, tmp_path):
    import address as tool

    old = "https://github.com/them/their-book"
    lines = {
        "_config.yml": f"repository:\n  url: {old}\n",
        "README.md": f"git clone {old} && cd their-book\n[issues]({old}/issues), {old}. Not {old}-two, nor {old}2.\n",
        "book/01.ipynb": f'["%pip install \\"kdutils @ git+{old}\\"", "größer"]\r\n',
        "clone.sh": f"git clone {old}.git\n",
    }
    for name, text in lines.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text.encode())
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "-A"], cwd=tmp_path, check=True)
    assert set(tool.change(tmp_path, "https://github.com/me/mine.git/")) == set(lines)
    new = "https://github.com/me/mine"
    assert (tmp_path / "_config.yml").read_text() == f"repository:\n  url: {new}\n"
    readme = f"git clone {new} && cd mine\n[issues]({new}/issues), {new}. Not {old}-two, nor {old}2.\n"
    assert (tmp_path / "README.md").read_text() == readme
    assert (tmp_path / "book/01.ipynb").read_bytes() == lines["book/01.ipynb"].replace(old, new).encode()
    assert (tmp_path / "clone.sh").read_text() == f"git clone {new}.git\n"
    assert tool.change(tmp_path, old) and (tmp_path / "README.md").read_text() == lines["README.md"]


@pytest.mark.parametrize(
    ("repository", "site"),
    [
        ("https://github.com/me/book", "https://me.github.io/book/"),
        ("https://github.com/me/book.git", "https://me.github.io/book/"),
        ("https://github.com/me/book/", "https://me.github.io/book/"),
        ("https://github.com/me/me.github.io", "https://me.github.io/"),
        ("https://github.com/Me/me.GitHub.io", "https://me.github.io/"),
        ("https://github.com/me/them.github.io", "https://me.github.io/them.github.io/"),
    ],
)
def test_where_pages_shows_the_site(tools, repository, site):
    import reader

    assert reader.site_url(repository) == site


@pytest.mark.parametrize("repository", ["https://github.com/me", "https://github.com/me/book/tree/main", "", "book"])
def test_no_site_for_what_is_no_repository(tools, repository):
    import reader

    with pytest.raises(ValueError, match=r"must be https://github\.com/OWNER/NAME"):
        reader.site_url(repository)


def test_nothing_is_left_beside_the_chapters():
    """What a reader's own run writes is not git's business: its runs, its numbers, its notebook."""
    left = ["book/runs/results/book/02_one_shot.json", "book/runs/x.safetensors", "book/out.ipynb"]
    done = subprocess.run(["git", "check-ignore", *left], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 128:
        pytest.skip("git does not know this folder: run this in a clone of the repository")
    assert done.stdout.split() == left


def test_every_target_of_make_is_explained():
    makefile = read("Makefile")
    phony = re.search(r"\.PHONY: (.+)", makefile)[1].split()
    missing = set(phony) - set(re.findall(r"^([a-z-]+):.*## .", makefile, re.MULTILINE))
    assert not missing, f"end the line `{missing}:` in the Makefile with `## what it does`"


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "book/your_model.md"])
def test_programs_on_pages_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    programs = re.findall(r"^```python\n(.*?)^```", read(page), re.MULTILINE | re.DOTALL)
    assert programs
    for program in programs:
        exec(compile(program, page, "exec"), {"__name__": page})


def test_every_chapter_has_a_card_on_the_front_page():
    listed = re.findall(r"^(\d\d_\w+) \| [\w ]+ \| .+$", read("book/index.md"), re.MULTILINE)
    parts = yaml.safe_load(read("_toc.yml"))["parts"]
    chapters = [c["file"].removeprefix("book/") for part in parts for c in part["chapters"]]
    missing = {c for c in chapters if c[:2].isdigit()} - set(listed)
    assert not missing, f"add a line `NN_name | stages | question` for {missing} to the map in book/index.md"


def test_readme_and_changelog_name_only_what_exists():
    for page in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", re.sub("`.+?`", "", read(page))):
            assert (ROOT / link).exists(), f"{page} links to {link}, which is not there"
