import dataclasses
import json
import re
import tomllib
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from kdutils import curriculum, probes, seeding
from kdutils.lab.ensemble import Ensemble
from kdutils.lab.lab import ParityLab
from kdutils.lab.store import Store
from kdutils.lab.training import Run
from kdutils.pages import explorers, plots, profiles
from kdutils.pages.explorers import Explorer
from kdutils.probes import theory
from kdutils.probes.signal import Shares
from kdutils.tasks.models import MLP
from kdutils.tasks.parity import SparseParity

KDUTILS = Path(explorers.__file__).parent
MOST = 100_000  # bytes of data in one explorer
SMALL = {
    "d": 6, "k": 2, "teacher_width": 64, "teacher_steps": 600, "keep_every": 200, "student_width": 24,
    "steps": 160, "batch": 32,
}  # fmt: skip


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> ParityLab:
    settings = profiles.load("parity", "smoke", device="cpu", seeds=[3, 4], overrides=SMALL)
    return ParityLab(settings, Store(tmp_path_factory.mktemp("explorers")))


@pytest.fixture(scope="module")
def watched(lab: ParityLab) -> dict[str, Run]:
    teacher = lab.teacher().network()
    plans = {"one-shot": curriculum.one_shot(teacher), "extraction": curriculum.extracted(teacher, steps=40)}
    return {name: lab.watch(plan, 1.0) for name, plan in plans.items()}


