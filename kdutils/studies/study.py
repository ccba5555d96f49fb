"""A study: many cells, each trained once and kept; a page shows its records.

A study is data (`studies/NAME.toml`): the settings of a lab, budgets, teachers, and arms. It expands to *cells* that
stand on their own: a teacher; the tuning of one arm at one budget, on the first teacher; the students of one arm at
one budget under one teacher. Cells may be done anywhere, in any order that `Study.needs` allows, and done again.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import platform
import time
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from kdutils import probes
from kdutils.lab import lab as labs
from kdutils.lab import store
from kdutils.lab.arms import tune
from kdutils.lab.pictures import PictureLab
from kdutils.lab.record import Run
from kdutils.lab.recorded import RecordedLab
from kdutils.lab.training import DivergenceError
from kdutils.studies import plans, sound

LABS = {"parity": labs.ParityLab, "transformer_parity": labs.TransformerParityLab, "grammar": labs.GrammarLab,
        "english": labs.TextLab, "pictures": PictureLab, "recorded": RecordedLab}  # fmt: skip
COLUMNS = ("role", "size", "teacher", "budget", "arm", "choice", "rate", "seed", "sample", "step", "samples", "flops",
           "accuracy", "loss")  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One piece of a study. `role` is "teacher", "tuning" or "students"; a teacher has no budget and no arm."""

    role: str
    teacher: int
    budget: int = 0
    arm: str = ""
    size: str = ""

    def __str__(self) -> str:
        arm = f"{self.budget} steps, {self.arm}" if self.arm else ""
        return ", ".join(filter(None, (f"{self.role} {self.teacher}", arm, self.size)))


