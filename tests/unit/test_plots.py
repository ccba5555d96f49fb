import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes

from kdutils import curriculum
from kdutils.lab import stats
from kdutils.lab.stats import Arm, Times
from kdutils.lab.training import Run
from kdutils.pages import plots
from kdutils.tasks.models import MLP

SPARE = {f"spare {i}": plots.colour("some other method", i) for i in range(len(plots._SPARE))}
PALETTE = {**plots.COLOURS, **SPARE}


@pytest.fixture
def ax() -> Iterator[Axes]:
    with mpl.rc_context():
        plots.style()
        figure, axes = plt.subplots()
        yield axes
        figure.canvas.draw()
        plt.close(figure)


@pytest.fixture
def arms(fake_run: Callable[..., Run]) -> dict[str, Arm]:
    fast = fake_run([[0.5, 0.5, 0.5], [0.99, 0.7, 0.8], [0.99, 0.99, 0.97]], [1, 2, 3])
    slow = fake_run([[0.5] * 3, [0.5] * 3, [0.6, 0.5, 0.7], [0.99, 0.6, 0.9]], [1, 2, 3])
    never = fake_run([[0.5] * 3] * 4, [1, 2, 3])
    seeds = (1, 2, 3)
    return {
        "extraction": Arm(fast, 1.0, seeds),
        "one-shot": Arm(slow, 1.0, seeds),
        "own method": Arm(never, 1.0, seeds),
    }


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2."""
    channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("name", PALETTE)
def test_contrast_against_white(name: str) -> None:
    """WCAG 2.2, criterion 1.4.11: 3:1 for graphics."""
    contrast = (1 + 0.05) / (luminance(PALETTE[name]) + 0.05)
    assert contrast >= 3, f"{PALETTE[name]} has {contrast:.2f}:1"


def test_colours_are_all_different() -> None:
    assert len({value.lower() for value in PALETTE.values()}) == len(plots.COLOURS) + len(plots._SPARE)
    rgb = {name: np.array([int(c[i : i + 2], 16) for i in (1, 3, 5)]) for name, c in PALETTE.items()}
    assert min(np.abs(rgb[a] - rgb[b]).max() for a, b in combinations(rgb, 2)) > 30


def test_dashes_are_all_different() -> None:
    assert len(set(plots.DASHES.values())) == len(plots.DASHES)


@pytest.mark.parametrize("axis", ["samples", "flops"])
def test_curves(ax: Axes, arms: dict[str, Arm], axis: str) -> None:
    assert plots.curves(arms, axis, ax) is ax
    assert ax.get_legend_handles_labels()[1] == list(arms)
    end = max(getattr(arm.run, axis)[-1] for arm in arms.values())
    assert max(line.get_xdata()[-1] for line in ax.lines) == end
    median = next(line for line in ax.lines if line.get_label() == "one-shot")
    np.testing.assert_allclose(median.get_ydata(), [0.5, 0.5, 0.6, 0.9])


def test_masked_curves_start_after_hidden_stages(ax: Axes, arms: dict[str, Arm]) -> None:
    run = arms["one-shot"].run
    plain = run.stages
    first = int(run.steps[1])
    for signal, left_out in (
        ("gaussian projection of `act` of final teacher", 2),
        ("`act` of final teacher through a learned regressor", 2),
        ("0.1 x gaussian projection of `act` of final teacher + 1 x output of final teacher", 0),
        ("output of checkpoint at step 5", 0),
    ):
        run.stages = [(signal, 0, first), *((name, first, last) for name, _, last in plain)]
        plots.curves(arms, ax=ax, masked=True)
        median = [line for line in ax.lines if line.get_label() == "one-shot"][-1]
        np.testing.assert_array_equal(median.get_xdata(), run.samples[left_out:])


@pytest.mark.parametrize("axis", ["samples", "flops"])
def test_times(ax: Axes, arms: dict[str, Arm], axis: str) -> None:
    plots.times(arms, 0.95, axis, ax)
    assert [label.get_text() for label in ax.get_yticklabels()] == list(arms)
    dots = {
        int(line.get_ydata()[0]): len(line.get_xdata())
        for line in ax.lines
        if line.get_marker() == "o" and len(line.get_xdata())
    }
    assert dots == {0: 3, 1: 1}
    assert sorted(text.get_text().strip() for text in ax.texts) == ["2 of 3 not done", "3 of 3 not done"]
    arrows = [line for line in ax.lines if line.get_marker() == ">"]
    assert [line.get_xdata()[0] for line in arrows] == [
        arms[n].times(0.95, axis).limit for n in ("one-shot", "own method")
    ]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]


@pytest.mark.parametrize("axis", ["samples", "flops"])
def test_every_method_of_the_book_has_its_look(ax: Axes, fake_run: Callable[..., Run], axis: str) -> None:
    """Of a run with other seeds and rates besides, which are not shown."""
    accuracy = np.random.default_rng(0).uniform(0.5, 0.97, (5, 6))
    arms = {name: Arm(fake_run(accuracy, [9, 1, 2], [0.1, 1.0]), 0.1, (1, 2)) for name in plots.COLOURS}
    plots.curves(arms, axis, ax)
    lines = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    assert list(lines) == list(arms)
    for name, line in lines.items():
        assert line.get_color() == plots.COLOURS[name]
        assert line.is_dashed() == (name in plots.DASHES)
        np.testing.assert_allclose(line.get_ydata(), np.median(accuracy[:, 1:3], 1), rtol=1e-6)
    ax.figure.canvas.draw()
    ax.clear()
    plots.times(arms, 0.95, axis, ax)
    assert [label.get_text() for label in ax.get_yticklabels()] == list(arms)


@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_stems(ax: Axes, floor: float) -> None:
    plots.stems([0.1, 0.5, 0.2, 0.6], [1, 3], ax, "title", floor)
    heights = {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bars in ax.containers for bar in bars}
    assert heights == {0: 0.1, 1: 0.5, 2: 0.2, 3: 0.6}
    on = next(bars for bars in ax.containers if bars.get_label() == "on the support")
    assert [round(bar.get_x() + bar.get_width() / 2) for bar in on] == [1, 3]
    assert ("sampling noise" in ax.get_legend_handles_labels()[1]) == (floor > 0)


def test_timeline_is_to_scale(ax: Axes) -> None:
    teacher = MLP(4, 5)
    plans = [
        curriculum.from_labels(),
        curriculum.progressive({"a": teacher, "b": teacher}, teacher, 30),
        curriculum.extracted(teacher, steps=10),
        curriculum.one_shot(teacher),
    ]
    plots.timeline(plans, 100, ax)
    segments = [(bar.get_x(), bar.get_width()) for bars in ax.containers for bar in bars]
    assert segments == [(0, 100), (0, 30), (30, 30), (60, 40), (0, 10), (10, 90), (0, 100)]
    assert [text.get_text() for text in ax.texts] == [
        f"{i}. {stage.signal}" for plan in plans for i, stage in enumerate(plan.stages, 1)
    ]


def test_current_axes_are_the_default(ax: Axes, arms: dict[str, Arm]) -> None:
    plt.sca(ax)
    assert plots.curves(arms) is ax and plots.times(arms, 0.95) is ax and plots.stems([1, 2], [0]) is ax


def test_saving_twice_gives_the_same_bytes(ax: Axes, tmp_path: Path) -> None:
    ax.plot([1, 2])
    paths = [tmp_path / "made" / name for name in ("a.png", "b.png")]
    for path in paths:
        plots.save(ax.figure, path)
    first, second = (path.read_bytes() for path in paths)
    assert first == second and len(first) > 1000


def test_the_same_figure_is_the_same_file(tmp_path: Path, arms: dict[str, Arm]) -> None:
    with mpl.rc_context():
        plots.style()
        for name in ("one.svg", "two.svg", "one.png", "two.png"):
            figure, axes = plt.subplots()
            plots.curves(arms, ax=axes)
            plots.save(figure, tmp_path / name)
            plt.close(figure)
    for kind in ("svg", "png"):
        first, second = ((tmp_path / f"{name}.{kind}").read_bytes() for name in ("one", "two"))
        assert first == second and b"matplotlib.org" not in first.split(b"<defs>")[0]


def test_figures_in_a_notebook_are_sharp_and_carry_no_date(arms: dict[str, Arm]) -> None:
    """A shell of its own, as a kernel has: what it shows of a figure is SVG alone."""
    script = """