def plain(explorer: Explorer) -> dict:
    """Its data, read as a browser would: no NaN, no Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(explorer.payload, parse_constant=refuse)


def film(d: int, snapshots: int, width: int = 4) -> Run:
    """A student of random curves and weights, kept `snapshots` times."""
    draw = np.random.default_rng(0)
    students = Ensemble(partial(MLP, d, width), [1])
    steps = np.arange(snapshots) * 12_345
    values = draw.uniform(0.4, 1, (snapshots, 1)).astype(np.float32)
    kept = {int(step): {n: torch.randn_like(p) for n, p in students.parameters.items()} for step in steps}
    settings = {"steps": int(steps[-1]), "batch": 64, "curriculum": {"name": "random"}}
    return Run(
        steps, steps * 64, steps * 1e6, values, 1 - values, [("output of a teacher", 0, int(steps[-1]))], 1.0, 1, "cpu",
        settings, "0", students, kept,
    )  # fmt: skip


def test_player_shows_what_the_runs_hold(lab: ParityLab, watched: dict[str, Run]) -> None:
    data = plain(explorers.curriculum_player(watched, lab.task))
    assert data["steps"][0] == 0 and data["steps"][-1] == 160 and set(data["steps"]) <= set(range(0, 161, 2))
    assert (data["batch"], data["seed"], data["support"], data["start"]) == (32, 3, [0, 1], [1, 0])
    assert data["colours"] == {"on": "var(--text)", "off": "color-mix(in srgb, var(--text) 40%, var(--card))"}
    x = lab.task.sample(explorers.PROBE, seeding.generator(0, "probe"))[0]
    for arm, (name, run) in zip(data["arms"], watched.items(), strict=True):
        assert (arm["name"], arm["colour"], arm["rate"]) == (name, plots.COLOURS[name], 1.0)
        assert arm["stages"] == [list(stage) for stage in run.stages]
        at = dict(zip(run.samples.tolist(), run.accuracy[:, 0].tolist(), strict=True))
        assert arm["y"] == [round(at[sample], 3) for sample in arm["x"]] and arm["x"][-1] == 160 * 32
        for frame in (0, 5, len(data["steps"]) - 1):
            step = data["steps"][frame]
            network = run.network(step=step)
            assert arm["at"][frame] == round(at[step * 32], 3)
            np.testing.assert_allclose(
                arm["weights"][frame], network.hidden.weight.detach().square().mean(0).sqrt(), atol=6e-4
            )
            spectrum = probes.coefficients(probes.signed_output(network)(x), x).abs()
            np.testing.assert_allclose(arm["spectrum"][frame], spectrum, atol=6e-4)


def test_player_starts_with_arms_that_are_there(lab: ParityLab, watched: dict[str, Run]) -> None:
    only = {"mine": watched["one-shot"]}
    assert plain(explorers.curriculum_player(only, lab.task))["start"] == [0, 0]


def test_player_needs_runs_kept_together(lab: ParityLab, watched: dict[str, Run]) -> None:
    bare = dataclasses.replace(watched["one-shot"], snapshots={})
    with pytest.raises(ValueError, match=r"no common step: make them with Lab\.watch"):
        explorers.curriculum_player({**watched, "bare": bare}, lab.task)


def test_still_draws_the_numbers_of_the_player(lab: ParityLab, watched: dict[str, Run]) -> None:
    player = explorers.curriculum_player(watched, lab.task)
    figure, (left, right) = plt.subplots(1, 2)
    explorers.still(player, (left, right))
    for arm in player.data["arms"]:
        drawn = [dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True)) for ax in (left, right)]
        weights, spectrum = np.array(arm["weights"][-1]), np.array(arm["spectrum"][-1])
        assert drawn[0][arm["name"]].get_ydata()[-1] == pytest.approx(weights[:2].mean() / weights[2:].mean())
        assert drawn[1][arm["name"]].get_ydata()[-1] == pytest.approx(spectrum[:2].mean())
    plt.close(figure)


def test_picker_shows_what_the_runs_hold(lab: ParityLab, watched: dict[str, Run]) -> None:
    trained, without = lab.teacher(), watched["one-shot"]
    students = {600: watched["extraction"], 200: without}
    data = plain(explorers.checkpoint_picker(trained, students, lab.task, without, first=600))
    assert [stop["step"] for stop in data["stops"]] == [200, 600] and data["start"] == 1
    assert data["budget"] == 160 * 32 and data["reference"]["name"] == "one-shot"
    assert data["teacher"]["colour"] == "currentColor", "black would vanish on a dark page"
    at = dict(zip(trained.steps.tolist(), trained.accuracy[:, 0].tolist(), strict=True))
    x = lab.task.sample(explorers.PROBE, seeding.generator(0, "probe"))[0]
    for stop in data["stops"]:
        run = students[stop["step"]]
        assert stop["accuracy"] == round(at[stop["step"]], 3)
        spectrum = probes.coefficients(probes.signed_output(trained.network(step=stop["step"]))(x), x).abs()
        np.testing.assert_allclose(stop["spectrum"], spectrum, atol=6e-4)
        assert stop["y"][-1] == round(float(run.accuracy[-1, 0]), 3)
        above = run.samples[run.accuracy[:, 0] >= data["threshold"]]
        assert stop["reached"] == (above[0] if len(above) else None)


@pytest.mark.parametrize(("d", "arms", "snapshots"), [(30, 5, 82), (50, 5, 81), (100, 6, 81), (20, 2, 300)])
def test_a_player_stays_small(d: int, arms: int, snapshots: int) -> None:
    runs = {f"method {i}": film(d, snapshots) for i in range(arms)}
    player = explorers.curriculum_player(runs, SparseParity(d, 6))
    assert len(player.payload) < MOST and len(player.data["steps"]) >= 10


def test_a_picker_stays_small() -> None:
    trained = film(100, 200)
    students = {step: film(2, 200) for step in list(trained.snapshots)[::10]}
    picker = explorers.checkpoint_picker(trained, students, SparseParity(100, 6), film(2, 200), first=0)
    assert len(picker.payload) < MOST and len(picker.data["stops"]) == 20


def test_first_step_shows_the_formula_and_the_points() -> None:
    case = {
        "labels": theory.labels(12, 3, theory.grid(8)),
        "extraction": Shares(np.full(12, 0.05), (0, 1, 2), np.zeros(12)),
    }
    data = plain(explorers.first_step({(3, 12): case}, {(3, 12): {"labels": [(64, 0.3)]}}, (3, 12)))
    assert data["start"] == [3, 12] and [look["name"] for look in data["looks"]] == ["labels", "extraction"]
    labels, layer = data["cases"][0]["signals"]
    assert labels["points"] == [[64, 0.3]] and layer["points"] == []
    assert labels["half"] == pytest.approx(case["labels"].needed()) and layer["half"] is None  # off as much as on
    assert labels["on"] == pytest.approx(case["labels"].on, rel=1e-3)
    assert len(json.dumps(data)) < MOST
    for start, cases in (((3, 13), {(3, 12): case}), ((3, 12), {(3, 12): {"labels": case["labels"]}})):
        with pytest.raises(ValueError, match="must be one of the cases"):
            explorers.first_step(cases, {}, start)


def test_same_runs_same_widget(lab: ParityLab, watched: dict[str, Run]) -> None:
    """Committed notebooks are executed again, and must come out the same."""
    one, two = (explorers.curriculum_player(watched, lab.task) for _ in range(2))
    assert one.payload == two.payload and repr(one) == repr(two) and "0x" not in repr(one)
    assert repr(one) in str(one._repr_mimebundle_()), "what is shown where widgets cannot run"


def test_the_package_carries_every_file_it_reads() -> None:
    package = KDUTILS.parent
    tool = tomllib.loads((package.parent / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    for folder in {path.parent for path in package.rglob("*.py")}:
        name = ".".join(folder.relative_to(package.parent).parts)
        assert name in tool["packages"]
        others = [p.name for p in folder.iterdir() if p.is_file() and p.suffix != ".py"]
        patterns = tool["package-data"].get(name, [])
        assert [o for o in others if not any(fnmatch(o, pattern) for pattern in patterns)] == []


@pytest.mark.parametrize("colour", sorted({*plots.COLOURS.values(), *plots._SPARE} - {"#000000"}))
def test_curves_stand_out_on_a_dark_page(colour: str) -> None:
    """WCAG 2.2, criterion 1.4.11: 3:1 for graphics; the style sheet mixes white into each colour."""
    mix = float(re.search(r'data-theme="dark".*--mix: (\d+)%', (KDUTILS / "explorers.css").read_text())[1]) / 100

    def luminance(code: str, white: float) -> float:
        channels = white + (1 - white) * np.array([int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    assert (luminance(colour, mix) + 0.05) / (luminance("#14181e", 0) + 0.05) >= 3


def test_drawing_fetches_nothing() -> None:
    for kind in ("js", "css"):
        text = (KDUTILS / f"explorers.{kind}").read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not any(word in text for word in ("http", "import ", "fetch(", "url(", "@import"))
