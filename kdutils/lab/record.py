"""What a call of `train` leaves behind, and how it is kept: when it is over, and while it is under way."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from kdutils import checks, identity, reading
from kdutils.lab.ensemble import Ensemble
from kdutils.lab.store import Store

_FLAT = {"_flat_weights", "_flat_weight_refs"}  # what a torch.nn.RNN, and its like, lists its parameters in
SHARE = 0.01  # of the time, at most, goes into saving the state of a run that is under way


@dataclass
class Run:
    """What came out of one call of `train`. `T` evaluations, `M` members.

    Attributes:
        steps: (T,) optimiser steps done at each evaluation.
        samples: (T,) fresh training samples each member has seen.
        flops: (T,) floating-point operations spent on one member, forward and backward, its teacher's
            forward passes included.
        accuracy, loss: (T, M) on held-out samples, against the true labels; loss is cross-entropy in nats. Where the
            task has a `score` of its own, `accuracy` is that, and `loss` the same with the sign that makes less better.
        stages: (description, first step, last step) of each stage.
        seconds: wall-clock time of the loop on `device`, all members together.
        peak_memory: the most bytes in use by then: of the process on a CPU, of torch's allocations on a GPU.
        settings: everything the run is a function of, as plain data.
        key: its name in the store.
        students: the trained ensemble.
        snapshots: {step: stacked parameters and buffers} where `keep_every` asked for them.
        metric: what `accuracy` is.
        higher_is_better: its direction.
    """

    steps: np.ndarray
    samples: np.ndarray
    flops: np.ndarray
    accuracy: np.ndarray
    loss: np.ndarray
    stages: list[tuple[str, int, int]]
    seconds: float
    peak_memory: int
    device: str
    settings: dict[str, Any]
    key: str
    students: Ensemble
    snapshots: dict[int, dict[str, torch.Tensor]]
    metric: str = "accuracy"
    higher_is_better: bool = True

    @property
    def budget(self) -> int:
        """Samples a member was allowed; the curves end earlier when all members had finished."""
        return self.settings["steps"] * self.settings["batch"]

    def network(self, member: int = 0, step: int | None = None) -> nn.Module:
        """A plain copy of a member: as trained, or as it was at a kept `step`."""
        if step is None:
            return self.students.member(member)
        if step not in self.snapshots:
            raise ValueError(f"no snapshot at step {step}; kept are {sorted(self.snapshots)}")
        return self.students.with_parameters(self.snapshots[step]).member(member)


def to_store(run: Run) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    tensors = {f"curve/{name}": torch.from_numpy(getattr(run, name)) for name in ("steps", "flops", "accuracy", "loss")}
    tensors |= {f"final/{name}": t for name, t in {**run.students.parameters, **run.students.buffers}.items()}
    for step, snapshot in run.snapshots.items():
        tensors |= {f"snapshot/{step}/{name}": p for name, p in snapshot.items()}
    kept = ("stages", "seconds", "peak_memory", "device", "settings", "metric", "higher_is_better")
    return tensors, {name: getattr(run, name) for name in kept}


def from_store(
    tensors: dict[str, torch.Tensor], meta: dict[str, Any], key: str, settings: dict, students: Ensemble
) -> Run:
    curve, final, snapshots = {}, {}, {}
    for name, tensor in tensors.items():
        kind, rest = name.split("/", 1)
        if kind == "curve":
            curve[rest] = tensor.numpy()
        elif kind == "final":
            final[rest] = tensor.to(students.device)
        else:
            step, parameter = rest.split("/", 1)
            snapshots.setdefault(int(step), {})[parameter] = tensor.to(students.device)
    students = students.with_parameters(final)
    students.drawn += 1
    return Run(
        **curve, samples=curve["steps"] * settings["batch"], stages=[tuple(s) for s in meta["stages"]],
        seconds=meta["seconds"], peak_memory=meta["peak_memory"], device=meta["device"], settings=settings, key=key,
        students=students, snapshots=dict(sorted(snapshots.items())), metric=meta["metric"],
        higher_is_better=meta["higher_is_better"],
    )  # fmt: skip


def changed(before: nn.Module, after: nn.Module) -> bool:
    """Whether a teacher that was read is not as it was before, in a buffer or in what it keeps in Python."""
    one, two = dict(before.named_buffers()), dict(after.named_buffers())
    if one.keys() != two.keys() or not all(torch.equal(two[name].cpu(), held.cpu()) for name, held in one.items()):
        return True
    was, now = _memory(before, before), _memory(after, before)
    keys = [key for key in was | now if key[1] != "training"]  # which is put into eval mode to be read
    return any(key not in was or key not in now or not _alike(was[key], now[key]) for key in keys)


def remembered(before: Ensemble, after: Ensemble) -> str | None:
    """The name of something that networks count or remember in Python, and that is not as it was before."""
    for one, two in zip(before.networks, after.networks, strict=True) if not before.stacks else ():
        was, now = _memory(one, one), _memory(two, one)
        for key in was | now:
            if key not in was or key not in now or not _alike(was[key], now[key]):
                return key[1]
    return None


def _memory(network: nn.Module, built: nn.Module) -> dict[tuple[str, str], Any]:
    """What its modules hold beside parameters, modules, and buffers that held something when it was `built`; torch's
    own modules hold there what follows from their parameters."""
    tables = {path: part._buffers for path, part in network.named_modules()}
    own = {path for path, part in network.named_modules() if not type(part).__module__.startswith("torch.")}
    held = {key: value for key, value in checks.attributes(network).items() if key[0] in own and key[1] not in _FLAT}
    empty = ((path, name) for path, part in built.named_modules() for name, b in part._buffers.items() if b is None)
    return held | {(path, name): tables[path].get(name) for path, name in empty}


def _alike(one: Any, two: Any) -> bool:
    if type(one) is type(two) and isinstance(one, bool | int | float | str | None):
        return one == two
    empty = isinstance(one, dict) and isinstance(two, dict) and not (one or two)  # as tables of hooks are, mostly
    return empty or one is two or identity.describe(one) == identity.describe(two)


def tell_of_attributes(before: Ensemble, after: Ensemble) -> None:
    """Say that networks count or remember something in Python, where no run keeps it."""
    if (changed := remembered(before, after)) is not None:
        warnings.warn(
            f"{type(before.skeleton).__name__} changes its attribute {changed!r} while it runs; a run keeps "
            "parameters and buffers alone, so register it as a buffer if its outputs depend on it",
            stacklevel=3,
        )


def tell_of_modes(students: Ensemble, x: torch.Tensor) -> None:
    """Say that students are trained in eval mode, where training mode would give something else."""
    if students.stacks and not students.buffers:
        return
    x = x.expand(len(students.seeds), *x.shape)
    with torch.no_grad():
        one, two = (students.clone().run(x, (reading.OUTPUT,), mode)[0][reading.OUTPUT] for mode in ("eval", "train"))
    if not torch.allclose(one, two, rtol=1e-3, atol=1e-5, equal_nan=True):
        warnings.warn(
            f"{type(students.skeleton).__name__} is trained in eval mode: without dropout, and with batch norm's "
            "statistics as they were built; train(..., mode='train') trains it as it was built",
            stacklevel=4,
        )


class Saved:
    """The state of a run that is under way: written now and then, and taken up where the run was stopped.

    A state holds all that the coming steps depend on, so that a run which goes on is bit for bit the run that was never
    stopped: weights, buffers and moments, random streams, and what the stage began with. Kept copies of the weights
    are written once, in parts of their own.

    Args:
        runs: where; None writes nothing.
        key: the run's.
        every: least seconds between two states; more, where writing one takes over a hundredth of that; 0, after each
            step.
        students: as they were before the run. Once their networks, or a signal, keep something in Python, no state is
            written: a run that is stopped starts anew.
    """

    def __init__(self, runs: Store | None, key: str, every: float, students: Ensemble) -> None:
        self.runs, self.key, self.every, self.students = runs, key, every, students
        self.parts: list[str] = []
        self.written: set[int] = set()
        self.state: tuple[dict[str, torch.Tensor], dict[str, Any]] | None = None
        self.before, self.started = 0.0, time.perf_counter()
        self.due = self.started + every

    @property
    def seconds(self) -> float:
        """Seconds spent on the run, those before it was stopped among them."""
        return self.before + time.perf_counter() - self.started

    def load(self, loop: Any) -> tuple[int, int] | None:
        """Bring `loop` to the beginning of the stage that was under way: its index and its first step, or None."""
        found = self.runs.load(f"{self.key}-state") if self.runs is not None else None
        if found is None:
            return None
        tensors, meta = found
        parts = [self.runs.load(name) for name in meta["parts"]]
        if None in parts:
            return None
        for part, _ in parts:
            for name, tensor in part.items():
                step, name = name.split("/", 1)
                loop.snapshots.setdefault(int(step), {})[name] = tensor.to(loop.first_bad.device)
        self.parts, self.written, self.before = meta["parts"], set(loop.snapshots), meta["seconds"]
        loop.stages = [tuple(stage) for stage in meta["stages"]]
        loop.flops_so_far, loop.first_bad = meta["flops"], tensors["first bad"].to(loop.first_bad.device)
        curves = [tensors[f"curve/{i}"].numpy() for i in range(4)]
        loop.evaluations = [(int(step), float(spent), *scores) for step, spent, *scores in zip(*curves, strict=True)]
        _fill(loop.students, tensors, "entry/")
        self.state = found
        return meta["stage"], meta["first"]

    def restore(self, loop: Any) -> None:
        """Bring `loop`, which has entered the stage, to where it was inside; nothing, where no state was loaded."""
        if self.state is None:
            return
        (tensors, meta), self.state = self.state, None
        _fill(loop.students, tensors, "now/")
        with torch.no_grad():
            for name, own in loop.bound.parameters.items():
                own.copy_(tensors[f"signal/{name}"])
        loop.update.restore(_under(tensors, "rule/"), meta["rule"])
        for name, stream in loop.bound.generators.items():
            stream.set_state(tensors[f"drawn/{name}"])
        loop.samples.restore([tensors[f"data/{i}"] for i in range(len(loop.samples.streams))], meta["left"])
        loop.step, loop.flops_per_sample, loop.counted = meta["step"], meta["flops per sample"], meta["counted"]

    def tick(self, loop: Any, stage: int, first: int) -> None:
        """Write the state if it is time to; `stage` began after `first` steps."""
        if self.runs is None or time.perf_counter() < self.due or not hasattr(loop.update, "state"):
            return
        begun = time.perf_counter()
        taught = any(changed(*pair) for pair in loop.students.passes.pairs())
        if taught or loop.recalls or remembered(self.students, loop.students) is not None:  # what no state would hold
            self.due = float("inf")
            return
        new = {step: kept for step, kept in loop.snapshots.items() if step not in self.written}
        if new:
            name = f"{self.key}-part{min(new)}to{max(new)}"  # another process may be at the same run
            self.runs.save(name, {f"{step}/{n}": t for step, kept in new.items() for n, t in kept.items()}, {})
            self.parts, self.written = [*self.parts, name], set(loop.snapshots)
        rule, plain = loop.update.state()
        now = {**loop.students.parameters, **loop.students.buffers}
        curves = [np.array(column) for column in zip(*loop.evaluations, strict=True)]
        tensors = {f"curve/{i}": torch.from_numpy(curve) for i, curve in enumerate(curves)}
        tensors |= {"first bad": loop.first_bad}
        tensors |= {f"data/{i}": state for i, state in enumerate(loop.samples.before)}
        tensors |= {f"drawn/{name}": stream.get_state() for name, stream in loop.bound.generators.items()}
        for kind, group in (("entry", loop.entry), ("now", now), ("signal", loop.bound.parameters), ("rule", rule)):
            tensors |= {f"{kind}/{name}": tensor for name, tensor in group.items()}
        meta = {
            "stage": stage, "first": first, "step": loop.step, "left": len(loop.samples.drawn), "stages": loop.stages,
            "flops": loop.flops_so_far, "flops per sample": loop.flops_per_sample, "counted": loop.counted,
            "seconds": self.seconds, "rule": plain, "parts": self.parts,
        }  # fmt: skip
        self.runs.save(f"{self.key}-state", tensors, meta)
        now = time.perf_counter()
        self.due = now + max(self.every, (now - begun) / SHARE) if self.every else now

    def discard(self) -> None:
        """Remove what was written: the run is over."""
        if self.runs is not None:
            for name in (f"{self.key}-state", *self.parts):
                self.runs.discard(name)


def _under(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


@torch.no_grad()
def _fill(students: Ensemble, tensors: Mapping[str, torch.Tensor], prefix: str) -> None:
    state = _under(tensors, prefix)
    for name, parameter in students.parameters.items():
        parameter.copy_(state[name])
    students.buffers = {name: state[name].to(students.device) for name in students.buffers}
