"""Models, batches and teachers as readers have them: read rightly, or refused with one clear line."""

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    WhisperConfig,
    WhisperForConditionalGeneration,
)
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from kdutils import curriculum, fitting, identity, losses, projections, recorded, seeding
from kdutils.curriculum import Curriculum, Stage
from kdutils.distiller import Distiller
from kdutils.fingerprints import described
from kdutils.lab import store
from kdutils.signals import Labels, Output, WeightedSum


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=seeding.generator(0, "inputs"))


def built(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with seeding.global_rng(seed, "init"):
        return make()


def small(width: int = 8, seed: int = 0) -> nn.Module:
    return built(lambda: nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3)), seed)


X, Y = draw(32, 6), torch.arange(32) % 3


def host(student: nn.Module, plan: Curriculum, calibration: Any = X, **fields: Any) -> Distiller:
    return Distiller(student, plan, total=6, calibration=calibration, **fields)


def refused(action: Callable[[], Any], message: str, kind: type[Exception] = ValueError) -> None:
    with pytest.raises(kind, match=message) as caught:
        action()
    assert "\n" not in str(caught.value)


class Policy(nn.Module):
    """What is not allowed is ruled out, by teacher and student alike."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = built(lambda: nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 6)), width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x).masked_fill(x < 0, -torch.inf)


@pytest.mark.parametrize("top_k", [2, 4, None])
def test_classes_that_both_rule_out_add_nothing_to_a_record(top_k: int | None, tmp_path: Path) -> None:
    x = draw(64, 6)
    x[:, :2] = x[:, :2].abs()
    student, plan = Policy(4), curriculum.one_shot(Policy(16))
    recorded.record(plan, student, x, tmp_path, calibration=x, top_k=top_k)
    live = host(student, plan, x)(x, None, 0)
    replayed = host(student, recorded.plan(tmp_path), x)(x, None, 0, rows=range(64))
    assert 0 < replayed <= live * 1.001 and (top_k is not None or replayed > live * 0.999)


def test_a_part_of_a_teacher_that_goes_into_train_mode_is_brought_back() -> None:
    body = built(lambda: nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Dropout(0.5)))
    teacher = nn.Sequential(body, nn.Linear(16, 3))
    distiller = host(small(), curriculum.one_shot(teacher))
    before = distiller(X, None, 0)
    body.train()  # as a backbone that two modules hold
    assert distiller(X, None, 1) == before and not body.training and body[1].num_batches_tracked == 0


def test_what_is_done_to_a_teacher_from_outside_counts() -> None:
    teacher, student = small(16), small()
    state = host(student, curriculum.one_shot(teacher)).state_dict()
    traced = torch.fx.symbolic_trace(teacher)
    as_traced = host(student, curriculum.one_shot(traced)).state_dict()
    last = next(node for node in traced.graph.nodes if node.op == "output")
    with traced.graph.inserting_before(last):
        last.args = (traced.graph.call_function(torch.mul, (last.args[0], 5.0)),)
    traced.recompile()
    other = "the saved state is of another curriculum"
    refused(lambda: host(student, curriculum.one_shot(traced)).load_state_dict(as_traced), other)
    for hook in (
        teacher.register_forward_hook(lambda *args: 3 * args[-1]),
        teacher[0].register_forward_pre_hook(lambda layer, inputs: inputs[0].flip(-1)),
    ):
        refused(lambda: host(student, curriculum.one_shot(teacher)).load_state_dict(state), other)
        hook.remove()
    host(student, curriculum.one_shot(teacher)).load_state_dict(state)
    assert described(teacher) == described(torch.compile(teacher)) == described(nn.DataParallel(teacher))


@pytest.mark.parametrize("name", ["gaussian", "neurons", "sparse"])
def test_a_teacher_that_moves_is_read_as_it_is_now(name: str) -> None:
    teacher = small(16)
    plan = curriculum.extracted(teacher, [("1", "1")], 3, getattr(projections, name))
    distiller = host(small(), plan)
    before = distiller.evaluate(X, None, 0)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(3)
    assert distiller.evaluate(X, None, 0) > 3 * before


class Headed(nn.Module):
    """Both heads in train mode and their mean in eval mode, as networks with a token for the teacher have it."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.one, self.two = small(3), nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> Any:
        z = self.body(x)
        return (self.one(z), self.two(z)) if self.training else (self.one(z) + self.two(z)) / 2


