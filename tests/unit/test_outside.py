"""What a task, a signal or a network reads from outside while it runs: such a run is kept only with a `version`."""

import functools
import os
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from os import getenv as ge
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kdutils import curriculum
from kdutils.lab.ensemble import Ensemble
from kdutils.lab.store import Store
from kdutils.lab.training import Run, train
from kdutils.signals import Bound, Labels
from kdutils.tasks import outside


def fit(task: Any, runs: Store, **options: Any) -> Run:
    students = Ensemble(lambda: nn.Linear(3, 2), [1], [0.5])
    options = {"steps": 5, "batch": 8, "held_out": 16, "progress": False, **options}
    return train(students, task, curriculum.from_labels(), runs=runs, **options)


@dataclass(frozen=True)
class Task:
    """Adds to its inputs what `look` returns."""

    look: Callable[[Path], Any]
    path: Path

    def sample(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(n, 3, generator=generator)
        return x + float(self.look(self.path)), (x[:, 0] > 0).long()


def opened(path: Path) -> str:
    with open(path) as file:
        return file.read()


def imported(path: Path) -> float:
    import colorsys

    return colorsys.rgb_to_hsv(1, 1, 1)[2]


def versioned(path: Path) -> float:
    from importlib import metadata

    return len(metadata.version("torch"))


LOOKS = {
    "open": (opened, "the file 'shift.txt' that `Task` opens"),
    "pathlib": (lambda path: path.read_text(), "the file 'shift.txt' that `Task` opens"),
    "numpy": (lambda path: np.loadtxt(path), "the file 'shift.txt' that `Task` opens"),
    "torch's stream": (
        lambda path: torch.rand(()),
        "random numbers of `torch` that `Task` draws without its generator",
    ),
    "numpy's stream": (lambda path: np.random.rand(), "random numbers of `numpy` that `Task` draws"),
    "random": (lambda path: random.random(), "random numbers of `random` that `Task` draws"),
}


@pytest.mark.parametrize("kind", LOOKS)
def test_a_run_that_reads_from_outside_is_not_kept(kind: str, tmp_path: Path) -> None:
    (look, says), file, runs = LOOKS[kind], tmp_path / "shift.txt", Store(tmp_path / "runs")
    file.write_text("0")
    with pytest.warns(UserWarning, match=f"this run is not kept: it depends on {says}"):
        fit(Task(look, file), runs, save_every=0)
    assert not list(tmp_path.glob("runs/*"))
    file.write_text("9")
    with pytest.warns(UserWarning, match="not kept"):
        fit(Task(look, file), Store(tmp_path / "runs"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = fit(Task(look, file), runs, version="9")
        assert fit(Task(look, file), runs, version="9").seconds == first.seconds  # read, not trained again


@pytest.mark.parametrize(
    "look",
    [
        lambda path: 1,
        lambda path: len(list(path.parent.iterdir())),  # a folder: only its name is asked
        lambda path: path.with_name("log").write_text("seen") and 1,
        imported,
        versioned,
        lambda path: path.write_text("5") and path.read_text(),
    ],
    ids=["nothing", "a folder", "a file that is written", "an import", "a version", "a file of its own"],
)
def test_what_changes_no_sample_is_let_through(look: Callable, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(Task(look, tmp_path / "shift.txt"), Store(tmp_path / "runs"))
    assert len(list(tmp_path.glob("runs/*.safetensors"))) == 1


def test_streams_that_are_seeded_by_the_generator_are_let_through(tmp_path: Path) -> None:
    class Seeded:
        def sample(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
            np.random.seed(int(torch.randint(2**31, (), generator=generator)))
            x = torch.from_numpy(np.random.randn(n, 3).astype("f"))
            return x, (x[:, 0] > 0).long()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(Seeded(), Store(tmp_path / "runs"))
    assert len(list(tmp_path.glob("runs/*.safetensors"))) == 1


def test_a_training_inside_a_task_is_heard_by_both(tmp_path: Path) -> None:
    (tmp_path / "shift.txt").write_text("1")

    class Nested(Task):
        def sample(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
            fit(Task(opened, self.path), Store(tmp_path / "inner"), version="1")
            return Task(lambda path: 1, self.path).sample(n, generator)

    with pytest.warns(UserWarning, match="the file 'shift.txt' that `Task` opens"):
        fit(Nested(opened, tmp_path / "shift.txt"), Store(tmp_path / "runs"))
    assert not list(tmp_path.glob("runs/*"))


def test_the_environment_counts_as_outside(tmp_path: Path) -> None:
    for look in (
        lambda path: os.environ.get("SHIFT", 0),
        lambda path: os.getenv("SHIFT", 0),
        lambda path: ge("SHIFT", 0),
    ):
        with pytest.warns(UserWarning, match="this run is not kept: it depends on global `(os.environ|os.getenv|ge)"):
            fit(Task(look, tmp_path), Store(tmp_path / "runs"))


def test_a_score_is_listened_to(tmp_path: Path) -> None:
    class Scored(Task):
        def sample(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
            x = torch.randn(n, 3, generator=generator)
            return x, (x[:, 0] > 0).long()

        def score(self, outputs: torch.Tensor, y: torch.Tensor) -> float:
            return float(self.look(self.path))

    (tmp_path / "shift.txt").write_text("1")
    with pytest.warns(UserWarning, match="the file 'shift.txt' that `Scored` opens"):
        fit(Scored(LOOKS["open"][0], tmp_path / "shift.txt"), Store(tmp_path / "runs"))


class Plain:
    def sample(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(n, 3, generator=generator)
        return x, (x[:, 0] > 0).long()


@dataclass(frozen=True)
class Heard:
    """Labels, and a look at something from outside in one of the three places of a signal."""

    look: Callable[[Path], Any]
    path: Path
    place: str

    def at(self, place: str) -> None:
        if place == self.place:
            self.look(self.path)

    def bind(self, students: Any, x: Any, y: Any = None) -> Bound:
        self.at("bind")
        inner = Labels().bind(students, x, y)

        def target(x: Any, y: Any) -> Any:
            self.at("target")
            return inner.target(x, y)

        def loss(values: Any, target: Any) -> Any:
            self.at("loss")
            return inner.loss(values, target)

        return Bound(inner.reads, target, loss)


class Looks(nn.Linear):
    """A network that looks at something from outside in its pass."""

    def __init__(self, look: Callable[[Path], Any], path: Path) -> None:
        super().__init__(3, 2)
        self.look, self.path = look, path

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.look(self.path)
        return super().forward(x)


def seeded(path: Path) -> Any:
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    return torch.rand(()), np.random.rand(), random.random()


def follow(signal: Any, runs: Store, **options: Any) -> Run:
    plan = curriculum.Curriculum("own", (curriculum.Stage(signal, 2), curriculum.Stage(Labels())))
    students = Ensemble(lambda: nn.Linear(3, 2), [1], [0.5])
    return train(students, Plain(), plan, steps=5, batch=8, held_out=16, runs=runs, progress=False, **options)


@pytest.mark.parametrize("place", ["bind", "target", "loss"])
@pytest.mark.parametrize("kind", LOOKS)
def test_a_signal_is_listened_to(kind: str, place: str, tmp_path: Path) -> None:
    (look, _), file, runs = LOOKS[kind], tmp_path / "shift.txt", Store(tmp_path / "runs")
    file.write_text("0")
    with pytest.warns(UserWarning, match=r"not kept: it depends on (the file 'shift.txt'|random numbers of) .*`Heard`"):
        follow(Heard(look, file, place), runs)
    assert not list(tmp_path.glob("runs/*"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        follow(Heard(look, file, place), runs, version="1")


@pytest.mark.parametrize("place", ["bind", "target", "loss"])
@pytest.mark.parametrize("look", [seeded, imported, versioned], ids=["seeded", "an import", "a version"])
def test_a_signal_that_depends_on_nothing_outside_is_kept(look: Callable, place: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept = follow(Heard(look, tmp_path, place), Store(tmp_path / "runs"))
    assert len(list(tmp_path.glob("runs/*.safetensors"))) == 1
    plain = follow(Labels(), Store(tmp_path / "runs"))
    assert torch.equal(kept.students.parameters["weight"], plain.students.parameters["weight"])


@pytest.mark.parametrize("who", ["teacher", "student"])
def test_a_network_is_listened_to(who: str, tmp_path: Path) -> None:
    file = tmp_path / "shift.txt"
    file.write_text("0")
    make, plan = partial(Looks, opened, file), curriculum.from_labels()
    if who == "teacher":
        make, plan = partial(nn.Linear, 3, 2), curriculum.one_shot(make())
    students = Ensemble(make, [1], [0.5])
    with pytest.warns(UserWarning, match="the file 'shift.txt' that `Looks` opens"):
        train(students, Plain(), plan, steps=5, batch=8, held_out=16, runs=Store(tmp_path / "runs"), progress=False)
    assert not list(tmp_path.glob("runs/*"))


def test_nothing_is_heard_outside_of_a_task(tmp_path: Path) -> None:
    """Afterwards, and before: a task that read its file when it was made holds what it read."""

    class Held:
        def __init__(self, path: Path) -> None:
            self.shift = float(path.read_text())

        def sample(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
            x = torch.randn(n, 3, generator=generator)
            return x + self.shift, (x[:, 0] > 0).long()

    file, runs = tmp_path / "shift.txt", Store(tmp_path / "runs")
    file.write_text("0")
    first = fit(Held(file), runs)
    file.write_text("9")
    assert fit(Held(file), runs).key != first.key
    assert len(list(tmp_path.glob("runs/*.safetensors"))) == 2


def test_a_task_with_a_memory_is_not_kept(tmp_path: Path) -> None:
    class Walk:
        def __init__(self) -> None:
            self.at = 0

        def sample(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
            self.at += n
            return torch.full((n, 3), float(self.at)), torch.zeros(n, dtype=torch.long)

    class Entropy:
        def sample(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
            x = torch.from_numpy(np.random.default_rng().normal(size=(n, 3)).astype("f"))
            return x, (x[:, 0] > 0).long()

    for kind in (Walk, Entropy):
        with pytest.warns(UserWarning, match=f"something that `{kind.__name__}` keeps from call to call, or draws"):
            fit(kind(), Store(tmp_path / "runs"))
    assert not list(tmp_path.glob("runs/*"))


def test_a_task_that_makes_itself_ready_at_the_first_call_is_kept(tmp_path: Path) -> None:
    class Lazy:
        table, finite = None, False

        def sample(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
            if self.table is None:
                self.table = torch.arange(6.0).view(2, 3)
            y = torch.randint(2, (n,), generator=generator)
            return self.table[y], y

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(Lazy(), Store(tmp_path / "runs"))
    assert len(list(tmp_path.glob("runs/*.safetensors"))) == 1


def test_a_text_of_code_that_is_read_counts_as_any_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.py"
    file.write_text("0")
    with pytest.warns(
        UserWarning, match=r"this run is not kept: it depends on the file 'settings.py' that `Task` opens"
    ):
        fit(Task(lambda path: float(path.read_text()), file), Store(tmp_path / "runs"), save_every=0)


@pytest.mark.parametrize(("times", "drawn"), [((), False), ((1,), False), ((1, 2), False), ((1, 2, 3), False),
                                              ((1, 2, 3, 4), True)])  # fmt: skip
def test_a_part_draws_if_it_does_so_each_time(times: tuple[int, ...], drawn: bool) -> None:
    """Another thread of the program, as one of Dask's or of a notebook, draws now and then, and at no fixed time."""
    calls: list[int] = []

    def step() -> None:
        calls.append(1)
        if len(calls) in times:
            random.random()

    before = random.getstate()
    with outside.noted() as found:
        outside.heard(nn.Linear(1, 1), step)
    assert list(found) == (["random numbers of `random` that `Linear` draws without a generator"] if drawn else [])
    if not times:
        assert random.getstate() == before and len(calls) == 1


class Scored:
    """Judged on a part of the samples that is drawn from the global stream."""

    def __init__(self, draws: bool) -> None:
        self.draws = draws

    def sample(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(n, 3, generator=generator)
        return x, (x[:, 0] > 0).long()

    def score(self, outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        some = torch.randperm(len(y))[:8] if self.draws else slice(8)
        return (outputs[some].argmax(-1) == y[some]).float().mean()


def test_a_score_that_draws_is_not_kept(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="random numbers of `torch` that `Scored` draws without a generator"):
        fit(Scored(True), Store(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(Scored(False), Store(tmp_path))
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


FILE: list[Path] = []


@functools.cache
def shift() -> float:
    return float(FILE[-1].read_text())


class Held:
    def __init__(self, value: float) -> None:
        self.value = value


class Caching:
    """What it reads from a file was read, and kept, before a training."""

    def __init__(self, path: Path, by: str) -> None:
        self.path, self.by = path, by

    @functools.cached_property
    def held(self) -> Held:
        return Held(float(self.path.read_text()))

    def sample(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(n, 3, generator=generator)
        return x + (shift() if self.by == "function" else self.held.value), (x[:, 0] > 0).long()


@pytest.mark.parametrize("by", ["function", "property"])
@pytest.mark.filterwarnings("ignore:this run is not kept")
def test_what_was_read_and_kept_before_a_training_is_not_stale(by: str, tmp_path: Path) -> None:
    path, losses = tmp_path / "shift.txt", []
    FILE.append(path)
    for value in ("0", "9"):
        path.write_text(value)
        shift.cache_clear()  # as a new kernel does
        task = Caching(path, by)
        task.sample(3, torch.Generator())
        losses.append([fit(task, runs).loss[-1].item() for runs in (Store(tmp_path / "runs"), None)])
    assert losses[0][0] == losses[0][1] != losses[1][0] == losses[1][1]
