import io
import json
import math
import os
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from kdutils import curriculum
from kdutils.lab.ensemble import Ensemble
from kdutils.lab.training import Run, train
from kdutils.pages import claims, profiles
from kdutils.pages.claims import Box, Claim, CostBox, publish
from kdutils.tasks.models import MLP
from kdutils.tasks.parity import SparseParity

INF, NAN = math.inf, math.nan


def claim(value: float = 2, interval: tuple = (1, 3), band: tuple = (0, 4), **more: object) -> Claim:
    return Claim("x", "A <b>sentence</b>.", value, interval, band, **more)


@pytest.mark.parametrize(
    ("interval", "band", "verdict"),
    [
        ((1, 3), (0, 4), "holds"),
        ((1, 3), (1, 3), "holds"),
        ((1, 3), (2, 4), "unclear"),
        ((1, 3), (0, 2), "unclear"),
        ((1, 3), (1.5, 2.5), "unclear"),
        ((1, 3), (3, 4), "unclear"),
        ((1, 3), (3.1, 4), "fails"),
        ((1, 3), (0, 0.9), "fails"),
        ((1, 3), (1, INF), "holds"),
        ((0.5, 3), (1, INF), "unclear"),
        ((1, 3), (4, INF), "fails"),
        ((1, 3), (-INF, 0), "fails"),
        ((1, INF), (1, INF), "holds"),
        ((1, INF), (0, 4), "unclear"),
        ((INF, INF), (10, INF), "holds"),
        ((INF, INF), (0, 4), "fails"),
        ((NAN, 3), (0, 4), "unclear"),
        ((1, NAN), (2, 4), "unclear"),
    ],
)
def test_verdict(interval: tuple, band: tuple, verdict: str) -> None:
    assert claim(2, interval, band).verdict == verdict


def test_a_value_that_is_not_a_number_decides_nothing() -> None:
    assert claim(NAN).verdict == "unclear"
    assert claim(NAN, (9, 10)).verdict == "unclear"
    assert "not identified" in repr(Box([claim(NAN, (0, INF))])) and "nan" not in repr(Box([claim(NAN)]))


def test_what_was_measured_once_has_no_interval() -> None:
    assert "Measured 2.5 times; band" in repr(Box([claim(2.5, (2.5, 2.5), (1, INF), unit=" times")]))
    assert "Measured 2.5 [2.5, 2.6]; band" in repr(Box([claim(2.5, (2.5, 2.6))]))


@pytest.mark.parametrize(
    ("interval", "band", "verdict"),
    [
        ((5, 6), (4, INF), "holds"),
        ((5, 6), (0, 4), "fails"),
        ((5, 6), (8, INF), "unclear"),
        ((5, 6), (4, 8), "unclear"),
    ],
)
def test_a_lower_bound_cannot_show_that_the_value_is_small(interval: tuple, band: tuple, verdict: str) -> None:
    assert claim(5.5, interval, band, bound=True).verdict == verdict


def test_verdicts_print_no_number(capsys: pytest.CaptureFixture) -> None:
    claims.verdicts([Claim("one", "First.", 12.5, (11, 14), (10, INF)), Claim("two", "Second.", 0, (0, 0), (1, 2))])
    claims.verdicts([claim(band=(2, 4))])
    assert capsys.readouterr().out == "  holds  one: First.\n  fails  two: Second.\nunclear  x: A <b>sentence</b>.\n"


def test_box_shows_value_interval_band_and_verdict() -> None:
    text = repr(Box([claim(2.5, (1234.4, INF), (1, INF), unit=" times", bound=True)]))
    for part in ("holds", "≥ 2.5 times", "[1,234, ∞]", "band ≥ 1 times"):
        assert part in text


def test_box_escapes_what_it_shows() -> None:
    page = Box([claim(), claim()])._repr_html_()
    assert "<b>" not in page and "&lt;b&gt;" in page
    assert page.count("<tr>") == 3 and page.count("scope='col'") == 4


