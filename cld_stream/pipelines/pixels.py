"""Pixels under the replay buffer: a cache by slot, and fresh frames read ahead, so that the disk is not in the step."""

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from queue import Empty, Full, Queue

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from torch import Tensor

from cld_stream.learn.buffer import EMPTY, Ids, Origin
from cld_stream.learn.feed import Feed
from cld_stream.pipelines.origins import origin_of
from cld_stream.storage.frames import FrameReader
from cld_stream.storage.store import Store

__all__ = ["FreshBatch", "FreshFrames", "GoneError", "PixelCache"]

_MB = 1_000_000
_READ_AHEAD = 4  # batches


class GoneError(Exception):
    """Frames of a batch have been forgotten.

    Attributes:
        ids: which.
    """

    def __init__(self, ids: Ids) -> None:
        super().__init__(f"frames {ids.tolist()} are gone")
        self.ids = ids


class PixelCache:
    """What the buffered frames look like. A cache only: what is not here is read from the store again.

    Decoded on the training device where the whole buffer fits into `budget_mb`, else as JPEG bytes in host memory up to
    the same size, and beyond that not at all.

    Attributes:
        decoded: whether pixels are kept decoded.
        misses: frames that had to be read from the store.
    """

    def __init__(self, store: Store, reader: FrameReader, capacity: int, budget_mb: int, device: torch.device) -> None:
        size = store.header.size
        self._store, self._reader, self._device = store, reader, device
        self._budget = budget_mb * _MB
        self.decoded = capacity * size * size * 3 <= self._budget
        self.misses = 0
        self._ids: Ids = np.full(capacity, EMPTY, np.int64)
        self._aspect = np.ones(capacity, np.float32)
        self._pixels = torch.empty((capacity if self.decoded else 0, size, size, 3), dtype=torch.uint8, device=device)
        self._jpegs: list[bytes] = [] if self.decoded else [b""] * capacity
        self._bytes = 0

    def batch(self, ids: Ids, slots: Ids, fresh: Tensor, aspect: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
        """Pixels and aspects of a batch: the given fresh frames, then the cached ones (the rest of `ids` and `slots`).

        Raises:
            GoneError: some of the cached frames are not in the store any more.
        """
        pixels, shapes = self.get(ids[len(fresh) :], slots[len(fresh) :])
        shape = torch.from_numpy(aspect).to(self._device)
        return torch.cat([fresh.to(self._device, non_blocking=True), pixels]), torch.cat([shape, shapes])

    def get(self, ids: Ids, slots: Ids) -> tuple[Tensor, Tensor]:
        """Pixels (N x S x S x 3 u8) and aspects (N) of buffered frames, on the device.

        Raises:
            GoneError: some are not in the store any more.
        """
        self._fill(ids, slots)
        at = torch.from_numpy(slots)
        aspect = torch.from_numpy(self._aspect[slots]).to(self._device)
        if self.decoded:
            return self._pixels[at.to(self._device)], aspect
        jpegs = [self._jpegs[slot] for slot in slots.tolist()]
        absent = [i for i, jpeg in enumerate(jpegs) if not jpeg]
        for i, jpeg in zip(absent, self._reader.jpegs(ids[absent]), strict=True):
            jpegs[i] = jpeg
        return self._decode(ids, jpegs).to(self._device), aspect

    def put(self, ids: Ids, slots: Ids, pixels: Tensor, aspect: NDArray[np.float32]) -> None:
        """Keep the frames that have a slot (slot >= 0)."""
        taken = slots != EMPTY
        slots, ids = slots[taken], ids[taken]
        if self.decoded:
            self._pixels[torch.from_numpy(slots).to(self._device)] = pixels[torch.from_numpy(taken)].to(self._device)
        else:
            self._keep_jpegs(slots, self._reader.jpegs(ids))
        self._ids[slots], self._aspect[slots] = ids, aspect[taken]

    def drop(self, slots: Ids) -> None:
        """Forget what these slots look like."""
        self._ids[slots] = EMPTY
        if self.decoded:
            self._pixels[torch.from_numpy(slots).to(self._device)] = 0
        else:
            self._keep_jpegs(slots, [b""] * len(slots))

    def _fill(self, ids: Ids, slots: Ids) -> None:
        """Read what is not cached."""
        absent = self._ids[slots] != ids
        if not absent.any():
            return
        wanted = ids[absent]
        self.misses += len(wanted)
        pixels, present = self._reader.read(wanted)
        rows = self._store.catalog.rows(wanted)
        present &= np.isin(wanted, rows.ids)
        if not present.all():
            raise GoneError(wanted[~present])
        self.put(wanted, slots[absent], torch.from_numpy(pixels), _aspects(self._store, rows.aspect))

    def _keep_jpegs(self, slots: Ids, jpegs: Sequence[bytes]) -> None:
        for slot, jpeg in zip(slots.tolist(), jpegs, strict=True):
            more = len(jpeg) - len(self._jpegs[slot])
            fits = self._bytes + more <= self._budget
            kept = jpeg if fits else b""
            self._bytes += len(kept) - len(self._jpegs[slot])
            self._jpegs[slot] = kept

    @staticmethod
    def _decode(ids: Ids, jpegs: Sequence[bytes]) -> Tensor:
        gone = np.array([not jpeg for jpeg in jpegs], np.bool_)
        if gone.any():
            raise GoneError(ids[gone])
        return torch.from_numpy(np.stack([simplejpeg.decode_jpeg(jpeg) for jpeg in jpegs]))


@dataclass(frozen=True)
class FreshBatch:
    """Frames in stream order, and where the feed stands once they are used.

    Attributes:
        ids, pixels, aspect, origin: of the F frames that still exist; may be empty after a `forget`.
        feed: the feed behind this batch. What was read ahead and not used is never counted as seen.
    """

    ids: Ids
    pixels: Tensor
    aspect: NDArray[np.float32]
    origin: Origin
    feed: Feed

    def part(self, chosen: NDArray[np.bool_]) -> "FreshBatch":
        """Those of the frames, without a copy where it is all of them; the feed stays where it is."""
        return self if chosen.all() else self._take(chosen)

    def parts(self, most: int) -> Iterator["FreshBatch"]:
        """The same frames in order, so many at a time, without a copy."""
        return (self._take(slice(at, at + most)) for at in range(0, len(self.ids), most))

    def _take(self, rows: NDArray[np.bool_] | slice) -> "FreshBatch":
        at = rows if isinstance(rows, slice) else torch.from_numpy(rows)
        return replace(
            self, ids=self.ids[rows], pixels=self.pixels[at], aspect=self.aspect[rows], origin=self.origin[rows]
        )


class FreshFrames:
    """A thread that reads the next batches ahead.

    A batch that is not full waits for more frames for as long as they keep coming, and at most `hold_s`.

    Args:
        feed: where to begin; a copy is walked, yours stays where it is.
        size: F, most frames in a batch.
        hold_s: longest wait of an incomplete batch [s].
        poll_s: how often an exhausted store is looked at [s].
    """

    def __init__(self, store: Store, reader: FrameReader, feed: Feed, size: int, hold_s: float, poll_s: float) -> None:
        self._store, self._reader, self._size = store, reader, size
        self._feed, self._hold_s, self._poll_s = replace(feed), hold_s, poll_s
        self._ready: Queue[FreshBatch] = Queue(_READ_AHEAD)
        self._closed = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="fresh-frames", daemon=True)
        self._thread.start()

    def take(self, wait_s: float) -> FreshBatch | None:
        """The next batch, or None when there is none within `wait_s` seconds.

        Raises:
            CldError: what stopped the reading thread.
        """
        try:
            return self._ready.get(timeout=wait_s) if wait_s > 0 else self._ready.get_nowait()
        except Empty:
            if self._error is not None:
                raise self._error from None
            return None

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._closed.is_set():
                self._read_one()
        except Exception as error:  # noqa: BLE001 - raised in the thread that takes
            self._error = error

    def _read_one(self) -> None:
        """Wait for enough frames, read them, hand them over."""
        committed, since = self._reader.refresh(), time.monotonic()
        while self._feed.lag(committed) < self._size:
            before = committed
            if self._closed.wait(self._poll_s):
                return
            committed = self._reader.refresh()
            if not self._feed.lag(committed):
                since = time.monotonic()
            elif committed == before or time.monotonic() - since > self._hold_s:
                break
        first = self._store.catalog.first_from(self._feed.cursor)
        self._feed.skip_to(committed if first is None else min(first, committed))
        batch = self._read(self._feed.take(self._size, committed))
        while not self._closed.is_set():
            try:
                self._ready.put(batch, timeout=0.2)
                break
            except Full:
                continue

    def _read(self, ids: Ids) -> FreshBatch:
        pixels, present = self._reader.read(ids)
        rows = self._store.catalog.rows(ids)
        present &= np.isin(ids, rows.ids)
        kept = np.isin(rows.ids, ids[present])
        self._feed.fed -= int((~present).sum())
        fresh, aspect = torch.from_numpy(pixels[present]), _aspects(self._store, rows.aspect[kept])
        return FreshBatch(ids[present], fresh, aspect, origin_of(self._store, rows)[kept], replace(self._feed))


def _aspects(store: Store, aspect: NDArray[np.float32]) -> NDArray[np.float32]:
    """Width / height of what a frame shows; where frames were not stretched, their content is in true shape already."""
    return aspect if store.header.fit == "stretch" else np.ones_like(aspect)
