"""A study: many cells, each trained once and kept; a page shows its records.

A study is data (`studies/NAME.toml`): the settings of a lab, budgets, teachers, and arms. It expands to *cells* that
stand on their own: a teacher; the tuning of one arm at one budget, on the first teacher; the students of one arm at
one budget under one teacher. A cell is a pure function of the study's data. Its rows go to one table, a row an
evaluation, and the table is what is committed.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from kdutils import curriculum, probes, seeding
from kdutils.curriculum import Curriculum, Stage, paired_blocks
from kdutils.lab import lab as labs
from kdutils.lab import stats, store
from kdutils.lab.record import Run
from kdutils.lab.training import DivergenceError
from kdutils.signals import Hidden, Output, Regressed, WeightedSum

LABS = {
    "parity": labs.ParityLab, "transformer_parity": labs.TransformerParityLab, "grammar": labs.GrammarLab,
    "english": labs.TextLab,
}  # fmt: skip
UNTRAINED = 5000  # added to a teacher's seed: the seed of its untrained control
COLUMNS = ("role", "teacher", "budget", "arm", "choice", "rate", "seed", "sample", "step", "samples", "flops",
           "accuracy", "loss")  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One piece of a study. `role` is "teacher", "tuning" or "students"; a teacher has no budget and no arm."""

    role: str
    teacher: int
    budget: int = 0
    arm: str = ""

    def __str__(self) -> str:
        return f"{self.role} {self.teacher}" + (f", {self.budget} steps, {self.arm}" if self.arm else "")


