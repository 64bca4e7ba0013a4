"""Remove a source and its frames for good."""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cld_stream.errors import CorruptError, LockHeldError
from cld_stream.media.address import masked
from cld_stream.pipelines.sources import find_source
from cld_stream.storage.store import Store

__all__ = ["ForgetReport", "forget"]

log = logging.getLogger("cld_stream.forget")


@dataclass(frozen=True, slots=True)
class ForgetReport:
    """What went: the source's id and path, its frames, and features of those in snapshots."""

    source: int
    path: str
    frames: int
    features: int

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def forget(store_path: Path, source: str) -> ForgetReport:
    """Remove a source: its frames from disk, their features from every snapshot, its row.

    Args:
        source: its id, its path (a camera's address, with or without password), or an ending of it that only it has.

    Raises:
        StoreNotFoundError: there is no such source, or several.
        LockHeldError: another process is adding frames.
    """
    try:
        return _forget(store_path, masked(source))
    except LockHeldError as error:
        more = "An ingest that watches does not end by itself: stop it, forget, and start it again."
        raise LockHeldError(f"{error} {more}") from None


def _forget(store_path: Path, source: str) -> ForgetReport:
    from cld_stream.storage.snapshots import drop_features

    with Store.open(store_path) as store, store.writer(f"forget {source}") as writer:
        row = find_source(store.catalog, source)
        dropped = store.catalog.dropped(source=row.id).ids
        ids = np.concatenate([store.catalog.live_ids(source=row.id), dropped])
        features = drop_features(store, ids, _damaged)
        removed = writer.forget(row.id)
        ids = np.append(ids, -1)  # features that came after their row was cleared
        features += drop_features(store, ids, _damaged)  # of a snapshot that was made meanwhile
        return ForgetReport(row.id, row.path, removed, features)


def _damaged(error: CorruptError) -> None:
    log.warning("a snapshot was removed, because it is too damaged to be rid of single frames: %s", error)
