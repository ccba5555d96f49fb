r"""The propositions of chapter 5, each held against sums over everything that can happen: nothing here is a fit.

Each function returns what its proposition states beside what is found when all samples, inputs or signs are listed one
by one (where that is too many, a sample of stated size). A wrong statement shows: `tests/unit/test_theory.py`
changes the formulas one by one and sees a check fail.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kdutils import probes, seeding
from kdutils.probes import signal, theory, two_phase
from kdutils.tasks.models import MLP
from kdutils.tasks.parity import SparseParity


@dataclass(frozen=True)
class Check:
    """One number that a proposition states, and what was found.

    Attributes:
        close: how far the two may be apart, as a share of what is stated; `most`: what is stated is a bound instead.
    """

    what: str
    stated: float
    found: float
    close: float = 1e-9
    most: bool = False

    @property
    def holds(self) -> bool:
        if self.most:
            return self.found <= self.stated * (1 + self.close)
        return math.isclose(self.stated, self.found, rel_tol=self.close, abs_tol=1e-14) or self.stated == self.found

    def __str__(self) -> str:
        words = "at most" if self.most else "stated "
        return f"{self.what:50} {words} {self.stated:<10.5g} found {self.found:.5g}"


def show(checks: Sequence[Check]) -> None:
    """Print them, and stop at one that does not hold.

    Raises:
        AssertionError: when what was found is not what is stated.
    """
    print(*checks, sep="\n")
    wrong = [check.what for check in checks if not check.holds]
    assert not wrong, f"not as stated: {wrong}"


def looked_up(values: torch.Tensor) -> signal.Views:
    """The views with these values (2^d, m) on the cube."""
    weights = 2 ** torch.arange(len(values).bit_length() - 1)
    return lambda x: values[((x < 0) * weights).sum(1)]


def _drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=seeding.generator(0, "any views"), dtype=torch.float64)


def first() -> list[Check]:
    """Proposition 1, on a family of five views of three bits: 8, 64 and 512 samples of one, two and three inputs."""
    d, support, checks = 3, (0,), []
    x = probes.cube(d).double()
    h = _drawn(2**d, 5) + 2 * x[:, :1]
    a, v = probes.coefficients(h, x), h.square().sum(1).mean()
    shares = signal.of(looked_up(h), d, support)
    for n in (1, 2, 3):
        rows = torch.tensor(list(itertools.product(range(2**d), repeat=n)))
        energy = torch.einsum("bnm,bni->bim", h[rows], x[rows]).div(n).square().sum(2)  # (samples, d)
        mean, stated = energy.mean(0), (1 - 1 / n) * a.square().sum(1) + v / n
        checks += [Check(f"(a) energy on bit {i}, n={n}", stated[i].item(), mean[i].item()) for i in (0, 2)]
        checks += [Check(f"(a) share, n={n}", float(shares.expected(n)), (mean[0] / mean.sum()).item())]
        if n > 1:  # (d): what pairs of different inputs add
            spread = (energy - h.square().sum(1)[rows].sum(1)[:, None] / n**2)[:, 0].std(unbiased=False).item()
            checks += [Check(f"(d) deviation from pairs, n={n}", from_pairs(h, x, 0, n), spread)]
    sets = [s for size in (2, 3, 4) for s in itertools.combinations(range(6), size)]
    x = probes.cube(6).double()
    many = probes.characters(x, sets) / len(sets) ** 0.5  # weak views, beside one strong one that shows bit 0
    h = torch.cat([many, 0.1 * x[:, :1] + 0.99**0.5 * x[:, :5].prod(1, keepdim=True)], 1)
    rank = signal.effective_rank(looked_up(h), x)
    for i, seen in ((0, "seen in one view"), (5, "not seen")):
        size = probes.coefficients(h, x)[i].square().sum().item()
        bound, found = theory.scatter(1e6, h.square().sum(1).mean().item(), size, rank), from_pairs(h, x, i, 1e6)
        checks += [Check(f"(d) bound for a bit {seen}", bound, found, most=True),
                   Check(f"(d) the same, which is nearly met: {rank:.1f} views", bound, found, 0.05)]  # fmt: skip
    weak = signal.of(looked_up(_drawn(2**6, 4) + 0.5 * x[:, :1]), 6, (0, 1))

    def share(n: float) -> float:  # from (a), not from what is checked
        energy = (1 - 1 / n) * weak.bits + 1 / n
        return energy[:2].sum() / energy.sum()

    checks += [
        Check("(b) share at n*", 0.5, share(weak.needed())),
        Check("(b) share for endless samples", weak.limit, share(1e12)),
        Check("(b) rate at one sample", weak.excess / 6, (share(1 + 1e-6) - share(1)) / 1e-6, 1e-4),
    ]
    lost = signal.of(looked_up(_drawn(2**6, 4)), 6, (int(weak.bits.argmin()),))
    checks += [Check("(b) n* where the rest shows more", math.inf, lost.needed())]
    signs = probes.cube(5).double()  # all rows of random signs that a projection of five views can have
    moved = (signs @ a.T).square().mean(0) / a.square().sum(1)
    checks += [Check(f"(c) energy of a projection, over h's, bit {i}", 1, moved[i].item()) for i in (0, 2)]
    return checks


def from_pairs(h: torch.Tensor, x: torch.Tensor, bit: int, n: float) -> float:
    """The deviation that the proof of 1 (d) states, of the views' values h (2^d, m) at all inputs x."""
    a, c = probes.coefficients(h, x)[bit], h.T @ h / len(x)
    size = a @ a
    two, one = c.square().sum() - size**2, a @ c @ a - size**2
    return ((2 * n * (n - 1) * two + 4 * n * (n - 1) * (n - 2) * one) / n**4).sqrt().item()


