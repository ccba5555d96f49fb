"""The networks of the book."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Linear(nn.Linear):
    """torch's, with a bias; weights stacked by members (members, out, in) take inputs (members, ..., in)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.weight.dim() == 2:
            return super().forward(x)
        rows = torch.baddbmm(self.bias.unsqueeze(1), x.flatten(1, -2), self.weight.mT)
        return rows.view(*x.shape[:-1], -1)


class LayerNorm(nn.Module):
    """Layer norm of the last dimension. It has no weights: the linear layer after it can do what they would."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:])


class Embedding(nn.Embedding):
    """torch's; a table stacked by members (members, rows, width) takes ids (members, ...)."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        if self.weight.dim() == 2:
            return super().forward(ids)
        members, rows, _ = self.weight.shape
        first = torch.arange(0, members * rows, rows, device=ids.device).view(-1, *[1] * (ids.dim() - 1))
        return F.embedding(ids + first, self.weight.flatten(0, 1))


class MLP(nn.Module):
    """Two-layer network: Linear(d, width) - ReLU - Linear(width, classes), torch's default initialisation.

    Module paths: `hidden` is the hidden layer before the ReLU, `act` after it.
    """

    def __init__(self, d: int, width: int, classes: int = 2) -> None:
        super().__init__()
        self.hidden = Linear(d, width)
        self.act = nn.ReLU()
        self.readout = Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (..., classes) of inputs (..., d)."""
        return self.readout(self.act(self.hidden(x)))


class Block(nn.Module):
    """Pre-norm transformer block: attention, then a two-layer network, each added to what came in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = LayerNorm(), LayerNorm()
        self.qkv, self.project = Linear(width, 3 * width), Linear(width, width)
        self.up, self.down = Linear(width, 4 * width), Linear(4 * width, width)

    def extra_repr(self) -> str:
        return f"heads={self.heads}"  # no weight shows it, and the store tells networks apart by both

    def forward(self, h: torch.Tensor, causal: bool, attend: torch.Tensor | None = None) -> torch.Tensor:
        """(..., batch, length, width) -> the same; `attend` (..., batch, 1, 1, length) is False at keys to ignore."""
        # torch's attention is fused for one batch dimension only: members and sequences share it
        qkv = self.qkv(self.norm1(h)).view(-1, h.shape[-2], 3, self.heads, h.shape[-1] // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mask = None if attend is None else attend.flatten(0, -4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        h = h + self.project(mixed.transpose(-3, -2).reshape(h.shape))
        return h + self.down(F.relu(self.up(self.norm2(h))))


class Transformer(nn.Module):
    """A small pre-norm transformer with learned positions and ReLU; no dropout, no tied weights, none in its norms.

    Module paths: `embed`, then `blocks.0`, `blocks.1`, ... (the residual stream after each block), `norm`
    (the last one through the final layer norm) and `readout`.

    Args:
        vocabulary: number of token ids.
        width: size of the residual stream; heads: attention heads, each `width / heads` wide.
        layers: number of blocks.
        context: longest sequence.
        classes: outputs at a position; the vocabulary when left out.
        causal: a position sees itself and those before it; else all.
        last: read the answer from the last position only (one label a sequence).
        padding: a token id that no position attends to.

    Raises:
        ValueError: when the heads do not divide the width, or padding is asked of a causal or a `last` model.
    """

    def __init__(
        self,
        vocabulary: int,
        width: int,
        heads: int,
        layers: int,
        context: int,
        classes: int | None = None,
        causal: bool = True,
        last: bool = False,
        padding: int | None = None,
    ) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"{heads} heads cannot share a width of {width}: take a multiple")
        if causal and padding is not None:
            raise ValueError("a causal model needs no padding id: what it predicts never sees what comes after")
        if last and padding is not None:
            raise ValueError("with padding the last position is not the end of every row: read every position")
        self.causal, self.last, self.padding, self.context = causal, last, padding, context
        self.embed, self.position = Embedding(vocabulary, width), Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.readout = LayerNorm(), Linear(width, classes or vocabulary)
        for table in (self.embed, self.position):
            nn.init.normal_(table.weight, std=0.02)

    def extra_repr(self) -> str:
        return f"causal={self.causal}, last={self.last}, padding={self.padding}"

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits of token ids (batch, length): (batch, length, classes), or (batch, classes) with `last`."""
        length = tokens.shape[-1]
        if length > self.context:
            raise ValueError(f"a sequence of {length} tokens does not fit in a context of {self.context}")
        attend = None if self.padding is None else (tokens != self.padding)[..., None, None, :]
        h = self.embed(tokens) + self.position.weight[..., None, :length, :]
        for block in self.blocks:
            h = block(h, self.causal, attend)
        h = self.norm(h)
        return self.readout(h[..., -1, :] if self.last else h)


_STACKING = (MLP, Transformer, Block, Linear, LayerNorm, Embedding, nn.ModuleList, nn.ReLU)


def stacks(network: nn.Module) -> bool:
    """Whether `network` runs as it is on weights and inputs with a leading dimension of members.

    Only an MLP or a Transformer as built does. A class of one's own, or any layer put in place of another, may do
    anything with its dimensions: False.
    """
    parts = list(network.modules())
    weights = [weight for part in parts for weight in part._parameters.values()]
    known = all(type(part) in _STACKING for part in parts) and all(weight is not None for weight in weights)
    return known and type(network) in (MLP, Transformer)
