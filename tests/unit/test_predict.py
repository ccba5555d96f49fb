"""Questions before figures: the answer comes from the measurement, and there is none where nothing was measured."""

import json
from html.parser import HTMLParser

import pytest

from kdutils.lab.stats import Estimate
from kdutils.pages import predict


def given(guess):
    """What a page's script would read."""
    found = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            found.append(dict(attrs))

    Reader().feed(guess._repr_html_())
    (attributes,) = found
    assert "hidden" in attributes, "in a notebook nothing is shown"
    return json.loads(attributes["data-guess"])


def test_an_estimate_is_told_with_its_interval_and_bound():
    told = given(
        predict.number('"How" <many>?', Estimate(9.0, 4.0, float("inf"), "at least", 3, 15), "So.", (1, 50), " times")
    )
    assert told["question"] == '"How" <many>?' and told["said"] == "≥ 9 [4, ∞] times"
    assert told["answer"] == 9 and told["interval"] == [4, None] and told["scale"] == [1, 50]


@pytest.mark.parametrize("answer", [float("inf"), float("nan"), Estimate(float("nan"), 0, 1, "not identified", 3, 15)])
def test_where_nothing_was_measured_nothing_is_asked(answer):
    guess = predict.number("How many?", answer, "So.", (1, 50))
    assert guess._repr_html_() == "" and repr(guess) == ""


@pytest.mark.parametrize("answer", [0.0, -2.0, Estimate(-2.0, -3, 1, "", 3, 15)])
def test_a_logarithmic_scale_has_no_place_for_zero_or_less(answer):
    assert repr(predict.number("How many?", answer, "So.", (1, 50))) == ""
    assert given(predict.number("How many?", answer, "So.", (1, 50), step=1))["scale"][0] < 0


@pytest.mark.parametrize(("answer", "step"), [(80.0, None), (80.0, 1), (0.5, None)])
def test_the_scale_holds_the_answer(answer, step):
    low, high = given(predict.number("How many?", answer, "So.", (1, 50), step=step))["scale"]
    assert 0 < low < answer < high


@pytest.mark.parametrize("scale", [(5, 5), (9, 1), (0, 10)])
def test_a_scale_that_is_none_is_refused(scale):
    with pytest.raises(ValueError, match="a scale goes from a smaller"):
        predict.number("How many?", 3, "So.", scale)


@pytest.mark.parametrize("options", [["a", "b"], ["a", "c", "c"], ["c"]])
def test_options_hold_the_answer_and_are_different(options):
    with pytest.raises(ValueError, match="options"):
        predict.choice("Which?", options, "c", "So.")


def test_a_choice_is_told():
    told = given(predict.choice("Which?", ["a", "b"], "b", "So."))
    assert (told["kind"], told["options"], told["said"]) == ("choice", ["a", "b"], "b")
