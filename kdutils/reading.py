"""How the output of any module of a network is read, and at which positions of a sequence or a map it counts.

One rule for teacher and student, for one module or several at once: a module answers with its *first* call in a
forward pass, as it was when returned. Another call later in the pass, or an operation in place, changes nothing.
The pass ends once every module has answered. Answers are float32, whatever the network computes in.
"""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from numbers import Integral
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from kdutils.losses import IGNORE, only, unpair

OUTPUT = ""  # the path of a module in itself (`nn.Module.get_submodule("")`): the network's own output
CHOICES = ("all", "asked", "tokens")
_MAPS = {"batchnorm", "channelshuffle", "conv", "flatten", "fold", "instancenorm", "padding", "pixelshuffle", "pooling",
         "upsampling"}  # fmt: skip  # files of torch.nn.modules whose modules put channels before positions


class _Reached(Exception):
    """Raised inside a forward pass once every wanted module has answered."""


def each(function: Callable[[torch.Tensor], Any], x: Any) -> Any:
    """`function` of every tensor in `x`: a tensor, or a mapping, tuple or list of them; anything else stays."""
    if isinstance(x, torch.Tensor):
        return function(x)
    if isinstance(x, Mapping):
        return {name: each(function, part) for name, part in x.items()}
    return tuple(each(function, part) for part in x) if isinstance(x, tuple | list) else x


def _inside(module: nn.Module) -> nn.Module:
    """What torch.compile, nn.DataParallel and torch's other wrappers hold; a module that is none of them itself."""
    while list(module._modules) in (["_orig_mod"], ["module"]) and type(module).__module__.startswith("torch."):
        (module,) = module._modules.values()
    return module


def module_at(model: nn.Module, path: str) -> nn.Module:
    """The submodule called `path` (prefixes of torch's wrappers may be left out); ValueError when there is none."""
    here = model
    for name in path.split(".") if path else ():
        here = (here if name in here._modules else _inside(here))._modules.get(name)
        if here is None:
            known = ", ".join(repr(n) for n, _ in _inside(model).named_modules() if n != OUTPUT)
            raise ValueError(f"{type(_inside(model)).__name__} has no layer {path!r}; its layers are {known}")
    return _inside(here) if path else here


def _as_written(model: nn.Module) -> contextlib.AbstractContextManager:
    """A block where compiled parts of `model` run as they were written: compiled code skips hooks that came later."""
    compiled = "torch._dynamo" in sys.modules and any(
        "_orig_mod" in m._modules or m._compiled_call_impl is not None for m in model.modules()
    )
    return torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()  # torch 2.6


def _numbers(output: Any, path: str, keep: bool = False) -> torch.Tensor:
    """The tensor in whatever a module returned (see `outputs_at`), in float32; with `keep`, a copy."""
    found, inside = output, []
    if not isinstance(output, torch.Tensor):
        get = output.get if isinstance(output, Mapping) else lambda name: getattr(output, name, None)
        entries = list(output) if isinstance(output, Mapping | tuple | list) else []
        choices = [get("logits"), get("last_hidden_state"), *entries[:1]]
        found = next((value for value in choices if isinstance(value, torch.Tensor)), None)
        inside = entries if isinstance(output, Mapping) else [type(entry).__name__ for entry in entries]
    if isinstance(found, torch.Tensor) and found.is_floating_point():
        return found.to(torch.float32, copy=keep)
    raise TypeError(
        f"the module at {path!r} returns a {type(output).__name__} of {inside if found is None else found.dtype}: it "
        "must be a tensor of floating-point numbers, or have one first, or as `logits` or `last_hidden_state`"
    )