@pytest.mark.parametrize(
    ("band", "text"), [((1, INF), "≥ 1"), ((-INF, 2), "≤ 2"), ((0.25, 0.5), "0.25 to 0.5"), ((1500, INF), "≥ 1,500")]
)
def test_bands_in_words(band: tuple, text: str) -> None:
    assert f"band {text}." in repr(Box([claim(band=band)]))


def strict(path: Path) -> dict:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


@pytest.fixture
def published(fake_run: Callable[..., Run], tmp_path: Path) -> Callable[[], Path]:
    run = fake_run([[0.5, 0.5], [0.9, 1.0]], [1, 2], every=10, batch=4)
    measured = {
        "infinite": INF,
        "missing": NAN,
        "numpy": np.float32(0.5),
        "tensor": torch.tensor(3),
        "array": np.array([[1.5, INF], [NAN, -1]], dtype=np.float32),
        "vector": torch.tensor([1, 2]),
        "flags": (np.array([True, False]), torch.tensor([])),
        "nested": {"list": [1, -INF, (2.0, None, True)]},
        "text": "größer",
    }

    def write() -> Path:
        settings = profiles.load("parity", "smoke", device="cpu")
        publish("chapter", settings, [claim(INF, (1, INF), (1, INF))], {"labels": run, "again": run}, measured)
        return tmp_path / "results" / "smoke" / "chapter.json"

    return write


def test_results_are_strict_json(published: Callable[[], Path]) -> None:
    record = strict(published())
    assert record["claims"][0]["verdict"] == "holds"
    assert (record["claims"][0]["value"], record["claims"][0]["band"]) == ("inf", [1, "inf"])
    assert record["measured"] == {
        "infinite": "inf",
        "missing": "nan",
        "numpy": 0.5,
        "tensor": 3,
        "array": [[1.5, "inf"], ["nan", -1]],
        "vector": [1, 2],
        "flags": [[True, False], []],
        "nested": {"list": [1, "-inf", [2.0, None, True]]},
        "text": "größer",
    }
    assert record["settings"]["profile"] == "smoke" and record["settings"]["d"] == profiles.load("parity", "smoke").d
    run = record["runs"]["labels"]
    assert (run["budget, samples"], run["seeds"], run["learning rates"]) == (40, [1, 2], [1.0])
    assert run["key"] == "0123456789abcdef0123"
    assert run["final accuracy"] == [0.9, 1.0]
    assert record["cost"]["seconds"] == 2.5 and record["cost"]["peak memory, bytes"] == 2**20


def test_publishing_shows_the_table() -> None:
    found = [claim(2.5, bound=True), claim(NAN)]
    box = publish("chapter", profiles.load("parity", "smoke", device="cpu"), found, {}, {})
    assert (repr(box), box._repr_html_()) == (repr(Box(found)), Box(found)._repr_html_())


def test_a_trained_run_can_be_published(tmp_path: Path) -> None:
    students = Ensemble(partial(MLP, 4, 4), [1])
    run = train(students, SparseParity(4, 2), curriculum.from_labels(), steps=4, evaluate_every=2)
    publish("chapter", profiles.load("parity", "smoke", device="cpu"), [], {"labels": run}, {})
    summary = strict(tmp_path / "results" / "smoke" / "chapter.json")["runs"]["labels"]
    assert summary["key"] == run.key and summary["flops"] == run.flops[-1]
    assert summary["stages"] == [list(stage) for stage in run.stages]


def test_writing_twice_gives_the_same_bytes(published: Callable[[], Path]) -> None:
    first = published().read_bytes()
    path = published()
    assert path.read_bytes() == first
    assert [file.name for file in path.parent.iterdir()] == ["chapter.json"]


@pytest.mark.skipif(os.name == "nt", reason="needs a system with POSIX file modes")
@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_results_are_readable_as_far_as_the_umask_allows(published: Callable[[], Path], mask: int) -> None:
    before = os.umask(mask)
    try:
        path = published()
        assert path.stat().st_mode & 0o777 == 0o644 & ~mask
        path.chmod(0o600)  # as an earlier version left them
        assert published().stat().st_mode & 0o777 == 0o644 & ~mask
    finally:
        os.umask(before)


