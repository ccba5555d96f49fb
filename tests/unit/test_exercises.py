"""Exercises: every solution passes its check, every stub and typical mistake fails with one clear line."""

import functools
import sys
from pathlib import Path

import jupytext
import pytest

from kdutils.pages.exercises import Wrong, exercise, need

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import exercises  # noqa: E402

CHAPTERS = sorted(path.stem for path in (ROOT / "book" / "exercises").glob("*.md"))
EXERCISES = [(chapter, number) for chapter in CHAPTERS for number in range(len(exercises.read(chapter)))]

# What the solutions of a chapter find on their page: its settings in small, its cells with these words, and more.
TINY = {
    "02_one_shot": {"d": 12, "k": 4, "teacher_width": 256, "teacher_steps": 600, "keep_every": 20, "held_out": 512},
    "07_transformers": {"steps": 12, "hidden_steps": [4], "batch": 4, "held_out": 16, "evaluate_every": 6},
    "08_grammar": {"steps": 12, "hidden_steps": [3], "batch": 4, "held_out": 16, "evaluate_every": 6},
}
TINY["10_pictures"] = {"steps": 12, "share": [0.2], "batch": 4, "held_out": 16, "evaluate_every": 6}
TINY["11_smollm2"] = {"rows": 24, "steps": 6, "evaluate_every": 6, "held_out": 4}
TINY["03_progressive"] = {**TINY["02_one_shot"], "steps": 40, "student_width": 8}
CELLS = {
    "02_one_shot": ("lab.teacher()",),
    "03_progressive": ("lab.teacher()", "def through"),
    "04_extraction": (),
    "11_smollm2": ("lab = RecordedLab",),
}
MORE = {
    "02_one_shot": "x, _ = lab.task.sample(8000, seeding.generator(0, 'probe'))",
    "03_progressive": "best = 10",
    "07_transformers": "teacher = lab.make_teacher()",
    "08_grammar": "teacher = lab.make_teacher()\n"
    "layers = curriculum.paired_blocks(cfg.layers, cfg.layers)\n"
    "hidden = {'positions': 'tokens', 'normalise': 'position'}\n"
    "arms = {'extraction': lab.arm(curriculum.extracted(teacher, layers, 3, **hidden, name='3 steps a layer'))}",
    "10_pictures": "teacher = lab.make_teacher()\n"
    "views = [Hidden(teacher, f'blocks.{i}', f'blocks.{i}', units=1) for i in range(cfg.layers)]\n"
    "last = Stage(Output(teacher))\n"
    "arms = {'extraction': lab.arm(Curriculum('extraction', (*(Stage(v, 1) for v in views), last)))}",
    "11_smollm2": "",
}


@functools.cache
def page(chapter):
    """What a reader's kernel holds at the end of a chapter, as far as its exercises need it."""
    text = jupytext.read(ROOT / "book" / "text" / f"{chapter}.md", fmt="md:myst")
    first, *cells = [cell.source for cell in text.cells if cell.cell_type == "code"]
    names = {"profile": "smoke", "device": "cpu", "seeds": None, "overrides": TINY.get(chapter, {})}
    exec(first.replace("%pip", "pass  #"), names)
    words = ("profiles.start", *CELLS.get(chapter, ())) if chapter in MORE else ()
    for source in cells:
        if any(word in source for word in words):
            exec(source, names)
    exec(MORE.get(chapter, ""), names)
    return names


@pytest.mark.parametrize(("chapter", "number"), EXERCISES)
def test_solution_passes_its_check(chapter, number, capsys):
    exec(exercises.read(chapter)[number].solution, dict(page(chapter)))
    assert capsys.readouterr().out.splitlines()[-1] == "correct"


@pytest.mark.parametrize(("chapter", "number"), EXERCISES)
def test_stub_fails_its_check_with_one_line(chapter, number):
    with pytest.raises(Wrong, match=r"^\w+ returns nothing yet: write its body$"):
        exec(exercises.read(chapter)[number].stub, dict(page(chapter)))


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_text_holds_the_exercises_of_their_source(chapter):
    text = (ROOT / "book" / "text" / f"{chapter}.md").read_text(encoding="utf-8")
    assert text == exercises.written(chapter), "run `python tools/exercises.py`"


