"""The look at a teacher before a student is trained: cases whose shares are known."""

import pytest
import torch
from torch import nn

from kdutils.losses import IGNORE
from kdutils.probes.worth import worth
from kdutils.tasks.models import MLP, Transformer


class Parts(nn.Module):
    """Inputs: two logits, then one entry that the outputs do not show, then one that only noise is in."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs, self.hidden, self.noise = nn.Identity(), nn.Identity(), nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.hidden(x[:, 2:3])
        self.noise(x[:, 3:])
        return self.outputs(x[:, :2].clone())


def batches(n: int = 10, strength: float = 1.0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator, made = torch.Generator().manual_seed(0), []
    for _ in range(n):
        y = torch.randint(0, 2, (200,), generator=generator)
        gap = strength * torch.randn(200, generator=generator)
        hidden, noise = 2.0 * y - 1, torch.randn(200, generator=generator)
        made.append((torch.stack([gap, -gap, hidden, noise], 1), y))
    return made


def test_what_is_known_is_found() -> None:
    """Outputs tell of themselves, labels of a layer that holds them, and nobody of noise."""
    told = worth(Parts(), batches(), ["outputs", "hidden", "noise"])
    outputs, hidden, noise = told.layers
    # log-probabilities of two classes are no linear map of the gap: they tell most of it
    assert outputs.outputs > 0.95 and abs(outputs.labels) < 0.01
    assert abs(hidden.outputs) < 0.02 and hidden.labels > 0.98 and abs(hidden.left) < 0.02
    assert abs(noise.outputs) < 0.02 and abs(noise.labels) < 0.02 and noise.left > 0.97
    for layer in told.layers:
        assert layer.outputs + layer.labels + layer.left == pytest.approx(1)
    assert told.positions == 2000 and told.classes == 2 and abs(told.accuracy - 0.5) < 0.05


def test_saturation() -> None:
    flat, sure = (worth(Parts(), batches(strength=s), ["hidden"]) for s in (1e-3, 1e3))
    assert flat.sure == 0 and flat.entropy == pytest.approx(torch.tensor(2.0).log().item(), abs=1e-4)
    assert sure.sure > 0.99 and sure.entropy < 0.01


def test_the_cost_of_a_stage_is_the_pass_up_to_its_layer() -> None:
    made = worth(MLP(6, 20, 5), [(torch.randn(8, 6), torch.randint(0, 5, (8,))) for _ in range(4)], ["act"])
    assert made.layers[0].cost == pytest.approx(6 / (6 + 5)) and made.layers[0].width == 20
    assert str(made).count("\n") == 2 and "55%" in str(made)


def test_sequences_count_where_they_are_asked_and_modes_come_back() -> None:
    teacher = Transformer(9, 8, 2, 2, 5)
    teacher.blocks[0].eval()
    x = torch.randint(0, 9, (4, 16, 5))
    pairs = [(part, part.roll(-1, 1).masked_fill(torch.arange(5) == 4, IGNORE)) for part in x]
    told = worth(teacher, pairs, ["blocks.0", "blocks.1"], positions=100)
    assert told.positions == 2 * 16 * 4 and [layer.width for layer in told.layers] == [8, 8]
    assert teacher.training and not teacher.blocks[0].training and teacher.blocks[1].training


def test_what_is_refused_with_one_clear_line() -> None:
    pairs = batches(3)
    convolution = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(8, 2))
    pictures = [(torch.randn(4, 1, 2, 2), torch.tensor([0, 1, 0, 1]))] * 2
    assert worth(convolution, pictures, ["0"], units=1).layers[0].width == 2
    for action, message in [
        (lambda: worth(Parts(), pairs[:1], ["hidden"]), "fewer than two batches"),
        (lambda: worth(Parts(), [{"x": x, "labels": y} for x, y in pairs], ["hidden"]), "a pair .*, not a dict"),
        (lambda: worth(Parts(), pairs, []), "name the layers to look at"),
        (lambda: worth(Parts(), pairs, ["hiden"]), "Parts has no layer 'hiden'"),
        (lambda: worth(Parts(), [(x, y[:, None]) for x, y in pairs], ["hidden"]), r"need labels \(200,\)"),
        (lambda: worth(Parts(), [(x, y.float()) for x, y in pairs], ["hidden"]), "labels must be whole numbers"),
        (lambda: worth(Parts(), [(x, y.fill_(IGNORE)) for x, y in batches(3)], ["hidden"]), "no position has a label"),
        (lambda: worth(nn.Sequential(Parts(), nn.Softmax(-1)), pairs, ["0.hidden"]), "outputs are probabilities"),
        (lambda: worth(convolution, pictures, ["0"]), "say which dimension holds the units"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            action()
