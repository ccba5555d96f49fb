"""Hidden layers of sequences: which positions count, and what layer-normalising both sides does."""

import copy
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from kdutils import curriculum, projections, seeding
from kdutils.lab.ensemble import Ensemble
from kdutils.losses import IGNORE
from kdutils.signals import Hidden, Regressed, Signal
from kdutils.tasks.models import MLP

TOKENS, LENGTH, PAD = 4, 6, 0
Batch = tuple[torch.Tensor, torch.Tensor]
CHOSEN = {
    "asked": lambda x, y: y != IGNORE,
    "tokens": lambda x, y: x != PAD,
    "all": lambda x, y: torch.ones_like(x) > 0,
}


def deep(width: int = 5, padding: int | None = None, seed: int = 3) -> nn.Sequential:
    """Two layers, position by position; the hidden one is "0"."""
    with seeding.global_rng(seed, "deep"):
        network = nn.Sequential(nn.Embedding(TOKENS, width), nn.Linear(width, TOKENS))
    network.padding = padding
    return network


@pytest.fixture
def students() -> Ensemble:
    return Ensemble(partial(deep, seed=4), [1, 2], [0.1, 0.3])


@pytest.fixture
def batch() -> Batch:
    """Rows of tokens that end with padding, and labels at some of the tokens; one batch a seed."""
    generator = seeding.generator(0, "batch")
    x = torch.randint(1, TOKENS, (2, 40, LENGTH), generator=generator)
    x[torch.arange(LENGTH) >= torch.randint(2, LENGTH + 1, (2, 40, 1), generator=generator)] = PAD
    asked = (torch.rand(x.shape, generator=generator) < 0.4) & (x != PAD)
    return x, torch.where(asked, x, IGNORE)


def losses(signal: Signal, students: Ensemble, batch: Batch, calibration: Batch | None = None) -> torch.Tensor:
    bound = signal.bind(students, *(calibration or batch))
    return bound.loss(students.outputs(batch[0], bound.reads), students.spread(bound.target(*batch)))


def keep_all(hidden: torch.Tensor, width: int, generator: torch.Generator) -> torch.Tensor:
    return torch.eye(width)


@pytest.mark.parametrize("positions", CHOSEN)
def test_half_the_mean_square_over_the_chosen_positions(positions: str, students: Ensemble, batch: Batch) -> None:
    """Centred, and scaled to a unit mean square, over the chosen positions of the calibration sample."""
    teacher, (x, y) = deep(padding=PAD), batch
    loss = losses(Hidden(teacher, "0", "0", keep_all, positions=positions), students, batch)
    for m in range(4):
        rows = CHOSEN[positions](x[m % 2], y[m % 2])
        h = teacher[0](x[m % 2])[rows]
        wanted = (h - h.mean(0)) / (h - h.mean(0)).square().mean().sqrt()
        off = students.member(m)[0](x[m % 2])[rows] - wanted
        torch.testing.assert_close(loss[m], 0.5 * off.square().sum(-1).mean())


def with_other_padding(teacher: nn.Sequential) -> nn.Sequential:
    other = copy.deepcopy(teacher)
    with torch.no_grad():
        other[0].weight[PAD] += torch.linspace(5, 50, other[0].weight.shape[1])
    return other


