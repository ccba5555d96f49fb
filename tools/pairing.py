"""A chapter's two files hold the same cells: the text that people edit, and the notebook that readers open.

The text is written in one form only, the one that jupytext gives it. So a sentence that is edited in Jupyter and
synced changes that sentence and nothing else.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from jupytext.myst import MystMetadataParsingError, get_parser
from normalise import KEEP_CELL_META, LANGUAGE
from yaml import YAMLError

MYST = {"extension": ".md", "format_name": "myst", "notebook_metadata_filter": "-all"}  # as jupytext.toml says
SWALLOWED = re.compile(r"(`{3}|~{3})\{(code|raw)-cell\}")


def text_of(path: Path) -> str:
    """What a file of the book says; a byte order mark is passed over. Raises a ValueError where it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        name = f"book/{path.parent.name}/{path.name}"
        raise ValueError(f"{name} is not UTF-8 text (see byte {error.start}): save it as UTF-8") from None


def read(path: Path) -> nbformat.NotebookNode:
    """The cells of a chapter's text.

    Raises:
        ValueError: for a text whose cells cannot be told apart; the message says where and how to mend it.
    """
    name, text = f"book/text/{path.name}", text_of(path)
    try:
        notebook = _parsed(text)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and (fault := _fault(cell.source)):
            raise ValueError(f"{name}: {fault}")
    return notebook


def _parsed(text: str) -> nbformat.NotebookNode:
    try:
        return jupytext.reads(text, fmt=dict(MYST))
    except MystMetadataParsingError as error:
        said, *_ = str(error).splitlines()
        advice = "write \\+++ where the line is text, or JSON after it" if "Markdown" in said else "see its options"
        raise ValueError(f"{said} ({advice})") from None
    except (YAMLError, nbformat.ValidationError) as error:
        raise ValueError(f"the options of a cell are not `name: value`: {str(error).splitlines()[0]}") from None


def _fault(source: str) -> str:
    """What would make the text of a markdown cell run into the cells around it."""
    lines = source.splitlines()
    for token in get_parser().parse(source):
        first, last = (lines[i].strip() for i in (token.map[0], token.map[1] - 1)) if token.map else ("", "")
        if token.level == 0 and token.type == "fence":
            closed = (
                len(last) >= len(token.markup) and set(last) == {token.markup[0]} and token.map[1] - token.map[0] > 1
            )
            if not closed:
                return f"the block that begins with {first!r} is not closed: end it with a line {token.markup}"
        if token.level == 0 and token.type == "html_block" and "<!--" in token.content.rsplit("-->", 1)[-1]:
            return f"the comment {first!r} is not closed: end it with -->"
    if found := SWALLOWED.search(source):
        line = source[: found.end()].splitlines()[-1]
        return f"{line!r} stands inside a list, a quote or a block, where it begins no cell: give it a line of its own"
    return ""


def written(notebook: nbformat.NotebookNode) -> str:
    """The text of a notebook, in the form that jupytext gives it."""
    plain = copy.deepcopy(notebook)
    plain.metadata = nbformat.from_dict({"language_info": LANGUAGE})
    for cell in plain.cells:
        cell.metadata = nbformat.from_dict({k: cell.metadata[k] for k in KEEP_CELL_META if cell.metadata.get(k)})
    return jupytext.writes(plain, fmt=dict(MYST))


def cells(notebook: nbformat.NotebookNode) -> list[tuple[str, str, dict[str, Any]]]:
    """(kind, source, metadata) of each cell that both files hold; a text cell without text is none."""
    return [
        (cell.cell_type, cell.source.strip(), {k: cell.metadata[k] for k in KEEP_CELL_META if cell.metadata.get(k)})
        for cell in notebook.cells
        if cell.source.strip() or cell.cell_type == "code"
    ]


def refuse_what_text_cannot_hold(notebook: nbformat.NotebookNode, name: str) -> None:
    """Raise a ValueError that names the first cell of a notebook that would be another one when read from its text."""
    here = cells(notebook)
    try:
        back = cells(_parsed(written(notebook)))
    except ValueError as error:
        raise ValueError(f"{name}.ipynb cannot be written as text: {error}") from None
    pasted = [cell.source for cell in notebook.cells if cell.get("attachments")]
    changed = [one[1] for one, other in zip(here, [*back, *[None] * len(here)], strict=False) if one != other]
    if pasted or changed or len(here) != len(back):
        why = "holds a pasted image: save it as a file" if pasted else "cannot stand in the text as it is"
        source = (pasted or changed or [here[-1][1]])[0]
        raise ValueError(
            f"{name}.ipynb: the cell {source.strip()[:60]!r} {why}. Reword it in Jupyter and sync again (text may not "
            "hold a line +++, a cell ```{code-cell}, a block or comment left open)"
        )


def refuse_lost_edits(book: Path, name: str) -> None:
    """Raise a ValueError where the notebook was edited in Jupyter and its text does not know."""
    text, path = book / "text" / f"{name}.md", book / f"{name}.ipynb"
    if not path.exists() or not text.exists():
        return
    notebook = nbformat.read(path, 4)
    if cells(notebook) == cells(read(text)):
        return
    refuse_what_text_cannot_hold(notebook, name)
    if path.stat().st_mtime_ns > text.stat().st_mtime_ns:
        raise ValueError(
            f"book/{name}.ipynb was edited after book/text/{name}.md, and what was edited would be lost: run "
            f"`jupytext --sync book/{name}.ipynb` to keep it, or `touch book/text/{name}.md` to drop it"
        )
