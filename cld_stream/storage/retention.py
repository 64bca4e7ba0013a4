"""Dropping the oldest frames (`SPEC.md` section 6): their pictures go, and who they were is kept while a snapshot names
them. Every step may be repeated after a crash."""

import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import delete, func, insert, select, update

from cld_stream.storage import schema
from cld_stream.storage.catalog import Catalog
from cld_stream.storage.database import among
from cld_stream.storage.header import Header
from cld_stream.storage.shards import ArrayState, empty_elements, index_bytes, shard_key, write_array_state
from cld_stream.storage.sidecars import (
    catalog_sidecar,
    mended_sidecar,
    sidecar_path,
    without_frames,
    write_sidecar,
)

__all__ = ["FrameBytes", "begin_dropping", "complete_dropping", "forget_unnamed"]


def begin_dropping(catalog: Catalog, ids: NDArray[np.int64]) -> None:
    """Note durably that these live frames are to be dropped; from here on it will be completed.

    Some of them may be noted already, where an earlier call could not be completed.
    """
    columns = [column.name for column in schema.frames.c]
    with catalog.writing() as tx:
        schema.dropped.create(tx, checkfirst=True)
        these = select(schema.frames).where(among(schema.frames.c.id, ids.tolist()))
        tx.execute(insert(schema.dropped).prefix_with("OR IGNORE").from_select(columns, these))


def complete_dropping(path: Path, header: Header, catalog: Catalog) -> int:
    """Drop every frame that was begun with; the caller has the writer lock.

    Returns:
        Frames dropped.
    """
    if not catalog.keeps_dropped():
        return 0
    begun, frame, source = schema.dropped.c.dropped_utc.is_(None), schema.frames.c, schema.sources.c
    mine = select(schema.dropped.c.id).where(begun)
    with catalog.reading() as tx:
        ids = np.fromiter(tx.execute(mine.order_by(schema.dropped.c.id)).scalars(), np.int64)
        now = tx.execute(select(schema.state)).mappings().one()
    if not len(ids):
        return 0
    size, shards = header.shard_frames, int(now["sealed"]) // header.shard_frames
    empty_elements(path / "frames", size, ids[ids < now["sealed"]])
    for shard in np.unique(ids[ids < now["sealed"]] // size).tolist():
        file = sidecar_path(path, shard)
        write_sidecar(file, without_frames(mended_sidecar(file, catalog, header, shard), ids))
    generation = int(now["generation"]) + 1
    write_array_state(path / "frames", ArrayState(now["sealed"], generation), size)
    left = select(func.count()).where(frame.source == source.id).scalar_subquery()
    touched = select(schema.dropped.c.source).where(begun)
    with catalog.writing() as tx:
        tx.execute(delete(schema.tail).where(schema.tail.c.id.in_(mine)))
        gone = tx.execute(delete(schema.frames).where(frame.id.in_(mine))).rowcount
        tx.execute(update(schema.sources).where(source.id.in_(touched)).values(frames=left, since_shard=shards))
        tx.execute(update(schema.state).values(generation=generation, frames=schema.state.c.frames - gone))
    if shards:  # the last mention of a source counts when the catalog is rebuilt
        write_sidecar(sidecar_path(path, shards - 1), catalog_sidecar(catalog, header, shards - 1))
    with catalog.writing() as tx:
        tx.execute(update(schema.dropped).where(begun).values(dropped_utc=time.time()))
    return len(ids)


def forget_unnamed(catalog: Catalog, named: NDArray[np.int64]) -> int:
    """Forget who dropped frames were, but for those of the given ids, which snapshots name; gives how many."""
    with catalog.reading() as tx:
        kept = np.fromiter(tx.execute(select(schema.dropped.c.id)).scalars(), np.int64)
    unnamed = np.setdiff1d(kept, named).tolist()
    with catalog.writing() as tx:
        tx.execute(delete(schema.dropped).where(among(schema.dropped.c.id, unnamed)))
    return len(unnamed)


class FrameBytes:
    """What the frames take on disk, without the indexes of shards, which stay when a shard is emptied.

    For the process that has the writer lock: nobody else adds or drops frames. So it looks again only when the catalog
    says that frames came or went, and then only at what may have changed: the tail, new shards and, after a drop, those
    that are not empty yet.
    """

    def __init__(self, path: Path, header: Header, catalog: Catalog) -> None:
        self._root, self._size, self._catalog = path / "frames", header.shard_frames, catalog
        self._next_id, self._array = 0, ArrayState(0, 0)
        self._shards = dict[int, int]()  # bytes by shard, of those that are not empty
        self._tail = 0

    def count(self) -> int:
        """Bytes, as of the last commit."""
        next_id, array = self._catalog.next_id(), self._catalog.array_state()
        if (next_id, array) != (self._next_id, self._array):
            new = range(self._array.sealed // self._size, array.sealed // self._size)
            if array.generation != self._array.generation:
                self._look_at([*self._shards])
            self._look_at(new)
            self._tail = self._catalog.tail_bytes()
            self._next_id, self._array = next_id, array
        return self._tail + sum(self._shards.values())

    def _look_at(self, shards: Iterable[int]) -> None:
        for shard in shards:
            file = self._root / shard_key(shard)
            held = file.stat().st_size - index_bytes(self._size) if file.exists() else 0
            if held > 0:
                self._shards[shard] = held
            else:
                self._shards.pop(shard, None)
