"""A recorded teacher teaches what the live one does, and nothing else is taken for it."""

import gc
import json
import warnings
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kdutils import curriculum, recorded, seeding, shards
from kdutils.curriculum import Curriculum, Stage
from kdutils.distiller import Distiller
from kdutils.losses import IGNORE
from kdutils.probes.mediation import Shuffled
from kdutils.signals import Hidden, Labels, Output, Regressed, WeightedSum
from kdutils.tasks.models import Transformer

WORDS, LENGTH, ROWS = 30, 6, 40


def network(width: int, seed: int) -> nn.Module:
    with seeding.global_rng(seed, "init"):
        return Transformer(WORDS, width, 2, 2, LENGTH)


def samples() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = seeding.generator(0, "rows")
    x = torch.randint(0, WORDS, (ROWS, LENGTH), generator=generator)
    y = torch.where(torch.rand(ROWS, LENGTH, generator=generator) < 0.8, x.roll(-1, 1), IGNORE)
    return list(zip(x, y, strict=True))


ROWS_OF = samples()
X, Y = (torch.stack(part) for part in zip(*ROWS_OF, strict=True))
TEACHER = network(16, 1)
AT = "blocks.0"
PLANS: dict[str, Callable[[], Curriculum]] = {
    "extraction": lambda: curriculum.extracted(TEACHER, [(AT, AT), ("blocks.1", "blocks.1")], 3),
    "asked": lambda: curriculum.extracted(TEACHER, [(AT, AT)], 3, positions="asked"),
    "position": lambda: curriculum.extracted(TEACHER, [(AT, AT)], 3, normalise="position"),
    "FitNets": lambda: curriculum.fitnets(TEACHER, AT, AT, 3),
    "joint": lambda: curriculum.joint(TEACHER, 0.5, AT, AT),
    "tempered": lambda: Curriculum("tempered", (Stage(Output(TEACHER, 2.0, 2.0)),)),
    "with labels": lambda: Curriculum("mixed", (Stage(WeightedSum(((0.5, Labels()), (0.5, Output(TEACHER))))),)),
}
SETTINGS: dict[str, Any] = {"calibration": X[:16], "calibration_labels": Y[:16]}


def made(folder: Path, plan: Curriculum, rows: Any = None, **fields: Any) -> Path:
    student = network(8, 2)
    recorded.record(plan, student, ROWS_OF if rows is None else rows, folder,
                    **{"batch": 7, "shard": 16, "top_k": None, **SETTINGS, **fields})  # fmt: skip
    return folder


def known(x: torch.Tensor) -> torch.Tensor:
    return x > 3


def host(plan: Curriculum, **fields: Any) -> Distiller:
    return Distiller(network(8, 2), plan, total=12, **SETTINGS, **fields)


