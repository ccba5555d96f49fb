"""How a teacher is read: in one pass for all signals of a stage, and at the units alone that sparse views need."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from kdutils import reading
from kdutils.losses import only


class Passes:
    """What teachers said of the last inputs: one that is read at several paths for the same inputs runs once, from the
    second time on. By the teacher's id: the `paths` that were asked for, and `copies`, that are read in its place.
    """

    def __init__(self) -> None:
        self.paths: dict[int, list[str]] = {}
        self.copies: dict[int, tuple[nn.Module, nn.Module]] = {}
        self.forget()

    def forget(self) -> None:
        """Hold the last inputs, and what was said of them, no longer."""
        self.said: dict[tuple[int, int], tuple[Any, dict[str, torch.Tensor]]] = {}

    def copy(self, teacher: nn.Module, device: torch.device) -> nn.Module:
        """One frozen copy of a teacher, however often it is asked for."""
        if id(teacher) not in self.copies:
            self.copies[id(teacher)] = teacher, reading.frozen(teacher, device)
        return self.copies[id(teacher)][1]

    def read(
        self, teacher: nn.Module, x: Any, path: str, run: Callable[[Sequence[str]], dict[str, torch.Tensor]]
    ) -> torch.Tensor:
        """What `teacher` says of `x` at `path`; `run` is a pass that answers for several paths."""
        wanted = self.paths.setdefault(id(teacher), [])
        if path not in wanted:
            wanted.append(path)
        held, values = self.said.get((id(teacher), id(x)), (None, {}))
        if held is not x or path not in values:
            values = run(tuple(wanted))
            self.said[id(teacher), id(x)] = x, values
        return values[path]


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
