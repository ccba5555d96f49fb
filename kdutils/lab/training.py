"""The one training loop: an ensemble of students goes through a curriculum."""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from kdutils import checks, inside, seeding, source
from kdutils.curriculum import Curriculum, Stage
from kdutils.lab import store
from kdutils.lab.ensemble import Ensemble
from kdutils.lab.optimisers import SGD, Optimiser
from kdutils.lab.record import Run, Saved, from_store, tell_of_attributes, tell_of_modes, to_store
from kdutils.signals import Bound
from kdutils.tasks import cost, outside
from kdutils.tasks.outside import draw
from kdutils.tasks.sampling import HeldOut, Samples, cause_of_none, recalls
from kdutils.teachers import Passes

CALIBRATION = 1024  # positions a seed that a stage reads once, to fix the scale of its targets; 64 samples at least


class DivergenceError(RuntimeError):
    """A member's loss stopped being a finite number; `learning_rate` is that member's."""

    def __init__(self, message: str, learning_rate: float) -> None:
        super().__init__(message)
        self.learning_rate = learning_rate


def train(
    students: Ensemble,
    task: Any,
    curriculum: Curriculum,
    *,
    steps: int,
    batch: int = 64,
    evaluate_every: int = 100,
    held_out: int = 2048,
    held_out_task: Any = None,
    optimiser: Optimiser = SGD(),  # noqa: B008 (frozen data)
    until: float | None = None,
    keep_every: int | None = None,
    mode: str = "eval",
    runs: store.Store | None = None,
    save_every: float = 120.0,
    progress: bool | None = None,
    version: str | None = None,
) -> Run:
    """Train every member of `students` through `curriculum` on fresh samples.

    `students` itself is left as it is. The learning rate is each member's own. Between stages no parameter
    is reset or frozen. Students that come out of a run go on with samples that they have not seen.

    Args:
        task: has `sample(n, generator) -> (x, y)` on the generator's device; y holds one class a sample, or one
            a position with `losses.IGNORE` where nothing is asked. With a `score(outputs, y)` of its own (one
            network's outputs on all held-out samples -> one number) y is what the signals take; the attributes
            `score_name` and `higher_is_better` (else "score" and True) say what the number is.
        steps: optimiser steps in all; a last stage of open length takes what the others leave.
        batch: samples a member sees in one step.
        evaluate_every: steps between evaluations on the same `held_out` samples, always in eval mode.
        held_out_task: where those come from, when not from fresh samples of `task` (a text's validation part).
        optimiser: `SGD()` or `Adam(...)`.
        until: stop early, in the last stage, once every seed of one learning rate has reached this accuracy:
            the sweep is decided then, and slower learning rates need not finish.
        keep_every: steps between kept copies of all parameters (as teacher checkpoints are).
        mode: "eval" trains without dropout and with batch norm's statistics as built; "train" trains the students
            as they were built, each with statistics and dropout of its own.
        runs: where to look for this very run first, and to keep it afterwards. A run that was stopped goes on from
            its last saved state, bit for bit; where networks or a signal keep something in Python, it starts anew.
        save_every: seconds between two saved states; more, where saving would take over a hundredth of the time; 0,
            after every step.
        progress: show a bar; when left out, only where somebody is watching.
        version: a text of yours that stands for what the store cannot see, such as a file that the task reads: with
            it the run is kept, and found again under the same text.

    Raises:
        DivergenceError: as soon as an evaluation finds that a loss was not finite, if nothing but the learning rate
            explains it.
        ValueError: when the stages do not fit in `steps`, or leave some, for a count that is none, a finite task
            without a `held_out_task`, a task or teacher whose numbers are not finite, or networks that were wrapped
            for several processes.
    """
    _proper(students, task, curriculum, optimiser, runs)
    steps, batch = checks.count("steps", steps), checks.count("batch", batch)
    evaluate_every, held_out = checks.count("evaluate_every", evaluate_every), checks.count("held_out", held_out)
    keep_every = None if keep_every is None else checks.count("keep_every", keep_every)
    until = None if until is None else checks.number("until", until)
    checks.one_of("mode", mode, ("eval", "train"))
    checks.one_process(students.skeleton)
    own = curriculum.stages if type(curriculum) is Curriculum else curriculum  # a subclass may say more
    settings = {
        "students": store.describe(students), "task": store.describe(task), "mode": mode, "version": version,
        "curriculum": {"name": curriculum.name, **store.describe(own)}, "optimiser": store.describe(optimiser),
        "held out task": store.describe(held_out_task or task), "held_out": held_out, "device": students.device.type,
        "steps": steps, "batch": batch, "evaluate_every": evaluate_every, "until": until, "keep_every": keep_every,
    }  # fmt: skip
    key = store.key(settings)  # without the texts that follow, which may name places in memory
    settings["curriculum"]["stages"] = [str(s.signal) for s in curriculum.stages]
    if runs is not None and not runs.accepts(settings):
        runs = None
    lengths = curriculum.lengths(steps)
    if runs is not None and (stored := runs.load(key)) is not None:
        return from_store(*stored, key, settings, students)

    cost.keep_freed_memory()
    with torch.inference_mode(False), torch.enable_grad(), outside.noted(runs is not None) as found:
        loop = _Loop(students.clone(), task, batch, held_out_task, held_out, optimiser, steps, mode)
        bar = tqdm(total=steps, desc=curriculum.name, leave=False, disable=not _watched(progress), mininterval=0.5)
        saved = Saved(runs, key, save_every, students)
        begun, first = saved.load(loop) or (0, 0)
        if not loop.evaluations:
            loop.evaluate()
        for index, (stage, length) in enumerate(zip(curriculum.stages, lengths, strict=True)):
            if index < begun:
                continue
            first, last_stage = first if index == begun else loop.step, index == len(lengths) - 1
            loop.enter(stage, index, first)
            saved.restore(loop)
            for step in range(loop.step + 1, first + length + 1):
                loop.advance(step)
                if keep_every and step % keep_every == 0:
                    loop.keep()
                if step % evaluate_every == 0 or step == first + length:
                    accuracy = loop.evaluate()
                    bar.update(step - bar.n)
                    bar.set_postfix_str(f"median {loop.judge.metric} {np.median(accuracy):.3f}")
                    if until is not None and last_stage and loop.decided(until):
                        break
                if not found or version is not None:
                    saved.tick(loop, index, first)
            loop.stages.append((str(stage.signal), first, loop.step))
    bar.close()
    run = loop.finish(saved.seconds, settings, key)
    tell_of_attributes(students, run.students)
    run.students.networks = students.networks  # as built: so they are, too, in a run that is read back
    del loop
    cost.give_back_memory()
    if runs is not None and runs.accepts({"version": version, "read": {"unseen": list(found)}}):
        runs.save(key, *to_store(run))
    saved.discard()
    return run


