"""Controls: signals and networks that hold one explanation of a stage's gain and leave out the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from kdutils import reading, seeding
from kdutils.signals import Bound, Signal, Students

KEPT = ("norms", "directions")


@dataclass(frozen=True)
class Shuffled:
    """Another signal, but the target of each sample is that of its neighbour in the batch: a control that must fail."""

    signal: Signal

    def bind(self, students: Students, x: Any, y: Any = None) -> Bound:
        bound, roll = self.signal.bind(students, x, y), partial(reading.each, lambda t: t.roll(1, 1))
        return replace(bound, target=lambda x, y: bound.target(roll(x), roll(y)))

    def __str__(self) -> str:
        return f"{self.signal}, of the wrong samples"


@dataclass(frozen=True)
class Redrawn:
    """Another signal, whose stage begins with weights of which only a part is left.

    Of the columns of `weight` (members, out, in), a column an input, either the "norms" stay (all else, the other
    parameters included, is drawn anew as at the start of training), or all but them: the "directions" and the other
    parameters stay, and the columns get the norms of fresh ones. With neither, all is fresh.
    """

    signal: Signal
    keep: str
    weight: str = "hidden.weight"

    def __post_init__(self) -> None:
        if self.keep not in KEPT:
            raise ValueError(f"keep must be one of {KEPT}, not {self.keep!r}")

    @torch.no_grad()
    def bind(self, students: Any, x: Any, y: Any = None) -> Bound:
        _weight(students, self.weight)
        fresh = []
        for seed in students.seeds:
            network = reading.copied(students.skeleton)
            with seeding.global_rng(seed, "redrawn", device=students.device):
                for part in network.modules():
                    if hasattr(part, "reset_parameters"):
                        part.reset_parameters()
            fresh.append(dict(network.named_parameters()))
        for name, old in students.parameters.items():
            new = students.spread(torch.stack([one[name] for one in fresh]))
            if name == self.weight:
                given, taken = (old, new) if self.keep == "norms" else (new, old)
                old.copy_(taken * (given.norm(dim=1, keepdim=True) / taken.norm(dim=1, keepdim=True)))
            elif self.keep == "norms":
                old.copy_(new)
        with torch.enable_grad():
            return self.signal.bind(students, x, y)

    def __str__(self) -> str:
        return f"{self.signal}, from the {self.keep} of the columns of `{self.weight}`"


@dataclass(frozen=True)
class Told:
    """Another signal, whose stage begins with a network that is told which inputs count.

    The columns of `weight` (members, out, in) of all inputs but `support` are multiplied by `rest`.
    """

    signal: Signal
    support: tuple[int, ...]
    rest: float = 0.0
    weight: str = "hidden.weight"

    @torch.no_grad()
    def bind(self, students: Any, x: Any, y: Any = None) -> Bound:
        shrink(_weight(students, self.weight), self.support, self.rest)
        with torch.enable_grad():
            return self.signal.bind(students, x, y)

    def __str__(self) -> str:
        return f"{self.signal}, told the support (the rest x {self.rest:g})"


def _weight(students: Any, name: str) -> torch.Tensor:
    if name not in students.parameters:
        raise ValueError(f"the student has no weight {name!r}; it has {', '.join(students.parameters)}")
    return students.parameters[name]


@torch.no_grad()
def shrink(weight: torch.Tensor, support: Sequence[int], rest: float) -> None:
    """Multiply all columns of a first layer's weight (..., out, in) but those of `support` by `rest`, in place."""
    factor = weight.new_full((weight.shape[-1],), rest)
    factor[list(support)] = 1.0
    weight.mul_(factor)


def told(network: nn.Module, support: Sequence[int], rest: float = 0.0) -> nn.Module:
    """A copy of a network with a first layer `hidden` that sees the inputs of `support` alone (or the others less)."""
    network = reading.copied(network)
    shrink(network.hidden.weight, support, rest)
    return network
