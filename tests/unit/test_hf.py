"""A curriculum on transformers' Trainer: small random networks of several families, resumed, checkpointed, rounded."""

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import TrainingArguments

from kdutils import curriculum, fingerprints, fitting, inside, recorded, seeding
from kdutils.curriculum import Curriculum, Stage
from kdutils.distiller import Distiller
from kdutils.hf import CurriculumTrainer
from kdutils.losses import IGNORE
from kdutils.projections import rademacher, sparse
from kdutils.signals import Hidden, Output

WORDS, LENGTH, PAD, MASK = 24, 8, 0, 1


def sizes(width: int, layers: int) -> dict[str, int]:
    return {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 2 * width}


def llama(width: int, layers: int, words: int = WORDS, **fields: Any) -> nn.Module:
    config = transformers.LlamaConfig(vocab_size=words, num_key_value_heads=1, max_position_embeddings=16,
                                      **sizes(width, layers), **fields)  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def neox(width: int, layers: int) -> nn.Module:
    config = transformers.GPTNeoXConfig(vocab_size=WORDS, max_position_embeddings=16, **sizes(width, layers))
    return transformers.GPTNeoXForCausalLM(config)


def bert(width: int, layers: int) -> nn.Module:
    config = transformers.BertConfig(vocab_size=WORDS, max_position_embeddings=16, pad_token_id=PAD,
                                     **sizes(width, layers))  # fmt: skip
    return transformers.BertForMaskedLM(config)


def vit(width: int, layers: int) -> nn.Module:
    config = transformers.ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=3, **sizes(width, layers))
    return transformers.ViTForImageClassification(config)


def sentences(n: int = 48) -> list[dict[str, torch.Tensor]]:
    """As a collator of causal language models gives them: labels are the inputs."""
    generator = seeding.generator(0, "sentences")
    ids = torch.randint(2, WORDS, (n, LENGTH), generator=generator)
    return [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row} for row in ids]


def masked(n: int = 48) -> list[dict[str, torch.Tensor]]:
    generator, rows = seeding.generator(1, "sentences"), []
    for _ in range(n):
        ids = torch.randint(2, WORDS, (LENGTH,), generator=generator)
        kept = torch.arange(LENGTH) < torch.randint(4, LENGTH + 1, (1,), generator=generator)
        asked = kept & (torch.rand(LENGTH, generator=generator) < 0.4)
        asked[0] = True
        inputs = torch.where(asked, MASK, ids).masked_fill(~kept, PAD)
        rows.append({"input_ids": inputs, "attention_mask": kept.long(), "labels": torch.where(asked, ids, IGNORE)})
    return rows


def pictures(n: int = 48) -> list[dict[str, torch.Tensor]]:
    x = torch.randn(n, 1, 8, 8, generator=seeding.generator(2, "pictures"))
    return [{"pixel_values": row, "labels": row.mean((1, 2)).gt(0).long()[0]} for row in x]


FAMILIES: dict[str, tuple[Callable, Callable, str]] = {
    "Llama": (llama, sentences, "model.layers.{}"),
    "GPT-NeoX": (neox, sentences, "gpt_neox.layers.{}"),
    "BERT": (bert, masked, "bert.encoder.layer.{}"),
    "ViT": (vit, pictures, "vit.layers.{}"),
}


def built(make: Callable[..., nn.Module], width: int, layers: int, seed: int, **fields: Any) -> nn.Module:
    with seeding.global_rng(seed, "init"):
        return make(width, layers, **fields)


def plan_of(teacher: nn.Module, layer: str, steps: int = 3, **fields: Any) -> Curriculum:
    pairs = [(layer.format(1), layer.format(0)), (layer.format(3), layer.format(1))]
    return curriculum.extracted(teacher, pairs, steps, **fields)


def trainer_of(folder: Path, family: str = "Llama", *, plan: Curriculum | None = None, student: nn.Module | None = None,
               keep: dict[str, Any] | None = None, **settings: Any) -> CurriculumTrainer:  # fmt: skip
    make, data, layer = FAMILIES[family]
    plan = plan or plan_of(built(make, 16, 4, 1), layer)
    args = TrainingArguments(str(folder), **{
        "max_steps": 10, "per_device_train_batch_size": 8, "learning_rate": 0.01, "weight_decay": 0.1, "use_cpu": True,
        "report_to": [], "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True, **settings,
    })  # fmt: skip
    student = built(make, 8, 2, 2) if student is None else student
    return CurriculumTrainer(
        student, args, curriculum=plan, train_dataset=data(), eval_dataset=data(16), **(keep or {})
    )


def weights(trainer: CurriculumTrainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.distiller.student.state_dict().items()}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_go_through_their_stages(family: str, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, family)
    assert type(trainer.model).__name__ == "Hosted" and trainer.distiller.starts == [0, 3, 6]
    before = weights(trainer)
    trainer.train()
    stages = [log["stage"] for log in trainer.state.log_history if "loss" in log]
    assert stages == [1, 1, 1, 2, 2, 2, 3, 3, 3, 3]
    told = trainer.evaluate()
    student = trainer.distiller.student.eval()
    batch = trainer.data_collator(FAMILIES[family][1](16))
    with torch.no_grad():
        torch.testing.assert_close(torch.tensor(told["eval_loss"]), student(**batch).loss, rtol=1e-4, atol=1e-4)
    assert not same(before, weights(trainer))
    trainer.save_model(str(tmp_path / "student"))
    loaded = type(student).from_pretrained(tmp_path / "student")
    assert same(dict(loaded.state_dict()), weights(trainer))


