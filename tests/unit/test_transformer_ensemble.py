"""Transformers stacked and trained together: the same as alone, at the cost that the closed form says."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kdutils import curriculum, reading, seeding
from kdutils.curriculum import Curriculum
from kdutils.lab import store
from kdutils.lab.ensemble import Ensemble
from kdutils.lab.optimisers import SGD, Adam
from kdutils.lab.training import Run, train
from kdutils.reading import outputs_at
from kdutils.tasks import cost, models
from kdutils.tasks.models import Transformer
from kdutils.tasks.parity import SparseParity

TOKENS, WIDTH, HEADS, LAYERS, LENGTH, PAD = 7, 8, 2, 2, 6, 0
KINDS = [{}, {"causal": False}, {"causal": False, "padding": PAD}, {"last": True, "classes": 2}]


def fresh(**kind: Any) -> Transformer:
    sizes = {"vocabulary": TOKENS, "width": WIDTH, "heads": HEADS, "layers": LAYERS, "context": LENGTH}
    return Transformer(**{**sizes, **kind})


def sequences(*shape: int) -> torch.Tensor:
    """Token ids without padding."""
    return torch.randint(1, TOKENS, shape, generator=seeding.generator(0, "tokens"))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_member_has_the_outputs_and_gradients_of_the_network_alone(kind: dict) -> None:
    students = Ensemble(partial(fresh, **kind), (1, 2), (1.0, 2.0))
    x = sequences(2, 3, LENGTH)
    if kind.get("padding") is not None:
        x[:, :, -2:] = PAD
    for p in students.parameters.values():  # away from the start, where the tables are small
        p.add_(0.3 * torch.randn(p.shape, generator=seeding.generator(p.numel(), "away"))).requires_grad_(True)
    out = students.outputs(x, ("blocks.0", reading.OUTPUT))
    gradients = torch.autograd.grad(out[reading.OUTPUT].sin().sum(), list(students.parameters.values()))
    for m in range(4):
        network = students.member(m).requires_grad_(True)
        alone = outputs_at(network, x[m % 2], ("blocks.0", reading.OUTPUT))
        torch.testing.assert_close(alone, {path: value[m] for path, value in out.items()}, atol=1e-5, rtol=1e-4)
        alone[reading.OUTPUT].sin().sum().backward()
        for (name, p), stacked in zip(network.named_parameters(), gradients, strict=True):
            torch.testing.assert_close(p.grad, stacked[m], atol=1e-4, rtol=1e-4, msg=name)


class Derived(Transformer):
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return super().forward(tokens.flip(1)).flip(1)


def with_a_layer_of_torchs_own() -> Transformer:
    network = fresh()
    network.readout = nn.Linear(WIDTH, 3, bias=False)
    return network


def with_its_readout_without_a_bias() -> Transformer:
    network = fresh()
    network.readout = models.Linear(WIDTH, 3, bias=False)
    return network


def with_a_layer_that_has_no_weights() -> Transformer:
    network = fresh()
    network.norm = nn.Softmax(dim=0)  # over samples; stacked, it would be over members
    return network


@pytest.mark.parametrize(
    "make",
    [
        lambda: Derived(TOKENS, WIDTH, HEADS, LAYERS, LENGTH),
        lambda: Derived(TOKENS, WIDTH, HEADS, LAYERS, LENGTH, causal=False, padding=PAD),
        with_a_layer_of_torchs_own,
        with_its_readout_without_a_bias,
        with_a_layer_that_has_no_weights,
    ],
    ids=["class", "class with padding", "layer", "no bias", "no weights"],
)
def test_a_network_that_somebody_changed_runs_as_it_does_alone(make: Callable[[], nn.Module]) -> None:
    students, x = Ensemble(make, (1, 2)), sequences(2, 3, LENGTH)
    assert not students.stacks and Ensemble(fresh, (1, 2)).stacks
    out = students.outputs(x)[reading.OUTPUT]
    for m in range(2):
        torch.testing.assert_close(out[m], students.member(m)(x[m]), atol=1e-5, rtol=1e-4)


TASK = SparseParity(LENGTH, 2, tokens=True)
TEACHER = Ensemble(partial(fresh, vocabulary=2, width=12, heads=3, last=True, classes=2), [5]).member(0)
EXTRACTION = curriculum.extracted(TEACHER, curriculum.paired_blocks(2, 2), steps=5, normalise="position")


def fit(plan: Curriculum, seeds: tuple[int, ...] = (1, 2), rates: tuple[float, ...] = (0.01, 0.03), **options) -> Run:
    students = Ensemble(partial(fresh, vocabulary=2, last=True, classes=2), seeds, rates)
    return train(students, TASK, plan, **{"steps": 15, "batch": 8, "evaluate_every": 5, "held_out": 64, **options})


@pytest.mark.parametrize(
    ("plan", "optimiser"), [(curriculum.from_labels(), SGD()), (EXTRACTION, Adam(warmup=5))], ids=["SGD", "Adam"]
)
def test_a_member_learns_as_it_does_alone(plan: Curriculum, optimiser: Any) -> None:
    """Loss and outputs, not weights: a bias of the keys has no effect and no gradient but rounding, on which Adam
    takes steps as large as on any other."""
    together = fit(plan, optimiser=optimiser)
    x = TASK.sample(50, seeding.generator(0, "x"))[0]
    for member in (1, 2):
        seed, rate = together.students.seed_of(member), together.students.learning_rate_of(member)
        alone = fit(plan, (seed,), (rate,), optimiser=optimiser)
        np.testing.assert_allclose(alone.loss[:, 0], together.loss[:, member], atol=1e-4)
        torch.testing.assert_close(alone.network()(x), together.network(member)(x), atol=1e-3, rtol=1e-3)
    assert (np.abs(together.loss[-1] - together.loss[0]) > 1e-3).all()


def forward(vocabulary: int = TOKENS, layers: int = LAYERS, width: int = WIDTH, length: int = LENGTH) -> int:
    """Operations of the matrix products of one sequence: two a multiply-add.

    A block multiplies every position by matrices of 12 width^2 numbers in all, and compares it with every
    position and averages over them (the masked half of the pairs included: it is computed, then left out).
    Not counted, here or by torch: norms, softmax, ReLU, sums, and looking up embeddings.
    """
    return 2 * length * (layers * (12 * width**2 + 2 * length * width) + vocabulary * width)


@pytest.mark.parametrize("seeds", [(1,), (1, 2)], ids=len)
@pytest.mark.parametrize("kind", KINDS[:3], ids=str)
def test_operations_of_a_pass_there_and_back(kind: dict, seeds: tuple[int, ...]) -> None:
    """Back costs twice as much as there: a product for each factor's gradient."""
    students = Ensemble(partial(fresh, **kind), seeds)
    x = sequences(len(seeds), 3, LENGTH)
    parameters = [p.requires_grad_(True) for p in students.parameters.values()]
    there = cost.flops(lambda: students.outputs(x)[reading.OUTPUT])[1]
    both = cost.flops(lambda: torch.autograd.grad(students.outputs(x)[reading.OUTPUT].sum(), parameters))[1]
    assert there == len(seeds) * 3 * forward() and both == 3 * there


