"""The connection to `catalog.db`: pragmas, transactions, and errors in plain words."""

import json
import os
import shlex
import shutil
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from sqlalchemy import ColumnElement, Connection, Engine, create_engine, event, func, select, text
from sqlalchemy.exc import DatabaseError, NoResultFound
from sqlalchemy.pool import ConnectionPoolEntry, NullPool, QueuePool

from cld_stream.errors import CorruptError, StoreBusyError, StoreError, StoreFullError
from cld_stream.storage.schema import metadata, state

__all__ = ["Database", "among", "plain_errors", "rebuild_advice"]

_BUSY_S = 30.0
_ASK_S = 0.2  # SQLite waits this long at a stretch: no signal is heard meanwhile
_FULL_BYTES = 1 << 20  # where less is left, SQLite's "disk I/O error" means that
_PAGE = 512  # a commit of two frames touches many pages, and writes each of them whole
_WAL_PAGES = 64 * 1024 * 1024 // _PAGE
_CACHE_KB = 256  # of a connection; the system caches the file, and the usual 2 MB made a watch grow for hours


class Database:
    """One catalog file, shared by threads. Processes open their own.

    Args:
        path: `catalog.db`. It is opened read-only where it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.writable = os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)
        self._engine = _engine(path, self.writable)

    @classmethod
    def create(cls, path: Path, **state_values: int) -> None:
        """Write an empty catalog; `state_values` are columns of its table `state` other than a new store's."""
        with plain_errors(path), closing(sqlite3.connect(path)) as raw:
            raw.execute(f"PRAGMA page_size = {_PAGE}")
            raw.execute("PRAGMA auto_vacuum = INCREMENTAL")
            raw.execute("PRAGMA journal_mode = WAL")
        new = {"one": 1, "next_id": 0, "next_source": 1, "sealed": 0, "frames": 0, "generation": 0}
        engine = _engine(path, writable=True)
        try:
            with plain_errors(path), engine.connect().execution_options(write=True) as tx, tx.begin():
                metadata.create_all(tx)
                tx.execute(state.insert().values(new | state_values))
        finally:
            engine.dispose()

    def close(self) -> None:
        """Close every connection. Harmless when done twice."""
        self._engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A consistent view of the catalog; keep it short. Rows are made into records inside: damage shows there."""
        with plain_errors(self.path), self._engine.connect() as tx, tx.begin():
            try:
                yield tx
            except (ValueError, TypeError, KeyError, OverflowError) as error:
                raise _damaged(self.path, f"a row makes no sense: {error}") from error

    @contextmanager
    def writing(self, wait_s: float | None = None) -> Iterator[Connection]:
        """A transaction: all of it happens, or nothing. Keep it short, others wait for it.

        Args:
            wait_s: how long to wait for others; None = the usual time.

        Raises:
            StoreError: the store cannot be written.
            StoreFullError: the disk is full.
            StoreBusyError: others held it too long.
        """
        busy_s = _BUSY_S if wait_s is None else wait_s
        if not self.writable:
            raise StoreError(
                f"{self.path.parent}: this store is read-only here. "
                "Make it writable, or run this on the machine that owns it."
            )
        with (
            plain_errors(self.path),
            self._engine.connect().execution_options(write=True, busy_s=busy_s) as tx,
            tx.begin(),
        ):
            yield tx

    def checkpoint(self) -> None:
        """Shrink the file by its free pages, then move the log into it, as far as readers allow.

        In this order: pages beyond the new end are not copied, so a sealed tail never reaches the file.
        """
        with plain_errors(self.path), self._autocommit() as conn:
            raw = conn.connection.driver_connection
            assert isinstance(raw, sqlite3.Connection)
            raw.execute("PRAGMA cache_spill = OFF")  # else the freed pages go to the log first
            raw.executescript("PRAGMA incremental_vacuum")  # `execute` would free one page only
            raw.execute("PRAGMA cache_spill = ON")
            conn.execute(text("PRAGMA wal_checkpoint(PASSIVE)")).all()

    def scrub(self) -> None:
        """Rewrite the catalog and empty its log, so that nothing deleted is left in either.

        Raises:
            StoreError: another process keeps reading the old content.
        """
        with plain_errors(self.path), self._autocommit() as conn:
            conn.execute(text("VACUUM"))
            until = time.monotonic() + _BUSY_S
            while conn.execute(text("PRAGMA wal_checkpoint(TRUNCATE)")).one()[0]:
                if time.monotonic() > until:
                    raise StoreError(
                        f"{self.path}: another process keeps reading it, so deleted bytes are still "
                        "in its log. They go when the next command writes to this store."
                    )

    def problems(self) -> list[str]:
        """What SQLite's own check of the file finds."""
        with self.reading() as tx:
            found = [str(row[0]) for row in tx.execute(text("PRAGMA quick_check"))]
        return [] if found == ["ok"] else found

    @contextmanager
    def _autocommit(self) -> Iterator[Connection]:
        with self._engine.connect().execution_options(autocommit=True) as conn:
            yield conn


class _Raw(sqlite3.Connection):
    for_now = False  # opened read-only because the disk is full; the next use tries again


