"""How the output of any module of a network is read, and at which positions of a sequence it counts."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.func import functional_call

from kdutils.losses import IGNORE

OUTPUT = ""  # the path of a module in itself (`nn.Module.get_submodule("")`): the network's own output
CHOICES = ("all", "asked", "tokens")


class _Reached(Exception):
    """Raised inside a forward pass once every wanted module has answered."""


def module_at(model: nn.Module, path: str) -> nn.Module:
    """The submodule of `model` called `path`.

    Raises:
        ValueError: when there is none; the message lists the paths that exist.
    """
    modules = dict(model.named_modules())
    if path not in modules:
        known = ", ".join(repr(name) for name in modules if name != OUTPUT)
        raise ValueError(f"{type(model).__name__} has no layer {path!r}; its layers are {known}")
    return modules[path]


def outputs_at(
    model: nn.Module,
    x: torch.Tensor,
    paths: tuple[str, ...] = (OUTPUT,),
    state: dict[str, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """What the modules at `paths` output when `model` reads `x`. The pass stops once all have answered.

    Works on any module, inside `torch.func.vmap` too. A module that returns a tuple (as many attention
    layers do) answers with its first entry.

    Args:
        x: the model's input.
        paths: module paths; `""` is the model's output.
        state: parameters and buffers to use in place of the model's own.

    Raises:
        ValueError: when a path does not exist, or the forward pass never calls it.
    """
    state = {} if state is None else state
    if paths == (OUTPUT,):
        output = functional_call(model, state, (x,))
        return {OUTPUT: output[0] if isinstance(output, tuple) else output}
    seen: dict[str, torch.Tensor] = {}

    def keep(path: str):
        def hook(module, inputs, output):
            seen[path] = output[0] if isinstance(output, tuple) else output
            if len(seen) == len(paths):
                raise _Reached

        return hook

    modules = [module_at(model, path) for path in paths]
    handles = [m.register_forward_hook(keep(path)) for m, path in zip(modules, paths, strict=True)]
    try:
        functional_call(model, state, (x,))
    except _Reached:
        pass
    finally:
        for handle in handles:
            handle.remove()
    missing = [path for path in paths if path not in seen]
    if missing:
        raise ValueError(f"the forward pass of {type(model).__name__} never called {missing}")
    return seen


def check(positions: str) -> None:
    """Raises ValueError unless `positions` is one of `CHOICES`."""
    if positions not in CHOICES:
        raise ValueError(f"positions must be one of {CHOICES}, not {positions!r}")


def counted(
    positions: str, teacher: nn.Module, x: torch.Tensor, y: torch.Tensor | None, hidden: torch.Tensor
) -> torch.Tensor | None:
    """Which entries of a layer's values `hidden` (seeds, batch, length, units) count.

    Args:
        positions: "all"; "asked", where the task asks for an answer; "tokens", all but the teacher's padding.

    Returns:
        (seeds, batch, length) of True and False, or None for all.

    Raises:
        ValueError: when the layer or the task has no entry a position.
    """
    padding = getattr(teacher, "padding", None)
    if positions == "all" or (positions == "tokens" and padding is None):
        return None
    per_position = x if positions == "tokens" else y
    if per_position is None or per_position.shape != hidden.shape[:-1]:
        raise ValueError(f"positions={positions!r} needs a layer and a task with one entry a position")
    return x != padding if positions == "tokens" else y != IGNORE


def moments(sample: torch.Tensor, weights: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean of every unit of a sample (seeds, n, units), and one root mean square around them a seed."""
    w = torch.ones_like(sample[..., :1]) if weights is None else weights.to(sample.dtype)[..., None]
    w = w / w.sum(1, keepdim=True).clamp_min(1)
    centre = (sample * w).sum(1, keepdim=True)
    size = ((sample - centre).square() * w).sum(1, keepdim=True).mean(2, keepdim=True).sqrt().clamp_min(1e-12)
    return centre, size


def copied(network: nn.Module) -> nn.Module:
    """A deep copy, also of a network that has been run (legacy weight norm keeps a weight that is part of a graph)."""
    for part in network.modules():
        for name, value in vars(part).items():
            if isinstance(value, torch.Tensor) and value.grad_fn is not None:
                part.__dict__[name] = value.detach()
    return copy.deepcopy(network)


def frozen(teacher: nn.Module, device: torch.device) -> nn.Module:
    """A private copy in eval mode, so that a later `teacher.train()` elsewhere cannot reach a running stage."""
    return copied(teacher).to(device).eval().requires_grad_(False)


@torch.no_grad()
def read(teacher: nn.Module, x: torch.Tensor, path: str) -> torch.Tensor:
    """The teacher's module at `path` on inputs (seeds, batch, ...); its pass stops there."""
    return outputs_at(teacher, x.flatten(0, 1), (path,))[path].unflatten(0, x.shape[:2])


def rows(
    teacher: nn.Module, layer: str, positions: str, x: torch.Tensor, y: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A teacher's layer, a row a position: (seeds, n, units); and which count: (seeds, n), None for all."""
    hidden = read(teacher, x, layer)
    weights = counted(positions, teacher, x, y, hidden)
    return hidden.flatten(1, -2), None if weights is None else weights.flatten(1)


def nonfinite(values: torch.Tensor) -> int | None:
    """The first entry along the first dimension that holds a NaN or an infinity, or None; -inf, a class that is
    ruled out, is none."""
    bad = (values.isnan() | (values == torch.inf)).reshape(len(values), -1).any(1).nonzero()
    return int(bad[0]) if len(bad) else None
