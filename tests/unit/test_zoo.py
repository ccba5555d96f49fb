"""Networks of many kinds as students: stacked or one by one, what comes back is each network as it would be alone."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from kdutils import curriculum, seeding
from kdutils.lab.ensemble import Ensemble
from kdutils.lab.optimisers import SGD, Adam
from kdutils.lab.store import Store
from kdutils.lab.training import Run, train
from kdutils.reading import OUTPUT
from kdutils.tasks.models import MLP, Transformer

WORDS, LENGTH = 7, 5


@dataclass(frozen=True)
class Numbers:
    def sample(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(n, 6, generator=generator)
        return x, (x[:, 0] * x[:, 1] > 0).long()


@dataclass(frozen=True)
class Tokens:
    def sample(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randint(0, WORDS, (n, LENGTH), generator=generator)
        return x, x.roll(-1, 1)


class Head(nn.Module):
    """Some layer between two linear ones."""

    def __init__(self, layer: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(6, 8), layer(), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.layer(self.first(x)))


class Sequence(nn.Module):
    """Some layer between an embedding and a readout."""

    def __init__(self, layer: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.embed, self.layer, self.last = nn.Embedding(WORDS, 8), layer(), nn.Linear(8, WORDS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.layer(self.embed(x))
        return self.last(h[0] if isinstance(h, tuple) else h)


class Attended(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return self.layer(h, h, h, attn_mask=torch.ones(LENGTH, LENGTH).triu(1).bool(), need_weights=False)[0]


class Average(nn.Module):
    """Keeps a moving average of what it saw, in a buffer changed in place or put anew."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.register_buffer("seen", torch.zeros(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        now = x.detach().mean(0)
        if self.in_place:
            self.seen.mul_(0.9).add_(0.1 * now)
        else:
            self.seen = 0.9 * self.seen + 0.1 * now
        return x + self.seen


class Drawn(nn.Module):
    """A constant drawn when the network is built: a buffer, one that no state dict has, or a plain attribute."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        value = torch.randn(8)
        if kind == "attribute":
            self.value = value
        else:
            self.register_buffer("value", value, persistent=kind == "buffer")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.value


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.last = nn.Embedding(WORDS, 8), nn.Linear(8, WORDS)
        self.last.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.embed(x))


class Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
        return gradient


class Rounded(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Sign.apply(x)


class Filled(nn.Module):
    """Writes into a tensor that it made, in place."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(x.shape)
        out[:] = x
        return out.relu_()


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else x + 1


def half_frozen() -> nn.Module:
    network = Head(nn.ReLU)
    network.first.requires_grad_(False)
    return network


def old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(nn.Linear(8, 8))


def bert() -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=WORDS, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=LENGTH,
    )  # fmt: skip
    return transformers.BertForMaskedLM(config)


def llama(tied: bool = False) -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=WORDS, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=16, max_position_embeddings=LENGTH, tie_word_embeddings=tied,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


NUMBERS = {
    "batch norm": partial(Head, partial(nn.BatchNorm1d, 8)),
    "average in place": partial(Head, partial(Average, True)),
    "average put anew": partial(Head, partial(Average, False)),
    "drawn buffer": partial(Head, partial(Drawn, "buffer")),
    "drawn buffer, not persistent": partial(Head, partial(Drawn, "not persistent")),
    "drawn attribute": partial(Head, partial(Drawn, "attribute")),
    "dropout": partial(Head, partial(nn.Dropout, 0.5)),
    "weight norm": partial(Head, lambda: parametrizations.weight_norm(nn.Linear(8, 8))),
    "old weight norm": partial(Head, old_weight_norm),
    "spectral norm": partial(Head, lambda: parametrizations.spectral_norm(nn.Linear(8, 8))),
    "autograd function": partial(Head, Rounded),
    "in place": partial(Head, Filled),
    "branch": partial(Head, Branching),
    "half frozen": half_frozen,
    "MLP": partial(MLP, 6, 8),
}
TOKENS = {
    "tied": Tied,
    "LSTM": partial(Sequence, lambda: nn.LSTM(8, 8, batch_first=True)),
    "GRU": partial(Sequence, lambda: nn.GRU(8, 8, batch_first=True)),
    "attention with a mask": partial(Sequence, Attended),
    "nn.TransformerEncoder": partial(
        Sequence, lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    ),
    "BERT": bert,
    "Llama": llama,
    "tied Llama": partial(llama, True),
    "Transformer": partial(Transformer, WORDS, 8, 2, 2, LENGTH),
}
ZOO = {**{name: (make, Numbers()) for name, make in NUMBERS.items()},
       **{name: (make, Tokens()) for name, make in TOKENS.items()}}  # fmt: skip
