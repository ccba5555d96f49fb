import doctest
import importlib
import pkgutil

import pytest

import kdutils

MODULES = sorted(module.name for module in pkgutil.walk_packages(kdutils.__path__, "kdutils."))
WITH_EXAMPLES = {
    "kdutils.curriculum",
    "kdutils.distiller",
    "kdutils.losses",
    "kdutils.seeding",
    "kdutils.tasks.cost",
    "kdutils.lab.ensemble",
    "kdutils.pages.profiles",
    "kdutils.probes.fourier",
    "kdutils.tasks.grammar",
    "kdutils.tasks.parity",
    "kdutils.tasks.pictures",
    "kdutils.tasks.text",
}


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    outcome = doctest.testmod(importlib.import_module(name))
    assert outcome.failed == 0
    assert outcome.attempted > 0 or name not in WITH_EXAMPLES
