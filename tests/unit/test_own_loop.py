"""What goes wrong in a loop of one's own without an error is mended, told of, or refused with one clear line."""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from kdutils import curriculum, losses, reading, seeding
from kdutils.curriculum import Curriculum, Stage
from kdutils.distiller import Distiller
from kdutils.lab.ensemble import Ensemble
from kdutils.lab.training import train
from kdutils.signals import Bound, Hidden, Labels, Output, WeightedSum
from kdutils.tasks.parity import SparseParity

WORDS, LENGTH = 12, 8


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=seeding.generator(seed, "inputs"))


def built(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with seeding.global_rng(seed, "init"):
        return make()


def small(width: int = 6, seed: int = 0, dropout: float = 0.0) -> nn.Module:
    return built(lambda: nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Dropout(dropout), nn.Linear(width, 3)), seed)


X, Y = draw(32, 4), torch.arange(32) % 3


def host(student: nn.Module, *stages: Stage | Any, total: int = 12, **fields: Any) -> Distiller:
    plan = stages[0] if isinstance(stages[0], Curriculum) else Curriculum("p", tuple(stages))
    return Distiller(student, plan, **{"total": total, "calibration": X, **fields})


def refused(action: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        action()
    assert "\n" not in str(caught.value)


@dataclass(frozen=True)
class Squares:
    """A signal that knows nothing of `students`."""

    teacher: nn.Module

    def bind(self, students: Any, x: Any, y: Any = None) -> Bound:
        def target(x: Any, y: Any) -> torch.Tensor:
            return self.teacher(x.flatten(0, 1)).unflatten(0, x.shape[:2])

        return Bound(("",), target, lambda values, wanted: (values[""] - wanted).square().flatten(1).mean(1))


@dataclass(frozen=True)
class Read:
    """A signal that reads its teacher as those of kdutils do."""

    teacher: nn.Module

    def bind(self, students: Any, x: Any, y: Any = None) -> Bound:
        teacher = students.teacher(self.teacher)

        def target(x: Any, y: Any) -> torch.Tensor:
            return students.read(teacher, x, reading.OUTPUT).argmax(-1)

        def loss(values: dict[str, torch.Tensor], target: torch.Tensor) -> torch.Tensor:
            return losses.mean(losses.cross_entropy(values[reading.OUTPUT], target))

        return Bound((reading.OUTPUT,), target, loss)


@pytest.mark.parametrize("inside", [False, True])
def test_teachers_of_any_signal_are_quiet(inside: bool) -> None:
    teacher = small(16, 1, dropout=0.5).train()
    signal = WeightedSum(((1.0, Labels()), (1.0, Squares(teacher)))) if inside else Squares(teacher)
    distiller = host(small(), Stage(signal))
    assert not teacher.training
    one, two = (distiller(X, Y, step) for step in (0, 1))
    one.backward()
    assert one == two and all(p.grad is None for p in teacher.parameters())
    refused(lambda: host(student := small(), Stage(Squares(student))), "the teacher is the student itself")


@dataclass(frozen=True)
class Adapted(Squares):
    """Learns a network of its own beside the student, or a part of the student's."""

    adapter: nn.Module

    def bind(self, students: Any, x: Any, y: Any = None) -> Bound:
        bound = super().bind(students, x, y)
        learned = {
            name: p for name, p in self.adapter.named_parameters() if p not in set(students.skeleton.parameters())
        }
        return Bound(bound.reads, bound.target, lambda v, w: bound.loss({"": self.adapter(v[""])}, w), learned)


def test_networks_that_a_signal_trains_are_no_teachers() -> None:
    teacher, student = small(16, 1).train(), small()
    adapter = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))
    host(student, Stage(Adapted(teacher, adapter)))
    assert adapter.training and not teacher.training
    shared = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3))
    host(shared, Stage(Adapted(teacher, shared[1])))(X, Y, 0).backward()
    assert shared[1].weight.grad is not None and shared[1].training


@dataclass(eq=False)
class Fielded(nn.Module):
    width: int

    def __post_init__(self) -> None:
        super().__init__()
        self.net = small(self.width)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"last_hidden_state": self.net(x)}


def test_networks_of_ones_own_may_be_dataclasses_and_name_their_outputs() -> None:
    teacher = Fielded(16)
    with torch.no_grad():
        teacher.net[0].weight.mul_(2)
    student = Fielded(6)
    loss = host(student, curriculum.one_shot(teacher))(X, None, 0)
    wanted = losses.distillation_loss(*(network(X)["last_hidden_state"] for network in (student, teacher)))
    torch.testing.assert_close(loss, wanted)


