"""The records of a study: one table and one summary that are committed, and the engine that completes them.

`complete` runs what is missing here, or sends it to a Dask cluster. Workers and this process share nothing but the
store: a task returns the name under which the store keeps what it did. Threads or workers? Beside other work on two
cores, 60 steps of five of chapter 8's students took a process with one torch thread 5.5 s of a core, and one with two
threads 56 s: they wait for each other. So: as many workers as cores, and one thread in each.
"""

from __future__ import annotations

import gzip
import io
import json
import platform
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, fields
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from kdutils import shards
from kdutils.lab import store
from kdutils.lab.stats import Times
from kdutils.studies import plans
from kdutils.studies.study import COLUMNS, Cell, Study, work

ORDER = ["role", "size", "budget", "arm", "teacher", "choice", "rate", "seed", "sample", "step"]


def kept(study: Study, rows: pd.DataFrame) -> pd.DataFrame:
    """What the records keep of some rows: all, but in the roles that `study.thinned` names the rises of accuracy alone.

    A rise is an evaluation at which a run was better than ever before. With them, the last evaluation and the test
    sample's, when a run first reached any accuracy, when it ended, and how, are there to the bit; the flat parts are
    not, and they are most of a curve that was looked at every few steps. What was thinned stays as it is.
    """
    rows = rows.sort_values(ORDER, ignore_index=True)
    runs = rows.groupby(ORDER[:-1], sort=False)
    before = runs.accuracy.cummax().groupby([rows[name] for name in ORDER[:-1]]).shift(fill_value=-np.inf)
    rises = (rows.accuracy > before) | ~rows.duplicated(ORDER[:-1], keep="last")
    return rows[~rows.role.isin(study.thinned) | rises].reset_index(drop=True)


