"""What a study's file expected before the runs that it speaks of, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from kdutils.lab.stats import Estimate
from kdutils.pages.budgets import Budgets
from kdutils.studies import sound

_WORDS = {
    "ahead": "ahead of {}", "ahead, by less": "ahead of {}, but by less", "no worse": "no worse than {}",
    "no different": "no different from {}", "no better": "no better than {}", "behind": "behind {}",
}  # fmt: skip


def became(found: Estimate | None, ends: str, smallest: float) -> str:
    """What became of an expectation: it came true where the whole interval lies in its band, and did not where none
    of it does.

    Args:
        found: the difference; None, where it is not trained yet.
        ends: one of `kdutils.studies.sound.ENDS`.
        smallest: effect of interest.
    """
    if found is None:
        return "not trained yet"
    low, high = (end * smallest for end in sound.ENDS[ends])
    if low <= found.low and found.high <= high:
        return "came true"
    return "did not come true" if found.high < low or found.low > high else "not settled"


def listed(study: Budgets, named: Mapping[str, str] | None = None) -> str:
    """All that the file of a study expected, as a list in Markdown: an arm a line, each budget with its verdict.

    Args:
        named: what to call a size of the study; one that is not named goes by its own name.
    """
    lines = []
    for said in study.about.get("expected", []):
        size, than, ends = said.get("size", ""), said["than"], said["ends"]
        one = replace(study, size=size)
        known = f" ({named[size] if named and size in named else size})" if size else ""
        for arm in said["arms"]:
            each = []
            for budget in said["budgets"]:
                found = one.gain(arm, budget, than) if budget in one.budgets(arm, than) else None
                measured = "" if found is None else f" ({found}{one.unit})"
                each.append(f"after {budget:,} steps **{became(found, ends, one.smallest)}**{measured}")
            note = f" It was {said['note']}." if "note" in said else ""
            lines.append(f"- *{arm}* {_WORDS[ends].format(f'*{than}*')}{known}: {'; '.join(each)}.{note}\n")
    return "".join(lines)