import matplotlib_inline.backend_inline as inline
from IPython.core.interactiveshell import InteractiveShell
from kdutils.pages import plots
shell = InteractiveShell.instance()
plots.style()
figure, ax = plots.plt.subplots()
ax.plot([1, 2])
shown, _ = shell.display_formatter.format(figure)
assert [kind for kind in shown if kind.startswith("image/")] == ["image/svg+xml"], list(shown)
assert "<dc:date>" not in shown["image/svg+xml"]
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_names_above_curves_that_are_done_at_nearly_the_same_time_stand_apart(ax: Axes) -> None:
    near, far = (Times(np.array([n, n, 1.1 * n]), 1e6) for n in (10.0, 300.0))
    also = Times(np.array([12.0, 12.0, 13.0]), 1e6)
    unfinished = Times(np.array([500.0, np.inf, np.inf]), 1e6)
    plots.solved({"extraction": near, "progressive": also, "joint": far, "labels": unfinished}, ax=ax)
    ax.figure.canvas.draw()
    boxes = [text.get_window_extent() for text in ax.texts]
    assert len(boxes) == 4 and not any(one.overlaps(other) for one, other in combinations(boxes, 2))


def test_names_of_arms_in_which_nobody_is_done_stand_apart_and_inside(ax: Axes) -> None:
    done = Times(np.array([10.0, 10.0, 11.0]), 1e3)
    nobody = {name: Times(np.full(3, np.inf), 1e3) for name in ("labels", "one-shot", "untrained")}
    plots.solved({"extraction": done, **nobody}, ax=ax)
    ax.figure.canvas.draw()
    boxes = [text.get_window_extent() for text in ax.texts]
    assert len(boxes) == 4 and not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    assert min(box.y0 for box in boxes) >= ax.get_window_extent().y0 - 1


def test_figures_are_drawn_where_nobody_is_done_and_nothing_is_known(ax: Axes) -> None:
    nobody = {name: Times(np.full(3, np.inf), 1e3) for name in ("labels", "one-shot")}
    plots.solved(nobody, ax=ax)
    assert {text.get_text() for text in ax.texts} == {"labels, 0 of 3", "one-shot, 0 of 3"}
    ax.clear()
    unknown = stats.ratio(list(nobody.values())[:1], list(nobody.values())[:1])
    plots.ratios({"a group": {"labels": unknown}}, ax)
    assert unknown.bound == "not identified" and "nothing is known" in [text.get_text() for text in ax.texts]
    ax.figure.canvas.draw()
