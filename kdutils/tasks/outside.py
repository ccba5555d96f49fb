"""What a task reads from outside while it draws samples: files, and random numbers that are not its generator's.

Python tells of files that it opens, of databases, programs and connections, in the thread that opens them. What a
library opens by itself, as safetensors does, what was opened and kept earlier, and the clock are not heard.
"""

from __future__ import annotations

import os
import random
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from kdutils import identity, source

_local = threading.local()
_told: list[bool] = []  # whether Python tells us: what it was asked for once, it does for good
_CODE = tuple({os.path.realpath(path) + os.sep for path in [sys.prefix, *sysconfig.get_paths().values()]})
_NO_DATA = ("/dev/", "/proc/", "/sys/")
_OTHERS = {"sqlite3.connect": "a database", "subprocess.Popen": "a program", "socket.connect": "a connection"}


@contextmanager
def noted(kept: bool = True) -> Iterator[dict[str, None]]:
    """A block in which what `drawing` sees in this thread is gathered, by names in a sentence, in order.

    Where the run is to be kept, a task of the reader's own is asked for its first samples twice: it must say the same,
    and be the same after it.
    """
    if not _told:
        sys.addaudithook(_hear)
        _told.append(True)
    before, _local.found = getattr(_local, "found", None), {}
    asked, _local.asked = getattr(_local, "asked", None), {} if kept else None
    try:
        yield _local.found
    finally:
        inner, _local.found = _local.found, before
        _local.asked = asked
        if before is not None:  # a training inside another's task
            before |= inner


@contextmanager
def drawing(task: Any) -> Iterator[None]:
    """A block in which a task draws samples, or judges outputs."""
    before = getattr(_local, "task", None), getattr(_local, "wrote", None)
    _local.task, _local.wrote = type(task).__name__, set()
    try:
        yield
    finally:
        _local.task, _local.wrote = before


def draw(task: Any, n: int, stream: torch.Generator) -> tuple[Any, Any]:
    """`task.sample`, listened to. Where it moves other streams, it is asked again with these elsewhere."""
    found = getattr(_local, "found", None)
    with drawing(task):
        if found is None:
            return task.sample(n, stream)
        first = _local.asked is not None and id(task) not in _local.asked and source.is_own(type(task))
        before, streams = stream.get_state(), _streams()
        drawn = task.sample(n, stream)
        moved = [name for name, was, now in zip(_SET, streams, _streams(), strict=True) if _key(was) != _key(now)]
        if moved and not any(name in text for name in moved for text in found):
            now = _streams()
            torch.manual_seed(torch.initial_seed() + 1)
            np.random.seed(np.random.randint(2**31))
            random.seed(random.random())
            again = _again(task, n, before, stream)
            for set_state, state in zip(_SET.values(), now, strict=True):
                set_state(state)
            if not all(map(_same, drawn, again)):
                by = f"that `{type(task).__name__}` draws without its generator"
                found |= {f"random numbers of `{name}` {by}": None for name in moved}
        elif first:
            _local.asked[id(task)] = task  # held, or another would take its address
            was = identity.describe(task)  # what it made ready at the first call is there
            same = all(map(_same, drawn, _again(task, n, before, stream)))
            if not same or identity.describe(task) != was:
                found[f"something that `{type(task).__name__}` keeps from call to call, or draws from elsewhere"] = None
    return drawn


def _again(task: Any, n: int, before: torch.Tensor, stream: torch.Generator) -> tuple[Any, Any]:
    """The same samples once more; the generator is left as it is."""
    after = stream.get_state()
    stream.set_state(before)
    drawn = task.sample(n, stream)
    stream.set_state(after)
    return drawn


_SET: dict[str, Callable] = {"torch": torch.set_rng_state, "numpy": np.random.set_state, "random": random.setstate}


def _streams() -> tuple:
    return torch.get_rng_state(), np.random.get_state(), random.getstate()


def _key(state: Any) -> list[Any]:
    parts = (state.numpy(),) if isinstance(state, torch.Tensor) else state
    return [part.tobytes() if isinstance(part, np.ndarray) else part for part in parts]


def _same(one: Any, two: Any) -> bool:
    both = isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor)
    return both and identity.digest({"": one}) == identity.digest({"": two})  # also where numbers are missing


def _hear(event: str, arguments: tuple) -> None:
    """Called by Python before anything that it audits; a file that is opened to be read is noted by its name."""
    task, found = getattr(_local, "task", None), getattr(_local, "found", None)
    if task is None or found is None:
        return
    if event in _OTHERS:
        found[f"{_OTHERS[event]} that `{task}` opens"] = None
    if event != "open" or not isinstance(arguments[0], str | bytes | os.PathLike):
        return
    name, flags = os.path.realpath(os.fsdecode(arguments[0])), arguments[2] or 0
    if flags & (os.O_WRONLY | os.O_TRUNC | os.O_EXCL):
        _local.wrote.add(name)
    elif name not in _local.wrote and not _is_code(name) and os.path.isfile(name):
        found[f"the file {os.path.basename(name)!r} that `{task}` opens"] = None


def _is_code(name: str) -> bool:
    """Also what imports look into, and devices."""
    inside = name.startswith((*_CODE, *_NO_DATA)) or ".dist-info" in name or name in sys.path
    return inside or name.endswith((".py", ".pyc", ".so"))
