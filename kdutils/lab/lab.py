"""The setting that a few chapters share: one task, one teacher, students that differ only in curriculum."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from kdutils import curriculum, seeding
from kdutils.curriculum import Curriculum
from kdutils.lab import stats
from kdutils.lab.ensemble import Ensemble
from kdutils.lab.optimisers import SGD, Adam, Optimiser
from kdutils.lab.record import Run
from kdutils.lab.store import Store
from kdutils.lab.training import train
from kdutils.probes.worth import Worth, worth
from kdutils.tasks import grammar, text
from kdutils.tasks.models import MLP, Transformer
from kdutils.tasks.parity import SparseParity

THRESHOLD = 0.95  # "solved": held-out accuracy
DONE = 0.99  # a student's run stops once every seed of one learning rate has been here
MIDDLE = 0.65  # accuracy of a checkpoint in the middle of the teacher's jump


class Lab:
    """A task, a teacher's and a student's shape, and an optimiser; the rest is in the settings.

    Args:
        settings: from `kdutils.pages.profiles`, or made by a study.
        task: has `sample`; see `kdutils.lab.training.train`.
        teacher, student: build one network each.
        optimiser: the same for teacher and students.
        judge: the task that held-out samples come from, when not `task`.
        merit: how a learning rate is chosen on the tuning seeds; see `stats.Arm.tuned`.
        until: a student's run stops once every seed of one learning rate has reached this accuracy.
        film: keep the reported students' parameters at every evaluation, to probe them along training.
        mode: "train" where networks have batch norm or dropout; see `kdutils.lab.training.train`.
        runs: the store that all runs go through.

    Attributes:
        used: the runs asked for so far, by name: what the chapter's cost is made of.
    """

    def __init__(
        self,
        settings: SimpleNamespace,
        task: Any,
        teacher: Callable[[], nn.Module],
        student: Callable[[], nn.Module],
        optimiser: Optimiser,
        judge: Any = None,
        merit: Callable[[stats.Arm], tuple[float, ...]] = stats.lowest_loss,
        until: float | None = None,
        film: bool = False,
        mode: str = "eval",
        runs: Store | None = None,
    ) -> None:
        self.settings, self.task, self.optimiser, self.judge = settings, task, optimiser, judge
        self.make_teacher, self.make_student = teacher, student
        self.merit, self.until, self.film, self.mode = merit, until, film, mode
        self.runs = Store() if runs is None else runs
        self.used: dict[str, Run] = {}
        self.label = ""

    plan = None  # how a study's arms are made, where not by `kdutils.studies.plans.plan`

    def teacher(self, seed: int = 0) -> Run:
        """The wide teacher, learned from labels, with its checkpoints.

        With a setting `teacher_until` it stops at the first checkpoint of that held-out accuracy.
        """
        s = self.settings
        students = Ensemble(self.make_teacher, [seed], [s.teacher_learning_rate], s.device)
        return self._train(
            "teacher", students, curriculum.from_labels("teacher"), s.teacher_steps, s.teacher_batch,
            evaluate_every=s.keep_every, keep_every=s.keep_every, until=getattr(s, "teacher_until", None),
        )  # fmt: skip

    def untrained_teacher(self, seed: int = 1) -> nn.Module:
        """A network of the teacher's shape that has learned nothing: the control."""
        return Ensemble(self.make_teacher, [seed], [1.0], self.settings.device).member(0)

    def arm(self, *plans: Curriculum) -> stats.Arm:
        """Train students through a curriculum: the learning rate is chosen on the tuning seeds, others are reported.

        Several plans are settings of one method, such as lengths of a stage: the tuning seeds choose among them too.
        """
        s = self.settings
        fits = [partial(self.fit, plan) for plan in plans]
        return stats.Arm.tuned(fits, s.learning_rates, s.tuning_seeds, s.seeds, self.merit, s.extensions)

    def fit(self, plan: Curriculum, seeds: Sequence[int], rates: Sequence[float]) -> Run:
        """Train one student for every pair of a seed and a learning rate through a curriculum."""
        s = self.settings
        reported = tuple(seeds) == tuple(s.seeds)
        students = Ensemble(self.make_student, seeds, rates, s.device)
        film = min(s.evaluate_every, s.steps) if reported and self.film else None
        return self._train(
            plan.name if reported else f"{plan.name}, sweep", students, plan, s.steps, s.batch, until=self.until,
            evaluate_every=s.evaluate_every, keep_every=film,
        )  # fmt: skip

    def watch(self, plan: Curriculum, learning_rate: float) -> Run:
        """Train one student, of the first reported seed, to the end of the budget, and keep it at about 80 moments.

        Its start is kept as step 0.
        """
        s, every = self.settings, max(1, self.settings.steps // 80)
        students = Ensemble(self.make_student, s.seeds[:1], [learning_rate], s.device)
        run = self._train(f"{plan.name}, watched", students, plan, s.steps, s.batch, evaluate_every=every,
                          keep_every=every)  # fmt: skip
        run.snapshots = {0: {**students.parameters, **students.buffers}, **run.snapshots}
        return run

    def test_sample(self) -> tuple[Any, Any] | None:
        """Samples that no choice rests on, where the lab has such."""

    def optimum(self) -> dict[str, Any]:
        """What a loss is compared with: the exact optimum on the held-out and on the test samples, where known."""
        return {}

    def worth(self, teacher: Run) -> Worth:
        """What the layers of a teacher hold beyond its outputs, on 1,024 samples."""
        layers = [f"blocks.{i}" for i in range(self.settings.layers)] if hasattr(self.settings, "layers") else ["act"]
        x, y = (self.judge or self.task).sample(1024, self._draw("worth"))
        return worth(teacher.network(), zip(x.split(64), y.split(64), strict=True), layers)

    def facts(self, run: Run, of_teacher: bool = False) -> dict[str, Any]:
        """What a study keeps of a run beside its curves."""
        return self.optimum() if of_teacher else {"stages": [list(stage) for stage in run.stages]}

    def _draw(self, name: str) -> Any:
        return seeding.generator(0, name, device=self.settings.device)

    def _train(self, name: str, students: Ensemble, plan: Curriculum, steps: int, batch: int, **when: Any) -> Run:
        run = train(
            students, self.task, plan, steps=steps, batch=batch, held_out_task=self.judge,
            held_out=self.settings.held_out, optimiser=self.optimiser, mode=self.mode, runs=self.runs, **when,
        )  # fmt: skip
        own = name = self.label + name
        others = (f"{own} ({n})" for n in itertools.count(2))  # another run of this name: each counts in the cost
        while self.used.get(name, run).key != run.key:
            name = next(others)
        self.used[name] = run
        return run

    @staticmethod
    def checkpoint_near(trained: Run, accuracy: float = MIDDLE) -> int:
        """The kept step at which the teacher's held-out accuracy was nearest to `accuracy`."""
        at = _kept(trained)
        return min(at, key=lambda step: abs(at[step] - accuracy))

    @staticmethod
    def checkpoint_late(trained: Run) -> int:
        """The kept step halfway between the first at which the teacher is done (`DONE`) and its last.

        Never the last one itself where there is another: that is the final teacher.
        """
        at = _kept(trained)
        *earlier, last = at
        first = next((step for step in at if at[step] >= DONE), last)
        return min(earlier or [last], key=lambda step: abs(step - (first + last) / 2))


def _kept(trained: Run) -> dict[int, float]:
    """{step: held-out accuracy} of the checkpoints that a teacher's run kept, in order."""
    at = dict(zip(trained.steps.tolist(), trained.accuracy[:, 0].tolist(), strict=True))
    kept = {step: at[step] for step in sorted(trained.snapshots) if step in at}
    if not kept:
        raise ValueError(
            "the run kept no checkpoint at an evaluated step: train it with a keep_every of at most its steps; a lab's "
            "setting keep_every has to be at most teacher_steps"
        )
    return kept


class ParityLab(Lab):
    """A sparse parity; two-layer networks by plain SGD."""

    def __init__(self, settings: SimpleNamespace, runs: Store | None = None) -> None:
        parts = self._parts(settings)
        super().__init__(settings, *parts, merit=stats.fastest(THRESHOLD), until=DONE, runs=runs)

    def varied(self, **changes: Any) -> ParityLab:
        """The same lab with other settings; its runs count among this one's, under names that tell the change."""
        other = type(self)(SimpleNamespace(**{**vars(self.settings), **changes}), self.runs)
        label = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in changes.items())
        other.used, other.label = self.used, f"{self.label}{label}: "
        return other

    @staticmethod
    def _parts(s: SimpleNamespace) -> tuple[SparseParity, partial, partial, Optimiser]:
        """Task, teacher, student and optimiser."""
        return SparseParity(s.d, s.k), partial(MLP, s.d, s.teacher_width), partial(MLP, s.d, s.student_width), SGD()

    def teacher(self, seed: int = 0) -> Run:
        """The teacher, trained on well past its jump.

        Raises:
            RuntimeError: when it has not solved the task; the message says what to change.
        """
        run = super().teacher(seed)
        if run.accuracy[-1, 0] < THRESHOLD:
            raise RuntimeError(
                f"the teacher reached only {run.accuracy[-1, 0]:.2f} in {self.settings.teacher_steps} steps: raise "
                "teacher_steps, or make the task easier (smaller k or d)"
            )
        return run


