import ast
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from kdutils import curriculum, projections
from kdutils.curriculum import Curriculum
from kdutils.lab import store
from kdutils.lab.ensemble import Ensemble
from kdutils.lab.store import Store, describe
from kdutils.lab.training import train
from kdutils.tasks.models import MLP
from kdutils.tasks.parity import SparseParity

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b/c": torch.tensor(7), "empty": torch.empty(0, 3)}
META = {"seconds": 1.5, "stages": [["labels", 0, 4]]}
PARITY = SparseParity(4, 2)
KEY = "0123456789abcdef0123"


@pytest.fixture
def kept(tmp_path: Path) -> Store:
    runs = Store(tmp_path / "kept")
    runs.save(KEY, TENSORS, META)
    return runs


def same(found: tuple | None) -> bool:
    if found is None:
        return False
    tensors, meta = found
    return meta == META and store.digest(tensors) == store.digest(TENSORS)


def test_round_trip(kept: Store) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(kept.load(KEY))
        assert kept.load("another") is None


def test_only_the_run_is_left_in_the_folder(kept: Store) -> None:
    assert [path.name for path in kept.root.iterdir()] == [f"{KEY}.safetensors"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failed_write_leaves_nothing(
    kept: Store, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def fail(tensors: dict, path: str, metadata: dict) -> None:
        Path(path).write_bytes(b"half")
        raise error("interrupted")

    monkeypatch.setattr(store, "save_file", fail)
    before = kept.path(KEY).read_bytes()
    with (
        pytest.raises(KeyboardInterrupt)
        if error is KeyboardInterrupt
        else pytest.warns(UserWarning, match="cannot be kept")
    ):
        kept.save(KEY, {"a": torch.zeros(2)}, {})
    assert [path.name for path in kept.root.iterdir()] == [f"{KEY}.safetensors"]
    assert kept.path(KEY).read_bytes() == before


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_truncated(kept: Store, share: float) -> None:
    data = kept.path(KEY).read_bytes()
    kept.path(KEY).write_bytes(data[: int(len(data) * share)])
    with pytest.warns(UserWarning, match="damaged"):
        assert kept.load(KEY) is None


def flips(kept: Store, positions: range) -> list[int]:
    """The positions at which a flipped bit gave contents that were changed and not reported."""
    data = kept.path(KEY).read_bytes()
    missed = []
    for position in positions:
        kept.path(KEY).write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = kept.load(KEY)
        reported = found is None and any("damaged" in str(w.message) for w in caught)
        if not reported and not same(found):
            missed.append(position)
    return missed


def test_a_flipped_bit_in_the_numbers_is_noticed(kept: Store) -> None:
    size = kept.path(KEY).stat().st_size
    header = int.from_bytes(kept.path(KEY).read_bytes()[:8], "little") + 8
    assert flips(kept, range(header, size)) == []


def test_a_flipped_bit_in_the_header_is_noticed(kept: Store) -> None:
    header = int.from_bytes(kept.path(KEY).read_bytes()[:8], "little") + 8
    data = kept.path(KEY).read_bytes()
    missed = flips(kept, range(header))
    assert not missed, "".join(chr(data[i]) for i in missed)


def test_a_file_without_a_checksum_is_damaged(kept: Store) -> None:
    store.save_file({"a": torch.zeros(2)}, kept.path(KEY))
    with pytest.warns(UserWarning, match="damaged"):
        assert kept.load(KEY) is None


def test_a_root_that_is_a_file_warns_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    runs = Store(tmp_path / "file")
    with pytest.warns(UserWarning, match="KDUTILS_RUNS") as caught:
        runs.save(KEY, TENSORS, META)
        runs.save(KEY, TENSORS, META)
        assert runs.load(KEY) is None
    assert len(caught) == 1
    assert (tmp_path / "file").read_text() == "not a folder"


def test_folder_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDUTILS_RUNS", str(tmp_path / "elsewhere"))
    assert Store().root == tmp_path / "elsewhere"
    assert Store(tmp_path).root == tmp_path
    assert not (tmp_path / "elsewhere").exists()


def test_digest_tells_names_shapes_types_and_values_apart() -> None:
    a = torch.arange(6.0)
    different = [{"x": a}, {"y": a}, {"x": a.view(2, 3)}, {"x": a.view(torch.int32)}, {"x": a + 1e-6}, {"x": a, "y": a}]
    assert len({store.digest(tensors) for tensors in different}) == len(different)
    assert store.digest({"x": a, "y": -a}) == store.digest({"y": -a, "x": a})
    assert store.digest({"x": a.view(2, 3).T.contiguous().T}) == store.digest({"x": a.view(2, 3)})


def run_key(
    plan: Curriculum,
    task: SparseParity = PARITY,
    rates: tuple = (0.1,),
    seeds: tuple = (1,),
    **options: int,
) -> str:
    students = Ensemble(partial(MLP, 4, 3), seeds, rates)
    return train(students, task, plan, **{"steps": 2, "batch": 4, "evaluate_every": 2, "held_out": 16, **options}).key


def test_key_changes_with_everything_a_run_depends_on() -> None:
    teacher, other = MLP(4, 5), MLP(4, 5)
    other.load_state_dict(teacher.state_dict())
    with torch.no_grad():
        other.readout.bias[0] += 1e-3
    labels, extracted = curriculum.from_labels(), partial(curriculum.extracted, steps=1)
    keys = [
        run_key(labels),
        run_key(labels, SparseParity(4, 2, (1, 2))),
        run_key(labels, rates=(0.2,)),
        run_key(labels, rates=(0.1, 0.2)),
        run_key(labels, seeds=(2,)),
        run_key(labels, steps=3),
        run_key(labels, batch=5),
        run_key(labels, evaluate_every=1),
        run_key(labels, held_out=17),
        run_key(labels, until=0.9),
        run_key(labels, keep_every=1),
        run_key(curriculum.one_shot(teacher)),
        run_key(curriculum.one_shot(other)),
        run_key(curriculum.one_shot(teacher, 2.0)),
        run_key(extracted(teacher)),
        run_key(extracted(other)),
        run_key(extracted(teacher, projection=projections.rademacher)),
        run_key(extracted(teacher, [("hidden", "act")])),
        run_key(extracted(teacher, [("act", "hidden")])),
        run_key(curriculum.joint(teacher, 0.5)),
        run_key(curriculum.joint(teacher, 0.6)),
    ]
    assert len(set(keys)) == len(keys)
    assert run_key(labels) == keys[0]


def test_key_changes_with_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    before = store.key({"steps": 1})
    assert store.key({"steps": 1}) == before
    monkeypatch.setattr(store, "source_hash", lambda: "edited")
    assert store.key({"steps": 1}) != before


def test_source_hash_reads_what_the_code_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(store._ROOT, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(store, "_ROOT", tmp_path)
    monkeypatch.setattr(store, "room_hash", store.room_hash.__wrapped__)
    compute = store.source_hash.__wrapped__
    before = compute()
    training = tmp_path / "lab/training.py"
    code = training.read_text(encoding="utf-8")

    docstring = ast.get_docstring(ast.parse(code))
    assert docstring is not None
    training.write_text("# a remark\n" + code.replace(docstring, "Another text.") + "\n\n# the end\n", encoding="utf-8")
    assert compute() == before
    training.write_text(code.replace("CALIBRATION = 1024", "CALIBRATION = 1025"), encoding="utf-8")
    assert compute() != before
    training.write_text(code, encoding="utf-8")

    with (tmp_path / "pages/plots.py").open("a") as file:
        file.write("\nMORE = 1\n")
    assert compute() == before
    parity = store.describe(SparseParity)
    with (tmp_path / "tasks/parity.py").open("a") as file:
        file.write("\nMORE = 1\n")
    assert compute() == before and store.describe(SparseParity) != parity


@dataclass(frozen=True)
class Setting:
    size: int
    make: Callable | None = None


class Own(nn.Module):
    pass


def test_plain_data_describes_itself() -> None:
    data = {"a": [1, 2.5, None, True], "b": {"c": "d"}}
    assert describe(data) == data
    assert describe((1, (2,))) == [1, [2]]


def test_user_code_is_described_with_its_source() -> None:
    for thing in (lambda x: x, run_key, Own, Own(), Setting(1), partial(run_key, 1)):
        assert "source" in describe(thing), thing
    for thing in (projections.gaussian, MLP, MLP(2, 2), curriculum.from_labels(), nn.Linear(2, 2)):
        assert "source" not in describe(thing), thing


def test_fields_and_arguments_count() -> None:
    assert describe(Setting(1)) != describe(Setting(2))
    assert describe(Setting(1)) == describe(replace(Setting(2), size=1))
    assert describe(Setting(1, projections.pca)) != describe(Setting(1, projections.neurons))
    assert describe(partial(run_key, 1)) != describe(partial(run_key, 2))
    assert describe(partial(run_key, batch=1)) != describe(partial(run_key, batch=2))


def scaled(factor: float) -> Callable:
    def projection(hidden: torch.Tensor, width: int, generator: torch.Generator) -> torch.Tensor:
        return factor * projections.gaussian(hidden, width, generator)

    return projection


def test_what_a_function_captured_counts() -> None:
    assert describe(scaled(1.0)) != describe(scaled(2.0))
    assert describe(scaled(1.0)) == describe(scaled(1.0))


def test_networks_are_told_apart_by_weights_and_structure() -> None:
    first, second = MLP(3, 4), MLP(3, 4)
    assert describe(first) != describe(second)
    second.load_state_dict(first.state_dict())
    assert describe(first) == describe(second)
    assert describe(nn.Sequential(nn.ReLU())) != describe(nn.Sequential(nn.Tanh()))
    assert describe(torch.ones(2)) != describe(torch.ones(3))


@pytest.mark.parametrize("thing", [object(), {1, 2}, np.ones(2)])
def test_unknown_objects_are_refused(thing: object) -> None:
    with pytest.raises(TypeError, match=f"{type(thing).__name__}.*dataclass"):
        describe({"deep": [thing]})
