"""Train the four students of the front page's film, and write what it shows: `_static/film.json` and its still.

Usage: `python tools/film.py` (a few minutes on one core); `--still` only draws the still anew from the recorded data.

One parity, small enough that every weight can be seen. One teacher (seed 0) and one student a curriculum: seed 0, with
the same first weights and the same samples for all four. Every arm is tuned by the rules of chapter 4: two tuning seeds
that are not shown, the same learning rates with the same leave to go beyond them, chosen by samples to 95 %.
Progressive distillation also has the length of its stage on the checkpoint chosen there (the checkpoint is the one
nearest to 65 %), extraction the length of its hidden stage: as many lengths for the one as for the other.

A frame holds the sizes of the first-layer weights, each as one of 64 characters, and the held-out accuracy. But for the
first, which shows the start, frames are equally far apart in the logarithm of samples.
"""

from __future__ import annotations

import argparse
import json
import string
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from kdutils import curriculum
from kdutils.curriculum import Curriculum
from kdutils.lab.ensemble import Ensemble
from kdutils.lab.lab import THRESHOLD, ParityLab
from kdutils.lab.record import Run
from kdutils.lab.store import Store
from kdutils.lab.training import train
from kdutils.pages import explorers, plots
from kdutils.studies.study import machine

ROOT = Path(__file__).resolve().parents[1]
DATA, STILL = ROOT / "_static" / "film.json", ROOT / "_static" / "film.png"
LEVELS = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"  # 64, darkest first
DARK = "#10151c"  # a weight of 0, on a page of either theme
FRAMES, FIRST = 48, 40  # frames, and the step of the second one; the first shows the start
SETTINGS = {
    "d": 24, "k": 6, "teacher_width": 1024, "teacher_learning_rate": 1.0, "teacher_batch": 64, "teacher_steps": 3000,
    "keep_every": 50, "student_width": 32, "learning_rates": [0.3, 1.0, 2.0], "extensions": 2, "steps": 6000,
    "batch": 64, "evaluate_every": 10, "held_out": 2048, "tuning_seeds": [100, 101], "seeds": [0], "device": "cpu",
}  # fmt: skip
STAGES = {"progressive": [100, 200, 500], "extraction": [50, 100, 200]}  # lengths that tuning chooses from, in steps


def make_lab(runs: Store | None = None) -> ParityLab:
    """The film's task, networks and rules of tuning; `runs` as for `kdutils.lab.lab.Lab`."""
    return ParityLab(SimpleNamespace(**SETTINGS), runs)


def plans(trained: Run) -> dict[str, list[Curriculum]]:
    """By arm: one plan for each length of its first stage.

    Args:
        trained: the teacher's run, with its checkpoints.
    """
    teacher, middle = trained.network(), ParityLab.checkpoint_near(trained)
    checkpoint = {f"checkpoint at step {middle}": trained.network(step=middle)}
    return {
        "labels": [curriculum.from_labels()],
        "one-shot": [curriculum.one_shot(teacher)],
        "progressive": [
            curriculum.progressive(checkpoint, teacher, n, name=f"progressive, {n} steps")
            for n in STAGES["progressive"]
        ],
        "extraction": [
            curriculum.extracted(teacher, steps=n, name=f"extraction, {n} steps") for n in STAGES["extraction"]
        ],
    }


def watched(lab: ParityLab, plan: Curriculum, rate: float, steps: int) -> Run:
    """One student of the first seed through `plan`, its weights and accuracy kept every few steps, the start as step 0.

    Args:
        rate: its learning rate.
        steps: how long; fewer than the film's give the same film's beginning.
    """
    s = lab.settings
    students = Ensemble(lab.make_student, s.seeds, [rate], s.device)
    run = train(
        students, lab.task, plan, steps=steps, batch=s.batch, evaluate_every=s.evaluate_every,
        held_out=s.held_out, keep_every=s.evaluate_every, runs=lab.runs,
    )  # fmt: skip
    run.snapshots = {0: students.parameters, **run.snapshots}
    return run


def moments() -> list[int]:
    """Steps of the frames."""
    every, last = SETTINGS["evaluate_every"], SETTINGS["steps"]
    spread = np.geomspace(FIRST, last, FRAMES - 1) / every
    return [0, *np.unique(every * spread.round().astype(int)).tolist()]


def weights(run: Run, steps: list[int]) -> np.ndarray:
    """(frames, bits, neurons): absolute first-layer weights at `steps`."""
    return np.stack([run.snapshots[step]["hidden.weight"][0].abs().numpy().T for step in steps])


def coded(frames: np.ndarray, top: float) -> list[str]:
    """Each frame as a text, a character a weight, bit by bit: its square root, so that small weights are seen as well.

    `top` and more is the brightest of `LEVELS`.
    """
    levels = (np.sqrt(np.minimum(frames / top, 1)) * (len(LEVELS) - 1)).round().astype(int)
    return ["".join(LEVELS[level] for level in frame.ravel()) for frame in levels]