def test_a_mask_of_samples_leaves_samples_out() -> None:
    class Kept(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.net = small(width)

        def forward(self, x: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
            return self.net(x)

    student, teacher, keep = Kept(6), Kept(16), torch.arange(32) % 2 == 0
    plan = Curriculum("p", (Stage(Hidden(teacher, "net.1", "net.1")),))
    for mask in ("keep", lambda batch: batch["keep"]):
        distiller = host(student, plan, calibration={"x": X, "keep": keep}, mask=mask)
        one, two = (
            distiller({"x": torch.where(keep[:, None], X, by * X), "keep": keep}, None, step)
            for step, by in enumerate((1, 100))
        )
        torch.testing.assert_close(one, two)


def test_a_signal_of_ones_own_reads_mappings() -> None:
    class Named(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.net = small(width)

        def forward(self, features: torch.Tensor, scale: float = 1.0) -> dict[str, torch.Tensor]:
            return {"logits": self.net(scale * features)}

    teacher, student = Named(16), Named(6)
    batch = {"features": X, "scale": 0.5}
    loss = host(student, Stage(Read(teacher)), calibration=batch)(batch, None, 0)
    wanted = teacher(**batch)["logits"].argmax(-1)
    torch.testing.assert_close(loss, nn.functional.cross_entropy(student(**batch)["logits"], wanted))


def test_a_plan_of_ones_own_is_the_usual_loss() -> None:
    """0.5 times the cross-entropy of labels, 0.5 T^2 times the divergence at temperature T (Hinton et al., 2015)."""
    teacher, student, heat = small(16, 1), small(), 4.0
    both = WeightedSum(((0.5, Labels()), (0.5, Output(teacher, heat, heat))))
    soft = [(network(X) / heat).log_softmax(-1) for network in (student, teacher)]
    divergence = nn.functional.kl_div(*soft, log_target=True, reduction="batchmean")
    wanted = 0.5 * nn.functional.cross_entropy(student(X), Y) + 0.5 * heat**2 * divergence
    torch.testing.assert_close(host(student, Stage(both))(X, Y, 0), wanted)
    one_sided = host(student, curriculum.one_shot(teacher, heat))(X, Y, 0)
    assert not torch.isclose(one_sided, heat**2 * divergence, rtol=0.1)  # tempers the teacher alone


def test_only_names_modules_and_parameters() -> None:
    student = nn.Sequential(*(nn.Linear(4, 4) for _ in range(11)), nn.Linear(4, 3))
    for only, moved in {"1": {"1.weight", "1.bias"}, "10.weight": {"10.weight"}}.items():
        student.zero_grad()
        host(student, Stage(Labels(), only=only))(X, Y, 0).backward()
        assert {name for name, p in student.named_parameters() if p.grad is not None} == moved
    refused(
        lambda: host(student, Stage(Labels(), only="1.wei")),
        r"only=\('1.wei',\) names no parameter .* near it are \['1.weight'",
    )
    tied = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    tied[2].weight = tied[0].weight
    refused(lambda: host(tied, Stage(Labels(), only="2.weight")), "'2.weight' is tied to '0.weight', so name that")


def test_a_training_may_be_made_longer_while_its_last_stage_is_open() -> None:
    teacher = small(16, 1)

    def made(total: int, first: int = 4, last: int | None = None) -> Distiller:
        stages = Stage(Hidden(teacher, "1", "1"), first), Stage(Output(teacher), last)
        return host(small(), *stages, total=total)

    short, long = made(10), made(20)
    short(X, None, 9)
    long.load_state_dict(short.state_dict())
    assert long.step == 9 and long(X, None, long.step + 1) == short(X, None, 9)
    refused(lambda: made(20, first=5).load_state_dict(short.state_dict()), "of another curriculum: .4 steps of Hidden")
    refused(lambda: made(10, last=6).load_state_dict(short.state_dict()), "of another curriculum: .all later steps of")
    refused(lambda: short(X, None, 10), r"step 10 is out of range: .* 0 to 9 \(the training is finished\)")
    refused(lambda: short(X, None, 11), "has steps 0 to 9$")


def test_a_stage_has_a_loss_on_held_out_data() -> None:
    class Batched(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.first, self.norm = nn.Linear(4, width), nn.BatchNorm1d(width)
            self.drop, self.head = nn.Dropout(0.5), nn.Linear(width, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.drop(self.norm(self.first(x))))

    student, teacher = built(lambda: Batched(6)), built(lambda: Batched(16), 1)
    redrawn = Hidden(teacher, "first", "norm", redraw=True)
    distiller = host(student, Stage(redrawn, 3), Stage(Output(teacher), 3), Stage(Labels()))
    for step in (0, 1, 7):
        distiller(X, Y, step)
    before, kept = copy.deepcopy(distiller.state_dict()), seeding.global_state()
    student.norm.eval()
    for step in (0, 4, 8, 0):
        assert not distiller.evaluate(X, Y, step).requires_grad
    modes = [module.training for module in (student, student.norm, student.drop)]
    assert modes == [True, False, True] and distiller.step == 7 and seeding.global_state() == kept
    assert all(torch.equal(value, before[name]) for name, value in distiller.state_dict().items())
    student.eval()
    told = [distiller.evaluate(X, Y, step) for step in (4, 8)]
    p = teacher(X).log_softmax(-1)
    wanted = nn.functional.kl_div(student(X).log_softmax(-1), p, log_target=True, reduction="batchmean")
    torch.testing.assert_close(told[0], wanted)
    torch.testing.assert_close(told[1], nn.functional.cross_entropy(student(X), Y))
    assert distiller.evaluate(X, Y, 0) == distiller.evaluate(X, Y, 0) and not student.training
    refused(lambda: distiller.evaluate(X, Y, 12), "step 12 is out of range")


class Language(nn.Module):
    """Two blocks, a pooler, and an output for each position; the first position may tower above the others."""

    def __init__(self, width: int, tower: float = 0.0) -> None:
        super().__init__()
        self.embed, self.block, self.pooler = nn.Embedding(WORDS, width), nn.Linear(width, width), nn.Tanh()
        self.tower, self.after, self.head = tower, nn.Identity(), nn.Linear(width, WORDS)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        h = self.block(self.embed(input_ids))
        first = (torch.arange(input_ids.shape[1]) == 0).float()
        h = self.after(h + self.tower * first[:, None])
        return self.head(h + self.pooler(h[:, :1]).mean(1, keepdim=True))


class Pooled(Language):
    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        h = self.after(self.block(self.embed(input_ids)))
        return self.head(self.pooler(h[:, 0]))


def tokens(padding: int = 0) -> dict[str, torch.Tensor]:
    ids = torch.randint(0, WORDS, (16, LENGTH), generator=seeding.generator(0, "ids"))
    marks = torch.ones_like(ids)
    marks[:, LENGTH - padding :] = 0
    return {"input_ids": ids, "attention_mask": marks}


def warned(action: Callable[[], Any]) -> list[warnings.WarningMessage]:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        action()
    return said


def test_padding_that_counts_is_told_once() -> None:
    teacher = built(lambda: Language(16), 1)
    plan = curriculum.extracted(teacher, [("after", "after")], 4)

    def steps(distiller: Distiller, batch: dict[str, torch.Tensor], labels: Any = None) -> None:
        for step in (0, 1, 5, 6):
            distiller(batch, labels, step)

    def found(batch: dict[str, torch.Tensor], plan: Curriculum = plan, labels: Any = None, **fields: Any) -> list[str]:
        distiller = host(built(lambda: Language(6)), plan, calibration=batch, **fields)
        return [str(one.message) for one in warned(lambda: steps(distiller, batch, labels))]

    (told,) = found(tokens(3))
    assert told.startswith("the batch has padding, and no mask says that it does not count: say mask='attention_mask'")
    assert found(tokens(0)) == found(tokens(3), mask="attention_mask") == []
    outputs, y = curriculum.one_shot(teacher), torch.ones(16, LENGTH, dtype=torch.long)
    assert len(found(tokens(3), outputs)) == 1 and found(tokens(3), outputs, y) == []
    pooled = host(built(lambda: Pooled(6)), Stage(Hidden(built(lambda: Pooled(16), 1), "pooler", "pooler")),
                  calibration=tokens(3))  # fmt: skip
    assert not warned(lambda: pooled(tokens(3), None, 0)), "the layer has no positions"
    distiller = host(built(lambda: Language(6)), plan, calibration=tokens(3))
    assert [len(warned(lambda: distiller.evaluate(tokens(3), None, 0))) for _ in range(2)] == [1, 1]
    assert len(warned(lambda: steps(distiller, tokens(3)))) == 1, "evaluating changes nothing"


def after_first(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    marks = batch["attention_mask"].clone()
    marks[..., 0] = 0
    return marks


def test_a_target_of_a_few_positions_is_told() -> None:
    teacher = built(lambda: Language(16, tower=300.0), 1)

    def found(path: str = "after", **fields: Any) -> list[str]:
        return said_of(curriculum.extracted(teacher, [(path, path)], 4, **fields))

    def said_of(plan: Curriculum) -> list[str]:
        said = warned(lambda: host(built(lambda: Language(6)), plan, calibration=tokens()))
        return [str(one.message) for one in said]

    (told,) = found()
    assert "of the variance of 'after' of final teacher is that of 16 of 128 positions" in told
    assert "normalise='position'" in told and "each row's first" in told
    (learned,) = said_of(curriculum.fitnets(teacher, "after", "after", 4))
    assert "normalise" not in learned and "leave such positions out" in learned
    assert found("block") == found(normalise="position") == found(positions=after_first) == []


def test_a_layer_without_positions_needs_no_mask() -> None:
    teacher, student, batch = built(lambda: Pooled(16), 1), built(lambda: Pooled(6)), tokens(3)
    stages = Stage(Hidden(teacher, "after", "after"), 2), Stage(Hidden(teacher, "pooler", "pooler"))
    masked = host(student, *stages, calibration=batch, mask="attention_mask")
    free = host(student, *stages, calibration=batch, mask=lambda batch: torch.ones_like(batch["input_ids"]))
    assert masked(batch, None, 5) == free(batch, None, 5)
    assert masked(batch, None, 0) != free(batch, None, 0)


def test_warnings_name_the_readers_own_line() -> None:
    ids = torch.randint(0, WORDS, (4, LENGTH))
    language = host(built(lambda: Language(6)), curriculum.from_labels(), calibration=ids)
    learned = host(small(), curriculum.fitnets(small(16, 1), "1", "1", 30), total=40)
    twice = curriculum.progressive({"100": (teacher := small(16, 1))}, teacher, 2)
    for action in (
        lambda: language(ids, ids, 0),
        lambda: [learned(X, None, step) for step in range(25)],
        lambda: host(small(), twice),
    ):
        (said,) = warned(action)
        assert said.filename == __file__, said.message


def test_what_is_refused_with_one_clear_line() -> None:
    teacher, whole = small(16, 1), host(small(), curriculum.from_labels())
    ids, few = torch.full((4, LENGTH), WORDS - 1), nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, WORDS))
    for action, message in [
        (lambda: host(whole, curriculum.from_labels()), "not a Distiller around it: give its `student`"),
        (lambda: host(small(), Stage(teacher)), "stage 1 matches a Sequential, which is no signal: say Output"),
        (lambda: host(small(), Stage(Labels)), "stage 1 matches Labels, which is no signal"),
        (lambda: host(small(), Stage(WeightedSum((Labels(), Output(teacher))))), r"needs pairs \(weight, signal\)"),
        (
            lambda: host(small(), curriculum.joint(teacher, float("nan"), "1", "1")),
            "stage 1: a weight .* finite number",
        ),
        (lambda: Hidden(teacher, "1", "1", scale=float("nan")), "scale must be a finite number above 0, not nan"),
        (lambda: whole(X, Y + 1, 0), "label 3 is none of the student's classes, 0 to 2"),
        (lambda: whole(X[:0], Y[:0], 0), "the batch is empty: it has no samples"),
        (lambda: whole({1, 2}, Y, 0), "the batch must be a tensor, a mapping .* or a tuple, not a set"),
        (lambda: host(small(), curriculum.from_labels(), calibration=None), "the calibration must be a tensor"),
        (lambda: host(built(lambda: Language(6)), curriculum.one_shot(few), calibration=ids), "as many ids"),
    ]:
        refused(action, message)


def test_a_student_that_holds_its_teachers_numbers_is_refused() -> None:
    """Under another Parameter, too: training it would change the teacher."""
    teacher = small()
    shared, started = small(seed=1), small(seed=1)
    shared[0].weight = nn.Parameter(teacher[0].weight.detach())
    started[0].weight = nn.Parameter(teacher[0].weight.detach().clone())
    with pytest.raises(ValueError, match=r"teacher and student share '0.weight': give the student copies"):
        host(shared, Stage(Output(teacher)))
    host(started, Stage(Output(teacher)))
    shared[0].weight.requires_grad_(False)
    host(shared, Stage(Output(teacher)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("seed", range(3))
def test_probabilities_of_any_precision_are_refused(dtype: torch.dtype, seed: int) -> None:
    x = draw(16, 4, seed=seed)
    teacher = nn.Sequential(built(lambda: nn.Linear(4, 40), seed), nn.Softmax(-1)).to(dtype)
    with pytest.raises(ValueError, match="the teacher's outputs are probabilities"):
        host(nn.Linear(4, 40), Stage(Output(teacher)), calibration=x)
    host(nn.Linear(4, 40), Stage(Output(teacher[0])), calibration=x)


def test_steps_that_begin_anew_are_told_once() -> None:
    distiller = host(small(), Stage(Hidden(small(8), "0", "0"), 4), Stage(Output(small(8))))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in (0, 0, 1, 2, 5):  # micro-batches share a step, and steps may be left out
            distiller(X, None, step)
        distiller.evaluate(X, None, 1)
    with pytest.warns(UserWarning, match="step 0 comes after step 5.*not anew in each epoch"):
        distiller(X, None, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        distiller(X, None, 1)
        distiller(X, None, 0)
    resumed = host(small(), Stage(Hidden(small(8), "0", "0"), 4), Stage(Output(small(8))))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed(X, None, 3)


def test_every_name_of_only_is_one() -> None:
    with pytest.raises(ValueError, match=r"only=\('layer0',\) names no parameter of the student"):
        host(small(), Stage(Output(small(8)), only=("3", "layer0")))


def test_only_ends_with_a_backward_pass_that_failed() -> None:
    student = small()
    distiller = host(student, Stage(Output(small(8)), only=("3",)))
    loss = distiller(X, Y, 0)

    def fail(_: torch.Tensor) -> None:
        raise RuntimeError("stopped")

    hook = student[3].bias.register_hook(fail)
    with pytest.raises(RuntimeError, match="stopped"):
        loss.backward()
    hook.remove()
    student.zero_grad()
    nn.functional.cross_entropy(student(X), Y).backward()
    assert all(p.grad is not None for p in student.parameters())
    student.zero_grad()
    distiller(X, Y, 1).backward()
    assert [name for name, p in student.named_parameters() if p.grad is not None] == ["3.weight", "3.bias"]


class Whole(nn.Module):
    """Takes a token an entry of `tokens`."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(WORDS, width), nn.Linear(width, WORDS)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.head(self.embed(tokens))


def test_labels_that_are_the_inputs_are_told_whatever_these_are_called() -> None:
    ids = torch.randint(WORDS, (4, LENGTH), generator=seeding.generator(0, "ids"))
    distiller = host(Whole(), curriculum.from_labels(), calibration={"tokens": ids})
    with pytest.warns(UserWarning, match="the labels are the inputs themselves"):
        distiller({"tokens": ids}, ids, 0)
    other = host(Whole(), curriculum.from_labels(), calibration={"tokens": ids})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other({"tokens": ids}, ids.roll(-1, 1), 0)


class Dropped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers, self.head = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)]), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[: 1 if self.training else 2]:
            x = layer(x)
        return self.head(x)


def test_layers_that_no_pass_calls_come_with_advice() -> None:
    with pytest.raises(ValueError, match=r"never called \['layers'\]: name what is in it"):
        host(Dropped(), Stage(Hidden(small(8), "0", "layers")))
    distiller = host(Dropped(), Stage(Hidden(small(8), "0", "layers.1")))
    with pytest.raises(ValueError, match=r"never called \['layers.1'\]: .* set their layerdrop to 0"):
        distiller(X, None, 0)


def test_masks_that_nothing_is_left_of_are_named() -> None:
    ids = torch.randint(WORDS, (4, LENGTH), generator=seeding.generator(0, "ids"))
    batch = {"tokens": ids, "mask": torch.ones_like(ids)}

    def additive(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return (1.0 - batch["mask"].float()) * -1e9

    with pytest.raises(ValueError, match=r"a mask .inverted, or additive.*: nothing counts in a calibration sample"):
        host(Whole(), Stage(Hidden(Whole(8), "embed", "embed")), calibration=batch, mask=additive)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda d: d((X, Y), None, 0),
            TypeError,
            "the teacher, a Sequential, cannot read .*what its forward",
        ),
        (lambda d: d({"foo": X}, None, 0), TypeError, "the teacher, a Sequential, cannot read the batch"),
        (lambda d: d(X, Y.numpy(), 0), ValueError, "stage 1: labels must be a tensor, not a ndarray: torch.as_tensor"),
        (lambda d: d(X, Y.tolist(), 0), ValueError, "stage 1: labels must be a tensor, not a list"),
        (lambda d: d([{"input": X[0]}], None, 0), ValueError, "the batch is a list of rows, each a mapping: collate"),
    ],
)
def test_batches_of_another_kind_are_named(call: Callable[[Distiller], Any], kind: type, message: str) -> None:
    with pytest.raises(kind, match=message):
        call(host(small(), Stage(Output(small(8)))))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t: curriculum.one_shot(t, "4"), "temperatures must be positive, not"),
        (
            lambda t: Output(t, share="0.5"),
            "share of the target must be .* above 0, and 1 at most, not '0.5'",
        ),
        (lambda t: Output(t, share=1.5), "share of the target must be .* above 0, and 1 at most, not 1.5"),
        (lambda t: curriculum.annealed(t, 4, 5), "temperatures must be a list"),
        (lambda t: curriculum.annealed(t, ["a"], 5), "temperatures must be numbers; 'a' is none"),
        (lambda t: curriculum.interpolated(t, 0.5, 5), "shares must be a list"),
        (
            lambda t: curriculum.progressive([t], t, 5),
            "checkpoints must be a mapping, as .'half way': .*, not a list",
        ),
        (lambda t: Hidden(None, "0", "0"), "a teacher must be a torch module, not a NoneType"),
        (lambda t: curriculum.extracted("gpt2"), "a teacher must be a torch module, not a str"),
        (lambda t: Hidden(t, 1, "0"), "a layer is named by its path, such as 'blocks.0', not by 1"),
        (lambda t: Hidden(t, "0", "0", projection="gaussian"), "projection must be one of kdutils.projections"),
        (lambda t: Hidden(t, "0", "0", units="1"), "units is the number of a dimension, such as 1, not '1'"),
        (lambda t: Hidden(t, "0", "0", units=True), "units is the number of a dimension, such as 1, not True"),
        (lambda t: Stage(Output(t), only=3), "only must be paths of parameters or modules, as .'readout',., not 3"),
        (lambda t: Stage(Output(t), only=(3,)), "only must be paths of parameters or modules"),
        (lambda t: host(t, Stage(WeightedSum(()))), "stage 1: a WeightedSum of nothing teaches nothing"),
        (lambda t: host(t, Stage(Labels()), seed=1.5), "seed must be a whole number, not 1.5"),
        (lambda t: host(t, Stage(Labels()), seed=None), "seed must be a whole number, not None"),
        (lambda t: curriculum.paired_blocks(4.0, 2), "numbers of layers must be whole numbers; 4.0 is none"),
    ],
)
def test_arguments_of_plans_that_are_something_else(make: Callable[[nn.Module], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(small())


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = checkpoint(self.second, self.first(x).requires_grad_(), use_reentrant=True)
        return self.head(h)


def test_only_holds_through_a_nested_backward_pass() -> None:
    student = built(Checkpointed)
    distiller = host(student, Stage(Output(small(8)), only=("head",)))
    for step in range(2):
        distiller(X, Y, step).backward()
        assert [n for n, p in student.named_parameters() if p.grad is not None] == ["head.weight", "head.bias"]


@pytest.mark.parametrize("only", ["", ("",), ("", "3"), ("3", "")])
def test_an_empty_name_in_only_is_refused(only: Any) -> None:
    with pytest.raises(ValueError, match=r"only=\('',\) names no parameter"):
        host(small(), Stage(Output(small(8)), only=only))


def test_names_of_only_come_in_any_collection() -> None:
    assert Stage(Labels(), only={"3"}).only == Stage(Labels(), only=dict.fromkeys(["3"])).only == ("3",)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(WORDS, 6), nn.Linear(6, WORDS, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(tokens))


def test_only_may_name_both_ends_of_a_tie() -> None:
    ids = torch.randint(WORDS, (4, LENGTH), generator=seeding.generator(0, "ids"))
    host(Tied(), Stage(Labels(), only=("embed", "head")), calibration=ids)
    with pytest.raises(ValueError, match=r"'head.weight' is tied to 'embed.weight', so name that"):
        host(Tied(), Stage(Labels(), only=("head",)), calibration=ids)


def test_only_of_frozen_parameters_is_refused_in_both_engines() -> None:
    def frozen() -> nn.Module:
        student = small()
        student[0].requires_grad_(False)
        return student

    stage = Stage(Labels(), only=("0",))
    with pytest.raises(ValueError, match=r"only=\('0',\) names frozen parameters alone"):
        host(frozen(), stage)
    task = SparseParity(4, 2)
    with pytest.raises(ValueError, match=r"only=\('0',\) names frozen parameters alone"):
        train(Ensemble(frozen, [0], [0.1]), task, Curriculum("p", (stage,)), steps=2, batch=4, held_out=64)
    host(frozen(), Stage(Labels(), only=("0", "3")))


def test_a_part_of_a_teachers_numbers_is_shared_too() -> None:
    teacher = small(12)
    student = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    student[0].weight = nn.Parameter(teacher[0].weight.detach()[3:9])
    with pytest.raises(ValueError, match=r"teacher and student share '0.weight'"):
        host(student, Stage(Output(teacher)))
    student[0].weight = nn.Parameter(teacher[0].weight.detach()[3:9].clone())
    teacher.register_buffer("started", student[0].weight.detach())
    with pytest.raises(ValueError, match=r"teacher and student share '0.weight'"):
        host(student, Stage(Output(teacher)))
    whole = torch.zeros(24 + 24)
    student[0].weight, teacher.started = nn.Parameter(whole[:24].view(6, 4)), whole[24:]  # beside one another
    host(student, Stage(Output(teacher)))


def test_a_lazy_student_runs_once_built() -> None:
    host(nn.Sequential(nn.LazyLinear(6), nn.Tanh(), nn.LazyLinear(3)), Stage(Output(small(8))))(X, None, 0)


def test_entries_of_labels_shape_are_not_all_inputs() -> None:
    """Types of tokens, a mask, or the text before it was masked may agree with the labels."""

    class Tagger(Whole):
        def forward(self, input_ids: torch.Tensor, token_type_ids: torch.Tensor | None = None) -> torch.Tensor:
            return self.head(self.embed(input_ids))

    ids = torch.randint(1, WORDS, (4, LENGTH), generator=seeding.generator(0, "ids"))
    batch = {"input_ids": ids, "token_type_ids": torch.zeros_like(ids)}
    distiller = host(Tagger(), curriculum.from_labels(), calibration=batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        distiller(batch, torch.zeros_like(ids), 0)


def test_who_goes_back_to_a_saved_state_is_not_warned() -> None:
    stages = Stage(Hidden(small(8), "0", "0"), 4), Stage(Output(small(8)))
    distiller, alone = host(small(), *stages), host(small(), Stage(Output(small(8))))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        distiller(X, None, 1)
        saved = copy.deepcopy(distiller.state_dict())
        distiller(X, None, 5)
        distiller.load_state_dict(saved)
        distiller(X, None, distiller.step + 1)
        with torch.no_grad():
            distiller(X, None, 0)
        alone(X, None, 5)
        alone(X, None, 0)  # there is one stage, whatever the step


def test_numbers_that_tensors_hold_are_numbers() -> None:
    teacher = small(8)
    hot = Output(teacher, torch.tensor(2.0), torch.tensor(2.0), share=torch.tensor(0.5))
    one = host(small(), Stage(hot), seed=torch.tensor(3))(X, None, 0)
    other = host(small(), Stage(Output(teacher, 2.0, 2.0, share=0.5)), seed=3)(X, None, 0)
    assert torch.equal(one, other)


def test_an_error_of_the_teachers_own_code_is_left_as_it_is() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.calls = small(8), 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return self.net(x) if self.calls < 6 else self.helper()

        def helper(self, missing: int) -> None: ...

    distiller = host(small(), Stage(Output(Broken())))
    with pytest.raises(TypeError, match=r"helper\(\) missing 1 required positional argument") as caught:
        for step in range(12):
            distiller(X, None, step)
    assert "cannot read the batch" not in str(caught.value)


@pytest.mark.parametrize("change", [lambda loss: loss / 4, lambda loss: loss.div_(4), lambda loss: loss.add_(1).sum()])
def test_what_is_done_to_a_loss_leaves_only_alone(change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """An operation in place on a view would leave a hook of the loss behind, and FSDP2's own as well."""
    student = small()
    loss = host(student, Stage(Output(small(9, 1)), only=("3",)))(X, None, 0)
    assert not loss._is_view() and loss.shape == ()
    change(loss).backward()
    assert [name for name, p in student.named_parameters() if p.grad is not None] == ["3.weight", "3.bias"]


class Constant(nn.Module):
    """Logits that sum to one by chance."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([5.0, 1.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(x), 2)


def test_a_sample_or_three_that_sum_to_one_are_no_probabilities() -> None:
    student, few = Constant(), small()
    distiller = Distiller(
        student, curriculum.one_shot(few[:3] + nn.Sequential(nn.Linear(6, 2))), total=9, calibration=X
    )
    with torch.no_grad():
        student.logits.copy_(torch.tensor([0.3, 0.7]))
    assert distiller.evaluate(X[:3], None, 0) >= 0
    refused(lambda: distiller.evaluate(X[:4], None, 0), "the student's outputs are probabilities")


def test_arguments_in_another_order_and_masks_that_are_tensors_are_told() -> None:
    refused(lambda: host(small(), Stage(Output(small(9))))(X, 0, Y), "step 'a tensor' is out of range")
    refused(
        lambda: host(small(), Stage(Hidden(small(9), "0", "0")), mask=torch.ones(32, 4)),
        "mask must be the name of an entry of the batch, or a function of it, not a Tensor",
    )
    refused(lambda: host(small(), Stage(Output(nn.LazyLinear(3)))), "the teacher, a LazyLinear, has lazy modules")


class Named(nn.Module):
    """One logit a position, of ids and a mask; with `classes`, so many of a sample."""

    def __init__(self, width: int, classes: int = 0) -> None:
        super().__init__()
        self.embed, self.head, self.classes = nn.Embedding(WORDS, width), nn.Linear(width, classes or 1), classes

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        h = self.embed(ids) * mask[..., None]
        return self.head(h.mean(1)) if self.classes else self.head(h)[..., 0]


def test_labels_that_the_batch_holds_are_told_in_a_plan_of_labels_too() -> None:
    ids = torch.randint(0, WORDS, (8, LENGTH))
    batch = {"ids": ids, "mask": torch.ones_like(ids)}
    distiller = host(Named(6, 3), Stage(Labels()), calibration=batch)
    refused(lambda: distiller(batch | {"labels": Y[:8]}, None, 0), "the batch holds labels: give them beside it")


def test_one_logit_a_position_is_warned_of_where_a_mask_tells() -> None:
    ids = torch.randint(0, WORDS, (8, LENGTH))
    batch = {"ids": ids, "mask": (ids > 2).long()}
    for classes, told in ((0, True), (3, False)):
        student, teacher = built(lambda n=classes: Named(6, n)), built(lambda n=classes: Named(9, n), 1)
        distiller = host(student, Stage(Output(teacher)), calibration=batch, mask="mask")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            distiller(batch, None, 0), distiller(batch, None, 1)
        assert [str(w.message).split(": ")[-1] for w in caught] == [
            "if they are one logit a position, match them by a signal of your own"
        ] * told


def test_building_leaves_buffers_of_observers_as_they_were() -> None:
    student = small().train()
    student.qconfig = torch.ao.quantization.get_default_qat_qconfig("x86")
    student = torch.ao.quantization.prepare_qat(student)
    student(X)
    before = {name: buffer.clone() for name, buffer in student.named_buffers()}
    Distiller(student, curriculum.one_shot(small(9)), total=9, calibration=50 * X)
    assert before and all(torch.equal(buffer, before[name]) for name, buffer in student.named_buffers())


def test_a_teacher_that_moves_is_known_by_its_first_weights() -> None:
    student, plan = small(), lambda mean: Stage(WeightedSum(((1.0, Labels()), (1.0, Output(mean)))))
    mean = copy.deepcopy(student)
    first, distiller = copy.deepcopy(mean), host(student, plan(mean))
    with torch.no_grad():
        for p in mean.parameters():
            p.mul_(0.9)
    saved, again = distiller.state_dict(), small(seed=5)
    with pytest.raises(ValueError, match="of another curriculum"):
        host(again, plan(copy.deepcopy(mean))).load_state_dict(saved)
    resumed = host(again, plan(first))
    resumed.load_state_dict(saved)
    first.load_state_dict(mean.state_dict())
    torch.testing.assert_close(resumed(X, Y, 3), distiller(X, Y, 3))
