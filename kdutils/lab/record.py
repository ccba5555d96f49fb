"""What a call of `train` leaves behind, and how it is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from kdutils.lab.ensemble import Ensemble


@dataclass
class Run:
    """What came out of one call of `train`. `T` evaluations, `M` members.

    Attributes:
        steps: (T,) optimiser steps done at each evaluation.
        samples: (T,) fresh training samples each member has seen.
        flops: (T,) floating-point operations spent on one member, forward and backward, its teacher's
            forward passes included.
        accuracy, loss: (T, M) on held-out samples, against the true labels; loss is cross-entropy in nats.
        stages: (description, first step, last step) of each stage.
        seconds: wall-clock time of the loop on `device`, all members together.
        peak_memory: the most bytes in use by then: of the process on a CPU, of torch's allocations on a GPU.
        settings: everything the run is a function of, as plain data.
        key: its name in the store.
        students: the trained ensemble.
        snapshots: {step: stacked parameters} where `keep_every` asked for them.
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
    tensors |= {f"final/{name}": p for name, p in run.students.parameters.items()}
    for step, snapshot in run.snapshots.items():
        tensors |= {f"snapshot/{step}/{name}": p for name, p in snapshot.items()}
    kept = ("stages", "seconds", "peak_memory", "device", "settings")
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
    return Run(
        **curve, samples=curve["steps"] * settings["batch"], stages=[tuple(s) for s in meta["stages"]],
        seconds=meta["seconds"], peak_memory=meta["peak_memory"], device=meta["device"], settings=settings, key=key,
        students=students.with_parameters(final), snapshots=dict(sorted(snapshots.items())),
    )  # fmt: skip
