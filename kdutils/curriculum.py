"""A curriculum is a list of stages; a stage is a signal and a number of steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from torch import nn

from kdutils.checks import count, listed, pairs, some, texts
from kdutils.projections import Projection, gaussian
from kdutils.signals import Hidden, Labels, Output, Regressed, Signal, WeightedSum


@dataclass(frozen=True)
class Stage:
    """Match `signal` for `steps` optimiser steps; None, in the last stage only, is whatever the budget leaves.

    With `only`, such as ("readout",), only parameters move in the stage that one of these names, or a module around
    them: "layers.1" is not "layers.10".
    """

    signal: Signal
    steps: int | None = None
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "only", texts("only", self.only))


@dataclass(frozen=True)
class Curriculum:
    """A named list of stages. Printing one shows it as a table.

    >>> print(Curriculum("labels", (Stage(Labels()),)))
    labels
      stage  steps  the student matches
          1   rest  labels
    """

    name: str
    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        given = self.stages if isinstance(self.stages, tuple | list) else ()
        if (wrong := [type(s).__name__ for s in given if not isinstance(s, Stage)]) or not given:
            found = ", ".join(wrong) or f"{self.stages!r:.40}"
            raise ValueError(f"{self.name!r} needs a tuple with at least one Stage, and Stages only, not {found}")
        for number, steps in enumerate((stage.steps for stage in self.stages), 1):
            if steps is None and number < len(self.stages):
                raise ValueError(f"stage {number} of {self.name!r} needs a number of steps: only the last may be open")
            count(f"the number of steps of stage {number} of {self.name!r}", 1 if steps is None else steps)

    def lengths(self, total: int) -> list[int]:
        """Steps of each stage of a budget; ValueError unless they fill it, and leave some for an open last one."""
        *first, last = [stage.steps for stage in self.stages]
        lengths = [*first, total - sum(first) if last is None else last]
        if lengths[-1] < 1 or sum(lengths) > total:
            raise ValueError(f"{self.name!r} needs at least {sum(first) + (last or 1)} steps; the budget is {total}")
        if (n := sum(lengths)) < total:
            raise ValueError(f"{self.name!r} ends after {n} of {total} steps: leave its last stage open (steps=None)")
        return lengths

    def __str__(self) -> str:
        rows: list[tuple] = [("stage", "steps", "the student matches")]
        rows += [(i, "rest" if s.steps is None else f"{s.steps:,}", s.signal) for i, s in enumerate(self.stages, 1)]
        width = max(len(row[1]) for row in rows)
        return "\n".join([self.name, *(f"  {a:>5}  {b:>{width}}  {c}" for a, b, c in rows)])


def from_labels(name: str = "labels") -> Curriculum:
    """No teacher: cross-entropy on the labels."""
    return Curriculum(name, (Stage(Labels()),))


def one_shot(teacher: nn.Module, teacher_temperature: float = 1.0, name: str = "one-shot") -> Curriculum:
    """The final teacher's output from the first step to the last.

    Args:
        teacher_temperature: of the teacher alone. For the loss of Hinton et al. (2015) say it on both sides, in a plan
            of your own: Output(teacher, 4.0, 4.0), beside Labels() in a WeightedSum.
    """
    return Curriculum(name, (Stage(Output(teacher, teacher_temperature)),))


def progressive(checkpoints: Mapping[str, nn.Module], teacher: nn.Module, steps: int,
                name: str = "progressive") -> Curriculum:  # fmt: skip
    """The output of each checkpoint, by name, for `steps` steps, then the final teacher's (Panigrahi et al., 2025)."""
    early = (Stage(Output(network, name=label), steps) for label, network in some("checkpoints", checkpoints).items())
    return Curriculum(name, (*early, Stage(Output(teacher))))


def extracted(teacher: nn.Module, layers: Sequence[tuple[str, str]] = (("act", "act"),), steps: int = 500,
              projection: Projection = gaussian, hidden_teacher: nn.Module | None = None, name: str = "extraction",
              **fields: Any) -> Curriculum:  # fmt: skip
    """Projections of the final teacher's hidden layers in turn, then its output.

    Our reading of the abstract of Gupta and Karmalkar (2025); see the chapter for the choices we made.

    Args:
        layers: (teacher's path, student's path) of each hidden stage of so many `steps`, lowest layer first.
        hidden_teacher: read the hidden layers of this network instead -- an untrained one is the control.
        fields: others of `Hidden`, such as `positions`, `normalise`, `units` or `padding`.
    """
    source, label = (teacher, "final teacher") if hidden_teacher is None else (hidden_teacher, "another network")
    hidden = (Stage(Hidden(source, t, s, projection, name=label, **fields), steps) for t, s in pairs("layers", layers))
    return Curriculum(name, (*hidden, Stage(Output(teacher))))


def paired_blocks(teacher_layers: int, student_layers: int) -> list[tuple[str, str]]:
    """(teacher's path, student's path) of every block of a student `Transformer`, spread evenly, the last to the last.

    >>> paired_blocks(4, 2)
    [('blocks.1', 'blocks.0'), ('blocks.3', 'blocks.1')]
    """
    teacher_layers, student_layers = listed("numbers of layers", (teacher_layers, student_layers), Integral)
    if not 1 <= student_layers <= teacher_layers:
        raise ValueError(f"{student_layers} student layers cannot be spread over {teacher_layers} teacher layers")
    return [(f"blocks.{(s + 1) * teacher_layers // student_layers - 1}", f"blocks.{s}") for s in range(student_layers)]


def fitnets(teacher: nn.Module, layer: str = "act", student_layer: str = "act", steps: int = 500,
            name: str = "FitNets", **fields: Any) -> Curriculum:  # fmt: skip
    """Two stages (Romero et al., 2015): the hidden layer through a learned regressor (`Regressed`), then the output."""
    return Curriculum(name, (Stage(Regressed(teacher, layer, student_layer, **fields), steps), Stage(Output(teacher))))


def annealed(teacher: nn.Module, temperatures: Sequence[float], steps: int,
             name: str = "annealed temperature") -> Curriculum:  # fmt: skip
    """Outputs at falling temperatures, then at 1: as Annealing-KD (Jafari et al., 2021), but for its squared loss."""
    hot = (Stage(Output(teacher, t, t), steps) for t in some("temperatures", temperatures))
    return Curriculum(name, (*hot, Stage(Output(teacher))))


def interpolated(teacher: nn.Module, shares: Sequence[float], steps: int, name: str = "TAID") -> Curriculum:
    """TAID (Shing et al., 2025) by a fixed schedule: each share of the teacher for `steps`, then the teacher alone."""
    mixed = (Stage(Output(teacher, share=s), steps) for s in some("shares", shares))
    return Curriculum(name, (*mixed, Stage(Output(teacher))))


def joint(teacher: nn.Module, weight: float, layer: str = "act", student_layer: str = "act",
          projection: Projection = gaussian, name: str = "joint", **fields: Any) -> Curriculum:  # fmt: skip
    """One stage: the output, plus `weight` times the projected hidden layer (`Hidden`), throughout."""
    hidden = Hidden(teacher, layer, student_layer, projection, **fields)
    return Curriculum(name, (Stage(WeightedSum(((1.0, Output(teacher)), (weight, hidden)))),))
