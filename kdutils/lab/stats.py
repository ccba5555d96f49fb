"""What several seeds can be said to show: times to a threshold, some of them unfinished."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kdutils.lab.record import Run
from kdutils.lab.training import DivergenceError


@dataclass(frozen=True)
class Times:
    """Samples (or FLOPs) each seed needed; an unfinished (right-censored) one counts as `inf`.

    Attributes:
        values: (n,) in the unit of `limit`; `inf` where the budget ended first.
        limit: the budget, in the same unit.
    """

    values: np.ndarray
    limit: float

    @property
    def finished(self) -> int:
        return int(np.isfinite(self.values).sum())

    @property
    def median(self) -> float:
        """The middle value (upper of two); `inf` when half or more did not finish. Never a mean."""
        return median(self.values)

    def interval(self, level: float = 0.9) -> tuple[float, float]:
        """Bootstrap interval of the median over seeds (percentile method)."""
        return bootstrap(median, self.values, level)

    def __str__(self) -> str:
        low, high = self.interval()
        return f"{_show(self.median, self.limit)} [{_show(low, self.limit)}, {_show(high, self.limit)}]"


def median(values: np.ndarray, axis: int = -1) -> np.ndarray | float:
    """The middle value along `axis` (upper of two): always one that was measured, so `inf` is allowed."""
    middle = np.sort(values, axis).take(values.shape[axis] // 2, axis)
    return float(middle) if middle.ndim == 0 else middle


def _show(value: float, limit: float) -> str:
    return f"{value:,.0f}" if np.isfinite(value) else f"> {limit:,.0f}"


def bootstrap(
    statistic: Callable, values: np.ndarray, level: float = 0.9, resamples: int = 2000
) -> tuple[float, float]:
    """Percentile bootstrap over the first axis. `inf` is allowed: the ends are order statistics, not interpolated.

    `statistic` maps resamples (resamples, n, ...) -> (resamples,) along the last axis of its input.
    """
    rng = np.random.default_rng(0)
    picks = rng.integers(0, len(values), (resamples, len(values)))
    draws = np.sort(statistic(values[picks]))
    tail = (1 - level) / 2
    return float(draws[int(tail * resamples)]), float(draws[int((1 - tail) * resamples) - 1])


@dataclass(frozen=True)
class Arm:
    """One method in a comparison: the members of a run with one learning rate, on the seeds reported.

    Attributes:
        run: the run; it may hold other learning rates and seeds besides.
        learning_rate: the one chosen; see `tuned`.
        seeds: those reported.
        sweep: the same method and learning rate on the tuning seeds, where `tuned` chose it.
        tried: the learning rates it was chosen from, smallest first; those that diverged there are not among them.
    """

    run: Run
    learning_rate: float
    seeds: tuple[int, ...]
    sweep: Arm | None = None
    tried: tuple[float, ...] = ()

    @classmethod
    def tuned(
        cls,
        fits: Sequence[Callable[[Sequence[int], Sequence[float]], Run]],
        learning_rates: Sequence[float],
        tuning_seeds: Sequence[int],
        seeds: Sequence[int],
        merit: Callable[[Arm], tuple[float, ...]],
        extensions: int = 0,
    ) -> Arm:
        """Try every way to fit at every learning rate on `tuning_seeds`, then train `seeds` in the best one alone.

        A learning rate at which training diverges is left out, and all larger ones with it. One that diverges on
        `seeds` gives way to the best of the smaller ones. Where the best one is the smallest or largest that was
        tried, a better one may lie outside: then the next one is tried as well.

        Args:
            fits: one function or more, (seeds, learning rates) -> the run of all their pairs. Several are settings of
                one method, such as lengths of a stage.
            learning_rates: those to begin with.
            merit: a tuple to make as large as possible, such as `fastest(0.95)`. A first entry of 0 says that the arm
                has nothing to show; its sweep does not go on, because only chance would lead it.
            extensions: how many rates outside the given ones are tried at most, in the best way to fit alone.

        Raises:
            ValueError: when a seed would be both tuned on and reported, or there is none to tune on.
        """
        both = sorted(set(seeds) & set(tuning_seeds))
        if both or not tuning_seeds:
            raise ValueError(f"learning rates are chosen on seeds that are not reported; give others than {both}")
        trials = []
        for fit in fits:
            run, rates = _stable(fit, tuning_seeds, learning_rates)
            trials += [(cls(run, float(rate), tuple(tuning_seeds)), fit) for rate in rates]
        best, fit = max(trials, key=lambda trial: merit(trial[0]))
        own = [trial for trial, way in trials if way is fit]
        largest = max(trial.learning_rate for trial in own)
        unstable = min((rate for rate in learning_rates if rate > largest), default=math.inf)
        for _ in range(extensions if merit(best)[0] else 0):
            outside = beyond(best.learning_rate, sorted(trial.learning_rate for trial in own))
            if outside is None or outside >= unstable:
                break
            try:
                own.append(cls(fit(tuning_seeds, [outside]), outside, tuple(tuning_seeds)))
            except DivergenceError:
                break
            best = max(own, key=merit)
        tried = tuple(sorted(trial.learning_rate for trial in own))
        while True:
            try:
                return cls(fit(seeds, [best.learning_rate]), best.learning_rate, tuple(seeds), best, tried)
            except DivergenceError:  # the tuning seeds did not tell
                own = [trial for trial in own if trial.learning_rate < best.learning_rate]
                if not own:
                    raise
                best = max(own, key=merit)

    @property
    def name(self) -> str:
        """The name of its curriculum."""
        return self.run.settings["curriculum"]["name"]

    @property
    def members(self) -> list[int]:
        """Indices into the run's members, in the order of `seeds`."""
        students = self.run.students
        found = {
            students.seed_of(m): m for m in range(len(students)) if students.learning_rate_of(m) == self.learning_rate
        }
        missing = [seed for seed in self.seeds if seed not in found]
        if missing:
            raise ValueError(
                f"the run has no members of learning rate {self.learning_rate:g} and seeds {missing}; it has learning "
                f"rates {students.learning_rates} and seeds {students.seeds}"
            )
        return [found[seed] for seed in self.seeds]

    @property
    def accuracy(self) -> np.ndarray:
        """(T, seeds) held-out accuracy."""
        return self.run.accuracy[:, self.members]

    @property
    def loss(self) -> np.ndarray:
        """(T, seeds) held-out cross-entropy, nats."""
        return self.run.loss[:, self.members]

    def times(self, threshold: float, axis: str = "samples") -> Times:
        """When each seed's held-out accuracy first reached `threshold`, in "samples" or "flops"."""
        along = getattr(self.run, axis).astype(float)
        reached = self.accuracy >= threshold
        first = np.where(reached.any(0), along[reached.argmax(0)], np.inf)
        return Times(first, float(along[-1]))


