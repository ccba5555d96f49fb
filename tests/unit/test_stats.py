import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest

from kdutils.lab import stats
from kdutils.lab.stats import Arm, Times
from kdutils.lab.training import DivergenceError, Run

INF = math.inf
MakeRun = Callable[..., Run]


def times(*values: float, limit: float = 100) -> Times:
    return Times(np.array(values, dtype=float), limit)


def test_first_time_at_the_threshold(fake_run: MakeRun) -> None:
    run = fake_run([[0.5, 0.5, 0.9], [0.9, 0.5, 0.5], [0.5, 0.89, 0.9], [0.9, 0.5, 0.9]], [1, 2, 3])
    found = Arm(run, 1.0, (1, 2, 3)).times(0.9)
    assert found.values.tolist() == [40, INF, 0]
    assert found.finished == 2
    assert Arm(run, 1.0, (3, 1)).times(0.9).values.tolist() == [0, 40]


def test_flops_stop_at_the_same_evaluation(fake_run: MakeRun) -> None:
    arm = Arm(fake_run([[0.5, 0.5], [0.9, 0.5], [0.9, 0.9]], [1, 2], flops_a_step=7.0), 1.0, (1, 2))
    samples, flops = arm.times(0.9), arm.times(0.9, "flops")
    np.testing.assert_allclose(flops.values / samples.values, 7.0 / 4)
    assert flops.limit / samples.limit == pytest.approx(7.0 / 4)


@pytest.mark.parametrize("unfinished", [0, 1, 2, 3, 4, 5])
def test_median_with_unfinished_runs(unfinished: int) -> None:
    found = times(*range(1, 6 - unfinished), *[INF] * unfinished)
    assert found.median == (3 if unfinished < 3 else INF)


def test_median_is_one_of_the_values() -> None:
    rng = np.random.default_rng(0)
    for n in range(1, 9):
        values = rng.normal(size=n)
        middle = times(*values).median
        assert middle in values
        assert (values < middle).sum() <= n / 2 and (values > middle).sum() <= n / 2
    assert times(1, 2).median == 2
    assert times(1, INF).median == INF


def test_median_along_an_axis() -> None:
    table = np.array([[3.0, 1, INF], [INF, INF, 2]])
    assert stats.median(table).tolist() == [3, INF]
    assert stats.median(table, 0).tolist() == [INF, INF, INF]


def test_interval_is_made_of_values_and_surrounds_the_median() -> None:
    found = times(5, 9, 2, 7, 11, 3)
    low, high = found.interval()
    assert low <= found.median <= high
    assert {low, high} <= set(found.values)
    narrow = found.interval(0.2)
    assert low <= narrow[0] <= narrow[1] <= high
    assert times(4, 4, 4).interval() == (4, 4)


def test_interval_of_two_is_both() -> None:
    assert times(1, 2).interval() == (1, 2)  # a resample has the smaller one as its median with probability 1/4


def test_interval_reaches_infinity_with_the_unfinished() -> None:
    # 2 of 5 unfinished: a resample's median is infinite where 3 or more of its 5 draws are, probability 0.32
    assert times(1, 2, 3, INF, INF).interval()[1] == INF
    assert times(INF, INF, INF).interval() == (INF, INF)


@pytest.mark.parametrize("values", [(1, 2, 3, 4, INF), (5, 9, 2, 7, 11), (1, 2, 3, INF, INF), (3, 1, INF)])
@pytest.mark.parametrize("level", [0.2, 0.5, 0.9])
def test_interval_ends_are_quantiles_of_all_resamples(values: tuple[float, ...], level: float) -> None:
    medians = np.sort(stats.median(np.array(list(product(values, repeat=len(values))))))
    tail = (1 - level) / 2
    slack = 5 * (tail * (1 - tail) / 2000) ** 0.5  # five standard errors of a share of the 2,000 resamples drawn

    def quantile(share: float) -> float:
        return medians[int(share * len(medians))]

    low, high = times(*values).interval(level)
    assert quantile(tail - slack) <= low <= quantile(tail + slack)
    assert quantile(1 - tail - slack) <= high <= quantile(1 - tail + slack)


