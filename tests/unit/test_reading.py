import doctest
import importlib
import json
import math
import pkgutil
import tomllib
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import kdutils
from kdutils import claims, curriculum, plots, probes, profiles, seeding, stats
from kdutils.ensemble import Ensemble
from kdutils.lab import ParityLab
from kdutils.models import MLP
from kdutils.parity import SparseParity
from kdutils.stats import Arm, Times
from kdutils.store import Store
from kdutils.training import train


@pytest.mark.parametrize("name", [m.name for m in pkgutil.iter_modules(kdutils.__path__)])
def test_doctests(name):
    assert doctest.testmod(importlib.import_module(f"kdutils.{name}")).failed == 0


def test_fourier_transform_is_exact():
    values = torch.randn(2**6, generator=seeding.generator(0, "f"), dtype=torch.float64)
    x, table = probes.cube(6).double(), probes.walsh_hadamard(values)
    sets = [[i for i in range(6) if n >> i & 1] for n in range(2**6)]
    torch.testing.assert_close(table, probes.coefficients(values, x, sets))
    torch.testing.assert_close(table.square().sum(), values.square().mean())  # Parseval
    assert probes.degrees(6).tolist() == [len(s) for s in sets]


def test_parity_has_one_coefficient_and_the_estimator_agrees():
    task, x = SparseParity(8, 3, (1, 4, 6)), probes.cube(8)
    y = 1 - 2 * task.label(x).float()
    table = probes.walsh_hadamard(y)
    assert table.nonzero().flatten().tolist() == [2 + 16 + 64] and table.max() == 1
    assert probes.coefficients(y, x).abs().max() == 0
    sample, labels = task.sample(10_000, seeding.generator(0, "s"))
    assert probes.coefficients(1 - 2 * labels.float(), sample).abs().max() < 5 / 100  # five standard errors
    with pytest.raises(ValueError, match="sample instead"):
        probes.cube(21)


def test_signed_output_is_a_difference_of_probabilities():
    net, x = MLP(4, 6), torch.randn(9, 4)
    torch.testing.assert_close(probes.signed_output(net)(x), net(x).softmax(-1) @ torch.tensor([1.0, -1.0]))


def test_medians_respect_unfinished_runs():
    assert Times(np.array([1.0, 3, np.inf]), 10).median == 3
    stuck = Times(np.array([1.0, np.inf, np.inf]), 10)
    assert math.isinf(stuck.median) and str(stuck).startswith("> 10") and stuck.finished == 1
    low, high = Times(np.array([1.0, 2, 3, 4, np.inf]), 10).interval()
    assert low in (1, 2) and high in (4, np.inf)


def test_speedups_are_paired_and_conservative():
    ratio = stats.speedup(Times(np.array([8.0, np.inf, 8]), 20), Times(np.array([2.0, 2, np.inf]), 20))
    assert ratio.ratios.tolist() == [4, 10, 0] and ratio.is_bound and ratio.median == 4
    with pytest.raises(ValueError, match="seed by seed"):
        stats.speedup(Times(np.ones(2), 1), Times(np.ones(3), 1))


def fake_run(accuracy, rates=(0.1, 1.0), seeds=(9, 1, 2)):
    """accuracy (T, members); one evaluation each 100 samples of a budget of 1,000."""
    steps = np.arange(len(accuracy)) * 100
    students = Ensemble(partial(MLP, 3, 2), seeds, rates)
    return SimpleNamespace(
        students=students, samples=steps, flops=steps * 7.0, budget=1000, accuracy=np.array(accuracy)
    )


def test_every_profile_has_the_same_settings():
    table = tomllib.loads((Path(kdutils.__file__).parent / "profiles.toml").read_text())
    for section in table["book"]:
        kinds = [{name: type(value) for name, value in table[p][section].items()} for p in table]
        assert kinds[0] == kinds[1] == kinds[2]
        for profile in table:
            settings = profiles.load(section, profile)
            assert not set(settings.seeds) & set(settings.tuning_seeds) and len(settings.seeds) >= 5


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"profile": "smok"}, "smoke, book, paper"), ({"overrides": {"dd": 3}}, "teacher_width"),
        ({"overrides": {"d": "3"}}, "must be like"), ({"device": "cuda"}, "no GPU"),
        ({"section": "parities"}, "parity"),
    ],
)  # fmt: skip
def test_wrong_parameters_say_what_there_is(arguments, says):
    if "device" in arguments and torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    with pytest.raises(ValueError, match=says):
        profiles.load(**{"section": "parity", **arguments})


