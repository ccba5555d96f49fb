import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdutils.tasks import cost


def test_matrix_product_counts_two_a_multiply_add() -> None:
    a, b = torch.ones(3, 4), torch.ones(4, 5)
    result, count = cost.flops(lambda: a @ b)
    assert count == 2 * 3 * 4 * 5
    assert torch.equal(result, a @ b)


def test_element_wise_work_is_free() -> None:
    assert cost.flops(lambda: torch.ones(100).relu().exp() + 1)[1] == 0


def test_backward_costs_a_product_for_the_weights_and_one_for_the_input() -> None:
    layer, batch = nn.Linear(4, 5), 3
    forward = 2 * batch * 4 * 5
    fixed, free = torch.ones(batch, 4), torch.ones(batch, 4, requires_grad=True)
    assert cost.flops(lambda: layer(fixed))[1] == forward
    assert cost.flops(lambda: layer(fixed).sum().backward())[1] == 2 * forward
    assert cost.flops(lambda: layer(free).sum().backward())[1] == 3 * forward


@pytest.mark.parametrize("transposed", [False, True])
def test_networks_that_run_as_groups_of_a_convolution_cost_what_each_costs_alone(transposed: bool) -> None:
    function, shape = (F.conv_transpose2d, (2, 5, 3, 3)) if transposed else (F.conv2d, (5, 2, 3, 3))
    x, weights = torch.ones(4, 3, 2, 8, 8), torch.ones(3, *shape)  # of three networks

    def step(x: torch.Tensor, weight: torch.Tensor, groups: int, learned: tuple[int, ...]) -> int:
        both = x.clone().requires_grad_(), weight.clone().requires_grad_()
        slopes = lambda: torch.autograd.grad(function(*both, groups=groups).sum(), [both[i] for i in learned])  # noqa: E731
        return cost.flops(slopes)[1]

    for learned in ((1,), (0,), (0, 1)):
        alone = sum(step(x[:, i], weights[i], 1, learned) for i in range(3))
        assert step(x.flatten(1, 2), weights.flatten(0, 1), 3, learned) == alone > 0
    forward = cost.flops(lambda: function(x[:, 0], weights[0]))[1]
    assert step(x[:, 0], weights[0], 1, (0, 1)) == 3 * forward


def test_storage_counts_parameters_and_buffers() -> None:
    network = nn.BatchNorm1d(7)  # weight, bias, mean and variance in float32, one int64 count
    assert cost.storage([network]) == 4 * 7 * 4 + 8
    assert cost.storage([network, network]) == 2 * cost.storage([network])
    assert cost.storage([nn.Linear(3, 2).double()]) == (3 * 2 + 2) * 8
    assert cost.storage([]) == 0
