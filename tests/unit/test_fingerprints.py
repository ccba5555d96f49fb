"""Teachers, masks and signals are told apart by all that they do, and alike in every process."""

import copy
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from kdutils import curriculum, fingerprints, recorded, seeding
from kdutils.curriculum import Curriculum, Stage
from kdutils.distiller import Distiller
from kdutils.fingerprints import described, fingerprint
from kdutils.signals import Bound, Labels, Output, WeightedSum


def linear(seed: int) -> nn.Linear:
    with seeding.global_rng(seed, "init"):
        return nn.Linear(6, 5)


def half(z: torch.Tensor) -> torch.Tensor:
    return z / 2


class Held(nn.Module):
    """Reads what is neither a parameter nor a plain attribute, and keeps what passes leave behind."""

    def __init__(self, held: Any, read: Callable[[Any, torch.Tensor], torch.Tensor] = lambda held, x: held) -> None:
        super().__init__()
        self.first, self._held, self._read = linear(0), held, read
        self.calls, self.memory, self._last, self.passes = [], {}, None, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.first(x) * self._read(self._held, x)
        self.passes += 1
        self.calls.append(len(x))
        self.memory[len(x)] = z
        return self.noted(z)

    def noted(self, z: torch.Tensor) -> torch.Tensor:
        self._last = z
        return z


class Halved(Held):
    def noted(self, z: torch.Tensor) -> torch.Tensor:
        return super().noted(half(z))


def first_of(network: nn.Module) -> float:
    return network.scales[0]


