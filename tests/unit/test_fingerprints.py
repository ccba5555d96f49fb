"""Teachers, masks and signals are told apart by all that they do, and alike in every process."""

import copy
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
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
from kdutils.signals import Bound


def linear(seed: int) -> nn.Linear:
    with seeding.global_rng(seed, "init"):
        return nn.Linear(6, 5)


def half(z: torch.Tensor) -> torch.Tensor:
    return z / 2


class Held(nn.Module):
    """Keeps something that is neither a parameter nor a plain attribute, and what passes leave behind."""

    def __init__(self, held: Any) -> None:
        super().__init__()
        self.first, self._held, self.calls, self.memory, self._last = linear(0), held, [], {}, None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z, _ = self.first(x), self._held
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
PAIRS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "tensor": lambda: (Held(torch.tensor(1.0)), Held(torch.tensor(9.0))),
    "list": lambda: (Held([1.0]), Held([5.0])),
    "number": lambda: (Held(1.0), Held(5.0)),
    "networks in a list": lambda: (Held([linear(1)]), Held([linear(2)])),
    "networks in a dict": lambda: (Held({"a": linear(1)}), Held({"a": linear(2)})),
    "what a method does": lambda: (Halved(1), Named(1)),
    "a dataclass": lambda: (Fielded(5), Fielded(6)),
    **{
        way: lambda way=way: (Scaled(1.0, way), Scaled(9.0, way))
        for way in ("method that sets it", "helper", "property", "decorated", "getattr", "part")
    },
}


@pytest.mark.parametrize("pair", PAIRS)
def test_teachers_that_differ_are_told_apart(pair: str, tmp_path: Path) -> None:
    (one, two), (again, _) = (PAIRS[pair]() for _ in range(2))
    x = torch.randn(8, 6)
    assert fingerprint(one) != fingerprint(two)
    one(x)
    assert fingerprint(one) == fingerprint(again) == fingerprint(copy.deepcopy(again)), "a pass changes nothing"
    recorded.record(curriculum.one_shot(again), linear(3), x, tmp_path, calibration=x)
    recorded.plan(tmp_path, of=curriculum.one_shot(one))
    with pytest.raises(ValueError, match="targets of another plan, teacher or data set"):
        recorded.plan(tmp_path, of=curriculum.one_shot(two))


def test_what_no_pass_does_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method for plots, say, that is written between two trainings."""
    before = fingerprint(Halved(1))
    for name, more in {"plot": lambda self: None, "extra_repr": lambda self: "", "colour": "green"}.items():
        monkeypatch.setattr(Halved, name, more, raising=False)
    assert fingerprint(Halved(1)) == before
    monkeypatch.setattr(Halved, "noted", Named.noted)
    assert fingerprint(Halved(1)) != before


def test_a_stream_is_told_by_its_being_there() -> None:
    class Drawing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.stream = linear(0), torch.Generator()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.first(x) + torch.rand(1, generator=self.stream)

    before = fingerprint(network := Drawing())
    network(torch.randn(2, 6))
    assert fingerprint(network) == before


def test_what_cannot_be_read_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Linear cannot be told apart from others like it: .* on the meta device"):
        fingerprint(nn.Linear(6, 5, device="meta"))


def test_of_a_configuration_counts_what_is_read() -> None:
    class Configured(nn.Module):
        def __init__(self, heat: float, folder: str) -> None:
            super().__init__()
            self.first, self.settings = linear(0), SimpleNamespace(heat=heat, folder=folder)
            self.own = Settings(heat, folder)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.first(x) / self.own.heat

    same, other, moved = (fingerprint(Configured(*of)) for of in ((1.0, "a"), (2.0, "a"), (1.0, "b")))
    assert same == moved != other


def test_networks_that_hold_one_another_are_told_apart() -> None:
    def ring(seed: int) -> nn.Module:
        network = nn.ModuleList(Held([]) for _ in range(12))
        for part in network:
            part._held = [*network, linear(seed)]
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
        return Bound(("",), lambda x, y: x, lambda values, target: values[""].square().mean((1, 2, 3)))


def test_objects_are_told_by_what_they_hold() -> None:
    junk, ids = [], torch.randint(0, 10, (8, 5))

    def host(padding: int, seed: int) -> Distiller:
        junk.extend(object() for _ in range(999))  # other places in memory
        student, plan = nn.Sequential(nn.Embedding(10, 4)), Curriculum("own", (Stage(Square(linear(seed))),))
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


def test_what_is_kept_in_a_call_is_what_is_found_outside_of_it() -> None:
    one, two = Held(None), Held(None)
    one._held, two._held = [two], [one]
    plain = [described(network) for network in (one, two, one)]
    with fingerprints.once():
        assert [described(network) for network in (one, two, one)] == plain
