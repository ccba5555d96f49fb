"""What may stand in a study's file: checked when it is read, before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

_TAUGHT = "teacher_learning_rate teacher_batch teacher_steps keep_every batch held_out"
_BLOCKS = "layers head_width teacher_heads student_heads"
SETTINGS = {  # that the lab of a study reads, beside what the study itself gives it
    "parity": f"d k teacher_width student_width {_TAUGHT}",
    "transformer_parity": f"d k support {_BLOCKS} {_TAUGHT}",
    "grammar": f"grammar root {_BLOCKS} warmup test_sentences {_TAUGHT}",
    "english": f"corpus objective characters vocabulary context {_BLOCKS} warmup test_windows {_TAUGHT}",
    "pictures": "pictures pool layers teacher_width teacher_depth student_width student_depth warmup " + _TAUGHT,
    "recorded": "source corpus newest context rows held_rows test_rows classes top_k layers head_width student_heads "
                "warmup batch held_out",
}  # fmt: skip
OPTIONAL = {"teacher_until"}
TEXTS = {"support", "grammar", "corpus", "objective", "pictures", "source"}
BROKEN = {"teacher_learning_rate", "teacher_until"}  # may be fractions; all other numbers are whole
ROLES = ("teacher", "tuning", "students")
ENDS = {  # how a difference between two arms may be expected to end: its ends, in smallest effects of interest
    "ahead": (1, math.inf), "ahead, by less": (0, 1), "no worse": (-1, math.inf), "no different": (-1, 1),
    "no better": (-math.inf, 1), "behind": (-math.inf, -1),
}  # fmt: skip
TABLES = ("settings", "tuning", "arms", "effect", "sizes", "failed")


def number(value: Any, least: float = 0.0, whole: bool = False) -> bool:
    """Whether this is a finite number, `least` or more."""
    kind = isinstance(value, int) if whole else isinstance(value, int | float)
    return kind and not isinstance(value, bool) and math.isfinite(value) and value >= least


def several(values: Any, each: Any) -> bool:
    """Whether this is a list of at least one, all of the kind that `each` says, none of them twice."""
    listed = isinstance(values, list | tuple) and len(values) > 0
    return listed and all(map(each, values)) and len(set(values)) == len(values)


def seed(value: Any) -> bool:
    return number(value, 0, whole=True)


def count(value: Any) -> bool:
    return number(value, 1, whole=True)


def above_zero(value: Any) -> bool:
    return number(value) and value > 0


def name(value: Any) -> bool:
    return isinstance(value, str)


def wrong_with(study: Any) -> str:
    """What is wrong with the values of a study (`kdutils.studies.study.Study`), or nothing; its arms apart."""
    return next(_faults(study), "")


def _faults(study: Any) -> Iterator[str]:
    for table in TABLES:
        if not isinstance(getattr(study, table), Mapping):
            yield f"{table} has to be a table, not {getattr(study, table)!r}"
            return
    for table, of in (("arms", study.arms), ("sizes", study.sizes)):
        if not of:
            yield f"{table} is empty: a study has one at least"
        if wrong := [
            key for key, value in of.items() if not isinstance(value, Mapping) or (table == "arms" and not key)
        ]:
            yield f"[{table}.{wrong[0]!r}] has to be a table with a name, not {of[wrong[0]]!r}"
            return
    for key, each, what in (
        ("budgets", count, "whole numbers above 0"), ("teachers", seed, "seeds"), ("main", name, "arms"),
    ):  # fmt: skip
        if not several(getattr(study, key), each):
            yield f"{key} has to be a list of different {what}, not {getattr(study, key)!r}"
    for key in ("students", "evaluations"):
        if not count(getattr(study, key)):
            yield f"{key} has to be a whole number above 0, not {getattr(study, key)!r}"
    yield from _tuning(study.tuning)
    if wrong := set(study.effect) - {"what", "smallest"}:
        yield f"[effect] has no {min(wrong)!r}; it has what, smallest"
    if not above_zero(study.effect.get("smallest")):
        yield f"[effect] needs a number above 0 as smallest, not {study.effect.get('smallest')!r}"
    if not isinstance(study.thinned, list | tuple):
        yield f"thinned has to be a list of roles, not {study.thinned!r}"
    elif wrong := [role for role in study.thinned if role not in ROLES]:
        yield f"thinned holds {wrong[0]!r}; the roles are {', '.join(ROLES)}"
    yield from _settings(study)
    yield from _expected(study)


def _expected(study: Any) -> Iterator[str]:
    if not isinstance(study.expected, list | tuple) or not all(isinstance(one, Mapping) for one in study.expected):
        yield f"expected has to be a list of tables, not {study.expected!r}"
        return
    for number, said in enumerate(study.expected, 1):
        where, needed = f"number {number} of expected", {"arms", "than", "budgets", "ends"}
        if wrong := (set(said) - {"size", "note"}) ^ needed:
            yield f"{where} holds {min(wrong)!r}, or lacks it; it has {', '.join(sorted(needed))}, size, note"
            return
        if not several(said["arms"], lambda arm: arm in [*study.arms]) or said["than"] not in [*study.arms]:
            found = f"{said['arms']!r} and {said['than']!r}; they are {', '.join(study.arms)}"
            yield f"{where} needs a list of arms, and one to compare them to, not {found}"
        if not several(said["budgets"], lambda budget: budget in study.budgets):
            yield f"{where} needs a list of the study's budgets, not {said['budgets']!r}"
        if said["ends"] not in [*ENDS]:
            yield f"{where} cannot end {said['ends']!r}: choose one of {', '.join(ENDS)}"
        if (size := said.get("size", "")) not in [*study.sizes]:
            yield f"{where} has the size {size!r}; the sizes are {', '.join(map(repr, study.sizes))}"


def _tuning(tuning: Mapping[str, Any]) -> Iterator[str]:
    if wrong := set(tuning) ^ {"seeds", "rates", "extensions"}:
        yield f"[tuning] holds {min(wrong)!r}, or lacks it; it has seeds, rates, extensions"
    elif not several(tuning["seeds"], seed):
        yield f"[tuning] needs a list of different seeds, not {tuning['seeds']!r}"
    elif not several(tuning["rates"], above_zero):
        yield f"[tuning] needs a list of different numbers above 0 as rates, not {tuning['rates']!r}"
    elif not seed(tuning["extensions"]):
        yield f"[tuning] needs a whole number, 0 or more, as extensions, not {tuning['extensions']!r}"


def _settings(study: Any) -> Iterator[str]:
    known = SETTINGS[study.lab].split()
    if wrong := (set(study.settings) - OPTIONAL) ^ set(known):
        yield f"[settings] holds {min(wrong)!r}, or lacks it; the lab {study.lab!r} reads {', '.join(known)}"
    for where, table in (("settings", study.settings), *((f"sizes.{one!r}", of) for one, of in study.sizes.items())):
        if not isinstance(table, Mapping):
            yield f"[{where}] has to be a table, not {table!r}"
            return
        for key, value in table.items():
            least = 0 if key in ("characters", "warmup") else 1
            right = name(value) if key in TEXTS else number(value, least, whole=True)
            if key in BROKEN:
                right = above_zero(value)
            if key == "teachers":
                right = several(value, seed)
            if not right:
                what = "a text" if key in TEXTS else "a list of different seeds" if key == "teachers" else "a number"
                yield f"[{where}] needs {what} that fits as {key}, not {value!r}"
