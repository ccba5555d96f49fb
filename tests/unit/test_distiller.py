"""One network in any loop: what a Distiller does to it is what an ensemble of one does."""

import contextlib
import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from kdutils import curriculum, fingerprints, projections, recorded, seeding
from kdutils.curriculum import Curriculum, Stage
from kdutils.distiller import Distiller
from kdutils.lab.ensemble import Ensemble
from kdutils.lab.training import train
from kdutils.losses import IGNORE
from kdutils.probes.mediation import Shuffled
from kdutils.signals import Bound, Hidden, Labels, Output, Regressed, WeightedSum
from kdutils.tasks.models import MLP, Transformer
from kdutils.tasks.sampling import Samples

WORDS, LENGTH, PAD = 11, 6, 0


@dataclass(frozen=True)
class Numbers:
    def sample(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(n, 6, generator=generator)
        return x, (x[:, 0] * x[:, 1] > 0).long()


@dataclass(frozen=True)
class Tokens:
    """Some positions are padding, and not all are asked."""

    def sample(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randint(1, WORDS, (n, LENGTH), generator=generator)
        x = x.masked_fill(torch.arange(LENGTH) >= torch.randint(3, LENGTH + 1, (n, 1), generator=generator), PAD)
        asked = (torch.rand(n, LENGTH, generator=generator) < 0.7) & (x != PAD)
        return x, torch.where(asked, x.roll(-1, 1), IGNORE)


def built(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    with seeding.global_rng(seed, "init"):
        return make()


def transformer(width: int) -> nn.Module:
    return Transformer(WORDS, width, 2, 2, LENGTH, causal=False, padding=PAD)


NETWORKS = {"MLP": (partial(MLP, 6), Numbers(), "act"), "Transformer": (transformer, Tokens(), "blocks.0")}
PROJECTIONS = ("gaussian", "rademacher", "sparse", "orthonormal", "neurons", "pca")
SIGNALS: dict[str, Callable[[nn.Module, str], Any]] = {
    "labels": lambda teacher, at: Labels(),
    "output": lambda teacher, at: Output(teacher),
    "tempered": lambda teacher, at: Output(teacher, 2.0, 2.0),
    "shared": lambda teacher, at: Output(teacher, share=0.3),
    **{p: (lambda teacher, at, p=p: Hidden(teacher, at, at, getattr(projections, p))) for p in PROJECTIONS},
    "position": lambda teacher, at: Hidden(teacher, at, at, normalise="position"),
    "redrawn": lambda teacher, at: Hidden(teacher, at, at, redraw=True),
    "regressed": lambda teacher, at: Regressed(teacher, at, at),
    "joint": lambda teacher, at: WeightedSum(((1.0, Output(teacher)), (0.5, Hidden(teacher, at, at)))),
    "joint regressed": lambda teacher, at: WeightedSum(((1.0, Labels()), (0.5, Regressed(teacher, at, at)))),
    "shuffled": lambda teacher, at: Shuffled(Hidden(teacher, at, at)),
}
POSITIONS = {p: (lambda teacher, at, p=p: Hidden(teacher, at, at, positions=p)) for p in ("asked", "tokens")}
POSITIONS["regressed asked"] = lambda teacher, at: Regressed(teacher, at, at, positions="asked")
CASES = [(n, s) for n in NETWORKS for s in SIGNALS] + [("Transformer", s) for s in POSITIONS]


def steps_of(distiller: Distiller, optimiser: torch.optim.Optimizer, batches: Any, first: int = 0) -> list[float]:
    told = []
    for step, (x, y) in enumerate(batches, first):
        loss = distiller(x, y, step)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        told.append(loss.item())
    return told


@pytest.mark.parametrize(("network", "signal"), CASES)
def test_a_loop_follows_an_ensemble_of_one(network: str, signal: str) -> None:
    make, task, at = NETWORKS[network]
    teacher, seed, rate = built(partial(make, 16), 9), 3, 0.3 if network == "MLP" else 0.02
    stages = Stage({**SIGNALS, **POSITIONS}[signal](teacher, at), 6), Stage(Output(teacher))
    plan = Curriculum(signal, stages)
    lone = Ensemble(partial(make, 8), seeds=[seed], learning_rates=[rate])
    run = train(lone, task, plan, steps=10, batch=16, held_out=32, keep_every=1)

    size = 1024 if network == "MLP" else max(64, 1024 // LENGTH)  # as the lab's first stage reads it
    x, y = task.sample(size, seeding.generator(seed, "calibration", 0))
    distiller = Distiller(built(partial(make, 8), seed), plan, total=10, calibration=x, calibration_labels=y, seed=seed)
    optimiser, samples = torch.optim.SGD(distiller.parameters(), rate), Samples(task, (seed,), 16, torch.device("cpu"))
    for step in range(10):
        x, y = (part[0] for part in samples.next())
        steps_of(distiller, optimiser, [(x, y)], step)
        for name, parameter in distiller.student.named_parameters():
            expected = run.snapshots[step + 1][name][0]
            torch.testing.assert_close(parameter.detach(), expected, rtol=1e-5, atol=1e-6, msg=f"{name}, step {step}")


class Net(nn.Module):
    """Two blocks and a head, with whatever form of inputs and outputs, dropout, and checkpointing."""

    def __init__(self, width: int, form: str = "tensor", dropout: float = 0.0) -> None:
        super().__init__()
        self.first, self.second = (nn.Sequential(nn.Linear(6, width), nn.Tanh()), nn.Linear(width, width))
        self.drop, self.head, self.form, self.saving = nn.Dropout(dropout), nn.Linear(width, 2), form, False

    def _block(self, h: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(h).sin())

    def forward(self, x: torch.Tensor, shift: torch.Tensor | None = None, **_: Any) -> Any:
        x = x if shift is None else x + shift
        h = checkpoint(self._block, x, use_reentrant=False) if self.saving and self.training else self._block(x)
        out = self.head(self.drop(h))
        return {"logits": out} if self.form == "dict" else out


def net(width: int, seed: int = 0, **fields: Any) -> Net:
    return built(partial(Net, width, **fields), seed)


def numbers(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    return Numbers().sample(n, seeding.generator(seed, "batch"))


def batches(count: int = 12, first: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [numbers(16, seed) for seed in range(first, count)]


CALIBRATION = numbers(64, 99)[0]
PAIRS = [("first", "first"), ("second", "second")]


def host(student: nn.Module, plan: Curriculum, total: int = 12, **fields: Any) -> Distiller:
    return Distiller(student, plan, **{"total": total, "calibration": CALIBRATION, **fields})


def extraction(teacher: nn.Module | None = None, steps: int = 4, **fields: Any) -> Curriculum:
    return curriculum.extracted(teacher or net(16, 7), PAIRS, steps, **fields)


def weights(distiller: Distiller) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in distiller.student.state_dict().items()}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_a_batch_may_be_a_tensor_a_mapping_or_a_tuple() -> None:
    teacher, (x, y), told = net(16, 7), numbers(16, 1), []
    for form, batch in [("tensor", x), ("dict", {"x": x}), ("tensor", (x,)), ("tensor", [x, None])]:
        calibration = {"x": CALIBRATION} if isinstance(batch, dict) else (CALIBRATION,)
        distiller = host(net(8, form=form), extraction(teacher), calibration=calibration)
        told.append([distiller(batch, y, step).item() for step in (0, 5, 11)])
    assert told == told[:1] * 4


def test_what_a_stage_does_not_reach_stays_though_weights_decay() -> None:
    distiller = host(net(8), extraction())
    optimiser, before = torch.optim.AdamW(distiller.parameters(), 0.01, weight_decay=0.5), weights(distiller)
    steps_of(distiller, optimiser, batches(8))
    after = weights(distiller)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if not name.startswith("head")}
    steps_of(distiller, optimiser, batches(12, 8), 8)
    assert not torch.equal(distiller.student.head.weight, before["head.weight"])


def test_a_stage_may_move_only_some_parameters() -> None:
    plan = Curriculum("readout last", (Stage(Labels(), 3), Stage(Labels(), 3, only=("head",))))
    distiller = host(net(8), plan, total=6)
    optimiser = torch.optim.AdamW(distiller.parameters(), 0.01, weight_decay=0.5)
    steps_of(distiller, optimiser, batches(3))
    before = weights(distiller)
    steps_of(distiller, optimiser, batches(6, 3), 3)
    after = weights(distiller)
    assert {n for n in before if not torch.equal(before[n], after[n])} == {"head.weight", "head.bias"}
    with pytest.raises(ValueError, match=r"only=\('haed',\) names no parameter .* near it are \['head.bias'"):
        host(net(8), Curriculum("wrong", (Stage(Labels(), only=("haed",)),)))


def test_teachers_are_neither_saved_nor_trained_nor_moved_to_train_mode() -> None:
    teacher = net(16, 7, dropout=0.5)
    before = copy.deepcopy(teacher.state_dict())
    distiller = host(net(8), extraction(teacher))
    distiller.train()
    teacher.train()
    assert distiller(*numbers(16, 1), 0) == distiller(*numbers(16, 1), 0) and not teacher.training
    steps_of(distiller, torch.optim.SGD(distiller.parameters(), 0.1), batches())
    assert same(before, dict(teacher.state_dict())) and all(p.grad is None for p in teacher.parameters())
    owned = sum(p.numel() for p in distiller.student.parameters())
    assert sum(p.numel() for p in distiller.parameters()) == owned
    assert not any(key.startswith("student.") and "teacher" in key for key in distiller.state_dict())
    assert set(net(8).state_dict()) == set(distiller.student.state_dict())


def test_the_student_trains_with_its_own_dropout() -> None:
    distiller, (x, y) = host(net(8, dropout=0.5), curriculum.from_labels()), numbers(16, 1)
    assert distiller(x, y, 0) != distiller(x, y, 0)


PLANS = {
    "extraction": extraction,
    "redrawn": partial(extraction, redraw=True),
    "FitNets": lambda: curriculum.fitnets(net(16, 7), "first", "first", 6),
    "joint": lambda: curriculum.joint(net(16, 7), 0.5, "first", "first"),
}


@pytest.mark.parametrize("at", [2, 4, 6, 11])
@pytest.mark.parametrize("plan", PLANS)
def test_a_resumed_run_ends_bit_for_bit_where_the_whole_one_does(plan: str, at: int) -> None:
    def start() -> tuple[Distiller, torch.optim.Optimizer]:
        distiller = host(net(8), PLANS[plan]())
        return distiller, torch.optim.Adam(distiller.parameters(), 0.01)

    whole, optimiser = start()
    assert whole.step == -1
    steps_of(whole, optimiser, batches(at))
    saved = copy.deepcopy((whole.state_dict(), optimiser.state_dict()))
    steps_of(whole, optimiser, batches(12, at), at)

    resumed, optimiser = start()
    resumed.student.load_state_dict(net(8, seed=5).state_dict())
    resumed.load_state_dict(saved[0])
    optimiser.load_state_dict(saved[1])
    assert resumed.step == at - 1
    steps_of(resumed, optimiser, batches(12, at), at)
    assert same(weights(whole), weights(resumed))


def test_a_resumed_run_keeps_its_targets_whatever_calibrates_it_now() -> None:
    whole = host(net(8), extraction())
    other = host(net(8), extraction(), calibration=numbers(64, 5)[0])
    assert whole(*numbers(16, 1), 0) != other(*numbers(16, 1), 0)
    other.load_state_dict(whole.state_dict())
    assert whole(*numbers(16, 1), 0) == other(*numbers(16, 1), 0)


@pytest.mark.parametrize("saving", [False, True])
@pytest.mark.parametrize("step", [0, 4, 11])
def test_gradient_checkpointing_changes_nothing(saving: bool, step: int) -> None:
    plain, student = host(net(8), extraction()), net(8)
    student.saving = saving
    saver = host(student, extraction())
    for distiller in (plain, saver):
        distiller(*numbers(16, 1), step).backward()
    for (name, one), two in zip(plain.student.named_parameters(), student.parameters(), strict=True):
        assert (one.grad is None) == (two.grad is None), name
        if one.grad is not None:
            torch.testing.assert_close(one.grad, two.grad)


def test_accumulated_micro_batches_are_the_whole_batch() -> None:
    whole, parts, (x, y) = host(net(8), extraction()), host(net(8), extraction()), numbers(16, 1)
    for step in (1, 11):
        whole(x, y, step).backward()
        for half in (slice(8), slice(8, 16)):
            (parts(x[half], y[half], step) / 2).backward()
    for one, two in zip(whole.student.parameters(), parts.student.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)


def test_autocast_and_half_precision_teachers() -> None:
    x, y = numbers(64, 1)
    exact, rough = (host(net(8), extraction(t, steps=4)) for t in (net(16, 7), net(16, 7).bfloat16()))
    fitted = host(net(8), PLANS["FitNets"]())
    for step in (0, 5, 11):
        expected, close = exact(x, y, step), rough(x, y, step)
        with torch.autocast("cpu", torch.bfloat16):
            cast, learned = exact(x, y, step), fitted(x, y, step)
        assert cast.dtype == close.dtype == learned.dtype == torch.float32
        learned.backward()
        for value in (cast, close):  # bfloat16 has eight bits, and so do the teacher's weights
            torch.testing.assert_close(value, expected, rtol=0.1, atol=0.01)


@pytest.mark.parametrize("inside", [True, False])
def test_a_compiled_student_is_read_right(inside: bool) -> None:
    """Compiled code skips hooks that come later: hidden stages run as written, the output stage compiled."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Callable:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    plain, student = host(net(8), extraction()), net(8)
    if inside:
        student.compile(backend=backend)
    else:
        student = torch.compile(student, backend=backend)
    student(numbers(16, 1)[0])  # compiled before any hook is there
    assert graphs
    compiled, whole = host(student, extraction()), torch.compile(host(net(8), extraction()), backend=backend)
    for step in (0, 4, 11, 5):
        expected = plain(*numbers(16, 1), step)
        torch.testing.assert_close(compiled(*numbers(16, 1), step), expected)
        torch.testing.assert_close(whole(*numbers(16, 1), step), expected)
    torch.compiler.reset()
    graphs.clear()
    compiled(*numbers(16, 1), 0)
    assert not graphs
    compiled(*numbers(16, 1), 11)
    assert graphs


def test_a_mask_says_which_positions_count() -> None:
    """As an entry of the batch, as a function, or as the signal's own positions: the same."""

    class Masked(Transformer):
        def forward(self, tokens: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
            return super().forward(tokens)

    make = partial(Masked, WORDS, heads=2, layers=2, context=LENGTH, causal=False, padding=PAD)
    x, y = Tokens().sample(16, seeding.generator(0, "batch"))
    calibration, teacher, told = (
        Tokens().sample(64, seeding.generator(1, "batch"))[0],
        built(partial(make, width=16), 1),
        {},
    )
    batch, first = ({"tokens": t, "kept": (t != PAD).long()} for t in (x, calibration))
    for name, mask in {"entry": "kept", "function": lambda b: b["tokens"] != PAD, "none": None}.items():
        plan = curriculum.extracted(teacher, [("blocks.0", "blocks.0")], 5)
        distiller = Distiller(built(partial(make, width=8), 2), plan, total=9, calibration=first, mask=mask)
        told[name] = distiller(batch, y, 0).item()
    plan = curriculum.extracted(teacher, [("blocks.0", "blocks.0")], 5, positions="tokens")
    ids = Distiller(built(partial(make, width=8), 2), plan, total=9, calibration=calibration)
    assert told["entry"] == told["function"] == ids(x, y, 0).item() != told["none"]
    plan = curriculum.extracted(teacher, [("blocks.0", "blocks.0")], 5)
    for mask, wrong in {
        "keep": "no entry 'keep'",
        lambda b: b["tokens"][0] != PAD: r"mask of positions must have the shape \(64, 6\) of the layer, not \(6,\)",
    }.items():
        with pytest.raises(ValueError, match=wrong):
            Distiller(built(partial(make, width=8), 2), plan, total=9, calibration=first, mask=mask)


def pictures(channels: int) -> nn.Module:
    layers = nn.Conv2d(1, channels, 3), nn.BatchNorm2d(channels), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)
    network = nn.Sequential(*layers)
    network(torch.zeros(2, 1, 6, 6))
    return network


def test_batch_norm_runs_in_train_mode_and_only_on_what_is_trained_on() -> None:
    student, x = pictures(3), torch.randn(16, 1, 6, 6)
    before = student[1].running_mean.clone()
    plan = curriculum.extracted(pictures(8), [("2", "2")], steps=5)
    distiller = host(student, plan, total=9, calibration=torch.randn(32, 1, 6, 6), units=1)
    assert torch.equal(student[1].running_mean, before) and student.training
    distiller(x, torch.zeros(16).long(), 0)
    assert not torch.equal(student[1].running_mean, before)
    with pytest.raises(ValueError, match="say which dimension holds the units"):
        host(pictures(3), plan, total=9, calibration=torch.randn(32, 1, 6, 6))


def refused(action: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        action()
    assert "\n" not in str(caught.value)


def test_what_is_refused_with_one_clear_line() -> None:
    x, y = numbers(16, 1)
    refused(lambda: host(net(8), extraction(steps=6)), "'extraction' needs at least 13 steps; the budget is 12")
    refused(lambda: host(net(8), extraction(), total=0), "total must be a whole number from 1 on, not 0")
    distiller = host(net(8), extraction())
    for step in (-1, 12, 1.5, True, None):
        refused(
            lambda step=step: distiller(x, y, step), f"step {step} is out of range: this curriculum has steps 0 to 11"
        )
    distiller.eval()
    refused(lambda: distiller(x, y, 0), r"the student is in eval mode: call train\(\)")
    unknown = curriculum.extracted(net(16, 7), [("first", "frist")], 4)
    refused(lambda: host(net(8), unknown), "Net has no layer 'frist'; its layers are 'first', ")
    refused(lambda: curriculum.extracted(net(16, 7), [("frist", "first")], 4), "Net has no layer 'frist'")
    labelled = host(net(8), curriculum.from_labels())
    refused(lambda: labelled(x, None, 0), "stage 1 learns from labels: give whole numbers, not NoneType")
    refused(lambda: labelled(x, y.float(), 0), "stage 1 learns from labels: give whole numbers, not torch.float32")
    refused(lambda: labelled(x, y[:, None], 0), r"outputs \(16, 2\) need labels \(16,\), not \(16, 1\)")
    student = net(8)
    refused(lambda: host(student, curriculum.one_shot(student)), "the teacher is the student itself")
    refused(lambda: host(nn.DataParallel(net(8)), extraction()), "wrap the Distiller in DataParallel instead")
    refused(lambda: host(nn.Tanh(), extraction()), "a Tanh, has no parameters")
    moved = host(net(8), extraction()).double()
    refused(lambda: moved(x, y, 0), "the Distiller was copied, cast or sharded after it was built")


@pytest.mark.parametrize("change", ["length", "teacher", "projection", "seed"])
def test_a_resume_with_another_plan_is_refused(change: str) -> None:
    saved = host(net(8), extraction()).state_dict()
    other = {
        "length": lambda: host(net(8), extraction(steps=3)),
        "teacher": lambda: host(net(8), extraction(net(16, 8))),
        "projection": lambda: host(net(8), extraction(projection=projections.rademacher)),
        "seed": lambda: host(net(8), extraction(), seed=1),
    }[change]()
    refused(lambda: other.load_state_dict(saved), "the saved state is of another curriculum: ")


def test_a_teacher_that_is_read_twice_runs_once() -> None:
    teacher, calls = net(16, 7), []
    distiller = host(net(8), curriculum.joint(teacher, 0.5, "first", "first"))
    teacher.register_forward_pre_hook(lambda *_: calls.append(1))
    counts = []
    for step in range(3):
        distiller(*numbers(16, step), step)
        counts.append(len(calls))
    assert counts[2] - counts[1] == 1
    assert counts[1] - counts[0] == 1


def test_a_plain_training_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        distiller = host(net(8), extraction())
        steps_of(distiller, torch.optim.SGD(distiller.parameters(), 0.1), batches(2))


def test_labels_that_were_not_shifted_are_told() -> None:
    ids = torch.randint(1, WORDS, (4, LENGTH))
    network = Transformer(WORDS, 8, 2, 1, LENGTH)
    with pytest.warns(UserWarning, match="the labels are the inputs themselves"):
        Distiller(network, curriculum.from_labels(), total=3, calibration=ids)(ids, ids, 0)


def test_a_signal_of_ones_own_and_a_recurrent_student() -> None:
    @dataclass(frozen=True)
    class Squares:
        """Regression on the teacher's numbers."""

        teacher: nn.Module

        def bind(self, students: Any, x: Any, y: Any = None) -> Bound:
            def target(x: Any, y: Any) -> torch.Tensor:
                return self.teacher(x.flatten(0, 1)).detach().unflatten(0, x.shape[:2])

            return Bound(("",), target, lambda values, t: (values[""] - t).square().flatten(1).mean(1))

    teacher, student, (x, y) = net(16, 7), net(8), numbers(16, 1)
    loss = host(student, Curriculum("squares", (Stage(Squares(teacher)),)))(x, y, 0)
    torch.testing.assert_close(loss, (student(x) - teacher(x)).square().mean())

    class Recurrent(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.embed, self.lstm = nn.Embedding(WORDS, 8), nn.LSTM(8, width, batch_first=True)
            self.head = nn.Linear(width, WORDS)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.lstm(self.embed(x))[0])

    ids = torch.randint(1, WORDS, (8, LENGTH))
    plan = curriculum.extracted(Recurrent(16), [("lstm", "lstm")], 4)
    distiller = Distiller(Recurrent(8), plan, total=8, calibration=ids)
    for step in (0, 7):
        assert distiller(ids, ids.roll(-1, 1), step).isfinite()


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_student_that_shares_with_its_teacher_is_refused(wrapped: bool) -> None:
    teacher = net(8, 1)
    seen = nn.DataParallel(teacher) if wrapped else teacher
    part = next(name for name, _ in teacher.named_children())
    borrowed, tied, frozen = net(8), net(8), net(8)
    setattr(borrowed, part, getattr(teacher, part))
    first = next(name for name, _ in teacher.named_parameters())
    path, _, leaf = first.rpartition(".")
    for student in (tied, frozen):
        setattr(student.get_submodule(path), leaf, teacher.get_parameter(first))
    for student in (borrowed, tied):
        refused(lambda s=student: host(s, curriculum.one_shot(seen)), "teacher and student share")
    teacher.get_parameter(first).requires_grad_(False)
    host(frozen, curriculum.one_shot(seen))  # what nobody trains may be shared
    refused(
        lambda: host(teacher, curriculum.one_shot(nn.Sequential(teacher))),
        "the teacher is the student itself, or its whole",
    )


def test_a_mask_counts_in_outputs_that_come_without_labels() -> None:
    student, teacher = (built(partial(transformer, width), seed) for width, seed in ((4, 1), (8, 2)))
    x, y = Tokens().sample(16, seeding.generator(0, "x"))
    distiller = host(student, curriculum.one_shot(teacher), calibration=x, mask=lambda ids: ids != PAD)
    asked = host(student, curriculum.one_shot(teacher), calibration=x)
    marks = torch.where(x == PAD, IGNORE, 0)
    assert distiller(x, None, 0) == asked(x, marks, 0) != asked(x, None, 0)
    assert distiller(x, y, 0) == asked(x, y, 0)  # labels say it themselves
    wrong = host(student, curriculum.one_shot(teacher), calibration=x, mask=lambda ids: (ids != PAD)[:, 1:])
    refused(lambda: wrong(x, None, 0), r"outputs \(16, 6, 11\) need a mask \(16, 6\), not \(16, 5\)")


def test_lists_of_signals_are_read_as_tuples_are() -> None:
    student, teacher = (built(partial(transformer, width), seed) for width, seed in ((4, 1), (8, 2)))
    x, y = Tokens().sample(16, seeding.generator(0, "x"))
    terms = [(1.0, Hidden(teacher, "blocks.0", "blocks.0")), (0.5, Labels())]
    plans = [Curriculum("both", [Stage(WeightedSum(kind(terms)))]) for kind in (list, tuple)]
    one, two = (host(student, plan, calibration=x, mask=lambda ids: ids != PAD) for plan in plans)
    assert one(x, y, 0) == two(x, y, 0) and one.drawn.text == two.drawn.text
    refused(lambda: one(x, None, 0), "stage 1 learns from labels")


@pytest.mark.parametrize("plan", [curriculum.joint, curriculum.fitnets])
def test_values_without_a_gradient_are_refused(plan: Callable) -> None:
    class Saving(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first, inner, last = self
            return last(checkpoint(inner, first(x), use_reentrant=True))

    teacher, student = (Saving(nn.Linear(6, 4), nn.Sequential(nn.Linear(4, 4)), nn.Linear(4, 2)) for _ in range(2))
    made = plan(teacher, 0.1, "1", "1") if plan is curriculum.joint else plan(teacher, "1", "1", 3)
    distiller = Distiller(student, made, total=6, calibration=numbers(32, 0)[0])
    refused(lambda: distiller(numbers(8, 1)[0], None, 0), "no gradient comes from '1' of the student: .* use_reentrant")


class Merging(nn.Linear):
    """An adapter that adds itself to the weight in eval mode, and takes itself out again in train mode."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.own = nn.Parameter(torch.zeros(outputs, inputs))
        self.weight.requires_grad_(False)
        self.merged = False

    def train(self, mode: bool = True) -> nn.Module:
        if mode == self.merged:
            with torch.no_grad():
                self.weight += -self.own if mode else self.own
            self.merged = not mode
        return super().train(mode)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + (0 if self.merged else x @ self.own.T)


def test_modules_that_change_with_their_mode_come_back() -> None:
    student, teacher = (nn.Sequential(Merging(6, 4), nn.Tanh(), nn.Linear(4, 2)) for _ in range(2))
    student[1].eval()  # as its author left it
    distiller = Distiller(
        student, curriculum.extracted(teacher, [("0", "0")], 2), total=4, calibration=numbers(32, 0)[0]
    )
    assert [module.training for module in student] == [True, False, True] and not student[0].merged
    distiller(numbers(8, 1)[0], None, 0).backward()
    assert student[0].own.grad.abs().sum() > 0
    refused(
        lambda: Ensemble(lambda: nn.Sequential(Merging(6, 4), nn.Linear(4, 2)), [1], [0.1]),
        "Merging changes its attribute 'merged' when it is put in eval mode",
    )


def test_networks_that_change_their_input_in_place() -> None:
    class Scaled(nn.Sequential):
        here = False

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.sub_(3.0).div_(2.0) if self.here else (x - 3.0) / 2.0)

    losses = []
    for here in (False, True):
        with seeding.global_rng(0, "init"):
            teacher, student = (Scaled(nn.Linear(6, width), nn.Linear(width, 2)) for width in (8, 4))
        teacher.here = student.here = here
        x = numbers(32, 0)[0]
        plan = curriculum.extracted(teacher, [("0", "0")], 2)
        distiller = Distiller(student, plan, total=4, calibration=x)
        losses.append([distiller(x, None, step).item() for step in (0, 3)])
        assert torch.equal(x, numbers(32, 0)[0])
    assert losses[0] == losses[1]


def test_labels_in_bytes_ask_for_every_class() -> None:
    x, y = torch.randn(64, 6), torch.arange(64).add(150).to(torch.uint8)
    one, two = (Distiller(student, curriculum.from_labels(), total=1, calibration=x)
                for student in [nn.Linear(6, 256)] * 2)  # fmt: skip
    assert one(x, y, 0) == two(x, y.long(), 0)


def test_units_of_a_layer_that_nothing_reads_are_refused() -> None:
    plan = extraction(net(8, 1))
    refused(lambda: host(net(4), plan, units={"typo": 1}), "units names 'typo', which no stage reads of the student")


def test_what_nobody_trains_may_be_shared() -> None:
    embed, act = nn.Linear(6, 4).requires_grad_(False), nn.Tanh()
    teacher, student = (nn.Sequential(embed, act, nn.Linear(4, 2)) for _ in range(2))
    Distiller(student, curriculum.one_shot(teacher), total=2, calibration=numbers(32, 0)[0])
    noise = nn.Dropout()
    teacher, student = (nn.Sequential(embed, noise, nn.Linear(4, 2)) for _ in range(2))
    refused(
        lambda: Distiller(student, curriculum.one_shot(teacher), total=2, calibration=numbers(32, 0)[0]),
        "teacher and student share '1'",
    )


def test_a_record_keeps_the_mask_of_its_outputs(tmp_path: Any) -> None:
    student, teacher = (built(partial(transformer, width), seed) for width, seed in ((4, 1), (8, 2)))
    x = Tokens().sample(16, seeding.generator(0, "x"))[0]
    plan, mask = curriculum.one_shot(teacher), lambda ids: ids != PAD
    recorded.record(plan, student, x, tmp_path, calibration=x, mask=mask, top_k=None)
    live = host(student, plan, calibration=x, mask=mask)(x, None, 0)
    replayed = host(student, recorded.plan(tmp_path), calibration=x)(x, None, 0, rows=torch.arange(16))
    torch.testing.assert_close(replayed, live, rtol=1e-3, atol=1e-4)
    bare = host(student, plan, calibration=x)(x, None, 0)
    assert abs(bare - live) > 10 * abs(replayed - live)


def test_fingerprints_tell_structure_and_not_what_a_pass_sets() -> None:
    class Counting(nn.Linear):
        calls, device = 0, "cuda:0"

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return super().forward(x)

    counting = Counting(2, 2)
    before = fingerprints.fingerprint(counting)
    counting(torch.ones(1, 2))
    counting.device = "cpu"
    assert fingerprints.fingerprint(counting) == before
    one, two = (nn.Conv1d(2, 2, 3, dilation=n) for n in (1, 2))
    two.load_state_dict(one.state_dict())
    assert fingerprints.fingerprint(one) != fingerprints.fingerprint(two)
    turned = [nn.Linear(2, 2) for _ in range(2)]
    turned[1].load_state_dict(turned[0].state_dict())
    for scale, network in enumerate(turned):
        network.register_buffer("angle", torch.tensor([1.0 + scale, 1j]), persistent=False)
    assert fingerprints.fingerprint(turned[0]) != fingerprints.fingerprint(turned[1])


def test_only_may_be_one_name() -> None:
    assert Stage(Labels(), only="head").only == ("head",) == Stage(Labels(), only=["head"]).only


def test_teachers_are_told_apart_by_settings_and_by_every_entry() -> None:
    teacher, plans = nn.Embedding(3000, 4), []
    for change in ("nothing", "setting", "entry"):
        other = copy.deepcopy(teacher)
        other.max_norm = 1.0 if change == "setting" else None
        with torch.no_grad():
            other.weight[1234, 1] += change == "entry"
        plans.append(fingerprints.fingerprint(other))
    assert plans[0] == fingerprints.fingerprint(teacher.eval()) and len(set(plans)) == 3


def small(classes: int = 2) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, classes))


def test_a_stage_of_some_parameters_leaves_nothing_behind() -> None:
    """Outside of a backward pass of the Distiller's own loss every parameter has its gradient."""
    student, teacher, x = small(), small(), torch.randn(8, 4)
    plan = Curriculum("p", (Stage(Output(teacher), only=("2",)),))
    distiller = host(student, plan, calibration=x)
    for _ in range(2):  # also where steps are accumulated
        distiller(x, None, 0).backward()
    assert student[0].weight.grad is None and student[2].weight.grad is not None
    student(x).sum().backward()
    assert student[0].weight.grad is not None
    student[0].weight = nn.Parameter(torch.zeros(6, 4))
    with pytest.raises(ValueError, match="unfrozen or replaced: build the Distiller after that"):
        distiller(x, None, 0)


@pytest.mark.parametrize("body", [nn.GRU(4, 4, 2, dropout=0.9, batch_first=True), nn.RNN(4, 4, 2, dropout=0.9,
                                  batch_first=True)], ids=["GRU", "RNN"])  # fmt: skip
def test_a_shared_part_is_quiet_for_the_teacher_and_as_it_was_for_the_student(body: nn.Module) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = body, nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(x)[0])

    student, teacher, x = Net(), Net(), torch.randn(6, 3, 4)
    body.requires_grad_(False)
    distiller = host(student, Curriculum("p", (Stage(Output(teacher)),)), calibration=x)
    assert student.body.training and not teacher.training
    said = [distiller._one.read(teacher, x[None].clone(), "") for _ in range(2)]
    assert torch.equal(*said) and student.body.training
    assert not torch.equal(student(x), student(x))


def test_labels_that_are_no_classes_are_refused() -> None:
    x, ids = torch.randn(8, 4), torch.ones(4, LENGTH, dtype=torch.long)
    plain = host(small(), curriculum.from_labels(), calibration=x)
    by_position = host(transformer(4), curriculum.one_shot(transformer(8)), calibration=ids)
    for distiller, inputs in ((plain, x), (by_position, ids)):
        wrong = torch.full(inputs.shape[: 1 + (inputs is ids)], -1)
        with pytest.raises(ValueError, match="labels are classes from 0 on, and -100 where nothing is asked, not -1"):
            distiller(inputs, wrong, 0)
    with pytest.raises(ValueError, match=r"labels must be whole numbers, not torch\.float32"):
        by_position(ids, torch.zeros(4, LENGTH), 0)
    outputs = host(small(), curriculum.one_shot(small()), calibration=x)
    outputs(x, torch.full((8,), -1), 0)  # of one output a sample, labels are not asked for anything
    with pytest.raises(ValueError, match="the batch holds labels: give them beside it"):
        outputs({"input": x, "labels": torch.zeros(8)}, None, 0)


def test_a_layer_that_is_called_again_is_told() -> None:
    class Again(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.layer(self.layer(x).tanh()))

    x = torch.randn(8, 4)
    with pytest.warns(UserWarning, match="'layer' of Again is called 2 times in a pass: what it returns first is read"):
        host(small(), curriculum.extracted(Again(), [("layer", "0")], 2), calibration=x)


def test_a_live_teacher_in_the_place_of_its_checkpoints_is_told() -> None:
    teacher, x = small(), torch.randn(8, 4)
    with pytest.warns(UserWarning, match=r"stages 1 and 2 match the very same thing: checkpoints .* are copies"):
        host(small(), curriculum.progressive({"100": teacher}, teacher, 2), calibration=x)


def test_a_map_that_the_optimiser_does_not_hold_is_told() -> None:
    student, teacher, x = small(), small(), torch.randn(8, 4)
    for known in (False, True):
        distiller = host(student, curriculum.fitnets(teacher, "0", "0", 40), total=50, calibration=x)
        optimiser = torch.optim.SGD((distiller if known else student).parameters(), 0.1)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for step in range(30):
                optimiser.zero_grad()
                distiller(x, None, step).backward()
                optimiser.step()
        told = ["which has not changed in 20 steps" in str(one.message) for one in said]
        assert told == ([] if known else [True])


def test_functions_are_told_apart_by_what_they_do() -> None:
    def over(limit: int) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda x: x > limit

    def itself(x: torch.Tensor) -> torch.Tensor:
        return x if len(x) < 2 else itself(x[1:])

    held = object()
    found = [fingerprints.described(f) for f in (over(1), over(2), lambda x: x > 1, lambda x: x < 1, over(1), itself,
                                                 lambda x: x if held else -x)]  # fmt: skip
    assert len(set(found)) == 6 and not any("0x" in text for text in found)


def test_what_a_model_says_of_itself_is_minded() -> None:
    """An inverted mask is refused; an own loss of more than labels, and decoders that begin otherwise, are told."""
    teacher, student = (built(partial(MLP, 6, width), width) for width in (8, 4))
    x, plan = torch.randn(8, 6), curriculum.one_shot(teacher)
    with pytest.raises(ValueError, match=r"src_key_padding_mask is True where there is padding.*mask=lambda batch: ~"):
        Distiller(student, plan, total=3, calibration={"x": x}, mask="src_key_padding_mask")
    settings = {"is_encoder_decoder": True, "decoder_start_token_id": 0}
    for config, said in (
        ({"output_router_logits": True, "router_aux_loss_coef": 0.01}, "balances its experts"),
        (settings, "begins with token 0, what the teacher writes with 2"),
        ({**settings, "decoder_start_token_id": 2}, ""),
        ({"output_router_logits": False, "router_aux_loss_coef": 0.01}, ""),
    ):
        student.config, teacher.config = SimpleNamespace(**config), SimpleNamespace(decoder_start_token_id=2)
        with pytest.warns(UserWarning, match=said) if said else contextlib.nullcontext():
            Distiller(student, plan, total=3, calibration=x)


def classifier(width: int, last: nn.Module | None = None) -> nn.Module:
    return nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 4), last or nn.Identity())


def test_outputs_that_are_no_classes_are_refused() -> None:
    x, whole = torch.randn(16, 6), torch.arange(16) % 4
    plan = curriculum.one_shot(classifier(8))
    host(classifier(4), plan, calibration=x)(x, whole, 0)
    refused(lambda: host(classifier(4), plan, calibration=x)(x, torch.rand(16, 4), 0), "labels must be whole numbers")
    refused(lambda: host(classifier(4), plan, calibration=x, calibration_labels=x), "labels must be whole numbers")
    mixed = torch.rand(16, 4).softmax(-1)  # as collators make of classes; an output stage needs none
    assert host(classifier(4), plan, calibration=x, calibration_labels=mixed)(x, mixed, 0).isfinite()
    refused(lambda: host(classifier(4), plan, calibration=x)(x, (x[:, :4] > 0).long(), 0), "labels of that very shape")
    bounded = host(classifier(4, nn.Sigmoid()), plan, calibration=x)
    assert bounded(x, whole, 0).isfinite()
    for given in (plan, curriculum.from_labels()):
        ended = host(classifier(4, nn.Softmax(-1)), given, calibration=x)
        refused(lambda ended=ended: ended(x, whole, 0), "the student's outputs are probabilities, which sum to 1")
    late = host(classifier(4, nn.Softmax(-1)), curriculum.extracted(classifier(8), [("0", "0")], 2), calibration=x)
    late(x, None, 0)
    refused(lambda: late(x, None, 2), "the student's outputs are probabilities")
    said = SimpleNamespace(problem_type="regression")
    for teacher, student in ((classifier(8), classifier(4)) for _ in range(2)):
        teacher.config = said
        refused(
            lambda t=teacher, s=student: host(s, curriculum.one_shot(t), calibration=x), "Sequential is for regress"
        )


class Turned(nn.Module):
    """Tokens to (batch, classes, length), or in order."""

    def __init__(self, width: int, turned: bool = True) -> None:
        super().__init__()
        self.embed, self.head, self.turned = nn.Embedding(WORDS, width), nn.Linear(width, 7), turned

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.head(self.embed(x))
        return z.movedim(1, -1) if self.turned else z


def test_classes_come_last() -> None:
    x = torch.randint(0, WORDS, (8, LENGTH))
    plan = curriculum.one_shot(Turned(8))
    with pytest.warns(UserWarning, match=r"positions last.*return outputs.movedim\(1, -1\)"):
        host(Turned(4), plan, calibration=x)
    host(Turned(4, False), curriculum.one_shot(Turned(8, False)), calibration=x)(x, None, 0)
    student, teacher = (nn.Sequential(nn.Conv2d(1, n, 3, padding=1), nn.Conv2d(n, 4, 1)) for n in (3, 5))
    pictures, labels = torch.randn(8, 1, 6, 6), torch.zeros(8, 6, 6, dtype=torch.long)
    for fields in ({"units": 1}, {"calibration_labels": labels}):
        make = partial(host, student, curriculum.one_shot(teacher), calibration=pictures, **fields)
        refused(make, r"classes last.*outputs.movedim\(1, -1\)")


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_teachers_that_are_not_finite_are_named(wrong: float) -> None:
    x, teacher = torch.randn(16, 6), classifier(8)
    ruled = classifier(8)
    with torch.no_grad():
        ruled[2].bias[0] = -torch.inf  # a class that is ruled out
    assert host(classifier(4), curriculum.one_shot(ruled), calibration=x)(x, None, 0).isfinite()
    distiller = host(classifier(4), curriculum.one_shot(teacher), calibration=x)
    distiller(x, None, 0)
    with torch.no_grad():
        teacher[2].bias[0] = wrong
    refused(lambda: distiller(x, None, 1), "stage 1: the target is not finite at sample 0 .*half precision")
    mended = host(classifier(4), curriculum.one_shot(ruled), calibration=x)
    with torch.no_grad():
        mended.student[2].bias[0] = wrong
    assert not mended(x, None, 0).isfinite(), "the student's own fault is its own"


@pytest.mark.parametrize("signal", ["regressed", "redrawn", "joint regressed", "output"])
def test_copies_learn_as_the_original_would(signal: str) -> None:
    x, y = numbers(32, 0)
    plan = Curriculum(signal, (Stage(SIGNALS[signal](built(partial(MLP, 6, 16), 9), "act"), 8), Stage(Labels())))
    first = host(built(partial(MLP, 6, 8), 3), plan)
    steps_of(first, torch.optim.SGD(first.parameters(), 0.1), [(x, y)] * 3)
    other, third = copy.deepcopy(first), copy.deepcopy(first)
    assert other.step == 2 and not {id(p) for p in first.parameters()} & {id(p) for p in other.parameters()}
    told = [steps_of(d, torch.optim.SGD(d.parameters(), 0.1), [(x, y)] * 4, 3) for d in (other, first, third)]
    assert told[0] == told[1] == told[2]
    assert all(p.grad is not None for p in other.drawn.parameters())


def test_copies_count_where_their_own_batches_do() -> None:
    student, teacher = (built(partial(transformer, width), seed) for width, seed in ((4, 1), (8, 2)))
    x = Tokens().sample(16, seeding.generator(0, "x"))[0]
    first = host(student, curriculum.one_shot(teacher), calibration=x, mask=lambda ids: ids != PAD)
    assert copy.deepcopy(first)(x, None, 0) == first(x, None, 0)
    average = torch.optim.swa_utils.AveragedModel(first)
    average.update_parameters(first)
    assert average(x, None, 0) == first(x, None, 0)


def test_masks_are_true_or_false() -> None:
    student, teacher = (built(partial(transformer, width), seed) for width, seed in ((4, 1), (8, 2)))
    x = Tokens().sample(16, seeding.generator(0, "x"))[0]
    plans = extraction_of(teacher), curriculum.one_shot(teacher)
    for plan in plans:
        same = [host(student, plan, calibration=x, mask=lambda ids, t=t: (ids != PAD).to(t))(x, None, 0)
                for t in (torch.bool, torch.long, torch.float32)]  # fmt: skip
        assert same[0] == same[1] == same[2]
        for mask in (lambda ids: (ids == PAD) * -1e4, lambda ids: (ids != PAD) * 0.5,
                     lambda ids: torch.zeros(ids.shape).masked_fill(ids == PAD, -torch.inf)):  # fmt: skip
            make = partial(host, student, plan, calibration=x, mask=mask)
            refused(lambda make=make: make()(x, None, 0), "a mask of positions says which count, and .* does not")


def extraction_of(teacher: nn.Module) -> Curriculum:
    return curriculum.extracted(teacher, [("blocks.0", "blocks.0")], 3)


def test_entries_for_the_teacher_or_the_mask_alone(tmp_path: Any) -> None:
    """A batch may hold what the student does not take, if the teacher does or the mask is called so."""

    class Shifted(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(WORDS, width), nn.Linear(width, WORDS)

        def forward(self, ids: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
            return self.head(self.embed((ids + shift) % WORDS))

    class Plain(Shifted):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return super().forward(ids, 0)

    x, teacher = Tokens().sample(16, seeding.generator(0, "x"))[0], built(partial(Shifted, 8), 1)
    batch = {"ids": x, "shift": torch.ones_like(x), "counts": x != PAD}
    plan = curriculum.extracted(teacher, [("embed", "embed")], 2)
    distiller = host(built(partial(Plain, 4), 2), plan, calibration=batch, mask="counts")
    assert {distiller(batch, None, step).isfinite().item() for step in (0, 2)} == {True}
    other = batch | {"shift": torch.zeros_like(x)}
    assert distiller(batch, None, 3) != distiller(other, None, 3), "the teacher reads it"
    with pytest.raises(TypeError, match="typo"):
        distiller(batch | {"typo": x}, None, 3)
    rows = [{name: value[i] for name, value in batch.items()} for i in range(16)]
    recorded.record(plan, distiller.student, rows, tmp_path, calibration=batch, mask="counts", top_k=None)
    again = host(built(partial(Plain, 4), 2), recorded.plan(tmp_path), calibration={"ids": x})
    for given in (batch, {"ids": x}):  # without a teacher, its entry is not needed any more
        for step in (0, 2):
            found, live = again(given, None, step, torch.arange(16)), distiller(batch, None, step)
            torch.testing.assert_close(found, live, rtol=1e-2, atol=1e-3)


def test_labels_that_say_what_counts_are_shifted() -> None:
    student, teacher = (built(partial(transformer, width), seed) for width, seed in ((4, 1), (8, 2)))
    x = torch.randint(1, WORDS, (8, LENGTH))
    some = x.clone()
    some[:, :2] = IGNORE
    for labels, told in ((x, 0), (some, 1)):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            host(student, curriculum.one_shot(teacher), calibration=x)(x, labels, 0)
        assert sum("the labels are the inputs themselves" in str(one.message) for one in said) == told


def test_numbers_for_all_samples_stay_as_they_are() -> None:
    class Scaled(Net):
        def forward(self, x: torch.Tensor, scale: torch.Tensor) -> Any:
            return super().forward(x) * scale

    batch = {"x": numbers(16, 0)[0], "scale": torch.tensor(2.0)}
    distiller = host(Scaled(4), extraction(Scaled(8)), calibration=batch)
    assert all(distiller(batch, None, step).isfinite() for step in (0, 11))


def test_a_calibration_with_labels_is_named() -> None:
    x, y = numbers(16, 0)
    with pytest.raises(
        TypeError, match="cannot read the calibration, a list of 2, as its arguments: give inputs without"
    ):
        host(classifier(4), curriculum.one_shot(classifier(8)), calibration=[x, y])


def test_sparse_redrawn_maps_are_saved_densely() -> None:
    plan = extraction(net(16, 7), projection=projections.sparse, redraw=True)
    assert all(value.layout is torch.strided for value in host(net(4), plan).state_dict().values())


def test_a_default_type_of_torch_is_no_type_of_targets() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        x = numbers(32, 0)[0]
        for signal in ("gaussian", "sparse", "regressed", "redrawn"):
            teacher, student = (MLP(6, width) for width in (16, 8))
            plan = Curriculum(signal, (Stage(SIGNALS[signal](teacher, "act"), 2), Stage(Labels())))
            host(student, plan, calibration=x)(x, None, 0).backward()
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_target_of_ones_own_may_be_of_several_tensors() -> None:
    """Its loss may be no number now and then: whoever scales losses skips such a step."""

    @dataclass(frozen=True)
    class Own:
        def bind(self, students: Any, x: Any, y: Any = None) -> Bound:
            def loss(values: Any, target: Any) -> torch.Tensor:
                return values[""].sum((1, 2)) + torch.inf

            return Bound(("",), lambda x, y: (x, x, x > 0), loss)

    x = torch.randn(8, 6)
    assert host(classifier(4), Curriculum("own", (Stage(Own()),)), calibration=x)(x, None, 0).isinf()


def test_labels_that_ask_nowhere_are_not_taken_for_inputs() -> None:
    plan, x = curriculum.one_shot(Turned(8, False)), torch.randint(0, WORDS, (8, LENGTH))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        host(Turned(4, False), plan, calibration=x)(x, torch.full_like(x, IGNORE), 0)
