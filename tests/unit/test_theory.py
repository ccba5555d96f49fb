"""Each proposition of chapter 5 as a check that fails if the statement is wrong."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from kdutils import probes, seeding
from kdutils.lab.ensemble import Ensemble
from kdutils.probes import propositions, signal, theory, two_phase
from kdutils.signals import Hidden, Labels, Output
from kdutils.tasks.models import MLP
from kdutils.tasks.parity import SparseParity


def bits(d: int, k: int) -> SparseParity:
    return SparseParity(d, k)


def sign(task: SparseParity):
    return lambda x: 1.0 - 2.0 * task.label(x)


def family(d: int, m: int, seed: int = 0) -> torch.Tensor:
    """(2^d, m) values of some functions on the cube."""
    return torch.randn(2**d, m, generator=seeding.generator(seed, "family"), dtype=torch.float64)


def looked_up(values: torch.Tensor):
    """The views with these values on the cube."""
    d = len(values).bit_length() - 1
    weights = 2 ** torch.arange(d)
    return lambda x: values[((x < 0) * weights).sum(1)]


def energies(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Energy (draws, d) of the estimated coefficients, from drawn rows (draws, n) of the cube."""
    x = probes.cube(len(values).bit_length() - 1).double()
    return torch.einsum("bnm,bni->bim", values[rows], x[rows]).div(rows.shape[1]).square().sum(2)


# Proposition 1: the formula


@pytest.mark.parametrize("n", [1, 2, 3])
def test_energy_of_an_estimate_by_listing_every_sample(n: int) -> None:
    """All 8^n samples: the mean energy is (1 - 1/n) |a|^2 + V/n, to the last digit."""
    d, values = 3, family(3, 2)
    rows = torch.tensor(list(itertools.product(range(2**d), repeat=n)))
    a, v = probes.coefficients(values, probes.cube(d).double()), values.square().sum(1).mean()
    torch.testing.assert_close(energies(values, rows).mean(0), (1 - 1 / n) * a.square().sum(1) + v / n)


@pytest.mark.parametrize("n", [2, 3])
def test_scatter_of_an_estimate_is_what_the_proof_says(n: int) -> None:
    """The part of the energy from pairs of samples: its exact variance, and the bound by the effective rank."""
    d, values = 3, family(3, 4, 1)
    rows = torch.tensor(list(itertools.product(range(2**d), repeat=n)))
    pairs = energies(values, rows) - values.square().sum(1)[rows].sum(1)[:, None] / n**2
    x = probes.cube(d).double()
    rank, c = signal.effective_rank(looked_up(values), x), values.T @ values / len(x)
    assert rank == pytest.approx(float(c.trace() ** 2 / c.square().sum()))
    for i, size in enumerate(probes.coefficients(values, x).square().sum(1)):
        exact = propositions.from_pairs(values, x, i, n)
        assert pairs[:, i].std(unbiased=False).item() == pytest.approx(exact)
        assert exact <= theory.scatter(n, float(c.trace()), float(size), rank)


def test_expected_share_is_the_ratio_of_expected_energies_and_needed_inverts_it() -> None:
    found = signal.of(looked_up(family(6, 5)), 6, [1, 4])
    assert found.expected(1) == pytest.approx(2 / 6)
    for share in (found.limit * 0.9, 0.35 * found.limit + 0.65 / 3):
        n = found.needed(share)
        assert n == 1 or found.expected(n) == pytest.approx(share)
    assert found.needed(found.limit * 1.001 + 1e-9) == math.inf or found.limit < 1 / 3
    step = 1e-4  # the slope at one sample, which shows chance
    assert (found.expected(1 + step) - 2 / 6) / step == pytest.approx(found.excess / 6, rel=1e-3)
    halfway = 1 + 6 / (found.on + found.off)  # where signal and noise are alike the share is half-way to its limit
    assert found.expected(halfway) == pytest.approx((found.limit + 2 / 6) / 2)


def test_bessel_and_invariance_to_scale_and_rotation() -> None:
    d, values = 6, family(6, 5)
    found = signal.of(looked_up(values), d, [0]).bits
    assert 0 < found.sum() <= 1
    turned, _ = torch.linalg.qr(torch.randn(5, 5, generator=seeding.generator(0, "turn"), dtype=torch.float64))
    np.testing.assert_allclose(signal.of(looked_up(7 * values @ turned), d, [0]).bits, found)
    x = probes.cube(d).double()
    np.testing.assert_allclose(signal.of(looked_up(x @ x.T[:, :3]), d, [0]).bits.sum(), 1)


