"""What the signals of a plan hold: layers, teachers, masks; and a plan whose signals take the settings of all."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from kdutils import fingerprints, reading
from kdutils.losses import IGNORE
from kdutils.signals import Signal


def lead(x: Any) -> Any:
    return reading.each(lambda t: t[None], x)


def first(x: Any) -> Any:
    return reading.each(lambda t: t[0], x)


def split(read: Any) -> tuple[Any, torch.Tensor | None]:
    """A collated batch as what the student reads, and the labels that came with it."""
    if isinstance(read, Mapping):
        return {name: value for name, value in read.items() if name != "labels"}, read.get("labels")
    pair = isinstance(read, tuple | list) and len(read) == 2
    return (read[0], read[1]) if pair else (read, None)


def _inner(thing: Any) -> list[Any]:
    """The values of a dataclass, and those in its tuples and lists."""
    values = [getattr(thing, f.name) for f in fields(thing)] if is_dataclass(thing) else []
    return [v for value in values for v in (value if isinstance(value, tuple | list) else (value,))]


def holds(thing: Any, kind: type | tuple[type, ...]) -> bool:
    pairs = thing if isinstance(thing, tuple | list) else _inner(thing)
    return isinstance(thing, kind) or any(holds(part, kind) for part in pairs)


def layers(thing: Any) -> list[Any]:
    """The signals in a signal, or in some, that read a hidden layer of the student."""
    inner = thing if isinstance(thing, tuple | list) else _inner(thing)
    return [thing] if hasattr(thing, "student_layer") else [found for part in inner for found in layers(part)]


def placed(thing: Any, positions: str) -> list[Any]:
    """Those of the `layers` that are matched at these positions: "all", "asked" or "tokens"."""
    return [layer for layer in layers(thing) if getattr(layer, "positions", "") == positions]


def teachers(thing: Any) -> list[nn.Module]:
    """The networks in a signal, or in some."""
    inner = thing if isinstance(thing, tuple | list) else _inner(thing)
    return [thing] if isinstance(thing, nn.Module) else [found for part in inner for found in teachers(part)]


def taken(network: nn.Module) -> tuple[set[str], bool]:
    """The entries of a batch that a network's `forward` names, and whether it takes any others, too."""
    try:
        parameters = inspect.signature(network.forward).parameters.values()
    except ValueError:  # torch.jit has hidden it
        return set(), True
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return named, any(p.kind == p.VAR_KEYWORD for p in parameters)


def names(batch: Any) -> set[str]:
    """The names of a batch's entries."""
    return set(batch) if isinstance(batch, Mapping) else set()


def wanted(signals: Sequence[Signal], mask: Any) -> set[str]:
    """The entries of a batch that teachers, or the mask, may need."""
    found = {name for teacher in teachers(list(signals)) for name in taken(teacher)[0]}
    return found | ({mask} if isinstance(mask, str) else set())


def spare(student: nn.Module, signals: Sequence[Signal], mask: Any) -> set[str]:
    """The entries of a batch that are for teachers or the mask alone, now or when a record was made."""
    recorded = {name for layer in _recorded(list(signals)) for name in layer.targets.about.get("spare", ())}
    return (wanted(signals, mask) | recorded) - taken(student)[0]


def _recorded(thing: Any) -> list[Any]:
    inner = thing if isinstance(thing, tuple | list) else _inner(thing)
    return [thing] if hasattr(thing, "targets") else [found for part in inner for found in _recorded(part)]


def given(network: nn.Module, batch: Any, spare: set[str]) -> Any:
    """A batch without the `spare` entries that a network cannot take."""
    if not spare or not isinstance(batch, Mapping):
        return batch
    named, others = taken(network)
    return batch if others else {n: value for n, value in batch.items() if n in named or n not in spare}


def known(units: Any, signals: Sequence[Signal], labels: Any) -> None:
    """ValueError where `units` names a layer that no signal reads, or labels of the calibration are needed."""
    if labels is None and placed(list(signals), "asked"):
        advice = "give calibration_labels (a Trainer takes them from its first rows, where no calibration is given)"
        raise ValueError(f"positions='asked' needs the labels of the calibration: {advice}")
    paths = {layer.student_layer for layer in layers(list(signals))}
    if isinstance(units, Mapping) and (lost := [path for path in units if path not in paths]):
        raise ValueError(f"units names {lost[0]!r}, which no stage reads of the student; they read {sorted(paths)}")


def filled(signal: Any, units: Any, mask: Any) -> Signal:
    """A signal, also inside others, whose hidden layers take `units` and `mask` where they do not say themselves."""
    if isinstance(signal, tuple | list):
        return tuple(filled(part, units, mask) for part in signal)
    if not is_dataclass(signal):
        return signal
    if hasattr(signal, "targets"):  # recorded
        signal.targets.agree(units=units, mask=None if mask is None else fingerprints.described(mask))
    changes = {f.name: filled(getattr(signal, f.name), units, mask) for f in fields(signal)}
    if "student_layer" in changes:
        given = units.get(signal.student_layer) if isinstance(units, Mapping) else units
        changes["units"] = given if signal.units is None else signal.units
        if mask is not None and signal.positions == "all":
            changes["positions"] = partial(masked, mask)
    return replace(signal, **changes)


def masked(mask: str | Callable[[Any], torch.Tensor], x: Any) -> torch.Tensor:
    batch = first(x)
    if callable(mask):
        return lead(mask(batch))
    if not isinstance(batch, Mapping) or mask not in batch:
        raise ValueError(f"the batch has no entry {mask!r} to be the mask of positions")
    return batch[mask][None]


def entry(name: Any) -> None:
    """Refuse the name of a mask that says where not to look, as torch's own layers take it."""
    if isinstance(name, str) and name.endswith("key_padding_mask"):
        advice = f"say mask=lambda batch: ~batch[{name!r}]"
        raise ValueError(f"a {name} is True where there is padding, and a mask where positions count: {advice}")


def same_start(student: nn.Module, teacher: nn.Module) -> None:
    """Warn where encoder-decoders of transformers begin what they write with other tokens."""
    own, theirs = (getattr(getattr(n, "config", None), "decoder_start_token_id", None) for n in (student, teacher))
    if None not in (own, theirs) and own != theirs:
        told = f"what the student writes begins with token {own}, what the teacher writes with {theirs}"
        warnings.warn(f"{told}: both are given the same decoder_input_ids", stacklevel=3)


def routed(network: nn.Module) -> None:
    """Warn of a mixture of experts whose own loss has a part that labels do not tell."""
    config = getattr(network, "config", None)
    if getattr(config, "output_router_logits", False) is True and getattr(config, "router_aux_loss_coef", 0):
        told = f"the own loss of {type(network).__name__} balances its experts (router_aux_loss_coef)"
        warnings.warn(f"{told}, and a curriculum's does not: add it in your own loop", stacklevel=3)


def shifted(batch: Any, labels: Any, learned: bool) -> None:
    """Warn of labels that were not shifted, as models of transformers do inside: `learned`, or saying what counts."""
    ids = batch.get("input_ids") if isinstance(batch, Mapping) else batch
    if not (isinstance(ids, torch.Tensor) and isinstance(labels, torch.Tensor) and ids.dim() == 2):
        return
    asked = labels != IGNORE if ids.shape == labels.shape else None
    told = asked is not None and (learned or not asked.all()) and asked.any()
    if told and bool((labels == ids)[asked].all()):
        advice = "a causal language model needs the next token at each position, -100 at the last"
        warnings.warn(f"the labels are the inputs themselves: {advice}", stacklevel=3)
