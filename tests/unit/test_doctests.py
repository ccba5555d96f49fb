import doctest
import importlib
import pkgutil

import pytest

import kdutils

MODULES = sorted(module.name for module in pkgutil.iter_modules(kdutils.__path__))
WITH_EXAMPLES = {
    "seeding",
    "parity",
    "ensemble",
    "losses",
    "curriculum",
    "cost",
    "probes",
    "profiles",
    "grammar",
    "text",
}


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    outcome = doctest.testmod(importlib.import_module(f"kdutils.{name}"))
    assert outcome.failed == 0
    assert outcome.attempted > 0 or name not in WITH_EXAMPLES