@pytest.mark.parametrize("name", PLANS)
def test_a_record_teaches_what_the_live_teacher_does(name: str, tmp_path: Path) -> None:
    """To the precision of sixteen bits, loss by loss and weight by weight."""
    live = host(PLANS[name]())
    plan = recorded.plan(made(tmp_path, PLANS[name]()), of=PLANS[name]())
    again = host(plan)
    assert plan.name == PLANS[name]().name and [s.steps for s in plan.stages] == [s.steps for s in PLANS[name]().stages]
    optimisers = [torch.optim.SGD(d.parameters(), 0.01) for d in (live, again)]
    for step in range(12):
        rows = torch.randperm(ROWS, generator=seeding.generator(step, "rows"))[:8]
        told = [live(X[rows], Y[rows], step), again(X[rows], Y[rows], step, rows)]
        torch.testing.assert_close(told[1], told[0], rtol=3e-3, atol=3e-4)
        for optimiser, loss in zip(optimisers, told, strict=True):
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    for (name, one), two in zip(live.named_parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(two, one, rtol=1e-2, atol=1e-3, msg=name)


def test_no_teacher_is_in_memory(tmp_path: Path) -> None:
    teacher = network(16, 1)
    plan, gone = curriculum.extracted(teacher, [(AT, AT)], 3), weakref.ref(teacher)
    made(tmp_path, plan)
    live = host(plan)
    del teacher, plan
    gc.collect()
    assert gone() is not None
    del live
    again = host(recorded.plan(tmp_path))
    gc.collect()
    assert gone() is None and again(X[:8], Y[:8], 0, range(8)) > 0


def lumped(student: nn.Module, top_k: int, heat: float) -> torch.Tensor:
    """The divergence of the teacher's likeliest classes and the rest, where something is asked, written out."""
    p, q = (n(X)[Y != IGNORE].div(heat).log_softmax(-1) for n in (TEACHER, student))
    top, parts = p.topk(top_k, -1).indices, []
    for logs in (p, q):
        kept = logs.gather(-1, top).exp()
        parts.append(torch.cat([kept, 1 - kept.sum(-1, keepdim=True)], -1))
    return heat**2 * (parts[0] * (parts[0] / parts[1]).log()).sum(-1).mean()


@pytest.mark.parametrize("top_k", [4, 12])
def test_the_likeliest_classes_and_the_rest_bound_the_divergence(top_k: int, tmp_path: Path) -> None:
    """Lumping classes together loses divergence, never gains; the more are kept, the less; at the teacher it is 0."""
    plan = curriculum.one_shot(TEACHER)
    again = host(recorded.plan(made(tmp_path, plan, top_k=top_k)))
    whole, some = host(plan)(X, Y, 0), again(X, Y, 0, range(ROWS))
    torch.testing.assert_close(some, lumped(again.student, top_k, 1.0), rtol=5e-3, atol=1e-5)
    assert 0 < some < whole
    twin = Distiller(network(16, 1), recorded.plan(tmp_path), total=12, **SETTINGS)
    assert twin(X, Y, 0, range(ROWS)).abs() < 1e-4
    hot = made(tmp_path / "hot", Curriculum("hot", (Stage(Output(TEACHER, 3.0, 3.0)),)), top_k=top_k)
    torch.testing.assert_close(
        host(recorded.plan(hot))(X, Y, 0, range(ROWS)), lumped(again.student, top_k, 3.0), rtol=5e-3, atol=1e-5
    )


def test_classes_lumped_together_have_the_gradient_of_their_parts() -> None:
    logits = torch.randn(3, 4, 9, dtype=torch.double, generator=seeding.generator(0, "logits")).requires_grad_()
    ids = logits.topk(3, -1).indices
    rest = logits.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    torch.testing.assert_close(recorded._Lumped.apply(logits, ids), torch.cat([logits.gather(-1, ids), rest], -1))
    assert torch.autograd.gradcheck(lambda z: recorded._Lumped.apply(z, ids), (logits,))


class Failing(list):
    """Rows of which one cannot be read, as when the machine is switched off there."""

    def __getitem__(self, row: int) -> Any:
        if row == 35:
            raise KeyboardInterrupt
        return super().__getitem__(row)


def test_a_record_that_was_stopped_goes_on_and_is_the_same(tmp_path: Path) -> None:
    plan = PLANS["extraction"]()
    whole = made(tmp_path / "whole", plan)
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "part", plan, Failing(ROWS_OF))
    with pytest.raises(ValueError, match="holds 32 of 40 rows: call record again"):
        recorded.plan(tmp_path / "part")
    first = tmp_path / "part" / "0000000000.safetensors"
    before = first.stat().st_mtime_ns
    made(tmp_path / "part", plan)
    assert first.stat().st_mtime_ns == before
    files = sorted(path.name for path in whole.iterdir())
    assert files == sorted(path.name for path in (tmp_path / "part").iterdir())
    for name in files:
        assert (whole / name).read_bytes() == (tmp_path / "part" / name).read_bytes(), name


