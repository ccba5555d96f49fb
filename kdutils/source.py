"""Code as data: whose it is, what it does, and which names it looks up."""

from __future__ import annotations

import ast
import bisect
import dis
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import itertools
import json
import pkgutil
import platform
import re
import runpy
import sys
import sysconfig
import types
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parent
_FLAGS = 0x3AC  # of a code object: *args, **kwargs, generator, coroutine; the others say how it was compiled
# Instructions that come and go with line numbers, with sizes, and with what else is compiled at the same time.
_SILENT = {"NOP", "EXTENDED_ARG", "CACHE", "RESUME", "PUSH_NULL"}
DYNAMIC = (eval, exec, globals, __import__, importlib.import_module, importlib.util.spec_from_file_location,
           pkgutil.resolve_name, runpy.run_path, runpy.run_module, sys._getframe, inspect.currentframe, inspect.stack,
           sys.modules)  # fmt: skip  # names that no code shows
_BY_NAME = {"modules", *(thing.__name__ for thing in DYNAMIC[:-1])}
REACHING = {"__subclasses__", "__globals__", "f_globals"}  # attributes that reach them, whosever they are
PYTHON = f"python {platform.python_version()}"
BUILTIN = (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType, types.MethodWrapperType,
           types.ClassMethodDescriptorType)  # fmt: skip
