import warnings
from functools import partial

import numpy as np
import pytest
import torch

from kdutils import curriculum, store
from kdutils.curriculum import Curriculum, Stage
from kdutils.ensemble import Ensemble
from kdutils.models import MLP
from kdutils.parity import SparseParity
from kdutils.signals import Labels
from kdutils.training import DivergenceError, train

TASK = SparseParity(6, 2)
TEACHER = MLP(6, 24)


def students(rates=(0.1, 0.5)):
    return Ensemble(partial(MLP, 6, 8), [1, 2], rates)


def fit(plan, **options):
    return train(students(), TASK, plan, **{"steps": 40, "batch": 16, "evaluate_every": 10, "held_out": 256, **options})


def test_a_run_is_a_function_of_its_settings_and_leaves_the_students_alone():
    group = students()
    before = store.digest(group.parameters)
    first, again = (train(group, TASK, curriculum.extracted(TEACHER, steps=10), steps=40, batch=16) for _ in range(2))
    assert store.digest(group.parameters) == before
    assert store.digest(first.students.parameters) == store.digest(again.students.parameters) != before
    assert first.key == again.key


def test_parity_is_learned_and_until_stops_the_sweep():
    run = train(
        Ensemble(partial(MLP, 6, 32), [1, 2], [1e-4, 0.5]), TASK, curriculum.from_labels(), steps=4000, until=0.99
    )
    assert run.steps[-1] < 4000 and (run.accuracy[:, 2:].max(0) >= 0.99).all() and (run.accuracy[-1, :2] < 0.99).all()


def test_stages_are_recorded_and_hidden_stage_leaves_the_readout_alone():
    run = fit(curriculum.extracted(TEACHER, steps=15), keep_every=15)
    assert [(a, b) for _, a, b in run.stages] == [(0, 15), (15, 40)] and 15 in run.steps
    start, after = students().parameters, run.snapshots[15]
    assert torch.equal(after["readout.weight"], start["readout.weight"])
    assert not torch.equal(after["hidden.weight"], start["hidden.weight"])
    torch.testing.assert_close(run.network(1, 30).hidden.weight, run.snapshots[30]["hidden.weight"][1])
    with pytest.raises(ValueError, match="15, 30"):
        run.network(1, 7)


def test_flops_are_those_of_the_matrix_products():
    forward = 2 * (6 * 8 + 8 * 2)
    backward = 2 * 6 * 8 + 2 * 2 * 8 * 2  # both weight gradients, and the readout's input gradient
    labels = fit(curriculum.from_labels())
    assert labels.flops[-1] == 40 * 16 * (forward + backward)
    assert fit(curriculum.one_shot(TEACHER)).flops[-1] == labels.flops[-1] + 40 * 16 * 2 * (6 * 24 + 24 * 2)
    hidden = fit(curriculum.extracted(TEACHER, steps=10)).flops[1] / (10 * 16)
    assert hidden == 2 * 6 * 24 + 2 * 24 * 8 + 2 * 2 * 6 * 8  # teacher's layer, projection, student's layer twice


def test_divergence_says_who_when_and_what_to_do():
    with pytest.raises(DivergenceError, match=r"member 2 \(seed 1, learning rate 1e\+30\).*step \d+: try a smaller"):
        train(students((0.1, 1e30)), TASK, curriculum.from_labels(), steps=40, batch=16, evaluate_every=10)


def test_curricula_print_and_check_themselves():
    text = str(curriculum.progressive({"checkpoint 5": TEACHER}, TEACHER, 1500))
    assert "1,500  output of checkpoint 5" in text and "rest  output of final teacher" in text
    with pytest.raises(ValueError, match="only the last"):
        Curriculum("x", (Stage(Labels()), Stage(Labels(), 3)))
    with pytest.raises(ValueError, match="at least one"):
        Curriculum("x", (Stage(Labels(), 0),))
    with pytest.raises(ValueError, match="at least 51 steps; the budget is 50"):
        curriculum.extracted(TEACHER, steps=50).lengths(50)


@pytest.mark.parametrize("plan", [curriculum.fitnets(TEACHER, steps=20), curriculum.joint(TEACHER, 0.5)], ids=str)
def test_other_methods_run_through_the_same_loop(plan):
    run = fit(plan)
    assert np.isfinite(run.loss).all() and run.steps[-1] == 40


def test_store_returns_the_run_without_training(tmp_path, monkeypatch):
    kept = store.Store(tmp_path / "runs")
    first = fit(curriculum.one_shot(TEACHER), runs=kept, keep_every=20)
    monkeypatch.setattr("kdutils.training._Loop", None)
    again = fit(curriculum.one_shot(TEACHER), runs=kept, keep_every=20)
    assert np.array_equal(first.accuracy, again.accuracy) and np.array_equal(first.flops, again.flops)
    assert store.digest(first.snapshots[20]) == store.digest(again.snapshots[20])
    assert store.digest(first.students.parameters) == store.digest(again.students.parameters)
    assert (first.stages, first.seconds, first.device) == (again.stages, again.seconds, again.device)
    assert [p.suffix for p in (tmp_path / "runs").iterdir()] == [".safetensors"]


@pytest.mark.parametrize("harm", ["cut", "flip", "empty"])
def test_damaged_runs_are_noticed_and_computed_again(tmp_path, harm):
    kept = store.Store(tmp_path)
    first = fit(curriculum.from_labels(), runs=kept)
    path = kept.path(first.key)
    data = bytearray(path.read_bytes())
    data[-1] ^= 255
    path.write_bytes({"cut": bytes(data[:-20]), "flip": bytes(data), "empty": b""}[harm])
    with pytest.warns(UserWarning, match="damaged"):
        again = fit(curriculum.from_labels(), runs=kept)
    assert np.array_equal(first.accuracy, again.accuracy)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(curriculum.from_labels(), runs=kept)


def test_a_store_that_cannot_be_written_warns_once(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    kept = store.Store(tmp_path / "file")
    with pytest.warns(UserWarning, match="KDUTILS_RUNS"):
        fit(curriculum.from_labels(), runs=kept)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(curriculum.from_labels(), runs=kept)


def test_an_interrupted_run_leaves_nothing_behind(tmp_path, monkeypatch):
    kept = store.Store(tmp_path)

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "save_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fit(curriculum.from_labels(), runs=kept)
    assert list(tmp_path.iterdir()) == []


def test_keys_change_with_what_a_run_depends_on(tmp_path):
    keys = {fit(curriculum.from_labels(), steps=n).key for n in (20, 30)}
    keys |= {fit(curriculum.one_shot(net)).key for net in (TEACHER, MLP(6, 24))}
    assert len(keys) == 4
    assert "source" in store.describe(lambda x: x)
    with pytest.raises(TypeError, match="dataclass"):
        store.describe(object())
