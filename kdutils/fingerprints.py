"""How a curriculum and its teachers are told apart, in a line of text that is the same in every process.

It is the walk of `kdutils.identity`, but cheap, and alike on every device and under other versions of libraries. What
passes leave behind, where something is, and what a model is called do not count.
"""

from __future__ import annotations

import contextlib
import dis
import hashlib
import json
import re
import types
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from kdutils import checks, identity, source
from kdutils.curriculum import Stage

_OF_THE_HUB = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache",
               "problem_type", "id2label", "label2id", "output_attentions", "output_hidden_states", "return_dict",
               "pad_token_id", "bos_token_id", "eos_token_id"}  # fmt: skip  # what a model is called, or is set by use
_IN_PLACE = {"add", "append", "appendleft", "clear", "extend", "insert", "pop", "popitem", "remove", "setdefault",
             "update"}  # fmt: skip
_PLAIN = bool | int | float | str | tuple | types.FunctionType | types.BuiltinFunctionType
_TAKEN: ContextVar[dict[int, tuple[str, Any]] | None] = ContextVar("taken", default=None)
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an entry


def difference(one: str, two: str) -> str:
    """The first line in which two texts differ."""
    a, b = (text.splitlines() for text in (one, two))
    for first, second in zip(a, b, strict=False):
        if first != second:
            return f"{first!r}, not {second!r}"
    return f"{len(a)} lines, not {len(b)}"


def described(thing: Any) -> str:
    """What a signal is, in a line: its fields; of networks, functions and other objects the `fingerprint`."""
    if is_dataclass(thing) and not isinstance(thing, type):
        parts = [f"{f.name}={described(getattr(thing, f.name))}" for f in fields(thing) if f.name != "name"]
        return f"{type(thing).__name__}({', '.join(parts)})"
    if isinstance(thing, tuple | list):
        return f"({', '.join(map(described, thing))})"
    if thing is None or isinstance(thing, bool | int | float | str):
        return repr(thing)
    return f"{getattr(thing, '__qualname__', type(thing).__qualname__)} {fingerprint(thing)}"


def of_stages(stages: Sequence[Stage]) -> list[str]:
    """Each stage in a line, without its number of steps."""
    with once():
        return [f"{described(stage.signal)}{stage.only or ''}" for stage in stages]


@contextlib.contextmanager
def once() -> Iterator[None]:
    """A block in which every network's fingerprint is taken once, as it may be large. Nothing may change in it."""
    before = _TAKEN.set({})
    try:
        yield
    finally:
        _TAKEN.reset(before)


def fingerprint(thing: Any) -> str:
    """Twelve characters that tell trained networks, functions and other objects apart.

    Raises:
        ValueError: for a network from torch.jit or torch.export.
    """
    taken = _TAKEN.get()
    if taken is None:
        return _taken(thing)
    if id(thing) not in taken:
        taken[id(thing)] = _taken(thing), thing  # what is held keeps its id
    return taken[id(thing)][0]


@torch.no_grad()
def _taken(thing: Any) -> str:
    if isinstance(thing, nn.Module):
        checks.readable(thing)
    text = json.dumps(_Look().through(thing, ""), sort_keys=True)
    return hashlib.sha256(re.sub(r'"of": "(\w+)[^"]*"', r"\1", text).encode()).hexdigest()[:12]  # without versions


class _Look(identity.Walk):
    used: frozenset[str] = frozenset()  # names that methods of networks read; of what these hold, no others count

    def value(self, thing: Any, where: str) -> Any:
        self.mode = "eval"  # so networks are read, whoever holds them
        return super().value(thing, where)

    def network(self, thing: nn.Module, where: str) -> dict[str, Any]:
        if type(thing).__module__ == "torch._dynamo.eval_frame":  # what torch.compile makes
            thing = thing._orig_mod
        self.used |= _uses(type(thing))[0]
        held = {n: v for n, v in vars(thing).items() if n not in identity._NOT_OF_A_NETWORK}
        state = dict(thing._buffers)
        thing._save_to_state_dict(state, "", False)  # its own part, packed weights of quantised layers among it
        state.pop("_extra_state", None)
        parts = [self.named(part.items(), "", "") for part in (thing._modules, state)]
        return {"is": self.value(type(thing), where), "parts": parts} | self.attributes(thing, held)

    def tensor(self, thing: torch.Tensor, where: str) -> dict[str, Any]:
        return {"tensor": _numbers(thing)}

    def kind(self, kind: type, where: str) -> dict[str, Any]:
        return super().kind(kind, where) if source.is_own(kind) else {"class": f"{kind.__module__}.{kind.__qualname__}"}

    def read(self, f: types.FunctionType, chain: tuple, owner: str) -> Any:
        home, found = source.resolve(f, chain)
        return self.value(found, owner) if not home and isinstance(found, types.FunctionType | type) else str(chain)

    def object(self, thing: Any, where: str) -> dict[str, Any]:
        if checks.of_the_hub(thing):
            told = {name: value for name, value in thing.to_dict().items() if name not in _OF_THE_HUB}
            return {"config": json.dumps(told, sort_keys=True, default=lambda value: type(value).__qualname__)}
        return {} if isinstance(thing, torch.device) else super().object(thing, where)

    def attributes(self, thing: Any, held: dict[str, Any]) -> dict[str, Any]:
        left, network = _uses(type(thing))[1], isinstance(thing, nn.Module)
        places = {n for n, v in held.items() if isinstance(v, str) and v.startswith(("cpu", "cuda", "mps"))}
        kept = {n: v for n, v in held.items() if not self.used or n in self.used or (network and isinstance(v, _PLAIN))}
        return super().attributes(thing, {n: v for n, v in kept.items() if n not in left | places})


@cache
def _uses(kind: type) -> tuple[frozenset[str], frozenset[str]]:
    """The attributes that methods other than `__init__` read, and those that they set or seem to change in place."""
    read, changed = set(), set()
    for function in (f for base in kind.__mro__ for n, f in vars(base).items() if n != "__init__"):
        steps = list(_steps(function.__code__)) if isinstance(function, types.FunctionType) else []
        for n, step in enumerate(steps):
            if step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
                read.add(step.argval)
                if n and steps[n - 1].opname == "LOAD_ATTR" and (step.argval in _IN_PLACE or step.argval.endswith("_")):
                    changed.add(steps[n - 1].argval)
            elif step.opname == "STORE_ATTR":
                changed.add(step.argval)
            elif step.opname in ("STORE_SUBSCR", "DELETE_SUBSCR"):
                changed |= {before.argval for before in steps[max(0, n - 8) : n] if before.opname == "LOAD_ATTR"}
    return frozenset(read), frozenset(changed)


def _steps(code: types.CodeType) -> Iterator[dis.Instruction]:
    yield from dis.get_instructions(code)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _steps(constant)


def _numbers(tensor: torch.Tensor) -> str:
    """Its shape, up to 256 entries, and the sum of all as whole numbers, which is the same on every device."""
    whole = tensor.detach().dequantize() if tensor.is_quantized else tensor.detach()
    whole = whole if whole.layout == torch.strided else whole.to_dense()
    flat = (torch.view_as_real(whole.resolve_conj()) if whole.is_complex() else whole).flatten()
    some = flat[:: max(1, -(-len(flat) // 256))].cpu().contiguous().view(torch.uint8).numpy().tobytes()
    total = flat.contiguous().view(_BITS[flat.element_size()]).sum(dtype=torch.int64).item()
    return f"{tuple(tensor.shape)} {tensor.dtype} {total} {hashlib.sha256(some).hexdigest()[:12]}"