def second(d: int = 9, k: int = 3, biases: Sequence[float] = (-0.7, 0.02, 0.63)) -> list[Check]:
    """Proposition 2: gates on all 2^d inputs, its limits at d = 512, decisions from drawn labels."""
    x, checks = probes.cube(d).double(), []
    for b in biases:
        table = probes.walsh_hadamard((x.sum(1) / d**0.5 + b > 0).double())
        checks += [Check(f"(a) gate of bias {b:+.2f}, degree {j}", theory.gate_coefficient(d, j, b),
                         table[2**j - 1].item()) for j in (0, k - 1, k + 1)]  # fmt: skip
    signs = torch.randint(0, 2, (len(biases), d), generator=seeding.generator(0, "signs")).double() * 2 - 1
    gates = (x @ signs.T / d**0.5 + torch.tensor(biases) > 0).double()
    y = x[:, :k].prod(1)
    said, found = theory.labels(d, k, biases), signal.of(looked_up(y[:, None] * gates), d, range(k))
    checks += [Check(f"(b) share of bit {i} in labels", said.bits[i], found.bits[i]) for i in (0, d - 1)]
    with seeding.global_rng(0, "gates"):
        wide = signal.gated(two_phase.answer(SparseParity(d, k)), two_phase.paired(d, 256))
    checks += [Check("effective views of 128 gates and labels", 4, signal.effective_rank(wide, x.float()), most=True)]
    limit, ratio = theory.growth(k, biases), {n: theory.labels(n, k, biases).needed() / n**k for n in (128, 512)}
    checks += [
        Check("(c) n* / d^k at d=512, against its limit", limit, ratio[512], 0.05),
        Check("(c) distance from it, as at d=128", abs(ratio[128] - limit), abs(ratio[512] - limit), most=True),
        Check("(c) samples to see a bit / d^(k-1), 512 over 128", 1,
              theory.labels(512, k, biases).visible / theory.labels(128, k, biases).visible / 4 ** (k - 1), 0.15),
    ]  # fmt: skip
    with seeding.global_rng(0, "junta"):
        inner = signal.layer(MLP(k, 16))
    needed = {
        n: signal.of(lambda x: inner(x[:, :k]), n, range(k), centre=True).needed() for n in (2 * k + 2, 2 * k + 6)
    }
    few, many = ((n - 1) for n in needed.values())
    checks += [Check("(d) n* - 1, three times as many bits beyond 2k", 3 * few, many, 1e-5)]
    return checks + decided()


