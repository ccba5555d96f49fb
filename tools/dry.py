"""Build every lab of a profile at full size and train three steps of each arm, or say what stands in the way.

Memory and time are estimated before anything is allocated, on torch's meta device: the weights with what the optimiser
keeps, what a step keeps for its backward pass, what an evaluation reads at once, and kept checkpoints. An arm is
trained with all its members, those of the sweep or those reported, whichever are more.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch.utils.flop_counter import FlopCounterMode

from kdutils import seeding
from kdutils.lab import lab as labs
from kdutils.lab.optimisers import Adam
from kdutils.lab.pictures import PictureLab
from kdutils.lab.store import Store
from kdutils.lab.training import CALIBRATION
from kdutils.pages import profiles
from kdutils.studies.plans import plan

ARMS: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "labels": ({"curriculum": "labels"}, {}),
    "one-shot": ({"curriculum": "one-shot"}, {}),
    "progressive": ({"curriculum": "progressive"}, {"steps": 1, "gain": 0.5}),
    "extraction": ({"curriculum": "extraction"}, {"steps": 1}),
    "untrained": ({"curriculum": "extraction", "hidden": "untrained"}, {"steps": 1}),
    "joint": ({"curriculum": "joint"}, {"weight": 0.1}),
    "FitNets": ({"curriculum": "fitnets"}, {"steps": 1}),
}
EFFICIENCY = 0.3  # of a large product's speed, for small ones and all else
LABS = {"parity": labs.ParityLab, "controls": labs.ParityLab, "transformer_parity": labs.TransformerParityLab,
        "grammar": labs.GrammarLab, "english": labs.TextLab, "pictures": PictureLab}  # fmt: skip


def variants(profile: str, device: str | None) -> Iterator[tuple[str, type, SimpleNamespace]]:
    """(name, lab, settings) of every size that the chapters of a profile build."""
    table = tomllib.loads((Path(profiles.__file__).parent / "profiles.toml").read_text(encoding="utf-8"))
    if profile not in table:
        raise ValueError(f"unknown profile {profile!r}: choose one of {', '.join(table)}")
    for section in table[profile]:
        s = profiles.load(section, profile, device)
        if section == "first":
            for width in s.widths:
                own = {"teacher_width": width, "student_width": width, "teacher_learning_rate": 1.0, "held_out": 2048}
                steps = {"teacher_batch": s.batch, "teacher_steps": s.steps, "keep_every": s.steps}
                yield f"first, width {width}", labs.ParityLab, SimpleNamespace(**{**vars(s), **own, **steps})
        elif section == "scaling":
            for k, d, teacher_steps, steps in s.sizes:
                own = {"k": k, "d": d, "teacher_steps": teacher_steps, "steps": steps}
                yield f"scaling, k={k} d={d}", labs.ParityLab, SimpleNamespace(**{**vars(s), **own})
        elif section == "smollm2":
            continue  # its teacher is recorded first, which takes hours at this size
        elif section in LABS:
            yield section, LABS[section], s
            for key in ("student_width", "teacher_width"):
                for width in getattr(s, f"{key}s", []):
                    name = f"{section}, {key.replace('_', ' ')} {width}"
                    yield name, LABS[section], SimpleNamespace(**{**vars(s), key: width})
        else:
            raise ValueError(f"{profile} has a section {section!r} that this tool does not know: add it here")


class Load:
    """What some members of a shape need, estimated without allocating it.

    Attributes:
        weights: bytes of all members' parameters.
        kept: bytes that one step keeps for its backward pass, logits three times.
        passed: bytes of the largest tensor of a forward pass.
        flops: of a forward pass.
    """

    def __init__(self, network: torch.nn.Module, members: int, x: torch.Tensor, rows: int) -> None:
        network = network.to("meta")
        inputs = torch.empty((rows, *x.shape[1:]), dtype=x.dtype, device="meta")
        own = {p.untyped_storage()._cdata for p in network.parameters()}
        held: dict[int, torch.Tensor] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            return held.setdefault(tensor.untyped_storage()._cdata, tensor)

        with FlopCounterMode(display=False) as counter:
            network(inputs)
        # a fused attention keeps its inputs and outputs, and never the scores of all pairs that the plain one keeps
        fused = mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", lambda q, k, v, **_: q * k * v)
        with fused, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = network(inputs)
        sizes = [t.untyped_storage().nbytes() for key, t in held.items() if key not in own]
        self.weights = members * sum(p.numel() * p.element_size() for p in network.parameters())
        self.kept = members * (sum(sizes) + 3 * output.nbytes)
        self.passed = members * max([*sizes, output.nbytes])
        self.flops = members * counter.get_total_flops()


def available(device: torch.device) -> int:
    """Bytes that can still be allocated."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available


