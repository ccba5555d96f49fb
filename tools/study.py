"""Run what is missing of a study, and keep its records in book/results/studies; see kdutils.studies.study.

With --smoke its small version, which is recorded in book/results/studies/smoke. Without --scheduler the workers are
processes of this machine; with --workers 0 everything runs in this one.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from kdutils.lab.store import Store
from kdutils.studies.records import Records, complete
from kdutils.studies.study import Cell, Study

ROOT = Path(__file__).resolve().parents[1]


def find(name: str, smoke: bool) -> Study:
    """The study of that name, or the end of the program with a list of those that there are."""
    path = ROOT / "studies" / f"{name}.toml"
    if not path.exists():
        sys.exit(f"say NAME=, one of {', '.join(sorted(p.stem for p in path.parent.glob('*.toml')))}, not {name!r}")
    return Study.load(path, smoke)


def records_of(study: Study, smoke: bool) -> Records:
    """Where `KDUTILS_RESULTS` says, else in the book; the end of the program where nothing can be written there."""
    given = os.environ.get("KDUTILS_RESULTS", "").strip()
    folder = (
        Path(os.path.expandvars(given)).expanduser() / "studies" if given else ROOT / "book" / "results" / "studies"
    )
    folder = folder / "smoke" if smoke else folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sys.exit(f"records cannot be kept in {folder} ({error.strerror}): set KDUTILS_RESULTS to another folder")
    return Records(folder, study.name)


def runs_of() -> Store:
    return Store(None if os.environ.get("KDUTILS_RUNS", "").strip() else ROOT / "book" / "runs")


@contextlib.contextmanager
def cluster(scheduler: str | None, workers: int) -> Iterator[Any]:
    """A client of the scheduler at that address, or of one with `workers` processes here; None for no workers."""
    if not scheduler and not workers:
        yield None
        return
    try:
        import dask
        from distributed import Client, LocalCluster
    except ImportError:
        sys.exit("Dask is missing: install kdutils[cluster], or run with WORKERS=0")
    # A worker that dies takes its task with it; an innocent task may meet several such deaths.
    dask.config.set({"distributed.scheduler.allowed-failures": 100})
    if scheduler:
        with Client(scheduler) as client:
            yield client
        return
    here = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None, "host": "127.0.0.1"}
    with LocalCluster(**here) as local, Client(local) as client:
        yield client


def size(study: Study, cell: Cell) -> float:
    """About how much work a cell is, in steps of one student."""
    if cell.role == "teacher":
        return 5.0 * {**study.settings, **study.sizes[cell.size]}.get("teacher_steps", 100)  # recorded: none
    if cell.role == "students":
        return study.students * cell.budget
    values = [len(value) for value in study.arms[cell.arm].values() if isinstance(value, list)]
    return cell.budget * len(study.tuning["rates"]) * len(study.tuning["seeds"]) * max(1, sum(values))


def budgets(text: str) -> set[int]:
    return {int(part) for part in text.split(",")}


def names(text: str) -> set[str]:
    return set(text.split(";"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--smoke", action="store_true", help="the small version")
    parser.add_argument("--main", action="store_true", help="the main arms only")
    parser.add_argument("--budgets", type=budgets, help="these only: 500,1000")
    parser.add_argument("--arms", type=names, help="these only: labels;one-shot")
    parser.add_argument("--sizes", type=names, help="these only: 14 bits;16 bits")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes here; one a core when left out")
    parser.add_argument("--threads", type=int, default=1, help="torch's, with --workers 0: more for one wide network")
    parser.add_argument("--scheduler", help="the address of a Dask cluster, such as tcp://host:8786")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    if args.threads != 1 and (args.workers or args.scheduler):
        parser.error("--threads goes with --workers 0: a worker has one thread")
    if args.workers < 0 or args.threads < 1:
        parser.error(f"{args.workers} workers with {args.threads} threads each make no sense")
    torch.set_num_threads(args.threads)
    study = find(args.name, args.smoke)
    records = records_of(study, args.smoke)

    def wanted(cell: Cell) -> bool:
        by_budget = not args.budgets or cell.budget in args.budgets
        by_arm = (not args.arms or cell.arm in args.arms) and (not args.main or cell.arm in study.main)
        return by_budget and by_arm and (not args.sizes or cell.size in args.sizes)

    asked = {"budget": (args.budgets, study.budgets), "arm": (args.arms, study.arms), "size": (args.sizes, study.sizes)}
    for what, (given, there) in asked.items():
        if wrong := sorted((given or set()) - set(there)):
            sys.exit(f"{study.name} has no {what} {wrong[0]!r}; it has {', '.join(map(repr, there))}")
    named = [cell for cell in study.cells() if cell.arm and wanted(cell)]
    if not named:
        sys.exit(f"{study.name}: no arm is both among --arms and, as --main asks, among {', '.join(study.main)}")
    needed = {need for cell in named for need in study.needs(cell)}
    cells = [cell for cell in study.cells() if cell in needed or cell in named]
    left = {cell: size(study, cell) for cell in cells if not records.has(study, cell)}
    if not left:
        print(f"{study.name}: all {len(cells)} cells are done")
        return
    whole, started = sum(left.values()), time.time()
    print(f"{study.name}: {len(cells) - len(left)} of {len(cells)} cells are done")
    with (
        cluster(args.scheduler, args.workers) as client,
        tqdm(total=len(cells), initial=len(cells) - len(left), disable=None) as bar,
    ):

        def each(cell: Cell, seconds: float, count: int) -> None:
            left.pop(cell)
            rest = sum(left.values())
            end = time.time() + (time.time() - started) * rest / (whole - rest)
            line = f"{count} to go, until about {time.strftime('%a %H:%M', time.localtime(end))}"
            bar.set_postfix_str(line, refresh=False)
            bar.update()
            if bar.disable:  # nobody watches: a log
                print(f"{time.strftime('%H:%M:%S')} {cell}: {seconds:.0f} s of a core; {line}", flush=True)

        complete(study, records, runs_of(), cells, client, args.device, each)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("stopped: what is done is kept, and the same command goes on from here")
