"""Losses by position, and the one distillation loss; a position that is not asked for counts nowhere."""

from __future__ import annotations

import torch
from torch.nn import functional as F

IGNORE = -100  # the label of a position where nothing is asked (torch's default ignore_index)


def cross_entropy(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Nats by position: logits (..., classes), labels (...) -> (...), 0 where the label is `IGNORE`."""
    flat = F.cross_entropy(logits.flatten(0, -2), y.flatten(), reduction="none", ignore_index=IGNORE)
    return flat.view(y.shape)


def mean(values: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """(members, ...) -> (members,): the mean over all positions, or over those of weight 1."""
    if weights is None:
        return values.flatten(1).mean(1)
    weights = weights.to(values.dtype)
    return (values * weights).flatten(1).sum(1) / weights.flatten(1).sum(1).clamp_min(1)


def distillation_loss(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    teacher_temperature: float = 1.0,
    student_temperature: float = 1.0,
) -> torch.Tensor:
    r"""$T_s^2 \, \mathrm{KL}(\mathrm{softmax}(z_t / T_t) \,\|\, \mathrm{softmax}(z_s / T_s))$, in nats.

    The one distillation loss of this package; other conventions are special cases of it.
    `T_t = T_s = T` is Hinton et al.'s (2015): both tempered, times T squared. `T_s = 1` tempers the
    teacher only, as the public code of Panigrahi et al. (2025) does; `T_t -> 0` then gives argmax labels.

    Args:
        student_logits: (..., batch, classes).
        teacher_logits: the same shape, or one that broadcasts to it.

    Returns:
        (...): summed over classes, averaged over the batch dimension only.

    >>> z = torch.tensor([[0.3, -1.2]])
    >>> all(abs(distillation_loss(z, z + shift, 2.0, 2.0)) < 1e-6 for shift in (0, 5))
    True
    """
    teacher = F.log_softmax(teacher_logits / teacher_temperature, -1)
    return divergence(student_logits, teacher, student_temperature).mean(-1)


def divergence(student_logits: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """`distillation_loss` by position, of the (tempered) teacher's log-probabilities: (..., classes) -> (...)."""
    student = F.log_softmax(student_logits / temperature, -1)
    return temperature**2 * (teacher.exp() * (teacher - student)).sum(-1)
