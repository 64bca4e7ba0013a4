"""Streams in their order, with what the probes learn from and what they are asked. Labels never reach a learner."""

import csv
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.offline import data as cifar
from benchmarks.stream import clips
from cld_stream.config import load_settings
from cld_stream.learn.buffer import Origin

__all__ = ["Folders", "Frames", "Problem", "Stream", "build", "prepare", "sequences"]

Ids = NDArray[np.int64]

HELD_OUT = 10
"""One train image in so many is in no stream and asks the questions of the learning-rate sweep."""

HELD_OUT_SEQUENCES = 5
"""The same for recorded sequences, where held-out data asks: the final stream has them all."""

LABELLED, ASKED = 4_000, 2_000
"""Images that the probes of a split or clip stream learn from, and held-out images that ask."""

FRAME_S = 0.5
"""Between two frames of a clip: the default of `ingest --fps` [s]."""


@dataclass(frozen=True)
class Folders:
    """Where the data sets are, and where what is made of them is kept."""

    data: Path
    work: Path
    cifar100: Path | None = None
    tiny: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Which frames, in which order. Plain values: they are part of a finished cell's key.

    Attributes:
        kind, source, frames, tasks, size: see `Track`.
        labelled_every, asked_every: thinning of a recorded set.
        slice: size: below 1 a miniature of it, with as many tasks and classes.
        held_out: questions come from train data that is in no stream, for whatever is chosen by the answers.
        shuffled: in random order.
    """

    kind: str
    source: str
    frames: int
    tasks: int
    size: int
    labelled_every: int
    asked_every: int
    slice: float
    held_out: bool
    shuffled: bool


@dataclass(frozen=True)
class Frames:
    """(N x S x S x 3) uint8, width / height, class, and where each frame comes from."""

    pixels: Tensor
    aspect: Tensor
    label: Ids
    origin: Origin

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, at: NDArray[Any]) -> "Frames":
        rows = torch.from_numpy(at)
        return Frames(self.pixels[rows], self.aspect[rows], self.label[at], self.origin[at])


@dataclass(frozen=True)
class Problem:
    """A stream, labelled frames for the probes, and questions.

    Attributes:
        at: place of each labelled frame in the stream; -1 = not in it.
    """

    stream: Frames
    labelled: Frames
    at: Ids
    asked: Frames


def build(s: Stream, folders: Folders, seed: int) -> Problem:
    """Everything that a cell needs. Seeds choose images and orders; a recorded stream has one order."""
    problem = {"split": _split, "clips": _clips, "recorded": _recorded}[s.kind](s, folders, seed)
    n = len(problem.stream)
    if s.shuffled:
        order = np.random.default_rng([seed, 1]).permutation(n)
        place = np.append(np.argsort(order), -1)
        problem = replace(problem, stream=problem.stream[order], at=place[problem.at])
    return problem


def prepare(kind: str, source: str, size: int, folders: Folders) -> None:
    """Make what several processes will read: stores of recorded sets, decoded images."""
    if kind == "recorded":
        for split in ("train", "eval"):
            _read_recorded(folders, source, size, split)
    else:
        for split in ("train", "test"):
            _read_images(folders, source, size, split)


def _split(s: Stream, folders: Folders, seed: int) -> Problem:
    """Classes in random order, so many a task; within a task shuffled. Probes learn from images of the stream."""
    train, rng = _read_images(folders, s.source, s.size, "train"), np.random.default_rng([seed, 0])
    usable, held = _hold_out(train)
    classes = rng.permutation(int(train.label.max()) + 1)
    each = round(s.slice * s.frames) // len(classes)
    of_class = {c: rng.choice(usable[train.label[usable] == c], each, replace=False) for c in classes.tolist()}
    tasks = [np.concatenate([of_class[c] for c in task]) for task in np.array_split(classes, s.tasks)]
    stream = train[np.concatenate([rng.permutation(task) for task in tasks])]
    at = np.unique(np.linspace(0, len(stream) - 1, min(LABELLED, len(stream))).astype(np.int64))
    return Problem(stream, stream[at], at, _questions(s, folders, train, held))


def _clips(s: Stream, folders: Folders, seed: int) -> Problem:
    """Clips in class order, classes in random order. Probes learn from pictures that are in no clip."""
    train, rng = _read_images(folders, s.source, s.size, "train"), np.random.default_rng([seed, 0])
    usable, held = _hold_out(train)
    classes = rng.permutation(int(train.label.max()) + 1)
    each = max(1, round(s.slice * s.frames) // clips.CLIP // len(classes))
    usable = rng.permutation(usable)
    of_class = [usable[train.label[usable] == c] for c in classes.tolist()]
    sources = np.concatenate([rows[:each] for rows in of_class])
    lesson = np.concatenate([rows[each : each + LABELLED // len(classes)] for rows in of_class])
    pixels = clips.render(train.pixels[torch.from_numpy(sources)], seed)
    n = len(pixels)
    origin = Origin(np.arange(n) // clips.CLIP, FRAME_S * (np.arange(n) % clips.CLIP).astype(np.float64))
    stream = Frames(pixels, torch.ones(n), train.label[sources].repeat(clips.CLIP), origin)
    return Problem(stream, train[lesson], np.full(len(lesson), -1), _questions(s, folders, train, held))


def _recorded(s: Stream, folders: Folders, seed: int) -> Problem:
    """As recorded. Where held-out data asks, it is every fifth train sequence, in neither stream nor lesson then."""
    del seed
    stream = _read_recorded(folders, s.source, s.size, "train")
    if s.held_out:
        sequence = sequences(stream)
        held = sequence % HELD_OUT_SEQUENCES == 0
        asked, stream = stream[np.flatnonzero(held)], stream[np.flatnonzero(~held)]
    else:
        asked = _read_recorded(folders, s.source, s.size, "eval")
    sequence = sequences(stream)
    stream = stream[np.flatnonzero(((sequence + 1) * s.slice).astype(int) > (sequence * s.slice).astype(int))]
    at = np.arange(0, len(stream), s.labelled_every)
    return Problem(stream, stream[at], at, asked[np.arange(0, len(asked), s.asked_every)])


def sequences(frames: Frames) -> Ids:
    """Which sequence each frame is of, from 0."""
    return np.unique(frames.origin.source, return_inverse=True)[1]


def _questions(s: Stream, folders: Folders, train: Frames, held: Ids) -> Frames:
    return train[held[:ASKED]] if s.held_out else _read_images(folders, s.source, s.size, "test")


def _hold_out(train: Frames) -> tuple[Ids, Ids]:
    """Rows that streams may take, and those that they may not, in random order that is the same for everyone."""
    held = np.arange(len(train)) % HELD_OUT == 0
    return np.flatnonzero(~held), np.random.default_rng(0).permutation(np.flatnonzero(held))


def _read_images(folders: Folders, source: str, size: int, split: str) -> Frames:
    def make() -> tuple[NDArray[np.uint8], Ids]:
        if source == "cifar10":
            images = cifar.read(folders.data / "cifar10" / "cifar10_jpeg.npz", split)
            return images.pixels_NSS3.numpy(), images.labels_N.numpy()
        folder = folders.cifar100 if source == "cifar100" else folders.tiny
        return _read_folder(folder, source, size, split)

    pixels, label = _cached(folders.work, f"{source}-{size}-{split}", make)
    return Frames(torch.from_numpy(pixels), torch.ones(len(label)), label, Origin.unknown(len(label)))


def _read_folder(folder: Path | None, source: str, size: int, split: str) -> tuple[NDArray[np.uint8], Ids]:
    """FOLDER/train/CLASS/*.png, and test or val beside train."""
    from torchvision.datasets import ImageFolder

    if folder is None:
        sys.exit(f"this track needs {source}: name its folder (train/CLASS/..., test/CLASS/...) with --{source}")
    at = folder / split if (folder / split).is_dir() else folder / "val"
    images = ImageFolder(at)
    pixels = np.empty((len(images), size, size, 3), np.uint8)
    for row, (picture, _) in enumerate(images):
        pixels[row] = np.asarray(picture.convert("RGB").resize((size, size)))
    return pixels, np.array(images.targets, np.int64)


def _cached(work: Path, name: str, make: Callable[[], tuple[NDArray[np.uint8], Ids]]) -> tuple[NDArray[np.uint8], Ids]:
    """Decoded once, kept below the work folder."""
    pixels_file, label_file = work / f"{name}.npy", work / f"{name}-labels.npy"
    if not label_file.exists():
        work.mkdir(parents=True, exist_ok=True)
        pixels, label = make()
        np.save(pixels_file, pixels)
        np.save(label_file, label)
    return np.load(pixels_file), np.load(label_file)


def _read_recorded(folders: Folders, source: str, size: int, split: str) -> Frames:
    """Through a real store below the work folder: ingested on the first call, read on every one."""
    from cld_stream.pipelines.ingest import ingest
    from cld_stream.pipelines.origins import origin_of
    from cld_stream.storage.store import Store

    folder, place = _unpacked(folders, source), folders.work / f"{source}-{size}-{split}"
    with (folder / "labels.tsv").open() as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["split"] == split]
    rows.sort(key=lambda row: int(row["order"]))
    if not place.exists():
        table = folders.work / f"{source}-{split}.tsv"
        with table.open("w") as out:
            out.write("path\tsequence\tframe\tlabel\n")
            out.writelines(f"{folder / r['path']}\t{r['sequence']}\t{r['frame']}\t{r['label']}\n" for r in rows)
        ingest(place, [f"@{table}"], load_settings(overrides=[f"store.size={size}", "ingest.order=path"]))
    with Store.open(place) as store:
        frames = store.catalog.rows()
        pixels, present = store.reader().read(frames.ids)
        labels = {source.id: int(source.label or -1) for source in store.catalog.sources()}
        origin = origin_of(store, frames)
    if len(frames.ids) != len(rows) or not present.all():
        sys.exit(f"{place} holds {int(present.sum())} of {len(rows)} frames; remove it and run again")
    label = np.array([labels[number] for number in frames.source.tolist()], np.int64)
    return Frames(torch.from_numpy(pixels), torch.from_numpy(frames.aspect), label, origin)


def _unpacked(folders: Folders, name: str) -> Path:
    """The data set's folder; its tar is unpacked below the work folder once."""
    if (folders.data / name / "labels.tsv").exists():
        return folders.data / name
    target = folders.work / "unpacked"
    if not (target / name / "labels.tsv").exists():
        archive = folders.data / f"{name}.tar"
        if not archive.exists():
            sys.exit(f"{folders.data}: neither {name}/ nor {name}.tar is there. Name the data folder with --data.")
        with tarfile.open(archive) as tar:
            tar.extractall(target, filter="data")
    return target / name
