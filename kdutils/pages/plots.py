"""The book's figures: one palette, one style. They read runs and tables, and never train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython import get_ipython
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter
from matplotlib_inline.backend_inline import set_matplotlib_formats

from kdutils.curriculum import Curriculum
from kdutils.lab.stats import Arm, Estimate, Times
from kdutils.pages import files

# Okabe and Ito's colours (2008), told apart with any colour vision; dashes and markers tell them apart without.
COLOURS = {
    "labels": "#767676", "one-shot": "#D55E00", "progressive": "#0072B2", "extraction": "#009E73",
    "untrained": "#CC79A7", "teacher": "#000000", "joint": "#332288", "FitNets": "#661100", "last layer": "#7A7A00",
}  # fmt: skip
DASHES = {
    "labels": (0, (1, 1)), "one-shot": (0, (5, 1.5)), "progressive": (0, (5, 1, 1, 1)),
    "untrained": (0, (3, 1, 1, 1, 1, 1)), "joint": (0, (8, 1, 2, 1)), "last layer": (0, (2, 1)),
}  # fmt: skip
_SPARE = ("#A87000", "#882255", "#3C8DC5", "#117733")
ON, OFF = "#000000", "#A6A6A6"  # bits on the support and off it: ink and its shadow, the colour of no method
SIZE = (7.2, 4.0)  # inches: fits the page, and is still legible scaled to a phone
DPI = 220  # of a figure that is kept as a picture of points: sharp on a screen of double density, too


def style() -> None:
    """Set matplotlib's defaults to the book's: white background in every theme, large type, quiet axes.

    In a notebook, figures are drawn as SVG: sharp at any size, and with nothing in them that changes from run to run.
    """
    if get_ipython() is not None:
        set_matplotlib_formats("svg", metadata={"Date": None, "Creator": None})
    plt.rcParams.update({
        "figure.figsize": SIZE, "figure.dpi": 110, "savefig.dpi": 110, "figure.facecolor": "white",
        "axes.facecolor": "white", "figure.constrained_layout.use": True, "font.size": 12, "axes.titlesize": 12.5,
        "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
        "grid.alpha": 0.25, "lines.linewidth": 2.2, "legend.edgecolor": "none", "svg.hashsalt": "kdutils",
    })  # fmt: skip


def colour(name: str, spare: int = 0) -> str:
    """The colour of a method; others get one of the spare ones."""
    return COLOURS.get(name, _SPARE[spare % len(_SPARE)])


def ink(name: str, spare: int = 0) -> str:
    """The same for words: darker, for letters are thinner than curves."""
    return to_hex([0.7 * part for part in to_rgb(colour(name, spare))])


def name_ends(ax: Axes, ends: Mapping[str, tuple[float, float]], gap: float = 15) -> None:
    """Write each curve's name right of the axes, as high as its end, in its colour, at least `gap` points apart.

    One that ends further left has its name above its end, or below it at the top; several would cover each other.

    Args:
        ends: {name: (x, y)} in data coordinates.
    """
    ax.autoscale_view()
    right = max(x for x, _ in ends.values())
    within = ax.transAxes.inverted().transform(ax.transData.transform(list(ends.values())))  # (curves, 2)
    at = dict(zip(ends, within, strict=True))
    outer = [name for name in ends if ends[name][0] > 0.9 * right]
    outer = sorted(outer if len(outer) >= len(ends) - 1 else ends, key=lambda name: at[name][1])
    places = np.array([at[name][1] for name in outer])
    ax.figure.draw_without_rendering()  # only then the layout says how high the axes are
    apart = gap * ax.figure.dpi / 72 / ax.get_window_extent().height
    for _ in range(200):  # neighbours that are too near push each other away
        places -= np.diff(np.clip(apart - np.diff(places), 0, None) / 2, prepend=0, append=0)
    places += max(0, 0.03 - places[0])  # the lowest would cover what stands below the axes
    for index, name in enumerate(ends):
        beside = name in outer
        place = (1, places[outer.index(name)]) if beside else tuple(at[name])
        below = at[name][1] > 0.85
        ax.annotate(name, place, (4, 0) if beside else (0, -16 if below else 9), xycoords="axes fraction",
                    textcoords="offset points", va="center" if beside else "top" if below else "bottom",
                    ha="left" if beside or at[name][0] < 0.15 else "center", fontsize=11,
                    color=ink(name, index), annotation_clip=False,
                    bbox={"fc": "white", "ec": "none", "pad": 0.5, "alpha": 0.8})  # fmt: skip


def curves(
    arms: Mapping[str, Arm],
    axis: str = "samples",
    ax: Axes | None = None,
    measure: str = "accuracy",
    masked: bool = False,
) -> Axes:
    """Held-out accuracy (or loss) against samples or FLOPs: the median over seeds, and every seed as a thin line.

    A run that stopped early because all its members had finished is continued as a flat thin line. `masked` leaves out
    stages that match hidden layers: the output layer has learned nothing there.
    """
    ax = plt.gca() if ax is None else ax
    end = max(getattr(arm.run, axis)[-1] for arm in arms.values())
    for index, (name, arm) in enumerate(arms.items()):
        x, shade, dash = getattr(arm.run, axis), colour(name, index), DASHES.get(name, "-")
        values = getattr(arm, measure)
        if masked:
            hidden = [last for signal, _, last in arm.run.stages if "` of " in signal and "output of" not in signal]
            shown = arm.run.steps > max(hidden, default=-1)
            x, values = x[shown], values[shown]
        ax.plot(x, values, color=shade, lw=0.7, alpha=0.35)
        median = np.median(values, 1)
        ax.plot(x, median, color=shade, ls=dash, label=name)
        ax.plot([x[-1], end], [median[-1]] * 2, color=shade, lw=0.7, alpha=0.6)
    ax.set(xlabel=_AXES[axis], ylabel={"accuracy": "held-out accuracy", "loss": "held-out loss, nats"}[measure])
    if measure == "accuracy":
        ax.set_ylim(top=1.02)
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    return ax


_AXES = {"samples": "training samples", "flops": "operations (teacher's forward passes included)"}


def times(arms: Mapping[str, Arm], threshold: float, axis: str = "samples", ax: Axes | None = None) -> Axes:
    """Samples (or FLOPs) to `threshold`: a dot a seed, a bar at the median, an arrow for the unfinished."""
    ax = plt.gca() if ax is None else ax
    for row, (name, arm) in enumerate(arms.items()):
        found, shade = arm.times(threshold, axis), colour(name, row)
        done = np.isfinite(found.values)
        ax.plot(found.values[done], np.full(done.sum(), row), "o", color=shade, alpha=0.8, ms=7)
        if not done.all():
            ax.plot([found.limit], [row], ">", color=shade, ms=10, mfc="none", mew=2)
            ax.annotate(f"{(~done).sum()} of {len(done)} not done", (found.limit, row), (11, 0), fontsize=10,
                        textcoords="offset points", va="center", color=ink(name, row))  # fmt: skip
        if np.isfinite(found.median):
            ax.plot([found.median] * 2, [row - 0.28, row + 0.28], color=shade, lw=3)
    ax.set(xscale="log", xlabel=f"{_AXES[axis]}, to {100 * threshold:g} % accuracy", ylim=(len(arms) - 0.4, -0.7))
    ax.set_yticks(range(len(arms)), list(arms))
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_minor_formatter(NullFormatter())
    return ax


def solved(
    arms: Mapping[str, Times], axis: str = "samples", ax: Axes | None = None, teachers: Times | None = None
) -> Axes:
    """The share of students that have solved the task, against samples or FLOPs (Kaplan-Meier), a label on each curve.

    Where students did not finish, the curve ends at the budget below 1, with an open arrow and how many did finish.
    `teachers` are drawn as thin vertical lines: when each of them solved it, within the axes.
    """
    ax = plt.gca() if ax is None else ax
    first = min(min(found.limit, found.values.min()) for found in arms.values()) / 4
    last = max(found.limit if found.finished < len(found.values) else found.values.max() for found in arms.values())
    lowest, idle = {}, {}  # by budget, the last label of arms with students done, and of those with none: they part
    tops: list[tuple[float, str, str]] = []  # labels above the curves: where two are near, they part sideways
    for name in sorted(arms, key=lambda name: -arms[name].finished):
        row = list(arms).index(name)
        found, shade, words = arms[name], colour(name, row), ink(name, row)
        done, count = np.sort(found.values[np.isfinite(found.values)]), len(found.values)
        end = found.limit if len(done) < count else done[-1]
        # all were watched to the same budget
        shares = np.r_[0 * done[:1], np.arange(1, len(done) + 1), len(done)] / count
        ax.step(np.r_[done[:1], done, end], shares, where="post", color=shade, ls=DASHES.get(name, "-"))
        if len(done) == count:
            tops.append((float(np.median(done)), name, words))
        else:
            ax.plot([end], shares[-1:], ">", color=shade, mfc="white", mew=2, ms=8, clip_on=False)
            at = min(shares[-1], lowest.get(end, 2) - 0.09) if len(done) else idle.get(end, -0.06) + 0.09
            (lowest if len(done) else idle)[end] = at
            inner = len(done) and end < last / 2  # another curve goes on to its right
            ax.text(end / 1.2 if inner else end * 1.2, at, f"{name}, {len(done)} of {count}", color=words,
                    va="center", ha="right" if inner else "left", fontsize=11)  # fmt: skip
    if teachers is not None:
        for value in (at := np.sort(teachers.values[teachers.values <= last])):
            ax.axvline(value, color=COLOURS["teacher"], lw=0.9, ls=":")
        count = len(teachers.values)
        who = f"{len(at)} of {count} teachers" if len(at) < count else "teachers" if count > 1 else "teacher"
        tops += [(float(value), who, COLOURS["teacher"]) for value in at[-1:]]
    tops.sort()
    for index, (x, name, shade) in enumerate(tops):
        left, right = (0 <= other < len(tops) and max(x, tops[other][0]) < 1.6 * min(x, tops[other][0])
                       for other in (index - 1, index + 1))  # fmt: skip
        side = "right" if right and not left else "left" if (left and not right) or "teacher" in name else "center"
        ax.text(x, 1.12 if left and right else 1.04, name, ha=side, color=shade)
    ax.set(xscale="log", xlabel=_AXES[axis], ylabel="share of students done", xlim=(first, last), ylim=(0, 1.02))
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    return ax


def ratios(groups: Mapping[str, Mapping[str, Estimate]], ax: Axes | None = None, smallest: float = 1.0) -> Axes:
    """Ratios on a logarithmic axis, a row each and a colour a group: a dot and its interval.

    Where only a bound is known an open arrow stands at it, and an interval without an end goes on to the edge. Ratios
    between `smallest` and its inverse lie in the grey band: no difference of interest.
    """
    ax = plt.gca() if ax is None else ax
    shown = [found for rows in groups.values() for found in rows.values() if found.bound != "not identified"]
    finite = [end for f in shown for end in (f.low, f.value, f.high) if 0 < end < np.inf] or [1.0]
    left, right = min(finite) / 1.3, max(finite) * 1.6
    ax.axvspan(1 / smallest, smallest, color="#999999", alpha=0.2, lw=0)
    row, names = 0, []
    for index, (group, rows) in enumerate(groups.items()):
        method = group.split(" over ")[0]  # a group may be one method's
        shade, words = colour(method, index), ink(method, index)
        ax.text(right, row + 0.2, group, color=words, ha="right", va="center", fontsize=11)
        row += 1
        for name, found in rows.items():
            if found.bound == "not identified":
                ax.text(1, row, "nothing is known", color=words, va="center", fontsize=10)
            else:
                ax.plot([max(found.low, left), min(found.high, right)], [row, row], color=shade, lw=2)
                mark = {"": "o", "at least": ">", "at most": "<"}[found.bound]
                ax.plot([found.value], [row], mark, color=shade, ms=8, mfc="white" if found.bound else shade, mew=2)
            names.append((row, name))
            row += 1
    ax.set(xscale="log", xlim=(left, right), ylim=(row - 0.4, -0.6))
    ax.set_yticks(*zip(*names, strict=True))
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.grid(axis="y", visible=False)
    return ax


def against(
    sizes: Sequence[float],
    arms: Mapping[str, Sequence[Times]],
    ax: Axes | None = None,
    xlabel: str = "",
    shift: float = 0,
) -> Axes:
    """Median samples to the mark against a size, on logarithmic axes, with the interval over seeds.

    An open arrow stands at the budget where half the seeds or more did not finish. `shift` moves the series apart
    sideways, each by this share.
    """
    ax = plt.gca() if ax is None else ax
    for row, (name, found) in enumerate(arms.items()):
        x, shade = np.asarray(sizes) * (1 + shift) ** row, colour(name, row)
        middle = np.array([min(t.median, t.limit) for t in found])
        ends = np.array([[min(end, t.limit) for end in t.interval()] for t in found]).T
        ax.errorbar(x, middle, np.abs(ends - middle), color=shade, ls=DASHES.get(name, "-"), label=name, capsize=3)
        done = np.array([np.isfinite(t.median) for t in found])
        ax.plot(x[done], middle[done], "o", color=shade, ms=7)
        ax.plot(x[~done], middle[~done], "^", color=shade, ms=10, mfc="white", mew=2)
    ax.set(xscale="log", yscale="log", xlabel=xlabel, ylabel="samples to the mark")
    ax.set_xticks(sizes, [f"{size:g}" for size in sizes])
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(EngFormatter(sep=""))
    ax.yaxis.set_minor_formatter(NullFormatter())
    return ax


def stems(
    values: Sequence[float], support: Sequence[int], ax: Axes | None = None, label: str = "", floor: float = 0.0
) -> Axes:
    """One coefficient a bit, the support picked out; `floor` is drawn as the band of sampling noise."""
    ax = plt.gca() if ax is None else ax
    values = np.asarray(values)
    inside = np.isin(np.arange(len(values)), list(support))
    if floor:
        ax.axhspan(0, floor, color="#999999", alpha=0.3, lw=0, label="sampling noise")
    ax.bar(np.flatnonzero(~inside), values[~inside], color=OFF, width=0.7, label="off the support")
    ax.bar(np.flatnonzero(inside), values[inside], color=ON, width=0.7, label="on the support")
    ax.set(xlabel="bit", title=label)
    return ax


def timeline(plans: Sequence[Curriculum], steps: int, ax: Axes | None = None) -> Axes:
    """Curricula as bars, one segment a stage, to scale in steps."""
    ax = plt.gca() if ax is None else ax
    for row, plan in enumerate(plans):
        start = 0
        for index, (stage, length) in enumerate(zip(plan.stages, plan.lengths(steps), strict=True)):
            ax.barh(row, length, left=start, height=0.36, color=colour(plan.name, row), ec="white",
                    alpha=1 - 0.45 * (index % 2))  # fmt: skip
            above = index % 2 == 0
            ax.text(start, row - 0.22 if above else row + 0.2, f"{index + 1}. {stage.signal}", fontsize=9.5,
                    va="bottom" if above else "top")  # fmt: skip
            start += length
    ax.set(
        yticks=range(len(plans)), yticklabels=[plan.name for plan in plans], xlabel="optimiser step", xlim=(0, steps)
    )
    ax.set_ylim(len(plans) - 0.3, -0.7)
    ax.grid(axis="y", visible=False)
    return ax


def save(figure: Figure, path: Path) -> None:
    """Save a figure with nothing in the file that changes from run to run; the folder is made if need be."""
    kind = path.suffix.removeprefix(".")
    about = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    files.write(path, lambda partial: figure.savefig(partial, format=kind, metadata=about, dpi=DPI))
