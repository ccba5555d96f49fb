"""Pages of reference from the docstrings of kdutils: one for each room, and one that lists them all."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from types import ModuleType
from typing import Any

ROOMS = {  # module above the room's files, by the name of its page; the files at the top are the method
    "method": ("kdutils", "The method"),
    "tasks": ("kdutils.tasks", "Tasks and networks"),
    "probes": ("kdutils.probes", "Probes"),
    "lab": ("kdutils.lab", "The lab"),
    "studies": ("kdutils.studies", "Studies"),
    "pages": ("kdutils.pages", "Pages"),
}


def modules(room: str) -> list[str]:
    """The public modules of a room, those of its folders included, in alphabetical order."""
    package = importlib.import_module(ROOMS[room][0])
    inside = pkgutil.walk_packages if room != "method" else pkgutil.iter_modules
    found = [m.name for m in inside(package.__path__, f"{package.__name__}.")]
    return [name for name in found if room != "method" or not hasattr(importlib.import_module(name), "__path__")]


def _first_line(module: str) -> str:
    return inspect.getdoc(importlib.import_module(module)).splitlines()[0].rstrip(".")


def write(folder: Path) -> None:
    """Write `api.md`, and for each room `api_ROOM.md` and the same as plain text, into `folder`."""
    rows = ["# Reference of kdutils\n", "What the chapters import, from its docstrings. The search above finds every "
            "name. A room imports only from those above it in this list.\n"]  # fmt: skip
    for room, (_, title) in ROOMS.items():
        parts, lines = [f"# {title}\n"], []
        for module in modules(room):
            options = "   :members:\n"
            parts.append(f"## {module}\n\n```{{eval-rst}}\n.. automodule:: {module}\n{options}```\n")
            lines.append(f"- [{module}](api_{room}.md): {_first_line(module)}.")
        (folder / f"api_{room}.md").write_text("\n".join(parts), encoding="utf-8")
        (folder / f"api_{room}.txt").write_text(text(room), encoding="utf-8")
        rows.append(f"## {title}\n\n" + "\n".join(lines) + "\n")
    (folder / "api.md").write_text("\n".join(rows), encoding="utf-8")


def text(room: str) -> str:
    """A room's reference as plain text."""
    parts = [f"# {ROOMS[room][1]}"]
    for module in map(importlib.import_module, modules(room)):
        parts += [f"## {module.__name__}", inspect.getdoc(module)]
        for name, thing in documented(module):
            inside = vars(thing).items() if inspect.isclass(thing) else ()
            methods = [(f"{name}.{k}", m) for k, m in inside if inspect.isfunction(m) and k[0] != "_" and m.__doc__]
            for title, each in [(name, thing), *methods]:
                parts.append(f"### {title}{_signature(each)}\n\n{inspect.getdoc(each)}")
    return "\n\n".join(parts) + "\n"


def _signature(thing: Any) -> str:
    """A signature as it was written: no quotes around types, no addresses of functions.

    >>> _signature(write)
    '(folder: Path) -> None'
    """
    try:
        found = str(inspect.signature(thing))
    except (TypeError, ValueError):
        return ""
    return re.sub(r"<function (\S+) at 0x[0-9a-f]+>", r"\1", re.sub(r"(: |-> )'([^']*)'", r"\1\2", found))


def documented(module: ModuleType) -> list[tuple[str, Any]]:
    """The public functions and classes that a module defines and describes."""
    found = []
    for name, thing in vars(module).items():
        ours = getattr(thing, "__module__", None) == module.__name__ and not name.startswith("_")
        if ours and (inspect.isclass(thing) or inspect.isfunction(thing)) and thing.__doc__:
            found.append((name, thing))
    return found


def names() -> list[str]:
    """The documented functions and classes of all rooms, such as `kdutils.curriculum.Stage`."""
    found = [importlib.import_module(name) for room in ROOMS for name in modules(room)]
    return [f"{module.__name__}.{name}" for module in found for name, _ in documented(module)]
