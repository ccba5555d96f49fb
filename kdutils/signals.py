"""What a student can be asked to match: labels, a teacher's output, a projection of its hidden layer. Plain data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional as F

from kdutils import checks, losses, reading, seeding
from kdutils.projections import Projection, gaussian
from kdutils.teachers import moments, narrowed


@dataclass
class Bound:
    """A signal tied to one ensemble.

    Attributes:
        reads: paths of the student's modules whose outputs the loss needs.
        target: (x, y) with one batch a seed -> target (seeds, batch, ...), without a gradient; where not all of its
            positions count, a pair of it and a mask.
        loss: ({path: (members, batch, ...)}, target spread to members) -> one loss a member (members,).
        parameters: the signal's own trainable tensors, members first (a learned regressor has some).
        tensors: what was fixed at the start (projections, centres, sizes), seeds first; read anew at every step.
        generators: what `target` draws from. Their states and `parameters` are all that changes in a stage.
    """

    reads: tuple[str, ...]
    target: Callable[[Any, Any], Any]
    loss: Callable[[dict[str, torch.Tensor], Any], torch.Tensor]
    parameters: dict[str, torch.Tensor] = field(default_factory=dict)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    generators: dict[str, torch.Generator] = field(default_factory=dict)


class Students(Protocol):
    """What a signal asks of the networks that learn from it: members over seeds, all built like `skeleton`.

    `spread` makes one entry a seed one a member, `shape_at` is the shape (batch, ...) of what one returns at a path;
    `teacher` is what they `read` a teacher from, as `kdutils.teachers.read` does.
    """

    seeds: tuple[int, ...]
    device: torch.device
    skeleton: nn.Module

    def spread(self, per_seed: Any) -> Any: ...
    def shape_at(self, path: str, x: Any) -> torch.Size: ...
    def teacher(self, network: nn.Module) -> nn.Module: ...
    def read(
        self, teacher: nn.Module, x: Any, path: str, units: int | None = None, state: Any = None
    ) -> torch.Tensor: ...


class Signal(Protocol):
    """Anything with `bind`, which makes it concrete at the start of a stage; a new method is a new signal."""

    def bind(self, students: Students, x: Any, y: Any = None) -> Bound:
        """Tie it to `students`, by calibration samples `x`, `y` (seeds, n, ...); ValueError if they do not fit."""


@dataclass(frozen=True)
class Labels:
    """The task's own labels, whole numbers; cross-entropy."""

    def bind(self, students: Students, x: Any, y: Any = None) -> Bound:
        checks.labels(y, classes=reading.classes(students, x, y))

        def loss(values: dict[str, torch.Tensor], target: Any) -> torch.Tensor:
            labels, asked = target if isinstance(target, tuple) else (target, None)
            return losses.mean(losses.where(asked, losses.nats, values[reading.OUTPUT], labels), asked)

        return Bound((reading.OUTPUT,), lambda x, y: losses.pair(y.long(), losses.asked(y)), loss)

    def __str__(self) -> str:
        return "labels"


