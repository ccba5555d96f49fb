"""Update rules for an ensemble whose members have learning rates of their own.

`torch.optim` has one learning rate for a tensor; here one tensor holds the weights of every member, each with
its own. The rules themselves are torch's, and the tests hold them to it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch


class Optimiser(Protocol):
    """Plain data; `start` makes it concrete at the beginning of a stage."""

    def start(self, parameters: Mapping[str, torch.Tensor], rates: torch.Tensor, done: int, total: int) -> Rule:
        """The rule for `parameters` (members first); `done` of the `total` steps lie in earlier stages."""
        ...


class Rule(Protocol):
    def __call__(self, gradients: Sequence[torch.Tensor | None]) -> None:
        """One step, in place. A parameter whose gradient is None stays as it is."""
        ...

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """What a stage that was stopped needs to go on: tensors, and plain data."""
        ...

    def restore(self, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> None:
        """Take up such a state."""
        ...


def _shaped(rates: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    return rates.view(-1, *[1] * (parameter.dim() - 1))


@dataclass(frozen=True)
class SGD:
    """Plain stochastic gradient descent at a constant rate: no momentum, no weight decay."""

    def start(self, parameters: Mapping[str, torch.Tensor], rates: torch.Tensor, done: int, total: int) -> Rule:
        return _SGDRule(list(parameters.values()), rates)


class _SGDRule:
    def __init__(self, parameters: list[torch.Tensor], rates: torch.Tensor) -> None:
        self.parameters, self.rates = parameters, rates
        self.single = rates.item() if len(rates) == 1 else None

    def __call__(self, gradients: Sequence[torch.Tensor | None]) -> None:
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            if gradient is None:
                continue
            if self.single is not None:
                parameter.sub_(gradient, alpha=self.single)
            else:
                parameter.addcmul_(gradient, _shaped(self.rates, parameter), value=-1)

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        return {}, {}

    def restore(self, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> None:
        pass


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma and Ba, 2015). Its moments start anew with every stage: losses of two stages differ in scale.

    Args:
        betas, eps: as in torch.
        warmup: steps at the start of *each* stage over which the rate rises linearly from 0.
        decay: let the rate fall to 0 along half a cosine over the whole budget; else it is constant.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    warmup: int = 50
    decay: bool = False

    def start(self, parameters: Mapping[str, torch.Tensor], rates: torch.Tensor, done: int, total: int) -> Rule:
        return _AdamRule(self, dict(parameters), rates[:, None], done, total)


class _AdamRule:
    """Moments by parameter. A parameter without a gradient rests: its moments and its count of steps stay, as in torch.

    While the same parameters have a gradient at every step, as is usual, their moments lie side by side in one long row
    a member: a handful of large operations in place of many small ones.
    """

    def __init__(
        self, plan: Adam, parameters: dict[str, torch.Tensor], rates: torch.Tensor, done: int, total: int
    ) -> None:
        self.plan, self.parameters, self.rates, self.done, self.total = plan, parameters, rates, done, total
        self.steps = 0  # of this stage: warm-up and decay follow it
        self.taken: dict[str, int] = {}  # steps in which each parameter had a gradient
        # names -> (work and both moments (3, members, size), the work by name)
        self.groups: dict[tuple[str, ...], tuple[torch.Tensor, dict[str, torch.Tensor]]] = {}

    def _group(self, names: tuple[str, ...], moments: Sequence[torch.Tensor]) -> None:
        rows = torch.stack([torch.zeros_like(moments[0]), *moments])
        pieces = zip(names, rows[0].split(self._sizes(names), 1), strict=True)
        self.groups[names] = rows, {name: piece.view_as(self.parameters[name]) for name, piece in pieces}

    def _sizes(self, names: tuple[str, ...]) -> list[int]:
        return [self.parameters[name][0].numel() for name in names]

    def __call__(self, gradients: Sequence[torch.Tensor | None]) -> None:
        self.steps += 1
        scale = min(1.0, self.steps / self.plan.warmup) if self.plan.warmup else 1.0
        if self.plan.decay:
            scale *= 0.5 * (1 + math.cos(math.pi * min(1.0, (self.done + self.steps - 1) / self.total)))
        given = {name: g for name, g in zip(self.parameters, gradients, strict=True) if g is not None}
        new = tuple(name for name in given if name not in self.taken)
        if new:
            self._group(new, given[new[0]].new_zeros(2, len(self.rates), sum(self._sizes(new))))
            self.taken |= dict.fromkeys(new, 0)
        for names in list(self.groups):
            if 0 < sum(name in given for name in names) < len(names):  # from now on each on its own
                rows, _ = self.groups.pop(names)
                for name, moments in zip(names, rows[1:].split(self._sizes(names), 2), strict=True):
                    self._group((name,), moments)
        for names in self.groups:
            if names[0] in given:
                self._update(names, given, scale)

    def _update(self, names: tuple[str, ...], given: Mapping[str, torch.Tensor], scale: float) -> None:
        beta1, beta2 = self.plan.betas
        count = self.taken[names[0]] + 1
        self.taken |= dict.fromkeys(names, count)
        size, correction = scale / (1 - beta1**count), (1 - beta2**count) ** 0.5
        (work, first, second), parts = self.groups[names]
        for name, part in parts.items():
            part.copy_(given[name])
        first.lerp_(work, 1 - beta1)
        second.mul_(beta2).addcmul_(work, work, value=1 - beta2)
        denominator = torch.sqrt(second, out=work).div_(correction).add_(self.plan.eps)
        torch.div(first, denominator, out=work).mul_(self.rates)
        for name, part in parts.items():
            self.parameters[name].sub_(part, alpha=size)

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        tensors = {str(i): rows[1:] for i, (rows, _) in enumerate(self.groups.values())}
        return tensors, {"steps": self.steps, "taken": self.taken, "groups": list(self.groups)}

    def restore(self, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> None:
        self.steps, self.taken = meta["steps"], dict(meta["taken"])
        for i, names in enumerate(meta["groups"]):
            self._group(tuple(names), tensors[str(i)])
