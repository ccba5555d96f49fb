"""Sparse parities: the sign of a product of `k` hidden bits out of `d`."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kdutils import seeding


@dataclass(frozen=True)
class SparseParity:
    """The task "what is the product of the bits on the support?", with endless fresh samples.

    Inputs are uniform in {-1, +1}^d. The label is class 0 where the product over the support is +1
    and class 1 where it is -1.

    Args:
        d: number of input bits.
        k: number of bits the label depends on, 1 <= k <= d.
        support: which bits those are; the first `k` when left out. For an MLP the choice makes no
            difference (its initial weights treat every bit alike); `with_random_support` draws one.
        noise: probability with which `sample` gives the wrong label; `label` is always right.
        tokens: give the bits as token ids, 0 for +1 and 1 for -1, for a network that embeds them.

    Raises:
        ValueError: when the numbers do not describe a sparse parity; the message says which.

    >>> task = SparseParity(d=5, k=2, support=(1, 4))
    >>> x, y = task.sample(3, seeding.generator(0, "example"))
    >>> x.shape, y.shape, bool(((x[:, 1] * x[:, 4] < 0) == y.bool()).all())
    (torch.Size([3, 5]), torch.Size([3]), True)
    """

    d: int
    k: int
    support: tuple[int, ...] | None = None
    tokens: bool = False
    noise: float = 0.0

    classes = 2

    def __post_init__(self) -> None:
        for name in ("d", "k"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive whole number, not {value!r}")
        if not 0 <= self.noise < 0.5:
            raise ValueError(f"noise is the probability of a wrong label, at least 0 and below 0.5, not {self.noise!r}")
        if self.k > self.d:
            raise ValueError(f"k={self.k} bits cannot be chosen out of d={self.d}: take k <= d")
        support = tuple(range(self.k)) if self.support is None else tuple(int(i) for i in self.support)
        if self.support is not None and any(i != j for i, j in zip(support, self.support, strict=True)):
            raise ValueError(f"support positions must be whole numbers, got {list(self.support)}")
        if len(support) != self.k or len(set(support)) != self.k:
            raise ValueError(f"the support needs k={self.k} different positions, got {list(support)}")
        outside = [i for i in support if not 0 <= i < self.d]
        if outside:
            raise ValueError(f"support positions must lie in 0..{self.d - 1}; these do not: {outside}")
        object.__setattr__(self, "support", tuple(sorted(support)))

    @classmethod
    def with_random_support(cls, d: int, k: int, seed: int) -> SparseParity:
        """A parity over `k` positions drawn without replacement from `d`."""
        cls(d, k)  # the same checks, before drawing
        positions = torch.randperm(d, generator=seeding.generator(seed, "support"))[:k]
        return cls(d, k, tuple(positions.tolist()))

    def sample(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw `n` fresh examples on the generator's device.

        Returns:
            The pair (x, y), where x is (n, d) float32 of -1 and +1 (int64 of 0 and 1 with `tokens`) and y is (n,)
            int64 class labels.
        """
        x = torch.empty(n, self.d, device=generator.device).random_(0, 2, generator=generator)
        x.mul_(2).sub_(1)
        y = self.label(x)
        if self.noise:
            y ^= torch.rand(n, device=generator.device, generator=generator) < self.noise
        return ((x < 0).long() if self.tokens else x), y

    def label(self, x: torch.Tensor) -> torch.Tensor:
        """Class of each row of `x` (..., d): 0 where the product over the support is +1, else 1."""
        return (x[..., list(self.support)].prod(-1) < 0).long()