def test_interval_is_reproducible() -> None:
    np.random.seed(0)
    first = times(5, 9, 2, 7, 11).interval()
    np.random.seed(1)
    assert times(5, 9, 2, 7, 11).interval() == first


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    covered = [low <= 0 <= high for low, high in (times(*rng.normal(size=15)).interval() for _ in range(120))]
    assert np.mean(covered) > 0.8  # 90 % in the limit; three standard errors of 120 repetitions below, and small n


def test_text_shows_the_unfinished_as_larger_than_the_limit() -> None:
    assert str(times(1, INF, INF, limit=1234)).startswith("> 1,234 [")
    assert str(times(1000, 1000, limit=5)) == "1,000 [1,000, 1,000]"


def test_rate_is_chosen_on_the_tuning_seeds_and_others_are_trained_with_it_alone(fake_run: MakeRun) -> None:
    asked = []

    def fit(seeds: list[int], rates: list[float]) -> Run:
        asked.append((tuple(seeds), tuple(rates)))
        members = [[0.5, 0.99 if rate == 0.1 else 0.5] for rate in rates for _ in seeds]
        return fake_run(np.transpose(members), seeds, rates)

    arm = Arm.tuned([fit], [0.1, 1.0], [9], [1, 2], stats.fastest(0.95))
    assert asked == [((9,), (0.1, 1.0)), ((1, 2), (0.1,))]
    assert (arm.learning_rate, arm.seeds, arm.members) == (0.1, (1, 2), [0, 1])
    assert arm.sweep is not None and (arm.sweep.learning_rate, arm.sweep.seeds) == (0.1, (9,))


def test_the_best_way_is_chosen_with_its_rate(fake_run: MakeRun) -> None:
    def way(solved_at: float) -> Callable[[list[int], list[float]], Run]:
        def fit(seeds: list[int], rates: list[float]) -> Run:
            run = fake_run(
                np.transpose([[0.5, 0.99 if r == solved_at else 0.5] for r in rates for _ in seeds]), seeds, rates
            )
            run.settings["curriculum"] = {"name": f"solved at {solved_at}"}
            return run

        return fit

    arm = Arm.tuned([way(7.0), way(0.1)], [1.0, 0.1], [9], [1, 2], stats.fastest(0.95))
    assert (arm.name, arm.learning_rate) == ("solved at 0.1", 0.1)


@pytest.mark.parametrize(
    ("optimum", "given", "extensions", "chosen", "tried"),
    [
        (3.0, [0.1, 0.3, 1.0], 2, 3.3, (0.1, 0.3, 1.0, 3.3, 11.0)),  # inside at last
        (0.3, [0.1, 0.3, 1.0], 2, 0.3, (0.1, 0.3, 1.0)),  # inside from the start
        (0.03, [0.1, 0.3, 1.0], 2, 0.033, (0.011, 0.033, 0.1, 0.3, 1.0)),
        (1e-4, [0.1, 0.3, 1.0], 2, 0.011, (0.011, 0.033, 0.1, 0.3, 1.0)),  # given up
        (3.0, [0.1, 0.3, 1.0], 0, 1.0, (0.1, 0.3, 1.0)),
        (3.0, [1.0], 2, 1.0, (1.0,)),  # one rate has no neighbour
        (90.0, [0.1, 0.3, 1.0], 2, 3.3, (0.1, 0.3, 1.0, 3.3)),  # diverges beyond 10
    ],
)
def test_a_sweep_goes_on_where_the_best_rate_is_its_last(
    fake_run: MakeRun, optimum: float, given: list, extensions: int, chosen: float, tried: tuple
) -> None:
    def fit(seeds: list[int], rates: list[float]) -> Run:
        if max(rates) > 10 and optimum > 10:
            raise DivergenceError("too large", max(rates))
        off = [abs(np.log(rate / optimum)) for rate in rates for _ in seeds]
        return fake_run([[0.5] * len(off), [0.6 + 0.3 / (1 + d) for d in off]], seeds, rates)

    arm = Arm.tuned([fit], given, [9], [1, 2], stats.fastest(0.55), extensions)
    assert (arm.learning_rate, arm.tried) == (chosen, tried)
    assert arm.sweep is not None and arm.sweep.learning_rate == chosen and arm.run.students.learning_rates == (chosen,)


