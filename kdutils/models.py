"""Networks, and one way to read what any of their modules outputs."""

from __future__ import annotations

import torch
from torch import nn
from torch.func import functional_call

OUTPUT = ""  # the path of a module in itself (`nn.Module.get_submodule("")`): the network's own output


class MLP(nn.Module):
    """Two-layer network: Linear(d, width) - ReLU - Linear(width, classes), torch's default initialisation.

    Module paths: `hidden` is the hidden layer before the ReLU, `act` after it.
    """

    def __init__(self, d: int, width: int, classes: int = 2) -> None:
        super().__init__()
        self.hidden = nn.Linear(d, width)
        self.act = nn.ReLU()
        self.readout = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (..., classes) of inputs (..., d)."""
        return self.readout(self.act(self.hidden(x)))


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
