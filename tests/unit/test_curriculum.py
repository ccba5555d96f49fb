from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from torch import nn

from kdutils import curriculum
from kdutils.curriculum import Curriculum, Stage, paired_blocks
from kdutils.projections import pca
from kdutils.signals import Hidden, Labels, Output
from kdutils.tasks.models import MLP

TEACHER, EARLY, LATE = MLP(4, 8), MLP(4, 8), MLP(4, 8)
OPEN = Stage(Labels())

METHODS = [
    (curriculum.from_labels(), ["labels"]),
    (curriculum.one_shot(TEACHER), ["output of final teacher"]),
    (
        curriculum.progressive({"early": EARLY, "late": LATE}, TEACHER, 7),
        ["output of early", "output of late", "output of final teacher"],
    ),
    (
        curriculum.extracted(TEACHER, [("hidden", "hidden"), ("act", "act")], 7, pca),
        [
            "pca projection of `hidden` of final teacher",
            "pca projection of `act` of final teacher",
            "output of final teacher",
        ],
    ),
    (
        curriculum.fitnets(TEACHER, steps=7),
        ["`act` of final teacher through a learned regressor", "output of final teacher"],
    ),
    (
        curriculum.joint(TEACHER, 0.25),
        ["1 x output of final teacher + 0.25 x gaussian projection of `act` of final teacher"],
    ),
]


@pytest.mark.parametrize(("plan", "signals"), METHODS, ids=lambda value: getattr(value, "name", ""))
def test_every_method_is_a_list_of_stages(plan: Curriculum, signals: list[str]) -> None:
    assert [str(stage.signal) for stage in plan.stages] == signals
    assert [stage.steps for stage in plan.stages] == [7] * (len(signals) - 1) + [None]
    assert plan.lengths(100) == [7] * (len(signals) - 1) + [100 - 7 * (len(signals) - 1)]


@pytest.mark.parametrize(("plan", "signals"), METHODS, ids=lambda value: getattr(value, "name", ""))
def test_printing_shows_a_row_a_stage(plan: Curriculum, signals: list[str]) -> None:
    name, head, *rows = str(plan).splitlines()
    assert name == plan.name
    assert head.split() == ["stage", "steps", "the", "student", "matches"]
    start = head.index("the student")
    assert [row[start:] for row in rows] == signals
    expected = [[str(i), "7"] for i in range(1, len(rows))] + [[str(len(rows)), "rest"]]
    assert [row[:start].split() for row in rows] == expected


def test_large_steps_stay_aligned() -> None:
    text = str(Curriculum("long", (Stage(Labels(), 1_000_000), Stage(Labels(), 5)))).splitlines()[1:]
    assert "1,000,000" in text[1]
    assert len({line.index("labels") for line in text[1:]} | {text[0].index("the student")}) == 1


@pytest.mark.parametrize(
    ("plan", "networks"),
    [
        (curriculum.progressive({"a": EARLY, "b": LATE}, TEACHER, 1), [EARLY, LATE, TEACHER]),
        (curriculum.extracted(TEACHER), [TEACHER, TEACHER]),
        (curriculum.extracted(TEACHER, hidden_teacher=EARLY), [EARLY, TEACHER]),
        (curriculum.fitnets(TEACHER), [TEACHER, TEACHER]),
    ],
)
def test_each_stage_reads_its_own_network(plan: Curriculum, networks: list[nn.Module]) -> None:
    assert all(stage.signal.teacher is network for stage, network in zip(plan.stages, networks, strict=True))


def test_the_control_does_not_pass_for_the_teacher() -> None:
    control = str(curriculum.extracted(TEACHER, hidden_teacher=EARLY).stages[0].signal)
    assert control != str(curriculum.extracted(TEACHER).stages[0].signal)


def test_only_the_last_stage_may_be_open() -> None:
    with pytest.raises(ValueError, match=r"stage 2 of 'x'.*only the last may be open"):
        Curriculum("x", (Stage(Labels(), 3), OPEN, Stage(Labels(), 3)))


@pytest.mark.parametrize("steps", [0, -4, 2.5, True, float("nan")])
def test_a_stage_needs_a_step(steps: Any) -> None:
    with pytest.raises(ValueError, match=f"steps of stage 1 of 'x' must be a whole number from 1 on, not {steps}"):
        Curriculum("x", (Stage(Labels(), steps), OPEN))


def test_a_curriculum_needs_a_stage() -> None:
    for stages, found in (((), r"\(\)"), (OPEN, r"Stage\(signal"), ([OPEN, Labels()], "Labels"), (None, "None")):
        with pytest.raises(
            ValueError, match=f"'x' needs a tuple with at least one Stage, and Stages only, not {found}"
        ):
            Curriculum("x", stages)


