"""Update rules: torch's own, member by member, and closed forms of the schedule."""

import math
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from kdutils import curriculum, seeding
from kdutils.curriculum import Curriculum, Stage
from kdutils.lab import store
from kdutils.lab.ensemble import Ensemble
from kdutils.lab.optimisers import SGD, Adam, Optimiser
from kdutils.lab.training import Run, train
from kdutils.signals import Bound, Labels, Regressed, Signal
from kdutils.tasks.models import MLP
from kdutils.tasks.parity import SparseParity

TASK = SparseParity(6, 2)
ADAMS = [
    Adam(warmup=0),
    Adam(betas=(0.5, 0.7), eps=0.1, warmup=0),
    Adam(warmup=7),
    Adam(warmup=0, decay=True),
    Adam((0.8, 0.9), warmup=5, decay=True),
]


def factor(rule: Optimiser, step: int, done: int, total: int) -> float:
    """What the rate is multiplied by at a stage's `step` (from 1)."""
    if isinstance(rule, SGD):
        return 1.0
    rising = min(1.0, step / rule.warmup) if rule.warmup else 1.0
    return rising * (0.5 * (1 + math.cos(math.pi * (done + step - 1) / total)) if rule.decay else 1.0)


def twin(rule: Optimiser, parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
    if isinstance(rule, SGD):
        return torch.optim.SGD(parameters, lr=1.0)
    return torch.optim.Adam(parameters, lr=1.0, betas=rule.betas, eps=rule.eps)


@pytest.mark.parametrize("rates", [(0.001, 0.1, 1.0), (0.03,)])
@pytest.mark.parametrize("rule", [SGD(), *ADAMS], ids=str)
def test_every_member_follows_torch_at_its_own_rate(rule: Optimiser, rates: tuple[float, ...]) -> None:
    """In float64, so that 20 steps agree to more digits than two rules that differ could."""
    generator = seeding.generator(0, "start")
    stacked = {
        name: torch.randn(len(rates), *shape, generator=generator, dtype=torch.float64)
        for name, shape in {"matrix": (4, 3), "vector": (3,), "number": ()}.items()
    }
    alone = [[p[m].clone() for p in stacked.values()] for m in range(len(rates))]
    done, total = 5, 40
    update = rule.start(stacked, torch.tensor(rates, dtype=torch.float64), done, total)
    twins = [twin(rule, own) for own in alone]
    for step in range(1, 21):
        update([(p + step).sin() for p in stacked.values()])
        for own, theirs, rate in zip(alone, twins, rates, strict=True):
            theirs.param_groups[0]["lr"] = rate * factor(rule, step, done, total)
            for p in own:
                p.grad = (p + step).sin()
            theirs.step()
    for m, own in enumerate(alone):
        for ours, torchs in zip(stacked.values(), own, strict=True):
            torch.testing.assert_close(ours[m], torchs, rtol=1e-10, atol=1e-10)


def moves(rule: Adam, steps: int, done: int = 0, total: int = 100) -> torch.Tensor:
    """(steps, 2): how far two members of rates 1 and 3 go at each step while their gradient stays the same.

    Then both moments are exact from the first step, and a step is the rate times the factor.
    """
    p = torch.zeros(2, 1, dtype=torch.float64)
    update = rule.start({"p": p}, torch.tensor([1.0, 3.0], dtype=torch.float64), done, total)
    path = [p.clone()]
    for _ in range(steps):
        update([torch.full_like(p, -0.2)])
        path.append(p.clone())
    return torch.stack([(b - a).flatten() for a, b in pairwise(path)])


def close(ours: torch.Tensor, expected: object) -> None:
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-12)  # eps is 1e-8 of a gradient of 0.2


def test_warm_up_rises_linearly_to_the_rate_and_stays() -> None:
    close(moves(Adam(warmup=4), 6)[:, 0], [0.25, 0.5, 0.75, 1, 1, 1])
    close(moves(Adam(warmup=0), 3)[:, 0], [1, 1, 1])
    close(moves(Adam(warmup=1), 3)[:, 0], [1, 1, 1])


def test_warm_up_begins_anew_at_every_stage() -> None:
    close(moves(Adam(warmup=4), 6, done=50), moves(Adam(warmup=4), 6))


def test_the_factor_is_the_same_for_every_rate() -> None:
    path = moves(Adam(warmup=3, decay=True), 10, done=20)
    close(path[:, 1], 3 * path[:, 0])


def test_cosine_falls_from_the_rate_through_half_of_it_to_nothing() -> None:
    path = moves(Adam(warmup=0, decay=True), 101)[:, 0]
    close(path[[0, 50, 100]], [1, 0.5, 0])
    assert (path.diff() < 0).all() and (path >= 0).all()
    close(path[99], math.sin(math.pi / 200) ** 2)  # the last step of the budget
    close(path[:101] + path.flip(0), torch.ones(101))