def test_a_sweep_does_not_follow_chance(fake_run: MakeRun) -> None:
    """Where no tuning seed finished, the differences of final accuracies say little."""

    def fit(seeds: list[int], rates: list[float]) -> Run:
        ends = [0.5 + rate / 100 for rate in rates for _ in seeds]
        return fake_run([[0.5] * len(ends), ends], seeds, rates)

    assert Arm.tuned([fit], [0.1, 0.3, 1.0], [9], [1, 2], stats.fastest(0.95), 2).tried == (0.1, 0.3, 1.0)


def test_a_sweep_does_not_go_past_a_rate_that_diverged(fake_run: MakeRun) -> None:
    def fit(seeds: list[int], rates: list[float]) -> Run:
        asked.extend(rates)
        if max(rates) >= 2:
            raise DivergenceError("too large", max(rates))
        ends = [0.6 + rate / 100 for rate in rates for _ in seeds]
        return fake_run([[0.5] * len(ends), ends], seeds, rates)

    asked: list[float] = []
    arm = Arm.tuned([fit], [0.3, 1.0, 2.0], [9], [1, 2], stats.fastest(0.55), 2)
    assert arm.learning_rate == 1.0 and max(asked) == 2.0 and asked.count(2.0) == 1


def test_a_rate_that_diverges_on_a_reported_seed_gives_way_to_the_best_smaller_one(fake_run: MakeRun) -> None:
    def fit(seeds: list[int], rates: list[float]) -> Run:
        if 9 not in seeds and max(rates) > limit:
            raise DivergenceError("too large", max(rates))
        ends = [{0.1: 0.6, 0.3: 0.7, 1.0: 0.65, 3.0: 0.8}[rate] for rate in rates for _ in seeds]
        return fake_run([[0.5] * len(ends), ends], seeds, rates)

    limit = 2.0
    arm = Arm.tuned([fit], [0.1, 0.3, 1.0, 3.0], [9], [1, 2], stats.fastest(0.95))
    assert (arm.learning_rate, arm.tried) == (0.3, (0.1, 0.3, 1.0, 3.0))
    assert arm.sweep is not None and arm.sweep.learning_rate == 0.3
    limit = 0.01
    with pytest.raises(DivergenceError):
        Arm.tuned([fit], [0.1, 0.3, 1.0, 3.0], [9], [1, 2], stats.fastest(0.95))


def test_a_better_way_to_fit_is_chosen_before_rates_outside_are_tried(fake_run: MakeRun) -> None:
    asked = []

    def way(end: float) -> Callable[[list[int], list[float]], Run]:
        def fit(seeds: list[int], rates: list[float]) -> Run:
            asked.append((end, tuple(rates)))
            return fake_run([[0.5] * len(rates), [end - rate / 10 for rate in rates]], seeds, rates)

        return fit

    arm = Arm.tuned([way(0.6), way(0.8)], [0.1, 0.3], [9], [1], stats.fastest(0.5), 1)
    assert asked[2:] == [(0.8, (0.033,)), (0.8, (0.033,))] and arm.tried == (0.033, 0.1, 0.3)


