"""Footage into a store: find it, tell what is known, decode the rest, commit it in order."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy.exc import DBAPIError

from cld_stream.config import Settings
from cld_stream.errors import StoreError, StoreFullError, StoreNotFoundError, UsageError
from cld_stream.media.discover import Discovery, discover
from cld_stream.media.pool import DecodePool
from cld_stream.media.reasons import unreadable_reason
from cld_stream.pipelines.ingest_run import Run, in_stream_order
from cld_stream.pipelines.ledger import Ledger
from cld_stream.pipelines.life import Life
from cld_stream.pipelines.report import FileReport, IngestProgress, IngestReport
from cld_stream.pipelines.retention import Retention
from cld_stream.storage.durable import FULL
from cld_stream.storage.schema import Outcome, SourceRow
from cld_stream.storage.store import Store

__all__ = ["FileReport", "IngestProgress", "IngestReport", "explained", "ingest", "open_or_create", "require_shape"]


def ingest(
    store_path: Path,
    inputs: Sequence[str],
    settings: Settings,
    *,
    dry_run: bool = False,
    strict: bool = False,
    retry_broken: bool = False,
    on_progress: Callable[[IngestProgress], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> IngestReport:
    """Bring the store up to date with the inputs; a store that does not exist is made.

    Args:
        inputs: files, folders, `@list.txt`, `@table.tsv[?column=value]`.
        settings: `store` is used for a new store only.
        dry_run: decide, but read and write nothing.
        strict: for `IngestReport.raise_if_strict`, which fails if any of the files is BROKEN.
        retry_broken: read BROKEN files again, and go on with PARTIAL ones, though they have not changed.
        on_progress: called at most five times a second.
        stop: asked several times a second; once true, what is read is committed and the report returned.

    Raises:
        UsageError: an input does not exist.
        LockHeldError: another process is adding frames.
        StoreError: the store is damaged, of a newer format, or its disk is full.
    """
    found = discover(inputs, settings.ingest.sequence_fps)
    if dry_run:
        report = _plan_only(store_path, found, settings, retry_broken=retry_broken)
        report.strict = strict
        return report
    store = open_or_create(store_path, settings)
    try:
        with (
            store.writer(f"ingest {' '.join(inputs)}") as writer,
            Life(store, "ingest", settings.ops) as life,
            DecodePool(settings.ingest.workers, settings.ingest) as pool,
        ):
            ledger = Ledger(store.catalog.sources(), retry_broken=retry_broken)
            retention = Retention(store, writer, settings.ingest)
            run = Run(store, writer, ledger, settings, retention, life, on_progress)
            report = run.over(found, pool, stop)
    except (OSError, DBAPIError) as error:
        raise explained(store_path, error) from error
    finally:
        store.close()
    report.strict = strict
    return report


def require_shape(store_path: Path, *, size: int | None, fit: str | None) -> None:
    """Frame size and fit are the store's for ever; who asks for others must be told.

    Args:
        store_path: where the store is, or will be made.
        size: asked for explicitly [pixels]; None = whatever the store has.
        fit: likewise.

    Raises:
        UsageError: there is a store, and it has another size or fit.
    """
    try:
        store = Store.open(store_path)
    except StoreNotFoundError:
        return
    with store:
        for name, asked, has in (("size", size, store.header.size), ("fit", fit, store.header.fit)):
            if asked is not None and asked != has:
                raise UsageError(
                    f"--{name} {asked}: {store_path} was made with {name} {has}, which cannot change. "
                    f"Leave --{name} out, or name a new store with --store."
                )


def _plan_only(store_path: Path, found: Discovery, settings: Settings, *, retry_broken: bool) -> IngestReport:
    rows: list[SourceRow] = []
    try:
        store = Store.open(store_path)
        rows = store.catalog.sources()
        store.close()
    except StoreNotFoundError:
        pass
    ledger = Ledger(rows, retry_broken=retry_broken)
    report = IngestReport(str(store_path), dry_run=True)
    for path, reason in found.skipped:
        report.files.append(FileReport(str(path), "other", Outcome.SKIPPED, reason, action="skip"))
    for item in in_stream_order(found, ledger, settings.ingest.order):
        try:
            entry = ledger.decide(item)
        except OSError as error:
            entry = ledger.unreadable(item, unreadable_reason(error))
        now: dict[str, Any] = {"outcome": None, "reason": entry.reason}
        if entry.row is not None and entry.action == "known":
            now = {"outcome": entry.row.outcome, "reason": entry.row.reason} | entry.update
        report.files.append(FileReport(str(entry.path), entry.kind, now["outcome"], now["reason"], action=entry.action))
    report.files_total = len(report.files)
    return report


def open_or_create(path: Path, settings: Settings) -> Store:
    """The store at a path; a new one where there is none."""
    with suppress(StoreNotFoundError):
        return Store.open(path)
    try:
        return Store.create(path, settings.store)
    except StoreError:
        if not (path / "store.json").exists():
            raise
        return Store.open(path)  # somebody else was faster


def explained(store_path: Path, error: Exception) -> Exception:
    """A full disk in words; anything else as it is."""
    if getattr(error, "errno", None) in FULL or "disk is full" in str(error):
        return StoreFullError(
            f"{store_path}: the disk is full. What was committed is safe; "
            "free some space and run the same command again."
        )
    return error
