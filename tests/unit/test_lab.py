from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from kdutils import curriculum, seeding
from kdutils.lab import lab, stats, store
from kdutils.lab.lab import ParityLab, TransformerParityLab
from kdutils.lab.optimisers import SGD, Adam
from kdutils.lab.store import Store
from kdutils.lab.training import Run
from kdutils.pages import profiles
from kdutils.tasks.models import Transformer
from kdutils.tasks.parity import SparseParity

SMALL = {
    "d": 6, "k": 2, "teacher_width": 64, "teacher_steps": 600, "keep_every": 50, "student_width": 24,
    "learning_rates": [0.3, 1.0], "steps": 120, "hidden_steps": 20, "batch": 32, "evaluate_every": 50,
    "tuning_seeds": [100],
}  # fmt: skip


@pytest.fixture
def settings() -> SimpleNamespace:
    return profiles.load("parity", "smoke", device="cpu", seeds=[1, 2], overrides=SMALL)


@pytest.fixture
def room(settings: SimpleNamespace, tmp_path: Path) -> ParityLab:
    return ParityLab(settings, Store(tmp_path / "lab"))


def test_task_is_that_of_the_settings(room: ParityLab) -> None:
    assert (room.task.d, room.task.k) == (6, 2)
    assert room.used == {}


def test_teacher_has_learned_and_has_checkpoints(room: ParityLab) -> None:
    trained = room.teacher()
    assert trained.accuracy[-1, 0] >= lab.THRESHOLD
    assert set(trained.snapshots) == set(range(50, int(trained.steps[-1]) + 1, 50))
    assert trained.network().hidden.weight.shape == (64, 6)
    assert room.used == {"teacher": trained}


def test_teacher_may_stop_when_it_is_done(room: ParityLab) -> None:
    whole = room.teacher()
    room.settings.teacher_until = 1.0
    short, first = room.teacher(), int((whole.accuracy[:, 0] == 1.0).argmax())
    assert short.steps.tolist() == whole.steps[: first + 1].tolist() and first < len(whole.steps) - 1
    assert torch.equal(short.network().hidden.weight, whole.network(step=int(short.steps[-1])).hidden.weight)


def test_look_at_a_teacher(room: ParityLab, tmp_path: Path) -> None:
    sure = room.worth(room.teacher())
    assert [layer.path for layer in sure.layers] == ["act"] and sure.accuracy > 0.9
    small = {"teacher_steps": 20, "layers": 2, "held_out": 64, "test_sentences": 64}
    room = lab.GrammarLab(profiles.load("grammar", "smoke", device="cpu", overrides=small), Store(tmp_path / "lab"))
    facts = room.facts(room.teacher(), True)
    assert set(facts) == {"optimum, held-out", "optimum, test", "worth"}
    assert [layer["path"] for layer in facts["worth"]["layers"]] == ["blocks.0", "blocks.1"]
    assert facts["worth"]["accuracy"] < facts["optimum, test"]["accuracy"] < sure.accuracy


def test_teacher_that_has_not_learned_says_what_to_do(room: ParityLab) -> None:
    room.settings.teacher_steps = 1
    with pytest.raises(RuntimeError, match="in 1 steps: raise teacher_steps"):
        room.teacher()


def test_untrained_teacher_has_the_shape_and_other_weights(room: ParityLab) -> None:
    control, again, teacher = room.untrained_teacher(), room.untrained_teacher(), room.teacher().network()
    assert {n: p.shape for n, p in control.named_parameters()} == {n: p.shape for n, p in teacher.named_parameters()}
    assert store.digest(control.state_dict()) == store.digest(again.state_dict())
    assert not torch.equal(control.hidden.weight, teacher.hidden.weight)