class Records:
    """What a study has found so far: `NAME.csv.gz`, a row an evaluation, and `NAME.json`, how it came about.

    Attributes:
        table: with the columns `kdutils.studies.study.COLUMNS`.
        cells: by name, what is known of each that is done: the fingerprint of its settings, the code's, the machine's
            kind, core-seconds, what a tuning chose, facts.
    """

    def __init__(self, folder: Path | str, name: str) -> None:
        folder = Path(folder)
        self.table_path, self.path = folder / f"{name}.csv.gz", folder / f"{name}.json"
        self.table, self.about, self.cells = pd.DataFrame(columns=list(COLUMNS)), {}, {}
        if self.path.exists() or self.table_path.exists():
            self._read()

    def _read(self) -> None:
        """Both files, as far as they agree.

        Raises:
            ValueError: where one is damaged, or is not of the same study as the other. A cell's rows alone are left
                out: the program that wrote them ended before it wrote the summary, and the cell is done again.
        """
        path = self.path
        try:
            self.about = json.loads(path.read_text(encoding="utf-8"))
            self.cells, arms, budgets = (dict(self.about["cells"]), self.about["arms"], self.about["budgets"])
            path = self.table_path
            exact = dict.fromkeys(("rate", "flops", "accuracy", "loss"), float)  # older pandas rounds the last digit
            texts = dict.fromkeys(("role", "size", "arm", "choice", "sample"), str)  # a size may be called "8"
            table = pd.read_csv(path, keep_default_na=False, converters=exact, dtype=texts)
            if list(table) != list(COLUMNS):
                raise ValueError(f"its columns are {', '.join(map(str, table))[:80]}")
        except (OSError, EOFError, ValueError, LookupError, TypeError, zlib.error) as error:
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'it ends too early'}"
            raise ValueError(f"{path} is damaged or missing ({reason}): restore it from git") from None
        sizes = self.about.get("sizes", {"": {}})
        found, counts = _cells(table), _counts(table)
        strange = [c for c in found if c.arm not in ("", *arms) or c.budget not in (0, *budgets) or c.size not in sizes]
        lost = {name for name in self.cells if not name.startswith("tuning")} - {str(cell) for cell in found}
        fewer = {name for name, about in self.cells.items() if about.get("rows", counts.get(name)) != counts.get(name)}
        if wrong := [*map(str, strange), *sorted(lost | fewer)]:
            both = f"{self.path} and {self.table_path.name}"
            raise ValueError(f"{both} do not agree on {wrong[0]!r}: one is damaged; restore both from git")
        self.table = _only(table, self.cells)

    def has(self, study: Study, cell: Cell) -> bool:
        """Whether `cell` is done, with the settings that the study has now, and as its tuning chose."""
        if self.cells.get(str(cell), {}).get("fingerprint") != study.fingerprint(cell):
            return False
        tuning = self.cells.get(str(study.needs(cell)[-1]), {}) if cell.role == "students" else {}
        if not (chosen := tuning.get("chosen")):
            return True
        rows, same = self.rows(cell), plans.parts(plans.label(chosen["choice"]))
        return {plans.parts(one) for one in rows.choice} == {same} and {*rows.rate} <= {*chosen["rates"]}

    def rows(self, cell: Cell) -> pd.DataFrame:
        """The rows of one cell."""
        t = self.table
        same = (t.role == cell.role) & (t.teacher == cell.teacher) & (t.budget == cell.budget) & (t.arm == cell.arm)
        return t[same & (t["size"] == cell.size)]

    def add(self, study: Study, cell: Cell, result: Mapping[str, Any]) -> None:
        """Put a finished cell in the place of what was known of it, and write both files, with what another process has
        written there meanwhile."""
        with shards.alone(self.path):
            if self.path.exists():
                self._read()
            self._add(study, cell, result)

    def _add(self, study: Study, cell: Cell, result: Mapping[str, Any]) -> None:
        known = {str(one) for one in study.cells()}
        self.cells = {name: about for name, about in self.cells.items() if name in known}
        new, old = pd.DataFrame(result["rows"], columns=list(COLUMNS)), self.table.drop(self.rows(cell).index)
        old = _only(old, self.cells)
        self.table = new if old.empty else pd.concat([old, new])
        self.cells[str(cell)] = {
            "fingerprint": study.fingerprint(cell), "source": store.source_hash("studies.study")[:16],
            "machine": result["machine"], "torch": result["torch"], "core-seconds": round(result["seconds"], 1),
            **{key: result[key] for key in ("device", "chosen", "facts") if result.get(key)},
        }  # fmt: skip
        self.write(study)

    def write(self, study: Study) -> None:
        """Write both files."""
        self.table = kept(study, self.table)
        for name, count in _counts(self.table).items():
            self.cells[name]["rows"] = count
        hours = sum(about["core-seconds"] for about in self.cells.values()) / 3600
        versions = {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("torch", "numpy")},
        }
        self.about = {**asdict(study), "versions": versions, "core-hours": round(hours, 2), "cells": self.cells}
        packed = io.BytesIO()
        with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as file:  # the same rows, the same bytes
            file.write(self.table.to_csv(index=False).encode())
        self.path.parent.mkdir(parents=True, exist_ok=True)
        shards.write(self.table_path, packed.getvalue())
        shards.write(self.path, (json.dumps(self.about, indent=1) + "\n").encode())

    def students(self, arm: str, budget: int, sample: str = "held-out", size: str = "") -> list[pd.DataFrame]:
        """The reported rows of an arm, one table a teacher.

        Raises:
            ValueError: when there are none; the message lists the arms and budgets that there are.
        """
        t = self.table[self.table.role == "students"]
        found = t[(t.arm == arm) & (t.budget == budget) & (t["sample"] == sample) & (t["size"] == size)]
        if found.empty:
            known = sorted({tuple(map(str, one)) for one in t[["arm", "budget", "sample", "size"]].to_numpy()})
            raise ValueError(f"no rows of {(arm, str(budget), sample, size)}; there are {known}")
        return [rows for _, rows in found.groupby("teacher")]

    def final(
        self, arm: str, budget: int, measure: str = "accuracy", sample: str = "test", size: str = ""
    ) -> list[np.ndarray]:
        """The last `measure` ("accuracy" or "loss") of each student, in the order of seeds, one array a teacher."""
        return [t.groupby("seed")[measure].last().to_numpy() for t in self.students(arm, budget, sample, size)]

    def times(self, arm: str, budget: int, threshold: float, axis: str = "samples", size: str = "") -> list[Times]:
        """When each student first reached an accuracy, in "samples" or "flops", one `Times` a teacher."""
        found = []
        for table in self.students(arm, budget, size=size):
            reached = table[table.accuracy >= threshold].groupby("seed")[axis].min()
            values = reached.reindex(sorted(table.seed.unique())).fillna(np.inf).to_numpy(dtype=float)
            found.append(Times(values, float(table[axis].max())))
        return found

    def facts(self, role: str, arm: str = "", budget: int = 0) -> dict[str, Any]:
        """What was kept of the first "teacher", or of the "students" of an arm under it, beside their curves."""
        first = f"{role} {self.about['teachers'][0]}"
        return self.cells[f"{first}, {budget} steps, {arm}" if arm else first].get("facts", {})

    def seconds(self, arm: str, budget: int) -> float | None:
        """Core-seconds of one student's steps, where a recorded teacher's were timed (`kdutils.probes.pace`)."""
        timed = self.facts("teacher").get("seconds")
        if timed is None:
            return None
        *early, last = (end - start for _, start, end in self.facts("students", arm, budget)["stages"])
        ends = "labels" if self.about["arms"][arm]["curriculum"] == "labels" else "one-shot"
        return last * timed[ends] + sum(steps * timed[f"layer {i}"] for i, steps in enumerate(early))