@pytest.mark.parametrize(
    "signal",
    [
        Regressed,
        *(
            partial(Hidden, projection=projection, normalise=normalise)
            for projection in (projections.gaussian, projections.orthonormal, projections.pca)
            for normalise in ("sample", "position")
        ),
    ],
    ids=lambda s: " ".join(getattr(v, "__name__", str(v)) for v in getattr(s, "keywords", {"": s}).values()),
)
@pytest.mark.parametrize("positions", ["asked", "tokens"])
def test_positions_not_chosen_have_no_say(
    positions: str, signal: Callable[..., Signal], students: Ensemble, batch: Batch
) -> None:
    """Neither in the calibration nor in the loss, on either side; where all count, they do."""
    teacher, x = deep(8, PAD), batch[0]
    make = partial(signal, layer="0", student_layer="0")
    first, second = (
        losses(make(net, positions=positions), students, batch) for net in (teacher, with_other_padding(teacher))
    )
    torch.testing.assert_close(first, second)
    every = [losses(make(net), students, batch) for net in (teacher, with_other_padding(teacher))]
    assert ((every[0] - every[1]).abs() > 1e-3).all()
    for p in students.parameters.values():
        p.requires_grad_(True)
    bound = make(teacher, positions=positions).bind(students, *batch)
    values = students.outputs(x, bound.reads)["0"]
    loss = bound.loss({"0": values}, students.spread(bound.target(*batch))).sum()
    moved = torch.autograd.grad(loss, values)[0].abs().amax(-1) > 0
    assert torch.equal(moved, students.spread(CHOSEN[positions](*batch)))


def test_asked_positions_of_the_calibration_alone_fix_the_scale(students: Ensemble, batch: Batch) -> None:
    teacher, (x, y) = deep(8), batch
    other = torch.where(y == IGNORE, torch.ones_like(x), x)
    make = partial(Hidden, teacher, "0", "0")
    for positions, same in (("asked", True), ("all", False)):
        first, second = (losses(make(positions=positions), students, batch, (c, y)) for c in (x, other))
        assert torch.allclose(first, second) is same


@pytest.mark.parametrize("kind", [Hidden, Regressed])
def test_padding_is_given_or_the_teachers_but_never_guessed(
    kind: Callable[..., Signal], students: Ensemble, batch: Batch
) -> None:
    known = losses(kind(deep(8, PAD), "0", "0", positions="tokens"), students, batch)
    given = losses(kind(deep(8), "0", "0", positions="tokens", padding=PAD), students, batch)
    assert torch.equal(known, given)
    other = losses(kind(deep(8, PAD), "0", "0", positions="tokens", padding=1), students, batch)
    assert (other != given).all()
    for attribute in (None, (1, 1), "same", True):
        with pytest.raises(ValueError, match="'tokens' needs the id of padding: give padding=ID"):
            kind(deep(8, attribute), "0", "0", positions="tokens")
    configured = deep(8)
    configured.config = SimpleNamespace(pad_token_id=3)
    with pytest.raises(ValueError, match=r"give padding=ID \(pad_token_id of its config: 3\)"):
        kind(configured, "0", "0", positions="tokens")
    for positions in ("all", "asked"):
        with pytest.raises(ValueError, match=f"positions='tokens' alone, not with '{positions}'"):
            kind(deep(8), "0", "0", positions=positions, padding=0)


def test_padding_reaches_every_hidden_stage() -> None:
    teacher = deep(8)
    layers = [("0", "0"), ("1", "1")]
    for plan in (
        curriculum.extracted(teacher, layers, positions="tokens", padding=PAD),
        curriculum.fitnets(teacher, "0", "0", positions="tokens", padding=PAD),
    ):
        assert all(stage.signal.padding == PAD for stage in plan.stages[:-1])
    term = curriculum.joint(teacher, 0.1, "0", "0", positions="tokens", padding=PAD).stages[0].signal.terms[1][1]
    assert (term.positions, term.padding) == ("tokens", PAD)
    for make in (curriculum.extracted, curriculum.fitnets):
        with pytest.raises(ValueError, match="give padding=ID"):
            make(deep(8, None), *([layers] if make is curriculum.extracted else ["0"]), positions="tokens")


