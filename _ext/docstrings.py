"""Docstrings on the pages of reference: $x$ is mathematics there as in a chapter, and a bar is a bar, as in |A|."""

from __future__ import annotations

import re
from typing import Any


def plain(lines: list[str]) -> list[str]:
    """Name what is mathematics, and escape the bars outside it and outside code.

    >>> plain(["|A| is `a | b`, and $|x|$", ">>> 1 | 2"])
    ['\\\\|A\\\\| is `a | b`, and :math:`|x|`', '>>> 1 | 2']
    """
    found, code = [], False
    for line in lines:
        code = line.lstrip().startswith(">>>") or (code and bool(line.strip()))
        parts = re.split(r"(`[^`]*`|\$[^$]+\$)", line)
        parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
        parts[1::2] = [f":math:`{part[1:-1]}`" if part[0] == "$" else part for part in parts[1::2]]
        found.append(line if code else "".join(parts))
    return found


def _process(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    lines[:] = plain(lines)


def setup(app: Any) -> dict[str, Any]:
    """Sphinx's entry point."""
    app.connect("autodoc-process-docstring", _process, priority=400)  # before napoleon
    return {"version": "2", "parallel_read_safe": True, "parallel_write_safe": True}