def test_a_step_is_a_step_of_the_plain_loop(tmp_path: Path) -> None:
    """Without clipping, schedule and fresh moments, the Trainer's weights are those of the loop on the page."""
    from kdutils.distiller import Distiller

    settings = {"max_grad_norm": 0.0, "lr_scheduler_type": "constant", "train_sampling_strategy": "sequential"}
    trainer = trainer_of(tmp_path, **settings, optim="sgd", keep={"shift_labels": True})
    rows, layer = sentences(), FAMILIES["Llama"][2]
    trainer.train()
    x = torch.stack([row["input_ids"] for row in rows])
    plan = plan_of(built(llama, 16, 4, 1), layer)
    calibration = {"input_ids": x, "attention_mask": torch.ones_like(x)}
    loop = Distiller(built(llama, 8, 2, 2), plan, total=10, calibration=calibration, mask="attention_mask", seed=42)
    named = list(loop.named_parameters())
    decayed, bare = ([p for n, p in named if ("norm" in n) == norm] for norm in (False, True))
    optimiser = torch.optim.SGD([{"params": decayed, "weight_decay": 0.1}, {"params": bare}], 0.01)
    for step in range(10):
        part = x[step % 6 * 8 : step % 6 * 8 + 8]
        labels = torch.cat([part[:, 1:], torch.full((8, 1), IGNORE)], 1)
        optimiser.zero_grad()
        loop({"input_ids": part, "attention_mask": torch.ones_like(part)}, labels, step).backward()
        optimiser.step()
    for name, value in loop.student.state_dict().items():
        torch.testing.assert_close(weights(trainer)[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("at", [3, 5, 8])
@pytest.mark.parametrize("kind", ["extraction", "FitNets"])
def test_a_resumed_run_ends_bit_for_bit_where_the_whole_one_does(kind: str, at: int, tmp_path: Path) -> None:
    """Step 3 is a stage's end."""
    layer = FAMILIES["Llama"][2]

    def trainer(folder: str) -> CurriculumTrainer:
        teacher = built(llama, 16, 4, 1)
        plan = curriculum.fitnets(teacher, layer.format(1), layer.format(0), 4)
        plan = plan if kind == "FitNets" else plan_of(teacher, layer, redraw=True)
        saving = {"save_strategy": "steps", "save_steps": at}
        return trainer_of(tmp_path / folder, plan=plan, **saving, student=built(llama, 8, 2, 2, attention_dropout=0.2))

    whole = trainer("whole")
    whole.train()
    checkpoint = tmp_path / "whole" / f"checkpoint-{at}"
    resumed = trainer("resumed")
    with torch.no_grad():
        for parameter in resumed.distiller.student.parameters():
            parameter.zero_()
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert same(weights(whole), weights(resumed))
    other = trainer_of(tmp_path / "other", plan=plan_of(built(llama, 16, 4, 1), layer, projection=rademacher))
    with pytest.raises(ValueError, match="the saved state is of another curriculum"):
        other.train(resume_from_checkpoint=str(checkpoint))
    (checkpoint / "curriculum.safetensors").unlink()
    with pytest.raises(ValueError, match="is no checkpoint of a CurriculumTrainer"):
        resumed.train(resume_from_checkpoint=str(checkpoint))


def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    plain, saving = trainer_of(tmp_path / "1"), trainer_of(tmp_path / "2", gradient_checkpointing=True)
    for trainer in (plain, saving):
        trainer.train()
    assert saving.distiller.student.model.gradient_checkpointing
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(saving)[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_compiling_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the student itself, before any hook is there; by the Trainer, which would compile nothing of a step, it is
    refused."""
    plain = trainer_of(tmp_path / "1")
    student = built(llama, 8, 2, 2)
    student.compile(backend="eager")
    student(**plain.data_collator(sentences(8)))
    compiled = trainer_of(tmp_path / "2", student=student)
    for trainer in (plain, compiled):
        trainer.train()
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(compiled)[name], value, rtol=1e-4, atol=1e-5, msg=name)
    for name in ("BACKEND", "MODE"):
        monkeypatch.setenv(f"ACCELERATE_DYNAMO_{name}", "no")  # the settings write it for all that follow
    with pytest.raises(ValueError, match=r"torch_compile=True would compile nothing .* call model.compile\(\)"):
        trainer_of(tmp_path / "3", torch_compile=True, torch_compile_backend="eager")


def test_accumulated_steps_are_whole_ones(tmp_path: Path) -> None:
    plain = trainer_of(tmp_path / "1")
    parts = trainer_of(tmp_path / "2", per_device_train_batch_size=4, gradient_accumulation_steps=2)
    for trainer in (plain, parts):
        trainer.train()
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(parts)[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_bfloat16(tmp_path: Path) -> None:
    """A teacher in half precision, and training in mixed precision: every loss is near that of full precision."""
    layer, told = FAMILIES["Llama"][2], []
    for folder, teacher, settings in [
        ("1", torch.float32, {}),
        ("2", torch.bfloat16, {}),
        ("3", torch.bfloat16, {"bf16": True}),
    ]:
        plan = plan_of(built(llama, 16, 4, 1).to(teacher), layer)
        trainer = trainer_of(tmp_path / folder, plan=plan, **settings)
        trainer.train()
        told.append(torch.tensor([log["loss"] for log in trainer.state.log_history if "loss" in log]))
    for losses in told[1:]:
        torch.testing.assert_close(losses, told[0], rtol=0.1, atol=0.01)


def test_padded_vocabularies(tmp_path: Path) -> None:
    layer = FAMILIES["Llama"][2]
    teacher = partial(built, llama, 16, 4, 1, words=32)
    with pytest.raises(ValueError, match="the teacher's output has 32 classes, the student's 24: both need the same"):
        trainer_of(tmp_path, plan=plan_of(teacher(), layer))
    trainer = trainer_of(tmp_path, plan=plan_of(teacher(), layer), keep={"vocabulary": 20})
    assert trainer.train().training_loss > 0
    with pytest.raises(ValueError, match="the student's output has 24 classes, vocabulary=25"):
        trainer_of(tmp_path, plan=plan_of(teacher(), layer), keep={"vocabulary": 25})


def test_labels_are_shifted_for_causal_models_alone(tmp_path: Path) -> None:
    causal, encoder = (trainer_of(tmp_path, family, plan=curriculum.from_labels()) for family in ("Llama", "BERT"))
    batch = {"input_ids": torch.tensor([[3, 4, 5]]), "labels": torch.tensor([[3, 4, 5]])}
    asked = [trainer._asked(batch)[1].tolist() for trainer in (causal, encoder)]
    assert asked == [[[4, 5, IGNORE]], [[3, 4, 5]]] and "labels" in batch
    causal.model.train()
    batch = causal.data_collator(sentences(8))
    loss = causal.compute_loss(causal.model, batch)
    torch.testing.assert_close(loss, causal.distiller.student(**batch).loss)


def test_classes_made_from_causal_models_are_shifted_too(tmp_path: Path) -> None:
    class Mine(transformers.LlamaForCausalLM):
        pass

    assert trainer_of(tmp_path, student=Mine(llama(8, 2).config)).shift_labels


def test_labels_are_shifted_as_in_the_students_own_loss(tmp_path: Path) -> None:
    """The decoder of BART alone is called ForCausalLM, and its own loss does not shift."""
    config = bart(8).config
    config.is_decoder, config.is_encoder_decoder = True, False
    student = transformers.BartForCausalLM(config)
    trainer = trainer_of(tmp_path, plan=curriculum.from_labels(), student=student)
    assert not trainer.shift_labels and student.training
    batch = {name: value[None] for name, value in sentences(1)[0].items()}
    loss = trainer.compute_loss(trainer.model.train(), batch)
    torch.testing.assert_close(loss, student(**batch).loss)
    assert trainer_of(tmp_path).shift_labels


class Own(nn.Module):
    """A network of one's own, whose forward knows nothing of labels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(WORDS, width), nn.Linear(width, WORDS)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(input_ids))


def test_labels_of_a_student_that_takes_none_are_not_dropped(tmp_path: Path) -> None:
    plan = curriculum.one_shot(Own(8))
    seen, student = [], Own(4)
    trainer = trainer_of(tmp_path, "BERT", plan=plan, student=student, max_steps=2, eval_strategy="steps", eval_steps=1)
    trainer.distiller.register_forward_pre_hook(
        lambda _, args, named: seen.append(named["distilled"][1]) if "distilled" in named else None, with_kwargs=True
    )
    trainer.train()
    assert len(seen) == 2 and all((y == IGNORE).any() for y in seen)


def test_a_student_that_rounds_is_shifted_as_in_float32(tmp_path: Path) -> None:
    """A fresh network says nearly the same at every position: only unrounded losses tell."""
    for seed in range(6):
        student = built(llama, 8, 1, seed, words=2000).bfloat16()
        assert fitting.shifts(student, {"input_ids": (ids := torch.randint(2, 2000, (4, 64))), "labels": ids})
    assert fitting.shifts(Own(4), {"input_ids": ids, "labels": ids}) is None


class Shifting(nn.Module):
    """Returns its loss, of the next token, in a form that is not one of transformers' own."""

    def __init__(self, form: type, shift: bool = True) -> None:
        super().__init__()
        self.form, self.shift = form, shift
        self.embed, self.head = nn.Embedding(WORDS, 4), nn.Linear(4, WORDS)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        z = self.head(self.embed(input_ids))
        if labels is None:
            return {"logits": z} if self.form is dict else (z,)
        near, y = (z[:, :-1], labels[:, 1:]) if self.shift else (z, labels)
        loss = nn.functional.cross_entropy(near.flatten(0, 1), y.flatten())
        return {"loss": loss, "logits": z} if self.form is dict else (loss, z)


@pytest.mark.parametrize("form", [dict, tuple])
@pytest.mark.parametrize("shift", [True, False])
def test_labels_are_shifted_as_in_any_students_own_loss(form: type, shift: bool, tmp_path: Path) -> None:
    student, ids = Shifting(form, shift), torch.stack([row["input_ids"] for row in sentences(4)])
    assert fitting.shifts(student, {"input_ids": ids, "labels": ids}) is shift
    trainer = trainer_of(tmp_path, plan=curriculum.from_labels(), student=student, max_steps=1)
    assert trainer.shift_labels is shift


@pytest.mark.parametrize("seed", range(4))
def test_experts_that_are_balanced_do_not_hide_a_shift(seed: int) -> None:
    config = transformers.MixtralConfig(vocab_size=WORDS, num_key_value_heads=1, max_position_embeddings=16,
                                        num_local_experts=2, num_experts_per_tok=1, output_router_logits=True,
                                        router_aux_loss_coef=0.02, **sizes(8, 1))  # fmt: skip
    with seeding.global_rng(seed, "init"):
        student = transformers.MixtralForCausalLM(config)
    ids = torch.randint(2, WORDS, (4, LENGTH), generator=seeding.generator(seed, "ids"))
    assert fitting.shifts(student, {"input_ids": ids, "labels": ids})


def test_a_plan_may_leave_labels_out_that_the_student_could_not_learn(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, plan=curriculum.one_shot(llama(16, 2, words=20)), student=llama(8, 2, words=20),
                         keep={"calibration": {"input_ids": torch.randint(0, 20, (4, 8))}})  # fmt: skip
    assert trainer.shift_labels


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self) -> Any:
        return iter(sentences())


@pytest.mark.parametrize("length", [False, True])
def test_rows_may_come_as_a_stream(length: bool, tmp_path: Path) -> None:
    rows = Stream()
    if length:
        Stream.__len__ = lambda self: 48
    try:
        plan = plan_of(built(llama, 16, 4, 1), FAMILIES["Llama"][2])
        args = TrainingArguments(str(tmp_path), max_steps=8, use_cpu=True, report_to=[], save_strategy="no",
                                 disable_tqdm=True)  # fmt: skip
        trainer = CurriculumTrainer(built(llama, 8, 2, 2), args, curriculum=plan, train_dataset=rows)
        assert trainer.shift_labels and trainer.train().training_loss > 0
    finally:
        if length:
            del Stream.__len__


@pytest.mark.parametrize("steps", [14, 10])
def test_a_resumed_training_may_be_longer_or_is_finished(steps: int, tmp_path: Path) -> None:
    trainer_of(tmp_path, save_strategy="steps", save_steps=5).train()
    again = trainer_of(tmp_path, max_steps=steps)
    if steps == 10:
        with pytest.raises(ValueError, match=r"step 10 is out of range: .* \(the training is finished\)"):
            again.train(resume_from_checkpoint=True)
        return
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == again.distiller.step + 1 == 14


def bart(width: int) -> nn.Module:
    sides = {f"{side}_{name}": value for side in ("encoder", "decoder")
             for name, value in {"layers": 1, "attention_heads": 2, "ffn_dim": 16}.items()}  # fmt: skip
    config = transformers.BartConfig(vocab_size=WORDS, d_model=width, max_position_embeddings=16, dropout=0.0, **sides)
    return transformers.BartForConditionalGeneration(config)


def t5(width: int) -> nn.Module:
    config = transformers.T5Config(vocab_size=WORDS, d_model=width, d_kv=4, d_ff=16, num_layers=1, num_heads=2,
                                   dropout_rate=0.0, decoder_start_token_id=0)  # fmt: skip
    return transformers.T5ForConditionalGeneration(config)


@pytest.mark.parametrize(("make", "layer"), [(bart, "model.{}.layers.0"), (t5, "{}.block.0")])
def test_a_decoder_reads_what_its_labels_say(make: Callable, layer: str, tmp_path: Path) -> None:
    source, wanted = torch.randint(3, WORDS, (2, 32, LENGTH), generator=seeding.generator(3, "sentences"))
    rows = [
        {"input_ids": a, "attention_mask": torch.ones_like(a), "labels": b} for a, b in zip(source, wanted, strict=True)
    ]

    def trainer(side: str, data: Any = rows, **keep: Any) -> CurriculumTrainer:
        path = layer.format(side)
        plan = curriculum.extracted(built(lambda w, n: make(w), 16, 1, 1), [(path, path)], 1)
        args = TrainingArguments(
            str(tmp_path), max_steps=3, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True
        )
        return CurriculumTrainer(
            built(lambda w, n: make(w), 8, 1, 2), args, curriculum=plan, train_dataset=data, **keep
        )

    seen, one = [], trainer("decoder", mask=None)
    student = one.distiller.student
    student.get_decoder().register_forward_pre_hook(
        lambda m, a, named: seen.append(named["input_ids"]), with_kwargs=True
    )
    one.train()
    shifted = {tuple(row) for row in student.prepare_decoder_input_ids_from_labels(wanted).tolist()}
    assert len(seen) == 3 and {tuple(row) for ids in seen for row in ids.tolist()} <= shifted
    assert trainer("encoder")._settings["mask"] == "attention_mask"
    with pytest.raises(ValueError, match="attention_mask is of the encoder, and the plan reads layers of the decoder"):
        trainer("decoder")
    bare = [{name: value for name, value in row.items() if name != "labels"} for row in rows]
    with pytest.raises(ValueError, match="an encoder-decoder needs decoder_input_ids in its batches, or labels"):
        trainer("encoder", bare)


def test_classifiers_make_their_decoders_inputs_themselves(tmp_path: Path) -> None:
    student = transformers.BartForSequenceClassification(bart(8).config)
    rows = [{"input_ids": torch.tensor([3, 4, 5, 2]), "labels": torch.tensor(n % 3)} for n in range(16)]
    args = TrainingArguments(
        str(tmp_path), max_steps=2, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True
    )
    trainer = CurriculumTrainer(student, args, curriculum=curriculum.from_labels(), train_dataset=rows)
    assert trainer.train().training_loss > 0


def test_epochs_are_counted(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, max_steps=-1, num_train_epochs=2)
    assert trainer.distiller.total == 12


def test_what_is_refused_with_one_clear_line(tmp_path: Path) -> None:
    for settings, wrong in [
        ({"max_steps": 6}, "'extraction' needs at least 7 steps; the budget is 6"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor has no meaning here"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size has no meaning here"),
        ({"keep": {"compute_loss_func": print}}, "compute_loss_func has no meaning here"),
        ({"student": torch.compile(built(llama, 8, 2, 2))}, r"torch.compile\(model\) hides its class"),
        ({"keep": {"mask": "kept"}}, "the batch has no entry 'kept' to be the mask of positions"),
        ({"plan": built(llama, 8, 2, 2)}, "curriculum must be a Curriculum, as from kdutils.curriculum, not a Llama"),
    ]:
        with pytest.raises(ValueError, match=wrong):
            trainer_of(tmp_path, **settings)


def test_a_trainer_goes_on_with_the_student_and_not_with_what_is_around_it(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    with pytest.raises(ValueError, match=r"model must be the student itself, .*: give trainer\.distiller\.student"):
        trainer_of(tmp_path, student=trainer.model)
    batch, y = trainer._asked(trainer._collated(sentences(8)))
    loss = trainer.distiller(batch, y, 0)
    assert loss.requires_grad and trainer.distiller.evaluate(batch, y, 0) == loss.detach()  # there is no dropout
    trainer_of(tmp_path, student=trainer.distiller.student, max_steps=7).train()


def test_generating_in_evaluation_needs_a_class_of_both(tmp_path: Path) -> None:
    ids = torch.randint(3, WORDS, (16, LENGTH), generator=seeding.generator(3, "sentences"))
    rows = [{"input_ids": row, "labels": row} for row in ids]
    args = transformers.Seq2SeqTrainingArguments(
        str(tmp_path), max_steps=2, use_cpu=True, report_to=[], disable_tqdm=True, predict_with_generate=True
    )
    settings = {"curriculum": curriculum.from_labels(), "train_dataset": rows, "eval_dataset": rows}
    with pytest.raises(ValueError, match=r"write `class Both\(CurriculumTrainer, Seq2SeqTrainer\): pass`"):
        CurriculumTrainer(bart(8), args, **settings)

    class Both(CurriculumTrainer, transformers.Seq2SeqTrainer):
        pass

    shapes: list[int] = []
    Both(bart(8), args, compute_metrics=lambda said: shapes.append(said.predictions.ndim) or {}, **settings).evaluate()
    assert shapes == [2]


def test_outputs_without_a_head_are_no_classes() -> None:
    def bare(width: int) -> nn.Module:
        config = transformers.BertConfig(vocab_size=WORDS, max_position_embeddings=16, **sizes(width, 1))
        return transformers.BertModel(config)

    student, teacher, batch = bare(8), bare(8), {"input_ids": torch.stack([row["input_ids"] for row in sentences(8)])}
    for plan in (curriculum.one_shot(teacher), curriculum.joint(teacher, 0.5, "encoder.layer.0", "encoder.layer.0")):
        with pytest.raises(ValueError, match="BertModel has no head, and its last_hidden_state no classes: give one"):
            Distiller(student, plan, total=3, calibration=batch)
    hidden = Curriculum("embeddings", (Stage(Hidden(teacher, "", "")),))
    assert Distiller(student, hidden, total=3, calibration=batch)(batch, None, 0).isfinite()
    assert not student._forward_hooks


@pytest.mark.parametrize(("make", "layer"), [(bart, "model.{}.layers.0"), (t5, "{}.block.0")])
def test_a_decoder_is_told_what_it_reads_in_a_loop_of_ones_own(make: Callable, layer: str, tmp_path: Path) -> None:
    teacher, student = (built(lambda w, n: make(w), width, 1, width) for width in (16, 8))
    ids, y = torch.randint(3, WORDS, (2, 16, LENGTH), generator=seeding.generator(3, "sentences"))
    bare = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    whole = bare | {"decoder_input_ids": student.prepare_decoder_input_ids_from_labels(y)}
    encoder, decoder = (curriculum.extracted(teacher, [(p, p)], 2) for p in map(layer.format, ("encoder", "decoder")))
    wrong = r"needs decoder_input_ids in its batches, and the calibration.*make them of the labels \(prepare_dec"
    for plan in (curriculum.from_labels(), curriculum.one_shot(teacher), decoder):
        with pytest.raises(ValueError, match=wrong):
            Distiller(student, plan, total=4, calibration=bare)
        with pytest.raises(ValueError, match=wrong):
            Distiller(student, plan, total=4, calibration=whole)(bare, y, 0)
    with pytest.raises(ValueError, match=wrong):
        recorded.record(encoder, student, [bare], tmp_path, calibration=bare)
    loss = Distiller(student, curriculum.from_labels(), total=4, calibration=whole)(whole, y, 0)
    torch.testing.assert_close(loss, student(**bare, labels=y).loss)
    distiller = Distiller(student, encoder, total=4, calibration=whole)
    assert distiller(bare, None, 0).isfinite()  # an encoder needs no decoder


@pytest.mark.parametrize("family", ["Llama", "BERT"])
def test_a_recorded_teacher_teaches_what_the_live_one_does(family: str, tmp_path: Path) -> None:
    live = trainer_of(tmp_path / "live", family)
    live.record(tmp_path / "record", top_k=None, shard=20)
    plan = recorded.plan(tmp_path / "record", of=live.distiller.plan)
    parts = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4} if family == "Llama" else {}
    again = trainer_of(tmp_path / "again", family, plan=plan, **parts)
    for trainer in (live, again):
        transformers.set_seed(0)  # the same dropout
        trainer.train()
    one, two = ([log["loss"] for log in t.state.log_history if "loss" in log] for t in (live, again))
    torch.testing.assert_close(torch.tensor(two), torch.tensor(one), rtol=0.01, atol=0.01)
    assert again.evaluate()["eval_loss"] == pytest.approx(live.evaluate()["eval_loss"], rel=0.02)
    other = FAMILIES[family][1]()[::-1]
    changed = trainer_of(tmp_path / "again", family, plan=plan)
    changed.train_dataset.rows = other
    with pytest.raises(ValueError, match="is not what was recorded: its inputs have changed"):
        changed.train()


def test_packed_texts_are_read_as_several(tmp_path: Path) -> None:
    """Models of transformers know them by their positions, and only where they keep no keys and values."""
    trainer = trainer_of(tmp_path, keep={"mask": None})
    teacher, ids = trainer.distiller.plan.stages[-1].signal.teacher, torch.randint(2, WORDS, (1, LENGTH))
    half = LENGTH // 2
    packed = {"input_ids": ids, "position_ids": torch.arange(half).repeat(2)[None]}
    assert teacher.config.use_cache
    x = inside.lead(packed)
    said = trainer.distiller._one.read(teacher, x, "")[0]
    alone = [teacher(part, use_cache=False).logits for part in ids.split(half, 1)]
    torch.testing.assert_close(said, torch.cat(alone, 1), rtol=1e-4, atol=1e-5)
    assert teacher.config.use_cache


def test_a_mask_that_the_calibration_lacks_is_missed(tmp_path: Path) -> None:
    calibration = {"input_ids": torch.stack([row["input_ids"] for row in sentences(8)])}
    trainer = trainer_of(tmp_path, keep={"calibration": calibration})
    with pytest.raises(ValueError, match="the batches have an attention_mask, and the calibration had none"):
        trainer.train()


def test_a_stage_of_some_parameters_ends_with_its_trainer(tmp_path: Path) -> None:
    student, teacher = built(llama, 8, 2, 2), built(llama, 16, 4, 1)
    plan = Curriculum("head", (Stage(Output(teacher), only=("lm_head",)),))
    trainer_of(tmp_path / "1", plan=plan, student=student, max_steps=2).train()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    settings = TrainingArguments(str(tmp_path / "2"), max_steps=2, learning_rate=0.1, use_cpu=True, report_to=[],
                                 disable_tqdm=True, save_strategy="no")  # fmt: skip
    transformers.Trainer(student, settings, train_dataset=sentences()).train()
    assert all(not torch.equal(value, before[name]) for name, value in student.named_parameters())


def test_models_with_convolutions_and_classes_by_position(tmp_path: Path) -> None:
    """Labels, one a position, tell where the classes are; without labels, a model of transformers has them last."""

    def mamba(width: int, layers: int) -> nn.Module:
        return transformers.MambaForCausalLM(transformers.MambaConfig(
            vocab_size=WORDS, hidden_size=width, num_hidden_layers=layers, state_size=2, pad_token_id=PAD,
            bos_token_id=1, eos_token_id=1,
        ))  # fmt: skip

    student, plan = built(mamba, 8, 1, 2), curriculum.one_shot(built(mamba, 16, 1, 1))
    rows = [{name: value for name, value in row.items() if name != "attention_mask"} for row in sentences()]
    settings = TrainingArguments(str(tmp_path), max_steps=2, use_cpu=True, report_to=[], disable_tqdm=True,
                                 save_strategy="no")  # fmt: skip
    CurriculumTrainer(student, settings, curriculum=plan, train_dataset=rows).train()
    Distiller(student, plan, total=2, calibration={"input_ids": torch.stack([row["input_ids"] for row in rows[:8]])})


def test_heads_that_are_no_classes_are_refused(tmp_path: Path) -> None:
    def several(width: int, layers: int) -> nn.Module:
        config = transformers.BertConfig(vocab_size=WORDS, max_position_embeddings=16, num_labels=3,
                                         problem_type="multi_label_classification", **sizes(width, layers))  # fmt: skip
        return transformers.BertForSequenceClassification(config)

    student, teacher = built(several, 8, 2, 2), built(several, 16, 2, 1)
    with pytest.raises(ValueError, match=r"is for multi_label_classification .*by a signal of your own"):
        Distiller(student, curriculum.one_shot(teacher), total=2, calibration=torch.ones(2, 4, dtype=torch.long))


def test_a_model_is_still_called_by_position(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    ids = torch.randint(2, WORDS, (2, LENGTH))
    assert torch.equal(trainer.model(ids).logits, trainer.distiller.student(ids).logits)


def test_rows_that_can_be_read_once_are_refused(tmp_path: Path) -> None:
    rows = iter(sentences())
    settings = TrainingArguments(str(tmp_path), max_steps=2, use_cpu=True, report_to=[])
    with pytest.raises(ValueError, match="the train_dataset can be read only once: give one that starts anew"):
        CurriculumTrainer(built(llama, 8, 2, 2), settings, train_dataset=Once(rows),
                          curriculum=plan_of(built(llama, 16, 4, 1), "model.layers.{}"))  # fmt: skip


class Once(torch.utils.data.IterableDataset):
    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __iter__(self) -> Any:
        return self.rows


def test_teachers_of_other_configs_are_told_apart() -> None:
    one, two = (built(llama, 8, 2, 1, rope_theta=theta) for theta in (1e4, 5e5))
    two.load_state_dict(one.state_dict())
    same = built(llama, 8, 2, 1, use_cache=False)
    assert fingerprints.fingerprint(one) == fingerprints.fingerprint(same) != fingerprints.fingerprint(two)


def sorter(width: int, kind: str, **fields: Any) -> nn.Module:
    if kind == "bert":
        config = transformers.BertConfig(vocab_size=WORDS, max_position_embeddings=16, num_labels=3, **sizes(width, 2),
                                         initializer_range=0.6, **fields)  # fmt: skip
        return transformers.BertForSequenceClassification(config)
    config = transformers.DistilBertConfig(vocab_size=WORDS, dim=width, n_layers=1, n_heads=2, hidden_dim=2 * width,
                                           max_position_embeddings=16, num_labels=3, **fields)  # fmt: skip
    return transformers.DistilBertForSequenceClassification(config)


def trained(folder: Path, student: nn.Module, plan: Curriculum, rows: list, **fields: Any) -> CurriculumTrainer:
    keep = {name: fields.pop(name) for name in ("mask", "compute_metrics", "callbacks") if name in fields}
    args = TrainingArguments(str(folder), **{
        "max_steps": 4, "per_device_train_batch_size": 8, "use_cpu": True, "report_to": [], "save_strategy": "no",
        "disable_tqdm": True, **fields,
    })  # fmt: skip
    trainer = CurriculumTrainer(student, args, curriculum=plan, train_dataset=rows, eval_dataset=rows[:8], **keep)
    trainer.train()
    return trainer


def test_teachers_read_columns_that_the_student_does_not_take(tmp_path: Path) -> None:
    teacher, student = sorter(16, "bert"), sorter(8, "distil")
    seen: list[torch.Tensor | None] = []
    teacher.bert.register_forward_pre_hook(lambda _, x, named: seen.append(named["token_type_ids"]), with_kwargs=True)
    kinds = (torch.arange(LENGTH) > 3).long()
    rows = [{"input_ids": row["input_ids"], "token_type_ids": kinds, "attention_mask": row["attention_mask"],
             "labels": i % 3} for i, row in enumerate(sentences())]  # fmt: skip
    trainer = trained(tmp_path / "1", student, curriculum.one_shot(teacher), rows)
    assert seen and all(found is not None and (found == kinds).all() for found in seen)
    assert trainer.evaluate()["eval_loss"] > 0
    trainer.record(tmp_path / "record")
    trained(tmp_path / "2", sorter(8, "distil"), recorded.plan(tmp_path / "record"), rows)


@pytest.mark.parametrize("mask", ["attention_mask", "loss_mask"])
def test_a_mask_counts_that_the_student_does_not_take(mask: str, tmp_path: Path) -> None:
    teacher = built(llama, 16, 2, 1)
    padded = (torch.arange(LENGTH) >= 4).long()
    rows = [{"input_ids": row["input_ids"], mask: padded} for row in sentences()]
    plan = curriculum.extracted(teacher, [("model.layers.1", "embed")], 2)
    trainer = trained(tmp_path, Own(8), plan, rows, mask=mask)
    batch = trainer._collated(rows[:8])
    assert trainer._settings["mask"] == mask and set(batch) == {"input_ids", mask}
    losses = []
    for changed in (0, 5):  # a token that does not count, and one that does
        other = {"input_ids": batch["input_ids"].clone(), mask: batch[mask]}
        other["input_ids"][:, changed] = 3
        losses.append([trainer.distiller.train()(distilled=(given, None, 0)).item() for given in (batch, other)])
    assert losses[1][0] != losses[1][1]
    if mask == "attention_mask":  # the teacher, which is causal, does not look there either
        assert losses[0][0] == losses[0][1]


@pytest.mark.parametrize("settings", [{}, {"label_names": ["labels"]}])
def test_metrics_of_a_student_that_takes_no_labels(settings: dict[str, Any], tmp_path: Path) -> None:
    seen = []

    def measured(found: Any) -> dict[str, float]:
        seen.append((found.predictions.shape, found.label_ids.shape))
        return {"accuracy": float((found.predictions.argmax(-1) == found.label_ids).mean())}

    rows = [{name: row[name] for name in ("input_ids", "labels")} for row in sentences()]
    trainer = trained(tmp_path, Own(8), curriculum.one_shot(Own(16)), rows, compute_metrics=measured, **settings,
                      eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2,
                      load_best_model_at_end=True, metric_for_best_model="accuracy")  # fmt: skip
    assert 0 <= trainer.evaluate()["eval_accuracy"] <= 1
    assert set(seen) == {((8, LENGTH, WORDS), (8, LENGTH))}


def seeded(seed: int) -> nn.Module:
    with seeding.global_rng(seed, "init"):
        return Own(8)


class Halt(transformers.TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step == 2


@pytest.mark.parametrize(("steps", "told"), [(3, 1), (1, 0)])
def test_a_training_that_ends_in_an_early_stage_is_told(steps: int, told: int, tmp_path: Path) -> None:
    plan = curriculum.extracted(Own(16), [("embed", "embed")], steps)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trained(tmp_path, Own(8), plan, sentences(), callbacks=[Halt()])
    assert sum("ended after 2 steps, in stage 1 of 2" in str(one.message) for one in said) == told


def test_sparse_redrawn_maps_are_saved_and_resumed(tmp_path: Path) -> None:
    plan = curriculum.extracted(Own(16), [("embed", "embed")], 3, sparse, redraw=True)
    whole = trained(tmp_path, seeded(1), plan, sentences(), save_strategy="steps", save_steps=2)
    again = seeded(2)
    args = TrainingArguments(str(tmp_path), max_steps=4, per_device_train_batch_size=8, use_cpu=True, report_to=[],
                             save_strategy="no", disable_tqdm=True)  # fmt: skip
    trainer = CurriculumTrainer(again, args, curriculum=plan, train_dataset=sentences())
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert same(weights(whole), weights(trainer))


class Spans(nn.Module):
    """Answers with the places of a start and an end, as students of questions do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(WORDS, width), nn.Linear(width, 2)

    def forward(self, input_ids: torch.Tensor, start_positions: Any = None, end_positions: Any = None) -> Any:
        start, end = self.head(self.embed(input_ids)).unbind(-1)
        return transformers.modeling_outputs.QuestionAnsweringModelOutput(start_logits=start, end_logits=end)


def test_hidden_stages_need_no_labels_of_one_kind(tmp_path: Path) -> None:
    rows = [{"input_ids": row["input_ids"], "start_positions": 1, "end_positions": 2} for row in sentences()]
    settings = {"label_names": ["start_positions", "end_positions"]}
    plan = Curriculum("hidden", (Stage(Hidden(Spans(16), "embed", "embed")),))
    assert trained(tmp_path / "1", Spans(8), plan, rows, **settings).state.global_step == 4
    with pytest.raises(ValueError, match="a curriculum knows one kind of labels"):
        trained(tmp_path / "2", Spans(8), curriculum.one_shot(Spans(16)), rows, **settings)


def test_what_an_evaluation_in_half_precision_does_is_told(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, bf16_full_eval=True)
    trainer.evaluate()
    with pytest.raises(ValueError, match="by an evaluation in half precision before the training, as with bf16_full_"):
        trainer.train()


def test_teachers_for_several_labels_are_refused(tmp_path: Path) -> None:
    teacher = sorter(16, "bert", problem_type="multi_label_classification")
    rows = [{"input_ids": row["input_ids"]} for row in sentences()]
    with pytest.raises(ValueError, match="BertForSequenceClassification is for multi_label_classification"):
        trained(tmp_path, sorter(8, "distil"), curriculum.one_shot(teacher), rows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"args": None}, "args must be TrainingArguments"),
        ({"train_dataset": []}, "the train_dataset has no rows"),
        ({"shift_labels": "yes"}, "shift_labels must be one of None, True, False, not 'yes'"),
    ],
)
def test_arguments_of_a_trainer_that_are_something_else(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    args = TrainingArguments(str(tmp_path), max_steps=8, use_cpu=True, report_to=[])
    given = {"model": llama(8, 2), "args": args, "train_dataset": sentences(), "curriculum": curriculum.from_labels()}
    with pytest.raises(ValueError, match=message):
        CurriculumTrainer(**(given | changes))


def speech(width: int, layers: int) -> nn.Module:
    config = transformers.WhisperConfig(
        vocab_size=40, num_mel_bins=8, max_source_positions=20, max_target_positions=16, d_model=width,
        encoder_layers=layers, decoder_layers=layers, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=3, suppress_tokens=None, begin_suppress_tokens=None)  # fmt: skip
    return transformers.WhisperForConditionalGeneration(config)


def translated(width: int, layers: int) -> nn.Module:
    config = transformers.M2M100Config(
        vocab_size=40, max_position_embeddings=32, d_model=width, encoder_layers=layers, decoder_layers=layers,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, dropout=0.0, attention_dropout=0.0)  # fmt: skip
    return transformers.M2M100ForConditionalGeneration(config)


@pytest.mark.parametrize("make", [speech, translated])
def test_decoder_inputs_come_from_labels_as_the_networks_own_loss_makes_them(make: Callable, tmp_path: Path) -> None:
    generator = seeding.generator(5, "rows")
    ids = torch.randint(4, 40, (8, 7), generator=generator)
    name, inputs = (
        ("input_features", torch.randn(8, 8, 40, generator=generator)) if make is speech else ("input_ids", ids)
    )
    rows = [{name: x, "labels": y.flip(0)} for x, y in zip(inputs, ids, strict=True)]
    student = built(make, 16, 1, 0).eval()
    own = student(**{name: inputs, "labels": ids.flip(1)}).loss.item()
    for plan in (curriculum.from_labels(), curriculum.one_shot(built(make, 32, 1, 1))):
        args = TrainingArguments(tmp_path, max_steps=1, per_device_train_batch_size=8, learning_rate=0.0, use_cpu=True,
                                 report_to=[], disable_tqdm=True, save_strategy="no", logging_steps=1)  # fmt: skip
        trainer = CurriculumTrainer(student, args, curriculum=plan, train_dataset=rows)
        trainer.train()
        if plan.name == "labels":
            assert trainer.state.log_history[0]["loss"] == pytest.approx(own, rel=1e-2)
    with pytest.raises(ValueError, match="needs decoder_input_ids in its batches"):
        Distiller(built(make, 16, 1, 0), plan, total=3, calibration={name: inputs})


def test_a_log_is_of_one_stage(tmp_path: Path) -> None:
    plan = plan_of(built(llama, 16, 4, 1), "model.layers.{}", 3)  # two hidden stages of three steps
    args = TrainingArguments(tmp_path, max_steps=10, per_device_train_batch_size=8, logging_steps=4, use_cpu=True,
                             report_to=[], disable_tqdm=True, save_strategy="no", learning_rate=0.0)  # fmt: skip
    trainer = CurriculumTrainer(built(llama, 8, 2, 0), args, curriculum=plan, train_dataset=sentences())
    trainer.train()
    logs = [(log["step"], log["stage"], log["loss"]) for log in trainer.state.log_history if "loss" in log]
    assert [log[:2] for log in logs][:4] == [(3, 1), (4, 2), (6, 2), (8, 3)]
    hidden, outputs = [loss for _, stage, loss in logs if stage < 3], [loss for *_, stage, loss in logs if stage == 3]
    assert min(hidden) > 10 * max(outputs)  # a mean over the boundary would lie between


class Wrapped(nn.Module):
    """As adapters and prompts are put around a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **batch: Any) -> Any:
        return self.model(**batch)


def test_labels_are_shifted_as_a_network_does_that_takes_what_it_is_given(tmp_path: Path) -> None:
    rows, student = sentences(8), Wrapped(built(llama, 8, 1, 0))
    args = TrainingArguments(tmp_path, max_steps=1, per_device_train_batch_size=8, learning_rate=0.0, use_cpu=True,
                             label_names=["labels"], logging_steps=1, remove_unused_columns=False, report_to=[],
                             disable_tqdm=True, save_strategy="no")  # fmt: skip
    trainer = CurriculumTrainer(student, args, curriculum=curriculum.from_labels(), train_dataset=rows)
    trainer.train()
    ids = torch.stack([row["input_ids"] for row in rows])
    own = student(input_ids=ids, labels=ids).loss.item()
    assert trainer.shift_labels and trainer.state.log_history[0]["loss"] == pytest.approx(own, rel=1e-4)


def test_labels_of_another_kind_are_to_be_left_out_of_the_rows() -> None:
    student, teacher = nn.Linear(3, 5), nn.Linear(3, 5)
    x, y = torch.randn(4, 6, 3), torch.randint(0, 5, (4, 2))
    with pytest.raises(ValueError, match="leave out labels of another kind, as of CTC"):
        Distiller(student, curriculum.one_shot(teacher), total=3, calibration=x)(x, y, 0)
