"""Keep a store within limits: the oldest frames make room for new ones."""

import numpy as np

from cld_stream.config import IngestSettings
from cld_stream.errors import CorruptError
from cld_stream.storage.checkpoints import buffered_ids
from cld_stream.storage.retention import FrameBytes, forget_unnamed
from cld_stream.storage.snapshots import named_ids
from cld_stream.storage.store import Store
from cld_stream.storage.writer import Writer

__all__ = ["Retention"]

_GB = 1e9
_SHARE = 10  # frames go in lumps of this part of the limit, or of a shard: each time whole shards are rewritten


class Retention:
    """Drops the oldest frames beyond `max_frames` and `max_gb`.

    What the replay buffer holds stays (as of the newest checkpoint: the state from which training goes on), and so
    does the newer half of the limit: where the buffer alone takes more than half, the store is larger than asked.

    Attributes:
        dropped: frames, so far.
    """

    def __init__(self, store: Store, writer: Writer, settings: IngestSettings) -> None:
        self._store, self._writer = store, writer
        self._max_frames, self._max_bytes = settings.max_frames, settings.max_gb * _GB
        self._bytes = FrameBytes(store.path, store.header, store.catalog)
        self.dropped = 0

    @property
    def limits(self) -> dict[str, float]:
        """For a beat: 0 = none."""
        return {"max_frames": self._max_frames, "max_bytes": self._max_bytes}

    @property
    def note(self) -> str:
        """What the user should know: empty while the limit holds."""
        if not self._excess():
            return ""
        return (
            f"the store holds {self._store.catalog.frame_count():,} frames, more than asked for: those in the replay "
            "buffer stay. Raise the limit, or train with a smaller buffer.capacity (on another store)."
        )

    def enforce(self) -> int:
        """Drop what is too much; gives how many frames. Call it after a commit."""
        dropped = 0
        while (excess := self._excess()) and (now := self._drop(excess)):
            dropped += now
        if dropped:
            self.dropped += dropped
            self._forget_unnamed()
        return dropped

    def _excess(self) -> int:
        """Frames to drop: 0, or those beyond a limit and a lump more."""
        catalog, shard = self._store.catalog, self._store.header.shard_frames
        frames = catalog.frame_count()
        excess = 0
        if self._max_frames and frames > self._max_frames:
            excess = frames - self._max_frames + min(shard, self._max_frames // _SHARE)
        if self._max_bytes and frames and (taken := self._bytes.count()) > self._max_bytes:
            lump = min(shard * taken / frames, self._max_bytes / _SHARE)
            excess = max(excess, round((taken - self._max_bytes + lump) * frames / taken), 1)
        return excess

    def _drop(self, excess: int) -> int:
        catalog = self._store.catalog
        frames = catalog.frame_count()
        half = (frames - excess) // 2
        held = buffered_ids(self._store.path)
        oldest = catalog.oldest_ids(min(frames - half, excess + len(held)))
        ids = np.setdiff1d(oldest, held)[:excess]
        return self._writer.drop(ids) if len(ids) else 0

    def _forget_unnamed(self) -> None:
        try:
            forget_unnamed(self._store.catalog, named_ids(self._store.path))
        except CorruptError:  # a damaged snapshot: what it names is not known
            return
