"""Ingest that does not end: folders are looked at again and again, cameras are kept on the line.

Everything happens in one thread, a tick at a time; workers decode, and threads that may hang look at folders. What
a batch of files is, and when, is decided in `folders`; what is done with each file, by the ledger, as in `ingest`.
"""

import os
import stat
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TypeVar

from sqlalchemy.exc import DBAPIError

from cld_stream.config import Settings
from cld_stream.errors import UsageError
from cld_stream.learn.memory import give_freed_memory_back
from cld_stream.media.address import is_camera, masked, refuse_address, require_complete
from cld_stream.media.discover import Item
from cld_stream.media.paths import absolute, gone
from cld_stream.media.pool import DecodePool
from cld_stream.pipelines.cameras import Cameras
from cld_stream.pipelines.folders import Batch, Folders
from cld_stream.pipelines.ingest import IngestProgress, explained, open_or_create
from cld_stream.pipelines.ingest_run import Run
from cld_stream.pipelines.ledger import Ledger, fingerprint_item, stat_item
from cld_stream.pipelines.life import Life
from cld_stream.pipelines.patience import Patience
from cld_stream.pipelines.pump import Pump
from cld_stream.pipelines.report import FileReport, WatchEvent, WatchProgress, WatchReport
from cld_stream.pipelines.retention import Retention
from cld_stream.storage.catalog import Catalog
from cld_stream.storage.schema import Outcome, SourceRow
from cld_stream.storage.store import Store

__all__ = ["WatchEvent", "WatchProgress", "WatchReport", "must_watch", "watch"]

T = TypeVar("T")
_TICK_S = 0.2
_IDLE_S = 60.0  # workers are sent home after this long without a file
_LACK_S = 600.0  # the machine may be out of processes for this long
_MANY = 20_000  # items for which the whole ledger is read at once
_IN_ONE_QUERY = 256


def must_watch(inputs: Sequence[str]) -> bool:
    """Whether an input never ends: a camera."""
    return any(map(is_camera, inputs))


