"""Networks of one shape, stacked and trained as one batch: every seed times every learning rate."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.func import vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from kdutils import reading, seeding
from kdutils.tasks import models


class Ensemble:
    """`len(learning_rates) * len(seeds)` independent networks that run as one batched network.

    A *seed* fixes a member's initial weights and the data it sees; members that share a seed and differ
    in learning rate start from the same weights and read the same samples (so a sweep is paired, and a
    teacher labels each sample once). Member `i` has learning rate `i // len(seeds)` and seed
    `i % len(seeds)`.

    Args:
        make: builds one network; called once per seed, with torch's global generator seeded.
        seeds: whole numbers, all different.
        learning_rates: one or more step sizes.
        device: where the stacked parameters live.

    Attributes:
        stacks: the network runs as it is on all members at once (`models.stacks`); others go through `vmap`.

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
        if not seeds or len(set(seeds)) != len(seeds):
            raise ValueError(f"an ensemble needs at least one seed, all different; got {list(seeds)}")
        if not learning_rates or min(learning_rates) <= 0:
            raise ValueError(f"learning rates must be positive; got {list(learning_rates)}")
        self.seeds, self.learning_rates = tuple(seeds), tuple(float(lr) for lr in learning_rates)
        self.device = torch.device(device)
        networks = []
        for seed in self.seeds:
            with seeding.global_rng(seed, "init"):
                networks.append(make())
        self.skeleton = networks[0].to(self.device).eval()
        self.stacks = models.stacks(self.skeleton)
        self.parameters = self._stack([dict(n.named_parameters()) for n in networks])
        self.buffers = self._stack([dict(n.named_buffers()) for n in networks])

    def _stack(self, tensors: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
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

    def outputs(self, x: torch.Tensor, paths: tuple[str, ...] = (reading.OUTPUT,)) -> dict[str, torch.Tensor]:
        """What each member's modules at `paths` output.

        Args:
            x: (seeds, batch, ...), one batch a seed; `x.expand(len(seeds), *x.shape)` shares one batch.
            paths: module paths; `""` is the network's output.

        Returns:
            {path: (members, batch, ...)}
        """
        if x.shape[0] != len(self.seeds):
            raise ValueError(f"x holds {x.shape[0]} batches; expected one for each of {len(self.seeds)} seeds")

        def one(state: dict[str, torch.Tensor], batch: torch.Tensor) -> dict[str, torch.Tensor]:
            return reading.outputs_at(self.skeleton, batch, paths, state)

        state = {**self.parameters, **self.buffers}
        if len(self) == 1:  # the same thing without the overhead of a dimension
            single = one({name: value.squeeze(0) for name, value in state.items()}, x.squeeze(0))
            return {path: value[None] for path, value in single.items()}
        if self.stacks:  # on small networks vmap's own work is a large part of a step
            return one(state, self.spread(x))
        with sdpa_kernel(SDPBackend.MATH):  # vmap has no rule for the fused kernels: it would loop over members
            return vmap(one, randomness="different")(state, self.spread(x))

    def member(self, index: int) -> nn.Module:
        """A plain copy of one member, in eval mode."""
        network = copy.deepcopy(self.skeleton)
        state = {**self.parameters, **self.buffers}
        network.load_state_dict({name: value[index] for name, value in state.items()}, strict=False)
        return network.eval()

    @torch.no_grad()
    def shape_at(self, path: str, x: torch.Tensor) -> torch.Size:
        """(batch, ...), the shape of what a member's module at `path` returns when all read `x` (seeds, batch, ...)."""
        return self.outputs(x, (path,))[path].shape[1:]

    def with_parameters(self, parameters: dict[str, torch.Tensor]) -> Ensemble:
        """The same seeds, learning rates and shape, with other (stacked) parameters."""
        other = copy.copy(self)
        other.parameters = dict(parameters)
        return other

    def clone(self) -> Ensemble:
        """A copy that can be trained without touching this one."""
        other = self.with_parameters({name: p.detach().clone() for name, p in self.parameters.items()})
        other.buffers = {name: b.clone() for name, b in self.buffers.items()}
        return other

    def describe(self) -> dict[str, object]:
        """What the ensemble is, for the store: its shape, initial contents, seeds and learning rates."""
        state = {**self.parameters, **self.buffers}
        first = copy.deepcopy(self.skeleton)
        first.load_state_dict({name: value[0] for name, value in state.items()}, strict=False)
        return {
            "network": first,
            "all": state,
            "seeds": self.seeds,
            "learning rates": self.learning_rates,
        }
