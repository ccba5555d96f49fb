"""What a run costs: floating-point operations as executed, memory, and bytes to store."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

Result = TypeVar("Result")


def flops(compute: Callable[[], Result]) -> tuple[Result, int]:
    """Run `compute` and count the floating-point operations of its matrix products and convolutions (torch's counter).

    Element-wise work is not counted; a multiply-add counts as two.

    >>> import torch
    >>> flops(lambda: torch.ones(2, 3) @ torch.ones(3, 5))[1]
    60
    """
    mapping = {torch.ops.aten.convolution_backward: _convolution_backward}
    # the counter does not know a CPU's fused attention; the plain one does the same products
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        result = compute()
    return result, counter.get_total_flops()


def _convolution_backward(slope: Sequence[int], x: Sequence[int], weight: Sequence[int], *rest: Any, **_: Any) -> int:
    """As many as the pass itself for the inputs' gradient, and for the weights'. torch's own formula forgets groups,
    and members that run as groups of one convolution would count each other's."""
    _, _, _, _, transposed, _, _, (inputs, weights, _) = rest
    return (inputs + weights) * conv_flop_count(list(x), list(weight), list(slope), transposed)


def storage(networks: Sequence[nn.Module]) -> int:
    """Bytes needed to keep the parameters and buffers of `networks`, as they are."""
    return sum(t.numel() * t.element_size() for network in networks for t in network.state_dict().values())


def device_name(device: torch.device) -> str:
    """What a run was made on, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


def peak_memory(device: torch.device) -> int:
    """The most bytes in use until now: of the process on a CPU (0 on Windows), of torch's allocations on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def keep_freed_memory() -> None:
    """Let the C library keep the memory that one step frees for the next, where it is glibc.

    Given back to the system, it has to be asked for and cleared anew at every step, which can take longer than the
    step itself. glibc keeps about twice the largest block that it has seen freed, of blocks up to 32 MiB.
    """
    torch.empty(31 << 20, dtype=torch.uint8)


def give_back_memory() -> None:
    """Hand what is left free to the system once a run is over: over many runs it would pile up in pieces."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library has no such function
        ctypes.CDLL(None).malloc_trim(0)
