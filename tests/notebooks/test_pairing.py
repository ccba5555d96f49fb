"""Text and notebook: edited in either place, nothing else changes, and nothing is lost without a word."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from IPython.core.interactiveshell import InteractiveShell
from jupytext.cli import jupytext

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "book"
NAMES = sorted(path.stem for path in (BOOK / "text").glob("*.md"))
JUPYTERLAB = {"file_extension": ".py", "name": "python", "pygments_lexer": "ipython3", "version": "3.13.0"}


@pytest.fixture
def pair(tmp_path, later):
    """Copies of a chapter's two files, to be edited: (notebook, text, sync)."""

    def copy(name):
        for part in ("", "text", "exercises"):
            (tmp_path / "book" / part).mkdir(exist_ok=True, parents=True)
        shutil.copy(ROOT / "jupytext.toml", tmp_path)
        notebook = Path(shutil.copy(BOOK / f"{name}.ipynb", tmp_path / "book"))
        text = Path(shutil.copy(BOOK / "text" / f"{name}.md", tmp_path / "book" / "text"))
        shutil.copy(BOOK / "exercises" / f"{name}.md", tmp_path / "book" / "exercises")

        def sync(edited):
            later(edited)
            jupytext(["--quiet", "--sync", str(notebook)])

        return notebook, text, sync

    return copy


def save_as_jupyter_does(notebook, path):
    """With the kernel of this reader, and what JupyterLab, VS Code and Colab note of a cell."""
    notebook.metadata.kernelspec.update(name="mine", display_name="Python 3.13 (mine)")
    notebook.metadata.update(language_info=JUPYTERLAB, colab={"provenance": []})
    for cell in notebook.cells:
        cell.metadata.update(editable=True, slideshow={"slide_type": ""}, tags=cell.metadata.get("tags", []))
        cell.metadata.update(vscode={"languageId": "python"}, id="x")
        if cell.cell_type == "code":
            cell.metadata.update(collapsed=False, scrolled=True, jupyter={"outputs_hidden": False})
            cell.metadata.update(execution={"iopub.execute_input": "2026-01-01T00:00:00Z"})
    nbformat.write(notebook, path)


@pytest.mark.parametrize("name", NAMES)
def test_text_is_in_the_form_that_jupytext_writes(name):
    import pairing

    text = BOOK / "text" / f"{name}.md"
    assert text.read_text(encoding="utf-8") == pairing.written(pairing.read(text)), f"run `make execute CHAPTER={name}`"


@pytest.mark.parametrize("name", NAMES)
def test_a_sentence_edited_in_jupyter_changes_that_sentence(pair, name):
    notebook, text, sync = pair(name)
    before = text.read_text(encoding="utf-8")
    sync(notebook)
    assert text.read_text(encoding="utf-8") == before, "syncing what nobody has edited must change nothing"
    edited = nbformat.read(notebook, 4)
    assert edited.cells[0].source.count("**You need**") == 1
    edited.cells[0].source = edited.cells[0].source.replace("**You need**", "**You also need**")
    save_as_jupyter_does(edited, notebook)
    sync(notebook)
    assert text.read_text(encoding="utf-8") == before.replace("**You need**", "**You also need**")


def test_a_sentence_edited_in_the_text_changes_that_sentence(pair):
    notebook, text, sync = pair("02_one_shot")
    before = notebook.read_text(encoding="utf-8")
    sync(text)
    assert notebook.read_text(encoding="utf-8") == before
    text.write_text(text.read_text(encoding="utf-8").replace("**You need**", "**You also need**"), encoding="utf-8")
    sync(text)
    assert notebook.read_text(encoding="utf-8") == before.replace("**You need**", "**You also need**")


def test_an_exercise_edited_in_jupyter_is_refused_and_kept(executed, later):
    mini = executed
    shutil.copy(mini.executed, mini.notebook)
    edited = nbformat.read(mini.notebook, 4)
    edited.cells[-1].source = edited.cells[-1].source.replace("Double it.", "Treble it.")
    save_as_jupyter_does(edited, mini.notebook)
    later(mini.notebook)

    def refused(*needles):
        for command in (["../tools/exercises.py"], ["../tools/execute.py", "--profile", "smoke", "01_mini"]):
            status, said = mini.run(*command)
            assert status == 1 and "Traceback" not in said and len(said.splitlines()) == 1
            assert all(needle in said for needle in needles), said

    source = mini.root / "book" / "exercises" / "01_mini.md"
    refused("book/01_mini.ipynb: its exercises were edited", "Edit book/exercises/01_mini.md", "Treble it.")
    jupytext(["--quiet", "--sync", str(mini.notebook)])
    assert "Treble it." in mini.text.read_text(encoding="utf-8")
    refused("book/text/01_mini.md: its exercises were edited", "Edit book/exercises/01_mini.md", "Treble it.")
    assert "Treble it." in mini.text.read_text(encoding="utf-8") + nbformat.read(mini.notebook, 4).cells[-1].source
    # the same words in the right place end it
    source.write_text(source.read_text(encoding="utf-8").replace("Double it.", "Treble it."), encoding="utf-8")
    assert mini.run("../tools/exercises.py") == (0, "")


