"""How long a step takes: seconds of the processor, alternately in one process, so that their ratios can be compared."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from kdutils.signals import Signal
from kdutils.tasks.pretrained import Texts


def least(works: Mapping[str, Callable[[], object]], repeats: int = 4) -> dict[str, float]:
    """The least processor seconds of one call of each, in turn, after one call that is not counted."""
    found = dict.fromkeys(works, float("inf"))
    for repeat in range(repeats + 1):
        for name, work in works.items():
            started = time.process_time()
            work()
            if repeat:
                found[name] = min(found[name], time.process_time() - started)
    return found


def step(students: Any, signal: Signal, x: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:
    """A step of an ensemble of one on a batch (1, batch, ...), but for the optimiser's part: target, loss, gradient."""
    bound, moving = signal.bind(students, x, y), list(students.parameters.values())

    def work() -> None:
        target = bound.target(x, y)
        loss = bound.loss(students.run(x, bound.reads)[0], target)
        torch.autograd.grad(loss.sum(), moving, allow_unused=True)

    return work


def recorded(teacher: nn.Module, students: Any, signals: Mapping[str, Signal], texts: Texts, batch: int) -> dict:
    """What recording and its steps cost.

    Returns:
        "seconds" of a step by the name of its signal, and of one pass of the "teacher" over as many rows; "bytes" of a
        recorded row; "weights" of both networks; the test loss of token "frequencies" alone, in nats.
    """
    for parameter in students.parameters.values():
        parameter.requires_grad_(True)
    x, y = (part[None, :batch] for part in texts.train.windows())
    works: dict[str, Callable[[], object]] = {name: step(students, signal, x, y) for name, signal in signals.items()}
    seconds = least({**works, "teacher": torch.no_grad()(lambda: teacher(x[0]))})
    kept = [(signal.targets.shard(0), f"{signal.key}/") for signal in signals.values() if hasattr(signal, "targets")]
    size = sum(t[0].numel() * t.element_size() for shard, key in kept for n, t in shard.items() if n.startswith(key))
    counts = torch.bincount(texts.train.windows()[1].flatten(), minlength=texts.classes).double() + 1
    truth = texts.test.windows()[1]
    return {
        "seconds": {name: round(value, 5) for name, value in seconds.items()}, "bytes": size,
        "frequencies": -(counts / counts.sum()).log()[truth].mean().item(),
        "weights": [sum(p.numel() for p in n.parameters()) for n in (teacher, students.skeleton)],
    }  # fmt: skip
