"""What a run is a function of: the values that it is given and the code behind them, as far as Python shows.

An object is told apart by its class and its attributes; functions and classes by what their code does, what they
captured, and the globals that they read, in turn; installed code by name and version (see also `tasks.outside`).
"""

from __future__ import annotations

import contextlib
import copyreg
import ctypes
import dataclasses
import functools
import hashlib
import inspect
import json
import os
import sys
import types
import weakref
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from kdutils import source

_text = functools.partial(json.dumps, sort_keys=True)
_LIMIT = 100_000  # objects looked through before giving up
_INSIDE: dict[type, tuple[str, ...]] = {  # what objects without attributes of their own stand for
    types.MethodType: ("__func__", "__self__"), types.CellType: ("cell_contents",), property: ("fget", "fset", "fdel"),
    staticmethod: ("__func__",), classmethod: ("__func__",), functools.cached_property: ("func",),
    functools._lru_cache_wrapper: ("__wrapped__",), RemovableHandle: (),
}  # fmt: skip
_NOT_OF_A_FUNCTION = {"dispatch_cache", "cache_token", "_clear_cache"}  # what functools.singledispatch remembers
_HOOKS = [name for name, table in vars(nn.Module()).items() if isinstance(table, dict) and "hook" in name]
_NOT_OF_A_NETWORK = {*_HOOKS, "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training",
                     "_compiled_call_impl", "_is_hf_initialized"}  # fmt: skip
