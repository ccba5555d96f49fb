"""The setting that the parity chapters share: one task, one teacher, students that differ only in curriculum."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

from torch import nn

from kdutils import curriculum, stats
from kdutils.curriculum import Curriculum
from kdutils.ensemble import Ensemble
from kdutils.models import MLP
from kdutils.parity import SparseParity
from kdutils.store import Store
from kdutils.training import Run, train

THRESHOLD = 0.95  # "solved": held-out accuracy
DONE = 0.99  # a student's run stops once every seed of one learning rate has been here
MIDDLE = 0.65  # accuracy of a checkpoint in the middle of the teacher's jump


class ParityLab:
    """Everything a parity chapter needs, from its settings (`kdutils.profiles`).

    Attributes:
        task: the sparse parity.
        runs: the store that all runs go through.
        used: the runs asked for so far, by name: what the chapter's cost is made of.
    """

    def __init__(self, settings: SimpleNamespace, runs: Store | None = None) -> None:
        self.settings = settings
        self.task = SparseParity(settings.d, settings.k)
        self.runs = Store() if runs is None else runs
        self.used: dict[str, Run] = {}

    def teacher(self) -> Run:
        """The wide teacher, learned from labels and trained on well past its jump, with its checkpoints."""
        s = self.settings
        make = partial(MLP, s.d, s.teacher_width)
        ensemble = Ensemble(make, [0], [s.teacher_learning_rate], s.device)
        plan = curriculum.from_labels("teacher")
        run = self._train(ensemble, plan, s.teacher_steps, evaluate_every=s.keep_every, keep_every=s.keep_every)
        if run.accuracy[-1, 0] < THRESHOLD:
            raise RuntimeError(
                f"the teacher reached only {run.accuracy[-1, 0]:.2f} in {s.teacher_steps} steps: raise teacher_steps, "
                "or make the task easier (smaller k or d)"
            )
        return run

    def untrained_teacher(self) -> nn.Module:
        """A network of the teacher's shape that has learned nothing: the control."""
        s = self.settings
        return Ensemble(partial(MLP, s.d, s.teacher_width), [1], [1.0], s.device).member(0)

    def arm(self, plan: Curriculum) -> stats.Arm:
        """Train students of every learning rate and seed through `plan`; choose the rate on the tuning seeds."""
        s = self.settings
        make = partial(MLP, s.d, s.student_width)
        students = Ensemble(make, [*s.tuning_seeds, *s.seeds], s.learning_rates, s.device)
        run = self._train(students, plan, s.steps, evaluate_every=s.evaluate_every, until=DONE)
        return stats.Arm.tuned(run, THRESHOLD, s.tuning_seeds)

    def _train(self, students: Ensemble, plan: Curriculum, steps: int, **when: Any) -> Run:
        batch = self.settings.batch
        self.used[plan.name] = run = train(
            students, self.task, plan, steps=steps, batch=batch, runs=self.runs, **when
        )
        return run

    def best(self, arms: dict[Any, stats.Arm]) -> Any:
        """The key of the arm that does best on the tuning seeds (as `Arm.tuned` chooses a learning rate)."""
        return max(arms, key=lambda name: arms[name].merit(THRESHOLD, self.settings.tuning_seeds))

    @staticmethod
    def checkpoint_near(trained: Run, accuracy: float = MIDDLE) -> int:
        """The kept step at which the teacher's held-out accuracy was nearest to `accuracy`."""
        at = dict(zip(trained.steps.tolist(), trained.accuracy[:, 0].tolist(), strict=True))
        return min((step for step in trained.snapshots if step in at), key=lambda step: abs(at[step] - accuracy))
