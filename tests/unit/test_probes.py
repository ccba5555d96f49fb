from itertools import combinations

import pytest
import torch

from kdutils import probes, seeding
from kdutils.tasks.models import MLP
from kdutils.tasks.parity import SparseParity

D = 5
SETS = [[bit for bit in range(D) if n >> bit & 1] for n in range(2**D)]


def function(d: int = D) -> torch.Tensor:
    return torch.randn(2**d, generator=seeding.generator(0, "f"), dtype=torch.float64)


def test_cube_lists_every_point_once_in_order() -> None:
    x = probes.cube(D)
    assert x.shape == (2**D, D) and set(x.unique().tolist()) == {-1, 1}
    assert [[i for i in range(D) if row[i] < 0] for row in x.tolist()] == SETS


@pytest.mark.parametrize("d", [0, -1, 21])
def test_cube_has_limits(d: int) -> None:
    with pytest.raises(ValueError, match=f"d={d}: sample instead"):
        probes.cube(d)


def test_transform_equals_the_definition() -> None:
    values, x = function(), probes.cube(D).double()
    by_hand = torch.stack(
        [(values * torch.stack([x[:, i] for i in s]).prod(0)).mean() if s else values.mean() for s in SETS]
    )
    torch.testing.assert_close(probes.walsh_hadamard(values), by_hand)
    torch.testing.assert_close(probes.coefficients(values, x, SETS), by_hand)


def test_degree_one_is_the_default() -> None:
    values, x = function(), probes.cube(D).double()
    singles = probes.walsh_hadamard(values)[[2**i for i in range(D)]]
    torch.testing.assert_close(probes.coefficients(values, x), singles)


def test_several_functions_at_once() -> None:
    x = probes.cube(D).double()
    values = torch.stack([function(), x[:, 0], x[:, 1] * x[:, 3]], 1)
    together = probes.coefficients(values, x, SETS)
    assert together.shape == (2**D, 3)
    for column in range(3):
        torch.testing.assert_close(together[:, column], probes.walsh_hadamard(values[:, column]))


def test_parseval() -> None:
    values = function(9)
    torch.testing.assert_close(probes.walsh_hadamard(values).square().sum(), values.square().mean())


def test_transform_is_its_own_inverse() -> None:
    values = function(7)
    torch.testing.assert_close(probes.walsh_hadamard(probes.walsh_hadamard(values)) * 2**7, values)


@pytest.mark.parametrize("support", [(0,), (1, 3), (0, 2, 4), (0, 1, 2, 3, 4)])
def test_a_parity_has_one_coefficient(support: tuple[int, ...]) -> None:
    x = probes.cube(D)
    values = 1.0 - 2 * SparseParity(D, len(support), support).label(x)
    table = probes.walsh_hadamard(values)
    assert table.nonzero().flatten().tolist() == [sum(2**i for i in support)]
    assert table.max() == 1
    assert torch.equal(probes.coefficients(values, x).double(), table[[2**i for i in range(D)]])


def test_degrees_count_the_bits() -> None:
    assert probes.degrees(D).tolist() == [len(s) for s in SETS]


def test_characters() -> None:
    x = probes.cube(3)
    assert torch.equal(probes.characters(x, [[], [0], [0, 1, 2]]), torch.stack([torch.ones(8), x[:, 0], x.prod(1)], 1))


def test_estimates_lie_within_their_standard_error() -> None:
    d, n = 12, 4000
    x, _ = SparseParity(d, 3).sample(n, seeding.generator(0, "x"))
    pairs = list(combinations(range(d), 2))
    values = x[:, 0] * x[:, 1] + 0.5 * x[:, 2]
    estimates = probes.coefficients(values, x, pairs)
    truth = torch.tensor([1.0] + [0.0] * (len(pairs) - 1))
    assert ((estimates - truth).abs() < 5 * values.std() / n**0.5).all()


def test_samples_of_a_parity_show_nothing_at_degree_one() -> None:
    n = 10_000
    x, y = SparseParity(8, 3, (1, 4, 6)).sample(n, seeding.generator(0, "x"))
    assert probes.coefficients(1.0 - 2 * y, x).abs().max() < 5 / n**0.5  # five standard errors


@pytest.mark.parametrize("values", [torch.ones(3), torch.ones(4, 2), torch.ones(0)])
def test_wrong_number_of_values(values: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"2\^d values"):
        probes.walsh_hadamard(values)


def test_signed_output_is_a_difference_of_probabilities() -> None:
    network, x = MLP(D, 16), probes.cube(D)
    out = probes.signed_output(network)(x)
    torch.testing.assert_close(out, torch.tanh((network(x)[:, 0] - network(x)[:, 1]) / 2))
    assert not out.requires_grad


def test_signed_output_stays_within_one() -> None:
    network, x = MLP(D, 16), probes.cube(D)
    with torch.no_grad():
        network.readout.weight.mul_(1e3)
    out = probes.signed_output(network)(x)
    assert out.abs().max() <= 1 and out.abs().min() > 0


def test_a_sure_network_equals_the_parity() -> None:
    network, x = MLP(2, 4), probes.cube(2)
    with torch.no_grad():  # relu(x0 + x1) + relu(-x0 - x1) is 2 where the bits agree, else 0
        network.hidden.weight.copy_(torch.tensor([[1.0, 1], [-1, -1], [0, 0], [0, 0]]))
        network.hidden.bias.zero_()
        network.readout.weight.copy_(torch.tensor([[50.0, 50, 0, 0], [-50, -50, 0, 0]]))
        network.readout.bias.copy_(torch.tensor([-50.0, 50]))
    torch.testing.assert_close(probes.signed_output(network)(x), x.prod(1))