class _Loop:
    """The state of one call of `train`."""

    def __init__(
        self, students: Ensemble, task: Any, batch: int, judge: Any, held_out: int, optimiser: Optimiser, total: int,
        mode: str,
    ) -> None:  # fmt: skip
        self.students, self.task, self.batch = students, task, batch
        self.optimiser, self.total, self.mode = optimiser, total, mode
        device = students.device
        for name, parameter in students.parameters.items():
            parameter.requires_grad_(name not in students.frozen)
        self.rates = torch.tensor([students.learning_rate_of(i) for i in range(len(students))], device=device)
        self.samples = Samples(task, students.seeds, batch, device, students.drawn)
        self.judge = HeldOut(task, judge, held_out, 4 * batch, device)
        if mode == "eval":
            tell_of_modes(students, self.judge.pieces[0][0])
        self.first_bad = torch.full((len(students),), torch.inf, device=device)
        self.flops_per_sample = self.flops_so_far = 0.0
        self.counted, self.step = 0, 0  # of the steps of a stage, how many had their operations counted
        self.evaluations: list[tuple[int, float, np.ndarray, np.ndarray]] = []
        self.stages: list[tuple[str, int, int]] = []
        self.snapshots: dict[int, dict[str, torch.Tensor]] = {}
        self.bound: Bound | None = None
        self.recalls = False  # whether a signal keeps something that no saved state would hold

    def enter(self, stage: Stage, index: int, first: int) -> None:
        """Begin a stage after `first` steps: its signal reads a calibration sample, and the optimiser starts anew."""
        students = self.students
        generators = [seeding.generator(seed, "calibration", index, device=students.device) for seed in students.seeds]
        size = max(64, CALIBRATION // max(1, self.judge.pieces[0][1][0].numel()))
        x, y = (torch.stack(p) for p in zip(*[draw(self.task, size, g) for g in generators], strict=True))
        self.entry, students.passes = self._copy(), Passes()
        own = source.is_own(type(stage.signal))  # else it is a teacher that may look at something
        self.part = stage.signal if own else getattr(stage.signal, "teacher", stage.signal)
        self.bound = outside.heard(self.part, lambda: stage.signal.bind(students, x, y))
        self.again = partial(stage.signal.bind, students.clone(), x, y) if own else None
        moving = {n: p for n, p in students.parameters.items() if n not in students.frozen}
        own = {n: p for n, p in moving.items() if not stage.only or inside.under(n, stage.only)}
        if (told := inside.unnamed(students.skeleton, stage)) or not own:
            raise ValueError(told or "the student has no parameter to train: all of them are frozen")
        self.trainable = {**own, **self.bound.parameters}
        self.update = self.optimiser.start(self.trainable, self.rates, first, self.total)
        students.passes.forget()
        self.counted = 0

    def advance(self, step: int) -> None:
        x, y = self.samples.next()
        self.step = step
        if self.counted == 2:
            with outside.drawing(self.part):
                losses, gradients, buffers = self._gradients(x, self.bound.target(x, y))
        else:  # the first steps of a stage also count operations (at the second, all asks are known), and draws
            streams = self.bound.generators.values()
            target, teacher = outside.heard(self.part, lambda: cost.flops(lambda: self.bound.target(x, y)), streams)
            found, student = outside.heard(self.part, lambda: cost.flops(lambda: self._gradients(x, target)))
            losses, gradients, buffers = found
            seeds, members = len(self.students.seeds), len(self.students)
            self.flops_per_sample = teacher / (seeds * self.batch) + student / (members * self.batch)
            self.counted += 1
            if self.again is not None and outside.kept():  # a signal of the reader's own
                with seeding.global_rng(0, device=self.rates.device), torch.no_grad():
                    values = self.students.clone().run(x, self.bound.reads, self.mode)[0]
                    self.recalls |= recalls(self.again(), x, y, values, self.students.spread)
        self.students.buffers = {name: value.detach() for name, value in buffers.items()}
        with torch.no_grad():
            self.first_bad = torch.where(losses.isfinite(), self.first_bad, self.first_bad.clamp(max=step))
            self.update(gradients)
        self.flops_so_far += self.flops_per_sample * self.batch

    def _gradients(self, x: torch.Tensor, target: Any) -> tuple[torch.Tensor, tuple[Any, ...], dict[str, torch.Tensor]]:
        """Losses, what they say to each trainable tensor, and the buffers as the pass left them."""
        self.students.passes.forget()  # what teachers said is not held while the students run
        noise = ("noise", self.students.drawn, self.step)
        values, buffers = self.students.run(x, self.bound.reads, self.mode, noise)
        losses = self.bound.loss(values, self.students.spread(target))
        slopes = torch.autograd.grad(losses.sum(), list(self.trainable.values()), allow_unused=True)
        dense = (slope.to_dense() if slope is not None and slope.is_sparse else slope for slope in slopes)
        return losses.detach(), tuple(dense), buffers

    @torch.no_grad()
    def evaluate(self) -> np.ndarray:
        self._check_finite()
        with outside.drawing(self.students.skeleton):
            accuracy, loss = self.judge.scores(self.students)
        if self.step == self.total and (lost := np.isnan(loss) & ~np.isnan(self.evaluations[0][3])).any():
            self.first_bad[torch.from_numpy(lost)] = self.step  # by the last update, which no other step sees
            self._check_finite(look=False)
        self.evaluations.append((self.step, self.flops_so_far, accuracy, loss))
        return accuracy

    def decided(self, until: float) -> bool:
        scores = np.array([accuracy for _, _, accuracy, _ in self.evaluations])
        reached = (scores >= until if self.judge.higher_is_better else scores <= until).any(0)
        return bool(reached.reshape(-1, len(self.students.seeds)).all(1).any())

    def _check_finite(self, look: bool = True) -> None:
        step, member = (v.item() for v in self.first_bad.min(0))
        if step == float("inf"):
            return
        seed, lr = self.students.seed_of(member), self.students.learning_rate_of(member)
        where = f"the loss of member {member} (seed {seed}, learning rate {lr:g}) was not a finite number at step "
        samples = Samples(self.task, self.students.seeds, self.batch, self.rates.device, self.students.drawn)
        for _ in range(int(step)):
            x, y = samples.next()
        if look and (cause := cause_of_none(self.students, self.bound, x, y, member % len(x))):
            raise ValueError(f"{where}{int(step)}: {cause}")
        raise DivergenceError(f"{where}{int(step)}: try a smaller learning rate, such as {lr / 3:.2g}", lr)

    def _copy(self) -> dict[str, torch.Tensor]:
        both = {**self.students.parameters, **self.students.buffers}
        return {name: value.detach().clone() for name, value in both.items()}

    def keep(self) -> None:
        self.snapshots[self.step] = self._copy()

    def finish(self, seconds: float, settings: dict[str, Any], key: str) -> Run:
        for parameter in self.students.parameters.values():
            parameter.requires_grad_(False)
        self.students.drawn, self.students.passes = self.students.drawn + 1, None
        steps, spent, accuracy, loss = (np.array(column) for column in zip(*self.evaluations, strict=True))
        device = self.students.device
        return Run(
            steps=steps, samples=steps * self.batch, flops=spent, accuracy=accuracy, loss=loss, stages=self.stages,
            seconds=seconds, peak_memory=cost.peak_memory(device), device=cost.device_name(device), settings=settings,
            key=key, students=self.students, snapshots=self.snapshots, metric=self.judge.metric,
            higher_is_better=self.judge.higher_is_better,
        )  # fmt: skip


def _proper(students: Any, task: Any, curriculum: Any, optimiser: Any, runs: Any) -> None:
    """ValueError for arguments of `train` that are something else."""
    for name, given, fits, wanted in (
        ("students", students, isinstance(students, Ensemble), "an Ensemble, as from kdutils.lab.ensemble"),
        ("curriculum", curriculum, isinstance(curriculum, Curriculum), "a Curriculum, as from kdutils.curriculum"),
        ("optimiser", optimiser, not isinstance(optimiser, type) and hasattr(optimiser, "start"), "SGD() or Adam()"),
        ("runs", runs, runs is None or isinstance(runs, store.Store), 'a Store("folder") of kdutils.lab.store'),
        ("task", task, not isinstance(task, type) and hasattr(task, "sample"), "an object with sample(n, generator)"),
    ):
        if not fits:
            raise ValueError(f"{name} must be {wanted}, not {f'{given!r:.60}'.splitlines()[0]}")
    checks.takes("a task needs a method sample(n, generator)", task.sample, 1, None)


def _watched(progress: bool | None) -> bool:
    if progress is not None:
        return progress
    quiet = os.environ.get("CI") or os.environ.get("KDUTILS_QUIET")
    return not quiet and (sys.stderr.isatty() or "ipykernel" in sys.modules)
