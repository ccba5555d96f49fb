"""How a curriculum is tied to one live network: an ensemble of one around it, and what was drawn for it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import nn

from kdutils import checks, fingerprints, fitting, inside, reading, teachers, warned
from kdutils.curriculum import Stage
from kdutils.signals import Bound, Signal

_WITH_A_MODE = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._NormBase)


class One:
    """An ensemble of one (`signals.Students`) around a live network, and the teachers it learns from, where they are.

    A teacher that is read at several layers for the same inputs runs once, from the second time on.
    """

    def __init__(self, student: nn.Module, seed: int, vocabulary: int | None = None) -> None:
        if torch.is_inference_mode_enabled():
            raise ValueError(
                "what is built in torch.inference_mode() cannot be trained: build it outside of that block"
            )
        self.skeleton, self.seeds = student, (checks.whole("seed", seed),)
        self.vocabulary = None if vocabulary is None else checks.count("vocabulary", vocabulary)
        first = next(student.parameters(), None)
        if first is None:
            raise ValueError(f"the student, a {type(student).__name__}, has no parameters to train")
        checks.loaded(student, "student")
        self.device = first.device
        self.stage, self.passes, self.rows = -1, teachers.Passes(), None
        self.mask, self.marks, self.unmarked, self.sharing, self.spare = None, None, False, {}, set()
        self.looked = False  # at the entries of a mask, which waits for a GPU: once
        self.classes = False  # whether outputs are compared by their softmax
        self.whole: int | None = None  # samples of a calibration that the student can read as a whole alone, or 0

    def bind(self, signal: Signal, classes: bool, x: Any, y: Any) -> Bound:
        """Bind a signal; `classes`: whether it compares outputs by their softmax."""
        self.classes = classes
        return signal.bind(self, x, y)

    def spread(self, per_seed: Any) -> Any:
        return per_seed

    def few(self, x: Any) -> tuple[Any, int]:
        """Two samples of inputs (1, batch, ...), or all of them, where the student cannot read two alone; how many."""
        if self.whole is None:
            self.whole = 0
            for some in (reading.two(x), x):
                with suppress(Exception):  # of a student that is read up to a layer alone, the rest may be anything
                    many = self.shape_at(reading.OUTPUT, some)[0]
                    self.whole = many if some is x else 0
                    break
        return (x, self.whole) if self.whole else (reading.two(x), 2)

    @torch.no_grad()
    def shape_at(self, path: str, x: Any) -> torch.Size:
        read = inside.given(self.skeleton, inside.first(x), self.spare)
        fitting.decodes(self.skeleton, read, (path,))
        headed = fitting.headed(self.skeleton) if self.classes and path == reading.OUTPUT else nullcontext()
        try:
            with teachers.still(self.skeleton), fitting.uncached(self.skeleton), headed:
                values = reading.outputs_at(self.skeleton, read, (path,))[path]
        except (IndexError, RuntimeError) as error:
            what = "calibration" if self.whole else "first and the last sample of the calibration"
            told = f"{type(self.skeleton).__name__} cannot read the {what} ({str(error).splitlines()[0]})"
            advice = "are there more ids or positions than it knows, or entries that do not hold their samples first?"
            raise ValueError(f"{told}: {advice}") from error
        except TypeError as error:
            if not isinstance(read, tuple | list) or len(read) < 2 or "argument" not in str(error):
                raise
            told = f"cannot read the calibration, a {type(read).__name__} of {len(read)}, as its arguments"
            raise TypeError(f"{type(self.skeleton).__name__} {told}: give inputs without labels ({error})") from error
        if path == reading.OUTPUT and self.vocabulary and self.vocabulary > values.shape[-1]:
            raise ValueError(f"the student's output has {values.shape[-1]} classes, vocabulary={self.vocabulary}")
        return self.cut(values, path).shape

    def cut(self, values: torch.Tensor, path: str) -> torch.Tensor:
        """Of an output, the classes that everybody has."""
        return values[..., : self.vocabulary] if path == reading.OUTPUT and self.vocabulary else values

    def teacher(self, network: nn.Module) -> nn.Module:
        if not isinstance(network, nn.Module):
            raise ValueError(f"a teacher must be a torch module, not a {type(network).__name__}")
        checks.readable(network)
        warned.of_starts(self.skeleton, network) if fitting.two_sided(self.skeleton) else None
        own, theirs = ({id(module): name for name, module in net.named_modules()} for net in (self.skeleton, network))
        if id(self.skeleton) in theirs:
            raise ValueError("the teacher is the student itself, or its whole: give a copy (copy.deepcopy)")
        both = [module for module in network.modules() if id(module) in own and isinstance(module, _WITH_A_MODE)]
        shared = inside.shared(self.skeleton, network) + [own[id(module)] for module in both]
        if shared:
            raise ValueError(
                f"teacher and student share {shared[0]!r}: give the student copies of all that it trains, and of "
                "dropout and batch norm"
            )
        placed = all(tensor.device == self.device for tensor in chain(network.parameters(), network.buffers()))
        before = teachers.in_eval_mode(network if placed else network.to(self.device))  # a quantised one refuses `to`
        if common := [(module, mode) for module, mode in before if id(module) in own]:  # the student goes on as it was
            self.sharing[id(network)] = {id(module) for module, _ in common}
            teachers.restored(common)
        return network

    def teachers(self, signals: Sequence[Signal], bounds: Sequence[Bound]) -> None:
        """Take for teachers also the networks that signals hold and did not ask for, but for those that learn."""
        learning = {id(p) for b in bounds for p in (*b.parameters.values(), *self.skeleton.parameters())}
        for network in {id(network): network for network in inside.teachers(list(signals))}.values():
            whole = any(module is self.skeleton for module in network.modules())
            if whole or learning.isdisjoint(map(id, network.parameters())):
                self.teacher(network)

    def mark(self, x: Any, y: Any, reads: Sequence[str] = (reading.OUTPUT,)) -> None:
        """Note where outputs count, if they are read, that come without labels `y`: by the mask, if there is one."""
        fitting.decodes(self.skeleton, x, reads)
        wanted = y is None and self.mask is not None and reading.OUTPUT in reads
        self.unmarked = wanted and self.mask == fitting.ENCODER and fitting.two_sided(self.skeleton)
        self.marks = inside.masked(self.mask, x) if wanted and not self.unmarked else None
        if self.marks is not None:
            self.looked = self.looked or checks.marks(self.marks)
            self.marks = self.marks != 0

    def marked(self) -> torch.Tensor | None:
        """The marks, where outputs have positions."""
        if self.unmarked:
            said = f"{fitting.ENCODER} says nothing of its decoder (mask=None: all positions count)"
            raise ValueError(f"outputs of an encoder-decoder need labels: {said}")
        return self.marks

    def enter(self, stage: int | None = None) -> None:
        """Forget what teachers said about the last inputs; in a new stage, also what is asked of them."""
        self.passes.forget()
        if stage is not None and stage != self.stage:
            self.stage, self.passes = stage, teachers.Passes()

    @torch.no_grad()
    def read(self, teacher: nn.Module, x: Any, path: str, units: int | None = None, state: Any = None) -> torch.Tensor:
        if state is not None:  # a narrowed pass is of one layer alone
            found = self._pass(teacher, x, (path,), state)[path]
            return (found if units is None else found.movedim(units, -1))[None]
        found = self.cut(self.passes.read(teacher, x, path, partial(self._pass, teacher, x)), path)
        return (found if units is None else found.movedim(units, -1))[None]

    def _pass(self, teacher: nn.Module, x: Any, paths: Sequence[str], state: Any = None) -> dict[str, torch.Tensor]:
        """A pass of a teacher in eval mode; parts that are the student's, too, come back in the mode they were in."""
        common = self.sharing.get(id(teacher), ())
        training = any(module.training for module in teacher.modules())
        before = teachers.in_eval_mode(teacher) if common or training else []
        read = inside.given(teacher, inside.first(x), self.spare | inside.taken(self.skeleton)[0])
        fitting.decodes(teacher, read, paths)
        try:
            with fitting.uncached(teacher):
                return reading.outputs_at(teacher, read, paths, state)
        except (IndexError, RuntimeError, TypeError) as error:
            if isinstance(error, torch.OutOfMemoryError) or (
                isinstance(error, TypeError) and inside.fits(teacher, read)
            ):
                raise
            told = f"the teacher, a {type(teacher).__name__}, cannot read the batch ({str(error).splitlines()[0]})"
            if isinstance(error, TypeError):
                raise TypeError(f"{told}: give what its forward takes") from error
            advice = "has it inputs of the student's width, and as many ids (vocabulary, positions)?"
            raise ValueError(f"{told}: {advice}") from error
        finally:
            teachers.restored([(module, mode) for module, mode in before if id(module) in common])


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

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("a Distiller is not saved whole: save its state_dict(), and load that into one built anew")

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


