"""Build the site into _build/html, with warnings as errors, and print the path to open."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

import plain
import reference
from execute import BOOK, ROOT, destination, results

PARTS = ("_config.yml", "_toc.yml", "references.bib", "_ext", "_static", "site_assets")


def source(profile: str) -> Path:
    """A folder with the site's sources, its chapters those executed at `profile`."""
    folder = ROOT / "_build" / "source"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "book").mkdir(parents=True)
    for part in PARTS:
        path = ROOT / part
        if path.is_dir():
            shutil.copytree(path, folder / part)
        elif path.exists():
            shutil.copy(path, folder)
    for page in BOOK.glob("*.md"):
        shutil.copy(page, folder / "book")
    reference.write(folder / "book")
    measured = results(profile) / profile
    if measured.exists():
        shutil.copytree(measured, folder / "book" / "results")  # for the line under each title
        if (measured / "headline.png").exists():  # made by chapter 4
            shutil.copy(measured / "headline.png", folder / "book")
    for chapter in destination(profile).glob("*.ipynb"):
        shutil.copy(chapter, folder / "book")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="book")
    options = parser.parse_args()
    folder = source(options.profile)
    shutil.rmtree(ROOT / "_build" / "html", ignore_errors=True)
    command = [
        str(Path(sys.executable).with_name("jupyter-book")),
        "build",
        "-W",
        "-n",
        "--keep-going",
        "-q",
        str(folder),
    ]
    print("building the site", flush=True)
    # What it prints names a folder that is moved below; what it warns of goes to stderr.
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{done.stdout}the site has warnings or errors: see above")
    html = ROOT / "_build" / "html"
    shutil.move(folder / "_build" / "html", html)
    plain.write(folder, html)
    sys.stdout.reconfigure(errors="backslashreplace")  # the path may hold what an ASCII terminal cannot show
    print(f"open {os.path.relpath(html / 'index.html')}, or in a browser {(html / 'index.html').as_uri()}")


if __name__ == "__main__":
    main()