def test_centring_takes_the_mean_away_and_nothing_else() -> None:
    values = family(6, 3)
    shifted = signal.of(looked_up(values + 4.0), 6, [0], centre=True)
    np.testing.assert_allclose(shifted.bits, signal.of(looked_up(values - values.mean(0)), 6, [0]).bits)


@pytest.mark.parametrize("centre", [False, True])
def test_sampled_shares_agree_with_exact_ones_within_their_errors(centre: bool) -> None:
    """200 coefficients: their deviations in units of their errors have mean about 0 and spread about 1."""
    values, deviations = family(8, 6) + (5.0 if centre else 0.5), []  # a mean that matters
    exact = signal.of(looked_up(values), 8, [0], centre=centre)
    for seed in range(25):
        found = signal.of(looked_up(values), 8, [0], 2000, seeding.generator(seed, "sample"), centre=centre)
        deviations.append((found.bits - exact.bits) / found.error)
    deviations = np.concatenate(deviations)
    assert abs(deviations.mean()) < 0.35 and 0.8 < deviations.std() < 1.35


def test_random_projections_keep_the_shares_and_few_views_scatter_around_them() -> None:
    """Averaged over 400 draws of P the energies are those of the layer; one view scatters like a chi-square."""
    d, values = 6, family(6, 8)
    truth = signal.of(looked_up(values), d, [0])
    x = probes.cube(d).double()
    a = probes.coefficients(values, x)
    for rank in (1, 16):
        p = torch.randn(4000, 8, rank, generator=seeding.generator(rank, "p"), dtype=torch.float64)
        energy = torch.einsum("im,bmr->bir", a, p).square().mean(2)
        torch.testing.assert_close(energy.mean(0), a.square().sum(1), rtol=0.1, atol=0)  # 4 standard errors
        spread = energy.std(0) / energy.mean(0)
        assert (spread / (2 / rank) ** 0.5 - 1).abs().max() < 0.15
    assert truth.bits.sum() < 1


@pytest.mark.parametrize("d, k", [(9, 2), (9, 3), (10, 4)])
def test_the_code_that_trains_takes_the_step_that_the_formula_predicts(d: int, k: int) -> None:
    """Pooled over students: labels, a half-trained output, a hidden layer; bands of about four standard errors."""
    task = bits(d, k)
    students = Ensemble(partial(two_phase.paired, d, 64), range(40))
    with seeding.global_rng(0, "teacher"):
        teacher = MLP(d, 32)
    own, support = students.member(0), list(task.support)
    cases = {
        "labels": (Labels(), signal.of(signal.gated(sign(task), own), d, support)),
        "output": (Output(teacher), signal.of(signal.gated(probes.signed_output(teacher), own), d, support)),
        "hidden": (
            Hidden(teacher, student_layer="hidden", scale=100.0),
            signal.of(signal.layer(teacher), d, support, centre=True),
        ),
    }
    for name, (what, predicted) in cases.items():
        for n, gradient in two_phase.first_gradients(students, task, what, [16, 128, 1024]).items():
            energy = gradient.square().sum(1)
            measured = (energy[:, support].sum() / energy.sum()).item()
            assert measured == pytest.approx(predicted.expected(n), abs=0.075), (name, n)


@pytest.mark.parametrize("kind", ["labels", "output", "rank one", "act", "hidden"])
def test_what_a_signal_asks_is_what_the_first_step_reads(kind: str) -> None:
    """Eight students with their own gates and projections, 400 draws of data: within about four standard errors."""
    d, k, n = 9, 2, 64
    task = bits(d, k)
    with seeding.global_rng(0, "teacher"):
        teacher = MLP(d, 32)

    def one_view(hidden, width, generator):
        return torch.randn(1, hidden.shape[-1], generator=generator).expand(width, -1) / hidden.shape[-1] ** 0.5

    what = {
        "labels": Labels(), "output": Output(teacher), "rank one": Hidden(teacher, projection=one_view, scale=100.0),
        "act": Hidden(teacher, scale=100.0), "hidden": Hidden(teacher, student_layer="hidden", scale=100.0),
    }[kind]  # fmt: skip
    students = Ensemble(partial(two_phase.paired, d, 16), range(8))
    predicted = signal.of(signal.asked(what, students, task), d, task.support)
    bound = what.bind(students, *(torch.stack(part) for part in zip(*[
        task.sample(1024, seeding.generator(s, "calibration")) for s in range(8)], strict=True)))  # fmt: skip
    weight = students.parameters["hidden.weight"].detach().requires_grad_(True)
    students = students.with_parameters({**students.parameters, "hidden.weight": weight})
    total, draw = torch.zeros(d), seeding.generator(0, "data")
    for _ in range(400):
        x, y = (part.expand(8, *part.shape) for part in task.sample(n, draw))
        losses = bound.loss(students.outputs(x, bound.reads), students.spread(bound.target(x, y)))
        total += torch.autograd.grad(losses.sum(), weight)[0].square().sum((0, 1))
    assert (total[:k].sum() / total.sum()).item() == pytest.approx(predicted.expected(n), abs=0.04)


