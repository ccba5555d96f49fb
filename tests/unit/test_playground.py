"""The playground trains as kdutils does: the same samples and initial weights give the same students."""

import base64
import json
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from kdutils import curriculum, probes, projections, seeding, signals
from kdutils.curriculum import Curriculum, Stage
from kdutils.lab.ensemble import Ensemble
from kdutils.lab.training import CALIBRATION, train
from kdutils.tasks.models import MLP
from kdutils.tasks.parity import SparseParity
from kdutils.tasks.sampling import Samples

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import playground_teachers as kept  # noqa: E402

pytestmark = pytest.mark.skipif(not shutil.which("node"), reason="needs Node.js: install it (Debian: nodejs)")
D, K, WIDTH, SEED, STEPS, BATCH = 20, 3, 32, 7, 50, 32
# Every curriculum of the page, some stages of one's own in an odd order, and two other rates.
PLANS = {
    "labels": [("labels", None)],
    "one-shot": [("final", None)],
    "a checkpoint": [("middle", 20), ("final", None)],
    "early checkpoint": [("early", 20), ("final", None)],
    "dense": [("dense", 20), ("final", None)],
    "sparse": [("sparse", 20), ("final", None)],
    "untrained": [("untrained", 20), ("final", None)],
    "own": [("labels", 7), ("sparse", 11), ("middle", 5), ("untrained", 6), ("dense", None)],
    "hidden to the end": [("dense", None)],
}
RATES = {"labels": 2.0, "one-shot": 0.3}


def packed(values):
    return base64.b64encode(np.ascontiguousarray(values.detach().numpy(), "<f4").tobytes()).decode()


def weights(network):
    part = dict(network.named_parameters())
    names = {"W": "hidden.weight", "b": "hidden.bias", "V": "readout.weight", "c": "readout.bias"}
    return {"d": network.hidden.in_features, "width": network.hidden.out_features,
            **{short: packed(part[name]) for short, name in names.items()}}  # fmt: skip


def signal(name, teachers):
    if name == "labels":
        return signals.Labels()
    if name in ("dense", "untrained"):
        return signals.Hidden(teachers["final" if name == "dense" else name])
    if name == "sparse":
        return signals.Hidden(teachers["final"], projection=projections.neurons)
    return signals.Output(teachers[name])