@pytest.mark.parametrize("compiled", [False, True])
def test_heads_that_do_not_learn_are_told_once(compiled: bool) -> None:
    student = Headed()
    distiller = host(torch.compile(student, backend="eager") if compiled else student, curriculum.one_shot(small(16)))
    with pytest.warns(UserWarning, match=r"returns 2 outputs in train mode, of which the first is read: let `forward`"):
        distiller(X, None, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        distiller(X, None, 1)
        distiller.evaluate(X, None, 1)
    assert not student._forward_hooks


class Modal(nn.Module):
    """Probabilities in eval mode, and an observer's buffer that every pass moves."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small()
        self.register_buffer("largest", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.largest.copy_(torch.maximum(self.largest, x.max()))
        return self.net(x) if self.training else self.net(x).softmax(-1)


def test_evaluating_looks_at_outputs_and_changes_no_buffer() -> None:
    student = Modal()
    distiller = host(student, curriculum.one_shot(small(16)))
    distiller(X, None, 0)
    before = student.largest.clone()
    refused(lambda: distiller.evaluate(9 * X, None, 0), "the student's outputs are probabilities")
    assert student.largest == before and student.training


def test_modes_around_a_training_are_part_of_its_name() -> None:
    class Doubling(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return function(*args, **(kwargs or {}))

    plain = store.key({"a": 1})
    with Doubling():
        assert store.key({"a": 1}) != plain
    assert store.key({"a": 1}) == plain


class Attending(nn.Module):
    """Reads a mask of (length, length), which is not one a sample."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(9, width), nn.Linear(width, 9)
        self.layer = nn.TransformerEncoderLayer(width, 2, width, batch_first=True, dropout=0.0)

    def forward(self, ids: torch.Tensor, src_mask: torch.Tensor, extra: Any = None) -> torch.Tensor:
        return self.head(self.layer(self.embed(ids), src_mask))


class Plainly(Attending):
    def forward(self, ids: torch.Tensor, src_mask: torch.Tensor) -> torch.Tensor:
        return super().forward(ids, src_mask)


@pytest.mark.parametrize("named", [True, False])
def test_entries_that_are_not_one_a_sample(named: bool) -> None:
    ids = torch.randint(0, 9, (16, 7), generator=seeding.generator(0, "ids"))
    mask = nn.Transformer.generate_square_subsequent_mask(7)
    student, teacher = (built(partial(kind, width)) for kind, width in ((Attending, 8), (Plainly, 16)))
    batch = {"ids": ids, "src_mask": mask, "extra": ids} if named else (ids, mask)
    loss = host(student, curriculum.one_shot(teacher), batch)(batch, None, 0)
    wanted = losses.distillation_loss(*(network.train()(ids, mask) for network in (student, teacher)))
    torch.testing.assert_close(loss, wanted.mean())
    edges = {"ids": ids[:, 0], "src_mask": torch.tensor([[0, 9], [9, 0]])}

    class Graph(nn.Linear):
        def forward(self, ids: torch.Tensor, src_mask: torch.Tensor) -> torch.Tensor:
            return super().forward(nn.functional.one_hot(ids, 9).float().index_add(0, src_mask[1], torch.ones(2, 9)))

    graph, y = Graph(9, 3), torch.arange(16) % 3  # its edges name nodes that two samples alone do not have
    loss = host(graph, curriculum.from_labels(), edges)(edges, y, 0)
    torch.testing.assert_close(loss, nn.functional.cross_entropy(graph(**edges), y))
    far = edges | {"src_mask": torch.tensor([[0, 99], [99, 0]])}
    refused(lambda: host(Graph(9, 3), curriculum.from_labels(), far), "entries that do not hold their samples first")


def test_an_encoder_decoder_teaches_only_with_its_decoders_inputs() -> None:
    sizes = dict(vocab_size=30, d_model=8, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=8, decoder_ffn_dim=8,
                 encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=16)  # fmt: skip
    bart = built(lambda: BartForConditionalGeneration(BartConfig(**sizes)))
    tiny = BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    batch = {"input_ids": torch.randint(5, 30, (4, 7)), "attention_mask": torch.ones(4, 7, dtype=torch.long)}
    plan = curriculum.one_shot(bart)
    refused(lambda: host(built(lambda: BertForMaskedLM(tiny)), plan, batch), "a BartFor.* needs decoder_input_ids")


def test_whispers_decoder_reads_what_its_own_loss_lets_it_read() -> None:
    sizes = dict(vocab_size=30, d_model=8, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=8, decoder_ffn_dim=8,
                 encoder_attention_heads=2, decoder_attention_heads=2, num_mel_bins=4, max_source_positions=8,
                 pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1)  # fmt: skip
    whisper = built(lambda: WhisperForConditionalGeneration(WhisperConfig(**sizes))).eval()
    sound, labels = draw(2, 4, 16), torch.tensor([[5, 6, 7, -100], [8, 9, 10, 11]])
    make, needed = fitting.decoder_inputs(whisper)
    with torch.no_grad():
        own, ours = whisper(sound, labels=labels), whisper(sound, decoder_input_ids=make(labels))
    assert needed and torch.equal(own.logits, ours.logits)


def test_a_mask_function_that_is_found_by_its_name_counts() -> None:
    tiny = BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    network, found = built(lambda: BertForMaskedLM(tiny)), []
    network.config._attn_implementation = "of a test"
    for number in (1, 2):
        ALL_MASK_ATTENTION_FUNCTIONS.register("of a test", lambda *args, number=number, **named: number)
        found.append(identity.describe(network)["sha256"])
    assert found[0] != found[1]


def test_a_frozen_part_of_the_student_may_teach() -> None:
    base = small(16)
    student = nn.Sequential(base.requires_grad_(False), nn.Linear(3, 3))
    learned = nn.Parameter(torch.tensor(0.5))
    plan = Curriculum("p", (Stage(WeightedSum(((learned, Labels()), (0.5, Output(base))))),))
    assert host(student, curriculum.one_shot(base))(X, None, 0).requires_grad
    assert host(student, plan)(X, Y, 0).requires_grad


def test_places_and_ways_to_save_that_cannot_work(tmp_path: Path) -> None:
    nowhere = nn.Linear(6, 3, device="meta")
    refused(lambda: host(nowhere, curriculum.from_labels()), "the student, a Linear, is on the meta device")
    refused(lambda: host(small(), curriculum.one_shot(nowhere)), "the teacher, a Linear, is on the meta device")
    with torch.inference_mode():
        refused(
            lambda: host(small(), curriculum.from_labels()), r"built in torch\.inference_mode\(\) cannot be trained"
        )
    distiller = host(small(), curriculum.one_shot(small(16)))
    refused(lambda: torch.save(distiller, tmp_path / "whole.pt"), r"save its state_dict\(\)", TypeError)
    few = nn.Sequential(nn.Embedding(4, 3))
    refused(lambda: host(few, curriculum.from_labels(), torch.arange(8)), "Sequential cannot read .* more ids")


class Placed(nn.Module):
    """Ids, and positions that all samples may share."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.place, self.head = nn.Embedding(20, width), nn.Embedding(20, width), nn.Linear(width, 7)

    def forward(self, ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.embed(ids) + self.place(places)))


@pytest.mark.parametrize("rows", [6, 9])
@pytest.mark.parametrize("lead", [True, False], ids=["(1, 9)", "(9,)"])
@pytest.mark.parametrize("first", ["ids", "places"])
def test_entries_that_all_samples_share(rows: int, lead: bool, first: str) -> None:
    places = torch.arange(9)[None] if lead else torch.arange(9)
    batch = {"ids": torch.arange(rows * 9).reshape(rows, 9) % 20, "places": places}
    batch = {first: batch.pop(first), **batch}
    student, teacher = built(lambda: Placed(4)), built(lambda: Placed(8), 1)
    for plan in (curriculum.one_shot(teacher), curriculum.extracted(teacher, [("embed", "embed")], 2)):
        assert host(student, plan, batch)(batch, None, 0) > 0
    wanted = losses.distillation_loss(student(**batch), teacher(**batch)).mean()
    torch.testing.assert_close(host(student, curriculum.one_shot(teacher), batch)(batch, None, 0), wanted)


class Packed(nn.Module):
    """Four patches of each sample, of all samples in one row, as models of pictures and text take them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patch, self.embed, self.head = nn.Linear(3, width), nn.Embedding(20, width), nn.Linear(width, 7)

    def forward(self, ids: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        seen = self.patch(patches).unflatten(0, (len(ids), 4)).mean(1)
        return self.head(torch.tanh(self.embed(ids) + seen[:, None]))


@pytest.mark.parametrize("rows", [2, 4, 5])
def test_entries_with_several_rows_a_sample(rows: int) -> None:
    batch = {"ids": torch.arange(rows * 6).reshape(rows, 6) % 20, "patches": draw(4 * rows, 3)}
    student, teacher = built(lambda: Packed(4)), built(lambda: Packed(8), 1)
    wanted = losses.distillation_loss(student(**batch), teacher(**batch)).mean()
    torch.testing.assert_close(host(student, curriculum.one_shot(teacher), batch)(batch, None, 0), wanted)
    assert host(student, curriculum.extracted(teacher, [("embed", "embed")], 2), batch)(batch, None, 0) > 0


class Convolved(nn.Module):
    """Classes last, after a convolution that has its channels before positions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv1d(3, width, 3, padding=1), nn.Linear(width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x).movedim(1, -1))


def test_the_line_about_classes_after_a_convolution_names_what_helps() -> None:
    x, y = draw(6, 3, 10), torch.arange(60).reshape(6, 10) % 5
    plan = curriculum.one_shot(Convolved(16))
    refused(lambda: host(Convolved(8), plan, x), r"and give labels \(calibration_labels\): they tell")
    assert host(Convolved(8), plan, x, calibration_labels=y)(x, y, 0) > 0
