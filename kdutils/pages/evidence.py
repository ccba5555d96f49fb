"""What a page shows of a study: its arms compared, with two-level intervals, and claims made from them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from kdutils.lab import stats
from kdutils.lab.stats import Estimate, Times
from kdutils.pages.claims import Claim
from kdutils.studies import plans
from kdutils.studies.records import Records
from kdutils.studies.study import Cell


def study(
    name: str, threshold: float, budget: int | None = None, folder: Path | str = "results/studies"
) -> Evidence | None:
    """The `Evidence` of a study from the records beside the notebook; None, and one line that says so, where they are
    not: the installed package holds no records.

    Args:
        threshold: the accuracy that counts as "solved".
        budget: steps of a student; left out, the largest of the study.
    """
    records = Records(folder, name)
    if records.table.empty:
        print(f"The records of the study {name!r} are not here ({folder}): run this notebook in a clone of the book's "
              "repository, where they are in book/results/studies. What needs them is left out.")  # fmt: skip
        return None
    return Evidence(records, threshold, budget or max(records.about["budgets"]))


@dataclass(frozen=True)
class Recorded:
    """What any page reads of a study; see `Evidence` for one budget, `kdutils.pages.budgets.Budgets` for all.

    Attributes:
        size: which of the study's sizes; `dataclasses.replace(study, size=...)` for another.
    """

    records: Records
    size: str = field(default="", kw_only=True)

    @property
    def about(self) -> dict[str, Any]:
        """What the study's summary says, such as its settings, arms, teachers and cost."""
        return self.records.about

    @property
    def smallest(self) -> float:
        """The smallest effect of interest, stated before the run."""
        return float(self.about["effect"]["smallest"])

    @property
    def taught(self) -> list[int]:
        """The teachers' seeds, the one that arms are tuned under first."""
        return self.about.get("sizes", {}).get(self.size, {}).get("teachers", self.about["teachers"])

    def verdict(self, found: Estimate | None) -> str:
        """What an interval says, given the smallest effect of interest."""
        if found is None:
            return "not known"
        apart, word = found.low > 0 or found.high < 0, "better" if found.value > 0 else "worse"
        if found.within(self.smallest):
            return f"{word}, by too little to matter" if apart else "no difference that matters"
        if found.beyond(self.smallest) or found.beyond(-self.smallest):
            return word
        return f"{word}, perhaps by too little to matter" if apart else "unclear"

    def cell(self, role: str, budget: int = 0, arm: str = "") -> dict[str, Any]:
        """What the summary says of the first teacher, or of an arm's "tuning" or "students" under it."""
        return self.about["cells"][str(Cell(role, self.taught[0], budget, arm, self.size))]

    def otherwise(self) -> tuple[int, int]:
        """In how many tunings by loss another rate or value ended with a higher held-out accuracy, and of how many."""
        t = self.records.table
        t = t[(t.role == "tuning") & (t["size"] == self.size) & (t["sample"] == "held-out")].sort_values("step")
        ends = t.groupby(["budget", "arm", "choice", "rate", "seed"])[["loss", "accuracy"]].last()
        ends = ends.groupby(["budget", "arm", "choice", "rate"]).median().groupby(["budget", "arm"])
        other = [bool(one.accuracy[one.loss.idxmin()] < one.accuracy.max()) for _, one in ends]
        return sum(other), len(other)

    def outermost(self) -> str:
        """What the tuning chose at the end of all that it tried, in words, such as "the largest share (*extraction*
        after 400 and 1,000)", without steps at every budget; "none" where all choices lie within."""
        t, found = self.records.table, {}
        t = t[(t.role == "tuning") & (t["size"] == self.size)]
        for arm, options in self.about["arms"].items():
            for budget in self.about["budgets"]:
                if (name := str(Cell("tuning", self.taught[0], budget, arm, self.size))) not in self.about["cells"]:
                    continue
                chosen, rows = self.about["cells"][name]["chosen"], t[(t.arm == arm) & (t.budget == budget)]
                same = plans.parts(plans.label(chosen["choice"]))
                own = {rate for one, rate in zip(rows.choice, rows.rate, strict=True) if plans.parts(one) == same}
                tried = {"rate": {*self.about["tuning"]["rates"], *own}}
                seen = [part.rsplit(" ", 1) for choice in rows.choice.unique() for part in choice.split(", ") if part]
                for key in chosen["choice"]:
                    tried[key] = {*options[key], *(float(value) for own, value in seen if own == key)}
                for key, value in {"rate": chosen["rates"][0], **chosen["choice"]}.items():
                    for word, end in (("smallest", min), ("largest", max)):
                        if len(tried[key]) > 1 and value == end(tried[key]):
                            found.setdefault((word, key), {}).setdefault(arm, []).append(f"{budget:,}")
        whole = [f"{budget:,}" for budget in self.about["budgets"]]
        told = []
        for (word, key), arms in sorted(found.items()):
            at = [f"*{arm}*{'' if b == whole else ' after ' + ' and '.join(b)}" for arm, b in arms.items()]
            told.append(f"the {word} {key} ({', '.join(at)})")
        return "; ".join(told) or "none"


