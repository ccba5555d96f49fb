"""What a run is told apart by: each change to it alone gives another description, and nothing else does."""

import builtins
import collections
import ctypes
import enum
import functools
import importlib
import io
import json
import logging
import os
import pkgutil
import random
import re
import runpy
import subprocess
import sys
import threading
import types
import weakref
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize, weight_norm

from kdutils import curriculum, identity, projections, seeding, source
from kdutils.curriculum import Stage
from kdutils.identity import describe
from kdutils.lab.store import key, unseen
from kdutils.signals import Labels, Output, WeightedSum
from kdutils.tasks.models import MLP
from kdutils.tasks.text import Corpus

ROOT = Path(__file__).resolve().parents[2]


def hidden(thing: Any) -> list[str]:
    return unseen({"thing": describe(thing)})


# ---- values ----


class Box:
    """Anything may be put into it."""

    def __init__(self, **held: Any) -> None:
        self.__dict__.update(held)


class Slotted:
    __slots__ = ("a",)

    def __init__(self, a: Any) -> None:
        self.a = a


@dataclass(frozen=True)
class Setting:
    size: Any
    make: Callable | None = None


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Own(dict):
    pass


Pair = collections.namedtuple("Pair", "a b")


def grown(n: int) -> list:
    inner: list = [n]
    inner.append(inner)
    return inner


def scaled(factor: float) -> Callable:
    def projection(hidden: torch.Tensor, width: int, generator: torch.Generator) -> torch.Tensor:
        return factor * projections.gaussian(hidden, width, generator)

    return projection


