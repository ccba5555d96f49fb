"""Build what a release carries into `_build/dist`: wheel, source archive, the site in one file, their checksums.

Usage: `python tools/release.py [--tag vX.Y.Z]`, after the site was built. The package is built from the files that
git knows, with the time of the last commit, so the same commit gives the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EPOCH = 315532800  # seconds: a zip file knows no time before 1980
PACKAGE = ("kdutils", "pyproject.toml", "README.md", "LICENSE")


def version(root: Path) -> str:
    """The version that `pyproject.toml` states."""
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


def refuse(root: Path, tag: str) -> None:
    """A tag has to be that of the version, and the changelog has to begin with it.

    Raises:
        ValueError: says which of the two does not agree, and what to do.
    """
    stated = version(root)
    if tag and tag != f"v{stated}":
        raise ValueError(f"tag {tag!r}, but pyproject.toml says version {stated}: tag the commit v{stated}")
    top = re.search(r"^## (.+)$", (root / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)[1]
    if tag and top != stated:
        raise ValueError(f"CHANGELOG.md begins with {top!r}: make that heading `## {stated}` before the release")


def package(root: Path, folder: Path, epoch: int) -> None:
    """Write wheel and source archive into `folder`, built from what git knows of `PACKAGE`.

    Raises:
        ValueError: with the last line of what the build said.
    """
    listed = subprocess.run(["git", "ls-files", "-z", *PACKAGE], cwd=root, capture_output=True, check=True).stdout
    with tempfile.TemporaryDirectory() as scratch:
        for name in filter(None, os.fsdecode(listed).split("\0")):
            (target := Path(scratch, name)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, target)
        build = "from setuptools import build_meta as b; b.build_wheel({0!r}); b.build_sdist({0!r})"
        done = subprocess.run(
            [sys.executable, "-c", build.format(str(folder.resolve()))], cwd=scratch, capture_output=True, text=True,
            env={**os.environ, "SOURCE_DATE_EPOCH": str(epoch)}, check=False,
        )  # fmt: skip
        if done.returncode:
            raise ValueError(f"the package cannot be built: {(done.stderr or done.stdout).strip().splitlines()[-1]}")


def site(html: Path, target: Path) -> None:
    """Put a built site into one zip file, in a folder of the file's name: the same site gives the same bytes.

    Raises:
        ValueError: where there is no site.
    """
    if not (html / "index.html").is_file():
        raise ValueError("there is no site in _build/html: run `make site` first")
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(p for p in html.rglob("*") if p.is_file()):
            entry = zipfile.ZipInfo(f"{target.stem}/{path.relative_to(html).as_posix()}")
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, path.read_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tag", default="", help="the tag that is released, such as v0.2.0")
    options = parser.parse_args()
    folder = ROOT / "_build" / "dist"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        refuse(ROOT, options.tag)
        last = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, check=True)
        package(ROOT, folder, max(EPOCH, int(last.stdout)))
        site(ROOT / "_build" / "html", folder / f"distilling-with-a-curriculum-{version(ROOT)}-site.zip")
    except ValueError as error:
        sys.exit(str(error))
    sums = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}\n" for p in sorted(folder.iterdir())]
    (folder / "SHA256SUMS").write_text("".join(sums), encoding="utf-8")
    print("".join(sums), end="")


if __name__ == "__main__":
    main()