def watch(
    store_path: Path,
    inputs: Sequence[str],
    settings: Settings,
    *,
    retry_broken: bool = False,
    on_event: Callable[[WatchEvent], None] = lambda _: None,
    on_progress: Callable[[WatchProgress], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> WatchReport:
    """Take what lies in folders, what comes into them, and what cameras send, until asked to stop.

    Args:
        inputs: folders and cameras (`rtsp://...`, `/dev/video0`).
        settings: `store` is used for a new store only.
        retry_broken: read BROKEN files again, and go on with PARTIAL ones, once, though they have not changed.
        on_event: called for every file that was taken, and when a folder or camera goes or comes.
        on_progress: called about five times a second.
        stop: asked several times a second; once true, what is read is committed and the report returned.

    Raises:
        UsageError: an input is neither a folder nor a camera, or a folder that nothing is known of does not exist.
        LockHeldError: another process is adding frames.
        StoreError: the store is damaged, of a newer format, or its disk is full.
    """
    tops, urls = _sorted_out(inputs, known_store=(store_path / "store.json").exists())
    give_freed_memory_back()  # large blocks that come and go for weeks would leave holes among small ones that stay
    store = open_or_create(store_path, settings)
    try:
        with ExitStack() as opened:
            opened.callback(store.close)
            return _Watch(store, tops, urls, settings, on_event, on_progress, retry_broken, opened, stop).run()
    except (OSError, DBAPIError) as error:
        raise explained(store_path, error) from error


class _Watch:
    """The loop, and what it counts."""

    def __init__(
        self,
        store: Store,
        tops: list[str],
        urls: list[str],
        settings: Settings,
        on_event: Callable[[WatchEvent], None],
        on_progress: Callable[[WatchProgress], None],
        retry_broken: bool,
        opened: ExitStack,
        stop: Callable[[], bool],
    ) -> None:
        self._stop, self._patience = stop, Patience(self._say_store, self._show, stop)
        self._store, self._settings, self._retry_broken = store, settings, retry_broken
        self._on_event, self._on_progress = on_event, on_progress
        self._report = WatchReport(str(store.path))
        self._outcomes: Counter[str] = Counter()
        self._began = self._told = self._used = self._noted_at = time.monotonic()
        self._run: Run | None = None  # the batch in hand
        self._growing, self._noted, self._current = set[str](), 0, ""
        chosen = settings.ingest
        command = " ".join(["ingest --watch", *tops, *map(masked, urls)])
        self._writer = opened.enter_context(store.writer(command))
        self._pool = opened.enter_context(DecodePool(chosen.workers, chosen, _LACK_S))
        self._folders = Folders(tops, store, chosen, self._say_folder, retry_broken=retry_broken)
        opened.callback(self._folders.close)
        for top in tops:
            if gone(Path(top)) and not self._folders.knows(top):
                raise _no_folder(top)
        argv = [masked(arg) for arg in sys.argv]
        self._life = opened.enter_context(Life(store, "ingest", settings.ops, argv, warns=False))
        self._retention = Retention(store, self._writer, chosen)
        self._cameras = opened.enter_context(Cameras(urls, store, self._writer, chosen, self._say_camera))

    def run(self) -> WatchReport:
        """Until asked to stop."""
        while not self._stop():
            now = time.monotonic()
            self._folders.look(now)
            batch = self._folders.take(now)
            if batch:
                self._ingest(batch)
            self._leave(self._folders.vanished(now))
            self._tick()
            if batch:
                continue
            if now - self._used > _IDLE_S and self._pool.pids:
                self._pool.close()
            time.sleep(min(_TICK_S, self._settings.ingest.poll_s))
        self._count_up()
        return self._report

    def _tick(self) -> None:
        """What is to be done several times a second, whatever goes on."""
        self._cameras.poll()
        if time.monotonic() - self._noted_at >= self._settings.ingest.commit_s:
            self._note()
        self._show()

    def _show(self) -> None:
        """Signs of life."""
        now = time.monotonic()
        if now - self._told >= _TICK_S:
            self._told = now
            progress = self._progress()
            self._on_progress(progress)
            self._life.beat(progress.state, lambda: progress.as_dict() | self._retention.limits)

    def _ingest(self, batch: Batch) -> None:
        self._used = time.monotonic()
        items = batch.found.items
        about = self._meanwhile(lambda: _About(items))
        if about is None:
            return
        ledger = Ledger(about.rows(self._store.catalog), retry_broken=self._retry_broken)
        run = self._run = Run(
            self._store, self._writer, ledger, self._settings, self._retention,
            on_progress=self._reading, tick=self._tick, patiently=self._patience,
        )  # fmt: skip
        self._growing = {str(item.path) for item in items if item.growing}
        report = run.over(batch.found, self._pool, self._stop)
        for entry in ledger.vanished(self._folders.present()):
            if not gone(entry.path):
                run.leave(entry, "its path holds another source now")
        self._close_batch()
        if not report.stopped:
            useful = {f.path for f in report.files if f.frames}
            self._folders.took(batch, time.monotonic(), run.spent, useful, run.unreadable)

    def _meanwhile(self, work: Callable[[], T]) -> T | None:
        """Work that reads files, while the ticks go on; None if asked to stop before it is done."""
        pump = Pump(lambda: iter([work()]))
        while not self._stop():
            done = pump.get(_TICK_S)
            if done is not None:
                return done
            self._tick()
        return None

    def _leave(self, paths: Sequence[str]) -> None:
        """Files that were deleted: their sources are MISSING, their frames stay."""
        if not paths:
            return
        ledger = Ledger(_where(self._store.catalog, "path", paths).values())
        run = self._run = Run(self._store, self._writer, ledger, self._settings, self._retention)
        for entry in ledger.vanished(self._folders.present()):
            run.leave(entry, "the file is gone")
        self._close_batch()

    def _note(self) -> None:
        """Commit, and tell of the files that are done."""
        self._patience(self._writer.commit)
        self._patience(self._retention.enforce)
        self._noted_at = time.monotonic()
        files = self._run.report.files[self._noted :] if self._run else []
        self._noted += len(files)
        for file in files:
            if file.path not in self._growing:
                self._outcomes[str(file.outcome or "")] += 1
            if file.path not in self._growing or file.frames or file.changed:
                self._on_event(_file_event(file))

    def _close_batch(self) -> None:
        self._note()
        self._report.frames += self._run.report.frames if self._run else 0
        self._run, self._growing, self._noted, self._current = None, set(), 0, ""
        self._used = time.monotonic()

    def _reading(self, progress: IngestProgress) -> None:
        self._current = progress.current

    def _say_folder(self, path: str, reason: str | None) -> None:
        self._on_event(WatchEvent("folder", path, state="back" if reason is None else "gone", reason=reason or ""))

    def _say_store(self, reason: str | None) -> None:
        path, state = str(self._store.path), "well" if reason is None else "waiting"
        self._on_event(WatchEvent("store", path, state=state, reason=reason or ""))

    def _say_camera(self, address: str, reason: str | None) -> None:
        self._on_event(WatchEvent("camera", address, state="up" if reason is None else "down", reason=reason or ""))

    def _count_up(self) -> None:
        self._life.beat("done", lambda: self._progress().as_dict() | {"state": "done"}, now=True)
        self._report.frames += self._cameras.frames
        self._report.outcomes = dict(self._outcomes)
        self._report.dropped = self._retention.dropped
        self._report.notes = [note] if (note := self._retention.note) else []
        self._report.seconds = time.monotonic() - self._began

    def _progress(self) -> WatchProgress:
        return WatchProgress(
            state="holding" if self._patience.waiting else "reading" if self._run else "watching",
            files=self._folders.files,
            waiting=self._folders.waiting,
            taken=sum(self._outcomes.values()),
            broken=self._outcomes[Outcome.BROKEN],
            frames=self._report.frames + (self._run.report.frames if self._run else 0) + self._cameras.frames,
            cameras=len(self._cameras),
            live=self._cameras.live,
            dropped=self._retention.dropped,
            seconds=time.monotonic() - self._began,
            current=self._current,
        )


def _sorted_out(inputs: Sequence[str], *, known_store: bool) -> tuple[list[str], list[str]]:
    """(folders, cameras)."""
    tops, urls = [], []
    for text in inputs:
        path = str(absolute(text))
        refuse_address(text)
        if is_camera(text):
            require_complete(text, os.environ)
            urls.append(text)
        elif (text.startswith("@") and gone(Path(text))) or _is_other(Path(path)):
            raise UsageError(f"{text}: only folders and cameras can be watched. Ingest it without --watch.")
        elif gone(Path(path)) and not known_store:
            raise _no_folder(text)
        else:
            tops.append(path)
    return list(dict.fromkeys(tops)), urls


def _is_other(path: Path) -> bool:
    """Whether it is there, and no folder."""
    try:
        return not stat.S_ISDIR(path.stat().st_mode)
    except OSError:
        return False


def _no_folder(text: str) -> UsageError:
    return UsageError(f"{text}: no such folder, and the store knows nothing of it. Check the path; attach the drive.")


class _About:
    """Paths, inodes and contents of some items, and with them the part of the ledger that decides about these."""

    def __init__(self, items: Sequence[Item]) -> None:
        self._all = len(items) > _MANY
        self._paths, self._inodes, self._prints = [str(item.path) for item in items], set[int](), set[str]()
        for item in () if self._all else items:
            with suppress(OSError):
                stat = stat_item(item)
                self._inodes.add(stat.inode)
                self._prints.add(fingerprint_item(item, stat))

    def rows(self, catalog: Catalog) -> list[SourceRow]:
        """In the order of their ids."""
        if self._all:
            return catalog.sources()
        rows: dict[int, SourceRow] = {}
        for name, values in (("path", self._paths), ("inode", self._inodes), ("fingerprint", self._prints)):
            rows |= _where(catalog, name, values)
        rows |= _where(catalog, "path", {row.path for row in rows.values()})
        return [rows[id_] for id_ in sorted(rows)]


def _where(catalog: Catalog, name: str, values: Iterable[str | int]) -> dict[int, SourceRow]:
    """Sources by id, those with one of many values in a column.

    Every query asks for as many values, so that it is always the same text: SQLite keeps the last 128 of them.
    """
    wanted = list(values)
    parts = [wanted[i : i + _IN_ONE_QUERY] for i in range(0, len(wanted), _IN_ONE_QUERY)]
    filled = [part + part[-1:] * (_IN_ONE_QUERY - len(part)) for part in parts]
    return {row.id: row for part in filled for row in catalog.sources(**{name: part})}


def _file_event(file: FileReport) -> WatchEvent:
    return WatchEvent(
        "file", file.path, kind=file.kind, outcome=file.outcome, reason=file.reason, reader=file.reader,
        action=file.action, frames=file.frames,
    )  # fmt: skip
