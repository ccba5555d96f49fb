"""The setting in which theorems about parities are proved: one large step of the hidden layer, then the readout."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from kdutils import seeding
from kdutils.signals import Signal, Students
from kdutils.tasks.models import MLP

PIECE = 1024  # samples whose gradient is taken at once


def paired(d: int, width: int) -> MLP:
    """A two-layer network whose neurons come in pairs that cancel: its output is 0 everywhere.

    Incoming weights are tiny random signs, both of a pair the same; biases lie on a grid inside (-1, 1); the outgoing
    weights of a pair are opposite. In the way of Barak et al. (2022).

    Raises:
        ValueError: for an odd width.
    """
    if width % 2:
        raise ValueError(f"neurons come in pairs: take an even width, not {width}")
    network, half = MLP(d, width), width // 2
    signs = torch.randint(0, 2, (half, d)) * 2.0 - 1
    grid = (torch.arange(half) + 0.5) / half * 2 - 1
    out = (torch.randint(0, 2, (half,)) * 2.0 - 1) / width
    with torch.no_grad():
        network.hidden.weight.copy_(torch.cat([signs, signs]) / d**0.5)
        network.hidden.bias.copy_(torch.cat([grid, grid]))
        network.readout.weight.copy_(torch.stack([torch.cat([out, -out]), torch.cat([-out, out])]))
        network.readout.bias.zero_()
    return network


def first_gradients(students: Students, task: Any, signal: Signal, batches: Sequence[int]) -> dict[int, torch.Tensor]:
    """The gradient of the hidden layer's weights before the first step, from more and more samples.

    Args:
        batches: sample sizes, multiples of `PIECE` or below it; the larger hold the smaller.

    Returns:
        {batch: (members, width, d)}
    """

    def draw(n: int, streams: Sequence[torch.Generator]) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = zip(*[task.sample(n, g) for g in streams], strict=True)
        return torch.stack(x), torch.stack(y)

    generators = [[seeding.generator(s, name, device=students.device) for s in students.seeds]
                  for name in ("calibration", "data")]  # fmt: skip
    bound = signal.bind(students, *draw(PIECE, generators[0]))
    weight = students.parameters["hidden.weight"].detach().requires_grad_(True)
    students = students.with_parameters({**students.parameters, "hidden.weight": weight})
    total, seen, found = torch.zeros_like(weight), 0, {}
    for batch in sorted(batches):
        while seen < batch:
            n = min(PIECE, batch - seen)
            x, y = draw(n, generators[1])
            target = students.spread(bound.target(x, y))
            losses = bound.loss(students.outputs(x, bound.reads), target)
            total = total + n * torch.autograd.grad(losses.sum(), weight)[0]
            seen += n
        found[batch] = total / seen
    return found


def stepped(students: Students, gradients: torch.Tensor, largest: float = 2.0) -> Students:
    """The networks after the first phase: the hidden weights are the step alone, scaled so that the largest is 2.

    Args:
        gradients: (members, width, d), from `first_gradients` or exact ones.
    """
    weight = -largest * gradients / gradients.abs().amax((1, 2), keepdim=True)
    return students.with_parameters({**students.parameters, "hidden.weight": weight})


@torch.no_grad()
def fitted(network: MLP, x: torch.Tensor, target: torch.Tensor, size: float = 1.0) -> MLP:
    """The network after the second phase: its readout is the least-squares fit of a target on a frozen hidden layer.

    Args:
        x: (n, d) inputs; target: (n,) in [-1, 1], +1 for class 0.
        size: the difference of the two logits is 2 `size` times the fit: how sure the network is.
    """
    network = copy.deepcopy(network)
    h = network.act(network.hidden(x)).double()
    rows = torch.cat([h, torch.ones_like(h[:, :1])], 1)
    weights = torch.linalg.lstsq(rows, target.double()[:, None], driver="gelsd").solution[:, 0].float() * size
    network.readout.weight.copy_(torch.stack([weights[:-1], -weights[:-1]]))
    network.readout.bias.copy_(torch.stack([weights[-1], -weights[-1]]))
    return network