every = pytest.mark.parametrize(("make", "task"), ZOO.values(), ids=ZOO)
pytestmark = pytest.mark.filterwarnings("ignore:.*trained in eval mode", "ignore:.*one by one", "ignore:.*weight_norm")


def fit(make: Callable, task: object, runs: Store | None = None, **options: object) -> Run:
    students = Ensemble(make, (1, 2), (0.1, 0.3))
    options = {"steps": 7, "batch": 8, "evaluate_every": 3, "held_out": 32, "keep_every": 3, **options}
    return train(students, task, curriculum.from_labels(), runs=runs, progress=False, **options)


def plain(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What somebody would do without this package."""
    out = network(x)
    return out.logits if hasattr(out, "logits") else out


@every
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_what_is_read_back_is_the_run(make: Callable, task: object, mode: str, tmp_path: Path) -> None:
    first, again = (fit(make, task, Store(tmp_path), mode=mode) for _ in range(2))
    assert first.seconds == again.seconds, "the second was read"
    x, _ = task.sample(9, seeding.generator(3, "probe"))
    for member in range(4):
        for step in (None, 3, 6):
            one, two = first.network(member, step), again.network(member, step)
            states = [{**dict(n.named_parameters()), **dict(n.named_buffers())} for n in (one, two)]
            assert states[0].keys() == states[1].keys()
            assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
            assert torch.equal(plain(one, x), plain(two, x))
            assert not any(part.training for part in one.modules())


@every
def test_members_are_the_networks_alone(make: Callable, task: object) -> None:
    """Outputs and gradients, of each member and of its plain copy."""
    students = fit(make, task).students
    x = torch.stack([task.sample(9, seeding.generator(seed, "probe"))[0] for seed in (1, 2)])
    for name, parameter in students.parameters.items():
        parameter.requires_grad_(name not in students.frozen)
    together = students.outputs(x)[OUTPUT]
    moving = {n: p for n, p in students.parameters.items() if p.requires_grad}
    slopes = torch.autograd.grad(together.sin().sum(), list(moving.values()), allow_unused=True)
    for member in range(4):
        network = students.member(member)
        alone = plain(network, x[member % 2])
        torch.testing.assert_close(together[member], alone, rtol=1e-4, atol=1e-5)
        alone.sin().sum().backward()
        own = dict(network.named_parameters())
        for name, slope in zip(moving, slopes, strict=True):
            if slope is not None:
                torch.testing.assert_close(slope[member], own[name].grad, rtol=1e-3, atol=1e-5)


EXACT = [name for name in ZOO if name not in ("dropout", "branch")]  # torch's own loop draws other dropout masks


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("adam", [False, True], ids=["SGD", "Adam"])
def test_training_is_that_of_a_plain_loop(name: str, mode: str, adam: bool) -> None:
    make, task = ZOO[name]
    if mode == "train" and name in ("nn.TransformerEncoder", "BERT"):
        pytest.skip("drops at random in training mode: no plain loop draws the same")
    if mode == "train" and adam and name == "batch norm":
        pytest.skip("a bias before batch norm has no gradient but rounding, which Adam makes as large as any")
    steps = 4 if adam else 7  # Adam makes rounding as large as any gradient, and it grows
    run = fit(
        make,
        task,
        mode=mode,
        optimiser=Adam(warmup=0) if adam else SGD(),
        evaluate_every=100,
        keep_every=None,
        steps=steps,
    )
    for member, (seed, rate) in enumerate(((1, 0.1), (2, 0.1), (1, 0.3), (2, 0.3))):
        with seeding.global_rng(seed, "init"):
            network = make().train(mode == "train")
        moving = [p for p in network.parameters() if p.requires_grad]
        rule = torch.optim.Adam(moving, rate) if adam else torch.optim.SGD(moving, rate)
        stream = seeding.generator(seed, "data")
        for _ in range(steps):
            x, y = task.sample(8, stream)
            loss = F.cross_entropy(plain(network, x).flatten(0, -2), y.flatten())
            rule.zero_grad()
            loss.backward()
            rule.step()
        trained = run.network(member)
        for key, value in network.named_buffers():
            torch.testing.assert_close(trained.get_buffer(key), value, rtol=1e-2, atol=1e-3)
        x = task.sample(9, seeding.generator(3, "probe"))[0]
        close = {"rtol": 2e-2, "atol": 2e-2} if adam else {"rtol": 1e-3, "atol": 1e-4}
        torch.testing.assert_close(plain(trained, x), plain(network.eval(), x), **close)


@every
def test_a_member_does_not_notice_the_others(make: Callable, task: object) -> None:
    """Members of an ensemble in training mode are those of smaller ensembles: dropout too has a stream a seed."""
    four = fit(make, task, mode="train")
    for member, (seed, rate) in enumerate(((1, 0.1), (2, 0.1), (1, 0.3), (2, 0.3))):
        alone = train(Ensemble(make, (seed,), (rate,)), task, curriculum.from_labels(), steps=7, batch=8,
                      evaluate_every=3, held_out=32, mode="train", progress=False)  # fmt: skip
        for name, value in alone.students.parameters.items():
            torch.testing.assert_close(four.students.parameters[name][member], value[0], rtol=1e-3, atol=1e-4)


def test_frozen_parts_stay(tmp_path: Path) -> None:
    for rule in (SGD(), Adam()):
        run = fit(half_frozen, Numbers(), Store(tmp_path), optimiser=rule)
        start = Ensemble(half_frozen, (1, 2), (0.1, 0.3)).parameters
        moved = {name: not torch.equal(start[name], p) for name, p in run.students.parameters.items()}
        assert moved == {"first.weight": False, "first.bias": False, "last.weight": True, "last.bias": True}
        assert [p.requires_grad for p in run.network(1).parameters()] == [False, False, True, True]


def test_a_frozen_student_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no parameter to train.*all of them are frozen"):
        fit(lambda: MLP(6, 8).requires_grad_(False), Numbers())


def test_a_part_left_in_eval_mode_stays_so() -> None:
    def make() -> nn.Module:
        network = Head(partial(nn.BatchNorm1d, 8))
        network.layer.eval()
        return network

    built, moved = fit(make, Numbers(), mode="train"), fit(NUMBERS["batch norm"], Numbers(), mode="train")
    assert built.students.buffers["layer.running_mean"].eq(0).all()
    assert moved.students.buffers["layer.running_mean"].ne(0).all()


def test_what_runs_one_by_one_says_so_once() -> None:
    with pytest.warns(UserWarning, match="Sequence run one by one") as caught:
        fit(TOKENS["LSTM"], Tokens())
    assert sum("one by one" in str(w.message) for w in caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(partial(Head, nn.Tanh), Numbers())


def test_what_eval_mode_leaves_out_is_said_once() -> None:
    with pytest.warns(UserWarning, match=r"trained in eval mode.*mode='train'") as caught:
        fit(NUMBERS["batch norm"], Numbers())
    assert sum("eval mode" in str(w.message) for w in caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(partial(Head, nn.Tanh), Numbers())
        fit(partial(Head, partial(nn.Dropout, 0.0)), Numbers())


class Counting(nn.Module):
    """Counts its passes in Python, and answers by the count."""

    def __init__(self) -> None:
        super().__init__()
        self.passes, self.head = 0, nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        return self.head(x) * (1 + self.passes / 10)


def test_what_is_counted_in_python_is_said_and_kept_out(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="changes its attribute 'passes' while it runs") as caught:
        first = fit(Counting, Numbers(), Store(tmp_path))
    assert sum("'passes'" in str(w.message) for w in caught) == 1
    again = fit(Counting, Numbers(), Store(tmp_path))
    x, _ = Numbers().sample(4, seeding.generator(3, "probe"))
    for member in range(4):
        assert first.network(member).passes == again.network(member).passes == 0
        assert torch.equal(first.network(member)(x), again.network(member)(x))
