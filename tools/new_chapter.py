"""Start a chapter: its text and its exercises from tools/template, and its line in the table of contents."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import exercises

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = Path(__file__).with_name("template")
NEXT = """wrote book/text/{name}.md and book/exercises/{name}.md; what is yours to fill in says TODO
then:
  its settings            kdutils/pages/profiles.toml, if those of "parity" do not fit
  checks of its exercises kdutils/pages/exercises, and tests/unit/test_exercises.py
  its line in the map     book/index.md
  its first run           make execute CHAPTER={name}
  what it must hold to    make test"""


def write(root: Path, name: str) -> None:
    """Write a new chapter's files under `root`.

    Raises:
        ValueError: when the name is not NN_name, or its number is taken.
    """
    if not re.fullmatch(r"\d\d_[a-z][a-z0-9_]*", name):
        raise ValueError(f"a chapter is called NN_name, such as 10_vision, not {name!r}")
    taken = [path.stem for path in (root / "book" / "text").glob(f"{name[:2]}_*.md")]
    if taken:
        raise ValueError(f"the number {name[:2]} is taken by {taken[0]}")
    title = name[3:].replace("_", " ").capitalize()
    for kind in ("text", "exercises"):
        source = (TEMPLATE / f"{kind}.md").read_text(encoding="utf-8")
        source = source.replace("CHAPTER", name).replace("TITLE", title)
        (root / "book" / kind / f"{name}.md").write_text(source, encoding="utf-8")
    contents = root / "_toc.yml"
    lines = contents.read_text(encoding="utf-8").splitlines()
    listed = [i for i, line in enumerate(lines) if (m := re.search(r"file: book/(\d\d)_", line)) and m[1] < name[:2]]
    before = lines[listed[-1]]  # the new chapter belongs to the same part
    lines.insert(listed[-1] + 1, f"{before[: before.index('-')]}- file: book/{name}")
    contents.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        write(ROOT, *sys.argv[1:])
        exercises.write()
    except (TypeError, ValueError) as error:
        sys.exit(f"make new-chapter NAME=NN_name: {error}")
    print(NEXT.format(name=sys.argv[1]))
