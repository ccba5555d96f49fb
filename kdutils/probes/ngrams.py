"""How much of a masked language model's guess comes from the nearest tokens: the two n-gram probes.

From "Progressive distillation induces an implicit curriculum" (Panigrahi et al., ICLR 2025). Both hide a position and
compare the distribution predicted there with the one predicted after hiding more: `robust` hides the rest of the
window around it (a large distance: short context was used), `close` all that is outside the window (a small one:
short context is enough). The distance is total variation, half the L1 distance, in [0, 1]; the paper's code reports
the L1 distance, which is twice as large.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from kdutils.tasks import grammar

Model = Callable[[torch.Tensor], torch.Tensor]


def robust(model: Model, sentences: torch.Tensor, positions: Sequence[int], reach: int, **tokens: int) -> torch.Tensor:
    """Total variation between the guesses with only the position hidden, and with its whole window hidden.

    Args:
        model: token ids (rows, L) -> logits (rows, L, vocabulary), dropout off.
        sentences: (n, L) token ids in which nothing is hidden.
        positions: the columns probed.
        reach: the window of position p is p - reach .. p + reach, a (2 reach + 1)-gram, as far as the sentence goes.
        tokens: the ids `mask`, `start` and `padding` where they are not those of `grammar`; start and padding are
            never hidden.

    Returns:
        (n, positions), NaN where a row is too short for the position, or has the start token there.

    Raises:
        ValueError: for a position outside 0 .. L - 1, or a negative reach.
    """
    return _moved(model, sentences, positions, reach, True, **tokens)


def close(model: Model, sentences: torch.Tensor, positions: Sequence[int], reach: int, **tokens: int) -> torch.Tensor:
    """Total variation between the guesses with only the position hidden, and with all outside its window hidden too.

    Takes, returns and raises what `robust` does.
    """
    return _moved(model, sentences, positions, reach, False, **tokens)


@torch.no_grad()
def _moved(
    model: Model,
    sentences: torch.Tensor,
    positions: Sequence[int],
    reach: int,
    window: bool,
    mask: int = grammar.MASK,
    start: int = grammar.BOS,
    padding: int = grammar.PAD,
    rows: int = 512,
) -> torch.Tensor:
    """The distance at each position; whether the window or the rest is hidden; `rows` go through the model at once."""
    (n, length), device = sentences.shape, sentences.device
    if reach < 0 or not all(0 <= p < length for p in positions):
        raise ValueError(f"need reach >= 0 and positions in 0..{length - 1}, not {reach} and {list(positions)}")
    at = torch.tensor(positions, dtype=torch.int64, device=device)
    distance = (torch.arange(length, device=device) - at[:, None]).abs()  # (positions, L)
    hideable = (sentences != start) & (sentences != padding)
    more = (distance <= reach) == window
    guesses = []
    for hide in (distance == 0, (distance == 0) | more):
        hidden = sentences[:, None].masked_fill(hide & hideable[:, None], mask).flatten(0, 1)
        asked = at.repeat(n)
        parts = zip(hidden.split(rows), asked.split(rows), strict=True)
        guesses.append(torch.cat([model(x)[range(len(x)), p].softmax(-1) for x, p in parts]))
    moved = (guesses[0] - guesses[1]).abs().sum(-1).view(n, len(at)) / 2
    return moved.masked_fill(~hideable[:, at], torch.nan)
