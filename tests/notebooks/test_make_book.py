"""`make book`: a clean clone stays clean, and a machine that lacks something is told what, at once."""

import doctest
import json
import shutil
import subprocess
import sys

import execute
import pytest
import setup


@pytest.fixture
def pretended(tmp_path, monkeypatch):
    """`make book` and `make execute` of one chapter, whose training takes as long as a test says."""
    for name in ("TEXT", "BOOK", "ROOT"):
        monkeypatch.setattr(execute, name, tmp_path / getattr(execute, name).relative_to(execute.ROOT))
    record = tmp_path / "book" / "results" / "book" / "01_one.json"
    for folder in (execute.TEXT, record.parent, tmp_path / "kdutils"):
        folder.mkdir(parents=True)
    (tmp_path / "requirements.lock").touch()
    (execute.TEXT / "01_one.md").write_text("one")
    executed = []

    def pretend(name, profile, label):
        cost = json.loads(record.read_bytes())["cost"]["seconds"] if record.exists() else None
        run = {"key": f"k{made['seconds']}", "seconds": made["seconds"], "device": "cpu, 2 threads", "flops": 5}
        new = {"cost": {"seconds": made["seconds"]}, "claims": [made["value"]], "runs": {"a": run}}
        record.write_text(json.dumps({**new, "versions": {"python": made["python"], "torch": "2.6"}}))
        (execute.BOOK / f"{name}.ipynb").write_text(f"{made['value']}, shown with a cost of {cost}")
        executed.append(name)

    made = {}
    monkeypatch.setattr(execute, "execute", pretend)

    def run(seconds, value, *options, python="3.11.7"):
        made.update(seconds=seconds, value=value, python=python)
        executed.clear()
        stamps = execute._known("stamps", "book")
        if execute.done(stamps.get("01_one"), execute.stamp("01_one", "book"), "--keep-cost" in options):
            return "as it was"
        execute.settle("01_one", "book", "", keep_cost="--keep-cost" in options)
        return record.read_bytes(), (execute.BOOK / "01_one.ipynb").read_bytes(), len(executed)

    return run


def test_make_book_on_a_clean_clone_changes_nothing_where_the_results_are_the_same(pretended, tmp_path):
    *recorded, executions = pretended(10, 1)
    assert executions == 2 and b"cost of 10" in recorded[1], "a page shows the cost of its record"
    (tmp_path / "_build" / "stamps.json").unlink()  # a clean clone
    assert pretended(99, 1, "--keep-cost", python="3.12.1") == (*recorded, 1)
    assert json.loads((tmp_path / "_build" / "cost.json").read_bytes())["book"] == {"01_one": 99}
    assert pretended(98, 1, "--keep-cost") == "as it was"
    record, page, _ = pretended(97, 1)
    assert b"cost of 97" in page and json.loads(record)["cost"]["seconds"] == 97, "`make execute` records the cost"
    assert pretended(96, 1) == "as it was" == pretended(96, 1, "--keep-cost")


def test_make_book_records_results_that_differ(pretended, tmp_path):
    pretended(10, 1)
    (tmp_path / "_build" / "stamps.json").unlink()
    record, page, executions = pretended(99, 2, "--keep-cost")
    assert json.loads(record)["claims"] == [2] and b"cost of 99" in page and executions == 2
    (tmp_path / "book" / "results" / "book" / "01_one.json").write_text('{"cost": {"seconds": 3}}')
    record, *_ = pretended(99, 2, "--keep-cost")
    assert json.loads(record)["claims"] == [2], "a damaged record is made anew"


@pytest.mark.parametrize(
    ("present", "python", "node", "says"),
    [
        ({"make", "git", "npm"}, (3, 12, 0), "v22.1.0\n", []),
        ({"make", "git", "npm"}, (3, 9, 2), "v20.0.0\n", ["Python 3.11 or newer is needed, and this is 3.9"]),
        ({"make", "git", "npm"}, (3, 11, 0), "v18.19.0\n", ["Node.js 20 or newer with npm is needed"]),
        ({"make", "git"}, (3, 11, 0), "v20.0.0\n", ["Node.js 20 or newer with npm is needed"]),
        (set(), (3, 11, 0), "", ["make is needed", "git is needed", "Node.js 20"]),
    ],
)
def test_what_is_missing_is_named_with_the_way_to_get_it(present, python, node, says):
    found = setup.missing(True, lambda name: name if name in present else None, python, node)
    assert len(found) == len(says) and all(line.startswith(say) for line, say in zip(found, says, strict=True))
    assert all("install" in line or "get it" in line for line in found)
    assert setup.missing(False, lambda name: name, (3, 11, 0), "") == [], "only the site needs Node.js"


def test_progress_is_said_as_documented():
    assert doctest.testmod(setup).failed == 0 < doctest.testmod(setup).attempted


def test_installing_says_what_it_does_and_what_went_wrong(capfd):
    lines = [
        "Collecting numpy==2.4.6 (from -r x)",
        "  Downloading torch-2.whl (191.5 MB)",
        "  Using cached a.whl (1 kB)",
    ]
    pip = [sys.executable, "-c", f"print({chr(10).join(lines)!r})"]
    setup.install([*pip, "--"], 7)
    assert capfd.readouterr().out.splitlines() == ["  1 of 7: numpy 2.4.6", "          191.5 MB"]
    failing = [sys.executable, "-c", "import sys; print('ERROR: no network'); sys.exit(1)", "--"]
    with pytest.raises(SystemExit, match=r"ERROR: no network\npip could not install everything"):
        setup.install(failing, 7)


def test_make_book_stops_at_once_where_a_program_is_missing(tmp_path):
    for file in ("Makefile", "tools/setup.py"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes((execute.ROOT / file).read_bytes())
    here = tmp_path / "bin"
    here.mkdir()
    for name in ("bash", "make", "git"):
        (here / name).symlink_to(shutil.which(name))
    (here / "python3").symlink_to(sys.executable)
    make = [str(here / "make"), "book"]

    def says():
        return subprocess.run(make, cwd=tmp_path, env={"PATH": str(here)}, capture_output=True, text=True, check=False)

    done = says()
    assert done.returncode and "Node.js 20 or newer with npm is needed" in done.stderr and not done.stdout
    (here / "python3").unlink()
    done = says()
    assert done.returncode and "Python 3.11 or newer is needed, and there is no python3" in done.stderr
