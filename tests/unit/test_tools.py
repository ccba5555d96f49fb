"""What the site is made with: examples of the tools and the extensions, plain copies, the weight of a page."""

import doctest
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
for folder in ("tools", "_ext"):
    sys.path.insert(0, str(ROOT / folder))


@pytest.mark.parametrize("name", ["plain", "reference", "docstrings", "offline_site"])
def test_examples(name):
    outcome = doctest.testmod(importlib.import_module(name))
    assert outcome.failed == 0 < outcome.attempted


def test_a_plain_copy_holds_all_but_pictures():
    import plain

    outputs = [
        {"output_type": "stream", "text": ["a\n", "b\n"]},
        {"output_type": "display_data", "data": {"image/svg+xml": "<svg/>", "text/plain": "<Figure>"}},
        {"output_type": "display_data", "data": {plain.WIDGET: {}, "text/plain": "Explorer: x"}},
        {"output_type": "display_data", "data": {"text/html": "<table>", "text/plain": "holds: y"}},
    ]
    alt = {"mystnb": {"image": {"alt": "two curves"}}}
    cell = {"cell_type": "code", "source": ["x = 1\n", "x"], "metadata": alt, "outputs": outputs}
    text = plain.chapter({"cells": [cell]})
    assert text == (
        "```python\nx = 1\nx\n```\n\n```text\na\nb\n```\n\n"
        "[Figure: two curves]\n\nExplorer: x\n\n```text\nholds: y\n```\n"
    )


def test_llms_txt_lists_all_pages_by_part(tmp_path):
    import plain

    source, html = tmp_path / "source", tmp_path / "html"
    for folder in (source, html):
        (folder / "book").mkdir(parents=True)
    (source / "_toc.yml").write_text(
        "root: book/index\nparts:\n- caption: One\n  chapters:\n  - file: book/01_a\n  - file: book/b\n"
        "    sections:\n    - file: book/c\n"
    )
    (source / "book" / "index.md").write_text("# A book\n\nWhat it says.\n\nMore.\n")
    cells = [{"cell_type": "markdown", "source": "# First\n\n**A claim.**\n\nText.", "metadata": {}}]
    (source / "book" / "01_a.ipynb").write_text(json.dumps({"cells": cells}))
    (source / "book" / "b.md").write_text("# Second\n\nText.\n")
    (source / "book" / "c.md").write_text("# Third\n\n```{eval-rst}\n```\n")
    (source / "book" / "c.txt").write_text("# Third\n\nPlain.\n")
    plain.write(source, html)
    assert (html / "llms.txt").read_text() == (
        "# A book\n\n> What it says.\n\n## One\n\n- [First](book/01_a.md): A claim.\n- [Second](book/b.md)\n"
        "- [Third](book/c.md)\n"
    )
    assert (html / "book" / "c.md").read_text() == "# Third\n\nPlain.\n"


def test_the_reference_names_every_module():
    import reference

    listed = {name for room in reference.ROOMS for name in reference.modules(room)}
    there = {".".join(p.relative_to(ROOT).with_suffix("").parts) for p in (ROOT / "kdutils").rglob("*.py")}
    packages = {name for name in there if name.endswith(".__init__")}
    assert there - packages <= listed, f"add the room of {there - packages - listed} to tools/reference.py"
    assert "0x" not in "".join(map(reference.text, reference.ROOMS)), "an address changes from run to run"


@pytest.mark.parametrize(
    ("tool", "words", "message"),
    [
        ("study", "parity --budgets abc", "argument --budgets: invalid budgets value: 'abc'"),
        ("study", "parity --smoke --arms labels;one_shot", "parity has no arm 'one_shot'; it has 'labels', 'extrac"),
        ("study", "parity --smoke --budgets 600,700", "parity has no budget 700; it has 600"),
        ("study", "parity --sizes wide", "parity has no size 'wide'; it has ''"),
        ("study", "parity --main --arms labels;no", "parity has no arm 'no'"),
        ("study", "parity --smoke --workers -1", "-1 workers with 1 threads each make no sense"),
        ("audit", "parity --cells 0", "--cells is how many to train anew, 1 or more, not 0"),
        ("audit", "parity --cells -1", "--cells is how many to train anew, 1 or more, not -1"),
        ("audit", "parity", "parity.json is damaged or missing (JSONDecodeError"),
        ("dry", "--profile nope", "unknown profile 'nope': choose one of smoke, book, paper"),
        ("dry", "--profile smoke --device quantum", "device 'quantum' was asked for, but torch cannot"),
    ],
)
def test_a_wrong_argument_is_one_line(tool, words, message, tmp_path):
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "parity.json").write_text("{")
    command = [sys.executable, ROOT / "tools" / f"{tool}.py", *words.split()]
    env = {**os.environ, "KDUTILS_RESULTS": str(tmp_path) if tool == "audit" else "", "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)
    assert ran.returncode and not ran.stdout and message in ran.stderr.splitlines()[-1]


def test_a_variable_that_is_empty_counts_as_not_set(monkeypatch):
    import study

    monkeypatch.setenv("KDUTILS_RESULTS", "")
    small = study.find("parity", True)
    assert study.records_of(small, True).path == ROOT / "book" / "results" / "studies" / "smoke" / "parity.json"
