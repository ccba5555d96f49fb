"""How a curriculum and its teachers are told apart, in a line of text that is the same in every process."""

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
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from kdutils import checks, source
from kdutils.curriculum import Stage

_NOT_TOLD = {"training", "name_or_path"}  # a mode, and where a network was loaded from
_OF_THE_HUB = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache",
               "problem_type", "id2label", "label2id", "output_attentions", "output_hidden_states", "return_dict",
               "pad_token_id", "bos_token_id", "eos_token_id"}  # fmt: skip  # what a model is called, or is set by use
_CHANGING = {"add", "append", "appendleft", "clear", "extend", "insert", "pop", "popitem", "remove", "setdefault",
             "update"}  # fmt: skip
_LEAVES = {bool, int, float, str, type(None)}
_OF_A_MODULE = set(vars(nn.Module()))  # what torch's base class keeps
_TAKEN: ContextVar[dict[tuple[int, ...], tuple[str, Any]] | None] = ContextVar("taken", default=None)
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an entry


def difference(one: str, two: str) -> str:
    """The first line in which two texts differ."""
    a, b = (text.splitlines() for text in (one, two))
    for first, second in zip(a, b, strict=False):
        if first != second:
            return f"{first!r}, not {second!r}"
    return f"{len(a)} lines, not {len(b)}"


def described(thing: Any, above: tuple[Any, ...] = ()) -> str:
    """What a signal is, in a line that is the same in every process: its fields, its teachers by their weights.

    `above` are the things that it was found in. ValueError for a network that cannot be told apart.
    """
    if type(thing) in _LEAVES:
        return repr(thing)
    if any(thing is other for other in above):
        return type(thing).__qualname__
    told, name = partial(described, above=(*above, thing)), type(thing).__qualname__
    if isinstance(thing, nn.Module):
        return f"{type(thing).__name__} {fingerprint(thing, above)}"
    if isinstance(thing, torch.Tensor):
        return f"tensor {hashlib.sha256(_numbers(thing)).hexdigest()[:12]}"
    if isinstance(thing, np.ndarray) and thing.dtype.kind in "biufc":
        return f"array {thing.shape} {thing.dtype} {hashlib.sha256(thing.tobytes()).hexdigest()[:12]}"
    if is_dataclass(thing) and not isinstance(thing, type):
        parts = [f"{f.name}={told(getattr(thing, f.name))}" for f in fields(thing) if f.name != "name"]
        return f"{type(thing).__name__}({', '.join(parts)})"
    if isinstance(thing, tuple | list):
        return f"({', '.join(map(told, thing))})"
    if type(thing) is dict:
        return f"{{{', '.join(f'{key!r}: {told(value)}' for key, value in thing.items())}}}"
    if isinstance(thing, partial):
        return f"{told(thing.func)}{told(thing.args)}{told(thing.keywords)}"
    if isinstance(thing, types.FunctionType) and source.is_own(thing):  # of others and ours, the name says it
        return _function(thing)
    if type(thing).__repr__ is object.__repr__:  # which says where in memory it is: what it holds tells more
        held = sorted((vars(thing) if source.is_own(type(thing)) and hasattr(thing, "__dict__") else {}).items())
        written = _changed(f for base in type(thing).__mro__ for n, f in vars(base).items() if n != "__init__")
        changed = set.union(*written)
        return f"{name}({', '.join(f'{n}={told(value)}' for n, value in held if n not in changed and _seen(value))})"
    return getattr(thing, "__qualname__", None) or re.sub(r" at 0x[0-9a-fA-F]+", "", repr(thing))


