"""Removing sources from disk for good (`SPEC.md` section 6). Every step may be repeated after a crash."""

from pathlib import Path

import numpy as np
from sqlalchemy import delete, select, update

from cld_stream.storage import schema
from cld_stream.storage.catalog import Catalog
from cld_stream.storage.database import among
from cld_stream.storage.durable import remove_dir
from cld_stream.storage.header import Header
from cld_stream.storage.shards import ArrayState, empty_elements, write_array_state
from cld_stream.storage.sidecars import mended_sidecar, sidecar_path, without_sources, write_sidecar

__all__ = ["complete_forgetting"]


def complete_forgetting(path: Path, header: Header, catalog: Catalog) -> int:
    """Remove every source that the catalog's table `forgetting` names; the caller has the writer lock.

    Returns:
        Frames removed.
    """
    keeps_dropped = catalog.keeps_dropped()
    with catalog.reading() as tx:
        asked = list(tx.execute(select(schema.forgetting.c.source)).scalars())
        if not asked:
            return 0
        source, frame = schema.sources.c, schema.frames.c
        doomed = among(source.id, asked) | among(source.same_as, asked)
        gone = set(tx.execute(select(source.id).where(doomed)).scalars()) | set(asked)
        ids = np.fromiter(
            tx.execute(select(frame.id).where(among(frame.source, gone)).order_by(frame.id)).scalars(),
            np.int64,
        )
        now = tx.execute(select(schema.state)).mappings().one()
    empty_elements(path / "frames", header.shard_frames, ids[ids < now["sealed"]])
    for shard in range(now["sealed"] // header.shard_frames):
        sidecar = mended_sidecar(sidecar_path(path, shard), catalog, header, shard)
        if any(s.id in gone or s.same_as in gone for s in sidecar.sources):
            write_sidecar(sidecar_path(path, shard), without_sources(sidecar, gone))
    generation = int(now["generation"]) + 1
    write_array_state(path / "frames", ArrayState(now["sealed"], generation), header.shard_frames)
    with catalog.writing() as tx:
        mine = select(frame.id).where(among(frame.source, gone))
        tx.execute(delete(schema.tail).where(schema.tail.c.id.in_(mine)))
        tx.execute(delete(schema.frames).where(among(frame.source, gone)))
        tx.execute(delete(schema.sources).where(among(source.id, gone)))
        if keeps_dropped:
            tx.execute(delete(schema.dropped).where(among(schema.dropped.c.source, gone)))
        tx.execute(update(schema.state).values(generation=generation, frames=schema.state.c.frames - len(ids)))
    for old in path.glob("catalog.db.old*"):
        old.unlink()
    remove_dir(path / "backups")
    catalog.scrub()
    with catalog.writing() as tx:
        tx.execute(delete(schema.forgetting).where(among(schema.forgetting.c.source, asked)))
    return len(ids)
