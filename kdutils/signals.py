"""What a student can be asked to match: labels, a teacher's output, a projection of its hidden layer.

A signal is plain data. At the start of its stage `bind` makes it concrete for one ensemble: it reads a
calibration sample, draws its projections, and returns what the training loop needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional as F

from kdutils import reading, seeding
from kdutils.losses import IGNORE, cross_entropy, divergence, mean
from kdutils.projections import Projection, gaussian


@dataclass
class Bound:
    """A signal tied to one ensemble.

    Attributes:
        reads: paths of the student's modules whose outputs the loss needs.
        target: (x, y) with one batch a seed -> target (seeds, ...), or a pair of it and a mask of the
            positions that count; no gradient flows into it.
        loss: ({path: (members, batch, ...)}, target spread to members) -> one loss a member (members,).
        parameters: the signal's own trainable tensors, members first (a learned regressor has some).
        tensors: fixed tensors worth recording (projections), seeds first.
        generators: the random streams that it draws from while it runs.
    """

    reads: tuple[str, ...]
    target: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    loss: Callable[[dict[str, torch.Tensor], torch.Tensor], torch.Tensor]
    parameters: dict[str, torch.Tensor] = field(default_factory=dict)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    generators: dict[str, torch.Generator] = field(default_factory=dict)


class Students(Protocol):
    """What a signal asks of the networks that learn from it: `M` members over `S` seeds."""

    seeds: tuple[int, ...]
    device: torch.device
    parameters: dict[str, torch.Tensor]

    def __len__(self) -> int: ...

    def spread(self, per_seed: Any) -> Any:
        """From one entry a seed (S, ...) to one a member (M, ...)."""
        ...

    def outputs(self, x: torch.Tensor, paths: tuple[str, ...]) -> dict[str, torch.Tensor]:
        """{path: (M, batch, ...)} of one batch a seed, (S, batch, ...)."""
        ...

    def shape_at(self, path: str, x: torch.Tensor) -> torch.Size:
        """Shape (batch, ...) of what one member's module at `path` outputs."""
        ...


class Signal(Protocol):
    """Anything with `bind`; a new method is a new signal."""

    def bind(self, students: Students, x: torch.Tensor, y: torch.Tensor | None = None) -> Bound:
        """Tie the signal to `students`; `x` and its labels `y` (seeds, n, ...) are a calibration sample a seed."""
        ...


@dataclass(frozen=True)
class Labels:
    """The task's own labels; cross-entropy."""

    def bind(self, students: Students, x: torch.Tensor, y: torch.Tensor | None = None) -> Bound:
        def loss(values: dict[str, torch.Tensor], target: torch.Tensor) -> torch.Tensor:
            return mean(cross_entropy(values[reading.OUTPUT], target), target != IGNORE)

        return Bound((reading.OUTPUT,), lambda x, y: y, loss)

    def __str__(self) -> str:
        return "labels"


@dataclass(frozen=True)
class Output:
    """A teacher's output distribution, wherever the task asks; see `distillation_loss` for the temperatures.

    A `share` below 1 puts the target between the student and the teacher, as TAID does (Shing et al., 2025): its
    logits are share * teacher + (1 - share) * student, the student's taken as constants.
    """

    teacher: nn.Module
    teacher_temperature: float = 1.0
    student_temperature: float = 1.0
    name: str = "final teacher"
    share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"the teacher's share of the target lies in (0, 1], not {self.share}")
        if min(self.teacher_temperature, self.student_temperature) <= 0:
            raise ValueError("temperatures must be positive; for argmax labels use a small one, such as 1e-3")

    def bind(self, students: Students, x: torch.Tensor, y: torch.Tensor | None = None) -> Bound:
        teacher = reading.frozen(self.teacher, students.device)

        def target(x: torch.Tensor, y: torch.Tensor) -> Any:
            wanted = reading.read(teacher, x, reading.OUTPUT)
            if self.share == 1:  # once a seed, not once a member
                wanted = F.log_softmax(wanted / self.teacher_temperature, -1)
            return (wanted, y != IGNORE) if wanted.dim() > 3 else wanted  # one label a sample: asked everywhere

        def loss(values: dict[str, torch.Tensor], target: Any) -> torch.Tensor:
            wanted, asked = target if isinstance(target, tuple) else (target, None)
            own = values[reading.OUTPUT]
            if self.share < 1:
                mixed = torch.lerp(own.detach(), wanted, self.share)
                wanted = F.log_softmax(mixed / self.teacher_temperature, -1)
            return mean(divergence(own, wanted, self.student_temperature), asked)

        return Bound((reading.OUTPUT,), target, loss)

    def __str__(self) -> str:
        heat = self.teacher_temperature, self.student_temperature
        return (
            f"output of {self.name}"
            + (f" at temperatures {heat[0]:g}, {heat[1]:g}" if heat != (1, 1) else "")
            + (f", a share of {self.share:g}" if self.share < 1 else "")
        )