def test_the_teacher_runs_once_a_batch(tmp_path: Path) -> None:
    teacher, calls = network(16, 1), []
    made(tmp_path / "0", curriculum.extracted(teacher, [(AT, AT), ("blocks.1", "blocks.1")], 3))
    teacher.register_forward_pre_hook(lambda *_: calls.append(1))
    plan = curriculum.extracted(teacher, [(AT, AT), ("blocks.1", "blocks.1")], 3)
    counts = []
    for shard in (40, 20):  # 4 batches of 10 rows each
        calls.clear()
        made(tmp_path / str(shard), plan, batch=10, shard=shard)
        counts.append(len(calls))
    calls.clear()
    made(tmp_path / "more", plan, ROWS_OF * 2, batch=10, shard=40)
    assert len(calls) - counts[0] == 4 and counts[0] == counts[1]


def test_hidden_targets_are_as_wide_as_the_student(tmp_path: Path) -> None:
    plan = made(tmp_path, PLANS["extraction"](), top_k=8)
    shard = recorded.shards.Targets(plan, recorded.shards.read(plan)).shard(0)
    assert shard["t0/values"].shape == (16, LENGTH, 8) and shard["t0/values"].dtype == torch.float16
    assert shard["t2/ids"].shape == (16, LENGTH, 8) and shard["t2/log_p"].shape == (16, LENGTH, 9)
    bytes_a_token = sum(v[0, 0].numel() * v.element_size() for k, v in shard.items() if v.dim() == 3)
    assert bytes_a_token == 2 * 8 * 2 + 8 * 2 + 9 * 2


