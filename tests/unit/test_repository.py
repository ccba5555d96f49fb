"""The repository's own files agree with one another, and the programs on its pages run."""

import re
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


def test_every_target_of_make_is_explained():
    makefile = read("Makefile")
    phony = re.search(r"\.PHONY: (.+)", makefile)[1].split()
    missing = set(phony) - set(re.findall(r"^([a-z-]+):.*## .", makefile, re.MULTILINE))
    assert not missing, f"end the line `{missing}:` in the Makefile with `## what it does`"


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "book/your_model.md"])
def test_programs_on_pages_run(page):
    programs = re.findall(r"^```python\n(.*?)^```", read(page), re.MULTILINE | re.DOTALL)
    assert programs
    for program in programs:
        exec(compile(program, page, "exec"), {"__name__": page})


def test_every_chapter_has_a_card_on_the_front_page():
    listed = re.findall(r"^(\d\d_\w+) \| [\w ]+ \| .+$", read("book/index.md"), re.MULTILINE)
    chapters = [c["file"].removeprefix("book/") for c in yaml.safe_load(read("_toc.yml"))["chapters"]]
    missing = {c for c in chapters if c[:2].isdigit()} - set(listed)
    assert not missing, f"add a line `NN_name | stages | question` for {missing} to the map in book/index.md"


def test_readme_and_changelog_name_only_what_exists():
    for page in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", re.sub("`.+?`", "", read(page))):
            assert (ROOT / link).exists(), f"{page} links to {link}, which is not there"
