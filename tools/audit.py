"""Train a few cells of a study's records anew and compare every number with the one recorded.

Cells are drawn at random among those that cost at most --limit core-seconds with their teacher. On a machine of the
recorded kind, with the recorded torch, every number has to be the same. Elsewhere rounding differs and grows along a
run, until it is as good as another seed: there the medians over seeds of the last accuracies and losses have to agree
within --tolerance, or within what seeds explain (Student's t at 1 %).
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile

import numpy as np
import pandas as pd
import torch
from scipy import stats
from study import find, records_of

from kdutils.lab.store import Store
from kdutils.studies.records import ORDER, Records, kept
from kdutils.studies.study import COLUMNS, Cell, Study, machine, work


def cost(study: Study, records: Records, cell: Cell) -> float:
    """Core-seconds of a cell and of the teacher that it needs."""
    parts = {str(cell), *(str(need) for need in study.needs(cell) if need.role == "teacher")}
    return sum(records.cells[part]["core-seconds"] for part in parts)


def compare(old: pd.DataFrame, new: pd.DataFrame, exact: bool, tolerance: float) -> str:
    """What differs, or nothing; of a tuning whose curves were left out, nothing can."""
    tuning = bool((new.role == "tuning").all())
    if old.empty:
        return "" if tuning else "no row was recorded"
    old, new = (table.sort_values(ORDER, ignore_index=True) for table in (old, new))
    if exact:
        if len(old) != len(new):
            return f"{len(old)} rows were recorded, {len(new)} came now"
        wrong = [name for name in COLUMNS if (old[name] != new[name]).any()]
        first = wrong and old.index[old[wrong[0]] != new[wrong[0]]][0]
        return f"{wrong}; first {old.loc[first].to_dict()}, now {new.loc[first, wrong].to_dict()}" if wrong else ""
    by = ["choice", "rate", "sample"]
    ends = [t.groupby([*by, "seed"]).last().groupby(by)[["accuracy", "loss"]] for t in (old, new)]
    here, there = (set(end.groups) for end in ends)
    if not here & there or (here != there and not tuning):  # the last things that a tuning tries hang on late digits
        return f"{min(here ^ there)} is among the rows of one side only"
    gap = (ends[0].median() - ends[1].median()).abs()
    error = sum(end.var() / end.count() for end in ends) ** 0.5
    likely = error * stats.t.ppf(0.995, sum(end.count() for end in ends) - 2)  # one student alone has no error: nan
    over = gap[gap > np.fmax(likely, tolerance)].max()
    if over.isna().all():
        return ""
    name = over.idxmax()
    return f"medians of the last {name} differ by {over[name]:.3g}, more than {tolerance:g} and than seeds explain"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--smoke", action="store_true", help="the records of the small version")
    parser.add_argument("--cells", type=int, default=2, help="how many")
    parser.add_argument("--limit", type=float, default=600, help="core-seconds that one may cost")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--tolerance", type=float, default=0.05, help="on another kind of machine")
    args = parser.parse_args()
    if args.cells < 1:
        parser.error(f"--cells is how many to train anew, 1 or more, not {args.cells}")
    torch.set_num_threads(1)
    study = find(args.name, args.smoke)
    records = records_of(study, args.smoke)
    done = [cell for cell in study.cells() if records.has(study, cell)]
    stale = len(records.cells) - len(done)
    cheap = [cell for cell in done if cost(study, records, cell) <= args.limit]
    print(f"{study.name}: {len(done)} cells are recorded; {len(cheap)} cost at most {args.limit:g} core-seconds"
          + (f"; {stale} are of other settings than the study's" if stale else ""))  # fmt: skip
    if not cheap or stale:
        sys.exit("nothing to audit: raise --limit" if not cheap else f"run make study NAME={study.name}")
    failed = False
    for cell in random.Random(args.seed).sample(cheap, min(args.cells, len(cheap))):
        about = records.cells[str(cell)]
        tuning = study.needs(cell)[-1] if cell.role == "students" else None
        with tempfile.TemporaryDirectory() as folder:
            result = work(study, cell, Store(folder), tuning and records.cells[str(tuning)]["chosen"])
        exact = (about["machine"], about["torch"]) == (machine(), torch.__version__)
        new = kept(study, pd.DataFrame(result["rows"], columns=list(COLUMNS)))
        wrong = compare(records.rows(cell), new, exact, args.tolerance)
        if result["chosen"] != about.get("chosen", {}) and exact:
            wrong += f" chosen: {about.get('chosen')}, now {result['chosen']}"
        failed |= bool(wrong)
        kind = "all" if exact else f"medians, within {args.tolerance:g} or what seeds explain, of"
        same = "its choice" if records.rows(cell).empty else f"{kind} {len(new)} rows"
        print(f"  {cell}: {wrong or f'{same} as recorded'}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, RuntimeError) as error:
        sys.exit(str(error))
