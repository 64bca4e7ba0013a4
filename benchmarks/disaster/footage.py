"""Footage for the guard: good streams with labels to ask afterwards, odd but healthy ones, and broken ones."""

import csv
import io
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from benchmarks.offline import data as cifar
from benchmarks.stream.clips import render
from cld_stream.config import Settings
from cld_stream.storage.schema import NewFrame, Outcome
from cld_stream.storage.store import Store

__all__ = ["BROKEN", "GOOD", "SIDE", "Footage", "Shot", "append", "broken", "good", "static_camera"]

Pixels = NDArray[np.uint8]

SIDE = 32
"""Of a frame [pixels]."""

GOOD = ("gtsrb", "eth80", "cifar")
BROKEN = ("narrow", "black", "noise")
"""One picture that hardly changes; a dark camera; a source of random pixels."""

SEQUENCES, CLIPS, CLIP = 64, 80, 24
"""Tracks of traffic signs, and pictures of CIFAR-10 as clips of so many frames."""

_CLASSES = 12  # of traffic signs: those with the most tracks
_ASKED = 600


@dataclass(frozen=True)
class Shot:
    """Consecutive frames (N x S x S x 3) of one thing; label -1 = none."""

    pixels: Pixels
    label: int = -1


@dataclass(frozen=True)
class Footage:
    """A stream in order, and labelled frames that are not in it."""

    shots: list[Shot]
    asked: Pixels
    truth: NDArray[np.int64]


def good(name: str, seed: int, data: Path) -> Footage:
    """gtsrb: tracks of 30 frames of 12 classes; eth80: objects turned, 41 views each; cifar: clips of smooth walks."""
    rng = np.random.default_rng([seed, GOOD.index(name)])
    if name == "cifar":
        return _clips(rng, seed, data / "cifar10" / "cifar10_jpeg.npz")
    sequences = _sequences(data / ("gtsrb-tracks.tar" if name == "gtsrb" else "eth80.tar"))
    if name == "gtsrb":
        labels, counts = np.unique([label for _, label, _ in sequences["train"]], return_counts=True)
        common = set(labels[np.argsort(-counts, kind="stable")[:_CLASSES]].tolist())
        sequences = {split: [s for s in rows if s[1] in common] for split, rows in sequences.items()}
    every = 2 if name == "eth80" else 6
    train = [Shot(pixels, label) for _, label, pixels in sequences["train"]]
    asked = np.concatenate([pixels[::every] for _, _, pixels in sequences["eval"]])
    truth = np.concatenate([np.full(len(pixels[::every]), label) for _, label, pixels in sequences["eval"]])
    some = rng.permutation(len(asked))[:_ASKED]
    return Footage([train[i] for i in rng.permutation(len(train))[:SEQUENCES]], asked[some], truth[some])


def broken(name: str, frames: int, seed: int) -> list[Shot]:
    """What a camera gives that is covered, dark or torn off: one long shot."""
    rng = np.random.default_rng([seed, 7])
    shape = (frames, SIDE, SIDE, 3)
    if name == "noise":
        return [Shot(rng.integers(0, 256, shape, dtype=np.uint8))]
    if name == "black":
        return [Shot(rng.integers(0, 3, shape, dtype=np.uint8))]
    return [Shot(_nearly_the_same(_patches(rng), frames, rng))]


def static_camera(frames: int, seed: int) -> list[Shot]:
    """A yard that nobody enters: the light changes slowly, the sensor is noisy."""
    rng = np.random.default_rng([seed, 8])
    return [Shot(_nearly_the_same(_patches(rng), frames, rng, light=0.3))]


def append(path: Path, shots: Iterable[Shot], settings: Settings) -> None:
    """Commit shots to a store, each a source with its label; makes the store where there is none."""
    store = Store.open(path) if (path / "store.json").exists() else Store.create(path, settings.store)
    with store, store.writer("disaster") as writer:
        for shot in shots:
            n = store.catalog.next_id()
            label = None if shot.label < 0 else str(shot.label)
            source = writer.add_source(
                kind="video", path=f"/{n}", device=0, inode=n, size=1, mtime_ns=0, fingerprint=str(n), label=label
            )
            frames = [
                NewFrame(simplejpeg.encode_jpeg(np.ascontiguousarray(p)), i / 2, None, 0, 1.0)
                for i, p in enumerate(shot.pixels)
            ]
            writer.append(source, frames, None)
            writer.finish(source, Outcome.ADDED)
        writer.commit()


def _patches(rng: np.random.Generator) -> Pixels:
    return rng.integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(SIDE // 4, 0).repeat(SIDE // 4, 1)


def _nearly_the_same(picture: Pixels, frames: int, rng: np.random.Generator, light: float = 0.02) -> Pixels:
    """One picture over and over, with a slow walk of its brightness and noise of the sensor."""
    walk = 1 + light * np.sin(np.linspace(0, 6 * np.pi, frames))[:, None, None, None]
    noise = rng.normal(0, 2, (frames, *picture.shape))
    return (picture * walk + noise).round().clip(0, 255).astype(np.uint8)


def _clips(rng: np.random.Generator, seed: int, file: Path) -> Footage:
    train, test = cifar.read(file, "train"), cifar.read(file, "test")
    pictures = train[rng.permutation(len(train))[:CLIPS]]
    frames = render(pictures.pixels_NSS3, seed, CLIP).numpy().reshape(CLIPS, CLIP, SIDE, SIDE, 3)
    asked = test[rng.permutation(len(test))[:_ASKED]]
    shots = [Shot(pixels, int(label)) for pixels, label in zip(frames, pictures.labels_N, strict=True)]
    return Footage(shots, asked.pixels_NSS3.numpy(), asked.labels_N.numpy())


@cache
def _sequences(archive: Path) -> dict[str, list[tuple[str, int, Pixels]]]:
    """(name, label, frames) of every sequence in stream order, by split."""
    with tarfile.open(archive) as tar:
        files = {m.name.partition("/")[2]: m for m in tar.getmembers() if m.isfile()}

        def content(name: str) -> bytes:
            file = tar.extractfile(files[name])
            assert file is not None
            return file.read()

        rows = list(csv.DictReader(content("labels.tsv").decode().splitlines(), delimiter="\t"))
        rows.sort(key=lambda row: int(row["order"]))
        found: dict[str, dict[str, list[Pixels]]] = {"train": {}, "eval": {}}
        labels = {row["sequence"]: int(row["label"]) for row in rows}
        for row in rows:
            picture = Image.open(io.BytesIO(content(row["path"]))).convert("RGB").resize((SIDE, SIDE))
            found[row["split"]].setdefault(row["sequence"], []).append(np.asarray(picture))
    return {split: [(s, labels[s], np.stack(p)) for s, p in of.items()] for split, of in found.items()}
