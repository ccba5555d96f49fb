"""What `train` and `Ensemble` refuse, what they say, and tasks that are judged by a number of their own."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from kdutils import curriculum, losses, seeding
from kdutils.curriculum import Curriculum, Stage
from kdutils.distiller import Distiller
from kdutils.lab.ensemble import Ensemble
from kdutils.lab.optimisers import SGD
from kdutils.lab.store import Store
from kdutils.lab.training import DivergenceError, Run, train
from kdutils.signals import Bound, Labels, Output
from kdutils.tasks.models import MLP
from kdutils.tasks.parity import SparseParity
from kdutils.tasks.text import Corpus

TASK = SparseParity(6, 2)


def fit(task: object = TASK, plan: Curriculum | None = None, make: object = None, **options: object) -> Run:
    students = Ensemble(make or partial(MLP, 6, 8), (1, 2), (0.1,))
    options = {"steps": 6, "batch": 8, "evaluate_every": 3, "held_out": 32, "progress": False, **options}
    return train(students, task, plan or curriculum.from_labels(), **options)


@pytest.mark.parametrize("name", ["steps", "batch", "evaluate_every", "held_out", "keep_every"])
@pytest.mark.parametrize("value", [0, -3, 2.5, "20", True, float("nan"), [3]])
def test_counts_are_whole_numbers_from_one_on(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be a whole number from 1 on, not "):
        fit(**{name: value})


@pytest.mark.parametrize("value", ["0.9", float("nan"), float("inf"), True])
def test_until_is_a_number(value: object) -> None:
    with pytest.raises(ValueError, match=r"^until must be a finite number, not "):
        fit(until=value)


def test_modes_are_named() -> None:
    with pytest.raises(ValueError, match=r"^mode must be one of 'eval', 'train', not 'training'$"):
        fit(mode="training")


@pytest.mark.parametrize("rate", [0, -1.0, float("nan"), float("inf")])
def test_rates_are_positive(rate: float) -> None:
    with pytest.raises(ValueError, match=r"^learning rates must be positive"):
        Ensemble(partial(MLP, 6, 8), [1], [0.1, rate])


@pytest.mark.parametrize(
    ("seeds", "rates", "says"),
    [
        (3, [0.1], "seeds must be a list, such as"),
        ("12", [0.1], "seeds must be a list, such as"),
        ([1.5], [0.1], "seeds must be whole numbers; 1.5 is none"),
        ([True], [0.1], "seeds must be whole numbers; True is none"),
        ([], [0.1], "at least one seed"),
        ([1, 1], [0.1], "all different"),
        ([1], 0.1, "learning_rates must be a list, such as"),
        ([1], ["1e-1"], "learning_rates must be numbers; '1e-1' is none"),
        ([1], [], "learning rates must be positive"),
    ],
)
def test_seeds_and_rates_are_lists_of_numbers(seeds: object, rates: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Ensemble(partial(MLP, 6, 8), seeds, rates)


def test_numbers_of_numpy_are_numbers() -> None:
    students = Ensemble(partial(MLP, 6, 8), np.arange(2), np.logspace(-2, -1, 2))
    plain = Ensemble(partial(MLP, 6, 8), [0, 1], [0.01, 0.1])
    options = {"evaluate_every": np.int32(2), "held_out": np.int64(16), "progress": False}
    one = train(students, TASK, curriculum.from_labels(), steps=np.int64(4), batch=np.int16(8), **options)
    two = train(plain, TASK, curriculum.from_labels(), steps=4, batch=8, evaluate_every=2, held_out=16, progress=False)
    assert one.key == two.key and np.array_equal(one.loss, two.loss)


def test_networks_are_checked() -> None:
    one = MLP(6, 8)
    widths = iter([8, 9])
    for make, says in (
        (lambda: one, "the same network twice"),
        (lambda: MLP(6, next(widths)), r"different shapes: hidden.bias is \(8,\) and \(9,\)"),
        (lambda: nn.LazyLinear(2), "lazy modules"),
        (lambda: "a network", "must return a torch module, not a str"),
    ):
        with pytest.raises(ValueError, match=says):
            Ensemble(make, [1, 2])


# -- finite tasks


@dataclass(frozen=True, eq=False)
class Rows:
    """Draws from the rows that it holds."""

    x: torch.Tensor
    y: torch.Tensor

    def sample(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        at = torch.randint(len(self.x), (n,), generator=generator)
        return self.x[at], self.y[at]


def rows(n: int = 300, seed: int = 0, whole: bool = False) -> Rows:
    x = torch.randn(n, 6, generator=seeding.generator(seed, "rows"))
    return Rows(x.round() if whole else x, (x[:, 0] > 0).long())


HELD = rows()


class Behind:
    """Holds no data itself."""

    def sample(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        return HELD.sample(n, generator)


class Counted(Behind):
    def __len__(self) -> int:
        return 300


@pytest.mark.parametrize("task", [rows(), rows(whole=True), rows(20_000), Behind(), Counted()],
                         ids=["rows", "whole numbers", "many rows", "behind", "__len__"])  # fmt: skip
def test_a_finite_task_needs_a_judge(task: object) -> None:
    with pytest.raises(ValueError, match=r"finite set.*give held_out_task"):
        fit(task)
    assert fit(task, held_out_task=rows(seed=1)).accuracy.shape == (3, 2)


TOKENS, NOISE = torch.randint(0, 20, (200, 6), generator=seeding.generator(0, "tokens")), torch.arange(200) % 2
PAIRS = [(row.tolist(), int(label)) for row, label in zip(TOKENS, NOISE, strict=True)]
ARRAY, TEXT = TOKENS.numpy(), TOKENS[:40].flatten()
STORED: dict[str, Any] = {  # rows at places
    "a data set": lambda self, at: TensorDataset(TOKENS, NOISE)[at],
    "a mapping": lambda self, at, data={"x": TOKENS, "y": NOISE}: (data["x"][at], data["y"][at]),
    "a global": lambda self, at: (TOKENS[at], NOISE[at]),
    "lists": lambda self, at: tuple(map(torch.tensor, zip(*[PAIRS[i] for i in at], strict=True))),
    "a list of tensors": lambda self, at, rows=list(TOKENS): (torch.stack([rows[i] for i in at]), NOISE[at]),
    "arrays": lambda self, at: (torch.from_numpy(ARRAY[at.numpy()]), NOISE[at]),
    "windows of a text": lambda self, at: (TEXT[at[:, None] + torch.arange(6)], NOISE[at]),
}


@pytest.mark.parametrize("kind", STORED)
def test_stored_whole_numbers_are_finite_wherever_they_are_held(kind: str) -> None:
    class Task:
        rows = STORED[kind]

        def sample(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
            return self.rows(torch.randint(200, (n,), generator=generator))

    students = Ensemble(lambda: nn.Sequential(nn.Embedding(20, 2), nn.Flatten(), nn.Linear(12, 2)), [1])
    with pytest.raises(ValueError, match="Task draws from a finite set"):
        train(students, Task(), curriculum.from_labels(), steps=2, held_out=64)


def test_rows_that_a_draw_never_repeats_are_finite() -> None:
    class Permuted(Rows):
        def sample(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
            at = torch.randperm(len(self.x), generator=generator)[:n]
            return self.x[at], self.y[at]

    with pytest.raises(ValueError, match="Permuted draws from a finite set"):
        fit(Permuted(*vars(rows(2500)).values()))


FEW: dict[str, Any] = {  # inputs that are few by design, (n, generator) -> (n, 6)
    "bits": lambda n, g: torch.randint(2, (n, 6), generator=g).float(),
    "signs of a half": lambda n, g: torch.randint(2, (n, 6), generator=g) - 0.5,
    "one-hot": lambda n, g: torch.eye(6)[torch.randint(6, (n,), generator=g)],
    "permutations": lambda n, g: torch.rand(n, 6, generator=g).argsort(1).float(),
    "one number": lambda n, g: torch.rand(n, 1, generator=g).expand(n, 6),
}


@pytest.mark.parametrize("kind", FEW)
def test_tasks_of_few_inputs_are_endless(kind: str) -> None:
    class Task:
        mask, network, notes = torch.ones(6), nn.Linear(6, 200), "a text of a few words that says what this is"
        draw = staticmethod(FEW[kind])

        def sample(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
            x = self.draw(n, generator)
            return x, ((x * self.mask).sum(1) + self.network(x).detach().sum(1) > 0).long()

    fit(Task())


def test_a_task_has_the_last_word() -> None:
    class Endless(Behind):
        finite = False

    class Short(SparseParity):
        finite = True

    fit(Endless())
    with pytest.raises(ValueError, match="finite set"):
        fit(Short(6, 2))


def test_endless_tasks_repeat_inputs_at_will() -> None:
    """Few bits have few inputs; a task may hold numbers and yet draw afresh."""

    @dataclass(frozen=True, eq=False)
    class Mixed:
        mixing: torch.Tensor = field(default_factory=lambda: torch.eye(6))

        def sample(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
            x = torch.randn(n, 6, generator=generator) @ self.mixing
            return x, (x[:, 0] > 0).long()

    fit(SparseParity(6, 2)), fit(Mixed())


def test_a_text_is_finite() -> None:
    task = Corpus(torch.arange(50) % 7, 7, 4, "causal")
    with pytest.raises(ValueError, match="finite set"):
        train(Ensemble(lambda: nn.Embedding(7, 7), [1]), task, curriculum.from_labels(), steps=2, held_out=8)


# -- a score of the task's own


@dataclass(frozen=True)
class Product:
    """Regression: the product of two numbers."""

    score_name = "squared error"
    higher_is_better = False

    def sample(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(n, 6, generator=generator)
        return x, x[:, :1] * x[:, 1:2]

    def score(self, outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (outputs - y).square().mean()


@dataclass(frozen=True)
class Several(Product):
    """Several labels a sample; a metric over all samples at once."""

    score_name = "F1"
    higher_is_better = True

    def sample(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(n, 6, generator=generator)
        return x, (x[:, :3] > 0).float()

    def score(self, outputs: torch.Tensor, y: torch.Tensor) -> float:
        found, wanted = outputs > 0, y > 0
        return 2 * (found & wanted).sum().item() / (found.sum() + wanted.sum()).item()


@dataclass(frozen=True)
class Loss:
    """The task's own targets, by any loss (outputs, y) -> one number an entry."""

    by: object

    def bind(self, students: object, x: torch.Tensor, y: torch.Tensor | None = None) -> Bound:
        return Bound(("",), lambda x, y: y, lambda values, y: losses.mean(self.by(values[""], y)))


