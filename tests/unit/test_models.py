import pytest
import torch
from torch import nn
from torch.func import stack_module_state, vmap

from kdutils.reading import module_at, outputs_at
from kdutils.tasks.models import MLP


class Refuses(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("this module must not be called")


class Pair(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        return 2 * x, None


class Lazy(nn.Module):
    """Has a layer that its forward pass leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x)


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_layers_equal_the_computation_by_hand() -> None:
    model, x = MLP(4, 6, classes=3), torch.randn(5, 4)
    out = outputs_at(model, x, ("hidden", "act", "readout", ""))
    hidden = x @ model.hidden.weight.T + model.hidden.bias
    logits = hidden.clamp(min=0) @ model.readout.weight.T + model.readout.bias
    torch.testing.assert_close(out["hidden"], hidden)
    torch.testing.assert_close(out["act"], hidden.clamp(min=0))
    torch.testing.assert_close(out["readout"], logits)
    torch.testing.assert_close(out[""], logits)
    torch.testing.assert_close(outputs_at(model, x)[""], model(x))


def test_pass_stops_once_all_have_answered() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), Refuses())
    x = torch.randn(2, 3)
    torch.testing.assert_close(outputs_at(model, x, ("1", "0"))["1"], model[0](x).relu())
    with pytest.raises(AssertionError, match="must not be called"):
        outputs_at(model, x)


def test_other_parameters_can_stand_in() -> None:
    model, other, x = MLP(3, 4), MLP(3, 4), torch.randn(2, 3)
    out = outputs_at(model, x, ("act", ""), dict(other.named_parameters()))
    torch.testing.assert_close(out[""], other(x))
    assert not torch.allclose(out[""], model(x))


def test_gradients_flow_to_the_layers_before() -> None:
    model, x = MLP(3, 4), torch.randn(2, 3)
    outputs_at(model, x, ("act",))["act"].sum().backward()
    assert model.hidden.weight.grad is not None
    assert model.readout.weight.grad is None


def test_works_inside_vmap() -> None:
    networks, x = [MLP(3, 4) for _ in range(3)], torch.randn(3, 5, 3)
    parameters, _ = stack_module_state(networks)
    out = vmap(lambda state, batch: outputs_at(networks[0], batch, ("hidden", ""), state))(parameters, x)
    for i, network in enumerate(networks):
        torch.testing.assert_close(out["hidden"][i], network.hidden(x[i]))
        torch.testing.assert_close(out[""][i], network(x[i]))
    shared = vmap(lambda batch: outputs_at(networks[0], batch, ("act",))["act"])(x)
    torch.testing.assert_close(shared, networks[0].hidden(x).relu())


def test_nested_paths() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(3, 2)), nn.ReLU())
    x = torch.randn(4, 3)
    torch.testing.assert_close(outputs_at(model, x, ("0.0",))["0.0"], model[0][0](x))
    assert module_at(model, "0.0") is model[0][0]
    assert module_at(model, "") is model


def test_a_tuple_answers_with_its_first_entry() -> None:
    x = torch.ones(2)
    assert torch.equal(outputs_at(nn.Sequential(Pair()), x, ("0",))["0"], 2 * x)


def test_a_tuple_answers_with_its_first_entry_as_output_too() -> None:
    x = torch.ones(2)
    assert torch.equal(outputs_at(Pair(), x)[""], 2 * x)


def test_unknown_path_lists_those_that_exist() -> None:
    with pytest.raises(ValueError, match=r"MLP has no layer 'fc1'.*'hidden', 'act', 'readout'"):
        outputs_at(MLP(3, 4), torch.ones(1, 3), ("fc1",))


def test_a_layer_that_is_never_called() -> None:
    model = Lazy()
    with pytest.raises(ValueError, match=r"Lazy never called \['unused'\]"):
        outputs_at(model, torch.ones(1, 3), ("used", "unused"))
    assert hooks(model) == 0


def test_no_hook_stays() -> None:
    model = MLP(3, 4)
    outputs_at(model, torch.ones(1, 3), ("hidden", "act"))
    assert hooks(model) == 0


def test_no_hook_stays_after_an_error_in_the_pass() -> None:
    model = nn.Sequential(nn.Linear(3, 3), Refuses(), nn.ReLU())
    with pytest.raises(AssertionError):
        outputs_at(model, torch.ones(1, 3), ("0", "2"))
    assert hooks(model) == 0


def test_no_hook_stays_after_an_unknown_path() -> None:
    model = MLP(3, 4)
    with pytest.raises(ValueError, match="no layer"):
        outputs_at(model, torch.ones(1, 3), ("hidden", "nowhere"))
    assert hooks(model) == 0
