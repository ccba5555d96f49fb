import ctypes
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdutils import curriculum, reading, seeding
from kdutils.curriculum import Curriculum, Stage
from kdutils.lab import store
from kdutils.lab.ensemble import Ensemble
from kdutils.lab.training import DivergenceError, Run, train
from kdutils.signals import Bound, Hidden, Labels, Output, Regressed, Signal, WeightedSum
from kdutils.tasks.models import MLP
from kdutils.tasks.parity import SparseParity
from kdutils.tasks.sampling import BLOCK

TASK = SparseParity(6, 2)
TEACHER = MLP(6, 24)
OPTIONS = {"steps": 20, "batch": 8, "evaluate_every": 5, "held_out": 128}


def group(rates: tuple[float, ...] = (0.1, 0.5), seeds: tuple[int, ...] = (1, 2)) -> Ensemble:
    return Ensemble(partial(MLP, 6, 8), seeds, rates)


def fit(plan: Curriculum, students: Ensemble | None = None, **options: object) -> Run:
    return train(students or group(), TASK, plan, **{**OPTIONS, **options})


def test_a_step_is_plain_sgd_on_the_seeds_own_samples() -> None:
    run = fit(curriculum.from_labels(), steps=6)
    for member in range(4):
        network = group().member(member).train()
        stream = seeding.generator(run.students.seed_of(member), "data")
        optimiser = torch.optim.SGD(network.parameters(), run.students.learning_rate_of(member))
        for _ in range(6):
            x, y = TASK.sample(8, stream)
            optimiser.zero_grad()
            F.cross_entropy(network(x), y).backward()
            optimiser.step()
        for name, parameter in network.named_parameters():
            torch.testing.assert_close(run.students.parameters[name][member], parameter.detach())


def test_nothing_is_reset_between_stages() -> None:
    whole = fit(curriculum.from_labels())
    parts = fit(Curriculum("parts", (Stage(Labels(), 5), Stage(Labels(), 10), Stage(Labels()))))
    assert np.array_equal(whole.accuracy, parts.accuracy) and np.array_equal(whole.loss, parts.loss)
    assert store.digest(whole.students.parameters) == store.digest(parts.students.parameters)
    assert [stage[1:] for stage in parts.stages] == [(0, 5), (5, 15), (15, 20)]


def test_stages_end_with_an_evaluation() -> None:
    run = fit(Curriculum("x", (Stage(Labels(), 3), Stage(Labels(), 9), Stage(Labels()))), steps=18)
    assert run.steps.tolist() == [0, 3, 5, 10, 12, 15, 18]
    assert run.samples.tolist() == [8 * step for step in run.steps]
    assert run.stages == [("labels", 0, 3), ("labels", 3, 12), ("labels", 12, 18)]


def test_a_run_is_a_function_of_its_settings() -> None:
    """The global generator has no say."""
    torch.manual_seed(1)
    first = fit(curriculum.extracted(TEACHER, steps=5))
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = fit(curriculum.extracted(TEACHER, steps=5))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(first.loss, second.loss) and np.array_equal(first.flops, second.flops)
    final = store.digest(first.students.parameters)
    assert final == store.digest(second.students.parameters) != store.digest(group().parameters)
    assert first.key == second.key


def test_a_snapshot_is_the_shorter_run() -> None:
    long, short = fit(curriculum.one_shot(TEACHER), keep_every=5), fit(curriculum.one_shot(TEACHER), steps=10)
    assert sorted(long.snapshots) == [5, 10, 15, 20]
    for member in range(4):
        then, end = long.network(member, 10), short.network(member)
        assert store.digest(then.state_dict()) == store.digest(end.state_dict())
    assert store.digest(long.network(1, 20).state_dict()) == store.digest(long.network(1).state_dict())
    with pytest.raises(ValueError, match=r"no snapshot at step 7; kept are \[5, 10, 15, 20\]"):
        long.network(1, 7)


def test_no_snapshots_unless_asked() -> None:
    with pytest.raises(ValueError, match=r"no snapshot at step 5; kept are \[\]"):
        fit(curriculum.from_labels()).network(0, 5)


