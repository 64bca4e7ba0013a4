"""Make a catalog anew from shards, sidecars and what the damaged one still holds (`SPEC.md` section 8)."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import insert

from cld_stream.errors import CorruptError, StoreError, StoreFullError
from cld_stream.storage import schema
from cld_stream.storage.catalog import Catalog, columns
from cld_stream.storage.check import Finding
from cld_stream.storage.durable import fsync_dir, temporary
from cld_stream.storage.header import Header, read_header
from cld_stream.storage.lock import FileLock
from cld_stream.storage.rowcheck import frame_crc, note_source_crcs
from cld_stream.storage.salvage import Salvage, salvage
from cld_stream.storage.schema import Frames, Outcome, SnapshotRow, SourceRow
from cld_stream.storage.shards import (
    ArrayState,
    LocalShards,
    read_array_state,
    read_index,
    write_array_state,
)
from cld_stream.storage.sidecars import Sidecar, read_sidecar, sidecar_path
from cld_stream.storage.snapshots import drop_features, named_ids, snapshot_rows
from cld_stream.storage.store import Store

__all__ = ["RebuildReport", "rebuild_catalog"]

Row: TypeAlias = dict[str, Any]
_FILES = ("", "-wal", "-shm")  # endings of a catalog and what SQLite keeps beside it


@dataclass(frozen=True, slots=True)
class RebuildReport:
    """What a rebuilt catalog holds.

    Attributes:
        shards, sources, frames, snapshots: how many were found again.
        salvaged: frames among them that were in the damaged catalog alone.
        lost: frames that were not found again; None = nobody knows.
        partial: sources that lost frames with the old catalog, or were being read.
        problems: shards and sidecars that could not be used.
    """

    shards: int
    sources: int
    frames: int
    snapshots: int
    salvaged: int
    lost: int | None
    partial: int
    problems: tuple[Finding, ...]

    @property
    def whole(self) -> bool:
        """Whether everything was found again."""
        return self.lost == 0 and not self.problems

    def __str__(self) -> str:
        lost = "how many are lost is not known" if self.lost is None else f"{self.lost:,} are lost"
        text = (
            f"{self.frames:,} frames of {self.sources:,} sources: {self.frames - self.salvaged:,} from {self.shards:,} "
            f"shards, {self.salvaged:,} salvaged from the old catalog; {lost}; "
            f"{self.snapshots} snapshots; {self.partial} sources are now PARTIAL"
        )
        return "; ".join([text, *map(str, self.problems)])


def rebuild_catalog(path: Path) -> RebuildReport:
    """Make `catalog.db` anew from the shards, their sidecars and what can be read of the damaged one.

    That is kept as `catalog.db.old`.

    Raises:
        StoreError: the catalog is in order; rebuilding would lose the frames that are only there.
        LockHeldError: another process adds frames or trains.
        StoreFullError: the disk is full; what was there is there still.
    """
    header = read_header(path)
    with FileLock(path / "writer.lock", "writer"), FileLock(path / "trainer.lock", "trainer"):
        _take_back(path)
        files, problems = LocalShards(path / "frames"), list[Finding]()
        sidecars = list(_sidecars(path, header, problems))
        sealed = header.shard_frames * (1 + max((sidecar.shard for sidecar in sidecars), default=-1))
        left = salvage(path / "catalog.db", sealed)  # first, for SQLite may empty a damaged log when it looks
        _refuse_if_healthy(path / "catalog.db")
        live = [_live(files, sidecar, header, problems) for sidecar in sidecars]
        live.append(columns([tuple(left.frames[id_].values()) for id_ in sorted(left.frames)]))
        frames = Frames(*(np.concatenate([getattr(part, name) for part in live]) for name in Frames.__slots__))
        sources, changed = _sources(sidecars, left, frames)
        frames = _keep(frames, np.isin(frames.source, [source.id for source in sources]))
        snapshots = [replace(row, pinned=row.id in left.pinned) for row in snapshot_rows(path)]
        _replace_catalog(path, header, sidecars, left, sources, frames, snapshots)
        _drop_unknown(path, problems)
    return RebuildReport(
        shards=len(sidecars),
        sources=len(sources),
        frames=len(frames),
        snapshots=len(snapshots),
        salvaged=int((frames.ids >= sealed).sum()),
        lost=left.lost(len(frames)),
        partial=len(changed),
        problems=tuple(problems),
    )


def _take_back(path: Path) -> None:
    """Where an earlier rebuild was killed between the old catalog and the new one, the old one is in its place again.

    What only that has would be lost: the new one is made from it.
    """
    if (path / "catalog.db").exists() or not temporary(path / "catalog.db").exists():
        return
    for end in _FILES:
        old = path / f"catalog.db.old{end}"
        if old.exists() and not (path / f"catalog.db{end}").exists():
            old.rename(path / f"catalog.db{end}")
    fsync_dir(path)


def _drop_unknown(path: Path, problems: list[Finding]) -> None:
    """Features of frames without a row: no answer can name them, and no `forget` would find them."""
    try:
        with Store.open(path) as store:
            drop_features(store, np.setdiff1d(named_ids(path), store.catalog.live_ids()))
    except (CorruptError, StoreFullError) as e:  # the catalog is in order by now, and no second rebuild allowed
        problems.append(Finding("snapshots", str(e)))


def _refuse_if_healthy(file: Path) -> None:
    if not file.exists():
        return
    catalog = Catalog(file)
    try:
        if not catalog.problems():
            unsealed = catalog.live_ids(catalog.array_state().sealed)
            raise StoreError(
                f"{file}: the catalog is in order, and rebuilding it would lose the newest "
                f"{len(unsealed):,} frames. To do so anyway, move it away first."
            )
    except CorruptError:
        return
    finally:
        catalog.close()


def _sidecars(path: Path, header: Header, problems: list[Finding]) -> Iterator[Sidecar]:
    numbers = sorted(int(file.stem) for file in (path / "sidecars").glob("[0-9]*.npz"))
    for shard in numbers:
        try:
            sidecar = read_sidecar(sidecar_path(path, shard))
        except CorruptError as e:
            problems.append(Finding(f"sidecars/{shard}.npz", str(e)))
            continue
        if sidecar.store == header.uuid and sidecar.shard == shard:
            yield sidecar
        else:
            problems.append(Finding(f"sidecars/{shard}.npz", "it belongs to another store or shard"))


def _live(files: LocalShards, sidecar: Sidecar, header: Header, problems: list[Finding]) -> Frames:
    """Rows of the frames that the shard still has."""
    try:
        index = read_index(files, sidecar.shard, header.shard_frames)
    except CorruptError as e:
        problems.append(Finding(f"frames/c/{sidecar.shard}", str(e)))
        return _keep(sidecar.frames, np.zeros(len(sidecar.frames), np.bool_))
    full = index[:, 0] != np.uint64((1 << 64) - 1)
    return _keep(sidecar.frames, full[sidecar.frames.ids % header.shard_frames])


def _keep(frames: Frames, mask: NDArray[np.bool_]) -> Frames:
    return Frames(*(getattr(frames, name)[mask] for name in Frames.__slots__))


def _sources(sidecars: list[Sidecar], left: Salvage, frames: Frames) -> tuple[list[SourceRow], set[int]]:
    """The sources as last mentioned, corrected for lost frames, and which ones were changed by that.

    Sources of which nothing is left are dropped, with their duplicates, so that ingest takes them up again.
    """
    known = {source.id: source for sidecar in sidecars for source in sidecar.sources} | left.sources
    ids, counts = np.unique(frames.source, return_counts=True)
    count = dict(zip(ids.tolist(), counts.tolist(), strict=True))
    changed: set[int] = set()
    for id_, source in list(known.items()):
        has = count.get(id_, 0)
        if has == source.frames and (source.outcome is not None or id_ in left.sources):
            continue
        if has == 0:
            del known[id_]
            continue
        reason = (
            f"the catalog was rebuilt; {max(0, source.frames - has)} known frames and what "
            "followed are lost: forget this source and ingest it again"
        )
        known[id_] = replace(source, frames=has, outcome=Outcome.PARTIAL, reason=reason, cursor=None)
        changed.add(id_)
    while dangling := [s.id for s in known.values() if s.same_as and s.same_as not in known]:
        for id_ in dangling:
            del known[id_]
    return [known[id_] for id_ in sorted(known)], changed & known.keys()


def _replace_catalog(
    path: Path,
    header: Header,
    sidecars: list[Sidecar],
    left: Salvage,
    sources: list[SourceRow],
    frames: Frames,
    snapshots: list[SnapshotRow],
) -> None:
    size = header.shard_frames
    shards = 1 + max((sidecar.shard for sidecar in sidecars), default=-1)
    written = [int(file.name) + 1 for file in (path / "frames" / "c").glob("[0-9]*") if file.name.isdecimal()]
    handed_out = max([1 + max(left.frames, default=-1), size * max(written, default=0), *(s.next_id for s in sidecars)])
    try:
        generation = read_array_state(path / "frames").generation + 1
    except CorruptError:
        generation = 1
    aside = temporary(path / "catalog.db")
    _remove(aside)
    sealed_as = {source.id: source for sidecar in sidecars for source in sidecar.sources}
    rows = [asdict(s) | {"since_shard": shards - (s == sealed_as.get(s.id))} for s in sources]
    try:
        Catalog.create(
            aside,
            next_id=(-(-handed_out // size) + 1) * size,
            next_source=max([1 + max(left.sources, default=0), *(sidecar.next_source for sidecar in sidecars)]),
            sealed=shards * size,
            generation=generation,
            frames=len(frames),
        )
        _fill(aside, rows, _records(frames), _tail(left, frames), snapshots)
        write_array_state(path / "frames", ArrayState(shards * size, generation), size)
    except BaseException:
        _remove(aside)
        raise
    if (path / "catalog.db").exists():
        _remove(path / "catalog.db.old")  # its log is not that of the one which takes its name
    for end in _FILES:
        if (path / f"catalog.db{end}").exists():
            (path / f"catalog.db{end}").rename(path / f"catalog.db.old{end}")
    aside.rename(path / "catalog.db")
    fsync_dir(path)


def _remove(catalog: Path) -> None:
    for end in _FILES:
        catalog.with_name(catalog.name + end).unlink(missing_ok=True)


def _fill(file: Path, sources: list[Row], frames: list[Row], tail: list[Row], snapshots: list[SnapshotRow]) -> None:
    with closing(Catalog(file)) as new:
        with new.writing() as tx:
            for table, rows in ((schema.sources, sources), (schema.frames, frames), (schema.tail, tail)):
                if rows:
                    tx.execute(insert(table), rows)
            note_source_crcs(tx, [row["id"] for row in sources])
        for row in snapshots:
            new.add_snapshot(row)
        new.checkpoint()  # closing would, too, but on a full disk leaves in the log what is not in the file


def _records(frames: Frames) -> list[Row]:
    columns = {"id" if name == "ids" else name: getattr(frames, name).tolist() for name in Frames.__slots__}
    columns["wall_utc"] = [None if t != t else t for t in columns["wall_utc"]]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _tail(left: Salvage, frames: Frames) -> list[Row]:
    """The pictures of those frames that are in no shard."""
    kept = [(left.frames[id_], left.jpegs[id_]) for id_ in frames.ids.tolist() if id_ in left.frames]
    return [{"id": row["id"], "jpeg": jpeg, "crc": frame_crc(row, jpeg)} for row, jpeg in kept]
