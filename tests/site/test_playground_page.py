"""The playground, driven as a reader would: by keys, wide and on a phone, with less motion, with a broken address."""

import json
import re
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from test_site import SITE, pages, parsed

PAGE = SITE / "book" / "playground.html"
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason=f"no playground at {SITE.name}: run `make site` first")


def settings():
    """The settings that pages link to."""
    found = (urlsplit(a["href"]) for page in pages() for a in parsed(page).find_all("a", href=True))
    return sorted(
        {f"#{unquote(u.fragment)}" for u in found if u.path.endswith("playground.html") and "=" in u.fragment}
    )


@pytest.fixture(scope="module")
def driven(browse):
    return browse("play.mjs", PAGE, json.dumps(settings()))


def seen(driven, check):
    return [report for report in driven if report["check"] == check]


def test_no_error_and_no_outside_request(driven):
    assert {r["check"]: r["bad"] for r in driven if r.get("bad")} == {}


@pytest.mark.parametrize("width", [1280, 360])
def test_a_run_by_keys_ends_where_the_engine_ends(driven, width):
    (report,) = (r for r in seen(driven, "run") if r["width"] == width)
    before, paused, later, after = (report[name] for name in ("before", "paused", "later", "after"))
    assert report["workers"] == 1 and before["step"] == 0
    assert 0 < paused["step"] == later["step"] < 500, "a pause rests"
    assert after["done"] and after["step"] == 500 and after["words"].startswith("Step 500.")
    for name, student in zip("AB", report["expected"], strict=True):
        (line,) = (line for line in after["words"].splitlines() if line.startswith(f"Student {name},"))
        assert f"accuracy {student['accuracy']} %" in line and student["reached"], line
        assert f"95 % after {student['reached']:,} samples" in line
    a, b = (student["reached"] for student in report["expected"])
    assert a > 1.5 * b and f"Student A needed {a / b:.1f} times as many samples as student B." in after["words"]
    spectra = [values for student in report["expected"] for values in student["spectra"]]
    assert len(after["bars"]) == len(spectra) == 3  # labels; the hidden layer and the final teacher
    loudest = max(map(max, spectra))
    full = max(map(max, after["bars"]))
    for heights, values in zip(after["bars"], spectra, strict=True):
        np.testing.assert_allclose(np.array(heights) / full, np.array(values) / loudest, atol=0.01)
    assert [m[:2] for m in after["maps"]] == [[20, 32], [20, 32]] and "support" in after["maps"][0][2]
    assert report["seeded"]["lines"] == after["lines"] + 2, "the curves of the other seed stay, as thin lines"
    assert "seed=4" in report["seeded"]["hash"] and report["seeded"]["words"] != after["words"]
    for shown in (before, after):
        assert not shown["wide"] and shown["sticking"] == [], width


def test_settings_and_stages_are_in_the_address(driven):
    (report,) = seen(driven, "own")
    steps = {step["what"]: step for step in report["steps"]}
    base = "ra=1&rb=1&a=final"
    start = f"#d=15&k=5&width=32&steps=2000&seed=1&{base}&b=dense:50,final"
    assert steps["d"]["hash"] == start and steps["d"]["maps"][0][0] == 15
    plans = {
        "k": "dense:50,final", "add": "dense:50,final:50,final", "signal": "dense:50,labels:50,final",
        "steps": "dense:50,labels:30,final", "earlier": "labels:30,dense:50,final", "away": "labels:30,final",
    }  # fmt: skip
    for what, plan in plans.items():
        assert steps[what]["hash"] == f"#d=15&k=4&width=32&steps=2000&seed=1&{base}&b={plan}", what
        assert steps[what]["link"] == steps[what]["hash"]
    assert steps["k"]["focus"] == "k" and steps["earlier"]["focus"] == "b-up1", "the focus stays where it was"
    assert "steps=200&" in steps["short"]["hash"] and not steps["short"]["problems"]
    assert "steps=1000&" in steps["long"]["hash"] and len(steps["long"]["problems"]) == 1
    assert report["end"]["done"] and "stages of your own: stage 2 of 2" in report["end"]["words"]


def test_no_serious_accessibility_violation_with_all_of_it_open(driven):
    assert seen(driven, "axe")[0]["axe"] == {"light": [], "dark": []}


def test_what_an_address_cannot_mean_is_said_and_replaced(driven):
    (report,) = seen(driven, "address")
    wrong, right = report["wrong"], report["right"]
    for named in ("d=99", "a=nothing", "b=dense,final", "colour=red", "seed=-1"):
        assert sum(line.startswith(named) for line in wrong["problems"]) == 1, wrong["problems"]
    assert wrong["maps"][0][0] == 20 and len(wrong["problems"]) == 5
    assert right["problems"] == [] and right["maps"][0][0] == 10
    assert re.search("Student B, extraction from an untrained teacher: stage 1 of 2", right["words"])


def test_less_motion_draws_only_at_rest(driven):
    (report,) = seen(driven, "still")
    assert report["step"] > 500 and not report["moved"] and report["rested"]


def test_numbers_that_grow_without_end_are_said_to(driven):
    (report,) = seen(driven, "rate")
    lines = report["end"]["words"].splitlines()
    assert "grew without end at step" in lines[1] and "smaller learning rate" in lines[1]
    assert "accuracy" in lines[2] and "without end" not in lines[2], "the other student goes on"


def test_links_of_the_book_name_settings_that_there_are(driven):
    assert len(settings()) >= 6
    assert seen(driven, "links")[0]["problems"] == {}
