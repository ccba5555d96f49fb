"""Write the exercises of each chapter into its text from book/exercises/NN_name.md, the one place where they stand.

There an exercise is a paragraph, one block of code that holds the solution, and what to say about it. Readers get the
block with the body of its function left out, and the whole of it folded.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

BOOK = Path(__file__).resolve().parents[1] / "book"
BEGIN, END = "<!-- exercises: edit book/exercises, then run `python tools/exercises.py` -->\n", "<!-- /exercises -->\n"
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
    source = (BOOK / "exercises" / f"{chapter}.md").read_text(encoding="utf-8")
    found = []
    for part in re.split(r"^(?=\*\*\d+ \()", source, flags=re.MULTILINE)[1:]:
        match = PARTS.fullmatch(part)
        if match is None:
            raise ValueError(f"{chapter}: not `**N (grade).** text`, a python block and a remark: {part[:60]!r}")
        *parts, remark = match.groups()
        remark = remark.strip("\n")
        found.append(Exercise(*parts, f"\n{remark}\n" if remark else ""))
    return found


def written(chapter: str) -> str:
    """The chapter's text with its exercises as their source says."""
    before, rest = (BOOK / "text" / f"{chapter}.md").read_text(encoding="utf-8").split(BEGIN)
    parts = [INTRODUCTION, *map(str, read(chapter))]
    return before + BEGIN + "\n" + "\n".join(parts) + "\n" + END + rest.split(END)[1]


def write() -> None:
    """Bring every chapter's text up to date."""
    for path in sorted((BOOK / "exercises").glob("*.md")):
        text, new = BOOK / "text" / path.name, written(path.stem)
        if text.read_text(encoding="utf-8") != new:
            text.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    write()