def squared(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (outputs - y).square()


def several(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(outputs, y, reduction="none")


@pytest.mark.parametrize(("task", "by", "classes"), [(Product(), squared, 1), (Several(), several, 3)])
def test_a_score_takes_the_place_of_accuracy(task: Product, by: object, classes: int, tmp_path: Path) -> None:
    plan = Curriculum("own", (Stage(Loss(by)),))
    options = {"make": partial(MLP, 6, 8, classes), "steps": 60, "runs": Store(tmp_path), "evaluate_every": 20}
    run, again = fit(task, plan, **options), fit(task, plan, **options)
    x, y = task.sample(32, seeding.generator(0, "held-out"))
    for member in range(2):
        assert run.accuracy[-1, member] == pytest.approx(
            float(task.score(run.network(member)(x).detach(), y)), rel=1e-5
        )
    assert np.array_equal(run.loss, -run.accuracy if task.higher_is_better else run.accuracy)
    assert (run.loss[-1] < run.loss[0]).all(), "they learn"
    for one in (run, again):
        assert (one.metric, one.higher_is_better) == (task.score_name, task.higher_is_better)
    assert np.array_equal(run.accuracy, again.accuracy)


def test_until_knows_the_direction() -> None:
    plan = Curriculum("own", (Stage(Loss(squared)),))
    options = {"make": partial(MLP, 6, 8, 1), "steps": 30, "evaluate_every": 1}
    whole = fit(Product(), plan, **options)
    mark = float(whole.accuracy.min(0).max())
    short = fit(Product(), plan, until=mark, **options)
    assert (short.accuracy <= mark).any(0).all() and not (short.accuracy[:-1] <= mark).any(0).all()


def test_labels_that_are_no_classes_need_a_score() -> None:
    @dataclass(frozen=True)
    class Silent(Product):
        score = None

    with pytest.raises(ValueError, match=r"accuracy needs one class.*torch.float32 of shape.*give the task a score"):
        fit(Silent(), Curriculum("own", (Stage(Loss(squared)),)), make=partial(MLP, 6, 8, 1))


# -- losses that are not finite


@dataclass(frozen=True)
class Holed(SparseParity):
    """Its inputs, or its questions, run out after a few samples."""

    kind: str = "inputs"

    def sample(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = super().sample(n, generator)
        if n >= 100:  # training samples come in large pieces
            x = torch.where(torch.arange(n)[:, None] == 37, torch.nan, x) if self.kind == "inputs" else x
        return x, y


class Broken(nn.Module):
    """A teacher that answers NaN to one input in four."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = MLP(6, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where((x[:, :2] < 0).all(1, keepdim=True), torch.nan, self.inner(x))


def test_the_cause_is_named() -> None:
    with pytest.raises(ValueError, match=r"at step 5: the task's inputs are not finite .*sample 5"):
        fit(Holed(6, 2))
    with pytest.raises(ValueError, match=r"at step 1: the teacher's output is not finite .*sample \d+"):
        fit(plan=curriculum.one_shot(Broken()))
    with pytest.raises(DivergenceError, match="try a smaller learning rate, such as"):
        train(Ensemble(partial(MLP, 6, 8), [1], [1e30]), TASK, curriculum.from_labels(), steps=9, held_out=8)


def test_nothing_asked_is_named() -> None:
    @dataclass(frozen=True)
    class Unasked(SparseParity):
        def sample(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
            x, y = super().sample(n, generator)
            return x, torch.full_like(y, losses.IGNORE)

    with pytest.raises(ValueError, match="no held-out sample has a label"):
        fit(Unasked(6, 2))
    by = Loss(lambda outputs, y: F.cross_entropy(outputs.flatten(0, 1), y.flatten())[None, None].expand(2, 1))
    with pytest.raises(ValueError, match="no position of the batch has a label"):
        fit(Unasked(6, 2), Curriculum("mean over none", (Stage(by),)), held_out_task=TASK)


# -- going on


SEEN: list[torch.Tensor] = []


class Watched(SparseParity):
    def sample(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = super().sample(n, generator)
        if n == 256:  # a block of training samples
            SEEN.append(x)
        return x, y


def test_students_that_go_on_read_other_samples(tmp_path: Path) -> None:
    options = {"steps": 6, "batch": 8, "held_out": 32, "progress": False}
    first, read = fit(runs=Store(tmp_path)), fit(runs=Store(tmp_path))
    assert first.seconds == read.seconds and first.students.drawn == read.students.drawn == 1
    seconds = [train(run.students, TASK, curriculum.from_labels(), **options) for run in (first, read)]
    assert seconds[0].key == seconds[1].key and np.array_equal(seconds[0].loss, seconds[1].loss)
    run = fit(Watched(6, 2))
    for _ in range(2):
        run = train(run.students, Watched(6, 2), curriculum.from_labels(), **options)
    assert run.students.drawn == 3
    assert len({tuple(x.flatten().tolist()) for x in SEEN}) == 6, "three runs of two seeds"


def test_students_that_end_in_softmax_are_refused() -> None:
    """Their loss would stay where it is: the teacher's softmax is taken of what is in [0, 1] already."""

    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 3), nn.Softmax(-1))

    students, x = Ensemble(make, [0]), torch.randn(1, 8, 6)
    for signal in (Labels(), Output(nn.Linear(6, 3))):
        with pytest.raises(ValueError, match="the student's outputs are probabilities"):
            signal.bind(students, x, torch.zeros(1, 8, dtype=torch.long))


@dataclass
class Chain:
    """Short sequences that are drawn anew, from a table: they come twice by chance."""

    table: tuple = tuple(tuple(row) for row in torch.eye(32).add(0.01).tolist())

    def sample(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        x = [torch.randint(0, 32, (n,), generator=generator)]
        for _ in range(3):
            x.append(torch.multinomial(torch.tensor(self.table)[x[-1]], 1, generator=generator)[:, 0])
        return torch.nn.functional.one_hot(torch.stack(x, 1), 32).flatten(1).float(), x[0] % 2


@dataclass
class Complex:
    def sample(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(n, 4, dtype=torch.complex64, generator=generator)
        return x, (x[:, 0].real > 0).long()


def test_samples_that_are_drawn_anew_are_no_data() -> None:
    from kdutils.tasks.sampling import finite

    for task in (Chain(), Complex()):
        assert not finite(task, task.sample(256, seeding.generator(0, "held-out"))[0])


class Sampling:
    """A task whose `sample` returns anything."""

    finite = False

    def __init__(self, drawn: Callable[[int], Any]) -> None:
        self.drawn = drawn

    def sample(self, n: int, generator: torch.Generator) -> Any:
        return self.drawn(n)


def pair(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ones(n, 6), torch.zeros(n, dtype=torch.long)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimiser": torch.optim.SGD}, r"optimiser must be SGD\(\) or Adam\(\), not <class"),
        ({"optimiser": SGD}, r"optimiser must be SGD\(\) or Adam\(\), not <class"),
        ({"runs": "folder"}, r'runs must be a Store\("folder"\) of kdutils.lab.store, not \'folder\''),
        ({"curriculum": Labels()}, r"curriculum must be a Curriculum, as from kdutils.curriculum, not Labels\(\)"),
        ({"students": MLP(6, 8)}, r"students must be an Ensemble, as from kdutils.lab.ensemble, not MLP\("),
        ({"task": Sampling}, r"task must be an object with sample\(n, generator\), not <class"),
        ({"task": pair}, r"task must be an object with sample\(n, generator\), not <function pair"),
        ({"task": SimpleNamespace(sample=pair)}, r"a task needs a method sample\(n, generator\), not <function pair"),
        ({"task": Sampling(lambda n: (*pair(n), 3))}, r"inputs and labels, a pair, not a tuple, of 3"),
        ({"task": Sampling(lambda n: torch.ones(n, 6))}, r"inputs and labels, a pair, not a Tensor"),
        ({"task": Sampling(lambda n: (pair(n + 1)[0], pair(n)[1]))}, r"of 64 samples, not of 65 and 64"),
    ],
)
def test_arguments_that_are_something_else(changes: dict[str, Any], message: str) -> None:
    given = {
        "students": Ensemble(partial(MLP, 6, 8), [1]),
        "task": Sampling(pair),
        "curriculum": curriculum.from_labels(),
    }
    with pytest.raises(ValueError, match=message) as caught:
        train(**(given | changes), steps=2, held_out=64)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [MLP(6, 8), lambda seed: MLP(6, 8)], ids=["network", "seed"])
def test_what_builds_no_network(make: Any) -> None:
    with pytest.raises(ValueError, match=r"make must be a function without arguments, such as functools.partial\(MLP"):
        Ensemble(make, [1])


def test_training_needs_no_grad_mode() -> None:
    found = []
    for around in (nullcontext(), torch.no_grad(), torch.inference_mode()):
        with around:
            students = Ensemble(partial(MLP, 6, 8), [1])
            found.append(train(students, TASK, curriculum.from_labels(), steps=3, held_out=64).loss[-1, 0])
    assert found[0] == found[1] == found[2]


class Ruling(nn.Module):
    """Rules out the last class."""

    def __init__(self) -> None:
        super().__init__()
        self.net = MLP(6, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x).masked_fill(torch.arange(2) == 1, -torch.inf)


def test_classes_that_the_student_rules_out_are_named() -> None:
    message = (
        r"the student rules out classes \(-inf\) that its target gives weight: rule them out in teacher and labels"
    )
    for plan in (curriculum.one_shot(MLP(6, 16)), curriculum.from_labels()):
        with pytest.raises(ValueError, match=message):
            fit(plan=plan, make=Ruling)
    x, y = TASK.sample(16, torch.Generator())
    student = Ruling()
    distiller = Distiller(student, curriculum.one_shot(MLP(6, 16)), total=3, calibration=x)
    with pytest.raises(ValueError, match=message):
        distiller(x, y, 0)


def test_a_teacher_of_other_inputs_is_named() -> None:
    x = torch.randn(8, 6)
    plan = curriculum.extracted(MLP(7, 16), [("act", "act")], 2)
    with pytest.raises(ValueError, match=r"the teacher, a MLP, cannot read the batch \(mat1 and mat2"):
        Distiller(MLP(6, 8), plan, total=5, calibration=x)
