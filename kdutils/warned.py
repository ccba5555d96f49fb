"""What a Distiller warns of: what trains without an error, and seldom as it was meant."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from kdutils import inside, reading, seeding, shards, teachers
from kdutils.losses import IGNORE
from kdutils.signals import Hidden, Regressed, Signal

_PASSED = {"kdutils", "torch", "transformers", "accelerate", "contextlib"}  # whose lines tell a reader nothing
FEW = 0.05  # of the positions: where so few hold more than half of a target's variance, it teaches little else


def warn(text: str) -> None:
    """A warning that names the line of the reader's own that led here, through whatever files of ours and of torch."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in _PASSED:
        frame, level = frame.f_back, level + 1
    warnings.warn(text, stacklevel=level)


def of_calls(student: nn.Module, signals: Sequence[Signal], x: Any, spare: set[str]) -> None:
    """Of layers that are called more than once in a pass of two samples of `x` (1, batch, ...)."""
    found: dict[int, tuple[nn.Module, set[str]]] = {}
    for layer in inside.layers(signals):
        sides = (student, layer.student_layer), (getattr(layer, "teacher", None), getattr(layer, "layer", ""))
        for network, path in sides:
            if network is not None and path:
                found.setdefault(id(network), (network, set()))[1].add(path)
    for network, paths in found.values():
        few = inside.given(network, reading.two(x), spare)
        for path, calls in _repeated(network, few, sorted(paths)).items():
            told = f"{path!r} of {type(network).__name__} is called {calls} times in a pass"
            warn(f"{told}: what it returns first is read")


@contextmanager
def of_heads(network: nn.Module, look: bool) -> Iterator[None]:
    """A block that warns, if it shall look, of an output that is several tensors of one shape: the first alone learns.

    Some networks with two heads return both of them in train mode, and their mean in eval mode.
    """

    def several(_: nn.Module, __: Any, output: Any) -> None:
        shapes = [getattr(entry, "shape", None) for entry in output] if type(output) in (tuple, list) else []
        if len(shapes) > 1 and shapes[0] is not None and shapes[0] == shapes[1]:
            told = f"{type(network).__name__} returns {len(shapes)} outputs in train mode, of which the first is read"
            warn(f"{told}: let `forward` return the one that counts, or their mean")

    look = look and network.training and network._compiled_call_impl is None  # a hook would be compiled with it
    hook = network.register_forward_hook(several) if look else None
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()


def _repeated(network: nn.Module, x: Any, paths: Sequence[str]) -> dict[str, int]:
    """Which of the modules at `paths` are called more than once in a pass, and how often."""
    calls, first = dict.fromkeys(paths, 0), next(network.parameters(), torch.empty(0))

    def count(path: str, *_: Any) -> None:
        calls[path] += 1

    hooks = [reading.module_at(network, p).register_forward_hook(partial(count, p)) for p in calls if p]
    try:
        drawing = seeding.global_rng(0, device=first.device)
        with suppress(Exception), teachers.still(network), drawing, reading.as_written(network):
            reading.outputs_at(network, inside.first(x))  # some can be read up to a layer alone
    finally:
        for hook in hooks:
            hook.remove()
    return {path: n for path, n in calls.items() if n > 1}


def of_same_stages(signals: Sequence[Signal], described: Sequence[str]) -> None:
    """Of neighbours that match the same thing under two names, as a live teacher in the place of its checkpoints."""
    for number, (one, two) in enumerate(pairwise(described), 1):
        names = {getattr(signal, "name", "") for signal in signals[number - 1 : number + 1]}
        if one == two and len(names) == 2:
            advice = "checkpoints of a teacher that goes on are copies (copy.deepcopy)"
            warn(f"stages {number} and {number + 1} match the very same thing: {advice}")


@torch.no_grad()
def of_few_positions(one: Any, signals: Sequence[Signal], x: Any, y: Any) -> None:
    """Of hidden targets whose variance, in the calibration `x`, `y` (1, batch, ...), is mostly that of a few positions.

    Pretrained language models have such positions, mostly a row's first (Sun et al., 2024). Centre and size are then
    theirs, and so is nearly all of the loss. `one` is a `binding.One` to which the signals are bound.
    """
    looked: set[tuple[int, str]] = set()
    for layer in inside.layers(signals):
        if not isinstance(layer, Hidden | Regressed) or getattr(layer, "normalise", "") == "position":
            continue
        h = one.read(layer.teacher, x, layer.layer, layer.units)
        if h.dim() < 4 or (id(layer.teacher), layer.layer) in looked:  # (1, batch, units) has no positions
            continue
        looked.add((id(layer.teacher), layer.layer))
        padding = reading.padding_of(layer.teacher, layer.positions, layer.padding)
        counts = reading.counted(layer.positions, padding, x, y, h.shape[:-1])
        share, few, every = _most(h, torch.ones_like(h[..., 0], dtype=torch.bool) if counts is None else counts)
        if share > 0.5:
            told = (
                f"{share:.0%} of the variance of {layer.layer!r} of {layer.name} is that of {few} of {every} positions"
            )
            advice = "say normalise='position', and leave" if isinstance(layer, Hidden) else "leave"
            advice += " such positions out by positions=, a function (in language models often each row's first)"
            warn(f"{told}, and its target teaches little else: {advice}")


