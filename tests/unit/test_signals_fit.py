"""What has to fit before a stage starts: classes and labels; what a stage draws, and what its targets hold."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from kdutils import seeding
from kdutils.lab.ensemble import Ensemble
from kdutils.losses import IGNORE
from kdutils.probes.mediation import Shuffled
from kdutils.signals import Bound, Hidden, Labels, Output, Regressed, Signal, WeightedSum
from kdutils.tasks.models import MLP, Transformer


def draw(*shape: int, name: str = "x") -> torch.Tensor:
    return torch.randn(shape, generator=seeding.generator(0, name))


def seeded(make: Callable[[], nn.Module], seed: int = 5) -> nn.Module:
    with seeding.global_rng(seed, "made"):
        return make()


def loss_of(signal: Signal, students: Ensemble, x: torch.Tensor, y: Any = None) -> tuple[Bound, torch.Tensor]:
    bound = signal.bind(students, x, y)
    return bound, bound.loss(students.outputs(x, bound.reads), students.spread(bound.target(x, y)))


@pytest.mark.parametrize(("own", "theirs"), [(2, 1), (1, 2), (10, 7), (7, 10)])
def test_unequal_classes_name_both_sides(own: int, theirs: int) -> None:
    students, x = Ensemble(partial(MLP, 6, 4, own), [1, 2]), draw(2, 16, 6)
    for signal in (Output(MLP(6, 8, theirs)), WeightedSum(((1.0, Output(MLP(6, 8, theirs))),))):
        with pytest.raises(ValueError, match=f"teacher's output has {theirs} classes, the student's {own}"):
            signal.bind(students, x)


def test_one_class_is_no_choice() -> None:
    students, x, y = Ensemble(partial(MLP, 6, 4, 1), [1, 2]), draw(2, 16, 6), torch.zeros(2, 16, dtype=torch.long)
    for signal in (Output(MLP(6, 8, 1)), Labels()):
        with pytest.raises(ValueError, match=r"softmax of one class is always 1: .* two, or .* your own signal"):
            signal.bind(students, x, y)
    squeezed = nn.Sequential(nn.Linear(6, 1), nn.Flatten(0))
    with pytest.raises(ValueError, match="samples must come first, units after them"):
        Output(squeezed).bind(Ensemble(partial(MLP, 6, 4), [1, 2]), x)


def text(classes: int = 7, last: bool = False) -> Transformer:
    return Transformer(7, 8, 2, 1, 5, classes=classes, last=last)


def test_outputs_at_other_positions_are_not_compared() -> None:
    x = torch.randint(7, (2, 16, 5), generator=seeding.generator(0, "x"))
    with pytest.raises(ValueError, match=r"same positions, not \(2, 5, 7\) and \(2, 7\)"):
        Output(text()).bind(Ensemble(partial(text, last=True), [1, 2]), x, x[..., 0])


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool])
def test_labels_are_whole_numbers_of_any_size(dtype: torch.dtype) -> None:
    students, x, y = Ensemble(partial(MLP, 6, 4), [1, 2]), draw(2, 16, 6), torch.arange(32).view(2, 16) % 2
    torch.testing.assert_close(loss_of(Labels(), students, x, y.to(dtype))[1], loss_of(Labels(), students, x, y)[1])


@pytest.mark.parametrize(
    ("y", "said"),
    [
        (torch.zeros(2, 16), "labels must be whole numbers, not torch.float32.*`score`"),
        (torch.zeros(2, 16, 3), "labels must be whole numbers, not torch.float32"),
        (torch.zeros(2, 16, dtype=torch.double), "not torch.float64"),
        ({"a": torch.zeros(2, 16)}, "labels must be whole numbers, not dict"),
        (torch.full((2, 16), 2), "label 2 is none of the student's classes, 0 to 1"),
        (torch.full((2, 16), -1), "label -1 is none"),
        (torch.full((2, 16), 156, dtype=torch.uint8), "label 156 is none"),
        (torch.zeros(2, 16, 1, dtype=torch.long), r"outputs .* of \(2, 2\) need labels of \(2,\).*are \(2, 1\)"),
        (torch.zeros(2, 16, 6, dtype=torch.long), r"need labels of \(2,\)"),
    ],
)
def test_labels_that_are_none(y: Any, said: str) -> None:
    students, x = Ensemble(partial(MLP, 6, 4), [1, 2]), draw(2, 16, 6)
    with pytest.raises(ValueError, match=said):
        Labels().bind(students, x, y)
    some = torch.zeros(2, 16, dtype=torch.long)
    some[0, 3] = IGNORE
    Labels().bind(students, x, some)
    output = Output(MLP(6, 8))  # a teacher's output asks nothing of whole numbers, and of no numbers at all
    if not isinstance(y, torch.Tensor) or not y.is_floating_point():
        output.bind(students, x, y)
    else:
        with pytest.raises(ValueError, match=said):
            output.bind(students, x, y)
    with pytest.raises(ValueError, match="labels of that very shape are no classes: several labels or one logit"):
        output.bind(students, x, torch.zeros(2, 16, 2, dtype=torch.long))


def test_positions_need_their_own_labels() -> None:
    students, x = Ensemble(text, [1, 2]), torch.randint(7, (2, 16, 5), generator=seeding.generator(0, "x"))
    for signal in (Labels(), Output(text())):
        for y in (x[..., 0], x[..., :4], x[..., None]):
            with pytest.raises(ValueError, match=rf"of \(2, 5, 7\) need labels of \(2, 5\), {IGNORE} where"):
                signal.bind(students, x, y)
        assert loss_of(signal, students, x, x)[1].isfinite().all()


class Segmented(nn.Module):
    """A class at every pixel: channels first as convolutions give them, or last."""

    def __init__(self, last: bool, classes: int = 3) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(1, classes, 1), last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).movedim(1, -1) if self.last else self.conv(x)


@pytest.mark.parametrize("make", [lambda t: Labels(), Output])
def test_classes_are_last(make: Callable[[nn.Module], Signal]) -> None:
    x, y = draw(2, 16, 1, 8, 8), torch.zeros(2, 16, 8, 8, dtype=torch.long)
    last, first = (Ensemble(partial(Segmented, kind), [1, 2]) for kind in (True, False))
    assert loss_of(make(Segmented(True)), last, x, y)[1].isfinite().all()
    with pytest.raises(ValueError, match=r"of \(2, 3, 8, 8\) need labels of \(2, 3, 8\)"):
        make(Segmented(False)).bind(first, x, y)
    alike = Ensemble(partial(Segmented, False, 8), [1, 2])  # nobody can tell 8 classes from 8 rows
    with pytest.raises(ValueError, match=r"return its classes last .*movedim"):
        make(Segmented(False, 8)).bind(alike, x, y)
    if make is Output:
        with pytest.raises(ValueError, match=r"return its classes last .*movedim"):
            Output(Segmented(False)).bind(first, x)


@pytest.mark.parametrize("wrap", [lambda s: s, Shuffled, lambda s: WeightedSum(((1.0, Labels()), (0.5, s)))])
def test_a_stage_that_redraws_goes_on_from_its_generators(wrap: Callable[[Signal], Signal]) -> None:
    students, x, teacher = Ensemble(partial(MLP, 6, 4), [1, 2]), draw(2, 16, 6), MLP(6, 9)
    y = torch.zeros(2, 16, dtype=torch.long)
    bound, again = (wrap(Hidden(teacher, redraw=True)).bind(students, x, y) for _ in range(2))
    assert len(bound.generators) == 2 and {name.split("/")[-1] for name in bound.generators} == {"1", "2"}
    for _ in range(3):
        bound.target(x, y)
    states = {name: generator.get_state() for name, generator in bound.generators.items()}
    coming = [bound.target(x, y) for _ in range(2)]
    for name, state in states.items():
        again.generators[name].set_state(state)
    torch.testing.assert_close([again.target(x, y) for _ in range(2)], coming, rtol=0, atol=0)
    assert wrap(Hidden(teacher)).bind(students, x, y).generators == {}


def test_classes_that_a_teacher_rules_out_are_finite_targets() -> None:
    """So that a number that is not can be told from them; with a share the student's own output is ruled out too."""

    class Forbids(MLP):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).masked_fill(torch.tensor([False, True, False]), -torch.inf)

    students, x, teacher = Ensemble(partial(MLP, 6, 4, 3), [1, 2]), draw(2, 16, 6), seeded(partial(Forbids, 6, 8, 3))
    for signal in (Output(teacher), Output(teacher, 1e-20), Output(teacher, share=0.25), Output(teacher, share=0.75)):
        bound, loss = loss_of(signal, students, x)
        assert bound.target(x, None).isfinite().all() and loss.isfinite().all()
    both = Ensemble(partial(Forbids, 6, 4, 3), [1, 2])
    for signal in (Output(teacher), Output(teacher, share=0.25), Output(teacher, share=0.75)):
        assert loss_of(signal, both, x)[1].isfinite().all()
    mixed = Output(teacher, share=0.5).bind(students, x)
    own, wanted = students.outputs(x)[""], teacher(x)
    p = (0.5 * own + 0.5 * wanted).softmax(-1)
    expected = torch.where(p > 0, p * (p.clamp_min(1e-30).log() - own.log_softmax(-1)), 0).sum(-1).mean(1)
    torch.testing.assert_close(mixed.loss({"": own}, mixed.target(x, None)), expected)


def test_autocast_around_a_signal_changes_nothing() -> None:
    students, x, teacher = Ensemble(partial(MLP, 6, 4), [1, 2]), draw(2, 16, 6), MLP(6, 9)
    h = {"act": students.outputs(x, ("act",))["act"]}
    for signal in (Hidden(teacher), Hidden(teacher, redraw=True), Regressed(teacher)):
        bound = signal.bind(students, x)
        target = bound.target(x, None)
        expected = bound.loss(h, target)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(bound.loss(h, target), expected)
            again = signal.bind(students, x).target(x, None)
        assert again.dtype == torch.float32
        torch.testing.assert_close(again, target, atol=0.1, rtol=0.1)  # the teacher itself ran in bfloat16
