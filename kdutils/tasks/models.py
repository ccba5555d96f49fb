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
        return f"heads={self.heads}"  # no weight shows it

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


class Convolution(nn.Conv2d):
    """torch's, 3 x 3 with a border of zeros and without a bias, before batch norm; weights stacked by members
    (members, out, in, 3, 3) take maps (members, batch, in, height, width)."""

    def __init__(self, channels: int, out: int, stride: int = 1) -> None:
        super().__init__(channels, out, 3, stride, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.weight.dim() == 4:
            return super().forward(x)
        side_by_side = x.transpose(0, 1).flatten(1, 2)  # members are groups of channels of one convolution
        made = F.conv2d(side_by_side, self.weight.flatten(0, 1), None, self.stride, 1, groups=len(self.weight))
        return made.unflatten(1, self.weight.shape[:2]).transpose(0, 1)


class BatchNorm(nn.BatchNorm2d):
    """torch's; weights and statistics stacked by members (members, channels) take maps as `Convolution` does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.weight.dim() == 1:
            return super().forward(x)
        if self.training:
            self.num_batches_tracked.add_(1)
        own = (part.view(-1) for part in (self.running_mean, self.running_var, self.weight, self.bias))
        made = F.batch_norm(x.transpose(0, 1).flatten(1, 2), *own, self.training, self.momentum, self.eps)
        return made.unflatten(1, self.weight.shape).transpose(0, 1)


class ConvBlock(nn.Module):
    """`depth` convolutions, each followed by batch norm, with ReLUs between; the first halves the map's sides."""

    def __init__(self, channels: int, out: int, depth: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(Convolution(out if i else channels, out, 1 if i else 2) for i in range(depth))
        self.norms = nn.ModuleList(BatchNorm(out) for _ in range(depth))

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """(..., batch, channels, height, width) -> (..., batch, out, height / 2, width / 2)."""
        for i, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            h = norm(convolution(F.relu(h) if i else h))
        return h


class ConvNet(nn.Module):
    """A plain convolutional network: no connection skips a layer, no dropout; block i has `width` * 2^i channels.

    Module paths: `blocks.0`, `blocks.1`, ... (maps, before the ReLU that follows a block) and `readout`, which reads
    the mean of the last map.

    Args:
        layers: number of blocks; depth: convolutions in each.
        channels: of the pictures.
    """

    def __init__(self, classes: int, width: int, layers: int = 3, depth: int = 1, channels: int = 1) -> None:
        super().__init__()
        widths = [channels, *(width * 2**i for i in range(layers))]
        self.blocks = nn.ModuleList(ConvBlock(widths[i], widths[i + 1], depth) for i in range(layers))
        self.readout = Linear(widths[-1], classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (..., classes) of pictures (..., channels, height, width)."""
        for i, block in enumerate(self.blocks):
            x = block(F.relu(x) if i else x)
        return self.readout(F.relu(x).mean((-2, -1)))


_STACKING = (MLP, Transformer, Block, ConvNet, ConvBlock, Convolution, BatchNorm, Linear, LayerNorm, Embedding,
             nn.ModuleList, nn.ReLU)  # fmt: skip


def alone(network: nn.Module) -> bool:
    """Whether networks like this run one by one, for a reason that samples may not show: a row of padding, which does
    not learn, is known to `torch.func.vmap` in the first of them alone.

    Raises:
        ValueError: for an embedding with `max_norm`, which changes its weights in every pass.
    """
    tables = [part for part in network.modules() if isinstance(part, nn.Embedding)]
    if any(table.max_norm is not None for table in tables):
        raise ValueError("an Embedding with max_norm changes its weights in every pass: build it without, for many")
    return any(table.padding_idx is not None and table.weight.requires_grad for table in tables)


def stacks(network: nn.Module) -> bool:
    """Whether `network` runs as it is on weights and inputs with a leading dimension of members.

    Only an MLP, a Transformer or a ConvNet as built does. A class of one's own, or any layer put in place of another,
    may do anything with its dimensions: False.
    """
    parts = list(network.modules())
    if any(type(part) is Embedding and (part.padding_idx, part.max_norm, part.sparse) != (None, None, False)
           for part in parts):  # fmt: skip
        return False
    bias = Convolution, "bias"  # it has none
    weights = [weight for part in parts for name, weight in part._parameters.items() if (type(part), name) != bias]
    known = all(type(part) in _STACKING for part in parts) and all(weight is not None for weight in weights)
    return known and type(network) in (MLP, Transformer, ConvNet)
