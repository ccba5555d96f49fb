"""The front page's film is what the code that is there makes: a part is trained anew, and the still drawn anew."""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from kdutils.lab.store import Store
from kdutils.pages import plots

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import film as tool  # noqa: E402

LIMIT = 200_000  # bytes
PART = 250  # steps of the students that are trained anew: past the first stage of extraction


@pytest.fixture(scope="module")
def film():
    return json.loads(tool.DATA.read_text(encoding="utf-8"))


@pytest.fixture()
def one_thread():
    """The number of threads decides how a sum is made: as many as when the film was."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_film_is_small_and_says_what_it_was_made_with(film):
    assert tool.DATA.stat().st_size < LIMIT and tool.STILL.stat().st_size < LIMIT
    assert film["setting"] == {name: tool.SETTINGS[name] for name in film["setting"]}
    assert film["steps"] == tool.moments() and film["steps"][-1] == tool.SETTINGS["steps"]
    cells = film["setting"]["d"] * film["setting"]["student_width"]
    for arm in film["arms"]:
        assert len(arm["frames"]) == len(arm["accuracy"]) == len(film["steps"])
        assert {len(frame) for frame in arm["frames"]} == {cells}


def test_the_still_is_the_first_moment_at_which_one_is_done(film):
    done = [[value >= film["threshold"] for value in arm["accuracy"]] for arm in film["arms"]]
    first = min(row.index(True) for row in done if True in row)
    assert film["still"] == first


def test_levels_are_roots_and_stop_at_the_top():
    values = np.array([[0.0, 0.25, 1.0, 4.0, 9.0]])
    (text,) = tool.coded(values[None], top=4.0)
    np.testing.assert_allclose(tool.decoded(text, 1), [[0, 63 * 0.25, 63 * 0.5, 63, 63]], atol=0.5)


def on_support(frame, film):
    """The share of a frame's brightness that lies on the bits of the support: what the film shows."""
    levels = tool.decoded(frame, film["setting"]["d"])
    return levels[film["support"]].sum() / levels.sum()


def test_training_anew_gives_the_same_film(film, tmp_path, one_thread):
    """Teacher and all four students, these for the first steps.

    On the kind of processor that made the film all is the same level by level. On another, students of labels are,
    and the rest hang on a teacher of thousands of steps, in which the last digits grow: it is another network there,
    whose students show as much of the support.
    """
    lab = tool.make_lab(Store(tmp_path))
    ways = tool.plans(lab.teacher())
    steps = [step for step in film["steps"] if step <= PART]
    for arm in film["arms"]:
        (plan,) = [plan for plan in ways[arm["name"]] if plan.name == arm["plan"]]
        length = max(PART, 10 + sum(stage.steps or 0 for stage in plan.stages))  # its last stage needs a step
        run = tool.watched(lab, plan, arm["rate"], length)
        again = tool.coded(tool.weights(run, steps), film["top"])
        told = f"{arm['name']} is another: run tools/film.py again"
        strict = arm["name"] == "labels" or film["made"] == tool.made()
        for index, (now, recorded) in enumerate(zip(again, arm["frames"], strict=False)):
            if strict or index == 0:
                apart = tool.decoded(now, film["setting"]["d"]) - tool.decoded(recorded, film["setting"]["d"])
                assert np.abs(apart).max() <= 1, told
            shares = [on_support(frame, film) for frame in (now, recorded)]
            assert abs(shares[0] - shares[1]) < 0.05, told
        near = 0.02 if strict else 0.07
        np.testing.assert_allclose(tool.accuracies(run, steps), arm["accuracy"][: len(steps)], atol=near, err_msg=told)
    assert len(steps) > 10 and arm["stages"][0][2] < PART, "the part ends before extraction shows anything"
    last = {arm["name"]: on_support(arm["frames"][len(steps) - 1], film) for arm in film["arms"]}
    assert last["extraction"] > last["progressive"] > last["labels"] + 0.05, "the arms cannot be told apart by it"


def test_drawing_anew_gives_the_same_still(film, tmp_path):
    plots.save(tool.still(film), tmp_path / "film.png")
    plt.close("all")
    new, kept = (plt.imread(path).astype(float) for path in (tmp_path / "film.png", tool.STILL))
    assert new.shape == kept.shape and np.abs(new - kept).mean() < 0.01, "run tools/film.py --still again"
