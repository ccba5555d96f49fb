"""Change the repository's address wherever it stands: `python tools/address.py https://github.com/OWNER/NAME`.

It stands in `_config.yml`; the chapters' setup cells, README.md and others repeat it. Needs git, and nothing installed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STATED = re.compile(r"^  url: (\S+)$", re.MULTILINE)


def clean(address: str) -> str:
    """An address without `.git` and slashes at its end.

    Raises:
        ValueError: for anything but `https://github.com/OWNER/NAME`.

    >>> clean("https://github.com/someone/a-book.git")
    'https://github.com/someone/a-book'
    """
    cut = re.sub(r"(?:/|\.git)+$", "", address.strip())
    if not re.fullmatch(r"https://github\.com/[A-Za-z0-9][A-Za-z0-9-]*/(?!\.+$)[\w.-]+", cut, re.ASCII):
        raise ValueError(
            f"not an address of a repository: {address!r}; say make address URL=https://github.com/OWNER/NAME"
        )
    return cut


def change(root: Path, address: str) -> list[str]:
    """Put `address` in place of the stated one in all files that git knows; their names.

    Raises:
        ValueError: for an address that is none, and where git knows no file.
    """
    old, new = STATED.search((root / "_config.yml").read_text(encoding="utf-8"))[1], clean(address)
    stated = re.compile(rf"{re.escape(old)}(?![\w-])(?!\.(?!git\b)\w)")  # not a longer name that begins alike
    folder = re.compile(rf"(&& cd ){re.escape(old.rsplit('/', 1)[1])}$", re.MULTILINE)
    found = subprocess.run(["git", "grep", "-zlIF", old], cwd=root, capture_output=True, check=False).stdout
    changed = []
    for path in (root / os.fsdecode(name) for name in found.split(b"\0")[:-1]):
        text = path.read_bytes().decode("utf-8")
        with_new = folder.sub(rf"\g<1>{new.rsplit('/', 1)[1]}", stated.sub(new, text))
        if with_new != text:
            path.write_bytes(with_new.encode("utf-8"))
            changed.append(path.relative_to(root).as_posix())
    if not changed and old != new:
        raise ValueError(f"git knows no file here that states {old}: run this in a clone of the repository")
    return changed


if __name__ == "__main__":
    try:
        print(*change(ROOT, "".join(sys.argv[1:2])), sep="\n")
    except ValueError as error:
        sys.exit(str(error))
