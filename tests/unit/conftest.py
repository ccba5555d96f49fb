"""What the unit tests share: no files outside a temporary folder, and runs made of given accuracies."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from kdutils.lab.ensemble import Ensemble
from kdutils.lab.training import Run
from kdutils.tasks.models import MLP

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDUTILS_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("KDUTILS_RESULTS", str(tmp_path / "results"))
    monkeypatch.delenv("KDUTILS_PROFILE", raising=False)


@pytest.fixture
def fake_run() -> Callable[..., Run]:
    """A run that was never trained: its curves are the accuracies (T, members) given."""

    def make(
        accuracy: Sequence[Sequence[float]],
        seeds: Sequence[int],
        rates: Sequence[float] = (1.0,),
        every: int = 10,
        batch: int = 4,
        flops_a_step: float = 100.0,
        budget_steps: int | None = None,
    ) -> Run:
        values = np.asarray(accuracy, dtype=np.float32)
        steps = np.arange(len(values)) * every
        return Run(
            steps=steps,
            samples=steps * batch,
            flops=steps * flops_a_step,
            accuracy=values,
            loss=1 - values,
            stages=[("labels", 0, int(steps[-1]))],
            seconds=1.25,
            peak_memory=2**20,
            device="cpu, 1 threads",
            settings={"steps": budget_steps or int(steps[-1]), "batch": batch},
            key="0123456789abcdef0123",
            students=Ensemble(partial(MLP, 3, 2), seeds, rates),
            snapshots={},
        )

    return make
