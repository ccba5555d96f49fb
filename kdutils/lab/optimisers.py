"""Update rules for an ensemble whose members have learning rates of their own.

`torch.optim` has one learning rate for a tensor; here one tensor holds the weights of every member, each with
its own. The rules themselves are torch's, and the tests hold them to it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

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


def _shaped(rates: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    return rates.view(-1, *[1] * (parameter.dim() - 1))


@dataclass(frozen=True)
class SGD:
    """Plain stochastic gradient descent at a constant rate: no momentum, no weight decay."""

    def start(self, parameters: Mapping[str, torch.Tensor], rates: torch.Tensor, done: int, total: int) -> Rule:
        single = rates.item() if len(rates) == 1 else None

        def update(gradients: Sequence[torch.Tensor | None]) -> None:
            for parameter, gradient in zip(parameters.values(), gradients, strict=True):
                if gradient is None:
                    continue
                if single is not None:
                    parameter.sub_(gradient, alpha=single)
                else:
                    parameter.addcmul_(gradient, _shaped(rates, parameter), value=-1)

        return update


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
        beta1, beta2 = self.betas
        steps, rows, parts = 0, None, []
        rates = rates[:, None]

        def update(gradients: Sequence[torch.Tensor | None]) -> None:
            nonlocal steps, rows, parts
            steps += 1
            scale = min(1.0, steps / self.warmup) if self.warmup else 1.0
            if self.decay:
                scale *= 0.5 * (1 + math.cos(math.pi * min(1.0, (done + steps - 1) / total)))
            size, correction = scale / (1 - beta1**steps), (1 - beta2**steps) ** 0.5
            pairs = [(p, g) for p, g in zip(parameters.values(), gradients, strict=True) if g is not None]
            if rows is None:  # one long row a member: a handful of large operations in place of many small ones
                sizes = [p[0].numel() for p, _ in pairs]
                rows = pairs[0][1].new_zeros(3, len(rates), sum(sizes))
                parts = [part.view_as(p) for (p, _), part in zip(pairs, rows[0].split(sizes, 1), strict=True)]
            work, first, second = rows
            for part, (_, gradient) in zip(parts, pairs, strict=True):
                part.copy_(gradient)
            first.lerp_(work, 1 - beta1)
            second.mul_(beta2).addcmul_(work, work, value=1 - beta2)
            denominator = torch.sqrt(second, out=work).div_(correction).add_(self.eps)
            torch.div(first, denominator, out=work).mul_(rates)
            for part, (parameter, _) in zip(parts, pairs, strict=True):
                parameter.sub_(part, alpha=size)

        return update