def test_what_was_edited_in_jupyter_and_not_synced_is_refused_and_kept(executed, later):
    shutil.copy(executed.executed, executed.notebook)
    edited = nbformat.read(executed.notebook, 4)
    edited.cells[0].source += "\n\nOne more sentence."
    save_as_jupyter_does(edited, executed.notebook)
    later(executed.notebook)
    status, said = executed.execute("01_mini")
    assert status == 1 and "run `jupytext --sync book/01_mini.ipynb` to keep it" in said and len(said.splitlines()) == 1
    # the exercises have changed too: writing them would make the text the newer of the two
    source = executed.root / "book" / "exercises" / "01_mini.md"
    source.write_text(source.read_text(encoding="utf-8").replace("easy", "medium"), encoding="utf-8")
    status, said = executed.run("../tools/exercises.py")
    assert status == 1 and "run `jupytext --sync book/01_mini.ipynb` to keep it" in said
    jupytext(["--quiet", "--sync", str(executed.notebook)])
    assert executed.run("../tools/exercises.py") == (0, "")
    text = executed.text.read_text(encoding="utf-8")
    assert "One more sentence." in text and "**1 (medium).**" in text


def test_exercises_changed_at_their_source_are_written_anew(mini):
    source = mini.root / "book" / "exercises" / "01_mini.md"
    for words in ("Double it.", "Treble it.", "Halve it."):
        source.write_text(re.sub(r"\w+ it\.", words, source.read_text(encoding="utf-8")), encoding="utf-8")
        assert mini.run("../tools/exercises.py") == (0, "")
        mini.text.write_text("Prose.\n\n" + mini.text.read_text(encoding="utf-8"), encoding="utf-8")
        assert words in mini.text.read_text(encoding="utf-8")
    source.write_text("\ufeff" + source.read_text(encoding="utf-8"), encoding="utf-8")
    assert mini.run("../tools/exercises.py") == (0, "") and "Halve it." in mini.text.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("kind", "change", "says"),
    [
        ("exercises", lambda s: "Some words.\n\n" + s, "begin with `**1 (easy).**`, not with 'Some words.'"),
        ("exercises", lambda s: s.replace("```python", "```"), "a python block and a remark"),
        ("exercises", lambda s: "", "begin with `**1 (easy).**`"),
        ("exercises", lambda s: s.replace("return", "return ("), "the code of a solution is no Python"),
        ("text", lambda s: s.replace("<!-- /exercises -->", ""), "has lost the comments around its exercises"),
    ],
)
def test_exercises_that_cannot_be_written_say_so(mini, kind, change, says):
    path = mini.root / "book" / kind / "01_mini.md"
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    status, said = mini.run("../tools/exercises.py")
    assert status == 1 and "01_mini" in said and says in said and len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("# Mini", "\ufeff# Mini"),
        ("# Mini", "---\njupytext:\n  text_representation: {format_name: myst}\n---\n\n# Mini"),
        ("{code-cell} ipython3\n:tags: [parameters]\n", "{code-cell}\n:tags: [parameters]"),
        ("## Exercises", "```python\n# a block\n```\n\n~~~~\n```{note}\n~~~~\n\n## Exercises"),
        ("## Exercises", "+++\n\n## Exercises"),
        ("## Exercises", '+++ {"tags": ["x"]}\n\n## Exercises'),
        ("## Exercises", "```text\n+++ b/file\n```\n\n## Exercises"),
        ("## Exercises", "<!-- a remark -->\n\n:::{note}\nHere.\n:::\n\n## Exercises"),
    ],
)
def test_a_text_that_can_be_read_pairs(mini, monkeypatch, before, after):
    import execute
    import pairing

    mini.text.write_text(mini.text.read_text(encoding="utf-8").replace(before, after, 1), encoding="utf-8", newline="")
    for name in ("ROOT", "BOOK", "TEXT"):
        monkeypatch.setattr(execute, name, mini.root / getattr(execute, name).relative_to(ROOT))
    notebook = execute.from_text("01_mini")
    assert len([cell for cell in notebook.cells if cell.cell_type == "code"]) == 5
    assert notebook.cells[0].source.startswith("# Mini") and notebook.metadata.kernelspec.name == "python3"
    assert pairing.cells(notebook) == pairing.cells(pairing.read(mini.text))
    assert mini.text.read_text(encoding="utf-8") == pairing.written(notebook), "the text is set in the one form"


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("**A small", "```python\nx = 1\n\n**A small", "'```{code-cell}' stands inside"),
        ("**A small", "~~~\n```\n\n**A small", "the block that begins with '~~~' is not closed"),
        ("**A small", "<!-- left open\n\n**A small", "'```{code-cell}' stands inside"),
        ("<!-- /ex", "```\n\n<!-- /ex", "the block that begins with '```' is not closed"),
        ("**A small", "<!-- a --> <!-- left open\n\n**A small", "left open' is not closed"),
        ("**A small", "- ```{code-cell}\n  x\n  ```\n\n**A small", "where it begins no cell"),
        ("**A small", "> ```{code-cell}\n> x\n> ```\n\n**A small", "where it begins no cell"),
        ("## Exercises", "+++ some words\n\n## Exercises", "write \\+++"),
        (":tags: [parameters]", ":tags: [parameters", "Code cell 1"),
        (":tags: [parameters]", ":tags [parameters]", "the options of a cell are not `name: value`"),
    ],
)
def test_a_text_that_cannot_be_read_says_where(mini, before, after, says):
    import pairing

    mini.text.write_text(mini.text.read_text(encoding="utf-8").replace(before, after, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        pairing.read(mini.text)
    assert "book/text/01_mini.md: " in str(error.value) and len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("kind", ["text", "exercises"])
def test_a_text_of_another_encoding_says_so(mini, kind):
    (mini.root / "book" / kind / "01_mini.md").write_bytes("# Größe".encode("latin-1"))
    status, said = mini.execute()
    assert status == 1 and f"book/{kind}/01_mini.md is not UTF-8 text" in said and len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("source", "survives"),
    [
        ("A sentence.", True),
        ("", True),
        ("```python\nx = 1\n```", True),
        ("```{note}\nLooks like a directive.\n```", True),
        (":tags: [x]\n\nLooks like an option.", True),
        ("Above\n\n+++\n\nbelow", False),
        ("```{code-cell}\nx = 1\n```", False),
        ("```python\nleft open", False),
        ("<!-- left open", False),
        ("a\u2028b", False),
    ],
)
def test_a_cell_that_no_text_can_hold_is_refused(source, survives):
    import pairing

    words = nbformat.v4.new_markdown_cell("Next.")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(source), words])
    if survives:
        return pairing.refuse_what_text_cannot_hold(notebook, "01_mini")
    with pytest.raises(ValueError, match=r"01_mini.ipynb: the cell .+ cannot stand in the text"):
        pairing.refuse_what_text_cannot_hold(notebook, "01_mini")


