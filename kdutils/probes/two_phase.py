"""The setting in which theorems about parities are proved: one large step of the hidden layer, then the readout."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from kdutils import seeding
from kdutils.probes import theory
from kdutils.probes.fourier import signed_output
from kdutils.signals import Labels, Signal, Students
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


def answer(task: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """The label as +1 (class 0) or -1, a function of the inputs."""
    return lambda x: 1.0 - 2.0 * task.label(x)


def exact_gradients(students: Students, k: int) -> torch.Tensor:
    """What `first_gradients` of labels comes to with endless samples, in closed form: (members, width, d).

    Args:
        students: from `paired`; the first k bits decide the label.
    """
    weight, bias, out = (students.parameters[n] for n in ("hidden.weight", "hidden.bias", "readout.weight"))
    steps = [theory.step(w.detach().sign().cpu().numpy(), b.tolist(), k) for w, b in zip(weight, bias, strict=True)]
    return -out[:, 0, :, None].detach() * torch.tensor(np.array(steps)).to(out)


def teachers(start: Students, task: Any, samples: int, batch: int | None = None) -> tuple[list[MLP], list[MLP]]:
    """Teachers between the two phases and after both, one a member of `start`.

    Args:
        samples: labels of the second phase; batch: those of the first, endless ones when left out.
    """
    if batch is None:
        gradients = exact_gradients(start, task.k)
    else:
        gradients = first_gradients(start, task, Labels(), [batch])[batch]
    after = stepped(start, gradients)
    middle = [after.member(m) for m in range(len(start))]
    x, _ = task.sample(samples, seeding.generator(0, "phase 2", device=start.device))
    return middle, [fitted(network, x, answer(task)(x), size=4.0) for network in middle]


def taught(students: Students, task: Any, gradient: torch.Tensor, teacher: MLP, samples: int) -> float:
    """Accuracy on 8,192 fresh samples of the first of `students` after this step and a fit to a teacher's output."""
    draw = seeding.generator(1, "phase 2", device=students.device)
    x, _ = task.sample(samples, draw)
    new, label = task.sample(8192, draw)
    network = fitted(stepped(students, gradient).member(0), x, signed_output(teacher)(x))
    return (network(new).argmax(1) == label).float().mean().item()


def shares(gradients: torch.Tensor, support: Sequence[int]) -> np.ndarray:
    """(members, 2): the energy of each step on the support, and in all."""
    bits = gradients.square().sum(1).cpu().numpy()
    return np.stack([bits[:, list(support)].sum(1), bits.sum(1)], 1)


def crossing(found: Mapping[int, torch.Tensor], support: Sequence[int], level: float = 0.5) -> tuple[float, float]:
    """Samples at which the share of all members' steps passes a level, and its standard error by the jackknife.

    Args:
        found: by growing batches, from `first_gradients`; between two of them the share is read on a straight line over
            the logarithm. NaN where it passes the level at none of them.
    """
    sizes, parts = np.log(list(found)), np.array([shares(g, support) for g in found.values()])  # (batches, members, 2)
    sums = parts.sum(1, keepdims=True) - parts  # each member left out in turn
    rising = np.maximum.accumulate(sums[..., 0] / sums[..., 1])
    at = np.exp([np.interp(level, share, sizes, left=np.nan, right=np.nan) for share in rising.T])
    return float(at.mean()), float(((len(at) - 1) * at.var()) ** 0.5)
