"""Checks of the exercises of chapters 5 and 6."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from kdutils import probes, seeding
from kdutils.lab import stats, store
from kdutils.lab.ensemble import Ensemble
from kdutils.pages.exercises import close, exercise, need, need_hidden, need_outputs
from kdutils.signals import Hidden
from kdutils.tasks.models import MLP

# Chapter 5: why it works


@exercise
def check_share(share: Callable) -> None:
    """`share(n, on, off, k, d)`: expected energy of a step on the support over that of the whole step."""
    value = float(share(1, 0.3, 0.1, 3, 12))
    need(close(value, 0.25), f"one sample must show nothing: 3 of 12 bits are a share of 0.25, not {value:.4g}")
    value = float(share(10**9, 0.3, 0.1, 3, 12))
    need(close(value, 0.75), f"endless samples show 0.3 of 0.3 + 0.1, a share of 0.75, not {value:.4g}")
    value = float(share(5, 0.5, 0.0, 1, 4))
    message = f"5 samples, on=0.5, off=0, 1 of 4 bits: (4 x 0.5 + 1) / (4 x 0.5 + 4) is 0.5, not {value:.4g}"
    need(close(value, 0.5), message)
    halfway = float(share(1 + 12 / 0.4, 0.3, 0.1, 3, 12))
    need(close(halfway, 0.5), f"where signal and noise are alike it is half-way from 0.25 to 0.75, not {halfway:.4g}")


@exercise
def check_gated(gated: Callable) -> None:
    """`gated(target, gate)`: two functions' values on the cube (2^d,) -> (d,) degree-1 coefficients of the product."""
    d = 6
    x, draw = probes.cube(d), seeding.generator(0, "gated")
    parity = x[:, [0, 2, 5]].prod(1)
    found = gated(parity, torch.ones(2**d))
    need(found.shape == (d,), f"with {d} bits expected a result of shape ({d},), not {tuple(found.shape)}")
    need(found.abs().max() < 1e-6, "with a gate that is always open, a parity of three bits shows no single bit")
    found = gated(parity, x[:, 0] * x[:, 5])
    message = f"the parity of bits 0, 2, 5 times the product of 0 and 5 is bit 2; your coefficients: {found.tolist()}"
    need((found - torch.eye(d)[2]).abs().max() < 1e-6, message)
    found = gated(x[:, 0] * x[:, 1], (1 + x[:, :3].sum(1).sign()) / 2)
    message = "the parity of bits 0 and 1, gated by the majority of 0, 1 and 2, has the coefficients 1/4, 1/4, -1/4"
    need((found - torch.tensor([0.25, 0.25, -0.25, 0, 0, 0])).abs().max() < 1e-6, message)
    target, gate = torch.randn(2, 2**d, generator=draw)
    found = gated(target, gate)
    need((gated(gate, target) - found).abs().max() < 1e-5, "target and gate may change places: it is their product")
    flipped = torch.arange(2**d) ^ 0b1000
    signs = torch.tensor([1, 1, 1, -1, 1, 1])
    message = "turning bit 3 around must change the sign of its coefficient, and no other"
    need((gated(target[flipped], gate[flipped]) - signs * found).abs().max() < 1e-5, message)


@exercise
def check_needed(needed: Callable) -> None:
    """`needed(coefficient, sigmas)`: samples at which a coefficient is so many standard errors."""
    draw = seeding.generator(0, "needed")
    for coefficient, sigmas in ((0.5, 3), (0.1, 3), (-0.02, 5)):
        n = int(needed(coefficient, sigmas))
        need(n >= 1, f"for a coefficient of {coefficient} you say {n} samples: there must be some")
        heads = torch.binomial(torch.full((4000,), float(n)), torch.tensor((1 + coefficient) / 2), generator=draw)
        seen = abs(coefficient) / (2 * heads / n - 1).std().item()
        message = f"with {n:,} samples a coefficient of {coefficient} is {seen:.3g} standard errors, not {sigmas}"
        need(0.95 * sigmas < seen < 1.05 * sigmas, message)


@exercise
def check_unbiased(shares: Callable) -> None:
    """`shares(values, x)`: (n, m) views at samples (n, d) -> (d,) estimates of rho, unbiased."""
    d, n = 5, 10
    for kept in (0.0, 0.8):  # how often the first view is bit 0, and not a coin; all values have one size
        found, draw = [], seeding.generator(0, "unbiased")
        for _ in range(4000):
            x, coins = (torch.randint(0, 2, (n, c), generator=draw) * 2.0 - 1 for c in (d, 2))
            first = torch.where(torch.rand(n, generator=draw) < kept, x[:, 0], coins[:, 0])
            found.append(shares(3 * torch.stack([first, coins[:, 1]], 1), x))
            need(found[-1].shape == (d,), f"expected a result of shape ({d},), not {tuple(found[-1].shape)}")
        mean = torch.stack(found).mean(0)
        right = torch.eye(d)[0] * kept**2 / 2
        message = (
            f"from {n} samples of views with the shares {[round(v, 3) for v in right.tolist()]} your estimates are on "
            f"average {[round(v, 3) for v in mean.tolist()]}"
        )
        need((mean - right).abs().max() < 0.015, message)


# Chapter 6: controls


