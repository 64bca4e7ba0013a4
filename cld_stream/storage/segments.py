"""Features of a run of frames: the unit in which snapshots grow (`SPEC.md` section 10)."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cld_stream.errors import CorruptError
from cld_stream.storage.durable import publish_dir, temporary, whole
from cld_stream.storage.vectors import VectorArray

__all__ = [
    "FeatureSegment",
    "drop_from_segments",
    "embedded_below",
    "list_segments",
    "merge_segments",
    "segment_name",
    "write_segment",
]

_IDS, _LABELS = "id", "label"


class FeatureSegment:
    """One directory of arrays with the same rows: `id`, `label` and one array a space.

    Attributes:
        first, stop: the frame ids it covers, [first, stop).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        first, stop = path.name.removeprefix(".").removesuffix(".tmp").split("-")
        self.first, self.stop = int(first), int(stop)

    @classmethod
    def create(cls, path: Path, ids: NDArray[np.int64], spaces: Mapping[str, int]) -> "FeatureSegment":
        """Ids only; features follow. The caller makes it durable."""
        path.mkdir(parents=True, exist_ok=True)
        group = {"zarr_format": 3, "node_type": "group", "attributes": {"spaces": dict(spaces)}}
        (path / "zarr.json").write_text(json.dumps(group, indent=1))
        VectorArray.write(path / _IDS, ids.astype(np.int64))
        VectorArray.create(path / _LABELS, len(ids), 0, np.int32)
        for space, width in spaces.items():
            VectorArray.create(path / space, len(ids), width, np.float16)
        return cls(path)

    def __len__(self) -> int:
        return len(VectorArray(self.path / _IDS))

    @property
    def spaces(self) -> list[str]:
        """Names of its feature arrays."""
        found = (p.parent.name for p in self.path.glob("*/zarr.json"))
        return sorted(name for name in found if name not in (_IDS, _LABELS))

    def ids(self) -> NDArray[np.int64]:
        """Frame id of each row; -1 = forgotten."""
        return VectorArray(self.path / _IDS).read()

    def labels(self) -> NDArray[np.int32]:
        """Group of each row; -1 = none, or forgotten."""
        return VectorArray(self.path / _LABELS).read()

    def features(self, space: str) -> NDArray[np.float16]:
        """N x d."""
        return VectorArray(self.path / space).read()

    def features_at(self, space: str, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        """Features of some rows; reads only the chunks they lie in."""
        return VectorArray(self.path / space).read_rows(rows)

    def rows_written(self) -> int:
        """Rows whose features are there in every space."""
        arrays = [VectorArray(self.path / space) for space in self.spaces]
        return min(min(len(a), a.chunks_written() * a.chunk_rows) for a in arrays)

    def next_rows(self) -> slice | None:
        """The chunk of rows to write next, or None."""
        array, done = VectorArray(self.path / _IDS), self.rows_written()
        return slice(done, min(done + array.chunk_rows, len(array))) if done < len(array) else None

    def write_rows(self, rows: slice, features: Mapping[str, NDArray[np.float16]]) -> None:
        """Features of one chunk of rows."""
        for space in self.spaces:
            array = VectorArray(self.path / space)
            array.write_chunk(rows.start // array.chunk_rows, features[space])

    def write_labels(self, labels: NDArray[np.int32]) -> None:
        """The groups of all rows. The caller makes them durable."""
        VectorArray.write(self.path / _LABELS, labels.astype(np.int32))

    def drop(self, ids: NDArray[np.int64]) -> int:
        """Overwrite the rows of these frames, the ids last, so that a kill is made good by a retry; how many they were.

        Rows of -1 are overwritten when they are asked for, and not counted.
        """
        had = self.ids()
        rows = np.flatnonzero(np.isin(had, ids))
        if len(rows):
            for name in self.spaces:
                VectorArray(self.path / name).overwrite(rows, 0)
            VectorArray(self.path / _LABELS).overwrite(rows, -1)
            VectorArray(self.path / _IDS).overwrite(rows, -1)
        return int((had[rows] >= 0).sum())


def segment_name(first: int, stop: int) -> str:
    """Of the segment that covers the frame ids [first, stop)."""
    return f"{first:012d}-{stop:012d}"


def list_segments(folder: Path) -> list[FeatureSegment]:
    """In the order of their frames. One whose frames lie within another's has been merged into it."""
    return _kept_and_merged(folder)[0]


def embedded_below(store_path: Path) -> int:
    """Every frame id that a snapshot, finished or not, has features of is below this; 0 without one."""
    folders = (store_path / "snapshots").glob("*/segments")
    return max((segment.stop for folder in folders for segment in list_segments(folder)), default=0)


def _kept_and_merged(folder: Path) -> tuple[list[FeatureSegment], list[FeatureSegment]]:
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    found = [FeatureSegment(folder / n) for n in names if re.fullmatch(r"\d{12}-\d{12}", n)]
    kept: list[FeatureSegment] = []
    merged: list[FeatureSegment] = []
    for segment in sorted(found, key=lambda s: (s.first, -s.stop)):
        (merged if kept and segment.stop <= kept[-1].stop else kept).append(segment)
    return kept, merged


def _remove_merged(folder: Path) -> None:
    """What a merge has left, or is about to remove; any number of processes may do so at once."""
    for segment in _kept_and_merged(folder)[1]:
        shutil.rmtree(segment.path, ignore_errors=True)


def write_segment(
    path: Path,
    ids: NDArray[np.int64],
    features: Mapping[str, NDArray[np.float16]],
    labels: NDArray[np.int32],
) -> FeatureSegment:
    """A whole segment: written aside, fsynced, renamed."""
    aside = temporary(path)
    shutil.rmtree(aside, ignore_errors=True)
    with whole(aside):
        segment = FeatureSegment.create(aside, ids, {s: f.shape[1] for s, f in features.items()})
        for space, values in features.items():
            VectorArray.write(aside / space, values.astype(np.float16))
        segment.write_labels(labels)
        publish_dir(aside, path)
    return FeatureSegment(path)


def merge_segments(folder: Path, *, at_least: int = 16, rows: int = 65_536) -> FeatureSegment | None:
    """Join the newest segments into one when there are many small ones.

    The joined one covers their frames and takes their place by that; then they are removed.

    Args:
        at_least: this many small neighbours at the end make a merge.
        rows: a segment of more rows is not small.

    Returns:
        The joined one, which may name frames that were forgotten while it was made; None when there was nothing to do.
    """
    run: list[FeatureSegment] = []
    total = 0
    for segment in reversed(list_segments(folder)[1:]):  # the first is the publication
        total += len(segment)
        if total > rows:
            break
        run.insert(0, segment)
    if len(run) < at_least:
        return None
    features = {s: np.concatenate([part.features(s) for part in run]) for s in run[0].spaces}
    joined = write_segment(
        folder / segment_name(run[0].first, run[-1].stop),
        np.concatenate([part.ids() for part in run]),
        features,
        np.concatenate([part.labels() for part in run]),
    )
    _remove_merged(folder)
    return joined


def drop_from_segments(folder: Path, ids: NDArray[np.int64]) -> int:
    """`FeatureSegment.drop` in all of them, unfinished ones included; what a killed merge has left goes."""
    _remove_merged(folder)
    removed = 0
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if re.fullmatch(r"\.?\d{12}-\d{12}(\.tmp)?", path.name):
            try:
                removed += FeatureSegment(path).drop(ids)
            except (FileNotFoundError, CorruptError):
                if path in [segment.path for segment in list_segments(folder)]:
                    raise  # else it was finished, merged or removed meanwhile
    return removed