def decoded(text: str, d: int) -> np.ndarray:
    """(bits, neurons): the levels of a frame."""
    return np.array([LEVELS.index(sign) for sign in text]).reshape(d, -1)


def accuracies(run: Run, steps: list[int]) -> list[float]:
    """Held-out accuracy at `steps`."""
    at = dict(zip(run.steps.tolist(), run.accuracy[:, 0].tolist(), strict=True))
    return [round(at[step], 4) for step in steps]


def made() -> dict[str, str]:
    """What late digits hang on: with the same kind of processor and the same torch a film is the same."""
    return {"machine": machine(), "torch": torch.__version__}


def record() -> dict[str, Any]:
    """Tune all arms, train the four students, and return the film."""
    lab = make_lab()
    trained, steps = lab.teacher(), moments()
    runs, found = {}, []
    for name, ways in plans(trained).items():
        arm = lab.arm(*ways)
        plan = next(way for way in ways if way.name == arm.name)
        runs[name] = run = watched(lab, plan, arm.learning_rate, lab.settings.steps)
        print(f"{name:12} {arm.name:24} rate {arm.learning_rate:g}, 95 % after {arm.times(THRESHOLD)} samples")
        found.append({
            **explorers._look(name), "rate": arm.learning_rate, "plan": arm.name,
            "stages": [list(stage) for stage in run.stages], "accuracy": accuracies(run, steps),
        })  # fmt: skip
    shown = {name: weights(run, steps) for name, run in runs.items()}
    top = float(np.quantile([frames[-1] for frames in shown.values()], 0.995))
    for arm in found:
        arm["frames"] = coded(shown[arm["name"]], top)
    fields = ("d", "k", "student_width", "teacher_width", "batch", "seeds")
    return {
        "setting": {name: SETTINGS[name] for name in fields}, "support": list(lab.task.support), "top": round(top, 3),
        "threshold": THRESHOLD, "levels": LEVELS, "dark": DARK, "steps": steps, "still": still_frame(found),
        "made": made(), "arms": found,
    }  # fmt: skip


def still_frame(arms: list[dict[str, Any]]) -> int:
    """The frame of the still: the first at which one of the four students is done, whichever it is."""
    done = np.array([arm["accuracy"] for arm in arms]) >= THRESHOLD
    return int(done.any(0).argmax())


def still(film: dict[str, Any]) -> Figure:
    """One frame as a picture for paper and README: four heat maps, and the accuracy up to the end below."""
    plots.style()
    setting, at, arms = film["setting"], film["still"], film["arms"]
    samples = np.array(film["steps"]) * setting["batch"]
    figure = plt.figure(figsize=(7.2, 4.6))
    grid = figure.add_gridspec(2, len(arms), height_ratios=(1.25, 1))
    for column, arm in enumerate(arms):
        ax = figure.add_subplot(grid[0, column])
        shades = LinearSegmentedColormap.from_list(arm["name"], [film["dark"], arm["colour"], "#ffffff"])
        image = decoded(arm["frames"][at], setting["d"])
        ax.imshow(image, cmap=shades, vmin=0, vmax=len(film["levels"]) - 1, aspect="auto", interpolation="nearest")
        ax.set_title(f"{arm['name']}\n{arm['accuracy'][at]:.0%} right", color=arm["colour"], fontsize=12, weight="bold")
        ax.set(xticks=[], yticks=[], xlabel="neurons", ylabel="" if column else "input bits")
        ax.grid(visible=False)
        ax.spines[:].set_visible(False)
        support = (-0.05, 1 - setting["k"] / setting["d"]), 0.03, setting["k"] / setting["d"]
        ax.add_patch(Rectangle(*support, transform=ax.transAxes, color="black", clip_on=False))
    below = figure.add_subplot(grid[1, :])
    for arm in arms:
        look = {"color": arm["colour"], "ls": plots.DASHES.get(arm["name"], "-"), "label": arm["name"]}
        below.plot(samples[1:], arm["accuracy"][1:], **look)
        below.plot(samples[at], arm["accuracy"][at], "o", color=arm["colour"], ms=7)
    below.axvline(samples[at], color="#555555", lw=0.9, ls=":")
    below.axhline(film["threshold"], color="#999999", lw=0.8)
    below.set(xscale="log", xlabel="training samples", ylabel="held-out accuracy", ylim=(0.35, 1.04))
    below.xaxis.set_major_formatter(plots.EngFormatter(sep=""))
    figure.suptitle(f"First-layer weights after {samples[at]:,} samples", fontsize=12.5, x=0.01, ha="left")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--still", action="store_true", help="only draw the still anew")
    torch.set_num_threads(1)
    if not parser.parse_args().still:
        text = json.dumps(record(), separators=(",", ":")) + "\n"
        DATA.write_text(text, encoding="utf-8")
    plots.save(still(json.loads(DATA.read_text(encoding="utf-8"))), STILL)


if __name__ == "__main__":
    main()
