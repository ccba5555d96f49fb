"""Layered probabilistic context-free grammars, and the best that a masked language model can do on them.

The grammars are those of Allen-Zhu & Li, "Physics of Language Models: Part 1" (arXiv:2305.13673). What a network
learns to approximate can be computed: a sentence's probability, a hidden token's posterior given all the others.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch
from torch.nn.functional import pad

from kdutils.losses import IGNORE

TERMINALS = (1, 2, 3)  # the paper's names of the letters a, b, c; their token ids are one less: 0, 1, 2
BOS, EOS, PAD, MASK = 3, 4, 5, 6
VOCABULARY = 7


@dataclass(frozen=True)
class Grammar:
    """A context-free grammar in layers: each rule rewrites a symbol into symbols of the layer below.

    All rules of a symbol are equally likely. A derivation starts at the root and ends, after `depth` rewritings, in a
    string of letters a, b, c: token ids 0, 1, 2.

    Args:
        name: what to call it.
        root: the symbol that every derivation starts from.
        rules: the right-hand sides of each symbol that the root leads to (others are dropped). Symbols are whole
            numbers, the terminals 1, 2, 3.

    Raises:
        ValueError: when a symbol has no rules, or two layers share one; the message says which.

    >>> grammar = Grammar("ab or abc", 4, {4: ((1, 2), (1, 2, 3))})
    >>> grammar.shortest, grammar.mean_length, grammar.longest
    (2, 2.5, 3)
    >>> math.exp(grammar.log_probability([0, 1, 2])), grammar.is_grammatical([1, 0])
    (0.5, False)
    """

    name: str
    root: int
    rules: dict[int, tuple[tuple[int, ...], ...]]
    depth: int = field(init=False)

    def __post_init__(self) -> None:
        if min(self.rules, default=0) <= max(TERMINALS):
            raise ValueError(f"symbols with rules are whole numbers above the terminals {TERMINALS}")
        layer, reached, kept, depth = [self.root], {self.root}, {}, 0
        while depth == 0 or not set(layer) <= set(TERMINALS):
            for symbol in layer:
                if not self.rules.get(symbol) or not all(self.rules[symbol]):
                    raise ValueError(f"symbol {symbol}, one of {layer} at depth {depth}, has no rule or an empty one")
                kept[symbol] = tuple(map(tuple, self.rules[symbol]))
            layer, depth = sorted({child for symbol in layer for right in kept[symbol] for child in right}), depth + 1
            if reached & set(layer):
                raise ValueError(f"not in layers: symbols {sorted(reached & set(layer))} occur at two depths")
            reached |= set(layer)
        object.__setattr__(self, "rules", kept)  # in order of depth: what goes upward reads them in reverse
        object.__setattr__(self, "depth", depth)

    @classmethod
    def named(cls, name: str) -> Grammar:
        """A built-in grammar: cfg3b (as in the paper), cfg3b-reference, cfg3f, cfg3g, cfg3h or cfg3i.

        cfg3b-reference is what the public code of "Progressive distillation induces an implicit curriculum" reads. It
        lost the rule 9 -> 2 1, so its sentences are longer; use it to set numbers beside that paper's.

        Raises:
            ValueError: for another name; the message lists them.
        """
        table = json.loads(Path(__file__).with_name("grammars.json").read_text(encoding="utf-8"))["grammars"]
        if name not in table:
            raise ValueError(f"unknown grammar {name!r}: choose one of {', '.join(table)}")
        return cls(name, table[name]["root"], {int(symbol): rules for symbol, rules in table[name]["rules"].items()})

    def rooted(self, symbol: int) -> Grammar:
        """The grammar of what `symbol` derives: the same structure with fewer layers, for smaller machines.

        Raises:
            ValueError: when there is no such symbol; the message lists them.
        """
        if symbol not in self.rules:
            raise ValueError(f"{self.name} has no symbol {symbol!r} with rules: choose one of {sorted(self.rules)}")
        return Grammar(f"{self.name} rooted at {symbol}", symbol, self.rules)

    shortest = property(lambda self: self._fold(1, min), doc="Tokens in the shortest sentence.")
    longest = property(lambda self: self._fold(1, max), doc="Tokens in the longest sentence.")
    mean_length = property(lambda self: self._fold(1, fmean), doc="The exact mean number of tokens in a sentence.")

    @property
    def entropy(self) -> float:
        """The exact entropy of a derivation in nats. It is also a sentence's, unless some have two derivations."""
        return self._fold(0, lambda sums: math.log(len(sums)) + fmean(sums))

    def _fold(self, leaf: int, combine: Callable[[list], float]) -> float:
        """The root's value from the letters up: children add up within a rule, `combine` joins a symbol's rules."""
        value = dict.fromkeys(TERMINALS, leaf)
        for symbol in reversed(self.rules):
            value[symbol] = combine([sum(value[child] for child in right) for right in self.rules[symbol]])
        return value[self.root]

    @cached_property
    def _tables(self) -> tuple[torch.Tensor, ...]:
        """By symbol: its first rule and how many it has. By rule: right-hand side, filled up with 0, and its length."""
        first, count = torch.zeros(2, max(self.rules) + 1, dtype=torch.int64)
        rights: list[torch.Tensor] = []
        for symbol, rules in self.rules.items():
            first[symbol], count[symbol] = len(rights), len(rules)
            rights += map(torch.tensor, rules)
        filled = torch.nn.utils.rnn.pad_sequence(rights, batch_first=True)
        return first, count, filled, (filled > 0).sum(1)

    def sample(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw `n` sentences on the generator's device.

        Returns:
            tokens: (n, longest) int64 letters, PAD after the end, and lengths: (n,) int64.

        >>> tokens, lengths = Grammar.named("cfg3b").rooted(7).sample(4, torch.Generator().manual_seed(0))
        >>> tokens.tolist(), lengths.tolist()  # 7 -> 3 1 or 1 2 3
        ([[2, 0, 5], [0, 1, 2], [2, 0, 5], [2, 0, 5]], [2, 3, 2, 2])
        """
        device = generator.device
        first, count, rights, sizes = (table.to(device) for table in self._tables)
        # All sentences lie end to end in `symbols`, `last` is where each one ends; a layer is rewritten in one go.
        symbols, last = torch.full((n,), self.root, device=device), torch.arange(n, device=device)
        for _ in range(self.depth):
            choice = torch.rand(len(symbols), generator=generator, device=device) * count[symbols]
            rule = first[symbols] + choice.long()
            symbols = rights[rule]
            symbols = symbols[symbols > 0]
            last = sizes[rule].cumsum(0)[last] - 1
        lengths = torch.diff(last, prepend=last.new_tensor([-1]))
        tokens = torch.full((n, self.longest), PAD, device=device)
        tokens[torch.arange(self.longest, device=device) < lengths[:, None]] = symbols - 1
        return tokens, lengths

    def log_evidence(self, evidence: torch.Tensor) -> torch.Tensor:
        """Log probability of a noisy reading of a whole sentence, the sentence itself summed out (inside algorithm).

        With T_x[i, j] the probability that x derives what was read from i up to j, a rule x -> y z w of probability p
        adds p T_y T_z T_w, a product of matrices, to T_x.

        Args:
            evidence: (length, 3) float64 likelihoods P(what was read at i | letter at i), in any scale by position.

        Returns:
            A 0-d tensor in nats, -inf where nothing fits. Its gradient by `evidence` is the outside algorithm:
            P(letter at i, all that was read but at i) / P(all that was read).
        """
        if not self.shortest <= len(evidence) <= self.longest:
            return evidence.new_tensor(-math.inf)
        # With the largest likelihood of a position at 1, hundreds of positions stay far from the smallest float64.
        scale = evidence.detach().amax(1, keepdim=True)
        letters = evidence / scale.where(scale > 0, 1)
        tables = {letter: torch.diag_embed(letters[:, letter - 1], offset=1) for letter in TERMINALS}
        for symbol in reversed(self.rules):
            rows = slice(1 if symbol == self.root else None)  # of the root's table only i = 0 is needed
            products = (reduce(torch.matmul, [tables[z] for z in zs], tables[y][rows]) for y, *zs in self.rules[symbol])
            tables[symbol] = sum(products) / len(self.rules[symbol])
        return tables[self.root][0, -1].log() + scale.log().sum()

    def log_probability(self, sentence: Sequence[int] | torch.Tensor) -> float:
        """Log probability in nats of tokens (length,), without BOS and padding; -inf when not grammatical."""
        tokens = torch.as_tensor(sentence)
        return self.log_evidence((tokens[:, None] == torch.arange(3, device=tokens.device)).double()).item()

    def is_grammatical(self, sentence: Sequence[int] | torch.Tensor) -> bool:
        """Whether some derivation ends in these tokens (length,)."""
        return self.log_probability(sentence) > -math.inf


class Optimum(NamedTuple):
    """The best predictor's loss in nats and its share of hits, over n predicted tokens."""

    loss: float
    accuracy: float
    n: int


@dataclass(frozen=True)
class MaskedGrammar:
    r"""The task of filling in hidden tokens of a grammar's sentences, with endless fresh samples.

    Each token of a sentence is to be predicted with probability `rate`. Where it is, the input shows MASK with
    probability `mask`, a uniformly random letter (it may be the right one) with probability `random`, and else the
    token itself, as in BERT (Devlin et al., 2019). BOS and padding are never to be predicted.

    The best predictor. Let $t$ be the letters, $x$ the row, $S_i$ the event that $i$ is to be predicted. The loss
    counts only where $S_i$ holds, so the best answer is $P(t_i \mid x, S_i)$. Given the letters, positions are
    corrupted independently, which makes it proportional to $P(x_i, S_i \mid t_i)\, P(t_i, x_{-i})$. In the second
    factor every other $x_j$ is a noisy reading $P(x_j \mid t_j)$, for the row does not tell where it was changed; the
    factor is the derivative of $P(x) = \sum_t P(t) \prod_j P(x_j \mid t_j)$ by $P(x_i \mid t_i)$.

    Raises:
        ValueError: for shares that are not probabilities.

    >>> task = MaskedGrammar(Grammar("abc or ca", 4, {4: ((1, 2, 3), (3, 1))}))
    >>> task.posterior(torch.tensor([BOS, MASK, MASK, PAD]))[1:].tolist()  # the length tells which of the two it is
    [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """

    grammar: Grammar
    rate: float = 0.3
    mask: float = 0.8
    random: float = 0.1

    classes = VOCABULARY
    padding = PAD

    def __post_init__(self) -> None:
        shares = self.rate, self.mask, self.random
        if not all(0 <= share <= 1 for share in shares) or self.rate == 0 or self.mask + self.random > 1 + 1e-9:
            raise ValueError(f"need 0 < rate <= 1, mask, random >= 0 and mask + random <= 1, not {shares}")

    def sample(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw `n` fresh examples on the generator's device.

        Returns:
            x: (n, 1 + longest) int64: BOS, the sentence as it is shown, PAD. y: the same shape, the original token
            where it is to be predicted, else IGNORE.
        """
        tokens, _ = self.grammar.sample(n, generator)
        draw = torch.rand(tokens.shape, generator=generator, device=tokens.device)
        draw[tokens == PAD] = 1  # never below a share
        letters = torch.randint(3, tokens.shape, generator=generator, device=tokens.device)
        x = tokens.where(draw >= self.rate * (self.mask + self.random), letters)
        x = x.where(draw >= self.rate * self.mask, MASK)
        y = tokens.where(draw < self.rate, IGNORE)
        return pad(x, (1, 0), value=BOS), pad(y, (1, 0), value=IGNORE)

    def posterior(self, row: torch.Tensor, scored: bool = False) -> torch.Tensor:
        """The exact posterior (length + 1, 3) of each original letter given a whole row (columns,) of `sample`.

        With `scored`, each position's answer is given also that it is to be predicted, which minimises the loss: a
        letter seen at the position itself then counts for less. The first entry belongs to BOS and is NaN, as is a
        position that cannot be one to predict.

        Raises:
            ValueError: when the row does not start with BOS, or no sentence fits it.
        """
        if row.dim() != 1 or not len(row) or row[0] != BOS:
            raise ValueError("expected one row of token ids, the first of them BOS")
        seen = row[row != PAD][1:, None]
        hidden, letter = (seen == MASK).double(), (seen < 3).double()
        same = (seen == torch.arange(3, device=row.device)).double()
        keep = max(0.0, 1 - self.mask - self.random)  # rounding can take it below zero
        chosen = self.rate * (self.mask * hidden + self.random / 3 * letter + keep * same)
        evidence = (chosen + (1 - self.rate) * same).requires_grad_()
        with torch.enable_grad():
            total = self.grammar.log_evidence(evidence)
        if total == -math.inf:
            raise ValueError(f"no sentence of {self.grammar.name} can be shown as this row")
        (others,) = torch.autograd.grad(total, evidence)
        weights = others * (chosen if scored else evidence.detach())
        return torch.cat([weights.new_full((1, 3), math.nan), weights / weights.sum(1, keepdim=True)])

    def optimum(self, x: torch.Tensor, y: torch.Tensor) -> Optimum:
        """The best possible loss and accuracy on these rows' distribution, computed by an exact algorithm.

        Loss is the mean of -log `posterior` at the right letters, accuracy how often the likeliest letter is right;
        on few rows a network can have more luck. Takes (n, columns) x and y of `sample`. The time goes as the cube of
        the length: on one CPU core about 0.05 s a row at 158 tokens, 0.3 s at 276.

        Raises:
            ValueError: when the shapes differ or nothing is to be predicted.
        """
        if x.shape != y.shape or not (y != IGNORE).any():
            raise ValueError(f"labels {tuple(y.shape)} must have the rows' shape {tuple(x.shape)}, some not IGNORE")
        guesses = (self.posterior(row, scored=True) for row in x)
        p = torch.cat([guess[labels[: len(guess)] != IGNORE] for guess, labels in zip(guesses, y, strict=True)])
        right = y[y != IGNORE]
        loss = -p.gather(1, right[:, None]).log().mean()
        return Optimum(loss.item(), (p.argmax(1) == right).double().mean().item(), len(right))