_OF_TORCH = {"aten", "prim", "prims", "quantized", "_quantized", "onednn", "mkldnn", "mkl", "profiler", "c10d"}
_DATA = {"bool", "int", "float", "complex", "str", "bytes", "Tensor", "ndarray"}  # kinds, by their names
_CODE = types.FunctionType | types.BuiltinFunctionType | types.MethodDescriptorType | types.WrapperDescriptorType
_LOOKUPS = {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"}
_BESIDES = {  # what a class holds besides what was written in it, or follows from that
    "__module__", "__qualname__", "__doc__", "__slotnames__", "__annotations__", "__annotate_func__",
    "__annotations_cache__", "__firstlineno__", "__static_attributes__", "__orig_bases__", "__parameters__",
    "__type_params__", "__dataclass_params__", "__abstractmethods__", "_abc_impl", "_backward_cls",
}  # fmt: skip


# ---- kdutils itself: the files that every run goes through, each as a whole ----


def _file(room: str) -> Path:
    whole = _ROOT / room.replace(".", "/")
    return whole / "__init__.py" if whole.is_dir() else whole.with_suffix(".py")


def tree(room: str) -> ast.Module:
    return ast.parse(_file(room).read_text(encoding="utf-8"))


@functools.cache
def rooms(of: str = "lab.training") -> tuple[str, ...]:
    """The modules of kdutils that every run goes through: `lab.training` (or `of`) and all its imports lead to."""
    found = [of]
    for room in found:
        for node in ast.walk(tree(room)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            inside = [name.removeprefix("kdutils.") for name in names if name.startswith("kdutils.")]
            found += [n for n in inside if n not in found and _file(n).is_file()]
    return tuple(sorted(found))


# ---- whose code it is ----


def origin(module: str | None) -> str | None:
    """The distribution and its version, or "kdutils", that a module's code is known by; None for the reader's own."""
    top, _, room = (module or "").partition(".")
    if top == "kdutils":
        return top if room in rooms() else None
    if not top or top in ("__main__", "__mp_main__"):
        return None
    if (loaded := sys.modules.get(top)) is not None:
        folders, file = list(getattr(loaded, "__path__", None) or ()), getattr(loaded, "__file__", None)
    else:
        spec = importlib.util.find_spec(top)
        folders, file = list((spec and spec.submodule_search_locations) or ()), spec and spec.origin
    return _distribution(top, folders[0] if folders else file)


@functools.cache
def _distribution(top: str, path: str | None) -> str | None:
    folder, standard = Path(path or "").parent, Path(sysconfig.get_path("stdlib"))
    if top in sys.stdlib_module_names and (path in (None, "built-in", "frozen") or standard in (folder, folder.parent)):
        return PYTHON
    if path is None or not (folder.name in ("site-packages", "dist-packages") or any(folder.glob("*.dist-info"))):
        return None
    find = importlib.metadata.distributions
    for found in itertools.chain(find(name=top, path=[str(folder)]), find(path=[str(folder)])):
        listed = f"{found.read_text('RECORD')}\n{found.read_text('top_level.txt')}"
        if re.search(rf"^{re.escape(top)}(/|\.|$)", listed, re.MULTILINE):
            source = json.loads(found.read_text("direct_url.json") or "{}")
            if "dir_info" in source:  # installed from a folder of the reader's: its version says little
                return None
            commit = source.get("vcs_info", {}).get("commit_id", "")
            return f"{found.metadata['Name']} {found.version} {commit}".strip()
    return None


def known(thing: types.FunctionType | type) -> dict[str, str] | None:
    """The full name of a function or class and what it is of, where these say all that there is to it; LookupError
    for one that reaches what no code shows."""
    if any(thing is one for one in DYNAMIC):
        raise LookupError(f"{thing.__qualname__} may do anything")
    places = [(thing.__module__, thing.__qualname__)]
    if isinstance(thing, types.FunctionType):  # a decorator of others may have given its own the name of the reader's
        places += [(thing.__globals__.get("__name__"), thing.__code__.co_qualname)]
        places = [] if is_own(thing) else places
    for module, name in places:
        found = sys.modules.get(module or "")
        for part in name.split("."):
            found = getattr(found, part, None)
        if found is thing and (home := origin(module)):
            return {"named": f"{module}.{name}", "of": home}
    return None


def builtin(thing: Any) -> tuple[Any, dict[str, str] | None]:
    """The object that a function in C is bound to; or None, and its full name and home (LookupError: none is known)."""
    holder = getattr(thing, "__objclass__", getattr(thing, "__self__", None))
    free = type(holder).__name__.startswith(("NoneType", "module", "PyCapsule", "pybind11_"))
    if not free and not isinstance(holder, type):
        return holder, None
    module = thing.__module__ if free else holder.__module__
    home = origin(module)
    if home is None or thing in DYNAMIC:
        raise LookupError(f"{module} may do anything")
    return None, {"named": f"{module}.{thing.__qualname__}", "of": home}


def is_registered(thing: Any) -> bool:
    """Whether this is an operator that somebody has given torch, torch.ops.my.op: what it does is not to be seen."""
    name = getattr(thing, "_qualified_op_name", "aten::")
    return isinstance(name, str) and name.split("::")[0] not in _OF_TORCH


def is_own(thing: Any) -> bool:
    """Whether this is a function or a class of the reader's own, whoever decorated it."""
    if isinstance(thing, types.FunctionType):
        thing = inspect.unwrap(thing)
    if isinstance(thing, types.FunctionType):
        return origin(thing.__globals__.get("__name__")) is None
    return isinstance(thing, type) and origin(thing.__module__) is None


def replaced(holder: type | types.ModuleType) -> dict[str, Any]:
    """What a class or module of others holds of the reader's own, and the full names of functions under other names."""
    found, home = {}, vars(sys.modules.get(getattr(holder, "__module__", ""), holder))
    for name, value in vars(holder).items():
        does = callable(value) or isinstance(value, functools.partialmethod)
        at_home = isinstance(value, BUILTIN) or getattr(value, "__globals__", None) is home
        if does and not at_home and is_put(value):
            found[name] = value
        elif isinstance(value, _CODE) and "<locals>" not in value.__qualname__:  # as libraries put some into others
            renamed = isinstance(holder, type) and value.__qualname__ != f"{holder.__qualname__}.{name}"
            found |= {name: _full_name(value)} if renamed or value.__name__ != name else {}
    return found


def is_put(thing: Any) -> bool:
    """Whether this, in a library, was put there: it is of the reader's own, or is made from arguments of somebody's."""
    made = isinstance(thing, functools.partial | functools.partialmethod)
    loaded = type(thing).__module__.partition(".")[0] in sys.modules  # or it is a type that a library made in C
    return made or is_own(thing) or (loaded and not isinstance(thing, type) and is_own(type(thing)))


def is_data(thing: Any) -> bool:
    """Whether this is plain data, as of sys.argv: it counts by its value, whoever holds it."""
    held = [*thing, *thing.values()] if type(thing) is dict else thing
    whole = type(thing) in (dict, list, tuple, set, frozenset)
    return all(map(is_data, held)) if whole else type(thing).__name__ in _DATA


def _full_name(thing: Any) -> str:
    return f"{getattr(thing, '__module__', None)}.{thing.__qualname__}"


def patches(kind: type) -> dict[str, Any]:
    """What was `replaced` in classes of others among the bases of `kind`, and in the modules they are from."""
    found = {}
    for base in kind.__mro__:
        if origin(base.__module__) not in (None, PYTHON):
            shared = "torch.nn.functional" if base.__module__.startswith("torch.nn") else base.__module__
            holders = {base, *(sys.modules[name] for name in (base.__module__, shared) if name in sys.modules)}
            found |= {f"{at.__name__}.{name}": value for at in holders for name, value in replaced(at).items()}
    return dict(sorted(found.items()))


def attention(network: Any) -> Any:
    """The attention, and its mask, of the reader's own that a model of transformers finds by their name."""
    name = getattr(getattr(network, "config", None), "_attn_implementation", None)
    tables = {"modeling_utils": "ALL_ATTENTION_FUNCTIONS", "masking_utils": "ALL_MASK_ATTENTION_FUNCTIONS"}
    held = (getattr(sys.modules.get(f"transformers.{file}"), table, {}) for file, table in tables.items())
    return tuple(f for table in held if isinstance(name, str) and is_own(f := table.get(name)))


# ---- what it does ----


def written(kind: type) -> list[tuple[str, Any]]:
    """What a class itself holds: methods, constants, and of a dataclass's fields what is in neither."""
    slots = types.GetSetDescriptorType, types.MemberDescriptorType
    held = {n: v for n, v in vars(kind).items() if n not in _BESIDES and not isinstance(v, slots)}
    if "__dataclass_fields__" in held:
        held["__dataclass_fields__"] = {name: field.metadata for name, field in held["__dataclass_fields__"].items()}
    return sorted(held.items())


def _constant(value: Any) -> Any:
    if isinstance(value, types.CodeType):
        return compiled(value)[0]
    if isinstance(value, tuple | frozenset):
        entries = [str(_constant(entry)) for entry in value]
        return type(value).__name__, entries if isinstance(value, tuple) else sorted(entries)
    return f"{type(value).__name__} {value!r}"


@functools.lru_cache(maxsize=10_000)
def compiled(code: types.CodeType) -> tuple[str, tuple[tuple, ...]]:
    """A hash of what compiled code does, and the chains of names that it looks up outside of itself.

    Names of files, line numbers, comments and docstrings do not count. A chain is (name, attribute, ...) for a global,
    (None, level, module, name or None) for an import.
    """
    steps: list[dis.Instruction] = []
    for step in dis.get_instructions(code):
        if step.opname == "STORE_NAME" and step.argval in ("__doc__", "__firstlineno__"):
            steps.pop()  # its value
        elif step.opname not in _SILENT:
            steps.append(step)
    offsets, text = [step.offset for step in steps], []
    chains: list[tuple] = []
    for n, step in enumerate(steps):
        argument = step.argval
        if step.opcode in dis.hasconst:
            argument = _constant(argument)
        elif step.opcode in dis.hasjrel or step.opcode in dis.hasjabs:
            argument = bisect.bisect_left(offsets, argument)
        text.append(f"{step.opname.replace('METHOD', 'ATTR')} {argument!r}")  # imported in the same cell, or not
        if step.opname in ("LOAD_ATTR", "LOAD_METHOD") and argument in REACHING:
            chains.append((argument,))
        if step.opname in _LOOKUPS and argument != "__name__":
            following = itertools.takewhile(lambda s: s.opname in ("LOAD_ATTR", "LOAD_METHOD"), steps[n + 1 : n + 9])
            chains.append((argument, *(s.argval for s in following)))
        elif step.opname == "IMPORT_NAME":
            level, names = steps[n - 2].argval, steps[n - 1].argval
            read = {b.argval for a, b in itertools.pairwise(steps) if a.argval == steps[n + 1].argval}
            names = names or (None, *sorted(_BY_NAME & read))
            chains += [(None, level, argument, name) for name in names]
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            chains += compiled(constant)[1]
    arguments = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & _FLAGS
    names = code.co_name, code.co_varnames, code.co_freevars, code.co_cellvars
    whole = repr([names, arguments, text, code.co_exceptiontable])
    return hashlib.sha256(whole.encode(errors="surrogatepass")).hexdigest(), tuple(dict.fromkeys(chains))


def resolve(f: types.FunctionType, chain: tuple) -> tuple[str | None, Any]:
    """What a chain of names stands for in a function, followed through modules to the first thing that is none.

    Returns:
        what it is of, where that says all of it, else None; and the thing itself, "undefined" where there is none.
    """
    name, *rest = chain
    if name is None:
        level, name, *rest = rest
        name = importlib.util.resolve_name("." * level + name, f.__globals__.get("__package__") or "")
        if (home := origin(name)) and name not in sys.modules:
            return home, None
        found, rest = importlib.import_module(name), [n for n in rest if n]
    elif name in f.__globals__:
        found = f.__globals__[name]
    elif name in f.__builtins__:
        found = f.__builtins__[name]
        return (None, found) if is_data(found) or any(found is one for one in DYNAMIC) else (PYTHON, None)
    else:
        return None, "undefined"
    home = None
    while isinstance(found, types.ModuleType):
        home = origin(found.__name__)
        if not rest:
            break
        found = getattr(found, name := rest.pop(0), "undefined")
    if is_registered(found) or is_put(found) or is_data(found) or any(found is one for one in DYNAMIC):
        return None, found
    renamed = home and isinstance(found, _CODE) and found.__name__ != name
    return f"{home}: {_full_name(found)}" if renamed else home, found