def _cells(table: pd.DataFrame) -> list[Cell]:
    """The cells that some rows are of."""
    return [Cell(*row) for row in table[[one.name for one in fields(Cell)]].drop_duplicates().to_numpy().tolist()]


def _counts(table: pd.DataFrame) -> dict[str, int]:
    """How many rows each cell has, by its name."""
    sizes = table.groupby([one.name for one in fields(Cell)], sort=False).size()
    return {str(Cell(*cell)): int(count) for cell, count in sizes.items()}


def _only(table: pd.DataFrame, names: Iterable[str]) -> pd.DataFrame:
    """The rows of the cells of these names."""
    if not (others := [astuple(cell) for cell in _cells(table) if str(cell) not in names]):
        return table
    return table[~pd.MultiIndex.from_frame(table[[one.name for one in fields(Cell)]]).isin(others)]


def _task(study: Study, cell: Cell, root: str, chosen: Any, device: str, source: str) -> str:
    """Do one cell on a worker; the name under which the store keeps it."""
    torch.set_num_threads(1)
    if store.source_hash("studies.study") != source:
        raise RuntimeError("the worker's kdutils is another version than the one that sent the cell: install the same")
    return work(study, cell, store.Store(root), chosen, device)["key"]


def complete(
    study: Study,
    records: Records,
    runs: store.Store,
    cells: Sequence[Cell] | None = None,
    client: Any = None,
    device: str = "cpu",
    each: Callable[[Cell, float, int], None] = lambda cell, seconds, left: None,
) -> None:
    """Do the cells that `records` lacks, and add each as it ends. What is done is never done again.

    Args:
        cells: those wanted, in the order of importance; left out, all.
        client: a `distributed.Client`; left out, one cell after the other in this process. A cluster's workers need the
            same kdutils and the folder of `runs`, under the same path.
        each: called after each cell with its processor seconds and how many are left.

    Raises:
        RuntimeError: at the end, when cells failed; it names them. Those that needed them are left out.
    """
    waiting = [cell for cell in cells or study.cells() if not records.has(study, cell)]
    running: dict[Any, Cell] = {}
    failed: dict[Cell, str] = {}

    def ready() -> Iterator[tuple[Cell, Any]]:
        """Cells of which all that they need is done, with what their tuning chose."""
        for cell in list(waiting):
            needs = study.needs(cell)
            if any(need in waiting or need in running.values() for need in needs):
                continue
            waiting.remove(cell)
            lost = [
                need for need in needs if need in failed or (need.role == "tuning" and not records.has(study, need))
            ]
            if lost:
                failed[cell] = f"it needs {lost[0]}, which " + (
                    "failed" if lost[0] in failed else "is neither done nor asked for"
                )
            else:
                yield cell, records.cells[str(needs[-1])]["chosen"] if cell.role == "students" else None

    def done(cell: Cell, result: Callable[[], Mapping[str, Any]]) -> None:
        try:
            found = result()
            records.add(study, cell, found)
        except Exception as error:  # the other cells go on; all failures are named at the end
            failed[cell] = f"{type(error).__name__}: {error}"
        else:
            each(cell, found["seconds"], len(waiting) + len(running))

    def fetch(future: Any) -> Mapping[str, Any]:
        found = runs.load(future.result())
        if found is None:
            raise RuntimeError(
                f"a worker's result is not in {runs.root}: give KDUTILS_RUNS a folder that all can write"
            )
        return found[1]

    while waiting or running:
        for cell, chosen in ready():
            if client is None:
                done(cell, lambda cell=cell, chosen=chosen: work(study, cell, runs, chosen, device))
                break
            future = client.submit(
                _task, study, cell, str(runs.root.resolve()), chosen, device,
                store.source_hash("studies.study"),
                key=f"{study.name} {cell} {study.fingerprint(cell)}", priority=len(waiting), pure=False,
            )  # fmt: skip
            running[future] = cell
        if running:
            from distributed import wait

            for future in wait(list(running), return_when="FIRST_COMPLETED").done:
                done(running.pop(future), lambda future=future: fetch(future))
    if failed:
        raise RuntimeError("cells failed:\n" + "\n".join(f"  {cell}: {why}" for cell, why in failed.items()))
