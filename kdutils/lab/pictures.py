"""The setting of chapter 10: a convolutional teacher of classes of pictures, and thinner students."""

from __future__ import annotations

import copy
from dataclasses import asdict
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch

from kdutils.lab.lab import Lab
from kdutils.lab.optimisers import Adam
from kdutils.lab.record import Run
from kdutils.lab.store import Store
from kdutils.probes.worth import Worth, worth
from kdutils.tasks import pictures
from kdutils.tasks.models import ConvNet


class PictureLab(Lab):
    """Classes of pictures; convolutional networks in train mode, judged on the validation part."""

    def __init__(self, settings: SimpleNamespace, runs: Store | None = None) -> None:
        s = settings
        self.pictures = pictures.load(s.pictures, s.pool)
        teacher, student = (
            partial(ConvNet, self.pictures.train.classes, width, s.layers, depth)
            for width, depth in ((s.teacher_width, s.teacher_depth), (s.student_width, s.student_depth))
        )
        optimiser, judge = Adam(warmup=s.warmup, decay=True), self.pictures.validation
        super().__init__(s, self.pictures.train, teacher, student, optimiser, judge, mode="train", runs=runs)

    def test_sample(self) -> tuple[torch.Tensor, torch.Tensor]:
        return tuple(part.to(self.settings.device) for part in (self.pictures.test.x, self.pictures.test.y))

    def labelled(self, share: float, seed: int = 0) -> PictureLab:
        """The same lab, where students learn from a `share` of the pictures; its runs count among this one's."""
        other = copy.copy(self)
        other.task, other.label = self.task.labelled(share, seed), f"{self.label}{share:g} of the pictures: "
        return other

    def worth(self, teacher: Run) -> Worth:
        """What the layers of a teacher hold beyond its outputs, on validation pictures."""
        x, y = self.judge.sample(min(4096, len(self.judge)), self._draw("worth"))
        blocks = [f"blocks.{i}" for i in range(self.settings.layers)]
        return worth(teacher.network(), zip(x.split(128), y.split(128), strict=True), blocks, units=1)

    def facts(self, run: Run, of_teacher: bool = False) -> dict[str, Any]:
        return {"worth": asdict(self.worth(run))} if of_teacher else super().facts(run)
