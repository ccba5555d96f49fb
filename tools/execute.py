"""Execute chapters: text twin -> papermill in a temporary file -> normalise -> move into place.

The text twin is the source (its exercises come from book/exercises); cells of the committed notebook that are still the
same keep their ids. At the `book` profile the notebook in book/ is replaced; at others the executed copy goes to
_build/PROFILE/book/. A chapter that is not named on the command line is left alone when nothing it rests on changed.
`smoke` and `book` compute on the processor, as their records did; what --gpu makes goes to _build/gpu. This is the one
way to change what `book/results` and the scorecard say: it sets KDUTILS_RESULTS, without which a chapter writes
elsewhere.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import exercises
import nbformat
import notes
import pairing
import papermill
import scorecard
from jupytext.combine import combine_inputs_with_outputs
from nbclient.exceptions import CellExecutionError, DeadKernelError
from normalise import KERNEL, LANGUAGE, normalise
from papermill.exceptions import PapermillExecutionError

from kdutils.pages import claims

ROOT = Path(__file__).resolve().parents[1]
BOOK, TEXT = ROOT / "book", ROOT / "book" / "text"
KEPT = ", its cost not recorded"  # at the end of a stamp: `make book` left it so, and `make execute` will not
GO_ON = "finished runs are kept, and the same command goes on from there"


def chapters() -> list[str]:
    """Names of all chapters, in order."""
    return sorted(path.stem for path in TEXT.glob("[0-9]*.md"))


def destination(profile: str) -> Path:
    """The folder that holds the executed chapters of a profile."""
    return BOOK if profile == "book" else ROOT / "_build" / profile / "book"


def results(profile: str) -> Path:
    """The folder that chapters write their numbers to: those of "smoke" and "gpu" are not kept in the book."""
    return ROOT / "_build" / profile / "results" if profile in ("smoke", "gpu") else BOOK / "results"


def from_text(name: str) -> nbformat.NotebookNode:
    """The chapter's notebook as its text says, with the ids of the committed one where cells match.

    The text is brought into the form that jupytext gives it, where it is not.
    """
    text = TEXT / f"{name}.md"
    notebook = pairing.read(text)
    if text.read_bytes() != (tidy := pairing.written(notebook)).encode():
        notes.replace(text, tidy)
        print(f"book/text/{name}.md: set in the form that jupytext writes")
    old = set()
    committed = BOOK / f"{name}.ipynb"
    if committed.exists():
        previous = nbformat.read(committed, 4)
        old = {cell.id for cell in previous.cells}
        notebook = combine_inputs_with_outputs(notebook, previous)
    for number, cell in enumerate(notebook.cells):
        if cell.get("id") not in old:
            cell.id = hashlib.sha256(f"{name}/{number}/{cell.source}".encode()).hexdigest()[:8]
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": LANGUAGE})
    notebook.nbformat_minor = 5
    return notebook


def execute(name: str, profile: str, label: str) -> None:
    target = destination(profile) / f"{name}.ipynb"
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        source, executed = Path(folder, "in.ipynb"), Path(folder, f"{name}.ipynb")
        nbformat.write(from_text(name), source)
        papermill.execute_notebook(
            str(source), str(executed), cwd=str(BOOK), kernel_name="python3", progress_bar={"desc": label},
            execution_timeout=3600, start_timeout=600, iopub_timeout=600, autosave_cell_every=0,
        )  # fmt: skip
        clean = normalise(nbformat.read(executed, 4), target.name)
        nbformat.write(clean, executed)
        notes.replace(target, executed.read_text(encoding="utf-8"))


def settle(name: str, profile: str, label: str, keep_cost: bool = False) -> None:
    """Execute a chapter; at `book`, where its page shows the measured cost, once more if that has changed.

    Args:
        keep_cost: where the results are those of the record, leave the record and the cost it states as they are, and
            note in `_build` what the run cost here.
    """
    record = results(profile) / profile / f"{name}.json"
    before = record.read_bytes() if record.exists() else b""
    execute(name, profile, label)
    kept = ""
    if profile == "book" and record.exists() and (new := record.read_bytes()) != before:
        if keep_cost and before and only_cost_differs(before, new):
            record.write_bytes(before)
            _remember("cost", profile, {name: json.loads(new)["cost"]["seconds"]})
            kept = KEPT
        else:
            execute(name, profile, f"{label}, with its cost")
    _remember("stamps", profile, {name: stamp(name, profile) + kept})


def only_cost_differs(old: bytes, new: bytes) -> bool:
    """Whether two records of a chapter differ in nothing but time, memory, and the processor and Python they ran on."""
    try:
        return _without_cost(json.loads(old)) == _without_cost(json.loads(new))
    except (ValueError, KeyError, TypeError, AttributeError):  # a damaged record is no record
        return False


def _without_cost(record: dict) -> dict:
    runs = {
        name: {k: v for k, v in run.items() if k not in ("key", "seconds", "device")}
        for name, run in record["runs"].items()
    }
    versions = {k: v for k, v in record["versions"].items() if k != "python"}
    return {**record, "cost": None, "versions": versions, "runs": runs}


def stamp(name: str, profile: str) -> str:
    """A hash of what a chapter is made from and of what came out, to see whether it has to be executed again."""
    package = [p for p in sorted((ROOT / "kdutils").rglob("*")) if p.suffix in {".py", ".toml", ".json", ".js", ".css"}]
    made = [destination(profile) / f"{name}.ipynb", results(profile) / profile / f"{name}.json"]
    text = TEXT / f"{name}.md"
    named = set(re.findall(r"\.study\(\"(\w+)\"", text.read_text(encoding="utf-8")))
    h = hashlib.sha256()
    for path in [
        text,
        *(BOOK / "results" / "studies" / f"{study}.json" for study in sorted(named)),
        ROOT / "requirements.lock",
        Path(__file__).with_name("normalise.py"),
        *package,
        *made,
    ]:
        h.update(path.read_bytes() if path.exists() else b"none")
    return h.hexdigest()


def done(noted: str | None, now: str, keep_cost: bool) -> bool:
    """Whether a chapter's stamp says that nothing has changed and, if costs are recorded, that its cost is."""
    return noted == now or (keep_cost and noted == now + KEPT)


