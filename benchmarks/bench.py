"""Speed, as ratios within one run: seconds differ between machines, ratios hardly.

Each time is the least of several repeats. `make bench` prints the table.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch

from kdutils import curriculum
from kdutils.ensemble import Ensemble
from kdutils.models import MLP
from kdutils.parity import SparseParity
from kdutils.training import _Loop, train


def least(work: Callable[[], object], repeats: int = 5, number: int = 1) -> float:
    """Least seconds of one call of `work`."""
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        for _ in range(number):
            work()
        times.append((time.perf_counter() - started) / number)
    return min(times)


def steps(seeds: int, d: int, width: int, batch: int, plan: curriculum.Curriculum) -> Callable[[], None]:
    """One optimiser step of an ensemble, as a function without arguments."""
    students = Ensemble(partial(MLP, d, width), range(seeds), [0.1])
    loop = _Loop(students, SparseParity(d, min(d, 6)), batch, 64)
    bound = loop.enter(plan.stages[0].signal, 0)
    return lambda: loop.step(bound, 1)


def plain(d: int, width: int, batch: int) -> Callable[[], None]:
    """The step somebody would write by hand for one network."""
    network, task = MLP(d, width), SparseParity(d, 6)
    optimiser, generator = torch.optim.SGD(network.parameters(), 0.1), torch.Generator().manual_seed(0)

    def step() -> None:
        x, y = task.sample(batch, generator)
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(network(x), y).backward()
        optimiser.step()

    return step


def matmuls(d: int, width: int, batch: int) -> Callable[[], None]:
    """The matrix products of one step and nothing else: forward, and both weight gradients."""
    x, w, h = torch.randn(batch, d), torch.randn(width, d), torch.randn(batch, width)
    v, g = torch.randn(2, width), torch.randn(batch, 2)

    def products() -> None:
        _ = x @ w.T, h @ v.T, g @ v, g.T @ h, h.T @ x

    return products


def main() -> None:
    labels = curriculum.from_labels()
    one, eight, hand = (
        least(w, number=200) for w in (steps(1, 50, 100, 64, labels), steps(8, 50, 100, 64, labels), plain(50, 100, 64))
    )
    print(f"8 members / 1 member, width 100, batch 64     {eight / one:6.2f}   (target at most 2.5)")
    print(f"8 members / 1 plain torch loop                {eight / hand:6.2f}")
    wide, peak = least(steps(1, 100, 50_000, 512, labels)), least(matmuls(100, 50_000, 512))
    print(f"wide teacher's step against its matmuls alone {peak / wide:6.0%}   (target at least 60%)")
    teacher = MLP(50, 4096)
    plans = {
        name: plan
        for name, plan in (("one-shot", curriculum.one_shot(teacher)), ("extraction", curriculum.extracted(teacher)))
    }
    seconds = {name: least(steps(8, 50, 100, 64, plan), number=50) for name, plan in plans.items()}
    print(f"extraction's first stage / one-shot, seconds  {seconds['extraction'] / seconds['one-shot']:6.2f}")
    students = Ensemble(partial(MLP, 50, 100), [0], [0.1])
    flops = {
        name: train(students, SparseParity(50, 6), plan, steps=501, evaluate_every=1).flops[1]
        for name, plan in plans.items()
    }
    print(f"extraction's first stage / one-shot, FLOPs    {flops['extraction'] / flops['one-shot']:6.2f}")


if __name__ == "__main__":
    main()