@dataclass(frozen=True)
class Evidence(Recorded):
    """A study's arms at one budget.

    Attributes:
        threshold: the accuracy that counts as "solved".
        budget: steps of a student.
    """

    threshold: float
    budget: int

    @cached_property
    def limit(self) -> int:
        """The budget in samples."""
        return self.budget * self.about["settings"]["batch"]

    def sizes(self, *arms: str) -> dict[str, Evidence]:
        """The same study at each of its sizes at which the students of all `arms` are recorded, in the file's order."""
        each = {size: replace(self, size=size) for size in self.about["sizes"]}
        return {size: study for size, study in each.items() if study.done(*arms)}

    def by_teacher(self, arm: str, axis: str = "samples") -> list[Times]:
        """When each student of an arm solved the task, in "samples" or "flops", one `Times` a teacher."""
        return self.records.times(arm, self.budget, self.threshold, axis, self.size)

    def done(self, *arms: str) -> bool:
        """Whether the students of these arms have been trained under every teacher: a study may be under way."""
        wanted = {str(Cell("students", t, self.budget, arm, self.size)) for t in self.taught for arm in arms}
        return wanted <= set(self.about["cells"])

    def times(self, arm: str, axis: str = "samples") -> Times:
        """The same, all teachers in one."""
        return stats.pooled(self.by_teacher(arm, axis))

    def solved(self, arm: str) -> str:
        """How many students of an arm solved the task, such as "12 of 15"."""
        found = self.times(arm)
        return f"{found.finished} of {len(found.values)}"

    def ratio(self, slow: str, fast: str, axis: str = "samples") -> Estimate:
        """How many times more `slow` needs than `fast`, student by student, with its interval over teachers."""
        return stats.ratio(self.by_teacher(slow, axis), self.by_teacher(fast, axis))

    def chosen(self, arm: str) -> dict[str, float]:
        """What the tuning seeds chose for an arm: "rate", and a value for each of its lists."""
        found = self.cell("tuning", self.budget, arm)["chosen"]
        return {"rate": found["rates"][0], **found["choice"]}

    def trials(self, arm: str) -> dict[str, tuple[float, list[float]]]:
        """What the tuning of an arm saw: for each choice, such as "steps 50", its best learning rate, and when each
        tuning seed solved the task, in samples (inf where it did not)."""
        t = self.records.table
        t = t[(t.role == "tuning") & (t.budget == self.budget) & (t.arm == arm) & (t["size"] == self.size)]
        found: dict[str, tuple[float, list[float]]] = {}
        for (choice, rate), rows in t.groupby(["choice", "rate"]):
            reached = rows[rows.accuracy >= self.threshold].groupby("seed").samples.min()
            times = reached.reindex(self.about["tuning"]["seeds"]).fillna(np.inf).tolist()
            if choice not in found or sorted(times, reverse=True) < sorted(found[choice][1], reverse=True):
                found[choice] = float(rate), times
        return dict(sorted(found.items(), key=lambda item: [float(n) for n in re.findall(r"[\d.]+", item[0])]))

    def teachers(self, axis: str = "samples") -> Times:
        """When each teacher solved the task; the limit is its whole training."""
        t = self.records.table
        t = t[(t.role == "teacher") & (t["sample"] == "held-out") & (t["size"] == self.size)]
        reached = t[t.accuracy >= self.threshold].groupby("teacher")[axis].min()
        values = reached.reindex(self.taught).fillna(np.inf).to_numpy(dtype=float)
        return Times(values, float(t[axis].max()))


def across(studies: Sequence[Evidence], slow: str, fast: str, axis: str = "samples") -> Estimate:
    """How many times more `slow` needs than `fast` over several sizes.

    A teacher of one size counts as one. Sizes that differ in their students alone have the same teachers: those of such
    sizes count once, with all their students.

    Raises:
        ValueError: where there are no students to compare.
    """
    both: list[list[Times]] = []
    for arm in (slow, fast):
        taught: dict[tuple, list[Times]] = {}
        for study in studies:
            settings = {**study.about["settings"], **study.about["sizes"][study.size]}
            own = tuple((key, str(value)) for key, value in settings.items() if not key.startswith("student_"))
            for teacher, times in zip(study.taught, study.by_teacher(arm, axis), strict=True):
                taught.setdefault((own, teacher), []).append(times)
        both.append([stats.pooled(times) for times in taught.values()])
    return stats.ratio(*both)


def needs(found: Estimate, smallest: float) -> str:
    """What a ratio to another arm settles, in words, given the smallest factor of interest."""
    if found.beyond(smallest, 1):
        return "more samples"
    if found.beyond(1 / smallest, 1):
        return "fewer samples"
    if found.within(smallest, 1):
        return f"as many samples, within a factor of {smallest:g}"
    if found.high < smallest:
        return "no more samples"
    return "no fewer samples" if found.low > 1 / smallest else "an unsettled number of samples"


def claim(id: str, sentence: str, found: Estimate | None, band: tuple[float, float], unit: str = " times") -> Claim:
    """A claim about an estimate of a study; of None, where the records do not tell, nothing is identified."""
    if found is None:
        return Claim(id, sentence, math.nan, (math.nan, math.nan), band, unit)
    return Claim(id, sentence, found.value, found.interval, band, unit, found.bound == "at least")
