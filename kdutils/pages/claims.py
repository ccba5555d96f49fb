"""Claims: sentences with a measured value, its interval, a band, and a verdict; and the file that keeps them."""

from __future__ import annotations

import html
import json
import math
import os
import platform
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from kdutils.lab import store
from kdutils.lab.record import Run
from kdutils.pages import files, profiles


@dataclass(frozen=True)
class Claim:
    """A sentence that a measurement can contradict.

    Args:
        id: short and unique in the book.
        sentence: what is claimed, without numbers that the band does not fix.
        value: what was measured.
        interval: its interval over seeds (low, high).
        band: where the value has to lie (low, high), ends included; fixed before looking.
        unit: what the value counts.
        bound: the value is only a lower bound (some runs it is made from did not finish).
    """

    id: str
    sentence: str
    value: float
    interval: tuple[float, float]
    band: tuple[float, float]
    unit: str = ""
    bound: bool = False

    @property
    def verdict(self) -> str:
        """ "holds" where the whole interval lies in the band, "fails" where none of it does, else "unclear"."""
        low, high = self.interval
        if any(math.isnan(v) for v in (self.value, low, high)):
            return "unclear"
        if self.bound:
            low, high = low, math.inf
        if self.band[0] <= low and high <= self.band[1]:
            return "holds"
        return "fails" if high < self.band[0] or low > self.band[1] else "unclear"


def verdicts(claims: Sequence[Claim]) -> None:
    """Print the claims without numbers, at most as wide as a page: the same in every profile where they hold."""
    for claim in claims:
        line = f"{claim.verdict:>7}  {claim.id}: {claim.sentence}"
        print(_typed(textwrap.fill(line, 88, subsequent_indent=" " * 9, break_on_hyphens=False)))


def _typed(text: str) -> str:
    """`text` as the terminal can show it: in ASCII where it knows no other signs."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        for sign, plain in {"\u2265": ">=", "\u2264": "<=", "\u221e": "inf", "\u00a0": " "}.items():
            text = text.replace(sign, plain)
        return text.encode(encoding, "backslashreplace").decode(encoding)
    return text


class Box:
    """The "What you should see" table, for a notebook (HTML) or a terminal, and a line on where it is kept."""

    def __init__(self, claims: Sequence[Claim], note: str = "") -> None:
        self.rows = [(c.sentence, _measured(c), _band(c), c.verdict) for c in claims]
        self.note = note

    def __repr__(self) -> str:
        lines = [
            f"{verdict}: {sentence} Measured {value}; band {band}." for sentence, value, band, verdict in self.rows
        ]
        return _typed("\n".join([*lines, self.note] if self.note else lines))

    def _repr_html_(self) -> str:
        head = "".join(f"<th scope='col'>{h}</th>" for h in ("Claim", "Measured [interval]", "Band", "Verdict"))
        whole = [(row[0], *(cell.replace(", ", ",\u00a0") for cell in row[1:])) for row in self.rows]  # no broken pair
        body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in whole)
        note = f"<p class='kd-note'>{html.escape(self.note)}</p>" if self.note else ""
        return f"<table class='kd-claims'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{note}"


def _number(value: float) -> str:
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _measured(claim: Claim) -> str:
    if math.isnan(claim.value):
        return "not identified"
    low, high = (_number(v) for v in claim.interval)
    interval = "" if claim.interval == (claim.value, claim.value) else f" [{low}, {high}]"  # measured once
    return f"{'≥ ' if claim.bound else ''}{_number(claim.value)}{claim.unit}{interval}"


def _band(claim: Claim) -> str:
    low, high = claim.band
    if math.isinf(high):
        return f"≥ {_number(low)}{claim.unit}"
    return f"≤ {_number(high)}{claim.unit}" if math.isinf(low) else f"{_number(low)} to {_number(high)}{claim.unit}"


def _record(chapter: str, profile: str) -> Path:
    """A chapter's record in the book."""
    return Path(os.path.expanduser(os.environ.get("KDUTILS_RESULTS") or "results"), profile, f"{chapter}.json")


def _own(chapter: str, profile: str) -> Path:
    """Where a reader's numbers go: beside the reader's runs."""
    return store.Store().root / "results" / profile / f"{chapter}.json"


def _read(path: Path) -> dict[str, Any]:
    """What a record holds; nothing where it is missing or damaged."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _not_the_books(chapter: str, settings: SimpleNamespace) -> str:
    """Why numbers made with `settings` are not the book's; empty where they are."""
    if not os.environ.get("KDUTILS_RESULTS"):
        return "the book's own change through `make execute` alone"
    if names := profiles.changed(settings):
        return f"not the profile's own: {', '.join(names)}"
    before = _read(_record(chapter, settings.profile)).get("settings")
    device = str(before.get("device") if isinstance(before, dict) else settings.device)
    if device.split(":")[0] != settings.device.split(":")[0]:
        return f"the record was made on {device}, these on {settings.device}"
    return ""


