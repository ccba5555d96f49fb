"""Checks of the exercises of chapter 10."""

from __future__ import annotations

from collections.abc import Callable

import torch

from kdutils import seeding
from kdutils.pages.exercises import exercise, need


@exercise
def check_projected(projected: Callable) -> None:
    """`projected(p, maps)`: (width, channels) and (batch, channels, height, width of the map) -> the views, a map."""
    draw = seeding.generator(0, "projected")
    p, maps = torch.randn(3, 5, generator=draw), torch.randn(2, 5, 4, 6, generator=draw)
    views = projected(p, maps)
    need(tuple(views.shape) == (2, 3, 4, 6), f"3 views of 2 maps of 4 x 6 are (2, 3, 4, 6), not {tuple(views.shape)}")
    one = torch.zeros_like(maps)
    one[1, :, 2, 5] = maps[1, :, 2, 5]
    others = projected(p, one).clone()
    here, others[1, :, 2, 5] = others[1, :, 2, 5].clone(), 0
    need(not others.any(), "a position must not change the views of another")
    need(torch.allclose(here, p @ maps[1, :, 2, 5], atol=1e-5), "at a position, the views are P h of it")
    need(torch.allclose(views[0, :, 1, 3], p @ maps[0, :, 1, 3], atol=1e-5), "all positions share one matrix")


@exercise
def check_explained(explained: Callable) -> None:
    """`explained(z, h)`: outputs (n, classes) and a layer (n, units) -> the share of its variance that they tell."""
    draw = seeding.generator(0, "explained")

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw)

    z = normal(4000, 6)
    exact = float(explained(z, z @ normal(6, 9) + 3.0))
    need(
        abs(exact - 1) < 0.02,
        f"a layer that is a linear map of the outputs, and a constant, is told whole, not {exact:.2f}",
    )
    nothing = float(explained(z, normal(4000, 9)))
    need(abs(nothing) < 0.03, f"a layer that has nothing to do with the outputs gives 0, not {nothing:.2f}")
    shifted = float(explained(z, normal(4000, 9) + 3.0))
    message = f"the same layer with 3 added to all its units gives 0 as well, not {shifted:.2f}: a mean is no variance"
    need(abs(shifted) < 0.03, message)
    half = float(explained(z, torch.stack([z[:, 0], normal(4000)], 1)))
    need(abs(half - 0.5) < 0.04, f"of two units, one of them told, half of the variance is told, not {half:.2f}")
    scaled = float(explained(z, torch.stack([10 * z[:, 0], normal(4000)], 1)))
    need(scaled > 0.97, f"a unit that varies more counts for more: 0.99 is right here, not {scaled:.2f}")
    over = float(explained(normal(200, 80), normal(200, 9)))
    need(over < 0.1, f"80 outputs on 200 rows tell {over:.2f} of noise: measure on rows that the map was not fitted to")
    z, h = normal(4000, 6), normal(4000, 9)
    z[1234], h[1234] = 1000 * z[1234], 1000 * h[1234]  # it draws the map to itself, and helps no other row
    alone = float(explained(z, h))
    need(alone < 0.3, f"one row far from all others tells {alone:.2f}: measure on rows that the map was not fitted to")