# Proposition 2: gates


@pytest.mark.parametrize("d", [5, 6, 9])
@pytest.mark.parametrize("bias", [-0.7, -0.11, 0.02, 0.63])
def test_gate_coefficients_against_the_cube(d: int, bias: float) -> None:
    x = probes.cube(d).double()
    gate = (x.sum(1) / d**0.5 + bias > 0).double()
    table, degree = probes.walsh_hadamard(gate), probes.degrees(d)
    for j in range(d + 1):
        same = table[degree == j]
        assert same.max() - same.min() < 1e-12
        assert theory.gate_coefficient(d, j, bias) == pytest.approx(same[0].item(), abs=1e-14)
    assert sum(math.comb(d, j) * theory.gate_coefficient(d, j, bias) ** 2 for j in range(d + 1)) == pytest.approx(
        theory.gate_coefficient(d, 0, bias)  # Parseval: E[g^2] = E[g]
    )


def test_an_unbiased_gate_has_no_even_degree() -> None:
    assert all(theory.gate_coefficient(9, j, 0.0) == 0 for j in (2, 4, 6, 8))
    assert theory.gate_coefficient(9, 2, 0.4) != 0


def test_labels_and_step_against_the_cube() -> None:
    d, k = 10, 3
    task, network = bits(d, k), two_phase.paired(d, 16)
    exact = signal.of(signal.gated(sign(task), network), d, task.support)
    predicted = theory.labels(d, k, theory.grid(8))
    np.testing.assert_allclose(predicted.bits, exact.bits, rtol=1e-5)
    np.testing.assert_allclose(theory.labels(d, k, theory.grid(8), 0.1).bits, 0.64 * predicted.bits)
    x = probes.cube(d)
    by_hand = signal.gated(sign(task), network)(x).T.double() @ x.double() / len(x)
    step = theory.step(network.hidden.weight.detach().sign().numpy(), [*theory.grid(8)] * 2, k)
    np.testing.assert_allclose(step, by_hand.numpy(), atol=1e-7)


@pytest.mark.parametrize("k", [2, 3, 4, 5])
def test_samples_for_labels_grow_like_d_to_the_k_with_the_constant_stated(k: int) -> None:
    """Ratio to the limit: within 5 % at d = 512 and nearing 1; one bit is visible at d^(k-1), one power less."""
    biases = theory.grid(32)
    sizes = (128, 256, 512)
    found = [theory.labels(d, k, biases) for d in sizes]
    ratio = [s.needed() / d**k / theory.growth(k, biases) for s, d in zip(found, sizes, strict=True)]
    assert abs(ratio[-1] - 1) < 0.05 and abs(ratio[-1] - 1) < abs(ratio[0] - 1)
    slope = math.log2(found[-1].visible / found[-2].visible)
    assert slope == pytest.approx(k - 1, abs=0.1)


def test_a_layer_that_sees_the_support_alone_needs_samples_in_proportion_to_d() -> None:
    needed = []
    for d in (6, 12):
        with seeding.global_rng(0, "junta"):
            inner = MLP(3, 16)
        found = signal.of(lambda x, f=inner: signal.layer(f)(x[:, :3]), d, [0, 1, 2], centre=True)
        assert found.off < 1e-12
        needed.append((found.needed() - 1) / (d - 6) if d > 6 else found.on)
    assert needed[1] == pytest.approx(1 / needed[0], rel=1e-5)  # (d - 2k) / on, with the same `on`


# Proposition 3: blindness


