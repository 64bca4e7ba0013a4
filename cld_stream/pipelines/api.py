"""`cld_stream.open(path)`: a store from Python. Nothing is started, locked or written."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from cld_stream.errors import StoreNotFoundError, UsageError
from cld_stream.pipelines.neighbours import Filters, Hit, Searcher
from cld_stream.pipelines.query import parse_time, read_picture, stored_feature
from cld_stream.pipelines.snapshots import SnapshotInfo, with_snapshot
from cld_stream.storage.schema import Frames, SourceRow
from cld_stream.storage.snapshots import Snapshot
from cld_stream.storage.store import Store

if TYPE_CHECKING:
    from PIL.Image import Image

    from cld_stream.pipelines.embed import Embedder

__all__ = ["FramesView", "SnapshotView", "StoreView", "open"]

Ids = Sequence[int] | NDArray[np.integer[Any]]


def open(path: str | Path) -> "StoreView":  # noqa: A001
    """Open a store for reading; it may grow meanwhile.

    Raises:
        StoreNotFoundError: there is none at `path`.
        FormatTooNewError, CorruptError: it cannot be read.
    """
    return StoreView(Store.open(Path(path)))


class StoreView:
    """A store. A context manager; or call `close`.

    Attributes:
        path: its folder.
        frames: what was ingested.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.path = store.path
        self.frames = FramesView(store)

    @property
    def sources(self) -> list[SourceRow]:
        """Every file, sequence and camera, in the order they came."""
        return self._store.catalog.sources()

    @property
    def snapshots(self) -> list[SnapshotInfo]:
        """What was published, oldest first."""
        return [
            SnapshotInfo(r.id, r.created_utc, r.step, r.frames, r.encoder_hash, r.pinned, r.state)
            for r in self._store.catalog.snapshots()
        ]

    def snapshot(self, id: str = "latest", device: str = "cpu") -> "SnapshotView":  # noqa: A002
        """A published encoder and its features.

        Args:
            id: of the snapshot, or its unique beginning.
            device: where pictures are embedded.

        Raises:
            StoreNotFoundError: there is none.
        """
        return with_snapshot(self._store, id, lambda snapshot: SnapshotView(self._store, snapshot, device))

    def close(self) -> None:
        """Close files and threads."""
        self.frames.close()
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<cld-stream store {self.path}: {len(self.frames)} frames, {len(self.snapshots)} snapshots>"


class FramesView:
    """The stored frames by id."""

    def __init__(self, store: Store) -> None:
        self._store, self._reader = store, store.reader()

    def __len__(self) -> int:
        return self._store.catalog.frame_count()

    @property
    def ids(self) -> NDArray[np.int64]:
        """Ids of all frames, ascending."""
        return self._store.catalog.live_ids()

    def __getitem__(self, ids: int | Ids) -> NDArray[np.uint8]:
        """Pixels as stored: S x S x 3 RGB of one id, N x S x S x 3 of several.

        Raises:
            StoreNotFoundError: one of them is gone or never was.
            CorruptError: the picture of one of them is damaged.
        """
        wanted = np.atleast_1d(np.asarray(ids, np.int64))
        pixels, present = self._reader.read(wanted)
        if not present.all():
            raise self._absent(int(wanted[~present][0]))
        return pixels if np.ndim(ids) else pixels[0]

    def rows(self, ids: Ids | None = None) -> Frames:
        """Source, time, shot and shape of frames, as columns; of all of them without `ids`."""
        return self._store.catalog.rows(None if ids is None else np.asarray(ids, np.int64))

    def picture(self, id: int) -> "Image":  # noqa: A002
        """One frame in its true shape.

        Raises:
            StoreNotFoundError: it is gone or never was.
            CorruptError: it is damaged.
        """
        from cld_stream.pipelines.sheet import as_shown

        rows, jpeg = self.rows([id]), self._reader.jpegs([id])[0]
        if not len(rows) or not jpeg:
            raise self._absent(id)
        return as_shown(jpeg, float(rows.aspect[0]), self._store.header.fit)

    def _absent(self, id: int) -> StoreNotFoundError:  # noqa: A002
        if len(self._store.catalog.dropped([id])):
            return StoreNotFoundError(
                f"{self._store.path}: the picture of frame {id} is gone: it was dropped for room."
            )
        return StoreNotFoundError(f"{self._store.path}: no frame {id}; `frames.ids` lists them.")

    def close(self) -> None:
        """Stop the reading threads."""
        self._reader.close()