def test_cosine_runs_over_the_whole_budget_and_not_over_a_stage() -> None:
    decaying = Adam(warmup=0, decay=True)
    whole = moves(decaying, 100)
    for done in (0, 1, 60, 99):
        close(moves(decaying, 100 - done, done), whole[done:])
    close(moves(decaying, 200, total=200)[::2], whole)


def test_cosine_does_not_rise_again_beyond_the_budget() -> None:
    close(moves(Adam(warmup=0, decay=True), 5, done=100), torch.zeros(5, 2))


def test_warm_up_and_cosine_multiply() -> None:
    both, rising, falling = (moves(Adam(warmup=w, decay=d), 10, 30) for w, d in ((4, True), (4, False), (0, True)))
    close(both, rising * falling / torch.tensor([1.0, 3.0]))


@pytest.mark.parametrize("rule", [SGD(), Adam(warmup=0)], ids=str)
@pytest.mark.parametrize("members", [1, 3])
def test_a_parameter_without_a_gradient_stays_as_it_is(rule: Optimiser, members: int) -> None:
    used, unused = torch.ones(members, 2), torch.ones(members, 2)
    update = rule.start({"unused": unused, "used": used}, torch.full((members,), 0.1), 0, 10)
    for _ in range(3):
        update([None, torch.ones_like(used)])
    assert torch.equal(unused, torch.ones(members, 2)) and (used < 0.9).all()


def group() -> Ensemble:
    return Ensemble(partial(MLP, 6, 8), (1, 2), (0.003, 0.03))


def fit(plan: Curriculum, optimiser: Optimiser, steps: int = 15) -> Run:
    return train(group(), TASK, plan, steps=steps, batch=8, evaluate_every=5, held_out=64, optimiser=optimiser)


def two(steps: int) -> Curriculum:
    return Curriculum("two", (Stage(Labels(), steps), Stage(Labels())))


def test_training_is_torchs_adam_started_anew_at_every_stage() -> None:
    rule = Adam(betas=(0.9, 0.99), warmup=3, decay=True)
    run = fit(two(5), rule)
    for member in range(4):
        network, rate = group().member(member), run.students.learning_rate_of(member)
        stream, own = seeding.generator(run.students.seed_of(member), "data"), list(network.parameters())
        for done, steps in ((0, 5), (5, 10)):
            theirs = twin(rule, own)
            for step in range(1, steps + 1):
                x, y = TASK.sample(8, stream)
                theirs.zero_grad()
                F.cross_entropy(network(x), y).backward()
                theirs.param_groups[0]["lr"] = rate * factor(rule, step, done, 15)
                theirs.step()
        for name, parameter in network.named_parameters():  # float32: a rounding error is a larger part of a step
            torch.testing.assert_close(run.students.parameters[name][member], parameter, atol=1e-4, rtol=1e-4)


def test_moments_do_not_outlive_their_stage() -> None:
    """Were they kept, two stages of one signal would be the one stage; for SGD, which has none, they are."""
    one, anew = (fit(plan, Adam(warmup=0)) for plan in (curriculum.from_labels(), two(5)))
    assert (one.loss[:2] == anew.loss[:2]).all() and (one.loss[2:] != anew.loss[2:]).all()
    assert (fit(curriculum.from_labels(), SGD()).loss == fit(two(5), SGD()).loss).all()


def test_a_hidden_stage_leaves_the_layers_above_to_the_next() -> None:
    run = fit(Curriculum("x", curriculum.extracted(MLP(6, 9), steps=4).stages[:1]), Adam(warmup=0), steps=4)
    start, end = group().parameters, run.students.parameters
    assert torch.equal(start["readout.weight"], end["readout.weight"])
    assert not torch.equal(start["hidden.weight"], end["hidden.weight"])


@dataclass(frozen=True)
class Watched:
    """Passes a signal on and keeps what it was bound to."""

    signal: Signal
    seen: list[Bound] = field(default_factory=list)

    def bind(self, students: Ensemble, x: torch.Tensor, y: torch.Tensor | None = None) -> Bound:
        self.seen.append(self.signal.bind(students, x, y))
        return self.seen[-1]


def test_a_learned_regressor_is_trained_at_the_members_own_rate() -> None:
    """Adam's first step is the rate itself, wherever the gradient is much larger than eps."""
    watched = Watched(Regressed(MLP(6, 9)))
    run = fit(Curriculum("x", (Stage(watched),)), Adam(warmup=0), steps=1)
    rates = torch.tensor([run.students.learning_rate_of(m) for m in range(4)])
    offset = watched.seen[0].parameters["offset"].detach()
    torch.testing.assert_close(offset.abs(), rates.view(4, 1, 1).expand_as(offset), rtol=1e-3, atol=0)


def test_every_setting_is_part_of_a_runs_name() -> None:
    rules = [SGD(), Adam(), Adam((0.8, 0.9)), Adam(eps=1e-6), Adam(warmup=49), Adam(decay=True)]
    names = [store.key(store.describe(rule)) for rule in rules]
    assert len(set(names)) == len(rules)
