from functools import partial

import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap

from kdutils import curriculum, models, seeding
from kdutils.ensemble import Ensemble
from kdutils.models import MLP
from kdutils.parity import SparseParity
from kdutils.training import train


def test_samples_are_signs_with_the_right_label():
    task = SparseParity(7, 3, support=(6, 0, 2))
    x, y = task.sample(4000, seeding.generator(0, "t"))
    assert x.dtype == torch.float32 and x.unique().tolist() == [-1, 1]
    assert torch.equal(y, (x[:, 0] * x[:, 2] * x[:, 6] < 0).long())
    assert abs(y.float().mean() - 0.5) < 5 * 0.5 / 4000**0.5  # five standard errors


def test_random_support_is_a_function_of_its_seed():
    first, again, other = (SparseParity.with_random_support(50, 6, s) for s in (1, 1, 2))
    assert first == again != other and len(set(first.support)) == 6


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((3, 4), "k=4"), ((0, 1), "positive"), ((4, 0), "positive"), ((4, True), "positive"), ((4, 2, (0, 4)), "0..3"),
        ((4, 2, (1, 1)), "different"), ((4, 2, (1,)), "k=2"), ((4.0, 2), "whole"),
    ],
)  # fmt: skip
def test_bad_parities_are_refused(arguments, says):
    with pytest.raises(ValueError, match=says):
        SparseParity(*arguments)


def test_streams_do_not_share_numbers():
    assert seeding.derive(1, "data") != seeding.derive(1, "init") != seeding.derive(11)
    before = torch.random.get_rng_state()
    with seeding.global_rng(3, "init"):
        torch.rand(5)
    assert torch.equal(before, torch.random.get_rng_state())


def test_hidden_outputs_are_what_the_layers_compute():
    net, x = MLP(5, 8), torch.randn(3, 5)
    seen = models.outputs_at(net, x, ("act", "hidden"))
    torch.testing.assert_close(seen["hidden"], x @ net.hidden.weight.T + net.hidden.bias)
    torch.testing.assert_close(seen["act"], seen["hidden"].relu())


def test_the_pass_stops_at_the_layer():
    class Tail(nn.Module):
        def forward(self, x):
            raise AssertionError("the pass went on")

    net = nn.Sequential(nn.Linear(4, 4), Tail())
    assert models.outputs_at(net, torch.ones(1, 4), ("0",))["0"].shape == (1, 4)
    with pytest.raises(AssertionError):
        net(torch.ones(1, 4))
    assert not net[0]._forward_hooks


def test_unknown_layer_lists_the_layers():
    with pytest.raises(ValueError, match="'hidden', 'act', 'readout'"):
        models.outputs_at(MLP(2, 2), torch.ones(1, 2), ("hiden",))


def test_reading_layers_works_under_vmap():
    net, x = MLP(4, 6), torch.randn(3, 5, 4)
    seen = vmap(lambda v: models.outputs_at(net, v, ("act",))["act"])(x)
    torch.testing.assert_close(seen, net.act(net.hidden(x)))


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 9), nn.LayerNorm(9), nn.ReLU(), nn.Linear(9, 2))

    def forward(self, x):
        return self.body(x)


@pytest.mark.parametrize("make", [partial(MLP, 6, 16), Normed])
def test_members_are_independent(make):
    """A member of a sweep follows the curve that it follows alone."""
    task, plan = SparseParity(6, 2), curriculum.from_labels()
    together = train(Ensemble(make, [3, 4, 5], [0.1, 0.5]), task, plan, steps=60, batch=16, evaluate_every=10)
    for member, (seed, rate) in {1: (4, 0.1), 5: (5, 0.5)}.items():
        alone = train(Ensemble(make, [seed], [rate]), task, plan, steps=60, batch=16, evaluate_every=10)
        torch.testing.assert_close(
            torch.tensor(together.loss[:, member]), torch.tensor(alone.loss[:, 0]), atol=1e-4, rtol=1e-4
        )


def test_members_of_a_seed_start_alike_and_plain_copies_agree():
    students = Ensemble(partial(MLP, 4, 5), [0, 1], [0.1, 1.0])
    weight = students.parameters["hidden.weight"]
    assert torch.equal(weight[0], weight[2]) and not torch.equal(weight[0], weight[1])
    x = torch.randn(2, 7, 4)
    stacked = students.outputs(x)[""]
    for member in range(4):
        torch.testing.assert_close(stacked[member], students.member(member)(x[member % 2]))
    state = dict(students.member(1).named_parameters())
    torch.testing.assert_close(functional_call(students.skeleton, state, (x[1],)), stacked[1])


def test_wrong_ensembles_are_refused():
    with pytest.raises(ValueError, match="different"):
        Ensemble(partial(MLP, 4, 5), [1, 1])
    with pytest.raises(ValueError, match="positive"):
        Ensemble(partial(MLP, 4, 5), [1], [0.0])
    with pytest.raises(ValueError, match="expected one for each of 2 seeds"):
        Ensemble(partial(MLP, 4, 5), [1, 2]).outputs(torch.ones(3, 5, 4))
