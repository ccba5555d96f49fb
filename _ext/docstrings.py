"""Docstrings on the pages of reference: a bar is a bar there, as in |A|, and no substitution of reStructuredText's."""

from __future__ import annotations

import re
from typing import Any


def bars(lines: list[str]) -> list[str]:
    """Escape the bars outside code.

    >>> bars(["|A| is `a | b`", ">>> 1 | 2"])
    ['\\\\|A\\\\| is `a | b`', '>>> 1 | 2']
    """
    found, code = [], False
    for line in lines:
        code = line.lstrip().startswith(">>>") or (code and bool(line.strip()))
        parts = re.split(r"(`[^`]*`)", line)
        found.append(line if code else "".join(p if i % 2 else p.replace("|", r"\|") for i, p in enumerate(parts)))
    return found


def _process(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    lines[:] = bars(lines)


def setup(app: Any) -> dict[str, Any]:
    """Sphinx's entry point."""
    app.connect("autodoc-process-docstring", _process, priority=400)  # before napoleon
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
