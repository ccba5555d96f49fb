"""Checks of the exercises of chapters 1 to 4."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import nn

from kdutils import probes, projections, seeding
from kdutils.lab.lab import Lab
from kdutils.lab.record import Run
from kdutils.losses import distillation_loss
from kdutils.pages.exercises import close, exercise, need, need_hidden, need_outputs
from kdutils.tasks import cost
from kdutils.tasks.models import MLP

# Chapter 1: sparse parities


@exercise
def check_label(label: Callable) -> None:
    """`label(x, support)`: (n, d) of -1 and +1 -> (n,) classes 0 and 1."""
    x = probes.cube(6)
    for support in ((2,), (0, 5), (1, 3, 4)):
        y = label(x, support)
        need(y.shape == (64,), f"64 rows need labels of shape (64,), not {tuple(y.shape)}")
        need(set(y.tolist()) <= {0, 1}, f"a label is 0 or 1, not {y[0].item()}")
        need(y[0] == 0, "a row of nothing but +1 has the product +1, which is class 0")
        for bit in range(6):
            other = x.clone()
            other[:, bit] *= -1
            changed = (label(other, support) != y).float().mean().item()
            expected = "every label" if bit in support else "no label"
            message = f"with support {support}, flipping bit {bit} must change {expected}; it changes {changed:.0%}"
            need(changed == (bit in support), message)


@exercise
def check_estimate(estimate: Callable) -> None:
    """`estimate(values, x)`: (n,) and (n, d) -> (d,) degree-1 coefficients and (d,) standard errors."""
    d, n = 8, 500
    exact = torch.tensor([0.5] * 3 + [0.0] * (d - 3))  # of the majority of the first three bits
    draw, inside, errors = seeding.generator(0, "estimate"), [], []
    for _ in range(200):
        x = 1.0 - 2.0 * torch.randint(2, (n, d), generator=draw)
        guess, error = estimate(x[:, :3].sum(1).sign(), x)
        need(guess.shape == error.shape == (d,), f"expected two results of shape ({d},), one entry a bit")
        need((guess - exact).abs().max() < 0.3, "the majority of three bits has coefficients 1/2 there and 0 elsewhere")
        inside.append(((guess - exact).abs() < 2 * error).float().mean())
        errors.append(error)
    share = torch.stack(inside).mean().item()
    need(0.92 < share < 0.98, f"two standard errors should cover the truth 95 % of the time; yours do {share:.0%}")
    error = torch.stack(errors).mean(0)
    ratio = (error[:3].mean() / error[3:].mean()).item()
    message = f"a bit of coefficient 1/2 has 0.87 times the standard error of one of 0, not {ratio:.2f} times"
    need(abs(ratio - 0.75**0.5) < 0.03, f"{message}: its products vary less")
    values = 3 * x[:, :3].sum(1).sign() + 4 * torch.randn(n, generator=draw)
    right, error = (values[:, None] * x).std(0) / n**0.5, estimate(values, x)[1]
    message = f"values need not be -1 and +1: here the standard error is {right.mean():.2f}, not {error.mean():.2f}"
    need((error / right - 1).abs().max() < 0.02, message)


class _Two(nn.Module):
    """Two neurons, each of which sees the samples of one sign of the last bit; at 0 the gradient is known."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(5, 2, bias=False)
        nn.init.zeros_(self.hidden.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.hidden(x)
        difference = torch.where(x[:, -1] > 0, h[:, 0], h[:, 1])
        return torch.stack([difference, -difference], 1)


@exercise
def check_gap(gap: Callable) -> None:
    """`gap(network, x, y, support)`: mean square of the first layer's gradient on the support over that off it."""
    support, x, ratios = [4, 8], probes.cube(10), []
    parity = (x[:, support].prod(1) < 0).long()
    for seed in range(30):  # one network and one draw of coins say little: the ratio scatters widely
        with seeding.global_rng(seed, "gap"):
            network = MLP(10, 128)
        before = [p.detach().clone() for p in network.parameters()]
        coins = torch.randint(2, (len(x),), generator=seeding.generator(seed, "coins"))
        ratios.append([math.log(gap(network, x, y, support)) for y in (parity, coins)])
        same = all(torch.equal(p, q) for p, q in zip(before, network.parameters(), strict=True))
        need(same, "a probe must leave the network's weights as they were")
    seen, chance = torch.tensor(ratios).mean(0).exp().tolist()
    need(seen > 5, f"on a parity the gradient leans to the support from the start; your ratio is only {seen:.2f}")
    need(0.5 < chance < 2, f"on coin-flip labels no bit is special, so the ratio is near 1; yours is {chance:.2f}")
    x = torch.tensor([[3.0, 1, 1, 1, 1], [-1.0, 1, 1, 1, -1]])  # half of it, with a sign, is the gradient
    value = float(gap(_Two(), x, torch.zeros(2, dtype=torch.long), [0, 1]))
    message = f"a mean square of 3 on the support and of 1 off it make 3, not {value:.3g}: square all entries first"
    need(close(value, 3, 0.01), message)


# Chapter 2: one-shot distillation


@exercise
def check_loss(loss: Callable) -> None:
    """`loss(student_logits, teacher_logits, temperature)`: Hinton's, averaged over the batch."""
    student, teacher = (torch.randn(8, 3, generator=seeding.generator(0, n), dtype=torch.double) for n in "st")
    for t in (0.5, 1.0, 4.0):
        need(close(loss(teacher, teacher, t), 0), f"it must be 0 where student and teacher agree (temperature {t})")
        message = "adding the same number to all logits of a side must change nothing"
        need(close(loss(student + 3, teacher - 2, t), loss(student, teacher, t)), message)
        twice = loss(student.repeat(2, 1), teacher.repeat(2, 1), t)
        need(close(twice, loss(student, teacher, t)), "a batch that holds each row twice must have the same loss")
    flat, sure = torch.zeros(1, 2).double(), torch.tensor([[math.log(3), 0.0]]).double()
    value = float(loss(flat, sure, 1.0))
    message = f"teacher 3/4 : 1/4, student 1/2 : 1/2, temperature 1 make 0.1308 nats, not {value:.4f}"
    need(close(value, 0.75 * math.log(1.5) + 0.25 * math.log(0.5)), message)
    ratio = float(loss(student, teacher, 200.0) / loss(student, teacher, 100.0))
    message = f"it must not vanish or grow with the temperature: from 100 to 200 it changes by a factor of {ratio:.2f}"
    need(close(ratio, 1, 0.05), message)


@exercise
def check_limit(limit: Callable) -> None:
    """`limit(student_logits, teacher_logits)`: the loss as both temperatures go to infinity."""
    for classes in (2, 5):
        draw = seeding.generator(0, "limit", classes)
        student, teacher = 3 * torch.randn(2, 16, classes, generator=draw, dtype=torch.double)
        value = float(limit(student, teacher))
        shifted = float(limit(student + torch.arange(16)[:, None], teacher))
        need(close(value, shifted), "adding a number to all logits of one row must change nothing, in the limit too")
        hot = distillation_loss(student, teacher, 1e4, 1e4).item()
        message = f"with {classes} classes at temperature 10,000 the loss is {hot:.4f}; your limit is {value:.4f}"
        need(close(value, hot, 0.01), message)


class _Unsure(nn.Module):
    """Logits whose difference is `sure` times a parity of bits 0, 2 and 3, and a little of bits 0 and 1."""

    def __init__(self, sure: float) -> None:
        super().__init__()
        self.sure = sure

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        difference = self.sure * x[:, [0, 2, 3]].prod(1) + 1e-3 * (x[:, 0] + 2 * x[:, 1])
        return torch.stack([difference / 2 + 5, 5 - difference / 2], 1)


@exercise
def check_table(table: Callable) -> None:
    """`table(networks, x, support, temperatures)`: degree-1 signals of outputs of variance 1."""
    x, sure, temperatures, support = probes.cube(5).double(), (1.0, 2.0, 4.0), (1.0, 4.0), (0, 2, 3)
    found = table([_Unsure(s) for s in sure], x, support, temperatures)
    need(tuple(found.shape) == (3, 2), f"3 networks at 2 temperatures make a table (3, 2), not {tuple(found.shape)}")
    for row, s in zip(found.tolist(), sure, strict=True):
        for value, t in zip(row, temperatures, strict=True):
            q = s / t
            right = 1e-3 / s / 3**0.5 * q / math.sinh(q)  # of the bits of the support only bit 0 is there
            message = (
                f"logits that differ by {s:g} show {right:.3g} on the support at temperature {t:g}, once the output is "
                f"scaled to variance 1; your table says {value:.3g}"
            )
            need(abs(value / right - 1) < 0.02, message)


@exercise
def check_film(film: Callable) -> None:
    """`film()`: (accuracy, degree-1 signal on the support) of every kept checkpoint, in order."""
    rows = [(float(accuracy), float(signal)) for accuracy, signal in film()]
    need(len(rows) >= 5, f"{len(rows)} checkpoints make no curve: take all that are kept")
    accuracy, signal = zip(*rows, strict=True)
    need(0.35 < accuracy[0] < 0.65 and accuracy[-1] > 0.9, "the accuracy should go from chance to nearly 1, in order")
    need(min(signal) >= 0 and max(signal) <= 1, "the size of a correlation lies between 0 and 1")
    peak = signal.index(max(signal))
    need(0 < peak < len(rows) - 1, "the largest signal should be neither at the first nor at the last checkpoint")
    need(signal[peak] > 2 * signal[-1], "the signal of the finished teacher should be far below the peak")


# Chapter 3: progressive distillation


@exercise
def check_all_moments(all_moments: Callable) -> None:
    """`all_moments(checkpoints, teacher)`: each checkpoint for 500 steps, then the final teacher."""
    early, middle, late, teacher = (MLP(4, 8) for _ in range(4))
    plan = all_moments({"early": early, "middle": middle, "late": late}, teacher)
    need_outputs(plan, (500, 500, 500, None), (early, middle, late, teacher))


@exercise
def check_by_accuracy(by_accuracy: Callable, trained: Run) -> None:
    """`by_accuracy()`: {0.6: (step, Times), 0.9: the same}, the teacher's checkpoints nearest to these accuracies."""
    found = by_accuracy()
    need(set(found) == {0.6, 0.9}, f"the keys should be 0.6 and 0.9, not {list(found)}")
    for target, (step, times) in found.items():
        nearest = Lab.checkpoint_near(trained, target)
        need(step == nearest, f"the checkpoint nearest to {target} is that of step {nearest}, not {step}")
        seeds = len(times.values)
        need(seeds >= 5, f"{seeds} seeds at {target}: report at least 5, the unfinished ones included")
    need(len({times.limit for _, times in found.values()}) == 1, "both arms need the same budget of samples")


@exercise
def check_pick(pick: Callable) -> None:
    """`pick(outputs, x)`: the checkpoint that shows the support most, from signed outputs (checkpoints, n)."""
    d, n, frames = 20, 8000, 9
    for number, peak in enumerate((2, 5, 6)):
        draw = seeding.generator(number, "film")
        x = 1.0 - 2.0 * torch.randint(2, (n, d), generator=draw)
        support = torch.randperm(d, generator=draw)[:5]
        film = []
        for frame in range(frames):
            learned = torch.sigmoid(torch.tensor(2.0 * (frame - peak)))  # how much of the parity it computes
            bits = 0.12 * math.exp(-((frame - peak) ** 2)) * x[:, support].sum(1)
            left_over = 0.02 * x @ torch.randn(d, generator=draw)  # from the random start
            film.append((learned * x[:, support].prod(1) + bits + (1 - learned) * left_over).clamp(-1, 1))
        picked = int(pick(torch.stack(film), x))
        need(0 <= picked < frames, f"there are {frames} checkpoints, 0 to {frames - 1}; it picks number {picked}")
        message = f"in a film made up for this check the support shows most at checkpoint {peak}; it picks {picked}"
        need(picked == peak, message)


# Chapter 4: curriculum extraction


@exercise
def check_three_stages(three_stages: Callable) -> None:
    """`three_stages(teacher, checkpoint)`: hidden layer for 100 steps, checkpoint for 200, final output."""
    teacher, checkpoint = MLP(4, 8), MLP(4, 8)
    plan = three_stages(teacher, checkpoint)
    need_outputs(plan, (100, 200, None), (None, checkpoint, teacher))
    need_hidden(plan, 1, teacher)


@exercise
def check_projection(projection: Callable) -> None:
    """`projection(hidden, width, generator)`: a matrix (width, teacher_width); see `kdutils.projections`."""
    width, teacher_width = 16, 64
    hidden = torch.randn(2000, teacher_width, generator=seeding.generator(0, "hidden"))
    drawn = [projection(hidden, width, seeding.generator(seed, "projection")) for seed in (0, 0, 1, 2)]
    p, again, *others = drawn
    message = f"expected a matrix ({width}, {teacher_width}), student by teacher, not {tuple(p.shape)}"
    need(p.shape == (width, teacher_width), message)
    need(torch.equal(p, again), "the same generator state must give the same matrix: draw from `generator` alone")
    need(not all(torch.equal(p, other) for other in others), "another seed should give another matrix")
    for known in (projections.gaussian, projections.rademacher, projections.orthonormal, projections.neurons):
        theirs = known(hidden, width, seeding.generator(0, "projection")).to_dense()
        same = torch.allclose(p / p.norm(), (theirs / theirs.norm()).to(p.dtype), atol=1e-5)
        need(not same, f"this is `projections.{known.__name__}` but for its scale: invent another")
    rank = int(torch.linalg.matrix_rank(p))
    need(rank == width, f"only {rank} of its {width} outputs are independent: no output may repeat others")
    size = torch.stack([(hidden @ q.T).square().mean() for q in drawn]).mean() / hidden.square().mean()
    need(0.5 < size < 2, f"its outputs should be about as large as its inputs; their mean square is {size:.2g} times")


def _counted(d: int, student: int, teacher: int) -> int:
    """Operations of one sample in a hidden stage, as torch counts them."""
    network, wide, p, x = MLP(d, student), MLP(d, teacher), torch.ones(student, teacher), torch.ones(1, d)

    def step() -> None:
        with torch.no_grad():
            target = wide.act(wide.hidden(x)) @ p.T
        (network.act(network.hidden(x)) - target).square().sum().backward()

    return cost.flops(step)[1]


@exercise
def check_flops(flops: Callable) -> None:
    """`flops(d, student, teacher)`: matrix-product operations a sample of a hidden stage costs (batch 1, one seed)."""
    for d, student, teacher in ((10, 4, 32), (7, 16, 64)):
        counted, mine = _counted(d, student, teacher), int(flops(d, student, teacher))
        message = f"d={d}, student {student}, teacher {teacher}: torch counts {counted:,} operations, you {mine:,}"
        need(mine == counted, message)


@exercise
def check_sweep(sweep: Callable) -> None:
    """`sweep(loss_at)`: {weight: loss}, at least four weights, at most ten times apart, the best not at an edge."""
    for best in (0.004, 0.2, 30.0):
        calls = []

        def loss_at(weight: float, best: float = best, calls: list = calls) -> float:
            calls.append(weight)
            need(len(calls) <= 20, "more than 20 calls, each of which trains an arm: 20 must do")
            return math.log(weight / best) ** 2

        found = sweep(loss_at)
        weights = sorted(found)
        need(len(weights) >= 4, f"{len(weights)} weights are too few: try at least four")
        need(all(close(found[w], math.log(w / best) ** 2) for w in weights), "report what `loss_at` said")
        need(len(set(calls)) == len(weights), "report every weight that was tried, not only some")
        apart = max(b / a for a, b in pairwise(weights))
        need(apart <= 10.001, f"two neighbouring weights are {apart:.0f} times apart: a best one could hide between")
        inner = min(found, key=found.get) not in (weights[0], weights[-1])
        need(inner, f"where {best} would be best, your best weight is at the edge of your sweep: it may lie outside")
