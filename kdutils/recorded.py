"""Teachers that are run once: what a curriculum asks of them, on disk, for students that train without them.

Because a projection is fixed, a recorded hidden target is as wide as the *student's* layer. Of an output the likeliest
classes are kept, and what the rest adds up to. A record fits one plan, width, seed and data set, row by row.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn
from torch.utils.data import default_collate

from kdutils import binding, checks, fingerprints, fitting, inside, losses, reading, shards, warned
from kdutils.curriculum import Curriculum, Stage
from kdutils.signals import Bound, Hidden, Labels, Output, Regressed, Signal, Students, WeightedSum


def record(
    plan: Curriculum,
    student: nn.Module,
    rows: Sequence[Any],
    folder: str | os.PathLike[str],
    *,
    calibration: Any,
    calibration_labels: torch.Tensor | None = None,
    top_k: int | None = 32,
    batch: int = 32,
    shard: int = 1024,
    collate: Callable[[list[Any]], Any] = default_collate,
    units: int | Mapping[str, int] | None = None,
    mask: str | Callable[[Any], torch.Tensor] | None = None,
    vocabulary: int | None = None,
    seed: int = 0,
) -> None:
    """Run the teachers of `plan` over `rows`, once, and write what each stage asks of them. Call it again to go on.

    Numbers are kept in half precision: a hidden target, whose root mean square is 1, within 0.05 % of its size, a
    probability p within 0.05 % of itself times log(1/p).

    Args:
        student: gives the widths; it is not trained, and any network of its shape may learn from the record.
        rows: a data set, indexed by numbers; what is drawn anew at each reading (augmentation, masking) does not fit.
        folder: made if need be. A shard is written whole or not at all, and its checksum is kept.
        top_k: classes of an output to keep, 1 or more; the others' probability is kept as one number. None: all.
        batch, shard: rows that are read at once, and that share a file.
        collate: from a list of rows to a batch as the student reads it, a pair of it and labels, or a mapping with
            "labels"; all batches have the same length.
        calibration, calibration_labels, units, mask, vocabulary, seed: as in `Distiller`.

    Raises:
        ValueError: for signals that cannot be recorded, or a folder with another plan's, teacher's or data set's."""
    folder, batch, shard = Path(folder), checks.count("batch", batch), checks.count("shard", shard)
    shards.indexed(rows)
    top_k = top_k if top_k is None else checks.count("top_k", top_k)
    one = binding.One(student, seed, vocabulary)
    first = inside.lead(calibration), inside.lead(calibration_labels)
    stages, found, described = _stages(plan)
    inside.known(units, list(found.values()), calibration_labels)
    one.spare = inside.spare(student, list(found.values()), mask).intersection(inside.names(calibration))
    told = dict(seed=seed, units=units, mask=fingerprints.described(mask), vocabulary=vocabulary, top_k=top_k)
    about = {
        "name": plan.name, "stages": stages, "rows": len(rows), "shard": shard, "shards": {},
        "settings": {name: shards.told(value) for name, value in told.items()}, "format": shards.FORMAT,
        "calibration": shards.sums(first[0]).tolist(),
        "leaves": {name: _spec(signal, units, described[name]) for name, signal in found.items()},
    } | ({"spare": sorted(one.spare)} if one.spare else {})  # fmt: skip
    about = json.loads(json.dumps(about, default=lambda number: number.item()))  # numpy's
    flat = binding.flat(one, list(found.values()), first[0], mask)
    found = {name: inside.filled(signal, units, mask, flat) for name, signal in found.items()}
    bounds = {name: one.bind(signal, isinstance(signal, Output), *first) for name, signal in found.items()}
    warned.of_few_positions(one, list(found.values()), *first)
    one.mask = mask
    about["shapes"] = [list(t.shape) for bound in bounds.values() for t in bound.tensors.values()]
    about["said"] = dict(zip(found, fingerprints.asked(one, list(found.values()), *first), strict=True))
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / shards.ABOUT).exists():
        about["shards"] = shards.same(shards.read(folder), about, folder)["shards"]

    def read(start: int, i: int) -> tuple[Any, Any]:
        """The batch of a shard that begins with row i: inputs, labels."""
        x, y = inside.split(collate([rows[j] for j in range(i, min(i + batch, start + shard, len(rows)))]))
        return reading.each(lambda t: t.to(one.device), x), y

    for start in range(0, len(rows), shard):
        name = f"{start:010d}.safetensors"
        if name in about["shards"] and shards.intact(folder / name, about["shards"][name]):
            shards.same_rows(folder / name, start, shards.sums(inside.lead(read(start, start)[0]), one.spare))
            continue
        parts = [_targets(one, bounds, found, top_k, *read(start, i))
                 for i in range(start, min(start + shard, len(rows)), batch)]  # fmt: skip
        about["shards"][name] = shards.write(folder / name, safetensors.torch.save(shards.joined(parts)))
        shards.write(folder / shards.ABOUT, json.dumps(about, indent=1).encode())


