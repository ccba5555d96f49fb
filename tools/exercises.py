"""Write the exercises of each chapter into its text from book/exercises/NN_name.md, the one place where they stand.

There an exercise is a paragraph, one block of code that holds the solution, and what to say about it. Readers get the
block with the body of its function left out, and the whole of it folded. The last line of what is written carries its
checksum, so an edit that was made in the text or the notebook is refused, not written over.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sys
from pathlib import Path
from typing import NamedTuple

import nbformat
import notes
import pairing

BOOK = Path(__file__).resolve().parents[1] / "book"
BEGIN = "<!-- exercises: edit book/exercises, then run `python tools/exercises.py` -->\n"
SECTION = re.compile(f"{re.escape(BEGIN)}(.*)<!-- /exercises(?: (\\w+))? -->\n?", re.DOTALL)
INTRODUCTION = (
    "Copy a block into a cell, write the body of the function, and run it. The check prints `correct`, or says what is "
    "wrong. Each solution is folded below its exercise.\n"
)
PARTS = re.compile(r"(\*\*\d+ \((\w+)\)\.\*\* .+?)\n\n```python\n(.+?)```\n(.*)", re.DOTALL)


class Exercise(NamedTuple):
    """One exercise: what is asked, its grade, the code with the solution, and what to say about it."""

    question: str
    grade: str
    solution: str
    remark: str

    @property
    def stub(self) -> str:
        """The code with the body of its functions left out, but for the docstrings."""
        lines = self.solution.splitlines()
        for node in reversed(ast.parse(self.solution).body):
            if isinstance(node, ast.FunctionDef):
                lines[node.body[0].end_lineno : node.end_lineno] = ["    ...  # your code"]
        return "\n".join(lines) + "\n"

    def __str__(self) -> str:
        folded = f"<details>\n<summary>Solution</summary>\n\n```python\n{self.solution}```\n{self.remark}\n</details>\n"
        return f"{self.question}\n\n```python\n{self.stub}```\n\n{folded}"


def read(chapter: str) -> list[Exercise]:
    """The exercises of a chapter.

    Raises:
        ValueError: for an exercise that is not built as above.
    """
    source = pairing.text_of(BOOK / "exercises" / f"{chapter}.md")
    before, *parts = re.split(r"^(?=\*\*\d+ \()", source, flags=re.MULTILINE)
    if before.strip() or not parts:
        raise ValueError(f"book/exercises/{chapter}.md: begin with `**1 (easy).**`, not with {before.strip()[:60]!r}")
    found = []
    for part in parts:
        match = PARTS.fullmatch(part)
        if match is None:
            raise ValueError(f"{chapter}: not `**N (grade).** text`, a python block and a remark: {part[:60]!r}")
        *parts, remark = match.groups()
        remark = remark.strip("\n")
        found.append(Exercise(*parts, f"\n{remark}\n" if remark else ""))
    return found


def written(chapter: str) -> str:
    """The chapter's text with its exercises as their source says.

    Raises:
        ValueError: when the exercises in the text or the notebook are not as they were written there: somebody has
            edited them.
    """
    path, notebook = BOOK / "text" / f"{chapter}.md", BOOK / f"{chapter}.ipynb"
    if not path.exists():
        raise ValueError(f"book/exercises/{chapter}.md belongs to no chapter: there is no book/text/{chapter}.md")
    text = pairing.text_of(path)
    found = SECTION.search(text)
    if found is None:
        raise ValueError(
            f"book/text/{chapter}.md has lost the comments around its exercises: see tools/template/text.md"
        )
    try:
        new = "\n".join(["", INTRODUCTION, *map(str, read(chapter)), ""])
    except SyntaxError as error:
        raise ValueError(f"book/exercises/{chapter}.md: the code of a solution is no Python ({error})") from None
    _refuse_edited(f"book/text/{chapter}.md", found, new, chapter)
    if notebook.exists():
        prose = "\n\n".join(c.source for c in nbformat.read(notebook, 4).cells if c.cell_type == "markdown")
        _refuse_edited(f"book/{chapter}.ipynb", SECTION.search(prose), new, chapter)
    return text[: found.start()] + f"{BEGIN}{new}<!-- /exercises {_checksum(new)} -->\n" + text[found.end() :]


def _refuse_edited(where: str, found: re.Match[str] | None, new: str, chapter: str) -> None:
    section, checksum = found.groups() if found else ("", "")
    if section.strip() not in ("", new.strip()) and _checksum(section) != checksum:
        known = set(new.splitlines())
        line = next((line for line in section.splitlines() if line not in known), "")
        raise ValueError(
            f"{where}: its exercises were edited there ({line.strip()[:60]!r}). Edit book/exercises/{chapter}.md "
            "instead, to the same words, or empty the text between the two comments (the lines above the first "
            "exercise stand in tools/exercises.py)"
        )


def _checksum(section: str) -> str:
    return hashlib.sha256(section.strip().encode()).hexdigest()[:8]


def texts() -> dict[str, str]:
    """The text of every chapter that has exercises, as it should be.

    Raises:
        ValueError: for exercises that are not built as above, and for edits that would be lost.
    """
    return {path.stem: written(path.stem) for path in sorted((BOOK / "exercises").glob("*.md"))}


def write() -> None:
    """Bring every chapter's text up to date; raises what `texts` does."""
    for name, text in texts().items():  # all, or none
        path = BOOK / "text" / f"{name}.md"
        if pairing.text_of(path) != text:
            pairing.refuse_lost_edits(BOOK, name)
            notes.replace(path, text)


if __name__ == "__main__":
    try:
        write()
    except ValueError as error:
        sys.exit(str(error))
