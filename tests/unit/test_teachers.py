"""A stage's signals share the passes of their teachers, and nobody is told anything else for that."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kdutils import curriculum, seeding, signals, teachers
from kdutils.curriculum import Curriculum, Stage
from kdutils.distiller import Distiller
from kdutils.lab.ensemble import Ensemble
from kdutils.lab.record import Run
from kdutils.lab.training import train
from kdutils.projections import sparse
from kdutils.signals import Bound, Hidden, Output, WeightedSum
from kdutils.tasks.parity import SparseParity

X = torch.randn(1, 8, 6, generator=seeding.generator(0, "inputs"))


def deep(width: int, seed: int = 0) -> nn.Module:
    with seeding.global_rng(seed, "init"):
        return nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2))


def fit(signal: Any, steps: int = 4, *stages: Stage, seeds: tuple[int, ...] = (1, 2)) -> Run:
    students = Ensemble(partial(deep, 4), seeds, [0.1])
    plan = Curriculum("own", (Stage(signal, None if not stages else 2), *stages))
    return train(students, SparseParity(6, 2), plan, steps=steps, batch=8, evaluate_every=1, held_out=64)


class Own:
    """A signal that does something with its teacher at every target, and matches nothing."""

    def __init__(
        self, use: Callable[[Any, Any, torch.Tensor], Any], prepare: Callable[[Any], Any] | None = None
    ) -> None:
        self.use, self.prepare, self.seen = use, prepare or (lambda students: None), []

    def bind(self, students: Any, x: torch.Tensor, y: torch.Tensor | None = None) -> Bound:
        prepared = self.prepare(students)

        def target(x: torch.Tensor, y: torch.Tensor | None) -> torch.Tensor:
            self.seen.append(self.use(students, prepared, x))
            return x

        return Bound(("",), target, lambda values, _: values[""].square().flatten(1).mean(1))


def test_a_teacher_that_goes_on_is_copied_as_it_is() -> None:
    network, states = deep(6), [deep(6, seed).state_dict() for seed in (1, 2, 3)]

    def prepare(students: Any) -> list[nn.Module]:
        copies = []
        for state in states:
            network.load_state_dict(state)
            copies.append(students.teacher(network))
        return copies

    own = Own(lambda students, copies, x: [copy[0].weight.clone() for copy in copies], prepare)
    fit(own)
    for copy, state in zip(own.seen[0], states, strict=True):
        assert torch.equal(copy, state["0.weight"])


def test_weights_and_inputs_that_change_between_two_reads_are_seen() -> None:
    def use(students: Any, copy: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
        said = [students.read(copy, x, "4")]
        with torch.no_grad():
            copy[0].weight.mul_(1.5)
        said += [students.read(copy, x, "4"), students.read(copy, x, "0")]
        x = x.clone()
        said.append(students.read(copy, x, "0"))
        x.mul_(2)
        said += [students.read(copy, x, "0"), students.read(copy, x, "4")]
        fresh = [copy(x.flatten(0, 1)), copy[0](x.flatten(0, 1))]
        assert torch.equal(said[5].flatten(0, 1), fresh[0]) and torch.equal(said[4].flatten(0, 1), fresh[1])
        return said

    own = Own(use, lambda students: students.teacher(deep(6)))
    fit(own)
    for said in own.seen:
        assert not torch.equal(said[0], said[1]) and not torch.equal(said[3], said[4])


class Drawing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = nn.functional.linear(x, self.weight)
        return z + torch.randn_like(z)


def test_who_asks_again_for_a_path_gets_another_pass() -> None:
    own = Own(lambda students, copy, x: torch.stack([students.read(copy, x, "") for _ in range(4)]).std(0).mean(),
              lambda students: students.teacher(Drawing()))  # fmt: skip
    fit(own)
    assert all(spread > 0.3 for spread in own.seen)


def test_teachers_of_a_moment_are_not_taken_for_one_another() -> None:
    def use(students: Any, _: Any, x: torch.Tensor) -> bool:
        right = True
        for seed in range(20):
            network = deep(6, seed)
            right &= torch.equal(students.read(network, x, "").flatten(0, 1), network(x.flatten(0, 1)))
        return right

    own = Own(use)
    fit(own, seeds=(1,))
    assert all(own.seen)


def test_a_target_that_is_changed_in_place_is_its_readers_own() -> None:
    network = deep(6)
    kept: list[list[torch.Tensor]] = []

    def use(students: Any, copy: nn.Module, x: torch.Tensor) -> None:
        kept.append([])
        for _ in range(2):
            h = students.read(copy, x, "0")
            kept[-1].append(h.std().item())
            h.mul_(3)

    fit(Own(use, lambda students: students.teacher(network)))
    assert all(one == two for one, two in kept)


def test_answers_are_held_no_longer_than_targets_are_made() -> None:
    class Watching(nn.Module):
        """A student that sees what is held of its teachers while it runs."""

        held: list[int]

        def __init__(self) -> None:
            super().__init__()
            self.net = deep(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

    seen: list[int] = []
    students = Ensemble(Watching, [1], [0.1])
    plan = Curriculum("two", (Stage(WeightedSum(((0.5, Output(deep(6))), (0.5, Hidden(deep(6), "0", "net.0")))), 2),
                              Stage(Output(deep(6)))))  # fmt: skip
    original = teachers.Passes.forget

    class Noted(teachers.Passes):
        def forget(self) -> None:
            original(self)
            seen.append(len(self.said))

    import kdutils.lab.training as loop

    was, loop.Passes = loop.Passes, Noted
    try:
        train(students, SparseParity(6, 2), plan, steps=4, batch=8, evaluate_every=4, held_out=64)
    finally:
        loop.Passes = was
    assert len(seen) >= 2 * 2 + 4 and not any(seen)  # made, bound, and after every target


def test_each_stage_copies_its_teacher_anew() -> None:
    network, copies = deep(6), []
    own = Own(lambda *_: None, lambda students: copies.append((students.teacher(network), students.teacher(network))))
    fit(own, 4, Stage(Own(lambda *_: None, lambda students: copies.append((students.teacher(network),) * 2))))
    assert copies[0][0] is copies[0][1] is not network and copies[1][0] is not copies[0][0]


def spent(run: Run) -> list[float]:
    return (np.diff(run.flops) / 8).tolist()  # a sample


def test_a_look_at_the_start_costs_no_step_after_the_first() -> None:
    """As where sparse views read some units of a layer alone, and all of it was looked at before."""
    teacher = deep(40)
    views = Hidden(teacher, "2", "2", projection=partial(sparse, s=1))
    low = Hidden(teacher, "0", "0")
    both, apart = fit(WeightedSum(((0.5, views), (0.5, low)))), [fit(views), fit(low)]
    student = 2 * 2 * 6 * 4  # forward and backward of the first layer, which both count
    assert spent(both)[1:] == [spent(both)[1]] * 3
    assert spent(both)[1] == spent(apart[0])[1] + spent(apart[1])[1] - student


def test_layers_that_are_asked_for_at_targets_alone_share_a_pass_from_the_second_on() -> None:
    own = Own(lambda students, copy, x: (students.read(copy, x, "0"), students.read(copy, x, "2")),
              lambda students: students.teacher(deep(40)))  # fmt: skip
    first, *later = spent(fit(own))
    assert later == [later[0]] * 3 and first - later[0] == 2 * 6 * 40


class Towers(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.text, self.image, self.head = nn.Linear(6, width), nn.Linear(6, width), nn.Linear(width, 2)

    def forward(self, text: torch.Tensor | None = None, image: torch.Tensor | None = None) -> torch.Tensor:
        return self.head(self.image(image) if text is None else self.text(text))


@pytest.mark.parametrize("names", [("text", "image"), ("text", "text")])
def test_a_pass_that_does_not_come_by_all_paths_answers_for_its_own(names: tuple[str, str]) -> None:
    def use(students: Any, copy: nn.Module, x: torch.Tensor) -> bool:
        said = [students.read(copy, {name: x}, name) for name in names]
        layers = [copy.get_submodule(name) for name in names]
        return all(
            torch.equal(one.flatten(0, 1), layer(x.flatten(0, 1))) for one, layer in zip(said, layers, strict=True)
        )

    own = Own(use, lambda students: students.teacher(Towers(6)))
    fit(own)
    assert all(own.seen)


def test_both_engines_read_once() -> None:
    teacher, calls = deep(8), []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    plan = curriculum.joint(teacher, 0.5, "0", "0")
    distiller = Distiller(deep(4), plan, total=4, calibration=X[0])
    for step in range(3):
        calls.clear()
        distiller(X[0], None, step)
        assert len(calls) == 1
    assert isinstance(plan.stages[0].signal, signals.WeightedSum)
