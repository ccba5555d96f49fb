"""How a curriculum and its teachers are told apart, in a line of text that is the same in every process.

In it stand the settings, and of networks the structure, the configuration and all numbers. What else a pass does or
reads, such as an attribute, a hook or a helper, shows in what teachers say of two samples of the calibration.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import nn

from kdutils import checks, identity, reading, seeding
from kdutils.curriculum import Stage
from kdutils.losses import IGNORE
from kdutils.signals import Signal

_OF_THE_HUB = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache",
               "problem_type", "id2label", "label2id", "output_attentions", "output_hidden_states", "return_dict",
               "pad_token_id", "bos_token_id", "eos_token_id"}  # fmt: skip  # what a model is called, or is set by use
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an entry
_SAYING, _ENTRIES = ", saying of ", 32
_CLOSE = 0.05  # of their spread: by less do the same numbers differ that were rounded otherwise, also in bfloat16
_RULED_OUT = 1e30  # as large are numbers that stand for infinite ones
_TAKEN: ContextVar[dict[int, tuple[str, Any]] | None] = ContextVar("taken", default=None)


def difference(one: str, two: str) -> str:
    """What to say of the first line in which two texts differ, "" for none; what teachers say may differ a little."""
    a, b = (text.splitlines() for text in (one, two))
    if len(a) != len(b):
        return f"{len(a)} lines, not {len(b)}"
    for first, second in zip(a, b, strict=True):
        (told, *said), (other, *wanted) = (line.split(_SAYING) for line in (first, second))
        if told != other or len(said) != len(wanted):
            return f"{told!r}, not {other!r}"
        if not all(map(_close, said, wanted)):
            advice = "was its code, a hook or an attribute changed?"
            return f"{told!r} has a teacher of the same numbers that says something else of two samples: {advice}"
    return ""


def _close(one: str, two: str, by: float = _CLOSE) -> bool:
    """Whether two teachers said the same; of other samples, or of none, nothing is known."""
    (where, *some), (there, *others) = (text.split() or [""] for text in (one, two))
    if where != there or not where:
        return True
    a, b = (torch.tensor([float(entry) for entry in entries], dtype=torch.float64) for entries in (some, others))
    known, same = (entries.abs() < _RULED_OUT for entries in (a, b))
    if not known.equal(same):
        return False
    a, b = a[known], b[known]
    spread = min(entries.std(correction=0).item() + 1e-3 * entries.abs().mean().item() for entries in (a, b))
    return not len(a) or (a - b).square().mean().sqrt().item() <= by * spread


@torch.no_grad()
def asked(one: Any, signals: Sequence[Signal], x: Any, y: Any) -> list[str]:
    """For the end of each signal's line, what its teachers say of the first and the last sample, where that counts.

    Of a teacher that draws something, or cannot read two samples alone, nothing is said.

    Args:
        one: the `Students` of `kdutils.binding`, to which the signals are bound.
        x, y: a batch (1, batch, ...), its labels.
    """
    (x, y), looked, reads = reading.two((x, y)), one.looked, [list(_reads(signal)) for signal in signals]
    where, counts = _short(str(reading.each(_numbers, (x, y)))), None if y is None or y.dim() < 3 else y != IGNORE
    with contextlib.suppress(ValueError):  # a mask that is none is refused at the first step
        one.mark(x, None)
        counts = counts if one.marks is None else one.marks
    one.looked, found = looked, dict.fromkeys(((id(teacher), path) for read in reads for teacher, path in read), "")
    for teacher in {id(teacher): teacher for read in reads for teacher, _ in read}.values():
        paths = [path for key, path in found if key == id(teacher)]
        with contextlib.suppress(Exception), seeding.global_rng(0, device=one.device):
            first, second = ([_some(one, teacher, x, path, paths, counts) for path in paths] for _ in range(2))
            for path, told, again in zip(paths, first, second, strict=True):
                same = _close(f"{where} {told}", f"{where} {again}", _CLOSE / 10)
                found[id(teacher), path] = f"{where} {told}" if same else ""
    one.enter()
    return ["".join(_SAYING + found[id(teacher), path] for teacher, path in read) for read in reads]


def _reads(thing: Any) -> Iterator[tuple[nn.Module, str]]:
    """The networks in a signal, and at which paths they are read."""
    if isinstance(thing, nn.Module):
        yield thing, reading.OUTPUT
    elif isinstance(thing, tuple | list):
        for part in thing:
            yield from _reads(part)
    elif isinstance(teacher := getattr(thing, "teacher", None), nn.Module):
        yield teacher, getattr(thing, "layer", reading.OUTPUT)
    elif not isinstance(thing, type) and (is_dataclass(thing) or hasattr(thing, "bind")):
        names = [field.name for field in fields(thing)] if is_dataclass(thing) else vars(thing)
        yield from _reads([getattr(thing, name) for name in names])


def _some(one: Any, teacher: nn.Module, x: Any, path: str, paths: list[str], counts: Any) -> str:
    """Some entries of what a teacher returns at a path, in a width that rounding does not change."""
    if path == paths[0]:
        one.enter()
        one.passes.expect(teacher, x, paths)  # in one pass
    values = one.read(teacher, x, path)

    def draw(entries: torch.Tensor, many: int) -> torch.Tensor:
        places = torch.randint(len(entries), (many,), generator=torch.Generator().manual_seed(0))
        return entries[places.to(entries.device)]

    if counts is not None and values.dim() > 3 and values.shape[:3] == counts.shape:
        rows = values[draw(counts.to(values.device).nonzero(), 8).unbind(1)]
    else:
        rows = draw(values.flatten(0, -2), 8)
    entries = torch.stack([*draw(rows.flatten(), _ENTRIES), rows.min(), rows.max()])
    return " ".join(f"{entry:+.3e}" for entry in entries.tolist())


def of_the_hub(config: Any) -> bool:
    """Whether this is the config of a model of transformers."""
    kind = getattr(sys.modules.get("transformers.configuration_utils"), "PreTrainedConfig", ())
    return isinstance(config, kind)


def of_stages(stages: Sequence[Stage]) -> list[str]:
    """Each stage in a line, without its number of steps."""
    with once():
        return [f"{described(stage.signal)}{stage.only or ''}" for stage in stages]


def described(thing: Any) -> str:
    """What a signal is, in a line: its fields; of networks the `fingerprint`, of other objects that of `identity`."""
    if is_dataclass(thing) and not isinstance(thing, type | nn.Module):
        parts = [f"{f.name}={described(getattr(thing, f.name))}" for f in fields(thing) if f.name != "name"]
        return f"{type(thing).__name__}({', '.join(parts)})"
    if isinstance(thing, nn.Module):
        return f"{type(reading._inside(thing)).__qualname__} {fingerprint(thing)}"
    if isinstance(thing, tuple | list):
        return f"({', '.join(map(described, thing))})"
    if thing is None or isinstance(thing, bool | int | float | str):
        return repr(thing)
    text = json.dumps(_Look().through(thing, ""), sort_keys=True)
    text = re.sub(r'"of": "(\w+)[^"]*"', r"\1", text)  # libraries without their versions
    return f"{getattr(thing, '__qualname__', type(thing).__qualname__)} {_short(text)}"


@contextlib.contextmanager
def once() -> Iterator[None]:
    """A block in which every network's fingerprint is taken once, as it may be large. Nothing may change in it."""
    before = _TAKEN.set({})
    try:
        yield
    finally:
        _TAKEN.reset(before)


