"""A curriculum for one network in any PyTorch loop: a module that returns the loss.

The signals are those of `kdutils.signals`, bound to the reader's own live network as if it were an ensemble of one.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import accumulate
from numbers import Integral
from typing import Any

import torch
from torch import nn

from kdutils import binding, checks, fingerprints, fitting, inside, reading, recorded, seeding, teachers, warned
from kdutils.curriculum import Curriculum
from kdutils.signals import Bound, Labels, Output

PATIENCE = 20  # steps after which a map that nothing moves is not in the optimiser, and between looks at a GPU's loss
_CLASSES = (Labels, Output, recorded.RecordedOutput)  # signals that compare outputs by their softmax


class Distiller(nn.Module):
    """`loss = distiller(batch, labels, step)`: the loss of the stage that `step` lies in, to be minimised as you like.

    `student` is your own network. It stays in train mode, on its device and in your optimiser's hands: clipping, weight
    decay, schedules, accumulation, autocast, gradient checkpointing and `torch.compile(student)` are yours. The module
    to wrap (DistributedDataParallel with `find_unused_parameters=True`, Accelerate, FSDP2) is the Distiller. Teachers
    are not copied, but moved to the student's device and put in eval mode; they are never saved, wrapped or trained.

    Args:
        student: on its final device. Its parameters that a stage does not reach get no gradient (`grad` is None), so an
            optimiser with weight decay leaves them alone, too.
        plan: a curriculum, as from `kdutils.curriculum`.
        total: optimiser steps in all; a last stage of open length takes what the others leave.
        calibration: a batch that fixes the scale of hidden targets, once and for all; the same in every process.
        calibration_labels: its labels, for hidden signals with `positions="asked"`.
        units: the dimension that holds the units, for hidden layers that do not say themselves: a number, or
            {student's path: number}.
        mask: which positions count, in hidden signals whose `positions` are "all" and in outputs that come without
            labels: the name of an entry of the batch, such as "attention_mask", or a function of the batch. Layers
            without positions, as a pooler, need none.
        vocabulary: of the outputs, only the first so many classes: for the same token ids, padded to different sizes.
        seed: of the projections and regressors; the projections of a record are those of its own seed.

    Attributes:
        drawn: what was drawn and measured at the start, the step, and learned regressors; saved beside the student.
        starts: the first step of every stage.

    Raises:
        ValueError: when plan, student and calibration do not fit together, or the plan ends before `total`.
        TypeError: for a calibration that the student cannot read.

    >>> from kdutils import curriculum
    >>> student, teacher = (nn.Sequential(nn.Linear(4, width), nn.Linear(width, 2)) for width in (3, 8))
    >>> plan = curriculum.extracted(teacher, layers=[("0", "0")], steps=10)
    >>> distiller = Distiller(student, plan, total=30, calibration=torch.randn(16, 4))
    >>> loss = distiller(torch.randn(5, 4), labels=torch.zeros(5, dtype=torch.long), step=0)
    >>> loss.backward()
    >>> loss.shape, student[0].weight.grad is None, student[1].weight.grad is None, distiller.starts
    (torch.Size([]), False, True, [0, 10])
    """

    _warned = False  # of padding that counts

    def __init__(
        self,
        student: nn.Module,
        plan: Curriculum,
        *,
        total: int,
        calibration: Any,
        calibration_labels: torch.Tensor | None = None,
        units: int | Mapping[str, int] | None = None,
        mask: str | Callable[[Any], torch.Tensor] | None = None,
        vocabulary: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not isinstance(student, nn.Module):
            raise ValueError(f"the student must be a torch module, not a {type(student).__name__}")
        if isinstance(student, Distiller):
            raise ValueError("the student must be the network itself, not a Distiller around it: give its `student`")
        if type(student).__module__.startswith(("torch.nn.parallel.", "torch.distributed.fsdp.fully_sharded")):
            raise ValueError(f"give the network itself, and wrap the Distiller in {type(student).__name__} instead")
        if not isinstance(plan, Curriculum):
            raise ValueError(f"the plan must be a Curriculum, as from kdutils.curriculum, not a {type(plan).__name__}")
        lengths = plan.lengths(checks.count("total", total))
        self.student, self.plan = student, plan
        self.starts, self.total = [0, *accumulate(lengths)][:-1], sum(lengths)
        signals = [stage.signal for stage in plan.stages]
        fitting.proper(signals)
        fitting.samples(calibration, "the calibration")
        inside.known(units, signals, calibration_labels)
        fitting.one_side(student, mask, signals)
        warned.of_experts(student)
        warned.of_seed(signals, seed)
        matched, known = fingerprints.of_stages(plan.stages), fingerprints.described(mask)  # before any pass
        self._one = binding.One(student, seed, vocabulary)
        self._one.mask, self._one.spare = mask, inside.spare(student, signals, mask)
        x, y = (inside.lead(part) for part in (calibration, calibration_labels))
        flat = binding.flat(self._one, signals, x, mask)
        self._stages = [replace(s, signal=inside.filled(s.signal, units, mask, flat)) for s in plan.stages]
        self._labels = [inside.holds(stage.signal, Labels) for stage in self._stages]
        self._classes = [inside.holds(stage.signal, _CLASSES) for stage in self._stages]
        self._asks = [bool(inside.placed(stage.signal, "asked")) for stage in self._stages]
        self._everywhere = [{read.student_layer for read in inside.placed(s.signal, "all")} for s in self._stages]
        filled = [stage.signal for stage in self._stages]
        self._bounds: list[Bound] = [self._one.bind(s, c, x, y) for s, c in zip(filled, self._classes, strict=True)]
        self._one.teachers(signals, self._bounds)
        warned.of_few_positions(self._one, filled, x, y)
        warned.of_calls(student, signals, x, self._one.spare)
        asked = fingerprints.asked(self._one, signals, x, y)
        self._built = dict(total=total, calibration=calibration, calibration_labels=calibration_labels, units=units,
                           mask=mask, vocabulary=vocabulary, seed=seed)  # fmt: skip
        steps = ("all later" if stage.steps is None else stage.steps for stage in plan.stages)
        matched = [what + said for what, said in zip(matched, asked, strict=True)]
        warned.of_same_stages(signals, matched)
        told = [f"{length} steps of {what}" for length, what in zip(steps, matched, strict=True)]
        told.append(f"seed {seed}, units {units}, mask {known}, vocabulary {vocabulary}")
        self.drawn = binding.Drawn("\n".join(told), self._bounds)
        self._now, self._whole, self._agreed = 0, None, False
        self._last, self._returned = -1, False  # the step of the last call here, and whether one was warned of
        self.drawn.register_load_state_dict_post_hook(lambda *_: setattr(self, "_last", -1))
        then = (layer.targets.about["settings"]["mask"] for layer in inside.recorded(signals))
        self._warned = self._warned or any(mask is not None for mask in then)  # a record leaves padding out by itself
        self._moves: dict[int, tuple[int, list[torch.Tensor]]] = {}  # by stage: its first step, what it learns then
        self._only = binding.Only(student, plan.stages) if any(stage.only for stage in plan.stages) else None
        fixed = [f"drawn.{name}" for name, _ in self.drawn.named_buffers()]
        self._ddp_params_and_buffers_to_ignore = fixed  # see fitting.processes

    def __deepcopy__(self, memo: dict[int, Any]) -> Distiller:
        """A Distiller of a copy of the student, with the same plan and teachers; its losses hold what is its own."""
        with warnings.catch_warnings(), seeding.global_rng(0, device=self._one.device):
            warnings.simplefilter("ignore")  # it was told when this one was built
            copied = memo[id(self)] = type(self)(copy.deepcopy(self.student, memo), self.plan, **self._built)
        copied.drawn.text, copied.training = self.drawn.text, self.training
        copied.drawn.load_state_dict(self.drawn.state_dict())
        return copied

    def stage_at(self, step: int) -> int:
        """Which stage a step lies in, both counted from 0; ValueError for a step that the curriculum does not have."""
        step = (step.item() if step.numel() == 1 else "a tensor") if isinstance(step, torch.Tensor) else step
        if isinstance(step, bool) or not isinstance(step, Integral) or not 0 <= step < self.total:
            ended = " (the training is finished)" if isinstance(step, Integral) and step == self.total else ""
            raise ValueError(f"step {step!r} is out of range: this curriculum has steps 0 to {self.total - 1}{ended}")
        return sum(start <= step for start in self.starts) - 1

    @property
    def step(self) -> int:
        """The step of the last call, -1 before the first; a loop that is resumed goes on with the next."""
        return int(self.drawn.step.item())

    @torch.compiler.disable  # the student alone is compiled: it may be before, and hidden stages read it as written
    def forward(self, batch: Any, labels: torch.Tensor | None, step: int, rows: Any = None) -> torch.Tensor:
        """The loss (a scalar) of one batch.

        Args:
            batch: what the student and its teachers read: a tensor, a mapping (passed on by name) or a tuple. An entry
                that the student does not take is for the teachers that do, and the mask that is called so.
            labels: (batch,), or (batch, length) with `losses.IGNORE` where nothing is asked, aligned with the outputs
                (for a causal language model, the *next* token at each position). None in stages that need none.
            step: optimiser steps done so far; micro-batches of an accumulated step share it.
            rows: of a recorded plan (`kdutils.recorded`), the numbers of the batch's samples in the data set.

        Raises:
            ValueError: for labels or rows that do not fit the stage, outputs that are probabilities, a target that is
                not finite, a student that is in eval mode, frozen or was moved.
        """
        self._now = self.stage_at(step)
        if not self.student.training:
            raise ValueError("the student is in eval mode: call train() before a step (`evaluate` needs none)")
        loss = self._loss(batch, labels, step, rows)
        self._check_moves(self._bounds[self._now], int(step))
        if len(self.starts) > 1 and loss.requires_grad:
            self._returned, self._last = self._returned or warned.of_steps(int(step), self._last), int(step)
        self.drawn.step.fill_(int(step))
        if self._only and self._stages[self._now].only and loss.requires_grad:
            self._only.check(self.student)
            loss.register_hook(partial(self._only.open, self._stages[self._now].only))
        return loss

    @torch.compiler.disable
    def evaluate(self, batch: Any, labels: torch.Tensor | None, step: int, rows: Any = None) -> torch.Tensor:
        """The loss (a scalar) of the stage that `step` lies in, on held-out data: in eval mode, without a gradient.

        It changes nothing: not `step`, the modes of modules, or the streams of random numbers. Arguments and errors are
        those of a call. With several processes, all of them call it.
        """
        now, self._now, told = self._now, self.stage_at(step), (self._warned, self._one.looked)
        streams = [(stream, stream.get_state()) for stream in self._bounds[self._now].generators.values()]
        try:
            with teachers.still(self.student), seeding.global_rng(0, device=self._one.device):
                return self._loss(batch, labels, step, rows)
        finally:
            for stream, state in streams:
                stream.set_state(state)
            self._now, (self._warned, self._one.looked) = now, told

    def _loss(self, batch: Any, labels: torch.Tensor | None, step: int, rows: Any) -> torch.Tensor:
        stage, classes = f"stage {self._now + 1}", self._classes[self._now]
        bound, first = self._bounds[self._now], self._now not in self._moves  # the first batch of a stage
        within = batch.get("labels") if isinstance(batch, Mapping) and labels is None else None
        if within is not None and reading.OUTPUT in bound.reads:
            raise ValueError("the batch holds labels: give them beside it (an encoder-decoder its decoder_input_ids)")
        fitting.labelled(labels, stage, self._labels[self._now], self._asks[self._now], classes)
        fitting.samples(batch)
        self._check_place()
        look = first or step % PATIENCE == 0
        if not self._agreed:
            self._agree()
        if first and reading.OUTPUT in bound.reads and not fitting.two_sided(self.student):
            warned.of_labels(batch, labels, self._labels[self._now])
        self._one.enter(self._now)
        self._one.rows = rows
        x, y = inside.lead(batch), inside.lead(labels)
        self._one.mark(x, y, bound.reads)
        if self._only:  # a backward pass that an error ended
            self._only.close()
        if self._asks[self._now]:
            checks.labels(labels, first or labels.device.type == "cpu")
        with torch.no_grad():  # whatever a signal of one's own does
            target = bound.target(x, y)
        self._one.enter()  # what teachers said is not held while the student runs
        reads = bound.reads if not self._whole or reading.OUTPUT in bound.reads else (*bound.reads, reading.OUTPUT)
        with fitting.uncached(self.student), warned.of_heads(self.student, first and reading.OUTPUT in reads):
            values = reading.outputs_at(self.student, inside.given(self.student, batch, self._one.spare), reads)
        marks = self._one.marks
        said = (labels, "labels") if marks is None else (marks[0], "a mask")
        self._check_labels(values.get(reading.OUTPUT), *said, first)
        self._check_padding(batch, values, labels, look)
        self._check_gradient(values, bound)
        loss = bound.loss({path: self._one.cut(values[path], path)[None] for path in bound.reads}, target)
        if look or loss.device.type == "cpu":  # elsewhere a look waits for the device
            fitting.finite(loss, target, values.get(reading.OUTPUT), stage)
        return loss.sum()  # of one, and no view: what is done to a view in place would leave hooks behind

    def _check_padding(self, batch: Any, values: Mapping[str, torch.Tensor], labels: Any, look: bool) -> None:
        if self._one.mask is None and not self._warned and not fitting.two_sided(self.student):
            counted = self._everywhere[self._now] | ({reading.OUTPUT} if labels is None else set())
            self._warned = warned.of_padding(batch, [v for path, v in values.items() if path in counted], look)

    def _check_labels(self, outputs: torch.Tensor | None, labels: Any, what: str, first: bool) -> None:
        if outputs is None:
            return
        if self._classes[self._now]:
            if (first or not self.student.training) and outputs[..., 0].numel() > 3:  # fewer may sum to 1 by chance
                checks.not_probabilities(outputs, "student")
            checks.fitting(outputs.shape, labels if what == "labels" else None, False, first)
        if not (self._labels[self._now] or outputs.dim() > 2):
            return warned.of_one_logit(outputs, labels) if first and what == "a mask" else None
        if outputs.dim() > 2:
            self._one.marked()
        if isinstance(labels, torch.Tensor) and outputs.shape[:-1] != labels.shape:
            needed = f"outputs {tuple(outputs.shape)} need {what} {tuple(outputs.shape[:-1])}"
            raise ValueError(f"{needed}, not {tuple(labels.shape)}")
        if what == "labels" and labels is not None and self._classes[self._now]:
            look, classes = first or labels.device.type == "cpu", self._one.cut(outputs, reading.OUTPUT).shape[-1]
            checks.labels(labels, look)
            checks.labels(labels, look and self._labels[self._now], classes)

    def _check_gradient(self, values: dict[str, torch.Tensor], bound: Bound) -> None:
        signal = self._stages[self._now].signal
        own = {layer.student_layer for layer in inside.layers(signal)}
        own |= {reading.OUTPUT} if self._classes[self._now] else set()
        lost = [path for path in bound.reads if not values[path].requires_grad]
        if torch.is_grad_enabled() and (own.intersection(lost) or len(lost) == len(bound.reads)):
            cause = "all that leads to it is frozen or detached, or checkpointed with use_reentrant=True"
            raise ValueError(f"no gradient comes from {lost[0] or 'the output'!r} of the student: {cause}")

    def _check_place(self) -> None:
        if (where := next(self.student.parameters()).device) != self._one.device:
            raise ValueError(f"the student has moved from {self._one.device} to {where}: build the Distiller then")
        if not self.drawn.intact(self._bounds):
            advice = "build it anew from its parts (and leave `distiller.drawn` out of a sharding)"
            cause = "(by an evaluation in half precision before the training, as with bf16_full_eval?)"
            raise ValueError(f"the Distiller was copied, cast or sharded after it was built {cause}: {advice}")

    def _agree(self) -> None:
        """Look once at what surrounds this process: it needs the same plan and the same targets as the others."""
        self._agreed = True
        self._whole = any(hasattr(module, "_get_fsdp_state") for module in self.modules())
        fitting.processes(f"{self.drawn.text}\n{self.total} steps in all", self._bounds, self._only is not None)

    def _check_moves(self, bound: Bound, step: int) -> None:
        """Warn once where steps go by and what the plan learns beside the student stays as it is."""
        learned = list(bound.parameters.values())
        if self._now not in self._moves:
            self._moves[self._now] = step, [parameter.detach().clone() for parameter in learned]
        since, then = self._moves[self._now]
        if learned and then and step >= since + PATIENCE:
            self._moves[self._now] = since, []
            if all(map(torch.equal, learned, then)):
                told = f"stage {self._now + 1} learns a map of its own, which has not changed in {step - since} steps"
                warned.warn(f"{told}: does the optimiser hold distiller.parameters()?")