VALUES: dict[str, list[Callable[[], Any]]] = {
    "plain": [
        lambda: None, lambda: True, lambda: 1, lambda: 1.0, lambda: "1", lambda: b"1", lambda: 1j, lambda: ...,
        lambda: 0, lambda: -1, lambda: 0.0, lambda: -0.0, lambda: float("inf"), lambda: float("nan"), lambda: 10**400,
        lambda: "", lambda: "\ud800", lambda: bytearray(b"1"), lambda: "None", lambda: "#1",
    ],
    "containers": [
        lambda: [1, 2], lambda: (1, 2), lambda: [2, 1], lambda: {1, 2}, lambda: frozenset({1, 2}), lambda: {1: 2},
        lambda: {"1": 2}, lambda: {1: 2, 3: 4}, lambda: {3: 4, 1: 2}, lambda: [[1], 2], lambda: [1, [2]],
        lambda: [True, 2], lambda: [1.0, 2], lambda: [], lambda: (), lambda: {}, lambda: set(), lambda: [()],
        lambda: grown(1), lambda: grown(2), lambda: {(1, "a"), (2, "b"), "c", None}, lambda: range(3),
        lambda: slice(1, 2), lambda: collections.OrderedDict(a=1), lambda: collections.deque([1, 2]),
        lambda: collections.defaultdict(list, {1: 2}), lambda: Own({1: 2}), lambda: Pair(1, 2),
        lambda: types.MappingProxyType({1: 3}), lambda: {Colour.RED: 1}, lambda: {"a": [1, {"b": (2, [3])}]},
    ],
    "numpy": [
        lambda: np.int64(1), lambda: np.int32(1), lambda: np.float32(1), lambda: np.float64(1), lambda: np.bool_(True),
        lambda: np.str_("1"), lambda: np.array(1), lambda: np.array([1]), lambda: np.array([[1]]),
        lambda: np.array([1.0]), lambda: np.array(["1"]), lambda: np.array([1], dtype=object),
        lambda: np.array([2], dtype=object), lambda: np.ma.array([1], mask=[True]), lambda: np.ma.array([1]),
        lambda: np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]), lambda: np.dtype("f4"), lambda: np.dtype("f8"),
        lambda: np.array([(1, 3.0)], dtype=[("a", "i4"), ("b", "f8")]), lambda: np.longdouble(1),
        lambda: np.zeros((0, 2)), lambda: np.zeros((2, 0)), lambda: np.datetime64("2020-01-01"), lambda: np.float32,
        lambda: np.random.default_rng(0), lambda: np.random.default_rng(1), lambda: np.random.RandomState(0),
        lambda: np.tanh, lambda: np.sin,
    ],
    "torch": [
        lambda: torch.ones(2), lambda: torch.ones(3), lambda: torch.zeros(2), lambda: torch.ones(1, 2),
        lambda: torch.ones(2, dtype=torch.float64), lambda: torch.ones(2, dtype=torch.int64),
        lambda: torch.ones(2, dtype=torch.bfloat16), lambda: torch.ones(2, dtype=torch.bool), lambda: torch.tensor(1.0),
        lambda: torch.ones(2, dtype=torch.complex64), lambda: torch.ones(2, requires_grad=True),
        lambda: nn.Parameter(torch.ones(2)), lambda: nn.Parameter(torch.ones(2), requires_grad=False),
        lambda: torch.eye(2), lambda: torch.eye(2).to_sparse(), lambda: torch.ones(2, device="meta"),
        lambda: torch.float32, lambda: torch.float64, lambda: torch.device("cpu"), lambda: torch.device("cuda"),
        lambda: torch.Size([1, 2]), lambda: torch.Size([2, 1]), lambda: torch.Generator().manual_seed(0),
        lambda: torch.Generator().manual_seed(1), lambda: torch.relu, lambda: torch.tanh, lambda: nn.functional.relu,
        lambda: torch.Tensor.relu, lambda: torch.empty(0, 3), lambda: torch.empty(3, 0), lambda: [torch.ones(2)],
    ],
    "objects": [
        lambda: Box(a=1), lambda: Box(a=2), lambda: Box(b=1), lambda: Box(a=1, b=1), lambda: Slotted(1),
        lambda: Slotted(2), lambda: Setting(1), lambda: Setting(2), lambda: Setting(1.0), lambda: Setting(1, len),
        lambda: Setting(1, projections.pca), lambda: Setting(1, projections.neurons), lambda: Setting(1, scaled(1.0)),
        lambda: Setting(1, scaled(2.0)), lambda: Setting(Setting(1)), lambda: Setting([1]), lambda: Setting(np.ones(2)),
        lambda: types.SimpleNamespace(a=1), lambda: types.SimpleNamespace(a=2), lambda: Colour.RED, lambda: Colour.BLUE,
        lambda: Colour, lambda: PurePosixPath("a/b"), lambda: PurePosixPath("a"), lambda: re.compile("a"),
        lambda: re.compile("b"), lambda: re.compile("a", re.IGNORECASE), lambda: random.Random(0),
        lambda: random.Random(1), lambda: logging.getLogger("a"), lambda: Box, lambda: Slotted,
        lambda: weakref.ref(Colour.RED), lambda: Box(a=Colour.RED), lambda: Box(a=float),
    ],
    "functions": [
        lambda: len, lambda: max, lambda: str.upper, lambda: "a".join, lambda: "b".join, lambda: scaled,
        lambda: scaled(1.0), lambda: scaled(2.0), lambda: lambda x: x, lambda: lambda y: y, lambda: lambda x: x + 1,
        lambda: lambda x, y=1: x, lambda: lambda x, y=2: x, lambda: lambda x, *, y=1: x, lambda: lambda *x: x,
        lambda: partial(scaled), lambda: partial(scaled, 1.0), lambda: partial(scaled, factor=1.0),
        lambda: partial(scaled, 2.0), lambda: functools.cache(scaled), lambda: staticmethod(scaled),
        lambda: property(scaled), lambda: torch.no_grad()(scaled), lambda: Box(a=1).__eq__, lambda: Setting(1).__repr__,
        lambda: Setting(2).__repr__, lambda: (x for x in ()).__class__, lambda: projections.gaussian,
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", VALUES)
def test_values_are_told_apart(kind: str) -> None:
    texts = [json.dumps(describe(make()), sort_keys=True) for make in VALUES[kind]]
    alike = [(i, j) for i, a in enumerate(texts) for j, b in enumerate(texts[:i]) if a == b]
    assert not alike


@pytest.mark.parametrize("kind", VALUES)
def test_equal_values_are_the_same_and_all_is_seen(kind: str) -> None:
    for number, make in enumerate(VALUES[kind]):
        first, again = describe([make()]), describe([make()])
        assert first == again and not first["unseen"], number
        assert json.loads(json.dumps(first)) == first


@pytest.mark.parametrize("kind", ["containers", "numpy", "torch", "objects"])
def test_copies_are_the_same(kind: str) -> None:
    for number, make in enumerate(VALUES[kind]):
        thing = make()
        if not isinstance(thing, types.MappingProxyType):
            assert describe([thing]) == describe([deepcopy(thing)]), number


def test_layout_in_memory_does_not_count() -> None:
    matrix = torch.arange(6.0).view(2, 3)
    assert describe(matrix) == describe(matrix.T.contiguous().T) == describe(torch.arange(7.0)[:6].view(2, 3))
    array = np.arange(6).reshape(2, 3)
    assert describe(array) == describe(np.asfortranarray(array))


def test_who_shares_what_counts() -> None:
    one = Box(a=1)
    assert describe([one, one]) != describe([one, deepcopy(one)])
    tied, free = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tied[1].weight = tied[0].weight
    free.load_state_dict(tied.state_dict())
    assert describe(tied) != describe(free)


def test_a_method_describe_of_the_readers_own_says_nothing_to_the_store() -> None:
    class Spoken(Box):
        def describe(self) -> str:
            return "the same"

    class Longer(Corpus):
        more = 0

    def text(kind: type, **more: Any) -> Any:
        made = kind(torch.arange(50) % 7, 7, 4, "causal")
        for name, value in more.items():
            object.__setattr__(made, name, value)
        return made

    assert describe(Spoken(a=1)) != describe(Spoken(a=2))
    assert describe(text(Corpus)) == describe(text(Corpus, more=1)), "those of kdutils speak for themselves"
    assert describe(text(Longer)) != describe(text(Longer, more=1))


def test_caches_do_not_count() -> None:
    class Cached(Box):
        @functools.cached_property
        def table(self) -> int:
            return self.a + 1

        @functools.lru_cache  # noqa: B019
        def row(self) -> int:
            return self.a

    thing = Cached(a=1)
    before = describe(thing)
    assert (thing.table, thing.row()) == (2, 1)
    assert describe(thing) == before != describe(Cached(a=2))


# ---- networks ----


class Net(nn.Module):
    """Attributes of all kinds, none of which its weights show."""

    noise: ClassVar[float] = 0.0

    def __init__(self, **held: Any) -> None:
        super().__init__()
        with seeding.global_rng(0, "net"):
            self.a, self.b, self.bn = nn.Linear(3, 3), nn.Linear(3, 2), nn.BatchNorm1d(3)
        self.register_buffer("kept", torch.ones(3))
        self.register_buffer("passing", torch.ones(3), persistent=False)
        self.scale, self.keep, self.active, self.config = 1.0, torch.ones(3), torch.relu, Box(theta=1.0)
        self.__dict__.update(held)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.active(self.bn(self.a(x)) * self.scale))


