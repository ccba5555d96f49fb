"""How a curriculum is tied to one live network: an ensemble of one, what it drew, how it is told apart."""

from __future__ import annotations

import dis
import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from kdutils import checks, reading
from kdutils.signals import Bound, Signal

_WITH_A_MODE = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._NormBase)
_NOT_TOLD = {"training", "name_or_path"}  # a mode, and where a network was loaded from
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an entry


class One:
    """An ensemble of one (`signals.Students`) around a live network, and the teachers it learns from, where they are.

    A teacher that is read at several layers for the same inputs runs once, from the second time on.
    """

    def __init__(self, student: nn.Module, seed: int, vocabulary: int | None = None) -> None:
        self.skeleton, self.seeds, self.vocabulary = student, (int(seed),), vocabulary
        first = next(student.parameters(), None)
        if first is None:
            raise ValueError(f"the student, a {type(student).__name__}, has no parameters to train")
        self.device = first.device
        self.stage, self.paths, self.seen, self.rows = -1, {}, {}, None
        self.mask, self.marks = None, None

    def spread(self, per_seed: Any) -> Any:
        return per_seed

    @torch.no_grad()
    def shape_at(self, path: str, x: Any) -> torch.Size:
        training = checks.in_eval_mode(self.skeleton)
        try:
            values = reading.outputs_at(self.skeleton, _first(x), (path, reading.OUTPUT))[path]
            if path == reading.OUTPUT and self.vocabulary and self.vocabulary > values.shape[-1]:
                raise ValueError(f"the student's output has {values.shape[-1]} classes, vocabulary={self.vocabulary}")
            return self.cut(values, path).shape
        finally:
            checks.restored(training)

    def cut(self, values: torch.Tensor, path: str) -> torch.Tensor:
        """Of an output, the classes that everybody has."""
        return values[..., : self.vocabulary] if path == reading.OUTPUT and self.vocabulary else values

    def teacher(self, network: nn.Module) -> nn.Module:
        if not isinstance(network, nn.Module):
            raise ValueError(f"a teacher must be a torch module, not a {type(network).__name__}")
        own, theirs = ({id(module): name for name, module in net.named_modules()} for net in (self.skeleton, network))
        if id(network) in own or id(self.skeleton) in theirs:
            raise ValueError(
                "the teacher is the student itself, a part of it, or its whole: give a copy (copy.deepcopy)"
            )
        moving = {id(p): name for name, p in self.skeleton.named_parameters() if p.requires_grad}
        both = [module for module in network.modules() if id(module) in own and isinstance(module, _WITH_A_MODE)]
        shared = [moving[id(p)] for p in network.parameters() if id(p) in moving] + [own[id(module)] for module in both]
        if shared:
            raise ValueError(
                f"teacher and student share {shared[0]!r}: give the student copies of all that it trains, and of "
                "dropout and batch norm"
            )
        placed = all(tensor.device == self.device for tensor in chain(network.parameters(), network.buffers()))
        return (network if placed else network.to(self.device)).eval()  # a quantised network refuses `to`

    def mark(self, x: Any, y: Any) -> None:
        """Note where outputs count that come without labels `y`, by the mask, if there is one."""
        self.marks = None if y is not None or self.mask is None else _masked(self.mask, x) != 0

    def enter(self, stage: int | None = None) -> None:
        """Forget what teachers said about the last inputs; in a new stage, also what is asked of them."""
        self.seen = {}
        if stage is not None and stage != self.stage:
            self.stage, self.paths = stage, {}

    @torch.no_grad()
    def read(self, teacher: nn.Module, x: Any, path: str, units: int | None = None, state: Any = None) -> torch.Tensor:
        if teacher.training:
            teacher.eval()
        if state is not None:  # a narrowed pass is of one layer alone
            found = reading.outputs_at(teacher, _first(x), (path,), state)[path]
            return (found if units is None else found.movedim(units, -1))[None]
        wanted = self.paths.setdefault(id(teacher), [])
        if path not in wanted:
            wanted.append(path)
        held, values = self.seen.get((id(teacher), id(x)), (None, {}))
        if held is not x or path not in values:
            values = reading.outputs_at(teacher, _first(x), tuple(wanted))
            self.seen[id(teacher), id(x)] = x, values
        found = self.cut(values[path], path)
        return (found if units is None else found.movedim(units, -1))[None]