def test_profile_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("KDUTILS_PROFILE", "smoke")
    assert profiles.load("parity").profile == "smoke"
    assert profiles.load("parity", "book", seeds=[7]).seeds == [7]


def test_a_parameter_that_papermill_made_up_is_refused():
    given = {"profile": "smoke", "device": None, "seeds": None, "overrides": {}}
    assert profiles.start("parity", {**given, "In": ["", "# Parameters\nseeds = [1]\n"]}).profile == "smoke"
    with pytest.raises(ValueError, match="unknown parameter 'stepz'"):
        profiles.start("parity", {**given, "In": ["", "# Parameters\nstepz = 20\n"]})


@pytest.mark.parametrize(
    ("value", "interval", "verdict"),
    [(2, (1.5, 3), "holds"), (2, (0.5, 3), "unclear"), (0.2, (0.1, 0.5), "fails"), (math.nan, (0, 1), "unclear")],
)
def test_verdicts_follow_the_interval(value, interval, verdict):
    assert claims.Claim("x", "A sentence.", value, interval, (1, math.inf)).verdict == verdict


def test_results_are_strict_json_and_stable(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KDUTILS_RESULTS", str(tmp_path))
    run = train(
        Ensemble(partial(MLP, 4, 4), [1]), SparseParity(4, 2), curriculum.from_labels(), steps=4, evaluate_every=2
    )
    found = [claims.Claim("x", "More < less.", 2.0, (1.5, math.inf), (1, math.inf), " times", bound=True)]
    settings = profiles.load("parity", "smoke")
    box = claims.publish("99_test", settings, found, {"labels": run}, {"n": np.float32(3), "t": math.inf})
    path = tmp_path / "smoke" / "99_test.json"
    first = path.read_bytes()
    record = json.loads(first, parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))
    assert record["claims"][0]["verdict"] == "holds" and record["runs"]["labels"]["key"] == run.key
    claims.publish("99_test", settings, found, {"labels": run}, {"n": np.float32(3), "t": math.inf})
    assert path.read_bytes() == first and [p.name for p in path.parent.iterdir()] == ["99_test.json"]
    assert "More &lt; less." in box._repr_html_() and "≥ 2 times" in repr(box)
    claims.verdicts(found)
    assert capsys.readouterr().out == "  holds  x: More < less.\n"
    assert "minutes" in repr(claims.CostBox("99_test", settings))
    assert "Not measured" in repr(claims.CostBox("98_test", settings))


def test_figures_draw():
    rng = np.random.default_rng(0)
    arms = {name: Arm(fake_run(rng.uniform(0.5, 0.97, (5, 6))), 0.1, (1, 2)) for name in plots.COLOURS}
    for axis in ("samples", "flops"):
        assert len(plots.curves(arms, axis, plt.figure().gca()).get_legend_handles_labels()[1]) == len(arms)
        plots.times(arms, 0.95, axis, plt.figure().gca())
    plots.stems([0.1, 0.2, 0.3], [1], plt.figure().gca(), "x", 0.05)
    teacher = MLP(3, 4)
    bars = plots.timeline(
        [curriculum.extracted(teacher, steps=10), curriculum.one_shot(teacher)], 100, plt.figure().gca()
    )
    assert [p.get_width() for p in bars.patches] == [10, 90, 100]
    plt.close("all")


def test_palette_is_legible_on_white():
    def luminance(code):
        channels = [int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    assert len(set(plots.COLOURS.values())) == len(plots.COLOURS)
    for name, code in plots.COLOURS.items():
        assert 1.05 / (luminance(code) + 0.05) >= 3, name


def test_a_teacher_that_did_not_learn_is_an_error(tmp_path):
    settings = profiles.load("parity", "smoke", device="cpu", overrides={"teacher_steps": 100, "teacher_width": 8})
    with pytest.raises(RuntimeError, match="raise teacher_steps"):
        ParityLab(settings, Store(tmp_path)).teacher()
