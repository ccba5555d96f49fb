"""What a run costs: floating-point operations as executed, and bytes to store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

Result = TypeVar("Result")


def flops(compute: Callable[[], Result]) -> tuple[Result, int]:
    """Run `compute` and count the floating-point operations of its matrix products (torch's own counter).

    Element-wise work is not counted; a multiply-add counts as two.

    >>> import torch
    >>> flops(lambda: torch.ones(2, 3) @ torch.ones(3, 5))[1]
    60
    """
    # the counter does not know a CPU's fused attention; the plain one does the same products
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        result = compute()
    return result, counter.get_total_flops()


def storage(networks: Sequence[nn.Module]) -> int:
    """Bytes needed to keep the parameters and buffers of `networks`, as they are."""
    return sum(t.numel() * t.element_size() for network in networks for t in network.state_dict().values())
