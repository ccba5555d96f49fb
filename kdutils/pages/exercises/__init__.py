"""The machinery of the exercises' checks; these are in the files beside this one.

A check tries the reader's function, and prints "correct" or says in one line what is wrong. It tests properties and
knows no solution. There is one file for each group of chapters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from kdutils.curriculum import Curriculum
from kdutils.signals import Hidden, Output


class Wrong(AssertionError):
    """What is wrong with an answer, in one line; a notebook shows that line and no traceback."""

    def _render_traceback_(self) -> list[str]:
        return [f"Not yet: {self}"]


def need(condition: Any, message: str) -> None:
    if not condition:
        raise Wrong(message)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def exercise(properties: Callable[..., None]) -> Callable[..., None]:
    """A check from the properties of a right answer: what goes wrong while it is tried becomes one line.

    What the check is given besides the answer, such as an arm of the page, goes to `properties` as it is.
    """

    @wraps(properties)
    def check(answer: Callable, *given: Any) -> None:
        name = getattr(answer, "__name__", "the answer")

        def ask(*arguments: Any) -> Any:
            try:
                value = answer(*arguments)
            except Wrong:  # of a function that the check gave it
                raise
            except Exception as error:
                raise Wrong(f"{name} stops with {_first_line(error)} (call it yourself to see where)") from error
            need(value is not None and value is not ..., f"{name} returns nothing yet: write its body")
            return value

        try:
            properties(ask, *given)
        except Wrong:
            raise
        except Exception as error:
            raise Wrong(
                f"{name} returns another kind of thing than its docstring says ({_first_line(error)})"
            ) from error
        print("correct")

    return check


def close(a: Any, b: Any, share: float = 1e-4) -> bool:
    return math.isclose(float(a), float(b), rel_tol=share, abs_tol=1e-6)


def need_outputs(plan: Curriculum, lengths: Sequence[int | None], networks: Sequence[Any]) -> None:
    """The stages have these lengths and match the outputs of these networks (None: not an output)."""
    need(len(plan.stages) == len(lengths), f"it should have {len(lengths)} stages, not {len(plan.stages)}")
    for number, (stage, length, network) in enumerate(zip(plan.stages, lengths, networks, strict=True), 1):
        message = f"stage {number} should take {'what is left' if length is None else length}, not {stage.steps} steps"
        need(stage.steps == length, message)
        message = f"stage {number} matches {stage.signal}: the wrong kind of signal, or the wrong network"
        need(network is None or (isinstance(stage.signal, Output) and stage.signal.teacher is network), message)


def need_hidden(plan: Curriculum, number: int, teacher: Any, pair: Sequence[str] | None = None) -> None:
    """Stage `number`, from 1, matches a hidden layer of `teacher`, and with `pair` this one by that of the student."""
    signal = plan.stages[number - 1].signal
    message = f"stage {number} should match the hidden layer of the final teacher; it matches {signal}"
    need(isinstance(signal, Hidden) and signal.teacher is teacher, message)
    if pair is not None:
        found = signal.layer, signal.student_layer
        message = f"stage {number} should pair the layers {tuple(pair)}, teacher's and student's; it pairs {found}"
        need(found == tuple(pair), message)