def test_curves_are_those_of_the_networks() -> None:
    run = fit(curriculum.from_labels())
    x, y = TASK.sample(128, seeding.generator(0, "held-out"))
    for member in range(4):
        logits = run.network(member)(x)
        assert run.accuracy[-1, member] == pytest.approx((logits.argmax(1) == y).float().mean().item())
        assert run.loss[-1, member] == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-5)


def test_the_students_given_are_left_alone() -> None:
    students = group()
    before = {name: p.clone() for name, p in students.parameters.items()}
    skeleton = store.digest(students.skeleton.state_dict())
    for plan in (curriculum.from_labels(), curriculum.fitnets(TEACHER, steps=5)):
        run = fit(plan, students)
        assert all(torch.equal(p, before[name]) and not p.requires_grad for name, p in students.parameters.items())
        assert not any(p.requires_grad for p in run.students.parameters.values())
    assert store.digest(students.skeleton.state_dict()) == skeleton


def test_students_can_go_on_from_another_run() -> None:
    first = fit(curriculum.from_labels(), steps=10)
    second = train(first.students, TASK, curriculum.from_labels(), **OPTIONS)
    assert np.array_equal(second.accuracy[0], first.accuracy[-1])


@pytest.mark.parametrize("every", [1, 7])
def test_divergence_names_step_member_rate_and_advice(every: int) -> None:
    students = group(rates=(0.1, 1e30))
    with pytest.raises(DivergenceError, match="smaller learning rate") as error:
        fit(curriculum.from_labels(), students, evaluate_every=every)
    found = re.search(
        r"member (\d+) \(seed (\d+), learning rate ([\d.e+]+)\).*step (\d+): try a smaller.*such as ([\d.e+]+)",
        str(error.value),
    )
    assert found is not None
    member, seed, rate, step, advice = (float(group) for group in found.groups())
    assert (students.seed_of(int(member)), students.learning_rate_of(int(member))) == (seed, rate)
    assert member == 2  # the first of the two
    assert rate == 1e30 and advice < rate
    assert step == 2  # the first loss is of the initial weights; the second multiplies weights of about 1e30 twice


@pytest.mark.parametrize("until", [0.0, 0.5])
def test_until_waits_for_the_last_stage(until: float) -> None:
    run = fit(Curriculum("x", (Stage(Labels(), 12), Stage(Labels()))), until=until)
    assert 12 < run.steps[-1] < 20
    assert run.stages[-1][2] == run.steps[-1] and run.budget == 20 * 8


@pytest.mark.parametrize("until", [0.9, 0.99])
def test_until_needs_every_seed_of_one_rate(until: float) -> None:
    """And parity is learned."""
    students = Ensemble(partial(MLP, 6, 32), [1, 2], [1e-4, 0.5])
    run = fit(curriculum.from_labels(), students, steps=3000, batch=32, until=until)
    assert run.steps[-1] < 3000
    best = run.accuracy.max(0)
    assert (best[2:] >= until).all() and (best[:2] < 0.9).all()
    assert (run.accuracy[:-1].max(0)[2:] < until).any()


def test_until_out_of_reach_changes_nothing() -> None:
    assert np.array_equal(fit(curriculum.from_labels(), until=1.1).loss, fit(curriculum.from_labels()).loss)


def test_too_small_a_budget_is_refused_before_training() -> None:
    with pytest.raises(ValueError, match="at least 21 steps; the budget is 20"):
        fit(curriculum.extracted(TEACHER, steps=20))


def test_steps_that_the_stages_leave_are_refused() -> None:
    plan = Curriculum("closed", (Stage(Labels(), 2), Stage(Labels(), 3)))
    with pytest.raises(ValueError, match="'closed' ends after 5 of 9 steps: leave its last stage open"):
        fit(plan, steps=9)
    assert fit(plan, steps=5).steps[-1] == 5


