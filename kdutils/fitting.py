"""Whether a plan, a student, a batch and the other processes fit together: what is refused before a step."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.functional import cross_entropy

from kdutils import checks, fingerprints, inside, reading, teachers
from kdutils.signals import Bound, Signal, WeightedSum

ENCODER = "attention_mask"  # the entry of an encoder-decoder's batches that is of the encoder's positions alone


def proper(signals: Sequence[Any]) -> None:
    """ValueError for a stage's signal that is none, and for a sum whose parts have no weights."""
    for number, signal in enumerate(signals, 1):
        _proper(signal, f"stage {number}")


def _proper(signal: Any, where: str) -> None:
    if not hasattr(signal, "bind") or isinstance(signal, type):
        found = signal.__name__ if isinstance(signal, type) else f"a {type(signal).__name__}"
        raise ValueError(f"{where} matches {found}, which is no signal: say Output(teacher), Hidden(...) or Labels()")
    if isinstance(signal, WeightedSum) and not signal.terms:
        raise ValueError(f"{where}: a WeightedSum of nothing teaches nothing: give it pairs (weight, signal)")
    for term in signal.terms if isinstance(signal, WeightedSum) else ():
        if not isinstance(term, tuple | list) or len(term) != 2:
            needed = "pairs (weight, signal), as ((0.5, Labels()), (0.5, Output(teacher)))"
            raise ValueError(f"{where}: a WeightedSum needs {needed}, not a {type(term).__name__}")
        if not isinstance(term[0], torch.Tensor):  # one that is learned
            checks.number(f"{where}: a weight of its WeightedSum", term[0])
        _proper(term[1], where)


def samples(batch: Any, what: str = "the batch") -> None:
    """ValueError for a batch of another kind than networks here are given, or without samples."""
    if not isinstance(batch, torch.Tensor | Mapping | tuple | list):
        needed = "must be a tensor, a mapping (passed on by name) or a tuple"
        raise ValueError(f"{what} {needed}, not a {type(batch).__name__}")
    if isinstance(batch, list) and batch and all(isinstance(row, Mapping) for row in batch):
        advice = "collate them before, as torch.utils.data.default_collate(rows) does"
        raise ValueError(f"{what} is a list of rows, each a mapping: {advice}")
    sizes: list[int] = []
    reading.each(lambda t: sizes.append(len(t)) if t.dim() else None, batch)
    if sizes and not any(sizes):
        raise ValueError(f"{what} is empty: it has no samples")


def labelled(labels: Any, stage: str, learned: bool, asked: bool, classes: bool) -> None:
    """ValueError for labels that a stage cannot use.

    Args:
        learned, asked, classes: whether it learns from them, reads a layer where they ask, or compares outputs there.
    """
    if labels is None and asked:
        raise ValueError(f"{stage} matches a layer where labels ask: give labels")
    tensor = isinstance(labels, torch.Tensor)
    if learned and (not tensor or labels.is_floating_point()):
        found = labels.dtype if tensor else type(labels).__name__
        raise ValueError(f"{stage} learns from labels: give whole numbers, not {found}")
    if classes and labels is not None and not tensor:
        raise ValueError(f"{stage}: labels must be a tensor, not a {type(labels).__name__}: torch.as_tensor(labels)")


def finite(loss: torch.Tensor, target: Any, own: torch.Tensor | None, where: str) -> None:
    """ValueError where a loss is no number, and the target is none, or the student's outputs rule something out."""
    if loss.isfinite().all():
        return
    if own is not None and bool((own == -torch.inf).any()) and bool((loss == torch.inf).any()):
        raise ValueError(f"{where}: {checks.RULED_OUT}")
    if bad := checks.nonfinite(target):
        advice = "look at its inputs, and whether the teacher overflows in half precision"
        raise ValueError(f"{where}: the target is not finite at {bad} of the batch: {advice}")


@contextmanager
def uncached(network: nn.Module) -> Iterator[None]:
    """A block where a model of transformers keeps no keys and values: with them, it reads packed texts as one."""
    configs = filter(fingerprints.of_the_hub, (getattr(module, "config", None) for module in network.modules()))
    changed = {id(config): config for config in configs if getattr(config, "use_cache", None)}
    try:
        for config in changed.values():
            config.use_cache = False
        yield
    finally:
        for config in changed.values():
            config.use_cache = True


def two_sided(network: nn.Module) -> bool:
    return bool(getattr(getattr(network, "config", None), "is_encoder_decoder", False))


def decoder_inputs(network: nn.Module) -> tuple[Callable[[Any], Any] | None, bool]:
    """How a decoder's inputs are made from labels, if the network knows it, and whether batches need them.

    Classifiers, and models without a head, have a way of their own.
    """
    make, config = getattr(network, "prepare_decoder_input_ids_from_labels", None), getattr(network, "config", None)
    of_ids = getattr(network, "main_input_name", "input_ids") == "input_ids" or not network.can_generate()
    shift = getattr(sys.modules.get(type(network).__module__), "shift_tokens_right", None)  # as its own forward does
    if make is None and shift is not None and network.can_generate():
        own = {*inspect.signature(shift).parameters} & {"pad_token_id", "decoder_start_token_id"}
        make = partial(shift, **{name: getattr(config, name, None) for name in own})
    return make, make is not None or not of_ids


