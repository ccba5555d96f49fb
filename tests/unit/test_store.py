import ast
import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import warnings
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kdutils import curriculum, losses, projections, source
from kdutils.curriculum import Curriculum
from kdutils.lab import store, training
from kdutils.lab.ensemble import Ensemble
from kdutils.lab.store import Store
from kdutils.lab.training import train
from kdutils.signals import Labels
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


@pytest.mark.parametrize(
    ("value", "folder"),
    [
        ("~/runs", "home/runs"), ("~", "home"), ("$HOME/runs", "home/runs"), ("${HOME}/a b/läufe", "home/a b/läufe"),
        ("", "work/runs"), ("  ", "work/runs"), (None, "work/runs"), ("mine", "work/mine"), ("./a~b", "work/a~b"),
        ("../sibling", "sibling"),
    ],
)  # fmt: skip
def test_names_of_the_folder(value: str | None, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.delenv("KDUTILS_RUNS") if value is None else monkeypatch.setenv("KDUTILS_RUNS", value)
    runs = Store()
    monkeypatch.chdir(tmp_path)  # does not move the runs
    runs.save(KEY, TENSORS, META)
    assert runs.root == tmp_path / folder and same(runs.load(KEY))
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".safetensors"]


def test_a_folder_that_is_given_may_be_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert Store("~/a").root == Store(Path("~/a")).root == tmp_path / "a"
    assert Store(tmp_path / "$a").root == tmp_path / "$a"
    assert Store("").root == Store().root


@pytest.mark.parametrize("value", ["$NOT_SET/runs", "~nobody-of-this-name/runs"])
def test_a_folder_that_nobody_knows_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDUTILS_RUNS", value)
    with pytest.raises(ValueError, match="stands for"):
        Store()


