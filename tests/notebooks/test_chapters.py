"""Chapters: paired with their text by content, and built to the same plan."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jupytext
import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "book"
NAMES = sorted(path.stem for path in (BOOK / "text").glob("*.md"))
WIDTH = 88  # characters of a line of code
GRADES = ["easy", "medium", "research"]


def notebook(name):
    return nbformat.read(BOOK / f"{name}.ipynb", 4)


def cells(document):
    return [(c.cell_type, c.source.strip(), sorted(c.metadata.get("tags", []))) for c in document.cells]


def code(name):
    return [c for c in notebook(name).cells if c.cell_type == "code"]


def prose(name):
    return "\n".join(c.source for c in notebook(name).cells if c.cell_type == "markdown")


@pytest.mark.parametrize("name", NAMES)
def test_notebook_and_text_say_the_same(name):
    import pairing

    pairing.refuse_what_text_cannot_hold(notebook(name), name)
    text = jupytext.read(BOOK / "text" / f"{name}.md", fmt="md:myst")
    assert cells(notebook(name)) == cells(text), (
        f"edited in Jupyter? `jupytext --sync book/{name}.ipynb`; edited the text? `make execute CHAPTER={name}`"
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_page_shows_the_profile_and_nothing_else(name):
    """What a reader overrides must not be committed: the record would not be the profile's."""
    (cell,) = [c for c in code(name) if "parameters" in c.metadata.get("tags", [])]
    values = {}
    exec(cell.source, values)
    assert {k: values[k] for k in ("profile", "device", "seeds", "overrides")} == {
        "profile": None, "device": None, "seeds": None, "overrides": {}
    }, f"set the parameters of book/text/{name}.md back to their defaults"  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_chapter_follows_the_plan(name):
    text, tags = prose(name), [t for c in code(name) for t in c.metadata.get("tags", [])]
    assert re.match(r"# .+\n\n\*\*.+\*\*", text), "open with the title and the claim in bold"
    for part in ("You will learn", "You need", "## What you should see", "## Limitations", "## Exercises"):
        assert part in text, f"the part {part!r} is missing"
    assert re.search(r"^\$\$ \(eq-[\w-]+\)$", text, re.MULTILINE), (
        "number the main equation: end it with `$$ (eq-name)`"
    )
    assert tags.count("parameters") == 1 and tags.count("nbval-check-output") == 1
    assert "CostBox" in "".join(c.source for c in code(name))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_left_to_fill_in(name):
    """Text and code; an encoded figure may hold any four letters."""
    left = [c.source for c in notebook(name).cells if re.search(r"\b(TODO|FIXME)\b", c.source)]
    assert not left, f"fill in what the template left open in book/text/{name}.md and book/exercises/{name}.md"


@pytest.mark.parametrize("name", NAMES)
def test_exercises_are_graded_checked_and_solved(name):
    section = prose(name).split("## Exercises\n")[1]
    heads = re.findall(r"^\*\*(\d+) \((\w+)\)\.\*\* ", section, re.MULTILINE)
    assert [int(number) for number, _ in heads] == list(range(1, len(heads) + 1)), "number them `**1 (easy).** ...`"
    mend = f"in book/exercises/{name}.md, then run `python tools/exercises.py`"
    grades = [grade for _, grade in heads]
    assert grades == sorted(grades, key=GRADES.index), f"order the exercises by grade {mend}"
    assert set(grades) == set(GRADES), f"add an exercise of the grade {set(GRADES) - set(grades)} {mend}"
    for number, part in enumerate(re.split(r"^\*\*\d+ \(", section, flags=re.MULTILINE)[1:], 1):
        stub, *solution = part.split("<summary>Solution</summary>\n")
        assert len(solution) == 1, f"exercise {number} needs one hidden solution {mend}"
        for block in (stub, solution[0]):
            assert re.search(r"```python\n.*^check_\w+\(\w+(, .+)?\)$", block, re.MULTILINE | re.DOTALL), (
                f"end the code of exercise {number} with its `check_...(function)` {mend}"
            )
        assert "...  # your code" in stub and "...  # your code" not in solution[0], (
            f"exercise {number} has no stub {mend}"
        )


