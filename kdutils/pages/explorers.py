"""Controls that work without a kernel: each carries the numbers of recorded runs with it.

A function takes runs or arms and returns an `Explorer`; displaying it shows the controls, in a notebook and on a
static page alike. What is drawn is `Explorer.data`, rounded to three digits; the drawing itself is `explorers.js`,
with the kit of `drawing.js`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import torch
import traitlets
from matplotlib.axes import Axes

from kdutils import probes, seeding
from kdutils.lab.lab import THRESHOLD
from kdutils.lab.stats import Arm
from kdutils.lab.training import Run
from kdutils.pages import plots
from kdutils.probes.signal import Shares
from kdutils.tasks.parity import SparseParity

LIMIT = 12_000  # numbers in one explorer: about 80 kB
PROBE = 20_000  # samples a spectrum is estimated on


class Explorer(anywidget.AnyWidget):
    """Controls and drawings over plain data; `kind` says which of `explorers.js` draws it."""

    _esm = "\n".join(Path(__file__).with_name(f"{part}.js").read_text("utf-8") for part in ("drawing", "explorers"))
    _css = Path(__file__).with_name("explorers.css")
    kind = traitlets.Unicode().tag(sync=True)
    payload = traitlets.Unicode().tag(sync=True)

    def __init__(self, kind: str, data: dict[str, Any]) -> None:
        super().__init__(kind=kind, payload=json.dumps(data, separators=(",", ":")))  # one line in a notebook's file

    @property
    def data(self) -> dict[str, Any]:
        """All numbers and names that are drawn."""
        return json.loads(self.payload)

    def __repr__(self) -> str:
        return f"Explorer: {self.kind} (needs JavaScript; the figure beside it shows the same runs)"


def curriculum_player(
    runs: Mapping[str, Run], task: SparseParity, start: tuple[str, str] = ("extraction", "one-shot")
) -> Explorer:
    """Scrub through the training of one student an arm: its accuracy, its first layer and its degree-1 spectrum.

    Args:
        runs: by name of the arm, from `Lab.watch`: one two-layer student each, kept along its training.
        start: the two arms shown first, where they are there.

    Raises:
        ValueError: when the runs were kept at no common step.
    """
    probe = _probe(task, next(iter(runs.values())))
    steps = _frames(runs, 2 * task.d * len(runs))
    arms = [
        {
            **_look(name, index), **_curve(run), "stages": [list(stage) for stage in run.stages],
            "rate": run.students.learning_rates[0], "at": [_at(run, step) for step in steps],
            "weights": [_round(run.snapshots[step]["hidden.weight"][0].square().mean(0).sqrt()) for step in steps],
            "spectrum": [_spectrum(run, step, probe) for step in steps],
        }
        for index, (name, run) in enumerate(runs.items())
    ]  # fmt: skip
    names = list(runs)
    shown = [name if name in runs else names[min(i, len(names) - 1)] for i, name in enumerate(start)]
    first = next(iter(runs.values()))
    data = {
        "steps": steps, "batch": first.settings["batch"], "seed": first.students.seeds[0], "arms": arms,
        "start": [names.index(n) for n in shown],
    }  # fmt: skip
    return Explorer("Curriculum player", {**data, **_ground(task)})


def checkpoint_picker(
    trained: Run, students: Mapping[int, Run], task: SparseParity, reference: Run, first: int
) -> Explorer:
    """Choose a teacher checkpoint: its degree-1 spectrum, and the curve of the student that went through it.

    Args:
        trained: the teacher's run, with its checkpoints.
        students: by step of the checkpoint, from `Lab.watch`: one student each.
        reference: a student without a checkpoint.
        first: the step of the checkpoint shown first.
    """
    probe = _probe(task, trained)
    stops = [
        {"step": step, "accuracy": _at(trained, step), "spectrum": _spectrum(trained, step, probe), **_curve(run),
         "reached": _finite(Arm(run, run.students.learning_rates[0], run.students.seeds).times(THRESHOLD).values[0])}
        for step, run in sorted(students.items())
    ]  # fmt: skip
    data = {
        "teacher": {**_look("teacher"), **_curve(trained, trained.steps)}, "stops": stops, "threshold": THRESHOLD,
        "student": _look("progressive"), "reference": {**_look("one-shot"), **_curve(reference)},
        "budget": reference.budget, "seed": reference.students.seeds[0], "start": sorted(students).index(first),
    }  # fmt: skip
    return Explorer("Checkpoint picker", {**data, **_ground(task)})


def first_step(
    cases: Mapping[tuple[int, int], Mapping[str, Shares]],
    points: Mapping[tuple[int, int], Mapping[str, Sequence[tuple[float, float]]]],
    start: tuple[int, int],
    banded: str = "extraction",
) -> Explorer:
    """Choose a parity, a number of samples and of views: the computed share of each signal, and recorded points.

    Args:
        cases: by (k, d), the shares of each signal, by its name.
        points: by (k, d) and name, recorded (samples, share on the support).
        start: the (k, d) shown first.
        banded: the signal whose scatter over draws of a Gaussian projection is shown; every case has it.

    Raises:
        ValueError: when `start` is none of the cases, or a case lacks the banded signal.
    """
    if start not in cases or any(banded not in signals for signals in cases.values()):
        raise ValueError(f"start, {start}, must be one of the cases, and each must hold {banded!r}")
    names = list(dict.fromkeys(name for signals in cases.values() for name in signals))
    shown = [
        {"k": k, "d": d, "signals": [
            {"look": names.index(name), "on": float(f"{s.on:.4g}"), "off": float(f"{s.off:.4g}"),
             "half": _finite(s.needed()), "points": [_round(p) for p in points.get((k, d), {}).get(name, ())]}
            for name, s in signals.items()]}
        for (k, d), signals in sorted(cases.items())
    ]  # fmt: skip
    samples = np.unique(np.geomspace(1, 1e6, 61).round().astype(int)).tolist()
    data = {"cases": shown, "looks": [_look(n, i) for i, n in enumerate(names)], "samples": samples,
            "views": [2**p for p in range(9)], "start": list(start), "banded": banded}  # fmt: skip
    return Explorer("First step", data)


def still(player: Explorer, axes: Sequence[Axes]) -> None:
    """A curriculum player's numbers at a glance, means over bits along training.

    Args:
        axes: two: for the first-layer weights on the support, as multiples of those off it, and for the degree-1
            coefficients on the support.
    """
    left, right = axes
    data = player.data
    samples = np.array(data["steps"]) * data["batch"]
    inside = np.isin(np.arange(len(data["arms"][0]["weights"][0])), data["support"])
    for arm in data["arms"]:
        weights, spectrum = np.array(arm["weights"]), np.array(arm["spectrum"])
        look = {"color": plots.colour(arm["name"]), "ls": plots.DASHES.get(arm["name"], "-"), "label": arm["name"]}
        left.plot(samples, weights[:, inside].mean(1) / weights[:, ~inside].mean(1), **look)
        right.plot(samples, spectrum[:, inside].mean(1), **look)
    right.axhspan(0, data["noise"], color="#999999", alpha=0.3, lw=0)
    left.set(title="First-layer weights", ylabel="on the support / off it", yscale="log")
    right.set(title="Output, on the support", ylabel="mean |degree-1|")
    for ax in axes:
        ax.set_xlabel("training samples")
        ax.xaxis.set_major_formatter(plots.EngFormatter(sep=""))
    left.yaxis.set_major_formatter(plots.EngFormatter(sep=""))


def _ground(task: SparseParity) -> dict[str, Any]:
    """What every picture of the bits needs."""
    colours = {"on": "var(--text)", "off": "color-mix(in srgb, var(--text) 40%, var(--card))"}  # ink in either theme
    return {"support": list(task.support), "noise": round((2 / np.pi / PROBE) ** 0.5, 4), "colours": colours}


def _look(name: str, index: int = 0) -> dict[str, Any]:
    colour, dash = plots.colour(name, index), plots.DASHES.get(name)
    return {"name": name, "colour": "currentColor" if colour == "#000000" else colour, "dash": dash[1] if dash else []}


def _probe(task: SparseParity, run: Run) -> torch.Tensor:
    device = run.students.device
    return task.sample(PROBE, seeding.generator(0, "probe", device=device))[0]


def _spectrum(run: Run, step: int, x: torch.Tensor) -> list[float]:
    """|degree-1 coefficient| of the first member's output, a bit each."""
    return _round(probes.coefficients(probes.signed_output(run.network(step=step))(x), x).abs())


