"""What the signals of a plan hold: layers, teachers, masks; and a plan whose signals take the settings of all."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from kdutils import fingerprints, reading
from kdutils.curriculum import Stage
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
    plain = is_dataclass(thing) and not isinstance(thing, nn.Module)
    values = [getattr(thing, f.name) for f in fields(thing)] if plain else []
    return [v for value in values for v in (value if isinstance(value, tuple | list) else (value,))]


def _found(thing: Any, wanted: Callable[[Any], bool]) -> list[Any]:
    """What is wanted in a signal, or in some; what is inside of it is not looked at."""
    inner = thing if isinstance(thing, tuple | list) else _inner(thing)
    return [thing] if wanted(thing) else [found for part in inner for found in _found(part, wanted)]


def holds(thing: Any, kind: type | tuple[type, ...]) -> bool:
    return bool(_found(thing, lambda part: isinstance(part, kind)))


def layers(thing: Any) -> list[Any]:
    """The signals in a signal, or in some, that read a hidden layer of the student."""
    return _found(thing, lambda part: hasattr(part, "student_layer"))


def placed(thing: Any, positions: str) -> list[Any]:
    """Those of the `layers` that are matched at these positions: "all", "asked" or "tokens"."""
    return [layer for layer in layers(thing) if getattr(layer, "positions", "") == positions]


def teachers(thing: Any) -> list[nn.Module]:
    """The networks in a signal, or in some."""
    return _found(thing, lambda part: isinstance(part, nn.Module))


def shared(student: nn.Module, teacher: nn.Module) -> list[str]:
    """Parameters that move in the student and hold numbers of the teacher, be it under other names or as a part."""
    moving = [(name, _span(p)) for name, p in student.named_parameters() if p.requires_grad]
    held = [_span(tensor) for tensor in (*teacher.parameters(), *teacher.buffers())]
    by_place: dict[int, list[tuple[int, int]]] = {}
    for place, start, end in held:
        by_place.setdefault(place, []).append((start, end))
    return [name for name, (place, start, end) in moving
            if any(start < last and first < end for first, last in by_place.get(place, ()))]  # fmt: skip


def _span(tensor: torch.Tensor) -> tuple[int, int, int]:
    """Where a tensor's numbers are: a storage, and the bytes in it; where that cannot be told, the tensor itself."""
    with suppress(RuntimeError, NotImplementedError, TypeError, AttributeError, ValueError):
        size, place = tensor.element_size(), tensor.untyped_storage().data_ptr()
        reach = 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
        if place and tensor.numel():
            return place, size * tensor.storage_offset(), size * (tensor.storage_offset() + reach)
    return -id(tensor), 0, 1


def under(name: str, paths: Sequence[str]) -> bool:
    """Whether a parameter is, or is inside, what one of `paths` names: "layers.1" is not the start of "layers.10"."""
    return any(f"{name}.".startswith(f"{path.rstrip('.')}.") for path in paths)


def unnamed(network: nn.Module, stage: Stage) -> str:
    """What to say of a stage that moves `only` some, where one of these is no parameter, or all of them are frozen."""
    first = {id(p): name for name, p in network.named_parameters()}
    every = [(name, first[id(p)], p.requires_grad) for name, p in network.named_parameters(remove_duplicate=False)]
    every = [(*(name.replace("_orig_mod.", "") for name in names), moves) for *names, moves in every]  # compiled or not
    for path in stage.only:
        own = [(name, other) for name, other, _ in every if under(name, (path,))]
        if not own:
            near = difflib.get_close_matches(path, [name for name, *_ in every], 4, 0)
            told = f"only={(path,)} names no parameter of the student, and no module with any"
            return f"{told}; near it are {near}"
        if not any(under(other, stage.only) for _, other in own):  # tied ones go by their first name
            return f"only={stage.only}: {own[0][0]!r} is tied to {own[0][1]!r}, so name that"
    if stage.only and not any(moves for _, name, moves in every if under(name, stage.only)):
        return f"only={stage.only} names frozen parameters alone"
    return ""


def fits(network: nn.Module, batch: Any) -> bool:
    """Whether a network's `forward` takes as many arguments, and of those names."""
    several = isinstance(batch, tuple | list)
    try:
        bind = inspect.signature(network.forward).bind
        bind(**batch) if isinstance(batch, Mapping) else bind(*(batch if several else [batch]))
    except (TypeError, ValueError):
        return False
    return True


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
    then = {name for layer in recorded(list(signals)) for name in layer.targets.about.get("spare", ())}
    return (wanted(signals, mask) | then) - taken(student)[0]


def recorded(thing: Any) -> list[Any]:
    """The signals in a signal, or in some, whose targets were recorded."""
    return _found(thing, lambda part: hasattr(getattr(part, "targets", None), "about"))


def given(network: nn.Module, batch: Any, spare: Collection[str]) -> Any:
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


def filled(signal: Any, units: Any, mask: Any, flat: Collection[str] = ()) -> Signal:
    """A signal, also inside others, whose hidden layers take `units` and `mask` where they do not say themselves.

    `flat` are the paths of the student's layers that have no positions: a mask says nothing of them.
    """
    if isinstance(signal, tuple | list):
        return tuple(filled(part, units, mask, flat) for part in signal)
    if not is_dataclass(signal) or isinstance(signal, nn.Module):
        return signal
    if hasattr(signal, "targets"):  # recorded
        signal.targets.agree(units=units, mask=None if mask is None else fingerprints.described(mask))
    changes = {f.name: filled(getattr(signal, f.name), units, mask, flat) for f in fields(signal)}
    if "student_layer" in changes:
        given = units.get(signal.student_layer) if isinstance(units, Mapping) else units
        changes["units"] = given if signal.units is None else signal.units
        if mask is not None and signal.positions == "all" and signal.student_layer not in flat:
            changes["positions"] = partial(masked, mask)
    return replace(signal, **changes)


def masked(mask: str | Callable[[Any], torch.Tensor], x: Any) -> torch.Tensor:
    batch = first(x)
    if callable(mask):
        return lead(mask(batch))
    if not isinstance(mask, str):
        found = type(mask).__name__
        raise ValueError(f"mask must be the name of an entry of the batch, or a function of it, not a {found}")
    if not isinstance(batch, Mapping) or mask not in batch:
        raise ValueError(f"the batch has no entry {mask!r} to be the mask of positions")
    return batch[mask][None]
