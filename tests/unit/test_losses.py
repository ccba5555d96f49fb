"""Losses at the edges: what does not count, classes ruled out, few bits, temperatures near 0; elsewhere as ever."""

import math

import pytest
import torch
from torch.nn import functional as F

from kdutils import losses, seeding
from kdutils.losses import IGNORE, cross_entropy, distillation_loss, divergence, mean, tempered, where

BAD = (torch.nan, torch.inf, -torch.inf)


def draw(*shape: int, name: str = "z") -> torch.Tensor:
    return torch.randn(shape, generator=seeding.generator(0, name, *shape))


def plain(student: torch.Tensor, teacher: torch.Tensor, t: float = 1.0, s: float = 1.0) -> torch.Tensor:
    """The formula, without a thought for its edges."""
    log_p, log_q = F.log_softmax(teacher / t, -1), F.log_softmax(student / s, -1)
    return s**2 * (log_p.exp() * (log_p - log_q)).sum(-1).mean(-1)


def gradient(loss: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss.sum(), of, retain_graph=True)[0]


@pytest.mark.parametrize("shape", [(7, 2), (3, 64, 5), (2, 3, 9, 300)], ids=str)
@pytest.mark.parametrize("temperatures", [(1.0, 1.0), (1e-3, 1.0), (4.0, 1.0), (8.0, 8.0), (0.3, 2.0)], ids=str)
def test_ordinary_logits_bit_for_bit(shape: tuple, temperatures: tuple) -> None:
    """In value and gradient: what was recorded stays."""
    for scale in (0.1, 1.0, 20.0):
        s, t = (scale * draw(*shape)).requires_grad_(), scale * draw(*shape, name="t")
        new, old = distillation_loss(s, t, *temperatures), plain(s, t, *temperatures)
        assert torch.equal(new, old) and torch.equal(gradient(new, s), gradient(old, s))


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("shape", [(4, 16, 2), (2, 8, 6, 40)], ids=str)
def test_masked_means_bit_for_bit(shape: tuple, rate: float) -> None:
    z = draw(*shape).requires_grad_()
    y = torch.randint(0, shape[-1], shape[:-1], generator=seeding.generator(0, "y"))
    y[torch.rand(y.shape, generator=seeding.generator(0, "asked")) >= rate] = IGNORE
    asked = y != IGNORE
    old = F.cross_entropy(z.flatten(0, -2), y.flatten(), reduction="none", ignore_index=IGNORE).view(y.shape)
    assert torch.equal(cross_entropy(z, y), old)
    total = (old * asked.float()).flatten(1).sum(1) / asked.float().flatten(1).sum(1).clamp_min(1)
    for weights in (asked, asked.float()):
        new = mean(cross_entropy(z, y), weights)
        assert torch.equal(new, total) and torch.equal(gradient(new, z), gradient(total, z))
    if rate == 1:  # where all count, they need not be said to
        assert torch.equal(mean(old), total) and torch.equal(gradient(mean(old), z), gradient(total, z))


@pytest.mark.parametrize("value", BAD)
def test_what_does_not_count_may_hold_anything(value: float) -> None:
    """In loss and gradient, of labels and of a teacher's output."""
    z, t, y = draw(2, 6, 5), draw(2, 6, 5, name="t"), torch.arange(12).view(2, 6) % 5
    y[:, ::2] = IGNORE
    bad, bad_t = z.clone(), t.clone()
    bad[:, 0] = bad[:, 2, 1] = bad_t[:, 4] = bad_t[:, 2, 3] = value
    results = []
    for student, teacher in ((z, t), (bad, bad_t)):
        student = student.clone().requires_grad_()
        asked, log_p = y != IGNORE, F.log_softmax(teacher, -1)
        each = where(asked, lambda a, b: divergence(a, b, 2.0), student, log_p)
        found = mean(cross_entropy(student, y), asked), mean(each, asked)
        results.append((*found, *(gradient(loss, student) for loss in found)))
    for good, same in zip(*results, strict=True):
        assert same.isfinite().all() and torch.equal(good, same)


