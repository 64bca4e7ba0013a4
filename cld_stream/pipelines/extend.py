"""New frames get features under the published encoder, so that they can be found before the next publication."""

from cld_stream.errors import LockHeldError
from cld_stream.pipelines.embed import Embedder
from cld_stream.pipelines.publish import drop_gone, embed_frames, passed_over
from cld_stream.search.cluster import nearest_group
from cld_stream.storage.lock import FileLock
from cld_stream.storage.segments import merge_segments
from cld_stream.storage.snapshots import Snapshot, snapshots_folder
from cld_stream.storage.store import Store

__all__ = ["Extender", "extend"]

_SEGMENT_FRAMES = 4096


class Extender:
    """Extends the latest snapshot again and again; keeps its encoder loaded in between.

    Args:
        store: the store.
        device: where to embed.
        batch: frames embedded at a time.
    """

    def __init__(self, store: Store, device: str = "cpu", batch: int = 256) -> None:
        self._store, self._device, self._batch = store, device, batch
        self._reader = store.reader(on_damage=passed_over)
        self._current: tuple[Snapshot, Embedder] | None = None

    def close(self) -> None:
        """Stop reading."""
        self._reader.close()

    def run(self, most: int | None = None) -> int:
        """Embed the frames that came since the last time.

        Args:
            most: stop after about this many; None = all.

        Returns:
            Frames that can be found now and could not before; 0 where nothing is published yet, or
            another process is extending.
        """
        lock = FileLock(self._store.path / "extender.lock", "extender")
        try:
            lock.acquire()
        except LockHeldError:
            return 0
        try:
            added = 0
            while (found := self._segment(most or _SEGMENT_FRAMES)) is not None:
                added += found
                if most is not None and added >= most:
                    break
            return added
        finally:
            lock.release()

    def _segment(self, most: int) -> int | None:
        """One more segment; how many frames it has, or None when everything is covered."""
        latest = self._store.catalog.latest_snapshot()
        if latest is None:
            return None
        if self._current is None or self._current[0].id != latest.id:
            snapshot = Snapshot(snapshots_folder(self._store.path) / latest.id)
            self._current = snapshot, Embedder.of(snapshot, self._device, self._batch)
        snapshot, embedder = self._current
        first, end = snapshot.covered(), self._store.catalog.next_id()
        if first >= end:
            return None
        stop = min(end, first + min(most, _SEGMENT_FRAMES))
        ids = self._store.catalog.live_ids(first, stop)
        features, present = embed_frames(self._store, self._reader, embedder, ids)
        ids, features = ids[present], {space: values[present] for space, values in features.items()}
        labels = nearest_group(features["group"], snapshot.centroids())
        made = snapshot.add_segment(first, stop, ids, features, labels)
        drop_gone(self._store, made.ids())
        self._store.catalog.add_segment(snapshot.id, made.path.name, first, stop, len(ids))
        if joined := merge_segments(snapshot.path / "segments"):
            drop_gone(self._store, joined.ids())
        return len(ids)


def extend(store: Store, device: str = "cpu") -> int:
    """Extend the latest snapshot once; see `Extender.run`."""
    extender = Extender(store, device)
    try:
        return extender.run()
    finally:
        extender.close()