class Drawn(nn.Module):
    """What a Distiller has beside its student, to be saved: the plan as text, the step, fixed tensors, regressors."""

    def __init__(self, text: str, bounds: list[Bound]) -> None:
        super().__init__()
        self.text, self._streams = text, {}
        self.register_buffer("plan", torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8))
        self.register_buffer("step", torch.tensor(-1))
        for name, tensor in _parts(bounds, "tensors").items():
            self.register_buffer(name, tensor)
        for name, stream in _parts(bounds, "generators").items():
            self._streams[f"{name}/stream"] = stream
            self.register_buffer(f"{name}/stream", stream.get_state())
        for name, tensor in _parts(bounds, "parameters").items():
            self.register_parameter(name, tensor)
        self.register_state_dict_pre_hook(lambda *_: self._note_streams())
        self.register_load_state_dict_pre_hook(_same_plan)
        self.register_load_state_dict_post_hook(lambda *_: self._set_streams())

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], *args: Any, **kwargs: Any) -> Drawn:
        """As of every module; but the losses hold these very tensors, so what only changed its name stays (cpu:0)."""
        before = dict(self._buffers)
        super()._apply(fn, *args, **kwargs)
        for name, old in before.items():
            new = self._buffers[name]
            if (new.dtype, new.device.type) == (old.dtype, old.device.type) and new.device.index in (0, None):
                self._buffers[name] = old
        return self

    def intact(self, bounds: list[Bound]) -> bool:
        """Whether the losses still read the tensors that are held here."""
        own = self._buffers | self._parameters
        return all(own[n] is t for kind in ("tensors", "parameters") for n, t in _parts(bounds, kind).items())

    def _note_streams(self) -> None:
        for name, stream in self._streams.items():
            self._buffers[name].copy_(stream.get_state())

    def _set_streams(self) -> None:
        for name, stream in self._streams.items():
            stream.set_state(self._buffers[name].cpu())


