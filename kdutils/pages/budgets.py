"""What a page shows of a study with several budgets: how each arm ends at each of them, against one-shot distillation.

An arm counts at a budget when its students under all teachers are recorded there. Differences are between students who
share first weights and data; a positive one says that the arm is the better one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, FixedLocator, FuncFormatter, LogLocator, NullFormatter

from kdutils.lab import stats
from kdutils.lab.stats import Estimate
from kdutils.pages import evidence, plots

BASE = "one-shot"
NEAR = 2.5  # two budgets that differ by no more than this factor are read between; of others, what is as near to one


def study(name: str, measure: str, folder: Path | str = "results/studies") -> Budgets | None:
    """The `Budgets` of a study from the records beside the notebook; None, and one line that says so, without them."""
    found = evidence.study(name, threshold=1.0, folder=folder)
    return None if found is None else Budgets(found.records, measure)


@dataclass(frozen=True)
class Budgets(evidence.Recorded):
    """The arms of a study at all its budgets.

    Attributes:
        measure: what is compared: "accuracy", in points, or "loss", in nats.
    """

    measure: str

    @property
    def unit(self) -> str:
        return {"accuracy": " points", "loss": " nats"}[self.measure]

    @cached_property
    def _whole(self) -> dict[tuple[str, int], float]:
        """{(arm, budget): operations of one student} of the arms that are recorded under all teachers."""
        t = self.records.table
        groups = t[(t.role == "students") & (t["size"] == self.size)].groupby(["arm", "budget"])
        teachers = len(self.taught)
        return {key: float(rows.flops.max()) for key, rows in groups if rows.teacher.nunique() == teachers}

    def budgets(self, *arms: str) -> list[int]:
        """The budgets, in steps, at which all of `arms` are recorded; left out, any arm beside one-shot."""
        if not arms:
            return sorted({b for a, b in self._whole if a != BASE and (BASE, b) in self._whole})
        return sorted(set.intersection(*({b for a, b in self._whole if a == arm} for arm in arms)))

    def arms(self, budget: int | None = None) -> list[str]:
        """The arms that are recorded at a budget, or at any, in the order of the study's file."""
        return [arm for arm in self.about["arms"] if any(a == arm and budget in (None, b) for a, b in self._whole)]

    def operations(self, arm: str, budget: int) -> float:
        """What training one student takes, its teacher's forward passes included; seconds, of a recorded teacher."""
        return self.records.seconds(arm, budget) or self._whole[arm, budget]

    def teacher_operations(self) -> float:
        """What training one teacher takes."""
        t = self.records.table
        return float(t[(t.role == "teacher") & (t["size"] == self.size)].flops.max())

    def level(self, arm: str, budget: int, measure: str = "") -> Estimate:
        """How an arm ends on test samples, a mean over teachers; losses are above the optimum where it is known."""
        finals = self._final(arm, budget, measure or self.measure)
        floor = self.optimum("loss") if (measure or self.measure) == "loss" else 0.0
        return stats.over_teachers([values - floor for values in finals])

    def _final(self, arm: str, budget: int, measure: str = "") -> list[np.ndarray]:
        return self.records.final(arm, budget, measure or self.measure, size=self.size)

    def optimum(self, measure: str, sample: str = "test") -> float:
        """Loss or accuracy of the best possible model on the same samples; where nobody knows it, 0."""
        return float(self.cell("teacher").get("facts", {}).get(f"optimum, {sample}", {}).get(measure, 0.0))

    def teachers(self, measure: str = "") -> np.ndarray:
        """(teachers,) how the teachers end on the same samples; losses as in `level`."""
        t, measure = self.records.table, measure or self.measure
        floor = self.optimum("loss") if measure == "loss" else 0.0
        t = t[(t.role == "teacher") & (t["sample"] == "test") & (t["size"] == self.size)]
        return t.sort_values("teacher")[measure].to_numpy() - floor

    def _better(self, a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> Estimate:
        """How much better `a` is than `b`, student by student, in `unit`."""
        scale = {"accuracy": 100.0, "loss": -1.0}[self.measure]
        found = stats.paired([scale * x for x in a], [scale * x for x in b])
        return found if abs(found.value) > 1e-9 else replace(found, value=0.0)  # what rounding leaves of nothing

    def gain(self, arm: str, budget: int, than: str = BASE) -> Estimate:
        """How much better an arm ends than another after as many samples, in `unit`."""
        return self._better(*(self._final(one, budget) for one in (arm, than)))

    def gain_at_operations(self, arm: str, than: str, budget: int) -> Estimate | None:
        """The same after as many operations as `than` takes for `budget`; every schedule ends where it is read.

        Between two budgets of `arm` each student's end is read on a straight line over the logarithm of operations.
        A budget that spends the same within 1 % is taken as it ended, and so is the last one, with less spent. None
        where no budget is near enough, by the root of `NEAR` between two of them and by `NEAR` after the last.
        """
        target, known = self.operations(than, budget), self.budgets(arm)
        spent = [self.operations(arm, b) for b in known]
        at = int(np.searchsorted(spent, target))
        same = [b for b, operations in zip(known, spent, strict=True) if abs(operations / target - 1) < 0.01]
        same += [known[-1]] if at == len(known) and target / spent[-1] <= NEAR else []
        if same:
            return self._better(self._final(arm, same[0]), self._final(than, budget))
        if at in (0, len(known)) or min(target / spent[at - 1], spent[at] / target) ** 2 > NEAR:
            return None
        share = math.log(target / spent[at - 1]) / math.log(spent[at] / spent[at - 1])
        low, high = (self._final(arm, b) for b in known[at - 1 : at + 1])
        between = [(1 - share) * x + share * y for x, y in zip(low, high, strict=True)]
        return self._better(between, self._final(than, budget))

    def judged(self, found: Estimate | None) -> str:
        """The verdict in bold, and what it rests on."""
        if found is None:
            return "**not known** (the budgets recorded lie too far apart)"
        return f"**{self.verdict(found)}** ({found}{self.unit})"

    def says(self, arm: str, budget: int, than: str = BASE) -> str:
        """What one budget says of an arm against another."""
        return f"{arm}: {self.judged(self.gain(arm, budget, than))}"

    def grouped(self, arms: Sequence[str], budget: int) -> str:
        """The arms by what one budget says of them against one-shot; numbers are for a table."""
        said = {arm: self.verdict(self.gain(arm, budget)) for arm in arms}
        groups = {word: [f"*{arm}*" for arm in arms if said[arm] == word] for word in said.values()}
        return "; ".join(f"**{word}**: {', '.join(among)}" for word, among in groups.items())

    def along_budgets(self, arm: str, than: str = BASE) -> str:
        """What every budget says of an arm against another, as a list in words."""
        known = self.budgets(arm, than)
        return "; ".join(f"after {b:,} steps {self.judged(self.gain(arm, b, than))}" for b in known)

    def share(self, arm: str, budget: int) -> str:
        """The share of a budget that an arm spends in hidden stages, such as "15 % of 500 steps"."""
        share = self.hidden(arm, budget) / budget
        return f"{share:{'.0%' if share >= 0.01 or not share else '.1%'}} of {budget:,} steps".replace("%", " %", 1)

    def rows(self) -> list[str]:
        """Lines of a table: each arm at each budget, how it was tuned, how it ends, and its difference to one-shot."""
        wide, unit = max(11, *map(len, self.arms())), f"against one-shot,{self.unit}"
        pairs = [(budget, arm) for budget in self.budgets() for arm in self.arms(budget)]
        found = {pair: "" if pair[1] == BASE else str(self.gain(pair[1], pair[0])) for pair in pairs}
        space = max(map(len, (unit, *found.values())))
        lines = [f"{'steps':>5}  {'arm':{wide}}  {'ends at':>7}  {unit:{space}}  chosen by tuning"]
        for (budget, arm), gain in found.items():
            end, chosen = self.level(arm, budget).value, self.chosen(arm, budget)
            lines.append(f"{budget:5,}  {arm:{wide}}  {end:7.3f}  {gain:{space}}  {chosen}")
        return lines

    def missing(self) -> str:
        """The arms and budgets of the study's file that are not recorded under all teachers; "none" where all are."""
        known, budgets = self._whole, self.about["budgets"]
        lost = {arm: [f"{b:,}" for b in budgets if (arm, b) not in known] for arm in self.about["arms"]}
        return "; ".join(f"{arm} after {', '.join(each)}" for arm, each in lost.items() if each) or "none"

    def chosen(self, arm: str, budget: int) -> str:
        """What the tuning chose: its learning rate, and a value for each of its lists."""
        found = self.cell("tuning", budget, arm)["chosen"]
        return ", ".join([f"rate {found['rates'][0]:g}", *(f"{k} {v:.2g}" for k, v in found["choice"].items())])

    def hidden(self, arm: str, budget: int) -> int:
        """The steps that an arm spends in stages which leave its output layer alone."""
        if self.about["arms"][arm]["curriculum"] not in ("extraction", "fitnets"):
            return 0
        return int(self.cell("students", budget, arm)["facts"]["stages"][-1][1])

    # Figures

    @property
    def _drawn(self) -> str:
        """What the figures show: accuracy, where it is compared and nobody knows the optimum of the loss."""
        return "loss" if self.optimum("loss") else self.measure

    def _show(self, values: np.ndarray | float) -> np.ndarray | float:
        """Accuracies as they are; losses above the optimum, or where nobody knows that, as perplexity."""
        return values if self._drawn == "accuracy" or self.optimum("loss") else np.exp(values)

    def _axis(self, ax: Axes) -> None:
        if self._drawn == "accuracy":
            ax.set(ylabel="accuracy")
            return
        if self.optimum("loss"):
            ax.set(ylabel="loss above the optimum", ylim=(0, None))
            return
        ax.set(ylabel="perplexity", yscale="log")
        ax.yaxis.set_major_locator(FixedLocator([12, 15, 20, 25, 30, 40, 60, 100, 150, 200, 300, 500]))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())

    def ends(self, axis: str = "samples", ax: Axes | None = None, what: str = "training samples",
             arms: Sequence[str] = ()) -> Axes:  # fmt: skip
        """How every arm (or those of `arms`) ends, against "samples" or "flops": a point is a training of its own."""
        ax = plt.gca() if ax is None else ax
        labels = {}
        for arm in arms or self.arms():
            known = self.budgets(arm)
            x = [b * self.about["settings"]["batch"] if axis == "samples" else self.operations(arm, b) for b in known]
            found = [self.level(arm, b, self._drawn) for b in known]
            y = [self._show(one.value) for one in found]
            ends = np.array([[self._show(end) for end in one.interval] for one in found]).T
            style = {"color": plots.colour(arm, len(labels)), "ls": plots.DASHES.get(arm, "-")}
            ax.errorbar(x, y, np.abs(ends - y), marker="o", ms=5, capsize=3, **style)
            labels[arm] = (x[-1], y[-1])
        teacher = self._show(float(self.teachers(self._drawn).mean()))
        ax.axhline(teacher, color="k", ls=":", lw=1)
        who = "teachers" if len(self.taught) > 1 else "teacher"
        ax.annotate(who, (0, teacher), (2, 3), xycoords=("axes fraction", "data"), textcoords="offset points",
                    fontsize=10)  # fmt: skip
        spent = "seconds of a core" if self.records.seconds(arm, known[0]) else "operations (teacher's passes included)"
        ax.set(xscale="log", xlabel=what if axis == "samples" else spent)
        if axis == "samples":
            ax.set_xticks(sorted({b * self.about["settings"]["batch"] for b in self.budgets()}))
        else:
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
        self._axis(ax)
        if axis == "samples":  # where the curves end one above the other
            plots.name_ends(ax, labels)
        return ax

    def gains(self, ax: Axes | None = None, shift: float = 0.08, arms: Sequence[str] = ()) -> Axes:
        """Differences to one-shot (of `arms`) with intervals, against the budget; shaded: too small to matter."""
        ax = plt.gca() if ax is None else ax
        known = self.budgets()
        arms = [arm for arm in arms or self.arms() if arm != BASE and self.budgets(arm, BASE)]
        ax.axhspan(-self.smallest, self.smallest, color="#999999", alpha=0.25, lw=0)
        right = len(known) - 1 + shift * (len(arms) - 1) / 2
        ax.plot([-0.3, right], [0, 0], color=plots.colour(BASE), ls=plots.DASHES[BASE], lw=1.5)  # up to its name
        labels = {BASE: (right, 0.0)}
        for row, arm in enumerate(arms):
            own = self.budgets(arm, BASE)
            x = [known.index(b) + shift * (row - (len(arms) - 1) / 2) for b in own]
            found = [self.gain(arm, b) for b in own]
            y = np.array([one.value for one in found])
            error = np.abs(np.array([one.interval for one in found]).T - y)
            shade, dashes = plots.colour(arm, len(labels)), plots.DASHES.get(arm, "-")  # as `name_ends` counts
            ax.errorbar(x, y, error, color=shade, ls=dashes, lw=1.2, marker="o", ms=6, capsize=4, elinewidth=2)
            labels[arm] = (right if own[-1] == known[-1] else x[-1], y[-1])
        ax.set(xlabel="steps of training", ylabel=f"better than one-shot,{self.unit}", xlim=(-0.3, right + 0.05))
        ax.set_xticks(range(len(known)), [f"{b:,}" for b in known])
        plots.name_ends(ax, labels)
        return ax

    def compared(self, budget: int, arms: Sequence[str], ax: Axes | None = None) -> Axes:
        """Differences of `arms` to one-shot after one budget, a row each; shaded: too small to matter."""
        ax = plt.gca() if ax is None else ax
        ax.axvspan(-self.smallest, self.smallest, color="#999999", alpha=0.25, lw=0)
        ax.axvline(0, color=plots.colour(BASE), ls=plots.DASHES[BASE], lw=1.5)
        for row, arm in enumerate(arms):
            found, shade = self.gain(arm, budget), plots.colour(arm)
            ax.plot(found.interval, [row, row], color=shade, lw=2)
            ax.plot([found.value], [row], "o", color=shade, ms=8)
        ax.set_yticks(range(len(arms)), arms)
        ax.set(ylim=(len(arms) - 0.4, -0.6), xlabel=f"better than one-shot after {budget:,} steps,{self.unit}")
        ax.grid(axis="y", visible=False)
        return ax

    def along(self, budget: int, ax: Axes | None = None, shaded: str = "extraction", arms: Sequence[str] = ()) -> Axes:
        """Held-out loss (or accuracy) along one budget, the median over all students; hidden stages are left out.

        Those of the arm `shaded` are shaded. `arms` are all that are recorded there, when left out.
        """
        ax = plt.gca() if ax is None else ax
        floor, labels = self.optimum(self._drawn, "held-out") if self._drawn == "loss" else 0.0, {}
        for arm in [arm for arm in self.arms(budget) if not arms or arm in arms]:
            tables, start = self.records.students(arm, budget, size=self.size), self.hidden(arm, budget)
            loss = np.concatenate([t.pivot(index="seed", columns="step", values=self._drawn) for t in tables])
            steps = np.sort(tables[0].step.unique())
            shown = steps > start
            y = self._show(np.median(loss, 0)[shown] - floor)
            ax.plot(steps[shown], y, color=plots.colour(arm, len(labels)), ls=plots.DASHES.get(arm, "-"))
            if arm == shaded:
                ax.axvspan(0, start, color=plots.colour(arm), alpha=0.12, lw=0)
                ax.annotate(f"← {arm}'s hidden stages", (start, 0.03), (4, 0), xycoords=("data", "axes fraction"),
                            textcoords="offset points", fontsize=10, color=plots.colour(arm))  # fmt: skip
            labels[arm] = (steps[-1], y[-1])
        ax.set(xlabel="step", xlim=(0, budget))
        self._axis(ax)
        plots.name_ends(ax, labels)
        return ax