def _same_plan(module: Drawn, state: dict[str, Any], prefix: str, *_: Any) -> None:
    if (saved := state.get(f"{prefix}plan")) is not None:
        if found := fingerprints.difference(bytes(saved.cpu().tolist()).decode(), module.text):
            raise ValueError(f"the saved state is of another curriculum: {found}")
        state[f"{prefix}plan"] = module.plan  # the same, but for how its numbers were rounded
    for name, units in module.named_buffers():
        theirs = state.get(f"{prefix}{name}") if name.endswith("/units") else None
        if theirs is not None and not theirs.cpu().equal(units.cpu()):
            advice = "resume on the kind of device it is from"
            raise ValueError(f"the saved state reads other units of the teacher: {advice}")


def _parts(bounds: list[Bound], kind: str) -> dict[str, Any]:
    found = ((f"{i}/{name}", value) for i, bound in enumerate(bounds) for name, value in getattr(bound, kind).items())
    return {name.replace(".", "/"): value for name, value in found}  # a buffer's name has no dots


def flat(one: One, signals: Sequence[Signal], x: Any, mask: Any) -> set[str]:
    """Paths of the student's layers without positions, (batch, units), of which a mask of positions says nothing."""
    paths = set() if mask is None else {layer.student_layer for layer in inside.placed(list(signals), "all")}
    found = {path for path in paths if len(one.shape_at(path, one.few(x)[0])) == 2}
    marks = inside.masked(mask, x) if found else None
    return set() if isinstance(marks, torch.Tensor) and marks.dim() == 2 else found  # a mask of samples is of them


