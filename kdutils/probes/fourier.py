r"""Fourier coefficients of functions on {-1, +1}^d.

The coefficient of $f$ on a set $A$ of bits is $\hat f(A) = E_x[f(x) \prod_{i \in A} x_i]$, $x$ uniform.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from kdutils import losses, reading

EXACT_LIMIT = 20


def cube(d: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """All 2^d points (2^d, d) of {-1, +1}^d; bit `i` of a row's number n is set where column i is -1.

    Raises:
        ValueError: for d below 1 or over 20.
    """
    if not 1 <= d <= EXACT_LIMIT:
        raise ValueError(f"all 2^d points are listed for d up to {EXACT_LIMIT}, not d={d}: sample instead")
    numbers = torch.arange(2**d, device=device)
    return 1.0 - 2.0 * ((numbers[:, None] >> torch.arange(d, device=device)) & 1)


def walsh_hadamard(values: torch.Tensor) -> torch.Tensor:
    """Every Fourier coefficient of a function from its values (2^d,) on `cube(d)`, exactly, in d passes.

    Entry n of the result is the coefficient on the set of bits that are 1 in n.

    >>> x = cube(3)
    >>> walsh_hadamard(x[:, 0] * x[:, 2]).nonzero().item() == 0b101
    True
    """
    d = values.numel().bit_length() - 1
    if values.dim() != 1 or 2**d != values.numel():
        raise ValueError(f"expected the 2^d values of a function, got shape {tuple(values.shape)}")
    table = values.double()
    for bit in range(d):
        low, high = table.view(-1, 2, 2**bit).unbind(1)
        table = torch.stack([low + high, low - high], 1).flatten()
    return table / values.numel()


def degrees(d: int) -> torch.Tensor:
    """(2^d,) size of the set that each entry of `walsh_hadamard` belongs to."""
    return (cube(d) < 0).sum(1)


def characters(x: torch.Tensor, sets: Sequence[Sequence[int]]) -> torch.Tensor:
    """The product of the bits in each set: (n, d) and m sets -> (n, m). The empty set gives 1."""
    return torch.stack([x[:, list(s)].prod(1) for s in sets], 1)


def coefficients(values: torch.Tensor, x: torch.Tensor, sets: Sequence[Sequence[int]] | None = None) -> torch.Tensor:
    """Estimate Fourier coefficients by an average over samples: one matrix product.

    Args:
        values: (n,) or (n, functions), the functions' values at `x`.
        x: (n, d), uniform samples -- or all of `cube(d)`, which makes the result exact.
        sets: the sets of bits; all d single bits (degree 1) when left out.

    Returns:
        (m,) or (m, functions). Their standard error is at most `values.std() / sqrt(n)`.
    """
    features = x if sets is None else characters(x, sets)
    return features.T @ values / len(x)


def degree_one(values: torch.Tensor, x: torch.Tensor, support: Sequence[int]) -> dict[str, float]:
    """Root mean square degree-1 coefficient on and off the support, of functions scaled to unit variance.

    Args:
        values: (n, functions) at the samples x (n, d) of {-1, +1}^d; of a constant function nothing but NaN comes.

    >>> x = cube(3)
    >>> degree_one(x[:, :1], x, support=[0])  # a function that is one bit
    {'on': 1.0, 'off': 0.0}
    """
    spread = values.std(0, unbiased=False)
    squares = coefficients((values - values.mean(0)) / spread, x).square().mean(1)
    inside = torch.zeros(x.shape[1], dtype=torch.bool, device=x.device)
    inside[list(support)] = True
    return {"on": squares[inside].mean().sqrt().item(), "off": squares[~inside].mean().sqrt().item()}


def signed_output(network: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """A two-class network as a function to [-1, 1]: p(class 0) - p(class 1), so +1 where it is sure of parity +1."""

    def function(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            parts = [reading.outputs_at(network, part)[reading.OUTPUT].softmax(-1) for part in x.split(16_384)]
        p = torch.cat(parts)  # in parts: the hidden layer of a wide network on many samples is large
        return p[:, 0] - p[:, 1]

    return function


@torch.no_grad()
def score(network: nn.Module, x: torch.Tensor, y: torch.Tensor, rows: int = 64) -> tuple[float, float]:
    """Cross-entropy (nats) and accuracy of a network on labelled rows, where a label is asked for.

    Args:
        x: (n, ...) inputs; y: (n,) classes, or (n, length) with `losses.IGNORE` where nothing is asked.
        rows: rows that go through the network at once.
    """
    surprise = right = asked = 0.0
    device = next(network.parameters()).device
    for part, truth in zip(x.split(rows), y.split(rows), strict=True):
        part, truth = part.to(device), truth.to(device)
        here = truth != losses.IGNORE
        logits = reading.outputs_at(network, part)[reading.OUTPUT][here]
        surprise += losses.cross_entropy(logits, truth[here]).sum().item()
        right += (logits.argmax(-1) == truth[here]).sum().item()
        asked += here.sum().item()
    return surprise / asked, right / asked