def _same_plan(module: Drawn, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
    saved = state.get(f"{prefix}plan")
    if saved is not None and (text := bytes(saved.cpu().tolist()).decode()) != module.text:
        raise ValueError(f"the saved state is of another curriculum: {difference(text, module.text)}")
    for name, units in module.named_buffers():
        theirs = state.get(f"{prefix}{name}") if name.endswith("/units") else None
        if theirs is not None and not theirs.cpu().equal(units.cpu()):
            advice = "resume on the kind of device it is from"
            raise ValueError(f"the saved state reads other units of the teacher: {advice}")


def difference(one: str, two: str) -> str:
    """The first line in which two texts differ."""
    a, b = (text.splitlines() for text in (one, two))
    for first, second in zip(a, b, strict=False):
        if first != second:
            return f"{first!r}, not {second!r}"
    return f"{len(a)} lines, not {len(b)}"


def _parts(bounds: list[Bound], kind: str) -> dict[str, Any]:
    return {f"{i}/{name}": value for i, bound in enumerate(bounds) for name, value in getattr(bound, kind).items()}


def lead(x: Any) -> Any:
    return reading.each(lambda t: t[None], x)


def _first(x: Any) -> Any:
    return reading.each(lambda t: t[0], x)


def _inner(thing: Any) -> list[Any]:
    """The values of a dataclass, and those in its tuples and lists."""
    values = [getattr(thing, f.name) for f in fields(thing)] if is_dataclass(thing) else []
    return [v for value in values for v in (value if isinstance(value, tuple | list) else (value,))]


def holds(thing: Any, kind: type | tuple[type, ...]) -> bool:
    pairs = thing if isinstance(thing, tuple | list) else _inner(thing)
    return isinstance(thing, kind) or any(holds(part, kind) for part in pairs)


def layers(thing: Any) -> list[Any]:
    """The signals in a signal, or in some, that read a hidden layer of the student."""
    inner = thing if isinstance(thing, tuple | list) else _inner(thing)
    return [thing] if hasattr(thing, "student_layer") else [found for part in inner for found in layers(part)]


@torch.no_grad()
def shifts(student: nn.Module, batch: Mapping[str, Any]) -> bool | None:
    """Whether a student's own loss of a batch takes the label of the next position; None, where that does not tell."""
    labels = batch.get("labels")
    if "labels" not in inspect.signature(student.forward).parameters or not isinstance(labels, torch.Tensor):
        return None
    before = checks.in_eval_mode(student)
    try:
        output = student(**batch)
    except Exception:  # a plan that does not ask for it does not need it
        return None
    finally:
        checks.restored(before)
    own, z = getattr(output, "loss", None), getattr(output, "logits", None)
    if own is None or z is None or labels.dim() != 2 or z.shape[:-1] != labels.shape or z.shape[-1] <= labels.max():
        return None
    each = ((z[:, :-1], labels[:, 1:]), (z, labels))
    found = (cross_entropy(z.flatten(0, 1).float(), y.flatten()) for z, y in each)
    shifted, plain = ((own.float() - loss).abs() for loss in found)
    return bool(shifted < plain) if min(shifted, plain) < 0.1 * max(shifted, plain) else None


def known_units(units: Any, signals: Sequence[Signal]) -> None:
    """ValueError where `units` names a layer that no signal reads."""
    known = {layer.student_layer for layer in layers(list(signals))}
    if isinstance(units, Mapping) and (lost := [path for path in units if path not in known]):
        raise ValueError(f"units names {lost[0]!r}, which no stage reads of the student; they read {sorted(known)}")


def filled(signal: Any, units: Any, mask: Any) -> Signal:
    """A signal, also inside others, whose hidden layers take `units` and `mask` where they do not say themselves."""
    if isinstance(signal, tuple | list):
        return tuple(filled(part, units, mask) for part in signal)
    if not is_dataclass(signal):
        return signal
    if hasattr(signal, "targets"):  # recorded
        signal.targets.agree(units=units, mask=None if mask is None else described(mask))
    changes = {f.name: filled(getattr(signal, f.name), units, mask) for f in fields(signal)}
    if "student_layer" in changes:
        given = units.get(signal.student_layer) if isinstance(units, Mapping) else units
        changes["units"] = given if signal.units is None else signal.units
        if mask is not None and signal.positions == "all":
            changes["positions"] = partial(_masked, mask)
    return replace(signal, **changes)


def _masked(mask: str | Callable[[Any], torch.Tensor], x: Any) -> torch.Tensor:
    batch = _first(x)
    if callable(mask):
        return lead(mask(batch))
    if not isinstance(batch, Mapping) or mask not in batch:
        raise ValueError(f"the batch has no entry {mask!r} to be the mask of positions")
    return batch[mask][None]


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
    return getattr(thing, "__qualname__", None) or repr(thing)


@torch.no_grad()
def fingerprint(network: nn.Module) -> str:
    """Twelve characters that tell trained networks apart: the plain attributes of their modules and of every tensor
    name, shape, up to 256 entries, and the sum of all as whole numbers, which is the same on every device."""
    digest = hashlib.sha256()
    for path, module in network.named_modules():
        code = getattr(type(module).forward, "__code__", None)  # what a pass sets is no part of what a network is
        passing = {line.argval for line in dis.get_instructions(code) if line.opname == "STORE_ATTR"} if code else set()
        told = [(name, value) for name, value in sorted(vars(module).items())
                if name[0] != "_" and name not in _NOT_TOLD | passing and _plain(value)]  # fmt: skip
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
    """Whether it is a number, a text that names no device, or a tuple of such."""
    if isinstance(value, tuple):
        return all(map(_plain, value))
    return type(value) in (bool, int, float) or (
        isinstance(value, str) and not value.startswith(("cpu", "cuda", "mps"))
    )
