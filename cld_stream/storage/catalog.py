"""The truth about what exists, read side: sources, frames, the tail. The writer is in `writer.py`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sqlalchemy import func, inspect, select

from cld_stream.errors import StoreNotFoundError
from cld_stream.storage import schema
from cld_stream.storage.database import among
from cld_stream.storage.published import Published
from cld_stream.storage.schema import Frames, Outcome, SourceRow, Totals
from cld_stream.storage.shards import ArrayState

__all__ = ["Catalog"]

_TAIL_BYTES = select(func.coalesce(func.sum(func.length(schema.tail.c.jpeg)), 0))
_DIGITS = 18  # of an id, at most: SQLite's numbers are below 2**63


class Catalog(Published):
    """What the store holds. Every call sees what is committed when it is made."""

    _keeps_dropped = False

    def sources(self, **where: Any) -> list[SourceRow]:
        """Sources by id, those whose columns equal the given values: `sources(fingerprint=f)`.

        A value of None asks for null; a list or tuple for any of its members.
        """
        query = select(*schema.SOURCE_COLUMNS).order_by(schema.sources.c.id)
        for name, value in where.items():
            column = schema.sources.c[name]
            if isinstance(value, list | tuple):
                query = query.where(among(column, value) if name == "id" else column.in_(value))
            else:
                query = query.where(column == value)
        with self.reading() as tx:
            return [source_row(row) for row in tx.execute(query).mappings()]

    def source_columns(self, *names: str) -> Iterator[tuple[Any, ...]]:
        """Some columns of every source, by id, a few at a time: for stores of very many."""
        columns = [schema.sources.c[name] for name in names]
        with self.reading() as tx:
            rows = tx.execution_options(yield_per=1000).execute(select(*columns).order_by(schema.sources.c.id))
            for row in rows:
                yield tuple(row)

    def source(self, id: int) -> SourceRow:  # noqa: A002
        """One source.

        Raises:
            StoreNotFoundError: there is none of this id.
        """
        rows = self.sources(id=id)
        if not rows:
            raise StoreNotFoundError(f"{self.path.parent}: no source {id}. See: cld-stream status --json")
        return rows[0]

    def source_by_path(self, path: str) -> SourceRow | None:
        """The newest source of exactly this path that is not MISSING, else the newest, else None."""
        rows = self.sources(path=path)
        present = [row for row in rows if row.outcome is not Outcome.MISSING]
        newest = present or rows
        return newest[-1] if newest else None

    def find_source(self, text: str) -> SourceRow:
        """The source that a person means: an id, a path, or the end of one path only.

        Raises:
            StoreNotFoundError: none fits, or several do; names them.
        """
        exact = self.source_by_path(text)
        if exact is not None:
            return exact
        if text.isdecimal() and len(text) <= _DIGITS and (rows := self.sources(id=int(text))):
            return rows[0]
        rows = [row for row in self.sources() if row.path.endswith(text)] if text else []
        whole = [row for row in rows if row.path.endswith("/" + text.lstrip("/"))]
        rows = whole or rows
        if len(rows) == 1:
            return rows[0]
        if rows:
            some = ", ".join(f"{row.id} {row.path}" for row in rows[:5])
            raise StoreNotFoundError(f"{self.path.parent}: {len(rows)} sources end in {text!r}: {some}. Give an id.")
        raise StoreNotFoundError(f"{self.path.parent}: no source {text!r}. Give its id or its path as ingested.")

    def frame_count(self) -> int:
        """Live frames."""
        return self._state("frames")

    def live_from(self, start: int) -> int:
        """Live frames with this id or a later one; counted only where frames are gone."""
        with self.reading() as tx:
            now = tx.execute(select(schema.state)).mappings().one()
            if start >= now["next_id"] or now["frames"] == now["next_id"]:
                return max(0, int(now["next_id"]) - start)
            query = select(func.count()).select_from(schema.frames).where(schema.frames.c.id >= start)
            return int(tx.execute(query).scalar_one())

    def first_from(self, start: int) -> int | None:
        """The first live id that is not below `start`; None where there is none."""
        with self.reading() as tx:
            first = tx.execute(select(func.min(schema.frames.c.id)).where(schema.frames.c.id >= start)).scalar_one()
        return None if first is None else int(first)

    def next_id(self) -> int:
        """Ids handed out so far: every frame id is below this."""
        return self._state("next_id")

    def array_state(self) -> ArrayState:
        """What `frames/zarr.json` should say."""
        with self.reading() as tx:
            now = tx.execute(select(schema.state)).mappings().one()
        return ArrayState(int(now["sealed"]), int(now["generation"]))

    def totals(self) -> Totals:
        """The store in numbers."""
        query = select(schema.sources.c.outcome, func.count()).group_by(schema.sources.c.outcome)
        with self.reading() as tx:
            outcomes = {str(name or ""): int(n) for name, n in tx.execute(query)}
            now = tx.execute(select(schema.state)).mappings().one()
            in_tail = int(tx.execute(_TAIL_BYTES).scalar_one())
        shards = (self.path.parent / "frames" / "c").glob("[0-9]*")
        return Totals(
            outcomes=outcomes,
            sources=sum(outcomes.values()),
            frames=now["frames"],
            bytes=in_tail + sum(file.stat().st_size for file in shards),
            next_id=now["next_id"],
            sealed=now["sealed"],
        )

    def tail_bytes(self) -> int:
        """What the pictures in the tail take."""
        with self.reading() as tx:
            return int(tx.execute(_TAIL_BYTES).scalar_one())

    def live_ids(self, start: int = 0, stop: int | None = None, source: int | None = None) -> NDArray[np.int64]:
        """Ids of live frames in [start, stop), ascending; of one source only when it is given."""
        query = select(schema.frames.c.id).where(schema.frames.c.id >= start)
        if stop is not None:
            query = query.where(schema.frames.c.id < stop)
        if source is not None:
            query = query.where(schema.frames.c.source == source)
        with self.reading() as tx:
            rows = tx.execute(query.order_by(schema.frames.c.id)).scalars()
            return np.fromiter(rows, np.int64)

    def rows(self, ids: ArrayLike | None = None, *, start: int = 0, stop: int | None = None) -> Frames:
        """Rows of the given ids in their order, or of every live frame in [start, stop).

        Frames that are gone are left out.
        """
        if ids is not None:
            return self._rows_of(np.asarray(ids, np.int64))
        query = select(schema.frames).where(schema.frames.c.id >= start)
        if stop is not None:
            query = query.where(schema.frames.c.id < stop)
        with self.reading() as tx:
            return columns(tx.execute(query.order_by(schema.frames.c.id)).all())

    def staying(self, start: int, stop: int) -> Frames:
        """Rows of the live frames in [start, stop), but for those whose dropping or forgetting has begun."""
        row, source, asked = schema.frames.c, schema.sources.c, select(schema.forgetting.c.source)
        query = select(schema.frames).where(row.id >= start, row.id < stop)
        if self.keeps_dropped():
            begun = select(schema.dropped.c.id).where(schema.dropped.c.dropped_utc.is_(None))
            query = query.where(row.id.not_in(begun))
        with self.reading() as tx:
            if tx.execute(asked).first() is not None:
                doomed = select(source.id).where(source.id.in_(asked) | source.same_as.in_(asked))
                query = query.where(row.source.not_in(doomed))
            return columns(tx.execute(query.order_by(row.id)).all())

    def oldest_ids(self, count: int) -> NDArray[np.int64]:
        """Ids of the oldest live frames, ascending."""
        with self.reading() as tx:
            return np.fromiter(
                tx.execute(select(schema.frames.c.id).order_by(schema.frames.c.id).limit(count)).scalars(), np.int64
            )

    def keeps_dropped(self) -> bool:
        """Whether this catalog can tell of dropped frames; an older one cannot before the first drop."""
        if not self._keeps_dropped:
            with self.reading() as tx:
                self._keeps_dropped = inspect(tx).has_table(schema.dropped.name)
        return self._keeps_dropped

    def dropped(self, ids: ArrayLike | None = None, *, source: int | None = None) -> Frames:
        """What is kept of dropped frames, by id: of the given ones, or of a source."""
        row = schema.dropped.c
        if not self.keeps_dropped():
            return columns([])
        these = row.source == source if source is not None else among(row.id, np.asarray(ids, np.int64).tolist())
        query = select(*(row[c.name] for c in schema.frames.c)).where(these).order_by(row.id)
        with self.reading() as tx:
            return columns(tx.execute(query).all())

    def known(self, ids: ArrayLike) -> tuple[Frames, NDArray[np.bool_]]:
        """Rows of frames in the order asked, and which of them were dropped; what was forgotten is left out."""
        wanted = np.asarray(ids, np.int64)
        live = self.rows(wanted)
        if len(live) == len(wanted):
            return live, np.zeros(len(live), np.bool_)
        gone = self.dropped(np.setdiff1d(wanted, live.ids))
        both = Frames(*(np.concatenate([getattr(live, n), getattr(gone, n)]) for n in Frames.__slots__))
        order = {id_: at for at, id_ in enumerate(both.ids.tolist())}
        at = np.array([order[id_] for id_ in wanted.tolist() if id_ in order], np.int64)
        return Frames(*(getattr(both, n)[at] for n in Frames.__slots__)), at >= len(live)

    def frame_at(self, source: int, seconds: float) -> int:
        """Id of the live frame of a source that is nearest to a time in it; the earlier one of two.

        Raises:
            StoreNotFoundError: the source has no frames.
        """
        row = schema.frames.c
        with self.reading() as tx:
            mine = select(row.id, row.time_s).where(row.source == source)
            before = mine.where(row.time_s <= seconds).order_by(row.time_s.desc(), row.id)
            after = mine.where(row.time_s > seconds).order_by(row.time_s, row.id)
            found = [tx.execute(query.limit(1)).first() for query in (before, after)]
        near = [hit for hit in found if hit is not None]
        if not near:
            raise StoreNotFoundError(f"{self.path.parent}: source {source} has no frames.")
        return int(min(near, key=lambda hit: abs(hit.time_s - seconds)).id)

    def tail(self, ids: Iterable[int]) -> dict[int, bytes]:
        """JPEG bytes of those of the given frames that are in the catalog still."""
        query = select(schema.tail.c.id, schema.tail.c.jpeg).where(among(schema.tail.c.id, ids))
        with self.reading() as tx:
            return {int(id_): jpeg for id_, jpeg in tx.execute(query)}

    def _state(self, name: str) -> int:
        with self.reading() as tx:
            return int(tx.execute(select(schema.state.c[name])).scalar_one())

    def _rows_of(self, ids: NDArray[np.int64]) -> Frames:
        query = select(schema.frames).order_by(schema.frames.c.id)
        with self.reading() as tx:
            found = columns(tx.execute(query.where(among(schema.frames.c.id, np.unique(ids).tolist()))).all())
        at = np.searchsorted(found.ids, ids)
        at = at[np.isin(ids, found.ids)]
        return Frames(*(getattr(found, name)[at] for name in Frames.__slots__))


def source_row(row: Mapping[Any, Any]) -> SourceRow:
    """A row of the table `sources` as a record."""
    values = {name: row[name] for name in SourceRow.__slots__}
    values["outcome"] = None if row["outcome"] is None else Outcome(row["outcome"])
    return SourceRow(**values)


def columns(rows: Sequence[Any]) -> Frames:
    """Rows of the table `frames` as columns."""
    id_, source, time_s, wall_utc, shot, aspect = zip(*rows, strict=True) if rows else ((),) * 6
    return Frames(
        ids=np.array(id_, np.int64),
        source=np.array(source, np.int64),
        time_s=np.array(time_s, np.float64),
        wall_utc=np.array([np.nan if t is None else t for t in wall_utc], np.float64),
        shot=np.array(shot, np.int32),
        aspect=np.array(aspect, np.float32),
    )
