"""Closed forms and limits of the signals, beyond `test_signals`."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdutils import curriculum, projections, reading, seeding, signals
from kdutils.curriculum import Curriculum, Stage
from kdutils.lab.ensemble import Ensemble
from kdutils.lab.training import train
from kdutils.losses import distillation_loss
from kdutils.signals import Bound, Hidden, Labels, Output, Regressed, Signal, WeightedSum
from kdutils.tasks.models import MLP
from kdutils.tasks.parity import SparseParity

TASK = SparseParity(6, 2)


def draw(*shape: int, name: str = "z") -> torch.Tensor:
    return torch.randn(shape, generator=seeding.generator(0, name))


@pytest.fixture
def students() -> Ensemble:
    return Ensemble(partial(MLP, 6, 4), [1, 2], [0.1, 0.3])


@pytest.fixture
def x(students: Ensemble) -> torch.Tensor:
    return torch.stack([TASK.sample(200, seeding.generator(seed, "x"))[0] for seed in students.seeds])


@pytest.mark.parametrize("temperatures", [(1.0, 1.0), (0.3, 0.3), (5.0, 5.0)])
def test_no_loss_and_no_gradient_where_the_student_is_the_teacher(temperatures: tuple) -> None:
    z = draw(6, 4).requires_grad_()
    loss = distillation_loss(z, z.detach(), *temperatures)
    assert abs(loss) < 1e-6
    assert torch.autograd.grad(loss, z)[0].abs().max() < 1e-6


@pytest.mark.parametrize("temperatures", [(1.0, 1.0), (2.0, 2.0), (2.0, 1.0), (0.1, 1.0)])
def test_never_negative_and_blind_to_shifts(temperatures: tuple) -> None:
    s, t = draw(50, 4), draw(50, 4, name="t")
    loss = distillation_loss(s, t, *temperatures)
    assert loss > 0
    torch.testing.assert_close(distillation_loss(s + 3, t - 2, *temperatures), loss)


def test_gradient_of_hintons_form() -> None:
    s, t, temperature = draw(6, 4).requires_grad_(), draw(6, 4, name="t"), 3.0
    gradient = torch.autograd.grad(distillation_loss(s, t, temperature, temperature), s)[0]
    expected = temperature * ((s / temperature).softmax(-1) - (t / temperature).softmax(-1)) / 6
    torch.testing.assert_close(gradient, expected)


def test_gradient_of_hintons_form_does_not_shrink_with_the_temperature() -> None:
    s, t = draw(6, 4).requires_grad_(), draw(6, 4, name="t")
    hot, hotter = (torch.autograd.grad(distillation_loss(s, t, T, T), s)[0] for T in (100.0, 200.0))
    assert (hot - hotter).norm() / hotter.norm() < 0.02  # the limit is approached as 1/T
    plain = [torch.autograd.grad(distillation_loss(s, t, T, 1.0), s)[0].norm() for T in (100.0, 200.0)]
    assert plain[0] / plain[1] < 1.1


def test_leading_dimensions_are_separate_problems() -> None:
    s, t = draw(3, 6, 4), draw(3, 6, 4, name="t")
    together = distillation_loss(s, t, 2.0)
    assert together.shape == (3,)
    for i in range(3):
        torch.testing.assert_close(together[i], distillation_loss(s[i], t[i], 2.0))
    torch.testing.assert_close(distillation_loss(s, t[:1]), distillation_loss(s, t[:1].expand(3, 6, 4)))


def test_labels_are_cross_entropy(students: Ensemble, x: torch.Tensor) -> None:
    y = TASK.label(x)
    bound = Labels().bind(students, x)
    loss = bound.loss(students.outputs(x), students.spread(bound.target(x, y)))
    for m in range(4):
        torch.testing.assert_close(loss[m], F.cross_entropy(students.member(m)(x[m % 2]), y[m % 2]))


class PerToken(nn.Module):
    """A classifier of every position of a sequence."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden, self.act, self.readout = nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.readout(self.act(self.hidden(x)))