def plan(folder: str | os.PathLike[str], of: Curriculum | None = None) -> Curriculum:
    """The curriculum that was recorded in `folder`, without a teacher in memory; steps then need `rows`.

    Args:
        of: the live plan, if it is at hand: ValueError unless the record is of this very plan and its teachers, by
            structure, configuration and numbers (what they say is compared when `record` is called again).
    """
    about, folder = shards.read(Path(folder)), Path(folder)
    if (done := len(about["shards"]) * about["shard"]) < about["rows"]:
        raise ValueError(f"{folder} holds {done} of {about['rows']} rows: call record again, it goes on there")
    if of is not None:
        stages, _, described = _stages(of)
        leaves = {name: leaf["about"] for name, leaf in about["leaves"].items()}
        shards.same({"stages": about["stages"], "leaves": leaves}, {"stages": stages, "leaves": described}, folder)
    targets = shards.Targets(folder, about)

    def signal(tree: Any) -> Signal:
        if tree == "labels":
            return Labels()
        if isinstance(tree, str):
            spec = about["leaves"][tree]
            return (RecordedOutput if spec["kind"] == "Output" else RecordedLayer)(tree, spec["about"], targets)
        return WeightedSum(tuple((weight, signal(part)) for weight, part in tree))

    stages = (Stage(signal(s["signal"]), s["steps"], tuple(s["only"])) for s in about["stages"])
    return Curriculum(about["name"], tuple(stages))


@dataclass(frozen=True)
class _Recorded:
    key: str
    about: str
    targets: shards.Targets

    def __str__(self) -> str:
        return f"{self.targets.about['leaves'][self.key]['told']}, recorded"


class RecordedLayer(_Recorded):
    """`Hidden` or `Regressed`, of targets that were recorded under `key`."""

    @property
    def student_layer(self) -> str:
        return self.targets.about["leaves"][self.key]["layer"]

    def bind(self, students: Students, x: Any, y: Any = None) -> Bound:
        spec = self.targets.about["leaves"][self.key]
        units, layer = spec["units"], spec["layer"]
        width = reading.shapes(students, layer, x, units)[0][-1]
        recorded = self.targets.shard(0)[f"{self.key}/values"].shape[-1]
        kind, more = (Hidden, {"normalise": spec["normalise"]}) if spec["kind"] == "Hidden" else (Regressed, {})
        if kind is Hidden and width != recorded:
            raise ValueError(f"{layer!r} of the student is {width} wide, the targets were recorded for {recorded}")
        signal = kind(nn.Identity(), reading.OUTPUT, layer, units=units, **more)  # its loss is that of the live signal
        sample = torch.tensor([[1.0], [-1.0]], device=students.device, dtype=torch.float32)  # the loss needs no more
        sample = sample.expand(len(students.seeds), 2, recorded)
        _, compare, drawn, _ = signal._start(students, sample, None, width)

        def target(x: Any, y: Any) -> Any:
            found = self.targets.get(students, x, self.key)
            if spec.get("asked") and y is not None and not torch.equal(losses.asked(y), found["mask"]):
                raise ValueError(f"{self}: the labels ask at other positions than when it was recorded")
            return losses.pair(found["values"].float(), found.get("mask"))

        def loss(values: dict[str, torch.Tensor], target: Any) -> torch.Tensor:
            return compare(*reading.pairs(values[layer], target, units))

        return Bound((layer,), target, loss, drawn.get("parameters", {}))