def test_arms_differ_in_their_curriculum_alone(room: ParityLab) -> None:
    teacher = room.teacher().network()
    arms = {plan.name: room.arm(plan) for plan in (curriculum.from_labels(), curriculum.extracted(teacher, steps=20))}
    labels, extraction = arms["labels"], arms["extraction"]
    assert labels.seeds == extraction.seeds == (1, 2)
    assert labels.run.students.seeds == extraction.run.students.seeds == (1, 2)
    assert labels.sweep.run.students.seeds == extraction.sweep.run.students.seeds == (100,)
    assert labels.sweep.run.students.learning_rates == (0.3, 1.0)
    assert labels.run.budget == extraction.run.budget == 120 * 32
    assert np.array_equal(labels.run.accuracy[0], extraction.run.accuracy[0])
    assert set(room.used) == {"teacher", "labels", "labels, sweep", "extraction", "extraction, sweep"}


def test_an_arm_chooses_among_plans_on_the_tuning_seeds(room: ParityLab) -> None:
    teacher = room.teacher().network()
    plans = [curriculum.extracted(teacher, steps=n, name=f"{n} steps") for n in (5, 20)]
    arm = room.arm(*plans)
    assert arm.name in {"5 steps", "20 steps"} and arm.sweep is not None and arm.sweep.name == arm.name
    assert set(room.used) == {"teacher", "5 steps, sweep", "20 steps, sweep", arm.name}


def test_plans_of_one_name_are_runs_of_their_own_in_the_cost(room: ParityLab) -> None:
    network = room.make_teacher()
    plans = [curriculum.from_labels("same"), *(curriculum.extracted(network, steps=n, name="same") for n in (5, 7))]
    for plan in (*plans, *plans):
        room.arm(plan)
    names = {f"same{what}{number}" for what in ("", ", sweep") for number in ("", " (2)", " (3)")}
    assert set(room.used) == names
    assert len({run.key for run in room.used.values()}) == 6


def test_a_sweep_that_goes_on_counts_in_the_cost(room: ParityLab) -> None:
    room.merit, room.settings.learning_rates, room.settings.extensions = stats.lowest_loss, [1e-4, 2e-4], 2
    arm = room.arm(curriculum.from_labels())
    outside = [run for name, run in room.used.items() if name.startswith("labels, sweep (")]
    assert {run.students.learning_rates[0] for run in outside} == set(arm.tried) - {1e-4, 2e-4}
    assert len(outside) >= 1 and arm.run.students.learning_rates == (arm.learning_rate,)


def test_asking_twice_trains_once(room: ParityLab, monkeypatch: pytest.MonkeyPatch) -> None:
    first = room.arm(curriculum.from_labels())
    monkeypatch.setattr("kdutils.lab.training._Loop", None)
    again = room.arm(curriculum.from_labels())
    assert again.run.key == first.run.key and again.learning_rate == first.learning_rate


def test_a_watched_student_is_kept_from_its_start_to_the_end_of_the_budget(room: ParityLab) -> None:
    plan = curriculum.from_labels()
    for run in (room.watch(plan, 1.0), room.watch(plan, 1.0)):  # trained, then found again
        assert (run.students.seeds, run.students.learning_rates) == ((1,), (1.0,))
        assert list(run.snapshots) == run.steps.tolist() == list(range(121))
        assert set(room.used) == {"labels, watched"}
        start = ParityLab._parts(room.settings)[2]
        with seeding.global_rng(1, "init"):
            assert torch.equal(run.snapshots[0]["hidden.weight"][0], start().hidden.weight)
        assert torch.equal(run.snapshots[120]["hidden.weight"], run.students.parameters["hidden.weight"])


def test_a_watched_students_start_has_the_buffers_of_its_start(room: ParityLab) -> None:
    def normed() -> nn.Module:
        return nn.Sequential(nn.Linear(room.settings.d, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))

    room.make_student, room.mode = normed, "train"
    run = room.watch(curriculum.from_labels(), 0.1)
    start, end = (run.network(step=step)[1].running_mean for step in (0, 120))
    assert (start == 0).all() and (end != 0).all()