def refused(action: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        action()
    assert "\n" not in str(caught.value)


def test_what_is_refused_with_one_clear_line(tmp_path: Path) -> None:
    plan = PLANS["extraction"]
    folder = made(tmp_path / "record", plan())
    another = partial(curriculum.extracted, network(16, 5), [(AT, AT), ("blocks.1", "blocks.1")], 3)
    told = "has targets of another plan, teacher or data set: "
    refused(lambda: made(folder, another()), told + "t0: about: ")
    refused(lambda: recorded.plan(folder, of=another()), told + "t0: ")
    refused(lambda: recorded.plan(folder, of=PLANS["joint"]()), told)
    refused(lambda: made(folder, plan(), ROWS_OF[:30]), told + "40, not 30")
    refused(lambda: made(folder, plan(), calibration=X[16:32]), told)
    refused(lambda: made(folder, plan(), seed=1), told)
    refused(lambda: recorded.plan(tmp_path), "holds no recorded targets: there is no about.json")
    for wrong in ({"top_k": 0}, {"top_k": -1}, {"top_k": 2.5}, {"vocabulary": 0}, {"vocabulary": -1}):
        refused(lambda wrong=wrong: made(tmp_path / "wrong", plan(), **wrong), f"{next(iter(wrong))} must be")

    again, rows = host(recorded.plan(folder)), torch.arange(8)
    refused(lambda: again(X[:8], Y[:8], 0), "a recorded plan needs rows=")
    refused(lambda: again(X[:8], Y[:8], 0, rows + 1), "row 1 is not what was recorded: its inputs have changed")
    refused(lambda: again(X[:8], Y[:8], 0, rows + 33), "row 40 was not recorded: there are 40")
    refused(lambda: again(X[:8], Y[:8], 0, rows[:7]), "a batch of 8 samples needs as many rows, not 7")
    wide = partial(Distiller, network(12, 2), total=12, **SETTINGS)
    refused(
        lambda: wide(recorded.plan(folder)), "'blocks.0' of the student is 12 wide, the targets were recorded for 8"
    )

    refused(lambda: host(recorded.plan(folder), mask="kept"), "mask is 'kept', and the targets were recorded with None")
    refused(lambda: host(recorded.plan(folder), units={AT: 1}), "units is {'blocks.0': 1}, and the targets were")
    masked = made(tmp_path / "masked", plan(), mask=known)
    assert host(recorded.plan(masked), mask=known)(X[:8], Y[:8], 0, rows) == host(recorded.plan(masked))(
        X[:8], Y[:8], 0, rows
    )
    refused(lambda: host(recorded.plan(masked), mask="kept"), "recorded with known .*: leave mask to the record")

    path = folder / "0000000000.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    refused(lambda: host(recorded.plan(folder)), "is missing or damaged: call record again, which writes it anew")
    made(folder, plan())
    assert host(recorded.plan(folder))(X[:8], Y[:8], 0, rows) == again(X[:8], Y[:8], 0, rows)


@pytest.mark.parametrize("signal", [
    Hidden(TEACHER, AT, AT, redraw=True), Output(TEACHER, share=0.5), Shuffled(Regressed(TEACHER, AT, AT)),
])  # fmt: skip
def test_what_changes_while_the_student_learns_is_not_recorded(signal: Any, tmp_path: Path) -> None:
    refused(lambda: made(tmp_path, Curriculum("no", (Stage(signal),))), "cannot be recorded")


def test_a_resume_under_other_targets_is_refused(tmp_path: Path) -> None:
    one = host(recorded.plan(made(tmp_path / "1", PLANS["extraction"]())))
    two = host(recorded.plan(made(tmp_path / "2", PLANS["extraction"](), top_k=4)))
    refused(lambda: two.load_state_dict(one.state_dict()), "the saved state is of another curriculum")
    about = json.loads((tmp_path / "1" / "about.json").read_text())
    assert about["rows"] == ROWS and set(about["shards"]) == {f"{n:010d}.safetensors" for n in (0, 16, 32)}


def test_labels_that_ask_elsewhere_are_not_what_was_recorded(tmp_path: Path) -> None:
    again = host(recorded.plan(made(tmp_path, PLANS["asked"]())))
    again(X[:8], Y[:8], 0, torch.arange(8))
    with pytest.raises(ValueError, match="the labels ask at other positions than when it was recorded"):
        again(X[:8], torch.where(Y[:8] == IGNORE, 1, IGNORE), 0, torch.arange(8))


def test_sums_tell_imaginary_parts_and_what_is_no_tensor() -> None:
    x = torch.randn(1, 3, 4, dtype=torch.complex64)
    for other in (x.conj().resolve_conj(), x * 2):
        assert not (shards.sums(x) == shards.sums(other)).any()
    named = [shards.sums({"x": x.real, **more}) for more in ({}, {"scale": 1.0}, {"scale": 2.0})]
    assert len({tuple(one.tolist()) for one in named}) == 3


def test_sums_tell_lists_and_single_numbers() -> None:
    x = torch.arange(12.0).view(1, 4, 3)
    batches: list[dict[str, Any]] = [
        {}, {"a": [1.0]}, {"a": [50.0]}, {"a": [1.0, 2.0]}, {"a": [2.0, 1.0]}, {"a": {"b": 1.0}},
        {"a": torch.tensor([2.0])}, {"a": torch.tensor([3.0])}, {"b": torch.tensor([3.0])}, {"a": 1.0}, {"a": "1.0"},
    ]  # fmt: skip
    found = [tuple(shards.sums({"x": x, **batch}).tolist()) for batch in batches]
    assert len(set(found)) == len(batches)
    names = ["a", "b", "a", "c"]  # as default_collate leaves texts: one a sample, in whatever batch
    whole = shards.sums({"x": x, "name": names})
    for i, name in enumerate(names):
        assert shards.sums({"x": x[:, i : i + 1], "name": [name]}) == whole[i]


def test_lists_inside_an_entry_are_a_samples_own() -> None:
    x, names = torch.arange(12.0).view(1, 4, 3), ["a", "b", "a", "c"]
    whole = shards.sums({"x": x, "meta": {"names": names, "kind": "k"}})
    for i, name in enumerate(names):
        assert shards.sums({"x": x[:, i : i + 1], "meta": {"names": [name], "kind": "k"}}) == whole[i]
    assert not set(whole.tolist()) & set(shards.sums({"x": x, "meta": {"names": names, "kind": "l"}}).tolist())


def test_entries_without_samples_first_are_named() -> None:
    batch = {"cache_position": torch.arange(12)[None], "ids": torch.zeros(1, 64, 12, dtype=torch.long)}
    refused(
        lambda: shards.sums(batch), "every entry of a batch needs its samples first.*'cache_position' has 12, 'ids'"
    )
    shared = {"a": torch.arange(12)[None, None], "ids": batch["ids"]}  # one row for all samples, as of positions
    assert len(shards.sums(shared)) == 64


def test_numbers_of_numpy_are_written(tmp_path: Path) -> None:
    heat = np.float32(2.0)
    made(tmp_path, Curriculum("numpy", (Stage(Output(TEACHER, heat, heat), np.int64(20)), Stage(Output(TEACHER)))))
    assert [stage.steps for stage in recorded.plan(tmp_path).stages] == [20, None]


@pytest.mark.parametrize("content", ["{", "[]", "3"])
def test_a_damaged_record_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / shards.ABOUT).write_text(content)
    refused(lambda: recorded.plan(tmp_path), "is damaged .*: record anew|was recorded by another version")