def test_an_output_shows_no_more_than_its_error() -> None:
    d, task = 8, bits(8, 3)
    y = sign(task)(probes.cube(d)).double()
    for seed, size in itertools.product(range(5), (0.05, 0.5)):
        t = (y + size * family(d, 1, seed)[:, 0]).clamp(-1, 1)
        shares = signal.of(looked_up(t), d, [0])
        error, energy = (t - y).square().mean().item(), t.square().mean().item()
        assert shares.bits.sum() * energy <= error
        wrong = (t.sign() != y).double().mean().item()
        assert probes.coefficients(t.sign(), probes.cube(d).double()).abs().max() <= 2 * wrong + 1e-12
        gate = (probes.cube(d).sum(1) > 0).double()
        a = [probes.coefficients(v * gate, probes.cube(d).double()) for v in (t, y)]
        assert (a[0] - a[1]).abs().max() <= (t - y).abs().mean() + 1e-12
    best = looked_up(y + 0.1 * probes.cube(d)[:, 0].double())  # the bound is met: all of the error is one bit
    assert signal.of(best, d, [0]).bits.sum() == pytest.approx(0.01 / 1.01)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("noise", [0.001, 0.05, 0.2])
def test_saturation_by_noise_and_temperature(noise: float, temperature: float) -> None:
    d, task = 6, bits(6, 3)
    x = probes.cube(d).double()
    remainder, m = family(d, 1)[:, 0], theory.margin(noise)
    assert torch.tanh(torch.tensor(m / 2)).item() == pytest.approx(1 - 2 * noise)
    logits = m * sign(task)(x) + 1e-5 * remainder
    seen = signal.of(looked_up(torch.tanh(logits / 2 / temperature)), d, [0]).bits
    there = signal.of(looked_up(logits), d, [0]).bits
    np.testing.assert_allclose(seen / there, theory.saturation(m, temperature), rtol=1e-3)


# Proposition 4: one view against many


def test_a_sum_of_gates_shows_less_by_the_factor_stated() -> None:
    """Averaged over 300 draws of the signs; the common half of all gates is what makes the difference."""
    d, k, biases = 8, 3, np.linspace(0.05, 0.9, 5)
    x, draw = probes.cube(d).double(), seeding.generator(0, "signs")
    y, energy, coefficients = sign(bits(d, k))(x).double(), 0.0, 0.0
    for _ in range(300):
        s = torch.randint(0, 2, (5, d), generator=draw).double() * 2 - 1
        total = (x @ s.T / d**0.5 + torch.tensor(biases) > 0).double().sum(1)
        energy += total.square().mean()
        coefficients += probes.coefficients(y * total, x)[:k].square().sum()
    squares = sum(theory.gate_coefficient(d, k - 1, b) ** 2 for b in biases)
    alone = sum(theory.gate_coefficient(d, 0, b) for b in biases)
    assert (coefficients / 300).item() == pytest.approx(k * squares, rel=0.25)  # 4 standard errors of about 6 %
    assert (energy / 300).item() == pytest.approx(theory.output_disadvantage(biases, d) * alone, rel=0.02)
    assert theory.output_disadvantage(theory.grid(256), 16) == pytest.approx(128, rel=0.05)