def decodes(network: nn.Module, batch: Any, reads: Sequence[str]) -> None:
    """ValueError where an encoder-decoder that needs `decoder_inputs` would go as far as its decoder without them.

    Some models of transformers then take the encoder's inputs, which is not what their own loss does.
    """
    if not two_sided(network) or isinstance(batch, tuple | list) or all("encoder" in p.split(".") for p in reads):
        return
    make, needed = decoder_inputs(network)
    if needed and not any(name.startswith("decoder_input") for name in inside.names(batch)):
        way = getattr(make, "__name__", "shift_tokens_right of its module")
        advice = f"make them of the labels ({way})" if make else "put them there"
        told = f"a {type(network).__name__} needs decoder_input_ids in its batches, and the calibration"
        raise ValueError(f"{told}, as all encoder-decoders: {advice}")


@contextmanager
def headed(network: nn.Module) -> Iterator[None]:
    """A block that refuses a network without a head, as AutoModel gives: its outputs are hidden units, no classes."""
    if not fingerprints.of_the_hub(getattr(network, "config", None)):  # another may call its logits as it likes
        yield
        return

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        if _entry(output, "logits") is None and _entry(output, "last_hidden_state") is not None:
            advice = "give one with a head (AutoModelFor...), or a plan of Hidden stages alone"
            raise ValueError(f"{type(network).__name__} has no head, and its last_hidden_state no classes: {advice}")

    hook = network.register_forward_hook(look)
    try:
        with reading.as_written(network):  # compiled code skips hooks that came later
            yield
    finally:
        hook.remove()


def _entry(output: Any, name: str) -> Any:
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)


def one_side(student: nn.Module, mask: Any, signals: Sequence[Signal]) -> None:
    """ValueError where an encoder's mask, or one of padding, would be taken for that of a decoder's positions."""
    if isinstance(mask, str) and mask.endswith("key_padding_mask"):  # as torch's layers are told where not to look
        advice = f"say mask=lambda batch: ~batch[{mask!r}]"
        raise ValueError(f"a {mask} is True where there is padding, and a mask where positions count: {advice}")
    read = inside.placed(signals, "all") if mask == ENCODER and two_sided(student) else []
    paths = [layer.student_layer.split(".") for layer in read]
    if {next((part for part in path if part in ("encoder", "decoder")), "") for path in paths} - {"encoder"}:
        advice = "say which count: mask=None for all, mask=a function of the batch, or `positions` of each"
        raise ValueError(f"{ENCODER} is of the encoder, and the plan reads layers of the decoder: {advice}")


@torch.no_grad()
def shifts(student: nn.Module, batch: Mapping[str, Any]) -> bool | None:
    """Whether a student's own loss of a batch takes the label of the next position; None, where that does not tell."""
    labels = batch.get("labels")
    named, others = inside.taken(student)
    if not (others or "labels" in named) or not isinstance(labels, torch.Tensor):
        return None
    try:
        with teachers.still(student):
            output = student(**inside.given(student, batch, inside.names(batch)))
    except Exception:  # a plan that does not ask for it does not need it
        return None
    own, z = (_entry(output, name) for name in ("loss", "logits"))
    if isinstance(output, tuple) and own is z is None:  # (loss, logits, ...), as with return_dict=False
        tensors = [part for part in output if isinstance(part, torch.Tensor)]
        own = next((part for part in tensors if not part.dim()), None)
        z = next((part for part in tensors if part.dim() == labels.dim() + 1), None)
    balance, share = _entry(output, "aux_loss"), getattr(getattr(student, "config", None), "router_aux_loss_coef", 0)
    if isinstance(own, torch.Tensor) and isinstance(balance, torch.Tensor):
        own = own - share * balance  # of a mixture of experts
    if own is None or z is None or labels.dim() != 2 or z.shape[:-1] != labels.shape or z.shape[-1] <= labels.max():
        return None
    each = ((z[:, :-1], labels[:, 1:]), (z, labels))
    found = (cross_entropy(z.flatten(0, 1).float(), y.flatten()) for z, y in each)
    shifted, plain = ((own.float() - loss).abs() for loss in found)
    return bool(shifted < plain) if min(shifted, plain) < 0.1 * max(shifted, plain) else None


def processes(plan: str, bounds: Sequence[Bound], only: bool) -> None:
    """Every process learns from the tensors of the first; ValueError unless all have the same `plan`, told as a text.

    Args:
        only: whether a stage moves only some parameters.
    """
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return
    plans: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(plans, plan)
    for rank, theirs in enumerate(plans):
        if found := fingerprints.difference(theirs, plans[0]):
            raise ValueError(f"process {rank} has another curriculum than process 0: {found}")
    if only:
        raise ValueError("stages that move only some parameters (`only`) are for a single process")
    for bound in bounds:
        for tensor in bound.tensors.values():
            distributed.broadcast(tensor, 0)
