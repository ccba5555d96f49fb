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


def written(signature: str | None) -> str | None:
    """A signature with defaults that can be read, and parsed: what cannot is shown with every module's whole name.

    >>> written("(parts: ~typing.Any = <factory>, draw: ~typing.Any = <function gaussian>)")
    '(parts: ~typing.Any = ..., draw: ~typing.Any = gaussian)'
    """
    return signature and re.sub(r"<function (\w+)[^>]*>", r"\1", signature.replace("<factory>", "..."))


def _sign(app: Any, what: str, name: str, thing: Any, options: Any, signature: Any, returns: Any) -> tuple[Any, Any]:
    return written(signature), returns


def setup(app: Any) -> dict[str, Any]:
    """Sphinx's entry point."""
    app.connect("autodoc-process-docstring", _process, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", _sign)
    return {"version": "3", "parallel_read_safe": True, "parallel_write_safe": True}
