"""Values that are refused, each with one line that names it and says what would be right."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import UninitializedTensorMixin
from torch.nn.utils.rnn import PackedSequence

from kdutils.losses import IGNORE, only


def count(name: str, value: Any) -> int:
    """A whole number from 1 on, numpy's among them, as Python's int."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} must be a whole number from 1 on, not {value!r}")
    return int(value)


def number(name: str, value: Any, above: float = -math.inf) -> float:
    """A finite number larger than `above`, numpy's among them, as Python's float."""
    if isinstance(value, bool) or not isinstance(value, Real) or not above < value < math.inf:
        wanted = "a finite number" if above == -math.inf else f"a finite number above {above:g}"
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
    if isinstance(target, tuple):
        if not isinstance(target[-1], torch.Tensor) or target[-1].dtype != torch.bool:  # of several signals
            return next((found for part in target if (found := nonfinite(part))), None)
        target = only(*target)
    bad = (~target.isfinite()).reshape(*target.shape[:2], -1).any(2).nonzero()
    return f"sample {bad[0, 1]} of seed number {bad[0, 0]}" if len(bad) else None


def not_probabilities(outputs: torch.Tensor) -> None:
    """Refuse a teacher's outputs (..., classes) that its softmax has already been taken of."""
    if outputs.shape[-1] > 1 and bool((outputs >= 0).all() and ((outputs.sum(-1) - 1).abs() < 1e-3).all()):
        raise ValueError("the teacher's outputs are probabilities, which sum to 1: let it return logits")


def labels(y: torch.Tensor, look: bool = True) -> None:
    """Refuse labels that are no classes; to `look` at the entries waits for a GPU."""
    if y.is_floating_point():
        raise ValueError(f"labels are whole numbers, the classes from 0 on, not {y.dtype}")
    if look and (wrong := y[(y < 0) & (y.long() != IGNORE)]).numel():
        raise ValueError(f"labels are classes from 0 on, and {IGNORE} where nothing is asked, not {wrong[0].item()}")


def shifted(batch: Any, labels: Any) -> None:
    """Warn of labels that were not shifted, as models of transformers do inside."""
    ids = batch.get("input_ids") if isinstance(batch, Mapping) else batch
    if not (isinstance(ids, torch.Tensor) and isinstance(labels, torch.Tensor) and ids.dim() == 2):
        return
    if ids.shape == labels.shape and bool((labels == ids)[labels != IGNORE].all()):
        advice = "a causal language model needs the next token at each position, -100 at the last"
        warnings.warn(f"the labels are the inputs themselves: {advice}", stacklevel=3)


def held(whole: tuple | list, parts: list) -> Any:
    """New parts in a list or tuple of the kind that `whole` is; TypeError for one that does not keep samples apart."""
    if isinstance(whole, PackedSequence):
        raise TypeError("a PackedSequence does not keep samples apart: give padded tensors, and pack in the network")
    if isinstance(whole, list):
        return parts
    return type(whole)(*parts) if hasattr(whole, "_fields") else tuple(parts)


def classifies(network: nn.Module) -> None:
    """Refuse a model of transformers whose outputs are not meant for a softmax."""
    kind = getattr(getattr(network, "config", None), "problem_type", None)
    if kind in ("multi_label_classification", "regression"):
        raise ValueError(
            f"outputs are compared by their softmax, and {type(network).__name__} is for {kind} (problem_type of its "
            "config): match them by a signal of your own"
        )


def one_process(network: nn.Module) -> None:
    """Refuse a network that was wrapped for several processes, and warn where there are several: nothing is shared."""
    advice = "kdutils.distiller and kdutils.hf train one network on several processes"
    if isinstance(network, DistributedDataParallel) or any(hasattr(m, "_get_fsdp_state") for m in network.modules()):
        raise ValueError(
            f"{type(network).__name__} is wrapped for several processes, and an ensemble trains in one: "
            f"let make() return the module that is in it; {advice}"
        )
    if distributed.is_available() and distributed.is_initialized() and (n := distributed.get_world_size()) > 1:
        warnings.warn(
            f"{n} processes are running and this training shares nothing between them: each trains students of its "
            f"own; {advice}",
            stacklevel=3,
        )


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
            name = different[0]
            raise ValueError(
                f"make() builds networks of different shapes: {name} is {first.get(name)} and {other.get(name)}"
            )
    for network in networks:
        if held := [n for n, p in network.named_parameters() if p._backward_hooks or p._post_accumulate_grad_hooks]:
            raise ValueError(
                f"{held[0]} has a hook on its gradient, which an ensemble would leave out: see kdutils.distiller"
            )
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
            raise ValueError(
                f"{part} changes its attribute {name!r} when it is put in eval mode, and an ensemble goes from mode to "
                "mode at every evaluation: let make() leave it out, or train the network with kdutils.distiller"
            )
    return network


def of_the_hub(config: Any) -> bool:
    """Whether this is the config of a model of transformers."""
    kind = getattr(sys.modules.get("transformers.configuration_utils"), "PreTrainedConfig", ())
    return isinstance(config, kind)


@contextmanager
def uncached(network: nn.Module) -> Iterator[None]:
    """A block where a model of transformers keeps no keys and values: with them, it reads packed texts as one."""
    configs = [getattr(module, "config", None) for module in network.modules()]
    changed = {id(config): config for config in configs if of_the_hub(config) and getattr(config, "use_cache", None)}
    try:
        for config in changed.values():
            config.use_cache = False
        yield
    finally:
        for config in changed.values():
            config.use_cache = True


def entry(name: Any) -> None:
    """Refuse the name of a mask that says where not to look, as torch's own layers take it."""
    if isinstance(name, str) and name.endswith("key_padding_mask"):
        advice = f"say mask=lambda batch: ~batch[{name!r}]"
        raise ValueError(f"a {name} is True where there is padding, and a mask where positions count: {advice}")


def same_start(student: nn.Module, teacher: nn.Module) -> None:
    """Warn where encoder-decoders of transformers begin what they write with other tokens."""
    own, theirs = (getattr(getattr(n, "config", None), "decoder_start_token_id", None) for n in (student, teacher))
    if None not in (own, theirs) and own != theirs:
        told = f"what the student writes begins with token {own}, what the teacher writes with {theirs}"
        warnings.warn(f"{told}: both are given the same decoder_input_ids", stacklevel=3)


def routed(network: nn.Module) -> None:
    """Warn of a mixture of experts whose own loss has a part that labels do not tell."""
    config = getattr(network, "config", None)
    if getattr(config, "output_router_logits", False) is True and getattr(config, "router_aux_loss_coef", 0):
        told = f"the own loss of {type(network).__name__} balances its experts (router_aux_loss_coef)"
        warnings.warn(f"{told}, and a curriculum's does not: add it in your own loop", stacklevel=3)


def readable(network: nn.Module) -> None:
    """Refuse a network whose layers and attributes nobody sees any more."""
    if any(isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
        raise ValueError(
            f"{type(network).__name__} is from torch.jit, which hides what a network is: give the module it was made of"
        )


def in_eval_mode(network: nn.Module) -> list[tuple[nn.Module, bool]]:
    """Put a network in eval mode; what `restored` needs to bring every module back."""
    before = [(module, module.training) for module in network.modules()]
    network.eval()
    return before


def restored(before: list[tuple[nn.Module, bool]]) -> None:
    """By `train` and not by hand: a module may do more there than note its mode, as adapters do that merge."""
    for module, training in before:  # a module comes before its parts
        if module.training != training:
            module.train(training)