class RecordedOutput(_Recorded):
    """`Output`, of the likeliest classes: the divergence between them and one class that stands for all others."""

    def bind(self, students: Students, x: Any, y: Any = None) -> Bound:
        spec, first = self.targets.about["leaves"][self.key], self.targets.shard(0)
        losses.check_classes(reading.classes(students, x, y), int(first[f"{self.key}/classes"][0]))
        heat = spec["heat"]

        def target(x: Any, y: Any) -> Any:
            found = self.targets.get(students, x, self.key)
            log_p, ids = found["log_p"].float().log_softmax(-1), found.get("ids")
            said = losses.asked(y, students)
            asked = (found.get("mask") if said is None else said) if log_p.dim() > 3 else None
            if asked is None and log_p.dim() > 3 and self.targets.about["settings"]["mask"] is not None:
                raise ValueError(f"{self} has no mask of its outputs: give labels, or say mask= and record it anew")
            parts = log_p, asked, None if ids is None else ids.long()
            return tuple(part for part in parts if part is not None)  # an ensemble spreads tensors alone

        def compare(own: torch.Tensor, log_p: torch.Tensor, *ids: torch.Tensor) -> torch.Tensor:
            for top in ids:  # logits still: of a few classes and one that holds the rest, the loss takes the softmax
                own = _Lumped.apply(own if heat == 1 else losses.tempered(own, heat), top)
            return losses.divergence(own, log_p, 1.0 if ids else heat) * (heat**2 if ids else 1)

        def loss(values: dict[str, torch.Tensor], target: Any) -> torch.Tensor:
            log_p, *parts = target
            asked = next((part for part in parts if part.dtype == torch.bool), None)
            own, wanted, asked = reading.pairs(values[reading.OUTPUT], (log_p, asked))
            more = [part.flatten(1, -2) for part in parts if part.dtype != torch.bool]
            return losses.mean(losses.where(asked, compare, own, wanted, *more), asked)

        return Bound((reading.OUTPUT,), target, loss)


RECORDED = (RecordedLayer, RecordedOutput)


