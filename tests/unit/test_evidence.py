"""What a page shows of a study: read from the committed records, and nothing where there are none."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from kdutils.lab.stats import Estimate, ratio
from kdutils.pages import evidence, plots
from kdutils.studies.records import Records
from kdutils.studies.study import COLUMNS

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
        (None, "unclear"),
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


def test_an_arm_is_done_when_it_is_under_every_teacher(study):
    assert study.done("labels", "extraction") and not study.done("labels", "no such arm")
    cells = {
        name: about for name, about in study.about["cells"].items() if name != "students 1001, 60000 steps, labels"
    }
    fewer = SimpleNamespace(about={**study.about, "cells": cells})
    assert not replace(study, records=fewer).done("labels") and replace(study, records=fewer).done("extraction")
    assert not replace(study, size="d=30, k=4").done("labels")


def test_a_size_is_read_alone():
    found = evidence.study("parity_map", 0.6, folder=FOLDER / "smoke")
    size = replace(found, size="d=12, k=3")
    assert size.done("labels", "extraction") and not found.done("labels")
    assert len(size.times("labels").values) == 2 and set(size.chosen("extraction")) == {"rate", "steps"}
    assert size.trials("labels") and len(size.teachers().values) == 1


def test_ratios_show_bounds_as_such():
    known, least = Estimate(2.0, 1.5, 3.0, "", 3, 15), Estimate(9.0, 7.0, np.inf, "at least", 3, 15)
    nothing = Estimate(np.nan, 0.0, np.inf, "not identified", 3, 15)
    ax = plots.ratios(
        {"some": {"known": known, "least": least}, "others": {"nothing": nothing}}, plt.figure().gca(), 1.5
    )
    assert [label.get_text() for label in ax.get_yticklabels()] == ["known", "least", "nothing"]
    lines = {line.get_marker(): line for line in ax.lines if line.get_marker() != "None"}
    assert lines["o"].get_xdata() == [2.0] and lines["o"].get_markerfacecolor() != "white"
    assert lines[">"].get_xdata() == [9.0] and lines[">"].get_markerfacecolor() == "white"
    whiskers = [line.get_xdata() for line in ax.lines if line.get_marker() == "None"]
    assert [1.5, 3.0] in [list(ends) for ends in whiskers]
    assert max(ends[1] for ends in whiskers) == ax.get_xlim()[1]  # an interval without an end goes on to the edge
    assert any(text.get_text() == "nothing is known" for text in ax.texts)
    plt.close("all")


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        ((2.0, 9.0), "more samples"),
        ((2.0, np.inf), "more samples"),
        ((0.1, 0.5), "fewer samples"),
        ((0.9, 1.2), "as many samples, within a factor of 1.5"),
        ((0.3, 1.2), "no more samples"),
        ((0.9, 4.0), "no fewer samples"),
        ((0.0, np.inf), "an unsettled number of samples"),
    ],
)
def test_what_a_ratio_settles(interval, words):
    assert evidence.needs(Estimate(1.0, *interval, "", 3, 15), 1.5) == words


def test_sizes_together_have_all_their_teachers():
    study = evidence.study("growth", 0.95, folder=FOLDER)
    arms = list(study.about["main"])[:2]
    sizes = study.sizes(*arms)
    assert sizes and list(sizes) == [size for size in study.about["sizes"] if size in sizes]
    one, *rest = sizes.values()
    assert evidence.across([one], *arms) == one.ratio(*arms)
    together = evidence.across([one, *rest], *arms)
    assert together.teachers == len(sizes) * len(study.about["teachers"])
    with pytest.raises(ValueError, match="student by student"):
        evidence.across([], *arms)


def test_sizes_that_share_their_teachers_have_them_once():
    study = evidence.study("parity_map", 0.95, folder=FOLDER)
    arms = ("labels", "extraction")
    wide = {name: one for name, one in study.sizes(*arms).items() if name.startswith("d=40, k=5")}
    found = evidence.across(list(wide.values()), *arms)
    count = len(study.about["teachers"])
    assert len(wide) > 1 and found.teachers == count
    assert found.students == len(wide) * count * study.about["students"]
    other = study.sizes(*arms)["d=30, k=4"]
    assert evidence.across([*wide.values(), other], *arms).teachers == 2 * count


def tuned(tmp_path, ends, chosen, share=(0.1, 0.2)):
    """A study of one tuning: {(choice, rate): (loss, accuracy) at its end}, and what it chose."""
    rows = [
        ("tuning", "", 0, 100, "extraction", choice, rate, 9, "held-out", step, 8 * step, 1.0, accuracy, loss)
        for (choice, rate), (loss, accuracy) in ends.items() for step in (50, 100)
    ]  # fmt: skip
    records = Records(tmp_path, "made")
    records.table = pd.DataFrame(rows, columns=list(COLUMNS))
    records.about = {
        "cells": {"tuning 0, 100 steps, extraction": {"chosen": chosen}}, "teachers": [0], "budgets": [100],
        "arms": {"extraction": {"curriculum": "extraction", "share": list(share)}}, "tuning": {"rates": [0.1, 0.3]},
    }  # fmt: skip
    return evidence.Recorded(records)


@pytest.mark.parametrize(
    ("share", "rate", "told"),
    [
        (0.1, 0.1, "none"),  # 0.05 and 0.03 were tried beyond the lists
        (0.2, 0.3, "the largest rate (*extraction*); the largest share (*extraction*)"),
        (0.05, 0.1, "the smallest share (*extraction*)"),
    ],
)
def test_a_choice_at_the_end_of_all_that_was_tried_is_told(tmp_path, share, rate, told):
    ends = {(f"share {s:g}", r): (1.0, 0.5) for s in (0.05, 0.1, 0.2) for r in (0.03, 0.1, 0.3)}
    assert tuned(tmp_path, ends, {"choice": {"share": share}, "rates": [rate]}).outermost() == told


@pytest.mark.parametrize(("accuracy", "other"), [(0.6, 0), (0.4, 1)])
def test_tunings_that_accuracy_would_have_decided_otherwise_are_counted(tmp_path, accuracy, other):
    ends = {("share 0.1", 0.1): (0.8, accuracy), ("share 0.2", 0.1): (0.9, 0.5)}
    chosen = {"choice": {"share": 0.1}, "rates": [0.1]}
    assert tuned(tmp_path, ends, chosen).otherwise() == (other, 1)


def test_choices_of_every_committed_study_can_be_told():
    """Also where the rows of a tuning are not kept."""
    for path in sorted(FOLDER.glob("*.json")):
        study = evidence.study(path.stem, 0.95, folder=FOLDER)
        for size in study.about.get("sizes", {"": {}}):
            assert replace(study, size=size).outermost()
