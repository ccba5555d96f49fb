"""What a task, a signal or a network reads from outside while it runs: files, and random numbers of no generator given.

Python tells of files that it opens, of databases, programs and connections, in the thread that opens them. What a
library opens by itself, as safetensors does, what was opened and kept earlier, and the clock are not heard.
"""

from __future__ import annotations

import os
import random
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from kdutils import identity, source

_local = threading.local()
_told: list[bool] = []  # whether Python tells us: what it was asked for once, it does for good
_CODE = tuple({os.path.realpath(path) + os.sep for path in [sys.prefix, *sysconfig.get_paths().values()]})
_NO_DATA = ("/dev/", "/proc/", "/sys/", "/usr/share/locale", "/usr/share/zoneinfo")
_BY_THEMSELVES = ("importlib._bootstrap", "torch._inductor", "torch._dynamo", "triton", "kdutils.shards", "linecache",
                  "tokenize")  # fmt: skip  # no data, or checked
_AGAIN = 3  # times that a part is done again which seems to draw: other threads of a program draw, too, now and then
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


def kept() -> bool:
    """Whether the run that is under way in this thread is to be kept."""
    return getattr(_local, "asked", None) is not None


@contextmanager
def drawing(task: Any) -> Iterator[None]:
    """A block in which a task draws samples or judges outputs, or another part of a run does what it does."""
    before = getattr(_local, "task", None), getattr(_local, "wrote", None)
    _local.task, _local.wrote = type(task).__name__, set()
    try:
        yield
    finally:
        _local.task, _local.wrote = before


def heard(part: Any, do: Callable[[], Any], generators: Iterable[torch.Generator] = ()) -> Any:
    """`do()`, listened to in the name of `part`. Where it moves the global streams, it is done again with these
    elsewhere, and `generators` as they are afterwards: what seeds them by itself leaves them at the same place."""
    with drawing(part):
        if getattr(_local, "asked", None) is None:
            return do()
        before, done, after = _streams(), do(), _streams()
        if moved := _moved(before, after):
            own = [(stream, stream.get_state()) for stream in generators]
            for _ in range(_AGAIN):
                _elsewhere()
                start, _, now = _streams(), do(), _streams()
                moved = [name for name in _moved(start, now) if name in moved and name in _moved(after, now)]
                if not moved:
                    break
            for set_state, state in (*zip(_SET.values(), after, strict=True), *((g.set_state, s) for g, s in own)):
                set_state(state)
        by = f"that `{type(part).__name__}` draws without a generator"
        _local.found |= {f"random numbers of `{name}` {by}": None for name in moved}
    return done


def draw(task: Any, n: int, stream: torch.Generator) -> tuple[Any, Any]:
    """`task.sample`, listened to. Where it moves other streams, it is asked again with these elsewhere."""
    found = getattr(_local, "found", None)
    with drawing(task):
        if found is None:
            return _pair(task, n, task.sample(n, stream))
        first = _local.asked is not None and id(task) not in _local.asked and source.is_own(type(task))
        before, streams = stream.get_state(), _streams()
        drawn = _pair(task, n, task.sample(n, stream))
        moved = _moved(streams, _streams())
        if moved and not any(name in text for name in moved for text in found):
            now = _streams()
            _elsewhere()
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


def _pair(task: Any, n: int, drawn: Any) -> tuple[Any, Any]:
    """What a task has drawn; ValueError unless it is inputs and labels, of `n` samples each."""
    what = f"{type(task).__name__}.sample({n}, generator) must return inputs and labels"
    if not isinstance(drawn, tuple | list) or len(drawn) != 2:
        many = f", of {len(drawn)}" if isinstance(drawn, tuple | list) else ""
        raise ValueError(f"{what}, a pair, not a {type(drawn).__name__}{many}")
    sizes = [len(part) for part in drawn if isinstance(part, torch.Tensor) and part.dim()]
    if sizes != [n] * len(sizes):
        raise ValueError(f"{what} of {n} samples, not of {' and '.join(map(str, sizes))}")
    return tuple(drawn)


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


def _moved(before: tuple, after: tuple) -> list[str]:
    return [name for name, was, now in zip(_SET, before, after, strict=True) if _key(was) != _key(now)]


def _elsewhere() -> None:
    torch.manual_seed(torch.initial_seed() + 1)
    np.random.seed(np.random.randint(2**31))
    random.seed(random.random())


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
    if event in _OTHERS and not _by_itself():
        found[f"{_OTHERS[event]} that `{task}` opens"] = None
    if event != "open" or not isinstance(arguments[0], str | bytes | os.PathLike):
        return
    name, flags = os.path.realpath(os.fsdecode(arguments[0])), arguments[2] or 0
    if flags & (os.O_WRONLY | os.O_TRUNC | os.O_EXCL):
        _local.wrote.add(name)
    elif name not in _local.wrote and not _is_code(name) and os.path.isfile(name) and not _by_itself():
        found[f"the file {os.path.basename(name)!r} that `{task}` opens"] = None


def _by_itself() -> bool:
    """Whether no code of the reader's own asks for it: a library is imported or compiles, or a record is opened."""
    frame = sys._getframe(2)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith(_BY_THEMSELVES):
            return True
        if not module.startswith("kdutils.") and source.origin(module) is None:
            return False
        frame = frame.f_back
    return False


def _is_code(name: str) -> bool:
    """Also what imports look into, and devices."""
    inside = name.startswith((*_CODE, *_NO_DATA)) or ".dist-info" in name or name in sys.path
    return inside or name.endswith((".pyc", ".so")) or ".so." in os.path.basename(name)
