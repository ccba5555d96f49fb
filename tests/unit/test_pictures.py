"""Pictures: parts that do not overlap, few labels, and convolutional networks that run stacked."""

import gzip
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from kdutils import curriculum, seeding
from kdutils.lab.ensemble import Ensemble
from kdutils.lab.optimisers import Adam
from kdutils.lab.pictures import PictureLab
from kdutils.lab.store import Store
from kdutils.lab.training import train
from kdutils.pages import profiles
from kdutils.signals import Hidden
from kdutils.tasks import models, pictures
from kdutils.tasks.models import ConvNet


def rows(part: pictures.Pictures) -> list[bytes]:
    return [row.numpy().tobytes() for row in part.x]


def test_the_parts_share_no_picture_and_are_all_there() -> None:
    parts = pictures.load("digits")
    together = [row for part in (parts.train, parts.validation, parts.test) for row in rows(part)]
    assert len(together) == len(set(together)) == 1797  # no two of these digits are the same picture
    assert parts.train.classes == len(parts.names) == 10
    for part in (parts.train, parts.validation, parts.test):
        assert sorted(part.y.unique().tolist()) == list(range(10))
    assert abs(parts.train.x.mean()) < 1e-5 and abs(parts.train.x.std() - 1) < 1e-5
    assert pictures.load("digits") is parts, "read once"


def test_pixels_are_averaged() -> None:
    whole, pooled = pictures.load("digits"), pictures.load("digits", 2)
    assert pooled.train.x.shape[1:] == (1, 4, 4) and torch.equal(pooled.train.y, whole.train.y)
    means = whole.train.x.unflatten(2, (4, 2)).unflatten(4, (4, 2)).mean((3, 5))
    means = (means - means.mean()) / means.std()
    assert torch.allclose(means, pooled.train.x, atol=1e-4)


def test_no_picture_comes_again_before_all_have_come() -> None:
    part = pictures.load("digits").validation
    x, y = part.sample(2 * len(part) + 5, seeding.generator(0, "epochs"))
    seen = [row.numpy().tobytes() for row in x]
    for first in (0, len(part)):
        assert set(seen[first : first + len(part)]) == set(rows(part))
    index = rows(part).index(seen[0])
    assert part.y[index] == y[0]


@pytest.mark.parametrize("share", [0.01, 0.1, 1.0])
def test_few_labels_are_of_every_class(share: float) -> None:
    part = pictures.load("digits").train
    few = part.labelled(share, seed=3)
    wanted = [max(1, round(share * int(n))) for n in part.y.bincount()]
    assert few.y.bincount().tolist() == wanted
    assert set(rows(few)) <= set(rows(part)) and few.describe() == part.labelled(share, seed=3).describe()
    assert share == 1 or few.describe() != part.labelled(share, seed=4).describe()


def test_what_is_refused() -> None:
    part = pictures.load("digits").train
    for share in (0, -0.1, 1.5):
        with pytest.raises(ValueError, match=r"lies in \(0, 1\]"):
            part.labelled(share)
    with pytest.raises(ValueError, match="choose digits, fashion-mnist or torchvision:NAME"):
        pictures.load("cats")
    with pytest.raises(ValueError, match="pool=3 does not divide"):
        pictures.load("digits", 3)
    with pytest.raises(ValueError, match="a class each are needed"):
        pictures.Pictures(part.x[:3], part.y[:2], 10)
    with pytest.raises(ValueError, match=r"classes must lie in 0\.\.8"):
        pictures.Pictures(part.x, part.y, 9)