def test_a_calibration_sample_where_nothing_counts(students: Ensemble, batch: Batch) -> None:
    x, y = batch
    nowhere = torch.stack([y[0], torch.full_like(y[1], IGNORE)])  # one of two seeds is enough
    for kind in (Hidden, Regressed):
        with pytest.raises(ValueError, match="positions='asked': nothing counts in a calibration sample"):
            kind(deep(8), "0", "0", positions="asked").bind(students, x, nowhere)
        with pytest.raises(ValueError, match="positions='tokens': nothing counts in a calibration sample"):
            kind(deep(8, PAD), "0", "0", positions="tokens").bind(students, torch.full_like(x, PAD), y)


@pytest.mark.parametrize("kind", [Hidden, partial(Hidden, normalise="position"), Regressed])
def test_a_step_in_which_nothing_is_asked_costs_nothing(
    kind: Callable[..., Signal], students: Ensemble, batch: Batch
) -> None:
    x, y = batch
    bound = kind(deep(8), "0", "0", positions="asked").bind(students, x, y)
    values = {"0": students.outputs(x, ("0",))["0"].requires_grad_()}
    loss = bound.loss(values, students.spread(bound.target(x, torch.full_like(y, IGNORE))))
    assert loss.tolist() == [0] * 4
    assert torch.autograd.grad(loss.sum(), values["0"])[0].abs().max() == 0


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("kind", [Hidden, partial(Hidden, normalise="position"), Regressed])
def test_positions_that_do_not_count_may_hold_anything(
    kind: Callable[..., Signal], value: float, students: Ensemble, batch: Batch
) -> None:
    """On both sides, in the calibration, the loss and the gradients; the others are as they would be."""
    x, y = batch
    broken = deep(8, PAD)
    with torch.no_grad():
        broken[0].weight[PAD, ::2] = value
    results = []
    for teacher, spoil in ((deep(8, PAD), False), (broken, True)):
        bound = kind(teacher, "0", "0", positions="tokens").bind(students, x, y)
        values = students.outputs(x, ("0",))["0"].detach()
        if spoil:
            values[students.spread(x) == PAD] = value
        values.requires_grad_()
        loss = bound.loss({"0": values}, students.spread(bound.target(x, y)))
        results.append((loss, *torch.autograd.grad(loss.sum(), [values, *bound.parameters.values()])))
    for good, same in zip(*results, strict=True):
        assert same.isfinite().all()
        torch.testing.assert_close(same, good)


@pytest.mark.parametrize("kind", [Hidden, Regressed])
def test_a_calibration_that_is_not_finite_names_its_sample(
    kind: Callable[..., Signal], students: Ensemble, batch: Batch
) -> None:
    x, y = (part.clone() for part in batch)
    x[x == 3] = 2
    x[1, 7, 0] = 3
    teacher = deep(8)
    with torch.no_grad():
        teacher[0].weight[3, 1] = torch.inf
    with pytest.raises(ValueError, match="`0` of final teacher is not finite at sample 7 of seed number 1 of the"):
        kind(teacher, "0", "0").bind(students, x, y)


@pytest.mark.parametrize("positions", CHOSEN)
def test_normalised_by_position_the_loss_is_one_minus_the_correlation(positions: str, batch: Batch) -> None:
    """Of student and target over the units of a position, times their number (up to layer norm's eps of 1e-5)."""
    width, (x, y) = 5, batch
    students = Ensemble(partial(deep, width, seed=4), [1, 2], [0.1, 0.3])
    plain = Hidden(deep(8, PAD), "0", "0", positions=positions).bind(students, *batch)
    bound = Hidden(deep(8, PAD), "0", "0", positions=positions, normalise="position").bind(students, *batch)
    wanted = plain.target(*batch)
    wanted, h = wanted if positions == "all" else wanted[0], students.outputs(x, ("0",))["0"]
    assert wanted.shape == (2, 40, LENGTH, width)
    loss = bound.loss({"0": h}, students.spread(bound.target(*batch)))
    for m in range(4):
        rows = CHOSEN[positions](x[m % 2], y[m % 2])
        pairs = zip(h[m][rows], wanted[m % 2][rows], strict=True)
        correlation = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs])
        torch.testing.assert_close(loss[m], width * (1 - correlation).mean(), atol=1e-3, rtol=1e-3)