def _known(what: str, profile: str) -> dict:
    return notes.known(ROOT / "_build" / f"{what}.json", profile)


def _remember(what: str, profile: str, new: dict) -> None:
    notes.remember(ROOT / "_build" / f"{what}.json", profile, new)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="chapters, such as 04_extraction; all when left out")
    parser.add_argument("--profile", default="book", choices=["smoke", "book", "paper"])
    parser.add_argument("--check", action="store_true", help="compare the new verdicts with the recorded ones")
    parser.add_argument("--gpu", action="store_true", help="smoke or book on a GPU; nothing in book/ changes")
    parser.add_argument("--keep-cost", action="store_true", help="leave recorded costs where results are the same")
    options = parser.parse_args()
    place = "gpu" if options.gpu else options.profile
    unknown = [name for name in options.names if name not in chapters()]
    if unknown:
        sys.exit(f"no chapter {unknown[0]!r}: there are {', '.join(chapters())}")
    try:  # before the first is executed
        exercises.texts()
        for name in options.names or chapters():
            pairing.refuse_lost_edits(BOOK, name)
            pairing.read(TEXT / f"{name}.md")
        exercises.write()
    except ValueError as error:
        sys.exit(str(error))
    kept = results(place)
    before = verdicts(results(options.profile) / options.profile) if options.check else {}
    os.environ |= {"KDUTILS_PROFILE": options.profile, "KDUTILS_QUIET": "1", "KDUTILS_RESULTS": str(kept)}
    if options.profile != "paper" and not options.gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    known, started = _known("seconds", place), time.perf_counter()
    stamps = {} if options.check else _known("stamps", place)
    names = options.names or [n for n in chapters() if not done(stamps.get(n), stamp(n, place), options.keep_cost)]
    for number, name in enumerate(names, 1):
        left = sum(seconds for n in names[number - 1 :] if isinstance(seconds := known.get(n), int | float))
        remaining = f", about {left:.0f} s left" if left else ""
        elapsed = time.perf_counter() - started
        begun = time.perf_counter()
        settle(
            name, place, f"chapter {number}/{len(names)} {name} ({elapsed:.0f} s so far{remaining})", options.keep_cost
        )
        _remember("seconds", place, {name: round(time.perf_counter() - begun, 1)})
    rest = "" if options.names else f"; the other {len(chapters()) - len(names)} are as they were"
    print(f"{len(names)} chapters executed at {options.profile} in {time.perf_counter() - started:.0f} s{rest}")
    if any(noted.endswith(KEPT) for noted in _known("stamps", place).values() if isinstance(noted, str)):
        print("results are as recorded; what they cost here is in _build/cost.json, and `make execute` would record it")
    if place == "book":
        with notes.lock(ROOT / "_build"):
            update_readme()
            if set(chapters()) <= {path.stem for path in results("book").glob("book/*.json")}:
                notes.replace(scorecard.PAGE, scorecard.page())
    if options.check:
        changed = {k: (v, verdicts(kept / options.profile).get(k)) for k, v in before.items()}
        changed = {k: v for k, v in changed.items() if v[0] != v[1]}
        if changed:
            sys.exit(f"verdicts differ from the recorded ones: {changed}")
        print(f"all {len(before)} verdicts as recorded")