def test_missing_files_and_packages_say_what_to_install(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(pictures, "DEBIAN", tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="apt-get install dataset-fashion-mnist"):
        pictures._debian()
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setattr(pictures.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install torchvision"):
        pictures._torchvision("FashionMNIST")
    with pytest.raises(ModuleNotFoundError, match="pip install scikit-learn"):
        pictures._digits()


def test_files_of_fashion_mnist_are_read(monkeypatch, tmp_path) -> None:
    """Small files of that form, for the package need not be here."""
    monkeypatch.setattr(pictures, "DEBIAN", tmp_path)
    for part, n in (("train", 60), ("t10k", 20)):
        pixels = bytes(i % 251 for i in range(n * 28 * 28))
        sizes = [n, 28, 28]
        head = bytes([0, 0, 8, 3]) + b"".join(s.to_bytes(4, "big") for s in sizes)
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + pixels))
        labels = bytes([0, 0, 8, 1]) + n.to_bytes(4, "big") + bytes(i % 10 for i in range(n))
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    (x, y), (test_x, _) = pictures._debian()[0]
    assert x.shape == (60, 28, 28) and test_x.shape == (20, 28, 28) and y[:3].tolist() == [0, 1, 2]
    assert x.flatten()[:252].tolist() == [*range(251), 0]
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels[:-1]))
    with pytest.raises(ValueError, match="is no idx file"):
        pictures._debian()


def test_sets_of_torchvision_are_asked_by_name(monkeypatch) -> None:
    class Set:
        classes = ("a", "b")

        def __init__(self, root: str, train: bool, download: bool) -> None:
            self.data, self.targets = torch.zeros(4 + train, 6, 6, dtype=torch.uint8), [0, 1, 0, 1] + [0] * train

    made = SimpleNamespace(Grey=Set)
    monkeypatch.setattr(pictures.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(pictures.importlib, "import_module", lambda name: made)
    (train_part, test_part), names = pictures._torchvision("Grey")
    assert len(train_part[0]) == 5 and test_part[1].tolist() == [0, 1, 0, 1] and names == ("a", "b")
    with pytest.raises(ValueError, match="no data set 'Colour'"):
        pictures._torchvision("Colour")


def one_step(network: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, dict, dict]:
    """Logits, gradients and statistics of a network by itself in train mode, without the stack."""
    network.train()
    logits = network(x)
    logits.square().sum().backward()
    return logits.detach(), {n: p.grad for n, p in network.named_parameters()}, dict(network.named_buffers())


@pytest.mark.parametrize("depth", [1, 3])
def test_a_member_of_a_stack_is_the_network_alone_in_train_mode(depth: int) -> None:
    students = Ensemble(partial(ConvNet, 10, 4, 3, depth), [1, 2, 3], [0.1, 0.2])
    assert students.stacks
    x = torch.randn(3, 16, 1, 14, 14, generator=seeding.generator(0, "stack"))
    for parameter in students.parameters.values():
        parameter.requires_grad_()
    values, buffers = students.run(x, ("blocks.1", ""), "train")
    logits = values[""]
    logits.square().sum().backward()
    for member in range(len(students)):
        alone, gradients, statistics = one_step(students.member(member), x[member % 3])
        assert torch.allclose(logits[member], alone, atol=1e-5)
        for name, gradient in gradients.items():
            assert torch.allclose(students.parameters[name].grad[member], gradient, rtol=1e-3, atol=1e-4), name
        for name, value in statistics.items():
            assert torch.allclose(buffers[name][member].float(), value.float(), atol=1e-6), name
    assert values["blocks.1"].shape == (6, 16, 8, 4, 4)
    assert not torch.allclose(students.run(x, ("",), "eval")[0][""], logits), "statistics are used in eval mode"
    assert students.skeleton.training is False


def test_torch_would_build_the_same_network() -> None:
    mine = ConvNet(10, 4, 2, 2).train()
    parts: list[nn.Module] = []
    for convolution, norm in zip(
        [c for b in mine.blocks for c in b.convolutions], [n for b in mine.blocks for n in b.norms], strict=True
    ):
        theirs = nn.Conv2d(convolution.in_channels, convolution.out_channels, 3, convolution.stride, 1, bias=False)
        theirs.load_state_dict(convolution.state_dict())
        plain = nn.BatchNorm2d(norm.num_features)
        plain.load_state_dict(norm.state_dict())
        parts += [theirs, plain, nn.ReLU()]
    readout = nn.Linear(8, 10)
    readout.load_state_dict(mine.readout.state_dict())
    theirs = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), readout).train()
    x = torch.randn(12, 1, 14, 14)
    assert torch.allclose(mine(x), theirs(x), atol=1e-5)