def test_a_line_of_plus_signs_in_a_cell_says_how_to_write_it():
    import pairing

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("+++ words")])
    with pytest.raises(ValueError, match=r"01_mini.ipynb cannot be written as text: .+ \(write \\\+\+\+"):
        pairing.refuse_what_text_cannot_hold(notebook, "01_mini")


def test_a_pasted_image_is_refused():
    import pairing

    image = nbformat.v4.new_markdown_cell("![](attachment:x.png)", attachments={"x.png": {"image/png": ""}})
    with pytest.raises(ValueError, match="holds a pasted image: save it as a file"):
        pairing.refuse_what_text_cannot_hold(nbformat.v4.new_notebook(cells=[image]), "01_mini")


def magics(source):
    """Names of the magics that a cell calls, wherever they stand in it."""
    python = TransformerManager().transform_cell(source)
    return re.findall(r"run_(line|cell)_magic\('(\w+)'", python)


def test_every_magic_exists():
    assert magics("%%x\ny") == [("cell", "x")] and magics("if 1:\n    %pip install") == [("line", "pip")]
    shell = InteractiveShell()
    for name in NAMES:
        for cell in nbformat.read(BOOK / f"{name}.ipynb", 4).cells:
            for kind, magic in magics(cell.source) if cell.cell_type == "code" else ():
                assert shell.find_magic(magic, kind), f"{name}: there is no {kind} magic {magic!r}"


@pytest.mark.parametrize(
    ("source", "passes"), [("%lsmagic", 1), ("%nothing", 0), ("%%nothing\nx", 0), ("%timeit -z", 0)]
)
def test_nbval_fails_on_a_bad_magic(tmp_path, source, passes):
    shutil.copy(ROOT / "conftest.py", tmp_path)
    cell = nbformat.v4.new_code_cell(source, execution_count=1)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "x.ipynb")
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-kernel-startup-timeout=600", "x.ipynb"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1 - passes, done.stdout
    assert ("UsageError" in done.stdout) != bool(passes)