def test_operations_of_a_step() -> None:
    """`last` spares the readout of all positions but one."""
    student, teacher = (forward(vocabulary=0, width=w) + 2 * 2 * w for w in (WIDTH, 12))
    labels, shot = fit(curriculum.from_labels()), fit(curriculum.one_shot(TEACHER))
    np.testing.assert_allclose(np.diff(labels.flops), 5 * 8 * 3 * student)
    np.testing.assert_allclose(np.diff(shot.flops), 5 * 8 * (3 * student + teacher))


def test_a_hidden_stage_pays_for_the_blocks_below_alone() -> None:
    same = Ensemble(partial(fresh, vocabulary=2, last=True), [5]).member(0)
    spent = np.diff(fit(curriculum.extracted(same, [("embed", "blocks.0")], 5)).flops)[0]
    projection = 2 * LENGTH * WIDTH**2
    np.testing.assert_allclose(spent, 5 * 8 * (3 * forward(0, layers=1) + projection))


@pytest.mark.parametrize("kind", [{"heads": 4}, {"causal": False}, {"last": True}], ids=str)
def test_transformers_that_compute_different_things_have_different_names(kind: dict) -> None:
    plain, other = (store.describe(Ensemble(partial(fresh, **k), (1,))) for k in ({}, kind))
    assert store.key(plain) != store.key(other)
