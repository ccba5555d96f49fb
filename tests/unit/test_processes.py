"""Two processes on one machine give the weights of one that reads the same global batches."""

import os
import subprocess
import sys
from pathlib import Path

import processes
import pytest
import safetensors.torch
import torch

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    path = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run([*command, HERE / "processes.py", folder], env=environment, capture_output=True, text=True,
                          timeout=300, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    found = {}
    for kind in ("extraction", "FitNets"):
        one = processes.distiller(processes.plan_of(kind))
        processes.loop(one)
        found[f"ddp {kind}"] = one.student.state_dict()
    folder = tmp_path_factory.mktemp("alone")
    hosted = processes.trainer(str(folder), processes.ROWS, processes.plan_of())
    hosted.train()
    found |= dict.fromkeys(("accelerate", "sharded"), found["ddp extraction"])
    return found | dict.fromkeys(("trainer", "trainer resumed"), hosted.distiller.student.state_dict())


@pytest.mark.parametrize(
    "case", ["ddp extraction", "ddp FitNets", "accelerate", "trainer", "trainer resumed", "sharded"]
)
def test_two_processes_are_one(case: str, ran: Path, alone: dict[str, dict[str, torch.Tensor]]) -> None:
    """Adam divides by the size of a gradient: where that is tiny, rounding moves a weight by a part of a step."""
    for rank in range(2):
        two = safetensors.torch.load_file(ran / f"{case}-{rank}.safetensors")
        assert two.keys() == alone[case].keys()
        for name, value in alone[case].items():
            torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4, msg=f"{name} in process {rank}")


def test_processes_with_different_plans_are_refused(ran: Path) -> None:
    for rank in range(2):
        told = (ran / f"refused-{rank}.txt").read_text()
        assert told.startswith("process 1 has another curriculum than process 0: ") and "\n" not in told


def test_an_ensemble_says_that_processes_share_nothing(ran: Path) -> None:
    for rank in range(2):
        told = (ran / f"ensemble-{rank}.txt").read_text().splitlines()
        plain, wrapped = (line for line in told if "processes" in line)
        assert plain.startswith("warned: 2 processes are running and this training shares nothing between them")
        assert wrapped.startswith("refused: DistributedDataParallel is wrapped for several processes")


def test_two_processes_resume_bit_for_bit(ran: Path) -> None:
    for rank in range(2):
        whole, resumed = (
            safetensors.torch.load_file(ran / f"{n}-{rank}.safetensors") for n in ("trainer", "trainer resumed")
        )
        assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)
