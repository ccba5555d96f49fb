"""Random numbers by name: every stream is a function of a seed and a path of names, never of global state."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
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
def global_rng(seed: int, *names: str | int, device: torch.device | None = None) -> Iterator[None]:
    """Seed the global generators of torch, numpy and Python inside the block and put them back after it.

    Module constructors, dropout and the like draw from global generators and take no others; this is the one place
    where kdutils touches them. `device` is a GPU whose generator counts too; those of other GPUs are left alone.
    """
    before = random.getstate(), np.random.get_state()
    gpus = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(derive(seed, *names))
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(derive(seed, *names))
        np.random.seed(derive(seed, *names) % 2**32)
        random.seed(derive(seed, *names))
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


def global_state(device: torch.device | None = None) -> tuple[bytes, ...]:
    """Where the global generators stand: two equal states, and nothing was drawn between them."""
    states = [torch.get_rng_state().numpy().tobytes(), repr(random.getstate()).encode()]
    kind, keys, *rest = np.random.get_state()
    states.append(keys.tobytes() + repr((kind, *rest)).encode())
    if device is not None and device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device).numpy().tobytes())
    return tuple(states)