def test_late_checkpoint_is_past_the_jump_and_before_the_end(fake_run: Callable[..., Run]) -> None:
    run = fake_run([[0.5], [0.6], [0.995], [0.98], [0.999], [1.0]], [1], every=10)
    run.snapshots.update(dict.fromkeys(run.steps.tolist()))
    done, last = run.steps[2], run.steps[-1]
    assert done < ParityLab.checkpoint_late(run) < last
    never = fake_run([[0.5], [0.5], [0.5]], [1], every=10)
    never.snapshots.update(dict.fromkeys(never.steps.tolist()))
    assert ParityLab.checkpoint_late(never) == never.steps[-2]
    never.snapshots.clear()
    with pytest.raises(ValueError, match=r"kept no checkpoint.* keep_every has to be at most teacher_steps"):
        ParityLab.checkpoint_late(never)


def test_checkpoint_nearest_to_an_accuracy(fake_run: Callable[..., Run]) -> None:
    run = fake_run([[0.5], [0.55], [0.8], [0.97]], [1], every=10)
    run.snapshots.update(dict.fromkeys([10, 15, 20, 30]))
    assert [ParityLab.checkpoint_near(run, a) for a in (0.0, 0.6, 0.75, 1.0)] == [10, 10, 20, 30]


HEADS = {
    "d": 4, "k": 1, "layers": 2, "head_width": 2, "teacher_heads": 4, "student_heads": 2, "teacher_batch": 32,
    "teacher_learning_rate": 0.01, "teacher_steps": 80, "keep_every": 40, "learning_rates": [0.003, 0.01],
    "steps": 40, "hidden_steps": [5], "batch": 16, "evaluate_every": 20, "held_out": 128, "tuning_seeds": [100],
}  # fmt: skip


@pytest.fixture
def hall(tmp_path: Path) -> ParityLab:
    """The room of transformers."""
    settings = profiles.load("transformer_parity", "smoke", device="cpu", seeds=[1, 2], overrides=HEADS)
    return TransformerParityLab(settings, Store(tmp_path / "hall"))


def test_transformers_are_of_the_shape_the_settings_say(room: ParityLab, hall: ParityLab) -> None:
    assert (room.task.tokens, hall.task.tokens) == (False, True)
    assert (room.optimiser, hall.optimiser) == (SGD(), Adam())
    for network, heads in ((hall.make_teacher(), 4), (hall.make_student(), 2)):
        assert isinstance(network, Transformer)
        assert (len(network.blocks), network.blocks[0].heads, network.context) == (2, heads, 4)
        assert network.embed.weight.shape == (2, 2 * heads)  # two tokens; heads as wide as the settings say
        assert network.causal and network.last and network.readout.out_features == 2


def test_the_support_of_transformers_is_the_first_bits_or_drawn(hall: ParityLab) -> None:
    assert hall.task.support == (0,)
    found = []
    for seed in range(8):
        room = hall.varied(d=12, k=3, support="random", support_seed=seed)
        assert room.task == replace(SparseParity.with_random_support(12, 3, seed), tokens=True)
        x, y = room.task.sample(64, seeding.generator(0, "x"))
        assert torch.equal(x[:, list(room.task.support)].sum(1) % 2, y)  # tokens are 1 for -1
        found.append(room.task.support)
    assert len(set(found)) > 5
    with pytest.raises(ValueError, match="support is 'first' or 'random', not 'last'"):
        hall.varied(support="last")


def test_an_arm_of_transformers_from_end_to_end(hall: ParityLab) -> None:
    """With k = 1 the label is one of the tokens: the teacher has it well within 80 steps."""
    trained = hall.teacher()
    assert trained.accuracy[-1, 0] >= lab.THRESHOLD and set(trained.snapshots) == {40, 80}
    assert trained.settings["batch"] == 32 and trained.settings["held_out"] == 128
    pairs = curriculum.paired_blocks(2, 2)
    arm = hall.arm(curriculum.extracted(trained.network(), pairs, hall.settings.hidden_steps[0]))
    assert arm.seeds == arm.run.students.seeds == (1, 2) and arm.run.budget == 40 * 16
    assert [stage[1:2] for stage in arm.run.stages] == [(0,), (5,), (10,)]
    assert np.isfinite(arm.loss).all() and (np.diff(arm.run.flops) > 0).all()
    assert set(hall.used) == {"teacher", "extraction", "extraction, sweep"}