@dataclass(frozen=True)
class Output:
    """A teacher's output distribution, wherever the task asks; see `distillation_loss` for the temperatures.

    With a `share` below 1 the target lies between the two, as in TAID (Shing et al., 2025): its logits are
    share * teacher + (1 - share) * student, the student's taken as constants.
    """

    teacher: nn.Module
    teacher_temperature: float = 1.0
    student_temperature: float = 1.0
    name: str = "final teacher"
    share: float = 1.0

    def __post_init__(self) -> None:
        checks.number("the teacher's share of the target", self.share, 0, 1)
        losses.check_temperatures(self.teacher_temperature, self.student_temperature)

    def bind(self, students: Students, x: Any, y: Any = None) -> Bound:
        teacher = students.teacher(self.teacher)
        reading.classes(students, x, y, teacher)
        lowest = torch.finfo(torch.float32).min  # of a class that is ruled out, which is no number gone wrong

        def target(x: Any, y: Any) -> Any:
            wanted = students.read(teacher, x, reading.OUTPUT)
            wanted = (losses.tempered(wanted, self.teacher_temperature) if self.share == 1 else wanted).clamp_min(
                lowest
            )
            return losses.pair(wanted, losses.asked(y, students) if wanted.dim() > 3 else None)

        def compare(own: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
            if self.share < 1:
                mixed = torch.lerp(own.detach(), wanted, self.share)
                mixed = mixed.masked_fill((own == -torch.inf) | (wanted == lowest), -torch.inf)
                wanted = losses.tempered(mixed, self.teacher_temperature)
            return losses.divergence(own, wanted, self.student_temperature)

        def loss(values: dict[str, torch.Tensor], target: Any) -> torch.Tensor:
            own, wanted, asked = reading.pairs(values[reading.OUTPUT], target)
            return losses.mean(losses.where(asked, compare, own, wanted), asked)

        return Bound((reading.OUTPUT,), target, loss)

    def __str__(self) -> str:
        heat = self.teacher_temperature, self.student_temperature
        tempered = " at temperatures {:g}, {:g}".format(*heat) if heat != (1, 1) else ""
        return f"output of {self.name}{tempered}" + (f", a share of {self.share:g}" if self.share < 1 else "")


@dataclass(frozen=True)
class _Layer:
    """What `Hidden` and `Regressed` share: a layer on each side, and which of its positions count."""

    teacher: nn.Module
    layer: str = "act"
    student_layer: str = "act"
    _: KW_ONLY
    name: str = "final teacher"
    positions: str | reading.Positions = "all"
    units: int | None = None
    padding: int | None = None

    def __post_init__(self) -> None:
        checks.layer(self.teacher, (self.layer, self.student_layer), self.units)
        reading.module_at(self.teacher, self.layer)
        reading.padding_of(self.teacher, self.positions, self.padding)

    def bind(self, students: Students, x: Any, y: Any = None) -> Bound:
        teacher = students.teacher(self.teacher)
        padding = reading.padding_of(teacher, self.positions, self.padding)
        width = reading.shapes(students, self.student_layer, x, self.units, teacher, self.layer)[0][-1]
        float32 = partial(torch.autocast, students.device.type, enabled=False)  # whatever the caller has turned on
        look = partial(students.read, teacher, path=self.layer, units=self.units)

        def read(x: Any, y: Any) -> tuple:
            h = look(x)
            return h, reading.counted(self.positions, padding, x, y, h.shape[:-1])

        checks.marks(self.positions(x)) if callable(self.positions) else None
        h, mask = read(x, y)
        if mask is not None and not mask.flatten(1).any(1).all():
            told = "a mask (inverted, or additive?)" if callable(self.positions) else f"positions={self.positions!r}"
            raise ValueError(f"{told}: nothing counts in a calibration sample")
        if bad := checks.nonfinite((h,) if mask is None else (h, mask)):
            raise ValueError(f"`{self.layer}` of {self.name} is not finite at {bad} of the calibration sample")
        with float32():
            mask = None if mask is None else mask.flatten(1)
            teach, compare, drawn, wanted = self._start(students, h.flatten(1, -2), mask, width)
        look = look if wanted is None else narrowed(teacher, look, wanted.flatten(1), x)

        def target(x: Any, y: Any) -> Any:
            h, weights = read(x, y)
            with float32():
                return losses.pair(teach(h.flatten(1, -2)).unflatten(1, h.shape[1:-1]), weights)

        def loss(values: dict[str, torch.Tensor], target: Any) -> torch.Tensor:
            return compare(*reading.pairs(values[self.student_layer], target, self.units))

        return Bound((self.student_layer,), target, loss, **drawn)


@dataclass(frozen=True)
class Hidden(_Layer):
    r"""A fixed projection of one of the teacher's hidden layers: $\frac12 E \| h_S - (P h_T - \mu) / s \|^2$.

    P is drawn once a seed, unless asked otherwise. On the calibration sample each target is centred ($\mu$, a
    vector) and all are divided by one number ($s$, the root mean square): the teacher's scale does not matter.

    Args:
        layer, student_layer: paths of the modules to read, by the rule of `kdutils.reading` (`hidden` and `act` of an
            `MLP` are before and after its ReLU, `blocks.0` of a `Transformer` is its first residual stream).
        projection: a function of `kdutils.projections`.
        positions: "all", "asked" (where the task asks), "tokens" (no padding), or a function of x: where it is True.
        units: the dimension of both layers that holds the units, such as 1 in (batch, channels, height, width); every
            position of a map is then a row. None: the last of two or three, where no map can be meant.
        padding: the id of padding, for "tokens". None: the teacher's attribute `padding`.
        normalise: "sample" as above; "position" layer-normalises both sides at every position besides.
        scale: multiplies the targets. redraw: draw P anew at every step, with its own centre and the size of the first.
    """

    projection: Projection = gaussian
    normalise: str = "sample"
    scale: float = 1.0
    redraw: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.one_of("normalise", self.normalise, ("sample", "position"))
        checks.takes("projection must be one of kdutils.projections, or like them", self.projection, None, 1, None)
        checks.number("scale", self.scale, above=0)
        if self.normalise == "position" and self.scale != 1:
            raise ValueError(f"normalise='position' undoes scale={self.scale}: leave it out, or normalise by 'sample'")

    def _start(self, students: Students, hidden: torch.Tensor, weights: torch.Tensor | None, width: int) -> tuple:
        sample = [h if weights is None else h[weights[i]] for i, h in enumerate(hidden)]
        streams = {str(s): seeding.generator(s, "projection", self.layer, device=hidden.device) for s in students.seeds}

        def draw() -> torch.Tensor:
            return torch.stack([self.projection(h, width, g) for h, g in zip(sample, streams.values(), strict=True)])

        normal = partial(F.layer_norm, normalized_shape=(width,)) if self.normalise == "position" else lambda h: h
        projection, (centre, _), wanted = draw(), moments(hidden, weights, str(self)), None
        size = moments(hidden @ projection.to_dense().mT, weights, str(self))[1]
        mu, factor = centre @ projection.to_dense().mT, self.scale / size
        fixed = {"projection": projection.to_dense(), "centre": centre, "mu": mu, "factor": factor}
        if projection.is_sparse and not self.redraw:
            rows = projection.coalesce()
            wanted, entries = (t.view(len(hidden), width, -1) for t in (rows.indices()[-1], rows.values()))
            fixed = {"units": wanted, "entries": entries, "mu": mu, "factor": factor}

        def teach(h: torch.Tensor) -> torch.Tensor:
            if wanted is not None:  # h holds the units that the views read, one view after another
                return normal(factor * (torch.einsum("bnvs,bvs->bnv", h.unflatten(-1, (width, -1)), entries) - mu))
            p = draw().to_dense() if self.redraw else projection
            return normal(factor * (h @ p.mT - (centre @ p.mT if self.redraw else mu)))

        def compare(h: torch.Tensor, wanted: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
            rows = losses.where(weights, lambda h, w: 0.5 * (normal(h) - w).square().sum(-1), h, wanted)
            return losses.mean(rows, weights)

        return teach, compare, {"tensors": fixed, "generators": streams if self.redraw else {}}, wanted

    def __str__(self) -> str:
        kind = getattr(self.projection, "func", self.projection).__name__ + " projection"  # inside a functools.partial
        return f"{kind}{', redrawn each step,' if self.redraw else ''} of `{self.layer}` of {self.name}"


@dataclass(frozen=True)
class Regressed(_Layer):
    r"""FitNets' hint (Romero et al., 2015): a linear map from student to teacher is learned beside the student.

    $\frac{m_S}{2} E \, \mathrm{mean}((R h_S + r - (h_T - \mu) / s)^2)$: the mean over the teacher's neurons, times the
    student's width so that the size of the gradient is that of `Hidden`, whose fields it has. The map starts at
    N(0, 1/m_S), is trained at the member's own learning rate and thrown away with the stage.
    """

    def _start(self, students: Students, hidden: torch.Tensor, weights: torch.Tensor | None, width: int) -> tuple:
        (centre, size), device = moments(hidden, weights, str(self)), students.device
        shape = width, hidden.shape[-1]
        streams = (seeding.generator(seed, "regressor", device=device) for seed in students.seeds)
        maps = torch.stack([torch.randn(shape, generator=g, device=device, dtype=hidden.dtype) for g in streams])
        regressor = nn.Parameter(students.spread(maps / width**0.5).clone())
        offset = nn.Parameter(regressor.new_zeros(len(regressor), 1, shape[1]))

        def compare(h: torch.Tensor, wanted: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
            with torch.autocast(h.device.type, enabled=False):
                guess = torch.baddbmm(offset, losses.only(h, weights), regressor)
            rows = losses.where(weights, lambda g, w: (g - w).square().mean(-1), guess, wanted)
            return 0.5 * width * losses.mean(rows, weights)

        drawn = {"parameters": {"regressor": regressor, "offset": offset}, "tensors": {"centre": centre, "size": size}}
        return lambda h: (h - centre) / size, compare, drawn, None

    def __str__(self) -> str:
        return f"`{self.layer}` of {self.name} through a learned regressor"


@dataclass(frozen=True)
class WeightedSum:
    """Several signals at once, each loss times its weight."""

    terms: tuple[tuple[float, Signal], ...]

    def bind(self, students: Students, x: Any, y: Any = None) -> Bound:
        bounds = [signal.bind(students, x, y) for _, signal in self.terms]

        def loss(values: dict[str, torch.Tensor], targets: Any) -> torch.Tensor:
            return sum(w * b.loss(values, t) for (w, _), b, t in zip(self.terms, bounds, targets, strict=True))

        def merged(kind: str) -> dict[str, Any]:
            return {f"{i}/{name}": value for i, b in enumerate(bounds) for name, value in getattr(b, kind).items()}

        reads, own = dict.fromkeys(path for b in bounds for path in b.reads), ("parameters", "tensors", "generators")
        return Bound(tuple(reads), lambda x, y: tuple(b.target(x, y) for b in bounds), loss, *map(merged, own))

    def __str__(self) -> str:
        return " + ".join(f"{weight:g} x {signal}" for weight, signal in self.terms)