def _stable(fit: Callable, seeds: Sequence[int], rates: Sequence[float]) -> tuple[Run, list[float]]:
    """A run at all the learning rates that do not diverge, and these; the error when all do."""
    while True:
        try:
            return fit(seeds, rates), list(rates)
        except DivergenceError as error:
            smaller = [rate for rate in rates if rate < error.learning_rate]
            if not smaller:
                raise
            rates = smaller


def beyond(best: float, tried: Sequence[float]) -> float | None:
    """The rate beyond `best` where that is the first or last of those `tried` (smallest first), else None.

    It is as many times larger or smaller than `best` as `best` is than its neighbour, to two digits.
    """
    if len(tried) == 1 or best not in (tried[0], tried[-1]):
        return None
    neighbour = tried[1] if best == tried[0] else tried[-2]
    return float(f"{best * best / neighbour:.2g}")


def fastest(threshold: float) -> Callable[[Arm], tuple[float, ...]]:
    """A merit for `Arm.tuned`: most seeds finished; then the smallest median of samples to `threshold`; then the
    highest median accuracy at the end of the budget."""

    def merit(arm: Arm) -> tuple[float, ...]:
        times = arm.times(threshold)
        return times.finished, -times.median, float(np.median(arm.accuracy[-1]))

    return merit


def lowest_loss(arm: Arm) -> tuple[float]:
    """A merit for `Arm.tuned`: the smallest median held-out loss at the end of the budget."""
    return (-float(np.median(arm.loss[-1])),)


@dataclass(frozen=True)
class Speedup:
    """How many times fewer samples one arm needs than another, seed by seed (seeds share weights and data).

    Attributes:
        ratios: (n,) slow / fast. Where the slow one did not finish its limit stands in, so the true ratio is
            larger (`bounded`); where the fast one did not finish the ratio counts as 0.
        bounded: (n,) whether the ratio is only a lower bound.
    """

    ratios: np.ndarray
    bounded: np.ndarray

    @property
    def median(self) -> float:
        return median(self.ratios)

    def interval(self, level: float = 0.9) -> tuple[float, float]:
        """Bootstrap interval of the median ratio over seeds."""
        return bootstrap(median, self.ratios, level)

    @property
    def is_bound(self) -> bool:
        """Whether any seed's ratio is a lower bound, which makes the median one too."""
        return bool(self.bounded.any())


def speedup(slow: Times, fast: Times) -> Speedup:
    """Paired comparison of two arms over the same seeds; both `Times` in the same unit and seed order."""
    if len(slow.values) != len(fast.values):
        raise ValueError(f"arms are compared seed by seed; got {len(slow.values)} and {len(fast.values)} seeds")
    numerator = np.where(np.isfinite(slow.values), slow.values, slow.limit)
    return Speedup(numerator / fast.values, ~np.isfinite(slow.values))


@dataclass(frozen=True)
class Exponent:
    """How fast a median grows: `median ~ size ** value`.

    Attributes:
        value: slope of the least-squares line through (log size, log median).
        draws: (resamples,) the same with the seeds of every size resampled.
        bound: at some size half the seeds or more did not finish. The budget stands in there; where that is the
            largest size, the true exponent is larger.
    """

    value: float
    draws: np.ndarray
    bound: bool

    def interval(self, level: float = 0.9) -> tuple[float, float]:
        low, high = np.quantile(self.draws, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    def __sub__(self, other: Exponent) -> Exponent:
        """The difference of two exponents of independent seeds."""
        return Exponent(self.value - other.value, self.draws - other.draws, self.bound or other.bound)


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