def _most(h: torch.Tensor, counts: torch.Tensor) -> tuple[float, int, int]:
    """The share of the variance of h (1, batch, ..., units), where it counts, that a few positions have; how many they
    are, and of how many: the largest ones, or in sequences those at the same place of every row."""
    size = (h - h[counts].mean(0)).square().sum(-1) * counts
    every, whole = int(counts.sum()), size.sum().clamp_min(torch.finfo(size.dtype).tiny)
    few = int(FEW * every)
    found = [(float(size.flatten().topk(few).values.sum() / whole), few, every)]
    if h.dim() == 4:
        sums, there = size.sum((0, 1)), counts.sum((0, 1))
        largest = int(sums.argmax())
        if there[largest] <= every / 4:
            found.append((float(sums[largest] / whole), int(there[largest]), every))
    return max(found)


def of_padding(batch: Any, values: Sequence[torch.Tensor], look: bool) -> bool:
    """Whether it warned: of a batch with padding that nothing leaves out, as no mask was named.

    Args:
        values: what is matched at all positions, (batch, ..., units).
        look: whether to look at a mask on a GPU, which waits for it.
    """
    marks = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if all(value.dim() < 3 for value in values) or not isinstance(marks, torch.Tensor) or marks.dim() != 2:
        return False
    if not (look or marks.device.type == "cpu") or bool((marks != 0).all()):
        return False
    advice = "say mask='attention_mask', or a function of the batch that says which positions count"
    warn(f"the batch has padding, and no mask says that it does not count: {advice}")
    return True


def of_one_logit(outputs: torch.Tensor, marks: torch.Tensor) -> None:
    """Of outputs (batch, classes) of the very shape of a mask of positions, which may be one logit a position."""
    if outputs.shape == marks.shape:
        told = f"the outputs {tuple(outputs.shape)} have the shape of the mask, and are compared as classes of a sample"
        warn(f"{told}: if they are one logit a position, match them by a signal of your own")


def of_steps(step: int, last: int) -> bool:
    """Whether it warned: of a step that comes after a later one, as where they are counted anew in each epoch."""
    if step < last:
        told = f"step {step} comes after step {last}, so the curriculum goes back"
        warn(f"{told}: count optimiser steps over the whole training, not anew in each epoch")
    return step < last


def of_seed(signals: Sequence[Signal], seed: int) -> None:
    """Of a record whose projections were drawn with another seed: that one holds."""
    for layer in inside.recorded(list(signals)):
        then = layer.targets.about["settings"]["seed"]
        if layer.targets.about["leaves"][layer.key]["kind"] == "Hidden" and then != shards.told(seed):
            advice = "to repeat over seeds, make a record with each"
            return warn(f"the projections are those of the record, of seed {then}, whatever seed={seed} says: {advice}")


def of_starts(student: nn.Module, teacher: nn.Module) -> None:
    """Of encoder-decoders of transformers that begin what they write with other tokens."""
    own, theirs = (getattr(getattr(n, "config", None), "decoder_start_token_id", None) for n in (student, teacher))
    if None not in (own, theirs) and own != theirs:
        told = f"what the student writes begins with token {own}, what the teacher writes with {theirs}"
        warn(f"{told}: both are given the same decoder_input_ids")


def of_experts(network: nn.Module) -> None:
    """Of a mixture of experts whose own loss has a part that labels do not tell."""
    config = getattr(network, "config", None)
    if getattr(config, "output_router_logits", False) is True and getattr(config, "router_aux_loss_coef", 0):
        told = f"the own loss of {type(network).__name__} balances its experts (router_aux_loss_coef)"
        warn(f"{told}, and a curriculum's does not: add it in your own loop")


def of_labels(batch: Any, labels: Any, learned: bool) -> None:
    """Of labels that were not shifted, as models of transformers do inside: `learned`, or saying what counts."""
    entries = list(batch.values()) if isinstance(batch, Mapping) else [batch]
    tokens = [e for e in entries if isinstance(e, torch.Tensor) and e.dim() == 2 and e.dtype in (torch.int, torch.long)]
    ids = batch.get("input_ids") if isinstance(batch, Mapping) and "input_ids" in batch else None
    ids = tokens[0] if ids is None and len(tokens) == 1 else ids
    if not (isinstance(ids, torch.Tensor) and isinstance(labels, torch.Tensor)) or ids.shape != labels.shape:
        return
    asked = labels != IGNORE
    told = (learned or not asked.all()) and asked.any()
    if told and bool((labels == ids)[asked].all()):
        advice = "a causal language model needs the next token at each position, -100 at the last (of a Trainer: "
        advice += "shift_labels=True)"
        warn(f"the labels are the inputs themselves: {advice}")
