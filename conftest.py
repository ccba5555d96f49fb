"""For notebooks under nbval: a magic that does not exist, or is called wrongly, fails its cell.

IPython prints such an error and raises none, so nbval alone takes the cell as run (papermill does not).
"""

import re
from collections.abc import Iterator

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    done = yield
    for output in getattr(item, "test_outputs", ()):  # of a cell
        if output.get("name") == "stderr" and re.search(r"^UsageError: ", output["text"], re.MULTILINE):
            item.raise_cell_error("A magic of this cell failed", output["text"])
    return done
