"""Checks of the exercises of chapters 7 to 9."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

import torch

from kdutils import curriculum, reading, seeding
from kdutils.lab import stats
from kdutils.pages.exercises import close, exercise, need, need_hidden, need_outputs
from kdutils.tasks import grammar, text
from kdutils.tasks.models import Transformer

# Chapter 7: transformers


@exercise
def check_untouched(untouched: Callable) -> None:
    """`untouched(student)`: weights of a `Transformer` that no hidden stage changes."""
    for width, layers, classes in ((8, 2, 2), (12, 3, 5)):
        student = Transformer(2, width, 2, layers, 6, classes=classes, last=True)
        top = f"blocks.{layers - 1}"
        reading.outputs_at(student, torch.zeros(1, 6, dtype=torch.long), (top,))[top].sum().backward()
        count = sum(p.numel() for p in student.parameters() if p.grad is None)
        mine = int(untouched(student))
        message = f"width {width}, {layers} blocks, {classes} classes: {count} weights get no gradient, you say {mine}"
        need(mine == count, message)


@exercise
def check_plans(plans: Callable) -> None:
    """`plans(teacher, layers, lengths, budget)`: an extraction curriculum for each length that fits the budget."""
    teacher, layers = Transformer(2, 8, 2, 2, 6, classes=2, last=True), curriculum.paired_blocks(2, 2)
    found = list(plans(teacher, layers, (10, 50, 124, 125), 250))
    need(len(found) == 3, f"of lengths 10, 50, 124, 125 at two layers, 3 fit in 250 steps; you give {len(found)} plans")
    for plan, length in zip(found, (10, 50, 124), strict=True):
        need_outputs(plan, (length, length, None), (None, None, teacher))
        for number, pair in enumerate(layers, 1):
            need_hidden(plan, number, teacher, pair)
    need(len({plan.name for plan in found}) == 3, "give each plan a name of its own, to see which one was chosen")


def _fair(arms: Mapping[str, stats.Arm]) -> None:
    """The book's rules of a comparison."""
    for name, arm in arms.items():
        need(len(arm.seeds) >= 5, f"{name}: {len(arm.seeds)} seeds are reported; it takes 5")
        need(arm.sweep is not None, f"{name}: its learning rate was not chosen by a sweep: use `lab.arm`")
        both = sorted(set(arm.seeds) & set(arm.sweep.seeds))
        need(not both, f"{name}: seeds {both} are both tuned on and reported")
        need(len(arm.tried) >= 2, f"{name}: a sweep of {len(arm.tried)} learning rate chooses nothing")
    need(len({arm.run.budget for arm in arms.values()}) == 1, "the arms have different budgets of samples")
    need(len({arm.seeds for arm in arms.values()}) == 1, "the arms report different seeds")


@exercise
def check_partners(partners: Callable) -> None:
    """`partners()`: {"bottom": Arm, "top": Arm}, students of one block that match that block of the teacher."""
    arms = partners()
    need(set(arms) == {"bottom", "top"}, f"the keys should be 'bottom' and 'top', not {list(arms)}")
    _fair(arms)
    layer = {}
    for name, arm in arms.items():
        blocks = len(arm.run.students.skeleton.blocks)
        need(blocks == 1, f"{name}: the students have {blocks} blocks, not 1")
        stages = arm.run.settings["curriculum"]["stages"]
        read = re.search("projection.* of `(.+?)`", stages[0])
        need(len(stages) == 2 and read, f"{name}: expected one hidden stage, then the output")
        layer[name] = read[1]
    message = f"'bottom' reads {layer['bottom']!r} and 'top' {layer['top']!r} of the teacher"
    need(layer["bottom"] == "blocks.0" and layer["top"] not in ("blocks.0", "act"), message)


# Chapter 8: a language with a known optimum


@exercise
def check_probability(probability: Callable) -> None:
    """`probability(sentence)`: of a string of letters, under symbol 7 of cfg3b."""
    language = grammar.Grammar.named("cfg3b").rooted(7)
    for sentence in ("ca", "abc", "ac", "abca", "b"):
        exact = math.exp(language.log_probability(["abc".index(letter) for letter in sentence]))
        mine = float(probability(sentence))
        need(close(mine, exact), f"the grammar gives {sentence!r} another probability than {mine:g}: look at its rules")