def test_the_output_of_a_first_step_is_swamped_and_the_layer_is_not() -> None:
    """Teachers after one step on 4,096 labels (d = 12, k = 2): as the two predictions say, within 4 standard errors."""
    d, k, n, width = 12, 2, 4096, 128
    task, support = bits(d, k), [0, 1]
    start = Ensemble(partial(two_phase.paired, d, width), range(12))
    after = two_phase.stepped(start, two_phase.first_gradients(start, task, Labels(), [n])[n], largest=0.005)
    linear = [b for b in theory.grid(width // 2) if b > 0]  # after a small step the pairs with b > 0 alone are active
    layer = theory.labels(d, k, linear)
    share = theory.labels(d, k, linear).bits / theory.output_disadvantage(linear, d)
    output = signal.Shares(share, (0, 1), np.zeros(d))
    found = {"output": [], "layer": []}
    for m in range(12):
        network = after.member(m)
        for name, views in (("output", lambda x, f=network: f(x)[:, 0]), ("layer", signal.layer(network))):
            found[name].append(signal.of(views, d, support, centre=True).limit)
    assert np.mean(found["layer"]) == pytest.approx(layer.expected(n), abs=0.05)
    assert np.mean(found["output"]) == pytest.approx(output.expected(n), abs=0.2)
    assert np.mean(found["output"]) < np.mean(found["layer"]) - 0.1


# Proposition 5: the second phase


@pytest.mark.parametrize("k", [2, 3, 4])
def test_the_readout_fits_the_parity_exactly_once_every_pattern_was_seen(k: int) -> None:
    """Equal weights on the support and k + 1 biases are enough; without one pattern of bits they need not be."""
    d, task = 9, bits(9, k)
    network = MLP(d, k + 1)
    with torch.no_grad():
        network.hidden.weight.zero_()
        network.hidden.weight[:, :k] = 1.0
        network.hidden.bias.copy_(torch.arange(k + 1) * 2.0 - k + 1)
    x = probes.cube(d)
    every = x[x[:, k:].min(1).values > 0]  # each pattern on the support once
    assert len(every) == 2**k
    fitted = two_phase.fitted(network, every, sign(task)(every))
    torch.testing.assert_close(fitted(x)[:, 0], sign(task)(x), rtol=0, atol=1e-4)
    missing = every[every[:, :k].sum(1) < k]
    assert (two_phase.fitted(network, missing, sign(task)(missing))(x)[:, 0] - sign(task)(x)).abs().max() > 0.1


def test_patterns_are_seen_as_the_union_bound_says() -> None:
    k, delta = 4, 0.1
    drawn = torch.randint(0, 2**k, (4000, theory.patterns(k, delta)), generator=seeding.generator(0, "patterns"))
    missed = [len(row.unique()) < 2**k for row in drawn]
    assert 0 < np.mean(missed) <= delta


def test_stepping_sets_the_largest_weight_and_keeps_the_rest() -> None:
    start = Ensemble(partial(two_phase.paired, 6, 8), [1, 2])
    gradient = torch.randn(2, 8, 6, generator=seeding.generator(0, "g"))
    after = two_phase.stepped(start, gradient, 3.0)
    assert ((after.parameters["hidden.weight"] * gradient) <= 0).all()  # downhill
    assert after.parameters["hidden.weight"].abs().amax((1, 2)).tolist() == pytest.approx([3.0, 3.0])
    assert torch.equal(after.parameters["hidden.bias"], start.parameters["hidden.bias"])


def test_exact_gradients_are_those_of_the_whole_cube() -> None:
    d, k = 8, 3
    task, students = bits(d, k), Ensemble(partial(two_phase.paired, d, 16), [1, 2])
    x = probes.cube(d).expand(2, -1, -1)
    weight = students.parameters["hidden.weight"].detach().requires_grad_(True)
    moving = students.with_parameters({**students.parameters, "hidden.weight": weight})
    bound, y = Labels().bind(moving, x, task.label(x)), task.label(x)
    losses = bound.loss(moving.outputs(x, bound.reads), moving.spread(bound.target(x, y)))
    seen = torch.autograd.grad(losses.sum(), weight)[0]
    torch.testing.assert_close(two_phase.exact_gradients(students, k), seen, rtol=1e-4, atol=1e-7)


def test_a_crossing_is_read_on_a_line_over_the_logarithm_with_the_jackknifes_error() -> None:
    def steps(*on: float) -> torch.Tensor:  # one neuron each; the first of two bits has this share
        return torch.tensor([[[share**0.5, (1 - share) ** 0.5]] for share in on])

    found = {10: steps(0.3, 0.3, 0.3), 1000: steps(0.7, 0.7, 0.7)}
    assert two_phase.crossing(found, [0]) == pytest.approx((100, 0), abs=1e-3)
    assert two_phase.shares(found[10], [1])[0] == pytest.approx([0.7, 1.0])
    for level in (0.2, 0.8):  # passed before, or never
        assert np.isnan(two_phase.crossing(found, [0], level)).all()
    apart = {10: steps(0.3, 0.3, 0.3), 1000: steps(0.6, 0.7, 0.8)}
    at, error = two_phase.crossing(apart, [0])
    left = [10 * 100 ** (0.2 / (share - 0.3)) for share in (0.75, 0.7, 0.65)]  # each student left out in turn
    assert at == pytest.approx(np.mean(left), rel=1e-4)
    assert error == pytest.approx((2 * np.var(left)) ** 0.5, rel=1e-3)


# All of them, as the chapter shows them


@pytest.mark.parametrize("proposition", ["first", "second", "queries", "third", "fourth", "fifth"])
def test_the_chapters_checks_hold(proposition: str, capsys: pytest.CaptureFixture) -> None:
    propositions.show(getattr(propositions, proposition)())
    assert "found" in capsys.readouterr().out


def wrong_by(formula: str, change) -> tuple[object, str, object]:
    """The formula's owner, its name, and a version in which `change` was made to its result."""
    owner = signal.Shares if hasattr(signal.Shares, formula) else theory
    true = owner.__dict__[formula]
    if isinstance(true, property):
        return owner, formula, property(lambda self: change(true.fget(self)))
    return owner, formula, lambda *a, **k: change(true(*a, **k), *a)


@pytest.mark.parametrize(
    ("proposition", "formula", "change"),
    [
        ("first", "expected", lambda v, _, n: v * (1 + 0.1 / n)),
        ("first", "needed", lambda v, *_: v - 1),  # without the 1 in front
        ("first", "needed", lambda v, *_: min(v, 1e6)),  # as if half were always reached
        ("first", "limit", lambda v: v**2),
        ("first", "excess", lambda v: -v),
        ("first", "scatter", lambda v, n, energy, size, rank: v - (2 - 2**0.5) / rank**0.5 * energy / n),  # not 2 / r
        ("first", "scatter", lambda v, n, energy, *_: v + energy / n),  # a bound, and far from what is found
        ("first", "scatter", lambda v, n, energy, size, rank: v * rank**-0.25),  # a larger power of r
        ("first", "scatter", lambda v, n, energy, size, rank: v / 2),
        ("second", "gate_coefficient", lambda v, d, j, b: v * (1 if j != 2 else 1.001)),
        ("second", "gate_coefficient", lambda v, d, j, b: v if j else 0.5),  # as if every gate were open half the time
        ("second", "growth", lambda v, *_: 1.1 * v),
        ("second", "growth", lambda v, k, *_: v * k),  # as if the whole support were one bit
        ("second", "deciding", lambda v, d, gap, delta: math.ceil(v * gap)),  # the gap, not its square
        ("third", "saturation", lambda v, *_: v**0.5),
        ("third", "margin", lambda v, *_: v / 2),
        ("fourth", "output_disadvantage", lambda v, biases, d: len(biases) / 2),
        ("fourth", "output_disadvantage", lambda v, *_: v - 0.01),
        ("fifth", "patterns", lambda v, k, delta: math.ceil(2**k * math.log(1 / delta))),  # one pattern, not all
        ("fifth", "patterns", lambda v, k, delta: math.ceil(math.log(2**k / delta))),
    ],
)
def test_a_wrong_formula_is_noticed(monkeypatch: pytest.MonkeyPatch, proposition: str, formula: str, change) -> None:
    monkeypatch.setattr(*wrong_by(formula, change))
    assert not all(check.holds for check in getattr(propositions, proposition)())


def test_a_check_that_does_not_hold_stops_the_page(capsys: pytest.CaptureFixture) -> None:
    good = propositions.Check("a bound", 1.0, 0.5, most=True)
    for wrong in (propositions.Check("a number", 1.0, 1.001), propositions.Check("a bound", 1.0, 1.5, most=True)):
        with pytest.raises(AssertionError, match=f"not as stated: .'{wrong.what}'"):
            propositions.show([good, wrong])


# What is refused


def test_refusals() -> None:
    views = signal.layer(MLP(4, 3))
    with pytest.raises(ValueError, match="d=21: give a number of samples"):
        signal.of(views, 21, [0])
    for support in ([], [4], [0, 0]):
        with pytest.raises(ValueError, match="different bits of"):
            signal.of(views, 4, support)
    for n, g in ((1000, None), (10, seeding.generator(0, "x"))):
        with pytest.raises(ValueError, match="needs a generator and at least"):
            signal.of(views, 4, [0], n, g)
    with pytest.raises(ValueError, match="no energy"):
        signal.of(lambda x: torch.ones(len(x)), 4, [0], centre=True)
    with pytest.raises(ValueError, match="no layer 'hiden'"):
        signal.layer(nn.Linear(2, 2), "hiden")
    with pytest.raises(ValueError, match="degree 5"):
        theory.gate_coefficient(4, 5, 0.0)
    with pytest.raises(ValueError, match="k=1"):
        theory.growth(1, [0.1])
    with pytest.raises(ValueError, match="noise"):
        theory.margin(0.0)
