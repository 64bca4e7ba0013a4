"""Building a snapshot: written aside row by row, resumed after a kill, named when whole (`SPEC.md` section 10)."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cld_stream.errors import CorruptError, StoreNotFoundError
from cld_stream.storage.durable import (
    atomic_write_bytes,
    fsync_tree,
    make_dir,
    publish_dir,
    temporary,
    whole,
)
from cld_stream.storage.segments import FeatureSegment, segment_name
from cld_stream.storage.snapshots import (
    FORMAT,
    GROUPS,
    MANIFEST,
    VERSION,
    WEIGHTS,
    Snapshot,
    read_manifest,
    snapshot_directories,
    snapshots_folder,
    write_manifest,
)

__all__ = ["SnapshotBuilder", "encoder_hash"]


class SnapshotBuilder:
    """A snapshot in the making. A second builder of the same id goes on where the first was killed.

    One process at a time may build (the publisher's lock).

    Args:
        store_path: the store.
        id: of the snapshot.
        manifest: `created_utc`, `step`, `encoder`, `settings`, `store`, `info`.
        weights: the encoder's tensors.
        ids: the frames to embed; taken from disk when the build is resumed.
        stop: every frame id below this is among `ids`, or gone.
        spaces: width of the features by space.
    """

    def __init__(
        self,
        store_path: Path,
        id: str,  # noqa: A002
        manifest: Mapping[str, Any],
        weights: Mapping[str, NDArray[Any]],
        ids: NDArray[np.int64],
        stop: int,
        spaces: Mapping[str, int],
    ) -> None:
        self.path = snapshots_folder(store_path) / id
        self._aside = temporary(self.path)
        if not (self._aside / MANIFEST).exists():
            make_dir(self.path.parent)
            for left in self.path.parent.glob(".*.tmp"):
                shutil.rmtree(left, ignore_errors=True)
            with whole(self._aside):
                self._begin(id, manifest, weights, ids, stop, spaces)
        self._manifest = read_manifest(self._aside)
        self._segment = FeatureSegment(self._aside / "segments" / str(self._manifest["segment"]))

    def _begin(
        self,
        id: str,  # noqa: A002
        manifest: Mapping[str, Any],
        weights: Mapping[str, NDArray[Any]],
        ids: NDArray[np.int64],
        stop: int,
        spaces: Mapping[str, int],
    ) -> None:
        """Everything but features and groups; the manifest last."""
        from safetensors.numpy import save

        make_dir(self._aside / "segments")
        data = save({name: np.array(value, order="C") for name, value in weights.items()})
        atomic_write_bytes(self._aside / WEIGHTS, data)
        name = segment_name(0, stop)
        FeatureSegment.create(self._aside / "segments" / name, ids, dict(spaces))
        header = {"format": FORMAT, "version": VERSION, "id": id, **manifest}
        header |= {"spaces": dict(spaces), "frames": len(ids), "segment": name}
        header |= {"files": {WEIGHTS: _checksum(data)}}
        fsync_tree(self._aside)
        write_manifest(self._aside, header)

    @classmethod
    def unfinished(cls, store_path: Path, encoder: str) -> str | None:
        """Id of a build of the encoder with this hash that was killed, or None."""
        for path in snapshot_directories(store_path, unfinished=True):
            try:
                manifest = read_manifest(path)
            except (StoreNotFoundError, CorruptError):
                continue
            if path.name.startswith(".") and manifest["encoder"]["sha256"] == encoder:
                return str(manifest["id"])
        return None

    @property
    def ids(self) -> NDArray[np.int64]:
        """The frames to embed, -1 where forgotten since the start."""
        return self._segment.ids()

    @property
    def rows_done(self) -> int:
        """Rows whose features are durable."""
        return self._segment.rows_written()

    def next_rows(self) -> slice | None:
        """The rows to embed and `write` next, or None when all are there."""
        return self._segment.next_rows()

    def write(self, rows: slice, features: Mapping[str, NDArray[np.float16]]) -> None:
        """Features of the rows that `next_rows` gave; durable when this returns."""
        self._segment.write_rows(rows, features)

    def features(self, space: str) -> NDArray[np.float16]:
        """What was written so far, of a complete build."""
        return self._segment.features(space)

    def leave_out(self, ids: NDArray[np.int64]) -> None:
        """Rows that shall have no features, by their ids: their pictures could not be read, or -1."""
        self._segment.drop(ids)

    def abandon(self) -> None:
        """Give the disk back what was written so far."""
        shutil.rmtree(self._aside, ignore_errors=True)

    def finish(self, centroids: NDArray[np.float32], labels: NDArray[np.int32]) -> Snapshot:
        """Add the groups and give the snapshot its name. The catalog's row is the caller's."""
        from safetensors.numpy import save

        self._segment.write_labels(labels)
        data = save({"centroids": np.ascontiguousarray(centroids, np.float32)})
        atomic_write_bytes(self._aside / GROUPS, data)
        self._manifest["files"][GROUPS] = _checksum(data)
        write_manifest(self._aside, self._manifest)
        publish_dir(self._aside, self.path)
        return Snapshot(self.path)


def encoder_hash(weights: Mapping[str, NDArray[Any]], settings: Mapping[str, Any]) -> str:
    """SHA-256 of an encoder: its settings, and name, type, shape and bytes of every tensor."""
    digest = hashlib.sha256(json.dumps(dict(settings), sort_keys=True).encode())
    for name in sorted(weights):
        value = np.asarray(weights[name])
        digest.update(json.dumps([name, value.dtype.str, value.shape]).encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def _checksum(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
