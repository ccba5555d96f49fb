"""Chapter 1 with settings of a reader's own, at which no network solves the task."""

import math
from pathlib import Path

import jupytext
import matplotlib.pyplot as plt
import pytest

TEXT = Path(__file__).resolve().parents[2] / "book" / "text" / "01_sparse_parities.md"
OVERRIDES = {"d": 10, "k": 4, "widths": [8], "steps": 4, "evaluate_every": 2, "tuning_seeds": [100]}


@pytest.mark.filterwarnings("ignore")
def test_one_width_and_no_network_that_solves_the_task(tmp_path, monkeypatch):
    monkeypatch.setenv("KDUTILS_RUNS", str(tmp_path))
    monkeypatch.setenv("KDUTILS_RESULTS", str(tmp_path))
    cells = [cell.source for cell in jupytext.read(TEXT, fmt="md:myst").cells if cell.cell_type == "code"]
    names = {"profile": "smoke", "device": "cpu", "seeds": [1, 2, 3], "overrides": OVERRIDES}
    exec(cells[0].replace("%pip", "pass  #"), names)
    for source in cells[1:]:
        if "overrides = {}" not in source:
            exec(source, names)
    plt.close("all")
    (claim,) = (claim for claim in names["found"] if claim.id == "finds-support")
    assert math.isnan(claim.value) and all(map(math.isnan, claim.interval))