@pytest.mark.parametrize("students", [group((0.1,), (1,)), group()], ids=["one", "four"])
def test_flops_of_an_mlp_by_hand(students: Ensemble) -> None:
    """Products of 2 operations a multiply-add; see `test_cost` for what is counted."""
    d, w, c, big = 6, 8, 2, 24
    forward, weights, readout_input = 2 * (d * w + w * c), 2 * (d * w + w * c), 2 * w * c
    labels, shot = fit(curriculum.from_labels(), students), fit(curriculum.one_shot(TEACHER), students)
    assert np.array_equal(np.diff(labels.flops), [5 * 8 * (forward + weights + readout_input)] * 4)
    assert np.array_equal(np.diff(shot.flops), np.diff(labels.flops) + 5 * 8 * 2 * (d * big + big * c))
    extraction = fit(curriculum.extracted(TEACHER, steps=15), students)
    teacher_and_projection, student = 2 * (d * big + big * w), 2 * (2 * d * w)  # neither goes on to its readout
    assert np.array_equal(np.diff(extraction.flops)[:3], [5 * 8 * (teacher_and_projection + student)] * 3)
    assert np.diff(extraction.flops)[3] == np.diff(shot.flops)[3]
    assert labels.flops[0] == shot.flops[0] == extraction.flops[0] == 0


class Apart:
    """Students of whom every signal asks for passes of its own."""

    def __init__(self, students: Ensemble) -> None:
        self.students = students.clone()

    def __getattr__(self, name: str) -> object:
        return getattr(self.students, name)


@dataclass(frozen=True)
class Alone:
    """A signal that shares no pass of its teacher with others."""

    signal: Signal

    def bind(self, students: Ensemble, x: torch.Tensor, y: torch.Tensor) -> Bound:
        return self.signal.bind(Apart(students), x, y)


def test_several_signals_of_a_stage_read_their_teacher_in_one_pass() -> None:
    layers = [Output(TEACHER), Hidden(TEACHER, "hidden", "hidden"), Hidden(TEACHER)]
    shared, apart = (
        fit(Curriculum("both", (Stage(WeightedSum(tuple((0.5, kind(s)) for s in layers))),)))
        for kind in (lambda signal: signal, Alone)
    )
    assert np.array_equal(shared.loss, apart.loss)
    assert store.digest(shared.students.parameters) == store.digest(apart.students.parameters)
    forward = 2 * (6 * 24 + 24 * 2)
    assert np.array_equal(np.diff(apart.flops) - np.diff(shared.flops), [5 * 8 * 2 * 2 * 6 * 24] * 4)  # two to a layer
    one = fit(Curriculum("one", (Stage(Output(TEACHER)),)))
    projections = 2 * 2 * 24 * 8
    assert np.array_equal(np.diff(shared.flops), np.diff(one.flops) + 5 * 8 * projections)
    assert np.diff(one.flops)[0] > 5 * 8 * forward


PLANS = [
    curriculum.from_labels(),
    curriculum.extracted(TEACHER, steps=10),
    curriculum.fitnets(TEACHER, steps=10),
    curriculum.joint(TEACHER, 1.0),
]


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.name)
def test_every_method_goes_through_the_loop_to_the_end(plan: Curriculum) -> None:
    run = fit(plan, steps=40)
    assert np.isfinite(run.loss).all() and np.isfinite(run.accuracy).all()
    assert run.steps[-1] == run.stages[-1][2] == 40


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.name)
def test_flops_grow_and_do_not_depend_on_how_many_train_together(plan: Curriculum) -> None:
    one, many = fit(plan, group((0.1,), (1,))), fit(plan, group((0.1, 0.2), (1, 2, 3)))
    assert (np.diff(one.flops) > 0).all()
    np.testing.assert_allclose(one.flops, many.flops)


@dataclass(frozen=True)
class Zero:
    """A signal of no cost of its own: outputs of one of the student's layers should vanish."""

    layer: str

    def bind(self, students: Ensemble, x: torch.Tensor, y: torch.Tensor | None = None) -> Bound:
        return Bound(
            (self.layer,), lambda x, y: y, lambda values, target: values[self.layer].square().flatten(1).mean(1)
        )


def test_a_hidden_stage_spares_the_student_the_layers_above() -> None:
    run = fit(Curriculum("x", (Stage(Zero("act"), 10), Stage(Zero(reading.OUTPUT)))))
    hidden, output = np.diff(run.flops)[0], np.diff(run.flops)[-1]
    assert hidden == 5 * 8 * 2 * (2 * 6 * 8)
    assert hidden < output


