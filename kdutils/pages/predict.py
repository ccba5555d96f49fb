"""Predict first: a question before a figure, on the site; in a notebook the plain figure.

Show a `Guess` above what it asks about, in the same cell: `display(predict.number(...))`. On the site `_ext/predict.js`
then hides what follows, up to the end of the section, until the reader has answered or skipped. Where that script does
not run, in Jupyter, Colab and on paper, nothing is shown and nothing hidden. The answer is given by the code, from runs
or records, and never typed.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kdutils.lab.stats import Estimate


@dataclass(frozen=True)
class Guess:
    """A question, what was measured, and a line on why; `data` is what the page is given, nothing for no question."""

    data: dict[str, Any] | None

    def __repr__(self) -> str:
        return f"Guess: {self.data['question']}" if self.data else ""

    def _repr_html_(self) -> str:
        if self.data is None:
            return ""
        told = html.escape(json.dumps(self.data, ensure_ascii=False), quote=True)
        return f'<div class="kd-predict" data-guess="{told}" hidden></div>'


def number(
    question: str,
    answer: float | Estimate,
    why: str,
    scale: tuple[float, float],
    unit: str = "",
    step: float | None = None,
) -> Guess:
    """Ask for a number, on a slider.

    Args:
        answer: what was measured. One that is not finite makes no question, and the figure stands as it is: where
            an arm has not finished, there is nothing to guess. Nor does one of 0 or less on a logarithmic scale.
        why: one sentence or two; without measured numbers, for they change.
        scale: the ends of the slider; widened where the answer lies outside.
        unit: what is counted, with the space before it, such as " times".
        step: between two values of the slider; left out, the scale is logarithmic.

    Raises:
        ValueError: for a scale that is none.

    >>> number("How many legs has a spider?", 8, "It is no insect.", (0, 10), step=1).data["said"]
    '8'
    """
    low, high = map(float, scale)
    if not (low < high and (step or low > 0)):
        raise ValueError(f"a scale goes from a smaller to a larger number, a logarithmic one from above 0: not {scale}")
    found = answer if isinstance(answer, Estimate) else None
    value = float(f"{found.value if found else answer:.6g}")  # the last digits hang on how many threads added them up
    if not math.isfinite(value) or (step is None and value <= 0):
        return Guess(None)
    ends = [float(f"{end:.6g}") for end in (found.interval if found else (value, value))]
    beyond = step if step else 0.5 * value
    low, high = min(low, value - beyond if value < low else low), max(high, value + beyond if value > high else high)
    return Guess({
        "kind": "number", "question": question, "why": why, "unit": unit, "scale": [low, high], "step": step,
        "answer": value, "interval": [end if math.isfinite(end) else None for end in ends],
        "said": f"{found or f'{value:.3g}'}{unit}",
    })  # fmt: skip


def choice(question: str, options: Sequence[str], answer: str, why: str) -> Guess:
    """Ask for one of several things.

    Args:
        options: what can be chosen, in the order shown.
        answer: the one that was measured, such as `min(times, key=times.get)`.
        why: as for `number`.

    Raises:
        ValueError: when the answer is none of the options.
    """
    if answer not in options or len(set(options)) < max(2, len(options)):
        raise ValueError(f"the options must be different and hold the answer, {answer!r}; they are {list(options)}")
    data = {"kind": "choice", "question": question, "why": why, "options": list(options), "said": answer}
    return Guess(data)