@pytest.mark.parametrize(
    "make", [lambda teacher: Labels(), Output, Hidden, Regressed], ids=["Labels", "Output", "Hidden", "Regressed"]
)
def test_positions_of_a_sequence_count_as_samples(make: Callable[[nn.Module], Signal]) -> None:
    students, signal = Ensemble(partial(PerToken, 4), [1, 2], [0.1, 0.3]), make(PerToken(9))
    x = draw(2, 40, 5, 6)
    y = torch.randint(0, 3, (2, 40, 5), generator=seeding.generator(0, "y"))
    losses = []
    for inputs, labels in ((x, y), (x.flatten(1, 2), y.flatten(1, 2))):
        bound = signal.bind(students, inputs)
        target = students.spread(bound.target(inputs, labels))
        losses.append(bound.loss(students.outputs(inputs, bound.reads), target))
    assert losses[0].shape == (4,)
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize(
    "make", [Output, partial(Hidden, layer="0", student_layer="act"), partial(Regressed, layer="0")]
)
def test_teacher_is_left_as_it_was(make: Callable[[nn.Module], Signal], students: Ensemble, x: torch.Tensor) -> None:
    teacher = nn.Sequential(nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5)), nn.ReLU(), nn.Linear(8, 2)).train()
    before = copy.deepcopy(teacher.state_dict())
    bound = make(teacher).bind(students, x)
    first = bound.target(x, TASK.label(x))
    assert torch.equal(first, bound.target(x, TASK.label(x)))
    assert not first.requires_grad
    assert all(module.training for module in teacher.modules())
    assert all(p.requires_grad and p.grad is None for p in teacher.parameters())
    with torch.no_grad():
        teacher[2].weight.zero_()
        teacher[0][0].weight.zero_()
    assert torch.equal(first, bound.target(x, TASK.label(x)))
    teacher.load_state_dict(before)
    train(students, TASK, Curriculum("x", (Stage(make(teacher)),)), steps=2, batch=4, held_out=16)
    assert all(p.requires_grad and p.grad is None for p in teacher.parameters())


def test_output_target_is_the_teacher_in_eval_mode(students: Ensemble, x: torch.Tensor) -> None:
    teacher = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 2)).train()
    expected = copy.deepcopy(teacher).eval()(x).log_softmax(-1)
    torch.testing.assert_close(Output(teacher).bind(students, x).target(x, TASK.label(x)), expected)


def keep_all(hidden: torch.Tensor, width: int, generator: torch.Generator) -> torch.Tensor:
    return torch.eye(width)


def test_hidden_loss_vanishes_for_a_student_that_computes_the_target() -> None:
    teacher = MLP(6, 4)
    x = TASK.sample(300, seeding.generator(0, "x"))[0]
    h = teacher.hidden(x).detach()
    scale = (h - h.mean(0)).square().mean().sqrt()

    def exact() -> MLP:
        student = MLP(6, 4)
        with torch.no_grad():
            student.hidden.weight.copy_(teacher.hidden.weight / scale)
            student.hidden.bias.copy_((teacher.hidden.bias - h.mean(0)) / scale)
        return student

    students = Ensemble(exact, [1])
    bound = Hidden(teacher, "hidden", "hidden", keep_all).bind(students, x[None])
    fresh = TASK.sample(50, seeding.generator(1, "x"))[0][None]
    loss = bound.loss(students.outputs(fresh, bound.reads), bound.target(fresh, TASK.label(fresh)))
    assert loss.abs().max() < 1e-9


@pytest.mark.parametrize("layer", ["hidden", "act"])
def test_hidden_target_is_blind_to_the_teachers_scale_and_offset(
    layer: str, students: Ensemble, x: torch.Tensor
) -> None:
    teacher = MLP(6, 9)
    louder = copy.deepcopy(teacher)
    with torch.no_grad():
        louder.hidden.weight.mul_(10)
        louder.hidden.bias.mul_(10)
    targets = [Hidden(net, layer).bind(students, x).target(x, TASK.label(x)) for net in (teacher, louder)]
    torch.testing.assert_close(*targets)