def test_a_teacher_that_overflows_is_not_recorded(tmp_path: Path) -> None:
    class Overflowing(Transformer):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).masked_fill((x == X[30, 0]).any(-1)[:, None, None], torch.nan)

    plan = curriculum.one_shot(Overflowing(WORDS, 8, 1, 2, LENGTH))
    refused(
        lambda: made(tmp_path, plan), "output of final teacher is not finite at sample . of seed number 0 of a batch"
    )


def test_asked_needs_labels_of_the_calibration(tmp_path: Path) -> None:
    refused(lambda: made(tmp_path, PLANS["asked"](), calibration_labels=None), "needs .*: give calibration_labels")
    refused(lambda: Distiller(network(8, 2), PLANS["asked"](), total=9, calibration=X), "give calibration_labels")


def test_another_seed_than_the_records_is_told(tmp_path: Path) -> None:
    plan = recorded.plan(made(tmp_path, PLANS["extraction"](), seed=3))
    with pytest.warns(UserWarning, match="projections are those of the record, of seed 3, whatever seed=0 says"):
        host(plan)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        host(plan, seed=3)
        host(recorded.plan(made(tmp_path / "outputs", PLANS["tempered"](), seed=3)))


@pytest.mark.parametrize("half", [False, True])
def test_a_folder_is_filled_from_one_data_set(half: bool, tmp_path: Path) -> None:
    folder, about = made(tmp_path, PLANS["extraction"]()), tmp_path / shards.ABOUT
    if half:
        told = json.loads(about.read_text())
        del told["shards"]["0000000032.safetensors"]
        about.write_text(json.dumps(told))
    made(folder, PLANS["extraction"]())  # the same rows: it goes on
    with pytest.raises(ValueError, match=r"row 0 is not what .* holds the targets of: record another data set into"):
        made(folder, PLANS["extraction"](), ROWS_OF[::-1])
    with pytest.raises(ValueError, match="row 16 is not what"):  # where the first shard agrees, too
        made(folder, PLANS["extraction"](), [*ROWS_OF[:16], *ROWS_OF[:16:-1], ROWS_OF[0]])


def test_rows_have_numbers(tmp_path: Path) -> None:
    loader = torch.utils.data.DataLoader(ROWS_OF, batch_size=8)
    with pytest.raises(ValueError, match="rows must be a data set that is indexed by numbers, not a DataLoader"):
        made(tmp_path, PLANS["extraction"](), loader)


