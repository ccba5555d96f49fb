"""A curriculum on transformers' Trainer, and so on Accelerate: needs the extra `[hf]`.

Logging, evaluation, checkpoints, mixed precision, several GPUs or machines are the Trainer's own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from inspect import isgenerator
from itertools import islice
from typing import Any

import safetensors.torch
import torch
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

from kdutils import checks, fitting, hosted, inside, recorded, seeding
from kdutils.curriculum import Curriculum
from kdutils.hosted import ROW
from kdutils.losses import IGNORE
from kdutils.signals import Labels, Output

FILE = "curriculum.safetensors"  # in a checkpoint, beside the student: what was drawn, the step, learned regressors
CALIBRATION = 64  # rows of the training set that fix the scale of hidden targets, unless others are given


class CurriculumTrainer(Trainer):
    """`transformers.Trainer`, but the loss is that of the curriculum's stage. Evaluations are the student's own.

    What it saves are the student (`from_pretrained` loads it) and a small file beside it. It resumes inside a stage.
    Adam's moments start anew with every stage, as losses of two stages differ in scale.

    Args:
        model, args, kwargs: as the Trainer's; labels of causal language models are the inputs themselves, as usual
            there, and are shifted here.
        curriculum: a plan, as from `kdutils.curriculum`, or a recorded one (see `record`); its budget is the Trainer's
            number of optimiser steps.
        calibration: a batch without labels, the same in every process. None: the first rows of the training set.
        mask: as in `Distiller`; columns that it or a teacher needs stay. "attention_mask" counts only where batches
            have such an entry. That of an encoder-decoder is of its encoder: where outputs come without labels, say
            mask=None, and all count.
        units, vocabulary: as in `Distiller`. Its seed is `args.seed`; the projections of a record are of its own seed.
        shift_labels: whether the label of a position is that of the next one. None: as in the student's own loss, tried
            on the first rows; where that does not tell, for `...ForCausalLM` and classes made from them.
        fresh_moments: whether the optimiser forgets its state at the start of a stage.

    Attributes:
        distiller: the `Distiller` around the student, which is `distiller.student`: go on with that one. The attribute
            `model` is the Distiller, in the form that a Trainer calls. `distiller.evaluate` gives the loss of a stage.

    Raises:
        ValueError: for what a Distiller refuses; several GPUs in one process; label smoothing, `torch_compile`,
            `compute_loss_func`, `model_init` or `predict_with_generate`, which would be left out without a word;
            `auto_find_batch_size`, which changes the number of steps; rows that can be read only once; a checkpoint of
            another plan or another one.
    """

    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        curriculum: Curriculum,
        calibration: Any = None,
        mask: str | Callable[[Any], torch.Tensor] | None = "attention_mask",
        units: int | Mapping[str, int] | None = None,
        vocabulary: int | None = None,
        shift_labels: bool | None = None,
        fresh_moments: bool = True,
        **kwargs: Any,
    ) -> None:
        hosted.suited(type(self), model, args, curriculum, kwargs)
        checks.one_of("shift_labels", shift_labels, (None, True, False))
        if args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = True  # a hidden stage leaves the head out
        super().__init__(model, args, **kwargs)
        inner = self.accelerator.unwrap_model(model)
        named, others = inside.taken(inner)
        self._takes_labels = bool(self.label_names) and (others or not named.isdisjoint(self.label_names))
        self.label_names = self.label_names or ["labels"]  # of a student whose forward takes none, too
        signals = [stage.signal for stage in curriculum.stages]
        self._set_signature_columns_if_needed()  # by the student's own forward
        self._signature_columns = [*dict.fromkeys([*self._signature_columns, *sorted(inside.wanted(signals, mask))])]
        self._asks = bool(inside.placed(signals, "asked")) or not all(inside.layers(signal) for signal in signals)
        self._asks = self._asks or inside.holds(signals, (Labels, Output, recorded.RecordedOutput))
        self.model_accepts_loss_kwargs = False
        self.two_sided = fitting.two_sided(inner)
        self._decodes = fitting.decoder_inputs(inner) if self.two_sided else (None, False)
        causal = any(kind.__name__ in CAUSAL.values() for kind in type(inner).__mro__)
        self.shift_labels = causal and not self.two_sided if shift_labels is None else shift_labels
        if shift_labels is None and self.train_dataset is not None and not self.is_fsdp_enabled:
            own = fitting.shifts(inner, self._prepare_input(self._first_rows(4)))
            self.shift_labels = self.shift_labels if own is None else own
        batch, labels = self._asked(self._first_rows()) if calibration is None else (calibration, None)
        whole = isinstance(labels, torch.Tensor) and not labels.is_floating_point()
        by_position = whole and labels.dim() > 1  # then they tell where classes are
        self._by_mask = bool(inside.placed(signals, "all"))
        if not by_position and not inside.placed(signals, "asked"):
            labels = None
        batch, labels = self._prepare_input(batch), self._prepare_input(labels)
        self._unmasked = mask == fitting.ENCODER and not (isinstance(batch, Mapping) and mask in batch)
        mask = None if self._unmasked else mask
        self._settings = {"calibration": batch, "mask": mask, "units": units, "vocabulary": vocabulary,
                          "seed": args.seed, "calibration_labels": labels}  # fmt: skip
        if any(inside.holds(s.signal, recorded.RECORDED) for s in curriculum.stages):
            self._number_rows()
        self.distiller = self.model = self.model_wrapped = hosted.Hosted(
            self.model, curriculum, total=self._steps(), **self._settings
        )
        held = {id(p) for group in getattr(self.optimizer, "param_groups", ()) for p in group["params"]}
        if self.optimizer is not None and any(id(p) not in held for p in self.distiller.drawn.parameters()):
            raise ValueError("the plan learns a map of its own, which the given optimizer does not hold: leave it out")
        if fresh_moments:
            self.add_callback(hosted.FreshMoments(self.distiller.starts[1:]))
        self.add_callback(hosted.Ended(self.distiller.starts))

    def _steps(self) -> int:
        if self.args.max_steps > 0:
            return self.args.max_steps
        return self.set_initial_training_values(self.args, self.get_train_dataloader())[-1]

    def _first_rows(self, rows: int = CALIBRATION) -> dict[str, Any]:
        if self.train_dataset is None:
            raise ValueError("without a train_dataset, give a batch for calibration")
        once = iter(self.train_dataset)
        if once is iter(self.train_dataset) and (once is not self.train_dataset or isgenerator(once)):
            advice = "give one that starts anew, as IterableDataset.from_generator: its first rows are looked at before"
            raise ValueError(f"the train_dataset can be read only once: {advice}")
        with seeding.global_rng(self.args.seed, "calibration", device=self.args.device):  # collators may draw at random
            if not (found := list(islice(iter(self.train_dataset), rows))):
                raise ValueError("the train_dataset has no rows")
            return self._collated(found)

    def _collated(self, rows: list[Any]) -> dict[str, Any]:
        """A batch as a step reads it."""
        columns = self._signature_columns if self.args.remove_unused_columns else None
        if columns and all(isinstance(row, Mapping) for row in rows):
            rows = [{name: value for name, value in row.items() if name in columns} for row in rows]
        return dict(self.data_collator(rows))

    def record(self, folder: str | os.PathLike[str], **fields: Any) -> None:
        """Run the teachers once over the training set, in this process alone; `kdutils.recorded.plan(folder)` is then
        the `curriculum` of a trainer with the same training set, collator and seed.

        Args:
            fields: as of `kdutils.recorded.record`: top_k, batch, shard.
        """

        def collate(rows: list[Any]) -> dict[str, Any]:
            batch, labels = self._asked(self._collated(rows))
            return batch | {"labels": labels}

        plan, student = self.distiller.plan, self.distiller.student
        recorded.record(plan, student, self.train_dataset, folder, collate=collate, **self._settings, **fields)

    def _number_rows(self) -> None:
        """Let every batch say which rows it has: their targets are looked up by number."""
        if not hasattr(self.train_dataset, "__getitem__"):
            raise ValueError("a recorded plan needs a train_dataset whose rows have numbers, not an iterable one")
        self.train_dataset, collate = hosted.Numbered(self.train_dataset), self.data_collator
        self._signature_columns = [*self._signature_columns, ROW]

        def numbered(rows: list[Any]) -> dict[str, Any]:
            numbers = [row[ROW] for row in rows if ROW in row]
            batch = dict(collate([{name: value for name, value in row.items() if name != ROW} for row in rows]))
            return batch | ({ROW: torch.tensor(numbers)} if numbers else {})

        self.data_collator = numbered

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The stage's loss in training, the student's own in evaluation."""
        batch = dict(inputs)
        rows = batch.pop(ROW, None)
        if not model.training:
            return super().compute_loss(model, batch, return_outputs)
        batch, y = self._asked(batch)
        if self._unmasked and fitting.ENCODER in batch and (y is None or self._by_mask):
            raise ValueError("the batches have an attention_mask, and the calibration had none: give it there, too")
        loss = model(distilled=(batch, y, self.state.global_step, rows))
        return (loss, {"loss": loss}) if return_outputs else loss

    def _asked(self, batch: Mapping[str, Any]) -> tuple[dict[str, Any], torch.Tensor | None]:
        """A batch without its labels, and these, aligned with the outputs; a decoder's inputs come from them."""
        batch = dict(batch)
        found = [batch.pop(name) for name in self.label_names if name in batch]
        if len(found) > 1 and self._asks:
            raise ValueError(f"a curriculum knows one kind of labels, not {self.label_names}")
        labels = found[0] if len(found) == 1 else None
        if self.two_sided and not any(name.startswith("decoder_input") for name in batch):
            make, needed = self._decodes
            if needed and (labels is None or make is None):
                advice = "or labels, where it has a way to make them from these"
                raise ValueError(f"an encoder-decoder needs decoder_input_ids in its batches, {advice}")
            batch |= {} if make is None else {"decoder_input_ids": make(labels)}
        if self.shift_labels and labels is not None:
            labels = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORE)], 1)
        return batch, labels

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if self._takes_labels:
            return super().prediction_step(model, inputs, *args, **kwargs)
        names, self.label_names = self.label_names, []
        try:
            kept = {name: value for name, value in inputs.items() if name not in names}
            loss, outputs, _ = super().prediction_step(model, kept, *args, **kwargs)
            labels = [self._prepare_input(inputs[name]) for name in names if name in inputs]
            return loss, outputs, None if outputs is None or not labels else labels[0] if len(labels) == 1 else labels
        finally:
            self.label_names = names

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs and self.state.global_step:
            logs["stage"] = self.distiller.stage_at(self.state.global_step - 1) + 1
        super().log(logs, *args, **kwargs)

    @contextmanager
    def _as_student(self) -> Iterator[nn.Module]:
        """A block in which the Trainer saves and loads the student alone."""
        self.model = self.distiller.student
        try:
            yield self.model
        finally:
            self.model = self.distiller

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        drawn, prefix = self.distiller.drawn.state_dict(), "student."
        if state_dict is not None:
            drawn = {k.removeprefix("drawn."): v for k, v in state_dict.items() if k.startswith("drawn.")} or drawn
            state_dict = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
        with self._as_student():
            super()._save(output_dir, state_dict)
        if self.args.should_save:
            path = os.path.join(output_dir or self.args.output_dir, FILE)
            safetensors.torch.save_file({name: value.cpu().contiguous() for name, value in drawn.items()}, path)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if not os.path.isfile(path := os.path.join(resume_from_checkpoint, FILE)) and not self.is_fsdp_enabled:
            raise ValueError(f"{resume_from_checkpoint} has no {FILE}: it is no checkpoint of a CurriculumTrainer")
        if os.path.isfile(path):
            self.distiller.drawn.load_state_dict(safetensors.torch.load_file(path))
        if self.is_fsdp_enabled:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        with self._as_student() as student:
            super()._load_from_checkpoint(resume_from_checkpoint, student)

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled:
            return super()._load_best_model()
        with self._as_student():
            super()._load_best_model()