def test_work_goes_on_where_the_folder_is_gone(tmp_path: Path) -> None:
    code = """
        import os, torch, warnings
        from kdutils.lab.store import Store
        torch.ones(2, 2) @ torch.ones(2, 2)  # loads what torch reads from its folder
        os.environ.pop("KDUTILS_RUNS", None)
        os.chdir("gone"); os.rmdir(os.getcwd())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            runs = Store()
            for _ in range(2):
                runs.save("a", {"x": torch.ones(1)}, {}), runs.load("a")
        print(len(caught))
    """
    (tmp_path / "gone").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(Path(store.__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.stdout.strip(), done.returncode) == ("1", 0), done.stderr


def test_a_folder_that_cannot_be_read_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", refuse)
    runs = Store(tmp_path)
    with pytest.warns(UserWarning, match="cannot be read") as caught:
        assert runs.load("a") is None and runs.load("b") is None
    assert len(caught) == 1


def test_others_may_read_what_is_kept(kept: Store) -> None:
    (kept.root / "as usual").touch()
    assert kept.path(KEY).stat().st_mode == (kept.root / "as usual").stat().st_mode


# ---- what is not this run ----


def test_another_runs_file_does_not_answer(kept: Store) -> None:
    shutil.copy(kept.path(KEY), kept.path("another"))
    with pytest.warns(UserWarning, match="another name"):
        assert kept.load("another") is None


def test_a_file_of_an_earlier_version_does_not_answer(kept: Store) -> None:
    meta = {"seconds": 1.0}
    text = json.dumps({**meta, "digest": store._checksum({"a": torch.ones(2)}, meta)})
    store.save_file({"a": torch.ones(2)}, kept.path(KEY), metadata={"kdutils": text})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kept.load(KEY) is None


@pytest.mark.parametrize("meta", [None, {}, {"kdutils": "[]"}, {"kdutils": "1"}, {"kdutils": "{"}, {"kdutils": "{}"}])
def test_a_foreign_file_does_not_answer(kept: Store, meta: dict | None) -> None:
    store.save_file({"a": torch.zeros(2)}, kept.path(KEY), metadata=meta)
    with pytest.warns(UserWarning, match="damaged"):
        assert kept.load(KEY) is None


def test_a_folder_in_its_place_does_not_answer(tmp_path: Path) -> None:
    runs = Store(tmp_path)
    runs.path(KEY).mkdir()
    with pytest.warns(UserWarning):
        assert runs.load(KEY) is None
        runs.save(KEY, TENSORS, META)


# ---- what comes back ----


def test_tensors_of_all_kinds_come_back(kept: Store) -> None:
    whole = torch.arange(12.0).view(3, 4)
    tensors = {
        "z": whole, "tied": whole, "row": whole[1], "column": whole[:, 1], "turned": whole.T, "empty": whole[:0],
        "number": torch.tensor(3), "truth": torch.tensor([True, False]), "bf16": torch.ones(3).bfloat16(),
        "half": torch.ones(2).half(), "double": torch.ones(2).double(), "complex": torch.ones(2, dtype=torch.complex64),
        "conjugate": torch.full((2,), 1 + 2j).conj(), "complex number": torch.tensor(1j, dtype=torch.complex128),
        "trained": torch.ones(2, requires_grad=True), "infinite": torch.tensor([torch.inf, torch.nan]), "a": whole + 1,
        "expanded": torch.ones(1).expand(3), "byte": torch.ones(3, dtype=torch.uint8), "a/b.c ü": whole,
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept.save("all", tensors, META)
        found = kept.load("all")
    assert found is not None and found[1] == META
    assert list(found[0]) == list(tensors), "in the order in which they were saved"
    for name, tensor in tensors.items():
        assert found[0][name].dtype == tensor.dtype and found[0][name].shape == tensor.shape, name
        assert torch.equal(found[0][name].nan_to_num(), tensor.nan_to_num()), name
    found[0]["z"].zero_()
    assert found[0]["tied"].any(), "each has memory of its own"


def test_no_tensors_at_all_come_back(kept: Store) -> None:
    kept.save("none", {}, META)
    assert kept.load("none") == ({}, META)


@pytest.mark.filterwarnings("ignore:.*quantize:UserWarning")
@pytest.mark.parametrize(
    ("tensor", "meta"),
    [
        (torch.eye(2).to_sparse(), {}),
        (torch.ones(2, device="meta"), {}),
        (torch.ones(2), {"a": {1, 2}}),
        (torch.ones(2), {"a": torch.ones(2)}),
    ],
    ids=["sparse", "without data", "a set", "a tensor"],
)
def test_what_no_file_can_hold_is_said(kept: Store, tensor: torch.Tensor, meta: dict) -> None:
    with pytest.warns(UserWarning, match="not kept") as caught:
        kept.save("odd", {"a": tensor}, meta)
    assert len(caught) == 1 and [path.name for path in kept.root.iterdir()] == [f"{KEY}.safetensors"]
    kept.save("next", TENSORS, META)
    assert same(kept.load("next"))


def test_numbers_of_numpy_in_the_metadata(kept: Store) -> None:
    kept.save("numbers", TENSORS, {"a": np.int64(1), "b": [np.float32(0.5)], "c": np.bool_(True)})
    found = kept.load("numbers")
    assert found is not None and found[1] == {"a": 1, "b": [0.5], "c": True}


def test_two_processes_may_keep_the_same_run_at_once(tmp_path: Path) -> None:
    code = f"""
        import sys, torch, warnings
        from kdutils.lab.store import Store
        warnings.simplefilter("error")
        runs, tensors = Store({str(tmp_path)!r}), {{"x": torch.arange(100_000.0)}}
        sys.stdin.readline()  # both are there
        for _ in range(30):
            runs.save("same", tensors, {{}})
            assert torch.equal(runs.load("same")[0]["x"], tensors["x"])
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(store.__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment,
        )
        for _ in range(2)
    ]  # fmt: skip
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    errors = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert [path.name for path in tmp_path.iterdir()] == ["same.safetensors"]


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


def test_the_key_changes_with_the_code_and_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    before = store.key({"steps": 1})
    assert store.key({"steps": 1}) == store.key({"steps": np.int64(1)}) == before != store.key({"steps": 2})
    with monkeypatch.context() as patched:
        patched.setattr(store, "source_hash", lambda: "edited")
        assert store.key({"steps": 1}) != before
    with monkeypatch.context() as patched:
        patched.setattr(torch, "__version__", "0.1")
        assert store.key({"steps": 1}) != before
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert store.key({"steps": 1}) != before
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        assert store.key({"steps": 1}) != before
    finally:
        torch.set_default_dtype(default)
    assert store.key({"steps": 1}) == before


@pytest.mark.parametrize(
    ("where", "name", "value"),
    [
        (training, "CALIBRATION", 64),
        (losses, "mean", lambda values, counts=None: values.sum(-1)),
        (training._Loop, "advance", lambda self, bound, step: None),
        (MLP, "forward", lambda self, x: x),
    ],
    ids=["a number", "a function", "a method", "a network's method"],
)
def test_the_key_changes_with_what_somebody_puts_in_place_of_it(
    where: Any, name: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = store.key({})
    monkeypatch.setattr(where, name, value)
    assert store.key({}) != before
    monkeypatch.undo()
    assert store.key({}) == before


def test_source_hash_reads_what_the_code_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(source._ROOT, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(source, "_ROOT", tmp_path)
    compute = store.source_hash.__wrapped__
    before = compute()
    loop = tmp_path / "lab/training.py"
    code = loop.read_text(encoding="utf-8")

    docstring = ast.get_docstring(ast.parse(code))
    assert docstring is not None
    loop.write_text("# a remark\n" + code.replace(docstring, "Another text.") + "\n\n# the end\n", encoding="utf-8")
    assert compute() == before
    loop.write_text(code.replace("CALIBRATION = 1024", "CALIBRATION = 1025"), encoding="utf-8")
    assert compute() != before
    loop.write_text(code, encoding="utf-8")
    for room in ("pages/plots", "lab/stats", "tasks/parity"):
        with (tmp_path / f"{room}.py").open("a") as file:
            file.write("\nMORE = 1\n")
    assert compute() == before


# ---- what cannot be seen ----


@dataclass(frozen=True)
class Locked(SparseParity):
    """A task that holds a lock."""

    lock: Any = field(default_factory=threading.Lock, compare=False)


def go(runs: Store | None, task: SparseParity | None = None, **options: Any) -> training.Run:
    students = Ensemble(partial(MLP, 4, 3), [1], [0.1])
    settings = {"steps": 2, "batch": 4, "evaluate_every": 2, "held_out": 16, "runs": runs, **options}
    return train(students, task or Locked(4, 2), curriculum.from_labels(), **settings)


def test_a_run_on_what_cannot_be_seen_is_not_kept_and_said_once(tmp_path: Path) -> None:
    runs = Store(tmp_path)
    with pytest.warns(UserWarning, match=r"attribute `lock` of `Locked` \(lock\).*version=") as caught:
        first, again = go(runs), go(runs)
    assert len(caught) == 1 and not list(tmp_path.iterdir())
    assert np.array_equal(first.loss, again.loss)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        go(None)  # nothing would be kept anyway


def test_a_version_vouches_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Store(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, other = go(runs, version="1"), go(runs, version="2")
        plain = go(runs, SparseParity(4, 2)), go(runs, SparseParity(4, 2), version="1")
    assert len({first.key, other.key, *(run.key for run in plain)}) == 4 == len(list(tmp_path.iterdir()))
    monkeypatch.setattr(training, "_Loop", None)
    assert go(runs, version="1").seconds == first.seconds
    with pytest.raises(TypeError):
        go(runs, Locked(4, 2, (1, 2)), version="1")  # what can be seen counts as ever


def test_several_things_are_counted(tmp_path: Path) -> None:
    settings = {"a": {"unseen": ["x", "y"]}, "b": {"unseen": ["y", "z"]}, "c": 1, "version": None}
    with pytest.warns(UserWarning, match="depends on x and 2 more"):
        assert not Store(tmp_path).accepts(settings)
    assert Store(tmp_path).accepts({**settings, "version": "1"}) and Store(tmp_path).accepts({"c": 1})


def test_what_is_set_for_all_of_torch_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [store.key({})]
    for kind in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", kind):
            keys.append(store.key({}))
    handle = nn.modules.module.register_module_forward_hook(lambda module, inputs, output: 2 * output)
    keys.append(store.key({}))
    handle.remove()
    assert len(set(keys)) == 4 and store.key({}) == keys[0]


def test_functions_put_into_libraries_count(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.GELU()
    before = store.describe(network)["sha256"]
    monkeypatch.setattr(nn.functional, "gelu", lambda x, approximate="none": x)
    assert store.describe(network)["sha256"] != before


@dataclass(frozen=True)
class Shared(Curriculum):
    """A curriculum of one's own, whose stages share the budget."""

    share: float = 0.5

    def lengths(self, total: int) -> list[int]:
        return [int(self.share * total), total - int(self.share * total)]


def test_a_curriculum_of_ones_own_counts_as_a_whole() -> None:
    stages = (curriculum.Stage(Labels(), 5), curriculum.Stage(Labels()))
    keys = {share: run_key(Shared("shared", stages, share=share)) for share in (0.2, 0.8)}
    assert keys[0.2] != keys[0.8] and run_key(Shared("shared", stages, share=0.2)) == keys[0.2]


class Plain:
    """The least that a signal has to have."""

    def bind(self, students: Any, x: Any, y: Any = None) -> Any:
        return Labels().bind(students, x, y)


def test_a_signal_without_a_text_of_its_own_is_found_again() -> None:
    keys = {run_key(Curriculum("own", (curriculum.Stage(Plain()),))) for _ in range(2)}
    assert len(keys) == 1, "the text of an object names its place in memory"


PRECISE = """
import torch
from kdutils.lab import store
before = store.key({"steps": 1})
torch.backends.cuda.matmul.fp32_precision = "tf32"
print(store.key({"steps": 1}) != before)
torch.backends.cuda.matmul.fp32_precision = "ieee"
print(store.key({"steps": 1}) == before)
"""


def test_how_exactly_backends_multiply_counts_however_it_was_set() -> None:
    done = subprocess.run([sys.executable, "-c", PRECISE], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True", "True"], done.stderr[-500:]