@pytest.mark.parametrize("signal", [Zero("act"), Hidden(TEACHER), Regressed(TEACHER)], ids=lambda s: type(s).__name__)
def test_a_hidden_stage_leaves_the_layers_above_alone(signal: Signal) -> None:
    """Whatever the signal: a new one needs no change elsewhere."""
    run = fit(Curriculum("x", (Stage(signal, 10), Stage(Labels()))), keep_every=10)
    start, middle, end = group().parameters, run.snapshots[10], run.snapshots[20]
    for name in ("weight", "bias"):
        assert torch.equal(start[f"readout.{name}"], middle[f"readout.{name}"])
        assert not torch.equal(middle[f"readout.{name}"], end[f"readout.{name}"])
        assert not torch.equal(start[f"hidden.{name}"], middle[f"hidden.{name}"])


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.drop, self.readout = nn.Linear(6, 16), nn.Dropout(0.5), nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.readout(self.drop(self.hidden(x).relu()))


def test_students_are_evaluated_in_eval_mode() -> None:
    run = fit(curriculum.from_labels(), Ensemble(Dropping, [1, 2]))
    x, y = TASK.sample(128, seeding.generator(0, "held-out"))
    losses = [F.cross_entropy(run.network(member)(x), y).item() for member in range(2)]
    np.testing.assert_allclose(run.loss[-1], losses, rtol=1e-4)


@pytest.mark.parametrize("seeds", [(1,), (1, 2)])
def test_students_with_dropout_do_not_read_the_global_generator(seeds: tuple[int, ...]) -> None:
    losses = []
    for state in (1, 2):
        torch.manual_seed(state)
        losses.append(fit(curriculum.from_labels(), Ensemble(Dropping, seeds)).loss)
    assert np.array_equal(*losses)


def test_bar_is_shown_only_when_asked(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDUTILS_QUIET", "1")
    fit(curriculum.from_labels())
    assert capsys.readouterr().err == ""
    fit(curriculum.from_labels(), progress=True)
    assert "labels" in capsys.readouterr().err


def test_each_seed_sees_its_own_samples() -> None:
    seen: list[torch.Tensor] = []

    @dataclass(frozen=True)
    class Recording:
        def sample(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
            x, y = TASK.sample(n, generator)
            seen.append(x)
            return x, y

    train(group(), Recording(), curriculum.from_labels(), **{**OPTIONS, "steps": BLOCK + 1})
    batches = [part for x in seen if len(x) == BLOCK * OPTIONS["batch"] for part in x.split(OPTIONS["batch"])]
    assert len(batches) == 2 * BLOCK * 2  # steps, seeds: learning rates share samples
    assert all(not torch.equal(a, b) for i, a in enumerate(batches) for b in batches[:i])


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None) if sys.platform != "win32" else None, "mallinfo2"),
    reason="other C libraries than glibc (2.33 or newer) are left as they are",
)
def test_training_keeps_freed_memory() -> None:
    """In a process of its own. A large block is mapped anew each time; after a training, larger ones are kept."""
    program = """
import ctypes, torch
from kdutils import curriculum
from kdutils.lab import ensemble, training
from kdutils.tasks import models, parity

NAMES = "arena ordblks smblks hblks mapped usmblks fsmblks uordblks fordblks keepcost".split()
Info = type("Info", (ctypes.Structure,), {"_fields_": [(name, ctypes.c_size_t) for name in NAMES]})
libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info

def mapped(numbers):
    start = libc.mallinfo2().mapped
    block = torch.empty(numbers)
    return libc.mallinfo2().mapped - start

before = mapped(5_000_000)  # once freed, blocks of up to 20 MB are kept
students = ensemble.Ensemble(lambda: models.MLP(6, 8), [0])
training.train(students, parity.SparseParity(6, 2), curriculum.from_labels(), steps=1, progress=False)
print(before, mapped(7_000_000))
"""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}  # Dask sets some
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=plain)
    before, after = map(int, done.stdout.split())
    assert before >= 4 * 5_000_000
    assert after == 0


def test_a_run_whose_last_update_ruins_it_has_diverged() -> None:
    with pytest.raises(
        DivergenceError, match=r"learning rate 1e\+30\) was not a finite number at step 1: try a smaller"
    ):
        fit(curriculum.from_labels(), group(rates=(0.1, 1e30)), steps=1, evaluate_every=1)
