"""The site as plain text, for readers' assistants: a Markdown copy beside each page, and `llms.txt`, which lists them.

A chapter's copy holds its text, its code, what the code printed, and each figure's description.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

WIDGET = "application/vnd.jupyter.widget-view+json"


def _text(value: str | list[str]) -> str:
    return "".join(value).rstrip("\n")


def _outputs(cell: dict[str, Any]) -> list[str]:
    parts = []
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        if any(kind.startswith("image/") for kind in data):
            parts.append(f"[Figure: {cell['metadata'].get('mystnb', {}).get('image', {}).get('alt', '')}]")
        elif said := _text(output.get("text", data.get("text/plain", ""))):
            parts.append(said if WIDGET in data else f"```text\n{said}\n```")
    return parts


def chapter(notebook: dict[str, Any]) -> str:
    """A notebook as Markdown.

    >>> cell = {"cell_type": "code", "source": "1 + 1", "metadata": {}, "outputs": [{"data": {"text/plain": "2"}}]}
    >>> print(chapter({"cells": [{"cell_type": "markdown", "source": "# Sum"}, cell]}))
    # Sum
    <BLANKLINE>
    ```python
    1 + 1
    ```
    <BLANKLINE>
    ```text
    2
    ```
    <BLANKLINE>
    """
    parts = []
    for cell in notebook["cells"]:
        source = _text(cell["source"])
        parts += [source] if cell["cell_type"] == "markdown" else [f"```python\n{source}\n```", *_outputs(cell)]
    return "\n\n".join(filter(None, parts)) + "\n"


def write(source: Path, html: Path) -> None:
    """Write the copies and `llms.txt` into a built site, in the order of its table of contents.

    Args:
        source: the folder that the site was built from.
        html: the built site.
    """
    contents = yaml.safe_load((source / "_toc.yml").read_text(encoding="utf-8"))
    about = (source / f"{contents['root']}.md").read_text(encoding="utf-8")
    title, said = re.match(r"# (.+)\n\n(.+)\n", about).groups()
    lines = [f"# {title}\n", f"> {said}\n"]
    (html / f"{contents['root']}.md").write_text(about, encoding="utf-8")
    for part in contents["parts"]:
        lines.append(f"## {part['caption']}\n")
        for entry in part["chapters"]:
            for page in (entry["file"], *(below["file"] for below in entry.get("sections", ()))):
                text = _page(source / page)
                (html / f"{page}.md").write_text(text, encoding="utf-8")
                head, claim = re.match(r"# (.+)\n\n(?:\*\*([^*\n]+)\*\*)?", text).groups()
                lines.append(f"- [{head}]({page}.md)" + (f": {claim}" if claim else ""))
        lines.append("")
    (html / "llms.txt").write_text("\n".join(lines), encoding="utf-8")


def _page(path: Path) -> str:
    """The text of a page, from what it was made of: a notebook, text, or Markdown."""
    if (made := path.with_suffix(".ipynb")).exists():
        return chapter(json.loads(made.read_text(encoding="utf-8")))
    plain = path.with_suffix(".txt")
    return (plain if plain.exists() else path.with_suffix(".md")).read_text(encoding="utf-8")
