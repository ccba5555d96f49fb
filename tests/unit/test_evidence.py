"""What a page shows of a study: read from the committed records, and nothing where there are none."""

from pathlib import Path

import numpy as np
import pytest

from kdutils.lab.stats import Estimate, ratio
from kdutils.pages import evidence, plots

FOLDER = Path(__file__).resolve().parents[2] / "book" / "results" / "studies"


@pytest.fixture(scope="module")
def study() -> evidence.Evidence:
    found = evidence.study("parity", 0.95, folder=FOLDER)
    assert found is not None
    return found


def test_where_there_are_no_records_one_line_says_where_they_are(tmp_path, capsys):
    assert evidence.study("parity", 0.95, folder=tmp_path) is None
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "book/results/studies" in said


def test_every_arm_is_whole_and_chosen_among_what_was_tried(study):
    for arm in study.about["arms"]:
        count = len(study.about["teachers"]) * study.about["students"]
        assert study.solved(arm) == f"{study.times(arm).finished} of {count}"
        assert (study.times(arm).values[np.isfinite(study.times(arm).values)] <= study.limit).all()
        chosen = study.chosen(arm)
        rate = chosen.pop("rate")
        name = ", ".join(f"{key} {value:g}" for key, value in chosen.items())
        found, times = study.trials(arm)[name]
        assert rate == found
        assert all(np.median(times) <= np.median(other) for _, other in study.trials(arm).values())


def test_a_ratio_is_that_of_the_students_teacher_by_teacher(study):
    slow, fast = study.by_teacher("progressive"), study.by_teacher("extraction")
    found = study.ratio("progressive", "extraction")
    assert found == ratio(slow, fast) and (found.teachers, found.students) == (len(slow), 5 * len(slow))
    back = study.ratio("extraction", "progressive")
    assert back.interval[0] < 1 < found.interval[0]


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (Estimate(9.0, 7.0, 12.0, "", 3, 15), "holds"),
        (Estimate(9.0, 1.0, 12.0, "", 3, 15), "unclear"),
        (Estimate(1.2, 0.9, 1.5, "", 3, 15), "fails"),
        (Estimate(9.0, 7.0, float("inf"), "at least", 3, 15), "holds"),
        (Estimate(1.2, 0.9, float("inf"), "at least", 3, 15), "unclear"),
        (Estimate(float("nan"), 0.0, float("inf"), "not identified", 3, 15), "unclear"),
    ],
)
def test_a_claim_is_judged_by_its_whole_interval(found, verdict):
    assert evidence.claim("id", "A sentence.", found, (2, np.inf)).verdict == verdict


def test_curves_end_at_the_share_that_finished(study):
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots()
    arms = {arm: study.times(arm) for arm in study.about["arms"]}
    plots.solved(arms, ax=ax, teachers=study.teachers())
    ends = sorted(line.get_ydata()[-1] for line in ax.lines if line.get_drawstyle() == "steps-post")
    assert ends == pytest.approx(sorted(t.finished / len(t.values) for t in arms.values()))
    said = " ".join(text.get_text() for text in ax.texts)
    assert all(arm in said for arm in arms) and study.solved("one-shot") in said
    plt.close(figure)
