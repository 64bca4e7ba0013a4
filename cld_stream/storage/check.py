"""Whether a store is sound: every byte of it is read once.

Other processes may be at work meanwhile, so files are read first, and then it is asked what was to be in them: frames
leave the files before they leave the catalog (`SPEC.md` section 6), and what is not listed any more is not damaged.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import simplejpeg
from sqlalchemy import null, select

from cld_stream.errors import CldError, CorruptError
from cld_stream.storage import schema
from cld_stream.storage.checkpoints import checkpoint_damage, list_checkpoints, none_whole
from cld_stream.storage.database import among
from cld_stream.storage.header import Header
from cld_stream.storage.rowcheck import is_whole, without_checksums
from cld_stream.storage.schema import Frames
from cld_stream.storage.shards import LocalShards, read_array_state, read_element, read_index
from cld_stream.storage.sidecars import read_sidecar, sidecar_path, without_frames
from cld_stream.storage.snapshots import SPACES, Snapshot, snapshots_folder
from cld_stream.storage.store import Store

__all__ = ["Finding", "check"]

_NAMED = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be."""

    where: str
    problem: str

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}"


def check(store: Store) -> list[Finding]:
    """Verify every checksum, and that catalog, shards and sidecars agree. Reads everything once.

    Returns:
        What is wrong; empty when nothing is.
    """
    found = [Finding("catalog.db", problem) for problem in store.catalog.problems()]
    size, sealed = store.header.shard_frames, store.catalog.array_state().sealed
    try:
        array = read_array_state(store.path / "frames")
        if array.sealed < sealed:
            text = f"{array.sealed} frames in its shape, {sealed} in the catalog"
            found.append(Finding("frames/zarr.json", text))
    except CorruptError as e:
        found.append(Finding("frames/zarr.json", str(e)))
    for shard in range(sealed // size):
        found += _check_shard(store, shard)
    live = store.catalog.live_ids(sealed)
    for part in np.array_split(live, max(1, len(live) // 1024)):
        lost = _damaged_tail(store, part.tolist())
        if lost:
            of = _sources_of(store, store.catalog.rows(lost))
            found.append(Finding("catalog.db", f"frames whose picture or row is damaged: {_some(lost)}, {of}"))
    return [*found, *_check_checkpoints(store), *_check_snapshots(store)]


def _damaged_tail(store: Store, ids: list[int]) -> list[int]:
    """Those of some frames that are in the tail still, and are not what was committed.

    Rows of the first release have no checksum.
    """
    frames, tail = schema.frames, schema.tail
    with store.catalog.reading() as tx:
        sealed = tx.execute(select(schema.state.c.sealed)).scalar_one()
        crc = null().label("crc") if "tail" in without_checksums(tx) else tail.c.crc
        rows = select(frames, tail.c.jpeg, crc).join_from(frames, tail, frames.c.id == tail.c.id, isouter=True)
        here = among(frames.c.id, ids) & (frames.c.id >= sealed)
        found = [row._asdict() for row in tx.execute(rows.where(here).order_by(frames.c.id))]
    return [
        row["id"]
        for row in found
        if not (is_whole(row, row["jpeg"], row["crc"]) and _is_picture(row["jpeg"], store.header))
    ]


def _check_shard(store: Store, shard: int) -> Iterator[Finding]:
    size, where = store.header.shard_frames, f"frames/c/{shard}"
    start, stop = shard * size, (shard + 1) * size
    files = LocalShards(store.path / "frames")
    try:
        index = read_index(files, shard, size)
        for id_ in store.catalog.staying(start, stop).ids.tolist():
            if not _is_picture(read_element(files, shard, index, id_ % size), store.header):
                raise CorruptError(f"frame {id_} is no {store.header.size}-pixel picture.")
    except CorruptError as e:
        yield Finding(where, f"{e} It holds frames {_sources_of(store, store.catalog.staying(start, stop))}")
    had = store.catalog.live_ids(start, stop)
    try:
        sidecar = read_sidecar(sidecar_path(store.path, shard))
        live = store.catalog.staying(start, stop)
        kept = without_frames(sidecar, np.setdiff1d(had, live.ids)).frames
        if not all(
            np.array_equal(getattr(kept, name), getattr(live, name), equal_nan=True) for name in Frames.__slots__
        ):
            yield Finding(f"sidecars/{shard}.npz", "its rows differ from the catalog's")
    except CorruptError as e:
        yield Finding(f"sidecars/{shard}.npz", str(e))


def _sources_of(store: Store, rows: Frames) -> str:
    ids = np.unique(rows.source)
    named = [f"{row.id} {row.path}" for row in store.catalog.sources(id=ids[:_NAMED].tolist())]
    runs = np.split(ids, np.flatnonzero(np.diff(ids) > 1) + 1) if len(ids) > _NAMED else []
    numbers = ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
    return f"of {', '.join(named) or 'no source'}" + (f" and others; all by id: {numbers}." if runs else ".")


def _is_picture(jpeg: bytes, header: Header) -> bool:
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(jpeg)
    except ValueError:
        return False
    return bool((height, width) == (header.size, header.size))


def _some(ids: list[int]) -> str:
    return ", ".join(map(str, ids[:5])) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")


def _check_checkpoints(store: Store) -> Iterator[Finding]:
    looked_at = {step: checkpoint_damage(store.path, step) for step in list_checkpoints(store.path)}
    damaged = {step: why for step, why in looked_at.items() if why is not None}
    left = set(list_checkpoints(store.path))
    then = none_whole(store.path) if left <= damaged.keys() else "Training goes on from another one."
    for step, why in damaged.items():
        yield Finding(f"checkpoints/{step:012d}", f"{why} {then}")


def _check_snapshots(store: Store) -> Iterator[Finding]:
    for row in store.catalog.snapshots():
        try:
            snapshot = Snapshot(snapshots_folder(store.path) / row.id)
            snapshot.weights()
            snapshot.groups()
            for space in SPACES:
                snapshot.features(space)
        except (CldError, OSError) as e:
            if row.id in {left.id for left in store.catalog.snapshots()}:  # the row of one that is removed goes first
                yield Finding(f"snapshots/{row.id}", f"{e} Queries are answered from the one before.")
