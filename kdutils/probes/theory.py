r"""Closed forms for the first step on a sparse parity: nothing here is fitted, and nothing is drawn.

A *gate* is $g(x) = 1[\sum_i s_i x_i / \sqrt d + b > 0]$ with signs $s_i$: where a neuron of `two_phase.paired` is
active. Its Fourier coefficient on a set A is $c_{|A|}(b) \prod_{i \in A} s_i$, and $c_j$ is a ratio of whole numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from kdutils.probes.signal import Shares


def krawtchouk(d: int, degree: int, minus: int) -> int:
    """The sum of the products over all sets of `degree` out of d bits, `minus` of which are -1."""
    return sum((-1) ** p * math.comb(minus, p) * math.comb(d - minus, degree - p) for p in range(degree + 1))


def gate_coefficient(d: int, degree: int, bias: float) -> float:
    r"""$c_j(b)$, exactly, then rounded once.

    For $j \ge 1$ the gate changes with bit 1 only where the other $d - 1$ bits have one certain sum; so
    $c_j = \frac12 P[\text{this sum}] \; E[x_2 \cdots x_j \mid \text{this sum}]$.

    Raises:
        ValueError: unless 0 <= degree <= d and d >= 1.

    >>> gate_coefficient(3, 1, 0.0), gate_coefficient(3, 3, 0.0)  # half the majority of three
    (0.25, -0.25)
    """
    if not 0 <= degree <= d or d < 1:
        raise ValueError(f"a gate on d={d} bits has no coefficient of degree {degree}")
    shift = bias * math.sqrt(d)
    if degree == 0:
        return float(Fraction(sum(math.comb(d, q) for q in range(d + 1) if d - 2 * q + shift > 0), 2**d))
    low = math.floor(-1 - shift) + 1  # the sum of the others lies in (-1 - shift, 1 - shift]: its two whole numbers
    pivot = low if (low - (d - 1)) % 2 == 0 else low + 1
    minus = (d - 1 - pivot) // 2
    if not 0 <= minus <= d - 1:
        return 0.0
    given = Fraction(krawtchouk(d - 1, degree - 1, minus), math.comb(d - 1, degree - 1))
    return float(Fraction(math.comb(d - 1, minus), 2**d) * given)


def grid(pairs: int) -> np.ndarray:
    """The biases of `two_phase.paired` with so many pairs of neurons: a grid inside (-1, 1)."""
    return (np.arange(pairs) + 0.5) / pairs * 2 - 1


def labels(d: int, k: int, biases: Sequence[float], noise: float = 0.0) -> Shares:
    """What labels show in the first step of neurons with random signs and these biases; the first k bits decide.

    The view of a neuron is the label times its gate. On a bit of the support its coefficient is the gate's of degree
    k - 1, off it of degree k + 1; the squares do not depend on the signs. A perfect teacher's output is the same.

    Args:
        noise: probability of a wrong label.
    """

    def mean(degree: int) -> float:
        if degree > d:
            return 0.0
        return float(np.mean([gate_coefficient(d, degree, b) ** 2 for b in biases]))

    energy = float(np.mean([gate_coefficient(d, 0, b) for b in biases]))  # E[g^2] = E[g]
    bits = np.where(np.arange(d) < k, mean(k - 1), mean(k + 1)) * (1 - 2 * noise) ** 2 / energy
    return Shares(bits, tuple(range(k)), np.zeros(d))


def step(signs: np.ndarray, biases: Sequence[float], k: int) -> np.ndarray:
    """The exact coefficients E[y g_j x_i] of label times gate (neurons, d) for gates with these signs and biases.

    This is the first gradient step of `two_phase.paired` from endless labels, up to the outgoing weight of each
    neuron. The first k bits decide the label.

    Args:
        signs: (neurons, d) of -1 and +1.
    """
    signs = np.asarray(signs, float)
    d = signs.shape[1]
    known = {b: (gate_coefficient(d, k - 1, b), gate_coefficient(d, k + 1, b) if k < d else 0.0) for b in set(biases)}
    size = np.array([known[b] for b in biases])
    product = signs[:, :k].prod(1, keepdims=True) * signs  # of S without i on the support, of S with i off it
    return product * np.where(np.arange(d) < k, size[:, :1], size[:, 1:])


def growth(k: int, biases: Sequence[float]) -> float:
    r"""$\lim n^* / d^k$ for labels, with $n^*$ the samples at which half of the first step lies on the support.

    $c_j(b)^2 d^j \to (\phi(b) He_{j-1}(b))^2$, $\phi$ the normal density and $He$ the probabilists' Hermite
    polynomials; $V \to$ the mean of the normal distribution function.

    Raises:
        ValueError: for k below 2, which is no parity of several bits.
    """
    if k < 2:
        raise ValueError(f"a single bit (k={k}) is seen directly: take k >= 2")
    b = np.asarray(biases, float)
    hermite = np.polynomial.hermite_e.hermeval(b, [0] * (k - 2) + [1])
    slope = float(np.mean((np.exp(-(b**2) / 2) / math.sqrt(2 * math.pi) * hermite) ** 2))
    energy = float(np.mean([(1 + math.erf(v / math.sqrt(2))) / 2 for v in b]))
    return energy / (k * slope) if slope else math.inf


def scatter(n: float, energy: float, size: float, rank: float) -> float:
    r"""The bound of Proposition 1 (d) on how much pairs of different samples make $\|\hat a_i\|^2$ deviate.

    Args:
        energy: V; size: $\|a_i\|^2$; rank: the effective number of views.
    """
    return math.sqrt(2 / rank) * energy / n + 2 * rank**-0.25 * math.sqrt(size * energy / n)


def deciding(d: int, gap: float, delta: float) -> int:
    """Labels after which one gate tells all d bits apart: each estimate within half of the gap, but for `delta`.

    >>> round(deciding(100, 0.01, 0.1) / deciding(100, 0.02, 0.1), 3)  # half the gap
    4.0
    """
    return math.ceil(8 * math.log(2 * d / delta) / gap**2)


def patterns(k: int, delta: float) -> int:
    """Labels after which each of the 2^k patterns of the support was seen, but for a probability `delta`."""
    return math.ceil(2**k * math.log(2**k / delta))


def output_disadvantage(biases: Sequence[float], d: int) -> float:
    r"""How many times smaller the shares of a *sum* of gates are than those of the gates, on average over signs.

    The view $y \sum_j g_j$ has the energy $E[(\sum_j g_j)^2]$, to which all pairs of gates add; its coefficients have
    random signs, to which none do. For gates with independent signs $E[g_j g_l] = c_0(b_j) c_0(b_l)$.
    """
    mu = np.array([gate_coefficient(d, 0, b) for b in biases])
    return float((mu.sum() ** 2 - mu @ mu + mu.sum()) / mu.sum())


def margin(noise: float) -> float:
    """The logit difference of the best teacher of labels of which this share is wrong: log((1 - noise) / noise)."""
    if not 0 < noise < 0.5:
        raise ValueError(f"the noise must lie strictly between 0 and 1/2, not {noise!r}")
    return math.log((1 - noise) / noise)


def saturation(margin: float, temperature: float = 1.0) -> float:
    r"""What is left of the shares of a logit difference once it has passed through the softmax: $(q / \sinh q)^2$.

    For a difference of $\pm$`margin` with a small remainder, to leading order in it; $q$ = margin / temperature.

    >>> saturation(1e-6), saturation(10.0) < 1e-6
    (1.0, True)
    """
    q = margin / temperature
    return 1.0 if abs(q) < 1e-4 else (q / math.sinh(min(abs(q), 350.0))) ** 2