def _frames(runs: Mapping[str, Run], numbers: int) -> list[int]:
    """Steps at which all runs were kept and evaluated, as many as `LIMIT` allows at `numbers` each, denser early."""
    common = set.intersection(*({*run.snapshots} & {*run.steps.tolist()} for run in runs.values()))
    if not common:
        raise ValueError("the runs were kept at no common step: make them with Lab.watch")
    kept = np.array(sorted(common))
    share = np.linspace(0, 1, max(2, min(len(kept), LIMIT // numbers))) ** 1.7
    return kept[np.unique((share * (len(kept) - 1)).round().astype(int))].tolist()


def _at(run: Run, step: int) -> float:
    """The first member's accuracy at a step."""
    return _round(run.accuracy[run.steps.tolist().index(step), 0])


def _curve(run: Run, along: np.ndarray | None = None, points: int = 100) -> dict[str, list]:
    """The first member's accuracy against samples (or `along`)."""
    picked = _thin(len(run.steps), points)
    x = run.samples if along is None else along
    return {"x": x[picked].tolist(), "y": _round(run.accuracy[picked, 0])}


def _thin(length: int, points: int) -> np.ndarray:
    return np.unique(np.linspace(0, length - 1, max(2, min(length, points))).round().astype(int))


def _finite(value: float) -> float | None:
    """JSON has no infinity: None stands for a seed that did not finish."""
    return float(value) if np.isfinite(value) else None


def _round(values: Any) -> Any:
    values = values.cpu().numpy() if torch.is_tensor(values) else np.asarray(values)
    return np.round(values.astype(float), 3).tolist()