class Scaled(nn.Module):
    """Reads numbers in ways that are not `self.name` in its own `forward`, and has methods that no pass calls."""

    def __init__(self, scale: float, way: str) -> None:
        super().__init__()
        self.first, self.scale, self.scales, self.way, self.last = linear(0), scale, [scale], way, {}
        self.settings = SimpleNamespace(), Settings(scale, "")
        self.blocks = nn.Sequential(Block(self.settings[1]))

    def rescale(self, scale: float) -> None:
        self.scale = scale

    @property
    def held(self) -> float:
        return self.scales[0]

    @torch.no_grad()
    def decorated(self) -> float:
        return self.scales[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last["z"] = self.first(x) * self.scale
        match self.way:
            case "helper":
                return self.first(x) * first_of(self)
            case "property":
                return self.first(x) * self.held
            case "decorated":
                return self.first(x) * self.decorated()
            case "getattr":
                return self.first(x) * getattr(self, "scales")[0]  # noqa: B009
            case "part":
                return self.blocks(x) if self.settings[1].folder == "" else x
        return self.last["z"]


class Block(nn.Module):
    def __init__(self, settings: Any) -> None:
        super().__init__()
        self.first, self.settings = linear(0), settings

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.first(x) * self.settings.heat


@dataclass(eq=False)
class Fielded(nn.Module):
    width: int

    def __post_init__(self) -> None:
        super().__init__()
        self.first = linear(self.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.first(x)


Named = type("Halved", (Held,), {"noted": lambda self, z: half(half(z)), "__qualname__": "Halved"})
PAIRS: dict[str, Callable[[], tuple[nn.Module, nn.Module]]] = {
    "parameters": lambda: (nn.Sequential(linear(1)), nn.Sequential(linear(2))),
    "tensor": lambda: (Held(torch.tensor(1.0)), Held(torch.tensor(9.0))),
    "list": lambda: (Held([1.0], lambda held, x: held[0]), Held([5.0], lambda held, x: held[0])),
    "number": lambda: (Held(1.0), Held(5.0)),
    "a little": lambda: (Held(1.0), Held(1.1)),
    "networks in a list": lambda: (Held([linear(1)], lambda held, x: held[0](x)),
                                   Held([linear(2)], lambda held, x: held[0](x))),
    "networks in a dict": lambda: (Held({"a": linear(1)}, lambda held, x: held["a"](x)),
                                   Held({"a": linear(2)}, lambda held, x: held["a"](x))),
    "order of classes": lambda: (Held(1.0), Held(1.0, lambda held, x: torch.tensor([1.0, 1.0, -1.0, 1.0, -1.0]))),
    "what a method does": lambda: (Halved(1), Named(1)),
    "a dataclass": lambda: (Fielded(5), Fielded(6)),
    **{
        way: lambda way=way: (Scaled(1.0, way), Scaled(9.0, way))
        for way in ("method that sets it", "helper", "property", "decorated", "getattr", "part")
    },
}  # fmt: skip
X = torch.randn(8, 6, generator=torch.Generator().manual_seed(3))


def plans(teacher: nn.Module) -> dict[str, Curriculum]:
    return {
        "output": curriculum.one_shot(teacher),
        "weighted": Curriculum("both", (Stage(WeightedSum(((1.0, Output(teacher)), (0.5, Output(teacher, 2.0))))),)),
        "own": Curriculum("own", (Stage(Square(teacher)),)),
        "named otherwise": Curriculum("own", (Stage(Other(teacher)),)),
    }


def host(plan: Curriculum, student: nn.Module | None = None, **more: Any) -> Distiller:
    return Distiller(student or linear(3), plan, total=5, calibration=X, **more)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("kind", ["output", "weighted", "own", "named otherwise"])
def test_teachers_that_differ_are_told_apart(pair: str, kind: str, tmp_path: Path) -> None:
    (one, two), (again, _) = (PAIRS[pair]() for _ in range(2))
    state = host(plans(one)[kind]).state_dict()
    for _ in range(3):
        one(torch.randn(4, 6))
    for same in (one, again, copy.deepcopy(again)):
        host(plans(same)[kind], linear(4)).load_state_dict(state)  # a pass changes nothing, nor does the student
    with pytest.raises(ValueError, match="the saved state is of another curriculum"):
        host(plans(two)[kind]).load_state_dict(state)
    if kind not in ("output", "weighted"):
        return
    for teacher in (one, again):
        recorded.record(plans(teacher)[kind], linear(3), X, tmp_path, calibration=X)
    with pytest.raises(ValueError, match="targets of another plan, teacher or data set"):
        recorded.record(plans(two)[kind], linear(3), X, tmp_path, calibration=X)


class Drawing(nn.Module):
    def __init__(self, seed: int, much: float, stream: torch.Generator | None) -> None:
        super().__init__()
        self.first, self.much, self.stream = linear(seed), much, stream

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.first(x) + self.much * torch.randn(len(x), 5, generator=self.stream)


@pytest.mark.parametrize("much", [0.01, 1.0])
@pytest.mark.parametrize("own", [False, True])
def test_a_teacher_that_draws_is_told_by_the_rest(much: float, own: bool) -> None:
    stream = torch.Generator() if own else None
    state = host(curriculum.one_shot(Drawing(0, much, stream))).state_dict()
    for _ in range(8):
        host(curriculum.one_shot(Drawing(0, much, stream))).load_state_dict(state)
    with pytest.raises(ValueError, match="the saved state is of another curriculum"):
        host(curriculum.one_shot(Drawing(1, much, stream))).load_state_dict(state)


@pytest.mark.parametrize(("by", "same"), [(0.0, True), (0.03, True), (0.08, False)])
def test_what_is_said_may_differ_by_a_twentieth_of_its_spread(by: float, same: bool) -> None:
    said = torch.randn(64, generator=torch.Generator().manual_seed(0)) * 7 + 100
    other = said + 7 * by * torch.randn(64, generator=torch.Generator().manual_seed(1))

    def line(entries: torch.Tensor, where: str = "ab") -> str:
        return "a stage, saying of " + " ".join([where, *(f"{entry:+.3e}" for entry in entries.tolist())])

    for one, two in ((said, other), (other, said)):
        assert (fingerprints.difference(line(one), line(two)) == "") == same
    assert fingerprints.difference(line(said), line(9 * other, "cd")) == "", "of other samples nothing is known"
    assert fingerprints.difference(line(said), "a stage, saying of ") == "", "nor of none"
    out = said.clone()
    out[3] = -torch.inf
    assert fingerprints.difference(line(out), line(out)) == "" != fingerprints.difference(line(said), line(out))
    assert fingerprints.difference("a", "b") and fingerprints.difference("a", "a\nb")


def test_a_state_goes_on_where_streams_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's generators draw other projections, and those that are drawn are in the state."""
    teacher, student = nn.Sequential(linear(0), nn.Tanh()), nn.Sequential(linear(1), nn.Tanh())
    plan = curriculum.extracted(teacher, [("0", "0")], 2)
    first, plain = host(plan, student), seeding.generator
    monkeypatch.setattr(seeding, "generator", lambda seed, *names, **more: plain(seed + 1, *names, **more))
    second = host(plan, student)
    assert first(X, None, 0) != second(X, None, 0)
    second.load_state_dict(first.state_dict())
    assert first(X, None, 0) == second(X, None, 0)


class Padded(nn.Module):
    """Says anything where there is padding."""

    def __init__(self, noise: float, outlier: float = 1.0) -> None:
        super().__init__()
        self._noise, self._outlier = noise, outlier
        with seeding.global_rng(2, "init"):
            self.net = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 9))

    def forward(self, input: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        z = self.net(input) * self._outlier
        return torch.where(mask[..., None] == 1, z, z + self._noise)


@pytest.mark.parametrize("told", ["mask", "labels"])
def test_only_what_counts_is_compared(told: str) -> None:
    mask = torch.ones(8, 5)
    mask[:, :3] = 0
    x = {"input": torch.arange(40).reshape(8, 5) % 9, "mask": mask}
    labels = torch.where(mask == 1, 3, -100)
    given: dict[str, Any] = {"mask": "mask"} if told == "mask" else {"calibration_labels": labels}

    def built(teacher: nn.Module) -> Distiller:
        return Distiller(Padded(0.0), curriculum.one_shot(teacher), total=5, calibration=x, **given)

    state = built(Padded(0.0)).state_dict()
    for noise in (5.0, torch.nan):
        built(Padded(noise)).load_state_dict(state)
    with pytest.raises(ValueError, match="says something else of two samples"):
        built(Padded(0.0, 1.3)).load_state_dict(state)


def test_one_layer_of_several_that_says_something_else_is_seen() -> None:
    """However many classes there are beside it; and classes that are ruled out."""
    with seeding.global_rng(0, "init"):
        teacher, student = (nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 900)) for _ in range(2))
    plan = curriculum.joint(teacher, 0.5, "1", "1")
    state = host(plan, student).state_dict()

    def halved(layer: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output / 2

    def ruled(layer: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output.index_fill(-1, torch.arange(100, 140), -torch.inf)

    for hooks in ([(teacher[1], halved), (teacher[2], lambda m, i, o: 2 * o - teacher[2].bias)], [(teacher[2], ruled)]):
        handles = [module.register_forward_hook(hook) for module, hook in hooks]
        with pytest.raises(ValueError, match="says something else of two samples"):
            host(plan, student).load_state_dict(state)
        for handle in handles:
            handle.remove()
    host(plan, student).load_state_dict(state)


def test_labels_beside_a_teacher_do_not_hide_it() -> None:
    teacher = linear(0)
    plan = Curriculum("both", (Stage(WeightedSum(((1.0, Labels()), (1.0, Output(teacher))))),))
    state = host(plan).state_dict()
    teacher.register_forward_hook(lambda module, inputs, output: output.flip(-1))
    with pytest.raises(ValueError, match="says something else of two samples"):
        host(plan).load_state_dict(state)


def test_looks_at_the_start_leave_all_streams_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, student = nn.Sequential(linear(0), nn.Dropout(0.5)), nn.Sequential(linear(1), nn.ReLU())
    plan = curriculum.extracted(teacher, [("0", "0")], 3)
    first = replace(plan.stages[0], signal=replace(plan.stages[0].signal, redraw=True))
    plan = replace(plan, stages=(first, *plan.stages[1:]))
    distiller = host(plan, student)
    before = torch.get_rng_state()
    seen = fingerprints.asked(distiller._one, [first.signal, Output(Drawing(0, 1.0, None))], X[None], None)
    assert torch.get_rng_state().equal(before) and all(seen)
    monkeypatch.setattr(fingerprints, "asked", lambda one, signals, x, y: ["" for _ in signals])
    blind = host(plan, student).state_dict()
    streams = {name: value for name, value in distiller.state_dict().items() if name.endswith("stream")}
    assert streams and all(value.equal(blind[name]) for name, value in streams.items())


def test_signals_and_masks_may_remember_and_stand_elsewhere() -> None:
    class Counting(Square):
        def __init__(self, teacher: nn.Module, device: str) -> None:
            super().__init__(teacher)
            self.device = device

    class Shown(nn.Linear):
        def extra_repr(self) -> str:
            return f"at {id(self)}"

    with seeding.global_rng(0, "init"):
        shown = Shown(6, 5)
    state = host(Curriculum("own", (Stage(Counting(shown, "cpu")),))).state_dict()
    host(Curriculum("own", (Stage(Counting(copy.deepcopy(shown), "cuda:0")),))).load_state_dict(state)


def test_the_first_mask_of_a_training_is_still_looked_at() -> None:
    teacher, student = (nn.Sequential(nn.Embedding(9, width), nn.Linear(width, 9)) for width in (8, 4))
    x = {"input": torch.randint(9, (8, 5)), "mask": torch.ones(8, 5)}
    student.forward = lambda input: nn.Sequential.forward(student, input)
    teacher.forward = lambda input: nn.Sequential.forward(teacher, input)
    distiller = Distiller(student, curriculum.one_shot(teacher), total=5, calibration=x, mask="mask")
    assert distiller.drawn.text.count("saying of") == 1
    with pytest.raises(ValueError, match="mask"):
        distiller({**x, "mask": torch.full((8, 5), 0.5)}, None, 0)


def test_what_no_pass_does_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method for plots, say, that is written between two trainings."""
    state = host(curriculum.one_shot(Halved(1))).state_dict()
    for name, more in {"plot": lambda self: None, "extra_repr": lambda self: "", "colour": "green"}.items():
        monkeypatch.setattr(Halved, name, more, raising=False)
    host(curriculum.one_shot(Halved(1))).load_state_dict(state)
    monkeypatch.setattr(Halved, "noted", Named.noted)
    with pytest.raises(ValueError, match="has a teacher of the same numbers that says something else of two samples"):
        host(curriculum.one_shot(Halved(1))).load_state_dict(state)


def test_what_cannot_be_read_is_refused() -> None:
    with pytest.raises(ValueError, match="the teacher, a Linear, is on the meta device: load its weights before"):
        fingerprint(nn.Linear(6, 5, device="meta"))
    odd = linear(0)
    odd.register_buffer("inner", torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]))
    with pytest.raises(ValueError, match="Linear cannot be told apart from others like it: the numbers of 'inner', a "):
        fingerprint(odd)


def test_networks_in_a_circle_are_told_apart() -> None:
    def ring(seed: int) -> nn.Module:
        network = nn.ModuleList(nn.Sequential(linear(n)) for n in range(4))
        for part in network:
            part.append(network[0])
        network[3].append(linear(seed))
        return network

    assert fingerprint(ring(1)) == fingerprint(ring(1)) != fingerprint(ring(2))


@dataclass
class Settings:
    heat: float
    folder: str


class NotPadding:
    def __init__(self, padding: int) -> None:
        self.padding, self.calls = padding, 0

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return batch != self.padding


class Square:
    """A signal that is no dataclass."""

    def __init__(self, teacher: nn.Module) -> None:
        self.teacher = teacher

    def bind(self, students: Any, x: Any, y: Any = None) -> Bound:
        def loss(values: dict[str, torch.Tensor], target: torch.Tensor) -> torch.Tensor:
            return (values[""] - target).square().flatten(1).mean(1)

        return Bound(("",), lambda x, y: students.read(self.teacher, x, ""), loss)


class Other(Square):
    """The same, whose network has another name."""

    def __init__(self, teacher: nn.Module) -> None:
        self.networks = {"large": teacher}, [teacher]

    def bind(self, students: Any, x: Any, y: Any = None) -> Bound:
        return Square(self.networks[1][0]).bind(students, x, y)


def embedding(seed: int) -> nn.Module:
    with seeding.global_rng(seed, "init"):
        return nn.Sequential(nn.Embedding(10, 4))


def test_objects_are_told_by_what_they_hold() -> None:
    junk, ids = [], torch.randint(0, 10, (8, 5))

    def host(padding: int, seed: int) -> Distiller:
        junk.extend(object() for _ in range(999))  # other places in memory
        student, plan = nn.Sequential(nn.Embedding(10, 4)), Curriculum("own", (Stage(Square(embedding(seed))),))
        return Distiller(student, plan, total=5, calibration=ids, mask=NotPadding(padding))

    one = host(0, 0)
    one(ids, None, 0)
    host(0, 0).load_state_dict(one.state_dict())
    for other in (host(1, 0), host(0, 1)):
        with pytest.raises(ValueError, match="the saved state is of another curriculum"):
            other.load_state_dict(one.state_dict())
    told = described({"mask": NotPadding(0), "bare": object(), "tensor": torch.zeros(3000), "file": sys.stdout.write})
    assert not re.search("0x|\\.\\.\\.", told)
    assert described(torch.zeros(3000)) != described(torch.cat([torch.zeros(2999), torch.ones(1)]))


def test_networks_of_torch_jit_are_refused() -> None:
    network = torch.jit.script(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5)))
    for plan in (curriculum.one_shot(network), curriculum.extracted(network, [("0", "0")], 2)):
        with pytest.raises(ValueError, match=r"from torch\.jit, which hides what a network is: give the module it was"):
            Distiller(nn.Sequential(nn.Linear(6, 5)), plan, total=5, calibration=torch.randn(8, 6))
    with pytest.raises(ValueError, match=r"from torch\.jit"):
        fingerprints.fingerprint(network)


def test_a_teacher_is_gone_through_once_in_a_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many stages read it: it may be gigabytes."""
    taken: list[nn.Module] = []
    whole = fingerprints._taken
    monkeypatch.setattr(fingerprints, "_taken", lambda thing: taken.append(thing) or whole(thing))
    with seeding.global_rng(0, "init"):
        teacher, student = (nn.Sequential(*(nn.Linear(4, 4) for _ in range(6))) for _ in range(2))
    plan, x = curriculum.extracted(teacher, [(str(n), str(n)) for n in range(5)], 2), torch.randn(16, 4)
    for action in (
        lambda: Distiller(student, plan, total=20, calibration=x),
        lambda: recorded.record(plan, student, x, tmp_path, calibration=x),
        lambda: recorded.plan(tmp_path, of=plan),
    ):
        action()
        assert [thing for thing in taken if isinstance(thing, nn.Module)] == [teacher]
        taken.clear()
    with torch.no_grad():
        teacher[0].weight.add_(1)
    with pytest.raises(ValueError, match="has targets of another plan, teacher or data set"):
        recorded.plan(tmp_path, of=plan)