class _Lumped(torch.autograd.Function):
    """Logits (..., classes) of the classes `ids` (..., k), and of all others as one: (..., k + 1).

    The same as gather, scatter, logsumexp and cat, with one large tensor in place of several: it is most of a step.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        rest = logits.scatter(-1, ids, -torch.inf)
        largest = rest.amax(-1, keepdim=True).clamp_min(torch.finfo(rest.dtype).min)
        total = rest.sub_(largest).exp_().sum(-1, keepdim=True).clamp_min(torch.finfo(rest.dtype).tiny)
        ctx.save_for_backward(rest, total, ids)
        return torch.cat([logits.gather(-1, ids), largest + total.log()], -1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        rest, total, ids = ctx.saved_tensors
        return (rest * (gradient[..., -1:] / total)).scatter_(-1, ids, gradient[..., :-1]), None


@torch.no_grad()
def _targets(
    one: binding.One, bounds: dict[str, Bound], found: dict[str, Signal], top_k: int | None, x: Any, y: Any
) -> dict[str, torch.Tensor]:
    """What is kept of one batch: {"name/part": (batch, ...)}; from the second batch on in one pass of each teacher."""
    one.enter()
    x, y = inside.lead(x), None if y is None else inside.lead(y.to(one.device))
    one.mark(x, None, [path for bound in bounds.values() for path in bound.reads])  # for steps without labels, too
    kept = {"sums": shards.sums(x, one.spare).cpu()}
    for name, bound in bounds.items():
        target = bound.target(x, y)
        values, mask = target if isinstance(target, tuple) else (target, None)
        values = values[0]
        if isinstance(found[name], Output) and (bad := checks.nonfinite(target)):
            raise ValueError(f"{found[name]} is not finite at {bad} of a batch: does it overflow in half precision?")
        if not isinstance(found[name], Output):
            kept[f"{name}/values"] = values.half().cpu()
            if found[name].positions != "all":
                kept[f"{name}/mask"] = (torch.ones_like(values[..., 0]) if mask is None else mask[0]).bool().cpu()
            if not kept[f"{name}/values"].isfinite().all():
                raise ValueError(f"a target of {found[name]} is no finite number in half precision")
            continue
        if values.dim() > 2 and not (one.unmarked and y is not None) and (marks := one.marked()) is not None:
            kept[f"{name}/mask"] = marks[0].cpu()
        classes = values.shape[-1]
        kept[f"{name}/classes"] = torch.full((len(values),), classes)
        if top_k is not None and top_k < classes - 1:
            every, (values, ids) = values, values.topk(top_k, -1)
            kept[f"{name}/ids"] = ids.to(torch.uint16 if classes <= 2**16 else torch.int32).cpu()
            rest = (1 - values.double().exp().sum(-1, keepdim=True)).clamp_min(1e-9).log()
            out = every.scatter(-1, ids, -torch.inf).amax(-1, keepdim=True) <= torch.finfo(every.dtype).min
            values = torch.cat([values, rest.masked_fill(out, -torch.inf).to(values.dtype)], -1)  # all others ruled out
        kept[f"{name}/log_p"] = values.half().cpu()
    return kept


def _stages(plan: Curriculum) -> tuple[list[dict[str, Any]], dict[str, Signal], dict[str, str]]:
    """The stages as plain data; by their names in it, the signals that read a teacher, and what tells these apart."""
    if not isinstance(plan, Curriculum):
        raise ValueError(f"the plan must be a Curriculum, as from kdutils.curriculum, not a {type(plan).__name__}")
    fitting.proper([stage.signal for stage in plan.stages])
    found, described = {}, {}
    with fingerprints.once():
        trees = [_tree(stage.signal, found, described) for stage in plan.stages]
    stages = [{"steps": s.steps, "only": list(s.only), "signal": t} for s, t in zip(plan.stages, trees, strict=True)]
    return stages, found, described


def _tree(signal: Signal, found: dict[str, Signal], described: dict[str, str]) -> Any:
    if isinstance(signal, Labels):
        return "labels"
    if isinstance(signal, WeightedSum):
        return [[weight, _tree(part, found, described)] for weight, part in signal.terms]
    if type(signal) not in (Hidden, Regressed, Output):
        raise ValueError(f"{signal}: a {type(signal).__name__} cannot be recorded")
    if getattr(signal, "redraw", False) or getattr(signal, "share", 1) < 1:
        raise ValueError(f"{signal}: a target that changes while the student learns cannot be recorded")
    about = fingerprints.described(signal)
    same = [n for n, other in described.items() if other == about and found[n].teacher is signal.teacher]
    name = same[0] if same else f"t{len(found)}"
    found[name], described[name] = signal, about
    return name


def _spec(signal: Any, units: Any, about: str) -> dict[str, Any]:
    spec = {"kind": type(signal).__name__, "about": about, "told": str(signal)}
    if isinstance(signal, Output):
        return spec | {"heat": signal.student_temperature}
    units, normalise = inside.filled(signal, units, None).units, getattr(signal, "normalise", None)
    asked = signal.positions == "asked"
    return spec | {"layer": signal.student_layer, "units": units, "normalise": normalise, "asked": asked}