def _engine(path: Path, writable: bool) -> Engine:
    def opened(mode: str) -> sqlite3.Connection:
        return sqlite3.connect(
            f"{path.absolute().as_uri()}?{mode}",
            uri=True,
            timeout=_BUSY_S,
            check_same_thread=False,
            isolation_level=None,
            factory=_Raw,
        )

    def connect() -> sqlite3.Connection:
        # Where nothing can be written and there is no log, SQLite could not make the files it wants.
        log = path.with_name(path.name + "-wal")
        if not writable:
            return opened("mode=ro" if log.exists() else "immutable=1")
        raw = opened("mode=rw")
        try:
            raw.execute("PRAGMA schema_version")
        except sqlite3.OperationalError:
            raw.close()
            if (log.exists() and log.stat().st_size) or not _is_full(path.parent):
                raise
            raw = opened("immutable=1")
            raw.for_now = True  # type: ignore[attr-defined]
        return raw

    engine = create_engine("sqlite://", creator=connect, poolclass=QueuePool if writable else NullPool)

    @event.listens_for(engine, "connect")
    def _prepare(raw: sqlite3.Connection, _: ConnectionPoolEntry) -> None:
        raw.execute("PRAGMA synchronous = FULL")
        raw.execute("PRAGMA secure_delete = OFF")
        raw.execute(f"PRAGMA cache_size = -{_CACHE_KB}")
        raw.execute(f"PRAGMA wal_autocheckpoint = {_WAL_PAGES}")

    @event.listens_for(engine, "checkin")
    def _not_again(raw: _Raw | None, record: ConnectionPoolEntry) -> None:
        if raw is not None and raw.for_now:
            record.invalidate()

    @event.listens_for(engine, "begin")
    def _begin(tx: Connection) -> None:
        options = tx.get_execution_options()
        if options.get("write"):
            _begin_writing(tx, options.get("busy_s", _BUSY_S))
        elif not options.get("autocommit"):
            tx.exec_driver_sql("BEGIN")

    return engine


def _begin_writing(tx: Connection, busy_s: float) -> None:
    """Begin once nobody else writes; between two tries signals are heard."""
    raw, until = tx.connection.driver_connection, time.monotonic() + busy_s
    assert isinstance(raw, sqlite3.Connection)
    raw.execute(f"PRAGMA busy_timeout = {round(1000 * min(busy_s, _ASK_S))}")
    try:
        while not _began(raw, until):
            pass
    finally:
        raw.execute(f"PRAGMA busy_timeout = {round(1000 * _BUSY_S)}")


def _began(raw: sqlite3.Connection, until: float) -> bool:
    try:
        raw.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY and time.monotonic() < until:
            return False
        raise
    return True


@contextmanager
def plain_errors(path: Path) -> Iterator[None]:
    """What SQLite says of the catalog at `path`, as errors that tell what to do."""
    try:
        yield
    except NoResultFound:
        raise _damaged(path, "a row is missing") from None
    except (DatabaseError, sqlite3.DatabaseError) as e:
        plain = _plain(path, str(e.orig if isinstance(e, DatabaseError) else e))
        if plain is None:
            raise
        raise plain from None


def _plain(path: Path, reason: str) -> StoreError | None:
    """What SQLite says, in words that tell what to do; None for what only a bug of ours can cause."""
    if any(sign in reason for sign in _DAMAGE):
        return _damaged(path, reason)
    cannot = any(sign in reason for sign in ("unable to open", "readonly", "disk I/O"))
    if "full" in reason or (cannot and _is_full(path.parent)):
        return StoreFullError(f"{path}: the disk is full; what was committed is safe. Free some space and run again.")
    if "locked" in reason or "busy" in reason:
        return StoreBusyError(
            f"{path}: another process has kept the catalog for {_BUSY_S:.0f} s. "
            "`cld-stream status` names those at work; one that hangs must be killed. Then try again."
        )
    if cannot:
        return StoreError(
            f"{path}: cannot use the catalog ({reason}). Check the disk, its free space and its permissions."
        )
    return None


_DAMAGE = (
    "malformed",
    "not a database",
    "no such table",
    "no such column",
    "unsupported file format",
    "decode to UTF-8",
)


def _damaged(path: Path, why: str) -> CorruptError:
    return CorruptError(f"{path}: the catalog is damaged ({why}). {rebuild_advice(path.parent)}")


def rebuild_advice(store_path: Path) -> str:
    """What to do about a catalog that cannot be used."""
    return f"Rebuild it from the shards: cld-stream doctor --rebuild-catalog --store {shlex.quote(str(store_path))}"


def _is_full(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < _FULL_BYTES
    except OSError:
        return False


def among(column: ColumnElement[int], numbers: Iterable[int]) -> ColumnElement[bool]:
    """`column in numbers`, in SQL of one and the same text whatever their number.

    The driver keeps every text that it has seen prepared, and SQLAlchemy does too: megabytes in a daemon that asks for
    other numbers of ids each time.
    """
    each = func.json_each(json.dumps([int(n) for n in numbers])).table_valued("value")
    return column.in_(select(each.c.value))