def decided(d: int = 8, k: int = 2, bias: float = 0.3, delta: float = 0.1, tries: int = 200) -> list[Check]:
    """Proposition 2 (e): all bits decided at once, by one gate, from as many labels as stated and from a tenth."""
    inside, outside = (abs(theory.gate_coefficient(d, j, bias)) for j in (k - 1, k + 1))
    x, draw, wrong = probes.cube(d), seeding.generator(0, "rows"), []
    view, n = x[:, :k].prod(1) * (x.sum(1) / d**0.5 + bias > 0), theory.deciding(d, inside - outside, delta)
    for labels in (n, n // 10):
        rows = torch.randint(0, 2**d, (tries, labels), generator=draw)
        seen = torch.einsum("bn,bni->bi", view[rows], x[rows]).abs() / labels > (inside + outside) / 2
        wrong += [(seen != (torch.arange(d) < k)).any(1).float().mean().item()]
    return [Check(f"(e) share of decisions from {n} labels that err", delta, wrong[0], most=True),
            Check(f"(e) {delta}, over the same from a tenth", 1, delta / wrong[1], most=True)]  # fmt: skip


def queries(d: int = 9, k: int = 3) -> list[Check]:
    """What is said of statistical queries, for all supports of k = 3 bits: any query, and the best."""
    x = probes.cube(d).double()
    characters = probes.characters(x, list(itertools.combinations(range(d), k)))

    def owed(query: torch.Tensor) -> torch.Tensor:
        """What the answers to a query (2^d, 2), its values at y = +1 and at y = -1, owe to each support."""
        return torch.where(characters > 0, query[:, :1], query[:, 1:]).mean(0) - query.mean()

    four = probes.characters(x, [(0, 1, 2), (0, 3, 4), (1, 3, 5), (2, 4, 5)])  # the last is the product of the others
    best = (four[:, :3].sum(1) - four[:, 3]) / 2  # -1 or +1, and a half of each of the four parities
    answers, tolerance = owed(torch.stack([best, -best], 1)), 0.499
    return [
        Check("squares of what answers owe to supports", 1, owed(_drawn(2**d, 2).clamp(-1, 1)).square().sum().item(),
              most=True),
        Check("the same, of the best query", 1, answers.square().sum().item()),
        Check(f"supports that it tells from noise, at {tolerance}", tolerance**-2,
              (answers.abs() > tolerance).sum().item(), 0.01),
    ]  # fmt: skip


def third(d: int = 8, k: int = 3) -> list[Check]:
    """Proposition 3, on all 2^d inputs: outputs that are wrong or unsure, and some at the bounds."""
    x, checks = probes.cube(d).double(), []
    y, noise = x[:, :k].prod(1), _drawn(2**d)
    gate = (x.sum(1) / d**0.5 + 0.1 > 0).double()

    def seen(t: torch.Tensor) -> float:
        return probes.coefficients(t, x).square().sum().item()

    def beside(t: torch.Tensor) -> float:
        return (probes.coefficients(t * gate, x) - probes.coefficients(y * gate, x)).abs().max().item()

    for size in (0.05, 0.5):
        t = (y + size * noise).clamp(-1, 1)
        checks += [
            Check(f"(a) squares of single bits, error {size}", (t - y).square().mean().item(), seen(t), most=True),
            Check(f"(a) seen by a gate beside labels, error {size}", (t - y).abs().mean().item(), beside(t), most=True),
        ]
    half, bit = 0.9 * y + 0.1 * x[:, 0], torch.where(gate > 0, x[:, 0], y)  # near the bounds
    checks += [
        Check("(a) an output that shows half of its error", (half - y).square().mean().item() / 2, seen(half)),
        Check("(a) one whose error a gate sees whole", (bit - y).abs().mean().item(), beside(bit)),
    ]
    for wrong, heat in itertools.product((0.0001, 0.05, 0.1), (1, 4)):
        logits = theory.margin(wrong) * y + 1e-6 * noise
        t = torch.tanh(logits / 2 / heat)
        ratio = seen(t) / t.square().mean() / (seen(logits) / logits.square().mean())
        stated = theory.saturation(theory.margin(wrong), heat)
        checks += [Check(f"(b) factor, {wrong:.2%} wrong labels, temperature {heat}", stated, ratio.item(), 1e-4)]
    sure = torch.tensor(theory.margin(0.05)).sigmoid().item()
    return [*checks, Check("(b) how sure the best teacher is, 5 % wrong", 0.95, sure, 1e-6)]


def fourth(d: int = 4, k: int = 2, biases: Sequence[float] = (-0.6, 0.2, 0.7)) -> list[Check]:
    """Proposition 4, over all signs that three gates on four bits can have."""
    x, gates = probes.cube(d).double(), torch.tensor(biases).double()
    signs = probes.cube(d * len(biases)).double().view(-1, len(biases), d)
    views = x[:, :k].prod(1)[:, None] * (torch.einsum("bi,smi->sbm", x, signs) / d**0.5 + gates > 0)
    found = []  # of the sum and of the family: energies on bits, and in all, on average over signs
    for h in (views.sum(2, keepdim=True), views):
        energy = torch.einsum("sbm,bi->smi", h, x).div(len(x)).square().sum(1).mean(0)
        found.append(torch.cat([energy, h.square().sum(2).mean()[None]]))
    bits, factor = found[0] / found[1], theory.output_disadvantage(biases, d)
    many = theory.output_disadvantage(theory.grid(256), 16)
    return [*(Check(f"energy of a sum on bit {i}, over that of the gates", 1, bits[i].item()) for i in (0, d - 1)),
            Check("V of a sum, over that of the gates", factor, bits[-1].item()),
            Check("the factor for 256 gates on 16 bits: m / 2", 128, many, 0.05)]  # fmt: skip


def fifth(d: int = 9, k: int = 3, delta: float = 0.1, tries: int = 400) -> list[Check]:
    """Proposition 5: fits to every pattern once and to all but one, of k + 1 neurons; to drawn labels, of many."""
    least, wide = MLP(d, k + 1), MLP(d, 2 ** (k + 3))
    with torch.no_grad():
        for network in (least, wide):
            network.hidden.weight.zero_()
        sizes = torch.linspace(0.5, 2, k + 1)
        least.hidden.weight[:, :k] = sizes[:, None]
        least.hidden.bias.copy_((torch.arange(k + 1) * 2.0 - k + 1) * sizes)
        for values in (wide.hidden.weight[:, :k], wide.hidden.bias):
            values.copy_(torch.randn(values.shape, generator=seeding.generator(values.dim(), "neurons")))
    x, draw = probes.cube(d), seeding.generator(0, "patterns")
    y = x[:, :k].prod(1)
    every = x[x[:, k:].min(1).values > 0]  # each pattern of the support once

    def error(network: MLP, inputs: torch.Tensor) -> float:
        fitted = two_phase.fitted(network, inputs, inputs[:, :k].prod(1))
        return (fitted(x)[:, 0] - y).abs().max().item()

    n = theory.patterns(k, delta)
    missed = sum(error(wide, x[torch.randint(0, 2**d, (n,), generator=draw)]) > 0.01 for _ in range(tries))
    known = every[every[:, :k].sum(1) < k]
    return [Check("(a) error of a fit to every pattern", 1e-3, error(least, every), most=True),
            Check("(a) 0.1, over that of a fit without one pattern", 1, 0.1 / error(least, known), most=True),
            Check(f"(b) share of fits to {n} labels that fail", delta, missed / tries, most=True)]  # fmt: skip
