"""How a teacher is read: in one pass for all signals of a stage, and at the units alone that sparse views need; and
how any network is read so that it stays as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from kdutils import reading
from kdutils.losses import only


class Passes:
    """What teachers said of the last inputs: one that is asked at several paths runs once for all, from the second time
    on. Every answer is given once. Who asks again for a path, or after weights or inputs were changed, gets a new pass.
    """

    def __init__(self) -> None:
        self.paths: dict[Any, Sequence[str]] = {}  # by the teacher's id and the inputs' names: what was asked last time
        self.asked: dict[Any, list[str]] = {}  # and since then
        self.copies: dict[int, tuple[nn.Module, list[int], nn.Module]] = {}
        self.forget()

    def pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """The networks that were copied to be read, and their copies."""
        return [(network, copy) for network, _, copy in self.copies.values()]

    def forget(self) -> None:
        """Hold the last inputs, and what was said of them, no longer."""
        self.said: dict[Any, tuple[nn.Module, Any, list[int], dict[str, torch.Tensor]]] = {}
        self.paths, self.asked = {**self.paths, **self.asked}, {}

    def copy(self, teacher: nn.Module, device: torch.device) -> nn.Module:
        """One frozen copy of a teacher, however often it is asked for while its weights stay."""
        held, then, frozen = self.copies.get(id(teacher), (None, [], teacher))
        if held is not teacher or then != _versions(teacher, None):
            frozen = reading.frozen(teacher, device)
            self.copies[id(teacher)] = teacher, _versions(teacher, None), frozen
        return frozen

    def expect(self, teacher: nn.Module, x: Any, paths: Sequence[str]) -> None:
        """Let the next pass of `x` answer for these."""
        self.paths[_key(teacher, x)] = paths

    def read(
        self, teacher: nn.Module, x: Any, path: str, run: Callable[[Sequence[str]], dict[str, torch.Tensor]]
    ) -> torch.Tensor:
        """What `teacher` says of `x` at `path`; `run` is a pass that answers for several paths."""
        key, now = _key(teacher, x), _versions(teacher, x)
        asked = self.asked.setdefault(key, [])
        others = [other for other in self.paths.get(key, ()) if other not in (path, *asked)]
        asked += [path] if path not in asked else []
        held, before, then, left = self.said.get(key, (None, None, [], {}))
        if held is teacher and before is x and then == now:
            return left.pop(path) if path in left else run((path,))[path]
        try:
            left = run((path, *others))
        except ValueError:  # a pass of these inputs may not come by the others
            left = run((path,))
        self.said[key] = teacher, x, now, left
        return left.pop(path)


def _key(teacher: nn.Module, x: Any) -> Any:
    return id(teacher), tuple(x) if isinstance(x, Mapping) else ()


def _versions(teacher: nn.Module, x: Any) -> list[int]:
    """How often a teacher's numbers, and inputs, were written to."""
    found: list[int] = []
    with contextlib.suppress(RuntimeError):  # inference tensors do not count
        reading.each(lambda t: found.append(t._version), [*teacher.parameters(), *teacher.buffers(), x])
    return found


@torch.no_grad()
def read(
    teacher: nn.Module, x: Any, path: str, units: int | None = None, state: dict | None = None,
    passes: Passes | None = None,
) -> torch.Tensor:  # fmt: skip
    """The teacher's module at `path` on inputs (seeds, batch, ...): (seeds, batch, ..., units), without a gradient.

    Args:
        units: the dimension of a sample's batch that holds the units; None, they are the last.
        state: parameters and buffers to use in place of the teacher's own.
        passes: what holds the teacher's answers for the other paths that are read of it; left out, a pass of its own.
    """
    lead: list[torch.Size] = []  # (seeds, batch), the same for every tensor in x
    flat = reading.each(lambda t: lead.append(t.shape[:2]) or t.flatten(0, 1), x)
    run = partial(reading.outputs_at, teacher, flat, state=state)
    values = run((path,))[path] if passes is None or state else passes.read(teacher, x, path, run)
    if values.dim() < 2 or len(values) != lead[0].numel():
        reading.check_units(teacher, path, values.shape, lead[0].numel(), None)
    return reading.last(values.unflatten(0, lead[0]), units)


def narrowed(teacher: nn.Module, look: Callable[..., torch.Tensor], wanted: torch.Tensor, x: Any) -> Callable:
    """`look`, a partial `read`, at the units `wanted` (seeds, m) alone; where a linear layer makes them, no others are
    computed: each is tried on `x` (seeds, batch, ...), and narrowed if that gives the same numbers."""

    def one(x: Any, seed: int) -> Any:
        return x if len(wanted) == 1 else reading.each(lambda t: t[seed : seed + 1], x)

    whole, passes = look(x), []
    layers = [m for m in teacher.named_modules() if getattr(m[1], "out_features", None) == whole.shape[-1]]
    for seed, units in enumerate(wanted):
        own, local = units.unique(return_inverse=True)
        passes.append((dict, units))
        for name, module in layers:
            with contextlib.suppress(IndexError, RuntimeError, TypeError, ValueError):  # another layer than that
                state = partial(_rows, module, name, own)
                found, right = look(one(x, seed), state=state()), whole[seed : seed + 1, ..., own]
                if found.shape == right.shape and torch.allclose(found, right, 1e-4, 1e-5 * whole.abs().amax().item()):
                    passes[-1] = state, local
    return lambda x: torch.cat([look(one(x, i), state=state())[..., at] for i, (state, at) in enumerate(passes)])


def moments(sample: torch.Tensor, weights: torch.Tensor | None, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean of every unit of a sample (seeds, n, units), and one root mean square around them a seed.

    ValueError, with the sample's `name`, where no unit varies by more than rounding.
    """
    w = torch.ones_like(sample[..., :1]) if weights is None else weights.to(sample.dtype)[..., None]
    w, sample = w / w.sum(1, keepdim=True).clamp_min(1), only(sample, weights)
    centre = (sample * w).sum(1, keepdim=True)
    size = ((sample - centre).square() * w).sum(1, keepdim=True).mean(2, keepdim=True).sqrt()
    rounding = 16 * torch.finfo(size.dtype).eps * centre.square().mean(2, keepdim=True).sqrt()
    if (size <= rounding).any():
        raise ValueError(f"{name} is the same for the whole calibration sample: there is nothing in it to match")
    return centre, size.clamp_min(1e-12)


def _rows(module: nn.Module, name: str, units: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of a layer's parameters the rows of some units, as they are now: a teacher's weights may move."""
    return {f"{name}.{n}".strip("."): p[units] for n, p in module.named_parameters()}


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


@contextlib.contextmanager
def still(student: nn.Module) -> Iterator[None]:
    """A block in eval mode, without a gradient; what passes change of buffers there, as observers do, comes back."""
    before, held = in_eval_mode(student), [(buffer, buffer.clone()) for buffer in student.buffers()]
    with torch.no_grad():
        try:
            yield
        finally:
            restored(before)
            for buffer, value in held:
                if buffer.shape == value.shape and not torch.equal(buffer, value):
                    buffer.copy_(value)
