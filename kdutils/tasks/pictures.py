"""Small grey pictures as a task: data sets by name, in three parts, and a few labels of many."""

from __future__ import annotations

import gzip
import hashlib
import importlib
import importlib.util
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

import torch
from torch.nn import functional as F

from kdutils import seeding

DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # where the package dataset-fashion-mnist puts its files
KEPT = Path.home() / ".cache" / "kdutils"  # where torchvision puts what it downloads
VALIDATION = 1 / 6  # of the pictures that are not for the test
TEST = 0.2  # of a data set that comes without a test part


@dataclass(frozen=True, eq=False)
class Pictures:
    """The task "which class is this?", on a finite set of pictures.

    Args:
        x: (n, 1, height, width) float32; y: (n,) int64, below `classes`.
        name: what error messages call the set.

    Raises:
        ValueError: for a set without pictures, or of other shapes.

    >>> pictures = Pictures(torch.rand(5, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1]), classes=3)
    >>> x, y = pictures.sample(4, seeding.generator(0, "example"))
    >>> x.shape, len(pictures.labelled(0.5))
    (torch.Size([4, 1, 8, 8]), 3)
    """

    x: torch.Tensor = field(repr=False)
    y: torch.Tensor = field(repr=False)
    classes: int
    name: str = "the pictures"

    finite = True

    def __post_init__(self) -> None:
        if self.x.dim() != 4 or not len(self.x) or self.y.shape != self.x.shape[:1]:
            shapes = f"{tuple(self.x.shape)} and {tuple(self.y.shape)}"
            raise ValueError(f"{self.name}: pictures (n, 1, height, width) and a class each are needed, not {shapes}")
        if self.y.min() < 0 or self.y.max() >= self.classes:
            raise ValueError(f"{self.name}: classes must lie in 0..{self.classes - 1}")

    def __len__(self) -> int:
        return len(self.x)

    @cached_property
    def _on(self) -> dict[torch.device, tuple[torch.Tensor, torch.Tensor]]:
        return {self.x.device: (self.x, self.y)}  # copied to another device once, not at every step

    def sample(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw `n` pictures on the generator's device: x (n, 1, height, width), y (n,).

        Within one call no picture comes again before all have come, as in epochs.
        """
        device = generator.device
        if device not in self._on:
            self._on[device] = self.x.to(device), self.y.to(device)
        rounds = -(-n // len(self))
        picked = torch.cat([torch.randperm(len(self), generator=generator, device=device) for _ in range(rounds)])[:n]
        return tuple(part[picked] for part in self._on[device])

    def labelled(self, share: float, seed: int = 0) -> Pictures:
        """A `share` of the pictures, drawn at random, as many of each class as it has: at least one.

        What learns from labels learns from these. A student of a teacher's outputs needs no label.
        """
        if not 0 < share <= 1:
            raise ValueError(f"the share of pictures that have a label lies in (0, 1], not {share!r}")
        draw, kept = seeding.generator(seed, "labelled"), []
        for label in range(self.classes):
            own = (self.y == label).nonzero().squeeze(1)
            kept.append(own[torch.randperm(len(own), generator=draw)][: max(1, round(share * len(own)))])
        rows = torch.cat(kept).sort().values
        return Pictures(self.x[rows], self.y[rows], self.classes, f"{share:.2g} of {self.name}")

    @cached_property
    def _digest(self) -> str:
        return hashlib.sha256(self.x.cpu().numpy().tobytes() + self.y.cpu().numpy().tobytes()).hexdigest()

    def describe(self) -> dict[str, object]:
        """What a run on this task depends on (`kdutils.lab.store`); the pictures are hashed once."""
        return {"pictures": self._digest, "classes": self.classes}


@dataclass(frozen=True)
class Parts:
    """A data set's three parts, none of which shares a picture's index with another; `names` of the classes."""

    train: Pictures
    validation: Pictures
    test: Pictures
    names: tuple[str, ...]


@cache
def load(name: str = "digits", pool: int = 1) -> Parts:
    """A data set in three parts: pixels with mean 0 and variance 1 over the training part.

    - "digits": 1,797 handwritten digits of 8 x 8 pixels (Alpaydin and Kaynak, 1998), which come with scikit-learn.
    - "fashion-mnist": 70,000 pieces of clothing of 28 x 28 pixels (Xiao et al., 2017), from the files of Debian's
      package `dataset-fashion-mnist`. Nothing is downloaded.
    - "torchvision:NAME": a data set of torchvision with grey pictures, such as "torchvision:FashionMNIST", which is
      downloaded once.

    A test part is the data set's own, else drawn at random; the validation part is drawn from the rest.

    Args:
        pool: pixels are averaged over squares of so many by so many.

    Raises:
        ValueError: for another name, or a `pool` that does not divide the pictures' sides.
        ModuleNotFoundError, FileNotFoundError: when a package is missing; the message says which.
    """
    if name == "digits":
        x, y, names = _digits()
        order = torch.randperm(len(x), generator=seeding.generator(0, "test part"))
        cut = round(TEST * len(x))
        pairs = (x[order[cut:]], y[order[cut:]]), (x[order[:cut]], y[order[:cut]])
    elif name == "fashion-mnist":
        pairs, names = _debian()
    elif name.startswith("torchvision:"):
        pairs, names = _torchvision(name.removeprefix("torchvision:"))
    else:
        raise ValueError(f"unknown pictures {name!r}: choose digits, fashion-mnist or torchvision:NAME")
    (x, y), (test_x, test_y) = (((_pooled(x, pool, name)), y.long()) for x, y in pairs)
    order = torch.randperm(len(x), generator=seeding.generator(0, "validation part"))
    held, rest = order[: (cut := round(VALIDATION * len(x)))], order[cut:]
    centre, size = x[rest].mean(), x[rest].std()
    parts = {"train": (x[rest], y[rest]), "validation": (x[held], y[held]), "test": (test_x, test_y)}
    made = {p: Pictures((x - centre) / size, y, len(names), f"the {p} part of {name}") for p, (x, y) in parts.items()}
    return Parts(**made, names=names)


Pair = tuple[torch.Tensor, torch.Tensor]


def _pooled(x: torch.Tensor, pool: int, name: str) -> torch.Tensor:
    """(n, height, width) numbers -> (n, 1, height / pool, width / pool) float32."""
    if pool < 1 or any(side % pool for side in x.shape[1:]):
        raise ValueError(f"pool={pool} does not divide the sides {tuple(x.shape[1:])} of {name}")
    return F.avg_pool2d(x[:, None].float(), pool)


def _digits() -> tuple[torch.Tensor, torch.Tensor, tuple[str, ...]]:
    if importlib.util.find_spec("sklearn") is None:
        raise ModuleNotFoundError("the pictures 'digits' come with scikit-learn: run `pip install scikit-learn`")
    found = importlib.import_module("sklearn.datasets").load_digits()
    return torch.from_numpy(found.images), torch.from_numpy(found.target), tuple("0123456789")


def _debian() -> tuple[tuple[Pair, Pair], tuple[str, ...]]:
    if not DEBIAN.is_dir():
        raise FileNotFoundError(
            f"the pictures 'fashion-mnist' are not in {DEBIAN}: run `apt-get install dataset-fashion-mnist` on Debian "
            "or Ubuntu; elsewhere install torchvision and choose 'torchvision:FashionMNIST'"
        )
    files = [(f"{part}-images-idx3-ubyte.gz", f"{part}-labels-idx1-ubyte.gz") for part in ("train", "t10k")]
    pairs = tuple((_idx(pictures, 3), _idx(labels, 1)) for pictures, labels in files)
    names = "T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"
    return pairs, names


def _idx(name: str, dims: int) -> torch.Tensor:
    """The numbers in a packed idx file of bytes."""
    data = gzip.decompress((DEBIAN / name).read_bytes())
    sizes = [int.from_bytes(data[4 * i : 4 * i + 4]) for i in range(1, dims + 1)]
    if data[:4] != bytes([0, 0, 8, dims]) or len(data) != 4 * (dims + 1) + torch.Size(sizes).numel():
        raise ValueError(f"{DEBIAN / name} is no idx file of bytes in {dims} dimensions")
    return torch.frombuffer(bytearray(data[4 * (dims + 1) :]), dtype=torch.uint8).view(*sizes)


def _torchvision(name: str) -> tuple[tuple[Pair, Pair], tuple[str, ...]]:
    if importlib.util.find_spec("torchvision") is None:
        raise ModuleNotFoundError(f"'torchvision:{name}' needs torchvision: run `pip install torchvision`")
    make = getattr(importlib.import_module("torchvision.datasets"), name, None)
    if make is None:
        raise ValueError(f"torchvision has no data set {name!r}")
    sets = [make(str(KEPT), train=train, download=True) for train in (True, False)]
    if not all(isinstance(s.data, torch.Tensor) and s.data.dim() == 3 for s in sets):
        raise ValueError(f"torchvision's {name} has no grey pictures (n, height, width)")
    return tuple((s.data, torch.as_tensor(s.targets)) for s in sets), tuple(sets[0].classes)
