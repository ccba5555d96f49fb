import tomllib
from pathlib import Path

import pytest
import torch

from kdutils.pages import profiles
from kdutils.pages.profiles import load, start

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
