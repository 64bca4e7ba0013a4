"""A store of an older format becomes one of the present: numbered steps, never edited (`SPEC.md` section 11)."""

import shutil
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from cld_stream.storage.database import plain_errors
from cld_stream.storage.durable import fsync_tree, make_dir, publish_dir, temporary, whole
from cld_stream.storage.header import read_header, set_version
from cld_stream.storage.lock import FileLock

__all__ = ["STEPS", "Step", "migrate_store", "pending_steps"]

_LOCKS = {"writer.lock": "writer", "trainer.lock": "trainer", "publisher.lock": "publisher"}


@dataclass(frozen=True)
class Step:
    """From format `number` to `number` + 1.

    Attributes:
        what: what it does, for a person.
        change: does it to the store at a path; after a kill it is begun again.
    """

    number: int
    what: str
    change: Callable[[Path], None]


STEPS: tuple[Step, ...] = ()
"""None yet: there is one format."""


def pending_steps(path: Path, steps: Sequence[Step] = STEPS) -> list[Step]:
    """What is to be done to a store, in order.

    Raises:
        StoreNotFoundError: there is no store.
        FormatTooNewError: a newer release wrote it.
    """
    version = read_header(path).version
    return [step for step in steps if step.number >= version]


def migrate_store(path: Path, steps: Sequence[Step] = STEPS) -> Path | None:
    """Do what is to be done; each step counts once it is done.

    Returns:
        Where catalog and header were saved before; None where there was nothing to do.

    Raises:
        LockHeldError: someone works on the store.
        StoreFullError: there is no room for the copies, or for a step.
    """
    if not pending_steps(path, steps):
        return None
    with ExitStack() as held:
        held.enter_context(plain_errors(path / "catalog.db"))
        for name, role in _LOCKS.items():
            held.enter_context(FileLock(path / name, role, "migrate"))
        todo = pending_steps(path, steps)
        saved = _save(path, todo[0].number) if todo else None
        for step in todo:
            step.change(path)
            set_version(path, step.number + 1)
    return saved


def _save(path: Path, version: int) -> Path:
    """Catalog and header as they are: no step changes frames in place."""
    now = time.time()
    while (saved := path / "backups" / time.strftime(f"v{version}-%Y%m%d-%H%M%S", time.gmtime(now))).exists():
        now += 1  # the first of a killed migration is the one to go back to
    aside = temporary(saved)
    shutil.rmtree(aside, ignore_errors=True)
    with whole(aside):
        make_dir(aside)
        shutil.copy2(path / "store.json", aside)
        with (
            closing(sqlite3.connect(path / "catalog.db")) as source,
            closing(sqlite3.connect(aside / "catalog.db")) as target,
        ):
            source.backup(target)  # what is still in the log too
        fsync_tree(aside)
    publish_dir(aside, saved)
    return saved