class Symmetric(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x.mT


def with_(change: Callable[[Net], Any]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        net = Net()
        change(net)
        return net

    return make


def doubled(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return 2 * output


def tripled(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return 3 * output


def replaced(net: Net, name: str, value: torch.Tensor, persistent: bool = True) -> None:
    delattr(net, name)
    net.register_buffer(name, value, persistent)


CHANGES: dict[str, Callable[[Net], Any]] = {
    "a number": lambda net: setattr(net, "scale", 2.0),
    "another kind of number": lambda net: setattr(net, "scale", 1),
    "a number of numpy": lambda net: setattr(net, "scale", np.float32(1)),
    "a text": lambda net: setattr(net, "kind", "a"),
    "a plain tensor": lambda net: setattr(net, "keep", torch.tensor([1.0, 0, 1])),
    "no plain tensor": lambda net: setattr(net, "keep", None),
    "an array": lambda net: setattr(net, "table", np.ones(2)),
    "a list": lambda net: setattr(net, "sizes", [1, 2]),
    "a deep list": lambda net: setattr(net, "sizes", [1, {"a": (2, torch.ones(1))}]),
    "a function": lambda net: setattr(net, "active", torch.tanh),
    "a lambda": lambda net: setattr(net, "active", lambda x: x),
    "an object's attribute": lambda net: setattr(net.config, "theta", 2.0),
    "an attribute of a layer": lambda net: setattr(net.bn, "eps", 1e-3),
    "a buffer": lambda net: net.kept.mul_(2),
    "a passing buffer": lambda net: net.passing.mul_(2),
    "whether a buffer is kept": lambda net: replaced(net, "kept", torch.ones(3), persistent=False),
    "statistics": lambda net: net.bn.running_mean.add_(1),
    "a weight": lambda net: net.a.weight.data[0, 0].add_(1e-3),
    "its type": lambda net: net.a.double(),
    "a frozen weight": lambda net: net.a.weight.requires_grad_(False),
    "no bias": lambda net: net.a.register_parameter("bias", None),
    "a tied bias": lambda net: setattr(net.a, "bias", net.bn.bias),
    "another layer": lambda net: setattr(net, "bn", nn.Identity()),
    "one more layer": lambda net: setattr(net, "more", nn.Identity()),
    "a layer outside of the list": lambda net: net.__dict__.update(more=[nn.ReLU()]),
    "a hook": lambda net: net.a.register_forward_hook(doubled),
    "another hook": lambda net: net.a.register_forward_hook(tripled),
    "a hook elsewhere": lambda net: net.b.register_forward_hook(doubled),
    "two hooks": lambda net: [net.a.register_forward_hook(h) for h in (doubled, tripled)],
    "two hooks, the other way": lambda net: [net.a.register_forward_hook(h) for h in (tripled, doubled)],
    "a hook always called": lambda net: net.a.register_forward_hook(doubled, always_call=True),
    "a hook before": lambda net: net.a.register_forward_pre_hook(lambda module, inputs: inputs),
    "a parametrised weight": lambda net: parametrize.register_parametrization(net.a, "weight", Symmetric()),
    "a normed weight": lambda net: weight_norm(net.a),
    "a method of its own": lambda net: setattr(net, "forward", types.MethodType(lambda self, x: x, net)),
    "an entry of a weight": lambda net: setattr(net.a.weight, "slow", True),
}


@pytest.fixture(scope="module")
def changed() -> dict[str, Any]:
    return {name: describe(with_(change)()) for name, change in CHANGES.items()}


@pytest.mark.parametrize("name", CHANGES)
def test_each_change_of_a_network_counts(name: str, changed: dict[str, Any]) -> None:
    assert changed[name] != describe(Net())
    assert [other for other, text in changed.items() if text == changed[name]] == [name]
    assert describe(with_(CHANGES[name])()) == changed[name]
    if name not in ("a normed weight", "a parametrised weight", "an entry of a weight"):  # torch copies these in part
        assert describe(deepcopy(with_(CHANGES[name])())) == changed[name]
    assert not changed[name]["unseen"]


def test_networks_that_point_back_and_to_themselves() -> None:
    def woven(scale: float) -> nn.Module:
        net = Net(scale=scale)
        object.__setattr__(net.a, "parent", net)
        net.b.parent, net.all = weakref.ref(net), [net]
        return net

    assert describe(woven(1.0)) == describe(woven(1.0)) != describe(woven(2.0))
    assert describe(woven(1.0).a) != describe(woven(2.0).a)
    assert not hidden(woven(1.0))


def test_a_handle_of_a_hook_does_not_count() -> None:
    def make() -> nn.Module:
        net = Net()
        net.handle = net.a.register_forward_hook(doubled)
        return net

    assert describe(make()) == describe(make())


def test_teachers_are_read_in_eval_mode() -> None:
    """So the mode they are given in does not count, unless code that need not change it holds them."""

    def through(make: Callable[[nn.Module], Any], **modes: bool) -> Any:
        net = Net().train(modes.pop("whole"))
        for name, mode in modes.items():
            getattr(net, name).train(mode)
        return describe(make(net))

    class Stays(Net):
        def train(self, mode: bool = True) -> nn.Module:
            super().train(mode)
            self.bn.train()
            return self

    by_us = [
        lambda net: net, curriculum.one_shot, lambda net: curriculum.joint(net, 1.0, "a", "a"),
        lambda net: Stage(WeightedSum(((1.0, Output(net)), (1.0, Labels())))),
    ]  # fmt: skip
    for make in by_us:
        assert through(make, whole=True) == through(make, whole=False) == through(make, whole=True, bn=False)
    for make in (Setting, lambda net: partial(scaled, net), lambda net: net.forward, lambda net: lambda x: net(x)):
        three = through(make, whole=True), through(make, whole=False), through(make, whole=True, bn=False)
        assert three[0] != three[1] != three[2] != three[0]
    stays = Stays()
    before = describe(curriculum.one_shot(stays))
    stays.bn.eval()
    assert describe(curriculum.one_shot(stays)) != before


def test_a_patched_class_of_others_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net()
    before = describe(net)
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: x)
    assert describe(net) != before
    monkeypatch.setattr(nn.Linear, "forward", torch.no_grad()(lambda self, x: 2 * x))
    assert describe(net) not in (before, describe(nn.Sequential()))
    monkeypatch.undo()
    assert describe(net) == before


class Smooth(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.elu(x) + torch.relu(x)


class Doubles:
    def __call__(self, x: torch.Tensor, **how: Any) -> torch.Tensor:
        return 2 * x


PUT: dict[str, tuple[Any, str, Any]] = {  # where, under which name, what
    "arguments": (F, "elu", partial(F.elu, alpha=0.01)),
    "an object": (F, "elu", Doubles()),
    "another of the library": (torch, "relu", F.silu),
    "another's method": (nn.ReLU, "forward", nn.SiLU.forward),
    "a method made from another": (nn.ReLU, "forward", functools.partialmethod(nn.LeakyReLU.forward)),
    "one of tensors": (torch.Tensor, "softmax", lambda self, dim: self),
    "one that torch reads itself": (torch, "relu", lambda x: x),
}


@pytest.mark.parametrize("put", PUT)
def test_what_is_put_into_a_library_counts(put: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), Smooth())
    before = key({"net": describe(net)})
    assert not hidden(net)
    monkeypatch.setattr(*PUT[put])
    assert key({"net": describe(net)}) != before and not hidden(net)
    monkeypatch.undo()
    assert key({"net": describe(net)}) == before


def test_a_library_puts_nothing_into_torch_that_counts() -> None:
    """The key is the same whether or not they are loaded."""
    code = "import kdutils.lab.training; from kdutils.lab.store import key; print(key({}))\n"
    more = "from transformers import GPT2Config as C, GPT2Model as M; M(C(n_layer=1, n_embd=12, vocab_size=9))\n"
    more += "import torch; torch.compile(torch.nn.Linear(1, 1), backend='eager')(torch.ones(1))\n"
    for text in (code, more + code):
        ran = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, cwd=ROOT, check=True)
        assert ran.stdout.strip() == key({})


@pytest.mark.skipif(sys.platform == "win32", reason="torch.compile needs a compiler there")
def test_a_compiled_network_is_its_network() -> None:
    def make(scale: float) -> nn.Module:
        return torch.compile(Net(scale=scale))

    assert describe(make(1.0)) == describe(make(1.0)) != describe(make(2.0))
    assert not hidden(make(1.0))


def test_a_configuration_counts() -> None:
    """As transformers has it: what the network does depends on an object of its own."""
    transformers = pytest.importorskip("transformers", reason="pip install transformers")

    def llama(theta: float, **changes: Any) -> nn.Module:
        rope = {"rope_type": "default", "rope_theta": theta}
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        with seeding.global_rng(0, "llama"):
            return transformers.LlamaForCausalLM(
                transformers.LlamaConfig(vocab_size=50, rope_parameters=rope, **sizes, **changes)
            )

    first, text = llama(1e4), describe(llama(1e4))
    assert describe(first) == text and not text["unseen"]
    assert describe(curriculum.one_shot(first.train())) == describe(curriculum.one_shot(first.eval()))
    others = [llama(1e2), llama(1e4, rms_norm_eps=1e-3), llama(1e4, attn_implementation="eager")]
    texts = [describe(other) for other in others]
    assert text not in texts and len({json.dumps(text) for text in texts}) == 3
    first.config.rms_norm_eps = 1e-2
    assert describe(first) != text
    first.config.rms_norm_eps = llama(1e4).config.rms_norm_eps
    first.config._name_or_path = first.name_or_path = "/somewhere/else"
    assert describe(first) == text, "where it was loaded from is nothing that it does"


# ---- what cannot be seen ----

LOCK, HANDLE, THING, LIBRARY = threading.Lock(), io.StringIO(), Box(a=(1, [2])), ctypes.CDLL(None)


def reads_a_lock() -> Any:
    return LOCK


def reads_a_library() -> Any:
    return LIBRARY.abs


def calls_one_that_does() -> Any:
    return reads_a_lock


def reads_a_thing() -> Any:
    return THING


def reads_by_name() -> Any:
    return eval("THING")


def reads_all() -> Any:
    return globals()["THING"]


def imports_by_name() -> Any:
    return importlib.import_module(THING.a).rule


def imports_inside() -> Any:
    import builtins
    from importlib import import_module

    return builtins.eval("THING"), import_module


def loaded() -> Any:
    return vars(sys.modules[__name__])["THING"]


def a_registry() -> Any:
    return Box.__subclasses__()


def by_its_globals() -> Any:
    return loaded.__globals__["THING"]


def generated() -> Any:
    yield 1


class Refuses:
    def __reduce_ex__(self, protocol: Any) -> Any:
        raise RuntimeError("not me")


class Holds(nn.Module):
    def __init__(self, thing: Any) -> None:
        super().__init__()
        self.deep = [{"thing": (thing,)}]


UNSEEN: dict[str, tuple[Callable[[], Any], str]] = {
    "a lock": (threading.Lock, "lock"),
    "an open file": (lambda: sys.__stdout__, "TextIOWrapper"),
    "a generator": (generated, "generator"),
    "a memoryview": (lambda: memoryview(b"1"), "memoryview"),
    "a C library": (lambda: LIBRARY, "CDLL"),
    "a function of it": (lambda: LIBRARY.abs, "_FuncPtr"),
    "a pointer": (lambda: ctypes.pointer(ctypes.c_int(1)), "LP_c_int"),
    "the environment": (lambda: os.environ, "_Environ"),
    "a thread's own": (threading.local, "_local"),
    "an object that refuses": (Refuses, "Refuses"),
    "a ufunc without a name": (lambda: np.frompyfunc(lambda x: x, 1, 1), "ufunc"),
    "a scripted network": (lambda: torch.jit.script(nn.Linear(2, 2)), "ScriptModule"),
    "a global": (lambda: reads_a_lock, "global `LOCK` read by `reads_a_lock` of `.*test_identity` .lock"),
    "a global elsewhere": (lambda: calls_one_that_does, "global `LOCK` read by `reads_a_lock`"),
    "a global library": (lambda: reads_a_library, "global `LIBRARY.abs` read by `reads_a_library`"),
    "a global by its name": (lambda: reads_by_name, "global `eval` read by `reads_by_name`"),
    "a module by its name": (lambda: imports_by_name, "global `importlib.import_module` read by `imports_by_name`"),
    "an import inside": (lambda: imports_inside, "global `builtins.eval` read by `imports_inside`"),
    "another inside": (lambda: imports_inside, "global `importlib.import_module` read by `imports_inside`"),
    "all modules": (lambda: loaded, "global `sys.modules` read by `loaded`"),
    "subclasses": (lambda: a_registry, "`__subclasses__` read by `a_registry`"),
    "a function's globals": (lambda: by_its_globals, "`__globals__` read by `by_its_globals`"),
    "all globals": (lambda: reads_all, "global `globals` read by `reads_all`"),
    "an attribute": (lambda: Holds(threading.Lock()), "attribute `deep` of `Holds` .lock"),
    "an attribute of an object": (lambda: Box(file=HANDLE, lock=threading.Lock()), "attribute `lock` of `Box`"),
    "a captured value": (lambda: scaled(threading.Lock()), "`factor` of `scaled.<locals>.projection`"),
    "a default": (lambda: lambda x=threading.Lock(): x, r"a default of `<lambda>.*`"),  # noqa: B008
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", UNSEEN)
def test_what_cannot_be_seen_is_named(name: str) -> None:
    make, message = UNSEEN[name]
    for thing in (make(), Setting(make()), [1, {"a": (make(),)}]):
        described = describe(thing)
        assert described["unseen"] and all(isinstance(text, str) for text in described["unseen"])
        assert any(re.search(message, text) for text in described["unseen"]), described["unseen"]
        assert json.loads(json.dumps(described)) == described
    assert unseen({"a": 1, "b": describe(make()), "version": None}) == describe(make())["unseen"]
    assert unseen({"a": 1, "b": describe(make()), "version": "1"}) == []


def test_what_can_be_seen_beside_it_counts() -> None:
    assert describe(Box(a=1, lock=threading.Lock())) == describe(Box(a=1, lock=threading.Lock()))
    assert describe(Box(a=1, lock=threading.Lock())) != describe(Box(a=2, lock=threading.Lock()))


@pytest.mark.parametrize("value", [(1, [3]), (1.0, [2]), ([1], 2), None, np.ones(2), Colour.RED])
def test_a_global_of_a_known_kind_is_seen(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = describe(reads_a_thing)
    assert not hidden(reads_a_thing)
    monkeypatch.setattr(THING, "a", value)
    assert describe(reads_a_thing) != before
    monkeypatch.undo()
    monkeypatch.setitem(globals(), "THING", value)
    assert describe(reads_a_thing) != before
    monkeypatch.undo()
    assert describe(reads_a_thing) == before


def test_deep_and_wide_things_do_not_stop_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    long: Any = None
    for n in range(5000):
        long = Box(next=long, n=n)
    assert not hidden(long)
    nested: Any = ()
    for _ in range(5000):
        nested = (nested,)
    assert "tuple" in hidden(nested)[0]
    monkeypatch.setattr(identity, "_LIMIT", 100)
    assert "more than 100 objects" in " ".join(hidden([[{}] for _ in range(101)]))


# ---- kdutils itself ----


def test_the_rooms_of_every_run_are_what_training_imports() -> None:
    rooms = set(source.rooms())
    assert {"curriculum", "signals", "losses", "lab.training", "lab.ensemble", "lab.store", "identity"} <= rooms
    assert not any(room.startswith(("pages", "probes")) for room in rooms)
    assert not rooms & {"lab.stats", "lab.lab", "tasks.parity", "tasks.text", "tasks.grammar"}


def test_a_task_of_the_book_counts_with_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    from kdutils.tasks import parity

    before = describe(parity.SparseParity(4, 2)), describe(MLP(2, 2).act)
    monkeypatch.setattr(parity.SparseParity, "label", lambda self, x: x[..., 0].long())
    assert describe(parity.SparseParity(4, 2)) != before[0] and describe(MLP(2, 2).act) == before[1]


def test_fields_and_arguments_count() -> None:
    assert describe(Setting(1)) == describe(replace(Setting(2), size=1))
    assert describe(partial(scaled, 1)) != describe(partial(scaled, factor=1))
    assert describe(scaled(1.0)) == describe(scaled(1.0))


def test_of_a_module_imported_inside_counts_what_is_read_of_it() -> None:
    def quiet(x: torch.Tensor) -> Any:
        import inspect

        return torch.stack([x]), inspect.signature

    def loud(x: torch.Tensor) -> Any:
        import inspect

        return torch.stack([x]), inspect.stack()

    assert not describe(quiet)["unseen"] and describe(loud)["unseen"]


def reads_argv() -> float:
    return float(sys.argv[1])


def reads_builtin() -> float:
    return SCALE_OF_ALL  # noqa: F821


def reads_torch() -> Any:
    return torch.my_scale


@pytest.mark.parametrize(
    ("function", "holder", "name", "values"),
    [
        (reads_argv, sys, "argv", (["x", "1"], ["x", "-5"])),
        (reads_builtin, builtins, "SCALE_OF_ALL", (1.0, -5.0)),
        (reads_torch, torch, "my_scale", (1.0, -5.0)),
        (reads_torch, torch, "my_scale", (torch.zeros(2), torch.ones(2))),
        (reads_torch, torch, "my_scale", ({"a": [1]}, {"a": [2]})),
    ],
)
def test_data_that_libraries_hold_counts_by_its_value(
    function: Any, holder: Any, name: str, values: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for value in values:
        monkeypatch.setattr(holder, name, value, raising=False)
        found.append(describe(function))
    assert found[0] != found[1] and not any(one["unseen"] for one in found)


@pytest.mark.parametrize("function", [lambda: pkgutil.resolve_name("os:sep"), lambda: runpy.run_path("x.py")])
def test_code_that_is_found_by_its_name_is_not_seen(function: Any) -> None:
    assert describe(function)["unseen"]


class Ready:
    @functools.cached_property
    def scale(self) -> torch.Tensor:
        return torch.tensor(1.0)

    @functools.cached_property
    def again(self) -> "Ready":
        return self


def test_what_a_property_keeps_counts_where_it_was_changed() -> None:
    plain, computed, changed, set_by_hand = (Ready() for _ in range(4))
    assert computed.scale == 1 and computed.again is computed
    changed.scale.mul_(-5)
    set_by_hand.__dict__["scale"] = torch.tensor(2.0)
    told = [describe(one)["sha256"] for one in (plain, computed, changed, set_by_hand)]
    assert told[0] == told[1] and len(set(told)) == 3