def _numbers(tensor: torch.Tensor) -> bytes:
    """Its shape, up to 256 entries, and the sum of all as whole numbers, which is the same on every device."""
    whole = tensor.detach().dequantize() if tensor.is_quantized else tensor.detach()
    whole = whole if whole.layout == torch.strided else whole.to_dense()
    flat = (torch.view_as_real(whole.resolve_conj()) if whole.is_complex() else whole).flatten()
    some = flat[:: max(1, -(-len(flat) // 256))].cpu().contiguous().view(torch.uint8).numpy().tobytes()
    total = flat.contiguous().view(_BITS[flat.element_size()]).sum(dtype=torch.int64).item()
    return f"{tuple(tensor.shape)} {tensor.dtype}".encode() + some + str(total).encode()


def _function(function: types.FunctionType, above: tuple[Any, ...] = ()) -> str:
    """Its name, its code, and what it captured and its defaults, as far as they are plain; of anything else, the class.

    `above` are the functions that it was found in.
    """

    def told(value: Any) -> str:
        if isinstance(value, types.FunctionType) and source.is_own(value) and value not in (*above, function):
            return _function(value, (*above, function))
        if isinstance(value, torch.Tensor):
            return f"tensor {hashlib.sha256(_numbers(value)).hexdigest()[:12]}"
        if isinstance(value, tuple | list):
            return f"({', '.join(map(told, value))})"
        return repr(value) if type(value) in (bool, int, float, str, type(None)) else type(value).__qualname__

    held = list(function.__defaults__ or ()) + [v for _, v in sorted((function.__kwdefaults__ or {}).items())]
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # nothing is in it yet
            held.append(cell.cell_contents)
    code = source.compiled(function.__code__)[0][:12]
    return f"{function.__qualname__} {code}" + (f" ({', '.join(map(told, held))})" if held else "")


def _reached(kind: type, name: str) -> list[types.FunctionType]:
    """The method `name` of a class and what it calls in turn, as far as they are the reader's own."""
    found: dict[int, types.FunctionType] = {}
    waiting = [vars(base).get(name) for base in kind.__mro__]
    while waiting:
        method = waiting.pop(0)
        function = getattr(method, "fget", None) or getattr(method, "__func__", method)
        if not isinstance(function, types.FunctionType) or id(function) in found or not source.is_own(function):
            continue
        found[id(function)] = function
        names = [step.argval for step in _steps(function.__code__) if "ATTR" in step.opname or "METH" in step.opname]
        waiting += [vars(base)[n] for n in dict.fromkeys(names) for base in kind.__mro__ if n in vars(base)]
        for chain in source.compiled(function.__code__)[1]:
            with contextlib.suppress(Exception):  # a name that is not there, a module that cannot be imported
                waiting.append(source.resolve(function, chain)[1])
    return [*found.values()]


def _steps(code: types.CodeType) -> Iterator[dis.Instruction]:
    yield from dis.get_instructions(code)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _steps(constant)


def _changed(functions: Any) -> tuple[set[str], set[str]]:
    """The attributes that some functions set, and those of which they seem to change the entries."""
    stored: set[str] = set()
    touched: set[str] = set()
    for function in functions:
        steps = list(_steps(function.__code__)) if isinstance(function, types.FunctionType) else []
        for n, step in enumerate(steps):
            if step.opname == "STORE_ATTR":
                stored.add(step.argval)
            elif step.opname in ("STORE_SUBSCR", "DELETE_SUBSCR"):
                touched |= {before.argval for before in steps[max(0, n - 8) : n] if before.opname == "LOAD_ATTR"}
            elif step.opname in ("LOAD_ATTR", "LOAD_METHOD") and n and steps[n - 1].opname == "LOAD_ATTR":
                changes = step.argval in _CHANGING or step.argval.endswith("_")  # as torch names what works in place
                touched |= {steps[n - 1].argval} if changes else set()
    return stored, touched


def _kind(kind: type) -> tuple[list[str], set[str], set[str], set[str], set[str]]:
    """Of a class of the reader's own: what a pass does, which attributes it sets, changes and reads, and `__init__`
    sets."""
    run = _reached(kind, "forward")
    steps = (step for function in run for step in _steps(function.__code__))
    read = {step.argval for step in steps if step.opname in ("LOAD_ATTR", "LOAD_METHOD")}
    return [*map(_function, run)], *_changed(run), read, _changed(_reached(kind, "__init__"))[0]


def _read(value: Any, names: set[str]) -> Any:
    """A value; of an object of the reader's own, such as a configuration, what is read of it."""
    held = getattr(value, "__dict__", {})
    whole = isinstance(value, nn.Module | type) or not source.is_own(type(value))
    return value if whole else {name: part for name, part in sorted(held.items()) if name in names and _seen(part)}


def _seen(value: Any) -> bool:
    """Whether `described` says of a value what matters: of objects of others, such as devices, it might not."""
    if isinstance(value, dict):
        return all(map(_seen, value.values()))
    if isinstance(value, tuple | list):
        return all(map(_seen, value))
    return value is None or _plain(value) or isinstance(value, torch.Tensor | nn.Module | np.ndarray)


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


def fingerprint(network: nn.Module, above: tuple[Any, ...] = ()) -> str:
    """Twelve characters that tell trained networks apart: the plain attributes of their modules and of every tensor
    name, shape, up to 256 entries, and the sum of all as whole numbers, which is the same on every device. Of classes
    of the reader's own also what `forward` does, and lists, tensors and networks that `__init__` keeps.

    ValueError for one from torch.jit or torch.export."""
    taken = _TAKEN.get()
    if taken is None:
        return _taken(network, above)
    within = [
        thing for thing in above if isinstance(thing, nn.Module) or not is_dataclass(thing)
    ]  # a signal is no part of what a network holds
    key = (id(network), *map(id, within))
    if key not in taken:
        taken[key] = _taken(network, above), (network, within)  # what is held keeps its id
    return taken[key][0]


@torch.no_grad()
def _taken(network: nn.Module, above: tuple[Any, ...]) -> str:
    checks.readable(network)
    digest, configs, kinds, above = hashlib.sha256(), {}, {}, (*above, *network.modules())
    for path, module in network.named_modules():
        code = getattr(type(module).forward, "__code__", None)  # what a pass sets is no part of what a network is
        passing = {line.argval for line in dis.get_instructions(code) if line.opname == "STORE_ATTR"} if code else set()
        if type(module) not in kinds:
            kinds[type(module)] = _kind(type(module))
        run, stored, touched, read, made = kinds[type(module)]
        passing |= stored
        told = [(name, described(value) if callable(value) else value) for name, value in sorted(vars(module).items())
                if name[0] != "_" and name not in _NOT_TOLD | passing and _plain(value)]  # fmt: skip
        names = sorted((made & read).intersection(vars(module)) - passing - _NOT_TOLD - _OF_A_MODULE)
        more = [(n, _read(vars(module)[n], read)) for n in names]
        more = [
            (n, value) for n, value in more if (n[0] == "_" if _plain(value) else n not in touched and _seen(value))
        ]
        told += [*run, *((n, described(value, above)) for n, value in more)]
        if checks.of_the_hub(config := getattr(module, "config", None)) and id(config) not in configs:
            configs[id(config)] = config
            kept = {name: value for name, value in config.to_dict().items() if name not in _OF_THE_HUB}
            told.append(json.dumps(kept, sort_keys=True, default=lambda value: type(value).__qualname__))
        digest.update(f"{path} {type(module).__name__} {told}".encode())
    for name, tensor in {**dict(network.named_buffers()), **network.state_dict()}.items():
        if not isinstance(tensor, torch.Tensor):  # what a module says of itself
            continue
        digest.update(f"{name} ".encode() + _numbers(tensor))
    return digest.hexdigest()[:12]


def _plain(value: Any) -> bool:
    """Whether it is a number, a text that names no device, or a tuple of such; or a function."""
    if isinstance(value, tuple):
        return all(map(_plain, value))
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType):
        return True
    return type(value) in (bool, int, float) or (
        isinstance(value, str) and not value.startswith(("cpu", "cuda", "mps"))
    )