def test_cost_box(published: Callable[[], Path]) -> None:
    settings = profiles.load("parity", "smoke", device="cpu")
    assert "Not measured here yet" in repr(CostBox("chapter", settings))
    published()
    box = CostBox("chapter", settings)
    assert "minutes" in repr(box) and "(cpu, 1 thread)" in repr(box)
    assert repr(box) in box._repr_html_()


def test_the_cost_of_a_study_is_told_beside_that_of_the_page(
    published: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = profiles.load("parity", "smoke", device="cpu")
    folder = published().parents[1] / "studies"
    folder.mkdir()
    monkeypatch.chdir(folder.parents[1])  # a page reads what is beside it
    (folder / "long.json").write_text('{"core-hours": 2.5}')
    (folder / "longer.json").write_text('{"core-hours": 4}')
    assert claims.study_hours("long", folder) == 2.5 and claims.study_hours("nothing", folder) == 0
    assert "studies" not in repr(CostBox("chapter", settings)) + repr(CostBox("chapter", settings, "nothing"))
    assert "6.5 hours of one core" in repr(CostBox("chapter", settings, "long", "longer"))


def test_cost_of_no_run() -> None:
    assert claims.cost({}) == {"seconds": 0, "peak memory, bytes": 0, "device": "none"}


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A chapter run by hand in a clone: the folder of its runs. The record of chapter `chapter` is beside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KDUTILS_RESULTS")
    monkeypatch.delenv("KDUTILS_RUNS")
    (tmp_path / "results" / "smoke").mkdir(parents=True)
    cost = {"seconds": 90, "peak memory, bytes": 2**30, "device": "cpu, 2 threads"}
    record = {"settings": {"device": "cpu"}, "cost": cost}
    (tmp_path / "results" / "smoke" / "chapter.json").write_text(json.dumps(record))
    return tmp_path / "runs"


def test_a_readers_numbers_go_to_a_place_of_their_own(reader: Path) -> None:
    before = (reader.parent / "results" / "smoke" / "chapter.json").read_bytes()
    for change in ({}, {"seeds": [7]}, {"overrides": {"d": 24}}):
        settings = profiles.load("parity", "smoke", "cpu", **change)
        box = publish("chapter", settings, [claim()], {}, {})
        kept = Path("runs", "results", "smoke", "chapter.json").absolute()
        assert claims.results_path("chapter", settings) == kept
        assert strict(kept)["settings"] == vars(settings)
        for shown in (repr(box).splitlines()[-1], box._repr_html_()):
            assert "Numbers of your run, kept in runs/results/smoke/chapter.json (the book" in shown
        kept.unlink()
    assert (reader.parent / "results" / "smoke" / "chapter.json").read_bytes() == before
    assert [file.name for file in (reader.parent / "results").rglob("*.*")] == ["chapter.json"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"overrides": {"d": 24}}, "not the profile's own: d"),
        ({"seeds": [7, 8, 9]}, "not the profile's own: seeds"),
        ({"section": "english", "overrides": {"corpus": "mine.txt"}}, "not the profile's own: corpus"),
        ({"edit": {"steps": 9}}, "not the profile's own: steps"),
        ({"edit": {"device": "cuda:0"}}, "the record was made on cpu, these on cuda:0"),
    ],
)
def test_the_records_take_only_what_a_profile_says(tmp_path: Path, change: dict, says: str) -> None:
    section, edit = change.pop("section", "parity"), change.pop("edit", {})
    publish("chapter", profiles.load(section, "smoke", "cpu"), [], {}, {})
    record = tmp_path / "results" / "smoke" / "chapter.json"
    before = record.read_bytes()
    settings = profiles.load(section, "smoke", "cpu", **change)
    vars(settings).update(edit)
    box = publish("chapter", settings, [], {}, {})
    assert record.read_bytes() == before and says in repr(box)
    assert strict(tmp_path / "runs" / "results" / "smoke" / "chapter.json")["settings"] == vars(settings)


