"""A run that was stopped goes on from its last saved state, bit for bit."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kdutils import curriculum, projections
from kdutils.curriculum import Curriculum, Stage
from kdutils.lab import store
from kdutils.lab.ensemble import Ensemble
from kdutils.lab.optimisers import SGD, Adam
from kdutils.lab.record import Saved
from kdutils.lab.store import Store
from kdutils.lab.training import Run, train
from kdutils.probes.mediation import Redrawn, Shuffled
from kdutils.signals import Bound, Hidden, Labels, Output
from kdutils.tasks import sampling
from kdutils.tasks.models import MLP, Transformer
from kdutils.tasks.parity import SparseParity

TASK = SparseParity(6, 2)
WIDE = MLP(6, 24)


class Kept(nn.Module):
    """A network with batch norm and dropout, which draws at random and keeps statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.norm, self.act = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU()
        self.drop, self.readout = nn.Dropout(0.2), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.readout(self.drop(self.act(self.norm(self.hidden(x)))))


class Gated(nn.Module):
    """A network of one's own without any buffer: it goes through vmap."""

    def __init__(self) -> None:
        super().__init__()
        self.act, self.readout = nn.Sequential(nn.Linear(6, 8), nn.Sigmoid()), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.readout(self.act(x))


class Sequence(nn.LSTM):
    """One of the reader's own, which is a layer of torch's."""

    def __init__(self) -> None:
        super().__init__(1, 4, batch_first=True)
        self.act, self.readout = nn.LSTM(4, 8, batch_first=True), nn.utils.parametrizations.weight_norm(nn.Linear(8, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.readout(self.act(super().forward(x[..., None])[0])[0][:, -1])


def plans() -> dict[str, Curriculum]:
    redrawn, last = Hidden(WIDE, redraw=True), Stage(Labels())
    sparse = Hidden(WIDE, projection=partial(projections.sparse, s=2))
    return {
        "labels": curriculum.from_labels(),
        "one-shot": curriculum.one_shot(WIDE),
        "TAID": curriculum.interpolated(WIDE, [0.3], 7),
        "progressive": curriculum.progressive({"early": MLP(6, 24)}, WIDE, 7),
        "extraction": curriculum.extracted(WIDE, steps=7),
        "redrawn": Curriculum("redrawn", (Stage(redrawn, 7), Stage(Output(WIDE)))),
        "FitNets": curriculum.fitnets(WIDE, steps=7),
        "joint": curriculum.joint(WIDE, 0.1, projection=projections.rademacher),
        "sparse": Curriculum("sparse", (Stage(sparse, 7), Stage(Redrawn(Output(WIDE), "norms"), 5), last)),
        "shuffled": Curriculum("shuffled", (Stage(Shuffled(redrawn), 7), Stage(Labels(), 5, ("readout",)), last)),
    }


class Stopping(Store):
    """A store that ends the run as a kill does, once the state after some step is written."""

    def __init__(self, folder: Path, step: int) -> None:
        super().__init__(folder)
        self.step = step

    def save(self, key: str, tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> None:
        super().save(key, tensors, meta)
        if meta.get("step") == self.step:
            raise KeyboardInterrupt


class Watching(Store):
    """A store that knows after which step the state was saved that a run took up."""

    taken: int | None = None

    def load(self, key: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        found = super().load(key)
        if found is not None and "step" in found[1]:
            self.taken = found[1]["step"]
        return found


def same(one: Run, two: Run) -> None:
    for name in ("steps", "flops", "accuracy", "loss"):
        assert np.array_equal(getattr(one, name), getattr(two, name)), name
    assert one.stages == two.stages
    state = [{**run.students.parameters, **run.students.buffers} for run in (one, two)]
    assert store.digest(state[0]) == store.digest(state[1])
    assert list(one.snapshots) == list(two.snapshots)
    for step in one.snapshots:
        assert store.digest(one.snapshots[step]) == store.digest(two.snapshots[step])


def check(make: Callable, plan: Curriculum, folder: Path, stops: list[int], **options: object) -> None:
    def fit(runs: Store | None) -> Run:
        students = Ensemble(make, (1, 2), (0.1, 0.3))
        settings = {"steps": 20, "batch": 8, "evaluate_every": 3, "held_out": 32, "keep_every": 4, **options}
        return train(students, TASK, plan, runs=runs, save_every=0, progress=False, **settings)

    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            fit(Stopping(folder, stop))
    runs = Watching(folder)
    run = fit(runs)
    assert runs.taken == stops[-1], "it went on from its last state"
    same(run, fit(None))
    assert [path.name for path in folder.iterdir()] == [f"{run.key}.safetensors"], "no state is left"


@pytest.mark.parametrize("optimiser", [SGD(), Adam(warmup=3, decay=True)], ids=["SGD", "Adam"])
@pytest.mark.parametrize("plan", plans().values(), ids=plans())
def test_a_stopped_run_goes_on_bit_for_bit(plan: Curriculum, optimiser: object, tmp_path: Path) -> None:
    """Inside the first stage, at its end, right after it, and late: in turn on one run."""
    check(partial(MLP, 6, 8), plan, tmp_path, [3, 7, 8, 15], optimiser=optimiser)


def test_a_run_goes_on_at_any_step_of_a_block_of_samples(tmp_path: Path) -> None:
    """Samples are drawn in blocks: a run may stop before a block's last batch, after it, and at the next one."""
    stops = [step + at for step in (sampling.BLOCK, 2 * sampling.BLOCK) for at in (-1, 0, 1)]
    check(partial(MLP, 6, 8), curriculum.from_labels(), tmp_path, stops, steps=2 * sampling.BLOCK + 4)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("make", [Kept, Gated], ids=["one by one", "vmap"])
@pytest.mark.filterwarnings("ignore:.*eval mode", "ignore:.*one by one")
def test_members_that_do_not_stack_go_on_too(make: Callable, mode: str, tmp_path: Path) -> None:
    check(make, curriculum.extracted(WIDE, steps=7), tmp_path, [5, 12], mode=mode)


@pytest.mark.filterwarnings("error:.*changes its attribute", "ignore:.*one by one")
def test_recurrent_members_go_on_too(tmp_path: Path) -> None:
    check(Sequence, curriculum.one_shot(WIDE), tmp_path, [5, 12])


def test_transformers_go_on_too(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Copy:
        def sample(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
            x = torch.randint(0, 5, (n, 4), generator=generator)
            return x, x.roll(1, 1)

    make = partial(Transformer, 5, 8, 2, 2, 4)
    teacher = make()
    plan = curriculum.extracted(teacher, curriculum.paired_blocks(2, 2), steps=4)

    def fit(runs: Store | None) -> Run:
        return train(Ensemble(make, (1, 2), (0.1,)), Copy(), plan, steps=14, batch=4, held_out=16, evaluate_every=5,
                     runs=runs, save_every=0)  # fmt: skip

    with pytest.raises(KeyboardInterrupt):
        fit(Stopping(tmp_path, 6))
    same(fit(None), fit(Store(tmp_path)))


@pytest.mark.parametrize("harm", ["state", "part"])
def test_a_damaged_state_begins_anew(harm: str, tmp_path: Path) -> None:
    def fit(runs: Store | None) -> Run:
        return train(Ensemble(partial(MLP, 6, 8), (1,)), TASK, curriculum.one_shot(WIDE), steps=12, batch=8,
                     held_out=32, keep_every=4, runs=runs, save_every=0)  # fmt: skip

    with pytest.raises(KeyboardInterrupt):
        fit(Stopping(tmp_path, 9))
    broken = next(tmp_path.glob(f"*{harm}*"))
    broken.write_bytes(broken.read_bytes()[:-9])
    with pytest.warns(UserWarning, match="damaged"):
        again = fit(Store(tmp_path))
    same(again, fit(None))


PROGRAM = """
import sys
from functools import partial
from kdutils import curriculum
from kdutils.lab.ensemble import Ensemble
from kdutils.lab.optimisers import Adam
from kdutils.lab.store import Store, digest
from kdutils.lab.training import train
from kdutils.seeding import global_rng
from kdutils.tasks.models import MLP
from kdutils.tasks.parity import SparseParity

with global_rng(0):
    teacher = MLP(6, 24)
students = Ensemble(partial(MLP, 6, 8), (1, 2), (0.01, 0.03))
plan = curriculum.fitnets(teacher, steps=60)
print("begun", flush=True)
run = train(students, SparseParity(6, 2), plan, steps=120, batch=8, held_out=32, evaluate_every=10, keep_every=20,
            optimiser=Adam(), runs=Store(sys.argv[1]), save_every=0, progress=False)
kept = {f"{step}/{name}": t for step, kept in run.snapshots.items() for name, t in kept.items()}
print(digest({**run.students.parameters, **kept}),
      run.accuracy.tobytes().hex(), run.flops.tobytes().hex())
"""


def test_kill_nine_at_random_moments(tmp_path: Path) -> None:
    """The process is killed whenever a drawn number of new states has been written: twice, then left alone."""
    draw = random.Random(0)
    command = [sys.executable, "-W", "error", "-c", PROGRAM]
    root = Path(__file__).resolve().parents[2]
    plain = subprocess.run([*command, str(tmp_path / "whole")], capture_output=True, text=True, cwd=root, check=True)
    folder = tmp_path / "killed"
    for _ in range(2):
        process = subprocess.Popen([*command, str(folder)], stdout=subprocess.PIPE, text=True, cwd=root)
        seen: set[int] = set()
        wanted = draw.randint(3, 30)
        while len(seen) < wanted and process.poll() is None:
            seen |= {path.stat().st_mtime_ns for path in folder.glob("*-state.safetensors")}
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    left = [path for path in folder.iterdir() if path.suffix == ".partial"]
    end = subprocess.run([*command, str(folder)], capture_output=True, text=True, cwd=root, check=True)
    assert end.stdout == plain.stdout
    assert len(list(folder.glob("*.safetensors"))) == 1 and len(left) <= 2


class Recalling(nn.Module):
    """A network that keeps something in Python from pass to pass, and whose outputs depend on it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.out, self.seen = how, nn.Linear(6, 2), [0]
        self.stream, self.mean = torch.Generator().manual_seed(0), torch.zeros(6)
        self.register_buffer("later", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        match self.how:
            case "stream":
                return self.out(x * torch.rand(x.shape, generator=self.stream))
            case "tensor":
                self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
                return self.out(x - self.mean)
            case "list":
                self.seen.append(self.seen[-1] + 1)
                return self.out(x / self.seen[-1])
            case "empty buffer":
                self.later = x.detach().mean(0) if self.later is None else 0.9 * self.later + x.detach().mean(0)
                return self.out(x - self.later)
        return self.out(x)


@dataclass(frozen=True)
class Recalled:
    """A signal that keeps something beside its generators and parameters."""

    how: str

    def bind(self, students: Any, x: Any, y: Any = None) -> Bound:
        stream, seen, mean = torch.Generator().manual_seed(0), [0], [torch.zeros(6)]

        def target(x: Any, y: Any) -> Any:
            seen[0] += self.how == "count"
            mean[0] = 0.9 * mean[0] + 0.1 * x.mean((0, 1)) if self.how == "mean" else mean[0]
            noise = torch.randn(x.shape, generator=stream) if self.how == "stream" else 0
            return x[..., :2] + 0.1 * seen[0] + mean[0][:2] + (noise[..., :2] if self.how == "stream" else 0)

        def loss(values: dict[str, torch.Tensor], target: Any) -> torch.Tensor:
            seen[0] += self.how == "loss"
            return (values[""] - target).square().flatten(1).mean(1) * (1 + 0.01 * seen[0])

        return Bound(("",), target, loss)


@pytest.mark.parametrize("which", ["network", "signal"])
@pytest.mark.parametrize("how", ["nothing", "stream", "tensor", "list", "empty buffer", "count", "mean", "loss"])
@pytest.mark.filterwarnings("ignore:.*one by one", "ignore:.*changes its attribute", "ignore:.*eval mode")
def test_what_is_kept_in_python_starts_anew(which: str, how: str, tmp_path: Path) -> None:
    """No state would hold it: a stopped run is that which was never stopped, all the same."""
    make = partial(Recalling, how) if which == "network" else partial(MLP, 6, 8)
    plan = Curriculum("own", (Stage(Recalled(how if which == "signal" else "nothing")),))

    def fit(runs: Store | None) -> Run:
        students = Ensemble(make, (1, 2), (0.1,))
        return train(students, TASK, plan, steps=20, batch=8, held_out=32, runs=runs, save_every=0, progress=False)

    def stopping(frame: Any, event: str, argument: Any) -> None:
        if event == "return" and frame.f_code is Saved.tick.__code__ and frame.f_locals["loop"].step == 13:
            raise KeyboardInterrupt

    whole, runs = fit(None), Watching(tmp_path)
    sys.setprofile(stopping)  # a change of the code would make it another run
    with pytest.raises(KeyboardInterrupt):
        fit(runs)
    sys.setprofile(None)
    again = fit(runs)
    same(again, whole)
    keeps = how in (("stream", "tensor", "list", "empty buffer") if which == "network" else
                    ("stream", "count", "mean", "loss"))  # fmt: skip
    assert (runs.taken is None) == keeps


class Smoothed(nn.Module):
    """A teacher that keeps a mean of what it said: in a buffer, as a number, or by a stream of its own."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.net, self.how = MLP(6, 24), how
        if how == "buffer":
            self.register_buffer("moved", torch.zeros(1))
        elif how == "number":
            self.moved = 0.0
        else:
            self.stream = torch.Generator().manual_seed(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.how == "stream":
            return self.net(x) + torch.randn(2, generator=self.stream)
        self.moved += 0.1
        return self.net(x) + self.moved * torch.tensor([1.0, -1.0])


@pytest.mark.parametrize("how", ["buffer", "number", "stream"])
def test_a_run_whose_teacher_keeps_something_begins_anew(how: str, tmp_path: Path) -> None:
    def fit(runs: Store | None) -> Run:
        return train(Ensemble(partial(MLP, 6, 8), (1,)), TASK, curriculum.one_shot(Smoothed(how)), steps=14, batch=8,
                     held_out=32, runs=runs, save_every=0)  # fmt: skip

    def stopping(frame: Any, event: str, argument: Any) -> None:
        if event == "return" and frame.f_code is Saved.tick.__code__ and frame.f_locals["loop"].step == 9:
            raise KeyboardInterrupt

    torch.manual_seed(0)
    sys.setprofile(stopping)
    with pytest.raises(KeyboardInterrupt):
        fit(Store(tmp_path))
    sys.setprofile(None)
    assert not list(tmp_path.glob("*-state*"))
    torch.manual_seed(0)
    again = fit(Store(tmp_path))
    torch.manual_seed(0)
    same(again, fit(None))


def test_copies_of_two_processes_at_one_run_do_not_overwrite_each_other(tmp_path: Path) -> None:
    class Blind(Stopping):
        """A process that began when nothing was saved, and saves its state once, late."""

        def load(self, key: str) -> None:
            return None

    def fit(runs: Store | None, every: float) -> Run:
        return train(Ensemble(partial(MLP, 6, 8), (1,)), TASK, curriculum.from_labels(), steps=14, batch=8,
                     held_out=32, keep_every=4, runs=runs, save_every=every)  # fmt: skip

    for stop, every in ((5, 0), (9, 0)):
        with pytest.raises(KeyboardInterrupt):
            fit(Blind(tmp_path, stop), every)
    names = {path.name.split("-part")[1].split(".")[0] for path in tmp_path.glob("*-part*")}
    assert names == {"4to4", "8to8"}
    run = fit(Store(tmp_path), 100)
    assert sorted(run.snapshots) == [4, 8, 12]
    same(run, fit(None, 100))
