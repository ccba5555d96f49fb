"""Settings by profile: one table of data, one code path."""

from __future__ import annotations

import ast
import os
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

PARAMETERS = ("profile", "device", "seeds", "overrides")


def _like(value: Any, model: Any) -> bool:
    """Whether `value` is of the kind of `model`, item by item for lists."""
    if isinstance(model, list):
        return isinstance(value, list) and all(_like(item, model[0]) for item in value)
    return isinstance(value, int | float if isinstance(model, float) else type(model)) and not isinstance(value, bool)


def load(
    section: str,
    profile: str | None = None,
    device: str | None = None,
    seeds: list[int] | None = None,
    overrides: dict[str, Any] | None = None,
) -> SimpleNamespace:
    """The settings of `section` at `profile`, as attributes; `profile` and `device` are among them.

    Args:
        section: a table of `profiles.toml`, such as "parity".
        profile: "smoke", "book" or "paper"; left out, `$KDUTILS_PROFILE`, else "book".
        device: a torch device; left out, a GPU where there is one.
        seeds: the seeds reported, in place of the profile's.
        overrides: other settings by name.

    Raises:
        ValueError: for an unknown profile or setting, or a value of another type; the message lists what there is.

    >>> load("parity", "smoke", overrides={"d": 24}).d
    24
    """
    table = tomllib.loads((Path(__file__).parent / "profiles.toml").read_text(encoding="utf-8"))
    profile = profile or os.environ.get("KDUTILS_PROFILE") or "book"
    if profile not in table:
        raise ValueError(f"unknown profile {profile!r}: choose one of {', '.join(table)}")
    if section not in table[profile]:
        raise ValueError(f"unknown section {section!r}: choose one of {', '.join(table[profile])}")
    settings = table[profile][section]
    changes = {**(overrides or {}), **({"seeds": list(seeds)} if seeds is not None else {})}
    for name, value in changes.items():
        if name not in settings:
            raise ValueError(f"unknown setting {name!r}: {section} has {', '.join(settings)}")
        if not _like(value, settings[name]):
            raise ValueError(f"setting {name!r} must be like {settings[name]!r}, not {value!r}")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r} was asked for, but torch sees no GPU here: use device='cpu'")
    return SimpleNamespace(**{**settings, **changes}, profile=profile, device=device)


def start(section: str, namespace: dict[str, Any]) -> SimpleNamespace:
    """`load` with a chapter's own parameters: call it as `start("parity", globals())` below the parameters cell.

    Also refuses parameters that papermill injected and the chapter does not have (papermill itself only warns).
    """
    for source in namespace.get("In", []):
        if source.startswith("# Parameters\n"):
            targets = [t for node in ast.parse(source).body if isinstance(node, ast.Assign) for t in node.targets]
            unknown = [t.id for t in targets if isinstance(t, ast.Name) and t.id not in PARAMETERS]
            if unknown:
                raise ValueError(f"unknown parameter {unknown[0]!r}: a chapter has {', '.join(PARAMETERS)}")
    return load(section, **{name: namespace[name] for name in PARAMETERS})
