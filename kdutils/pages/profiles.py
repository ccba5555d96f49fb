"""Settings by profile: one table of data, one code path."""

from __future__ import annotations

import ast
import os
import reprlib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

PARAMETERS = ("profile", "device", "seeds", "overrides")
MAY_BE_ZERO = {"seeds", "tuning_seeds", "support_seed", "extensions", "characters", "warmup"}  # all others are above 0
GIVE = "-y '{overrides: {batch: 32}, seeds: [1, 2, 3]}'"  # how to give papermill more than a word or a number


def _table() -> dict[str, dict[str, dict[str, Any]]]:
    return tomllib.loads((Path(__file__).parent / "profiles.toml").read_text(encoding="utf-8"))


def load(
    section: str,
    profile: str | None = None,
    device: str | torch.device | None = None,
    seeds: Sequence[int] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> SimpleNamespace:
    """The settings of `section` at `profile`, as attributes; `profile` and `device` are among them.

    Args:
        section: a table of `profiles.toml`, such as "parity".
        profile: "smoke", "book" or "paper"; left out, `$KDUTILS_PROFILE`, else "book".
        device: a torch device; left out, a GPU where there is one.
        seeds: the seeds reported, in place of the profile's.
        overrides: other settings by name. Numbers and arrays of numpy or torch are taken as Python's own.

    Raises:
        ValueError: for a profile, setting or device that does not exist, and for a value that makes no experiment:
            another type, a number that is not finite or not above 0, a list that is empty or holds something twice,
            seeds that are tuned on and reported. One line, which names the parameter and says what would be right.

    >>> load("parity", "smoke", overrides={"d": 24}).d
    24
    """
    table = _table()
    if profile is None:
        profile = os.environ.get("KDUTILS_PROFILE") or "book"
    if not isinstance(profile, str) or profile not in table:
        raise ValueError(f"unknown profile {_short(profile)}: choose one of {', '.join(table)}")
    if section not in table[profile]:
        raise ValueError(f"unknown section {section!r}: choose one of {', '.join(table[profile])}")
    settings = {name: _plain(value) for name, value in table[profile][section].items()}  # lists of their own
    changes = _changes(overrides, seeds)
    for name, value in changes.items():
        if name not in settings:
            beside = f"; {name} is a parameter of its own, beside overrides" if name in PARAMETERS else ""
            raise ValueError(f"unknown setting {_short(name)}: {section} has {', '.join(settings)}{beside}")
        settings[name] = _checked(name, value, settings[name])
    both = sorted(set(settings["seeds"]) & set(settings["tuning_seeds"]))
    if both:
        raise ValueError(f"seeds and tuning_seeds both hold {both}: what is chosen on a seed is not reported on it")
    return SimpleNamespace(**settings, profile=profile, device=_device(device))


def _changes(overrides: Any, seeds: Any) -> dict[str, Any]:
    """What the caller wants other than the profile does, by name."""
    overrides = {} if overrides is None else overrides
    if not isinstance(overrides, Mapping):
        raise ValueError(
            f"parameter 'overrides' must be settings by name, such as {{'batch': 32}}, not {_short(overrides)}"
            f"{_advice(overrides)}"
        )
    if seeds is None:
        return dict(overrides)
    if "seeds" in overrides:
        raise ValueError("the seeds are given twice: give them as 'seeds' or in 'overrides', not both")
    return {**overrides, "seeds": seeds}


def _plain(value: Any) -> Any:
    """Numbers, arrays, tuples and ranges as Python's own numbers and lists."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return [_plain(item) for item in value] if isinstance(value, list | tuple | range) else value


def _short(value: Any) -> str:
    return reprlib.repr(_plain(value))


def _advice(value: Any) -> str:
    inside = value if isinstance(value, list) else [value]
    return f"; this is text: papermill takes numbers and lists as {GIVE}" if str in map(type, inside) else ""


def _checked(name: str, value: Any, model: Any) -> Any:
    """The value of a setting, if it is of the kind of the profile's own, `model`, and makes an experiment."""
    value = _plain(value)
    if not _like(value, model):
        advice = "" if isinstance(model, str) else _advice(value)
        raise ValueError(f"setting {name!r} must be like {model!r}, not {_short(value)}{advice}")
    for number in _numbers(value):
        if not abs(number) < 2**63 or (number <= 0 and name not in MAY_BE_ZERO):  # nor infinite, nor NaN
            raise ValueError(f"setting {name!r} must hold finite numbers above 0, such as {model!r}, not {number}")
        if number < 0 and "seeds" not in name:
            raise ValueError(f"setting {name!r} must not be negative: it is {number}")
    if isinstance(value, list):
        twice = [item for place, item in enumerate(value) if item in value[:place]]
        if not value or twice:
            fault = f"holds {twice[0]} twice" if twice else "is empty"
            raise ValueError(f"setting {name!r} {fault}: give different ones, such as {model!r}")
    return _as(value, model)


def _like(value: Any, model: Any) -> bool:
    """Whether `value` is of the kind of `model`: for a list item by item, a list in a list of the same length."""
    if isinstance(model, list):
        rows = isinstance(model[0], list)
        return isinstance(value, list) and all(
            _like(item, model[0]) and (not rows or len(item) == len(model[0])) for item in value
        )
    return isinstance(value, int | float if isinstance(model, float) else type(model)) and not isinstance(value, bool)


def _numbers(value: Any) -> list[float]:
    if isinstance(value, list):
        return [number for item in value for number in _numbers(item)]
    return [] if isinstance(value, str) else [value]


def _as(value: Any, model: Any) -> Any:
    """A whole number as a fraction where the profile has one: 1 and 1.0 are the same run."""
    if isinstance(value, list):
        return [_as(item, model[0]) for item in value]
    return float(value) if isinstance(model, float) else value


def _device(device: Any) -> str:
    """The name of a device that can compute here and draw random numbers."""
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type if isinstance(device, str | torch.device) else ""
        torch.Generator(device=device)
        works = bool(kind) and (torch.ones(1, device=device) + 1).item() == 2
    except Exception:  # what is raised differs from one kind of device to the next
        works = False
    if works:
        return "cpu" if kind == "cpu" else str(device)
    asked = f"device {_short(str(device) if isinstance(device, torch.device) else device)} was asked for, but torch"
    if str(device).startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"{asked} sees no GPU here: use device='cpu'")
    raise ValueError(f"{asked} cannot compute on it here: use 'cpu', or 'cuda' where there is a GPU")


