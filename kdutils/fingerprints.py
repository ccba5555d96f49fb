"""How a curriculum and its teachers are told apart, in a line of text that is the same in every process.

It is the walk of `kdutils.identity`, but cheap, and alike on every device and under other versions of libraries. What
passes leave behind, where something is, what a model is called, and methods that no pass calls do not count.
"""

from __future__ import annotations

import contextlib
import dis
import hashlib
import json
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from kdutils import checks, identity, reading, source
from kdutils.curriculum import Stage

_OF_THE_HUB = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache",
               "problem_type", "id2label", "label2id", "output_attentions", "output_hidden_states", "return_dict",
               "pad_token_id", "bos_token_id", "eos_token_id"}  # fmt: skip  # what a model is called, or is set by use
_IN_PLACE = {"add", "append", "appendleft", "clear", "extend", "insert", "pop", "popitem", "remove", "setdefault",
             "update"}  # fmt: skip
_NOT_IN_A_PASS = {"init", "post_init", "new", "setstate", "getstate", "reduce", "reduce_ex", "copy", "deepcopy", "repr",
                  "str", "eq", "hash"}  # fmt: skip
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
    if is_dataclass(thing) and not isinstance(thing, type | nn.Module):
        parts = [f"{f.name}={described(getattr(thing, f.name))}" for f in fields(thing) if f.name != "name"]
        return f"{type(thing).__name__}({', '.join(parts)})"
    if isinstance(thing, nn.Module):
        thing = reading._inside(thing)
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
        ValueError: for a network from torch.jit or torch.export, and one whose numbers cannot be read.
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
    text = json.dumps((look := _Look(thing)).through(thing, ""), sort_keys=True)
    if look.lost and isinstance(thing, nn.Module):
        raise ValueError(f"{type(thing).__name__} cannot be told apart from others like it: {look.lost[0]}")
    return hashlib.sha256(re.sub(r'"of": "(\w+)[^"]*"', r"\1", text).encode()).hexdigest()[:12]  # without versions


class _Look(identity.Walk):
    def __init__(self, thing: Any) -> None:
        super().__init__()
        self.whole = not isinstance(thing, nn.Module)  # of an object in a network counts what passes read
        self.kinds: set[type] = set()
        self.lost: list[str] = []
        self.know(thing)

    def know(self, thing: Any) -> None:
        """Learn what passes through a thing do; by names, so that all its parts are looked at before the first."""
        self.kinds |= _kinds(thing)
        self.names, self.changed = _passes(self.kinds)

    def hidden(self, thing: Any, where: str) -> dict[str, str]:
        if isinstance(thing, torch.Tensor):
            kind = "on the meta device" if thing.is_meta else f"a {type(thing).__name__}"
            self.lost.append(f"the numbers of a tensor, {kind}, cannot be read")
        elif where.startswith("more than"):
            self.lost.append(f"it leads to {where}")
        return super().hidden(thing, where)

    def value(self, thing: Any, where: str) -> Any:
        self.mode = "eval"  # so networks are read, whoever holds them
        return super().value(thing, where)

    def record(self, thing: Any, where: str) -> dict[str, Any]:
        return {"generator": ""} if isinstance(thing, torch.Generator) else super().record(thing, where)

    def network(self, thing: nn.Module, where: str) -> dict[str, Any]:
        thing = reading._inside(thing)  # of torch.compile and its like
        if type(thing) not in self.kinds:  # found in what is no network
            self.know(thing)
        held = {n: v for n, v in vars(thing).items() if n not in identity._NOT_OF_A_NETWORK}
        of_the_hub = any(base.__module__.startswith("transformers.") for base in type(thing).__mro__)
        state = {} if of_the_hub else dict(thing._buffers)  # there, those that are not saved follow from the config
        thing._save_to_state_dict(state, "", False)  # its own part, packed weights of quantised layers among it
        state.pop("_extra_state", None)
        parts = [self.named(part.items(), "", "") for part in (thing._modules, state)]
        hooks = [self.values(vars(thing)[table].values(), where) for table in ("_forward_pre_hooks", "_forward_hooks")]
        more = {"hooks": hooks} if any(hooks) else {}
        if isinstance(thing, torch.fx.GraphModule):
            more["graph"] = thing.code
        return {"is": self.value(type(thing), where), "parts": parts} | more | self.attributes(thing, held)

    def tensor(self, thing: torch.Tensor, where: str) -> dict[str, Any]:
        return {"tensor": _numbers(thing)}

    def kind(self, kind: type, where: str) -> dict[str, Any]:
        if not source.is_own(kind):
            return {"class": f"{kind.__module__}.{kind.__qualname__}"}
        if not any(issubclass(known, kind) for known in self.kinds):
            return super().kind(kind, where)
        bases = [base for base in kind.__mro__ if source.is_own(base)]
        done = [part for base in bases for part in source.written(base) if _called(part[0], self.names)]
        return {"class": kind.__name__, "passes": self.named(done, "method", kind.__qualname__)}

    def read(self, f: types.FunctionType, chain: tuple, owner: str) -> Any:
        home, found = source.resolve(f, chain)
        told = isinstance(found, bool | int | float | types.FunctionType | type)
        return self.value(found, owner) if not home and told else str(chain)

    def object(self, thing: Any, where: str) -> dict[str, Any]:
        if checks.of_the_hub(thing):
            told = {name: value for name, value in thing.to_dict().items() if name not in _OF_THE_HUB}
            return {"config": json.dumps(told, sort_keys=True, default=lambda value: type(value).__qualname__)}
        return {} if isinstance(thing, torch.device) else super().object(thing, where)

    def attributes(self, thing: Any, held: Mapping[str, Any]) -> dict[str, Any]:
        network, (stored, touched) = isinstance(thing, nn.Module), self.changed.get(type(thing), (set(), set()))
        kept = {}
        for name, value in held.items():
            plain = isinstance(value, _PLAIN)
            place = isinstance(value, str) and value.startswith(("cpu", "cuda", "mps"))
            counts = name in self.names or (plain and name[0] != "_" if network else self.whole)
            if (
                counts
                and not place
                and name not in stored | {"gradient_checkpointing"}
                and (plain or name not in touched)
            ):
                kept[name] = value
        return super().attributes(thing, kept)


