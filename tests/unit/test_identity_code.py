"""What is told apart by its code: each edit alone gives another description, wherever the code was typed."""

import json
import os
import subprocess
import sys
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kdutils.identity import describe

ROOT = Path(__file__).resolve().parents[2]

TEXT = '''
import enum
import functools
import math
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F

import kd_helpers
from kd_helpers import imported

SCALE, SIZES, OPTIONS = 2.0, [1, 2], {"rate": 0.5}
TABLE = torch.ones(2)


def deepest(x):
    return x + 1


def helper(x, offset=0, *, factor=1):
    """Helps."""
    return deepest(x) * SCALE + offset  # scaled


def twice(function):
    @functools.wraps(function)
    def wrapped(*args):
        return 2 * function(*args)
    return wrapped


@twice
def decorated(x):
    return x


@functools.singledispatch
def dispatched(x):
    return x


@dispatched.register
def _(x: int):
    return x + 11


def unrelated(x):
    return x - 12345


class Kind(enum.Enum):
    SMALL = 1
    LARGE = 2


class Callable:
    def __init__(self, size):
        self.size = size

    def __call__(self, x):
        return x * self.size


call = Callable(3)
picked = functools.partial(helper, offset=4)


class Meta(type):
    def __call__(cls, *args):
        return super().__call__(*args)


class Tool(metaclass=Meta):
    @functools.cached_property
    def length(self):
        return 12


class Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Base(nn.Module):
    """The base."""

    depth = 1

    def before(self, x):
        return x


class Inner(nn.Module):
    def forward(self, x):
        return F.relu(x)


class Net(Base):
    width: int = 3

    def __init__(self):
        super().__init__()
        self.inner = Inner()

    @staticmethod
    def fixed(x):
        return x * 1.5

    @classmethod
    def made(cls):
        return cls()

    @property
    def size(self):
        return 7

    @torch.no_grad()
    def quiet(self, x):
        return x + 13

    def forward(self, x):
        """Forward."""
        import kd_helpers as late
        from kd_helpers import lately

        def nested(y):
            """Nested."""
            return [z * 3 for z in y if z not in {1, 2, "three"}]

        class Local:
            """Local."""

            constant = 8

        try:
            x = self.before(helper(x, factor=2)) + TABLE
        except ValueError:
            x = x + SIZES[0] + OPTIONS["rate"]
        return self.fixed(self.inner(x)) * (lambda v: v + 9)(x), nested, Local, late.late(x), lately(x), Tool, Round


@dataclass(frozen=True)
class Task:
    n: int = 10
    names: list = field(default_factory=lambda: ["a"], metadata={"unit": "m"})

    def sample(self, n, generator):
        x = torch.randn(n, self.n, generator=generator)
        return decorated(x), call(x), picked(x), kd_helpers.used(x), imported(x), Kind.SMALL, math.pi, dispatched(x)


def make():
    return Net(), Task(), helper, lambda x: x + SIZES[1]
'''
HELPERS = """
STEP = 0.25


def used(x):
    return deeper(x)


def deeper(x):
    return x + STEP


def imported(x):
    return x + 21


def late(x):
    return x + 22


def lately(x):
    return x + 23
"""
EDITS = [
    ("x + 1\n", "x + 1.0\n"),
    ("offset=0", "offset=1"),
    ("factor=1", "factor=3"),
    ("SCALE +", "SCALE -"),
    ("OPTIONS = 2.0", "OPTIONS = 2.5"),
    ("[1, 2], {", "[1, 3], {"),
    ('"rate": 0.5', '"rate": 0.6'),
    ("torch.ones(2)", "torch.zeros(2)"),
    ("2 * function", "3 * function"),
    ("@twice\n", "@twice\n@twice\n"),
    ("@twice\n", ""),
    ("SMALL = 1", "SMALL = 3"),
    ("x * self.size", "x + self.size"),
    ("Callable(3)", "Callable(4)"),
    ("offset=4", "offset=5"),
    ("depth = 1", "depth = 2"),
    ("F.relu(x)", "F.gelu(x)"),
    ("width: int = 3", "width: int = 4"),
    ("        return x\n\n\nclass Inner", "        return -x\n\n\nclass Inner"),
    ("x * 1.5", "x * 1.6"),
    ("return cls()", "return cls"),
    ("return 7", "return 8"),
    ("z * 3", "z * 4"),
    ('"three"', '"four"'),
    ("in {1, 2", "in {1, 5"),
    ("constant = 8", "constant = 9"),
    ("except ValueError", "except TypeError"),
    ("v + 9", "v + 10"),
    ("n: int = 10", "n: int = 11"),
    ('["a"]', '["b"]'),
    ('"unit": "m"', '"unit": "km"'),
    ("frozen=True", "frozen=True, order=True"),
    ("Kind.SMALL,", "Kind.LARGE,"),
    ("math.pi", "math.e"),
    ("SIZES[1]", "SIZES[-1]"),
    ("class Net(Base)", "class Net(nn.Module)"),
    ("factor=2", "factor=3"),
    ("@staticmethod\n    def fixed(x)", "def fixed(self, x)"),
    ("late.late(x)", "late.used(x)"),
    ("def sample", "def draw"),
    ("x + 11", "x + 12"),
    ("return 12", "return 14"),
    ("super().__call__(*args)", "super().__call__()"),
    ("x + 13", "x - 13"),
    ("@torch.no_grad()\n    def", "def"),
    ("x.round()", "x.floor()"),
    ("return gradient", "return -gradient"),
    ("x: int)", "x: str)"),
    ("_(x: int):\n    return x", "_(x: int):\n    return -x"),
    ("(metaclass=Meta)", ""),
    ("self.inner = Inner()", "self.inner, self.more = Inner(), 1"),
    ("Inner()", "nn.Sequential(Inner())"),
]
HELPER_EDITS = [
    ("deeper(x)\n\n", "deeper(-x)\n\n"),
    ("x + STEP", "x - STEP"),
    ("0.25", "0.5"),
    ("x + 21", "x - 21"),
    ("x + 22", "x - 22"),
    ("x + 23", "x - 23"),
]
SAME = [
    ("# scaled", "# by SCALE"),
    ("  # scaled", ""),
    ('"""Helps."""', '"""Helps more."""'),
    ('    """Helps."""\n', ""),
    ('"""The base."""', '"""Another base."""'),
    ('    """The base."""\n', ""),
    ('"""Forward."""', '"""Back."""'),
    ('        """Forward."""\n', ""),
    ('            """Nested."""\n', ""),
    ('            """Local."""\n', ""),
    ("x - 12345", "x - 54321"),
    ("def deepest", "# moved\n\n\n\ndef deepest"),
    ("import math", "import math\nimport json"),
    ("    return x + 1\n", '    """New."""\n    return x + 1\n'),
    ("return x + 1\n", "return (\n        x\n        + 1\n    )\n"),
    ("def helper(x, offset", "def helper(x: 'a number', offset"),
    ("width: int", "width: float"),
    ("n: int", "n: float"),
    ("class Inner(nn.Module):\n", 'class Inner(nn.Module):\n    """New."""\n\n'),
    ("def make", "MORE = 1\n\n\ndef make"),
    ("def unrelated(x):", "def unrelated(x, y=1):"),
    ('"""Helps."""', '"""Helps.\n\n    A lot."""'),
]


