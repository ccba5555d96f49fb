"""Controls that need a running kernel."""

from __future__ import annotations

from functools import partial

import ipywidgets
import matplotlib.pyplot as plt

from kdutils import curriculum
from kdutils.lab.ensemble import Ensemble
from kdutils.lab.training import train
from kdutils.pages import plots
from kdutils.tasks.models import MLP
from kdutils.tasks.parity import SparseParity


def parity_playground(seeds: tuple[int, ...] = (0, 1, 2), steps: int = 2000) -> ipywidgets.Widget:
    """Sliders for d, k and width, and a button that trains one network a seed from labels and draws the curves."""
    wide = {"style": {"description_width": "5em"}, "continuous_update": False}
    d = ipywidgets.IntSlider(30, 5, 60, description="bits d", **wide)
    k = ipywidgets.IntSlider(4, 1, 7, description="support k", **wide)
    width = ipywidgets.IntSlider(128, 16, 512, step=16, description="width", **wide)
    button = ipywidgets.Button(description="Train", tooltip="train and draw; needs a kernel")
    drawing = ipywidgets.Output()

    def draw(_: ipywidgets.Button) -> None:
        with drawing:
            drawing.clear_output(wait=True)
            try:
                task = SparseParity(d.value, k.value)
            except ValueError as error:
                print(error)
                return
            students = Ensemble(partial(MLP, d.value, width.value), seeds, [1.0])
            run = train(students, task, curriculum.from_labels(), steps=steps, until=0.99)
            _, ax = plt.subplots()
            ax.plot(run.samples, run.accuracy, lw=1.5)
            ax.set(xlabel="training samples", ylabel="held-out accuracy", ylim=(0.45, 1.02), xlim=(0, run.budget))
            ax.set_title(f"d={d.value}, k={k.value}, width {width.value}: one line a seed, {run.seconds:.1f} s")
            ax.xaxis.set_major_formatter(plots.EngFormatter(sep=""))
            plt.show()

    button.on_click(draw)
    note = ipywidgets.HTML("<em>These controls train networks: they need a running kernel.</em>")
    return ipywidgets.VBox([note, d, k, width, button, drawing])
