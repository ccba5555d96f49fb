"""Matrices that bring a teacher's hidden state down to the student's width.

Each function takes the teacher's hidden states on a calibration sample (n, teacher_width), the student's
width and a generator, and returns a fixed matrix P (width, teacher_width): the target is `P h`. The random ones read
nothing from the sample but its width. Entries of `P h` have about the mean square of those of `h`, up to correlations.
A sparse matrix, with as many entries in each row, is not multiplied out: only the units that it names are read.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

Projection = Callable[[torch.Tensor, int, torch.Generator], torch.Tensor]


def _at_most(hidden: torch.Tensor, width: int, what: str) -> int:
    if width <= (teacher_width := hidden.shape[-1]):
        return teacher_width
    advice = "take a narrower student layer, or the gaussian projection"
    raise ValueError(f"{what} cannot make {width} outputs from a teacher layer of {teacher_width}: {advice}")


def gaussian(hidden: torch.Tensor, width: int, generator: torch.Generator) -> torch.Tensor:
    """Independent N(0, 1/teacher_width) entries."""
    draw = hidden.new_empty(width, hidden.shape[-1]).normal_(generator=generator)
    return draw / hidden.shape[-1] ** 0.5


def rademacher(hidden: torch.Tensor, width: int, generator: torch.Generator) -> torch.Tensor:
    """Independent signs over sqrt(teacher_width)."""
    shape = (width, hidden.shape[-1])
    bits = hidden.new_empty(shape).random_(0, 2, generator=generator)
    return (2 * bits - 1) / shape[1] ** 0.5


def sparse(hidden: torch.Tensor, width: int, generator: torch.Generator, s: int = 1) -> torch.Tensor:
    """Sums of `s` different units, by signs over sqrt(s): very sparse random projections (Li, Hastie and Church, 2006),
    but with as many entries in each row. `partial(sparse, s=4)` is a projection of its own."""
    teacher_width, device = hidden.shape[-1], hidden.device
    if not 1 <= s <= teacher_width:
        raise ValueError(f"a sparse projection sums 1 to {teacher_width} of the teacher's units, not s={s}")
    units = [torch.randperm(teacher_width, generator=generator, device=device)[:s] for _ in range(width)]
    signs = 2 * hidden.new_empty(width * s).random_(0, 2, generator=generator) - 1
    places = torch.stack([torch.arange(width, device=device).repeat_interleave(s), torch.cat(units)])
    return torch.sparse_coo_tensor(places, signs / s**0.5, (width, teacher_width), check_invariants=False).coalesce()


def orthonormal(hidden: torch.Tensor, width: int, generator: torch.Generator) -> torch.Tensor:
    """Orthonormal rows spanning a uniformly random subspace (QR of a Gaussian matrix, signs fixed)."""
    teacher_width = _at_most(hidden, width, "an orthonormal projection")
    q, r = torch.linalg.qr(hidden.new_empty(teacher_width, width).normal_(generator=generator))
    return (q * r.diagonal().sign()).T.contiguous()


def neurons(hidden: torch.Tensor, width: int, generator: torch.Generator) -> torch.Tensor:
    """A random subset of the teacher's neurons, unmixed."""
    teacher_width = _at_most(hidden, width, "a neuron subset")
    chosen = torch.randperm(teacher_width, generator=generator, device=hidden.device)[:width]
    return torch.eye(teacher_width, device=hidden.device, dtype=hidden.dtype)[chosen]


def pca(hidden: torch.Tensor, width: int, generator: torch.Generator) -> torch.Tensor:
    """The leading principal directions of the sample (rows orthonormal, by falling variance)."""
    _at_most(hidden, width, "PCA")
    if hidden.shape[0] <= width:
        raise ValueError(f"PCA to {width} outputs needs more than {width} calibration samples, got {hidden.shape[0]}")
    rows = torch.linalg.svd(hidden - hidden.mean(0), full_matrices=False).Vh[:width]
    largest = rows.abs().argmax(1, keepdim=True)  # the sign of a singular vector is arbitrary: fix it
    return rows * rows.gather(1, largest).sign()