@pytest.fixture
def loaded() -> Iterator[Any]:
    """Executes both texts anew and describes what `make` makes."""

    def load(text: str = TEXT, helpers: str = HELPERS) -> Any:
        for name, code in (("kd_helpers", helpers), ("kd_cell", text)):
            sys.modules[name] = types.ModuleType(name)
            exec(compile(code, f"<{name}>", "exec"), vars(sys.modules[name]))
        return describe(sys.modules["kd_cell"].make())

    yield load
    for name in ("kd_helpers", "kd_cell"):
        sys.modules.pop(name, None)


def edited(text: str, old: str, new: str) -> str:
    assert old in text, f"{old!r} is not in the text: the test would change nothing"
    return text.replace(old, new, 1)


def test_everything_is_seen(loaded: Any) -> None:
    assert loaded() == loaded() and not loaded()["unseen"]


@pytest.mark.parametrize(("old", "new"), EDITS)
def test_an_edit_counts(loaded: Any, old: str, new: str) -> None:
    assert loaded(edited(TEXT, old, new)) != loaded()


@pytest.mark.parametrize(("old", "new"), HELPER_EDITS)
def test_an_edit_of_a_module_of_ones_own_counts(loaded: Any, old: str, new: str) -> None:
    assert loaded(helpers=edited(HELPERS, old, new)) != loaded()


@pytest.mark.parametrize(("old", "new"), SAME)
def test_comments_docstrings_and_what_is_not_used_do_not_count(loaded: Any, old: str, new: str) -> None:
    assert loaded(edited(TEXT, old, new)) == loaded()


