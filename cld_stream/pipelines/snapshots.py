"""List, pin and prune what was published."""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from cld_stream.errors import CorruptError, StoreNotFoundError
from cld_stream.storage.lock import refuse_links
from cld_stream.storage.snapshots import Snapshot, remove_snapshot, snapshots_folder
from cld_stream.storage.store import Store

__all__ = ["SnapshotInfo", "change_snapshots", "list_snapshots", "open_snapshot", "prune_snapshots", "with_snapshot"]

T = TypeVar("T")
log = logging.getLogger("cld_stream.snapshots")


@dataclass(frozen=True)
class SnapshotInfo:
    """A snapshot in a list; `encoder` is the hash of its encoder, `frames` those of the publication."""

    id: str
    created_utc: float
    step: int
    frames: int
    encoder: str
    pinned: bool
    state: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def open_snapshot(store: Store, id: str = "latest") -> Snapshot:  # noqa: A002
    """Open a snapshot by its id, a unique beginning of it, or `latest`.

    Raises:
        StoreNotFoundError: there is none, or none of this id.
    """
    return Snapshot(snapshots_folder(store.path) / _resolve(store, id))


def with_snapshot(store: Store, id: str, use: Callable[[Snapshot], T]) -> T:  # noqa: A002
    """What `use` makes of a snapshot; where the latest one is damaged, of the newest one that is not, and says so.

    Raises:
        StoreNotFoundError: there is none, or none of this id.
        CorruptError: it is damaged, and so is every older one.
    """
    if id != "latest":
        return use(open_snapshot(store, id))
    rows = [row for row in store.catalog.snapshots() if row.state == "current"]
    damage: CorruptError | None = None
    for row in reversed(rows):
        try:
            done = use(_opened(store, row.id))
        except CorruptError as error:
            damage = damage or error
            continue
        if damage is not None:
            log.warning("%s This is of the older snapshot %s.", damage, row.id)
        return done
    if damage is not None:
        raise damage
    return use(open_snapshot(store, id))


def _opened(store: Store, id: str) -> Snapshot:  # noqa: A002
    try:
        return Snapshot(snapshots_folder(store.path) / id)
    except StoreNotFoundError as error:  # it has a row
        raise CorruptError(str(error)) from None


def list_snapshots(store_path: Path) -> list[SnapshotInfo]:
    """All of them, oldest first."""
    with Store.open(store_path) as store:
        return [
            SnapshotInfo(r.id, r.created_utc, r.step, r.frames, r.encoder_hash, r.pinned, r.state)
            for r in store.catalog.snapshots()
        ]


def change_snapshots(
    store_path: Path, *, pin: str | None = None, unpin: str | None = None, prune: int | None = None
) -> list[str]:
    """Pin one, unpin one, then remove all but the newest `prune` and the pinned ones.

    Returns:
        Ids of those removed.

    Raises:
        StoreNotFoundError: there is no store, or no snapshot of this id.
        StoreError: a link in the store leads elsewhere.
    """
    with Store.open(store_path) as store:
        if (pin, unpin, prune) != (None, None, None):
            refuse_links(store_path)
        if pin is not None:
            store.catalog.pin(_resolve(store, pin))
        if unpin is not None:
            store.catalog.pin(_resolve(store, unpin), False)
        return [] if prune is None else prune_snapshots(store, prune)


def prune_snapshots(store: Store, keep: int) -> list[str]:
    """Remove all but the newest `keep` (at least one) and the pinned ones; the rows go first.

    Returns:
        Ids of those removed.
    """
    rows = store.catalog.snapshots()
    newest = {row.id for row in rows[-max(1, keep) :]}
    removed = [row.id for row in rows if row.id not in newest and not row.pinned]
    for name in removed:
        store.catalog.drop_snapshot(name)
        remove_snapshot(store.path, name)
    return removed


def _resolve(store: Store, text: str) -> str:
    if text == "latest":
        latest = store.catalog.latest_snapshot()
        if latest is None:
            raise StoreNotFoundError(
                f"{store.path}: nothing is published yet. Run `cld-stream train`, or `cld-stream snapshot` "
                "after some training."
            )
        return latest.id
    matching = [row.id for row in store.catalog.snapshots() if row.id.startswith(text)] if text else []
    if len(matching) > 1 and text not in matching:
        raise StoreNotFoundError(
            f"{store.path}: {len(matching)} snapshots begin with {text!r}; newest: {', '.join(matching[-5:])}. "
            "Give more of the id."
        )
    return matching[0] if len(matching) == 1 else store.catalog.snapshot(text).id
