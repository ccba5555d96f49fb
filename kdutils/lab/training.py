"""The one training loop: an ensemble of students goes through a curriculum."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import sys
import time
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from kdutils import losses, reading, seeding
from kdutils.curriculum import Curriculum, Stage
from kdutils.lab import cost, store
from kdutils.lab.ensemble import Ensemble
from kdutils.lab.optimisers import SGD, Optimiser
from kdutils.lab.record import Run, from_store, to_store
from kdutils.signals import Bound

BLOCK = 32  # steps whose samples are drawn at once: drawing is cheaper in larger pieces ...
LARGEST = 2**15  # ... of up to so many samples
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
    runs: store.Store | None = None,
    progress: bool | None = None,
    version: str | None = None,
) -> Run:
    """Train every member of `students` through `curriculum` on fresh samples.

    `students` itself is left as it is. The learning rate is each member's own. Between stages no parameter
    is reset or frozen.

    Args:
        task: has `sample(n, generator) -> (x, y)` on the generator's device; y holds one class a sample, or one
            a position with `losses.IGNORE` where nothing is asked.
        steps: optimiser steps in all; a last stage of open length takes what the others leave.
        batch: samples a member sees in one step.
        evaluate_every: steps between evaluations on the same `held_out` samples.
        held_out_task: where those come from, when not from fresh samples of `task` (a text's validation part).
        optimiser: `SGD()` or `Adam(...)`.
        until: stop early, in the last stage, once every seed of one learning rate has reached this accuracy:
            the sweep is decided then, and slower learning rates need not finish.
        keep_every: steps between kept copies of all parameters (as teacher checkpoints are).
        runs: where to look for this very run first, and to keep it afterwards.
        progress: show a bar; when left out, only where somebody is watching.
        version: a text of yours that stands for what the store cannot see, such as a file that the task reads: with
            it the run is kept, and found again under the same text.

    Raises:
        DivergenceError: as soon as an evaluation finds that a loss was not finite.
        ValueError: when the stages do not fit in `steps`.
    """
    settings = {
        "students": store.describe(students), "task": store.describe(task), "curriculum": store.describe(curriculum),
        "steps": steps, "batch": batch, "evaluate_every": evaluate_every, "held_out": held_out,
        "until": until, "keep_every": keep_every, "device": students.device.type,
        "held out task": store.describe(held_out_task or task), "optimiser": store.describe(optimiser),
        "version": version,
    }  # fmt: skip
    key = store.key(settings)
    if runs is not None and not runs.accepts(settings):
        runs = None
    lengths = curriculum.lengths(steps)
    stored = runs.load(key) if runs is not None else None
    if stored is not None:
        return from_store(*stored, key, settings, students)

    _keep_freed_memory()
    loop = _Loop(students.clone(), task, batch, (held_out_task or task, held_out), optimiser, steps)
    bar = tqdm(total=steps, desc=curriculum.name, leave=False, disable=not _watched(progress), mininterval=0.5)
    started = time.perf_counter()
    stages, step = [], 0
    loop.evaluate(step)
    for index, (stage, length) in enumerate(zip(curriculum.stages, lengths, strict=True)):
        first, last_stage = step, index == len(lengths) - 1
        bound = loop.enter(stage, index)
        for step in range(first + 1, first + length + 1):
            loop.step(bound, step)
            if keep_every and step % keep_every == 0:
                loop.keep(step)
            if step % evaluate_every == 0 or step == first + length:
                accuracy = loop.evaluate(step)
                bar.update(step - bar.n)
                bar.set_postfix_str(f"median accuracy {np.median(accuracy):.3f}")
                if until is not None and last_stage and loop.decided(until):
                    break
        stages.append((str(stage.signal), first, step))
    bar.close()
    run = loop.finish(stages, time.perf_counter() - started, settings, key)
    del loop, bound
    _give_back_memory()
    if runs is not None:
        runs.save(key, *to_store(run))
    return run


class _Loop:
    """The state of one call of `train`."""

    def __init__(
        self, students: Ensemble, task: Any, batch: int, held_out: tuple[Any, int], optimiser: Optimiser, total: int
    ) -> None:
        self.students, self.task, self.batch = students, task, batch
        self.optimiser, self.total = optimiser, total
        device = students.device
        for parameter in students.parameters.values():
            parameter.requires_grad_(True)
        self.rates = torch.tensor([students.learning_rate_of(i) for i in range(len(students))], device=device)
        self.data = [seeding.generator(seed, "data", device=device) for seed in students.seeds]
        judge, size = held_out
        x, y = judge.sample(size, seeding.generator(0, "held-out", device=device))
        piece = 4 * batch  # evaluated in pieces: all at once would not fit in memory for long sequences
        self.held_out = list(zip(x.split(piece), y.split(piece), strict=True))
        self.first_bad = torch.full((len(students),), torch.inf, device=device)
        self.flops_per_sample = self.flops_so_far = 0.0
        self.counted = True
        self.drawn: list[tuple[torch.Tensor, torch.Tensor]] = []  # batches of the coming steps, last first
        self.evaluations: list[tuple[int, float, np.ndarray, np.ndarray]] = []
        self.snapshots: dict[int, dict[str, torch.Tensor]] = {}
        self.last_step = 0

    def enter(self, stage: Stage, index: int) -> Bound:
        generators = [
            seeding.generator(seed, "calibration", index, device=self.students.device) for seed in self.students.seeds
        ]
        positions = self.held_out[0][1][0].numel()
        size = max(64, CALIBRATION // positions)
        x, y = (torch.stack(p) for p in zip(*[self.task.sample(size, g) for g in generators], strict=True))
        bound = stage.signal.bind(self.students, x, y)
        own = {n: p for n, p in self.students.parameters.items() if not stage.only or n.startswith(stage.only)}
        if not own:
            known = ", ".join(self.students.parameters)
            raise ValueError(f"no parameter's name starts with one of {stage.only}; the student has {known}")
        self.trainable = {**own, **bound.parameters}
        self.update = self.optimiser.start(self.trainable, self.rates, self.last_step, self.total)
        self.counted = False
        return bound

    def draw(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The next batch of every seed: (seeds, batch, ...) inputs and labels."""
        if not self.drawn:
            shape = max(1, min(BLOCK, LARGEST // self.batch)), self.batch
            pairs = [self.task.sample(math.prod(shape), g) for g in self.data]
            x, y = (torch.stack([p.unflatten(0, shape) for p in part], 1) for part in zip(*pairs, strict=True))
            self.drawn = list(zip(x, y, strict=True))[::-1]
        return self.drawn.pop()

    def step(self, bound: Bound, step: int) -> None:
        x, y = self.draw()
        if self.counted:
            losses, gradients = self._gradients(bound, x, bound.target(x, y))
        else:  # the first step of a stage also counts its operations
            target, teacher = cost.flops(lambda: bound.target(x, y))
            (losses, gradients), student = cost.flops(lambda: self._gradients(bound, x, target))
            seeds, members = len(self.students.seeds), len(self.students)
            self.flops_per_sample = teacher / (seeds * self.batch) + student / (members * self.batch)
            self.counted = True
        with torch.no_grad():
            self.first_bad = torch.where(losses.isfinite(), self.first_bad, self.first_bad.clamp(max=step))
            self.update(gradients)
        self.flops_so_far += self.flops_per_sample * self.batch
        self.last_step = step

    def _gradients(
        self, bound: Bound, x: torch.Tensor, target: Any
    ) -> tuple[torch.Tensor, tuple[torch.Tensor | None, ...]]:
        losses = bound.loss(self.students.outputs(x, bound.reads), self.students.spread(target))
        return losses.detach(), torch.autograd.grad(losses.sum(), list(self.trainable.values()), allow_unused=True)

    @torch.no_grad()
    def evaluate(self, step: int) -> np.ndarray:
        self._check_finite()
        right = surprise = asked = 0
        for x, y in self.held_out:
            logits = self.students.outputs(x.expand(len(self.students.seeds), *x.shape))[reading.OUTPUT]
            here = y != losses.IGNORE
            logits, truth = logits[:, here], y[here]
            right = right + (logits.argmax(-1) == truth).sum(1)
            surprise = surprise + losses.cross_entropy(logits, truth.expand(len(self.students), -1)).sum(1)
            asked += len(truth)
        accuracy, loss = ((total / asked).cpu().numpy() for total in (right, surprise))
        self.evaluations.append((step, self.flops_so_far, accuracy, loss))
        return accuracy

    def decided(self, until: float) -> bool:
        best = np.max([accuracy for _, _, accuracy, _ in self.evaluations], axis=0)
        return bool((best.reshape(-1, len(self.students.seeds)) >= until).all(1).any())

    def _check_finite(self) -> None:
        step, member = (v.item() for v in self.first_bad.min(0))
        if step != float("inf"):
            lr = self.students.learning_rate_of(member)
            raise DivergenceError(
                f"the loss of member {member} (seed {self.students.seed_of(member)}, learning rate {lr:g}) was not a "
                f"finite number at step {int(step)}: try a smaller learning rate, such as {lr / 3:.2g}",
                lr,
            )

    def keep(self, step: int) -> None:
        self.snapshots[step] = {name: p.detach().clone() for name, p in self.students.parameters.items()}

    def finish(self, stages: list, seconds: float, settings: dict[str, Any], key: str) -> Run:
        for parameter in self.students.parameters.values():
            parameter.requires_grad_(False)
        steps, spent, accuracy, loss = (np.array(column) for column in zip(*self.evaluations, strict=True))
        return Run(
            steps=steps, samples=steps * self.batch, flops=spent, accuracy=accuracy, loss=loss, stages=stages,
            seconds=seconds, peak_memory=_peak_memory(self.students.device),
            device=_device_name(self.students.device), settings=settings, key=key,
            students=self.students, snapshots=self.snapshots,
        )  # fmt: skip


def _keep_freed_memory() -> None:
    """Let the C library keep the memory that one step frees for the next, where it is glibc.

    Given back to the system, it has to be asked for and cleared anew at every step, which can take longer than the
    step itself. glibc keeps about twice the largest block that it has seen freed, of blocks up to 32 MiB.
    """
    torch.empty(31 << 20, dtype=torch.uint8)


def _give_back_memory() -> None:
    """Hand what is left free to the system once a run is over: over many runs it would pile up in pieces."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library has no such function
        ctypes.CDLL(None).malloc_trim(0)


def _watched(progress: bool | None) -> bool:
    if progress is not None:
        return progress
    quiet = os.environ.get("CI") or os.environ.get("KDUTILS_QUIET")
    return not quiet and (sys.stderr.isatty() or "ipykernel" in sys.modules)


def _device_name(device: torch.device) -> str:
    return (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{device.type}, {torch.get_num_threads()} threads"
    )


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource  # not on Windows
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
