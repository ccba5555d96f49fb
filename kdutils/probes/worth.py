"""What a teacher's layers hold that its outputs do not say: a look at any model before a student is trained.

It describes the teacher. Whether a hidden stage pays is for a run to say, beside its control.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from kdutils import checks, losses, reading, teachers
from kdutils.tasks.cost import flops

MOST = 64  # directions of the outputs, and classes of the labels, that a regression is given


@dataclass(frozen=True)
class Layer:
    """One layer of a teacher, by shares of its variance (of held-out positions; below 0 is noise).

    Attributes:
        width: its units.
        outputs: the share that a linear map of the teacher's log-probabilities explains.
        labels: what the labels add to that.
        left: what neither explains.
        cost: multiply-adds up to the layer, over those of the whole pass: about what a hidden stage costs.
    """

    path: str
    width: int
    outputs: float
    labels: float
    left: float
    cost: float


@dataclass(frozen=True)
class Worth:
    """A teacher's outputs and layers; printing it shows a table.

    Attributes:
        positions: how many answers were looked at, of `classes` classes.
        sure: the share of them whose likeliest class has more than 99 %: there an output says what a label does.
        entropy: mean entropy of the outputs in nats.
        accuracy: how often the likeliest class is the label.
    """

    positions: int
    classes: int
    sure: float
    entropy: float
    accuracy: float
    layers: tuple[Layer, ...]

    def __str__(self) -> str:
        head = f"{self.positions:,} answers of {self.classes:,} classes: {self.accuracy:.0%} right, "
        head += f"{self.sure:.0%} with a probability above 99%, entropy {self.entropy:.2f} nats"
        wide = max(len("layer"), *(len(layer.path) for layer in self.layers))
        rows = [f"{'layer':<{wide}}  width  outputs tell  labels add   left   cost"]
        for a in self.layers:
            shares = [f"{round(v, 2) + 0:.0%}" for v in (a.outputs, a.labels, a.left, a.cost)]  # no "-0%"
            rows.append("{:<{}}  {:>5}  {:>12}  {:>10}  {:>5}  {:>5}".format(a.path, wide, a.width, *shares))
        return "\n".join([head, *rows])


@torch.no_grad()
def worth(
    teacher: nn.Module, loader: Iterable[Any], layers: Sequence[str], *, units: int | None = None, positions: int = 8192
) -> Worth:
    """Read a teacher on pairs (inputs, labels) until so many `positions` have a label, and look at its `layers`.

    Half of the batches fit linear maps (ridge regression) from the outputs, and from outputs and labels, to each layer;
    the other half measures them. Outputs are cut to their 64 leading directions, labels to the 64 most frequent.

    Args:
        loader: pairs, as of a DataLoader; labels aligned with the outputs, `losses.IGNORE` where nothing is asked.
        layers: paths of modules with the positions of the labels; where a sample has one label, a layer with more
            positions is averaged over them.
        units: the dimension of their units, where it is not the last (1 for maps with channels first).

    Raises:
        ValueError: for fewer than two batches or none with labels, labels that are no classes of the outputs, outputs
            that are probabilities, a layer with other positions.
    """
    checks.count("positions", positions)
    paths = tuple(dict.fromkeys(layers))
    if not paths:
        raise ValueError("name the layers to look at, such as ['blocks.0']")
    training, halves, first, found = teachers.in_eval_mode(teacher), ([], []), None, 0
    try:
        for number, batch in enumerate(loader):
            if not isinstance(batch, tuple | list) or len(batch) != 2 or not isinstance(batch[1], torch.Tensor):
                advice = "of a mapping, give what is left without its labels, and these (the next tokens, where causal)"
                raise ValueError(f"a batch must be a pair (inputs, labels), not a {type(batch).__name__}: {advice}")
            x, y = batch
            first = x if first is None else first
            halves[number % 2].append(_rows(teacher, x, y, paths, units))
            found += len(halves[number % 2][-1]["labels"])
            if found >= positions and number:
                break
        if not halves[1]:
            raise ValueError("the loader gives fewer than two batches: half of them fit, the others measure")
        passes = [partial(reading.outputs_at, teacher, first, (path,)) for path in (*paths, reading.OUTPUT)]
        costs = [flops(up_to_it)[1] for up_to_it in passes]
    finally:
        teachers.restored(training)
    if not all(sum(len(part["labels"]) for part in half) for half in halves):
        raise ValueError(f"no position has a label in one half of the batches: all are {losses.IGNORE}")
    fit, held = ({key: torch.cat([part[key] for part in half]) for key in half[0]} for half in halves)
    both = {key: torch.cat([fit[key], held[key]]) for key in (reading.OUTPUT, "labels")}
    p = both[reading.OUTPUT].exp()
    told, everything = (_features(fit, held, with_labels) for with_labels in (False, True))
    rows = []
    for path, cost in zip(paths, costs, strict=False):
        outputs, all_of_it = (_explained(*features, fit[path], held[path]) for features in (told, everything))
        share = cost / costs[-1] if costs[-1] else float("nan")
        rows.append(Layer(path, fit[path].shape[1], outputs, all_of_it - outputs, 1 - all_of_it, share))
    right = (p.argmax(-1) == both["labels"]).double().mean().item()
    entropy = torch.special.entr(p).sum(-1).mean().item()
    return Worth(len(p), p.shape[-1], (p.amax(-1) > 0.99).double().mean().item(), entropy, right, tuple(rows))


def _rows(teacher: nn.Module, x: Any, y: torch.Tensor, paths: tuple[str, ...], units: int | None) -> dict:
    """What counts of one batch, a row a labelled position: labels, log-probabilities under "", and every layer."""
    values = reading.outputs_at(teacher, x, (*paths, reading.OUTPUT))
    if values[reading.OUTPUT].shape[:-1] != y.shape:
        own = tuple(values[reading.OUTPUT].shape)
        raise ValueError(f"outputs {own} need labels {own[:-1]}, not {tuple(y.shape)}")
    checks.labels(y, look=False)
    checks.not_probabilities(values[reading.OUTPUT])
    losses.check_classes(classes := values[reading.OUTPUT].shape[-1])
    asked = losses.asked(y)
    if len(wrong := y[asked & ((y < 0) | (y >= classes))]):
        raise ValueError(f"label {wrong[0].item()} is none of the teacher's classes, 0 to {classes - 1}")
    kept = {"labels": y[asked].cpu()}
    for path, value in values.items():
        if path != reading.OUTPUT:
            reading.check_units(teacher, path, value.shape, len(y), units)
            value = value if units is None else value.movedim(units, -1)
            value = value.flatten(1, -2).mean(1) if y.dim() == 1 and value.dim() > 2 else value
        if value.shape[:-1] != y.shape:
            raise ValueError(f"{path!r} has positions {tuple(value.shape[:-1])}, the labels {tuple(y.shape)}")
        value = value[asked].double().cpu()
        kept[path] = value.log_softmax(-1) if path == reading.OUTPUT else value
    return kept


def _features(fit: dict, held: dict, with_labels: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """What both regressions are given, for either half: leading directions of the outputs, frequent labels."""
    z = fit[reading.OUTPUT].clamp_min(-100.0)
    centre = z.mean(0)
    directions = torch.linalg.svd(z - centre, full_matrices=False).Vh[:MOST]
    frequent = fit["labels"].bincount().topk(min(MOST, int(fit["labels"].max()) + 1)).indices
    made = []
    for half in (fit, held):
        parts = [(half[reading.OUTPUT].clamp_min(-100.0) - centre) @ directions.T]
        if with_labels:
            parts.append((half["labels"][:, None] == frequent).double())
        made.append(torch.cat(parts, 1))
    return made[0], made[1]


def _explained(x: torch.Tensor, x_held: torch.Tensor, h: torch.Tensor, h_held: torch.Tensor) -> float:
    """The share of the held-out variance of h (n, units) that a ridge regression on x explains; 0 for a constant h."""
    centre, size, mean = x.mean(0), x.std(0).clamp_min(1e-9), h.mean(0)
    x, x_held = (x - centre) / size, (x_held - centre) / size
    slope = torch.linalg.solve(x.T @ x + 1e-3 * len(x) * torch.eye(x.shape[1], dtype=x.dtype), x.T @ (h - mean))
    total = (h_held - mean).square().sum()
    return float(1 - (h_held - mean - x_held @ slope).square().sum() / total) if total > 0 else 0.0
