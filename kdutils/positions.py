"""Which positions of a sequence a hidden layer is matched at, and the moments of what is read there."""

from __future__ import annotations

import torch
from torch import nn

from kdutils.losses import IGNORE

CHOICES = ("all", "asked", "tokens")


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
