"""How the output of any module of a network is read, and at which positions of a sequence or a map it counts.

One rule for teacher and student, for one module or several: a module answers with its *first* call in a pass, as it was
when returned (later calls, and operations in place, change nothing), in float32. The pass ends once all have answered.
"""

from __future__ import annotations

import contextlib
import difflib
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from numbers import Integral
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from kdutils import checks
from kdutils.checks import copied
from kdutils.losses import asked, check_classes

OUTPUT = ""  # the path of a module in itself (`nn.Module.get_submodule("")`): the network's own output
CHOICES = ("all", "asked", "tokens")
Positions = Callable[[Any], torch.Tensor]  # inputs (seeds, batch, ...) -> True where a position counts
_LAST = (
    "let `forward` return its classes last (outputs.movedim(1, -1)), and give labels (calibration_labels): they tell"
)
_WRAPPED = ("_orig_mod", "module")  # what torch.compile, nn.DataParallel and their like call the network inside
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
    return checks.held(x, [each(function, part) for part in x]) if isinstance(x, tuple | list) else x


def two(x: Any) -> Any:
    """The first sample and the last of a batch (seeds, batch, ...); entries of another length than most stay."""
    sizes: list[int] = []
    each(lambda t: sizes.append(t.shape[1]) if t.dim() > 1 else None, x)
    most = max(sizes, key=lambda n: (sizes.count(n), n > 1), default=0)
    return each(lambda t: t[:, [0, -1]] if t.dim() > 1 and t.shape[1] == most else t, x)


def _inside(module: nn.Module) -> nn.Module:
    """What torch.compile, nn.DataParallel and torch's other wrappers hold; a module that is none of them itself."""
    while type(module).__module__.startswith("torch.") and [*dict(module.named_children())] in ([n] for n in _WRAPPED):
        (module,) = module.children()
    return module


def module_at(model: nn.Module, path: str) -> nn.Module:
    """The submodule called `path` (prefixes of torch's wrappers may be left out); ValueError when there is none."""
    here = model
    for name in path.split(".") if path else ():
        if name in _WRAPPED and not hasattr(here, name):
            continue  # the wrapper was taken off
        here = getattr(here if hasattr(here, name) else _inside(here), name, None)
        if not isinstance(here, nn.Module):
            known = [n for n, _ in _inside(model).named_modules() if n != OUTPUT]
            near = difflib.get_close_matches(path, known, 8, 0) if len(known) > 24 else known
            told = f"{'the nearest of ' * (len(known) > 24)}its layers are {', '.join(map(repr, near))}"
            raise ValueError(f"{type(_inside(model)).__name__} has no layer {path!r}; {told}")
    return _inside(here) if path else here


def as_written(model: nn.Module) -> contextlib.AbstractContextManager:
    """A block where compiled parts of `model` run as they were written: compiled code skips hooks that came later."""
    parts = model.modules() if "torch._dynamo" in sys.modules else ()
    compiled = any("_orig_mod" in m._modules or m._compiled_call_impl is not None for m in parts)
    return torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()  # torch 2.6


def _numbers(output: Any, path: str, keep: bool = False) -> torch.Tensor:
    """The tensor in whatever a module returned (see `outputs_at`), in float32; with `keep`, a copy."""
    found, entries = output, list(output) if isinstance(output, Mapping | tuple | list) else []
    if not isinstance(output, torch.Tensor):
        get = output.get if isinstance(output, Mapping) else lambda name: getattr(output, name, None)
        choices = (get("logits"), get("last_hidden_state"), *entries[:1])
        found = next((value for value in choices if isinstance(value, torch.Tensor)), None)
    if isinstance(found, torch.Tensor) and found.is_floating_point() and not found.is_nested:
        return found.to(torch.float32, copy=keep)
    inside = [e if isinstance(e, str) else type(e).__name__ for e in entries] if found is None else found.dtype
    if getattr(found, "is_nested", False):
        inside = "nested sequences (build nn.TransformerEncoder with enable_nested_tensor=False)"
    needed = "a tensor of floating-point numbers, or have one first, or as `logits` or `last_hidden_state`"
    raise TypeError(f"the module at {path!r} returns a {type(output).__name__} of {inside}: it must be {needed}")