@pytest.mark.parametrize("name", NAMES)
def test_code_cells_are_short_executed_and_figures_described(name):
    for cell in code(name):
        assert len(cell.source.splitlines()) <= 30, f"move what is reused to kdutils: {cell.source[:60]!r}"
        assert cell.execution_count, f"not executed: {cell.source[:60]!r}"
        assert not any(o.output_type == "error" for o in cell.outputs)
        assert not any(o.get("name") == "stderr" for o in cell.outputs), f"writes to stderr: {cell.source[:60]!r}"
        if any(kind.startswith("image/") for o in cell.outputs for kind in o.get("data", {})):
            assert len(cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")) > 40, "describe the figure"


@pytest.mark.parametrize("name", NAMES)
def test_code_is_at_most_as_wide_as_the_page(name):
    """What the page shows beside its side bars; the exercises' code stands in the text, in blocks of its own."""
    text = jupytext.read(BOOK / "text" / f"{name}.md", fmt="md:myst")
    blocks = [c.source for c in text.cells if c.cell_type == "code"]
    for cell in text.cells:
        if cell.cell_type == "markdown":
            blocks += re.findall(r"^```python\n(.*?)^```", cell.source, re.MULTILINE | re.DOTALL)
    wide = [f"{len(line)}: {line.strip()[:60]}" for block in blocks for line in block.splitlines() if len(line) > WIDTH]
    mend = f"lines of more than {WIDTH} characters in book/text/{name}.md, or in book/exercises/{name}.md:"
    assert not wide, "\n".join([mend, *wide])


@pytest.mark.parametrize("name", NAMES)
def test_prose_reads_well_in_jupyter_and_colab(name):
    """Both know Markdown, HTML and dollar maths, and show everything else of MyST as it was typed."""
    text = re.sub(r"^```python\n.*?^```", "", prose(name), flags=re.MULTILINE | re.DOTALL)
    for pattern, mend in (
        (r"^:::.*", "write a box as a quote that opens with its title in bold, and a fold as <details>"),
        (r"^```\{.*", "write an equation as $$ ... $$ (eq-name)"),
        (r"\{[a-z:]+\}`.+?`", "cite as [Author (year)](address), and link to an equation as [the words](#eq-name)"),
        (r"\]\(\w+(?:#.+?)?\)", "link to another page with its ending: (04_extraction.ipynb), (scorecard.md)"),
    ):
        assert re.findall(pattern, text, re.MULTILINE) == [], mend


def test_citations_are_in_the_references():
    bib = (ROOT / "references.bib").read_text(encoding="utf-8")
    works = {e["url"]: (e["author"], e["year"]) for e in map(fields, re.split(r"^@", bib, flags=re.MULTILINE)[1:])}
    for name in NAMES:
        for who, year, url in re.findall(r"\[([^]]+?),? \(?(\d{4})\)?\]\((https?://[^)]+)\)", prose(name)):
            assert url in works, f"{name}: add {who} ({year}) to references.bib, with this address: {url}"
            authors, known = works[url]
            assert year == known and authors.startswith(who.split(" ")[0]), f"{name}: {who} ({year}) is not {url}"


def fields(entry):
    return {"url": "", **dict(re.findall(r"^ *(\w+) *= *\{(.*?)\},?$", entry, re.MULTILINE))}


@pytest.mark.parametrize("name", NAMES)
def test_committed_claims_are_those_of_the_recorded_results(name):
    record = json.loads((BOOK / "results" / "book" / f"{name}.json").read_text(encoding="utf-8"))
    printed = "".join(o.get("text", "") for c in code(name) for o in c.outputs)
    for claim in record["claims"]:
        assert f"{claim['verdict']:>7}  {claim['id']}:" in printed


def test_a_run_that_chapters_share_is_the_same_in_all():
    """Chapters that read each other's runs are executed on one kind of machine: another gives other digits."""
    known = {}
    for path in sorted((ROOT / "book" / "results" / "book").glob("*.json")):
        for name, run in json.loads(path.read_text(encoding="utf-8"))["runs"].items():
            said = {key: value for key, value in run.items() if key not in ("seconds", "device")}
            first = known.setdefault(run["key"], (path.stem, said))
            assert first[1] == said, f"{name} in {path.stem} is another than in {first[0]}: execute both chapters"
    assert len(known) > 50


def test_scorecard_is_that_of_the_recorded_results():
    import scorecard

    assert scorecard.PAGE.read_text(encoding="utf-8") == scorecard.page(), "run `python tools/scorecard.py`"


@pytest.mark.parametrize(
    ("verdicts", "says"),
    [
        ([], "not testable here"),
        (["holds"] * 2, "reproduced"),
        (["holds", "unclear"], "partly"),
        (["fails"], "not reproduced"),
        (["unclear"], "unclear"),
    ],
)
def test_scorecard_in_one_word(verdicts, says):
    import scorecard

    assert scorecard.overall(verdicts) == says


@pytest.mark.parametrize(
    ("verdicts", "says"),
    [(["holds"], "holds"), (["holds", "fails"], "holds in part"), (["fails"], "fails"), (["unclear"], "is unclear")],
)
def test_statements_of_our_own_do_not_reproduce_a_theorem(verdicts, says):
    import scorecard

    assert scorecard.overall(verdicts, True) == f"not tested; our own {says}"


@pytest.mark.parametrize("name", NAMES)
def test_no_machine_leaks_into_a_chapter(name):
    text = (BOOK / f"{name}.ipynb").read_text(encoding="utf-8")
    assert not re.search(r"/(root|home|Users|tmp)/", text)


def test_environment_files_agree():
    lock = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if line and not line.startswith("#"):
            package, version = line.split("==")
            lock[package.lower().replace("_", "-")] = version
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in project["dependencies"]:
        package, floor = requirement.split(">=")  # floors only: anything else could replace Colab's torch
        numbers = [[int(n) for n in v.split(".")[:2]] for v in (lock[package], floor)]
        assert numbers[0] >= numbers[1], requirement
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert "-r requirements.lock" in conda[-1]["pip"]
    assert f"python={project['requires-python'].removeprefix('>=')}" in conda
    assert not {"jupyterlab", "notebook", "nbdime"} & set(lock)


def test_unknown_chapter_and_unknown_parameter_say_what_there_is(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "execute.py", "99_nothing"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and NAMES[0] in done.stderr
    command = [
        sys.executable,
        "-m",
        "papermill",
        "--no-progress-bar",
        "--start-timeout=600",
        str(BOOK / "02_one_shot.ipynb"),
        str(tmp_path / "o.ipynb"),
    ]
    done = subprocess.run([*command, "-p", "stepz", "3"], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1 and "unknown parameter 'stepz': a chapter has profile" in done.stderr


def test_a_chapter_is_executed_again_only_when_something_has_changed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import execute

    for name in ("ROOT", "BOOK", "TEXT"):
        monkeypatch.setattr(execute, name, tmp_path / getattr(execute, name).relative_to(ROOT))
    (tmp_path / "book" / "text").mkdir(parents=True)
    (tmp_path / "kdutils").mkdir()
    (tmp_path / "requirements.lock").touch()
    for name in ("01_one", "02_two"):
        (execute.TEXT / f"{name}.md").write_text(name)
    done = []

    def pretend(name, profile, label):
        done.append(name)
        target = execute.destination(profile) / f"{name}.ipynb"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(f"{name}, executed")

    monkeypatch.setattr(execute, "execute", pretend)
    monkeypatch.setattr(execute.exercises, "write", lambda: None)
    for name in ("KDUTILS_PROFILE", "KDUTILS_QUIET", "KDUTILS_RESULTS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "as before")  # so that what `main` sets is taken back
    (tmp_path / "_build" / "smoke").mkdir(parents=True)

    def run(*names):
        done.clear()
        monkeypatch.setattr(sys, "argv", ["execute.py", "--profile", "smoke", *names])
        execute.main()
        return done

    assert run() == ["01_one", "02_two"] and run() == []
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "", "smoke and book compute on the processor, as their records did"
    (execute.TEXT / "02_two.md").write_text("other")
    assert run() == ["02_two"] and run("01_one") == ["01_one"]
    (execute.destination("smoke") / "01_one.ipynb").unlink()
    assert run() == ["01_one"]
    (tmp_path / "kdutils" / "new.py").write_text("x = 1")
    assert run() == ["01_one", "02_two"]
    (execute.TEXT / "02_two.md").write_text('budgets.study("words", "loss")')
    assert run() == ["02_two"] and run() == []
    records = execute.BOOK / "results" / "studies" / "words.json"
    records.parent.mkdir(parents=True)
    records.write_text("{}")
    assert run() == ["02_two"] and run() == []


def test_text_sent_in_pieces_is_joined():
    from normalise import normalise

    pieces = [("stdout", "a\n"), ("stdout", "b\n"), ("stderr", "c\n"), ("stdout", "d\n")]
    outputs = [nbformat.v4.new_output("stream", name=name, text=text) for name, text in pieces]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x", outputs=outputs)])
    joined = normalise(book, "x.ipynb").cells[0].outputs
    assert [(o.name, o.text) for o in joined] == [("stdout", "a\nb\n"), ("stderr", "c\n"), ("stdout", "d\n")]


def test_normalising_twice_changes_nothing():
    from normalise import normalise

    for name in NAMES:
        once = normalise(notebook(name), f"{name}.ipynb")
        assert nbformat.writes(normalise(once, f"{name}.ipynb")) == nbformat.writes(once)


def test_what_is_committed_was_normalised():
    """A notebook that Jupyter has saved is brought into form by `make execute`, before it is committed."""
    from normalise import normalise

    for name in NAMES:
        command = ["git", "show", f"HEAD:book/{name}.ipynb"]
        shown = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
        if shown.returncode:
            pytest.skip("no commit to look at: run this in a clone of the repository")
        text = shown.stdout.decode("utf-8")
        clean = nbformat.writes(normalise(nbformat.reads(text, 4), f"{name}.ipynb"))
        assert clean.rstrip("\n") == text.rstrip("\n"), (
            f"run `make execute CHAPTER={name}` and commit book/{name}.ipynb"
        )