def test_what_is_overridden_with_the_profiles_own_is_the_profiles(tmp_path: Path) -> None:
    own = profiles.load("parity", "smoke", "cpu")
    same = profiles.load(
        "parity", "smoke", "cpu", seeds=own.seeds, overrides={"d": own.d, "learning_rates": own.learning_rates}
    )
    assert (
        repr(publish("chapter", same, [], {}, {})) == "" and (tmp_path / "results" / "smoke" / "chapter.json").exists()
    )


@pytest.mark.parametrize(
    "content", ["", '{"cost": {"sec', "[1]", "3", "null", "{}", '{"cost": 3, "settings": 3}', "\ud83d"]
)
def test_a_damaged_record_is_none(tmp_path: Path, content: str) -> None:
    settings = profiles.load("parity", "smoke", "cpu")
    record = tmp_path / "results" / "smoke" / "chapter.json"
    record.parent.mkdir(parents=True)
    record.write_bytes(content.encode("utf-8", "surrogatepass"))
    assert "Not measured here yet" in repr(CostBox("chapter", settings))
    publish("chapter", settings, [], {}, {})
    assert strict(record)["settings"] == vars(settings) and "0.0 minutes" in repr(CostBox("chapter", settings))


def test_cost_box_reads_the_books_record_and_else_the_readers_own(reader: Path) -> None:
    settings = profiles.load("parity", "smoke", "cpu")
    publish("chapter", settings, [], {}, {})
    assert "1.5 minutes and 1.0 GiB" in repr(CostBox("chapter", settings))
    assert "Not measured here yet" in repr(CostBox("other", settings))
    publish("other", settings, [], {}, {})
    assert "0.0 minutes" in repr(CostBox("other", settings))
    assert "Not measured here yet" in repr(CostBox("other", profiles.load("parity", "smoke", "cpu", seeds=[7])))


@pytest.mark.parametrize("value", ["", "~/kept"])
def test_folder_of_records_by_name(reader: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("KDUTILS_RESULTS", value)
    monkeypatch.setenv("HOME", str(reader.parent / "home"))
    path = claims.results_path("chapter", profiles.load("parity", "smoke", "cpu"))
    assert path == (
        reader.parent / "home/kept/smoke/chapter.json" if value else Path("runs/results/smoke/chapter.json").absolute()
    )


@pytest.mark.parametrize("place", ["a file", "nowhere"])
def test_a_chapter_goes_on_where_nothing_can_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Stands for a folder that cannot be written, too: to root every folder can."""
    monkeypatch.delenv("KDUTILS_RESULTS")
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    if place == "a file":
        (folder / "runs").write_text("")
    else:
        folder.rmdir()
    monkeypatch.setenv("KDUTILS_RUNS", "runs")
    settings = profiles.load("parity", "smoke", "cpu")
    with pytest.warns(UserWarning, match="going on without; set KDUTILS_RUNS") as said:
        box = publish("chapter", settings, [claim()], {}, {})
    assert len(said) == 1 and "Numbers of your run, not kept" in repr(box) and "holds" in repr(box)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        for _ in range(3):
            publish("chapter", settings, [claim()], {}, {})
    assert len(said) == 1, "said once"
    monkeypatch.chdir(tmp_path)


def test_a_record_of_the_book_that_cannot_be_kept_is_told(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="nothing can be kept in"):
        box = publish("chapter", profiles.load("parity", "smoke", "cpu"), [claim()], {}, {})
    assert "not kept" in repr(box)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_a_terminal_cannot_show_is_spelled(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding=encoding))
    found = [Claim("x", "Größer \u2014 \u2265 1.", 2, (-INF, INF), (1, INF), bound=True)]
    claims.verdicts(found)
    print(Box(found))
    sys.stdout.flush()
    text = out.getvalue().decode(encoding)
    if encoding == "utf-8":
        assert "Größer \u2014 \u2265 1." in text and "[-\u221e, \u221e]" in text
    else:
        assert "\\u2014 >= 1." in text and "[-inf, inf]" in text and "band >= 1." in text
