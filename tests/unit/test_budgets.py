"""What a page shows of a study with several budgets: whole arms alone, differences with a sign, one rule for words."""

from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from kdutils.lab.stats import Estimate, paired
from kdutils.pages import budgets, expected, plots
from kdutils.studies.records import Records
from kdutils.studies.study import COLUMNS, Study

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "book" / "results" / "studies"
TEACHERS, SEEDS = (0, 1001, 1002), (1, 2, 3)
COST = {"one-shot": 3.0, "extraction": 2.0, "labels": 1.0, "joint": 5.0}  # operations a step
KIND = {"one-shot": "one-shot", "extraction": "extraction", "labels": "labels", "joint": "joint"}


def made(tmp_path, end, cells, optimum=0.0, measure="accuracy") -> budgets.Budgets:
    """A study whose students end where `end(arm, budget, teacher, seed)` says, for each (arm, budget, teachers)."""
    rows, about = [], {}
    for arm, budget, count in cells:
        about[f"tuning 0, {budget} steps, {arm}"] = {"chosen": {"choice": {}, "rates": [0.003]}}
        for teacher in TEACHERS[:count]:
            stages = [["hidden", 0, budget // 4], ["output", budget // 4, budget]]
            about[f"students {teacher}, {budget} steps, {arm}"] = {"facts": {"stages": stages}}
            for seed in SEEDS:
                for sample, step in (("held-out", budget // 8), ("held-out", budget // 2), ("test", budget)):
                    value = end(arm, budget, teacher, seed)
                    rows.append(("students", "", teacher, budget, arm, "", 0.003, seed, sample, step, 8 * step,
                                 COST[arm] * step, value, value))  # fmt: skip
    for teacher in TEACHERS:
        about[f"teacher {teacher}"] = {"facts": {"optimum, test": {"loss": optimum, "accuracy": 1.0}}}
        rows.append(("teacher", "", teacher, 0, "", "", 0.003, 0, "test", 9, 9, 99.0, 0.9, 0.9))
    records = Records(tmp_path, "made")
    records.table, records.cells = pd.DataFrame(rows, columns=list(COLUMNS)), about
    records.about = {
        "cells": about, "teachers": list(TEACHERS), "settings": {"batch": 8}, "effect": {"smallest": 1.0},
        "budgets": [100, 200, 400], "arms": {arm: {"curriculum": kind} for arm, kind in KIND.items()},
    }  # fmt: skip
    return budgets.Budgets(records, measure)


def flat(arm, budget, teacher, seed):
    return {"one-shot": 0.5, "extraction": 0.53, "labels": 0.49, "joint": 0.6}[arm] + seed / 100 + teacher / 1e5


ALL = [(arm, budget, 3) for arm in KIND for budget in (100, 200, 400)]


def test_an_arm_counts_where_all_its_teachers_are_recorded(tmp_path):
    study = made(tmp_path, flat, [*ALL[:6], ("labels", 100, 3), ("labels", 200, 2), ("joint", 400, 1)])
    assert study.arms() == ["one-shot", "extraction", "labels"] and study.arms(200) == ["one-shot", "extraction"]
    assert study.budgets("labels") == [100] and study.budgets("joint") == []
    assert study.budgets() == [100, 200, 400] and study.budgets("labels", "extraction") == [100]
    assert study.along_budgets("joint") == "" and study.along_budgets("extraction").count("better") == 3
    assert not any("joint" in line for line in study.rows()) and len(study.rows()) == 1 + 3 + 3 + 1
    lost = "labels after 200, 400; joint after 100, 200, 400"
    assert study.missing() == lost and made(tmp_path, flat, ALL).missing() == "none"


def test_a_positive_difference_is_a_better_arm(tmp_path):
    points = made(tmp_path, flat, ALL).gain("extraction", 400)
    nats = made(tmp_path, flat, ALL, measure="loss").gain("extraction", 400)
    assert points.value == pytest.approx(3) and nats.value == pytest.approx(-0.03)
    assert made(tmp_path, flat, ALL).gain("one-shot", 400, "extraction").value == pytest.approx(-3)
    noisy = made(tmp_path, lambda arm, *cell: np.sin(len(arm) + np.prod(cell) + sum(cell)), ALL)
    a, b = (noisy.records.final(arm, 200) for arm in ("joint", "labels"))
    assert noisy.gain("joint", 200, "labels") == paired([100 * x for x in a], [100 * x for x in b])


def test_nothing_is_told_as_nothing(tmp_path):
    ends = {
        "one-shot": (0.68, 0.692, 0.612),
        "extraction": (0.693, 0.698, 0.593),
    }  # differences of which rounding is left
    study = made(tmp_path, lambda arm, b, teacher, s: ends[arm][TEACHERS.index(teacher)],
                 [cell for cell in ALL if cell[0] in ends])  # fmt: skip
    assert str(study.gain("extraction", 100)).startswith("0 [")


def test_losses_are_told_above_the_optimum(tmp_path):
    study = made(tmp_path, flat, ALL, optimum=0.2, measure="loss")
    plain = made(tmp_path, flat, ALL, measure="loss")
    assert study.level("labels", 100).value == pytest.approx(plain.level("labels", 100).value - 0.2)
    assert study.teachers() == pytest.approx([0.7] * 3) and study.gain("labels", 100) == plain.gain("labels", 100)


def test_equal_operations_are_read_between_two_ends_of_schedules(tmp_path):
    """Ends on a straight line over the logarithm of operations are read without error."""

    def line(arm, budget, teacher, seed):
        return np.log(COST[arm] * budget) / 100 + seed / 1000 + {"extraction": 0.01}.get(arm, 0.0)

    study = made(tmp_path, line, ALL)
    for than, budget in (("one-shot", 200), ("labels", 400), ("joint", 100)):
        found = study.gain_at_operations("extraction", than, budget)
        assert found.value == pytest.approx(1.0) and found.low == pytest.approx(found.high)
    last = study.gain_at_operations("extraction", "one-shot", 400)  # 800 spent where one-shot spent 1,200
    assert last == study.gain("extraction", 400)
    assert study.gain_at_operations("extraction", "labels", 100) is None  # all of extraction's budgets take more
    assert study.gain_at_operations("labels", "joint", 400) is None  # its last budget spends a fifth
    assert study.gain_at_operations("extraction", "labels", 200) == study._better(
        *(study.records.final(arm, budget) for arm, budget in (("extraction", 100), ("labels", 200)))
    )
    wide = made(tmp_path, line, [cell for cell in ALL if cell[:2] != ("extraction", 200)])  # its budgets: 100, 400
    assert wide.gain_at_operations("extraction", "one-shot", 100).value == pytest.approx(1.0)  # 1.5 times the first
    assert wide.gain_at_operations("extraction", "labels", 400) is None  # twice the first, half of the second
    gap = made(tmp_path, line, [cell for cell in ALL if cell[:2] not in (("extraction", 200), ("extraction", 100))])
    assert gap.gain_at_operations("extraction", "labels", 400) is None
    assert "not known" in gap.judged(gap.gain_at_operations("extraction", "labels", 400))


@pytest.mark.parametrize(
    ("value", "low", "high", "word"),
    [
        (2.0, 1.1, 3.0, "better"),
        (-2.0, -3.0, -1.1, "worse"),
        (0.1, -0.9, 0.9, "no difference that matters"),
        (0.5, 0.2, 0.8, "better, by too little to matter"),
        (-0.5, -0.8, -0.2, "worse, by too little to matter"),
        (1.0, 0.2, 1.8, "better, perhaps by too little to matter"),
        (-1.19, -1.42, -0.95, "worse, perhaps by too little to matter"),
        (0.5, -0.5, 1.5, "unclear"),
    ],
)
def test_one_rule_for_words(tmp_path, value, low, high, word):
    assert made(tmp_path, flat, ALL).verdict(Estimate(value, low, high, "", 3, 15)) == word


def test_figures_show_intervals_and_leave_hidden_stages_out(tmp_path):
    study = made(tmp_path, flat, ALL, measure="loss")
    figure, (one, two, three) = plt.subplots(3, 1)
    study.ends("flops", one)
    assert len(one.containers) == 4
    study.gains(two)
    assert len(two.containers) == 3 and "nats" in two.get_ylabel()
    study.along(400, three)
    first = {line.get_color(): line.get_xdata()[0] for line in three.lines}
    assert first[plots.colour("one-shot")] == 50 and first[plots.colour("extraction")] == 200  # 100 hidden steps
    assert study.share("extraction", 400) == "25 % of 400 steps"
    plt.close(figure)


def test_a_row_an_arm_shows_its_difference_and_interval(tmp_path):
    study = made(tmp_path, flat, ALL)
    ax = plt.figure().subplots()
    study.compared(200, ["labels", "joint"], ax)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["labels", "joint"]
    dots = [line.get_xydata()[0].tolist() for line in ax.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(dots, [[-1, 0], [10, 1]], atol=1e-9)
    assert "200 steps" in ax.get_xlabel() and "points" in ax.get_xlabel() and ax.yaxis_inverted()
    plt.close("all")


def test_names_stand_apart():
    figure, ax = plt.subplots()
    ends = {"labels": (4.0, 1.0), "one-shot": (4.0, 1.001), "joint": (4.0, 1.002), "extraction": (1.0, 1.5)}
    for x, y in ends.values():
        ax.plot([0, x], [2, y])
    plots.name_ends(ax, ends, gap=20)
    places = {text.get_text(): text.xy for text in ax.texts}
    heights = sorted(places[name][1] for name in ("labels", "one-shot", "joint"))
    tall = ax.get_window_extent().height * 72 / ax.figure.dpi  # points
    assert np.diff(heights).min() * tall >= 19.8 and places["extraction"][0] < places["joint"][0]
    assert heights[0] >= 0.03, "the lowest would cover the axis"
    plt.close(figure)


@pytest.mark.parametrize(("name", "measure"), [("grammar", "accuracy"), ("english", "loss")])
def test_the_committed_records_say_what_the_pages_are_built_on(name, measure):
    """The pages' headings: with many steps hidden layers help, also against the control; with more, perhaps less."""
    study = budgets.study(name, measure, FOLDER)
    assert study is not None
    many = study.budgets("extraction", "untrained")[-1]
    assert study.gain("extraction", study.budgets("extraction", "one-shot")[-1]).low > 0
    assert {"labels", "one-shot", "extraction", "untrained"} <= set(study.arms(many))
    assert study.verdict(study.gain("extraction", many)) == "better"
    assert study.verdict(study.gain("extraction", many, "untrained")) == "better"
    assert all(study.budgets(arm) for arm in study.arms())


def test_where_there_are_no_records_a_page_goes_on(tmp_path, capsys):
    assert budgets.study("grammar", "accuracy", tmp_path) is None
    assert capsys.readouterr().out.count("\n") == 1


def test_one_size_of_a_study_is_read_alone(tmp_path):
    whole = made(tmp_path, flat, ALL)
    wide = whole.records.table.assign(size="wide")
    wide.loc[wide.arm == "extraction", "accuracy"] -= 0.2
    whole.records.table = pd.concat([whole.records.table, wide[wide.budget.isin((0, 100))]])
    whole.records.about["cells"] |= {f"{name}, wide": cell for name, cell in whole.records.cells.items()}
    own = replace(whole, size="wide")
    assert own.budgets() == [100] and whole.budgets() == [100, 200, 400]
    assert own.gain("extraction", 100).value == pytest.approx(-17) and whole.gain("extraction", 100).value > 0
    assert own.share("extraction", 100) == "25 % of 100 steps" and len(own.teachers()) == 3


def test_accuracies_are_drawn_where_nobody_knows_the_optimum(tmp_path):
    study = made(tmp_path, flat, ALL)
    figure, (left, right) = plt.subplots(1, 2)
    study.ends(ax=left, arms=["one-shot", "joint"])
    study.gains(right, arms=["joint"])
    assert left.get_ylabel() == "accuracy" and len(left.containers) == 2 and len(right.containers) == 1
    ends = left.containers[0].lines[0].get_ydata()
    assert ends == pytest.approx([study.level("one-shot", b).value for b in (100, 200, 400)])
    plt.close(figure)


def test_arms_are_grouped_by_what_is_said_of_them(tmp_path):
    study = made(tmp_path, flat, ALL)
    arms = [arm for arm in study.arms(400) if arm != "one-shot"]
    words = {arm: study.verdict(study.gain(arm, 400)) for arm in arms}
    said = study.grouped(arms, 400)
    assert all(said.count(f"**{word}**: ") == 1 for word in words.values())
    for arm, word in words.items():
        assert f"*{arm}*" in said.split(f"**{word}**: ")[1].split(";")[0]


@pytest.mark.parametrize(
    ("ends", "low", "high", "word"),
    [
        ("ahead", 1.0, 3.0, "came true"),
        ("ahead", 0.5, 3.0, "not settled"),
        ("ahead", -1.0, 0.9, "did not come true"),
        ("ahead, by less", 0.1, 0.9, "came true"),
        ("ahead, by less", -0.1, 0.9, "not settled"),
        ("ahead, by less", 1.1, 2.0, "did not come true"),
        ("no worse", -0.9, 5.0, "came true"),
        ("no worse", -2.0, -1.1, "did not come true"),
        ("no different", -0.9, 0.9, "came true"),
        ("no different", 0.5, 1.5, "not settled"),
        ("no better", -9.0, 0.9, "came true"),
        ("no better", 1.1, 2.0, "did not come true"),
        ("behind", -3.0, -1.0, "came true"),
        ("behind", -0.9, 2.0, "did not come true"),
    ],
)
def test_what_became_of_an_expectation(ends, low, high, word):
    assert expected.became(Estimate((low + high) / 2, low, high, "", 3, 15), ends, 1.0) == word
    assert expected.became(Estimate(5 * low + 5 * high, 10 * low, 10 * high, "", 3, 15), ends, 10.0) == word


def test_all_that_was_expected_is_listed(tmp_path):
    study = made(tmp_path, flat, [*ALL[:6], ("labels", 100, 3)])
    study.about["expected"] = [
        {"arms": ["extraction", "labels"], "than": "one-shot", "budgets": [100, 200], "ends": "ahead"},
        {"arms": ["joint"], "than": "one-shot", "budgets": [400], "ends": "no worse", "note": "a guess"},
    ]
    one, two, three = expected.listed(study).splitlines()
    assert one.startswith("- *extraction* ahead of *one-shot*: after 100 steps **came true** (3 [")
    assert "after 100 steps **did not come true** (-1 [" in two and "after 200 steps **not trained yet**." in two
    assert three == "- *joint* no worse than *one-shot*: after 400 steps **not trained yet**. It was a guess."


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("*.toml")), ids=lambda path: path.stem)
def test_what_a_file_expects_is_in_its_records_and_on_a_page(path):
    study = Study.load(path)
    assert Records(FOLDER, path.stem).about.get("expected", []) == list(study.expected)
    pages = [page.read_text(encoding="utf-8") for page in (ROOT / "book" / "text").glob("*.md")]
    shown = [page for page in pages if f'study("{path.stem}"' in page and "expected.listed(" in page]
    assert shown or not study.expected