def test_edits_are_all_different(loaded: Any) -> None:
    texts = [json.dumps(loaded(edited(TEXT, *edit))) for edit in EDITS]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize(
    "change",
    [
        "SCALE = 3.0",
        "SIZES.append(1)",
        "OPTIONS['more'] = 1",
        "TABLE[0] = 5",
        "call.size = 9",
        "Net.depth = 4",
        "Net.before = lambda self, x: 2 * x",
        "deepest = lambda x: x",
        "helper.__defaults__ = (7,)",
        "kd_helpers.STEP = 1",
        "kd_helpers.deeper = deepest",
        "Kind.SMALL.colour = 'red'",
        "del SCALE",
        "F = kd_helpers",
        "math = 3",
        "dispatched.register(str, deepest)",
        "Base.more = 1",
        "helper.note = 1",
    ],
)
def test_what_changes_later_counts(loaded: Any, change: str) -> None:
    """A global that is bound anew or changed in place, a class or a module that is patched."""
    before = loaded()
    space = vars(sys.modules["kd_cell"])
    exec(change, space)
    assert describe(space["make"]()) != before


def test_calling_things_changes_nothing(loaded: Any) -> None:
    before = loaded()
    cell = sys.modules["kd_cell"]
    assert (cell.dispatched(1), cell.dispatched("a"), cell.Tool().length) == (12, "a", 12)
    assert cell.helper(1) == 4 and cell.Kind(1) is cell.Kind.SMALL
    assert describe(cell.make()) == before


# ---- other processes, notebooks ----

SHOW = """
import json
from kdutils.identity import describe
print("SHOWN", json.dumps(describe(make())))
"""


def ran(code: str, folder: Path, *, hash_seed: int = 0, name: str = "script.py") -> Any:
    """Runs a program in a process of its own; what it shows."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(code, encoding="utf-8")
    (folder / "kd_helpers.py").write_text(HELPERS, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": str(hash_seed), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, name], cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line.split(" ", 1)[1]) for line in done.stdout.splitlines() if line.startswith("SHOWN ")]


def test_another_process_gives_the_same(loaded: Any, tmp_path: Path) -> None:
    here = loaded()
    (tmp_path / "läufe 1").mkdir()
    (tmp_path / "läufe 1" / "kd_cell.py").write_text(TEXT, encoding="utf-8")
    assert ran(TEXT + SHOW, tmp_path / "a", hash_seed=1) == [here]
    assert ran("from kd_cell import make\n" + SHOW, tmp_path / "läufe 1", hash_seed=2) == [here]


def test_values_are_the_same_in_another_process(tmp_path: Path) -> None:
    code = f"""
        import json, sys, warnings
        warnings.simplefilter("ignore")
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import test_identity as values
        made = [describe(make()) for kind in values.VALUES.values() for make in kind]
        made += [describe(values.with_(change)()) for change in values.CHANGES.values()]
        print("SHOWN", json.dumps(made))
    """
    code = "from kdutils.identity import describe\n" + textwrap.dedent(code)
    assert ran(code, tmp_path, hash_seed=1) == ran(code, tmp_path, hash_seed=2)


CELLS = [TEXT, SHOW, TEXT, SHOW, "\n\n" + TEXT, SHOW, TEXT.replace("F.relu(x)", "F.gelu(x)"), SHOW, TEXT, SHOW]


def check_cells(shown: list[Any], here: Any) -> None:
    """Redefining a cell gives the same, an edited one another, and going back the first one."""
    assert shown[0] == shown[1] == shown[2] == shown[4] == here
    assert shown[3] != here


def test_cells_of_a_notebook(loaded: Any, tmp_path: Path) -> None:
    """IPython keeps no file: `inspect.getsource` finds nothing there, or what a cell was before."""
    shell = f"""
        from IPython.core.interactiveshell import InteractiveShell
        shell = InteractiveShell.instance()
        for cell in {CELLS!r}:
            shell.run_cell(cell, store_history=True).raise_error()
    """
    check_cells(ran(textwrap.dedent(shell), tmp_path), loaded())


def test_cells_of_a_kernel(loaded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "kd_helpers.py").write_text(HELPERS, encoding="utf-8")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    nbclient.NotebookClient(
        notebook, kernel_name="python3", timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    printed = "".join(out.get("text", "") for cell in notebook.cells for out in cell.outputs)
    check_cells([json.loads(line[6:]) for line in printed.splitlines() if line.startswith("SHOWN ")], loaded())
