"""What a release needs: one version, metadata that others read, a package that installs, workflows that can run."""

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import kdutils

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
CFF = {  # keys that version 1.2.0 of the format knows, of those that this book may use: what each has to hold
    "cff-version": str, "title": str, "message": str, "type": str, "authors": list, "version": str, "license": str,
    "repository-code": str, "url": str, "abstract": str, "keywords": list, "references": list, "doi": str,
    "date-released": object,
}  # fmt: skip


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_one_version_everywhere():
    stated = {
        "CITATION.cff": str(yaml.safe_load(read("CITATION.cff"))["version"]),
        ".zenodo.json": json.loads(read(".zenodo.json"))["version"],
        "kdutils/__init__.py": kdutils.__version__,
        "CHANGELOG.md": re.search(r"^## (\S+)", read("CHANGELOG.md"), re.MULTILINE)[1],
    }
    assert stated == dict.fromkeys(stated, VERSION), f"pyproject.toml says {VERSION}"


def test_citation_is_in_the_form_that_github_reads():
    found = yaml.safe_load(read("CITATION.cff"))
    assert {"cff-version", "title", "message", "authors"} <= set(found) <= set(CFF)
    assert all(isinstance(value, CFF[key]) for key, value in found.items())
    assert found["cff-version"] == "1.2.0" and found["type"] in ("software", "dataset")
    for work in found["references"]:
        assert {"type", "title", "authors"} <= set(work) and work["url"].startswith("https://")
    for who in (*found["authors"], *(author for work in found["references"] for author in work["authors"])):
        assert set(who) in ({"name"}, {"family-names", "given-names"}), who


def test_zenodo_is_told_what_the_citation_says():
    zenodo, citation = json.loads(read(".zenodo.json")), yaml.safe_load(read("CITATION.cff"))
    assert zenodo["title"] == citation["title"] and zenodo["license"] == citation["license"].lower()
    assert [c["name"] for c in zenodo["creators"]] == [a["name"] for a in citation["authors"]]
    cited = {work["url"].rsplit("/", 1)[1] for work in citation["references"]}
    assert {w["identifier"].removeprefix("arXiv:") for w in zenodo["related_identifiers"]} == cited


def test_paper_has_the_parts_that_the_journal_asks_for():
    _, head, text = read("paper.md").split("---\n", 2)
    about = yaml.safe_load(head)
    assert {"title", "tags", "authors", "affiliations", "date", "bibliography"} <= set(about)
    for part in ("Summary", "Statement of need", "Audience and learning objectives", "How to adopt it", "References"):
        assert f"\n# {part}\n" in text, f"paper.md needs the part {part!r}"
    works = set(re.findall(r"^@\w+\{(\w+),", read(about["bibliography"]), re.MULTILINE))
    cited = set(re.findall(r"@(\w+)", text))
    assert cited and cited <= works, f"add {cited - works} to {about['bibliography']}"
    assert len(text.split()) < 1300, "the journal asks for about a thousand words"


# ---- workflows ----


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_calls_what_exists_and_runs_pinned_actions(path):
    """actionlint, which a workflow runs on all of them, knows the rest of the rules."""
    flow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert {"name", True, "jobs", "permissions"} <= set(flow), "YAML reads `on` as true"
    assert flow["permissions"] == {"contents": "read"}, "a job that needs more says so itself"
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    for name, job in flow["jobs"].items():
        assert job["timeout-minutes"], f"{name} could run for six hours"
        assert set(job.get("needs", [])) <= set(flow["jobs"])
        for step in job["steps"]:
            if "uses" in step:
                assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step["uses"]), f"pin to a commit: {step['uses']}"
            for command in re.findall(r"^\s*make (.+)$", step.get("run", ""), re.MULTILINE):
                called = {word for word in command.split() if "=" not in word and not word.startswith("-")}
                assert called <= targets, f"{path.name}: the Makefile has no {called - targets}"
            for script in re.findall(r"(?<!\S)((?:\.ci|tools)/\S+)", step.get("run", "")):
                assert (ROOT / script).is_file(), f"{path.name} calls {script}, which is not there"


def test_each_pin_says_which_version_it_is_and_all_agree():
    found = re.findall(
        r"uses: (\S+)@(\S+)(?: # (v[\d.]+))?\n", "".join(p.read_text(encoding="utf-8") for p in WORKFLOWS)
    )
    assert all(version for _, _, version in found), found
    assert len(set(found)) == len({action for action, _, _ in found}), "one action, two versions"


