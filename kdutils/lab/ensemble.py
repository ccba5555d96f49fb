"""Networks of one shape, stacked and trained as one batch: every seed times every learning rate."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from enum import Enum, auto
from numbers import Integral
from typing import Any

import torch
from torch import nn
from torch.func import vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from kdutils import checks, reading, seeding, teachers
from kdutils.tasks import models

Tensors = dict[str, torch.Tensor]


class Ensemble:
    """`len(learning_rates) * len(seeds)` independent networks that run as one batched network.

    A *seed* fixes a member's initial weights and the data it sees; members that share a seed and differ in learning
    rate start from the same weights and read the same samples (so a sweep is paired, and a teacher labels each sample
    once). Member `i` has learning rate `i // len(seeds)` and seed `i % len(seeds)`.

    A network of any class may be a member. Those of `kdutils.tasks.models` run stacked (`models.stacks`); others go
    through `torch.func.vmap` where that gives the numbers of each network alone, and one by one where it does not.

    Args:
        make: builds one network; called once per seed, with the global generators seeded.
        seeds: whole numbers, all different.
        learning_rates: one or more step sizes.
        device: where the stacked parameters live.

    Attributes:
        parameters, buffers: {name: (members, ...)}; what a network keeps between passes is all in these.
        frozen: names of the parameters that `make` froze with `requires_grad_(False)`.
        drawn: how many runs of `train` these students have been through: each reads samples of its own.

    Raises:
        ValueError: for seeds or learning rates that are no such numbers, or networks of different shapes.

    >>> from kdutils.tasks.models import MLP
    >>> students = Ensemble(lambda: MLP(4, 8), seeds=[0, 1, 2], learning_rates=[0.1, 1.0])
    >>> len(students), students.outputs(torch.ones(3, 5, 4))[""].shape
    (6, torch.Size([6, 5, 2]))
    """

    def __init__(
        self,
        make: Callable[[], nn.Module],
        seeds: Sequence[int],
        learning_rates: Sequence[float] = (1.0,),
        device: torch.device | str = "cpu",
    ) -> None:
        self.seeds = tuple(checks.listed("seeds", seeds, Integral))
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"an ensemble needs at least one seed, all different; got {list(self.seeds)}")
        self.learning_rates = tuple(checks.listed("learning_rates", learning_rates))
        if not self.learning_rates or not all(0 < rate < math.inf for rate in self.learning_rates):
            raise ValueError(f"learning rates must be positive; got {list(self.learning_rates)}")
        self.device = torch.device(device)
        checks.takes("make must be a function without arguments, such as functools.partial(MLP, 6, 8)", make)
        built = []
        for seed in self.seeds:
            with seeding.global_rng(seed, "init"):
                built.append(make())
        checks.members(built)
        # as they were built: a part that its author put into eval mode stays so when students train
        self._training = [name for name, part in built[0].named_modules() if part.training]
        self.networks = [checks.evaluated(network.to(self.device)) for network in built]
        self.frozen = frozenset(name for name, p in self.skeleton.named_parameters() if not p.requires_grad)
        self.stacks = models.stacks(self.skeleton)
        self.parameters = self._stack([dict(n.named_parameters()) for n in self.networks])
        self.buffers = self._stack([dict(n.named_buffers()) for n in self.networks])
        if not self.stacks:  # one network a member, which may keep something in Python between passes
            self.networks += [reading.copied(n) for _ in self.learning_rates[1:] for n in self.networks]
        self.drawn, self.passes = 0, None  # in a stage of `train`, what its signals share of their teachers
        self._way: list[_Way] = []  # found at the first pass, shared by clones

    @property
    def skeleton(self) -> nn.Module:
        """The network of the first member; only its structure counts, its weights are those of `parameters`."""
        return self.networks[0]

    def _stack(self, tensors: list[Tensors]) -> Tensors:
        repeats = len(self.learning_rates)
        return {name: torch.stack([t[name].detach() for t in tensors] * repeats).to(self.device) for name in tensors[0]}

    def __len__(self) -> int:
        return len(self.seeds) * len(self.learning_rates)

    def seed_of(self, member: int) -> int:
        return self.seeds[member % len(self.seeds)]

    def learning_rate_of(self, member: int) -> float:
        return self.learning_rates[member // len(self.seeds)]

    def spread(self, per_seed: Any) -> Any:
        """From one entry a seed (seeds, ...) to one a member (members, ...); a tuple, entry by entry."""
        if isinstance(per_seed, tuple):
            return tuple(self.spread(part) for part in per_seed)
        repeats = len(self.learning_rates)
        return per_seed if repeats == 1 else per_seed.repeat(repeats, *[1] * (per_seed.dim() - 1))

    def outputs(self, x: torch.Tensor, paths: tuple[str, ...] = (reading.OUTPUT,)) -> Tensors:
        """{path: (members, batch, ...)}, what each member's modules output in eval mode; the members stay as they are.

        Args:
            x: (seeds, batch, ...), one batch a seed; `x.expand(len(seeds), *x.shape)` shares one batch.
            paths: module paths; `""` is the network's output.
        """
        return self.run(x, paths)[0]

    def run(
        self, x: torch.Tensor, paths: tuple[str, ...], mode: str = "eval", noise: tuple[str | int, ...] = ("noise",)
    ) -> tuple[Tensors, Tensors]:
        """`outputs`, and the buffers (members, ...) as the pass left them.

        Args:
            mode: "eval"; "train" runs dropout, batch norm and the like as they were built.
            noise: names of the stream that members draw from which draw at random (see `kdutils.seeding`).
        """
        if x.shape[0] != len(self.seeds):
            raise ValueError(f"x holds {x.shape[0]} batches; expected one for each of {len(self.seeds)} seeds")
        if self.stacks and len(self) > 1:  # on small networks vmap's own work is a large part of a step
            buffers = {name: value.clone() for name, value in self.buffers.items()}
            with self._in_mode(mode):
                return reading.outputs_at(self.skeleton, self.spread(x), paths, {**self.parameters, **buffers}), buffers
        if not self._way:
            self._way.append(_Way.ONE_BY_ONE if self.stacks else self.clone()._found(x[:, :8], paths))
        way = self._way[0]
        if way is _Way.VMAP and mode == "eval":
            return self._vmapped(x, paths, self.parameters)
        with self._in_mode(mode):
            return self._one_by_one(x, paths, self.parameters, noise if way is _Way.NOISY or mode == "train" else None)

    def _one_by_one(
        self, x: torch.Tensor, paths: tuple[str, ...], parameters: Tensors, noise: tuple[str | int, ...] | None
    ) -> tuple[Tensors, Tensors]:
        lone = len(self) == 1  # whose stacked weights are used as they are, without a copy
        parts = {name: (value.squeeze(0),) if lone else value.unbind(0) for name, value in parameters.items()}
        passes = []
        for member in range(len(self)):
            network, seed = self.networks[member % len(self.networks)], self.seed_of(member)
            state = {name: part[member] for name, part in parts.items()}
            state |= {name: value[member].clone() for name, value in self.buffers.items()}
            with seeding.global_rng(seed, *noise, device=self.device) if noise else nullcontext():
                values = reading.outputs_at(network, x[member % len(self.seeds)], paths, state)
            passes.append((values, {name: state[name] for name in self.buffers}))
        if lone:
            return tuple({name: value[None] for name, value in part.items()} for part in passes[0])
        return tuple({name: torch.stack([p[i][name] for p in passes]) for name in passes[0][i]} for i in (0, 1))

    def _vmapped(self, x: torch.Tensor, paths: tuple[str, ...], parameters: Tensors) -> tuple[Tensors, Tensors]:
        def one(parameters: Tensors, buffers: Tensors, batch: torch.Tensor) -> tuple[Tensors, Tensors]:
            state = {**parameters, **buffers}
            values = reading.outputs_at(self.skeleton, batch, paths, state)
            return values, {name: state[name] for name in buffers}

        buffers = {name: value.clone() for name, value in self.buffers.items()}
        with sdpa_kernel(SDPBackend.MATH):  # vmap has no rule for the fused kernels: it would loop over members
            return vmap(one)(parameters, buffers, self.spread(x))

    def _found(self, x: torch.Tensor, paths: tuple[str, ...]) -> _Way:
        """How the members run: through vmap where that gives the numbers and gradients of each alone."""

        def tried(run: Callable[[Tensors], tuple[Tensors, Tensors]]) -> list[torch.Tensor]:
            moving = {n: p.detach().clone().requires_grad_(p.is_floating_point()) for n, p in self.parameters.items()}
            with torch.enable_grad():
                values, buffers = run(moving)
                total = sum(value.sin().sum() for value in values.values())
                wanted = [p for p in moving.values() if p.requires_grad]
                slopes = torch.autograd.grad(total, wanted, allow_unused=True) if total.requires_grad else ()
            return [v.detach() for v in (*values.values(), *buffers.values(), *slopes) if v is not None]

        lone = len(self) == 1 or models.alone(self.skeleton)
        self._compare(x, paths)
        with seeding.global_rng(0, device=self.device):
            for _ in range(3):  # other threads of a program draw, too, now and then
                before, alone = seeding.global_state(self.device), tried(lambda p: self._one_by_one(x, paths, p, None))
                if seeding.global_state(self.device) == before:
                    break
            else:
                return _Way.NOISY
        if lone:
            return _Way.ONE_BY_ONE
        try:
            before = checks.attributes(self.skeleton)
            pairs = zip(alone, tried(lambda p: self._vmapped(x, paths, p)), strict=True)
            if not all(torch.allclose(one, two, rtol=1e-3, atol=1e-4, equal_nan=True) for one, two in pairs):
                raise ValueError("torch.func.vmap gives other numbers")
            if any(value is not before[key] for key, value in checks.attributes(self.skeleton).items()):
                raise ValueError("a pass changes Python attributes")
        except Exception as error:
            of, reason = type(self.skeleton).__name__, (str(error).strip() or type(error).__name__).splitlines()[0]
            warnings.warn(f"the members of this ensemble of {of} run one by one: {reason}", stacklevel=4)
            return _Way.ONE_BY_ONE
        return _Way.VMAP

    def _compare(self, x: torch.Tensor, paths: tuple[str, ...]) -> None:
        """ValueError where a member's gradients, at weights that its network does not hold, are not its own:
        checkpointing goes through the pass again on the way back, when the network has its own weights again."""
        moved = {n: (p[:1] * 1.25 if p.is_floating_point() else p[:1]).detach() for n, p in self.parameters.items()}
        wanted, slopes = [name for name, p in moved.items() if p.is_floating_point()], []
        plain = self.with_parameters(moved).member(0)
        for one in (reading.copied(self.networks[0]), plain):
            with self._in_mode("train", [one]), torch.enable_grad(), seeding.global_rng(0, device=self.device):
                own = {n: moved[n][0].clone().requires_grad_(n in wanted) for n in moved}
                state = own | {n: b[0].clone() for n, b in self.buffers.items()} if one is not plain else {}
                own = own if state else {n: p.requires_grad_(n in wanted) for n, p in plain.named_parameters()}
                try:
                    total = sum(v.sin().sum() for v in reading.outputs_at(one, x[0], paths, state).values())
                    slopes.append(torch.autograd.grad(total, [own[n] for n in wanted], allow_unused=True))
                except Exception:  # a pass in train mode may ask for more samples, or for labels
                    return
        for name, one, two in zip(wanted, *slopes, strict=True):
            dense = [slope.to_dense() for slope in (one, two) if slope is not None]
            if len(dense) == 2 and not torch.allclose(*dense, rtol=1e-3, atol=1e-4, equal_nan=True):
                told = f"in an ensemble the gradient of {name!r} of {type(plain).__name__} is not its own, as with "
                raise ValueError(f"{told}gradient checkpointing or a pass that counts others: see kdutils.distiller")

    @contextmanager
    def _in_mode(self, mode: str, networks: Sequence[nn.Module] = ()) -> Iterator[None]:
        """The members in training mode inside the block: wholly, where their maker left them in eval mode."""
        networks = networks or self.networks
        modules = [named for n in networks for named in n.named_modules()] if mode == "train" else []
        for name, part in modules:
            part.training = "" not in self._training or name in self._training
        try:
            yield
        finally:
            for _, part in modules:
                part.training = False

    def member(self, index: int) -> nn.Module:
        """A plain copy of one member, in eval mode."""
        network = reading.copied(self.networks[index % len(self.networks)])
        own = dict(network.named_parameters())
        with torch.no_grad():
            for name, value in self.parameters.items():
                own[name].copy_(value[index])
        for name, value in self.buffers.items():
            path, _, leaf = name.rpartition(".")
            network.get_submodule(path)._buffers[leaf] = value[index].detach().clone()
        return network.eval()

    @torch.no_grad()
    def shape_at(self, path: str, x: torch.Tensor) -> torch.Size:
        """(batch, ...), the shape of what a member's module at `path` returns when all read `x` (seeds, batch, ...)."""
        values = self.outputs(x, (path,))[path]
        checks.not_probabilities(values, "student") if path == reading.OUTPUT else None
        return values.shape[1:]

    def teacher(self, network: nn.Module) -> nn.Module:
        return (self.passes or teachers.Passes()).copy(network, self.device)

    def read(self, teacher: nn.Module, x: Any, path: str, units: int | None = None, state: Any = None) -> torch.Tensor:
        return teachers.read(teacher, x, path, units, state, self.passes)

    def with_parameters(self, state: Tensors) -> Ensemble:
        """The same seeds, learning rates and shape, with other (stacked) parameters, and buffers where given."""
        other = copy.copy(self)
        other.passes = None
        other.parameters = {name: state[name] for name in self.parameters}
        other.buffers = {name: state.get(name, value) for name, value in self.buffers.items()}
        return other

    def clone(self) -> Ensemble:
        """A copy that can be trained without touching this one."""
        state = {name: value.detach().clone() for name, value in {**self.parameters, **self.buffers}.items()}
        other = self.with_parameters(state)
        if not self.stacks:  # their forward passes may keep something in Python
            other.networks = [reading.copied(network) for network in self.networks]
        return other

    def describe(self) -> dict[str, object]:
        """What the ensemble is, for the store: its networks, their contents, seeds and learning rates."""
        return {
            "networks": self.networks[: len(self.seeds)],
            "state": {**self.parameters, **self.buffers},
            "seeds": self.seeds,
            "learning rates": self.learning_rates,
            "drawn": self.drawn,
            "training": self._training,
        }


class _Way(Enum):
    """How the members go through a pass: at once; in turn; in turn and each with a random stream of its own."""

    VMAP = auto()
    ONE_BY_ONE = auto()
    NOISY = auto()
