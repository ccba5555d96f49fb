r"""How visible single bits are in a family of functions, and the one formula for what a first gradient step shows.

A *family of views* is a function $h: \{-1, +1\}^d \to R^m$: the neurons of a layer, or a target times the gate of
each of a student's neurons. With $a_i = E[x_i h(x)]$ and $V = E\|h\|^2$ the share of the family's energy that is
linear in bit $i$ is $\rho_i = \|a_i\|^2 / V$. By Bessel they add up to at most 1. From $n$ fresh samples the estimate
of $a_i$ has the energy $(1 - 1/n) \|a_i\|^2 + V / n$, exactly and on average over samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from kdutils import reading, seeding
from kdutils.probes.fourier import EXACT_LIMIT, cube
from kdutils.signals import Labels, Output, Signal, Students

BLOCKS = 20  # of a sample, left out one at a time for the error bars
PIECE = 8192  # inputs whose values are held at once

Views = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Shares:
    """What a family of views shows of each bit.

    Attributes:
        bits: (d,) the shares rho_i. Estimated from samples they may fall a little below 0.
        support: the bits that matter.
        error: (d,) their standard errors; zeros where the shares are exact.
    """

    bits: np.ndarray
    support: tuple[int, ...]
    error: np.ndarray

    @property
    def d(self) -> int:
        return len(self.bits)

    @property
    def on(self) -> float:
        """The sum of the shares over the support."""
        return float(self.bits[list(self.support)].sum())

    @property
    def off(self) -> float:
        """Their sum over all other bits."""
        return float(self.bits.sum()) - self.on

    @property
    def limit(self) -> float:
        """The share of the step that lies on the support when samples are endless; NaN for a family without any."""
        return self.on / (self.on + self.off) if self.on + self.off > 0 else math.nan

    def expected(self, n: float | np.ndarray) -> float | np.ndarray:
        """Expected energy of the step on the support over that of the whole step, from n fresh samples.

        >>> one_bit = Shares(np.array([1.0, 0, 0, 0]), (0,), np.zeros(4))
        >>> one_bit.expected(1), one_bit.expected(1e9) > 0.999
        (0.25, True)
        """
        n = np.asarray(n, float)
        share = ((n - 1) * self.on + len(self.support)) / ((n - 1) * (self.on + self.off) + self.d)
        return share if share.ndim else float(share)

    def needed(self, share: float = 0.5) -> float:
        """Samples from which on at least this share of the expected energy lies on the support; `inf` when never."""
        start, gain = len(self.support), self.on - share * (self.on + self.off)
        if share * self.d <= start:
            return 1.0
        return 1 + (share * self.d - start) / gain if gain > 0 else math.inf

    @property
    def excess(self) -> float:
        """What the support has more than its part, on - (k / d) (on + off).

        From few samples the expected share leaves chance, k / d, at the rate excess / d a sample.
        """
        return self.on - len(self.support) / self.d * (self.on + self.off)

    @property
    def visible(self) -> float:
        """Samples at which a bit of the support carries as much signal as noise, 1 / (mean share on the support)."""
        return len(self.support) / self.on if self.on > 0 else math.inf


def of(
    views: Views,
    d: int,
    support: Sequence[int],
    samples: int | None = None,
    generator: torch.Generator | None = None,
    centre: bool = False,
    device: torch.device | str = "cpu",
) -> Shares:
    """The shares of a family of views.

    Args:
        views: (n, d) of -1 and +1 -> (n, m), or (n,) for one view.
        samples: None for the exact sums over all 2^d inputs, up to d = 20; else the size of a sample. Its shares are
            unbiased but for the division by V, their errors a jackknife over blocks.
        generator: draws the sample.
        centre: take each view's mean away first, as `signals.Hidden` does.

    Raises:
        ValueError: for a sample without a generator, fewer than two samples a block, views that are constantly 0,
            or a support outside the bits.
    """
    support = tuple(sorted(int(i) for i in support))
    if not support or len(set(support)) < len(support) or not 0 <= support[0] <= support[-1] < d:
        raise ValueError(f"the support must hold different bits of 0..{d - 1}, not {list(support)}")
    if samples is None and d > EXACT_LIMIT:
        raise ValueError(f"exact sums are for d up to {EXACT_LIMIT}, not d={d}: give a number of samples")
    if samples is not None and (generator is None or samples < 2 * BLOCKS):
        raise ValueError(f"a sample needs a generator and at least {2 * BLOCKS} inputs, not {samples}")
    if samples is None:
        inputs = cube(d, device)
        blocks = [inputs]
    else:
        sizes = [samples // BLOCKS + (b < samples % BLOCKS) for b in range(BLOCKS)]
        device = generator.device
        blocks = (torch.randint(0, 2, (n, d), generator=generator, device=device) * 2.0 - 1 for n in sizes)
    sums = [_sums(views, block) for block in blocks]
    count, first, mean, second = (np.array([s[part] for s in sums]) for part in range(4))

    def rho(n: float, a: np.ndarray, m: np.ndarray, v: float) -> np.ndarray:
        a, bias, m, v = a[:, :-1] / n, a[:, -1:] / n, m / n, v / n
        if centre:  # `bias`, the mean of the bits, is 0 over the cube but not over a sample
            a, v = a - bias * m, v - m @ m
        if not v > 0:
            raise ValueError("these views are constant: they have no energy to share")
        energy = (a**2).sum(1)
        return (energy if samples is None else (n * energy - v) / (n - 1)) / v

    total = (count.sum(0), first.sum(0), mean.sum(0), second.sum(0))
    bits = rho(*total)
    if samples is None:
        return Shares(bits, support, np.zeros(d))
    left = np.array([rho(*(t - part[b] for t, part in zip(total, (count, first, mean, second), strict=True)))
                     for b in range(BLOCKS)])  # fmt: skip
    spread = (BLOCKS - 1) / BLOCKS * ((left - left.mean(0)) ** 2).sum(0)
    return Shares(bits, support, np.sqrt(spread))


@torch.no_grad()
def _sums(views: Views, x: torch.Tensor) -> tuple[int, np.ndarray, np.ndarray, float]:
    """Over the inputs: their number; sums of x_i h, and in a last column of x_i (d, m + 1); of h (m,); of |h|^2."""
    first, mean, second = 0.0, 0.0, 0.0
    for part in x.split(PIECE):
        h = views(part)
        h = (h[:, None] if h.dim() == 1 else h.flatten(1)).double()
        bits = part.double()
        first = first + torch.cat([bits.T @ h, bits.sum(0)[:, None]], 1)
        mean, second = mean + h.sum(0), second + h.square().sum()
    return len(x), first.cpu().numpy(), mean.cpu().numpy(), float(second)


@torch.no_grad()
def effective_rank(views: Views, x: torch.Tensor) -> float:
    """(tr C)^2 / tr(C^2) of the second moments C of the views at inputs x (n, d): between 1 and their number."""
    h = views(x)
    h = (h[:, None] if h.dim() == 1 else h.flatten(1)).double()
    c = h.T @ h / len(x)
    return float(c.trace() ** 2 / c.square().sum())


def layer(network: nn.Module, path: str = "act") -> Views:
    """The values of a module of a network, all its units flattened, as a family of views.

    Raises:
        ValueError: when there is no module of this path; the message lists those there are.
    """
    reading.module_at(network, path)
    return lambda x: reading.outputs_at(network, x, (path,))[path].flatten(1)


def gated(target: Views, network: nn.Module, path: str = "hidden") -> Views:
    """A target (n,) times the gate of each neuron: 1 where the module at `path`, before its ReLU, is positive, else 0.

    With the same |outgoing weight| for all neurons and an output of 0 this is what the first step of the hidden
    layer averages, for any loss whose gradient is the target times a constant (cross-entropy on two classes is).
    """
    reading.module_at(network, path)
    return lambda x: target(x)[:, None] * (reading.outputs_at(network, x, (path,))[path] > 0)


def asked(what: Signal, students: Students, task: Any, path: str = "hidden") -> Views:
    """What the first step of `what` reads, of all students: the target of each neuron, times its gate at `path`.

    For labels and outputs the target is p(0) - p(1), alike for all neurons, whose outgoing weights are taken as equal;
    for a hidden layer it is the very projection that each student gets, gated unless the student is read at `path`
    itself. What a student shows of its own is left out.

    Args:
        students: with one learning rate.
        task: of two classes, with `sample` and `label`.
    """
    sample = [task.sample(1024, seeding.generator(s, "calibration", device=students.device)) for s in students.seeds]
    bound = what.bind(students, *(torch.stack(part) for part in zip(*sample, strict=True)))
    networks = [students.member(m) for m in range(len(students.seeds))]

    def views(x: torch.Tensor) -> torch.Tensor:
        many = x.expand(len(networks), *x.shape)
        target = bound.target(many, task.label(many))
        target = target[0] if isinstance(target, tuple) else target
        if isinstance(what, Labels):
            target = 1.0 - 2.0 * target[..., None]
        elif isinstance(what, Output):
            target = torch.tanh(target @ target.new_tensor([0.5, -0.5]))[..., None]
        if bound.reads != (path,):
            target = target * torch.stack([reading.outputs_at(n, x, (path,))[path] > 0 for n in networks])
        return target.transpose(0, 1).flatten(1)

    return views