@pytest.fixture(scope="module")
def both():
    """What kdutils and the page make of every plan: runs, and reports of the page's engine."""
    task, teachers = SparseParity(D, K), kept.load(D, K)
    width = teachers["final"].hidden.out_features
    teachers["untrained"] = Ensemble(partial(MLP, D, width), [1]).member(0)
    students = {name: Ensemble(partial(MLP, D, WIDTH), [SEED], [RATES.get(name, 1.0)]) for name in PLANS}
    stream, cpu = Samples(task, [SEED], BATCH, torch.device("cpu")), partial(seeding.generator, SEED)
    hidden = torch.zeros(1, width)
    x = task.sample(4096, seeding.generator(0, "probe"))[0]
    given = {
        "settings": {"d": D, "k": K, "width": WIDTH, "seed": SEED, "steps": STEPS, "every": 10, "students": [
            {"rate": RATES.get(name, 1.0), "stages": [{"signal": s, "steps": n} for s, n in plan]}
            for name, plan in PLANS.items()]},
        "initial": weights(next(iter(students.values())).member(0)), "untrained": weights(teachers["untrained"]),
        "batches": packed(torch.cat([stream.next()[0][0] for _ in range(STEPS)])), "probe": packed(x),
        "heldOut": packed(task.sample(1024, seeding.generator(0, "held-out"))[0]),
        "calibration": [packed(task.sample(CALIBRATION, cpu("calibration", i))[0]) for i in range(5)],
        "projection": {"dense": packed(projections.gaussian(hidden, WIDTH, cpu("projection", "act"))),
                       "sparse": packed(projections.neurons(hidden, WIDTH, cpu("projection", "act")))},
    }  # fmt: skip
    done = subprocess.run(["node", ROOT / "tests" / "unit" / "play_steps.cjs"], input=json.dumps(given),
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    runs = {
        name: train(students[name], task, Curriculum(name, tuple(Stage(signal(s, teachers), n) for s, n in plan)),
                    steps=STEPS, batch=BATCH, evaluate_every=10, held_out=1024, progress=False)
        for name, plan in PLANS.items()
    }  # fmt: skip
    return runs, dict(zip(PLANS, json.loads(done.stdout), strict=True)), teachers, x


@pytest.mark.parametrize("name", PLANS)
def test_fifty_steps_give_the_weights_of_kdutils(both, name):
    runs, reports, _, _ = both
    own = dict(runs[name].network().named_parameters())
    moved = 0.0
    for short, full in {"W": "hidden.weight", "b": "hidden.bias", "V": "readout.weight", "c": "readout.bias"}.items():
        theirs = np.array(reports[name]["weights"][short]).reshape(own[full].shape)
        np.testing.assert_allclose(theirs, own[full].detach().numpy(), atol=1e-4, rtol=0, err_msg=f"{name}: {full}")
        moved += (own[full] - dict(runs[name].students.networks[0].named_parameters())[full]).abs().max().item()
    assert moved > 0.05, "a student that stands still would agree with anything"


@pytest.mark.parametrize("name", PLANS)
def test_accuracy_is_that_of_kdutils(both, name):
    runs, reports, _, _ = both
    at = dict(zip(runs[name].steps.tolist(), runs[name].accuracy[:, 0], strict=True))
    own = [at[step] for step in range(0, STEPS + 1, 10)]
    np.testing.assert_allclose(reports[name]["curve"], own, atol=2 / 1024)  # a sample on the edge may fall either way


def test_spectra_are_those_of_what_is_matched(both):
    _, reports, teachers, x = both
    labels = 1 - 2 * SparseParity(D, K).label(x).float()
    expected = {"labels": [labels[:, None]], "one-shot": [probes.signed_output(teachers["final"])(x)[:, None]]}
    for name, network, projection in (("dense", "final", "gaussian"), ("untrained", "untrained", "gaussian"),
                                      ("sparse", "final", "neurons")):  # fmt: skip
        h = teachers[network].act(teachers[network].hidden(x)).detach()
        p = getattr(projections, projection)(h, WIDTH, seeding.generator(SEED, "projection", "act"))
        expected[name] = [h @ p.T, probes.signed_output(teachers["final"])(x)[:, None]]
    for name, matched in expected.items():
        for stage, values in enumerate(matched):
            values = values - values.mean(0)
            size = values.square().mean().sqrt()
            own = probes.coefficients(values / size, x).square().mean(1).sqrt()
            np.testing.assert_allclose(reports[name]["spectra"][stage], own, atol=1e-3, err_msg=f"{name}, {stage}")


def test_the_page_has_the_teachers_of_the_tool():
    held = kept.read()
    assert sorted(held["teachers"]) == sorted(f"{d},{k}" for d in kept.BITS for k in kept.ORDERS)
    assert kept.FILE.stat().st_size < 150_000
    for d, k in ((10, 2), (20, 3), (30, 5)):
        x, y = SparseParity(d, k).sample(16_384, seeding.generator(0, "playground"))
        for name, network in kept.load(d, k).items():
            stated = held["teachers"][f"{d},{k}"][name]["accuracy"]
            assert abs(probes.score(network, x, y, 4096)[1] - stated) < 1e-3, (d, k, name)
    for name, entry in held["teachers"].items():
        right = {stage: entry[stage]["accuracy"] for stage in ("early", "middle", "final")}
        assert right["early"] < right["middle"] < 0.8 < 0.98 < right["final"], (name, right)


def test_what_is_packed_is_the_network_but_for_rounding():
    torch.manual_seed(0)
    network = MLP(12, kept.WIDTH)
    with torch.no_grad():
        network.hidden.weight[:, :3] *= 20  # a teacher's support
    back = kept.unpack(kept.pack(network), 12, kept.WIDTH)
    for (name, before), after in zip(network.named_parameters(), back.parameters(), strict=True):
        step = before.abs().amax(0 if name == "hidden.weight" else -1, keepdim=name != "hidden.bias") / 127
        assert ((before - after).abs() <= 0.51 * step + 1e-7).all(), name
    assert kept.pack(back) == kept.pack(kept.unpack(kept.pack(back), 12, kept.WIDTH)), "what is stored is kept as it is"


def test_one_curriculum_of_the_chapters_is_one_of_the_page():
    teacher = kept.load(D, K)["final"]
    assert curriculum.extracted(teacher, steps=20).stages == (
        Stage(signals.Hidden(teacher), 20), Stage(signals.Output(teacher)),
    )  # fmt: skip


# What the page says of each setting in its table: the samples of A over those of B, median over seeds (None: never).
POINTS = {
    "labels and one-shot": (0.5, 2.0),
    "one-shot and a checkpoint": (1.3, 10.0),
    "one-shot and extraction": (3.0, 20.0),
    "extraction and its control": (0.0, 0.4),
    "few bits": (0.0, 0.8),
    "three bits, a larger rate": (0.8, 2.0),
}


def test_the_settings_on_the_page_show_what_it_says():
    text = (ROOT / "book" / "playground.md").read_text(encoding="utf-8")
    linked = dict(re.findall(r"^\| \[(.+?)\]\(playground\.md(#.+?)\)", text, re.MULTILINE))
    assert sorted(linked) == sorted(POINTS)
    given = json.dumps({"addresses": list(linked.values()), "seeds": [1, 2, 3]})
    done = subprocess.run(["node", ROOT / "tests" / "unit" / "play_race.cjs"], input=given, capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name, pairs in zip(linked, json.loads(done.stdout), strict=True):
        low, high = POINTS[name]
        ratios = [(np.inf if a is None else a) / (np.inf if b is None else b) for a, b in pairs]
        assert low <= np.median(ratios) <= high, (name, pairs)