# (chapter, exercise, a part of its solution, a typical mistake in its place, what the check has to say)
MISTAKES = [
    ("01", 1, "< 0", "> 0", "nothing but +1 has the product +1"),
    ("01", 1, ".prod(1)", ".sum(1)", "flipping bit"),
    ("01", 2, "/ len(x) ** 0.5", "/ len(x)", "should cover the truth 95 %"),
    ("01", 2, "products.mean(0)", "products.sum(0)", "has coefficients 1/2"),
    (
        "01",
        3,
        "squares[inside].mean() / squares[~inside]",
        "squares[~inside].mean() / squares[inside]",
        "ratio is only",
    ),
    ("01", 3, "    (gradient,)", "    network.hidden.weight.data *= 2\n    (gradient,)", "leave the network's weights"),
    ("01", 2, "products.std(0) / len(x) ** 0.5", "torch.full((8,), len(x) ** -0.5)", "has 0.87 times the standard"),
    ("01", 2, "products.std(0)", "(1 - products.mean(0) ** 2).abs() ** 0.5", "values need not be -1 and +1"),
    ("01", 3, "gradient.square()", "gradient.abs()", "make 3, not 1.5"),
    ("01", 3, "gradient.square().mean(0)", "gradient.mean(0).square()", "make 3, not 1.5"),
    ("01", 3, "gradient.square().mean(0)", "gradient.abs().mean(0).square()", "square all entries first"),
    ("02", 1, "temperature**2 * ", "", "not vanish or grow"),
    ("02", 1, ".sum(1).mean()", ".sum()", "same loss"),
    ("02", 1, "teacher.exp() * (teacher - student)", "student.exp() * (student - teacher)", "0.1308"),
    ("02", 2, " - difference.mean(1, keepdim=True)", "", "one row must change nothing"),
    ("02", 2, "0.5 * ", "", "your limit is"),
    ("02", 3, " / temperature", "", "at temperature 4"),
    ("02", 3, " / values.std(unbiased=False)", "", "scaled to variance 1"),
    ("02", 3, "list(support)", "list(range(x.shape[1]))", "on the support"),
    ("02", 4, "sorted(trained.snapshots)", "sorted(trained.snapshots)[-9:]", "go from chance to nearly 1"),
    ("03", 1, "500", "50", "stage 1 should take 500"),
    ("03", 2, "(0.6, 0.9)", "(0.6,)", "keys should be 0.6 and 0.9"),
    ("03", 2, "(trained, target)", "(trained, 1.0)", "nearest to 0.6 is"),
    (
        "03",
        3,
        "probes.coefficients(outputs.T, x).square().sum(0)",
        "outputs.square().mean(1)",
        "shows most at checkpoint",
    ),
    ("04", 1, "Output(checkpoint, name", "Output(teacher, name", "stage 2 matches"),
    ("04", 2, " / few**0.5", "", "as large as its inputs"),
    (
        "04",
        2,
        "return signs",
        "generator.manual_seed(generator.initial_seed())\n    return 2 * __import__('kdutils')"
        ".projections.gaussian(hidden, width, generator)\n    return signs",
        "`projections.gaussian` but for its scale",
    ),
    ("04", 2, "generator=generator, ", "", "draw from `generator` alone"),
    ("04", 3, "2 * (2 * d * student)", "3 * (2 * d * student)", "torch counts"),
    ("04", 4, "(0.01, 0.03, 0.1, 0.3, 1.0)", "(1e-4, 1e-2, 1.0, 100.0)", "times apart"),
    ("04", 4, "while (best", "if (best", "at the edge of your sweep"),
    ("04", 4, "low / 3 if best == low else 3 * high", "3 * high", "more than 20 calls"),
    ("05", 1, "(n - 1) * on + k", "n * on + k", "one sample must show nothing"),
    ("05", 1, "(on + off) + d", "(on + off) + k", "one sample must show nothing"),
    ("05", 2, "target * gate", "target", "is bit 2"),
    ("05", 2, "(target * gate, x)", "(target * gate, x.flip(1))", "is bit 2"),
    ("05", 3, "1 - coefficient**2", "1", "standard errors, not 3"),
    ("05", 3, "sigmas**2", "sigmas", "standard errors, not 3"),
    ("05", 4, "(n * energy - total) / (n - 1)", "energy", "on average"),
    ("05", 4, "energy - total", "energy - n * total", "on average"),
    ("05", 4, "(n * energy - total) / (n - 1) / total", "energy / total - 1 / n", "on average"),
    ("05", 4, ".square().sum(1)\n", ".abs().sum(1)\n", "on average"),
    (
        "06",
        1,
        "Output(teacher), wait), Stage(Hidden(teacher), steps)",
        "Hidden(teacher), steps), Stage(Output(teacher), wait)",
        "stage 1 should take 50",
    ),
    ("06", 1, "Hidden(teacher)", "Output(teacher)", "stage 2 should match the hidden layer"),
    ("06", 2, "generator=g, ", "", "draw from `seeding.generator`"),
    ("06", 2, "self.size * ", "", "noise of size 0.5 changes"),
    ("06", 2, "clean.shape[1:]", "(*clean.shape[1:-1], 1)", "each neuron needs"),
    (
        "06",
        2,
        "torch.randn(clean.shape[1:], generator=g, device=clean.device)",
        "(torch.rand(clean.shape[1:], generator=g) - 0.5) * 12**0.5",
        "the noise should be Gaussian",
    ),
    (
        "06",
        2,
        "generator=g, device=clean.device)",
        "generator=streams[0])",
        "whichever seeds train beside it",
    ),
    ("06", 2, "for seed in students.seeds", "for seed in [0] * len(students.seeds)", "each seed needs"),
    ("06", 3, "one.values / np", "np.minimum(one.values, one.limit) / np", "is 'unclear', not 'as good'"),
    ("06", 3, "/ other.values", "/ np.minimum(other.values, other.limit)", "change places"),
    ("06", 3, "low > 1.25 or high < 0.8", "low > 1.25", "change places"),
    ("07", 1, "student.readout.parameters()", "student.parameters()", "you say"),
    ("07", 2, " if n * len(layers) < budget", "", "3 fit in 250 steps"),
    ("07", 2, "{n} steps", "extraction", "name of its own"),
    (
        "07",
        2,
        "teacher, layers, n",
        "teacher, layers[::-1], n",
        "stage 1 should pair the layers ('blocks.0', 'blocks.0'",
    ),
    ("07", 2, "teacher, layers, n", "teacher, layers[:1] * 2, n", "stage 2 should pair the layers"),
    ("07", 2, "teacher, layers, n", "models.Transformer(2, 8, 2, 2, 6, classes=2, last=True), layers, n", "stage 3"),
    (
        "07",
        2,
        'curriculum.extracted(\n            teacher, layers, n, normalise="position", name=f"{n} steps"\n        )',
        "curriculum.Curriculum(f'{n} steps', tuple(\n"
        "            curriculum.Stage(__import__('kdutils').signals.Output(teacher), t)\n"
        "            for t in (n, n, None)\n        ))",
        "stage 1 should match the hidden layer",
    ),
    ("07", 3, ", 1, cfg.d", ", 2, cfg.d", "have 2 blocks"),
    ("07", 3, 'f"blocks.{cfg.layers - 1}"', '"blocks.0"', "'top' 'blocks.0'"),
    ("08", 1, "0.5 if", "1.0 if", "another probability than 1"),
    ("08", 2, "rate=rate", "rate=0.3", "less there is to go by"),
    ("08", 2, ".loss", ".loss / np.log(2)", "the optimum is near"),
    ("08", 3, '        "no layer norms": {"normalise": "sample"},\n', "", "2 arms"),
    (
        "08",
        3,
        '{"extraction": arms["extraction"]}',
        '{"extraction": lab.arm(curriculum.from_labels())}',
        "of the page is",
    ),
    ("08", 3, '{"normalise": "sample"}', "{}", "the same stages"),
    ("10", 1, "bcij->bwij", "bcji->bwij", "are (2, 3, 4, 6)"),
    ("10", 1, "return torch", "maps = maps.mean((2, 3), keepdim=True).expand_as(maps)\n    return torch", "of another"),
    ("10", 2, "z[half:] @ fit", "z[:half] @ fit", "is told whole"),
    (
        "10",
        2,
        "len(z) // 2\n",
        "len(z) // 2\n    z, h = (torch.cat([part[:half]] * 2) for part in (z, h))\n",
        "not fitted to",
    ),
    ("10", 2, "len(z) // 2\n", "len(z)\n    z, h = (torch.cat([part] * 2) for part in (z, h))\n", "not fitted to"),
    (
        "10",
        2,
        "return float(1 - rest / (h[half:] - h[:half].mean(0)).square().sum())",
        "n, p = z.shape\n    rest = (h - z @ torch.linalg.lstsq(z, h).solution).square().sum()\n"
        "    return float(1 - rest / (h - h.mean(0)).square().sum() * (n - 1) / (n - p))",
        "one row far from all others",
    ),
    ("10", 2, "(h[half:] - h[:half].mean(0))", "h[half:]", "a mean is no variance"),
    ("10", 3, '        "first block only": [views[0]],\n', "", "2 arms"),
    ("09", 1, "-log_probabilities", "log_probabilities", "has that perplexity"),
    (
        "09",
        1,
        "(-log_probabilities.mean()).exp()",
        "1 / log_probabilities.exp().mean()",
        "mean is taken of the logarithms",
    ),
    ("09", 2, "list(dict.fromkeys(documents))", "documents", "what is tested was learned"),
    ("09", 2, "default_rng(0)", "default_rng()", "fix the seed"),
    ("09", 3, "text.tokenizer(cuts[0]", "text.tokenizer(documents", "has seen the validation part"),
    ("09", 3, "text.tokenizer(cuts[0]", "text.tokenizer(cuts[0] + cuts[1]", "has seen the validation part"),
    ("09", 3, "(documents[: -2 * held], ", "(documents[: -held], ", "each document once"),
    ("11", 1, "(top_k + 1)", "top_k", "take 6 bytes a token, not 4"),
    ("11", 2, ".scatter(-1, ids, -torch.inf)", "", "the probabilities add up to"),
    ("11", 2, "logits.log_softmax(-1)", "logits", "the probabilities add up to"),
    ("11", 3, "(1, 8, cfg.top_k)", "(8, cfg.top_k)", "2 records: report the page's own"),
]


