"""`train` with a store: runs are found again, computed again where they are damaged, and never needed."""

import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from kdutils import curriculum
from kdutils.curriculum import Curriculum
from kdutils.lab import store
from kdutils.lab.ensemble import Ensemble
from kdutils.lab.store import Store
from kdutils.lab.training import Run, train
from kdutils.tasks.models import MLP
from kdutils.tasks.parity import SparseParity

TASK = SparseParity(6, 2)
TEACHER = MLP(6, 24)
OPTIONS = {"steps": 20, "batch": 8, "evaluate_every": 5, "held_out": 128}


def fit(plan: Curriculum, runs: Store, **options: int) -> Run:
    return train(Ensemble(partial(MLP, 6, 8), (1, 2), (0.1, 0.5)), TASK, plan, runs=runs, **{**OPTIONS, **options})


@pytest.mark.parametrize(
    "plan", [curriculum.one_shot(TEACHER), curriculum.extracted(TEACHER, steps=7)], ids=lambda plan: plan.name
)
def test_a_stored_run_is_the_run(plan: Curriculum, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fit(plan, runs=Store(tmp_path), keep_every=5)
    monkeypatch.setattr("kdutils.lab.training._Loop", None)
    again = fit(plan, runs=Store(tmp_path), keep_every=5)
    for name in ("steps", "samples", "flops", "accuracy", "loss"):
        before, after = getattr(first, name), getattr(again, name)
        assert before.dtype == after.dtype and np.array_equal(before, after), name
    for name in ("stages", "seconds", "peak_memory", "device", "settings", "key", "budget"):
        assert getattr(first, name) == getattr(again, name), name
    x = torch.ones(3, 6)
    assert list(first.snapshots) == list(again.snapshots) == [5, 10, 15, 20]
    for step in (None, *first.snapshots):
        for member in range(4):
            assert torch.equal(first.network(member, step)(x), again.network(member, step)(x))
    assert store.digest(first.students.parameters) == store.digest(again.students.parameters)
    for step in first.snapshots:
        assert store.digest(first.snapshots[step]) == store.digest(again.snapshots[step])
    assert [path.name for path in tmp_path.iterdir()] == [f"{first.key}.safetensors"]
    with pytest.raises(TypeError):
        fit(plan, runs=Store(tmp_path), keep_every=5, steps=21)


def test_stored_students_are_known_as_the_same(tmp_path: Path) -> None:
    """Going on from a run that was read gives the same key as going on from the run itself."""
    first, again = (fit(curriculum.from_labels(), runs=Store(tmp_path)) for _ in range(2))
    assert store.describe(first.students) == store.describe(again.students)


def without_a_warning(runs: Store) -> Run:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return fit(curriculum.from_labels(), runs)


@pytest.mark.parametrize("harm", ["cut", "flip", "empty"])
def test_a_damaged_run_is_computed_again_and_kept(tmp_path: Path, harm: str) -> None:
    runs = Store(tmp_path)
    first = without_a_warning(runs)
    path = runs.path(first.key)
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[:-20], "flip": whole[:-1] + bytes([whole[-1] ^ 255]), "empty": b""}[harm])
    with pytest.warns(UserWarning, match="damaged"):
        again = fit(curriculum.from_labels(), runs)
    assert np.array_equal(first.accuracy, again.accuracy) and np.array_equal(first.loss, again.loss)
    assert without_a_warning(runs).seconds == again.seconds  # read, not trained a third time


def test_training_goes_on_without_a_folder_that_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    runs = Store(tmp_path / "file")
    with pytest.warns(UserWarning, match="KDUTILS_RUNS") as caught:
        first = fit(curriculum.from_labels(), runs)
    assert len(caught) == 1
    again = without_a_warning(runs)
    assert np.array_equal(first.loss, again.loss)
