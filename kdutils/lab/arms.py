"""One method in a comparison: how its learning rate was chosen, and when each seed reached a threshold. With it the
statistics of such times: medians in which unfinished seeds count, and a bootstrap."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdutils.lab.record import Run
from kdutils.lab.training import DivergenceError


@dataclass(frozen=True)
class Times:
    """Samples (or FLOPs) each seed needed; an unfinished (right-censored) one counts as `inf`.

    Attributes:
        values: (n,) in the unit of `limit`; `inf` where the budget ended first.
        limit: how long they were watched, in the same unit: the budget, or less where the run ended before it.
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


def lower_median(values: np.ndarray, axis: int = -1) -> np.ndarray | float:
    """The middle value along `axis` (lower of two): for ratios, where the upper one would flatter."""
    middle = np.sort(values, axis).take((values.shape[axis] - 1) // 2, axis)
    return float(middle) if middle.ndim == 0 else middle


def _show(value: float, limit: float) -> str:
    return f"{value:,.0f}" if np.isfinite(value) else f"> {limit:,.0f}"


def bootstrap(
    statistic: Callable, values: np.ndarray, level: float = 0.9, resamples: int = 20_000
) -> tuple[float, float]:
    """Percentile bootstrap over the first axis. `inf` is allowed: the ends are order statistics, not interpolated.

    There are so many resamples that no end hangs on how they are drawn: of five values the lowest is the median of
    5.8 % of them, and so the end of an interval of 90 %.

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
        found = tune(
            lambda choice, rates: fits[choice["way"]](tuning_seeds, rates),
            tuning_seeds, learning_rates, {"way": range(len(fits))}, merit, extensions,
        )  # fmt: skip
        fit, own = fits[found.choice["way"]], list(found.own)
        tried = tuple(sorted(arm.learning_rate for arm in own))
        while True:
            best = max(own, key=merit)
            try:
                return cls(fit(seeds, [best.learning_rate]), best.learning_rate, tuple(seeds), best, tried)
            except DivergenceError:  # the tuning seeds did not tell
                own = [arm for arm in own if arm.learning_rate < best.learning_rate]
                if not own:
                    raise

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
        """When each seed's held-out accuracy (or score, in its direction) first reached `threshold`, in "samples" or
        "flops"."""
        along = getattr(self.run, axis).astype(float)
        reached = self.accuracy >= threshold if self.run.higher_is_better else self.accuracy <= threshold
        first = np.where(reached.any(0), along[reached.argmax(0)], np.inf)
        return Times(first, float(along[-1]))


@dataclass(frozen=True)
class Tuned:
    """What `tune` found: the best choice, its arms in the order tried, and every (choice, arm) that was tried."""

    choice: dict[str, Any]
    own: tuple[Arm, ...]
    trials: tuple[tuple[dict[str, Any], Arm], ...]


def tune(
    fit: Callable[[dict[str, Any], Sequence[float]], Run],
    seeds: Sequence[int],
    rates: Sequence[float],
    lists: Mapping[str, Sequence[Any]],
    merit: Callable[[Arm], tuple[float, ...]],
    extensions: int,
    reach: Mapping[str, tuple[float, float]] | None = None,
) -> Tuned:
    """Choose a learning rate and one value from each of `lists`, one list after the other, on tuning seeds.

    The other lists stand at their middle meanwhile, and at their best afterwards. Where the best value or rate lies at
    an edge of what was tried, the next one outside is tried as well; see `Arm.tuned` for how rates are treated.

    Args:
        fit: (choice, rates) -> the run of all `seeds` at these rates.
        reach: the range within which a list may be extended, by its name; a list without one never is.
        extensions: how many values outside are tried at most, for each list and for the rates.

    Raises:
        DivergenceError: when training diverges at every rate of every choice.
    """
    trials: list[tuple[dict[str, Any], Arm]] = []
    unstable: dict[tuple, float] = {}  # the smallest rate known to diverge, by choice
    failure: DivergenceError | None = None

    def at(choice: dict[str, Any]) -> list[tuple[dict[str, Any], Arm]]:
        return [trial for trial in trials if trial[0] == choice]

    def attempt(choice: dict[str, Any], wanted: Sequence[float]) -> None:
        nonlocal failure
        place, known = tuple(choice.items()), {arm.learning_rate for _, arm in at(choice)}
        wanted = [rate for rate in wanted if rate not in known]
        while wanted := [rate for rate in wanted if rate < unstable.get(place, math.inf)]:
            try:
                run = fit(choice, wanted)
            except DivergenceError as error:
                failure, unstable[place] = error, min(unstable.get(place, math.inf), error.learning_rate)
                continue
            trials.extend((choice, Arm(run, float(rate), tuple(seeds))) for rate in wanted)
            return

    def best() -> tuple[dict[str, Any], Arm]:
        if not trials and failure is not None:
            raise failure
        return max(trials, key=lambda trial: merit(trial[1]))

    start = {key: values[len(values) // 2] for key, values in lists.items()}
    if len(lists) != 1:
        attempt(start, rates)
    for key, values in lists.items():
        others = best()[0] if trials else start
        for value in values:
            attempt({**others, key: value}, rates)
        low, high = (reach or {}).get(key, (math.inf, -math.inf))
        tried = sorted(values) if low < high else []
        for _ in range(extensions if tried and merit(best()[1])[0] else 0):
            outside = beyond(best()[0][key], tried)
            if outside is None or not low <= outside <= high:
                break
            attempt({**best()[0], key: outside}, rates)
            tried = sorted([*tried, outside])
    choice, _ = best()
    for _ in range(extensions if merit(best()[1])[0] else 0):
        own = [arm for _, arm in at(choice)]
        outside = beyond(max(own, key=merit).learning_rate, sorted(arm.learning_rate for arm in own))
        if outside is None or outside >= unstable.get(tuple(choice.items()), math.inf):
            break
        attempt(choice, [outside])
    return Tuned(choice, tuple(arm for _, arm in at(choice)), tuple(trials))


def beyond(best: float, tried: Sequence[float]) -> float | None:
    """The rate beyond `best` where that is the first or last of those `tried` (smallest first), else None.

    It is as many times larger or smaller than `best` as `best` is than its neighbour, to two digits.
    """
    if len(tried) == 1 or best not in (tried[0], tried[-1]):
        return None
    neighbour = tried[1] if best == tried[0] else tried[-2]
    return float(f"{best * best / neighbour:.2g}")


def fastest(threshold: float) -> Callable[[Arm], tuple[float, ...]]:
    """A merit for `Arm.tuned`: most seeds finished; then the smallest median of samples to `threshold`; then, where too
    few finished for a median, when the first of them did; then the highest median accuracy at the end of the budget."""

    def merit(arm: Arm) -> tuple[float, ...]:
        times = arm.times(threshold)
        first = 0.0 if np.isfinite(times.median) else float(times.values.min())
        return times.finished, -times.median, -first, float(np.median(arm.accuracy[-1]))

    return merit


def lowest_loss(arm: Arm) -> tuple[float]:
    """A merit for `Arm.tuned`: the smallest median held-out loss at the end of the budget; what is no number, last."""
    loss = float(np.median(arm.loss[-1]))
    return (-math.inf if math.isnan(loss) else -loss,)
