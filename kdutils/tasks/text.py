"""Real text as a task: corpora by name, a byte-level tokenizer trained on the spot, and windows to learn from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Protocol

import torch

from kdutils import seeding
from kdutils.losses import IGNORE
from kdutils.tasks.corpora import documents

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PAD, BOS, MASK = range(3)
SPECIAL = ("<pad>", "<bos>", "<mask>")  # by id
PARTS = ("train", "validation", "test")


class Cache(Protocol):
    """Where results are kept under a key: tensors and plain data."""

    def load(self, key: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None: ...

    def save(self, key: str, tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> None: ...


def split(documents: Sequence[str], seed: int = 0) -> tuple[list[str], list[str], list[str]]:
    """Training, validation and test documents, drawn at random: 90, 5 and 5 % of their number, at least one each.

    Of equal documents one is kept, lest a copy be learned in one part and asked for in another. Fewer than three
    different ones raise a ValueError.
    """
    different = list(dict.fromkeys(documents))
    if (n := len(different)) < len(PARTS):
        raise ValueError(f"a split needs 3 different documents or more, not {n}: in a file, blank lines part them")
    drawn = [different[i] for i in torch.randperm(n, generator=seeding.generator(seed, "split")).tolist()]
    held = max(1, round(n / 20))
    return drawn[2 * held :], drawn[:held], drawn[held : 2 * held]


def tokenizer(documents: Sequence[str], vocabulary: int = 2048, cache: Cache | None = None) -> Tokenizer:
    """Byte-level BPE (Sennrich et al., 2016; on bytes as in GPT-2) learned from training documents.

    Every text round-trips exactly, one that spells out a special token too.

    Args:
        vocabulary: special tokens (ids 0 to 2), 256 bytes and merges, fewer where a small text has no more to merge;
            a ValueError below 259.
        cache: where to look for it first, and to keep it, such as a `kdutils.lab.store.Store`.
    """
    if vocabulary < 256 + len(SPECIAL):
        raise ValueError(f"vocabulary must be at least {256 + len(SPECIAL)} (bytes, special tokens), not {vocabulary}")
    try:
        import tokenizers
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    except ImportError as error:
        raise ImportError("text needs the package tokenizers: pip install 'kdutils[text]'") from error
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learned.decoder = decoders.ByteLevel()
    key = _key("tokenizer", tokenizers.__version__, learned.to_str(), str(vocabulary), *documents)
    kept = cache.load(key) if cache else None
    if kept is not None:
        learned = Tokenizer.from_str(kept[1]["tokenizer"])
    else:
        options = {"special_tokens": list(SPECIAL), "initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
        trainer = trainers.BpeTrainer(vocab_size=vocabulary, show_progress=False, **options)
        learned.train_from_iterator(documents, trainer)
        if cache:
            cache.save(key, {}, {"tokenizer": learned.to_str()})
    learned.encode_special_tokens = True  # read `<mask>` in a text as six characters
    return learned


def _key(kind: str, *parts: str) -> str:
    hashes = (hashlib.sha256(part.encode()).digest() for part in parts)  # fixed lengths: no part runs into the next
    return f"{kind}-{hashlib.sha256(b''.join(hashes)).hexdigest()[:20]}"


@dataclass(frozen=True, eq=False)
class Corpus:
    """The task "which token stands here?", on windows of one stream of tokens.

    Causal: y is x one position later. Masked (Devlin et al., 2019): a share `rate` of positions is asked for, `<bos>`
    never; x holds `<mask>` at 80 % of these, a random token at 10 %, the right one at 10 %; elsewhere y is `IGNORE`.
    A window may hold the end of one document and, after `<bos>`, the beginning of another.

    Args:
        tokens: (length,) whole numbers below `classes`, the size of the vocabulary.
        context: tokens in a window.
        objective: "causal" or "masked"; `rate` is for the second.
        name: what error messages call the stream.

    Raises:
        ValueError: for a stream shorter than one window, and for settings that make no task.

    >>> corpus = Corpus(torch.arange(3, 20), classes=20, context=4)
    >>> x, y = corpus.sample(2, seeding.generator(0, "example"))
    >>> x.shape, bool((y == x + 1).all())
    (torch.Size([2, 4]), True)
    """

    tokens: torch.Tensor = field(repr=False)
    classes: int
    context: int
    objective: str = "causal"
    rate: float = 0.3
    name: str = "the text"

    padding = None  # every window is full
    finite = True  # a stream has so many windows, and they overlap

    def __post_init__(self) -> None:
        if self.objective not in ("causal", "masked"):
            raise ValueError(f"objective must be 'causal' or 'masked', not {self.objective!r}")
        if self.context < 1 or not 0 < self.rate <= 1:
            raise ValueError(f"context={self.context} must be at least 1, and rate={self.rate} in 0 < rate <= 1")
        if self._starts < 1:
            has, needs = len(self.tokens), len(self.tokens) - self._starts + 1
            advice = f"a window of context={self.context} needs {needs}, so take a smaller context or a longer text"
            raise ValueError(f"{self.name} has {has} tokens: {advice}")
        if self.tokens.min() < 0 or self.tokens.max() >= self.classes:
            raise ValueError(f"tokens must lie in 0..{self.classes - 1}")

    @property
    def _starts(self) -> int:  # places where a window can start; a causal one also needs the token after it
        return len(self.tokens) - self.context + (self.objective == "masked")

    @cached_property
    def _on(self) -> dict[torch.device, torch.Tensor]:
        return {self.tokens.device: self.tokens}  # copied to another device once, not at every step

    def _windows(self, starts: torch.Tensor, generator: torch.Generator | None) -> tuple[torch.Tensor, torch.Tensor]:
        device = starts.device
        if device not in self._on:
            self._on[device] = self.tokens.to(device)
        at = starts[:, None] + torch.arange(self.context, device=device)
        x = self._on[device][at].long()
        if self.objective == "causal":
            return x, self._on[device][at + 1].long()
        asked = (torch.rand(x.shape, generator=generator, device=device) < self.rate) & (x != BOS)
        fate = torch.rand(x.shape, generator=generator, device=device)
        shown = torch.randint(len(SPECIAL), self.classes, x.shape, generator=generator, device=device)
        shown = torch.where(fate < 0.8, MASK, torch.where(fate < 0.9, shown, x))
        return torch.where(asked, shown, x), torch.where(asked, x, IGNORE)

    def sample(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw `n` windows, starting anywhere, on the generator's device: x and y, (n, context) int64."""
        starts = torch.randint(self._starts, (n,), generator=generator, device=generator.device)
        return self._windows(starts, generator)

    def windows(self, generator: torch.Generator | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """The stream in consecutive windows, to ask for each token once: x and y, (windows, context) int64.

        The last window ends with the stream; where it overlaps the one before, y is `IGNORE`. The generator draws
        the masks of a masked corpus (ValueError without one), and x and y are on its device.
        """
        if generator is None and self.objective == "masked":
            raise ValueError("masks are drawn at random: give windows() a generator")
        last = self._starts - 1
        device = self.tokens.device if generator is None else generator.device
        x, y = self._windows(torch.tensor([*range(0, last, self.context), last], device=device), generator)
        y[-1, : -last % self.context] = IGNORE
        return x, y

    @cached_property
    def _digest(self) -> str:
        return hashlib.sha256(self.tokens.cpu().numpy().tobytes()).hexdigest()

    def describe(self) -> dict[str, object]:
        """What a run on this task depends on (`kdutils.lab.store`); the stream is hashed once."""
        rate = self.rate if self.objective == "masked" else None
        settings = {"classes": self.classes, "context": self.context, "objective": self.objective, "rate": rate}
        return {"tokens": self._digest, **settings}


@dataclass(frozen=True)
class Corpora:
    """The three parts of a corpus, as tasks, and their tokenizer."""

    train: Corpus
    validation: Corpus
    test: Corpus
    tokenizer: Tokenizer = field(repr=False)

    def decode(self, tokens: torch.Tensor | Sequence[int]) -> str:
        """The text of one row of tokens, special ones spelt out and `IGNORE` left out."""
        return self.tokenizer.decode([int(t) for t in tokens if t != IGNORE], skip_special_tokens=False)


def load(
    name: str = "sotu", context: int = 64, vocabulary: int = 2048, objective: str = "causal", seed: int = 0,
    rate: float = 0.3, limit: int | None = None, cache: Cache | None = None,
) -> Corpora:  # fmt: skip
    """A corpus (see `documents`) split by document, as three tasks (see `Corpus`).

    Args:
        vocabulary: see `tokenizer`, which learns from the training part alone.
        seed: which documents go where.
        limit: characters to use of the training part; a tenth as many of the other two.
        cache: where tokenizer and tokens are kept, by a hash of the text, such as a `kdutils.lab.store.Store`.

    Raises:
        ValueError: for a part shorter than one window. Also what `documents`, `split` and `tokenizer` raise.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be a positive number of characters, not {limit!r}")
    texts = dict(zip(PARTS, split(documents(name), seed), strict=True))
    if limit is not None:
        texts = {part: _leading(texts[part], limit if part == "train" else limit // 10) for part in PARTS}
    learned = tokenizer(texts["train"], vocabulary, cache)
    key = _key("tokens", learned.to_str(), *(_key("", *texts[part]) for part in PARTS))
    kept = cache.load(key) if cache else None
    if kept is not None:
        streams = kept[0]
    else:
        streams = {part: _stream(texts[part], learned) for part in PARTS}
        if cache:
            cache.save(key, streams, {})
    size = learned.get_vocab_size()
    parts = {p: Corpus(streams[p], size, context, objective, rate, f"the {p} part of {name}") for p in PARTS}
    return Corpora(**parts, tokenizer=learned)


def _leading(documents: Sequence[str], limit: int) -> list[str]:
    before = accumulate(map(len, documents), initial=0)
    return [document[: limit - start] for document, start in zip(documents, before, strict=False) if start < limit]


def _stream(documents: Sequence[str], tokenizer: Tokenizer) -> torch.Tensor:
    ids = [token for text in tokenizer.encode_batch_fast(documents) for token in (BOS, *text.ids)]
    return torch.tensor(ids, dtype=torch.int32)
