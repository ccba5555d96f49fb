"""Values that are refused, each with one line that names it and says what would be right."""

from __future__ import annotations

import copy
import inspect
import math
import operator
import sys
import warnings
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import UninitializedTensorMixin
from torch.nn.utils.rnn import PackedSequence

from kdutils.losses import IGNORE, only

RULED_OUT = ("the student rules out classes (-inf) that its target gives weight: rule them out in teacher and labels, "
             "too, or let the student return a large negative number there")  # fmt: skip


def count(name: str, value: Any) -> int:
    """A whole number from 1 on, numpy's among them, as Python's int."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} must be a whole number from 1 on, not {value!r}")
    return int(value)


def whole(name: str, value: Any) -> int:
    """A whole number, also one that a tensor holds, as Python's int."""
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, not {value!r}") from None


def number(name: str, value: Any, above: float = -math.inf, most: float = sys.float_info.max) -> float:
    """A finite number larger than `above` and at `most` so large, numpy's among them, as Python's float."""
    value = value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value
    if isinstance(value, bool) or not isinstance(value, Real) or not above < value <= most:
        wanted = "a finite number" if above == -math.inf else f"a finite number above {above:g}"
        wanted += f", and {most:g} at most" if most < sys.float_info.max else ""
        raise ValueError(f"{name} must be {wanted}, not {value!r}")
    return float(value)


def listed(name: str, values: Any, kind: type = Real) -> list[Any]:
    """A list of numbers (`kind` Real) or of whole ones (Integral), arrays among them, as Python's."""
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        raise ValueError(f"{name} must be a list, such as [1, 2, 3], not {values!r}")
    values = list(values.tolist() if hasattr(values, "tolist") else values)
    for value in values:
        if isinstance(value, bool) or not isinstance(value, kind):
            wanted = "whole numbers" if kind is Integral else "numbers"
            raise ValueError(f"{name} must be {wanted}; {value!r} is none")
    return [int(value) if kind is Integral else float(value) for value in values]


