"""The part of the catalog that trainer and queries share: snapshots, segments, runs."""

import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sqlalchemy import delete, insert, select, update

from cld_stream.errors import StoreNotFoundError
from cld_stream.storage import schema
from cld_stream.storage.database import Database
from cld_stream.storage.schema import Run, Segment, SnapshotRow

__all__ = ["Published"]

_RUNS_KEPT = 100  # of a kind
_SIGN_S = 0.1  # a sign of life waits for others only this long: it holds nobody up


class Published(Database):
    """Rows of snapshots, their segments, and runs. Any process may write them."""

    def add_snapshot(self, row: SnapshotRow) -> None:
        """Enter a snapshot whose directory is durable; replaces a row of the same id."""
        values = {f: getattr(row, f) for f in SnapshotRow.__slots__} | {"info": json.dumps(row.info)}
        with self.writing() as tx:
            tx.execute(delete(schema.snapshots).where(schema.snapshots.c.id == row.id))
            tx.execute(insert(schema.snapshots).values(values))

    def snapshots(self) -> list[SnapshotRow]:
        """All of them, oldest first."""
        order = (schema.snapshots.c.created_utc, schema.snapshots.c.step, schema.snapshots.c.id)
        with self.reading() as tx:
            rows = tx.execute(select(schema.snapshots).order_by(*order)).mappings().all()
            return [SnapshotRow(**{**row, "info": json.loads(row["info"])}) for row in rows]

    def snapshot(self, id: str) -> SnapshotRow:  # noqa: A002
        """One snapshot.

        Raises:
            StoreNotFoundError: there is none of this id.
        """
        rows = self.snapshots()
        for row in rows:
            if row.id == id:
                return row
        known = ", ".join(r.id for r in rows[-5:]) or "there are none yet"
        raise StoreNotFoundError(f"{self.path.parent}: no snapshot {id!r}; newest: {known}. See: cld-stream snapshots")

    def latest_snapshot(self) -> SnapshotRow | None:
        """The newest one that is current, or None."""
        current = [row for row in self.snapshots() if row.state == "current"]
        return current[-1] if current else None

    def set_snapshot_state(self, id: str, state: Literal["building", "current", "retired"]) -> None:  # noqa: A002
        """Change what a snapshot is good for."""
        self._change_snapshot(id, state=state)

    def pin(self, id: str, pinned: bool = True) -> None:  # noqa: A002
        """Protect a snapshot from pruning, or stop doing so."""
        self._change_snapshot(id, pinned=pinned)

    def drop_snapshot(self, id: str) -> None:  # noqa: A002
        """Remove the rows of a snapshot and of its segments."""
        with self.writing() as tx:
            tx.execute(delete(schema.segments).where(schema.segments.c.snapshot == id))
            tx.execute(delete(schema.snapshots).where(schema.snapshots.c.id == id))

    def add_segment(self, snapshot: str, name: str, first: int, stop: int, frames: int) -> int:
        """Enter a segment whose directory is durable; it covers the frame ids [first, stop).

        Returns:
            Its id, which orders the segments.
        """
        values = {"snapshot": snapshot, "name": name, "first": first, "stop": stop}
        values |= {"frames": frames, "created_utc": time.time()}
        with self.writing() as tx:
            query = insert(schema.segments).values(values).returning(schema.segments.c.id)
            return int(tx.execute(query).scalar_one())

    def segments(self, snapshot: str) -> list[Segment]:
        """The segments of a snapshot, in the order of their frames."""
        query = select(schema.segments).where(schema.segments.c.snapshot == snapshot)
        with self.reading() as tx:
            rows = tx.execute(query.order_by(schema.segments.c.first, schema.segments.c.id))
            return [Segment(**row) for row in rows.mappings()]

    def begin_run(self, kind: str, argv: Sequence[str]) -> int:
        """Note that this process works on the store; gives the run's id.

        The caller holds the lock of its kind, so a run of that kind without an end was killed, and is noted as such.
        """
        now = time.time()
        values = {"kind": kind, "pid": os.getpid(), "host": socket.gethostname()}
        values |= {"argv": json.dumps(list(argv)), "started_utc": now, "heartbeat_utc": now}
        row = schema.runs.c
        mine = select(row.id).where(row.kind == kind).order_by(row.id.desc())
        with self.writing(_SIGN_S) as tx:
            tx.execute(
                update(schema.runs)
                .where(row.kind == kind, row.ended_utc.is_(None))
                .values(ended_utc=row.heartbeat_utc, outcome="killed")
            )
            tx.execute(delete(schema.runs).where(row.id.in_(mine.limit(-1).offset(_RUNS_KEPT - 1))))
            query = insert(schema.runs).values(values | {"info": "{}"})
            return int(tx.execute(query.returning(row.id)).scalar_one())

    def heartbeat(self, run: int, info: Mapping[str, Any] | None = None) -> None:
        """Say that a run is alive and, with `info`, how it fares."""
        values: dict[str, Any] = {"heartbeat_utc": time.time()}
        if info is not None:
            values["info"] = json.dumps(dict(info))
        with self.writing(_SIGN_S) as tx:
            tx.execute(update(schema.runs).where(schema.runs.c.id == run).values(values))

    def end_run(self, run: int, outcome: str, *, hurry: bool = False) -> None:
        """Note how a run ended; in a hurry it waits for others as little as a sign of life does."""
        values = {"ended_utc": time.time(), "outcome": outcome}
        with self.writing(_SIGN_S if hurry else None) as tx:
            tx.execute(update(schema.runs).where(schema.runs.c.id == run).values(values))

    def runs(self, kind: str | None = None) -> list[Run]:
        """Runs, oldest first; of one kind only when it is given."""
        query = select(schema.runs).order_by(schema.runs.c.id)
        if kind is not None:
            query = query.where(schema.runs.c.kind == kind)
        with self.reading() as tx:
            rows = tx.execute(query).mappings().all()
            return [Run(**{**r, "argv": json.loads(r["argv"]), "info": json.loads(r["info"])}) for r in rows]

    def _change_snapshot(self, id: str, **values: Any) -> None:  # noqa: A002
        self.snapshot(id)
        with self.writing() as tx:
            query = update(schema.snapshots).where(schema.snapshots.c.id == id)
            tx.execute(query.values(values))
