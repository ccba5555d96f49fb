import pytest
import torch

from kdutils import probes, seeding
from kdutils.tasks.parity import SparseParity


def test_inputs_are_signs_in_float32() -> None:
    x, y = SparseParity(7, 3).sample(100, seeding.generator(0, "x"))
    assert x.dtype == torch.float32 and y.dtype == torch.int64
    assert x.shape == (100, 7) and y.shape == (100,)
    assert set(x.unique().tolist()) == {-1.0, 1.0}


def test_label_is_the_parity_of_the_minus_ones_on_the_support() -> None:
    task = SparseParity(6, 3, (0, 2, 5))
    x = probes.cube(6)
    odd = (x[:, [0, 2, 5]] < 0).sum(1) % 2
    assert torch.equal(task.label(x), odd)
    x, y = task.sample(50, seeding.generator(1, "x"))
    assert torch.equal(task.label(x), y)


def test_bits_off_the_support_do_not_matter() -> None:
    task = SparseParity(6, 2, (1, 4))
    x = probes.cube(6)
    for bit in range(6):
        flipped = x.clone()
        flipped[:, bit] *= -1
        changed = task.label(flipped) != task.label(x)
        assert changed.all() if bit in (1, 4) else not changed.any()


def test_label_keeps_leading_dimensions() -> None:
    task = SparseParity(4, 2)
    x = probes.cube(4).view(2, 8, 4)
    assert torch.equal(task.label(x).flatten(), task.label(x.flatten(0, 1)))


def test_samples_are_fresh_and_reproducible() -> None:
    task, generator = SparseParity(20, 2), seeding.generator(0, "x")
    first, second = task.sample(20, generator)[0], task.sample(20, generator)[0]
    assert not torch.equal(first, second)
    assert torch.equal(first, task.sample(20, seeding.generator(0, "x"))[0])


@pytest.mark.parametrize("k", [1, 2, 5])
def test_bits_and_labels_are_balanced(k: int) -> None:
    n = 10_000
    x, y = SparseParity(5, k).sample(n, seeding.generator(0, "balance"))
    band = 5 * 0.5 / n**0.5  # five standard errors of a share of one half
    assert abs(y.float().mean() - 0.5) < band
    assert ((x > 0).float().mean(0) - 0.5).abs().max() < band


def test_support_is_the_first_bits_unless_given() -> None:
    assert SparseParity(5, 3).support == (0, 1, 2)
    assert SparseParity(5, 2, (4, 1)) == SparseParity(5, 2, (1, 4))


def test_random_support() -> None:
    supports = [SparseParity.with_random_support(30, 5, seed).support for seed in range(20)]
    assert supports == [SparseParity.with_random_support(30, 5, seed).support for seed in range(20)]
    assert len(set(supports)) > 15
    assert all(len(set(s)) == 5 and min(s) >= 0 and max(s) < 30 for s in supports)
    assert len({bit for s in supports for bit in s}) > 20


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((3, 4), "k=4.*d=3"),
        ((3, 0), "k must be a positive whole number"),
        ((0, 1), "d must be a positive whole number"),
        ((-2, 1), "d must be a positive whole number"),
        ((3, True), "k must be a positive whole number"),
        ((True, 1), "d must be a positive whole number"),
        ((3.0, 1), "d must be a positive whole number"),
        ((3, "2"), "k must be a positive whole number"),
        ((5, 2, (0, 5)), r"0\.\.4.*\[5\]"),
        ((5, 2, (-1, 0)), r"0\.\.4.*\[-1\]"),
        ((5, 2, (3, 3)), r"different.*\[3, 3\]"),
        ((5, 2, (1,)), r"k=2 different positions.*\[1\]"),
        ((5, 2, (1, 2, 3)), r"k=2 different positions.*\[1, 2, 3\]"),
        ((5, 2, (0.5, 1.7)), "support"),
    ],
)
def test_bad_arguments(arguments: tuple, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        SparseParity(*arguments)


def test_random_support_checks_its_arguments() -> None:
    with pytest.raises(ValueError, match=r"k=4.*d=3"):
        SparseParity.with_random_support(3, 4, seed=0)