def outputs_at(
    model: nn.Module, x: Any, paths: Sequence[str] = (OUTPUT,), state: dict[str, torch.Tensor] | None = None
) -> dict[str, torch.Tensor]:
    """What the modules at `paths` return when `model` reads `x`, by the rule at the top of this file.

    Works on any module, inside `torch.func.vmap` too. Of a mapping, a `ModelOutput` or another object with names,
    `logits` is the answer, else `last_hidden_state`; of a tuple or list (as of many attention layers) the first entry.

    Args:
        x: the model's input: a tensor, a mapping (passed on by name) or a tuple (in order). Floating-point numbers are
            cast to the type of the model's first parameter.
        paths: module paths; `""` is the model's output.
        state: parameters and buffers to use in place of the model's own.

    Raises:
        TypeError: when a module returns none of these; the message names it.
        ValueError: when a path does not exist, or the forward pass never calls it.
    """
    state = state or {}
    dtypes = (p.dtype for p in chain(state.values(), model.parameters()) if p.is_floating_point())
    dtype = next(dtypes, torch.float32)
    x = each(lambda t: t.to(dtype) if t.is_floating_point() else t, x)
    args, named = ((), x) if isinstance(x, dict) else (x if isinstance(x, tuple) else (x,), {})
    modules = {path: module_at(model, path) for path in paths if path != OUTPUT}
    seen: dict[str, torch.Tensor] = {}

    def keep(path: str):
        def hook(module, inputs, output):
            if path not in seen:
                ends = len(seen) == len(modules) - 1 and OUTPUT not in paths
                seen[path] = _numbers(output, path, keep=not ends)  # what ends the pass cannot be changed any more
                if ends:
                    raise _Reached

        return hook

    handles = []
    try:
        handles += [module.register_forward_hook(keep(path)) for path, module in modules.items()]
        with _as_written(model) if state or modules else contextlib.nullcontext():
            output = functional_call(model, state, args, named) if state else model(*args, **named)
        if OUTPUT in paths:
            seen[OUTPUT] = _numbers(output, OUTPUT)
    except _Reached:
        pass
    finally:
        for handle in handles:
            handle.remove()
    if missing := [path for path in paths if path not in seen]:
        raise ValueError(f"the forward pass of {type(model).__name__} never called {missing}")
    return seen


def check_units(model: nn.Module, path: str, shape: Sequence[int], samples: int, units: int | None) -> tuple[int, ...]:
    """`shape`, of what the module at `path` returns for so many samples, with its dimension `units` moved to the end.

    None is the last of two or three, unless channels may stand before positions, as they do after a convolution:
    ValueError when it is not certain which dimensions hold the samples and the units.
    """
    module, inner, dims, problem = module_at(model, path), _inside(model), len(shape), ""
    if dims < 2 or shape[0] != samples or (dims > 2 and getattr(module, "batch_first", True) is False):
        problem = "samples must come first, units after them: transpose it in the network, or build it batch_first=True"
    elif units is None and dims > 2:
        maps = [m for m in inner.modules() if _is_map(m)]
        long = any(isinstance(m, nn.Conv1d | nn.ConvTranspose1d) for m in maps)
        if dims > 3 or long or any(map(_is_map, module.modules())) or (maps and not list(module.parameters())):
            problem = (
                "say which dimension holds the units, such as units=1 in (batch, channels, height, width) or units=-1 "
                "where they are last; every position is then a row"
            )
    elif units is not None and (not -dims <= units < dims or units % dims == 0):
        problem = f"units={units} is none of its dimensions after the samples"
    if problem:
        where = f"{path or 'the output'!r} of {type(inner).__name__}"
        raise ValueError(f"{where} has the shape {tuple(shape)} for {samples} samples: {problem}")
    order = sorted(range(dims), key=lambda d: d == (-1 if units is None else units) % dims)
    return tuple(shape[d] for d in order)


def _is_map(module: nn.Module) -> bool:
    files = {c.__module__.removeprefix("torch.nn.modules.") for c in type(module).__mro__}
    return not files.isdisjoint(_MAPS) or isinstance(module, nn.GroupNorm | nn.LocalResponseNorm | nn.Dropout1d)


def units_last(values: torch.Tensor, units: int | None) -> torch.Tensor:
    """(members, batch, ...) with the units, at `units` of (batch, ...), moved to the end."""
    return values if units is None else values.movedim(units if units < 0 else units + 1, -1)


def shapes(
    students: Any, path: str, x: Any, units: int | None, teacher: nn.Module | None = None, layer: str = OUTPUT
) -> list[tuple[int, ...]]:
    """(batch, ..., units) of a module of the students, and one of a teacher; ValueError unless the positions agree."""
    few = each(lambda t: t[:, :2], x)  # so few that no other dimension is taken for the batch
    sides = [(students.skeleton, path, students.shape_at(path, few))]
    if teacher is not None:
        sides.append((teacher, layer, read(teacher, few, layer).shape[1:]))
    own, *theirs = found = [check_units(*side, batch(few)[1], units) for side in sides]
    if theirs and own[:-1] != theirs[0][:-1]:
        both = f"{layer or 'the output'!r} of the teacher {theirs[0]}, {path or 'the output'!r} of the student {own}"
        raise ValueError(f"both sides need the same positions (batch, ..., units): {both}")
    return found