@pytest.mark.parametrize(("last", "total", "needed"), [(None, 10, 11), (None, 3, 11), (5, 14, 15), (5, 9, 15)])
def test_a_budget_too_small_says_what_is_needed(last: int | None, total: int, needed: int) -> None:
    plan = Curriculum("x", (Stage(Labels(), 10), Stage(Labels(), last)))
    with pytest.raises(ValueError, match=f"'x' needs at least {needed} steps; the budget is {total}"):
        plan.lengths(total)
    assert sum(plan.lengths(needed)) == needed


def test_a_budget_that_is_not_filled_is_refused() -> None:
    plan = Curriculum("x", (Stage(Labels(), 20), Stage(Labels(), 30)))
    assert plan.lengths(50) == [20, 30]
    with pytest.raises(ValueError, match=r"'x' ends after 50 of 1000 steps: leave its last stage open \(steps=None\)"):
        plan.lengths(1000)


@pytest.mark.parametrize(
    "layers", [[], ["act"], ("act", "act"), {"act": "act"}, [("act", "act", "act")], ["ab"], "act", 3]
)
def test_layers_are_pairs_of_paths(layers: Any) -> None:
    with pytest.raises(ValueError, match=r"layers must be pairs of the teacher's and the student's path, at least one"):
        curriculum.extracted(TEACHER, layers)
    assert len(curriculum.extracted(TEACHER, zip(["act"], ["hidden"], strict=True)).stages) == 2


def test_methods_without_a_stage_of_their_own_are_refused() -> None:
    for make in (curriculum.progressive, curriculum.annealed, curriculum.interpolated):
        nothing, few = ({}, TEACHER) if make is curriculum.progressive else (TEACHER, [])
        with pytest.raises(
            ValueError, match="are empty, and nothing would come before the final teacher: say one_shot"
        ):
            make(nothing, few, 10)


def test_a_scale_that_layer_norm_undoes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"normalise='position' undoes scale=10\.0: leave it out"):
        Hidden(TEACHER, normalise="position", scale=10.0)


def test_unknown_layer_is_refused_when_the_plan_is_made() -> None:
    with pytest.raises(ValueError, match=r"no layer 'fc'.*'hidden', 'act'"):
        curriculum.extracted(TEACHER, [("fc", "act")])
    with pytest.raises(ValueError, match="no layer 'fc'"):
        curriculum.fitnets(TEACHER, "fc")


def test_positions_and_scale_reach_every_hidden_stage() -> None:
    layers = [("hidden", "hidden"), ("act", "hidden"), ("act", "act")]
    *hidden, last = curriculum.extracted(TEACHER, layers, positions="asked", normalise="position").stages
    assert [(s.signal.layer, s.signal.student_layer) for s in hidden] == layers
    assert {(s.signal.positions, s.signal.normalise) for s in hidden} == {("asked", "position")}
    assert isinstance(last.signal, Output)
    plain = curriculum.extracted(TEACHER).stages[0].signal
    assert plain == Hidden(TEACHER) and (plain.positions, plain.normalise) == ("all", "sample")
    assert curriculum.fitnets(TEACHER, positions="asked").stages[0].signal.positions == "asked"
    for plan in (curriculum.extracted, curriculum.fitnets):
        with pytest.raises(ValueError, match="positions must be one of"):
            plan(TEACHER, positions="some")


def depths(teacher: int, student: int) -> list[int]:
    pairs = paired_blocks(teacher, student)
    assert [path for _, path in pairs] == [f"blocks.{i}" for i in range(student)]
    return [int(path.removeprefix("blocks.")) for path, _ in pairs]


@pytest.mark.parametrize("layers", [1, 2, 5, 12])
def test_students_as_deep_as_the_teacher_are_paired_one_to_one(layers: int) -> None:
    assert depths(layers, layers) == list(range(layers))


@pytest.mark.parametrize(("teacher", "student"), [(t, s) for t in range(1, 13) for s in range(1, t + 1)])
def test_pairs_are_spread_evenly_and_end_with_the_last(teacher: int, student: int) -> None:
    """Evenly: strides of a whole number of blocks, and no two differ by more than one."""
    chosen = depths(teacher, student)
    strides = [b - a for a, b in pairwise([-1, *chosen])]
    assert chosen[-1] == teacher - 1
    assert min(strides) >= 1 and max(strides) - min(strides) <= 1


@pytest.mark.parametrize(("teacher", "student"), [(2, 3), (2, 0), (0, 0), (3, -1)])
def test_blocks_that_cannot_be_paired(teacher: int, student: int) -> None:
    with pytest.raises(ValueError, match=f"{student} student layers cannot be spread over {teacher} teacher layers"):
        paired_blocks(teacher, student)


def test_lists_of_any_kind_are_taken() -> None:
    teacher = nn.Sequential(nn.Linear(4, 4))
    assert len(curriculum.annealed(teacher, (2.0**k for k in (3, 2, 1)), 2).stages) == 4
    assert len(curriculum.interpolated(teacher, map(float, ("0.2", "0.5")), 2).stages) == 3
    plan = curriculum.extracted(teacher, np.array([["0", "0"]]), 2)
    assert plan.stages[0].signal.layer == "0" and type(plan.stages[0].signal.layer) is str