def one_of(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Nothing, where `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r}")


def nonfinite(target: Any) -> str | None:
    """Names the first sample of a target, as from `Bound.target`, with a number that is not finite where it counts."""
    if isinstance(target, tuple) and target:
        masked = len(target) == 2 and isinstance(target[-1], torch.Tensor) and target[-1].dtype == torch.bool
        if not masked:  # of several signals
            return next((found for part in target if (found := nonfinite(part))), None)
        target = only(*target)
    if not isinstance(target, torch.Tensor) or target.dim() < 2 or not target.numel():  # of a signal of one's own
        return None
    bad = (~target.isfinite()).reshape(*target.shape[:2], -1).any(2).nonzero()
    return f"sample {bad[0, 1]} of seed number {bad[0, 0]}" if len(bad) else None


def not_probabilities(outputs: torch.Tensor, whose: str = "teacher") -> None:
    """Refuse outputs (..., classes) that their softmax has already been taken of."""
    if outputs.numel() and outputs.shape[-1] > 1 and _are_shares(outputs):
        raise ValueError(f"the {whose}'s outputs are probabilities, which sum to 1: let it return logits")


def labels(y: torch.Tensor, look: bool = True, classes: float = math.inf) -> None:
    """Refuse labels that are none of so many classes; to `look` at the entries waits for a GPU."""
    if y is None:
        return
    if not isinstance(y, torch.Tensor) or y.is_floating_point() or y.is_complex():
        advice = "for regression or several labels write a signal of your own, and give a task a `score`"
        raise ValueError(f"labels must be whole numbers, not {getattr(y, 'dtype', type(y).__name__)}: {advice}")
    if look and (wrong := y[((y < 0) & (y.long() != IGNORE)) | (y.long() >= classes)]).numel():
        if classes < math.inf:
            raise ValueError(f"label {wrong[0].item()} is none of the student's classes, 0 to {classes - 1}")
        raise ValueError(f"labels are classes from 0 on, and {IGNORE} where nothing is asked, not {wrong[0].item()}")


def fitting(outputs: Sequence[int], y: Any, needed: bool, look: bool = True) -> None:
    """Refuse labels that are no classes of outputs (batch, ..., classes); those that are not `needed` may be shares of
    classes. To `look` at them waits for a GPU."""
    if y is None or not (needed or isinstance(y, torch.Tensor)):
        return
    shares = not needed and len(outputs) == 2 and y.is_floating_point()
    if shares and (not look or (y.shape[1:] == tuple(outputs)[1:] and _are_shares(y))):
        return
    labels(y, look=False)
    one, own, found = f"outputs (batch, ..., classes) of {tuple(outputs)}", tuple(outputs)[1:], tuple(y.shape)[1:]
    if found == own:
        advice = "several labels or one logit a position need a signal of your own"
        raise ValueError(f"{one} are compared by their softmax, and labels of that very shape are no classes: {advice}")
    if found != own[:-1] and (needed or len(own) > 1):
        last = ": let `forward` return its classes last, outputs.movedim(1, -1)"
        more = last if found == own[1:] or len(own) > 2 else ""
        wanted = f"labels of {(outputs[0], *own[:-1])}, {IGNORE} where nothing is asked"
        more = more or (": leave out labels of another kind, as of CTC" if not needed else "")
        raise ValueError(f"{one} need {wanted}; the task's are {(outputs[0], *found)}{more}")


def _are_shares(y: torch.Tensor) -> bool:
    return bool((y >= 0).all() and ((y.sum(-1) - 1).abs() < 1e-2).all())  # bfloat16 rounds each by up to 0.4 %


def classes_last(x: Any, outputs: Sequence[int]) -> None:
    """Warn of outputs (batch, a, b) without labels where b, and not a, is the length of inputs (seeds, batch, ...)."""
    x = x.get("input_ids") if isinstance(x, Mapping) else x
    if not isinstance(x, torch.Tensor) or len(outputs) != 3 or x.dim() != (4 if x.is_floating_point() else 3):
        return
    if outputs[2] == x.shape[2] != outputs[1]:
        told = f"outputs of {tuple(outputs)} seem to have their positions last, where classes belong"
        advice = "if so, let `forward` return outputs.movedim(1, -1); labels (calibration_labels) tell which they are"
        warnings.warn(f"{told}: {advice}", stacklevel=2)


def marks(mask: torch.Tensor) -> bool:
    """Refuse a mask of numbers other than 0 and 1, such as those that are added to attention; True."""
    if isinstance(mask, torch.Tensor) and mask.is_floating_point() and len(wrong := mask[(mask != 0) & (mask != 1)]):
        advice = "give True and False, or 1 and 0 (of one that is added to attention: mask == 0)"
        raise ValueError(f"a mask of positions says which count, and {wrong[0].item():g} does not: {advice}")
    return True


def pairs(name: str, values: Any) -> list[tuple[str, str]]:
    """Pairs of paths, at least one."""
    found = [] if isinstance(values, str | Mapping) or not hasattr(values, "__iter__") else list(values)
    two = [not isinstance(p, str) and hasattr(p, "__iter__") and [isinstance(q, str) for q in p] for p in found]
    if not found or any(pair != [True, True] for pair in two):
        wanted = "pairs of the teacher's and the student's path, at least one, such as [('act', 'act')]"
        raise ValueError(f"{name} must be {wanted}, not {found or values!r}")
    return [(str(one), str(two)) for one, two in found]


def layer(teacher: Any, paths: Sequence[Any], units: Any) -> None:
    """Nothing, where the teacher is a network, layers are named by their paths, and a dimension by its number."""
    if not isinstance(teacher, nn.Module):
        raise ValueError(f"a teacher must be a torch module, not a {type(teacher).__name__}")
    if lost := [path for path in paths if not isinstance(path, str)]:
        raise ValueError(f"a layer is named by its path, such as 'blocks.0', not by {lost[0]!r}")
    if units is not None and (isinstance(units, bool) or not isinstance(units, Integral)):
        raise ValueError(f"units is the number of a dimension, such as 1, not {units!r}")


def texts(name: str, values: Any) -> tuple[str, ...]:
    """Paths, or one path, as a tuple of them."""
    values = (values,) if isinstance(values, str) else tuple(values) if hasattr(values, "__iter__") else values
    if not isinstance(values, tuple) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{name} must be paths of parameters or modules, as ('readout',), not {values!r}")
    return values


def some(name: str, values: Any) -> Any:
    """The values, at least one."""
    if name == "checkpoints" and not isinstance(values, Mapping):
        raise ValueError(f"{name} must be a mapping, as {{'half way': network}}, not a {type(values).__name__}")
    values = values if isinstance(values, Mapping) else listed(name, values)
    if not values:
        raise ValueError(f"{name} are empty, and nothing would come before the final teacher: say one_shot(teacher)")
    return values


def copied(model: nn.Module) -> nn.Module:
    """A copy, also of a module that keeps a computed tensor, as the older weight_norm does."""
    kept = [value for module in model.modules() for value in vars(module).values() if isinstance(value, torch.Tensor)]
    dead = torch._C._functorch.is_batchedtensor  # of a vmap that is over: nobody can read its numbers any more
    memo = {id(v): torch.zeros(v.shape) if dead(v) else v.detach().clone() for v in kept if dead(v) or not v.is_leaf}
    return copy.deepcopy(model, memo)


def held(whole: tuple | list, parts: list) -> Any:
    """New parts in a list or tuple of the kind that `whole` is; TypeError for one that does not keep samples apart."""
    if isinstance(whole, PackedSequence):
        raise TypeError("a PackedSequence does not keep samples apart: give padded tensors, and pack in the network")
    if isinstance(whole, list):
        return parts
    return type(whole)(*parts) if hasattr(whole, "_fields") else tuple(parts)


def classifies(*networks: nn.Module | None) -> None:
    """Refuse models of transformers whose outputs are not meant for a softmax."""
    for network in networks:
        kind = getattr(getattr(network, "config", None), "problem_type", None)
        if kind not in ("multi_label_classification", "regression"):
            continue
        told = f"{type(network).__name__} is for {kind} (problem_type of its config)"
        raise ValueError(f"outputs are compared by their softmax, and {told}: match them by a signal of your own")


def one_process(network: nn.Module) -> None:
    """Refuse a network that was wrapped for several processes, and warn where there are several: nothing is shared."""
    advice = "kdutils.distiller and kdutils.hf train one network on several processes"
    if isinstance(network, DistributedDataParallel) or any(hasattr(m, "_get_fsdp_state") for m in network.modules()):
        told = f"{type(network).__name__} is wrapped for several processes, and an ensemble trains in one"
        raise ValueError(f"{told}: let make() return the module that is in it; {advice}")
    if distributed.is_available() and distributed.is_initialized() and (n := distributed.get_world_size()) > 1:
        told = f"{n} processes are running and this training shares nothing between them"
        warnings.warn(f"{told}: each trains students of its own; {advice}", stacklevel=3)


def takes(what: str, function: Any, *arguments: Any) -> None:
    """Raises ValueError unless `function`, which is to be `what`, can be called with these."""
    try:
        inspect.signature(None if isinstance(function, nn.Module) else function).bind(*arguments)
    except TypeError as error:
        raise ValueError(f"{what}, not {f'{function!r:.60}'.splitlines()[0]} ({error})") from None


def members(networks: Sequence[nn.Module]) -> None:
    """Raises ValueError unless the networks are separate, built to the end, and of one shape."""
    for network in networks:
        if not isinstance(network, nn.Module):
            raise ValueError(f"make() must return a torch module, not a {type(network).__name__}")
        if any(isinstance(p, UninitializedTensorMixin) for p in (*network.parameters(), *network.buffers())):
            raise ValueError("make() returns lazy modules: let it run one batch through them before it returns")
    if len({id(network) for network in networks}) < len(networks):
        raise ValueError("make() returned the same network twice: it must build a new one at each call")
    first, *others = [{n: tuple(t.shape) for n, t in (*m.named_parameters(), *m.named_buffers())} for m in networks]
    for other in others:
        different = sorted(n for n in first.keys() | other.keys() if first.get(n) != other.get(n))
        if different:
            shapes = f"{different[0]} is {first.get(different[0])} and {other.get(different[0])}"
            raise ValueError(f"make() builds networks of different shapes: {shapes}")
    for network in networks:
        if held := [n for n, p in network.named_parameters() if p._backward_hooks or p._post_accumulate_grad_hooks]:
            told = "has a hook on its gradient, which an ensemble would leave out"
            raise ValueError(f"{held[0]} {told}: see kdutils.distiller")
    if len({tuple((n, p.requires_grad) for n, p in network.named_parameters()) for network in networks}) > 1:
        raise ValueError("make() freezes other parameters for one seed than for another: members need the same")


def attributes(network: nn.Module) -> dict[tuple[str, str], Any]:
    """What a network's modules hold beside their parameters, buffers and modules."""
    held = ("_parameters", "_buffers", "_modules")
    parts = network.named_modules()
    return {(path, name): value for path, part in parts for name, value in vars(part).items() if name not in held}


def evaluated(network: nn.Module) -> nn.Module:
    """The network in eval mode; ValueError for one that does more there than to note it, as adapters do that merge."""
    before = attributes(network)
    network.eval()
    for (path, name), value in attributes(network).items():
        was = before.get((path, name), network)
        plain, empty = type(value) in (bool, int, float, str), isinstance(value, list | dict) and not value
        alike = was is value or (type(was) is type(value) and ((plain and was == value) or (empty and not was)))
        if name != "training" and not alike:
            part = type(network.get_submodule(path)).__name__
            told = f"{part} changes its attribute {name!r} when it is put in eval mode, and an ensemble goes from mode"
            advice = "let make() leave it out, or train the network with kdutils.distiller"
            raise ValueError(f"{told} to mode at every evaluation: {advice}")
    return network


def readable(network: nn.Module) -> None:
    """Refuse a teacher whose layers, attributes or numbers nobody sees."""
    what, exported = type(network).__name__, any(b.__module__.startswith("torch.export") for b in type(network).__mro__)
    if exported or any(isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
        maker = "torch.export" if exported else "torch.jit"
        raise ValueError(f"{what} is from {maker}, which hides what a network is: give the module it was made of")
    if any(isinstance(tensor, UninitializedTensorMixin) for tensor in (*network.parameters(), *network.buffers())):
        raise ValueError(f"the teacher, a {what}, has lazy modules: let one batch run through it before")
    loaded(network, "teacher")


def loaded(network: nn.Module, whose: str) -> None:
    """Refuse a network whose weights are not there yet."""
    if any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers())):
        raise ValueError(f"the {whose}, a {type(network).__name__}, is on the meta device: load its weights before")