def pairs(own: torch.Tensor, target: Any, units: int | None = None) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """A student's values, what they should be, and where that counts: (members, n, ...), a row a position."""
    (wanted, weights), own = unpair(target), units_last(own, units)
    if own.shape[:-1] != wanted.shape[:-1]:
        raise ValueError(f"the student's values are {tuple(own.shape)}, their target is {tuple(wanted.shape)}")
    return own.flatten(1, -2), wanted.flatten(1, -2), None if weights is None else weights.flatten(1)


def padding_of(teacher: nn.Module, positions: str, padding: int | None) -> int | None:
    """The id of padding, for "tokens" alone: the one given, else the teacher's `padding`; ValueError if not known."""
    if positions not in CHOICES:
        raise ValueError(f"positions must be one of {CHOICES}, not {positions!r}")
    if positions != "tokens":
        if padding is not None:
            raise ValueError(f"padding={padding} is left out with positions='tokens' alone, not with {positions!r}")
        return None
    inner = _inside(teacher)
    found = getattr(inner, "padding", None) if padding is None else padding
    if isinstance(found, bool) or not isinstance(found, Integral):
        known = getattr(getattr(inner, "config", None), "pad_token_id", None)
        hint = "" if known is None else f" (pad_token_id in the teacher's config is {known})"
        raise ValueError(f"positions='tokens' needs the id of padding: give padding=ID{hint}")
    return int(found)


def counted(positions: str, padding: int | None, x: Any, y: Any, shape: Sequence[int]) -> torch.Tensor | None:
    """True where a position of this shape (seeds, batch, ...) counts; None for all.

    "asked": where the labels `y` ask; "tokens": where the ids `x` are not padding; ValueError unless of this shape.
    """
    if positions == "all":
        return None
    marks = y if positions == "asked" else x.get("input_ids") if isinstance(x, Mapping) else x
    if not isinstance(marks, torch.Tensor) or marks.shape != shape or marks.is_floating_point():
        raise ValueError(f"positions={positions!r} needs a layer and a task with one entry a position: {tuple(shape)}")
    return marks != (IGNORE if positions == "asked" else padding)


def moments(sample: torch.Tensor, weights: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean of every unit of a sample (seeds, n, units), and one root mean square around them a seed."""
    w = torch.ones_like(sample[..., :1]) if weights is None else weights.to(sample.dtype)[..., None]
    w, sample = w / w.sum(1, keepdim=True).clamp_min(1), only(sample, weights)
    centre = (sample * w).sum(1, keepdim=True)
    size = ((sample - centre).square() * w).sum(1, keepdim=True).mean(2, keepdim=True).sqrt().clamp_min(1e-12)
    return centre, size


def copied(model: nn.Module) -> nn.Module:
    """A copy, also of a module that keeps a computed tensor, as the older weight_norm does."""
    kept = [value for module in model.modules() for value in vars(module).values() if isinstance(value, torch.Tensor)]
    return copy.deepcopy(model, {id(value): value.detach().clone() for value in kept if not value.is_leaf})


def frozen(teacher: nn.Module, device: torch.device) -> nn.Module:
    """A copy in eval mode (of a compiled or parallel teacher, of the network inside), out of everybody's reach."""
    return copied(_inside(teacher)).to(device).eval().requires_grad_(False)


def batch(x: Any) -> torch.Size:
    """(seeds, batch), the first dimensions of every tensor in `x`."""
    parts = x.values() if isinstance(x, Mapping) else x
    return (x if isinstance(x, torch.Tensor) else next(iter(parts))).shape[:2]


@torch.no_grad()
def read(teacher: nn.Module, x: Any, path: str) -> torch.Tensor:
    """The teacher's module at `path` on inputs (seeds, batch, ...): (seeds, batch, ...); its pass stops there."""
    values, (seeds, samples) = outputs_at(teacher, each(lambda t: t.flatten(0, 1), x), (path,))[path], batch(x)
    if values.dim() < 2 or len(values) != seeds * samples:
        check_units(teacher, path, values.shape, seeds * samples, None)
    return values.unflatten(0, (seeds, samples))


def nonfinite(target: Any) -> str | None:
    """Names the first sample in a signal's target that holds a number that is not finite, where it counts.

    `target` is as `Bound.target` returns it: (seeds, batch, ...), a pair of it and a mask, or a tuple of such.
    """
    if isinstance(target, tuple):
        masked = isinstance(target[-1], torch.Tensor) and target[-1].dtype == torch.bool
        if not masked:
            return next((found for part in target if (found := nonfinite(part))), None)
        target = only(*target)
    bad = (~target.isfinite()).reshape(*target.shape[:2], -1).any(2).nonzero()
    return f"sample {bad[0, 1]} of seed number {bad[0, 0]}" if len(bad) else None