def outputs_at(
    model: nn.Module, x: Any, paths: Sequence[str] = (OUTPUT,), state: dict[str, torch.Tensor] | None = None
) -> dict[str, torch.Tensor]:
    """What the modules at `paths` return when `model` reads `x`, by the rule at the top of this file; also in vmap.

    Of a mapping, a `ModelOutput` or another object with names, `logits` is the answer, else `last_hidden_state`; of a
    tuple or list (as of many attention layers) the first entry. TypeError, with its name, for a module that returns
    none of these. ValueError for a path that does not exist, or that the forward pass never calls.

    Args:
        x: a tensor, a mapping (by name), a tuple or list (in order), numbers cast to the type of the parameters.
        paths: module paths; `""` is the model's output.
        state: parameters and buffers to use in place of the model's own.
    """
    state, seen = state or {}, {}
    while isinstance(model, nn.DataParallel) and (state or tuple(paths) != (OUTPUT,)):  # a hook sees one device's part
        model, state = model.module, {name.removeprefix("module."): value for name, value in state.items()}
    dtype = next((p.dtype for p in chain(state.values(), model.parameters()) if p.is_floating_point()), torch.float32)
    x = each(lambda t: t.to(dtype, copy=True) if t.is_floating_point() else t.clone(), x)  # it may be changed in place
    args, named = ((), x) if isinstance(x, dict) else (x if isinstance(x, tuple | list) else (x,), {})
    modules = {path: module_at(model, path) for path in paths if path != OUTPUT}
    entries = sum(len(m._parameters) + len(m._buffers) for m in model.modules()) if state else 0

    def call() -> Any:
        if not state:
            return model(*args, **named)
        tied = entries != len(state)  # where every entry has its own tensor, torch's long look for ties is spared
        return functional_call(model, state, args, named, tie_weights=tied)

    if not modules:
        with as_written(model) if state else contextlib.nullcontext():
            return {OUTPUT: _numbers(call(), OUTPUT)}

    def keep(path: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if path not in seen:
            ends = len(seen) == len(modules) - 1 and OUTPUT not in paths
            seen[path] = _numbers(output, path, keep=not ends)  # what ends the pass cannot be changed any more
            if ends:
                raise _Reached

    with contextlib.suppress(_Reached), contextlib.ExitStack() as during:
        for path, module in modules.items():
            during.enter_context(module.register_forward_hook(partial(keep, path)))
        during.enter_context(as_written(model))
        output = call()
        if OUTPUT in paths:
            seen[OUTPUT] = _numbers(output, OUTPUT)
    if missing := [path for path in paths if path not in seen]:
        parts = isinstance(modules.get(missing[0]), nn.ModuleList | nn.ModuleDict)
        whole = "read the module around it, which may use its weights; of layers left out, set their layerdrop to 0"
        advice = "name what is in it" if parts else whole
        raise ValueError(f"the forward pass of {type(model).__name__} never called {missing}: {advice}")
    return seen


def check_units(model: nn.Module, path: str, shape: Sequence[int], samples: int, units: int | None) -> tuple[int, ...]:
    """`shape`, of what the module at `path` returns for so many samples, with its dimension `units` moved to the end.

    None is the last of two or three. ValueError when that is not certain: after a convolution channels stand first.
    """
    module, inner, dims, problem = module_at(model, path), _inside(model), len(shape), ""
    if dims < 2 or shape[0] != samples or (dims > 2 and getattr(module, "batch_first", True) is False):
        problem = "samples must come first, units after them: transpose it in the network, or build it batch_first=True"
    elif units is None and dims > 2:
        maps = [m for m in inner.modules() if _is_map(m)]
        long = any(isinstance(m, nn.Conv1d | nn.ConvTranspose1d) for m in maps)
        if dims > 3 or long or any(map(_is_map, module.modules())) or (maps and not list(module.parameters())):
            advice = "units=1 in (batch, channels, height, width), units=-1 where they are last"
            problem = f"say which dimension holds the units ({advice}); every position is then a row" if path else _LAST
    elif units is not None and (not -dims <= units < dims or units % dims == 0):
        problem = f"units={units} is none of its dimensions after the samples"
    if problem:
        where = f"{path or 'the output'!r} of {type(inner).__name__}"
        raise ValueError(f"{where} has the shape {tuple(shape)} for {samples} samples: {problem}")
    return tuple(shape[d] for d in sorted(range(dims), key=lambda d: d == (-1 if units is None else units) % dims))


def _is_map(module: nn.Module) -> bool:
    files = {c.__module__.removeprefix("torch.nn.modules.") for c in type(module).__mro__}
    return not files.isdisjoint(_MAPS) or isinstance(module, nn.GroupNorm | nn.LocalResponseNorm | nn.Dropout1d)


def shapes(
    students: Any, path: str, x: Any, units: int | None, teacher: nn.Module | None = None, layer: str = OUTPUT
) -> list[tuple[int, ...]]:
    """(batch, ..., units) of a module of the students, and one of a teacher; ValueError unless the positions agree."""
    few, n = getattr(students, "few", lambda x: (two(x), 2))(x)  # so few that no other dimension is taken for theirs
    sides = [(students.skeleton, path, students.shape_at(path, few))]
    if teacher is not None:
        values = students.read(teacher, few, layer)
        checks.not_probabilities(values) if (path, layer, units) == (OUTPUT, OUTPUT, -1) else None
        sides.append((teacher, layer, values.shape[1:]))
    found = [check_units(*side, n, units) for side in sides]
    if found[0][:-1] != found[-1][:-1]:
        names = f"{layer or 'the output'!r} of the teacher and {path or 'the output'!r} of the student"
        raise ValueError(f"{names} need the same positions, not {found[1]} and {found[0]} (batch, ..., units)")
    return found


def classes(students: Any, x: Any, y: Any, teacher: nn.Module | None = None) -> int:
    """How many the output has; ValueError unless the students' outputs, a teacher's and the labels fit together."""
    checks.classifies(students.skeleton, teacher)
    own, *theirs = shapes(students, OUTPUT, x, -1, teacher)
    check_classes(own[-1], *(shape[-1] for shape in theirs))
    y = y[0] if isinstance(y, torch.Tensor) else y
    checks.fitting(own, y, teacher is None)
    labels = tuple(y.shape[1:]) if isinstance(y, torch.Tensor) else None
    if labels in (None, own[2:]) and not (len(own) == 3 and hasattr(students.skeleton, "main_input_name")):
        checks.classes_last(x, own) if y is None else None
        check_units(students.skeleton, OUTPUT, own, own[0], None)  # which holds the classes? transformers': the last
    return own[-1]


def pairs(own: torch.Tensor, target: Any, units: int | None = None) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """A student's values, what they should be, and where that counts: (members, n, ...), a row a position."""
    (wanted, weights), own = target if isinstance(target, tuple) else (target, None), last(own, units)
    if own.shape[:-1] != wanted.shape[:-1]:
        raise ValueError(f"the student's values are {tuple(own.shape)}, their target is {tuple(wanted.shape)}")
    return own.flatten(1, -2), wanted.flatten(1, -2), None if weights is None else weights.flatten(1)


def last(values: torch.Tensor, units: int | None) -> torch.Tensor:
    """Values (seeds, batch, ...) with the dimension `units` of a sample's batch at the end; as they are for None."""
    return values if units is None else values.movedim(units if units < 0 else units + 1, -1)


def padding_of(teacher: nn.Module, positions: str | Positions, padding: int | None) -> int | None:
    """The id of padding, for "tokens" alone: the one given, else the teacher's `padding`; ValueError if not known."""
    if not callable(positions) and positions not in CHOICES:
        raise ValueError(f"positions must be one of {CHOICES}, not {positions!r}")
    if positions != "tokens" and padding is not None:
        raise ValueError(f"padding={padding} is left out with positions='tokens' alone, not with {positions!r}")
    inner = _inside(teacher)
    found = getattr(inner, "padding", None) if padding is None else padding
    if positions == "tokens" and (isinstance(found, bool) or not isinstance(found, Integral)):
        known = getattr(getattr(inner, "config", None), "pad_token_id", "not set")
        raise ValueError(f"'tokens' needs the id of padding: give padding=ID (pad_token_id of its config: {known})")
    return found


def counted(
    positions: str | Positions, padding: int | None, x: Any, y: Any, shape: Sequence[int]
) -> torch.Tensor | None:
    """True where a position of this shape (seeds, batch, ...) counts; None for all.

    "asked": where the labels `y` ask; "tokens": where the ids `x` are not padding; ValueError unless of this shape.
    """
    if positions == "all":
        return None
    if callable(positions):
        if not isinstance(marks := positions(x), torch.Tensor) or marks.shape != shape:
            found = tuple(marks.shape[1:]) if isinstance(marks, torch.Tensor) else type(marks).__name__
            raise ValueError(f"the mask of positions must have the shape {tuple(shape[1:])} of the layer, not {found}")
        return marks != 0
    marks = y if positions == "asked" else x.get("input_ids") if isinstance(x, Mapping) else x
    if not isinstance(marks, torch.Tensor) or marks.shape != shape or marks.is_floating_point():
        raise ValueError(f"positions={positions!r} needs a layer and a task with one entry a position: {tuple(shape)}")
    return asked(marks) if positions == "asked" else marks != padding


def frozen(teacher: nn.Module, device: torch.device) -> nn.Module:
    """A copy in eval mode (of a compiled or parallel teacher, of the network inside), out of everybody's reach."""
    return copied(_inside(teacher)).to(device).eval()
