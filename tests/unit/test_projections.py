from collections.abc import Callable
from functools import partial

import pytest
import torch

from kdutils import projections, seeding
from kdutils.projections import Projection, gaussian, neurons, orthonormal, pca, rademacher, sparse

SPARSE = [partial(sparse, s=s) for s in (1, 3, 12)]
ALL = [gaussian, rademacher, orthonormal, neurons, pca]
RANDOM = [gaussian, rademacher, orthonormal, neurons, *SPARSE]


def sample(n: int = 64, width: int = 12) -> torch.Tensor:
    """Correlated, neither centred nor of unit scale."""
    generator = seeding.generator(0, "hidden")
    mix = torch.randn(width, width, generator=generator)
    return torch.randn(n, width, generator=generator) @ mix + torch.randn(width, generator=generator)


@pytest.mark.parametrize("projection", ALL)
@pytest.mark.parametrize("width", [1, 5, 12])
def test_shape(projection: Projection, width: int) -> None:
    assert projection(sample(), width, seeding.generator(0)).shape == (width, 12)


@pytest.mark.parametrize("projection", RANDOM)
def test_the_seed_decides(projection: Projection) -> None:
    first, again, other = (projection(sample(), 5, seeding.generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first.to_dense(), again.to_dense())
    assert not torch.equal(first.to_dense(), other.to_dense())


@pytest.mark.parametrize("projection", RANDOM)
def test_random_ones_read_nothing_but_the_width(projection: Projection) -> None:
    hidden = sample()
    first, other = (projection(h, 5, seeding.generator(0)) for h in (hidden, 3 * hidden.flip(0)[:7] + 1))
    assert torch.equal(first.to_dense(), other.to_dense())


@pytest.mark.parametrize("projection", [orthonormal, neurons, pca])
@pytest.mark.parametrize("width", [4, 12])
def test_rows_are_orthonormal(projection: Projection, width: int) -> None:
    rows = projection(sample(), width, seeding.generator(0))
    torch.testing.assert_close(rows @ rows.T, torch.eye(width), atol=1e-5, rtol=0)


def test_rademacher_has_two_values() -> None:
    rows = rademacher(sample(width=16), 50, seeding.generator(0))
    assert set(rows.unique().tolist()) == {-0.25, 0.25}
    share = (rows > 0).float().mean().item()
    assert abs(share - 0.5) < 5 * 0.5 / rows.numel() ** 0.5  # five standard errors


def test_gaussian_entries_have_variance_one_over_width() -> None:
    rows = gaussian(sample(width=16), 1000, seeding.generator(0))
    n = rows.numel()
    assert abs(rows.mean()) < 5 * 0.25 / n**0.5
    assert abs(16 * rows.square().mean() - 1) < 5 * (2 / n) ** 0.5  # a chi-square's variance is 2 a degree


def test_neurons_picks_without_mixing() -> None:
    hidden = sample()
    rows = neurons(hidden, 5, seeding.generator(0))
    chosen = rows.argmax(1)
    assert torch.equal(hidden @ rows.T, hidden[:, chosen])
    assert len(set(chosen.tolist())) == 5


def test_orthonormal_is_uniform_over_signs() -> None:
    rows = torch.stack([orthonormal(sample(width=3), 1, seeding.generator(seed)) for seed in range(400)])[:, 0]
    assert rows.mean(0).abs().max() < 5 / (3 * 400) ** 0.5  # entries have mean 0 and variance 1/3


def test_pca_explains_most_first() -> None:
    hidden = sample()
    rows = pca(hidden, 12, seeding.generator(0))
    variance = ((hidden - hidden.mean(0)) @ rows.T).var(0)
    assert (variance.diff() <= 1e-4).all()
    torch.testing.assert_close(variance, torch.linalg.eigvalsh(hidden.T.cov()).flip(0), rtol=1e-3, atol=1e-4)


def test_pca_ignores_a_shift_and_the_seed() -> None:
    hidden = sample()
    first, shifted = pca(hidden, 3, seeding.generator(0)), pca(hidden + 5, 3, seeding.generator(1))
    torch.testing.assert_close(first, shifted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("s", [1, 3, 12])
def test_sparse_rows_hold_so_many_units_and_fair_signs(s: int) -> None:
    rows = sparse(sample(), 3000, seeding.generator(0), s)
    assert rows.is_sparse and rows.is_coalesced()
    found = rows.to_dense()
    assert (found.count_nonzero(1) == s).all()
    torch.testing.assert_close(found[found != 0].abs().unique(), torch.tensor([s**-0.5]))
    n = 3000 * s
    assert abs((found > 0).sum() / n - 0.5) < 5 * 0.5 / n**0.5
    share = found.count_nonzero(0) / 3000  # every unit is in as many rows: s of 12
    assert (share - s / 12).abs().max() <= 5 * (s / 12 * (1 - s / 12) / 3000) ** 0.5


def test_sparse_of_all_units_is_signs() -> None:
    found = sparse(sample(width=16), 50, seeding.generator(0), 16).to_dense()
    assert set(found.unique().tolist()) == {-0.25, 0.25}


@pytest.mark.parametrize("s", [0, 13])
def test_sparse_sums_units_that_there_are(s: int) -> None:
    with pytest.raises(ValueError, match=f"sums 1 to 12 of the teacher's units, not s={s}"):
        sparse(sample(), 5, seeding.generator(0), s)


@pytest.mark.parametrize("projection", [partial(sparse, s=1), partial(sparse, s=4)])
def test_few_units_keep_the_mean_square(projection: Projection) -> None:
    hidden = sample(n=8)
    squares = (hidden @ projection(hidden, 20_000, seeding.generator(0)).to_dense().T).square()
    # a row's square has the mean of h's squares; its own scatter gives the standard error
    error = squares.std(1) / 20_000**0.5
    assert ((squares.mean(1) - hidden.square().mean(1)).abs() < 5 * error).all()


@pytest.mark.parametrize("projection", [gaussian, rademacher])
def test_random_mixing_keeps_the_mean_square(projection: Projection) -> None:
    hidden = sample(n=8)
    rows = projection(hidden, 20_000, seeding.generator(0))
    ratio = (hidden @ rows.T).square().mean(1) / hidden.square().mean(1)
    # given h, an entry's square varies by at most twice its mean squared: a standard error of sqrt(2 / 20 000)
    assert (ratio - 1).abs().max() < 5 * (2 / 20_000) ** 0.5


@pytest.mark.parametrize("projection", [orthonormal, neurons, pca])
def test_a_full_set_of_rows_keeps_the_mean_square(projection: Projection) -> None:
    hidden = sample()
    rows = projection(hidden, 12, seeding.generator(0))
    torch.testing.assert_close((hidden @ rows.T).square().mean(1), hidden.square().mean(1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("projection", "name"), [(orthonormal, "orthonormal"), (neurons, "neuron"), (pca, "PCA")])
def test_no_more_outputs_than_the_teacher_has(projection: Callable, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}.*13 outputs.*teacher layer of 12"):
        projection(sample(), 13, seeding.generator(0))


@pytest.mark.parametrize("projection", [gaussian, rademacher])
def test_random_mixing_may_widen(projection: Projection) -> None:
    assert projection(sample(), 20, seeding.generator(0)).shape == (20, 12)


def test_pca_needs_enough_samples() -> None:
    with pytest.raises(ValueError, match="more than 5 calibration samples, got 5"):
        pca(sample(n=5), 5, seeding.generator(0))


@pytest.mark.parametrize("name", ["gaussian", "rademacher", "sparse", "orthonormal", "neurons", "pca"])
def test_a_default_type_of_torch_changes_nothing(name: str) -> None:
    hidden, project = sample(), getattr(projections, name)
    expected = project(hidden, 5, seeding.generator(0, "p")).to_dense()
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(project(hidden, 5, seeding.generator(0, "p")).to_dense(), expected)
    finally:
        torch.set_default_dtype(torch.float32)
