"""Exercises: every solution passes its check, every stub and typical mistake fails with one clear line."""

import functools
import sys
from pathlib import Path

import jupytext
import pytest

from kdutils.exercises import Wrong

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import exercises  # noqa: E402

CHAPTERS = sorted(path.stem for path in (ROOT / "book" / "exercises").glob("*.md"))
EXERCISES = [(chapter, number) for chapter in CHAPTERS for number in range(len(exercises.read(chapter)))]

# What the solutions of a chapter find on their page: its settings in small, its cells with these words, and more.
TINY = {
    "02_one_shot": {"d": 12, "k": 4, "teacher_width": 256, "teacher_steps": 600, "keep_every": 20, "held_out": 512},
    "07_transformers": {"steps": 12, "hidden_steps": [4], "batch": 4, "held_out": 16, "evaluate_every": 6},
    "08_grammar": {"steps": 12, "hidden_steps": 3, "batch": 4, "held_out": 16, "evaluate_every": 6},
}
TINY["03_progressive"] = {**TINY["02_one_shot"], "steps": 40, "student_width": 8}
CELLS = {
    "02_one_shot": ("lab.teacher()",),
    "03_progressive": ("lab.teacher()", "def through"),
    "04_extraction": (),
}
MORE = {
    "02_one_shot": "x, _ = lab.task.sample(8000, seeding.generator(0, 'probe'))",
    "03_progressive": "best = 10",
    "07_transformers": "teacher = lab.make_teacher()",
    "08_grammar": "teacher, steps = lab.make_teacher(), cfg.hidden_steps\n"
    "layers = curriculum.paired_blocks(cfg.layers, cfg.layers)\n"
    "hidden = {'positions': 'tokens', 'normalise': 'position'}",
}


@functools.cache
def page(chapter):
    """What a reader's kernel holds at the end of a chapter, as far as its exercises need it."""
    text = jupytext.read(ROOT / "book" / "text" / f"{chapter}.md", fmt="md:myst")
    first, *cells = [cell.source for cell in text.cells if cell.cell_type == "code"]
    names = {"profile": "smoke", "device": "cpu", "seeds": None, "overrides": TINY.get(chapter, {})}
    exec(first.replace("%pip", "pass  #"), names)
    words = ("profiles.start", *CELLS.get(chapter, ())) if chapter in MORE else ()
    for source in cells:
        if any(word in source for word in words):
            exec(source, names)
    exec(MORE.get(chapter, ""), names)
    return names


@pytest.mark.parametrize(("chapter", "number"), EXERCISES)
def test_solution_passes_its_check(chapter, number, capsys):
    exec(exercises.read(chapter)[number].solution, dict(page(chapter)))
    assert capsys.readouterr().out.splitlines()[-1] == "correct"


@pytest.mark.parametrize(("chapter", "number"), EXERCISES)
def test_stub_fails_its_check_with_one_line(chapter, number):
    with pytest.raises(Wrong, match=r"^\w+ returns nothing yet: write its body$"):
        exec(exercises.read(chapter)[number].stub, dict(page(chapter)))


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_text_holds_the_exercises_of_their_source(chapter):
    text = (ROOT / "book" / "text" / f"{chapter}.md").read_text(encoding="utf-8")
    assert text == exercises.written(chapter), "run `python tools/exercises.py`"
