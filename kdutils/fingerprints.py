"""How a curriculum and its teachers are told apart, in a line of text that is the same in every process.

In it stand the settings; of networks the structure, the configuration and all numbers; and what a stage asks of two
samples of the calibration, where all else shows that a pass does or reads: an attribute, a hook, a helper.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import nn

from kdutils import checks, identity, reading
from kdutils.curriculum import Stage
from kdutils.signals import Bound

_OF_THE_HUB = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache",
               "problem_type", "id2label", "label2id", "output_attentions", "output_hidden_states", "return_dict",
               "pad_token_id", "bos_token_id", "eos_token_id"}  # fmt: skip  # what a model is called, or is set by use
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an entry
_ASKING, _ENTRIES = ", asking of ", 32
_CLOSE = 0.05  # of their spread: by less do the same targets differ on another device, also in bfloat16
_TAKEN: ContextVar[dict[int, tuple[str, Any]] | None] = ContextVar("taken", default=None)


def difference(one: str, two: str) -> str:
    """The first line in which two texts differ, "" for none; the numbers of what is asked may differ a little."""
    a, b = (text.splitlines() for text in (one, two))
    if len(a) != len(b):
        return f"{len(a)} lines, not {len(b)}"
    for first, second in zip(a, b, strict=True):
        (told, _, asked), (other, _, wanted) = (line.partition(_ASKING) for line in (first, second))
        if told != other:
            return f"{told!r}, not {other!r}"
        if not _close(asked, wanted):
            (where, *some), (_, *others) = asked.split()[:4], wanted.split()[:4]
            return f"{told!r} asks for {' '.join(some)} ... of the samples {where}, not {' '.join(others)} ..."
    return ""


def _close(asked: str, wanted: str) -> bool:
    """Whether entries are of the same targets as others; of other samples, or of none, nothing is known."""
    (where, *some), (there, *others) = (line.split() or [""] for line in (asked, wanted))
    if where != there or not where:
        return True
    a, b = (torch.tensor([float(entry) for entry in entries], dtype=torch.float64) for entries in (some, others))
    spread = max(a.std(correction=0).item(), 1e-3 * a.abs().max().item())
    return len(a) == len(b) and (a - b).square().mean().sqrt().item() <= _CLOSE * spread


@torch.no_grad()
def asked(one: Any, bound: Bound, x: Any, y: Any) -> str:
    """For the end of a line, some entries of what a signal asks of two samples; "" where it cannot be told so.

    Args:
        one: the `Students` that it is bound to, with `enter` and `mark`; those of `kdutils.binding`.
        x, y: a batch (1, batch, ...).
    """
    x, y, looked = reading.two(x), reading.two(y), one.looked
    where = _short(str(reading.each(_numbers, (x, y))))

    def entries() -> str:
        streams = [(stream, stream.get_state()) for stream in bound.generators.values()]
        found: list[torch.Tensor] = []
        one.enter()
        one.mark(x, y, bound.reads)
        reading.each(lambda t: found.append(t.float().flatten()), bound.target(x, y))
        for stream, state in streams:
            stream.set_state(state)
        one.enter()
        flat = torch.cat(found)
        flat = flat[flat.abs() < torch.finfo(torch.float32).max / 4]  # classes that are ruled out
        places = torch.randint(len(flat), (_ENTRIES,), generator=torch.Generator().manual_seed(0))
        return " ".join([where, *(f"{entry:.4g}" for entry in flat[places.to(flat.device)].tolist())])

    told = ""
    with contextlib.suppress(Exception):  # two samples, or no labels, may be too few for a signal of one's own
        first, second = entries(), entries()
        told = _ASKING + first if _close(first, second) else ""  # a teacher may draw something
    one.looked = looked
    return told


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
    yield f"{path}: {type(network).__qualname__}({network.extra_repr()})"
    if checks.of_the_hub(config := getattr(network, "config", None)) and id(config) not in seen:
        seen[id(config)] = path
        told = {name: value for name, value in config.to_dict().items() if name not in _OF_THE_HUB}
        yield json.dumps(told, sort_keys=True, default=lambda value: type(value).__qualname__)
    of_the_hub = any(base.__module__.startswith("transformers.") for base in type(network).__mro__)
    state = {} if of_the_hub else dict(network._buffers)  # there, those that are not saved follow from the config
    network._save_to_state_dict(state, "", False)  # its own part, packed weights of quantised layers among it
    state.pop("_extra_state", None)
    for name, value in sorted(state.items()):
        try:
            yield f"{name}: {reading.each(_numbers, value)}"
        except (RuntimeError, NotImplementedError, TypeError, KeyError) as error:
            kind = "on the meta device" if getattr(value, "is_meta", False) else f"a {type(value).__name__}"
            told = f"{type(network).__name__} cannot be told apart from others like it: the numbers of {name!r}, {kind}"
            raise ValueError(f"{told}, cannot be read") from error
    for name, part in network._modules.items():
        if part is not None:
            yield from _parts(part, f"{path}.{name}", seen)


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
