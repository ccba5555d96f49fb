"""The setting of a teacher that is run once: its record is all that students are trained from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from kdutils import probes, recorded, shards
from kdutils.curriculum import Curriculum, Stage
from kdutils.lab.ensemble import Ensemble
from kdutils.lab.lab import Lab
from kdutils.lab.optimisers import Adam
from kdutils.lab.record import Run
from kdutils.lab.store import Store
from kdutils.probes import pace
from kdutils.signals import Labels, Signal, WeightedSum
from kdutils.tasks import pretrained
from kdutils.tasks.models import Transformer


class RecordedLab(Lab):
    """A pretrained language model that is run once over a text: students learn from the record, without it."""

    def __init__(self, settings: SimpleNamespace, runs: Store | None = None) -> None:
        s, width = settings, settings.head_width * settings.student_heads
        rows = s.rows, s.held_rows, s.test_rows
        self.texts = t = pretrained.texts(s.source, s.corpus, s.newest, s.context, rows, s.classes, cache=runs)
        student = partial(Transformer, len(t.ids), width, s.student_heads, s.layers, s.context, s.classes)
        super().__init__(s, t.train, student, student, Adam(warmup=s.warmup, decay=True), judge=t.validation, runs=runs)
        about = json.dumps([s.source, pretrained.WANTED, t.train.describe(), width, s.layers, s.top_k])
        self.name = f"recorded-{hashlib.sha256(about.encode()).hexdigest()[:20]}"

    def recorded(self) -> list[Signal]:
        """What the model says of the training rows, made once: its layers, an untrained model's layers, its output."""
        s, folder, (x, y) = self.settings, self.runs.root / self.name, self.texts.train.windows()
        if not shards.complete(folder):
            live, student = pretrained.everything(s.source, self.texts, s.layers), self.make_student().to(s.device)
            recorded.record(live, student, list(zip(x, y, strict=True)), folder, calibration=x[:16].to(s.device),
                            top_k=s.top_k, batch=8, shard=64)  # fmt: skip
        return [stage.signal for stage in recorded.plan(folder).stages]

    def teacher(self, seed: int = 0) -> Run:
        """The pretrained model as a run of no steps; its network is loaded when it is asked for."""
        make = partial(pretrained.teacher, self.settings.source, self.texts)
        found = self.runs.load(f"{self.name}-scores")
        if found is None:
            loss, right = probes.score(make(), *self.judge.sample(self.settings.held_out, self._draw("held-out")))
            found = {"none": torch.zeros(1)}, {"loss": loss, "accuracy": right}
            self.recorded()
            self.runs.save(f"{self.name}-scores", *found)
        none, curve = np.zeros(1, int), {name: np.array([[found[1][name]]]) for name in ("loss", "accuracy")}
        alone = SimpleNamespace(member=lambda _: make(), learning_rate_of=lambda _: 0.0, seed_of=lambda _: seed)
        return Run(none, none, none, stages=[], seconds=0.0, peak_memory=0, device=self.settings.device, settings={},
                   key=self.name, students=alone, snapshots={}, **curve)  # fmt: skip

    def plan(self, options: Mapping[str, Any], choice: Mapping[str, float], seed: int = 0) -> Curriculum:
        """The curriculum of a study's arm (`kdutils.studies.plans.plan`) from what was recorded."""
        (*layers, output), s, kind = self.recorded(), self.settings, options["curriculum"]
        layers = layers[s.layers :] if options.get("hidden") == "untrained" else layers[: s.layers]
        layers = {"last": layers[-1:], "reversed": layers[::-1]}.get(options.get("layers"), layers)
        if options.get("layers") == "at once":
            layers = [WeightedSum(tuple((1.0, layer) for layer in layers))]
        length = round(choice["share"] * s.steps / len(layers)) if kind == "extraction" else 0
        early = [Stage(layer, max(1, length)) for layer in layers if length]
        if not early and kind not in ("labels", "one-shot"):
            raise ValueError(f"{kind!r} is not among the arms of a recorded teacher: labels, one-shot, extraction")
        return Curriculum(kind, (*early, Stage(Labels() if kind == "labels" else output)))

    def test_sample(self) -> tuple[Any, Any]:
        return self.texts.test.windows()

    def facts(self, run: Run, of_teacher: bool = False) -> dict[str, Any]:
        s, found = self.settings, {} if of_teacher else super().facts(run)
        found["text"] = self.texts.write(run.network(), self.texts.test.windows()[0][0, : s.context // 4])
        if of_teacher:
            layers = {f"layer {i}": layer for i, layer in enumerate(self.recorded()[: s.layers])}
            signals = {"labels": Labels(), "one-shot": self.recorded()[-1], **layers}
            found |= pace.recorded(run.network(), Ensemble(self.make_student, [1]), signals, self.texts, s.batch)
        return found
