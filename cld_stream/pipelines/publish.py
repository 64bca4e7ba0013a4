"""Publish an encoder: embed every stored frame with it, check the result, make it current."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cld_stream.config import EncoderSettings, PublishSettings
from cld_stream.errors import CorruptError, StoreError
from cld_stream.pipelines.embed import Embedder, Features
from cld_stream.pipelines.snapshots import prune_snapshots
from cld_stream.search.cluster import nearest_group, spherical_kmeans
from cld_stream.storage.frames import FrameReader
from cld_stream.storage.lock import FileLock
from cld_stream.storage.snapshot_builder import SnapshotBuilder, encoder_hash
from cld_stream.storage.snapshots import (
    Snapshot,
    changing_features,
    drop_features,
    remove_snapshot,
    snapshots_folder,
)
from cld_stream.storage.store import Store

__all__ = ["Publication", "drop_gone", "embed_frames", "passed_over", "publish"]

log = logging.getLogger("cld_stream.publish")
_SAMPLE = 64
_LEAST_COSINE = 0.99
_AT_ONCE = 512  # frames: training must not wait long, nor the word to stop


class Publication:
    """A publication that can be worked on a slice at a time, between other things.

    Killed, it is resumed by the next publication of the same encoder. A context manager: it holds the
    publisher's lock inside.

    Args:
        store: the store.
        encoder, weights: what `Learner.publishable` gives.
        step: the learner's step.
        settings: how to publish.
        device: where to embed.
        info: anything worth keeping beside it, as JSON holds it.

    Raises (on entering):
        LockHeldError: another process publishes.
    """

    def __init__(
        self,
        store: Store,
        encoder: EncoderSettings,
        weights: Mapping[str, NDArray[Any]],
        *,
        step: int,
        settings: PublishSettings | None = None,
        device: str = "cpu",
        info: Mapping[str, Any] | None = None,
    ) -> None:
        self._store, self._settings = store, settings or PublishSettings()
        self._encoder, self._weights, self._step, self._info = encoder, weights, step, dict(info or {})
        self._embedder = Embedder(encoder, weights, store.header.fit, device, self._settings.batch)
        self._lock = FileLock(store.path / "publisher.lock", "publisher")
        self._parts: list[Features] = []  # of the chunk that is not whole yet

    def __enter__(self) -> Self:
        self._lock.acquire()
        self._reader = self._store.reader(on_damage=passed_over)
        try:
            self._remove_orphans()
            self._builder = self._begin()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._reader.close()
        self._lock.release()

    def abandon(self) -> None:
        """Give the disk back what was written so far; nothing is resumed."""
        self._builder.abandon()

    def _remove_orphans(self) -> None:
        """Directories without a row: of a publisher or a pruning that was killed in between."""
        known = {row.id for row in self._store.catalog.snapshots()}
        for path in snapshots_folder(self._store.path).glob("[0-9]*"):
            if path.name not in known:
                remove_snapshot(self._store.path, path.name)

    def _begin(self) -> SnapshotBuilder:
        settings = asdict(self._encoder)
        digest = encoder_hash(self._weights, settings)
        now, header = time.time(), self._store.header
        name = SnapshotBuilder.unfinished(self._store.path, digest) or self._new_id(now)
        stop = self._store.catalog.next_id()
        return SnapshotBuilder(
            self._store.path,
            name,
            {
                "created_utc": self._after_all_others(now),
                "step": self._step,
                "encoder": {"sha256": digest, "settings": settings},
                "store": {"uuid": header.uuid, "size": header.size, "fit": header.fit},
                "settings": asdict(self._settings),
                "info": self._info,
            },
            self._weights,
            self._store.catalog.live_ids(0, stop),
            stop,
            self._embedder.spaces,
        )

    def _after_all_others(self, now: float) -> float:
        """The time is what orders snapshots, so it does not go back, whatever the clock does."""
        latest = max((row.created_utc for row in self._store.catalog.snapshots()), default=0.0)
        return max(now, latest + 0.001)

    def _new_id(self, now: float) -> str:
        while True:
            name = f"{datetime.fromtimestamp(now, UTC):%Y%m%d-%H%M%S}-{self._step:06d}"
            if not (snapshots_folder(self._store.path) / name).exists():
                return name
            now += 1

    @property
    def rows(self) -> int:
        """Frames to embed in all."""
        return len(self._builder.ids)

    @property
    def rows_done(self) -> int:
        """Frames embedded so far."""
        return self._builder.rows_done

    def advance(self) -> bool:
        """Embed the next few hundred frames; False when there are none left. What is durable are whole chunks."""
        rows = self._builder.next_rows()
        if rows is None:
            return False
        begin = rows.start + sum(len(next(iter(part.values()))) for part in self._parts)
        end = min(rows.stop, begin + _AT_ONCE)
        features, _ = embed_frames(self._store, self._reader, self._embedder, self._builder.ids[begin:end])
        self._parts.append(features)
        if end < rows.stop:
            return True
        self._builder.write(rows, {s: np.concatenate([part[s] for part in self._parts]) for s in features})
        self._parts.clear()
        return self._builder.next_rows() is not None

    def finish(self) -> Snapshot:
        """Check the features, write the groups, make the snapshot current, prune old ones.

        Raises:
            CorruptError: what is on disk is not what the encoder says; nothing became current.
            StoreError: frames are still to be embedded.
        """
        if self._builder.next_rows() is not None:
            raise StoreError(f"{self._builder.path}: {self.rows_done} of {self.rows} frames are embedded; go on first.")
        self._check()
        vectors, ids = self._builder.features("group"), self._builder.ids
        seen = (ids >= 0) & self._builder.features("instance").any(1)  # zeros: the picture could not be read
        centroids = spherical_kmeans(vectors[seen], self._settings.groups)
        labels = np.where(seen, nearest_group(vectors, centroids), -1).astype(np.int32)
        with changing_features(self._store.path):
            self._builder.leave_out(ids[~seen])  # of -1 too: their features may have come after they were forgotten
            snapshot = self._builder.finish(centroids, labels)
        drop_gone(self._store, snapshot.ids)
        self._store.catalog.add_snapshot(snapshot.row())
        prune_snapshots(self._store, self._settings.keep)
        return snapshot

    def _check(self) -> None:
        """The row count, and a sample embedded again."""
        ids = self._builder.ids
        live = np.flatnonzero(ids >= 0)
        rows = np.unique(live[np.linspace(0, len(live) - 1, min(_SAMPLE, len(live)), dtype=np.int64)])
        fresh, present = embed_frames(self._store, self._reader, self._embedder, ids[rows])
        for space, again in fresh.items():
            stored = self._builder.features(space)
            if len(stored) != len(ids):
                raise CorruptError(f"{self._builder.path}: {len(stored)} features of {len(ids)} frames. Publish again.")
            cosine = _cosine(stored[rows][present], again[present])
            if len(cosine) and not cosine.min() >= _LEAST_COSINE:
                raise CorruptError(
                    f"{self._builder.path}: embedded again, a frame's {space} features differ (cosine "
                    f"{cosine.min():.3f}). Nothing was published; check the disk and the device, then publish again."
                )


def publish(
    store: Store,
    encoder: EncoderSettings,
    weights: Mapping[str, NDArray[Any]],
    *,
    step: int,
    settings: PublishSettings | None = None,
    device: str = "cpu",
    info: Mapping[str, Any] | None = None,
    stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Snapshot | None:
    """A whole publication; arguments as of `Publication`.

    Args:
        stop: asked every few hundred frames.
        on_progress: told (frames embedded, frames in all).

    Returns:
        The snapshot, now the latest; None when stopped (the next call goes on from there).
    """
    with Publication(store, encoder, weights, step=step, settings=settings, device=device, info=info) as work:
        more = True
        while more:
            more = work.advance()
            if on_progress is not None:
                on_progress(work.rows_done, work.rows)
            if more and stop():
                return None
        return work.finish()


def embed_frames(
    store: Store, reader: FrameReader, embedder: Embedder, ids: NDArray[np.int64]
) -> tuple[Features, NDArray[np.bool_]]:
    """Features of stored frames, and which of them there still are; the rows of the others are zero."""
    out: Features = {s: np.zeros((len(ids), d), np.float16) for s, d in embedder.spaces.items()}
    present = np.zeros(len(ids), bool)
    for start in range(0, len(ids), _AT_ONCE):
        part = np.arange(start, min(start + _AT_ONCE, len(ids)))
        rows = store.catalog.rows(ids[part])
        part = part[np.isin(ids[part], rows.ids)]
        pixels, there = reader.read(ids[part])
        for space, values in embedder.embed(pixels[there], rows.aspect[there]).items():
            out[space][part[there]] = values
        present[part] = there
    return out, present


def drop_gone(store: Store, ids: NDArray[np.int64]) -> None:
    """Forget the features of those frames that were forgotten meanwhile; dropped ones keep theirs."""
    ids = ids[ids >= 0]
    if len(ids):
        gone = np.setdiff1d(ids, store.catalog.live_ids(int(ids[0]), int(ids[-1]) + 1))
        forgotten = np.setdiff1d(gone, store.catalog.dropped(gone).ids) if len(gone) else gone
        if len(forgotten):
            drop_features(store, forgotten)


def passed_over(error: CorruptError) -> None:
    """Say that damaged frames get no features."""
    log.error("frames without features, because their pictures are damaged: %s", error)


def _cosine(a: NDArray[np.float16], b: NDArray[np.float16]) -> NDArray[np.float32]:
    x, y = a.astype(np.float32), b.astype(np.float32)
    scale = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    return np.where(scale > 0, (x * y).sum(1) / np.maximum(scale, 1e-12), 1.0).astype(np.float32)
