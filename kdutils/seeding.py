"""Random numbers by name: every stream is a function of a seed and a path of names, never of global state."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream called `names` under `seed`.

    Different names give unrelated streams, so drawing more from one never moves another.

    >>> derive(0, "data") == derive(0, "data"), derive(0, "data") == derive(0, "init")
    (True, False)
    """
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh `torch.Generator` for the stream called `names` under `seed`, on `device`."""
    return torch.Generator(device=device).manual_seed(derive(seed, *names))


@contextmanager
def global_rng(seed: int, *names: str | int) -> Iterator[None]:
    """Seed torch's global CPU generator inside the block and put it back after it.

    Module constructors draw their initial weights from the global generator and take no other;
    this is the one place where kdutils touches it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, *names))
        yield
