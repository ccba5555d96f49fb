"""What the chapters on theory and controls add: frozen stages, other targets, wrong labels, exponents."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kdutils import curriculum, seeding
from kdutils.curriculum import Curriculum, Stage
from kdutils.lab import stats
from kdutils.lab.ensemble import Ensemble
from kdutils.lab.stats import Arm, Times
from kdutils.lab.training import DivergenceError, train
from kdutils.losses import distillation_loss
from kdutils.probes import two_phase
from kdutils.probes.mediation import Shuffled
from kdutils.reading import OUTPUT
from kdutils.signals import Hidden, Labels, Output
from kdutils.tasks.models import MLP
from kdutils.tasks.parity import SparseParity

TASK = SparseParity(6, 2)


@pytest.fixture
def students() -> Ensemble:
    return Ensemble(partial(MLP, 6, 4), [1, 2], [0.1, 0.3])


@pytest.fixture
def teacher() -> MLP:
    with seeding.global_rng(0, "teacher"):
        return MLP(6, 32)


def batch(students: Ensemble, n: int, name: str = "x") -> tuple[torch.Tensor, torch.Tensor]:
    pairs = [TASK.sample(n, seeding.generator(seed, name)) for seed in students.seeds]
    return tuple(torch.stack(part) for part in zip(*pairs, strict=True))


def test_only_named_parameters_move(students: Ensemble) -> None:
    plan = Curriculum("readout alone", (Stage(Labels(), only=("readout",)),))
    after = train(students, TASK, plan, steps=5, batch=8, evaluate_every=5, held_out=64).students.parameters
    for name, before in students.parameters.items():
        assert torch.equal(before, after[name]) != name.startswith("readout")


def test_a_frozen_layer_moves_again_in_the_next_stage(students: Ensemble) -> None:
    plan = Curriculum("two phases", (Stage(Labels(), 5, ("readout",)), Stage(Labels())))
    run = train(students, TASK, plan, steps=6, batch=8, evaluate_every=5, held_out=64)
    assert not torch.equal(run.students.parameters["hidden.weight"], students.parameters["hidden.weight"])


def test_a_stage_that_moves_nothing_says_what_there_is(students: Ensemble) -> None:
    with pytest.raises(ValueError, match=r"near it are .*'readout\.weight', 'hidden\.bias', 'hidden\.weight'"):
        train(students, TASK, Curriculum("x", (Stage(Labels(), only=("head",)),)), steps=1, held_out=64)


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_target_between_student_and_teacher(students: Ensemble, teacher: MLP, share: float) -> None:
    x, y = batch(students, 16)
    bound = Output(teacher, share=share).bind(students, x, y)
    losses = bound.loss(students.outputs(x), students.spread(bound.target(x, y)))
    for m in range(len(students)):
        own = students.member(m)(x[m % 2])
        target = share * teacher(x[m % 2]) + (1 - share) * own
        torch.testing.assert_close(losses[m], distillation_loss(own, target))


def test_no_gradient_flows_through_the_students_share_of_the_target(students: Ensemble, teacher: MLP) -> None:
    """The gradient of the logits is (student's - target's probabilities) / n, as for any constant target."""
    x, y = batch(students, 16)
    bound = Output(teacher, share=0.5).bind(students, x, y)
    logits = students.outputs(x)[OUTPUT].detach().requires_grad_()
    target = students.spread(bound.target(x, y))
    gradient = torch.autograd.grad(bound.loss({OUTPUT: logits}, target).sum(), logits)[0]
    wanted = logits.softmax(-1) - torch.lerp(logits, target, 0.5).softmax(-1)
    torch.testing.assert_close(gradient, wanted / 16)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5])
def test_a_share_is_more_than_nothing_and_at_most_all(teacher: MLP, share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        Output(teacher, share=share)


def test_shuffled_targets_are_those_of_the_neighbour(students: Ensemble, teacher: MLP) -> None:
    x, y = batch(students, 9)
    right, wrong = (s.bind(students, x, y) for s in (Hidden(teacher), Shuffled(Hidden(teacher))))
    torch.testing.assert_close(wrong.target(x, y), right.target(x, y).roll(1, 1))


def test_shuffled_labels_are_right_by_chance(students: Ensemble) -> None:
    x, y = batch(students, 4000)
    wrong = Shuffled(Labels()).bind(students, x, y).target(x, y)
    assert abs((wrong == y).float().mean() - 0.5) < 0.05  # five standard errors of 8,000 coins are 0.03


def test_scale_multiplies_the_targets(students: Ensemble, teacher: MLP) -> None:
    x, y = batch(students, 64)
    plain, larger = (replace(Hidden(teacher), scale=s).bind(students, x, y).target(x, y) for s in (1.0, 3.0))
    torch.testing.assert_close(larger, 3 * plain)


def test_a_redrawn_projection_changes_and_stays_centred_and_sized(students: Ensemble, teacher: MLP) -> None:
    x, y = batch(students, 2000)
    bound = Hidden(teacher, redraw=True).bind(students, x, y)
    first, second = bound.target(x, y), bound.target(x, y)
    assert (first - second).abs().mean() > 0.3
    for target in (first, second):
        torch.testing.assert_close(target.mean(1), torch.zeros(2, 4), atol=1e-4, rtol=0)
        assert 0.3 < target.square().mean().sqrt() < 3  # four random functionals of one size


def test_a_fixed_projection_stays(students: Ensemble, teacher: MLP) -> None:
    x, y = batch(students, 64)
    bound = Hidden(teacher).bind(students, x, y)
    assert torch.equal(bound.target(x, y), bound.target(x, y))


@pytest.mark.parametrize(
    ("plan", "signals"),
    [
        (curriculum.annealed, ["temperatures 8, 8", "temperatures 2, 2", "output of final teacher"]),
        (curriculum.interpolated, ["a share of 0.25", "a share of 0.5", "output of final teacher"]),
    ],
)
def test_curricula_of_outputs_alone(teacher: MLP, plan, signals: list[str]) -> None:
    stages = plan(teacher, (8, 2) if plan is curriculum.annealed else (0.25, 0.5), 3).stages
    assert [stage.steps for stage in stages] == [3, 3, None]
    assert all(str(stage.signal).endswith(text) for stage, text in zip(stages, signals, strict=True))


def test_noise_flips_labels_and_no_inputs() -> None:
    noisy = replace(TASK, noise=0.2)
    (x, y), (clean_x, clean_y) = (task.sample(20_000, seeding.generator(0, "noise")) for task in (noisy, TASK))
    assert torch.equal(x, clean_x) and torch.equal(noisy.label(x), clean_y)
    assert abs((y != clean_y).float().mean() - 0.2) < 5 * 0.4 / 20_000**0.5
    with pytest.raises(ValueError, match="noise"):
        SparseParity(6, 2, noise=0.5)


def test_a_diverging_rate_leaves_the_sweep_with_all_larger_ones(fake_run) -> None:
    asked = []

    def fit(seeds, rates):
        asked.append(tuple(rates))
        if max(rates) > 0.5:
            raise DivergenceError("too large", 1.0)
        return fake_run([[0.5] * len(seeds) * len(rates)] * 2, seeds, rates)

    arm = Arm.tuned([fit], [0.1, 0.3, 1.0, 3.0], [7], [1, 2], stats.lowest_loss)
    assert asked[:2] == [(0.1, 0.3, 1.0, 3.0), (0.1, 0.3)] and arm.learning_rate in (0.1, 0.3)
    with pytest.raises(DivergenceError):
        Arm.tuned([fit], [1.0], [7], [1, 2], stats.lowest_loss)


def times(values: np.ndarray, limit: float = 1e9) -> Times:
    return Times(np.asarray(values, dtype=float), limit)


@pytest.mark.parametrize("power", [0.0, 1.0, 2.5])
def test_exponent_of_a_power_law(power: float) -> None:
    sizes = [8, 16, 32, 64]
    fit = stats.exponent(sizes, [times([s**power] * 5) for s in sizes])
    assert fit.value == pytest.approx(power, abs=1e-12) and fit.interval() == pytest.approx((power, power), abs=1e-9)
    assert not fit.bound


def test_exponents_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng, sizes, hits = np.random.default_rng(0), [10, 20, 40], 0
    for _ in range(200):
        noisy = [times(s**2 * rng.lognormal(0, 0.3, 9)) for s in sizes]
        low, high = stats.exponent(sizes, noisy, 400).interval()
        hits += low <= 2 <= high
    assert 0.8 < hits / 200 <= 1  # said: 0.9; the bootstrap of a median of nine is coarse


def test_an_unfinished_size_makes_the_exponent_a_bound() -> None:
    sizes = [10, 20]
    fit = stats.exponent(sizes, [times([100] * 5), times([np.inf] * 3 + [300] * 2, 400)])
    assert fit.bound and fit.value == pytest.approx(2)
    assert stats.difference(fit, stats.exponent(sizes, [times([1] * 5)] * 2)).bound
    with pytest.raises(ValueError, match="two sizes"):
        stats.exponent([10, 10], [times([1] * 5)] * 2)


def test_paired_neurons_cancel() -> None:
    with seeding.global_rng(3, "paired"):
        network = two_phase.paired(10, 64)
    x, _ = SparseParity(10, 3).sample(500, seeding.generator(0, "x"))
    torch.testing.assert_close(network(x), torch.zeros(500, 2), atol=1e-5, rtol=0)
    assert network.hidden.weight.abs().unique().numel() == 1
    with pytest.raises(ValueError, match="even width"):
        two_phase.paired(10, 7)


def test_first_gradients_are_means_over_growing_samples() -> None:
    task = SparseParity(6, 2)
    students = Ensemble(partial(two_phase.paired, 6, 8), [1, 2])
    found = two_phase.first_gradients(students, task, Labels(), [32, 1500])
    x, y = task.sample(32, seeding.generator(2, "data"))
    network = students.member(1)
    loss = F.cross_entropy(network(x), y)
    torch.testing.assert_close(found[32][1], torch.autograd.grad(loss, network.hidden.weight)[0])
    assert (found[1500] - found[32]).abs().max() > 1e-4
    assert not students.parameters["hidden.weight"].requires_grad


def test_a_large_first_step_on_labels_points_to_the_support() -> None:
    """What Barak et al. (2022) use; a small one does not."""
    task = SparseParity(16, 2, support=(4, 9))
    students = Ensemble(partial(two_phase.paired, 16, 64), range(3))
    gradients = two_phase.first_gradients(students, task, Labels(), [16, 32_768])
    energy = {n: g.square().sum(1) for n, g in gradients.items()}
    share = {n: e[:, list(task.support)].sum(1) / e.sum(1) for n, e in energy.items()}
    assert share[32_768].min() > 0.75 > 0.5 > share[16].max()  # by chance: 1 / 8
