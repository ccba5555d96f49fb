"""What several seeds, and several teachers, can be said to show; some runs are unfinished.

Two rules, stated once. *Bounds:* a pair of runs of which one did not finish tells a range and not a number; the ends of
the ranges are treated alike, so an end that no finished run fixes is infinite, and where both are open nothing is
identified (`Estimate`). *Two levels:* the students of one teacher give one number, and teachers are the unit
(`over_teachers`): Student's t over them. A bootstrap of three teachers is too narrow: with as much variation between
teachers as within them, its 90 % interval held the truth in 78 % of 400 simulated studies of three teachers with five
students, and this one in 88 %.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from kdutils.lab.arms import Arm, Times, bootstrap, fastest, lower_median, lowest_loss, median, tune

__all__ = [
    "Arm", "Estimate", "Exponent", "Growth", "Times", "bootstrap", "difference", "exponent", "fastest",
    "growth", "logrank", "lower_median", "lowest_loss", "median", "over_teachers", "paired", "pooled", "ratio",
    "survival", "tune",
]  # fmt: skip


@dataclass(frozen=True)
class Exponent:
    """How fast a median grows: `median ~ size ** value`.

    Attributes:
        value: slope of the least-squares line through (log size, log median).
        draws: (resamples,) the same with the seeds of every size resampled.
        bound: at some size half the seeds or more did not finish; the budget stands in (at the largest: too low).
    """

    value: float
    draws: np.ndarray
    bound: bool

    def interval(self, level: float = 0.9) -> tuple[float, float]:
        low, high = np.quantile(self.draws, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)


def exponent(sizes: Sequence[float], times: Sequence[Times], resamples: int = 2000, seed: int = 0) -> Exponent:
    """Fit a power law to the medians of `times`, one a size.

    >>> sizes = [10, 20, 40]
    >>> round(exponent(sizes, [Times(np.full(5, float(s) ** 2), 1e6) for s in sizes]).value, 6)
    2.0
    """
    if len(set(sizes)) < 2:
        raise ValueError(f"a power law needs at least two sizes, not {list(sizes)}")
    rng, along = np.random.default_rng(seed), np.log(sizes) - np.mean(np.log(sizes))

    def slope(samples: Sequence[np.ndarray]) -> np.ndarray:
        medians = [np.minimum(median(values), t.limit) for values, t in zip(samples, times, strict=True)]
        return np.tensordot(along, np.log(medians), 1) / (along @ along)

    picks = [t.values[rng.integers(0, len(t.values), (resamples, len(t.values)))] for t in times]
    bound = any(not math.isfinite(t.median) for t in times)
    return Exponent(float(slope([t.values for t in times])), slope(picks), bound)


def difference(a: Exponent, b: Exponent) -> Exponent:
    """`a` less `b` where their seeds are independent: the draws are paired at random.

    `exponent` starts its stream from a number, so the draws of one call and another go together.
    """
    order = np.random.default_rng(1).permutation(len(b.draws))
    return Exponent(a.value - b.value, a.draws - b.draws[order], a.bound or b.bound)


@dataclass(frozen=True)
class Growth(Exponent):
    """A power law above a constant: `median ~ constant + factor * size ** value`."""

    constant: float = 0.0
    factor: float = 0.0

    def at(self, size: float | np.ndarray) -> float | np.ndarray:
        """The fitted median at this size."""
        return self.constant + self.factor * size**self.value


POWERS = np.arange(0.05, 8.001, 0.05)


def growth(sizes: Sequence[float], times: Sequence[Times], resamples: int = 2000, seed: int = 0) -> Growth:
    """Fit a constant and a power law to the medians of `times`, one a size: least squares of relative errors.

    A time with a fixed part (a stage, a coarse evaluation) makes a plain power law look flat. No part is negative.

    Raises:
        ValueError: for fewer than four sizes, which three numbers would fit whatever they are.

    >>> sizes = [10, 20, 40, 80]
    >>> found = growth(sizes, [Times(np.full(5, 300 + float(s) ** 2), 1e6) for s in sizes])
    >>> round(found.value, 6), round(found.constant)
    (2.0, 300)
    """
    if len(set(sizes)) < 4:
        raise ValueError(f"a constant and a power law need at least four sizes, not {list(sizes)}")
    scale = (np.asarray(sizes, dtype=float) / max(sizes))[:, None] ** POWERS  # (sizes, powers)

    def fit(medians: np.ndarray) -> np.ndarray:
        """(sizes, draws) -> (3, draws): the power, the constant and the factor, of sizes over their largest."""
        u = np.broadcast_to((1 / medians)[:, None], (len(sizes), len(POWERS), medians.shape[1]))
        v = scale[:, :, None] / medians[:, None]
        uu, uv, vv, su, sv = (u * u).sum(0), (u * v).sum(0), (v * v).sum(0), u.sum(0), v.sum(0)
        determinant = np.maximum(uu * vv - uv * uv, 1e-300)
        both = (su * vv - sv * uv) / determinant, (sv * uu - su * uv) / determinant
        alone = np.zeros_like(su), sv / vv  # without a constant
        inside = (both[0] >= 0) & (both[1] >= 0)
        a, b = (np.where(inside, x, y) for x, y in zip(both, alone, strict=True))
        best = ((a * u + b * v - 1) ** 2).sum(0).argmin(0)
        return np.stack([POWERS[best], *(np.take_along_axis(part, best[None], 0)[0] for part in (a, b))])

    rng = np.random.default_rng(seed)
    picks = [t.values[rng.integers(0, len(t.values), (resamples, len(t.values)))] for t in times]
    drawn = np.stack([np.minimum(median(values), t.limit) for values, t in zip(picks, times, strict=True)])
    power, constant, factor = fit(np.array([[min(t.median, t.limit)] for t in times]))[:, 0]
    bound = any(not math.isfinite(t.median) for t in times)
    return Growth(float(power), fit(drawn)[0], bound, float(constant), float(factor / max(sizes) ** power))


@dataclass(frozen=True)
class Estimate:
    """A number, or what is known of it, with its interval over teachers and students.

    Attributes:
        value: the number; where it is a bound (`bound`), the end that is known; nan where nothing is.
        low, high: its interval; an end that no finished run fixes is infinite (a ratio's lower one: 0).
        bound: "" for a number, "at least", "at most", or "not identified".
        teachers, students: how many of each (students of all teachers).
    """

    value: float
    low: float
    high: float
    bound: str
    teachers: int
    students: int

    @property
    def interval(self) -> tuple[float, float]:
        return self.low, self.high

    def beyond(self, smallest: float, none: float = 0.0) -> bool:
        """Whether the whole interval lies beyond the smallest effect of interest, on its side of no effect.

        `none` is the value of no effect: 0 for a difference, 1 for a ratio.
        """
        return self.low >= smallest if smallest > none else self.high <= smallest

    def within(self, smallest: float, none: float = 0.0) -> bool:
        """Whether the whole interval is smaller than the smallest effect of interest, in both directions."""
        other = 1 / smallest if none == 1 else 2 * none - smallest
        return min(smallest, other) < self.low and self.high < max(smallest, other)

    def __str__(self) -> str:
        if self.bound == "not identified":
            return self.bound
        sign = {"": "", "at least": "≥ ", "at most": "≤ "}[self.bound]
        ends = ("∞" if math.isinf(end) else f"{end:.3g}" for end in (self.low, self.high))
        return f"{sign}{self.value:.3g} [{', '.join(ends)}]"


def over_teachers(lows: Sequence[np.ndarray], highs: Sequence[np.ndarray] | None = None, level: float = 0.9,
                  ratios: bool = False) -> Estimate:  # fmt: skip
    """The mean over teachers of what their students show, and its interval.

    A teacher's students give their median (the lower of two for ratios). Over teachers it is the mean (of logarithms
    for ratios) with Student's t, exact for normal teachers however students vary; of one, a bootstrap of its students.

    Args:
        lows, highs: one array (students,) a teacher, the ends of what each student tells; `highs` left out are `lows`.
        ratios: positive numbers that are compared as ratios.
    """
    highs = lows if highs is None else highs
    middle = lower_median if ratios else partial(np.median, axis=-1)
    to, back = (np.log, np.exp) if ratios else (np.asarray, np.asarray)
    least = 0.0 if ratios else -math.inf
    ends = []
    for groups, open_end, side in ((lows, least, 0), (highs, math.inf, 1)):
        centres = np.array([middle(np.asarray(group, dtype=float)) for group in groups])
        if not np.isfinite(centres).all() or (ratios and centres.min() <= 0):
            ends.append((open_end, open_end))
        elif len(centres) == 1:
            ends.append((float(centres[0]), bootstrap(middle, np.asarray(groups[0], dtype=float), level)[side]))
        else:
            from scipy import stats as scipy_stats  # an extra, and slow to import

            centre, error = to(centres).mean(), to(centres).std(ddof=1) / len(centres) ** 0.5
            reach = scipy_stats.t.ppf((1 + level) / 2, len(centres) - 1) * error
            ends.append((float(back(centre)), float(back(centre + (reach if side else -reach)))))
    (lower, low), (upper, high) = ends
    bound = "" if lower == upper else "at most" if lower == least else "at least"
    if (lower, upper) == (least, math.inf):
        bound = "not identified"
    value = {"not identified": math.nan, "at most": upper}.get(bound, lower)
    return Estimate(value, low, high, bound, len(lows), sum(len(group) for group in lows))


def paired(a: Sequence[np.ndarray], b: Sequence[np.ndarray], level: float = 0.9) -> Estimate:
    """How far arm `a` is above arm `b`: differences student by student (who share weights and data), by teacher."""
    _same_shape(a, b)
    return over_teachers([np.subtract(x, y) for x, y in zip(a, b, strict=True)], level=level)


def ratio(slow: Sequence[Times], fast: Sequence[Times], level: float = 0.9) -> Estimate:
    """How many times more arm `slow` needs than arm `fast`, student by student, one `Times` a teacher.

    Where `slow` did not finish the ratio is at least limit / fast, where `fast` did not at most slow / limit.
    """
    _same_shape([t.values for t in slow], [t.values for t in fast])
    lows, highs = [], []
    for s, f in zip(slow, fast, strict=True):
        lows.append(np.where(np.isfinite(f.values), np.minimum(s.values, s.limit) / f.values, 0.0))
        highs.append(np.where(np.isfinite(s.values), s.values / np.minimum(f.values, f.limit), np.inf))
    return over_teachers(lows, highs, level, ratios=True)


def _same_shape(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> None:
    one, other = [len(group) for group in a], [len(group) for group in b]
    if one != other or not one:
        raise ValueError(f"arms are compared student by student; under the teachers one has {one}, the other {other}")


def pooled(times: Sequence[Times]) -> Times:
    """The students of all teachers in one; an unfinished one must have had the largest limit."""
    limit = max(t.limit for t in times)
    short = [t.limit for t in times if t.limit < limit and t.finished < len(t.values)]
    if short:
        raise ValueError(f"unfinished runs of different limits cannot be pooled: {short} and {limit}")
    return Times(np.concatenate([t.values for t in times]), limit)


def _censored(times: Times) -> object:
    from scipy.stats import CensoredData

    done = np.isfinite(times.values)
    return CensoredData(uncensored=times.values[done], right=np.full((~done).sum(), times.limit))


def survival(times: Times, level: float = 0.9) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The Kaplan-Meier curve: where it falls, the share not finished after that, and the ends of its interval there."""
    from scipy.stats import ecdf

    curve = ecdf(_censored(times)).sf
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # undefined at a share of 0
        band = curve.confidence_interval(confidence_level=level, method="log-log")
    falls = np.isin(curve.quantiles, times.values)
    return tuple(part[falls] for part in (curve.quantiles, *(c.probabilities for c in (curve, band.low, band.high))))


def logrank(a: Times, b: Times) -> float:
    """p-value of the log-rank test that two arms finish equally fast; unfinished runs count as such."""
    from scipy import stats as scipy_stats

    return float(scipy_stats.logrank(_censored(a), _censored(b)).pvalue)