@dataclass(frozen=True)
class Study:
    """What a study's file says.

    Attributes:
        lab: which lab of `kdutils.lab.lab`.
        settings: its settings but for the budget and the seeds.
        budgets: steps of a student.
        teachers: seeds; the arms are tuned under the first.
        students: how many are reported under each teacher; teacher number i has the seeds 10 i + 1, 10 i + 2, ...
        evaluations: how many along a budget; an arm may say `evaluate_every` instead.
        tuning: `seeds`, `rates`, and how many `extensions` past an edge of each list.
        arms: by name; `curriculum` names a kind (see `plan`), the rest are its options. A list among `SHARES` is
            tuned: `share`, of the budget, for all stages before the last; `steps`, the same as a number; `gain`, which
            checkpoint; `weight`, of a hidden loss beside the output.
        main: the arms that come first.
        effect: the smallest effect of interest, stated before the run.
    """

    name: str
    lab: str
    settings: Mapping[str, Any]
    budgets: tuple[int, ...]
    teachers: tuple[int, ...]
    students: int
    evaluations: int
    tuning: Mapping[str, Any]
    arms: Mapping[str, Mapping[str, Any]]
    main: tuple[str, ...]
    effect: Mapping[str, Any]

    @classmethod
    def load(cls, path: Path, smoke: bool = False) -> Study:
        """Read a file; with `smoke` its small version: the table [smoke] in place of what it names."""
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        small = data.pop("smoke", {})
        if smoke:
            for key, value in small.items():
                data[key] = {**data[key], **value} if key in ("settings", "tuning") else value
            data["arms"] = {name: data["arms"][name] for name in data["main"]}
        lists = ("budgets", "teachers", "main")
        return cls(path.stem, **{key: tuple(value) if key in lists else value for key, value in data.items()})

    def cells(self) -> list[Cell]:
        """All cells, those first that others need and that say most: small budgets, and the main arms."""
        order = sorted(self.arms, key=lambda arm: arm not in self.main)
        parts = [[arm for arm in order if arm in self.main], [arm for arm in order if arm not in self.main]]
        found = [Cell("teacher", teacher) for teacher in self.teachers]
        for arms, budget in itertools.product(parts, self.budgets):
            found += [Cell("tuning", self.teachers[0], budget, arm) for arm in arms]
            found += [Cell("students", t, budget, arm) for t in self.teachers for arm in arms]
        return found

    def needs(self, cell: Cell) -> list[Cell]:
        """The cells that must be done before `cell`."""
        teacher, tuning = Cell("teacher", cell.teacher), Cell("tuning", self.teachers[0], cell.budget, cell.arm)
        return {"teacher": [], "tuning": [teacher], "students": [teacher, tuning]}[cell.role]

    def fingerprint(self, cell: Cell) -> str:
        """A hash of all that `cell` is a function of, the code apart."""
        parts: list[Any] = [self.lab, self.settings, str(cell)]
        if cell.arm:
            parts += [
                self.arms[cell.arm],
                self.students,
                self.evaluations,
                self.tuning,
                self.teachers.index(cell.teacher),
            ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def build(self, cell: Cell, runs: store.Store | None, device: str = "cpu") -> labs.Lab:
        """The lab of one cell."""
        number = self.teachers.index(cell.teacher)
        steps = cell.budget or max(self.budgets)
        arm = self.arms.get(cell.arm, {})
        lab = LABS[self.lab](
            SimpleNamespace(
                **self.settings, steps=steps, device=device, profile="study", tuning_seeds=self.tuning["seeds"],
                evaluate_every=arm.get("evaluate_every", max(1, steps // self.evaluations)),
                seeds=[10 * number + i for i in range(1, self.students + 1)],
            ),
            runs=runs,
        )  # fmt: skip
        lab.film = False
        return lab


def plan(lab: labs.Lab, teacher: Run, options: Mapping[str, Any], choice: Mapping[str, float], seed: int) -> Curriculum:
    """The curriculum of an arm: `options` from the study's file, `choice` one value for each list that is tuned.

    Kinds: "labels", "one-shot", "progressive" (through the checkpoint with that `gain` of the teacher's accuracy),
    "extraction" (`layers` is "each", "last" or "at once"; `hidden` "trained" or "untrained"), "joint", "fitnets".
    """
    s, network = lab.settings, teacher.network()
    kind = options["curriculum"]
    last = Stage(Output(network, options.get("temperature", 1.0)))
    name = ", ".join(f"{key} {value:g}" for key, value in choice.items()) or kind
    if kind == "labels":
        return curriculum.from_labels(name)
    if kind == "one-shot":
        return Curriculum(name, (last,))
    pairs = paired_blocks(s.layers, s.layers) if hasattr(s, "layers") else [("act", "act")]
    hidden = {key: options[key] for key in ("positions", "normalise") if key in options}
    early = int(choice["steps"]) if "steps" in choice else round(choice.get("share", 0) * s.steps)
    if kind == "joint":
        both = WeightedSum(((1.0, last.signal), (choice["weight"], Hidden(network, *pairs[-1], **hidden))))
        return Curriculum(name, (Stage(both),))
    if kind == "fitnets":
        return Curriculum(
            name, (Stage(Regressed(network, *pairs[-1], positions=hidden.get("positions", "all")), early), last)
        )
    if kind == "progressive":
        low, high = teacher.accuracy[0, 0], teacher.accuracy[-1, 0]
        step = lab.checkpoint_near(teacher, float(low + choice["gain"] * (high - low)))
        return Curriculum(
            name, (Stage(Output(teacher.network(step=step), name=f"checkpoint at step {step}"), early), last)
        )
    if kind == "extraction":
        source = lab.untrained_teacher(seed + UNTRAINED) if options.get("hidden") == "untrained" else network
        label = "an untrained network" if options.get("hidden") == "untrained" else "final teacher"
        layers = options.get("layers", "each")
        if layers == "last":
            pairs = pairs[-1:]
        signals = [Hidden(source, *pair, name=label, **hidden) for pair in pairs]
        if layers == "at once":
            signals = [WeightedSum(tuple((1.0, signal) for signal in signals))]
        each = max(1, round(early / len(signals)))
        return Curriculum(name, (*(Stage(signal, each) for signal in signals), last))
    raise ValueError(f"unknown curriculum {kind!r}: choose labels, one-shot, progressive, extraction, joint or fitnets")


TUNED = ("share", "steps", "gain", "weight")
LIMITS = {"share": 0.8, "gain": 0.95}


def tune(
    fit: Callable[[Mapping[str, float], Sequence[float]], Run],
    seeds: Sequence[int],
    rates: Sequence[float],
    lists: Mapping[str, Sequence[float]],
    merit: Callable[[stats.Arm], tuple[float, ...]],
    extensions: int,
) -> tuple[dict[str, float], list[float], list[tuple[dict[str, float], stats.Arm]]]:
    """Choose a learning rate, and one value from each of `lists`, one list after the other.

    The others stand at the middle of theirs meanwhile, and at the best afterwards. Where the best value or rate is at
    an edge of what was tried, the next one outside is tried as well, `extensions` times at most. A rate at which
    training diverges is left out, and all larger ones with it.

    Returns:
        The best choice; its learning rates, best first and then the smaller ones by merit; and all that was tried.
    """
    tried: dict[tuple, list[tuple[dict[str, float], stats.Arm]]] = {}
    unstable = math.inf

    def try_at(choice: dict[str, float], wanted: Sequence[float]) -> list[tuple[dict[str, float], stats.Arm]]:
        nonlocal unstable
        found = tried.setdefault(tuple(choice.items()), [])
        known = [arm.learning_rate for _, arm in found]
        wanted = [rate for rate in wanted if rate < unstable and rate not in known]
        while wanted:
            try:
                run = fit(choice, wanted)
            except DivergenceError as error:
                unstable = min(unstable, error.learning_rate)
                wanted = [rate for rate in wanted if rate < error.learning_rate]
                continue
            found += [(choice, stats.Arm(run, float(rate), tuple(seeds))) for rate in wanted]
            break
        return found

    def value(trial: tuple[dict[str, float], stats.Arm]) -> tuple[float, ...]:
        return merit(trial[1])

    best = max(try_at({key: values[len(values) // 2] for key, values in lists.items()}, rates), key=value)
    for key, values in lists.items():
        values = sorted(values)
        trials = [trial for v in values for trial in try_at({**best[0], key: v}, rates)]
        best = max(trials, key=value)
        for _ in range(extensions if merit(best[1])[0] else 0):
            outside = stats.beyond(best[0][key], values)
            if outside is None or outside > LIMITS.get(key, math.inf) or (key == "steps" and outside < 1):
                break
            values = sorted([*values, float(round(outside)) if key == "steps" else outside])
            best = max([best, *try_at({**best[0], key: outside}, rates)], key=value)
    own = try_at(best[0], rates)
    for _ in range(extensions if merit(best[1])[0] else 0):
        outside = stats.beyond(best[1].learning_rate, sorted(arm.learning_rate for _, arm in own))
        if outside is None or outside >= unstable:
            break
        own = try_at(best[0], [outside])
        best = max(own, key=value)
    ranked = [arm.learning_rate for _, arm in sorted(own, key=value, reverse=True)]
    smaller = [rate for rate in ranked if rate < ranked[0]]
    return best[0], [ranked[0], *smaller], [trial for trials in tried.values() for trial in trials]


def _rows(cell: Cell, run: Run, members: Sequence[int], choice: str, whole: bool = True) -> list[tuple]:
    """Rows of some members of a run, an evaluation each; the last one alone where not `whole`."""
    students = run.students
    return [
        (cell.role, cell.teacher, cell.budget, cell.arm, choice, students.learning_rate_of(m), students.seed_of(m),
         "held-out", int(run.steps[t]), int(run.samples[t]), float(run.flops[t]), float(run.accuracy[t, m]),
         float(run.loss[t, m]))
        for m in members for t in range(0 if whole else len(run.steps) - 1, len(run.steps))
    ]  # fmt: skip


def _test_sample(lab: labs.Lab) -> tuple[Any, Any] | None:
    """Samples that no choice rests on, where the lab has such: fresh sentences, or windows of a text's test part."""
    s = lab.settings
    draw = seeding.generator(0, "test", device=s.device)
    if isinstance(lab, labs.GrammarLab):
        return lab.task.sample(s.test_sentences, draw)
    if isinstance(lab, labs.TextLab):
        x, y = lab.corpora.test.windows(draw)
        pick = torch.linspace(0, len(x) - 1, min(s.test_windows, len(x))).long()  # from all of its documents
        return x[pick], y[pick]
    return None


def _tested(cell: Cell, lab: labs.Lab, run: Run, members: Sequence[int], choice: str) -> list[tuple]:
    sample = _test_sample(lab)
    if sample is None:
        return []
    rows = []
    for m in members:
        loss, accuracy = probes.score(run.network(m), *sample)
        (row,) = _rows(cell, run, [m], choice, whole=False)
        rows.append((*row[:7], "test", *row[8:11], accuracy, loss))
    return rows


def work(study: Study, cell: Cell, runs: store.Store, chosen: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Do one cell, or find it in the store.

    Args:
        chosen: what the cell's tuning returned as "chosen"; for students only.

    Returns:
        "rows" as in `COLUMNS`, "chosen" for a tuning, "facts", "seconds" (of the core, its teacher's apart).
    """
    parts = {"cell": study.fingerprint(cell), "chosen": chosen}
    key = store.key(parts)
    found = runs.load(key)
    if found is not None:
        return found[1]
    lab, started = study.build(cell, runs), time.process_time()
    teacher, facts, choice = lab.teacher(cell.teacher), {}, {}
    rows: list[tuple] = []
    if cell.role == "teacher":
        rows = _rows(cell, teacher, [0], "") + _tested(cell, lab, teacher, [0], "")
        facts = _facts(lab)
    else:
        started = time.process_time()
        options = study.arms[cell.arm]
        lists = {key: options[key] for key in TUNED if key in options}

        def fit(
            choice: Mapping[str, float], rates: Sequence[float], seeds: Sequence[int] = study.tuning["seeds"]
        ) -> Run:
            return lab.fit(plan(lab, teacher, options, choice, cell.teacher), seeds, rates)

        if cell.role == "tuning":
            best, rates, trials = tune(
                fit, study.tuning["seeds"], study.tuning["rates"], lists, lab.merit, study.tuning["extensions"]
            )
            choice = {"choice": best, "rates": rates}
            for tried, arm in trials:
                rows += _rows(cell, arm.run, arm.members, _label(tried))
        else:
            run = _first_stable(lambda rate: fit(chosen["choice"], [rate], lab.settings.seeds), chosen["rates"])
            label = _label(chosen["choice"])
            rows = _rows(cell, run, range(len(run.students)), label)
            rows += _tested(cell, lab, run, range(len(run.students)), label)
            facts = {"stages": [list(stage) for stage in run.stages]}
    result = {"rows": rows, "chosen": choice, "facts": facts, "seconds": time.process_time() - started}
    runs.save(key, {"none": torch.zeros(1)}, result)
    return result


def _label(choice: Mapping[str, float]) -> str:
    return ", ".join(f"{key} {value:g}" for key, value in choice.items())


def _first_stable(fit: Callable[[float], Run], rates: Sequence[float]) -> Run:
    """A run at the first rate that does not diverge: the tuning seeds did not tell."""
    for rate in rates[:-1]:
        try:
            return fit(rate)
        except DivergenceError:
            continue
    return fit(rates[-1])


def _facts(lab: labs.Lab) -> dict[str, Any]:
    """What a loss is compared with: the exact optimum on the held-out and on the test samples, where it is known."""
    if not isinstance(lab, labs.GrammarLab):
        return {}
    held_out = lab.task.sample(lab.settings.held_out, seeding.generator(0, "held-out", device=lab.settings.device))
    samples = {"held-out": held_out, "test": _test_sample(lab)}
    return {f"optimum, {name}": lab.task.optimum(*sample)._asdict() for name, sample in samples.items()}
