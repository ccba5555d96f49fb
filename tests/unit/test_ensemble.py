import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from kdutils import curriculum
from kdutils.curriculum import Curriculum
from kdutils.lab import store
from kdutils.lab.ensemble import Ensemble
from kdutils.lab.training import train
from kdutils.tasks.models import MLP
from kdutils.tasks.parity import SparseParity

SEEDS, RATES = [3, 1, 4], [0.05, 0.5]
TEACHER = MLP(12, 20)


class Normed(nn.Module):
    """Layer normalisation and a skip connection: parameters that are not matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.act, self.norm = nn.Linear(12, 7), nn.ReLU(), nn.LayerNorm(7)
        self.mix, self.readout = nn.Linear(7, 7, bias=False), nn.Linear(7, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.act(self.norm(self.hidden(x)))
        return self.readout(h + self.mix(h).tanh())


PLANS = [
    curriculum.from_labels(),
    curriculum.extracted(TEACHER, steps=15),
    curriculum.fitnets(TEACHER, steps=15),
    curriculum.joint(TEACHER, 0.1),
]


@pytest.mark.parametrize("make", [partial(MLP, 12, 8), Normed], ids=["MLP", "Normed"])
@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.name)
def test_a_member_does_not_notice_the_others(make: Callable[[], nn.Module], plan: Curriculum) -> None:
    """Alone or together, a seed at a learning rate sees the same weights, samples, projections and updates."""
    options = {"steps": 60, "batch": 16, "evaluate_every": 10, "held_out": 256}
    # 12 inputs: of 6, one near tie would turn four of the 256 held-out samples at once
    together = train(Ensemble(make, SEEDS, RATES), SparseParity(12, 2), plan, **options)
    for member in (0, 1, 5):
        seed, rate = together.students.seed_of(member), together.students.learning_rate_of(member)
        alone = train(Ensemble(make, [seed], [rate]), SparseParity(12, 2), plan, **options)
        np.testing.assert_allclose(alone.loss[:, 0], together.loss[:, member], atol=1e-5)
        np.testing.assert_allclose(alone.accuracy[:, 0], together.accuracy[:, member], atol=2 / 256)  # near ties
        np.testing.assert_allclose(alone.flops, together.flops)


def test_members_run_through_learning_rates_then_seeds() -> None:
    students = Ensemble(partial(MLP, 3, 2), SEEDS, RATES)
    labels = [(students.learning_rate_of(m), students.seed_of(m)) for m in range(len(students))]
    assert labels == [(rate, seed) for rate in RATES for seed in SEEDS]


def test_only_the_seed_decides_where_a_member_starts() -> None:
    students = Ensemble(partial(MLP, 3, 4), SEEDS, RATES)
    for stacked in students.parameters.values():
        assert torch.equal(stacked[:3], stacked[3:])
        assert not torch.equal(stacked[0], stacked[1])
    torch.manual_seed(5)
    again = Ensemble(partial(MLP, 3, 4), [4, 7])
    assert torch.equal(again.parameters["hidden.weight"][0], students.parameters["hidden.weight"][2])


@pytest.mark.parametrize("make", [partial(MLP, 12, 8), Normed], ids=["MLP", "Normed"])
@pytest.mark.parametrize(("seeds", "rates"), [(SEEDS, RATES), ([2], [0.1])])
def test_a_member_is_the_stacked_forward_pass(make: Callable[[], nn.Module], seeds: list, rates: list) -> None:
    students = Ensemble(make, seeds, rates)
    x = torch.randn(len(seeds), 5, 12)
    out = students.outputs(x, ("act", ""))
    for index in range(len(students)):
        network, batch = students.member(index), x[index % len(seeds)]
        assert not network.training
        torch.testing.assert_close(network(batch), out[""][index])
        state = dict(network.named_parameters())
        torch.testing.assert_close(functional_call(students.skeleton, state, (batch,)), out[""][index])
    assert torch.equal(students.outputs(x)[""], out[""])


def test_a_member_is_a_copy() -> None:
    students = Ensemble(partial(MLP, 3, 2), SEEDS)
    before = store.digest(students.parameters)
    first, second = students.member(0), students.member(1)
    with torch.no_grad():
        first.hidden.weight.zero_()
    assert store.digest(students.parameters) == before
    assert second.hidden.weight.abs().min() > 0


@pytest.mark.parametrize("batches", [1, 2, 6])
def test_one_batch_a_seed(batches: int) -> None:
    with pytest.raises(ValueError, match=f"holds {batches} batches.*each of 3 seeds"):
        Ensemble(partial(MLP, 3, 2), SEEDS, RATES).outputs(torch.ones(batches, 5, 3))


@pytest.mark.parametrize(
    ("seeds", "rates", "problem"),
    [
        ([], [1.0], "at least one seed"),
        ([1, 2, 1], [1.0], "all different"),
        ([1], [], "positive"),
        ([1], [0.1, 0], "positive"),
    ],
)
def test_bad_arguments(seeds: list, rates: list, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Ensemble(partial(MLP, 3, 2), seeds, rates)


def test_spread_gives_each_member_its_seeds_entry() -> None:
    students = Ensemble(partial(MLP, 3, 2), SEEDS, RATES)
    entries = torch.tensor(SEEDS)[:, None].expand(3, 4)
    members, pair = students.spread(entries), students.spread((entries, entries + 1))
    assert members[:, 0].tolist() == [students.seed_of(m) for m in range(6)]
    assert torch.equal(pair[0], members) and torch.equal(pair[1], members + 1)


def test_clone_shares_nothing_that_is_trained() -> None:
    students = Ensemble(partial(nn.BatchNorm1d, 3), SEEDS)
    other = students.clone()
    for stacked in [*other.parameters.values(), *other.buffers.values()]:
        stacked.zero_()
    assert students.parameters["weight"].eq(1).all()
    assert students.buffers["running_var"].eq(1).all()


def test_shape_of_a_layer_is_that_of_one_member() -> None:
    students, x = Ensemble(partial(MLP, 3, 5), SEEDS), torch.ones(3, 2, 3)
    assert students.shape_at("act", x) == (2, 5)
    assert students.shape_at("", x) == (2, 2)
    with pytest.raises(ValueError, match="'hidden', 'act', 'readout'"):
        students.shape_at("nowhere", x)


def test_description_changes_with_contents() -> None:
    texts = [
        store.describe(Ensemble(partial(MLP, 3, width), seeds, rates))
        for width, seeds, rates in [(5, [1, 2], [1.0]), (6, [1, 2], [1.0]), (5, [1, 3], [1.0]), (5, [1, 2], [0.5])]
    ]
    students = Ensemble(partial(MLP, 3, 5), [1, 2])
    assert store.describe(students) == texts[0]
    students.parameters["readout.bias"][1, 0] += 1e-3
    texts.append(store.describe(students))
    assert all(a != b for i, a in enumerate(texts) for b in texts[:i])


class Recomputing(nn.Module):
    """Goes through its first layer again on the way back."""

    def __init__(self, recomputes: bool = True) -> None:
        super().__init__()
        self.first, self.readout, self.recomputes = nn.Linear(12, 7), nn.Linear(7, 2), recomputes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = checkpoint(self._hidden, x, use_reentrant=False) if self.recomputes else self._hidden(x)
        return self.readout(hidden)

    def _hidden(self, x: torch.Tensor) -> torch.Tensor:
        return self.first(x).tanh().square()


def test_checkpointing_would_use_other_weights_and_is_refused() -> None:
    x = torch.randn(1, 4, 12)
    Ensemble(partial(Recomputing, False), [1]).outputs(x)
    with pytest.raises(ValueError, match=r"the gradient of 'first.weight' of Recomputing is not its own"):
        Ensemble(Recomputing, [1]).outputs(x)


def test_hooks_on_gradients_and_uneven_freezing_are_refused() -> None:
    def hooked() -> nn.Module:
        network = nn.Linear(3, 2)
        network.weight.register_hook(lambda gradient: 0 * gradient)
        return network

    def uneven() -> nn.Module:
        network = nn.Linear(3, 2)
        network.weight.requires_grad_(torch.rand(()).item() < 0.5)
        return network

    with pytest.raises(ValueError, match="weight has a hook on its gradient, which an ensemble would leave out"):
        Ensemble(hooked, [1])
    with pytest.raises(ValueError, match="freezes other parameters for one seed than for another"):
        Ensemble(uneven, range(20))


def test_networks_whose_pass_cannot_be_repeated_go_on() -> None:
    class Keeping(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.kept = [super().forward(x)]
            return self.kept[0]

    class Strict(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                raise RuntimeError("labels, please")
            return super().forward(x)

    for make in (Keeping, Strict):
        assert Ensemble(partial(make, 12, 2), [1]).outputs(torch.randn(1, 4, 12))[""].shape == (1, 4, 2)
    words = Ensemble(lambda: nn.Embedding(5, 2, sparse=True), [1]).outputs(torch.ones(1, 4, dtype=torch.long))[""]
    assert words.shape == (1, 4, 2)


@dataclass(frozen=True)
class Rare:
    """Sentences whose padding is too rare to be seen in a few of them."""

    def sample(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randint(1, 40, (n, 5), generator=generator)
        x = torch.where(torch.rand(x.shape, generator=generator) < 0.01, 0, x)
        return x, x.roll(-1, 1) % 7


class Padding(nn.Module):
    def __init__(self, **fields: Any) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(40, 8, **fields), nn.Linear(8, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.table(x))


@pytest.mark.parametrize("fields", [{"padding_idx": 0}, {"sparse": True}])
def test_tables_with_rules_of_their_own_learn_as_alone(fields: dict[str, Any]) -> None:
    settings = {"steps": 60, "batch": 16, "held_out": 64, "progress": False}
    plan, make = curriculum.from_labels(), partial(Padding, **fields)
    many = train(Ensemble(make, [1, 2], [0.5]), Rare(), plan, **settings)
    alone = train(Ensemble(make, [2], [0.5]), Rare(), plan, **settings)
    both = many.students.parameters["table.weight"]
    assert torch.equal(both[1], alone.students.parameters["table.weight"][0])
    assert both[:, 0].any() == ("padding_idx" not in fields)


def test_a_table_that_passes_change_is_refused() -> None:
    with pytest.raises(ValueError, match="an Embedding with max_norm changes its weights in every pass: build it with"):
        Ensemble(partial(Padding, max_norm=1.0), [1, 2]).outputs(torch.ones(2, 3, 5, dtype=torch.long))


class Beside(nn.Module):
    """At its first pass another thread of the program draws; with `draws`, it draws at every pass itself."""

    def __init__(self, draws: bool) -> None:
        super().__init__()
        self.readout, self.draws, self.passes = nn.Linear(12, 2), draws, []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.passes:
            self.passes.append(None)
            thread = threading.Thread(target=torch.rand, args=(1,))
            thread.start()
            thread.join()
        return self.readout(x + torch.rand(1) if self.draws else x)


@pytest.mark.parametrize(("draws", "way"), [(False, "VMAP"), (True, "NOISY")])
def test_draws_of_another_thread_are_not_the_networks_own(draws: bool, way: str) -> None:
    students = Ensemble(partial(Beside, draws), [0, 1])
    students.outputs(torch.randn(2, 8, 12))
    assert students._way[0].name == way