def test_mean_of_values_that_are_not_numbers_but_do_not_count() -> None:
    values = torch.tensor([[1.0, torch.nan, 3.0], [torch.inf, -torch.inf, torch.nan]], requires_grad=True)
    weights = torch.tensor([[1, 0, 1], [0, 0, 0]])
    for w in (weights, weights.bool(), weights.float()):
        assert mean(values, w).tolist() == [2.0, 0.0]
        assert gradient(mean(values, w), values).tolist() == [[0.5, 0, 0.5], [0, 0, 0]]
    assert mean(values, torch.ones(2, 3)).isnan().all()  # nothing is hidden


def test_nothing_asked_is_a_loss_of_nothing() -> None:
    z, y = draw(2, 3, 5).requires_grad_(), torch.full((2, 3), IGNORE)
    loss = mean(cross_entropy(z, y), y != IGNORE)
    assert loss.tolist() == [0, 0] and gradient(loss, z).abs().max() == 0
    each = where(y != IGNORE, lambda a, b: divergence(a, b, 1.0), z, draw(2, 3, 5).log_softmax(-1))
    assert mean(each, y != IGNORE).tolist() == [0, 0]


@pytest.mark.parametrize("temperatures", [(1.0, 1.0), (2.0, 3.0), (1e-20, 1.0), (1e-3, 1e-5)], ids=str)
def test_a_class_that_the_teacher_rules_out_is_as_if_it_were_not_there(temperatures: tuple) -> None:
    """The student's share of it counts, as F.kl_div has it; and nothing is left where both rule it out."""
    s, t = draw(6, 4), draw(6, 4, name="t")
    for both in (False, True):
        student, teacher = s.clone(), t.clone()
        teacher[:, 1] = -torch.inf
        if both:
            student[:, 1] = -torch.inf
        student.requires_grad_()
        loss = distillation_loss(student, teacher, *temperatures)
        log_q = F.log_softmax(student.double() / temperatures[1], -1)
        p = F.softmax(teacher.double() / temperatures[0], -1)
        wanted = temperatures[1] ** 2 * torch.where(p > 0, p * (p.clamp_min(1e-300).log() - log_q), 0).sum(-1).mean()
        torch.testing.assert_close(loss.double(), wanted, rtol=1e-4, atol=1e-7)
        assert gradient(loss, student).isfinite().all()
    kept = [0, 2, 3]
    torch.testing.assert_close(distillation_loss(student, teacher), distillation_loss(s[:, kept], t[:, kept]))


def test_a_class_that_the_student_alone_rules_out_costs_infinity() -> None:
    s, t = draw(6, 4), draw(6, 4, name="t")
    s[:, 1] = -torch.inf
    assert distillation_loss(s.requires_grad_(), t) == torch.inf
    assert not gradient(distillation_loss(s, t), s).isnan().any()


def test_a_teacher_that_rules_out_everything_or_is_no_number_is_not_hidden() -> None:
    for value in (torch.nan, torch.inf):
        t = draw(6, 4)
        t[2, 1] = value
        assert distillation_loss(draw(6, 4), t).isnan()
    assert distillation_loss(draw(6, 4), torch.full((6, 4), -torch.inf)).isnan()
    s = draw(6, 4)
    s[2, 1] = torch.nan
    assert distillation_loss(s, draw(6, 4)).isnan()


