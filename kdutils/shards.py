"""The files of a record: shards that are written whole or not at all, checked when opened, looked up by row."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from kdutils import fingerprints, reading

ABOUT, FORMAT = "about.json", 4
_ODD = 6_364_136_223_846_793_005, 2_685_821_657_736_338_717, 1_181_783_497_276_652_981


class Targets:
    """The files of a record, opened when they are first needed, and checked then."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self.folder, self.about, self.open, self.places = folder, about, {}, {}

    def describe(self) -> dict[str, Any]:
        """What a run on them depends on (`kdutils.lab.store`)."""
        return {"recorded": self.about["shards"]}

    def agree(self, **given: Any) -> None:
        """ValueError where a setting is not what it was for the record; None leaves it as it was."""
        for name, value in given.items():
            if value is not None and told(value) != (then := self.about["settings"][name]):
                advice = f"leave {name} to the record ({name}=None), or record anew"
                raise ValueError(f"{name} is {value}, and the targets were recorded with {then}: {advice}")

    def __repr__(self) -> str:
        return f"targets {hashlib.sha256(''.join(self.about['shards'].values()).encode()).hexdigest()[:12]}"

    def shard(self, number: int) -> dict[str, torch.Tensor]:
        if number not in self.open:
            name = f"{number * self.about['shard']:010d}.safetensors"
            path = self.folder / name
            if not intact(path, self.about["shards"][name]):
                raise ValueError(f"{path} is missing or damaged: call record again, which writes it anew")
            self.open[number] = safetensors.torch.load_file(path)
        return self.open[number]

    def get(self, students: Any, x: Any, name: str) -> dict[str, torch.Tensor]:
        """What was recorded under `name` for `students.rows`: {part: (1, batch, ...)}; ValueError for other inputs.

        An ensemble reads a batch for each seed, (seeds, batch, ...), and has no numbers of rows: they are found by the
        inputs.
        """
        if not hasattr(students, "rows"):
            flat = reading.each(lambda t: t.flatten(0, 1)[None], x)
            places = [self._place(number) for number in sums(flat, self.about.get("spare", ())).tolist()]
            return self._stacked(places, name, students, len(students.seeds))
        rows = students.rows
        if rows is None:
            raise ValueError("a recorded plan needs rows=..., the numbers of the batch's samples in their data set")
        rows, size = torch.as_tensor(rows).tolist(), self.about["shard"]
        if wrong := [row for row in rows if not 0 <= row < self.about["rows"]]:
            raise ValueError(f"row {wrong[0]} was not recorded: there are {self.about['rows']}")
        places = [(self.shard(row // size), row % size) for row in rows]
        inputs = sums(x, self.about.get("spare", ())).tolist()
        if len(inputs) != len(rows):
            raise ValueError(f"a batch of {len(inputs)} samples needs as many rows, not {len(rows)}")
        for row, own, (shard, at) in zip(rows, inputs, places, strict=True):
            if own != shard["sums"][at].item():
                advice = "another tokeniser, padding, order, or something drawn anew"
                raise ValueError(f"row {row} is not what was recorded: its inputs have changed ({advice})")
        return self._stacked(places, name, students, 1)

    def _place(self, number: int) -> tuple[dict[str, torch.Tensor], int]:
        """The shard and the place of the first row with this sum of its inputs."""
        if not self.places:
            shards = [self.shard(i) for i in range(len(self.about["shards"]))]
            known = [(int(one), (shard, at)) for shard in shards for at, one in enumerate(shard["sums"].tolist())]
            self.places = dict(reversed(known))
        if number not in self.places:
            raise ValueError(f"an input was not recorded: train on the {self.about['rows']} rows that were")
        return self.places[number]

    def _stacked(self, places: list[tuple[dict, int]], name: str, students: Any, seeds: int) -> dict[str, torch.Tensor]:
        keys = [key for key in places[0][0] if key.startswith(f"{name}/")]
        stacked = {key: torch.stack([shard[key][at] for shard, at in places]) for key in keys}
        return {k.removeprefix(f"{name}/"): v.to(students.device).unflatten(0, (seeds, -1)) for k, v in stacked.items()}


def told(value: Any) -> str:
    """A setting as a text that is the same whatever the order in a mapping."""
    return str(dict(sorted(value.items())) if isinstance(value, Mapping) else value)


def sums(x: Any, spare: Collection[str] = ()) -> torch.Tensor:
    """A whole number for each sample of a batch (1, n, ...), the same only for the same inputs, on every device.

    Entries that are `spare`, for teachers or the mask alone, do not count. ValueError where no samples come first.
    """
    named, tensors = dict(x) if isinstance(x, Mapping) else {"": x}, []
    named = {name: value for name, value in named.items() if name not in spare}
    sizes: dict[int, str] = {}
    for name in sorted(named):
        there = len(tensors)
        reading.each(lambda t: tensors.append(t[0]) if t.dim() > 1 else None, named[name])
        sizes |= {len(tensor): name for tensor in tensors[there:]}
    if len(sizes.keys() - {1}) > 1:
        told = ", ".join(f"{name!r} has {n}" for n, name in sizes.items())
        raise ValueError(f"every entry of a batch needs its samples first, or one for all of them: {told}")
    if not sizes:
        raise ValueError("a batch needs a tensor with its samples first")
    rest = sorted(f"{name}={value!r}" for name, value in named.items() if isinstance(value, str | int | float))
    start = int(hashlib.sha256("".join(rest).encode()).hexdigest()[:15], 16) if rest else 0  # of all samples alike
    total = torch.full((max(sizes),), start, dtype=torch.long, device=tensors[0].device)
    for name, value in named.items():
        if any(others := _others(name, value, len(total))):
            total += torch.tensor(others, device=total.device)
    for number, tensor in enumerate(tensors, 1):
        flat = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).reshape(len(tensor), -1)
        bits = (flat.float().contiguous().view(torch.int32) if flat.is_floating_point() else flat).long()
        places = torch.arange(bits.shape[1], device=bits.device) + 1_000_003 * number
        mixed = (bits + places * _ODD[0]) * _ODD[1]  # arithmetic modulo 2 ** 64
        total += ((mixed ^ (mixed >> 31)) * _ODD[2]).sum(1)  # plain multiples would cancel, as of signs that flip
    return total


def _others(name: str, value: Any, samples: int, inside: bool = False) -> list[int]:
    """A whole number for each sample, of the lists and single numbers in an entry; of a list of as many, its own."""

    def number(value: Any, *where: int) -> int:
        if isinstance(value, torch.Tensor):
            return _hashed(f"{name}{where}={value.tolist()}") if value.dim() < 2 else 0
        if isinstance(value, Mapping):
            return sum(number(part, *where, _hashed(key)) for key, part in value.items())
        if isinstance(value, tuple | list):  # of one entry alone as if it were a sample's
            return sum(number(part, *where, *([place] if place else [])) for place, part in enumerate(value))
        return _hashed(f"{name}{where}={value!r}") if isinstance(value, str | int | float) else 0

    if isinstance(value, str | int | float) and not inside:  # counted as they always were
        return [0] * samples
    if isinstance(value, Mapping):
        parts = [_others(f"{name}.{key}", part, samples, True) for key, part in value.items()]
        return [sum(part) % 2**62 for part in zip(*parts, strict=True)] if parts else [0] * samples
    if isinstance(value, list) and len(value) == samples and not any(isinstance(v, torch.Tensor) for v in value):
        return [number(part) % 2**62 for part in value]
    return [number(value) % 2**62] * samples


def _hashed(text: Any) -> int:
    return int(hashlib.sha256(str(text).encode()).hexdigest()[:15], 16)


def same(theirs: dict[str, Any], mine: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What is recorded, unless it is of something else."""
    told = f"{folder} has targets of another plan, teacher or data set"
    for key in mine.keys() - {"shards", "said"}:
        if theirs.get(key) != mine[key]:
            raise ValueError(f"{told}: {_where(theirs.get(key), mine[key])}")
    for name, said in mine.get("said", {}).items():
        if found := fingerprints.difference(f"{name}{theirs['said'][name]}", f"{name}{said}"):
            raise ValueError(f"{told}: {found}")
    return theirs


def indexed(rows: Any) -> None:
    """ValueError for rows that have no numbers."""
    if isinstance(rows, str | Mapping) or not (hasattr(rows, "__getitem__") and hasattr(rows, "__len__")):
        advice = "of a DataLoader give its `dataset`, and batch= and collate= here"
        raise ValueError(f"rows must be a data set that is indexed by numbers, not a {type(rows).__name__}: {advice}")
    if not len(rows):
        raise ValueError("rows are empty: there is nothing to record")


def joined(parts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """What is kept of several batches, in one; ValueError where they differ in length."""
    if bad := {key for part in parts for key in part if part[key].shape[1:] != parts[0][key].shape[1:]}:
        raise ValueError(f"batches differ in length at {sorted(bad)}: let `collate` pad all of them to the same")
    return {key: torch.cat([part[key] for part in parts]).contiguous() for key in parts[0]}


def intact(path: Path, checksum: str) -> bool:
    return path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == checksum


def same_rows(path: Path, start: int, found: torch.Tensor) -> None:
    """ValueError where the rows from `start` on, of which a shard holds the targets, are not what was recorded.

    Args:
        found: the `sums` of some of them, the first first.
    """
    with safetensors.safe_open(path, "pt") as shard:
        then = shard.get_slice("sums")[: len(found)]
    if wrong := (then != found.cpu()).nonzero().flatten().tolist():
        advice = "record another data set into another folder"
        raise ValueError(f"row {start + wrong[0]} is not what {path.parent} holds the targets of: {advice}")


def _where(theirs: Any, mine: Any) -> str:
    """The first place where two plain values differ."""
    if isinstance(theirs, dict) and isinstance(mine, dict) and theirs.keys() == mine.keys():
        return next(f"{key}: {_where(theirs[key], mine[key])}" for key in mine if theirs[key] != mine[key])
    if isinstance(theirs, list) and isinstance(mine, list) and len(theirs) == len(mine):
        return next(_where(a, b) for a, b in zip(theirs, mine, strict=True) if a != b)
    return f"{theirs!r}, not {mine!r}"


def read(folder: Path) -> dict[str, Any]:
    if not (folder / ABOUT).exists():
        raise ValueError(f"{folder} holds no recorded targets: there is no {ABOUT} in it")
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / ABOUT} is damaged ({error}): record anew, into another folder") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise ValueError(f"{folder} was recorded by another version of kdutils: record anew, into another folder")
    return about


def complete(folder: Path) -> bool:
    """Whether a folder holds all the rows that its record was begun for."""
    if not (folder / ABOUT).exists():
        return False
    about = read(folder)
    return len(about["shards"]) * about["shard"] >= about["rows"]


def write(path: Path, content: bytes) -> str:
    """Wholly or not at all; the checksum that `intact` takes."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    with open(beside, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    return hashlib.sha256(content).hexdigest()


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """A block in which one process of this machine is at a time, where the system knows locks of files."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:20]
    with open(Path(tempfile.gettempdir(), f"kdutils-{name}.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
