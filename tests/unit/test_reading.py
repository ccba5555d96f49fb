"""One rule of reading: the first call, as it was when returned, in float32, of whatever a module is or returns."""

import copy
from collections import UserDict, namedtuple
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import stack_module_state, vmap
from torch.nn import functional as F
from torch.nn import utils
from torch.optim.swa_utils import AveragedModel

from kdutils import checks, reading, seeding
from kdutils.lab.ensemble import Ensemble
from kdutils.reading import OUTPUT, module_at, outputs_at
from kdutils.signals import Hidden, Output
from kdutils.teachers import read

X = torch.randn(5, 6, generator=seeding.generator(0, "x"))


def net(width: int = 8, seed: int = 1) -> nn.Sequential:
    with seeding.global_rng(seed, "net"):
        return nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 2))


class Twice(nn.Module):
    """Calls one layer twice, and changes in place what the first call returned."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.act, self.out = nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.layer(x)
        changed = self.act(first)
        return self.out(self.layer(changed.mul_(2)))


@pytest.mark.parametrize("paths", [("layer",), ("layer", ""), ("", "layer"), ("layer", "act", "out"), ("act", "layer")])
def test_the_first_call_as_it_was_when_returned(paths: tuple[str, ...]) -> None:
    network = Twice()
    expected = F.linear(X, network.layer.weight, network.layer.bias)
    out = outputs_at(network, X, paths)
    torch.testing.assert_close(out["layer"], expected)
    if "act" in paths:
        torch.testing.assert_close(out["act"], expected.relu())
    if OUTPUT in paths:
        torch.testing.assert_close(out[OUTPUT], network(X))


def test_gradients_flow_through_what_was_kept() -> None:
    network = Twice()
    outputs_at(network, X, ("layer", ""))["layer"].sum().backward()
    torch.testing.assert_close(network.layer.weight.grad, X.sum(0).expand(6, 6))


def test_the_same_with_other_parameters_and_in_vmap() -> None:
    networks = [Twice() for _ in range(3)]
    state, x = stack_module_state(networks)[0], torch.stack([X, X + 1, 2 * X])
    out = vmap(lambda s, b: outputs_at(networks[0], b, ("layer", ""), s))(state, x)
    for i, network in enumerate(networks):
        expected = outputs_at(network, x[i], ("layer", ""))
        torch.testing.assert_close({path: value[i] for path, value in out.items()}, expected)


def test_a_module_under_two_names_and_a_path_asked_for_twice() -> None:
    shared = nn.Linear(6, 6)
    out = outputs_at(nn.Sequential(shared, shared), X, ("0", "1", "0"))
    assert torch.equal(out["0"], shared(X)) and torch.equal(out["1"], out["0"])


class Returns(nn.Module):
    """Returns its input in some dress, at a path ("layer") and as output."""

    def __init__(self, dress: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.dress, self.layer = dress, nn.Identity()
        self.layer.register_forward_hook(lambda module, inputs, output: dress(output))

    def forward(self, x: torch.Tensor) -> Any:
        return self.layer(x)


Pair = namedtuple("Pair", "loss logits")
Named = namedtuple("Named", "values indices")


@pytest.mark.parametrize(
    "dress",
    [
        lambda x: x,
        lambda x: (x, None),
        lambda x: [x, x + 1],
        lambda x: Pair(x + 1, x),
        lambda x: Named(x, x.argmax(1)),
        lambda x: {"loss": x + 1, "logits": x},
        lambda x: {"hidden_states": (x + 1,), "last_hidden_state": x},
        lambda x: {"last_hidden_state": x + 1, "logits": x},
        lambda x: {"logits": None, "last_hidden_state": x},
        lambda x: UserDict(logits=x),
        lambda x: SimpleNamespace(logits=x),
        lambda x: SimpleNamespace(last_hidden_state=x, loss=None),
        lambda x: x.double(),
    ],
)
@pytest.mark.parametrize("path", [OUTPUT, "layer"])
def test_the_tensor_in_what_a_module_returns(dress: Callable[[torch.Tensor], Any], path: str) -> None:
    out = outputs_at(Returns(dress), X, (path,))[path]
    assert torch.equal(out, X) and out.dtype == torch.float32


@pytest.mark.parametrize(
    ("dress", "said"),
    [
        (lambda x: {"image_embeds": x, "loss": None}, r"dict of \['image_embeds', 'loss'\]"),
        (lambda x: (None, x), r"tuple of \['NoneType', 'Tensor'\]"),
        (lambda x: ((x, x), x), r"tuple of \['tuple', 'Tensor'\]"),
        (lambda x: (), r"tuple of \[\]"),
        (lambda x: 3.0, "float"),
        (lambda x: SimpleNamespace(scores=x), "SimpleNamespace"),
        (lambda x: x.argmax(1), "Tensor of torch.int64"),
        (lambda x: (x > 0, x), "tuple of torch.bool"),
        (lambda x: torch.complex(x, x), "Tensor of torch.complex64"),
        (lambda x: {"logits": x.long()}, "dict of torch.int64"),
        (lambda x: torch.nested.as_nested_tensor([x[:1], x]), r"Tensor of nested .*enable_nested_tensor=False"),
    ],
)
@pytest.mark.parametrize("path", [OUTPUT, "layer"])
def test_what_cannot_be_read_is_named(dress: Callable[[torch.Tensor], Any], said: str, path: str) -> None:
    model = Returns(dress)
    before = len(model.layer._forward_hooks)
    with pytest.raises(TypeError, match=rf"'{path}' returns a {said}.*`logits`"):
        outputs_at(model, X, (path,))
    assert len(model.layer._forward_hooks) == before


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_another_precision_reads_float32_and_answers_in_it(dtype: torch.dtype) -> None:
    network, plain = net().to(dtype), net().to(dtype).float()
    out = outputs_at(network, X, ("0", ""))
    assert {value.dtype for value in out.values()} == {torch.float32}
    torch.testing.assert_close(out, outputs_at(plain, X, ("0", "")), atol=0.03, rtol=0.03)
    out[OUTPUT].sum().backward()
    assert network[0].weight.grad.dtype == dtype and network[0].weight.grad.abs().sum() > 0
    tokens = nn.Sequential(nn.Embedding(6, 3), nn.Linear(3, 2)).to(dtype)
    assert outputs_at(tokens, torch.arange(6)[None])[OUTPUT].dtype == torch.float32
    state = {name: p.detach() for name, p in net().named_parameters()}
    torch.testing.assert_close(outputs_at(network, X, state=state)[OUTPUT], net()(X))


def test_containers_stay_what_they_are() -> None:
    """A network may ask for a list, or for an entry by its name."""
    Pair = namedtuple("Pair", "one two")
    x = {"many": [torch.ones(2), (torch.ones(3), "text")], "pair": Pair(torch.ones(1), 3)}
    doubled = reading.each(lambda t: 2 * t, x)
    assert type(doubled["many"]) is list and type(doubled["many"][1]) is tuple and doubled["many"][1][1] == "text"
    assert doubled["pair"].one.item() == 2 and doubled["pair"].two == 3
    packed = nn.utils.rnn.pack_sequence([torch.ones(3, 1), torch.ones(2, 1)])
    with pytest.raises(TypeError, match="a PackedSequence does not keep samples apart: give padded tensors"):
        reading.each(lambda t: t[None], {"x": packed})


def test_mappings_and_tuples_are_passed_on() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(6, 2).double()

        def forward(self, a: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return self.inner(a) * mask

    model, mask = Two(), torch.arange(5)[:, None] % 2
    expected = (model.inner(X.double()) * mask).float()
    for x in ((X, mask), [X, mask], {"mask": mask, "a": X}, UserDict(mask=mask, a=X)):
        assert torch.equal(outputs_at(model, x)[OUTPUT], expected)
        batches = reading.each(lambda t: t.expand(2, *t.shape), x)
        assert torch.equal(read(model, batches, OUTPUT), expected.expand(2, 5, 2))
        assert read(model, batches, "inner").shape == (2, 5, 2)


def wrappers() -> dict[str, Callable[[nn.Module], nn.Module]]:
    def in_place(network: nn.Module) -> nn.Module:
        network.compile(backend="eager")
        return network

    return {
        "compiled": lambda network: torch.compile(network, backend="eager"),
        "compiled in place": in_place,
        "parallel": nn.DataParallel,
        "averaged": AveragedModel,
        "parallel and compiled": lambda network: nn.DataParallel(torch.compile(network, backend="eager")),
    }


@pytest.mark.parametrize("called", [False, True], ids=["new", "called"])
@pytest.mark.parametrize("kind", wrappers())
def test_wrappers_are_looked_through(kind: str, called: bool) -> None:
    """As a teacher and as it is, whether compiled already or not; and the wrapper still works afterwards."""
    plain, wrapped = net(), wrappers()[kind](net())
    if called:
        wrapped(X)
    assert module_at(wrapped, "2").out_features == 2
    for paths in (("1",), ("1", ""), ("",)):
        torch.testing.assert_close(outputs_at(wrapped, X, paths), outputs_at(plain, X, paths))
    torch.testing.assert_close(wrapped(X), plain(X))
    students, x = Ensemble(lambda: net(5), [1, 2]), X.expand(2, 5, 6)
    for signal in (lambda t: Hidden(t, "1", "1"), Output):
        targets = [signal(t).bind(students, x).target(x, None) for t in (wrapped, plain)]
        torch.testing.assert_close(*targets)
    assert sum(len(m._forward_hooks) for m in wrapped.modules()) == 0
    with pytest.raises(ValueError, match="Sequential has no layer 'nowhere'; its layers are '0', '1', '2'"):
        Hidden(wrapped, "nowhere", "1")


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module."])
def test_the_full_path_works_too(prefix: str) -> None:
    wrapped = torch.compile(net(), backend="eager") if prefix == "_orig_mod." else nn.DataParallel(net())
    bound = Hidden(wrapped, prefix + "1", "1").bind(Ensemble(lambda: net(5), [1, 2]), X.expand(2, 5, 6))
    assert bound.target(X.expand(2, 5, 6), None).shape == (2, 5, 5)
    for network in (wrapped, reading.frozen(wrapped, X.device)):
        assert torch.equal(outputs_at(network, X, (prefix + "1",))[prefix + "1"], outputs_at(network, X, ("1",))["1"])


def test_a_layer_inside_a_compiled_part() -> None:
    part = torch.compile(nn.Sequential(nn.Linear(6, 4), nn.ReLU()), backend="eager")
    network = nn.Sequential(part, nn.Linear(4, 2))
    network(X)
    out = outputs_at(network, X, ("0", "0.0"))
    torch.testing.assert_close(out["0"], out["0.0"].relu())
    torch.testing.assert_close(network(X), network[1](out["0"]))


@pytest.mark.parametrize("make", [lambda: torch.compile(net(), backend="eager"), lambda: nn.DataParallel(net())])
def test_wrapped_students(make: Callable[[], nn.Module]) -> None:
    x, students, plain = X.expand(2, 5, 6), Ensemble(make, [1, 2]), Ensemble(net, [1, 2])
    torch.testing.assert_close(students.outputs(x, ("1", "")), plain.outputs(x, ("1", "")))


@pytest.mark.filterwarnings("ignore")
def test_scripted_code_has_outputs_but_calls_no_layer() -> None:
    scripted, students, x = torch.jit.script(net()), Ensemble(net, [1, 2]), X.expand(2, 5, 6)
    torch.testing.assert_close(*(Output(t).bind(students, x).target(x, None) for t in (scripted, net())))
    with pytest.raises(RuntimeError, match="register_forward_hook is not supported on ScriptModules"):
        Hidden(scripted, "1", "1").bind(students, x)


def test_a_path_names_modules_only() -> None:
    network = net()
    network.label = "1"
    for path in ("label", "0.weight", "0.in_features", "forward", "1.", ".1"):
        with pytest.raises(ValueError, match=f"Sequential has no layer '{path}'; its layers are '0', '1', '2'"):
            module_at(network, path)


NORMS = {
    "weight_norm": lambda: utils.weight_norm(nn.Linear(6, 8)),
    "spectral_norm": lambda: utils.spectral_norm(nn.Linear(6, 8)),
    "parametrised": lambda: utils.parametrizations.weight_norm(nn.Linear(6, 8)),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
@pytest.mark.parametrize("kind", NORMS)
def test_networks_that_compute_their_weights(kind: str) -> None:
    """The older weight_norm keeps a tensor that deepcopy refuses, and under vmap one that nobody can read."""
    teacher = nn.Sequential(NORMS[kind](), nn.ReLU(), nn.Linear(8, 2)).eval()
    x = X.expand(2, 5, 6)
    with torch.no_grad():
        expected = teacher[:2](X)
    teacher(X).sum().backward()
    torch.testing.assert_close(read(reading.frozen(teacher, X.device), x, "1")[0], expected)
    students = Ensemble(lambda: nn.Sequential(NORMS[kind](), nn.ReLU(), nn.Linear(8, 2)), [1, 2])
    out = students.outputs(x)[OUTPUT]
    other = reading.copied(students.skeleton)
    other.load_state_dict({name: value[1] for name, value in {**students.parameters, **students.buffers}.items()})
    torch.testing.assert_close(other(X), out[1], atol=1e-5, rtol=1e-4)


def test_a_teacher_is_copied_with_what_it_remembers() -> None:
    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.last = self.layer(x)
            return self.last

    teacher = Remembers()
    teacher(X)
    kept = teacher.last
    copied = reading.frozen(teacher, X.device)
    assert torch.equal(copied.last, kept) and not copied.last.requires_grad and teacher.last is kept
    assert torch.equal(read(copied, X[None], "")[0], kept)


def test_nonfinite_names_the_first_sample_that_counts() -> None:
    good = torch.zeros(2, 5, 3, 4)
    assert checks.nonfinite(good) is None and checks.nonfinite(torch.zeros(2, 5).long()) is None
    for value in (torch.nan, torch.inf, -torch.inf):
        bad = good.clone()
        bad[1, 2, 0, 3] = bad[1, 4] = value
        assert checks.nonfinite(bad) == "sample 2 of seed number 1"
        mask = torch.ones(2, 5, 3, dtype=torch.bool)
        mask[1, 2] = False
        assert checks.nonfinite((bad, mask)) == "sample 4 of seed number 1"
        assert checks.nonfinite((good, (bad, mask))) == "sample 4 of seed number 1"
        mask[1, 4] = False
        assert checks.nonfinite((bad, mask)) is None
        assert checks.nonfinite((good, (bad, mask), (good, bad))) == "sample 2 of seed number 1"


def test_copies_are_private() -> None:
    network = net()
    frozen = reading.frozen(network, X.device)
    before = copy.deepcopy(frozen.state_dict())
    with torch.no_grad():
        network[0].weight.zero_()
    assert all(torch.equal(value, frozen.state_dict()[name]) for name, value in before.items())
