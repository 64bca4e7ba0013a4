"""What is judged: the store's own frames or labelled pictures from outside, with their features under one encoder."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from cld_stream.config import IngestSettings
from cld_stream.errors import UsageError
from cld_stream.media.discover import natural_key
from cld_stream.media.job import Chunk, Done, Job
from cld_stream.media.labelled import TEST, TRAIN, LabelledPicture, read_labelled
from cld_stream.media.paths import gone
from cld_stream.media.pool import DecodePool
from cld_stream.pipelines.embed import Embedder, Features
from cld_stream.pipelines.publish import embed_frames
from cld_stream.storage.frames import FrameReader
from cld_stream.storage.header import Header
from cld_stream.storage.snapshots import Snapshot
from cld_stream.storage.store import Store

__all__ = ["JudgedFrames", "Pixels", "Tell", "labelled_pictures", "own_frames"]

# Shape suffixes: N frames, S side of a stored frame.

Tell = Callable[[str, int, int], None]
"""Told (what is done, how much of it, of how much); may raise to end it."""

Pixels = tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.float32]]

_AT_ONCE = 256


@dataclass(frozen=True)
class JudgedFrames:
    """N frames; those of a sequence in a row, in time.

    Attributes:
        features: by space.
        label: index into `classes`, -1 = none.
        sequence: number of the sequence; frames of one are near-repeats of each other.
        split: `train`, `test`, anything else, or "".
        pixels: gives those of the asked rows that can be read, with their stored pixels (N x S x S x 3) and aspects.
        skipped: (path, reason) of pictures that cannot be read.
    """

    features: Features
    label: NDArray[np.int64]
    classes: list[str]
    sequence: NDArray[np.int64]
    split: NDArray[np.str_]
    pixels: Callable[[NDArray[np.int64]], Pixels]
    skipped: list[tuple[str, str]]

    def __len__(self) -> int:
        return len(self.label)


def own_frames(
    store: Store, reader: FrameReader, embedder: Embedder, snapshot: Snapshot | None, tell: Tell
) -> JudgedFrames:
    """Every frame of the store, with the labels and splits of their sources.

    Args:
        snapshot: whose stored features are taken; what it lacks is embedded now.

    Raises:
        UsageError: there are no frames.
    """
    rows = store.catalog.rows()
    order = np.lexsort((rows.ids, rows.time_s, rows.source))
    features, present = _features_of(store, reader, embedder, snapshot, rows.ids[order], tell)
    sources = {row.id: row for row in store.catalog.sources()}
    present &= np.isin(rows.source[order], list(sources))  # the others were forgotten meanwhile
    order = order[present]
    if not len(order):
        raise UsageError(f"{store.path}: there are no frames to evaluate. Ingest some, or give --labels FOLDER.")
    ids, aspect = rows.ids[order], rows.aspect[order]
    numbers, sequence = np.unique(rows.source[order], return_inverse=True)
    label, classes = _numbered([sources[n].label or None for n in numbers.tolist()])
    split = _splits([sources[n].split for n in numbers.tolist()])

    def pixels(at: NDArray[np.int64]) -> Pixels:
        found, there = reader.read(ids[at])
        return at[there], found[there], aspect[at[there]]  # the others are damaged, or were forgotten meanwhile

    kept = {space: values[present] for space, values in features.items()}
    return JudgedFrames(kept, label[sequence], classes, sequence, split[sequence], pixels, [])


def labelled_pictures(header: Header, embedder: Embedder, text: str, tell: Tell) -> JudgedFrames:
    """Pictures from outside, made into frames exactly as ingest would, and not stored.

    Args:
        header: of the store, whose frame size and fit count.
        text: see `read_labelled`.

    Raises:
        UsageError: there is nothing of that kind, or no picture of it can be read.
    """
    jpegs, shapes, kept, skipped = [], [], [], []
    pictures = read_labelled(text)
    for n, jpeg, aspect, reason in _read(header, pictures):
        if jpeg:
            jpegs.append(jpeg)
            shapes.append(aspect)
            kept.append(pictures[n])
        else:
            skipped.append((str(pictures[n].path), reason))
        tell("reading pictures", n + 1, len(pictures))
    if not kept:
        raise UsageError(
            f"{text}: none of its {len(pictures):,} pictures can be read; the first: {skipped[0][0]}: {skipped[0][1]}."
        )
    aspect_N = np.array(shapes, np.float32)

    def pixels(at: NDArray[np.int64]) -> Pixels:
        return at, np.stack([simplejpeg.decode_jpeg(jpegs[n], "RGB") for n in at.tolist()]), aspect_N[at]

    parts = []
    for start in range(0, len(jpegs), _AT_ONCE):
        parts.append(embedder.embed(*pixels(np.arange(start, min(start + _AT_ONCE, len(jpegs))))[1:]))
        tell("embedding", min(start + _AT_ONCE, len(jpegs)), len(jpegs))
    features = {space: np.concatenate([part[space] for part in parts]) for space in parts[0]}
    label, classes = _numbered([p.label for p in kept])
    names: dict[str, int] = {}
    sequence = [names.setdefault(p.sequence or f"\0{n}", len(names)) for n, p in enumerate(kept)]
    return JudgedFrames(
        features, label, classes, np.array(sequence), _splits([p.split for p in kept]), pixels, skipped
    )  # fmt: skip


def _read(header: Header, pictures: Sequence[LabelledPicture]) -> Iterator[tuple[int, bytes, float, str]]:
    """(number, JPEG, aspect, "") of each picture, or (number, b"", 1, why it cannot be read); of animations the
    first frame.
    """
    settings, found = IngestSettings(), dict[int, tuple[bytes, float]]()
    jobs = (
        Job(
            key=n, kind="photo", path=picture.path, size=header.size, fit=header.fit, quality=header.jpeg_quality,
            max_pixels=settings.max_pixels,
        )
        for n, picture in enumerate(pictures)
    )  # fmt: skip
    with DecodePool(settings.workers, settings) as pool:
        for job, event in pool.run(jobs):
            if isinstance(event, Chunk) and event.frames:
                found.setdefault(job.key, (event.frames[0].jpeg, event.frames[0].aspect))
            elif isinstance(event, Done):
                jpeg, aspect = found.pop(job.key, (b"", 1.0))
                absent = not jpeg and gone(job.path)
                yield job.key, jpeg, aspect, "no such file" if absent else event.reason


def _features_of(
    store: Store,
    reader: FrameReader,
    embedder: Embedder,
    snapshot: Snapshot | None,
    ids: NDArray[np.int64],
    tell: Tell,
) -> tuple[Features, NDArray[np.bool_]]:
    """Features of stored frames, and which of them there still are."""
    out: Features = {space: np.zeros((len(ids), d), np.float16) for space, d in embedder.spaces.items()}
    stored = np.full(len(ids), snapshot is not None)
    if snapshot is not None:
        for space, values in out.items():
            known, features = snapshot.features(space)
            _, mine, theirs = np.intersect1d(ids, known, return_indices=True)
            values[mine] = features[theirs]
            stored &= np.isin(ids, known)
    present, absent = np.ones(len(ids), bool), np.flatnonzero(~stored)
    for start in range(0, len(absent), _AT_ONCE):
        part = absent[start : start + _AT_ONCE]
        fresh, present[part] = embed_frames(store, reader, embedder, ids[part])
        for space, values in fresh.items():
            out[space][part] = values
        tell("embedding", start + len(part), len(absent))
    return out, present


def _numbered(labels: Sequence[str | None]) -> tuple[NDArray[np.int64], list[str]]:
    """Index of each label among the sorted classes, -1 for none; the classes."""
    classes = sorted({label for label in labels if label is not None}, key=natural_key)
    number = {label: n for n, label in enumerate(classes)}
    return np.array([-1 if label is None else number[label] for label in labels], np.int64), classes


def _splits(names: Sequence[str | None]) -> NDArray[np.str_]:
    """`test` in place of the first of the names of test splits that occurs."""
    test = next((name for name in TEST if name in names), None)
    if TRAIN not in names or test is None:
        return np.full(len(names), "")
    return np.array(["test" if name == test else TRAIN if name == TRAIN else "other" for name in names])
