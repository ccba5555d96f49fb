"""What `make execute` remembers in `_build` (stamps, seconds), and files that appear whole or not at all.

Nothing rests on these notes but time: a damaged one is said and made anew, and two writers wait for one another.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # no such lock on Windows: two runs at once may each forget what the other noted
    fcntl = None


def replace(path: Path, text: str) -> None:
    """Write a text file in one move, as readable as the umask allows."""
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.", suffix=".partial")
    os.close(handle)
    os.unlink(partial)  # made anew below with the usual rights
    try:
        Path(partial).write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        Path(partial).unlink(missing_ok=True)


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Only one process at a time is inside; the system lifts the lock of one that dies."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as file:
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a disk without locks
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def known(path: Path, profile: str) -> dict[str, Any]:
    """What was noted for a profile: a text or a number by name. Anything else in the file is left out, and said."""
    return _read(path).get(profile, {})


def remember(path: Path, profile: str, new: dict[str, Any]) -> None:
    """Add notes to those that are there."""
    try:
        with lock(path.parent):
            notes = _read(path)
            replace(path, json.dumps({**notes, profile: {**notes.get(profile, {}), **new}}, indent=1))
    except OSError as error:
        print(f"{path} cannot be written ({error}): going on, and nothing is remembered", file=sys.stderr)


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        found = None
    profiles = found if isinstance(found, dict) else {}
    sound = {
        profile: {name: note for name, note in notes.items() if _is_note(note)}
        for profile, notes in profiles.items()
        if isinstance(notes, dict)
    }
    if sound != found:
        print(f"{path} is damaged: what cannot be read of it is made anew", file=sys.stderr)
    return sound


def _is_note(note: Any) -> bool:
    return isinstance(note, str) or (isinstance(note, int | float) and not isinstance(note, bool) and abs(note) < 1e18)