def test_a_record_of_a_few_positions_is_told(tmp_path: Path) -> None:
    """As of a `Distiller`: who trains from a record has no teacher to look at any more."""

    class First(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(WORDS, width), nn.Linear(width, WORDS)
            self.layer = nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first = (torch.arange(LENGTH) == 0).float()
            return self.head(self.layer(self.embed(x) + 100 * first[:, None]))

    with seeding.global_rng(0, "init"):
        teacher, student = First(16), First(8)
    plan = curriculum.extracted(teacher, [("layer", "layer")], 3)
    with pytest.warns(UserWarning, match="of the variance of 'layer' of final teacher is that of 16 of 96 positions"):
        recorded.record(plan, student, ROWS_OF, tmp_path, **SETTINGS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": []}, "rows are empty"),
        ({"rows": "rows"}, "rows must be a data set that is indexed by numbers, not a str"),
        ({"rows": {"a": 1}}, "rows must be a data set that is indexed by numbers, not a dict"),
        ({"plan": [Output(nn.Linear(4, 3))]}, "the plan must be a Curriculum, .* not a list"),
    ],
)
def test_arguments_of_a_record_that_are_something_else(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    plan, rows = curriculum.one_shot(nn.Linear(4, 3)), [torch.randn(4) for _ in range(4)]
    given = {"plan": plan, "student": nn.Linear(4, 3), "rows": rows, "calibration": torch.randn(8, 4)}
    with pytest.raises(ValueError, match=message):
        recorded.record(**(given | changes), folder=tmp_path)


def test_padding_that_a_record_leaves_out_is_not_warned_of(tmp_path: Path) -> None:
    class Masked(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(WORDS, width), nn.Linear(width, WORDS)

        def forward(self, ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.head(self.embed(ids))

    ids = torch.arange(8 * LENGTH).view(8, LENGTH) % WORDS
    marks = (torch.arange(LENGTH) < LENGTH - 2).long().expand_as(ids)
    rows, both = [{"ids": i, "attention_mask": m} for i, m in zip(ids, marks, strict=True)], {"calibration": None}
    both["calibration"] = {"ids": ids, "attention_mask": marks}
    recorded.record(curriculum.one_shot(Masked(8)), Masked(4), rows, tmp_path, mask="attention_mask", **both)
    distiller = Distiller(Masked(4), recorded.plan(tmp_path), total=4, **both)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        distiller(both["calibration"], None, 0, torch.arange(8))


class Tokens(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(WORDS, width), nn.Linear(width, WORDS)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.head(torch.tanh(self.embed(input_ids)))


@pytest.mark.parametrize("labelled", [True, False])
def test_a_record_of_rows_with_labels_leaves_padding_out_of_steps_without_them(labelled: bool, tmp_path: Path) -> None:
    generator = seeding.generator(3, "rows")
    ids = torch.randint(1, WORDS, (16, LENGTH), generator=generator)
    mask = (torch.arange(LENGTH) < torch.randint(2, LENGTH, (16, 1), generator=generator)).long()
    batch = {"input_ids": ids * mask, "attention_mask": mask}
    asked = ids.masked_fill(mask == 0, IGNORE)
    rows = [{name: entry[i] for name, entry in batch.items()} | ({"labels": asked[i]} if labelled else {})
            for i in range(16)]  # fmt: skip
    with seeding.global_rng(0, "init"):
        teacher, student = Tokens(16), Tokens(8)
    plan, fields = curriculum.one_shot(teacher), {"calibration": batch, "mask": "attention_mask"}
    recorded.record(plan, student, rows, tmp_path, top_k=None, **fields)
    kept = Distiller(student, recorded.plan(tmp_path), total=9, calibration=batch)
    live = Distiller(student, plan, total=9, **fields)
    for y in (None, asked):
        torch.testing.assert_close(kept(batch, y, 0, range(16)), live(batch, y, 0), rtol=1e-3, atol=1e-5)


def test_a_record_that_lost_its_mask_asks_for_labels(tmp_path: Path) -> None:
    ids = torch.stack([row for row, _ in ROWS_OF])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    rows = [{name: entry[i] for name, entry in batch.items()} for i in range(ROWS)]
    with seeding.global_rng(0, "init"):
        teacher, student = Tokens(16), Tokens(8)
    recorded.record(curriculum.one_shot(teacher), student, rows, tmp_path, calibration=batch, mask="attention_mask")
    kept = Distiller(student, recorded.plan(tmp_path), total=9, calibration=batch)
    targets = kept.plan.stages[0].signal.targets
    get = targets.get
    lost = lambda *args: {name: part for name, part in get(*args).items() if name != "mask"}  # noqa: E731
    object.__setattr__(targets, "get", lost)
    with pytest.raises(ValueError, match="has no mask of its outputs: give labels"):
        kept(batch, None, 0, range(ROWS))