@dataclass(frozen=True)
class Hidden:
    r"""A fixed projection of one of the teacher's hidden layers: $\frac12 E \| h_S - (P h_T - \mu) / s \|^2$.

    P is drawn once a seed, unless asked otherwise. On the calibration sample each target is centred ($\mu$, a
    vector) and all are divided by one number ($s$, the root mean square): the teacher's scale does not matter.

    Args:
        teacher: any network; `layer` the path of the module to read (`hidden` and `act` of an `MLP` are the
            hidden layer before and after its ReLU, `blocks.0` of a `Transformer` its first residual stream).
        student_layer: the path of the student's module that has to match.
        projection: a function of `kdutils.projections`.
        positions: of a sequence: "all", "asked" (where the task asks for an answer) or "tokens" (all but padding).
        normalise: "sample" as above; "position" layer-normalises both sides at every position besides.
        scale: multiplies the targets, for asking whether their size matters.
        redraw: draw P anew at every step, with the centre that belongs to it and the size of the first.
    """

    teacher: nn.Module
    layer: str = "act"
    student_layer: str = "act"
    projection: Projection = gaussian
    name: str = "final teacher"
    positions: str = "all"
    normalise: str = "sample"
    scale: float = 1.0
    redraw: bool = False

    def __post_init__(self) -> None:
        reading.module_at(self.teacher, self.layer)
        reading.check(self.positions)
        if self.normalise not in ("sample", "position"):
            raise ValueError(f"normalise must be one of ('sample', 'position'), not {self.normalise!r}")

    def bind(self, students: Students, x: torch.Tensor, y: torch.Tensor | None = None) -> Bound:
        teacher = reading.frozen(self.teacher, students.device)
        hidden, weights = reading.rows(teacher, self.layer, self.positions, x, y)
        width = students.shape_at(self.student_layer, x)[-1]
        sample = [h if weights is None else h[weights[i]] for i, h in enumerate(hidden)]
        streams = [seeding.generator(seed, "projection", self.layer, device=x.device) for seed in students.seeds]

        def draw() -> torch.Tensor:
            return torch.stack([self.projection(h, width, g) for h, g in zip(sample, streams, strict=True)])

        projection, (centre, _) = draw(), reading.moments(hidden, weights)
        _, size = reading.moments(hidden @ projection.mT, weights)
        mu = centre @ projection.mT

        def target(x: torch.Tensor, y: torch.Tensor) -> Any:
            h, weights = reading.rows(teacher, self.layer, self.positions, x, y)
            p, offset = projection, mu
            if self.redraw:
                p = draw()
                offset = centre @ p.mT
            wanted = self.scale / size * (h @ p.mT - offset)
            if self.normalise == "position":
                wanted = F.layer_norm(wanted, wanted.shape[-1:])
            return wanted if weights is None else (wanted, weights)

        def loss(values: dict[str, torch.Tensor], target: Any) -> torch.Tensor:
            wanted, weights = target if isinstance(target, tuple) else (target, None)
            h = values[self.student_layer].flatten(1, -2)
            if self.normalise == "position":
                h = F.layer_norm(h, h.shape[-1:])
            return mean(0.5 * (h - wanted).square().sum(-1), weights)

        return Bound((self.student_layer,), target, loss, tensors={"projection": projection})

    def __str__(self) -> str:
        function = getattr(self.projection, "func", self.projection)  # inside a functools.partial
        kind = f"{function.__name__} projection" + (", redrawn each step," if self.redraw else "")
        return f"{kind} of `{self.layer}` of {self.name}"