@pytest.mark.parametrize("tuning_seeds", [[], [1]])
def test_seeds_are_tuned_on_or_reported(fake_run: MakeRun, tuning_seeds: list[int]) -> None:
    with pytest.raises(ValueError, match="chosen on seeds that are not reported"):
        Arm.tuned([lambda s, r: fake_run([[0.5]], [1])], [1.0], tuning_seeds, [1, 2], stats.fastest(0.95))


@pytest.mark.parametrize(
    ("slow", "fast"),
    [
        ([[0.5, 0.5], [0.99, 0.5], [0.99, 0.5]], [[0.5, 0.5], [0.5, 0.99], [0.99, 0.99]]),  # more finished
        ([[0.5, 0.5], [0.5, 0.5], [0.99, 0.99]], [[0.5, 0.5], [0.99, 0.99], [0.96, 0.96]]),  # sooner
        (
            [[0.5, 0.5], [0.9, 0.9], [0.6, 0.6]],
            [[0.5, 0.5], [0.5, 0.5], [0.7, 0.7]],
        ),  # none finished: better at the end
        (
            [[0.5, 0.5], [0.5, 0.6], [0.99, 0.6]],
            [[0.5, 0.5], [0.99, 0.5], [0.99, 0.5]],
        ),  # one finished of two: earlier, however the other stands
    ],
)
def test_what_makes_a_rate_better(fake_run: MakeRun, slow: list, fast: list) -> None:
    merit = stats.fastest(0.95)
    assert merit(Arm(fake_run(fast, [8, 9]), 1.0, (8, 9))) > merit(Arm(fake_run(slow, [8, 9]), 1.0, (8, 9)))


def test_lowest_loss_looks_at_the_end(fake_run: MakeRun) -> None:
    good, bad = fake_run([[0.1], [0.9]], [1]), fake_run([[0.9], [0.1]], [1])
    assert stats.lowest_loss(Arm(good, 1.0, (1,))) > stats.lowest_loss(Arm(bad, 1.0, (1,)))


def test_members_that_do_not_exist(fake_run: MakeRun) -> None:
    run = fake_run([[0.5] * 4] * 2, [1, 2], [0.1, 1.0])
    with pytest.raises(ValueError, match=r"no members of learning rate 0.3.*\(0.1, 1.0\)"):
        _ = Arm(run, 0.3, (1,)).members
    with pytest.raises(ValueError, match=r"seeds \[7\].*seeds \(1, 2\)"):
        _ = Arm(run, 0.1, (1, 7)).members


def test_an_unfinished_seed_is_only_known_to_need_more_than_it_was_given(fake_run: MakeRun) -> None:
    """A sweep stops once one rate is decided; the seeds of another that had not finished saw no more samples."""
    run = fake_run([[0.5, 0.5], [0.5, 0.99]], [1], [0.1, 1.0], every=10, batch=4, budget_steps=1000)
    assert Arm(run, 0.1, (1,)).times(0.95).limit <= run.samples[-1]


def test_teachers_are_the_unit() -> None:
    """Another student under each teacher narrows nothing that teachers differ in."""
    rng = np.random.default_rng(0)
    base = np.array([0.0, 1.0, 2.0])
    few, many = ([b + 1e-3 * rng.normal(size=n) for b in base] for n in (5, 500))
    a, b = stats.over_teachers(few), stats.over_teachers(many)
    # Student's t with 2 degrees of freedom, 95 %: 2.920 times the standard error 1 / sqrt(3)
    for found in (a, b):
        assert found.value == pytest.approx(1, abs=2e-3)
        assert found.high - found.value == pytest.approx(2.92 / 3**0.5, rel=5e-3)
    assert (b.teachers, b.students, b.bound) == (3, 1500, "")