def speed(device: torch.device) -> float:
    """Floating-point operations a second of a large matrix product."""
    a = torch.ones(1024, 1024, device=device)
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        (a @ a).sum().item()
        best = min(best, time.perf_counter() - started)
    return 2 * 1024**3 / best


def needs(lab: labs.Lab) -> tuple[dict[str, dict[str, float]], float, float]:
    """Bytes by use for the teacher and for the students, and operations: of three steps of each arm, of whole runs."""
    s = lab.settings
    x, y = lab.task.sample(2, seeding.generator(0, "dry", device=s.device))
    copies = 5 if isinstance(lab.optimiser, Adam) else 3  # weights, gradients, a result; two moments
    members, seeds = (
        max(len(s.learning_rates) * len(s.tuning_seeds), len(s.seeds)),
        max(len(s.seeds), len(s.tuning_seeds)),
    )
    teacher, student = lab.make_teacher(), lab.make_student()
    alone, many = Load(teacher, 1, x, s.teacher_batch), Load(student, members, x, s.batch)
    reads = Load(teacher, 1, x, s.batch * seeds)
    calibration = Load(teacher, 1, x, seeds * max(64, CALIBRATION // y[0].numel()))
    film = len(s.seeds) * many.weights / members * (s.steps // s.evaluate_every) if lab.film else 0
    parts = {
        "teacher": {
            "weights": copies * alone.weights, "kept": alone.weights * (s.teacher_steps // s.keep_every),
            "a step": alone.kept, "an evaluation": 3 * Load(teacher, 1, x, 4 * s.teacher_batch).passed,
        },
        "students": {
            "weights": copies * many.weights + 2 * alone.weights, "kept": film, "a step": many.kept + 3 * reads.passed,
            "an evaluation": 3 * Load(student, members, x, 4 * s.batch).passed, "calibration": 3 * calibration.passed,
        },
    }  # fmt: skip
    step = 3 * many.flops + reads.flops
    three = 9 * alone.flops + len(ARMS) * (3 * step + 2 * calibration.flops)
    return parts, three, 3 * alone.flops * s.teacher_steps + len(ARMS) * step * s.steps


def try_out(name: str, kind: type, s: SimpleNamespace, limit: float, folder: str) -> Iterator[str]:
    """Lines that say how a lab went; one that begins with `-` is left out."""
    device = torch.device(s.device)
    lab = kind(SimpleNamespace(**vars(s)), runs=Store(folder))
    parts, three, whole = needs(lab)
    room, rate = available(device), EFFICIENCY * speed(device)
    for who, need in parts.items():
        total = need["weights"] + need["kept"] + max(need[use] for use in need if use not in ("weights", "kept"))
        text = ", ".join(f"{what} {size / 2**30:.2f}" for what, size in need.items())
        yield f"  {name}, {who}: {total / 2**30:.2f} GiB of {room / 2**30:.1f} free ({text})"
        if total > 0.9 * room:
            yield f"- {name}: left out; it does not fit in memory"
            return
    yield f"  {name}: about {whole / rate / 3600:.3g} hours for a teacher and once through each arm"
    if three / rate > limit:
        yield f"- {name}: left out; three steps of each arm take about {three / rate:.0f} s (--limit)"
        return
    own = lab.settings
    own.teacher_steps, own.keep_every, own.evaluate_every, lab.until = 3, 1, 10**9, None
    trained = labs.Lab.teacher(lab)  # a ParityLab's own refuses a teacher that has not learned
    sweep = len(s.learning_rates) * len(s.tuning_seeds) >= len(s.seeds)
    seeds, rates = (s.tuning_seeds, s.learning_rates) if sweep else (s.seeds, s.learning_rates[:1])
    took = []
    for arm, (options, choice) in ARMS.items():
        if kind is PictureLab and options["curriculum"] in ("extraction", "joint", "fitnets"):
            options = {**options, "units": 1}
        curriculum, started = plan(lab, trained, options, choice, 0), time.perf_counter()
        own.steps = len(curriculum.stages) + 2
        lab.fit(curriculum, seeds, rates)
        took.append(f"{arm} {time.perf_counter() - started:.1f}")
    yield f"  {name}: three steps of {len(seeds) * len(rates)} members, seconds: {', '.join(took)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="paper")
    parser.add_argument("--device")
    parser.add_argument("--limit", type=float, default=60, help="seconds that a lab may take; larger ones are left out")
    args = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, kind, settings in variants(args.profile, args.device):
            try:
                for line in try_out(name, kind, settings, args.limit, folder):
                    print(line, flush=True)
            except (FileNotFoundError, ModuleNotFoundError) as error:  # pictures that no package index holds
                print(f"- {name}: left out; {error}", flush=True)
            except (RuntimeError, ValueError, MemoryError) as error:
                failed += 1
                print(f"! {name}: {error}", flush=True)
    sys.exit(bool(failed))


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(str(error))