def changed(settings: SimpleNamespace) -> list[str]:
    """Names of the settings that are not those of their profile; empty for a profile's own.

    >>> changed(load("parity", "smoke", overrides={"d": 24}))
    ['d']
    """
    own = {name: value for name, value in vars(settings).items() if name not in ("profile", "device")}
    sections = _table().get(str(getattr(settings, "profile", "")), {}).values()
    found = [[n for n in own if _plain(own[n]) != section[n]] for section in sections if section.keys() == own.keys()]
    return min(found, key=len, default=sorted(own) or ["all settings"])


def start(section: str, namespace: dict[str, Any]) -> SimpleNamespace:
    """`load` with a chapter's own parameters: call it as `start("parity", globals())` below the parameters cell.

    Also refuses parameters that papermill injected and the chapter does not have (papermill itself only warns).
    """
    injected = [source for source in namespace.get("In", []) if source.startswith("# Parameters\n")]
    for name in _assigned(injected[-1]) if injected else []:
        if name not in PARAMETERS:
            has = f"a chapter has {', '.join(PARAMETERS)}, and papermill takes settings as {GIVE}"
            raise ValueError(f"unknown parameter {name!r}: {has}")
    return load(section, **{name: namespace.get(name) for name in PARAMETERS})


def _assigned(source: str) -> list[str]:
    """What a cell assigns to; nothing where it is no Python, for then it did not run."""
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return []
    return [ast.unparse(target) for node in body if isinstance(node, ast.Assign) for target in node.targets]