@pytest.mark.parametrize("between", [0.0, 1.0])
def test_two_levels_cover_as_often_as_they_say(between: float) -> None:
    """400 studies of 3 teachers and 5 students, the truth 0: 90 % within four standard errors (6 points)."""
    rng = np.random.default_rng(4)
    covered = []
    for _ in range(400):
        low, high = stats.over_teachers(between * rng.normal(size=(3, 1)) + rng.normal(size=(3, 5))).interval
        covered.append(low <= 0 <= high)
    assert 0.84 <= np.mean(covered) <= 0.96


def test_one_teacher_gives_an_interval_of_its_students_alone() -> None:
    values = np.array([5.0, 9, 2, 7, 11])
    found = stats.over_teachers([values])
    assert (found.value, found.teachers) == (7, 1)
    assert found.interval == stats.bootstrap(stats.median, values)


def test_paired_differences_share_what_seeds_share() -> None:
    rng = np.random.default_rng(1)
    luck = [rng.normal(size=5) for _ in range(3)]
    found = stats.paired([x + 0.1 for x in luck], luck)
    assert found.value == pytest.approx(0.1) and found.high - found.low < 1e-9
    with pytest.raises(
        ValueError, match=r"student by student; under the teachers one has \[5, 5\], the other \[5, 5, 5\]"
    ):
        stats.paired(luck[:2], luck)
    with pytest.raises(ValueError, match="student by student"):
        stats.paired([], [])


def test_a_ratio_of_finished_runs_is_a_number() -> None:
    slow, fast = [times(40, 20, 80), times(40, 80, 20)], [times(10, 5, 20), times(10, 20, 5)]
    found = stats.ratio(slow, fast)
    assert (found.value, found.bound) == (4, "") and found.interval == pytest.approx((4, 4))
    assert str(found) == "4 [4, 4]"
    back = stats.ratio(fast, slow)
    assert back.value == pytest.approx(0.25)


def test_the_interval_of_a_ratio_is_symmetric_under_exchange() -> None:
    rng = np.random.default_rng(2)
    a, b = ([times(*np.exp(rng.normal(size=5))) for _ in range(4)] for _ in range(2))
    one, other = stats.ratio(a, b), stats.ratio(b, a)
    assert np.multiply(one.interval, other.interval[::-1]) == pytest.approx([1, 1])


def test_unfinished_slow_runs_bound_from_below_only() -> None:
    slow = [times(INF, INF, 50), times(INF, INF, INF)]
    found = stats.ratio(slow, [times(10, 5, 10), times(10, 20, 5)])
    assert found.bound == "at least" and found.high == INF and str(found).startswith("≥ 10 [")
    assert 0 < found.low <= found.value == pytest.approx(10)  # limits of 100 against 10, the lower median of each
    assert found.beyond(0.1, none=1) is False and not found.within(20, none=1)


def test_unfinished_fast_runs_bound_from_above_only() -> None:
    found = stats.ratio([times(10, 5, 10)], [times(INF, INF, INF)])
    assert found.bound == "at most" and (found.low, found.value) == (0, 0.1)


def test_two_unfinished_arms_identify_nothing() -> None:
    found = stats.ratio([times(INF, INF, INF)] * 3, [times(INF, INF, 5)] * 3)
    assert found.bound == str(found) == "not identified" and math.isnan(found.value)
    assert found.interval == (0, INF)
    assert not any([found.beyond(2, 1), found.beyond(0.5, 1), found.within(2, 1)])


def test_few_unfinished_runs_leave_a_number() -> None:
    """Below half of a teacher's students: its median is known, so the ratio is a number."""
    found = stats.ratio([times(INF, 40, 20, 60, 80)] * 2, [times(10, 10, 10, 10, 10)] * 2)
    assert (found.value, found.bound) == (6, "")