class Only:
    """While a loss of the Distiller goes backward through a stage that moves only some, the others get no gradient.

    ValueError where a stage names none of the student's parameters.
    """

    def __init__(self, student: nn.Module, stages: Sequence[Stage]) -> None:
        named = {name.replace("_orig_mod.", ""): p for name, p in student.named_parameters()}  # compiled or not
        for stage in stages:
            if told := inside.unnamed(student, stage):
                raise ValueError(told)
        self.paths: Sequence[str] = ()
        self.ours: Callable[[], Any] = lambda: None  # what our backward pass holds until it ends, and nobody after that
        self.known = {id(p) for p in named.values() if p.requires_grad}
        for name, parameter in named.items():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(partial(self.drop, name))

    def drop(self, name: str, parameter: torch.Tensor) -> None:
        if self.ours() is None:  # it has ended, and by an error where nobody closed
            self.close()
        if self.paths and not inside.under(name, self.paths):
            parameter.grad = None

    def open(self, paths: tuple[str, ...], gradient: torch.Tensor) -> None:
        close = partial(self.close)
        self.paths, self.ours = paths, weakref.ref(close)
        torch.autograd.Variable._execution_engine.queue_callback(close)  # as DistributedDataParallel does

    def close(self) -> None:
        self.paths = ()

    def check(self, student: nn.Module) -> None:
        if any(p.requires_grad and id(p) not in self.known for p in student.parameters()):
            raise ValueError("a parameter of the student was unfrozen or replaced: build the Distiller after that")
