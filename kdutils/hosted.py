"""What stands between transformers' Trainer and a Distiller."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import Seq2SeqTrainer, TrainerCallback, TrainingArguments

from kdutils import inside, warned
from kdutils.curriculum import Curriculum
from kdutils.distiller import Distiller

ROW = "row"  # the entry of a batch that holds the numbers of its rows in the training set, for recorded plans


def suited(kind: type, model: nn.Module, args: TrainingArguments, curriculum: Any, given: dict[str, Any]) -> None:
    """ValueError for a student, settings or arguments of a Trainer that would be left out without a word.

    Args:
        kind: the class of the trainer.
        given: other arguments of a Trainer.
    """
    if not isinstance(curriculum, Curriculum):
        found = type(curriculum).__name__
        raise ValueError(f"curriculum must be a Curriculum, as from kdutils.curriculum, not a {found}")
    if not isinstance(args, TrainingArguments):
        raise ValueError(f"args must be TrainingArguments, which say how many steps there are, not {args!r:.40}")
    if isinstance(model, Distiller):
        raise ValueError("model must be the student itself, not a Distiller around it: give trainer.distiller.student")
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be the student, a torch module, not {type(model).__name__}")
    if hasattr(model, "_orig_mod"):
        raise ValueError("torch.compile(model) hides its class: give the model itself, after model.compile()")
    if getattr(args, "torch_compile", False):
        raise ValueError("torch_compile=True would compile nothing in training: leave it out, and call model.compile()")
    if unused := [name for name in ("compute_loss_func", "model_init") if given.get(name) is not None]:
        raise ValueError(f"{unused[0]} has no meaning here: the curriculum says what the loss is")
    if wrong := [name for name in ("label_smoothing_factor", "auto_find_batch_size") if getattr(args, name, None)]:
        raise ValueError(f"{wrong[0]} has no meaning here: a curriculum says what the loss is, and counts its steps")
    if getattr(args, "predict_with_generate", False) and not issubclass(kind, Seq2SeqTrainer):
        advice = "write `class Both(CurriculumTrainer, Seq2SeqTrainer): pass`, and take that"
        raise ValueError(f"predict_with_generate=True has no meaning for {kind.__name__} alone: {advice}")
    if args.n_gpu > 1:
        raise ValueError("several GPUs need a process each: start the program with torchrun or accelerate launch")


class Numbered(torch.utils.data.Dataset):
    """Rows that know their numbers."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {**self.rows[row], ROW: int(row)}


class FreshMoments(TrainerCallback):
    """The optimiser forgets its state before the first step of every later stage."""

    def __init__(self, starts: list[int]) -> None:
        self.starts = starts

    def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        if state.global_step in self.starts:
            getattr(optimizer, "optimizer", optimizer).state.clear()


class Hosted(Distiller):
    """A Distiller that a Trainer takes for its student: it has the student's attributes, and evaluates it."""

    _warned = True  # a Trainer leaves padding out, unless one says that it counts

    def forward(self, *args: Any, distilled: tuple | None = None, **inputs: Any) -> Any:
        if distilled is not None:
            return super().forward(*distilled)
        if args and isinstance(args[0], Mapping):  # (batch, labels, step), as any Distiller
            return super().forward(*args, **inputs)
        return self.student(*args, **inside.given(self.student, inputs, self._one.spare))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("student"), name)


class Ended(TrainerCallback):
    """Logs where a stage ends; warns of a training that something, as EarlyStoppingCallback, ended before the last."""

    def __init__(self, starts: list[int]) -> None:
        self.starts = starts

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step in self.starts and args.logging_strategy != "no":
            control.should_log = True  # or one mean would be of two stages

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        stage = sum(start < state.global_step for start in self.starts)
        if 0 < stage < len(self.starts):
            told = f"the training ended after {state.global_step} steps, in stage {stage} of {len(self.starts)}"
            advice = "what comes later was not learned (a criterion of stopping has to wait for the last stage)"
            warned.warn(f"{told}: {advice}")
