from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdutils import projections, seeding, signals
from kdutils.lab.ensemble import Ensemble
from kdutils.losses import distillation_loss
from kdutils.tasks.models import MLP
from kdutils.tasks.parity import SparseParity

TASK = SparseParity(6, 2)


@pytest.fixture
def setting():
    students = Ensemble(partial(MLP, 6, 4), [1, 2], [0.1, 0.3])
    x = torch.stack([TASK.sample(500, seeding.generator(s, "x"))[0] for s in students.seeds])
    return students, x, MLP(6, 32)


def test_loss_is_hintons_when_both_sides_are_tempered():
    s, t = torch.randn(7, 5), torch.randn(7, 5)
    p, q = (t / 3).softmax(-1), (s / 3).softmax(-1)
    expected = 9 * (p * (p.log() - q.log())).sum() / 7
    torch.testing.assert_close(distillation_loss(s, t, 3.0, 3.0), expected)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_other_conventions_reduce_to_ours(temperature):
    """The table of book/conventions.md."""
    s, t, c = torch.randn(6, 5), torch.randn(6, 5), 5
    log_q, p = F.log_softmax(s / temperature, -1), F.softmax(t / temperature, -1)
    ours = distillation_loss(s, t, temperature, temperature)
    entropy = -(p * p.log()).sum(-1).mean()
    torch.testing.assert_close(F.kl_div(log_q, p, reduction="batchmean") * temperature**2, ours)
    torch.testing.assert_close(-(p * log_q).sum(-1).mean() * temperature**2, ours + temperature**2 * entropy)
    torch.testing.assert_close(F.kl_div(log_q, p, reduction="mean"), ours / (temperature**2 * c))
    teacher_only = -(p * F.log_softmax(s, -1)).sum(-1).mean()
    torch.testing.assert_close(teacher_only, distillation_loss(s, t, temperature, 1.0) + entropy)


def test_loss_limits():
    s, t = torch.randn(8, 3), torch.randn(8, 3)
    torch.testing.assert_close(distillation_loss(s, t, 1e-4), F.cross_entropy(s, t.argmax(-1)))
    torch.testing.assert_close(distillation_loss(s.repeat(3, 1), t.repeat(3, 1)), distillation_loss(s, t))
    s.requires_grad_()
    gradient = torch.autograd.grad(distillation_loss(s, t, 1e3, 1e3), s)[0]  # hot limit: matching centred logits
    centred = (s - s.mean(-1, keepdim=True)) - (t - t.mean(-1, keepdim=True))
    torch.testing.assert_close(gradient, centred / 3 / 8, atol=1e-4, rtol=1e-2)


def test_teacher_is_in_eval_mode_and_gets_no_gradient(setting):
    students, x, _ = setting
    teacher = nn.Sequential(nn.Linear(6, 32), nn.Dropout(0.5), nn.Linear(32, 2)).train()
    for signal in (signals.Output(teacher), signals.Hidden(teacher, "1", "act")):
        bound = signal.bind(students, x)
        teacher.train()
        first, second = bound.target(x, None), bound.target(x, None)
        assert torch.equal(first, second) and not first.requires_grad
        for parameter in students.parameters.values():
            parameter.requires_grad_(True)
        bound.loss(students.outputs(x, bound.reads), students.spread(first)).sum().backward()
        assert teacher.training and all(p.grad is None for p in teacher.parameters())


def test_hidden_target_is_centred_with_unit_scale(setting):
    students, x, teacher = setting
    bound = signals.Hidden(teacher).bind(students, x)
    target = bound.target(x, None)
    torch.testing.assert_close(target.mean(1), torch.zeros(2, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(target.square().mean((1, 2)), torch.ones(2))
    assert not torch.equal(bound.tensors["projection"][0], bound.tensors["projection"][1])
    assert bound.loss({"act": students.spread(target)}, students.spread(target)).abs().max() == 0
    off_by_one = bound.loss({"act": students.spread(target) + 1}, students.spread(target))
    torch.testing.assert_close(off_by_one, torch.full((4,), 0.5 * 4))


def test_layers_are_checked_when_the_signal_is_made(setting):
    students, x, teacher = setting
    with pytest.raises(ValueError, match="'hidden'"):
        signals.Hidden(teacher, "hiden")
    with pytest.raises(ValueError, match="'hidden'"):
        signals.Hidden(teacher, "act", "nowhere").bind(students, x)
    with pytest.raises(ValueError, match="positive"):
        signals.Output(teacher, teacher_temperature=0)


def test_weighted_sum_adds_its_terms(setting):
    students, x, teacher = setting
    parts = signals.Output(teacher), signals.Hidden(teacher)
    whole = signals.WeightedSum(((1.0, parts[0]), (0.3, parts[1]))).bind(students, x)
    values = students.outputs(x, whole.reads)
    expected = 0
    for weight, part in zip((1.0, 0.3), parts, strict=True):
        bound = part.bind(students, x)
        expected = expected + weight * bound.loss(values, students.spread(bound.target(x, None)))
    torch.testing.assert_close(whole.loss(values, students.spread(whole.target(x, None))), expected)


def test_regressor_learns(setting):
    students, x, teacher = setting
    bound = signals.Regressed(teacher).bind(students, x)
    start = bound.parameters["regressor"].detach().clone()
    target, values = students.spread(bound.target(x, None)), students.outputs(x, bound.reads)
    losses = []
    for _ in range(30):
        loss = bound.loss(values, target)
        losses.append(loss.detach())
        for p, g in zip(
            bound.parameters.values(), torch.autograd.grad(loss.sum(), [*bound.parameters.values()]), strict=True
        ):
            p.data -= 0.3 * g
    assert (losses[-1] < losses[0]).all() and not torch.equal(start, bound.parameters["regressor"])


HIDDEN = torch.randn(300, 40, generator=seeding.generator(0, "hidden")) @ torch.diag(torch.linspace(3, 0.1, 40))


@pytest.mark.parametrize(
    "make", [getattr(projections, n) for n in ("gaussian", "rademacher", "orthonormal", "neurons", "pca")]
)
def test_projections_are_seeded_matrices(make):
    first, again = (make(HIDDEN, 8, seeding.generator(1, "p")) for _ in range(2))
    assert first.shape == (8, 40) and torch.equal(first, again)
    if make is not projections.pca:
        assert not torch.equal(first, make(HIDDEN, 8, seeding.generator(2, "p")))
    if make in (projections.orthonormal, projections.neurons, projections.pca):
        torch.testing.assert_close(first @ first.T, torch.eye(8), atol=1e-5, rtol=0)
        with pytest.raises(ValueError, match="40"):
            make(HIDDEN, 41, seeding.generator(1, "p"))


def test_projection_details():
    generator = seeding.generator(1, "p")
    assert set(projections.rademacher(HIDDEN, 8, generator).mul(40**0.5).round(decimals=4).unique().tolist()) == {-1, 1}
    variances = (HIDDEN @ projections.pca(HIDDEN, 8, generator).T).var(0)
    assert (variances.diff() <= 0).all() and variances[0] >= HIDDEN.var(0).max()
    wide = projections.gaussian(torch.randn(2, 5000), 400, generator)
    assert abs(wide.square().sum(1).mean() - 1) < 0.02
    with pytest.raises(ValueError, match="calibration"):
        projections.pca(HIDDEN[:5], 8, generator)