def test_the_site_is_published_only_from_a_push_that_passed():
    jobs = yaml.safe_load(read(".github/workflows/cpu.yml"))["jobs"]
    assert set(jobs["publish"]["needs"]) == set(jobs) - {"publish"}
    assert jobs["publish"]["if"] == "github.event_name == 'push'"
    assert jobs["publish"]["permissions"] == {"pages": "write", "id-token": "write"}
    steps = [str(step.get("uses", step.get("run"))) for step in jobs["test"]["steps"]]
    order = [next(i for i, s in enumerate(steps) if s.startswith(want)) for want in
             (".ci/run", "make site", "actions/upload-pages-artifact")]  # fmt: skip
    assert order == sorted(order), ".ci/run leaves the site at smoke: build the committed chapters after it"


# ---- the package ----


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with wheel and source archive."""
    pytest.importorskip("setuptools", reason="building the package needs setuptools: run `make setup`")
    sys.path.insert(0, str(ROOT / "tools"))
    import release

    if subprocess.run(["git", "rev-parse"], cwd=ROOT, capture_output=True, check=False).returncode:
        pytest.skip("git does not know this folder: run this in a clone of the repository")
    folder = tmp_path_factory.mktemp("dist")
    release.package(ROOT, folder, release.EPOCH)
    return folder


def test_wheel_holds_all_that_the_package_reads(built):
    (wheel,) = built.glob("*.whl")
    assert wheel.name == f"kdutils-{VERSION}-py3-none-any.whl"
    held = set(zipfile.ZipFile(wheel).namelist())
    kinds = {".py", ".json", ".toml", ".js", ".css"}
    ours = {p.relative_to(ROOT).as_posix() for p in (ROOT / "kdutils").rglob("*") if p.suffix in kinds}
    assert {name for name in held if name.startswith("kdutils/")} == ours
    assert [p.name for p in built.glob("*.tar.gz")] == [f"kdutils-{VERSION}.tar.gz"]


def test_wheel_is_the_same_each_time(built, tmp_path):
    import release

    release.package(ROOT, tmp_path, release.EPOCH)
    for wheel in built.glob("*.whl"):
        assert wheel.read_bytes() == (tmp_path / wheel.name).read_bytes()


TRY = """
import importlib.metadata, pkgutil, sys
import kdutils
from kdutils.pages import explorers, profiles
assert kdutils.__file__.startswith(sys.prefix), kdutils.__file__
for module in pkgutil.walk_packages(kdutils.__path__, "kdutils."):
    __import__(module.name)
assert profiles.load("parity", "smoke").d
assert "render" in str(explorers.Explorer._esm)
print(importlib.metadata.version("kdutils"), kdutils.__version__)
"""


def test_wheel_installs_and_imports_in_a_clean_environment(built, tmp_path):
    """Of this environment it sees the packages that it stands on, and not the repository."""
    (wheel,) = built.glob("*.whl")
    home = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    python = home / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    install = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True)
    packages = next(p for p in map(Path, sys.path) if (p / "torch").is_dir())
    (own,) = home.glob("[Ll]ib/**/site-packages")
    (own / "others.pth").write_text(f"{packages}\n")  # looked into last, and the link to the repository is not followed
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([python, "-c", TRY], cwd=tmp_path, env=inherited, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [VERSION, VERSION]


def test_a_tag_that_is_not_the_version_is_refused(tmp_path):
    import release

    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 1.2.3 (unreleased)\n")
    release.refuse(tmp_path, "")
    with pytest.raises(ValueError, match=r"tag the commit v1\.2\.3"):
        release.refuse(tmp_path, "v1.2.4")
    with pytest.raises(ValueError, match=r"make that heading `## 1\.2\.3`"):
        release.refuse(tmp_path, "v1.2.3")
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 1.2.3\n")
    release.refuse(tmp_path, "v1.2.3")


def test_the_site_goes_into_one_file(tmp_path):
    import release

    with pytest.raises(ValueError, match="run `make site` first"):
        release.site(tmp_path, tmp_path / "x.zip")
    for name in ("index.html", "_static/a.css"):
        (tmp_path / "html" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "html" / name).write_text(name)
    release.site(tmp_path / "html", tmp_path / "book-1.zip")
    with zipfile.ZipFile(tmp_path / "book-1.zip") as archive:
        assert archive.namelist() == ["book-1/_static/a.css", "book-1/index.html"]
        assert archive.read("book-1/index.html") == b"index.html"
