"""`make execute` on a small book: what it records and what it does not, stopped, and under odd terminals."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
TERMINALS = (
    {"PYTHONIOENCODING": "ascii"},
    {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
)


def test_only_make_execute_changes_the_records(executed):
    records = executed.root / "_build" / "smoke" / "results" / "smoke"
    assert sorted(file.name for file in records.iterdir()) == ["01_mini.json", "headline.png"]
    recorded = (records / "01_mini.json").read_bytes()
    page = executed.executed.read_text(encoding="utf-8")
    assert "Not measured here yet" in page and "your run" not in page

    beside, own = executed.root / "book" / "results" / "smoke", executed.runs / "results" / "smoke"
    shutil.copytree(records, beside)  # as in a clone, where the records lie beside the notebook
    status, said = executed.papermill("-y", "{seeds: [1, 2, 3]}")
    assert status == 0, said
    shown = (executed.root / "book" / "out.ipynb").read_text(encoding="utf-8")
    assert f"Numbers of your run, kept in {own / '01_mini.json'}" in shown
    assert "minutes and" in shown, "the box of the cost reads the record"
    assert sorted(file.name for file in own.iterdir()) == ["01_mini.json", "headline.png"]
    assert sorted(file.name for file in beside.iterdir()) == ["01_mini.json", "headline.png"]
    assert (beside / "01_mini.json").read_bytes() == recorded

    # Nor do numbers land there that are not the profile's, whoever asks.
    shutil.rmtree(own)
    status, said = executed.papermill("-y", "{overrides: {d: 24}}", KDUTILS_RESULTS=str(records.parent))
    assert status == 0 and (own / "01_mini.json").exists() and (records / "01_mini.json").read_bytes() == recorded
    assert "not the profile's own: d" in (executed.root / "book" / "out.ipynb").read_text(encoding="utf-8")


def test_a_chapter_runs_to_its_end_where_nothing_can_be_written(executed):
    executed.runs.rename(executed.root / "kept")
    executed.runs.write_text("a file where the folder of runs should be")  # a mode would not stop root
    status, said = executed.papermill()
    assert status == 0, said
    shown = (executed.root / "book" / "out.ipynb").read_text(encoding="utf-8")
    assert "Numbers of your run, not kept" in shown and "  holds  mini" in shown
    assert shown.count("nothing can be kept in") == 1, "said once, for the figure and the record"


@pytest.mark.parametrize("terminal", TERMINALS, ids=str)
def test_a_terminal_that_knows_few_signs_ends_nothing(mini, terminal):
    text = (
        mini.text.read_text(encoding="utf-8").replace("A small", "\u2265 A small").replace("at least one", "\u2265 1")
    )
    mini.text.write_text(text, encoding="utf-8")
    status, said = mini.execute(**terminal)
    assert status == 0 and "1 chapters executed" in said, said
    assert "\u2265 1" in mini.executed.read_text(encoding="utf-8")
    program = (
        "from kdutils.pages.claims import Box, Claim, verdicts\n"
        "found = [Claim('x', 'It is \\u2265 1 \\u2014', 2, (1, float('inf')), (1, float('inf')))]\n"
        "verdicts(found); print(Box(found), Box(found, 'kept in gr\\xf6\\u2264'))"
    )
    status, said = mini.run("-c", program, **terminal)
    assert status == 0 and ">= 1" in said and "[1, inf]" in said, said


BROKEN = ("", '{"smoke": {"01_sp', '{"smoke": {}}}', "[1, 2]", "3", "null", '"text"', '{"smoke": 3}', "\x00",
          "[" * 9999,
          '{"smoke": {"01_mini": {"a": 1}}}', '{"smoke": {"01_mini": NaN}}', '{"smoke": [["a", 2]]}')  # fmt: skip


@pytest.mark.parametrize("content", BROKEN)
@pytest.mark.parametrize("what", ["stamps", "seconds"])
def test_a_broken_note_is_made_anew(tmp_path, monkeypatch, capsys, what, content):
    import execute

    monkeypatch.setattr(execute, "ROOT", tmp_path)
    (tmp_path / "_build").mkdir()
    (tmp_path / "_build" / f"{what}.json").write_text(content)
    assert execute._known(what, "smoke") == {} and f"{what}.json is damaged" in capsys.readouterr().err
    execute._remember(what, "smoke", {"02_two": 1.5})
    execute._remember(what, "book", {"02_two": 2.5})
    capsys.readouterr()
    assert execute._known(what, "smoke") == {"02_two": 1.5} and execute._known(what, "book") == {"02_two": 2.5}
    assert capsys.readouterr().err == ""
    assert sorted(file.name for file in (tmp_path / "_build").iterdir()) == ["lock", f"{what}.json"]


def test_sound_notes_beside_a_broken_one_are_kept(tmp_path, capsys):
    import notes

    path = tmp_path / "seconds.json"
    path.write_text('{"smoke": {"01_one": 2.5, "02_two": []}, "book": 3}')
    assert notes.known(path, "smoke") == {"01_one": 2.5} and "is damaged" in capsys.readouterr().err


def test_notes_that_cannot_be_written_end_nothing(tmp_path, capsys):
    import notes

    (tmp_path / "_build").write_text("a file where the folder should be")
    notes.remember(tmp_path / "_build" / "stamps.json", "smoke", {"01_one": "x"})
    assert "nothing is remembered" in capsys.readouterr().err
    assert notes.known(tmp_path / "_build" / "stamps.json", "smoke") == {}


def test_two_writers_lose_nothing(tmp_path):
    program = (
        "import sys; from pathlib import Path; import notes\n"
        "for i in range(100): notes.remember(Path(sys.argv[1]), 'smoke', {sys.argv[2] + str(i): i})"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "stamps.json")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tools")}
    writers = [subprocess.Popen([*command, name], env=environment) for name in "abc"]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    found = json.loads((tmp_path / "stamps.json").read_text())["smoke"]
    assert found == {f"{name}{i}": i for name in "abc" for i in range(100)}


def test_stopping_a_chapter_leaves_nothing_half_written(mini):
    """Ctrl-C once a run is kept and while the chapter is still at work, however long either takes."""
    reached = mini.root / "reached"
    wait = f"import pathlib, time\n\npathlib.Path({str(reached)!r}).touch()\nwhile True:\n    time.sleep(0.1)"
    wait = f"```{{code-cell}} ipython3\n{wait}\n```\n\n"
    text = mini.text.read_text(encoding="utf-8")
    mini.text.write_text(text.replace("## Exercises", f"{wait}## Exercises"), encoding="utf-8")
    with mini.start(mini.root / "tools" / "execute.py", "--profile", "smoke", "01_mini") as work:
        while not reached.exists() and work.poll() is None:
            time.sleep(0.05)
        work.send_signal(signal.SIGINT)
        said = work.communicate()[1]
    assert reached.exists() and work.returncode == 1, said
    assert said.strip().endswith("the same command goes on from there")
    assert list(mini.runs.glob("*.safetensors")) and not list(mini.root.rglob("*.partial"))
    assert not list((mini.root / "_build").rglob("*.ipynb"))


def test_every_form_of_a_stop_says_how_to_go_on():
    import execute
    from nbclient.exceptions import CellExecutionError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    cell = nbformat.v4.new_code_cell("1 / 0")
    answers = {"KeyboardInterrupt": {"ename": "KeyboardInterrupt", "evalue": ""}, "aborted": {"status": "aborted"}}
    stops = [KeyboardInterrupt(), DeadKernelError("Kernel died")]
    stops += [CellExecutionError.from_cell_and_msg(cell, answer) for answer in answers.values()]
    stops += [PapermillExecutionError(0, 1, "1 / 0", "KeyboardInterrupt", "", [])]
    assert all(execute.stopped(stop).endswith("goes on from there") for stop in stops)
    own = {"ename": "ZeroDivisionError", "evalue": "division by zero", "traceback": ["line 1"]}
    others = [
        CellExecutionError.from_cell_and_msg(cell, own),
        ValueError("a"),
        PapermillExecutionError(0, 1, "", "E", "", []),
    ]
    assert [execute.stopped(other) for other in others] == ["", "", ""]


def test_what_to_do_is_the_last_that_is_said():
    """nbclient may leave a task behind, of whose error asyncio tells when the interpreter ends."""
    stop = (
        "import asyncio, execute\n"
        "async def cell(): raise RuntimeError('Kernel died')\n"
        "def main():\n"
        "    global task\n"
        "    loop = asyncio.new_event_loop()\n"
        "    task = loop.create_task(cell())\n"
        "    loop.run_until_complete(asyncio.sleep(0.01))\n"
        "    raise KeyboardInterrupt\n"
        "execute.main = main\n"
        "execute.program()"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tools")}
    done = subprocess.run([sys.executable, "-c", stop], env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.strip().endswith("the same command goes on from there"), done.stderr


def test_what_a_gpu_would_make_leaves_the_book_alone(mini):
    status, said = mini.execute("--gpu", "01_mini")
    assert status == 0, said
    assert (mini.root / "_build" / "gpu" / "book" / "01_mini.ipynb").exists()
    assert (mini.root / "_build" / "gpu" / "results" / "smoke" / "01_mini.json").exists()
    assert not mini.notebook.exists() and not list((mini.root / "book").rglob("*.json"))