def test_a_bound_never_says_more_than_the_finished_run_would() -> None:
    """Whatever an unfinished run would have needed, the number lies within the bound's interval."""
    rng = np.random.default_rng(5)
    for _ in range(50):
        truth, fast = np.exp(rng.normal(5, 1, (3, 5))), np.exp(rng.normal(3, 0.5, (3, 5)))
        cut = [Times(np.where(t <= 150, t, INF), 150.0) for t in truth]
        known = [Times(f, 1e9) for f in fast]
        seen, whole = stats.ratio(cut, known), stats.ratio([Times(t, 1e9) for t in truth], known)
        assert seen.high >= whole.value and seen.low <= whole.value * (1 + 1e-9)
        if seen.bound == "":
            assert seen.value <= whole.value * (1 + 1e-9)


def test_the_smallest_effect_of_interest() -> None:
    def estimate(low: float, high: float) -> stats.Estimate:
        return stats.Estimate((low + high) / 2, low, high, "", 3, 15)

    assert estimate(1.2, 3).beyond(1) and not estimate(0.5, 3).beyond(1)
    assert estimate(-3, -1.2).beyond(-1) and not estimate(-3, -1.2).beyond(1)
    assert estimate(-0.5, 0.9).within(1) and not estimate(-1.5, 0.9).within(1)
    assert estimate(0.6, 1.9).within(2, none=1) and not estimate(0.4, 1.9).within(2, none=1)


def test_medians_differ_for_even_numbers_only() -> None:
    assert (stats.lower_median(np.array([1.0, 2])), stats.median(np.array([1.0, 2]))) == (1, 2)
    assert stats.lower_median(np.array([3.0, 1, 2])) == stats.median(np.array([3.0, 1, 2])) == 2
    assert stats.lower_median(np.array([[3.0, 1], [INF, 2]])).tolist() == [1, 2]


def test_differences_of_exponents_do_not_share_their_draws() -> None:
    """An exponent less another with the same times has twice the variance of one; coupled draws would give none."""
    rng, sizes = np.random.default_rng(0), [10, 20, 40]
    found = stats.exponent(sizes, [Times(s**2 * np.exp(0.3 * rng.normal(size=9)), 1e9) for s in sizes])
    gap = stats.difference(found, found)
    assert gap.value == 0
    assert gap.draws.var() / found.draws.var() == pytest.approx(2, rel=0.15)  # 2,000 draws: 3 % of a variance


def test_a_constant_hides_a_power_law() -> None:
    sizes = [16, 32, 64, 128]
    exact = [Times(np.full(5, 2000 + 0.5 * s**2.0), 1e9) for s in sizes]
    found = stats.growth(sizes, exact)
    assert (found.value, found.constant) == (pytest.approx(2), pytest.approx(2000, rel=1e-3))
    assert found.interval() == (pytest.approx(2), pytest.approx(2))
    assert found.at(np.array([16, 256])) == pytest.approx([2128, 34768], rel=1e-3)
    assert stats.exponent(sizes, exact).value < 1.1
    pure = [Times(np.full(5, 3.0 * s**1.5), 1e9) for s in sizes]
    assert stats.growth(sizes, pure).value == pytest.approx(stats.exponent(sizes, pure).value)
    assert stats.growth(sizes, pure).constant == pytest.approx(0, abs=1)
    with pytest.raises(ValueError, match="at least four sizes"):
        stats.growth(sizes[:3], exact[:3])


def test_the_interval_of_a_growth_holds_the_truth_about_as_often_as_it_says() -> None:
    """200 draws of five teachers a size: 90 % intervals hold the power in 95 % of them, standard error 2 %."""
    rng, sizes, held = np.random.default_rng(0), (16, 23, 32, 45, 64), 0
    for _ in range(200):
        noisy = [Times((500 + 0.2 * s**2.5) * np.exp(0.15 * rng.normal(size=5)), 1e9) for s in sizes]
        low, high = stats.growth(sizes, noisy, resamples=200).interval()
        held += low <= 2.5 <= high
    assert 0.88 < held / 200 < 1, held