def test_a_run_of_one_student_is_that_of_several() -> None:
    """With batch norm in train mode, through a hidden stage and the output; stopped nowhere, seeds as they are."""
    parts = pictures.load("digits")
    teacher = ConvNet(10, 8)
    plan = curriculum.extracted(teacher, [("blocks.1", "blocks.1")], 4, units=1)

    def ended(seeds: list[int]) -> dict[str, torch.Tensor]:
        run = train(
            Ensemble(partial(ConvNet, 10, 2), seeds, [0.01]), parts.train, plan, steps=10, batch=8, held_out=32,
            held_out_task=parts.validation, optimiser=Adam(), mode="train",
        )  # fmt: skip
        state = {**run.students.parameters, **run.students.buffers}
        return {name: value[seeds.index(1)] for name, value in state.items()}

    alone, together = ended([1]), ended([2, 1])
    for name, value in alone.items():
        assert torch.allclose(value.float(), together[name].float(), rtol=1e-3, atol=1e-4), name
    assert alone["blocks.2.norms.0.num_batches_tracked"] == 6, "the hidden stage ends its pass before the last block"


def test_a_stack_with_batch_norm_in_eval_mode_is_told() -> None:
    parts = pictures.load("digits")
    with pytest.warns(UserWarning, match="is trained in eval mode"):
        train(
            Ensemble(partial(ConvNet, 10, 2), [0, 1]), parts.train, curriculum.from_labels(), steps=2, batch=8,
            held_out=32, held_out_task=parts.validation,
        )  # fmt: skip


def test_a_changed_network_does_not_stack() -> None:
    changed = ConvNet(10, 4)
    changed.blocks[0].norms[0] = nn.BatchNorm2d(4)
    assert models.stacks(ConvNet(10, 4)) and not models.stacks(changed)


@pytest.fixture
def lab(tmp_path) -> PictureLab:
    changes = {"teacher_steps": 6, "keep_every": 3, "steps": 6, "evaluate_every": 3, "held_out": 32, "batch": 8}
    return PictureLab(profiles.load("pictures", "smoke", "cpu", overrides=changes), Store(tmp_path))


def test_students_of_few_labels_never_see_the_others(lab: PictureLab, monkeypatch) -> None:
    lab.runs = None  # the store would not know a task that is watched
    few = lab.labelled(0.05)
    drawn: list[torch.Tensor] = []
    whole = pictures.Pictures.sample

    def watched(self, n, generator):
        x, y = whole(self, n, generator)
        if self is not lab.judge:
            drawn.append(x)
        return x, y

    monkeypatch.setattr(pictures.Pictures, "sample", watched)
    few.arm(curriculum.from_labels())
    seen = {row.numpy().tobytes() for x in drawn for row in x}
    assert seen and seen <= set(rows(lab.task.labelled(0.05)))
    assert few.task is not lab.task and all("0.05 of the pictures" in name for name in lab.used)


def test_hidden_maps_of_the_lab_fit_together(lab: PictureLab) -> None:
    trained = lab.teacher()
    found = lab.facts(trained, True)["worth"]
    assert [layer["path"] for layer in found["layers"]] == ["blocks.0", "blocks.1", "blocks.2"]
    views = [curriculum.Stage(Hidden(trained.network(), f"blocks.{i}", f"blocks.{i}", units=1), 1) for i in range(3)]
    run = lab.fit(curriculum.Curriculum("views", (*views, curriculum.from_labels().stages[0])), [1, 2], [0.01])
    assert run.settings["mode"] == "train" and len(run.stages) == 4
    with pytest.raises(ValueError, match="say which dimension holds the units"):
        Hidden(trained.network(), "blocks.0", "blocks.0").bind(
            Ensemble(lab.make_student, [0]), torch.randn(1, 9, 1, 8, 8)
        )
