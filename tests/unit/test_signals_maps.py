"""Layers of any shape: which dimension holds the samples, which the units; and positions have to be the same."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from kdutils import curriculum, seeding
from kdutils.lab.ensemble import Ensemble
from kdutils.signals import Bound, Hidden, Regressed, Signal
from kdutils.tasks.models import MLP


def draw(*shape: int, name: str = "x") -> torch.Tensor:
    return torch.randn(shape, generator=seeding.generator(0, name))


def seeded(make: Callable[[], nn.Module], seed: int = 5) -> nn.Module:
    with seeding.global_rng(seed, "made"):
        return make()


class Pictures(nn.Module):
    """(batch, 1, 8, 8) or (batch, 1, 8) -> maps of `channels` -> pooled -> two classes."""

    def __init__(self, channels: int, dims: int = 2, stride: int = 1) -> None:
        super().__init__()
        conv, norm = (nn.Conv1d, nn.BatchNorm1d) if dims == 1 else (nn.Conv2d, nn.BatchNorm2d)
        pool = nn.AdaptiveAvgPool1d if dims == 1 else nn.AdaptiveAvgPool2d
        self.features = nn.Sequential(conv(1, channels, 3, stride=stride, padding=1), norm(channels))
        self.act, self.pool, self.flat, self.rows = nn.ReLU(), pool(1), nn.Flatten(), nn.Flatten(2)
        self.head = nn.Linear(channels, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.act(self.features(x))
        self.rows(h)
        return self.head(self.flat(self.pool(h)))


def loss_of(signal: Signal, students: Ensemble, x: torch.Tensor, y: Any = None) -> tuple[Bound, torch.Tensor]:
    bound = signal.bind(students, x, y)
    return bound, bound.loss(students.outputs(x, bound.reads), students.spread(bound.target(x, y)))


def keep_all(hidden: torch.Tensor, width: int, generator: torch.Generator) -> torch.Tensor:
    return torch.eye(width)


@pytest.mark.parametrize("units", [1, -3])
def test_every_position_of_a_map_is_a_row(units: int) -> None:
    """By hand: centred a channel, one scale, half the squared distance over channels, averaged over positions."""
    students, teacher, x = Ensemble(partial(Pictures, 4), [1, 2], [0.1, 0.3]), Pictures(4), draw(2, 16, 1, 8, 8)
    bound, loss = loss_of(Hidden(teacher, "features", "features", keep_all, units=units), students, x)
    for m in range(4):
        h = teacher.eval().features(x[m % 2])
        off = h - h.mean((0, 2, 3), keepdim=True)
        wanted = off / off.square().mean().sqrt()
        apart = students.member(m).features(x[m % 2]) - wanted
        torch.testing.assert_close(loss[m], 0.5 * apart.square().sum(1).mean())
    assert bound.target(x, None).shape == (2, 16, 8, 8, 4)


@pytest.mark.parametrize("kind", [Hidden, partial(Hidden, normalise="position"), Regressed])
@pytest.mark.parametrize(("dims", "layer", "shape"), [(2, "features", (8, 8)), (2, "pool", (1, 1)), (1, "act", (8,))])
def test_units_of_maps_are_channels(kind: Callable[..., Signal], dims: int, layer: str, shape: tuple) -> None:
    """As wide as there are channels, also where a map is one point; and rows in any order are the same to it."""
    students, teacher = Ensemble(partial(Pictures, 4, dims), [1, 2]), Pictures(6, dims)
    x = draw(2, 16, 1, *[8] * dims)
    bound, loss = loss_of(kind(teacher, layer, layer, units=1), students, x)
    target, values = bound.target(x, None), students.outputs(x, (layer,))[layer]
    assert target.shape == (2, 16, *shape, 6 if kind is Regressed else 4)
    drawn = {**bound.parameters, **bound.tensors}
    assert sorted(next(iter(drawn.values())).shape[1:]) == [4, 6] and loss.shape == (2,)
    torch.testing.assert_close(bound.loss({layer: values.flip(-1)}, target.flip(-2)), loss)
    if shape == (8, 8):
        torch.testing.assert_close(bound.loss({layer: values.mT}, target.transpose(2, 3)), loss)


def test_units_of_a_plain_layer_may_be_named() -> None:
    students, teacher, x = Ensemble(partial(MLP, 6, 4), [1, 2]), MLP(6, 9), draw(2, 16, 6)
    for units in (1, -1):
        named, plain = (loss_of(Hidden(teacher, units=u), students, x)[1] for u in (units, None))
        assert torch.equal(named, plain)
    for units in (0, 2, -2, -3):
        with pytest.raises(ValueError, match=rf"'act' of MLP .*\(2, 4\) .*: units={units} is none of its dim"):
            Hidden(teacher, units=units).bind(students, x)


SAY = "say which dimension holds the units"


@pytest.mark.parametrize("kind", [Hidden, Regressed])
@pytest.mark.parametrize(
    ("dims", "layer"),
    [
        (2, "features"),
        (2, "features.0"),
        (2, "act"),
        (2, "pool"),
        (2, "rows"),
        (1, "features"),
        (1, "act"),
        (1, "pool"),
    ],
)
def test_maps_need_to_say_where_their_units_are(kind: Callable[..., Signal], dims: int, layer: str) -> None:
    """Also a map of one dimension, and one that was made a sequence of: they look like (batch, position, unit)."""
    students, teacher = Ensemble(partial(Pictures, 4, dims), [1, 2]), Pictures(6, dims)
    with pytest.raises(ValueError, match=rf"'{layer}' of Pictures has the shape \(2, 4, .*{SAY}.*units=1"):
        kind(teacher, layer, layer).bind(students, draw(2, 16, 1, *[8] * dims))


def test_layers_behind_the_maps_need_not() -> None:
    students, teacher, x = Ensemble(partial(Pictures, 4), [1, 2]), Pictures(6), draw(2, 16, 1, 8, 8)
    for layer in ("flat", "head"):
        assert loss_of(Hidden(teacher, layer, layer), students, x)[1].isfinite().all()


class Patches(nn.Module):
    """A vision transformer in small: a convolution makes patches, the rest is (batch, position, unit)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patch, self.drop = nn.Conv2d(1, width, 4, stride=4), nn.Dropout()
        self.block = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
        self.head = nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.drop(self.patch(x).flatten(2).mT)
        return self.head(self.block(h).mean(1))


