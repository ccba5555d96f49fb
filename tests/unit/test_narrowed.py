"""Sparse projections: the same targets as the matrix multiplied out, from a pass that computes what is read."""

from functools import partial

import pytest
import torch
from torch import nn

from kdutils import seeding
from kdutils.curriculum import Curriculum, Stage
from kdutils.lab.ensemble import Ensemble
from kdutils.lab.training import train
from kdutils.projections import gaussian, neurons, sparse
from kdutils.signals import Hidden, Output
from kdutils.tasks import cost
from kdutils.tasks.models import MLP, Transformer
from kdutils.tasks.parity import SparseParity

D, WIDE, NARROW, SEEDS = 6, 40, 5, (3, 4, 7)


class Doubled(nn.Module):
    """Its layer `act` mixes the units of its only linear layer: a narrowed pass would be another function."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.act, self.readout = nn.Linear(D, WIDE), nn.Softmax(-1), nn.Linear(WIDE, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.readout(self.act(self.hidden(x)))


class Residual(Doubled):
    """Its layer `act` adds two linear layers: neither alone makes a unit."""

    def __init__(self) -> None:
        super().__init__()
        self.act, self.other = nn.ReLU(), nn.Linear(D, WIDE)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.readout(self.act(self.hidden(x) + self.other(x)))


def deep() -> nn.Module:
    return nn.Sequential(nn.Linear(D, WIDE), nn.Tanh(), nn.Linear(WIDE, WIDE), nn.GELU(), nn.Linear(WIDE, 2))


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(len(SEEDS), 70, D, generator=seeding.generator(0, "x"))


@pytest.fixture
def students() -> Ensemble:
    return Ensemble(lambda: MLP(D, NARROW), SEEDS, [0.1, 1.0])


def both(teacher: nn.Module, layer: str, s: int, students: Ensemble, x: torch.Tensor, **how: object) -> tuple:
    """A sparse signal and the same matrix multiplied out, bound to the same students."""
    one = Hidden(teacher, layer, projection=partial(sparse, s=s), **how).bind(students, x)
    rows = zip(one.tensors["units"], one.tensors["entries"], strict=True)

    def dense(h: torch.Tensor, width: int, _: object) -> torch.Tensor:
        return torch.zeros(width, h.shape[-1]).scatter(1, *next(rows))

    return one, Hidden(teacher, layer, projection=dense, **how).bind(students, x)


def operations(bound: object, x: torch.Tensor) -> float:
    return cost.flops(lambda: bound.target(x, None))[1] / x.shape[:2].numel()


@pytest.mark.parametrize("s", [1, 4, WIDE])
@pytest.mark.parametrize(
    ("make", "layer"),
    [(partial(MLP, D, WIDE), "act"), (partial(MLP, D, WIDE), "hidden"), (deep, "1"), (deep, "3"), (Doubled, "act"),
     (Residual, "act")],
)  # fmt: skip
def test_targets_are_those_of_the_matrix(make: object, layer: str, s: int, students: Ensemble, x: torch.Tensor) -> None:
    with seeding.global_rng(0, "teacher"):
        teacher = make()
    few, whole = both(teacher, layer, s, students, x)
    fresh = torch.randn(x.shape, generator=seeding.generator(1, "x"))
    for inputs in (x, fresh, fresh[:, :1]):
        torch.testing.assert_close(few.target(inputs, None), whole.target(inputs, None), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("s", [1, 4])
def test_only_units_that_are_read_are_computed(s: int, students: Ensemble, x: torch.Tensor) -> None:
    """Two operations a weight of each distinct unit, and two for each entry of a sum (one entry is no product)."""
    few, whole = both(MLP(D, WIDE), "act", s, students, x)
    own = [units.unique().numel() for units in few.tensors["units"]]
    assert operations(few, x) == pytest.approx(2 * D * sum(own) / len(own) + 2 * s * NARROW * (s > 1))
    assert operations(whole, x) == 2 * D * WIDE + 2 * WIDE * NARROW
    assert max(own) <= s * NARROW < WIDE


def test_the_layer_above_is_narrowed_and_the_one_below_is_not(students: Ensemble, x: torch.Tensor) -> None:
    few, _ = both(deep(), "3", 1, students, x)
    below, own = 2 * D * WIDE, operations(few, x)
    assert below < own < below + 2 * WIDE * NARROW + 1


@pytest.mark.parametrize("make", [Doubled, Residual])
def test_what_cannot_be_narrowed_is_computed_whole(make: object, students: Ensemble, x: torch.Tensor) -> None:
    teacher = make()
    layers = 2 if make is Residual else 1
    assert operations(both(teacher, "act", 1, students, x)[0], x) == layers * 2 * D * WIDE


def test_blocks_of_a_transformer() -> None:
    """The stream after a block is a sum: it is computed whole; inside the block a layer is narrowed."""
    make = partial(Transformer, 3, 8, 2, 2, 6)
    teacher, students = Transformer(3, 24, 2, 2, 6), Ensemble(make, SEEDS[:2], [0.1])
    tokens = torch.randint(0, 3, (2, 64, 6), generator=seeding.generator(0, "tokens"))
    for layer, own in (("blocks.1", "blocks.1"), ("blocks.1.up", "blocks.1.norm2")):
        few, whole = both(teacher, layer, 2, students, tokens, student_layer=own)
        torch.testing.assert_close(few.target(tokens, None), whole.target(tokens, None), rtol=1e-4, atol=1e-4)
        assert few.target(tokens, None).shape == (2, 64, 6, 8)
        assert operations(few, tokens) < operations(whole, tokens)


def test_redrawn_at_each_step_it_is_multiplied_out(students: Ensemble, x: torch.Tensor) -> None:
    signal = Hidden(MLP(D, WIDE), projection=partial(sparse, s=2), redraw=True)
    one, two = (signal.bind(students, x) for _ in range(2))
    first = one.target(x, None)
    assert torch.equal(first, two.target(x, None)) and not torch.equal(first, one.target(x, None))


def test_dense_matrices_take_the_old_way(students: Ensemble, x: torch.Tensor) -> None:
    """A subset of neurons is written as a dense matrix, so numbers of earlier runs stay."""
    for projection in (gaussian, neurons):
        bound = Hidden(MLP(D, WIDE), projection=projection).bind(students, x)
        assert not bound.tensors["projection"].is_sparse
        assert operations(bound, x) == 2 * D * WIDE + 2 * WIDE * NARROW


def test_a_student_learns_from_it_and_a_step_costs_less() -> None:
    teacher, task = MLP(D, WIDE), SparseParity(D, 2)
    spent = {}
    for name, projection in (("dense", gaussian), ("sparse", partial(sparse, s=1))):
        plan = Curriculum(name, (Stage(Hidden(teacher, projection=projection), 20), Stage(Output(teacher))))
        run = train(
            Ensemble(lambda: MLP(D, NARROW), SEEDS, [0.3]), task, plan, steps=21, evaluate_every=20, held_out=64
        )
        spent[name] = run.flops[1]
        assert name == "dense" or "sparse projection of `act`" in run.stages[0][0]
    assert spent["sparse"] < spent["dense"]