def fingerprint(network: nn.Module) -> str:
    """Twelve characters that tell networks apart: by structure, configuration, parameters and buffers.

    Raises:
        ValueError: for a network from torch.jit or torch.export, and one whose numbers cannot be read.
    """
    taken = _TAKEN.get()
    if taken is None:
        return _taken(network)
    if id(network) not in taken:
        taken[id(network)] = _taken(network), network  # what is held keeps its id
    return taken[id(network)][0]


@torch.no_grad()
def _taken(network: nn.Module) -> str:
    checks.readable(network)
    return _short("\n".join(_parts(network, "", {})))


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _parts(network: nn.Module, path: str, seen: dict[int, str]) -> Iterator[str]:
    network = reading._inside(network)  # of torch.compile and its like
    if id(network) in seen:
        yield f"{path}: {seen[id(network)]}"
        return
    seen[id(network)] = path
    known = type(network).extra_repr.__module__.startswith("torch.nn.modules")  # others may print what passes leave
    yield f"{path}: {type(network).__qualname__}({network.extra_repr() if known else ''})"
    if of_the_hub(config := getattr(network, "config", None)) and id(config) not in seen:
        seen[id(config)] = path
        yield json.dumps(_settings(config.to_dict()), sort_keys=True, default=lambda value: type(value).__qualname__)
    hub = any(base.__module__.startswith("transformers.") for base in type(network).__mro__)
    state = {} if hub else dict(network._buffers)  # there, those that are not saved follow from the config
    network._save_to_state_dict(state, "", False)  # its own part, packed weights of quantised layers among it
    state.pop("_extra_state", None)
    for name, value in sorted(state.items()):
        try:
            yield f"{name}: {reading.each(_numbers, value)}"
        except (RuntimeError, NotImplementedError, TypeError, KeyError) as error:
            what, kind = type(network).__name__, type(value).__name__
            told = f"{what} cannot be told apart from others like it: the numbers of {name!r}, a {kind}"
            raise ValueError(f"{told}, cannot be read") from error
    for name, part in network._modules.items():
        if part is not None:
            yield from _parts(part, f"{path}.{name}", seen)