class SnapshotView:
    """A published encoder with the features of the stored frames; those of new frames appear by themselves.

    Attributes:
        id, step, created_utc: of the snapshot.
        spaces: width of the features by space: `instance`, `group`, `backbone`.
    """

    def __init__(self, store: Store, snapshot: Snapshot, device: str = "cpu") -> None:
        self._store, self._snapshot, self._device = store, snapshot, device
        self._searchers: dict[str, Searcher] = {}
        self._embedder: Embedder | None = None
        self.id, self.spaces = snapshot.id, dict(snapshot.spaces)
        self.step, self.created_utc = int(snapshot.manifest["step"]), float(snapshot.manifest["created_utc"])

    @property
    def ids(self) -> NDArray[np.int64]:
        """Ids of the frames that have features, ascending."""
        ids = self._snapshot.ids
        return ids[ids >= 0]

    def features(self, ids: Ids | None = None, space: str = "instance") -> NDArray[np.float16]:
        """Features of frames: N x d float16, in the order of `ids`, or of `self.ids` without.

        `instance` and `group` are unit rows; `backbone` is the backbone's output.

        Raises:
            StoreNotFoundError: one of them has no features here.
        """
        if space not in self.spaces:
            raise UsageError(f"space {space!r}: snapshot {self.id} has {', '.join(self.spaces)}")
        known, features = self._snapshot.features(space)
        rows = np.flatnonzero(known >= 0)
        if ids is not None:
            wanted = np.atleast_1d(np.asarray(ids, np.int64))
            at = np.minimum(np.searchsorted(known[rows], wanted), max(0, len(rows) - 1))
            absent = known[rows][at] != wanted if len(rows) else np.ones(len(wanted), bool)
            if absent.any():
                raise StoreNotFoundError(f"snapshot {self.id} has no features of frame {wanted[absent][0]}.")
            rows = rows[at]
        return features[rows]

    def groups(self) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """(K x d unit centroids in the space `group`, group of each frame of `self.ids`)."""
        centroids, labels = self._snapshot.groups()
        return centroids, labels[self._snapshot.ids >= 0]

    def embed(self, picture: "str | Path | Image | NDArray[np.uint8]") -> dict[str, NDArray[np.float16]]:
        """Features of a picture by space, under this snapshot's own weights.

        Args:
            picture: a file, a PIL image, or H x W x 3 RGB pixels of type uint8.
        """
        if self._embedder is None:
            from cld_stream.pipelines.embed import Embedder

            self._embedder = Embedder.of(self._snapshot, self._device)
        pixels, aspect = self._frame(picture)
        features = self._embedder.embed(pixels[None], np.array([aspect], np.float32))
        return {space: rows[0] for space, rows in features.items()}

    def query(
        self,
        what: "int | np.integer[Any] | str | Path | Image | NDArray[Any]",
        k: int = 12,
        *,
        space: str = "instance",
        distinct_s: float = 0.0,
        under: str | Path | None = None,
        after: str | float | None = None,
        before: str | float | None = None,
    ) -> list[Hit]:
        """The k stored frames nearest to a frame id, a picture (as `embed` takes it) or a vector.

        A frame is its own nearest neighbour. The first call in a space loads its features.

        Args:
            what: an int is a frame's id, a one-dimensional array a vector.
            distinct_s: one hit per source within this time [s]; 0 = all.
            under: only sources that are this file or lie in this folder.
            after, before: only frames known to be taken in [after, before): ISO 8601, or seconds since 1970.

        Raises:
            UsageError: a vector of another width, a picture that cannot be read, an unknown space.
            StoreNotFoundError: a frame that is gone or has no features here.
        """
        if k < 1:
            raise UsageError(f"k must be at least 1, got {k}")
        if space not in self._searchers:
            self._searchers[space] = Searcher(self._store, self._snapshot, space)
        searcher = self._searchers[space]
        filters = Filters(
            distinct_s, None if under is None else str(under), parse_time("after", after), parse_time("before", before)
        )
        vector: NDArray[Any]
        if isinstance(what, int | np.integer):
            vector = stored_feature(self._store, searcher, int(what))[1]
        elif isinstance(what, np.ndarray) and what.ndim == 1:
            vector = what
        else:
            vector = self.embed(what)[space]
        return searcher.find(vector, k, filters)

    def _frame(self, picture: "str | Path | Image | NDArray[np.uint8]") -> tuple[NDArray[np.uint8], float]:
        """A picture as ingest would store it, and its width / height."""
        if isinstance(picture, str | Path):
            question, pixels = read_picture(self._store, Path(picture))
            return pixels, question.aspect
        import simplejpeg
        from PIL import Image, ImageOps

        from cld_stream.media.frames import encode_frame

        if isinstance(picture, Image.Image):
            picture = np.asarray((ImageOps.exif_transpose(picture) or picture).convert("RGB"))
        if not isinstance(picture, np.ndarray):
            raise UsageError(
                f"{type(picture).__name__}: neither a frame's id (an int), nor a picture (a path, a PIL image, or an "
                "array H x W x 3 of type uint8), nor a vector (a one-dimensional array)"
            )
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or not picture.size:
            raise UsageError(f"a picture is H x W x 3 of type uint8; got {picture.shape} of {picture.dtype}")
        header, aspect = self._store.header, picture.shape[1] / picture.shape[0]
        jpeg = encode_frame(picture, aspect, header.fit, header.size, header.jpeg_quality)
        return simplejpeg.decode_jpeg(jpeg, "RGB"), aspect

    def __repr__(self) -> str:
        return f"<cld-stream snapshot {self.id}: {len(self.ids)} frames, step {self.step}>"
