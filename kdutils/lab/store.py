"""Finished runs on disk: found again by what they are, written whole or not at all, checked when read."""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import itertools
import json
import os
import secrets
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from kdutils.identity import describe, digest
from kdutils.source import origin, patches, replaced, rooms, tree

__all__ = ["Store", "describe", "digest", "key", "source_hash", "unseen"]


_EVERYWHERE = [table for name, table in vars(torch.nn.modules.module).items()
               if name.startswith("_global_") and name.endswith("hooks")]  # fmt: skip  # hooks of all modules


def _number(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} is no plain data: describe it")


def _text(data: Any) -> str:
    return json.dumps(data, sort_keys=True, default=_number)


def _checksum(tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> str:
    return hashlib.sha256((digest(tensors) + _text(meta)).encode()).hexdigest()


def _touched() -> dict[str, Any]:
    """What somebody may have changed since it was read: numbers, functions and methods of the code that every run goes
    through, and what torch holds in another's place."""
    everywhere = torch, torch.Tensor, torch.nn.functional
    found = {f"{holder.__name__}.{name}": thing for holder in everywhere for name, thing in replaced(holder).items()}
    for module in (f"kdutils.{room}" for room in rooms()):
        for name, thing in vars(sys.modules[module]).items() if module in sys.modules else ():
            number = type(thing) in (int, float, bool)
            own = isinstance(thing, types.FunctionType) and not origin(thing.__globals__["__name__"])
            if number or own or (isinstance(thing, type) and thing.__module__ == module and patches(thing)):
                found[f"{module}.{name}"] = thing
    return found


@functools.cache
def source_hash(of: str = "lab.training") -> str:
    """SHA-256 of the modules that every run goes through (or `of` and what it imports), comments and docstrings left
    out: editing others keeps finished runs."""
    h = hashlib.sha256()
    for room in rooms(of):
        written = tree(room)
        for node in ast.walk(written):
            documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            if documented and ast.get_docstring(node) is not None:
                node.body = node.body[1:] or [ast.Pass()]
        h.update(f"{room}\n{ast.unparse(written)}\n".encode())
    return h.hexdigest()


def key(settings: dict[str, Any]) -> str:
    """The name of a run: a hash of its settings, of the code that produced it, and of torch's version and modes."""
    modes = [str(torch.get_default_dtype()), _precision()]
    cast = [device for device in ("cpu", "cuda") if torch.is_autocast_enabled(device)]
    modes += [f"{device} {torch.get_autocast_dtype(device)}" for device in cast]
    modes += [describe([*table.values()]) for table in _EVERYWHERE if table]
    modes += map(describe, torch.overrides._get_current_function_mode_stack())
    modes += map(describe, torch.utils._python_dispatch._get_current_dispatch_mode_stack())
    code = [source_hash(), describe(_touched()), torch.__version__]
    return hashlib.sha256(_text([settings, code, modes]).encode()).hexdigest()[:20]


def _precision() -> str:
    """How exactly torch multiplies, by backend: torch's one word for all refuses to be read where one was set alone."""
    of = torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv
    each = [str(getattr(backend, "fp32_precision", "none")) for backend in of]
    return " ".join(["ieee" if one == "none" else one for one in each] + [str(torch.backends.mkldnn.enabled)])


def unseen(settings: dict[str, Any]) -> list[str]:
    """What the descriptions among `settings` could not see; nothing where a `version` among them vouches for it."""
    if settings.get("version") is not None:
        return []
    found = [value["unseen"] for value in settings.values() if isinstance(value, dict) and "unseen" in value]
    return list(dict.fromkeys(itertools.chain.from_iterable(found)))


def _folder(root: str | Path | None) -> Path:
    given = str(root or "") or os.environ.get("KDUTILS_RUNS", "").strip() or "runs"
    expanded = os.path.expanduser(given if root else os.path.expandvars(given))
    if expanded.startswith("~") or (not root and "$" in expanded):
        raise ValueError(f"runs cannot be kept in {given!r}: nothing says what `~` or `$` stands for in it")
    with contextlib.suppress(OSError):  # where one works may be gone
        return Path(os.path.abspath(expanded))  # a notebook that changes folders keeps its runs in one
    return Path(expanded)


class Store:
    """A folder of runs, one `KEY.safetensors` each.

    Args:
        root: the folder; made on the first write. Left out, it is `$KDUTILS_RUNS`, or `runs` where one works when
            that is empty or not set. `~` is the home folder, and in the variable `$NAME` another variable.

    A stored run that is cut short, damaged or another than its name says is reported and counts as missing. A folder
    that cannot be read or written is reported once; work goes on without it.

    Raises:
        ValueError: for a folder's name with a `~` or `$NAME` that stands for nothing.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = _folder(root)
        self._writable = True
        self._said: set[str] = set()

    def _say(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            warnings.warn(message, stacklevel=4)

    def path(self, key: str) -> Path:
        return self.root / f"{key}.safetensors"

    def accepts(self, settings: dict[str, Any]) -> bool:
        """Whether a run with these settings can be kept: not one of which something is `unseen`; that is said once."""
        first, *others = unseen(settings) or [None]
        if first is not None:
            more = f" and {len(others)} more" if others else ""
            self._say(
                f"this run is not kept: it depends on {first}{more}, and a change there would not be seen. To keep it, "
                'vouch for that with a text of yours, train(..., version="1"), and change the text when it changes'
            )
        return first is None

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
            if "tensors" not in meta:  # kept by an earlier version
                return None
            if meta.pop("key") != key:
                raise ValueError("it was kept under another name")
            kinds = meta.pop("tensors")
            return {n: torch.view_as_complex(tensors[n]) if c else tensors[n] for n, c in kinds}, meta
        except OSError as error:
            self._say(f"runs cannot be read in {self.root} ({error.strerror or error}): computing them again")
        except Exception as error:  # a foreign file may hold anything
            warnings.warn(f"stored run {path} is damaged ({error}): computing it again", stacklevel=3)
        return None

    def save(self, key: str, tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> None:
        """Write atomically: to a temporary file in the same folder, then rename."""
        if not self._writable:
            return
        temporary = self.root / f"{key}.{secrets.token_hex(4)}.partial"
        try:
            kinds = [[name, tensor.is_complex()] for name, tensor in tensors.items()]  # in order: safetensors sorts
            parts = {n: torch.view_as_real(tensors[n].resolve_conj()) if c else tensors[n] for n, c in kinds}
            parts = {n: t.detach().cpu().clone(memory_format=torch.contiguous_format) for n, t in parts.items()}
            meta = {**meta, "key": key, "tensors": kinds}
            text = _text({**meta, "digest": _checksum(parts, meta)})
            self.root.mkdir(parents=True, exist_ok=True)
            temporary.touch()
            mode = temporary.stat().st_mode  # safetensors would let nobody else read it
            save_file(parts, temporary, metadata={"kdutils": text})
            temporary.chmod(mode)
            temporary.replace(self.path(key))
        except (OSError, SafetensorError) as error:
            self._writable = False
            self.unwritable(error)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            self._say(f"a run is not kept, since its file has no place for something in it ({error})")
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def unwritable(self, error: Exception) -> None:
        """Say, once, that work goes on without this folder."""
        self._say(
            f"runs cannot be kept in {self.root} ({error}): going on without; "
            "set KDUTILS_RUNS to a folder that can be written"
        )

    def discard(self, key: str) -> None:
        """Forget what was saved under `key`, if anything."""
        with contextlib.suppress(OSError):
            self.path(key).unlink(missing_ok=True)
