"""A book of one small chapter, which trains for less than a second, in a folder of its own."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

CHAPTER = """# Mini

**A small network learns a small parity.**

```{code-cell} ipython3
:tags: [parameters]

profile = None
device = None
seeds = None
overrides = {}
```

```{code-cell} ipython3
from functools import partial

from kdutils import curriculum
from kdutils.lab.ensemble import Ensemble
from kdutils.lab.store import Store
from kdutils.lab.training import train
from kdutils.pages import claims, plots, profiles
from kdutils.tasks.models import MLP
from kdutils.tasks.parity import SparseParity

cfg = profiles.start("parity", globals())
claims.CostBox("01_mini", cfg)
```

```{code-cell} ipython3
students = Ensemble(partial(MLP, 8, 16), cfg.seeds)
run = train(students, SparseParity(8, 2), curriculum.from_labels(), steps=20, batch=8, runs=Store())
```

```{code-cell} ipython3
plots.save(plots.plt.figure(), claims.results_path("01_mini", cfg).with_name("headline.png"))
found = [claims.Claim("mini", "There are steps, at least one.", 20, (20, 20), (1, float("inf")))]
box = claims.publish("01_mini", cfg, found, {"labels": run}, {})
print(box)
```

```{code-cell} ipython3
:tags: [nbval-check-output]

claims.verdicts(found)
```

## Exercises

<!-- exercises: edit book/exercises, then run `python tools/exercises.py` -->
<!-- /exercises -->
"""
EXERCISES = """**1 (easy).** Double it.

```python
def double(x):
    \"\"\"A number -> a number.\"\"\"
    return 2 * x


double(3)
```
"""


@dataclass
class Book:
    """A small book in `root`."""

    root: Path

    @property
    def text(self) -> Path:
        return self.root / "book" / "text" / "01_mini.md"

    @property
    def notebook(self) -> Path:
        return self.root / "book" / "01_mini.ipynb"

    @property
    def executed(self) -> Path:
        return self.root / "_build" / "smoke" / "book" / "01_mini.ipynb"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    def start(self, *command: object, **variables: str) -> subprocess.Popen:
        """A command of this Python in the folder `book`, in an environment without our own variables."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("KDUTILS_")}
        own = {"PYTHONPATH": str(ROOT), "KDUTILS_RUNS": str(self.runs), "KDUTILS_QUIET": "1", "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, *map(str, command)], cwd=self.root / "book", env={**inherited, **own, **variables},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", errors="replace",
            # What a shell starts in the background ignores Ctrl-C, and so do its children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip

    def run(self, *command: object, **variables: str) -> tuple[int, str]:
        """The exit status of a command, and all that it printed."""
        with self.start(*command, **variables) as work:
            out, err = work.communicate()
        return work.returncode, out + err

    def execute(self, *arguments: str, **variables: str) -> tuple[int, str]:
        """`tools/execute.py` at smoke."""
        return self.run(self.root / "tools" / "execute.py", "--profile", "smoke", *arguments, **variables)

    def papermill(self, *options: str, **variables: str) -> tuple[int, str]:
        """The executed chapter, run by a reader."""
        command = ("-m", "papermill", "--no-progress-bar", "--start-timeout=600", self.executed, "out.ipynb")
        return self.run(*command, "-p", "profile", "smoke", *options, **variables)


def _built(root: Path) -> Book:
    book = Book(root)
    shutil.copytree(ROOT / "tools", book.root / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("jupytext.toml", "requirements.lock"):
        shutil.copy(ROOT / part, book.root)
    for kind, text in (("text", CHAPTER), ("exercises", EXERCISES)):
        (book.root / "book" / kind).mkdir(parents=True)
        (book.root / "book" / kind / "01_mini.md").write_text(text, encoding="utf-8")
    return book


@pytest.fixture
def mini(tmp_path: Path) -> Book:
    return _built(tmp_path / "mini")


@pytest.fixture(scope="session")
def _once_executed(tmp_path_factory: pytest.TempPathFactory) -> Book:
    book = _built(tmp_path_factory.mktemp("executed") / "mini")
    status, said = book.execute()
    assert status == 0, said
    return book


@pytest.fixture
def executed(_once_executed: Book, tmp_path: Path) -> Book:
    """The small book after `make execute`."""
    return Book(Path(shutil.copytree(_once_executed.root, tmp_path / "mini")))


@pytest.fixture
def later() -> Callable[[Path], None]:
    """Make a file newer than all others that a test has written, whatever the disk's clock."""
    ahead = [0]

    def touch(path: Path) -> None:
        ahead[0] += 10
        newest = max(p.stat().st_mtime for p in path.parents[1].rglob("*.*")) + ahead[0]
        os.utime(path, (newest, newest))

    return touch