class TransformerParityLab(ParityLab):
    """The same with transformers, by Adam: the bits are tokens, and the last position answers.

    The setting `support` is "first", or "random": then positions are drawn from the setting `support_seed`, in a study
    the teacher's own. For a causal network the choice matters; chapter 7 says why.
    """

    @staticmethod
    def _parts(s: SimpleNamespace) -> tuple[SparseParity, partial, partial, Optimiser]:
        teacher, student = (
            partial(Transformer, 2, s.head_width * heads, heads, s.layers, s.d, classes=2, last=True)
            for heads in (s.teacher_heads, s.student_heads)
        )
        if s.support not in ("first", "random"):
            raise ValueError(f"support is 'first' or 'random', not {s.support!r}")
        drawn = SparseParity.with_random_support(s.d, s.k, s.support_seed) if s.support == "random" else None
        return SparseParity(s.d, s.k, drawn and drawn.support, tokens=True), teacher, student, Adam()


class GrammarLab(Lab):
    """Masked language modelling on a layered grammar; transformers that see both sides."""

    def __init__(self, settings: SimpleNamespace, runs: Store | None = None) -> None:
        s = settings
        self.grammar = grammar.Grammar.named(s.grammar).rooted(s.root)
        make = [
            partial(
                Transformer, grammar.VOCABULARY, s.head_width * heads, heads, s.layers, 1 + self.grammar.longest,
                causal=False, padding=grammar.PAD,
            )
            for heads in (s.teacher_heads, s.student_heads)
        ]  # fmt: skip
        task = grammar.MaskedGrammar(self.grammar)
        super().__init__(s, task, *make, Adam(warmup=s.warmup, decay=True), film=True, runs=runs)

    def test_sample(self) -> tuple[Any, Any]:
        return self.task.sample(self.settings.test_sentences, self._draw("test"))

    def optimum(self) -> dict[str, Any]:
        held_out = self.task.sample(self.settings.held_out, self._draw("held-out"))
        parts = {"held-out": held_out, "test": self.test_sample()}
        return {f"optimum, {name}": self.task.optimum(*sample)._asdict() for name, sample in parts.items()}

    def facts(self, run: Run, of_teacher: bool = False) -> dict[str, Any]:
        return super().facts(run, of_teacher) | ({"worth": asdict(self.worth(run))} if of_teacher else {})


class TextLab(Lab):
    """Language modelling on a corpus of `kdutils.tasks.text`; learning rates are chosen on its validation part."""

    def __init__(self, settings: SimpleNamespace, runs: Store | None = None) -> None:
        s = settings
        limit = s.characters or None
        self.corpora = text.load(s.corpus, s.context, s.vocabulary, s.objective, limit=limit, cache=runs)
        causal = s.objective == "causal"
        make = [
            partial(
                Transformer, self.corpora.train.classes, s.head_width * heads, heads, s.layers, s.context, causal=causal
            )
            for heads in (s.teacher_heads, s.student_heads)
        ]
        optimiser = Adam(warmup=s.warmup, decay=True)
        super().__init__(s, self.corpora.train, *make, optimiser, judge=self.corpora.validation, runs=runs)

    def test_sample(self) -> tuple[Any, Any]:
        x, y = self.corpora.test.windows(self._draw("test"))
        pick = torch.linspace(0, len(x) - 1, min(self.settings.test_windows, len(x))).long()  # from all its documents
        return x[pick], y[pick]
