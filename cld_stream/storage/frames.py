"""Random access to stored frames: cached shard indexes, `pread`, JPEG decoding into one array, threads."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import simplejpeg
from numpy.typing import ArrayLike, NDArray

from cld_stream.errors import CorruptError
from cld_stream.storage.catalog import Catalog
from cld_stream.storage.header import Header
from cld_stream.storage.shards import (
    ArrayState,
    LocalShards,
    OpenShard,
    ShardIndex,
    read_array_state,
    read_element,
    read_index,
    shard_key,
)

__all__ = ["FrameReader"]

_LEAST_PER_THREAD = 8


class _Shards:
    """Shards of one generation, with what was read of them so far."""

    def __init__(self, root: Path, now: ArrayState) -> None:
        self.now = now
        self.files = LocalShards(root)
        self.indexes: dict[int, tuple[tuple[int, ...], ShardIndex]] = {}  # of which file, and the index

    def opened(self, shard: int, shard_frames: int) -> tuple[OpenShard, ShardIndex]:
        """A shard and its index, of one and the same file.

        Who forgets or drops replaces the file before the generation changes, and few files are kept open.
        """
        file = self.files.opened(shard_key(shard))
        of, index = self.indexes.get(shard, ((), None))
        if index is None or of != file.stamp:
            index = read_index(file, shard, shard_frames)
            self.indexes[shard] = file.stamp, index
        return file, index


class FrameReader:
    """Reads frames by id, from any thread. New frames are seen as they are committed.

    Args:
        path: the store.
        header: its header.
        catalog: its catalog.
        threads: decoding threads; None = one a usable core.
        on_damage: told of a damaged frame, once a shard, in any thread; such frames then count as gone. Without it they
            are an error.
    """

    def __init__(
        self,
        path: Path,
        header: Header,
        catalog: Catalog,
        threads: int | None = None,
        on_damage: Callable[[CorruptError], None] | None = None,
    ) -> None:
        self._root = path / "frames"
        self._header = header
        self._catalog = catalog
        self._threads = threads or len(os.sched_getaffinity(0))
        self._pool: ThreadPoolExecutor | None = None
        self._on_damage, self._told = on_damage, set[int]()
        self._lock = threading.Lock()
        self._stamp: tuple[int, ...] = ()
        self._shards = _Shards(self._root, ArrayState(0, -1))

    def close(self) -> None:
        """Stop the threads. Reading again starts them again."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def refresh(self) -> int:
        """Ids handed out so far, as the catalog says now. Reading does not need this call."""
        return self._catalog.next_id()

    def jpegs(self, ids: ArrayLike) -> list[bytes]:
        """The stored JPEG of each frame, in the order asked; `b""` for one that is gone or never was.

        Raises:
            CorruptError: bytes on disk are not what was written.
        """
        wanted = np.asarray(ids, np.int64).ravel().tolist()
        get = self._getter(wanted)
        return [self._bytes_of(id_, get) for id_ in wanted]

    def read(self, ids: ArrayLike, out: NDArray[np.uint8] | None = None) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Decode frames.

        Args:
            ids: N frame ids in any order, repeats allowed.
            out: where to decode to, N x S x S x 3 u8 and contiguous; a new array when None.

        Returns:
            The pixels, N x S x S x 3 u8 RGB, and which frames are present, N bools. The pixels of a frame
            that is gone are zero: look at the second answer.

        Raises:
            CorruptError: bytes on disk are not what was written, or are no S x S picture.
        """
        wanted = np.asarray(ids, np.int64).ravel().tolist()
        size = self._header.size
        shape = (len(wanted), size, size, 3)
        pixels = np.empty(shape, np.uint8) if out is None else out
        if pixels.shape != shape or pixels.dtype != np.uint8 or not pixels.flags.c_contiguous:
            raise ValueError(f"out must be a contiguous u8 array of shape {shape}")
        present = np.ones(len(wanted), np.bool_)
        get = self._getter(wanted)

        def decode(start: int, stop: int) -> None:
            for at in range(start, stop):
                jpeg = self._bytes_of(wanted[at], get)
                present[at] = bool(jpeg) and self._decode(wanted[at], jpeg, pixels[at])
                if not present[at]:
                    pixels[at] = 0

        self._spread(len(wanted), decode)
        return pixels, present

    def _spread(self, count: int, work: Callable[[int, int], None]) -> None:
        """Run `work` over [0, count) in as many threads as are worth it."""
        parts = min(self._threads, count // _LEAST_PER_THREAD)
        if parts <= 1:
            return work(0, count)
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._threads - 1, "frames")
            cuts = [count * i // parts for i in range(parts + 1)]
            jobs = [self._pool.submit(work, cuts[i], cuts[i + 1]) for i in range(1, parts)]
        try:
            work(0, cuts[1])
        finally:
            errors = [job.exception() for job in jobs]  # waits: `out` is ours to give back
        for error in errors:
            if error is not None:
                raise error
        return None

    def _bytes_of(self, id_: int, get: Callable[[int], bytes]) -> bytes:
        try:
            return get(id_)
        except CorruptError as error:
            self._damaged(id_, error)
            return b""

    def _decode(self, id_: int, jpeg: bytes, out: NDArray[np.uint8]) -> bool:
        """Whether it is a picture of the right size; then it is in `out`."""
        why = ""
        try:
            decoded = simplejpeg.decode_jpeg(jpeg, "RGB", buffer=out)
            if decoded.shape != out.shape:
                why = f"is {decoded.shape[1]} x {decoded.shape[0]}, not {out.shape[0]} x {out.shape[0]}"
        except ValueError as e:
            why = f"is no valid JPEG ({e})"
        if why:
            self._damaged(id_, CorruptError(f"{self._root.parent}: frame {id_} {why}. Run: cld-stream doctor"))
        return not why

    def _damaged(self, id_: int, error: CorruptError) -> None:
        """Raise it or, where damage is to be passed over, tell of it once a shard."""
        if self._on_damage is None:
            raise error
        shard = id_ // self._header.shard_frames
        with self._lock:
            told = shard in self._told
            self._told.add(shard)
        if not told:
            self._on_damage(error)

    def _getter(self, ids: list[int]) -> Callable[[int], bytes]:
        """A function that gives the bytes of any of these frames, in any thread."""
        shards = self._current()
        tail = self._tail([id_ for id_ in ids if id_ >= shards.now.sealed])
        if len(tail) < len(set(ids)):
            # A tail frame that is not there has been sealed since, is gone, or never was.
            shards = self._current()
        size = self._header.shard_frames

        def get(id_: int) -> bytes:
            if id_ in tail:
                return tail[id_]
            if not 0 <= id_ < shards.now.sealed:
                return b""
            shard, at = divmod(id_, size)
            file, index = shards.opened(shard, size)
            return read_element(file, shard, index, at)

        return get

    def _array_state(self) -> ArrayState:
        """As `frames/zarr.json` says or, where that is damaged, the catalog; the next writer mends it."""
        try:
            return read_array_state(self._root)
        except CorruptError as error:
            if self._on_damage is not None:
                self._on_damage(error)
            return self._catalog.array_state()

    def _tail(self, ids: list[int]) -> dict[int, bytes]:
        return self._catalog.tail(ids) if ids else {}

    def _current(self) -> _Shards:
        """The shards as `frames/zarr.json` has them now; what was read of them is kept while it holds."""
        try:
            stat = (self._root / "zarr.json").stat()
        except OSError as e:
            raise CorruptError(f"{self._root}/zarr.json: {e.strerror}. Is the disk still there?") from None
        stamp = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        with self._lock:
            if stamp != self._stamp:
                now = self._array_state()
                if now.generation != self._shards.now.generation:
                    self._shards = _Shards(self._root, now)
                else:
                    newer = _Shards.__new__(_Shards)
                    newer.now, newer.files = now, self._shards.files
                    newer.indexes = self._shards.indexes
                    self._shards = newer
                self._stamp = stamp
            return self._shards
