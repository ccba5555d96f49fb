import math
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from kdutils.pages import profiles
from kdutils.pages.profiles import changed, load, start

TABLE = tomllib.loads((Path(profiles.__file__).parent / "profiles.toml").read_text(encoding="utf-8"))
SECTIONS = list(TABLE["book"])
DEFAULTS = {"profile": None, "device": "cpu", "seeds": None, "overrides": {}}


def kind(value: object) -> object:
    return [type(value), {type(item) for item in value}] if isinstance(value, list) else type(value)


def test_there_are_three_profiles() -> None:
    assert list(TABLE) == ["smoke", "book", "paper"]


@pytest.mark.parametrize("profile", TABLE)
@pytest.mark.parametrize("section", SECTIONS)
def test_every_profile_has_the_same_settings(section: str, profile: str) -> None:
    assert list(TABLE[profile]) == SECTIONS
    settings = vars(load(section, profile, device="cpu"))
    assert settings.pop("profile") == profile and settings.pop("device") == "cpu"
    kinds = {name: kind(value) for name, value in settings.items()}
    assert kinds == {name: kind(value) for name, value in TABLE["book"][section].items()}


@pytest.mark.parametrize("section", SECTIONS)
def test_the_example_of_a_message_and_of_the_readme_fits_every_chapter(section: str) -> None:
    given = yaml.safe_load(profiles.GIVE.removeprefix("-y '").removesuffix("'"))
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    assert yaml.safe_load(readme.split("such as `-y '")[1].split("'`")[0]) == given
    settings = load(section, "smoke", "cpu", **given)
    assert settings.batch == 32 and "steps" not in given["overrides"], "chapter 3 has a stage of 500 steps"


@pytest.mark.parametrize("profile", TABLE)
@pytest.mark.parametrize("section", SECTIONS)
def test_every_profile_keeps_the_rules_of_comparison(section: str, profile: str) -> None:
    settings = load(section, profile, device="cpu")
    assert len(settings.seeds) >= (3 if section == "english" else 5) and len(set(settings.seeds)) == len(settings.seeds)
    assert not set(settings.seeds) & set(settings.tuning_seeds)
    assert len(settings.learning_rates) >= 2
    budgets = [size[3] for size in settings.sizes] if section == "scaling" else [settings.steps]
    assert settings.evaluate_every <= min(budgets)


def test_default_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load("parity").profile == "book"
    monkeypatch.setenv("KDUTILS_PROFILE", "smoke")
    assert load("parity").profile == "smoke"
    assert load("parity", "paper").profile == "paper"
    monkeypatch.setenv("KDUTILS_PROFILE", "nonsense")
    with pytest.raises(ValueError, match="smoke, book, paper"):
        load("parity")


def test_changes_replace_settings_and_nothing_else() -> None:
    plain, changed = load("parity", "smoke"), load("parity", "smoke", seeds=[7], overrides={"d": 24, "steps": 5})
    assert (changed.seeds, changed.d, changed.steps) == ([7], 24, 5)
    assert vars(changed) == {**vars(plain), "seeds": [7], "d": 24, "steps": 5}
    assert load("parity", "smoke").d == plain.d


def test_a_whole_number_may_stand_for_a_fraction() -> None:
    assert load("parity", "smoke", overrides={"teacher_learning_rate": 2}).teacher_learning_rate == 2


def test_unknown_profile() -> None:
    with pytest.raises(ValueError, match=r"unknown profile 'fast'.*smoke, book, paper"):
        load("parity", "fast")


@pytest.mark.parametrize("section", SECTIONS)
def test_unknown_setting_lists_those_of_the_section(section: str) -> None:
    with pytest.raises(ValueError, match="unknown setting 'widht'") as error:
        load(section, "smoke", overrides={"widht": 3})
    assert all(name in str(error.value) for name in TABLE["smoke"][section])