def results_path(chapter: str, settings: SimpleNamespace) -> Path:
    """The file that `publish` writes.

    The book's records, `$KDUTILS_RESULTS/PROFILE/CHAPTER.json`, take a profile's own settings on the device that they
    were made on. `tools/execute.py` sets the variable. All else goes to `results` in the folder of runs.
    """
    own = _not_the_books(chapter, settings)
    return _own(chapter, settings.profile) if own else _record(chapter, settings.profile)


def publish(
    chapter: str,
    settings: SimpleNamespace,
    claims: Sequence[Claim],
    runs: Mapping[str, Run],
    measured: Mapping[str, Any],
) -> Box:
    """Write the chapter's numbers, with where they came from, to `results_path`, and return the table to show.

    Where nothing can be written, a warning says so, and the chapter goes on.

    Args:
        runs: the runs the chapter used, by name.
        measured: other numbers the chapter shows, by name.
    """
    record = {
        "chapter": chapter,
        "settings": vars(settings),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "kdutils source": store.source_hash()[:12],
        },
        "cost": cost(runs),
        "claims": [{**asdict(claim), "verdict": claim.verdict} for claim in claims],
        "measured": measured,
        "runs": {name: _summary(run) for name, run in runs.items()},
    }
    path, why = results_path(chapter, settings), _not_the_books(chapter, settings)
    text = json.dumps(_finite(record), indent=1, ensure_ascii=False) + "\n"
    kept = files.write(path, lambda partial: partial.write_text(text, encoding="utf-8"))
    where = f"kept in {_shown(path)}" if kept else "not kept"
    return Box(claims, "" if kept and not why else f"Numbers of your run, {where}{why and f' ({why})'}.")


def _shown(path: Path) -> Path:
    """A path as a reader would write it, from where the reader works."""
    try:
        return path.relative_to(Path.cwd())
    except (OSError, ValueError):
        return path


def cost(runs: Mapping[str, Run]) -> dict[str, Any]:
    """Seconds and peak memory of the training a chapter rests on, and the device."""
    return {
        "seconds": round(sum(run.seconds for run in runs.values()), 1),
        "peak memory, bytes": max((run.peak_memory for run in runs.values()), default=0),
        "device": next((run.device for run in runs.values()), "none"),
    }


def _summary(run: Run) -> dict[str, Any]:
    return {
        "key": run.key, "seconds": round(run.seconds, 2), "device": run.device, "budget, samples": run.budget,
        "stages": [list(stage) for stage in run.stages], "seeds": run.students.seeds,
        "learning rates": run.students.learning_rates, "flops": run.flops[-1],
        "final accuracy": [round(float(a), 4) for a in run.accuracy[-1]],
    }  # fmt: skip


def _finite(value: Any) -> Any:
    """JSON has no infinity: write it as a word. Nor has it arrays: they become lists.

    Numbers keep twelve digits: the last few hang on how many threads added them up.
    """
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if hasattr(value, "tolist"):
        return _finite(value.tolist())
    if isinstance(value, float):
        return float(f"{value:.12g}") if math.isfinite(value) else str(value)
    return value


def study_hours(name: str, folder: Path | str = "results/studies") -> float:
    """The core-hours that a study's records say it took; 0 without records, as in the installed package."""
    hours = _read(Path(folder, f"{name}.json")).get("core-hours", 0)
    return float(hours) if isinstance(hours, int | float) else 0.0


class CostBox:
    """What running a chapter took when its results were last recorded, and how long the studies that it shows."""

    def __init__(self, chapter: str, settings: SimpleNamespace, *studies: str) -> None:
        self.text = f"Not measured here yet: run the chapter once at the {settings.profile} profile."
        found = _read(_record(chapter, settings.profile))
        if not found:
            yours = _read(_own(chapter, settings.profile))
            found = yours if yours.get("settings") == _finite(vars(settings)) else {}
        try:
            spent = found["cost"]
            minutes, memory = spent["seconds"] / 60, spent["peak memory, bytes"] / 2**30
            device = spent["device"].replace(", 1 threads", ", 1 thread")
        except (KeyError, TypeError):
            return
        self.text = (
            f"What this page itself trains took {minutes:.1f} minutes and {memory:.1f} GiB of memory at the "
            f"{settings.profile} profile, on one device ({device}). Runs shared with other chapters are trained once "
            "and kept."
        )
        if hours := sum(study_hours(name) for name in studies):
            self.text += f" The studies that it shows, which it only reads, took {hours:.1f} hours of one core."

    def __repr__(self) -> str:
        return _typed(self.text)

    def _repr_html_(self) -> str:
        return f"<p class='kd-cost'>{html.escape(self.text)}</p>"
