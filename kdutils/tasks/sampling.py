"""What a task is asked for: fresh batches to train on, and held-out samples to be judged by.

A task has `sample(n, generator) -> (x, y)`. With `score(outputs, y)` of its own it is judged by that number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from kdutils import checks, identity, losses, reading, seeding
from kdutils.signals import Bound, Students
from kdutils.tasks import outside
from kdutils.tasks.outside import draw

BLOCK = 32  # steps whose samples are drawn at once: drawing is cheaper in larger pieces ...
LARGEST = 2**15  # ... of up to so many samples
FEW = 3  # inputs that come twice say nothing: there are 2 ** 24 random numbers in float32


class Samples:
    """The training samples of every seed, a batch a step; `run` counts the runs that came before."""

    def __init__(self, task: Any, seeds: Sequence[int], batch: int, device: torch.device, run: int = 0) -> None:
        self.task, self.batch = task, batch
        name = ("data", run) if run else ("data",)  # a later run of the same students reads other samples
        self.streams = [seeding.generator(seed, *name, device=device) for seed in seeds]
        self.drawn: list[tuple[torch.Tensor, torch.Tensor]] = []  # batches of the coming steps, last first
        self.before = [stream.get_state() for stream in self.streams]  # they were drawn, or will be

    def next(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The next batch of every seed: (seeds, batch, ...) inputs and labels."""
        if not self.drawn:
            shape = max(1, min(BLOCK, LARGEST // self.batch)), self.batch
            pairs = [draw(self.task, math.prod(shape), stream) for stream in self.streams]
            x, y = (torch.stack([p.unflatten(0, shape) for p in part], 1) for part in zip(*pairs, strict=True))
            self.drawn = list(zip(x, y, strict=True))[::-1]
        batch = self.drawn.pop()
        if not self.drawn:  # what is left of a block is told from where it began, the next block from where it will
            self.before = [stream.get_state() for stream in self.streams]
        return batch

    def restore(self, before: list[torch.Tensor], left: int) -> None:
        """Go on where `left` batches of the block that begins at `before` are still to come."""
        for stream, state in zip(self.streams, before, strict=True):
            stream.set_state(state)
        self.drawn = []
        if left:
            self.next()
            self.drawn = self.drawn[:left]
        self.before = before


class HeldOut:
    """Samples that no student learns from, and how students do on them.

    Args:
        task, judge: where students' samples and these come from; None, from fresh samples of `task`.
        n: how many.
        rows: how many go through a network at once: all would not fit in memory for long sequences.

    Attributes:
        pieces: (x, y) of up to `rows` samples each.
        metric, higher_is_better: what is measured ("accuracy", or the task's `score_name`), and its direction.

    Raises:
        ValueError: for a finite task without a judge.
    """

    def __init__(self, task: Any, judge: Any, n: int, rows: int, device: torch.device) -> None:
        given, judge = judge, task if judge is None else judge
        x, y = draw(judge, n, seeding.generator(0, "held-out", device=device))
        if given is None and finite(task, x):
            raise ValueError(
                f"{type(task).__name__} draws from a finite set, so that its held-out samples would be training "
                "samples: give held_out_task, a task over other data (or say `finite = False` on the task)"
            )
        self.judge = judge
        self.pieces = list(zip(x.split(rows), y.split(rows), strict=True))
        self.score = getattr(judge, "score", None)
        self.metric = "accuracy" if self.score is None else getattr(judge, "score_name", "score")
        self.higher_is_better = self.score is None or bool(getattr(judge, "higher_is_better", True))

    @torch.no_grad()
    def scores(self, students: Students) -> tuple[np.ndarray, np.ndarray]:
        """Accuracy (or the task's score) and loss, (members,) each; see `kdutils.lab.record.Run`.

        Raises:
            ValueError: for labels that are no classes, where the task has no score.
        """
        if self.score is not None:
            y = torch.cat([part for _, part in self.pieces])
            outputs = torch.cat([_outputs(students, x) for x, _ in self.pieces], 1)
            each = lambda: np.array([float(self.score(own, y)) for own in outputs], dtype=np.float32)  # noqa: E731
            score = outside.heard(self.judge, each)
            return score, -score if self.higher_is_better else score
        right = surprise = asked = 0
        for x, y in self.pieces:
            logits, here = _outputs(students, x), losses.asked(y)
            if y.is_floating_point() or logits.shape[1:-1] != y.shape:
                raise ValueError(
                    f"accuracy needs one class a sample or position; labels are {y.dtype} of shape {tuple(y.shape)}, "
                    f"outputs {tuple(logits.shape[1:])}: for others give the task a score(outputs, y)"
                )
            logits, truth = logits[:, here], y[here]
            right = right + (logits.argmax(-1) == truth).sum(1)
            surprise = surprise + losses.cross_entropy(logits, truth.expand(len(students), -1)).sum(1)
            asked += len(truth)
        if not asked:
            raise ValueError("no held-out sample has a label: raise held_out, or look at what the task asks")
        accuracy, loss = ((total / asked).cpu().numpy() for total in (right, surprise))
        return accuracy, loss


def _outputs(students: Students, x: torch.Tensor) -> torch.Tensor:
    return students.outputs(x.expand(len(students.seeds), *x.shape), (reading.OUTPUT,))[reading.OUTPUT]


def finite(task: Any, x: torch.Tensor) -> bool:
    """Whether a task draws from a finite set: by its own word (`finite`, `__len__`), or as far as samples show.

    Held-out inputs `x` and others are compared by rows. Some may be the same by chance, as of few bits: so many as when
    each column is shuffled. More of them say that rows are stored: real numbers always, whole ones where the task leads
    to data of that many entries. So does an attribute that can hold all the rows which came.

    Raises:
        ValueError: for inputs that are no tensor.
    """
    said = getattr(task, "finite", None)
    if said is not None or hasattr(task, "__len__"):
        return said is None or bool(said)
    if not isinstance(x, torch.Tensor):
        raise ValueError(
            f"{type(task).__name__} gives inputs as a {type(x).__name__}; many networks at once read one tensor: let "
            "the task give that, and wrap the network so that it takes it apart"
        )
    stream, size = seeding.generator(0, "finite", device=x.device), max(1, x[:1].numel())
    most = max(2, 2**24 // size)
    rows = torch.cat([x[:most], draw(task, min(1024, most), stream)[0]])
    rows = (torch.view_as_real(rows) if rows.is_complex() else rows).flatten(1)
    different = len(rows.unique(dim=0))
    if len(rows) - different <= FEW:
        return False
    shuffled = torch.rand(rows.shape, generator=stream, device=x.device).argsort(0)
    by_chance = len(rows) - len(rows.gather(0, shuffled).unique(dim=0))
    real = rows.is_floating_point() and bool((rows.nan_to_num() != rows.nan_to_num().round()).any())
    shapes = [tuple(getattr(value, "shape", ())) for value in getattr(task, "__dict__", {}).values()]
    if any(math.prod(shape) >= different * size for shape in shapes if shape):
        return True
    return len(rows) - different > 3 * by_chance + FEW and (real or _holds(task, different, size))


def _holds(task: Any, rows: int, size: int) -> bool:
    """Whether a task leads to data of so many rows: whole numbers, as of a text, or real ones for all, or a list."""
    walk = identity.Walk()
    walk.through(task, "the task")
    held = [thing for _, thing in walk.numbers.values() if not isinstance(thing, torch.nn.Parameter)]
    real, whole = 0, walk.listed
    for thing in held:
        if isinstance(thing, torch.Tensor | np.ndarray):
            floats = thing.is_floating_point() if isinstance(thing, torch.Tensor) else thing.dtype.kind == "f"
            real, whole = real + math.prod(thing.shape) * floats, whole + math.prod(thing.shape) * (not floats)
    return real >= rows * size or whole >= rows or any(len(t) >= rows for t in held if isinstance(t, list | dict))


def cause_of_none(students: Any, bound: Any, x: torch.Tensor, y: torch.Tensor, seed: int) -> str | None:
    """What else than a learning rate can have made a loss that is not finite, on one batch a seed."""
    bad = checks.nonfinite(x[seed : seed + 1])
    if bad is not None:
        return f"the task's inputs are not finite (batch: {bad})"
    if not y.is_floating_point() and bool((y[seed] == losses.IGNORE).all()):
        return "no position of the batch has a label"
    if (bad := checks.nonfinite(bound.target(x, y))) is not None:
        return f"the teacher's output is not finite (batch: {bad})"
    said = students.outputs(x, bound.reads).get(reading.OUTPUT)
    return checks.RULED_OUT if said is not None and bool((said == -torch.inf).any()) else None


def recalls(bound: Bound, x: torch.Tensor, y: torch.Tensor, values: dict[str, torch.Tensor], spread: Any) -> bool:
    """Whether a bound signal says something else when it is asked a second time from the same state: it counts, or
    remembers, what is neither in its `generators` nor in its `parameters`."""
    said: list[list[torch.Tensor]] = [[], []]
    for found in said:
        streams = [(stream, stream.get_state()) for stream in bound.generators.values()]
        target = bound.target(x, y)
        both = target, bound.loss(values, spread(target))
        reading.each(lambda t, found=found: found.append(t.detach().clone()), both)
        for stream, state in streams:
            stream.set_state(state)
    return any(identity.digest({"": one}) != identity.digest({"": two}) for one, two in zip(*said, strict=True))