def test_unknown_section_lists_the_sections() -> None:
    with pytest.raises(ValueError, match="'party'") as error:
        load("party", "smoke")
    assert all(section in str(error.value) for section in SECTIONS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("d", "24"),
        ("d", 24.0),
        ("d", True),
        ("seeds", 3),
        ("learning_rates", 0.1),
        ("teacher_learning_rate", "1"),
        ("d", None),
    ],
)
def test_wrong_type_shows_what_is_wanted(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"'{name}' must be like") as error:
        load("parity", "smoke", overrides={name: value})
    assert repr(TABLE["smoke"]["parity"][name]) in str(error.value)


@pytest.mark.parametrize(("name", "value"), [("learning_rates", ["0.1"]), ("tuning_seeds", [0.5]), ("seeds", [True])])
def test_wrong_type_inside_a_list(name: str, value: list) -> None:
    with pytest.raises(ValueError, match=f"'{name}' must be like"):
        load("parity", "smoke", overrides={name: value})


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("learning_rates", [math.nan], "finite numbers above 0"),
        ("learning_rates", [0.1, math.inf], "finite numbers above 0"),
        ("learning_rates", [0.1, -math.inf], "finite numbers above 0"),
        ("learning_rates", [0], "finite numbers above 0"),
        ("learning_rates", [-0.1], "finite numbers above 0"),
        ("learning_rates", [10**400], "finite numbers above 0"),
        ("teacher_learning_rate", 0.0, "finite numbers above 0"),
        ("batch", 0, "finite numbers above 0"),
        ("steps", 0, "finite numbers above 0"),
        ("steps", -5, "finite numbers above 0"),
        ("evaluate_every", 0, "finite numbers above 0"),
        ("keep_every", 0, "finite numbers above 0"),
        ("d", 2**63, "finite numbers above 0"),
        ("extensions", -1, "must not be negative"),
        ("learning_rates", [], "is empty"),
        ("tuning_seeds", [], "is empty"),
        ("checkpoint_steps", [], "is empty"),
        ("learning_rates", [0.3, 1, 1.0], "holds 1.0 twice"),
        ("tuning_seeds", [100, 100], "holds 100 twice"),
        ("tuning_seeds", [1], r"seeds and tuning_seeds both hold \[1\]"),
        ("seeds", [100], r"seeds and tuning_seeds both hold \[100\]"),
        ("seeds", "[1, 2]", "this is text: papermill takes numbers and lists as -y"),
        ("d", "24", "this is text"),
        ("learning_rates", ["1e-1"], "this is text"),
        ("seeds", {1, 2}, "must be like"),
        ("device", "cpu", "device is a parameter of its own, beside overrides"),
        ("größe", 3, "unknown setting 'größe'"),
        ("gro\u0308\u00dfe", 3, "unknown setting"),
        ("", 3, "unknown setting ''"),
        (3, 4, "unknown setting 3"),
        (None, 4, "unknown setting None"),
    ],
)
def test_what_makes_no_experiment_is_refused(name: str, value: object, says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        load("parity", "smoke", overrides={name: value})
    assert str(name) in str(error.value) and len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "sizes", [[], [3, 12, 300, 600], [[3, 12, 300]], [[3, 12, 300, 600.5]], [[3, 12, 300, 0]], [[3, 12, 300, 600]] * 2]
)
def test_rows_of_numbers_are_looked_into(sizes: list) -> None:
    with pytest.raises(ValueError, match="setting 'sizes'"):
        load("scaling", "smoke", overrides={"sizes": sizes})
    assert load("scaling", "smoke", overrides={"sizes": [[4, 4, 10, 10]]}).sizes == [[4, 4, 10, 10]]


