"""`make new-chapter` writes what the plan of a chapter asks for."""

import shutil
from pathlib import Path

import jupytext
import pytest
import test_chapters
import yaml

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tree(tmp_path):
    for kind in ("text", "exercises"):
        shutil.copytree(ROOT / "book" / kind, tmp_path / "book" / kind)
    shutil.copy(ROOT / "_toc.yml", tmp_path)
    return tmp_path


def test_template_follows_the_plan(tree, monkeypatch):
    import exercises
    import new_chapter

    new_chapter.write(tree, "88_vision")
    monkeypatch.setattr(exercises, "BOOK", tree / "book")
    exercises.write()
    chapter = jupytext.read(tree / "book" / "text" / "88_vision.md", fmt="md:myst")
    monkeypatch.setattr(test_chapters, "notebook", lambda name: chapter)
    test_chapters.test_chapter_follows_the_plan("88_vision")
    test_chapters.test_exercises_are_graded_checked_and_solved("88_vision")
    test_chapters.test_prose_reads_well_in_jupyter_and_colab("88_vision")
    with pytest.raises(AssertionError, match="fill in what the template left open"):
        test_chapters.test_nothing_is_left_to_fill_in("88_vision")
    for cell in chapter.cells:
        if cell.cell_type == "code":
            assert all(len(line) <= test_chapters.WIDTH for line in cell.source.splitlines())
            compile(cell.source.replace("%pip", "pass  #"), "template", "exec")
    parts = yaml.safe_load((tree / "_toc.yml").read_text(encoding="utf-8"))["parts"]
    contents = [c["file"] for part in parts for c in part["chapters"]]
    numbered = [name for name in contents if name[5:7].isdigit()]
    assert "book/88_vision" in numbered and numbered == sorted(numbered)


@pytest.mark.parametrize("name", ["vision", "4_x", "04_vision", "88_Vision", ""])
def test_other_names_are_refused(tree, name):
    import new_chapter

    with pytest.raises(ValueError, match=r"is called NN_name|is taken by"):
        new_chapter.write(tree, name)