@pytest.mark.parametrize(("chapter", "number", "right", "wrong", "says"), MISTAKES)
def test_typical_mistake_is_named_in_one_line(chapter, number, right, wrong, says):
    name = next(c for c in CHAPTERS if c.startswith(chapter))
    solution = exercises.read(name)[number - 1].solution
    assert right in solution
    with pytest.raises(Wrong) as caught:
        exec(solution.replace(right, wrong), dict(page(name)))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_split_of_60_20_20_is_right():
    from kdutils.pages.exercises.sequences import check_split

    def split(documents):
        different = list(dict.fromkeys(documents))
        held = max(1, len(different) // 5)
        return different[2 * held :], different[:held], different[held : 2 * held]

    check_split(split)


def test_every_exercise_has_a_typical_mistake():
    assert {(chapter[:2], number + 1) for chapter, number in EXERCISES} == {mistake[:2] for mistake in MISTAKES}


@exercise
def check_double(double):
    need(double(2).item() == 4, "twice 2 is 4")


def test_errors_become_one_line():
    def double(x):
        raise RuntimeError("shapes\ndo not match")

    with pytest.raises(Wrong, match=r"^double stops with RuntimeError: shapes \(call it yourself to see where\)$"):
        check_double(double)
    with pytest.raises(
        Wrong, match=r"^<lambda> returns another kind of thing than its docstring says \(AttributeError"
    ):
        check_double(lambda x: 4)


def test_a_notebook_shows_the_line_and_no_traceback():
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    shell = InteractiveShell()
    shell.user_ns["check"] = check_double
    with capture_output() as shown:
        shell.run_cell("check(lambda x: ...)")
    assert shown.stdout.strip() == "Not yet: <lambda> returns nothing yet: write its body"


def test_an_exercise_that_is_not_built_to_plan_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(exercises, "BOOK", tmp_path)
    (tmp_path / "exercises").mkdir()
    (tmp_path / "exercises" / "99_new.md").write_text("**1 (easy).** No code.\n")
    with pytest.raises(ValueError, match=r"99_new: not .* '\*\*1 \(easy\)"):
        exercises.read("99_new")