@pytest.mark.parametrize(
    ("seeds", "says"),
    [
        (3, r"setting 'seeds' must be like \[1, 2, 3, 4, 5\], not 3"),
        ("123", "this is text"),
        ("[1, 2, 3]", "this is text"),
        ([], "'seeds' is empty"),
        ([1, 1], "'seeds' holds 1 twice"),
        ([1, 2.0], "'seeds' must be like"),
        ([True, False], "'seeds' must be like"),
        (np.array([True]), "'seeds' must be like"),
        ([None], "'seeds' must be like"),
        ({"a": 1}, "'seeds' must be like"),
        ([1, 100], r"both hold \[100\]"),
    ],
)
def test_seeds_that_are_none(seeds: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        load("parity", "smoke", seeds=seeds)


def test_seeds_are_given_once() -> None:
    assert load("parity", "smoke", overrides={"seeds": [7]}).seeds == [7]
    with pytest.raises(ValueError, match="the seeds are given twice"):
        load("parity", "smoke", seeds=[7], overrides={"seeds": [7]})
    assert load("parity", "smoke", seeds=[-1, 0]).seeds == [-1, 0]


@pytest.mark.parametrize("overrides", ["{d: 24}", ["d", 24], [["d", 24]], 3, True, "d"])
def test_overrides_are_settings_by_name(overrides: object) -> None:
    with pytest.raises(ValueError, match="parameter 'overrides' must be settings by name, such as") as error:
        load("parity", "smoke", overrides=overrides)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("profile", ["null", "", "Book", 3, True, ["smoke"], {}, b"smoke"])
def test_profiles_that_are_none(profile: object) -> None:
    with pytest.raises(ValueError, match=r"unknown profile .+smoke, book, paper"):
        load("parity", profile)


@pytest.mark.parametrize("device", ["gpu", "meta", "", "cuda:99", "CPU", "cpu:x", 0, True, 1.5, ["cpu"], {}])
def test_devices_that_cannot_compute_here(device: object) -> None:
    with pytest.raises(ValueError, match=r"^device .+ was asked for, but torch .+use '?(cpu|device='cpu')"):
        load("parity", "smoke", device=device)


def test_devices_that_can_compute() -> None:
    for device in ("cpu", "cpu:0", torch.device("cpu")):
        assert load("parity", "smoke", device=device).device == "cpu"


def test_numbers_of_numpy_and_torch_are_ordinary_numbers() -> None:
    given = {
        "d": np.int64(24), "teacher_learning_rate": np.float32(0.5), "learning_rates": np.array([0.5, 1]),
        "tuning_seeds": (100, np.int32(101)), "checkpoint_steps": torch.tensor([3, 4]), "k": torch.tensor(2),
    }  # fmt: skip
    found = load("parity", "smoke", seeds=range(3), overrides=given)
    plain = {"d": 24, "teacher_learning_rate": 0.5, "learning_rates": [0.5, 1.0], "tuning_seeds": [100, 101],
             "checkpoint_steps": [3, 4], "k": 2, "seeds": [0, 1, 2]}  # fmt: skip
    assert {name: getattr(found, name) for name in plain} == plain
    for name, value in plain.items():
        assert kind(getattr(found, name)) == kind(value) == kind(TABLE["smoke"]["parity"][name])
    with pytest.raises(ValueError, match="'d' must be like 30, not True"):
        load("parity", "smoke", overrides={"d": np.bool_(True)})
    with pytest.raises(ValueError, match="'learning_rates' must hold finite numbers"):
        load("parity", "smoke", overrides={"learning_rates": np.array([0.1, np.nan])})


def test_a_whole_rate_is_the_same_setting_as_a_fraction() -> None:
    rates = [load("parity", "smoke", overrides={"learning_rates": rates}).learning_rates for rates in ([1], [1.0])]
    assert repr(rates[0]) == repr(rates[1])


@pytest.mark.parametrize("profile", TABLE)
@pytest.mark.parametrize("section", SECTIONS)
def test_every_setting_of_a_profile_could_be_given_by_hand(section: str, profile: str) -> None:
    given = {name: value for name, value in TABLE[profile][section].items()}
    found = load(section, profile, "cpu", overrides=given)
    assert vars(found) == vars(load(section, profile, "cpu")) and changed(found) == []


def test_what_was_changed_is_told() -> None:
    found = load("parity", "smoke", "cpu", seeds=[7], overrides={"d": 24, "k": TABLE["smoke"]["parity"]["k"]})
    assert sorted(changed(found)) == ["d", "seeds"]
    found = load("english", "smoke", "cpu", overrides={"corpus": "mine.txt"})
    assert changed(found) == ["corpus"]
    mine = load("parity", "smoke", "cpu")
    mine.steps = 7
    assert changed(mine) == ["steps"]
    mine.steps = np.array([7, 8])
    assert changed(mine) == ["steps"]
    assert changed(SimpleNamespace(profile="smoke")) and changed(SimpleNamespace(profile="mine", d=3)) == ["d"]


def test_settings_are_a_copy() -> None:
    load("parity", "smoke").seeds.append(9)
    assert load("parity", "smoke").seeds == TABLE["smoke"]["parity"]["seeds"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="runs on a machine without a GPU")
def test_a_gpu_that_is_not_there() -> None:
    assert load("parity").device == "cpu"
    with pytest.raises(ValueError, match="no GPU here: use device='cpu'"):
        load("parity", device="cuda")


def test_start_reads_the_chapters_parameters() -> None:
    namespace = {**DEFAULTS, "profile": "smoke", "seeds": [4, 5], "overrides": {"k": 2}, "other": 1}
    assert vars(start("parity", namespace)) == vars(load("parity", "smoke", "cpu", [4, 5], {"k": 2}))


@pytest.mark.parametrize(
    ("cell", "name"),
    [
        ("# Parameters\nstepz = 3\n", "stepz"),
        ("# Parameters\nprofile = 'smoke'\nstepz = 3\n", "stepz"),
        ("# Parameters\na = stepz = 3\n", "a"),
        ("# Parameters\ngröße = 3\n", "größe"),
        ("# Parameters\noverrides.d = 24\n", "overrides.d"),
    ],
)
def test_start_refuses_what_the_chapter_does_not_have(cell: str, name: str) -> None:
    with pytest.raises(ValueError, match=f"unknown parameter '{name}'.*profile, device, seeds, overrides"):
        start("parity", {**DEFAULTS, "In": ["", "x = 1", cell]})


@pytest.mark.parametrize("name", profiles.PARAMETERS)
def test_start_accepts_what_every_chapter_has(name: str) -> None:
    namespace = {**DEFAULTS, "profile": "smoke", "device": None, "In": ["", f"# Parameters\n{name} = None\n"]}
    assert vars(start("parity", namespace)) == vars(load("parity", "smoke"))


def test_start_ignores_other_cells() -> None:
    cells = ["", "stepz = 3\n", "%matplotlib inline", "# Parameters\nprofile = 'smoke'\noverrides = {'d': 9}\n"]
    assert start("parity", {**DEFAULTS, "In": cells}).profile == "book"


def test_start_looks_at_the_last_injected_cell_only() -> None:
    """In Jupyter, `In` remembers cells that the reader has mended or taken out since."""
    cells = ["", "# Parameters\nstepz = 3\n", "# Parameters\na b = 3\n", "# Parameters\nseeds = [1, 2]\n", "x = 1"]
    assert start("parity", {**DEFAULTS, "In": cells}).profile == "book"
    assert start("parity", {**DEFAULTS, "In": cells[:3]}).profile == "book", "what does not parse has not run"


def test_a_parameter_that_a_reader_took_out_has_its_default() -> None:
    assert vars(start("parity", {"profile": "smoke", "device": "cpu"})) == vars(load("parity", "smoke", "cpu"))


def test_nothing_but_one_line_from_papermill() -> None:
    """What `-p NAME VALUE` and `-y` make of a value, as papermill writes it into the injected cell."""
    translate = pytest.importorskip("papermill.translators").PythonTranslator.codify
    typed = pytest.importorskip("papermill.cli")._resolve_type
    for name, text in (("seeds", "3"), ("seeds", "[1, 2]"), ("overrides", "{d: 24}"), ("profile", "null"), ("d", "24"),
                       ("device", "gpu"), ("profile", "3"), ("overrides", "True"), ("seeds", "1e3")):  # fmt: skip
        cell = translate({name: typed(text)})
        namespace = {**DEFAULTS, "profile": "smoke", "In": ["", cell]}
        exec(cell, namespace)
        with pytest.raises(ValueError, match=name) as error:
            start("parity", namespace)
        assert len(str(error.value).splitlines()) == 1
