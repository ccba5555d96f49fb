"""What a transformer's outputs may depend on, what its layers are called, and how large it is."""

from typing import Any

import pytest
import torch
from torch import nn

from kdutils import seeding
from kdutils.reading import outputs_at
from kdutils.tasks.models import Block, Transformer

TOKENS, WIDTH, HEADS, LAYERS, LENGTH, PAD = 7, 8, 2, 2, 6, 0


def make(seed: int = 0, **kind: Any) -> Transformer:
    sizes = {"vocabulary": TOKENS, "width": WIDTH, "heads": HEADS, "layers": LAYERS, "context": LENGTH}
    with seeding.global_rng(seed, "network"):
        return Transformer(**{**sizes, **kind})


def sequences(*shape: int) -> torch.Tensor:
    """Token ids without padding."""
    return torch.randint(1, TOKENS, shape, generator=seeding.generator(0, "tokens"))


def influence(net: nn.Module) -> torch.Tensor:
    """[j, i]: whether another token at j changes the output at i. A real change is far above rounding: 1e-6 or so."""
    x = sequences(1, LENGTH)
    changed = x.repeat(LENGTH, 1)
    changed.diagonal().copy_(changed.diagonal() % (TOKENS - 1) + 1)
    difference = (net(changed) - net(x)).abs().amax(-1)
    assert not ((difference > 2e-6) & (difference < 1e-4)).any()
    return difference > 1e-5


def test_a_causal_output_depends_on_its_own_token_and_those_before() -> None:
    assert torch.equal(influence(make()), torch.ones(LENGTH, LENGTH).triu().bool())


@pytest.mark.parametrize("padding", [None, PAD])
def test_a_bidirectional_output_depends_on_all_tokens(padding: int | None) -> None:
    assert influence(make(causal=False, padding=padding)).all()


def test_order_matters() -> None:
    net, x = make(causal=False), sequences(1, LENGTH)
    assert (net(x.flip(1)).flip(1) - net(x)).abs().max() > 1e-3


@pytest.mark.parametrize("extra", [1, 3])
def test_padding_changes_nothing_before_it(extra: int) -> None:
    net, x = make(causal=False, padding=PAD), sequences(3, LENGTH - extra)
    padded = torch.cat([x, torch.full((3, extra), PAD)], 1)
    torch.testing.assert_close(net(padded)[:, :-extra], net(x), atol=1e-6, rtol=1e-5)
    unaware = make(causal=False)
    assert (unaware(padded)[:, :-extra] - unaware(x)).abs().max() > 1e-3


def test_the_embedding_of_padding_does_not_matter() -> None:
    net, x = make(causal=False, padding=PAD), sequences(3, LENGTH)
    x[:, -2:] = PAD
    before = net(x)
    before[:, :-2].square().sum().backward()
    assert net.embed.weight.grad[PAD].abs().max() == 0 and net.position.weight.grad[-2:].abs().max() == 0
    with torch.no_grad():
        net.embed.weight[PAD] += 10
        net.position.weight[-2:] -= 10
    assert torch.equal(net(x)[:, :-2], before[:, :-2])


def test_last_is_the_last_position() -> None:
    every, last, x = make(), make(1, last=True), sequences(3, LENGTH)
    last.load_state_dict(every.state_dict())
    torch.testing.assert_close(last(x), every(x)[:, -1])
    torch.testing.assert_close(last(x[:, :4]), every(x)[:, 3])  # causal: what follows has no say
    assert outputs_at(last, x, ("norm",))["norm"].shape == (3, LENGTH, WIDTH)


@pytest.mark.parametrize("causal", [True, False])
def test_a_block_is_torchs_encoder_layer(causal: bool) -> None:
    theirs = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, dropout=0, batch_first=True, norm_first=True)
    ours = Block(WIDTH, HEADS)
    parts = {"project": "self_attn.out_proj", "up": "linear1", "down": "linear2"}
    pairs = {f"{a}.{kind}": f"{b}.{kind}" for a, b in parts.items() for kind in ("weight", "bias")}
    pairs |= {f"qkv.{kind}": f"self_attn.in_proj_{kind}" for kind in ("weight", "bias")}
    generator = seeding.generator(0, "weights")
    state = {name: torch.randn(p.shape, generator=generator) / 3 for name, p in ours.state_dict().items()}
    ours.load_state_dict(state)
    missing, unknown = theirs.load_state_dict({b: state[a] for a, b in pairs.items()}, strict=False)
    assert not unknown and all(name.startswith("norm") for name in missing)  # theirs start as ours stay: 1 and 0
    h = torch.randn(3, LENGTH, WIDTH, generator=generator)
    if causal:
        expected = theirs(h, nn.Transformer.generate_square_subsequent_mask(LENGTH))
        torch.testing.assert_close(ours(h, True), expected)
    else:
        real = torch.arange(LENGTH) < torch.tensor([[6], [4], [2]])
        expected = theirs(h, src_key_padding_mask=~real)
        torch.testing.assert_close(ours(h, False, real[:, None, None])[real], expected[real])


@pytest.mark.parametrize(
    ("kind", "problem"),
    [({"heads": 3}, "3 heads cannot share a width of 8"), ({"padding": PAD}, "causal model needs no padding")],
)
def test_impossible_shapes_are_refused(kind: dict, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        make(**kind)


def test_a_sequence_must_fit() -> None:
    assert make()(sequences(1, 1)).shape == (1, 1, TOKENS)
    with pytest.raises(ValueError, match="7 tokens does not fit in a context of 6"):
        make()(sequences(1, LENGTH + 1))


def test_layers_are_the_residual_stream_after_each_block() -> None:
    net, x = make(), sequences(3, LENGTH)
    seen = outputs_at(net, x, ("embed", "blocks.0", "blocks.1", "norm", "readout"))
    h = seen["embed"] + net.position.weight
    for index in (0, 1):
        h = net.blocks[index](h, True)
        torch.testing.assert_close(seen[f"blocks.{index}"], h)
    torch.testing.assert_close(net.norm(h), seen["norm"])
    torch.testing.assert_close(net(x), seen["readout"])
    with pytest.raises(ValueError, match=r"no layer 'blocks.2'.*'blocks.0'"):
        outputs_at(net, x, ("blocks.2",))


class Refuses(nn.Module):
    def forward(self, *_: object) -> None:
        raise AssertionError("this block must not be called")


def test_blocks_above_the_one_read_are_not_called() -> None:
    net, x = make(), sequences(3, LENGTH)
    net.blocks[1] = Refuses()
    assert outputs_at(net, x, ("blocks.0", "embed"))["blocks.0"].shape == (3, LENGTH, WIDTH)
    with pytest.raises(AssertionError, match="must not be called"):
        net(x)


@pytest.mark.parametrize(("layers", "classes"), [(0, None), (1, 3), (4, None)])
def test_number_of_parameters(layers: int, classes: int | None) -> None:
    """Four linear maps of 3, 1, 4 and 4 times width^2 with their biases, a block; norms have no weights."""
    w, out = WIDTH, classes or TOKENS
    block = 12 * w**2 + (3 + 1 + 4 + 1) * w
    expected = (TOKENS + LENGTH) * w + layers * block + w * out + out
    assert sum(p.numel() for p in make(layers=layers, classes=classes).parameters()) == expected