@exercise
def check_late(late: Callable) -> None:
    """`late(teacher, wait, steps)`: output for `wait`, hidden layer for `steps`, output for the rest."""
    teacher = MLP(4, 8)
    plan = late(teacher, 50, 200)
    need_outputs(plan, (50, 200, None), (teacher, None, teacher))
    need_hidden(plan, 2, teacher)


@exercise
def check_noisy(noisy: Callable) -> None:
    """`noisy(signal, size)`: the same signal, with fresh noise on each number of its targets."""
    with seeding.global_rng(0, "noisy"):
        teacher, second = MLP(6, 16), MLP(6, 16)
    students = Ensemble(lambda: MLP(6, 8), [0, 1, 2], [0.1, 1.0])
    x = 1.0 - 2.0 * torch.randint(2, (3, 400, 6), generator=seeding.generator(0, "noisy"))
    y, signal = torch.zeros(3, 400, dtype=torch.long), Hidden(teacher)
    clean = signal.bind(students, x, y)
    target = clean.target(x, y)
    for size in (0.5, 2.0):
        bound = noisy(signal, size).bind(students, x, y)
        first, again = bound.target(x, y), bound.target(x, y)
        need(first.shape == target.shape, f"targets {tuple(target.shape)} become {tuple(first.shape)}: keep the shape")
        noise = first - target
        spread, centre = noise.std().item(), noise.mean().item()
        need(0.95 < spread / size < 1.05, f"noise of size {size} changes your targets by {spread:.3g}")
        need(abs(centre) < 0.1 * size, f"the noise should have mean zero, not {centre:.3g}")
        for dim, what in enumerate(("seed", "sample", "neuron")):
            need(noise.std(dim).mean() > 0.5 * size, f"each {what} needs noise of its own")
        tails = (noise - centre).pow(4).mean().item() / spread**4
        need(
            2.7 < tails < 3.3,
            f"the noise should be Gaussian: its fourth moment is 3 times its variance squared, not {tails:.2f} times",
        )
        alone = Ensemble(lambda: MLP(6, 8), [1])
        message = "a seed's noise should be the same whichever seeds train beside it: one generator for each seed"
        one = noisy(signal, size).bind(alone, x[1:2], y[1:2]).target(x[1:2], y[1:2])
        need(not torch.equal(first, again), "the noise should be drawn anew at each step; yours stays the same")
        same = torch.equal(noisy(signal, size).bind(students, x, y).target(x, y), first)
        need(same, "a second run must see the same noise: draw from `seeding.generator`, made in `bind`")
        need(torch.allclose(one[0], first[1], atol=1e-4), message)
        need(bound.target(x[:, :5], y[:, :5]).shape == (3, 5, 8), "a step may have a batch of any size")
        need(bound.reads == clean.reads, "the noisy signal should read the same layer of the student")
        wanted, values = students.spread(target), students.outputs(x, clean.reads)
        unchanged = torch.allclose(bound.loss(values, wanted), clean.loss(values, wanted))
        need(unchanged, "only the target should change, and the loss stay as it is")
    described = [store.describe(noisy(s, size)) for s, size in ((signal, 1.0), (signal, 2.0), (Hidden(second), 1.0))]
    message = "the store must see both the size and the signal inside: make them fields of a dataclass"
    need(all(described[0] != other for other in described[1:]), message)


@exercise
def check_verdict(verdict: Callable) -> None:
    """`verdict(one, other)`: "as good", "different" or "unclear", of two `Times` over the same seeds."""
    rng, limit, inf = np.random.default_rng(0), 1e6, math.inf
    seeds = 10 ** rng.uniform(3, 4, 9)  # slow seeds and fast ones
    little, much = np.exp(0.03 * rng.standard_normal(9)), np.exp(1.5 * rng.standard_normal(9))
    near = rng.permutation([1.15] * 4 + [1.25] + [1.35] * 4)
    few, most = (np.where(np.arange(9) < n, inf, seeds) for n in (3, 6))
    never, late = np.full(9, inf), np.full(9, 0.9 * limit)
    for story, one, other, right in (
        ("arms that differ by 3 % on each seed", seeds, seeds * little, "as good"),
        ("an arm that needs twice the samples", 2 * seeds * little, seeds, "different"),
        ("an arm that needs 1.15 to 1.35 times the samples", near * seeds, seeds, "unclear"),
        ("arms whose ratio scatters by a factor of four or so", seeds, seeds * much, "unclear"),
        ("an arm that no seed finished, and one that takes a hundredth of the budget", never, seeds, "different"),
        ("an arm that no seed finished, and one that just did", never, late, "unclear"),
        ("two arms that no seed finished", never, never, "unclear"),
        ("two arms that 6 of 9 seeds did not finish", most, most, "unclear"),
        ("two arms that 3 of 9 seeds did not finish, and the others alike", few, few * little, "unclear"),
    ):
        times = stats.Times(one, limit), stats.Times(other, limit)
        mine = verdict(*times)
        need(mine in ("as good", "different", "unclear"), f'one of "as good", "different", "unclear", not {mine!r}')
        need(mine == right, f"{story}: that is {right!r}, not {mine!r}")
        need(verdict(*times[::-1]) == mine, f"{story}: when the arms change places the answer must be the same")
