"""For notebooks under nbval: a magic that does not exist, or is called wrongly, fails its cell.

IPython prints such an error and raises none, so nbval alone takes the cell as run (papermill does not). And nbval gives
up where an output takes five seconds to arrive, which a busy machine may need.
"""

import re
from collections.abc import Iterator

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    if hasattr(item, "output_timeout"):
        item.output_timeout = 600  # seconds
    done = yield
    for output in getattr(item, "test_outputs", ()):  # of a cell
        if output.get("name") == "stderr" and re.search(r"^UsageError: ", output["text"], re.MULTILINE):
            item.raise_cell_error("A magic of this cell failed", output["text"])
    return done