def _settings(config: Any) -> Any:
    """A configuration, and those in it, without what a model is called, or is set by use."""
    if not isinstance(config, dict):
        return config
    return {name: _settings(value) for name, value in config.items() if name not in _OF_THE_HUB}


def _numbers(tensor: torch.Tensor) -> str:
    """Its shape, up to 256 entries, and the sum of all as whole numbers, which is the same on every device."""
    whole = tensor.detach().dequantize() if tensor.is_quantized else tensor.detach()
    whole = whole if whole.layout == torch.strided else whole.to_dense()
    flat = (torch.view_as_real(whole.resolve_conj()) if whole.is_complex() else whole).flatten()
    some = flat[:: max(1, -(-len(flat) // 256))].cpu().contiguous().view(torch.uint8).numpy().tobytes()
    total = flat.contiguous().view(_BITS[flat.element_size()]).sum(dtype=torch.int64).item()
    return f"{tuple(tensor.shape)} {tensor.dtype} {total} {hashlib.sha256(some).hexdigest()[:12]}"


class _Look(identity.Walk):
    """The walk through what a run depends on, alike on every device."""

    def value(self, thing: Any, where: str) -> Any:
        self.mode = "eval"  # so networks are read, whoever holds them
        return super().value(thing, where)

    def network(self, thing: nn.Module, where: str) -> dict[str, Any]:
        return {"network": fingerprint(thing)}

    def tensor(self, thing: torch.Tensor, where: str) -> dict[str, Any]:
        return {"tensor": _numbers(thing)}

    def record(self, thing: Any, where: str) -> dict[str, Any]:
        return {"generator": ""} if isinstance(thing, torch.Generator) else super().record(thing, where)

    def object(self, thing: Any, where: str) -> dict[str, Any]:
        return {} if isinstance(thing, torch.device) else super().object(thing, where)

    def attributes(self, thing: Any, held: Mapping[str, Any]) -> dict[str, Any]:
        places = {n for n, v in held.items() if isinstance(v, str) and v.startswith(("cpu", "cuda", "mps"))}
        return super().attributes(thing, {n: v for n, v in held.items() if n not in places})
