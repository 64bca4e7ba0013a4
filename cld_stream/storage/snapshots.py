"""Published encoders and the features of the stored frames under them (`SPEC.md` section 10)."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cld_stream.errors import CorruptError, FormatTooNewError, StoreNotFoundError
from cld_stream.storage.durable import atomic_write_json, json_checksum, remove_dir
from cld_stream.storage.lock import FileLock
from cld_stream.storage.schema import SnapshotRow
from cld_stream.storage.segments import (
    FeatureSegment,
    drop_from_segments,
    list_segments,
    segment_name,
    write_segment,
)
from cld_stream.storage.store import Store

__all__ = [
    "FORMAT",
    "GROUPS",
    "MANIFEST",
    "SPACES",
    "VERSION",
    "WEIGHTS",
    "Snapshot",
    "changing_features",
    "drop_features",
    "named_ids",
    "read_manifest",
    "remove_snapshot",
    "snapshot_directories",
    "snapshot_rows",
    "snapshots_folder",
    "write_manifest",
]

SPACES = ("instance", "group", "backbone")
"""The kinds of features that a snapshot holds of every frame."""

FORMAT, VERSION = "cld-stream.snapshot", 1
WEIGHTS, GROUPS, MANIFEST = "weights.safetensors", "groups.safetensors", "manifest.json"
_NEEDED = ("id", "created_utc", "step", "encoder", "info", "spaces", "frames", "segment", "files")

Tensors: TypeAlias = dict[str, NDArray[Any]]
Columns: TypeAlias = tuple[NDArray[Any], ...]


class Snapshot:
    """A published encoder, opened for reading; new segments are seen without reopening.

    Args:
        path: its directory.

    Attributes:
        id, manifest: see `SPEC.md` section 10.
        spaces: width of the features by space: `instance`, `group`, `backbone`.

    Raises:
        StoreNotFoundError, FormatTooNewError, CorruptError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = read_manifest(path)
        self.id = str(self.manifest["id"])
        self.spaces: dict[str, int] = dict(self.manifest["spaces"])

    @property
    def segments(self) -> list[FeatureSegment]:
        """What is embedded, in the order of the frames; the first is the publication itself."""
        return list_segments(self.path / "segments")

    @property
    def ids(self) -> NDArray[np.int64]:
        """Frame ids of all rows, -1 where the frame was forgotten since."""
        return self._columns(lambda segment: (segment.ids(),))[0]

    def covered(self) -> int:
        """Every frame id below this is embedded, or was gone when its turn came."""
        return max((s.stop for s in self.segments), default=0)

    def features(self, space: str) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
        """(ids, N x d features) of all rows; id -1 where the frame was forgotten since."""
        ids, features = self._columns(lambda s: (s.ids(), s.features(space)))
        return ids, features

    def weights(self) -> Tensors:
        """The encoder's tensors by name."""
        return self._tensors(WEIGHTS)

    def groups(self) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """(K x d unit centroids in the space `group`, group of each row; -1 = forgotten)."""
        (labels,) = self._columns(lambda segment: (segment.labels(),))
        return self.centroids(), labels

    def centroids(self) -> NDArray[np.float32]:
        """Of the groups: K x d, unit rows, in the space `group`."""
        return self._tensors(GROUPS)["centroids"]

    def add_segment(
        self,
        first: int,
        stop: int,
        ids: NDArray[np.int64],
        features: Mapping[str, NDArray[np.float16]],
        labels: NDArray[np.int32],
    ) -> FeatureSegment:
        """Append the features of the live frames among [first, stop); durable when this returns."""
        path = self.path / "segments" / segment_name(first, stop)
        return write_segment(path, ids, features, labels)

    def row(self) -> SnapshotRow:
        """As the catalog holds it."""
        return SnapshotRow(
            id=self.id,
            created_utc=float(self.manifest["created_utc"]),
            step=int(self.manifest["step"]),
            encoder_hash=str(self.manifest["encoder"]["sha256"]),
            frames=int(self.manifest["frames"]),
            pinned=False,
            state="current",
            info=dict(self.manifest.get("info", {})),
        )

    def _columns(self, read: Callable[[FeatureSegment], Columns]) -> Columns:
        """Columns over all segments, of one and the same list of them."""
        while True:
            segments = self.segments
            if not segments:
                raise _damaged(self.path, "its features are gone")
            try:
                parts = [read(segment) for segment in segments]
                columns = zip(*parts, strict=True)
                return tuple(c[0] if len(c) == 1 else np.concatenate(c) for c in columns)
            except CorruptError:
                if [s.path for s in self.segments] == [s.path for s in segments]:
                    raise  # else some were merged under us

    def _tensors(self, name: str) -> Tensors:
        from safetensors.numpy import load

        try:
            data = (self.path / name).read_bytes()
        except FileNotFoundError:
            raise _damaged(self.path, f"{name} is missing") from None
        except OSError as e:
            raise _damaged(self.path, f"{name} cannot be read ({e.strerror})") from None
        if hashlib.sha256(data).hexdigest() != self.manifest["files"][name]["sha256"]:
            raise _damaged(self.path, f"{name} has a wrong checksum")
        return load(data)