def chapter_table(folder: Path) -> str:
    """The README's rows: each chapter, its claim, what its page trains, and what the studies that it shows took."""
    head = "| chapter | claim | trained on the page, at `book` | its studies, hours of one core |"
    rows = [head, "|---|---|---|---|"]
    for path in sorted(folder.glob("[0-9]*.json")):
        text = pairing.read(TEXT / f"{path.stem}.md")
        title, claim = re.match(r"# (.+)\n\n\*\*(.+)\*\*", text.cells[0].source).groups()
        minutes = json.loads(path.read_text(encoding="utf-8"))["cost"]["seconds"] / 60
        named = re.search(r"CostBox\(.+, cfg(.*)\)", "\n".join(cell.source for cell in text.cells)).group(1)
        hours = sum(claims.study_hours(name, BOOK / "results" / "studies") for name in re.findall(r"\w+", named))
        row = f"| [{title}](book/{path.stem}.ipynb) | {claim} | {minutes:.1f} min | "
        rows.append(f"{row}{hours:.1f} |" if hours else f"{row}none |")
    return "\n".join(rows)


def update_readme() -> None:
    """Put the chapter table of the book profile between its marks in the README."""
    readme = ROOT / "README.md"
    start, rest = readme.read_text(encoding="utf-8").split("<!-- chapters -->\n")
    end = rest.split("<!-- /chapters -->")[1]
    table = chapter_table(BOOK / "results" / "book")
    notes.replace(readme, f"{start}<!-- chapters -->\n{table}\n<!-- /chapters -->{end}")


def verdicts(folder: Path) -> dict[str, str]:
    """Claim id -> verdict, over all results in a folder."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return {claim["id"]: claim["verdict"] for record in records for claim in record["claims"]}


def stopped(error: BaseException) -> str:
    """What to say when a Ctrl-C or a killed kernel ended a chapter; nothing for an error of the chapter's own.

    nbclient answers a Ctrl-C by shutting down the kernel, and what it then sees first is a matter of time: nothing yet,
    a dead kernel, a cell interrupted, or a cell whose answer names no error ("<Error>").
    """
    if isinstance(error, DeadKernelError):
        return f"the kernel is gone (Ctrl-C, or out of memory); {GO_ON}"
    interrupted = isinstance(error, KeyboardInterrupt) or (
        isinstance(error, CellExecutionError | PapermillExecutionError)
        and error.ename in ("KeyboardInterrupt", "<Error>")
    )
    return f"stopped; {GO_ON}" if interrupted else ""


def program() -> None:
    """`main`; where it is stopped, what to do is the last that is said."""
    try:
        main()
    except (KeyboardInterrupt, Exception) as error:
        if not (said := stopped(error)):
            raise
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # of tasks that nbclient left, whose kernel is gone
        sys.exit(said)


if __name__ == "__main__":
    program()
