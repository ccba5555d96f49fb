"""The setting of a teacher that is run once: its record is all that students are trained from."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from kdutils import binding, probes, recorded, shards, source
from kdutils.curriculum import Curriculum, Stage
from kdutils.lab.ensemble import Ensemble
from kdutils.lab.lab import Lab
from kdutils.lab.optimisers import Adam
from kdutils.lab.record import Run
from kdutils.lab.store import Store, key
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
        texts = [
            Path(module.__file__).read_text(encoding="utf-8") for module in (recorded, shards, binding, pretrained)
        ]
        code = [source.compiled(compile(text, "", "exec"))[0] for text in texts]  # key adds what every run goes through
        about = [s.source, pretrained.WANTED, t.train.describe(), width, s.layers, s.top_k, code]
        self.name = f"recorded-{key({'about': about})}"
        self.folder, self._signals = self.runs.root / self.name, None

    def recorded(self) -> list[Signal]:
        """What the model says of the training rows, made once: its layers, an untrained model's layers, its output.

        It is kept in `folder`: among the runs, or in one that ends with this process where no runs can be kept.
        """
        for _ in range(2):  # what was begun, and is then found to be damaged, is begun again
            if self._signals is None:
                self._signals = self._read() or self._record() or self._read()
        if self._signals is None:
            raise ValueError(f"the record {self.folder} was damaged while it was made: is the disk full or broken?")
        return self._signals

    def _read(self) -> list[Signal] | None:
        """The signals of a record that is whole; one that is damaged is removed."""
        try:
            if not shards.complete(self.folder):
                return None
            found = [stage.signal for stage in recorded.plan(self.folder).stages]
            for number in range(len(found[-1].targets.about["shards"])):
                found[-1].targets.shard(number)
            return found
        except (OSError, ValueError, LookupError, TypeError) as error:
            warnings.warn(f"the record {self.folder} is damaged ({error}): recording it again", stacklevel=3)
            shutil.rmtree(self.folder, ignore_errors=True)
            return None

    def _record(self) -> None:
        s, (x, y) = self.settings, self.texts.train.windows()
        live, student = pretrained.everything(s.source, self.texts, s.layers), self.make_student().to(s.device)
        rows, how = list(zip(x, y, strict=True)), {"calibration": x[:16].to(s.device), "top_k": s.top_k}
        try:
            self.runs.root.mkdir(parents=True, exist_ok=True)
            recorded.record(live, student, rows, self.folder, **how, batch=8, shard=64)
        except OSError as error:
            self.runs.unwritable(error)
            self._temporary = tempfile.TemporaryDirectory()
            self.folder = Path(self._temporary.name)
            recorded.record(live, student, rows, self.folder, **how, batch=8, shard=64)

    def teacher(self, seed: int = 0) -> Run:
        """The pretrained model as a run of no steps; its network is loaded when it is asked for."""
        make = partial(pretrained.teacher, self.settings.source, self.texts)
        found = self.runs.load(scores := f"{self.name}-scores-{self.settings.held_out}")
        if found is None:
            loss, right = probes.score(make(), *self.judge.sample(self.settings.held_out, self._draw("held-out")))
            found = {"none": torch.zeros(1)}, {"loss": loss, "accuracy": right}
            self.recorded()
            self.runs.save(scores, *found)
        none, curve = np.zeros(1, int), {name: np.array([[found[1][name]]]) for name in ("loss", "accuracy")}
        alone = SimpleNamespace(member=lambda _: make(), learning_rate_of=lambda _: 0.0, seed_of=lambda _: seed)
        return Run(none, none, none, stages=[], seconds=0.0, peak_memory=0, device=self.settings.device, settings={},
                   key=self.name, students=alone, snapshots={}, **curve)  # fmt: skip

    def plan(self, options: Mapping[str, Any], choice: Mapping[str, float], seed: int = 0) -> Curriculum:
        """The curriculum of a study's arm (`kdutils.studies.plans.plan`) from what was recorded.

        Of its options `curriculum`, `layers`, `hidden` and `share` count; `plans.wrong_with` refuses others.
        """
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