@exercise
def check_best_loss(best_loss: Callable) -> None:
    """`best_loss(language, rate, generator)`: loss of the best possible model when a share of letters is asked for."""
    language = grammar.Grammar.named("cfg3b").rooted(10)
    loss = {rate: float(best_loss(language, rate, seeding.generator(0, "rate"))) for rate in (0.1, 0.4, 1.0)}
    need(loss[0.1] > 0, "the best possible model is not always certain: its loss is above 0")
    message = f"the more is hidden, the less there is to go by; your losses at rates 0.1, 0.4, 1 are {[*loss.values()]}"
    need(loss[0.1] < loss[0.4] < loss[1.0], message)
    need(loss[1.0] < math.log(3), "guessing among three letters costs log 3 nats; the best possible model does better")
    again = float(best_loss(language, 0.4, seeding.generator(0, "rate")))
    need(again == loss[0.4], "the same generator state must give the same number: draw from `generator` alone")
    x, y = grammar.MaskedGrammar(language, 0.4).sample(400, seeding.generator(1, "rate"))
    other = grammar.MaskedGrammar(language, 0.4).optimum(x, y).loss
    message = (
        f"at rate 0.4 the optimum is near {other:.2f} nats; yours is {loss[0.4]:.2f} (too few sentences, or base 2?)"
    )
    need(abs(other - loss[0.4]) < 0.2 * other, message)


@exercise
def check_trials(trials: Callable, page: stats.Arm) -> None:
    """`trials()`: {name: Arm} of all variants of the page's extraction arm that were tried, and that arm itself."""
    arms = trials()
    need(len(arms) >= 3, f"{len(arms)} arms: report the one of the page and at least two changes")
    need(any(arm.run.key == page.run.key for arm in arms.values()), "the arm of the page is missing")
    _fair(arms)
    plans = [arm.run.settings["curriculum"] for arm in arms.values()]
    stages = {str({key: value for key, value in plan.items() if key != "name"}) for plan in plans}
    need(len(stages) == len(plans), "two of the arms have the same stages")
    need(all("projection" in str(plan["stages"]) for plan in plans), "every arm should have a hidden stage")


# Chapter 9: English


@exercise
def check_perplexity(perplexity: Callable) -> None:
    """`perplexity(log_probabilities)`: of the tokens of a text, natural logarithms (n,)."""
    for classes in (2, 1000):
        value = float(perplexity(torch.full((50,), -math.log(classes), dtype=torch.double)))
        message = (
            f"a model that gives each of {classes} tokens the same probability has that perplexity, not {value:.4g}"
        )
        need(close(value, classes), message)
    need(close(perplexity(torch.zeros(7)), 1), "a model that is certain and right has perplexity 1")
    value = float(perplexity(torch.tensor([0.5, 0.125]).log()))
    need(close(value, 4), f"probabilities 1/2 and 1/8 make 4, not {value:.4g}: the mean is taken of the logarithms")
    need(math.isfinite(perplexity(torch.full((100_000,), -3.0))), "a long text must not make it overflow")


@exercise
def check_split(split: Callable) -> None:
    """`split(documents)`: three lists, training, validation and test, that share no document."""
    documents = [f"speech {i % 40}" for i in range(60)]  # 20 of them twice
    parts = [list(part) for part in split(documents)]
    need(len(parts) == 3 and all(parts), "expected three parts, none of them empty")
    for a, b in ((0, 1), (0, 2), (1, 2)):
        shared = set(parts[a]) & set(parts[b])
        need(not shared, f"parts {a} and {b} share {len(shared)} documents: what is tested was learned")
    need(set().union(*parts) == set(documents), "some documents are lost, or changed")
    need(len(parts[0]) > 0.5 * sum(map(len, parts)), "the training part should hold most of the documents")
    need([list(part) for part in split(documents)] == parts, "a second call gives other parts: fix the seed")
    few = [len(part) for part in split(["a", "b", "c"])]
    need(few == [1, 1, 1], f"three documents should make three parts of one, not {few}")


@exercise
def check_by_year(by_year: Callable) -> None:
    """`by_year(documents, context)`: `text.Corpora` of documents in order of time, the newest in the test part."""
    documents = [f"Address number <{i}> to the houses. " * 6 for i in range(40)]
    marks = ("zq", "qz", "xq", "qx", "jq", "qj", "zx", "xz", "jx", "xj", "zj", "jz")  # of the newest, one each
    for mark, i in zip(marks, range(39, 0, -1), strict=False):
        documents[i] += f"{mark}{mark} " * 50
    corpora = by_year(documents, 16)
    held = {}
    for part in text.PARTS:
        stream = getattr(corpora, part).tokens
        written = corpora.decode(stream)
        held[part] = [i for i in range(40) if f"<{i}>" in written]
        starts = int((stream == text.BOS).sum())
        need(starts == len(held[part]), f"{part}: {starts} starts of a document for {len(held[part])} documents")
    train, validation, test = held.values()
    need(train + validation + test == list(range(40)), "oldest to newest, each document once: " + str([*held.values()]))
    need(len(train) > 20 and validation and test, f"the parts hold {[*map(len, held.values())]} documents")
    known = corpora.tokenizer.get_vocab()
    for part in ("validation", "test"):
        unseen = [mark for mark, i in zip(marks, range(39, 0, -1), strict=False) if i in held[part]]
        peeked = any(mark in piece for mark in unseen for piece in known)
        need(not peeked, f"the tokenizer has seen the {part} part: learn it from the training part alone")
    need(corpora.train.context == 16, "the windows should have the length `context`")
