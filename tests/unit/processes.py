"""Run by torchrun in `test_processes.py`: each case trains in every process on its share of the same global batches."""

import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from kdutils import curriculum, seeding
from kdutils.curriculum import Curriculum
from kdutils.distiller import Distiller
from kdutils.lab.ensemble import Ensemble
from kdutils.lab.training import train
from kdutils.losses import IGNORE
from kdutils.projections import rademacher
from kdutils.tasks.models import MLP
from kdutils.tasks.parity import SparseParity

WORDS, LENGTH, ROWS, STEPS = 20, 6, 8, 9
LAYER = "model.layers.{}"
ON = {"use_cpu": True, "report_to": [], "save_steps": 5, "disable_tqdm": True, "logging_strategy": "no"}


def network(width: int, layers: int, seed: int) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    with seeding.global_rng(seed, "init"):
        return LlamaForCausalLM(LlamaConfig(
            vocab_size=WORDS, hidden_size=width, num_hidden_layers=layers, num_attention_heads=2, num_key_value_heads=1,
            intermediate_size=2 * width, max_position_embeddings=8,
        ))  # fmt: skip


def plan_of(kind: str = "extraction", **fields: Any) -> Curriculum:
    teacher = network(16, 4, 1)
    if kind == "FitNets":
        return curriculum.fitnets(teacher, LAYER.format(1), LAYER.format(0), 4)
    return curriculum.extracted(
        teacher, [(LAYER.format(1), LAYER.format(0)), (LAYER.format(3), LAYER.format(1))], 3, **fields
    )


def ids() -> torch.Tensor:
    return torch.randint(0, WORDS, (STEPS * ROWS, LENGTH), generator=seeding.generator(0, "ids"))


def distiller(plan: Curriculum) -> Distiller:
    return Distiller(network(8, 2, 2), plan, total=STEPS, calibration={"input_ids": ids()[:32]})


def labels(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x[:, 1:], torch.full_like(x[:, :1], IGNORE)], 1)


def loop(host: nn.Module, rank: int = 0, ranks: int = 1, backward: Callable = torch.Tensor.backward) -> None:
    """AdamW with weight decay and clipping; rank r of n reads every n-th row of a batch."""
    optimiser = torch.optim.AdamW(host.parameters(), 0.01, weight_decay=0.1)
    for step, x in enumerate(ids().split(ROWS)):
        x = x[rank::ranks]
        optimiser.zero_grad()
        backward(host({"input_ids": x}, labels(x), step))
        nn.utils.clip_grad_norm_(host.parameters(), 1.0)
        optimiser.step()


def trainer(folder: str, rows: int, plan: Curriculum) -> Any:
    from transformers import TrainingArguments

    from kdutils.hf import CurriculumTrainer

    args = TrainingArguments(folder, max_steps=STEPS, per_device_train_batch_size=rows, learning_rate=0.01,
                             weight_decay=0.1, train_sampling_strategy="sequential", **ON)  # fmt: skip
    data = [{"input_ids": row, "labels": row} for row in ids()]
    return CurriculumTrainer(network(8, 2, 2), args, curriculum=plan, train_dataset=data)


def accelerated(rank: int) -> dict[str, torch.Tensor]:
    from accelerate import Accelerator, DistributedDataParallelKwargs

    accelerator = Accelerator(cpu=True, kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])
    one = distiller(plan_of())
    optimiser = torch.optim.AdamW(one.parameters(), 0.01, weight_decay=0.1)
    rows = torch.utils.data.DataLoader(ids(), ROWS // 2)
    host, optimiser, rows = accelerator.prepare(one, optimiser, rows)
    for step, x in enumerate(rows):
        optimiser.zero_grad()
        accelerator.backward(host({"input_ids": x}, labels(x), step))
        accelerator.clip_grad_norm_(host.parameters(), 1.0)
        optimiser.step()
    return accelerator.unwrap_model(host).student.state_dict()


def sharded(kind: str) -> dict[str, torch.Tensor]:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import fully_shard

    one = distiller(plan_of(kind))
    for block in one.student.model.layers:
        fully_shard(block)
    fully_shard(one, ignored_params=set(one.drawn.parameters()))
    loop(one, distributed.get_rank(), 2)
    state = get_model_state_dict(one, options=StateDictOptions(full_state_dict=True))
    return {k.removeprefix("student."): v for k, v in state.items() if k.startswith("student.")}


def ensembles() -> Iterator[str]:
    """What is said of an ensemble while two processes run, and of one whose networks were wrapped for them."""
    makers: tuple[Callable[[], nn.Module], ...] = (lambda: MLP(4, 8), lambda: DistributedDataParallel(MLP(4, 8)))
    for make in makers:
        students = Ensemble(make, seeds=[0], learning_rates=[0.1])
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                train(students, SparseParity(4, 2), curriculum.from_labels(), steps=2, batch=4, held_out=8)
            except ValueError as error:
                yield f"refused: {error}"
        yield from (f"warned: {warning.message}" for warning in told)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()

    def keep(name: str, state: dict[str, torch.Tensor]) -> None:
        safetensors.torch.save_file({k: v.clone() for k, v in state.items()}, folder / f"{name}-{rank}.safetensors")

    for kind in ("extraction", "FitNets"):
        one = distiller(plan_of(kind))
        loop(DistributedDataParallel(one, find_unused_parameters=True), rank, 2)
        keep(f"ddp {kind}", one.student.state_dict())
    keep("accelerate", accelerated(rank))
    hosted = trainer(str(folder / "trainer"), ROWS // 2, plan_of())
    hosted.train()
    keep("trainer", hosted.distiller.student.state_dict())
    resumed = trainer(str(folder / "resumed"), ROWS // 2, plan_of())
    resumed.train(resume_from_checkpoint=str(folder / "trainer" / "checkpoint-5"))  # inside the second stage
    keep("trainer resumed", resumed.distiller.student.state_dict())
    other = distiller(plan_of(**({"projection": rademacher} if rank else {})))
    try:
        loop(DistributedDataParallel(other, find_unused_parameters=True), rank, 2)
    except ValueError as error:
        (folder / f"refused-{rank}.txt").write_text(str(error))
    keep("sharded", sharded("extraction"))
    (folder / f"ensemble-{rank}.txt").write_text("\n".join(ensembles()))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
