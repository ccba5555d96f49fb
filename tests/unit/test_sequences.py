"""Tasks with one label a position: only the positions asked count, in losses and in evaluation."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdutils import curriculum, seeding
from kdutils.curriculum import Curriculum, paired_blocks
from kdutils.lab import store
from kdutils.lab.ensemble import Ensemble
from kdutils.lab.optimisers import Adam
from kdutils.lab.training import Run, train
from kdutils.losses import IGNORE, distillation_loss
from kdutils.signals import Hidden, Labels, Output, Signal, WeightedSum
from kdutils.tasks.models import MLP, Transformer
from kdutils.tasks.sampling import BLOCK

TOKENS, LENGTH, PAD = 4, 6, 0
Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Copying:
    """The answer is the token itself (plus `shift`), asked for at some positions; padding ends a row, never asked."""

    shift: int = 0
    rate: float = 0.4

    def sample(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randint(1, TOKENS, (n, LENGTH), generator=generator)
        x[torch.arange(LENGTH) >= torch.randint(2, LENGTH + 1, (n, 1), generator=generator)] = PAD
        asked = (torch.rand(n, LENGTH, generator=generator) < self.rate) & (x != PAD)
        return x, torch.where(asked, (x + self.shift) % TOKENS, IGNORE)


TASK = Copying()


def table(scale: float = 0.0) -> nn.Embedding:
    """A network that looks its logits up, position by position: `scale` at the token read and 0 elsewhere."""
    return nn.Embedding.from_pretrained(scale * torch.eye(TOKENS), freeze=False)


def deep(width: int = 5, seed: int = 3) -> nn.Sequential:
    """Two layers, position by position; the hidden one is "0"."""
    with seeding.global_rng(seed, "deep"):
        return nn.Sequential(nn.Embedding(TOKENS, width), nn.Linear(width, TOKENS))


def fit(students: Ensemble, plan: Curriculum, **options: Any) -> Run:
    return train(students, options.pop("task", TASK), plan, **{"steps": 1, "batch": 8, "held_out": 50, **options})


@pytest.mark.parametrize("scale", [0.0, 2.0, 5.0])
def test_evaluation_looks_at_asked_positions_only(scale: float) -> None:
    """Right with probability softmax(scale, 0, 0, 0) wherever it is asked; without a scale, class 0 wins all ties."""
    run = fit(Ensemble(partial(table, scale), [1, 2]), curriculum.from_labels())
    np.testing.assert_allclose(run.accuracy[0], 1.0 if scale else 0.0)
    np.testing.assert_allclose(run.loss[0], math.log(1 + (TOKENS - 1) * math.exp(-scale)), rtol=1e-5)


@pytest.mark.parametrize("rate", [0.3, 0.02])
def test_evaluation_in_pieces_is_evaluation_at_once(rate: float) -> None:
    """In pieces of four batches, the last one short, each with its own number of questions (at times none)."""
    students, task = Ensemble(deep, [1]), Copying(rate=rate)
    x, y = task.sample(50, seeding.generator(0, "held-out"))
    logits, asked = deep()(x), y != IGNORE
    expected = F.cross_entropy(logits[asked], y[asked]).item()
    for batch in (1, 3, 13, 64):
        run = fit(students, curriculum.from_labels(), task=task, batch=batch)
        assert run.loss[0, 0] == pytest.approx(expected, rel=1e-5)
        assert run.accuracy[0, 0] == pytest.approx((logits.argmax(-1) == y)[asked].float().mean().item())


def test_the_held_out_task_is_what_is_evaluated() -> None:
    students, other = Ensemble(partial(table, 5.0), [1]), Copying(shift=1)
    own, judged = (fit(students, curriculum.from_labels(), held_out_task=judge) for judge in (None, other))
    assert own.accuracy[0] == 1 and judged.accuracy[0] == 0
    assert store.digest(own.students.parameters) == store.digest(judged.students.parameters)
    assert own.key != judged.key
    assert fit(students, curriculum.from_labels(), held_out_task=TASK).loss[0] == own.loss[0]


def test_a_step_on_labels_by_hand() -> None:
    """From even odds the logits of a token rise by the rate times its share of what is asked, times (truth - odds)."""
    run = fit(Ensemble(table, [1, 2], [0.1, 3.0]), curriculum.from_labels(), batch=4)
    for member in range(4):
        _, y = TASK.sample(4 * BLOCK, seeding.generator(run.students.seed_of(member), "data"))
        y = y[:4]
        share = y[y != IGNORE].bincount(minlength=TOKENS) / (y != IGNORE).sum()
        rise = run.students.learning_rate_of(member) * share[:, None] * (torch.eye(TOKENS) - 1 / TOKENS)
        torch.testing.assert_close(run.students.parameters["weight"][member], rise)


def test_nothing_asked_costs_nothing() -> None:
    students, x = Ensemble(deep, [1]), torch.arange(3 * LENGTH).view(1, 3, LENGTH) % TOKENS
    y = torch.full_like(x, IGNORE)
    for signal in (Labels(), Output(deep(8)), Output(deep(8), share=0.5), Hidden(deep(8), "0", "0", positions="asked")):
        bound = signal.bind(students, x, x)
        assert bound.loss(students.outputs(x, bound.reads), bound.target(x, y)).tolist() == [0]


@pytest.fixture
def students() -> Ensemble:
    return Ensemble(partial(deep, seed=4), [1, 2], [0.1, 0.3])


@pytest.fixture
def batch() -> Batch:
    pairs = [TASK.sample(40, seeding.generator(seed, "x")) for seed in (1, 2)]
    return tuple(torch.stack(part) for part in zip(*pairs, strict=True))


def losses(signal: Signal, students: Ensemble, batch: Batch) -> torch.Tensor:
    bound = signal.bind(students, *batch)
    return bound.loss(students.outputs(batch[0], bound.reads), students.spread(bound.target(*batch)))


def test_labels_are_the_cross_entropy_of_the_asked_rows(students: Ensemble, batch: Batch) -> None:
    x, y = batch
    loss = losses(Labels(), students, batch)
    for m in range(4):
        expected = F.cross_entropy(students.member(m)(x[m % 2]).flatten(0, 1), y[m % 2].flatten(), ignore_index=IGNORE)
        torch.testing.assert_close(loss[m], expected)


@pytest.mark.parametrize("temperatures", [(1.0, 1.0), (2.0, 3.0)])
def test_output_is_the_distillation_loss_of_the_asked_rows(
    temperatures: tuple, students: Ensemble, batch: Batch
) -> None:
    teacher = deep(8)
    x, y = batch
    loss = losses(Output(teacher, *temperatures), students, batch)
    for m in range(4):
        rows = y[m % 2] != IGNORE
        expected = distillation_loss(students.member(m)(x[m % 2])[rows], teacher(x[m % 2])[rows], *temperatures)
        torch.testing.assert_close(loss[m], expected)


def test_one_label_a_sample_is_asked_of_every_sample() -> None:
    one, x = Ensemble(partial(MLP, 3, 4), [1]), torch.randn(1, 9, 3, generator=seeding.generator(0, "x"))
    bound = Output(MLP(3, 8)).bind(one, x)
    assert torch.equal(bound.target(x, None), bound.target(x, torch.full((1, 9), IGNORE)))


def test_a_weighted_sum_keeps_every_terms_positions(students: Ensemble, batch: Batch) -> None:
    terms = [(2.0, Labels()), (1.0, Output(deep(8))), (0.5, Hidden(deep(8), "0", "0", positions="asked")),
             (0.1, Hidden(deep(8), "0", "0"))]  # fmt: skip
    expected = sum(weight * losses(signal, students, batch) for weight, signal in terms)
    torch.testing.assert_close(losses(WeightedSum(tuple(terms)), students, batch), expected)


PARTS = ("embed", "position", "blocks.0", "blocks.1", "readout")


def transformer(width: int, layers: int) -> Transformer:
    return Transformer(TOKENS, width, 2, layers, LENGTH, causal=False, padding=PAD)


@pytest.mark.parametrize("positions", ["all", "asked", "tokens"])
def test_every_stage_of_a_transformer_trains_what_lies_below(positions: str) -> None:
    teacher = Ensemble(partial(transformer, 12, 3), [9]).member(0)
    plan = curriculum.extracted(teacher, paired_blocks(3, 2), steps=2, positions=positions, normalise="position")
    students = Ensemble(partial(transformer, 8, 2), [1, 2], [0.02])
    run = fit(students, plan, steps=6, batch=4, keep_every=2, optimiser=Adam(warmup=0))
    assert [stage[1:] for stage in run.stages] == [(0, 2), (2, 4), (4, 6)] and np.isfinite(run.loss).all()
    moved, before = [], students.parameters
    for after in run.snapshots.values():
        changed = [name for name in after if not torch.equal(after[name], before[name])]
        moved.append({part for part in PARTS if any(name.startswith(part) for name in changed)})
        before = after
    assert moved == [set(PARTS[:3]), set(PARTS[:4]), set(PARTS)]
