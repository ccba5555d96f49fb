"""Finished runs on disk: found again by what they are, written whole or not at all, checked when read."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import hashlib
import inspect
import json
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

_ROOT = Path(__file__).resolve().parents[1]
# The rooms that every run goes through: editing others must not throw finished runs away.
_RUN = ("curriculum", "signals", "projections", "losses", "reading", "seeding", "tasks.models", "lab.cost",
        "lab.ensemble", "lab.optimisers", "lab.record", "lab.store", "lab.training")  # fmt: skip
_TASKS = {"tasks.grammar", "tasks.parity", "tasks.text"}  # count only in the runs of their own tasks


def digest(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 over names, shapes and bytes, the same on every device."""
    h = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().contiguous().cpu()
        h.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        h.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return h.hexdigest()


def _checksum(tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> str:
    return hashlib.sha256((digest(tensors) + json.dumps(meta, sort_keys=True)).encode()).hexdigest()


def describe(thing: Any) -> Any:
    """`thing` as plain JSON data that changes whenever a run made with it could change.

    Tensors and networks become hashes of their contents; functions and classes become their names, and
    where they come from neither kdutils nor torch, a hash of their source as well.

    Raises:
        TypeError: for a kind of object it does not know.
    """
    if thing is None or isinstance(thing, str | bool | int | float):
        return thing
    if isinstance(thing, list | tuple):
        return [describe(item) for item in thing]
    if isinstance(thing, dict):
        return {str(key): describe(value) for key, value in thing.items()}
    if isinstance(thing, torch.Tensor):
        return {"tensor": digest({"": thing})}
    if isinstance(thing, nn.Module):
        return {**_named(type(thing)), "structure": repr(thing), "weights": digest(thing.state_dict())}
    if isinstance(thing, functools.partial):
        return {**_named(thing.func), "with": describe([thing.args, thing.keywords])}
    if hasattr(thing, "describe") and not isinstance(thing, type):
        return {**_named(type(thing)), "described": describe(thing.describe())}
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        fields = {f.name: describe(getattr(thing, f.name)) for f in dataclasses.fields(thing)}
        return {**_named(type(thing)), **fields}
    if inspect.isroutine(thing) or isinstance(thing, type):
        return _named(thing)
    raise TypeError(
        f"a run cannot be told apart by a {type(thing).__name__}: make it a dataclass, or give it describe()"
    )


def _named(thing: Any) -> dict[str, str]:
    name = f"{thing.__module__}.{thing.__qualname__}"
    package, _, room = thing.__module__.partition(".")
    if package == "kdutils" and room in _TASKS:
        return {"is": name, "source": room_hash(room)}
    if package in {"kdutils", "torch"}:
        return {"is": name}
    if inspect.isfunction(thing) and (thing.__closure__ or thing.__defaults__ or thing.__kwdefaults__):
        captured = [cell.cell_contents for cell in thing.__closure__ or ()]
        extra = {"with": describe([captured, thing.__defaults__, thing.__kwdefaults__])}
    else:
        extra = {}
    try:
        return {"is": name, **extra, "source": hashlib.sha256(inspect.getsource(thing).encode()).hexdigest()}
    except (OSError, TypeError):  # typed at a prompt, or built in
        return {"is": name}


@functools.cache
def room_hash(room: str) -> str:
    """SHA-256 of one file of kdutils, comments and docstrings left out."""
    tree = ast.parse((_ROOT / f"{room.replace('.', '/')}.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return hashlib.sha256(f"{room}\n{ast.unparse(tree)}\n".encode()).hexdigest()


@functools.cache
def source_hash() -> str:
    """SHA-256 of the kdutils code that every run goes through."""
    return hashlib.sha256("".join(room_hash(room) for room in _RUN).encode()).hexdigest()


def key(settings: dict[str, Any]) -> str:
    """The name of a run: a hash of its settings, of the code that produced it and of torch's version."""
    text = json.dumps([settings, source_hash(), torch.__version__], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


class Store:
    """A folder of runs, one `KEY.safetensors` each.

    Args:
        root: the folder; made on the first write. Left out, it is `$KDUTILS_RUNS`, else `runs`.

    A stored run that is cut short or damaged is reported and counts as missing. A folder that cannot be
    written is reported once; work goes on without it.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = Path(root if root is not None else os.environ.get("KDUTILS_RUNS", "runs"))
        self._writable = True

    def path(self, key: str) -> Path:
        return self.root / f"{key}.safetensors"

    def load(self, key: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """The tensors and metadata saved under `key`, or None."""
        path = self.path(key)
        try:
            if not path.exists():
                return None
            with safe_open(path, framework="pt") as file:
                meta = json.loads(file.metadata()["kdutils"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            if meta.pop("digest") != _checksum(tensors, meta):
                raise ValueError("its contents do not match their checksum")
            return tensors, meta
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            warnings.warn(f"stored run {path} is damaged ({error}): computing it again", stacklevel=3)
            return None

    def save(self, key: str, tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> None:
        """Write atomically: to a temporary file in the same folder, then rename."""
        if not self._writable:
            return
        tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
        text = json.dumps({**meta, "digest": _checksum(tensors, meta)})
        temporary = None
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self.root, suffix=".partial")
            os.close(handle)
            save_file(tensors, temporary, metadata={"kdutils": text})
            os.replace(temporary, self.path(key))
            temporary = None
        except (OSError, SafetensorError) as error:
            self._writable = False
            warnings.warn(
                f"runs cannot be kept in {self.root} ({error}): going on without; "
                "set KDUTILS_RUNS to a folder that can be written",
                stacklevel=3,
            )
        finally:
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)

    def discard(self, key: str) -> None:
        """Forget what was saved under `key`, if anything."""
        with contextlib.suppress(OSError):
            self.path(key).unlink(missing_ok=True)
