"""Losses by position, and the one distillation loss; a position that is not asked for counts nowhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

IGNORE = -100  # the label of a position where nothing is asked (torch's default ignore_index)


def asked(y: torch.Tensor | None, students: Any = None) -> torch.Tensor | None:
    """Where labels ask (in bytes, which cannot hold `IGNORE`, everywhere); without any, what `students.marks` say."""
    return getattr(students, "marks", None) if y is None else y.long() != IGNORE


def pair(values: torch.Tensor, weights: torch.Tensor | None) -> Any:
    """(values, weights), or the values alone where all count (on a GPU a look at the weights would have to wait)."""
    return values if weights is None or (weights.device.type == "cpu" and weights.all()) else (values, weights)


def only(values: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """(..., units), 0 where `weights` (...) is False: to be done before any arithmetic, for 0 times NaN is NaN."""
    return values if weights is None else values.masked_fill(~weights[..., None], 0)


def where(weights: torch.Tensor | None, function: Callable[..., torch.Tensor], *values: torch.Tensor) -> torch.Tensor:
    """`function`, by position, of the positions (...) of the values where `weights` (...) is True, and 0 elsewhere.

    What does not count never enters the arithmetic: it may hold NaN, in loss and gradient, and costs nothing.
    """
    if weights is None:
        return function(*values)
    here = weights.flatten().nonzero().squeeze(1)
    some = function(*(v.flatten(0, weights.dim() - 1).index_select(0, here) for v in values))
    return some.new_zeros(weights.numel()).index_copy(0, here, some).view(weights.shape)


def nats(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Cross-entropy by position, each of which counts: logits (..., classes), labels (...) -> (...)."""
    return F.cross_entropy(_wide(logits).flatten(0, -2), y.flatten(), reduction="none").view(y.shape)


def cross_entropy(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """`nats`, and 0 where the label is `IGNORE`."""
    if logits.shape[:-1] != y.shape:
        raise ValueError(f"logits {tuple(logits.shape)} need labels {tuple(logits.shape[:-1])}, not {tuple(y.shape)}")
    return where(asked(y), nats, logits, y.long())


def mean(values: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """(members, ...) -> (members,): the mean over all positions, or over those of weight 1 (of none, 0)."""
    if weights is None:
        return values.flatten(1).mean(1)
    if weights.shape != values.shape:
        raise ValueError(f"values {tuple(values.shape)} need weights of that shape, not {tuple(weights.shape)}")
    values, weights = values.masked_fill(weights == 0, 0), weights.to(values.dtype)
    return (values * weights).flatten(1).sum(1) / weights.flatten(1).sum(1).clamp_min(1)


def distillation_loss(student_logits: torch.Tensor, teacher_logits: torch.Tensor, teacher_temperature: float = 1.0,
                      student_temperature: float = 1.0) -> torch.Tensor:  # fmt: skip
    r"""$T_s^2 \, \mathrm{KL}(\mathrm{softmax}(z_t / T_t) \,\|\, \mathrm{softmax}(z_s / T_s))$, in nats.

    The one distillation loss of this package; other conventions are special cases of it. `T_t = T_s = T` is Hinton et
    al.'s (2015): both tempered, times T squared. `T_s = 1` tempers the teacher only, as the public code of Panigrahi et
    al. (2025) does; `T_t -> 0` then gives argmax labels. A class with a logit of -inf is ruled out: by the teacher, it
    adds nothing; by the student alone, infinity.

    (..., batch, classes) and what broadcasts to it, but for the classes -> (...): summed over classes, averaged over
    the batch only, in float32 at least. ValueError for unequal or single classes, temperatures that are not positive.

    >>> z = torch.tensor([[0.3, -1.2]])
    >>> all(abs(distillation_loss(z, z + shift, 2.0, 2.0)) < 1e-6 for shift in (0, 5))
    True
    """
    check_temperatures(teacher_temperature, student_temperature)
    return divergence(student_logits, tempered(teacher_logits, teacher_temperature), student_temperature).mean(-1)


def divergence(student_logits: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """`distillation_loss` by position, of the teacher's `tempered` logits: (..., classes) -> (...)."""
    check_classes(student_logits.shape[-1], teacher.shape[-1])
    gaps, p = teacher - tempered(student_logits, temperature), teacher.exp()
    if teacher.device.type != "cpu" or not teacher.numel() or teacher.amin() < -80:
        gaps = gaps.masked_fill(p == 0, 0)  # 0 log 0 is 0, but 0 times a difference with -inf is NaN
    each = (p * gaps).sum(-1)
    return (each if temperature == 1 else temperature**2 * each).to(_wide(student_logits).dtype)


def tempered(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Log-probabilities (..., classes) of logits over a temperature, in float32; far from 1 in float64."""
    logits = _wide(logits)
    if not 1e-3 <= temperature <= 100:  # float32 could not hold the quotients, or bear their rounding times T squared
        logits = logits.double() - logits.detach().double().amax(-1, keepdim=True)
    return F.log_softmax(logits if temperature == 1 else logits / temperature, -1)


def check_classes(student: int, teacher: int | None = None) -> None:
    """Raise ValueError unless both have the same number of classes, two at least."""
    if teacher not in (None, student):
        raise ValueError(f"the teacher's output has {teacher} classes, the student's {student}: both need the same")
    if student < 2:
        raise ValueError("softmax of one class is always 1: give the output two, or match numbers by your own signal")


def check_temperatures(*temperatures: float) -> None:
    """Raise ValueError unless all are positive and finite."""
    if not all(hasattr(t, "__float__") and 0 < t < math.inf for t in temperatures):
        raise ValueError(f"temperatures must be positive, not {temperatures}; for argmax labels take a small one, 1e-3")


def _wide(values: torch.Tensor) -> torch.Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
