"""What `make dry` says before it allocates anything."""

import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from kdutils import reading
from kdutils.lab import lab as labs
from kdutils.lab.ensemble import Ensemble
from kdutils.tasks import pictures
from kdutils.tasks.models import MLP, Transformer

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import dry

SHAPES = {
    "mlp": (partial(MLP, 40, 500), torch.zeros(3, 64, 40)),
    "causal": (partial(Transformer, 64, 32, 4, 2, 48), torch.zeros(3, 16, 48, dtype=torch.long)),
    "padded": (
        partial(Transformer, 7, 32, 4, 2, 48, causal=False, padding=3), torch.zeros(3, 16, 48, dtype=torch.long),
    ),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_memory_of_a_step_is_about_what_is_kept(shape: str) -> None:
    """Within a half and twice of what a real step of three members keeps for its backward pass."""
    make, x = SHAPES[shape]
    students = Ensemble(make, [1, 2, 3])
    for p in students.parameters.values():
        p.requires_grad_(True)
    own = {p.untyped_storage()._cdata for p in students.parameters.values()}
    held: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        return held.setdefault(tensor.untyped_storage()._cdata, tensor)

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        logits = students.outputs(x)[reading.OUTPUT]
        nn.functional.cross_entropy(logits.flatten(0, -2), torch.zeros(logits[..., 0].numel(), dtype=torch.long))
    kept = sum(t.untyped_storage().nbytes() for key, t in held.items() if key not in own) + logits.nbytes
    assert 0.5 < dry.Load(make(), 3, x[0], x.shape[1]).kept / kept < 2


def settings(**changes: object) -> SimpleNamespace:
    table = {
        "d": 8, "k": 2, "teacher_width": 32, "teacher_learning_rate": 1.0, "teacher_batch": 8, "teacher_steps": 100,
        "keep_every": 50, "student_width": 8, "batch": 8, "held_out": 16, "learning_rates": [0.3], "tuning_seeds": [9],
        "seeds": [1, 2], "steps": 100, "evaluate_every": 10, "device": "cpu",
    }  # fmt: skip
    return SimpleNamespace(**{**table, **changes})


def test_every_arm_is_tried(tmp_path: Path) -> None:
    lines = list(dry.try_out("tiny", labs.ParityLab, settings(), 60, str(tmp_path)))
    assert all(arm in lines[-1] for arm in dry.ARMS) and "of 2 members" in lines[-1]


def test_what_does_not_fit_is_not_allocated(tmp_path: Path) -> None:
    """Ten million checkpoints of 40 MB."""
    huge = settings(teacher_width=10**4, d=1000, teacher_steps=10**7, keep_every=1)
    *_, last = dry.try_out("huge", labs.ParityLab, huge, 60, str(tmp_path))
    assert last == "- huge: left out; it does not fit in memory"
    *_, last = dry.try_out("slow", labs.ParityLab, settings(), 0.0, str(tmp_path))
    assert last.startswith("- slow: left out; three steps of each arm take about")


def test_every_section_of_every_profile_is_known() -> None:
    for profile in ("smoke", "book", "paper"):
        names = [name for name, *_ in dry.variants(profile, "cpu")]
        assert len(names) == len(set(names)) and {"parity", "controls", "grammar", "english", "pictures"} <= set(names)


def test_every_arm_is_tried_on_maps_and_missing_pictures_are_told(tmp_path: Path, monkeypatch, capsys) -> None:
    found = {name: (kind, s) for name, kind, s in dry.variants("smoke", "cpu")}["pictures"]
    lines = list(dry.try_out("pictures", *found, 60, str(tmp_path)))
    assert all(arm in lines[-1] for arm in dry.ARMS)
    monkeypatch.setattr(pictures, "DEBIAN", tmp_path / "nothing")
    pictures.load.cache_clear()
    found[1].pictures = "fashion-mnist"
    monkeypatch.setattr(dry, "variants", lambda *_: [("clothes", *found)])
    monkeypatch.setattr(sys, "argv", ["dry.py"])
    with pytest.raises(SystemExit) as ended:
        dry.main()
    assert (
        not ended.value.code
        and "- clothes: left out; the pictures 'fashion-mnist' are not in" in capsys.readouterr().out
    )
