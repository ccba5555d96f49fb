"""A chapter as Colab meets it: torch is there, kdutils is not, and beside the notebook there is no other file.

The environment holds what Colab has of our requirements. `google.colab` is a stand-in, and git is told that the
book's address means this working tree. So the chapter's own first cell installs kdutils, as it does there.
Two chapters by default; `make test-colab` runs all.
"""

import json
import os
import shutil
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import nbformat
import papermill
import pytest
import yaml
from IPython.core.inputtransformer2 import TransformerManager
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
ADDRESS = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["repository"]["url"]
NAMES = sorted(path.stem for path in (ROOT / "book").glob("[0-9]*.ipynb"))
FASTEST = ["01_sparse_parities", "02_one_shot"]  # at smoke
COLAB_HAS = ("torch", "numpy", "matplotlib", "ipywidgets", "ipykernel", "transformers")  # papermill is for us


def setup_cell(name):
    return next(c.source for c in nbformat.read(ROOT / "book" / f"{name}.ipynb", 4).cells if c.cell_type == "code")


def with_requirements(names):
    """The installed distributions of these names and of all that they need."""
    found, todo = {}, list(names)
    while todo:
        name = canonicalize_name(todo.pop())
        if name not in found:
            found[name] = metadata.distribution(name)
            needed = map(Requirement, found[name].requires or [])
            todo += [r.name for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found.values()


def copy_installed(python, names):
    """Put distributions that are installed here into another environment: linked where that is possible."""
    command = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    library = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    for distribution in with_requirements(names):
        for file in distribution.files:
            source, target = Path(distribution.locate_file(file)), Path(os.path.normpath(library / file))
            if (
                target.is_relative_to(library.parents[2])
                and source.is_file()
                and target.parent != library.parents[2] / "bin"
            ):
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(source.resolve(), target)
                except OSError:
                    shutil.copy(source, target)
    return library


# what the setup cell calls, and where anywidget looks (its `_util.py`) for what that call did
COLAB_OUTPUT = """class _widgets:
    _installed_url = None


def enable_custom_widget_manager():
    _widgets._installed_url = "https://localhost/manager.js"
"""


def installed(python):
    command = [python, "-m", "pip", "list", "--format=json", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {item["name"]: item["version"] for item in json.loads(done.stdout)}


@pytest.fixture(scope="module")
def colab(tmp_path_factory):
    """(python, environment variables, folder to work in, what was installed before the first chapter)."""
    folder = tmp_path_factory.mktemp("colab")
    venv.create(folder / "env", with_pip=True)
    python = folder / "env" / "bin" / "python"
    library = copy_installed(python, (*COLAB_HAS, papermill.__name__))
    (library / "google" / "colab").mkdir(parents=True)
    (library / "google" / "colab" / "__init__.py").write_text("")
    (library / "google" / "colab" / "output.py").write_text(COLAB_OUTPUT)
    (library / "colab.pth").write_text("import google.colab\n")  # loaded when Python starts, as in Colab's kernel
    tree = folder / "tree"
    tree.mkdir()
    for part in ("kdutils", "pyproject.toml", "README.md"):
        (shutil.copytree if (ROOT / part).is_dir() else shutil.copy)(ROOT / part, tree / part)
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("KDUTILS_", "PYTHON", "GIT_"))} | {
        "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.{tree.as_uri()}.insteadOf", "GIT_CONFIG_VALUE_0": ADDRESS,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1", "KDUTILS_PROFILE": "smoke", "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }  # fmt: skip
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "the working tree"]):
        subprocess.run([*git, *command], cwd=tree, check=True)
    (folder / "content").mkdir()
    return python, variables, folder / "content", installed(python)


@pytest.mark.parametrize("name", NAMES if os.environ.get("KDUTILS_COLAB") == "all" else FASTEST)
def test_chapter_runs_in_colab(colab, name):
    python, variables, folder, before = colab
    assert "kdutils" not in before
    shutil.copy(ROOT / "book" / f"{name}.ipynb", folder)
    command = [python, "-m", "papermill", "--no-progress-bar", "--start-timeout=600", f"{name}.ipynb", "out.ipynb"]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    if "No matching distribution" in done.stdout + done.stderr and "Retrying" in done.stdout + done.stderr:
        pytest.skip("pip reached no package index: connect to the network")
    assert done.returncode == 0, done.stderr[-3000:]
    after = installed(python)
    assert {k: after.get(k) for k in before} == before, "the setup cell replaced what Colab has: loosen pyproject.toml"
    assert "kdutils" in after, "the setup cell did not install kdutils"


@pytest.mark.parametrize("name", NAMES)
def test_setup_cell_does_nothing_outside_colab(name):
    source = setup_cell(name)
    assert source.startswith('import sys\n\nif "google.colab" in sys.modules:'), "begin with Colab's installation"
    assert "google.colab" not in sys.modules
    install = TransformerManager().transform_cell(source.split("\n\nimport matplotlib")[0])

    def get_ipython():
        raise AssertionError("the setup cell installs something outside Colab")

    exec(install, {"get_ipython": get_ipython})
