"""The one process that adds frames: append, commit, seal (`SPEC.md` section 5)."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, bindparam, delete, insert, select, update

from cld_stream.errors import CorruptError, StoreFullError, StoreNotFoundError
from cld_stream.storage import schema
from cld_stream.storage.catalog import Catalog
from cld_stream.storage.checkpoints import seen_below
from cld_stream.storage.forget import complete_forgetting
from cld_stream.storage.header import Header, require_in_place
from cld_stream.storage.lock import FileLock
from cld_stream.storage.retention import begin_dropping, complete_dropping
from cld_stream.storage.rowcheck import add_checksums, frame_crc, note_source_crcs
from cld_stream.storage.schema import NewFrame, Outcome, SourceKind
from cld_stream.storage.segments import embedded_below
from cld_stream.storage.shards import (
    ArrayState,
    LocalShards,
    read_array_state,
    shard_key,
    shard_parts,
    write_array_state,
)
from cld_stream.storage.sidecars import catalog_sidecar, sidecar_path, write_sidecar

__all__ = ["Writer"]

log = logging.getLogger("cld_stream.writer")
_DEFAULTS: dict[str, Any] = {
    "reader": "",
    "outcome": None,
    "reason": "",
    "cursor": None,
    "frames": 0,
}


class Writer:
    """Adds sources and frames. Use it as a context manager: it holds the writer lock inside.

    Nothing is stored before `commit`; leaving without an exception commits. Entering first completes what a
    killed writer had begun.

    Raises (on entering):
        LockHeldError: another process writes to this store.
        StoreError: the store is read-only, or its file system cannot lock.
    """

    def __init__(self, path: Path, header: Header, catalog: Catalog, command: str = "") -> None:
        self._path = path
        self._header = header
        self._catalog = catalog
        self._lock = FileLock(path / "writer.lock", "writer", command)

    def __enter__(self) -> Self:
        self._lock.acquire()
        try:
            add_checksums(self._catalog)
            self._reload()
            self._mend_array_state()
            self._pass_known_ids()
            with suppress(StoreFullError):  # the next commit tries again
                self._seal_full()
            complete_forgetting(self._path, self._header, self._catalog)
            complete_dropping(self._path, self._header, self._catalog)
            self._reload()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if kind is None:
                self.commit()
        finally:
            self._lock.release()

    @property
    def next_id(self) -> int:
        """The id that the next appended frame gets."""
        return self._next_id

    @property
    def pending(self) -> int:
        """Frames appended and not yet committed."""
        return len(self._rows)

    def add_source(
        self,
        *,
        kind: SourceKind,
        path: str,
        device: int,
        inode: int,
        size: int,
        mtime_ns: int,
        fingerprint: str,
        label: str | None = None,
        split: str | None = None,
        same_as: int | None = None,
    ) -> int:
        """A new source, in progress.

        Returns:
            Its id, counted from 1 in the order of calls.
        """
        id_ = self._next_source
        self._next_source += 1
        self._new[id_] = _DEFAULTS | {
            "id": id_,
            "kind": kind,
            "path": path,
            "device": device,
            "inode": inode,
            "size": size,
            "mtime_ns": mtime_ns,
            "fingerprint": fingerprint,
            "label": label,
            "split": split,
            "same_as": same_as,
        }
        return id_

    def update_source(self, source: int, **values: Any) -> None:
        """Change columns of a source: path, size, outcome, ... Part of the next commit.

        Raises:
            ValueError: there is no such column, or it is not the caller's to set.
        """
        wrong = set(values) - (set(schema.sources.c.keys()) - {"id", "frames", "since_shard"})
        if wrong:
            raise ValueError(f"sources have no settable column {', '.join(sorted(wrong))}")
        target = self._new if source in self._new else self._changed
        target.setdefault(source, {}).update(values)

    def append(self, source: int, frames: Sequence[NewFrame], cursor: str | None) -> range:
        """Add frames of a source, in time order; kept in memory until `commit`.

        Args:
            source: an id from `add_source` or the catalog.
            frames: what to store.
            cursor: where reading continues after these frames.

        Returns:
            The ids of the frames.
        """
        first = self._next_id
        self._next_id += len(frames)
        for id_, frame in enumerate(frames, first):
            if not frame.jpeg:
                raise ValueError(f"frame {id_} of source {source} has no bytes")
            self._rows.append(
                {
                    "id": id_,
                    "source": source,
                    "time_s": frame.time_s,
                    "wall_utc": frame.wall_utc,
                    "shot": frame.shot,
                    "aspect": float(np.float32(frame.aspect)),
                }
            )
            self._jpegs.append({"id": id_, "jpeg": frame.jpeg, "crc": frame_crc(self._rows[-1], frame.jpeg)})
        self._added[source] = self._added.get(source, 0) + len(frames)
        self.update_source(source, cursor=cursor)
        return range(first, self._next_id)

    def finish(self, source: int, outcome: Outcome, reason: str = "", reader: str = "") -> None:
        """Note what became of a source; its cursor stays for a grown file to continue from."""
        self.update_source(source, outcome=Outcome(outcome), reason=reason, reader=reader)

    def commit(self) -> int:
        """Make everything pending durable in one transaction, then seal full shards.

        Where that fails, everything is pending still, and the next call tries again.

        Returns:
            Frames committed.

        Raises:
            StoreFullError, StoreBusyError: not now.
            StoreError: the store was moved.
        """
        require_in_place(self._path, self._header)
        if not (self._new or self._changed or self._rows):
            self._committed_at = time.monotonic()
            self._seal_full()  # what a full disk has kept from being sealed
            return 0
        with self._catalog.writing() as tx:
            self._write_sources(tx)
            if self._rows:
                tx.execute(insert(schema.frames), self._rows)
                tx.execute(insert(schema.tail), self._jpegs)
            tx.execute(
                update(schema.state).values(
                    next_id=self._next_id,
                    next_source=self._next_source,
                    frames=schema.state.c.frames + len(self._rows),
                )
            )
        done = len(self._rows)
        self._clear()
        self._seal_full()
        return done

    def commit_if_due(self, seconds: float) -> int:
        """`commit` when the last one that succeeded is at least this long ago [s]; gives the frames committed."""
        due = time.monotonic() - self._committed_at >= seconds
        return self.commit() if due else 0

    def forget(self, source: int) -> int:
        """Remove a source, its duplicates and their frames from disk for good.

        What is pending is committed first. An interrupted forget is completed by the next writer.

        Returns:
            Frames removed.

        Raises:
            StoreNotFoundError: there is no such source.
            StoreError: a reader keeps the catalog's log alive; the bytes go with the next writer.
        """
        self.commit()
        if not self._catalog.sources(id=source):
            raise StoreNotFoundError(f"{self._path}: no source {source}. See: cld-stream status")
        with self._catalog.writing() as tx:
            tx.execute(insert(schema.forgetting).prefix_with("OR IGNORE").values(source=source))
        try:
            return complete_forgetting(self._path, self._header, self._catalog)
        finally:  # a part of it may be done
            self._reload()

    def drop(self, ids: NDArray[np.int64]) -> int:
        """Remove frames to make room; what is known of them stays as long as a snapshot names them.

        What is pending is committed first. An interrupted drop is completed by the next writer.

        Returns:
            Frames removed.
        """
        self.commit()
        begin_dropping(self._catalog, ids)
        try:
            removed = complete_dropping(self._path, self._header, self._catalog)
            self._catalog.checkpoint()
        finally:  # a part of it may be done
            self._reload()
        return removed

    def _mend_array_state(self) -> None:
        """Write `frames/zarr.json` anew where it cannot be read: the catalog has all that it says."""
        try:
            read_array_state(self._path / "frames")
        except CorruptError:
            now = ArrayState(self._sealed, self._generation)
            write_array_state(self._path / "frames", now, self._header.shard_frames)

    def _reload(self) -> None:
        self._shards = LocalShards(self._path / "frames")
        with self._catalog.reading() as tx:
            now = tx.execute(select(schema.state)).mappings().one()
        self._next_id, self._next_source = int(now["next_id"]), int(now["next_source"])
        self._sealed, self._generation = int(now["sealed"]), int(now["generation"])
        self._clear()

    def _pass_known_ids(self) -> None:
        """Ids that others know are not given again, though the catalog, as of a backup, does not know them."""
        known = max(read_array_state(self._path / "frames").sealed, seen_below(self._path), embedded_below(self._path))
        if known > self._next_id:
            log.warning(
                "%s: the catalog is older than what was made of it: new frames begin at id %d, not %d",
                self._path, known, self._next_id,
            )  # fmt: skip
            with self._catalog.writing() as tx:
                tx.execute(update(schema.state).values(next_id=known))
            self._next_id = known

    def _clear(self) -> None:
        self._new: dict[int, dict[str, Any]] = {}
        self._changed: dict[int, dict[str, Any]] = {}
        self._added: dict[int, int] = {}
        self._rows: list[dict[str, Any]] = []
        self._jpegs: list[dict[str, Any]] = []
        self._committed_at = time.monotonic()

    def _write_sources(self, tx: Connection) -> None:
        shard = self._sealed // self._header.shard_frames
        if self._new:
            rows = [row | {"frames": self._added.get(id_, 0), "since_shard": shard} for id_, row in self._new.items()]
            tx.execute(insert(schema.sources), rows)
        for id_, values in self._changed.items():
            more = schema.sources.c.frames + self._added.get(id_, 0)
            tx.execute(
                update(schema.sources)
                .where(schema.sources.c.id == id_)
                .values(values | {"frames": more, "since_shard": shard})
            )
        note_source_crcs(tx, [*self._new, *self._changed])

    def _seal_full(self) -> None:
        """Move the tail's oldest frames into shards while there are enough of them."""
        size = self._header.shard_frames
        committed = self._next_id - len(self._rows)
        while committed - self._sealed >= size:
            shard = self._sealed // size
            self._shards.put(shard_key(shard), shard_parts(self._tail_of(shard), size))
            write_sidecar(sidecar_path(self._path, shard), catalog_sidecar(self._catalog, self._header, shard))
            stop = self._sealed + size
            write_array_state(self._path / "frames", ArrayState(stop, self._generation), size)
            with self._catalog.writing() as tx:
                tx.execute(delete(schema.tail).where(schema.tail.c.id < stop))
                tx.execute(update(schema.state).values(sealed=stop))
            self._sealed = stop
            self._catalog.checkpoint()

    def _tail_of(self, shard: int) -> Iterator[bytes]:
        """Every element of a shard to be; `b""` where the frame is gone."""
        size = self._header.shard_frames
        row = schema.tail.c
        query = select(row.id, row.jpeg).where(row.id >= bindparam("a"), row.id < bindparam("b"))
        at = first = shard * size
        with self._catalog.reading() as tx:
            found = tx.execution_options(yield_per=256).execute(query.order_by(row.id), {"a": first, "b": first + size})
            for id_, jpeg in found:
                yield from (b"" for _ in range(at, id_))
                yield jpeg
                at = id_ + 1
        yield from (b"" for _ in range(at, first + size))
