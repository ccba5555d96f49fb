"""The front page's film and the guesses before figures, driven by keys and mouse: they show what was recorded."""

import json

import numpy as np
import pytest
from test_site import ROOT, SITE, pages, parsed

from kdutils.lab.stats import Estimate
from kdutils.pages import predict

pytestmark = pytest.mark.skipif(not SITE.exists(), reason=f"no site at {SITE.name}: run `make site` first")
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Guess</title><link rel="stylesheet" href="{static}/live.css"><script src="{static}/live.js"></script>
<style>body {{ margin: 16px; }} html[data-theme="dark"] {{ background: #14181e; color: #eee;
--pst-color-background: #14181e; --pst-color-text-base: #eee; --pst-color-text-muted: #a8b0b8;
--pst-color-primary: #6db7e8; }}</style></head><body><main><section><h1>A page</h1><section><h2>A section</h2>
<div class="cell"><div class="cell_input"><pre id="code">code</pre></div>
<div class="cell_output"><div class="output text_html">{guess}</div>
<div class="output"><p id="figure">figure</p></div></div></div><p id="rest">What the figure shows.</p>
<section><h3 id="inner">A part of the section</h3></section></section>
<section><h2 id="next">The next section</h2></section></section></main></body></html>"""
NUMBER, BOUND = Estimate(12.0, 6.0, 20.0, "", 3, 15), Estimate(9.0, 4.0, float("inf"), "at least", 3, 15)
GUESSES = {
    "number": predict.number("How many <times>?", NUMBER, "For a reason.", (1, 100), " times"),
    "bound": predict.number("At least how many?", BOUND, "Some did not finish.", (1, 100), " times"),
    "count": predict.number("How many legs?", 8, "It is no insect.", (0, 10), step=1),
    "choice": predict.choice("Which one?", ["labels", "extraction"], "extraction", "For a reason."),
}  # fmt: skip
FIRST = {"number": "1 times", "bound": "1 times", "count": "0", "choice": "labels"}  # what Home and Space choose


@pytest.fixture(scope="module")
def film():
    return json.loads((ROOT / "_static" / "film.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def visits(browse):
    return browse("live.mjs", "film", SITE / "book" / "index.html")


@pytest.fixture(scope="module")
def guesses(browse, tmp_path_factory):
    """Every kind of question on a page of its own, built as a chapter's page is."""
    folder = tmp_path_factory.mktemp("guesses")
    for name, guess in GUESSES.items():
        page = PAGE.format(static=(SITE / "_static").as_uri(), guess=guess._repr_html_())
        (folder / f"{name}.html").write_text(page, encoding="utf-8")
    return browse("live.mjs", "guess", *(folder / f"{name}.html" for name in GUESSES))


def moving(visits):
    found = [visit for visit in visits if "steps" in visit]
    assert len(found) == 3
    return found


def test_film_runs_once_by_itself_unless_the_reader_wants_no_motion(visits, film):
    last = len(film["steps"]) - 1
    for visit in moving(visits):
        opened, later = visit["steps"]["opened"], visit["steps"]["later"]
        assert visit["errors"] == [] and opened["player"] and not opened["still"]
        if visit["options"].get("reducedMotion"):
            assert opened["at"] == later["at"] == film["still"] and later["button"] == "Play"
        else:
            assert 0 < opened["at"] < last and opened["button"] == "Pause"
            assert later["at"] == last and later["button"] == "Play"


def test_film_answers_to_keys_and_mouse(visits, film):
    last = len(film["steps"]) - 1
    for visit in moving(visits):
        steps = visit["steps"]
        assert [steps[key]["at"] for key in ("Home", "ArrowRight", "End")] == [0, 1, last]
        assert steps["playing"]["button"] == "Pause" and 0 < steps["playing"]["at"] < last
        assert steps["paused"]["button"] == "Play"
        assert steps["playing"]["at"] <= steps["paused"]["at"] <= steps["playing"]["at"] + 1, "paused, and yet it runs"
        assert steps["clicked"]["at"] > steps["paused"]["at"] and steps["clicked"]["button"] == "Pause"
        assert abs(steps["dragged"]["at"] - last / 2) <= 2 and steps["dragged"]["button"] == "Play"
        assert all(step["fits"] for step in steps.values() if "fits" in step)
        assert min(visit["sizes"]) >= 24, "too small for a finger"


def test_film_shows_its_numbers(visits, film):
    inside = np.isin(np.arange(film["setting"]["d"]), film["support"])
    brightness = {}
    for visit in moving(visits):
        for key, frame in (("Home", 0), ("End", -1)):
            shown = visit["steps"][key]
            assert shown["now"] == [f"{100 * arm['accuracy'][frame]:.0f} %" for arm in film["arms"]]
            assert f"{film['steps'][frame] * film['setting']['batch']:,} samples" in shown["words"]
            assert all(told.startswith(arm["name"]) for told, arm in zip(shown["told"], film["arms"], strict=True))
            maps = np.array(shown["maps"])  # (arms, bits)
            brightness[key] = maps[:, inside].mean(1) / maps[:, ~inside].mean(1)
            if key == "Home":
                np.testing.assert_allclose(brightness[key], 1, atol=0.15)
    names = [arm["name"] for arm in film["arms"]]
    assert brightness["End"][names.index("extraction")] > 2, "the support lights up"


def test_still_stands_in_on_paper_and_without_scripts(visits):
    assert all(
        visit["steps"]["printed"]["still"] and not visit["steps"]["printed"]["player"] for visit in moving(visits)
    )
    (plain,) = [visit for visit in visits if "steps" not in visit]
    assert plain["still"]


def test_film_is_loaded_on_the_front_page_alone():
    holders = [page.stem for page in pages() if "film-data.js" in page.read_text(encoding="utf-8")]
    assert holders == ["index"]


def test_film_follows_the_theme(visits):
    dark = next(visit["steps"]["card"] for visit in visits if visit["options"].get("dark"))
    assert max(map(int, dark.removeprefix("rgb(").removesuffix(")").split(","))) < 80, dark


@pytest.mark.parametrize("name", GUESSES)
def test_guess_comes_first_and_stands_beside_the_result(guesses, name):
    said = GUESSES[name].data["said"]
    asked = [g for g in guesses if g["page"] == name and "answered" in g["steps"]]
    assert len(asked) == 4  # wide, on a phone, dark, and where nothing can be kept
    for visit in asked:
        steps = visit["steps"]
        assert visit["errors"] == [] and visit["findings"] == [] and all(step["fits"] for step in steps.values())
        opened, answered = steps["opened"], steps["answered"]
        assert (opened["figure"], opened["rest"], opened["code"], opened["next"]) == (False, False, True, True)
        assert (opened["inner"], answered["inner"], steps["printed"]["inner"]) == (False, True, True)
        assert GUESSES[name].data["question"] in opened["words"] and "Measured" not in opened["words"]
        assert answered["figure"] and answered["rest"] and answered["focus"] == "kd-result"
        assert answered["result"].startswith(f"Your guess: {FIRST[name]}. Measured: {said}.")
        assert GUESSES[name].data["why"] in answered["result"]
        if visit["options"]["before"]:
            assert steps["again"]["result"] is None and not steps["again"]["figure"]
        else:
            assert steps["again"]["result"] == answered["result"] and steps["again"]["figure"]
        assert not steps["forgotten"]["figure"] and steps["printed"]["figure"] and not steps["printed"]["panel"]
        assert steps["skipped"]["figure"] and steps["skipped"]["result"].startswith(f"Measured: {said}.")
        if name == "choice":
            assert not steps["empty"]["figure"], "nothing was chosen"


@pytest.mark.parametrize("name", GUESSES)
def test_a_link_and_a_page_without_scripts_show_the_figure(guesses, name):
    others = [g for g in guesses if g["page"] == name and "answered" not in g["steps"]]
    assert len(others) == 2
    for visit in others:
        opened = visit["steps"]["opened"]
        assert visit["errors"] == [] and opened["figure"] and opened["rest"] and opened["inner"]
        assert visit["steps"]["opened"]["panel"] == (visit["options"].get("javaScriptEnabled") is not False)


def test_verdicts(guesses):
    words = {g["page"]: g["steps"]["answered"]["result"] for g in guesses if "answered" in g["steps"]}
    assert "below the interval" in words["number"] and "below the interval" in words["bound"]
    assert "too low" in words["count"] and "right" not in words["choice"]


ASKING = [page for page in pages() if page.stem[:2] in ("01", "02", "03", "04", "05")]


@pytest.mark.parametrize("page", ASKING, ids=lambda page: page.stem)
def test_chapter_asks_before_its_figure(browse, page):
    asked = parsed(page).select(".kd-predict[data-guess]")
    assert len(asked) == 1, f"no question: execute {page.stem} again"
    assert all(json.loads(one["data-guess"])["why"] for one in asked)
    (visit,) = browse("live.mjs", "chapter", page)
    assert visit["errors"] == [] and visit["hidden"] > 0 and visit["left"] == 0 and "Measured" in visit["words"]
