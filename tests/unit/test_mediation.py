"""Controls hold what they say and nothing else."""

import pytest
import torch

from kdutils.curriculum import Curriculum, Stage
from kdutils.lab.ensemble import Ensemble
from kdutils.lab.training import train
from kdutils.probes.mediation import KEPT, Redrawn, Told, told
from kdutils.signals import Hidden, Labels
from kdutils.tasks.models import MLP
from kdutils.tasks.parity import SparseParity

TASK = SparseParity(6, 2)


def students() -> Ensemble:
    """Members that share a seed and differ in learning rate have weights of their own here, as after a stage."""
    found = Ensemble(lambda: MLP(6, 9), [3, 4], [0.1, 1.0])
    generator = torch.Generator().manual_seed(0)
    for value in found.parameters.values():
        value.add_(torch.randn(value.shape, generator=generator))
    return found


def bound(signal: object) -> tuple[dict, dict]:
    """The parameters of students before and after a signal is bound to them."""
    some = students()
    x = TASK.sample(128, torch.Generator().manual_seed(0))[0].view(2, 64, 6)
    signal.bind(some, x, TASK.label(x))
    return students().parameters, some.parameters


def norms(parameters: dict) -> torch.Tensor:
    return parameters["hidden.weight"].norm(dim=1)


def test_norms_alone_are_kept() -> None:
    before, after = bound(Redrawn(Labels(), "norms"))
    torch.testing.assert_close(norms(after), norms(before))
    directions = [p["hidden.weight"] / norms(p)[:, None] for p in (before, after)]
    assert (directions[0] * directions[1]).sum(1).abs().max() < 0.99  # no column points where it did
    fresh = Ensemble(lambda: MLP(6, 9), [3, 4], [0.1, 1.0]).parameters
    for name in ("hidden.bias", "readout.weight", "readout.bias"):
        assert not torch.equal(after[name], before[name]) and not torch.equal(after[name], fresh[name])
        assert after[name].abs().max() <= fresh[name].abs().max() * 1.5  # drawn from the law of a start
        assert torch.equal(after[name][:2], after[name][2:])  # a seed's draw, whatever the learning rate
    assert not torch.equal(after["readout.weight"][0], after["readout.weight"][1])


def test_all_but_the_norms_is_kept() -> None:
    before, after = bound(Redrawn(Labels(), "directions"))
    directions = [p["hidden.weight"] / norms(p)[:, None] for p in (before, after)]
    torch.testing.assert_close(*directions)
    assert all(torch.equal(before[n], after[n]) for n in before if n != "hidden.weight")
    # those of a start: nine uniform numbers below 1/sqrt(6) have a norm below 9^0.5 / 6^0.5, and about 0.7
    assert (norms(after) < (9 / 6) ** 0.5).all() and abs(norms(after).mean() - 0.7) < 0.2


def test_told_leaves_the_support_as_it_was() -> None:
    before, after = bound(Told(Labels(), (1, 4), 0.25))
    weights = before["hidden.weight"], after["hidden.weight"]
    rest = [0, 2, 3, 5]
    assert torch.equal(weights[0][..., [1, 4]], weights[1][..., [1, 4]])
    assert torch.equal(0.25 * weights[0][..., rest], weights[1][..., rest])
    assert all(torch.equal(before[n], after[n]) for n in before if n != "hidden.weight")


def test_a_network_that_is_told_sees_nothing_else() -> None:
    network, x = MLP(6, 9), torch.randn(5, 6)
    blind, moved = told(network, (1, 4)), x.clone()
    moved[:, [0, 2, 3, 5]] += 1
    assert torch.equal(blind(x), blind(moved)) and not torch.equal(network(x), network(moved))
    assert network.hidden.weight.abs().min() > 0  # the network itself is left alone


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=r"keep must be one of \('norms', 'directions'\), not 'norm'"):
        Redrawn(Labels(), "norm")
    for signal in (Redrawn(Labels(), "norms", weight="first.weight"), Told(Labels(), (1,), weight="first.weight")):
        with pytest.raises(ValueError, match=r"no weight 'first.weight'; it has hidden.weight"):
            bound(signal)


@pytest.mark.parametrize("signal", [*(Redrawn(Labels(), keep) for keep in KEPT), Told(Labels(), (0, 1))])
def test_they_train(signal: object) -> None:
    plan = Curriculum("two stages", (Stage(Hidden(MLP(6, 32)), 5), Stage(signal)))
    one, two = (train(Ensemble(lambda: MLP(6, 9), [3, 4], [0.1]), TASK, plan, steps=12, held_out=64) for _ in range(2))
    assert torch.equal(one.students.parameters["hidden.weight"], two.students.parameters["hidden.weight"])
    assert all(torch.isfinite(p).all() for p in one.students.parameters.values())
    assert str(signal) in one.stages[1][0]