def test_normalised_by_position_scale_and_shift_do_not_matter(students: Ensemble, batch: Batch) -> None:
    """Of the student at every position, and of the teacher as a whole."""
    teacher, generator = deep(8), seeding.generator(0, "scale")
    louder = copy.deepcopy(teacher)
    with torch.no_grad():
        louder[0].weight.mul_(7).add_(torch.linspace(-3, 3, 8))
    for normalise, blind in (("position", True), ("sample", False)):
        bounds = [Hidden(net, "0", "0", normalise=normalise).bind(students, *batch) for net in (teacher, louder)]
        targets = [students.spread(bound.target(*batch)) for bound in bounds]
        h = students.outputs(batch[0], ("0",))["0"]
        scale, shift = (torch.rand(*h.shape[:-1], 1, generator=generator) + 0.5 for _ in range(2))
        plain, moved = (bounds[0].loss({"0": v}, targets[0]) for v in (h, h * scale + shift))
        torch.testing.assert_close(*targets)
        assert torch.allclose(plain, moved, rtol=1e-3) is blind


@pytest.mark.parametrize("wrong", [{"positions": "ask"}, {"normalise": "layer"}, {"positions": None}], ids=str)
def test_unknown_choices_list_those_there_are(wrong: dict) -> None:
    choices = r"\('all', 'asked', 'tokens'\)" if "positions" in wrong else r"'sample', 'position'"
    with pytest.raises(ValueError, match=rf"{next(iter(wrong))} must be one of {choices}, not "):
        Hidden(deep(), "0", "0", **wrong)
    if "positions" in wrong:
        with pytest.raises(ValueError, match=f"positions must be one of .*{choices}"):
            Regressed(deep(), "0", "0", **wrong)


def test_asked_positions_need_one_label_a_position(students: Ensemble, batch: Batch) -> None:
    signal, (x, y) = Hidden(deep(), "0", "0", positions="asked"), batch
    for labels in (None, y[..., 0]):
        with pytest.raises(ValueError, match="positions='asked' needs a layer and a task with one entry a position"):
            signal.bind(students, x, labels)
    bound = signal.bind(students, x, y)
    with pytest.raises(ValueError, match="one entry a position"):
        bound.target(x, y[..., 0])


def test_a_sample_with_one_label_is_a_position() -> None:
    """Samples whose label is `IGNORE` are left out."""
    one, x = Ensemble(partial(MLP, 3, 4), [1]), torch.randn(1, 9, 3, generator=seeding.generator(0, "x"))
    y = torch.tensor([[0, 1, 0, IGNORE, IGNORE, 1, 0, 1, 1]])
    rows = (x[:, y[0] != IGNORE], y[:, y[0] != IGNORE])
    teacher = MLP(3, 8)
    torch.testing.assert_close(
        losses(Hidden(teacher, positions="asked"), one, (x, y)), losses(Hidden(teacher), one, rows)
    )


@pytest.mark.parametrize("kind", [Hidden, Regressed])
@pytest.mark.parametrize("value", [0.0, 3.7], ids=["dead", "constant"])
def test_a_layer_that_does_not_vary_is_refused(kind: Callable[..., Signal], value: float) -> None:
    """Rounding alone would otherwise be blown up to the size of a signal."""
    teacher, students = MLP(6, 24), Ensemble(partial(MLP, 6, 8), (1, 2), (0.1,))
    nn.init.zeros_(teacher.hidden.weight)
    nn.init.constant_(teacher.hidden.bias, value)
    x = torch.randn(2, 5000, 6, generator=seeding.generator(0, "x"))
    with pytest.raises(ValueError, match=r"`act` of final teacher.* is the same for the whole calibration sample"):
        kind(teacher).bind(students, x)