_OF_THE_HUB = {"name_or_path", "_name_or_path", "generation_config"}  # how transformers loads a network and writes


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, shapes and bytes, the same on every device."""
    h = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().resolve_conj().resolve_neg().contiguous().cpu()
        h.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        if tensor.numel():
            h.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return h.hexdigest()


def describe(thing: Any) -> Any:
    """`thing` as plain JSON data that changes whenever a run made with it could change.

    Numbers and texts are themselves. Anything else is a hash of all that it leads to (`sha256`); a dataclass has its
    fields as well, for people to read. What cannot be seen, such as an open file or a lock, is named in `unseen`.

    >>> describe(3), describe([1, "a"]) == describe([1, "a"]), describe(describe) == describe(digest)
    (3, True, False)
    """
    parts = (walk := Walk()).through(thing, "what is given")
    if not isinstance(parts[0], dict):
        return parts[0]
    h, shown = hashlib.sha256("\n".join(map(_text, parts)).encode()), {"is": type(thing).__qualname__}
    with contextlib.suppress(Exception):  # an object may refuse to be looked at
        shown |= told if isinstance(told := _shown(thing), dict) else {}
    return shown | {"sha256": h.hexdigest(), "unseen": list(walk.unseen)}


def _shown(thing: Any, depth: int = 6) -> Any:
    """What people may want to read of it: fields of dataclasses, numbers, short texts, names."""
    kind = type(thing)
    if thing is None or kind is bool or (kind in (int, float) and abs(thing) < 1e300):
        return thing
    if kind in (str, list, tuple) and depth and len(thing) <= 100:
        return thing if kind is str else [_shown(entry, depth - 1) for entry in thing]
    if not dataclasses.is_dataclass(kind) or hasattr(kind, "describe") or not depth:
        return (thing if isinstance(thing, type | types.FunctionType) else kind).__qualname__
    fields = {field.name: _shown(getattr(thing, field.name), depth - 1) for field in dataclasses.fields(thing)}
    return {"is": kind.__qualname__} | fields


class Walk:
    """One look through all that a thing leads to: each object once, in a fixed order, circles and all.

    Whether a network is in training mode counts where code holds it that need not put it in eval mode: `mode` is
    "eval" inside kdutils and a network's own parts, "part" in a network's attributes, "as it is" anywhere else.
    """

    def __init__(self, sorting: frozenset[int] = frozenset()) -> None:
        self.numbers: dict[int, tuple[int, Any]] = {}  # the objects are kept, or another would take their address
        self.queue: deque[tuple[Any, str, str]] = deque()
        self.unseen: dict[str, None] = {}
        self.sorting, self.mode, self.listed = sorting, "eval", 0

    def through(self, thing: Any, where: str) -> list[Any]:
        look, parts = self.value, []
        while True:
            try:
                parts.append(look(thing, where))
            except Exception:  # nothing that an object does when it is looked at may stop a run
                parts.append(self.hidden(thing, where))
            if not self.queue:
                return parts
            (thing, where, self.mode), look = self.queue.popleft(), self.record

    def hidden(self, thing: Any, where: str) -> dict[str, str]:
        self.unseen[f"{where} ({type(thing).__qualname__})"] = None
        return {"unseen": where}

    def value(self, thing: Any, where: str) -> Any:
        """The thing written out where it is plain, else a reference to the part that follows."""
        kind = type(thing)
        if thing is None or kind in (bool, str) or (kind in (int, float) and abs(thing) < 1e300):
            return thing
        if kind in (int, float):
            return {kind.__name__: repr(thing) if kind is float else hex(thing)}
        if kind is bytes:
            return {"bytes": hashlib.sha256(thing).hexdigest()}
        if kind is tuple or (kind is list and {type(entry) for entry in thing} <= {int, str, bool}):
            self.listed += len(thing) * ({type(entry) for entry in thing} <= {int, str, bool})
            return {kind.__name__: [self.value(entry, where) for entry in thing]}
        if kind in (set, frozenset) and id(thing) not in self.sorting:
            within = self.sorting | {id(thing)}
            entries = sorted(thing, key=lambda entry: _text(Walk(within).through(entry, where)))
            return {kind.__name__: [self.value(entry, where) for entry in entries]}
        new = id(thing) not in self.numbers
        if new and len(self.numbers) >= _LIMIT:
            return self.hidden(thing, f"more than {_LIMIT:,} objects")
        if new:
            self.numbers[id(thing)] = len(self.numbers) + 1, thing
            self.queue.append((thing, where, self.mode))
        reference: dict[str, Any] = {"#": self.numbers[id(thing)][0]}
        if isinstance(thing, nn.Module) and (self.mode == "as it is" or (self.mode == "part" and new)):
            reference["training"] = [n for n, module in enumerate(thing.modules()) if module.training]
        return reference

    def values(self, things: Iterable[Any], where: str) -> list[Any]:
        return [self.value(thing, where) for thing in things]

    def named(self, entries: Iterable[tuple[Any, Any]], what: str, owner: str) -> list[list[Any]]:
        return [[str(name), self.value(thing, f"{what} `{name}` of `{owner}`")] for name, thing in entries]

    def record(self, thing: Any, where: str) -> dict[str, Any]:
        """What a part is, in terms of what it holds."""
        match thing:
            case torch.Tensor():
                return self.tensor(thing, where)
            case nn.Module():
                return self.network(thing, where)
            case np.ndarray() | np.generic():
                return self.array(thing, where)
            case torch.Generator():
                return {"generator": digest({"": thing.get_state()}), "device": str(thing.device)}
            case type():
                return self.kind(thing, where)
            case types.FunctionType():
                return self.function(thing)
            case types.ModuleType():
                own = sorted((name, entry) for name, entry in vars(thing).items() if name[:2] != "__")
                home = source.origin(thing.__name__)
                return {"module": thing.__name__, "of": home or self.named(own, "global", thing.__name__)}
            case weakref.ref():
                return {"weak": self.value(thing(), where)}
        kind = type(thing)
        if kind in (dict, types.MappingProxyType):
            return {"dict": [self.values(pair, where) for pair in thing.items()]}
        if kind is list:
            return {"list": self.values(thing, where)}
        if kind in _INSIDE:
            self.mode = "as it is"
            if kind is functools._lru_cache_wrapper and source.is_own(thing.__wrapped__):
                thing.cache_clear()  # what it once opened and kept is opened, and heard, again
            return {kind.__name__: self.values((getattr(thing, name, None) for name in _INSIDE[kind]), where)}
        if kind in source.BUILTIN:
            holder, known = source.builtin(thing)
            return known or ({"method": thing.__name__, "of": self.value(holder, where)})
        return (self.hidden if isinstance(thing, ctypes.CDLL | type(os.environ)) else self.object)(thing, where)

    def tensor(self, thing: torch.Tensor, where: str) -> dict[str, Any]:
        data = thing.detach().dequantize() if thing.is_quantized else thing.detach()
        kind = [str(thing.dtype), str(thing.layout), list(thing.shape)]
        record: dict[str, Any] = {"tensor": kind, "requires grad": thing.requires_grad}
        if type(thing) not in (torch.Tensor, nn.Parameter):
            record["is"] = self.value(type(thing), where)
        if not data.is_meta:
            record["data"] = digest({"": data if data.layout is torch.strided else data.to_dense()})
        return record | self.attributes(thing, vars(thing))

    def array(self, thing: np.ndarray | np.generic, where: str) -> dict[str, Any]:
        data = np.asarray(thing)
        record = {"array": [str(data.dtype), data.dtype.str, list(data.shape)], "is": self.value(type(thing), where)}
        if data.dtype.kind in "biufcmMSU" and data.dtype.char not in "gG":
            flat = np.ascontiguousarray(data).reshape(-1)
            record["data"] = hashlib.sha256(flat.view(np.uint8) if data.nbytes else b"").hexdigest()
        elif isinstance(thing, np.generic):
            record["data"] = repr(thing)
        else:  # objects, records, and numbers with unused bytes
            record["data"] = self.values(data.reshape(-1).tolist(), where)
        return record | self.attributes(thing, {} if isinstance(thing, np.memmap) else getattr(thing, "__dict__", {}))

    def network(self, thing: nn.Module, where: str) -> dict[str, Any]:
        state, owner = vars(thing), type(thing).__qualname__
        record: dict[str, Any] = {"modules": self.named(state["_modules"].items(), "module", owner)}
        self.mode = "part"
        record |= {
            "is": self.value(type(thing), where),
            "parameters": self.named(state["_parameters"].items(), "parameter", owner),
            "buffers": self.named(state["_buffers"].items(), "buffer", owner),
            "passing": sorted(state["_non_persistent_buffers_set"]), "looks": self.value(source.attention(thing), ""),
        }  # fmt: skip
        tables = {name: state[name] for name in _HOOKS if state.get(name)}
        order = {handle: n for n, handle in enumerate(dict.fromkeys(h for table in tables.values() for h in table))}
        for name, table in tables.items():
            record[name] = [[order[h], self.value(hook, f"a hook of `{owner}`")] for h, hook in table.items()]
        if any(source.is_own(getattr(getattr(thing, n), "__func__", None)) for n in ("train", "eval")):
            record["training"] = [module.training for module in thing.modules()]
        if type(thing).__module__ == "torch._dynamo.eval_frame":  # what torch.compile makes: a frame around one module
            return record
        return record | self.attributes(thing, {n: v for n, v in state.items() if n not in _NOT_OF_A_NETWORK})

    def kind(self, kind: type, where: str) -> dict[str, Any]:
        self.mode = "as it is"
        if known := source.known(kind):
            patched = self.named(source.patches(kind).items(), "method", kind.__qualname__)
            return {**known, "patched": patched} if patched else known
        written = self.named(source.written(kind), "attribute", kind.__qualname__)
        return {"class": kind.__name__, "bases": self.values((type(kind), *kind.__bases__), where), "written": written}

    def function(self, f: types.FunctionType) -> dict[str, Any]:
        self.mode = "as it is"
        if known := source.known(f):
            return known
        if "_torchdynamo_orig_callable" in vars(f):  # made by torch.compile
            return {"compiled": self.value(vars(f)["_torchdynamo_orig_callable"], "a compiled function")}
        owner = f"{f.__qualname__}` of `{f.__module__}"
        code, chains = source.compiled(f.__code__)
        chains = () if source.origin(f.__globals__.get("__name__")) else chains
        held = zip(f.__code__.co_freevars, f.__closure__ or (), strict=True), vars(f).items()
        captured, attributes = ([e for e in sorted(entries) if e[0] not in _NOT_OF_A_FUNCTION] for entries in held)
        return {
            "function": f.__name__, "code": code,
            "defaults": self.value((f.__defaults__, f.__kwdefaults__), f"a default of `{owner}`"),
            "captured": self.named(captured, "variable", owner),
            "attributes": self.named(attributes, "attribute", owner),
            "reads": [[str(chain), self.read(f, chain, owner)] for chain in chains],
        }  # fmt: skip

    def read(self, f: types.FunctionType, chain: tuple, owner: str) -> Any:
        home, found = source.resolve(f, chain)
        where = f"global `{'.'.join(str(part) for part in chain if part)}` read by `{owner}`"
        outside = found is os.getenv or found is sys.modules or isinstance(found, type(os.environ))
        if outside or source.is_registered(found) or chain[0] in source.REACHING:
            return self.hidden(found, where)
        return {"of": home} if home else self.value(found, where)

    def object(self, thing: Any, where: str) -> dict[str, Any]:
        """Any other object: what it says of itself, or what a copy would be made from."""
        kind = type(thing)
        home = (source.known(kind) or {}).get("of")
        own = home in (None, "kdutils")
        self.mode = "eval" if home == "kdutils" else "as it is"
        if own and kind.__module__.startswith("kdutils.") and hasattr(kind, "describe"):
            return {"is": self.value(kind, where), "described": self.value(thing.describe(), where)}
        reduced = copyreg.dispatch_table.get(kind, lambda thing: thing.__reduce_ex__(4))(thing)
        if isinstance(reduced, str):
            module = getattr(thing, "__module__", None) or kind.__module__
            known = (home or source.origin(module)) and "(vectorized)" not in reduced  # as np.frompyfunc names all
            return {"named": f"{module}.{reduced}"} if known else self.hidden(thing, where)
        make, arguments, state, entries, pairs = (*reduced, None, None, None)[:5]
        record = {"is": self.value(kind, where), "made": self.values((make, arguments), where)}
        record["holds"] = self.values((tuple(entries or ()), tuple(pairs or ())), where)
        halves = state if type(state) is tuple and len(state) == 2 else (state,)
        held = {}
        if all(half is None or type(half) is dict for half in halves):  # attributes, and those of slots
            held = {name: value for half in halves for name, value in (half or {}).items()}
        else:
            record["state"] = self.value(state, where)
        return record | self.attributes(thing, held | (getattr(thing, "__dict__", {}) if own else {}))

    def attributes(self, thing: Any, held: Mapping[str, Any]) -> dict[str, Any]:
        kind = type(thing)
        lost = {n for n in held if _follows(thing, n)}
        lost |= _OF_THE_HUB if any(base.__module__.startswith("transformers.") for base in kind.__mro__) else set()
        kept = sorted((str(name), value) for name, value in held.items() if name not in lost)
        return {"attributes": self.named(kept, "attribute", kind.__qualname__)} if kept else {}


def _follows(thing: Any, name: str) -> bool:
    """Whether a property keeps this and would compute it anew: then it says nothing that the rest does not."""
    made, value = inspect.getattr_static(type(thing), name, None), getattr(thing, "__dict__", {}).get(name)
    kept = isinstance(made, functools.cached_property)
    if kept and source.is_own(type(thing)) and source.is_data(value):  # others may lead back to it
        return describe(made.func(thing)) == describe(value)
    return kept and (value is thing or not (source.is_own(type(thing)) and source.is_own(type(value))))