def test_kaplan_meier_by_hand() -> None:
    """Five runs: 3 of 5 finish; the curve falls by a fifth at each and stays up after the last."""
    at, share, low, high = stats.survival(times(10, 30, 20, INF, INF))
    assert at.tolist() == [10, 20, 30] and share == pytest.approx([0.8, 0.6, 0.4])
    assert (low <= share).all() and (share <= high).all()
    assert stats.survival(times(5, 5))[1].tolist() == [0]
    none = stats.survival(times(INF, INF))
    assert [len(part) for part in none] == [0, 0, 0, 0]


def test_log_rank() -> None:
    early, late = times(*range(1, 11)), times(*[INF] * 10)
    assert stats.logrank(early, late) < 1e-3
    assert stats.logrank(early, late) == pytest.approx(stats.logrank(late, early))
    assert stats.logrank(early, early) == pytest.approx(1)


def test_pooling_keeps_what_is_unfinished() -> None:
    both = stats.pooled([times(1, INF, limit=100), times(2, 3, limit=40)])
    assert both.values.tolist() == [1, INF, 2, 3] and both.limit == 100
    with pytest.raises(ValueError, match="different limits"):
        stats.pooled([times(1, INF, limit=50), times(2, 3, limit=100)])


@pytest.mark.parametrize(
    ("optimum", "chosen"), [((0.15, 0.1), (0.15, 0.1)), ((0.017, 0.1), (0.017, 0.1)), ((0.9, 0.9), (0.4, 0.9))]
)
def test_lists_are_tuned_one_after_the_other_and_past_their_edges(
    fake_run: MakeRun, optimum: tuple[float, float], chosen: tuple[float, float]
) -> None:
    """0.9 lies beyond the reach of the share: its list is not extended there. The weight's is."""

    def fit(choice: dict, rates: list[float]) -> Run:
        off = sum(abs(np.log(choice[key] / best)) for key, best in zip(("share", "weight"), optimum, strict=True))
        return fake_run([[0.5] * len(rates), [0.6 + 0.3 / (1 + off + abs(np.log(r / 0.3))) for r in rates]], [9], rates)

    found = stats.tune(
        fit, [9], [0.1, 0.3, 1.0], {"share": [0.05, 0.15, 0.4], "weight": [0.03, 0.1, 0.3]},
        stats.fastest(0.55), 2, {"share": (0, 0.8), "weight": (0, INF)},
    )  # fmt: skip
    assert tuple(found.choice.values()) == chosen
    assert max(found.own, key=stats.fastest(0.55)).learning_rate == 0.3
    assert len({(*c.values(), a.learning_rate) for c, a in found.trials}) == len(found.trials)


def test_a_choice_that_diverges_everywhere_is_left_out(fake_run: MakeRun) -> None:
    def fit(choice: dict, rates: list[float]) -> Run:
        if choice["steps"] != 1:
            raise DivergenceError("too large", min(rates))
        return fake_run([[0.5] * len(rates)] * 2, [9], rates)

    found = stats.tune(fit, [9], [0.1, 1.0], {"steps": [1, 2, 4]}, stats.lowest_loss, 0)
    assert found.choice == {"steps": 1}
    with pytest.raises(DivergenceError):
        stats.tune(fit, [9], [0.1, 1.0], {"steps": [2, 4]}, stats.lowest_loss, 0)


def test_a_run_that_ends_in_no_number_is_never_chosen() -> None:
    ends = [np.array([[float("nan")]]), np.array([[0.7]])]
    arms = [SimpleNamespace(loss=loss) for loss in ends]
    assert max(arms, key=stats.lowest_loss) is arms[1] and max(arms[::-1], key=stats.lowest_loss) is arms[1]


def test_a_score_that_is_better_small_is_reached_from_above(fake_run: MakeRun) -> None:
    run = replace(fake_run([[0.4], [0.2], [0.0]], [1]), higher_is_better=False)
    assert Arm(run, 1.0, (1,)).times(0.05).median == 80 and Arm(run, 1.0, (1,)).times(0.2).median == 40