@dataclass(frozen=True)
class Study:
    """What a study's file says.

    Attributes:
        lab: which of `LABS`.
        settings: its settings but for the budget and the seeds; sizes: by a name, settings that differ among sizes.
        budgets: steps of a student.
        teachers: seeds; the arms are tuned under the first. A size may have as many `teachers` of its own.
        failed: by size, seeds of other teachers, which did not solve the task.
        students: how many are reported under each teacher; teacher number i has the seeds 10 i + 1, 10 i + 2, ...
        evaluations: how many along a budget; an arm or a size may say `evaluate_every` instead (the arm's goes first).
        tuning: `seeds`, `rates`, and how many `extensions` past an edge of each list.
        arms: by name; `curriculum` is one of `plans.KINDS`, the rest are its options. Lists are tuned: for all stages
            before the last `share` of the budget or `steps`; `gain` of a checkpoint; `weight`; `heat`, both
            temperatures.
        main: the arms that come first.
        effect: the smallest one of interest, stated before the run.
        expected: what was said before the runs that it speaks of: each of `arms` ends against `than` after each of
            `budgets` (at a `size`) as `ends` says, one of `sound.ENDS`; a `note` where there is more to say.
        thinned: roles, such as "tuning", of whose curves the records keep the rises alone: `records.kept`.
    """

    name: str
    lab: str
    settings: Mapping[str, Any]
    budgets: Sequence[int]
    teachers: Sequence[int]
    students: int
    evaluations: int
    tuning: Mapping[str, Any]
    arms: Mapping[str, Mapping[str, Any]]
    main: Sequence[str]
    effect: Mapping[str, Any]
    sizes: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"": {}})
    failed: Mapping[str, Sequence[int]] = field(default_factory=dict)
    expected: Sequence[Mapping[str, Any]] = ()
    thinned: Sequence[str] = ()

    @classmethod
    def load(cls, path: Path, smoke: bool = False) -> Study:
        """Read a file; with `smoke` its small version: [smoke] stands in place of what it names."""
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:  # no TOML, or no UTF-8
            raise ValueError(f"{path}: {error}") from None
        small, known = data.pop("smoke", {}), [one.name for one in fields(cls)][1:]
        for part in (data, small):
            if wrong := [key for key in sound.TABLES if not isinstance(part.get(key, {}), dict)]:
                raise ValueError(f"{path}: {wrong[0]} has to be a table, not {part[wrong[0]]!r}")
        wrong = set(data) ^ set(known) - ({"sizes", "failed", "expected", "thinned"} - set(data))
        if wrong := wrong | set(small) - set(known):
            raise ValueError(f"{path}: {min(wrong)!r} is unknown or missing; a study has {', '.join(known)}")
        if smoke and not small:
            raise ValueError(f"{path} has no [smoke]: say there what is smaller in its small version")
        if smoke:
            data.pop("expected", None)
            data |= small | {k: {**data[k], **small[k]} for k in small if k in ("settings", "tuning")}
            arms = data["arms"]
            if sound.several(data["main"], lambda one: sound.name(one) and one in arms):  # else refused below
                data["arms"] = {name: arms[name] for name in data["main"]}
        return cls(path.stem, **data)

    def __post_init__(self) -> None:
        if self.lab not in [*LABS]:
            raise ValueError(f"{self.name}: unknown lab {self.lab!r}; choose one of {', '.join(LABS)}")
        if wrong := sound.wrong_with(self):
            raise ValueError(f"{self.name}: {wrong}")
        if strangers := [arm for arm in self.main if arm not in self.arms]:
            raise ValueError(f"{self.name}: main arm {strangers[0]!r} is not among the arms {', '.join(self.arms)}")
        known = {"evaluate_every", "teachers", *self.settings}
        if wrong := {key for size in self.sizes.values() for key in size} - known:
            raise ValueError(f"{self.name}: the sizes' {min(wrong)!r} is not among the settings")
        if lost := [size for size in self.sizes if len(self.taught(size)) != len(self.teachers)]:
            raise ValueError(f"{self.name}: {lost[0]!r} has to have {len(self.teachers)} teachers, as all sizes have")
        for name, arm in self.arms.items():
            if wrong := plans.wrong_with(arm, self.lab):
                raise ValueError(f"{self.name}: arm {name!r} {wrong}")
        named = Counter(map(str, self.cells()))
        if twice := [name for name, count in named.items() if count > 1]:
            raise ValueError(f"{self.name}: two cells are called {min(twice)!r}: name an arm or a size otherwise")
        seeds = {10 * i + n for i in range(len(self.teachers)) for n in range(1, self.students + 1)}
        if self.students > 9 or seeds & {*self.tuning["seeds"], *itertools.chain(*map(self.taught, self.sizes))}:
            raise ValueError(f"{self.name}: at most 9 students, with seeds of their own; {sorted(seeds)} are not")

    def taught(self, size: str = "") -> Sequence[int]:
        """The teachers' seeds at a size."""
        return self.sizes[size].get("teachers", self.teachers)

    def cells(self) -> list[Cell]:
        """All cells, those first that others need and that say most: small budgets, and the main arms."""
        parts = [[arm for arm in self.arms if (arm in self.main) == first] for first in (True, False)]
        taught = zip(*map(self.taught, self.sizes), strict=True)
        found = [Cell("teacher", t, size=size) for row in taught for t, size in zip(row, self.sizes, strict=True)]
        for arms, budget, size in itertools.product(parts, self.budgets, self.sizes):
            found += [Cell("tuning", self.taught(size)[0], budget, arm, size) for arm in arms]
            found += [Cell("students", t, budget, arm, size) for t in self.taught(size) for arm in arms]
        return found

    def needs(self, cell: Cell) -> list[Cell]:
        """The cells that must be done before `cell`."""
        teacher = Cell("teacher", cell.teacher, size=cell.size)
        tuning = replace(cell, role="tuning", teacher=self.taught(cell.size)[0])
        return {"teacher": [], "tuning": [teacher], "students": [teacher, tuning]}[cell.role]

    def fingerprint(self, cell: Cell) -> str:
        """A hash of all that `cell` is a function of, the code apart."""
        parts: list[Any] = [self.lab, {**self.settings, **self.sizes[cell.size]}, str(cell)]
        if cell.arm:
            number = self.taught(cell.size).index(cell.teacher)
            parts += [self.arms[cell.arm], self.students, self.evaluations, self.tuning, number]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def build(self, cell: Cell, runs: store.Store | None, device: str = "cpu") -> labs.Lab:
        """The lab of one cell."""
        steps, arm, size = cell.budget or max(self.budgets), self.arms.get(cell.arm, {}), self.sizes[cell.size]
        every = arm.get("evaluate_every", size.get("evaluate_every", max(1, steps // self.evaluations)))
        seeds = [10 * self.taught(cell.size).index(cell.teacher) + i for i in range(1, self.students + 1)]
        own = {"steps": steps, "evaluate_every": every, "seeds": seeds, "tuning_seeds": self.tuning["seeds"]}
        settings = {**self.settings, **size, **own, "support_seed": cell.teacher, "device": device, "profile": "study"}
        lab = LABS[self.lab](SimpleNamespace(**settings), runs=runs)
        lab.film = False
        return lab


def work(
    study: Study, cell: Cell, runs: store.Store, chosen: Mapping[str, Any] | None = None, device: str = "cpu"
) -> dict[str, Any]:
    """Do one cell, or find it in the store.

    Args:
        chosen: what the cell's tuning returned as "chosen"; for students only.

    Returns:
        "key" in the store; "rows" as in `COLUMNS`; "chosen" by a tuning: the choice, and its learning rates, best
        first; "facts"; "seconds" of the processor, those of the teacher apart.
    """
    code = store.source_hash("studies.study")
    key = store.key({"cell": study.fingerprint(cell), "chosen": chosen, "device": device, "code": code})
    if (found := runs.load(key)) is not None:
        return {"key": key, **found[1]}  # the store keeps the key to itself
    lab, started = study.build(cell, runs, device), time.process_time()
    teacher, result = lab.teacher(cell.teacher), {"key": key, "chosen": {}, "facts": {}}
    if cell.role == "teacher":
        result |= {"rows": _rows(cell, lab, teacher, [0]), "facts": lab.facts(teacher, True)}
    else:
        started, options = time.process_time(), study.arms[cell.arm]
        lab = lab.labelled(options["labelled"], cell.teacher) if "labelled" in options else lab
        make = lab.plan or partial(plans.plan, lab, teacher)

        def fit(choice: Mapping[str, float], rates: Sequence[float], seeds: Any = study.tuning["seeds"]) -> Run:
            return lab.fit(make(options, choice, cell.teacher), seeds, rates)

        if cell.role == "tuning":
            lists = {key: options[key] for key in plans.REACH if key in options}
            seeds, tried, extensions = (study.tuning[key] for key in ("seeds", "rates", "extensions"))
            found = tune(fit, seeds, tried, lists, lab.merit, extensions, plans.REACH)
            first, *others = (arm.learning_rate for arm in sorted(found.own, key=lab.merit, reverse=True))
            ranked = [first, *(rate for rate in others if rate < first)]
            rows = [_rows(cell, lab, arm.run, arm.members, plans.label(tried), False) for tried, arm in found.trials]
            result |= {"rows": list(itertools.chain(*rows)), "chosen": {"choice": found.choice, "rates": ranked}}
        else:
            choice, rates = chosen["choice"], chosen["rates"]
            for rate in rates:  # the first that is stable: the tuning seeds may not have told
                try:
                    run = fit(choice, [rate], lab.settings.seeds)
                    break
                except DivergenceError:
                    if rate == rates[-1]:
                        raise
            rows = _rows(cell, lab, run, range(len(run.students)), plans.label(choice))
            result |= {"rows": rows, "facts": lab.facts(run)}
    result |= {"seconds": time.process_time() - started, "machine": machine(), "torch": torch.__version__}
    result |= {"device": device} if device != "cpu" else {}
    runs.save(key, {"none": torch.zeros(1)}, result)
    return result


def machine() -> str:
    """The kind of machine, without its name: on two of one kind a run gives the same numbers.

    A hash stands for what a processor can do and for its caches: by these a library chooses how it adds up.
    """
    can = getattr(torch.cpu, "get_capabilities", dict)()
    text = json.dumps({name: value for name, value in can.items() if not name.startswith("num_")}, sort_keys=True)
    kind = f"{torch.backends.cpu.get_cpu_capability()} {hashlib.sha256(text.encode()).hexdigest()[:6]}"
    return f"{platform.machine()}, {kind}, {torch.get_num_threads()} threads"


def _rows(
    cell: Cell, lab: labs.Lab, run: Run, members: Iterable[int], choice: str = "", tested: bool = True
) -> list[tuple]:
    """Rows of some members of a run, one an evaluation, and one of the final networks on the test samples."""
    rows, sample = [], lab.test_sample() if tested else None
    same = (cell.role, cell.size, cell.teacher, cell.budget, cell.arm, choice)
    for m in members:
        front = (*same, run.students.learning_rate_of(m), run.students.seed_of(m))
        at = [(int(run.steps[t]), int(run.samples[t]), float(run.flops[t])) for t in range(len(run.steps))]
        curve = zip(at, run.accuracy[:, m].tolist(), run.loss[:, m].tolist(), strict=True)
        rows += [(*front, "held-out", *where, accuracy, loss) for where, accuracy, loss in curve]
        if sample is not None:
            loss, accuracy = probes.score(run.network(m), *sample)
            rows.append((*front, "test", *at[-1], accuracy, loss))
    return rows
