"""How a curriculum and its teachers are told apart, in a line of text that is the same in every process."""

from __future__ import annotations

import contextlib
import dis
import hashlib
import json
import types
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from kdutils import checks, source

_NOT_TOLD = {"training", "name_or_path"}  # a mode, and where a network was loaded from
_OF_THE_HUB = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache",
               "problem_type", "id2label", "label2id", "output_attentions", "output_hidden_states", "return_dict",
               "pad_token_id", "bos_token_id", "eos_token_id"}  # fmt: skip  # what a model is called, or is set by use
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an entry


def difference(one: str, two: str) -> str:
    """The first line in which two texts differ."""
    a, b = (text.splitlines() for text in (one, two))
    for first, second in zip(a, b, strict=False):
        if first != second:
            return f"{first!r}, not {second!r}"
    return f"{len(a)} lines, not {len(b)}"


def described(thing: Any) -> str:
    """What a signal is, in a line that is the same in every process: its fields, its teachers by their weights."""
    if isinstance(thing, nn.Module):
        return f"{type(thing).__name__} {fingerprint(thing)}"
    if is_dataclass(thing):
        told = [f"{f.name}={described(getattr(thing, f.name))}" for f in fields(thing) if f.name != "name"]
        return f"{type(thing).__name__}({', '.join(told)})"
    if isinstance(thing, tuple | list):
        return f"({', '.join(map(described, thing))})"
    if isinstance(thing, partial):
        return f"{described(thing.func)}{described(thing.args)}{thing.keywords}"
    if isinstance(thing, types.FunctionType) and source.is_own(thing):  # of others and ours, the name says it
        return _function(thing)
    return getattr(thing, "__qualname__", None) or repr(thing)


def _function(function: types.FunctionType, above: tuple[Any, ...] = ()) -> str:
    """Its name, its code, and what it captured and its defaults, as far as they are plain; of anything else, the class.

    `above` are the functions that it was found in.
    """

    def told(value: Any) -> str:
        if isinstance(value, types.FunctionType) and source.is_own(value) and value not in (*above, function):
            return _function(value, (*above, function))
        if isinstance(value, torch.Tensor):
            return f"tensor {hashlib.sha256(repr(value.detach().cpu().tolist()).encode()).hexdigest()[:12]}"
        if isinstance(value, tuple | list):
            return f"({', '.join(map(told, value))})"
        return repr(value) if type(value) in (bool, int, float, str, type(None)) else type(value).__qualname__

    held = list(function.__defaults__ or ()) + [v for _, v in sorted((function.__kwdefaults__ or {}).items())]
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # nothing is in it yet
            held.append(cell.cell_contents)
    code = source.compiled(function.__code__)[0][:12]
    return f"{function.__qualname__} {code}" + (f" ({', '.join(map(told, held))})" if held else "")


@torch.no_grad()
def fingerprint(network: nn.Module) -> str:
    """Twelve characters that tell trained networks apart: the plain attributes of their modules and of every tensor
    name, shape, up to 256 entries, and the sum of all as whole numbers, which is the same on every device."""
    digest, configs = hashlib.sha256(), {}
    for path, module in network.named_modules():
        code = getattr(type(module).forward, "__code__", None)  # what a pass sets is no part of what a network is
        passing = {line.argval for line in dis.get_instructions(code) if line.opname == "STORE_ATTR"} if code else set()
        told = [(name, described(value) if callable(value) else value) for name, value in sorted(vars(module).items())
                if name[0] != "_" and name not in _NOT_TOLD | passing and _plain(value)]  # fmt: skip
        if checks.of_the_hub(config := getattr(module, "config", None)) and id(config) not in configs:
            configs[id(config)] = config
            kept = {name: value for name, value in config.to_dict().items() if name not in _OF_THE_HUB}
            told.append(json.dumps(kept, sort_keys=True, default=lambda value: type(value).__qualname__))
        digest.update(f"{path} {type(module).__name__} {told}".encode())
    for name, tensor in {**dict(network.named_buffers()), **network.state_dict()}.items():
        if not isinstance(tensor, torch.Tensor):  # what a module says of itself
            continue
        whole = tensor.detach().dequantize() if tensor.is_quantized else tensor.detach()
        flat = (torch.view_as_real(whole.resolve_conj()) if whole.is_complex() else whole).flatten()
        some = flat[:: max(1, -(-len(flat) // 256))].cpu()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(some.contiguous().view(torch.uint8).numpy().tobytes())
        bits = flat.contiguous().view(_BITS[flat.element_size()])
        digest.update(str(bits.sum(dtype=torch.int64).item()).encode())
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