def _kinds(thing: Any) -> set[type]:
    """The classes of networks, and the reader's own, that a thing leads to by attributes and entries."""
    kinds, seen, waiting = set(), set(), [thing]
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, dict):
            waiting += thing.values()
        elif isinstance(thing, list | tuple | set | frozenset):
            waiting += thing
        elif isinstance(thing, nn.Module) or (source.is_own(type(thing)) and hasattr(thing, "__dict__")):
            kinds.add(type(thing))
            waiting += vars(thing).values()
    return kinds


def _called(name: str, names: set[str]) -> bool:
    """Whether a pass may call a method: by one of these names, or as Python does by itself."""
    return name in names or (name[:2] == "__" and name[2:-2] not in _NOT_IN_A_PASS)


def _passes(kinds: set[type]) -> tuple[set[str], dict[type, tuple[set[str], set[str]]]]:
    """The names of attributes that passes look up in things of some `kinds`, wherever they are; and by class, those
    that they set and those whose entries they seem to change."""
    kinds, names, changed, done = set(kinds), {"forward", "bind"}, {}, set()
    while True:
        methods = [(kind, part) for kind in kinds for base in kind.__mro__ if base not in (nn.Module, object)
                   for name, part in vars(base).items() if _called(name, names)]  # fmt: skip
        before = len(done)
        while methods:
            kind, part = methods.pop()
            if isinstance(part, type) or (kind, id(part)) in done:
                kinds |= {part} if isinstance(part, type) and source.is_own(part) else set()  # which a pass may build
                continue
            done.add((kind, id(part)))
            inner = (getattr(part, name, None) for name in ("fget", "__func__", "func", "__wrapped__"))
            methods += [(kind, found) for found in inner if found is not None]
            if isinstance(part, types.FunctionType):
                loads, stored, touched = _looks_up(part.__code__)
                names |= loads
                for known, found in zip(changed.setdefault(kind, (set(), set())), (stored, touched), strict=True):
                    known |= found
                methods += [(kind, found) for found in _reads(part)]
        if len(done) == before:
            return names, changed


def _reads(function: types.FunctionType) -> Iterator[Any]:
    """The functions and classes of the reader's own that a function captured, or finds among its globals."""
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # nothing is in it yet
            yield from (held for held in [cell.cell_contents] if isinstance(held, types.FunctionType))
    for chain in source.compiled(function.__code__)[1] if source.is_own(function) else ():
        with contextlib.suppress(Exception):  # a name that is not there, a module that cannot be imported
            found = source.resolve(function, chain)[1]
            yield from (held for held in [found] if source.is_own(held))


@lru_cache(maxsize=10_000)
def _looks_up(code: types.CodeType) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """The attributes that compiled code looks up, sets, and seems to change in place."""
    read, stored, touched = set(), set(), set()
    steps = list(_steps(code))
    for n, step in enumerate(steps):
        if step.opname in ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR"):
            read.add(step.argval)
            if n and steps[n - 1].opname == "LOAD_ATTR" and (step.argval in _IN_PLACE or step.argval.endswith("_")):
                touched.add(steps[n - 1].argval)
        elif step.opname == "STORE_ATTR":
            stored.add(step.argval)
        elif step.opname in ("STORE_SUBSCR", "DELETE_SUBSCR"):
            touched |= {before.argval for before in steps[max(0, n - 8) : n] if before.opname == "LOAD_ATTR"}
        elif step.argval in ("getattr", "hasattr"):
            read |= {entry for entry in code.co_consts if isinstance(entry, str)}
    return frozenset(read), frozenset(stored), frozenset(touched)


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