def snapshots_folder(store_path: Path) -> Path:
    """Where the snapshots of a store are."""
    return store_path / "snapshots"


def snapshot_rows(store_path: Path) -> list[SnapshotRow]:
    """Catalog rows of the snapshots on disk, from their manifests; damaged ones are left out."""
    rows = []
    for path in snapshot_directories(store_path):
        try:
            rows.append(Snapshot(path).row())
        except (CorruptError, FormatTooNewError):
            continue
    return rows


def named_ids(store_path: Path) -> NDArray[np.int64]:
    """Ids of every frame that a snapshot, finished or not, has features of; ascending."""
    found = [np.zeros(0, np.int64)]
    for path in snapshot_directories(store_path, unfinished=True):
        found += [segment.ids() for segment in list_segments(path / "segments")]
    ids = np.unique(np.concatenate(found))
    return ids[ids >= 0]


def remove_snapshot(store_path: Path, id: str) -> None:  # noqa: A002
    """Remove the directory of a snapshot; its row must be gone before."""
    remove_dir(snapshots_folder(store_path) / id, first=MANIFEST)  # without it nobody goes on with it as a build


def drop_features(store: Store, ids: NDArray[np.int64], on_damage: Callable[[CorruptError], None] | None = None) -> int:
    """Remove the features of frames from every snapshot, finished or not, for good.

    Two at a time would undo each other where they change the same chunk, so one waits for the other.

    Call it before and after the frames leave the catalog: before, so that a kill in between leaves none
    behind; after, for what was being embedded meanwhile. It may be repeated.

    Args:
        on_damage: told of a snapshot that is too damaged for that, which then goes as a whole. Without it such a
            snapshot stays as it is.

    Returns:
        Rows that were removed.
    """
    removed = 0
    with changing_features(store.path):
        for path in snapshot_directories(store.path, unfinished=True):
            name = path.name.removeprefix(".").removesuffix(".tmp")
            try:
                for attempt in (path, path.with_name(name)):
                    removed += drop_from_segments(attempt / "segments", ids)
                    if attempt.exists():  # else it was finished, and got its name, meanwhile
                        break
            except CorruptError as error:
                if on_damage is not None:
                    store.catalog.drop_snapshot(name)
                    remove_dir(path, first=MANIFEST)
                    on_damage(error)
    return removed


def changing_features(store_path: Path) -> FileLock:
    """Held by who changes features that are there already; it waits for another who does."""
    return FileLock(store_path / "features.lock", "process that changes features", wait=True)


def snapshot_directories(store_path: Path, unfinished: bool = False) -> list[Path]:
    """The directories of a store's snapshots, by name; `unfinished`: of those in the making, too."""
    folder = snapshots_folder(store_path)
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    building = re.compile(r"\..*\.tmp")
    return [
        path
        for path in paths
        if path.is_dir() and (not path.name.startswith(".") or (unfinished and building.fullmatch(path.name)))
    ]


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest in a snapshot's directory, without its checksum.

    Raises:
        StoreNotFoundError, FormatTooNewError, CorruptError.
    """
    try:
        manifest = dict(json.loads((path / MANIFEST).read_bytes()))
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']!r}")
        version, written = int(manifest["version"]), manifest.pop("sha256", None)
        if version <= VERSION and written not in (None, json_checksum(manifest)):
            raise ValueError("wrong checksum")
        if version <= VERSION and not all(name in manifest for name in _NEEDED):
            raise ValueError("something is missing")
    except FileNotFoundError:
        raise StoreNotFoundError(f"{path}: there is no such snapshot on disk. See: cld-stream snapshots") from None
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise _damaged(path, f"{MANIFEST} is not readable ({e})") from None
    if version > VERSION:
        raise FormatTooNewError(
            f"{path} has snapshot format {version}; this cld-stream reads up to {VERSION}. "
            "Upgrade cld-stream the way it was installed."
        )
    return manifest


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Write a manifest into a snapshot's directory, with its checksum."""
    plain = json.loads(json.dumps(dict(manifest)))
    atomic_write_json(path / MANIFEST, plain | {"sha256": json_checksum(plain)})


def _damaged(path: Path, what: str) -> CorruptError:
    return CorruptError(f"{path}: {what}. Publish again: cld-stream snapshot")
