"""Train the playground's teachers and write them to `site_assets/play/teachers.js`; the same command, the same file.

Each is an `MLP` that learned its parity from labels, with two of its checkpoints. Weights are stored in one byte each.
What the page and its tests use is what these bytes stand for (`load`), never the weights before rounding.
"""

from __future__ import annotations

import base64
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdutils import curriculum, probes, seeding
from kdutils.lab.ensemble import Ensemble
from kdutils.lab.lab import DONE, Lab
from kdutils.lab.training import train
from kdutils.tasks.models import MLP
from kdutils.tasks.parity import SparseParity

FILE = Path(__file__).resolve().parents[1] / "site_assets" / "play" / "teachers.js"
BITS, ORDERS = (10, 15, 20, 25, 30), (2, 3, 4, 5)  # d, and k
WIDTH, RATE, BATCH, SEED, LONGEST = 64, 1.0, 64, 0, 20_000
HEAD, TAIL = "const kdTeachers = ", ';\nif (typeof module !== "undefined") module.exports = kdTeachers;\n'


def pack(network: MLP) -> str:
    """The weights of an MLP of two classes, in base64.

    A row a neuron: its d incoming weights, its bias, its two outgoing weights. Each of the d + 3 columns is rounded to
    -127 ... 127 steps of its own size. First stand these d + 3 sizes and the two biases of the readout, in float32.
    """
    part = {name: value.detach().cpu().numpy() for name, value in network.named_parameters()}
    table = np.hstack([part["hidden.weight"], part["hidden.bias"][:, None], part["readout.weight"].T])
    sizes = (np.abs(table).max(0).clip(1e-12) / 127).astype("<f4")
    head = np.concatenate([sizes, part["readout.bias"]]).astype("<f4")
    return base64.b64encode(head.tobytes() + np.rint(table / sizes).astype(np.int8).tobytes()).decode()


def unpack(text: str, d: int, width: int) -> MLP:
    """The network that `pack` stored."""
    data = base64.b64decode(text)
    head = np.frombuffer(data, "<f4", d + 5)
    table = np.frombuffer(data, np.int8, offset=head.nbytes).reshape(width, d + 3) * head[: d + 3]
    network, columns = MLP(d, width), torch.from_numpy(table.astype(np.float32))
    network.load_state_dict({
        "hidden.weight": columns[:, :d], "hidden.bias": columns[:, d],
        "readout.weight": columns[:, d + 1 :].T, "readout.bias": torch.from_numpy(head[d + 3 :].copy()),
    })  # fmt: skip
    return network


def read(file: Path = FILE) -> dict[str, Any]:
    """What the file holds: how teachers were trained, and under "teachers", by "d,k", the three networks of each."""
    return json.loads(file.read_text(encoding="utf-8").removeprefix(HEAD).removesuffix(TAIL))


def load(d: int, k: int) -> dict[str, MLP]:
    """The networks of one setting as the page sees them: {"final", "middle", "early"}."""
    held = read()
    return {name: unpack(kept["weights"], d, held["width"]) for name, kept in held["teachers"][f"{d},{k}"].items()}


def teach(d: int, k: int) -> dict[str, dict[str, Any]]:
    """A teacher trained twice as long as it needs to be right about `DONE` of all samples, and two checkpoints.

    The middle one is that of the chapters (`Lab.checkpoint_near`); the early one was kept at half its step.
    """
    task, make, every = SparseParity(d, k), partial(MLP, d, WIDTH), 1 if k == 2 else 5  # two bits take 15 steps
    fit = partial(
        train, task=task, curriculum=curriculum.from_labels(), batch=BATCH, evaluate_every=every, held_out=1024
    )
    first = fit(Ensemble(make, [SEED], [RATE]), steps=LONGEST, until=DONE)
    if first.accuracy[-1, 0] < DONE:
        raise RuntimeError(f"the teacher of d={d}, k={k} was not done after {LONGEST} steps: train it longer")
    last = 2 * int(first.steps[-1])
    run = fit(Ensemble(make, [SEED], [RATE]), steps=last, keep_every=every)
    middle = Lab.checkpoint_near(run)
    steps = {"final": last, "middle": middle, "early": middle // 2 // every * every}
    x, y = task.sample(16_384, seeding.generator(0, "playground"))
    found = {}
    for name, step in steps.items():
        weights = pack(run.network(step=step))
        accuracy = probes.score(unpack(weights, d, WIDTH), x, y, 4096)[1]  # of what is stored
        found[name] = {"step": step, "accuracy": round(accuracy, 3), "weights": weights}
    return found


def main() -> None:
    teachers = {}
    for d in BITS:
        for k in ORDERS:
            teachers[f"{d},{k}"] = found = teach(d, k)
            print(f"d={d} k={k}", {name: (kept["step"], kept["accuracy"]) for name, kept in found.items()}, flush=True)
    held = {"width": WIDTH, "rate": RATE, "batch": BATCH, "seed": SEED, "teachers": teachers}
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text(HEAD + json.dumps(held, separators=(",", ":")) + TAIL, encoding="utf-8")
    print(f"{FILE.name}: {FILE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
