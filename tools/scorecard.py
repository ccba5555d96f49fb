"""Write book/scorecard.md from the recorded results: what the papers claim, and what we found.

The sentences about the papers are ours; the numbers and verdicts all come from `book/results/book`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pairing

from kdutils.pages.claims import Claim, _band, _measured

ROOT = Path(__file__).resolve().parents[1]
RESULTS, TEXT, PAGE = ROOT / "book" / "results" / "book", ROOT / "book" / "text", ROOT / "book" / "scorecard.md"

# (who, what they claim in our words, ids of the claims that bear on it; True where these test our own statements)
PAPERS = (
    ("panigrahi2025", "Training on the final teacher alone can be about as slow as training on labels.",
     ("one-shot-like-labels", "one-shot-vs-labels")),
    ("panigrahi2025", "A checkpoint from the teacher's jump makes students faster than the final teacher does (tested "
     "here with six bits that decide, and with two, three and four, where one checkpoint from early in the jump was "
     "tried).",
     ("middle-beats-one-shot", "middle-beats-early", "middle-beats-late", "checkpoint-pays-2", "checkpoint-pays-3",
      "checkpoint-pays-4")),
    ("panigrahi2025", "In the jump the teacher's output correlates with the single bits of the support.",
     ("spike", "final-output-blind")),
    ("panigrahi2025", "The samples that progressive distillation needs grow more slowly with the bits than one-shot's "
     "(tested here: with four bits that decide, where it rests on the largest size; with two a checkpoint costs "
     "samples at every size).", ("scaling-progressive", "scaling-progressive-fewer")),
    ("panigrahi2025", "In the two-phase setting of the theorems a checkpoint after the first phase helps.",
     ("two-phase-exact", "two-phase-progressive")),
    ("panigrahi2025", "Progressive distillation helps transformers on parities.",
     ("transformer-progressive-vs-one-shot",)),
    ("panigrahi2025", "Progressive distillation helps in masked language modelling on a grammar (tested here: "
     "one checkpoint, and all probabilities of the teacher; in the paper's public code students see its likeliest "
     "letter).",
     ("grammar-progressive-500", "grammar-progressive-1000", "grammar-progressive-2000", "grammar-progressive-4000",
      "grammar-progressive-vs-one-shot")),
    ("panigrahi2025", "Progressive distillation helps in language modelling on real text (tested here: a causal "
     "network, one checkpoint, up to 4,000 steps).",
     ("english-progressive-400", "english-progressive-1000", "english-progressive-2000", "english-progressive-4000")),
    ("gupta2025", "Two-layer networks on parities: extraction is far better than one-shot (labels are shown beside "
     "it; with 100 bits they had the longer training).",
     ("extraction-vs-one-shot", "extraction-vs-labels", "paper-size-vs-one-shot", "paper-size-vs-labels")),
    ("gupta2025", "Two-layer networks on parities: extraction is similar to progressive distillation (tested here: "
     "the same samples within a factor of two; the numbers are progressive's samples over extraction's).",
     ("extraction-vs-progressive", "paper-size-vs-progressive")),
    ("gupta2025", "Extraction on parities has theoretical guarantees (tested here: propositions of our own about a "
     "first step, with proofs; we could not read the paper's theorem).",
     ("predicted-curve", "layer-turns", "layer-needs-fewer", "two-phase-extraction"), True),
    ("gupta2025", "Transformers on parities: extraction is better than one-shot.",
     ("transformer-extraction-vs-one-shot",)),
    ("gupta2025", "Language modelling: extraction is better than one-shot (tested here: small networks, "
     "the longer trainings of two studies).",
     ("grammar-extraction-vs-one-shot", "grammar-extraction-longest", "grammar-extraction-longest-above",
      "grammar-longer-vs-one-shot",
      "english-extraction-vs-one-shot", "english-rates", "english-extraction-longest")),
)  # fmt: skip

# (a question beyond the papers, ids of the claims that answer it)
BEYOND = (
    ("Two-layer networks on parities: do extraction's samples grow more slowly with the bits than one-shot's?",
     ("scaling-extraction-2", "scaling-extraction-3", "scaling-extraction-4")),
    ("Language modelling, shortest trainings: does extraction end behind one-shot?",
     ("grammar-extraction-few", "english-extraction-few")),
    ("Language modelling: is it what the teacher has learned (the control matches an untrained network's layers)?",
     ("grammar-control", "grammar-longer-vs-untrained", "english-control")),
    ("Language modelling: is a loss on output and hidden layer at once ahead of one-shot?",
     ("grammar-joint-few", "english-joint-400", "english-joint-1000", "english-joint-2000",
      "english-joint-4000")),
    ("Language modelling on English: is a checkpoint at least as good as extraction?",
     ("english-progressive-vs-extraction-400", "english-progressive-vs-extraction-1000",
      "english-progressive-vs-extraction-2000", "english-progressive-vs-extraction-4000")),
    ("Language modelling: is the last layer alone as good as all layers in turn?",
     ("grammar-last-vs-each-500", "grammar-last-vs-each-1000", "grammar-last-vs-each-4000", "english-last-layer-400",
      "english-last-layer-1000", "english-last-layer-2000", "english-last-layer-4000")),
    ("Language modelling on a grammar: is a loss on output and hidden layer at once as good as extraction?",
     ("grammar-joint-vs-each-500", "grammar-joint-vs-each-1000", "grammar-joint-vs-each-2000",
      "grammar-joint-vs-each-4000", "grammar-joint-vs-each-8000")),
    ("Language modelling: is extraction ahead of labels after as many operations?",
     ("grammar-extraction-vs-labels-flops", "grammar-labels-flops-longest", "english-extraction-vs-labels-flops")),
    ("A pretrained teacher, run once over a short text: does extraction help?",
     ("smollm2-extraction-vs-one-shot", "smollm2-control", "smollm2-control-accuracy")),
    ("Pictures: do hidden stages pay where outputs already say most of what the last layer holds?",
     ("pictures-extraction-foretold", "pictures-extraction-few-steps", "pictures-deep", "pictures-deep-ahead")),
    ("Pictures: does a teacher save labels?", ("pictures-one-percent", "pictures-ten-percent")),
)  # fmt: skip


def recorded() -> list[tuple[str, str, Claim]]:
    """(chapter's file, its title, claim) for all recorded claims, in the book's order."""
    found = []
    for path in sorted(RESULTS.glob("[0-9]*.json")):
        title = re.match(r"# (.+)", pairing.read(TEXT / f"{path.stem}.md").cells[0].source).group(1)
        for row in json.loads(path.read_text(encoding="utf-8"))["claims"]:
            verdict = row.pop("verdict")
            row["interval"], row["band"] = (tuple(map(float, row[name])) for name in ("interval", "band"))
            claim = Claim(**{**row, "value": float(row["value"])})
            assert claim.verdict == verdict, f"{path.name}: {claim.id} is recorded as {verdict}"
            found.append((path.stem, title, claim))
    return found


def overall(verdicts: list[str], ours: bool = False) -> str:
    """One word for several claims that bear on the same sentence; with `ours`, what became of our own in its place."""
    if not verdicts:
        return "not testable here"
    if ours:
        word = {"reproduced": "holds", "partly": "holds in part", "not reproduced": "fails"}
        return f"not tested; our own {word.get(own := overall(verdicts), 'is ' + own)}"
    if set(verdicts) == {"holds"}:
        return "reproduced"
    if "holds" in verdicts:
        return "partly"
    return "not reproduced" if "fails" in verdicts else "unclear"


def _studied() -> str:
    """The numbers of the chapters that show a study, such as "3, 4 and 8"."""
    texts = sorted(TEXT.glob("[0-9]*.md"))
    numbers = [str(int(p.name[:2])) for p in texts if re.search(r"\.study\(\"", p.read_text(encoding="utf-8"))]
    return f"{', '.join(numbers[:-1])} and {numbers[-1]}"


def page() -> str:
    claims = recorded()
    by_id = {claim.id: (stem, title, claim) for stem, title, claim in claims}
    lines = [
        "# Scorecard", "",
        "What the two papers claim, and what came out of the runs behind this book. Every number and verdict is read "
        "from the recorded results of the `book` profile: small networks, two processor cores. Many claims of chapters "
        f"{_studied()} rest on studies, which trained for longer, under three teachers (growth in chapter 5: five; "
        "chapter 11, and 100 bits in chapter 4: one). Those that say *small version*, and chapter 5's on first steps "
        "and two phases, rest on what the page trains. *Not reproduced* means: not at this size, by our reading of "
        "the method. *Not tested* stands where we could not read a theorem and tested statements of our own in its "
        "place. A claim *holds* when its whole interval (90 % over seeds, or over teachers and students, or the range "
        "over students) lies in a band that the chapter states, *fails* when none of it does, and is *unclear* in "
        "between. "
        "A number without an interval was measured once.", "",
        "## The papers' claims", "",
        "| verdict | claim, in our words | paper | what we measured |", "|---|---|---|---|",
    ]  # fmt: skip

    def told(ids: tuple[str, ...]) -> str:
        found = (by_id[i] for i in ids if i in by_id)
        evidence = (f"[{title}]({stem}): {c.sentence} {_measured(c)} ({c.verdict})" for stem, title, c in found)
        return "<br>".join(evidence)

    for paper, sentence, ids, *ours in PAPERS:
        verdict = overall([by_id[i][2].verdict for i in ids], *ours)
        lines.append(f"| **{verdict}** | {sentence} | {{cite:t}}`{paper}` | {told(ids)} |")
    lines += [
        "",
        "Not tested at all: transformers at the sizes of {cite:t}`panigrahi2025` (the profile `paper` has not been "
        "run; chapter 4 has the size of their two-layer networks, with larger batches), the sizes of "
        "{cite:t}`gupta2025`, which we could not read, and Wikipedia and books.",
        "",
        "## Beyond the papers",
        "",
        "| question | what we measured |",
        "|---|---|",
    ]
    lines += [f"| {question} | {told(ids)} |" for question, ids in BEYOND]
    lines += [
        "",
        "## The book's own claims", "",
        "| verdict | claim | measured [interval] | band | chapter |", "|---|---|---|---|---|",
    ]  # fmt: skip
    lines += [
        f"| {claim.verdict} | {claim.sentence} | {_measured(claim)} | {_band(claim)} | [{title}]({stem}) |"
        for stem, title, claim in claims
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
