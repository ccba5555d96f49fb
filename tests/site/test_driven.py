"""The explorers, driven by keys and lists, wide and on a phone: what they show is what they carry."""

import json

import numpy as np
import pytest
from test_site import SITE, pages, parsed

from kdutils.pages import explorers

pytestmark = pytest.mark.skipif(not SITE.exists(), reason=f"no site at {SITE.name}: run `make site` first")
WHERE = {"Checkpoint picker": "03_progressive", "Curriculum player": "04_extraction", "First step": "05_why"}
CONTROLS = {"Checkpoint picker": 1, "Curriculum player": 4, "First step": 4}
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>An explorer</title><style>body { margin: 16px; } %s</style><main></main><script type="module">%s
const data = %s; render({ model: { get: (name) => data[name] }, el: document.querySelector("main") });</script>"""


def written(widget, page):
    """A page of its own for an explorer."""
    script = str(widget._esm).replace("export default", "//")
    model = json.dumps({"kind": widget.kind, "payload": widget.payload})
    page.write_text(PAGE % (widget._css, script, model), encoding="utf-8")
    return page


@pytest.fixture(scope="module")
def data():
    """What each explorer carries, by page."""
    found = {}
    for page in pages():
        for script in parsed(page).find_all("script", type="application/vnd.jupyter.widget-state+json"):
            for model in json.loads(script.string)["state"].values():
                if "payload" in model["state"]:
                    found[page.stem] = json.loads(model["state"]["payload"])
    return found


@pytest.fixture(scope="module")
def driven(browse):
    return browse("explore.mjs", *(page for page in pages() if "widget-view+json" in page.read_text("utf-8")))


def seen(driven, kind):
    """The reports on the one explorer of a kind: at a desktop's width and a phone's."""
    reports = [report for report in driven if report["kind"] == kind and report["page"] == WHERE[kind]]
    assert [report["width"] for report in reports] == [1280, 360], f"no {kind}: execute the chapter again"
    return reports


@pytest.mark.parametrize("kind", WHERE)
def test_every_control_moves_what_is_drawn_and_said(driven, kind):
    for report in seen(driven, kind):
        assert report["errors"] == [] and report["start"]["fits"] and report["start"]["words"]
        before = report["start"]
        for step in report["steps"]:
            place = f"{kind} at {report['width']} px: {step['control']}, {step['action']}"
            assert step["control"] and step["fits"], place
            moved = step["drawn"] != before["drawn"] or step["said"] != before["said"]
            assert moved or step["action"] in ("Home", "End", "stop"), place
            assert (step["words"] != before["words"]) == moved or step["control"] == "Play", place
            before = step
        labels = {step["control"] for step in report["steps"]}
        assert len(labels) == CONTROLS[kind], labels


def test_player_shows_its_numbers(driven, data):
    numbers = data["04_extraction"]
    first, second = (numbers["arms"][i] for i in numbers["start"])
    for report in seen(driven, "Curriculum player"):
        ends = [step for step in report["steps"] if step["control"] == "Step" and step["action"] == "End"]
        other = next(s["action"] for s in reversed(report["steps"]) if s["control"] == "Second arm")
        chosen = next(s["action"] for s in reversed(report["steps"]) if s["control"] == "First arm")
        arms = [next(arm for arm in numbers["arms"] if arm["name"] == name) for name in (chosen, other)]
        assert len(ends) == 1 and ends[0]["words"].startswith(f"Step {numbers['steps'][-1]:,}.")
        for arm in arms:
            assert f"accuracy {100 * arm['at'][-1]:.0f} %" in ends[0]["words"]
        bars = [np.array(chart) for chart in ends[0]["bars"] if chart]
        shown = [arm[part][-1] for part in ("weights", "spectrum") for arm in arms]
        highest = [np.max([arm[part] for arm in numbers["arms"]]) for part in ("weights", "spectrum") for _ in arms]
        for heights, values, high in zip(bars, shown, highest, strict=True):
            assert len(heights) == len(values)
            full = heights.max() / np.max(values) * high  # the height of the largest value there is
            np.testing.assert_allclose(heights / full, np.array(values) / high, atol=0.01)
        started = report["start"]["words"]
        assert first["name"] in started and second["name"] in started


def test_picker_shows_its_numbers(driven, data):
    numbers = data["03_progressive"]
    for report in seen(driven, "Checkpoint picker"):
        keys = dict(zip(("Home", "ArrowRight", "End"), report["steps"], strict=True))
        for action, place in (("Home", 0), ("ArrowRight", 1), ("End", -1)):
            stop, shown = numbers["stops"][place], keys[action]
            assert f"step {stop['step']:,}" in shown["words"] and shown["said"] == [f"step {stop['step']:,}"]
            result = "not at 95 %" if stop["reached"] is None else f"after {stop['reached']:,.0f} samples"
            assert result in shown["words"] and result in shown["headings"][2]
            heights, values = (np.array(v) for v in (shown["bars"][1], stop["spectrum"]))
            np.testing.assert_allclose(heights / heights.max(), values / values.max(), atol=0.01)


def test_first_step_shows_its_numbers(driven, data):
    numbers = data["05_why"]
    case = next(c for c in numbers["cases"] if [c["k"], c["d"]] == numbers["start"])
    for report in seen(driven, "First step"):
        assert report["start"]["words"].startswith(f"k = {case['k']}, d = {case['d']}, ")
        for signal in case["signals"]:
            name, half = numbers["looks"][signal["look"]]["name"], signal["half"]
            said = "never one half" if half is None else f"one half at {half:,.0f} samples"
            assert name in report["start"]["words"] and said in report["start"]["words"]


def test_first_step_names_what_is_drawn_and_stays_as_tall(browse, data, tmp_path):
    widget = explorers.Explorer("First step", data["05_why"])  # as drawn today, not when the chapter was executed
    for report in browse("explore.mjs", written(widget, tmp_path / "step.html")):
        shown = [report["start"], *report["steps"]]
        assert len({len(step["keys"]) for step in shown}) > 1
        assert all(len(step["keys"]) == step["drawn"].count('fill="none"') for step in shown)
        assert len({step["tall"] for step in shown}) == 1, report["width"]