@dataclass(frozen=True)
class Regressed:
    r"""FitNets' hint (Romero et al., 2015): a linear map from student to teacher is learned beside the student.

    $\frac{m_S}{2} E \, \mathrm{mean}((R h_S + r - (h_T - \mu) / s)^2)$: the mean over the teacher's neurons,
    times the student's width so that the size of the gradient is that of `Hidden`. The map starts at
    N(0, 1/m_S), is trained at the member's own learning rate and thrown away with the stage. The other fields
    are those of `Hidden`.
    """

    teacher: nn.Module
    layer: str = "act"
    student_layer: str = "act"
    name: str = "final teacher"
    positions: str = "all"

    def __post_init__(self) -> None:
        reading.module_at(self.teacher, self.layer)
        reading.check(self.positions)

    def bind(self, students: Students, x: torch.Tensor, y: torch.Tensor | None = None) -> Bound:
        teacher = reading.frozen(self.teacher, students.device)
        hidden, weights = reading.rows(teacher, self.layer, self.positions, x, y)
        centre, size = reading.moments(hidden, weights)
        width, teacher_width = students.shape_at(self.student_layer, x)[-1], hidden.shape[-1]
        maps = torch.stack([
            torch.randn(
                width, teacher_width, generator=seeding.generator(seed, "regressor", device=x.device), device=x.device
            )
            for seed in students.seeds
        ])  # fmt: skip
        regressor = students.spread(maps / width**0.5).clone().requires_grad_(True)
        offset = torch.zeros(len(students), 1, teacher_width, device=x.device, requires_grad=True)

        def target(x: torch.Tensor, y: torch.Tensor) -> Any:
            h, weights = reading.rows(teacher, self.layer, self.positions, x, y)
            wanted = (h - centre) / size
            return wanted if weights is None else (wanted, weights)

        def loss(values: dict[str, torch.Tensor], target: Any) -> torch.Tensor:
            wanted, weights = target if isinstance(target, tuple) else (target, None)
            guess = torch.baddbmm(offset, values[self.student_layer].flatten(1, -2), regressor)
            return 0.5 * width * mean((guess - wanted).square().mean(-1), weights)

        return Bound((self.student_layer,), target, loss, parameters={"regressor": regressor, "offset": offset})

    def __str__(self) -> str:
        return f"`{self.layer}` of {self.name} through a learned regressor"


@dataclass(frozen=True)
class Shuffled:
    """Another signal, but the target of each sample is that of its neighbour in the batch: a control that must fail."""

    signal: Signal

    def bind(self, students: Students, x: torch.Tensor, y: torch.Tensor | None = None) -> Bound:
        bound = self.signal.bind(students, x, y)
        return replace(bound, target=lambda x, y: bound.target(x.roll(1, 1), y.roll(1, 1)))

    def __str__(self) -> str:
        return f"{self.signal}, of the wrong samples"


@dataclass(frozen=True)
class WeightedSum:
    """Several signals at once, each loss times its weight."""

    terms: tuple[tuple[float, Signal], ...]

    def bind(self, students: Students, x: torch.Tensor, y: torch.Tensor | None = None) -> Bound:
        bounds = [signal.bind(students, x, y) for _, signal in self.terms]

        def loss(values: dict[str, torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
            parts = [b.loss(values, t) for b, t in zip(bounds, targets, strict=True)]
            return sum(weight * part for (weight, _), part in zip(self.terms, parts, strict=True))

        return Bound(
            reads=tuple(dict.fromkeys(path for b in bounds for path in b.reads)),
            target=lambda x, y: tuple(b.target(x, y) for b in bounds),
            loss=loss,
            parameters={f"{i}/{name}": p for i, b in enumerate(bounds) for name, p in b.parameters.items()},
            tensors={f"{i}/{name}": t for i, b in enumerate(bounds) for name, t in b.tensors.items()},
        )

    def __str__(self) -> str:
        return " + ".join(f"{weight:g} x {signal}" for weight, signal in self.terms)
