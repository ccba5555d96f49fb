"""What a task reads from outside while it draws samples: files, and random numbers that are not its generator's."""

from __future__ import annotations

import os
import random
import sys
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

_local = threading.local()
_told: list[bool] = []  # whether Python tells us of files: what it was asked for once, it does for good
_CODE = tuple({os.path.realpath(path) + os.sep for path in [sys.prefix, *sysconfig.get_paths().values()]})
_NO_DATA = ("/dev/", "/proc/", "/sys/")


@contextmanager
def noted() -> Iterator[dict[str, None]]:
    """A block in which what `drawing` sees in this thread is gathered, by names in a sentence, in order."""
    if not _told:
        sys.addaudithook(_hear)
        _told.append(True)
    before, _local.found = getattr(_local, "found", None), {}
    try:
        yield _local.found
    finally:
        _local.found = before


@contextmanager
def drawing(task: Any) -> Iterator[None]:
    """A block in which a task draws samples, or judges outputs."""
    if getattr(_local, "found", None) is None:
        yield
        return
    before, _local.task = _streams(), type(task).__name__
    try:
        yield
    finally:
        _local.task = None
        for name, was, now in zip(("torch", "numpy", "random"), before, _streams(), strict=True):
            if was != now:
                _local.found[f"random numbers of `{name}` that `{type(task).__name__}` draws without its generator"] = (
                    None
                )


def _streams() -> list[Any]:
    kind, keys, *rest = np.random.get_state()
    return [torch.get_rng_state().numpy().tobytes(), (kind, keys.tobytes(), *rest), random.getstate()]


def _hear(event: str, arguments: tuple) -> None:
    """Called by Python before anything that it audits; a file that is opened to be read is noted by its name."""
    if event != "open" or getattr(_local, "task", None) is None:
        return
    path, _, flags = arguments
    if not isinstance(path, str | bytes | os.PathLike) or (flags or 0) & (os.O_WRONLY | os.O_RDWR):
        return
    name = os.path.realpath(os.fsdecode(path))
    if not name.startswith((*_CODE, *_NO_DATA)) and not name.endswith((".py", ".pyc")):
        _local.found[f"the file {os.path.basename(name)!r} that `{_local.task}` opens"] = None