def test_a_vision_transformers_blocks_are_sequences() -> None:
    students, teacher, x = Ensemble(partial(Patches, 4), [1, 2]), Patches(6), draw(2, 16, 1, 8, 8)
    bound, _ = loss_of(Hidden(teacher, "block", "block"), students, x)
    assert bound.target(x, None).shape == (2, 16, 4, 4)
    with pytest.raises(ValueError, match=SAY):  # nothing about a dropout tells
        Hidden(teacher, "drop", "drop").bind(students, x)
    last = loss_of(Hidden(teacher, "drop", "drop", units=-1), students, x)[0]
    assert last.tensors["projection"].shape == (2, 4, 6)


class Convolved(nn.Module):
    """Reads a sequence (batch, 8, 3) by a convolution and gives it back as (batch, 8, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.mix, self.head = nn.Conv1d(3, width, 3, padding=1), nn.Linear(width, width), nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.mix(self.conv(x.mT).mT).mean(1))


def test_a_sequence_beside_a_convolution_needs_a_word() -> None:
    students, teacher, x = Ensemble(partial(Convolved, 4), [1, 2]), Convolved(6), draw(2, 16, 8, 3)
    with pytest.raises(ValueError, match=SAY):
        Hidden(teacher, "mix", "mix").bind(students, x)
    assert loss_of(Hidden(teacher, "mix", "mix", units=-1), students, x)[0].tensors["projection"].shape == (2, 4, 6)


def test_one_side_is_enough_to_ask() -> None:
    """A student that is convolved, of a teacher that is not."""

    class PerStep(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.mix, self.head = nn.Linear(3, width), nn.Linear(width, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.mix(x).mean(1))

    students, x = Ensemble(partial(Convolved, 4), [1, 2]), draw(2, 16, 8, 3)
    with pytest.raises(ValueError, match=f"'conv' of Convolved .*{SAY}"):
        Hidden(PerStep(6), "mix", "conv").bind(students, x)
    with pytest.raises(ValueError, match=r"'mix' of the teacher and 'conv' of the student need the same positions"):
        Hidden(PerStep(6), "mix", "conv", units=-1).bind(students, x)


@pytest.mark.parametrize("stride", [(2, 1), (1, 2)])
@pytest.mark.parametrize("dims", [1, 2])
def test_maps_of_different_sizes_are_not_paired(dims: int, stride: tuple[int, int]) -> None:
    teacher, x = Pictures(6, dims, stride[0]), draw(2, 16, 1, *[8] * dims)
    students = Ensemble(partial(Pictures, 4, dims, stride[1]), [1, 2])
    with pytest.raises(ValueError, match=r"same positions, not \(2, .*, 6\) and \(2, .*, 4\)"):
        Hidden(teacher, "act", "act", units=1).bind(students, x)


def test_one_position_does_not_broadcast_to_all() -> None:
    teacher, x = Pictures(6), draw(2, 16, 1, 8, 8)
    students = Ensemble(partial(Pictures, 4), [1, 2])
    for layers in (("pool", "act"), ("act", "pool"), ("flat", "act")):
        with pytest.raises(ValueError, match=r"same positions|none of its dimensions"):
            Hidden(teacher, *layers, units=1).bind(students, x)
    bound = Hidden(teacher, "act", "act", units=1).bind(students, x)
    with pytest.raises(ValueError, match="the student's values are"):
        bound.loss({"act": draw(2, 16, 4, 1, 1)}, bound.target(x, None))


class Recurrent(nn.Module):
    def __init__(self, width: int, first: bool, kind: type = nn.GRU) -> None:
        super().__init__()
        self.rnn, self.first, self.head = kind(3, width, batch_first=first), first, nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.rnn(x if self.first else x.transpose(0, 1))[0]
        return self.head(out[:, -1] if self.first else out[-1])


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
@pytest.mark.parametrize(("length", "n"), [(7, 16), (2, 16), (16, 16), (2, 2)])
def test_time_first_is_said_to_be(kind: type, length: int, n: int) -> None:
    """Also where a batch is as long as a sequence, on either side."""
    x, made = draw(1, n, length, 3), {first: partial(Recurrent, 4, first, kind) for first in (True, False)}
    for teacher, student in ((True, False), (False, True), (False, False)):
        with pytest.raises(ValueError, match=r"samples must come first.*batch_first=True"):
            Hidden(made[teacher](), "rnn", "rnn").bind(Ensemble(made[student], [1]), x)
    assert loss_of(Hidden(made[True](), "rnn", "rnn"), Ensemble(made[True], [1]), x)[1].isfinite().all()


def test_time_first_by_hand_is_found_out_too() -> None:
    class ByHand(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(3, width), nn.Linear(width, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.layer(x.transpose(0, 1))[-1])

    for length, n in ((7, 16), (32, 16), (16, 16)):  # the teacher reads the samples of both seeds at once
        with pytest.raises(ValueError, match="samples must come first"):
            Hidden(ByHand(6), "layer", "layer").bind(Ensemble(partial(ByHand, 4), [1, 2]), draw(2, n, length, 3))


def test_a_layer_without_units() -> None:
    class Summed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.out, self.squeeze = nn.Linear(6, 1), nn.Linear(1, 2), nn.Flatten(0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.squeeze(self.one(x))[:, None])

    with pytest.raises(ValueError, match=r"'squeeze' of Summed has the shape \(\d+,\) for \d+ samples: samples must"):
        Hidden(Summed(), "squeeze", "one").bind(Ensemble(Summed, [1, 2]), draw(2, 16, 6))


def test_units_reach_every_hidden_stage() -> None:
    teacher = Pictures(6)
    layers = [("features", "features"), ("act", "act")]
    stages = curriculum.extracted(teacher, layers, units=1).stages[:-1]
    stages += curriculum.fitnets(teacher, "act", "act", units=1).stages[:-1]
    assert {stage.signal.units for stage in stages} == {1} and len(stages) == 3
    assert curriculum.joint(teacher, 0.1, "act", "act", units=1).stages[0].signal.terms[1][1].units == 1
