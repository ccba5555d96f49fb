import math

import pytest
import torch
from torch.nn.functional import one_hot, pad

from kdutils.probes import ngrams
from kdutils.tasks.grammar import BOS, MASK, PAD, Grammar

SENTENCES = torch.tensor([[BOS, 0, 1, 2, 0, 1, 2, 0], [BOS, 2, 1, 0, 2, PAD, PAD, PAD]])


def ignores_its_input(x: torch.Tensor) -> torch.Tensor:
    return torch.arange(7.0).expand(*x.shape, 7)


def copies_the_left_neighbour(x: torch.Tensor) -> torch.Tensor:
    """Softmax gives the token on the left e / (e + 6) and the others 1 / (e + 6), whatever else there is."""
    return one_hot(pad(x, (1, 0), value=BOS)[:, :-1], 7).float()


MOVED = (math.e - 1) / (math.e + 6)  # what the copier's probabilities of the two tokens differ by


def test_a_model_that_ignores_its_input_never_moves() -> None:
    for probe in (ngrams.robust, ngrams.close):
        moved = probe(ignores_its_input, SENTENCES, [1, 3, 4], 1)
        assert moved.shape == (2, 3) and moved.abs().max() == 0


def test_a_model_of_the_neighbour_moves_where_the_neighbour_is_hidden() -> None:
    robust = ngrams.robust(copies_the_left_neighbour, SENTENCES, [2, 3, 4], 1)
    torch.testing.assert_close(robust, torch.full((2, 3), MOVED))
    assert ngrams.close(copies_the_left_neighbour, SENTENCES, [2, 3, 4], 1).abs().max() == 0
    # with no reach, the window is the position alone
    assert ngrams.robust(copies_the_left_neighbour, SENTENCES, [2, 3, 4], 0).abs().max() == 0
    close = ngrams.close(copies_the_left_neighbour, SENTENCES, [2, 3, 4], 0)
    torch.testing.assert_close(close, torch.full((2, 3), MOVED))


def test_the_start_and_padding_stay() -> None:
    assert ngrams.robust(copies_the_left_neighbour, SENTENCES, [1], 3).abs().max() == 0
    assert ngrams.close(copies_the_left_neighbour, SENTENCES, [1], 0).abs().max() == 0
    seen: list[torch.Tensor] = []

    def watch(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return ignores_its_input(x)

    ngrams.robust(watch, SENTENCES, [3], 2)
    baseline, probed = seen
    assert baseline.tolist() == [[BOS, 0, 1, MASK, 0, 1, 2, 0], [BOS, 2, 1, MASK, 2, PAD, PAD, PAD]]
    assert probed.tolist() == [[BOS, *[MASK] * 5, 2, 0], [BOS, *[MASK] * 4, PAD, PAD, PAD]]
    seen.clear()
    ngrams.close(watch, SENTENCES, [3], 1)
    assert seen[1].tolist() == [[BOS, MASK, 1, MASK, 0, *[MASK] * 3], [BOS, MASK, 1, MASK, 2, PAD, PAD, PAD]]


def test_positions_without_a_token_are_nan() -> None:
    moved = ngrams.close(copies_the_left_neighbour, SENTENCES, [0, 2, 6], 1)
    assert moved.isnan().tolist() == [[True, False, False], [True, False, True]]


def test_other_ids_and_parts_change_nothing() -> None:
    tokens, _ = Grammar.named("cfg3b").rooted(13).sample(40, torch.Generator().manual_seed(0))
    rows = pad(tokens, (1, 0), value=BOS)
    moved = ngrams.robust(copies_the_left_neighbour, rows, [2, 5, 17], 2)
    torch.testing.assert_close(
        ngrams.robust(copies_the_left_neighbour, rows, [2, 5, 17], 2, rows=7), moved, equal_nan=True
    )
    ids = torch.tensor([0, 1, 2, 6, 4, 3, 5])  # other numbers for BOS, PAD and MASK
    other = ngrams.robust(
        lambda x: one_hot(pad(x, (1, 0), value=6)[:, :-1], 7).float(),
        ids[rows],
        [2, 5, 17],
        2,
        mask=5,
        start=6,
        padding=3,
    )
    torch.testing.assert_close(other, moved, equal_nan=True)


@pytest.mark.parametrize(("positions", "reach"), [([8], 1), ([-1], 1), ([2], -1)])
def test_bad_arguments(positions: list[int], reach: int) -> None:
    with pytest.raises(ValueError, match=r"positions in 0\.\.7"):
        ngrams.close(ignores_its_input, SENTENCES, positions, reach)