COLD = (0.5, 1e-2, 1e-3, 9e-4, 1e-5, 1e-10, 1e-20, 1e-30, 1e-39)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("which", ["teacher", "student", "both"])
@pytest.mark.parametrize("hot", [*COLD, 50.0, 1e3, 1e4])
def test_any_temperature_is_that_of_float64(dtype: torch.dtype, hot: float, which: str) -> None:
    """Half precision holds the logits; the arithmetic is that of float32 at least, and exact enough.

    At 1e-3 a float32 quotient of 70 is off by 4e-3, which a near tie shows: hence logits without any.
    """
    temperatures = (hot if which != "student" else 1.0, hot if which != "teacher" else 1.0)
    s, t = (draw(9, 4) * 5).to(dtype), torch.tensor([70.0, 2.0, 1.0, -60.0]).repeat(9, 1).to(dtype)
    s.requires_grad_()
    s64 = s.detach().double().requires_grad_()
    loss = distillation_loss(s, t, *temperatures)
    shifted = [z - z.detach().amax(-1, keepdim=True) for z in (s64, t.double())]
    log_q, p = F.log_softmax(shifted[0] / temperatures[1], -1), F.softmax(shifted[1] / temperatures[0], -1)
    wanted = (temperatures[1] ** 2 * (torch.xlogy(p, p) - torch.where(p > 0, p * log_q, 0)).sum(-1)).mean()
    assert loss.dtype == torch.float32 and loss.isfinite()
    tiny = 1e-6 if which == "teacher" or hot > 1 else 1e-30  # float32 at T = 50 rounds T^2 times 1e-7 a class
    torch.testing.assert_close(loss.double(), wanted, rtol=2e-3 if hot == 50 else 1e-4, atol=tiny)
    found, expected = gradient(loss, s), gradient(wanted, s64)
    assert found.isfinite().all()
    scale = expected.abs().max().item()
    torch.testing.assert_close(found.double(), expected, rtol=0.02, atol=max(0.01 * scale, 1e-7))


@pytest.mark.parametrize("temperature", [1e-4, 1e-20, 1e-39])
def test_cold_teachers_are_argmax_and_ties_share(temperature: float) -> None:
    t = torch.tensor([[3.0, 1.0, 3.0, -2.0], [0.0, 0.1, 0.0, 0.0]])
    p = tempered(t, temperature).exp().float()
    torch.testing.assert_close(p, torch.tensor([[0.5, 0, 0.5, 0], [0, 1.0, 0, 0]]), atol=1e-4, rtol=0)
    s = draw(2, 4)
    tied = -F.log_softmax(s[0], -1)[[0, 2]].mean() - math.log(2)
    labels = (F.cross_entropy(s[1:], torch.tensor([1])) + tied) / 2
    torch.testing.assert_close(distillation_loss(s, t, temperature), labels, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("wrong", [0, 0.0, -1.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", [0, 1])
def test_temperatures_are_positive_numbers(wrong: float, which: int) -> None:
    temperatures = [1.0, 1.0]
    temperatures[which] = wrong
    with pytest.raises(ValueError, match="temperatures must be positive, not"):
        distillation_loss(draw(2, 3), draw(2, 3), *temperatures)


@pytest.mark.parametrize(("student", "teacher"), [(2, 1), (1, 2), (7, 10), (10, 7)])
def test_classes_never_broadcast(student: int, teacher: int) -> None:
    with pytest.raises(ValueError, match=f"teacher's output has {teacher} classes, the student's {student}"):
        distillation_loss(draw(4, student), draw(4, teacher))
    with pytest.raises(ValueError, match=f"teacher's output has {teacher} classes, the student's {student}"):
        divergence(draw(3, 4, student), draw(4, teacher), 1.0)


def test_one_class_says_nothing() -> None:
    with pytest.raises(ValueError, match="softmax of one class is always 1"):
        distillation_loss(draw(4, 1), draw(4, 1))


def test_batches_may_broadcast() -> None:
    s, t = draw(3, 6, 4), draw(6, 4, name="t")
    assert torch.equal(distillation_loss(s, t), distillation_loss(s, t.expand(3, 6, 4)))


@pytest.mark.parametrize("labels", [(2, 6), (3,), (3, 6, 1), (6, 3)])
def test_labels_and_weights_of_another_shape(labels: tuple) -> None:
    with pytest.raises(ValueError, match=r"logits \(3, 6, 4\) need labels \(3, 6\), not"):
        cross_entropy(draw(3, 6, 4), torch.zeros(labels, dtype=torch.long))
    with pytest.raises(ValueError, match=r"values \(3, 6\) need weights of that shape, not"):
        mean(draw(3, 6), torch.ones(labels))


def test_a_pair_is_one_only_where_something_is_left_out() -> None:
    values, some = draw(2, 3), torch.tensor([[True, False, True]] * 2)
    assert losses.pair(values, None) is values and losses.pair(values, some | True) is values
    assert losses.pair(values, some) == (values, some)
