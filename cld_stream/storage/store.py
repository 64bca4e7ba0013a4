"""A store: its header, its catalog, and the ways in."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from sqlalchemy import text

from cld_stream.config import StoreSettings
from cld_stream.errors import CorruptError, StoreError
from cld_stream.storage.catalog import Catalog
from cld_stream.storage.database import rebuild_advice
from cld_stream.storage.durable import make_dir
from cld_stream.storage.frames import FrameReader
from cld_stream.storage.header import Header, read_header, write_header
from cld_stream.storage.lock import FileLock
from cld_stream.storage.shards import ArrayState, write_array_state
from cld_stream.storage.writer import Writer

__all__ = ["Store"]


class Store:
    """An open store. Opening takes no lock and works where the store is read-only.

    Attributes:
        path: its folder.
        header: what was fixed when it was made.
        catalog: what exists in it.
    """

    def __init__(self, path: Path, header: Header, catalog: Catalog) -> None:
        self.path = path
        self.header = header
        self.catalog = catalog

    @classmethod
    def create(cls, path: Path, settings: StoreSettings) -> "Store":
        """Make a store in a new or empty folder.

        Raises:
            StoreError: there is a store already, or something else, or the folder cannot be written.
            LockHeldError: another process makes one here.
        """
        try:
            if path.exists() and not path.is_dir():
                raise StoreError(f"{path}: cannot make a store here: this is a file. Choose another --store.")
            make_dir(path)
            _require_free(path)  # first: no lock is left in a folder of something else
            with FileLock(path / "writer.lock", "writer"):
                _clear_unfinished(path)
                Catalog.create(path / "catalog.db")
                make_dir(path / "frames" / "c")
                make_dir(path / "sidecars")
                write_array_state(path / "frames", ArrayState(0, 0), settings.shard_frames)
                write_header(path, settings)
        except OSError as e:
            raise StoreError(f"{path}: cannot make a store here: {e.strerror}. Choose another --store.") from None
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> "Store":
        """Open a store.

        Raises:
            StoreNotFoundError: there is none.
            FormatTooNewError: a newer release wrote it.
            CorruptError: its header or catalog is damaged or absent.
        """
        header = read_header(path)
        if not (path / "catalog.db").exists():
            raise CorruptError(f"{path}: the catalog is missing. {rebuild_advice(path)}")
        catalog = Catalog(path / "catalog.db")
        catalog.next_id()
        return cls(path, header, catalog)

    def writer(self, command: str = "") -> Writer:
        """The way to add and remove frames; a context manager that holds the writer lock."""
        return Writer(self.path, self.header, self.catalog, command)

    def trainer_lock(self, command: str = "") -> FileLock:
        """A context manager: one trainer a store.

        Raises (on entering):
            LockHeldError: another process trains on this store.
        """
        return FileLock(self.path / "trainer.lock", "trainer", command)

    def reader(
        self, threads: int | None = None, on_damage: Callable[[CorruptError], None] | None = None
    ) -> FrameReader:
        """The way to read frames; close it when it is no longer needed. Arguments as of `FrameReader`."""
        return FrameReader(self.path, self.header, self.catalog, threads, on_damage)

    def close(self) -> None:
        """Close the catalog. Harmless when done twice."""
        self.catalog.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


_UNFINISHED = {"catalog.db", "catalog.db-wal", "catalog.db-shm", "catalog.db-journal"}


def _clear_unfinished(path: Path) -> None:
    """Remove what a killed `create` left, and refuse anything else."""
    found = _require_free(path)
    if _has_sources(path):
        raise _not_empty(path)
    for name in found & _UNFINISHED:
        (path / name).unlink(missing_ok=True)  # closing the catalog removes its log
    for name in found & {"frames", "sidecars"}:
        shutil.rmtree(path / name)


def _require_free(path: Path) -> set[str]:
    """What a killed `create` has left in a folder in which there is nothing else."""
    found = {item.name for item in path.iterdir()} - {"lost+found", ".store.json.tmp", "writer.lock"}
    if "store.json" in found:
        raise StoreError(f"{path}: there is a store already. Open it, or choose another --store.")
    empty = not any((path / "frames" / "c").glob("*")) and not any((path / "sidecars").glob("*"))
    if found - _UNFINISHED - {"frames", "sidecars"} or not empty:
        raise _not_empty(path)
    return found


def _not_empty(path: Path) -> StoreError:
    return StoreError(
        f"{path}: this folder is not empty and holds no store.json. Choose an empty folder, or restore store.json."
    )


def _has_sources(path: Path) -> bool:
    file = path / "catalog.db"
    if not file.exists() or file.stat().st_size == 0:
        return False
    catalog = Catalog(file)
    try:
        with catalog.reading() as tx:
            return bool(tx.execute(text("SELECT count(*) FROM sources")).scalar_one())
    except CorruptError:
        return False
    finally:
        catalog.close()
