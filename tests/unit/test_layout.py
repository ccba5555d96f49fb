"""The rooms of kdutils: imports point down, the method stands on torch alone, and nothing grows without end."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "kdutils"
METHOD = {"curriculum", "signals", "projections", "losses", "reading"}
TOOLS = {"checks", "identity", "seeding", "source", "teachers"}  # small, and of use to every room
HOSTS = {"binding", "distiller", "fingerprints", "fitting", "hf", "hosted", "inside", "recorded", "shards", "warned"}
FLOORS = ("method", "tasks", "probes", "hosts", "lab", "studies", "pages")  # lowest first
FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path): path for path in FILES}


def imported(name: str) -> Iterator[str]:
    """The modules of kdutils that a module imports anywhere in its text, by full name."""
    for node in ast.walk(ast.parse(NAMES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in NAMES)
        elif isinstance(node, ast.ImportFrom) and node.module in NAMES:
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [module for module in inside if module in NAMES]
            yield from modules
            if len(modules) < len(inside):
                yield node.module


def floor(name: str) -> int:
    room = name.split(".")[1] if "." in name else "method"
    return FLOORS.index("method" if room in METHOD | TOOLS else "hosts" if room in HOSTS else room)


def test_every_module_stands_in_the_table_of_rooms() -> None:
    table = (
        (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("### Where do I find")[1].split("Beside it:")[0]
    )
    files = [path for path in FILES if path.parent.name != "exercises" and path.stem != "__init__"]
    lost = [path.relative_to(ROOT) for path in files if f"`{path.name}`" not in table]
    assert not lost, "say in CONTRIBUTING.md, under 'Where do I find', what is in these"


def test_every_module_has_its_room() -> None:
    strangers = [n for n in NAMES if "." in n and n.split(".")[1] not in METHOD | TOOLS | HOSTS | set(FLOORS)]
    assert not strangers, f"put {strangers} into one of the rooms {FLOORS[1:]}, or say here that it is the method"


@pytest.mark.parametrize("name", sorted(NAMES))
def test_arrows_point_down(name: str) -> None:
    up = [other for other in imported(name) if floor(other) > floor(name)]
    assert not up, f"{name} imports {up} from a room above its own"


def test_no_circle() -> None:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"imports go in a circle: {' -> '.join((*path, name))}"
        if name not in done:
            for other in imported(name):
                visit(other, (*path, name))
            done.add(name)

    for name in NAMES:
        visit(name, ())


def loaded_by(module: str) -> set[str]:
    code = f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}}, *sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return set(ran.stdout.split())


def test_the_method_stands_on_torch_alone() -> None:
    loaded = loaded_by("kdutils.curriculum")
    others = {"matplotlib", "ipywidgets", "anywidget", "tokenizers", "pandas", "scipy", "dask", "transformers"}
    assert not loaded & others
    assert {n for n in loaded if n.startswith("kdutils.")} <= {
        f"kdutils.{room}" for room in METHOD | {"checks", "seeding", "teachers"}
    }


@pytest.mark.parametrize("module", ["kdutils.lab.lab", "kdutils.probes", "kdutils.distiller"])
def test_training_needs_no_extra(module: str) -> None:
    others = {"matplotlib", "ipywidgets", "anywidget", "tokenizers", "pandas", "dask", "transformers", "accelerate"}
    assert not loaded_by(module) & others


def test_no_file_is_long_and_no_room_crowded() -> None:
    long = {name_of(p): n for p in FILES if (n := len(p.read_text(encoding="utf-8").splitlines())) > 300}
    assert not long, f"longer than 300 lines: {long}"
    rooms = [PACKAGE, *(p for p in PACKAGE.iterdir() if p.is_dir() and (p / "__init__.py").exists())]
    crowded = {r.name: n for r in rooms if (n := len({p.stem for p in r.glob("*.py")} - {"__init__"} - HOSTS)) > 10}
    assert not crowded, f"more than ten files: {crowded}"
    method = sum(len((PACKAGE / f"{m}.py").read_text(encoding="utf-8").splitlines()) for m in METHOD)
    assert method <= 900, f"the method has grown to {method} lines"