def test_calibration_is_read_once(students: Ensemble, x: torch.Tensor) -> None:
    bound = Hidden(MLP(6, 9)).bind(students, x)
    part = bound.target(x[:, :7], TASK.label(x[:, :7]))
    torch.testing.assert_close(part, bound.target(x, TASK.label(x))[:, :7])


@pytest.mark.parametrize("factor", [1.0, 4.0])
def test_regressed_loss_is_the_students_width_times_half_a_mean_square(
    factor: float, students: Ensemble, x: torch.Tensor
) -> None:
    bound = Regressed(MLP(6, 9)).bind(students, x)
    for parameter in bound.parameters.values():
        parameter.data.zero_()
    target = students.spread(bound.target(x, TASK.label(x)))
    loss = bound.loss(students.outputs(x, bound.reads), factor * target)
    torch.testing.assert_close(loss, torch.full((4,), 0.5 * 4 * factor**2))  # the target has unit mean square


@dataclass(frozen=True)
class Watched:
    """Passes a signal on and keeps what it was bound to."""

    signal: Signal
    seen: list[Bound] = field(default_factory=list)

    def bind(self, students: Ensemble, x: torch.Tensor, y: torch.Tensor | None = None) -> Bound:
        self.seen.append(self.signal.bind(students, x))
        return self.seen[-1]


def test_regressor_is_trained_beside_the_student(students: Ensemble) -> None:
    watched = Watched(Regressed(MLP(6, 9)))
    run = train(students, TASK, Curriculum("x", (Stage(watched),)), steps=100, batch=32, evaluate_every=100)
    x = torch.stack([TASK.sample(200, seeding.generator(seed, "new"))[0] for seed in students.seeds])
    start = watched.signal.bind(students, x)
    bound = watched.seen[0]
    before, after = (
        b.loss(group.outputs(x, b.reads), group.spread(bound.target(x, TASK.label(x))))
        for b, group in ((start, students), (bound, run.students))
    )
    assert (after < 0.9 * before).all()
    for name in ("regressor", "offset"):
        moved = (bound.parameters[name] - start.parameters[name]).flatten(1).abs().amax(1)
        assert (moved > 0).all()


def test_weighted_sum_of_one_is_that_one(students: Ensemble, x: torch.Tensor) -> None:
    one, whole = Regressed(MLP(6, 9)), WeightedSum(((2.0, Labels()), (0.5, Regressed(MLP(6, 9)))))
    bound = whole.bind(students, x)
    assert set(bound.reads) == {reading.OUTPUT, "act"}
    assert set(bound.parameters) == {"1/regressor", "1/offset"}
    alone, single = one.bind(students, x), WeightedSum(((3.0, one),)).bind(students, x)
    values, y = students.outputs(x, ("act",)), TASK.label(x)
    expected = alone.loss(values, students.spread(alone.target(x, y)))
    torch.testing.assert_close(single.loss(values, students.spread(single.target(x, y))), 3 * expected)


@pytest.mark.parametrize("temperatures", [(0.0, 1.0), (1.0, -1.0)])
def test_temperatures_are_positive(temperatures: tuple) -> None:
    with pytest.raises(ValueError, match="positive"):
        Output(MLP(6, 4), *temperatures)


def scaled_gaussian(hidden: torch.Tensor, width: int, generator: torch.Generator, factor: float) -> torch.Tensor:
    return factor * projections.gaussian(hidden, width, generator)


def test_a_projection_may_be_a_partial(students: Ensemble) -> None:
    plan = curriculum.extracted(MLP(6, 9), steps=1, projection=partial(scaled_gaussian, factor=2.0))
    assert "scaled_gaussian" in str(plan)
    train(students, TASK, plan, steps=2, batch=4, held_out=16)


def test_projections_differ_between_seeds_and_agree_between_rates(students: Ensemble, x: torch.Tensor) -> None:
    drawn = Hidden(MLP(6, 9)).bind(students, x).tensors["projection"]
    assert drawn.shape == (2, 4, 9) and not torch.equal(drawn[0], drawn[1])
    assert signals.Hidden(MLP(6, 9)).bind(students, x).tensors["projection"].equal(drawn)
