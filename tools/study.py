"""Run what is missing of a study, and keep its records: `book/results/studies/NAME.csv.gz` and `NAME.json`."""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import platform
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from kdutils.lab import store
from kdutils.lab.study import COLUMNS, Cell, Study, work

ROOT = Path(__file__).resolve().parents[1]


def replace(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)


class Records:
    """The table of a study and what is known of its cells."""

    def __init__(self, study: Study, folder: Path) -> None:
        self.study = study
        self.table_path, self.path = folder / f"{study.name}.csv.gz", folder / f"{study.name}.json"
        self.cells: dict[str, Any] = {}
        self.table = pd.DataFrame(columns=list(COLUMNS))
        if self.path.exists():
            self.cells = json.loads(self.path.read_text(encoding="utf-8"))["cells"]
            self.table = pd.read_csv(self.table_path, keep_default_na=False, float_precision="round_trip")

    def has(self, cell: Cell) -> bool:
        known = self.cells.get(str(cell))
        return known is not None and known["fingerprint"] == self.study.fingerprint(cell)

    def chosen(self, cell: Cell) -> Any:
        """What the tuning of a students' cell chose."""
        if cell.role != "students":
            return None
        return self.cells[str(self.study.needs(cell)[1])]["chosen"]

    def add(self, cell: Cell, result: dict[str, Any]) -> None:
        new = pd.DataFrame(result["rows"], columns=list(COLUMNS))
        t = self.table
        old = t[(t.role == cell.role) & (t.teacher == cell.teacher) & (t.budget == cell.budget) & (t.arm == cell.arm)]
        kept = t.drop(old.index)
        self.table = new if kept.empty else pd.concat([kept, new], ignore_index=True)
        self.cells[str(cell)] = {
            "fingerprint": self.study.fingerprint(cell), "source": store.source_hash()[:16],
            "machine": machine(), "torch": torch.__version__, "core-seconds": round(result["seconds"], 1),
            **({"chosen": result["chosen"]} if result["chosen"] else {}),
            **({"facts": result["facts"]} if result["facts"] else {}),
        }  # fmt: skip
        self.write()

    def write(self) -> None:
        self.table = self.table.sort_values(
            ["role", "budget", "arm", "teacher", "choice", "rate", "seed", "sample", "step"]
        )
        text, packed = self.table.to_csv(index=False), io.BytesIO()
        with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as file:
            file.write(text.encode())
        s = self.study
        about = {
            "study": s.name, "lab": s.lab, "settings": dict(s.settings), "budgets": s.budgets, "teachers": s.teachers,
            "students": s.students, "evaluations": s.evaluations, "tuning": s.tuning, "arms": s.arms, "main": s.main,
            "effect": s.effect, "versions": {name: metadata.version(name) for name in ("torch", "numpy")},
            "core-hours": round(sum(cell["core-seconds"] for cell in self.cells.values()) / 3600, 2),
            "cells": self.cells,
        }  # fmt: skip
        replace(self.table_path, packed.getvalue())
        replace(self.path, (json.dumps(about, indent=1) + "\n").encode())


def machine() -> str:
    """The kind of machine, without its name: two of the same kind give the same numbers."""
    return f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--smoke", action="store_true", help="the small version")
    parser.add_argument("--records", type=Path, default=ROOT / "book" / "results" / "studies")
    parser.add_argument("--budgets", type=lambda text: [int(part) for part in text.split(",")])
    parser.add_argument("--arms", type=lambda text: text.split(";"))
    parser.add_argument("--main", action="store_true", help="the main arms only")
    args = parser.parse_args()
    torch.set_num_threads(1)
    study = Study.load(ROOT / "studies" / f"{args.name}.toml", args.smoke)
    records, runs = Records(study, args.records), store.Store()
    cells = [
        cell for cell in study.cells()
        if not cell.arm or ((not args.budgets or cell.budget in args.budgets)
                            and (not args.arms or cell.arm in args.arms)
                            and (not args.main or cell.arm in study.main))
    ]  # fmt: skip
    todo = [cell for cell in cells if not records.has(cell)]
    print(f"{study.name}: {len(cells) - len(todo)} of {len(cells)} cells are done", flush=True)
    started = time.time()
    for number, cell in enumerate(todo, 1):
        began = time.time()
        result = work(study, cell, runs, records.chosen(cell))
        records.add(cell, result)
        print(
            f"{time.strftime('%H:%M:%S')} {number}/{len(todo)} {cell}: {time.time() - began:.0f} s "
            f"({result['seconds']:.0f} s of core; {time.time() - started:.0f} s in all) {result['chosen'] or ''}",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
