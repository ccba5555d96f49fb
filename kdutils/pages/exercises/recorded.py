"""Checks of the exercises of chapter 11."""

from __future__ import annotations

from collections.abc import Callable

import torch

from kdutils import seeding
from kdutils.pages.exercises import close, exercise, need


@exercise
def check_bytes(bytes_per_token: Callable) -> None:
    """`bytes_per_token(top_k, width, layers)`."""
    for top_k, width, layers, wanted in ((1, 0, 0, 6), (32, 0, 0, 130), (32, 96, 3, 706), (4, 10, 1, 38)):
        mine = bytes_per_token(top_k, width, layers)
        need(mine == wanted, f"top_k={top_k}, width {width}, {layers} layers take {wanted} bytes a token, not {mine}")


@exercise
def check_lumped(lumped: Callable) -> None:
    """`lumped(logits, k)`: log-probabilities of the k likeliest classes and of the rest, and the ids of the former."""
    own, wanted = torch.randn(2, 3, 5, 12, generator=seeding.generator(0, "logits"), dtype=torch.double) * 3
    log_p, ids = lumped(wanted, 4)
    need(log_p.shape == (3, 5, 5) and ids.shape == (3, 5, 4), f"for k=4 the shapes are {log_p.shape} and {ids.shape}")
    total = float(log_p.exp().sum(-1).mean())
    need(close(total, 1), f"the probabilities add up to {total:.4g}: the last one is that of all other classes")
    whole = wanted.log_softmax(-1)
    need(torch.allclose(log_p[..., :-1], whole.gather(-1, ids)), "give logarithms of probabilities, not logits")
    least, others = log_p[..., :-1].amin(-1), whole.scatter(-1, ids, -torch.inf).amax(-1)
    need(bool((least >= others).all()), "a class that was left out is likelier than one that was kept")
    q = own.log_softmax(-1)
    theirs = torch.cat([q.gather(-1, ids), q.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)], -1)
    before, after = ((p.exp() * (p - s)).sum(-1) for p, s in ((whole, q), (log_p, theirs)))
    need(bool((after <= before + 1e-9).all()), "a divergence has grown: it cannot, when classes are put together")
    need(close(float(lumped(torch.zeros(1, 8), 2)[0].exp()[0, -1]), 0.75), "of 8 equal classes, 6 make a rest of 3/4")


@exercise
def check_kept(trials: Callable, own: int) -> None:
    """`trials()`: {classes kept: Arm} of one-shot students, those of the page among them."""
    arms = trials()
    need(len(arms) >= 3 and own in arms, f"{len(arms)} records: report the page's own ({own} classes) and two others")
    need(len({arm.run.key for arm in arms.values()}) == len(arms), "two of the arms are the same run")
    settings = [arm.run.settings for arm in arms.values()]
    same = all(one["steps"] == settings[0]["steps"] and one["batch"] == settings[0]["batch"] for one in settings)
    need(same and len({arm.seeds for arm in arms.values()}) == 1, "give every arm the same seeds and the same budget")
    need(all("output" in str(one["curriculum"]["stages"]) for one in settings), "every arm learns from outputs")
