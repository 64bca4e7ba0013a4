"""Watched folders: when to look, what is new in them and stands still, and as what it is taken."""

import logging
import os
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cld_stream.config import IngestSettings
from cld_stream.media.discover import Discovery, Item, discover_folder, natural_key
from cld_stream.media.identity import is_unfinished
from cld_stream.media.notices import Notices
from cld_stream.media.numbered import MIN_MEMBERS
from cld_stream.media.paths import changed_ns, gone
from cld_stream.media.probe import kind_of, probe
from cld_stream.media.scan import Scan, Seen, rules_above, sign_of
from cld_stream.media.settle import Settling
from cld_stream.pipelines.presence import Presence, below
from cld_stream.pipelines.pump import Pump
from cld_stream.storage.catalog import Catalog
from cld_stream.storage.schema import Outcome
from cld_stream.storage.store import Store

__all__ = ["Batch", "Folders"]

log = logging.getLogger("cld_stream.ingest")
_SHARE = 0.01  # of a core that looking may take
_AT_ONCE = 2000  # files in one batch, after the first
_DRAIN_S = 0.1
_GONE = 4.0  # x settle_s: a vanished file is missing after this long, unless it turns up under another name


@dataclass
class Batch:
    """What may be taken now, in the order of paths; `signs` of the files as they were when they stood still."""

    found: Discovery = field(default_factory=Discovery)
    signs: dict[str, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.found.items)


class Folders:
    """Looks at folders from time to time, sooner where the system tells of changes. Decides nothing about a file.

    Args:
        tops: absolute paths; those that are not there are waited for.
        store: what was taken before; it is no footage, wherever it lies.
        settings: of ingest.
        say: told when a folder goes (with a reason) or is back (None).
        retry_broken: files that could not be read, or not all of them, count as new.
    """

    def __init__(
        self,
        tops: Sequence[str],
        store: Store,
        settings: IngestSettings,
        say: Callable[[str, str | None], None],
        *,
        retry_broken: bool = False,
    ) -> None:
        self._tops, self._settings, self._store = list(tops), settings, str(store.path.absolute())
        self._known: dict[str, dict[str, int]] = {}
        self._sequences: set[str] = set()
        self._settling = Settling(settings.settle_s, settings.growing_s)
        self._presence = Presence(self._tops, self._known, say)
        self._held: dict[str, tuple[float, float]] = {}  # frame folders that fill: first met, not before
        self._closed: dict[str, int | None] = {}  # files that could not be read -> when their inode last changed
        self._pump: Pump[Seen] | None = None
        self._scans: list[Scan] = []
        self._missed: dict[str, tuple[str, ...]] = {}
        self._readable: set[str] = set()
        self._ruled: set[str] = set()
        self._unread: set[str] = set()
        self._scanned, self._cost_s = 0.0, 0.0  # end of the last look, and its CPU time
        self._next_scan, self._first_take = 0.0, float("inf")
        self._fresh = False
        self._notices: Notices | None = None
        self._refused = ""
        self._load(store.catalog, retry_broken=retry_broken)

    @property
    def files(self) -> int:
        """Files that are known and done with."""
        return sum(map(len, self._known.values()))

    @property
    def waiting(self) -> int:
        """Files that are on their way."""
        return len(self._settling)

    def knows(self, top: str) -> bool:
        """Whether something below a folder was taken before."""
        return self._presence.knows(top)

    def present(self) -> list[Path]:
        """The folders that are there."""
        return self._presence.present()

    def close(self) -> None:
        """Stop looking."""
        if self._pump is not None:
            self._pump.stop(1.0)
        if self._notices is not None:
            self._notices.close()

    def look(self, now: float) -> None:
        """Begin a look when it is due, and take in what the running one, and the system, have told by now."""
        if self._pump is None and now >= self._next_scan:
            self._scans = [Scan(top, self._known, self._store) for top in self._tops]
            self._missed = {}
            self._pump = Pump(lambda: (seen for scan in self._scans for seen in scan))
        if self._pump is not None:
            self._drain(self._pump, now)
        if self._notices is not None:
            self._listen(self._notices, now)

    def take(self, now: float) -> Batch:
        """What stands still now, and what has been growing for long enough. Tell `took` when it is done."""
        batch = Batch()
        if now < self._first_take:
            return batch
        first, self._first_take = self._first_take > 0, 0.0
        due: dict[str, dict[str, int]] = {}
        held = {folder for folder, (_, until) in self._held.items() if now < until}
        for path, sign in self._settling.still(now, 10**9 if first else _AT_ONCE, held):
            new, (folder, _, name) = _sign(path), path.rpartition("/")
            if new is None or new == self._known.get(folder, {}).get(name):  # a look began before it was taken
                self._settling.drop(path)
            elif new != sign:
                self._settling.see(path, new, now)
            else:
                due.setdefault(folder, {})[name] = sign
        for folder in sorted(due, key=natural_key):
            self._add(batch, folder, due[folder], now)
        for path in self._settling.growing(now):
            if _is_video(path):
                batch.found.items.append(Item("file", Path(path), growing=True))
            else:
                self._settling.took(path, now, 0.0, useful=False)
        return batch

    def took(
        self,
        batch: Batch,
        now: float,
        spent: Mapping[str, float],
        useful: set[str],
        unreadable: Mapping[str, int | None],
    ) -> None:
        """A batch was read.

        Args:
            spent: what reading growing files and sequences took [s]; growing ones wait for all of those in the batch.
            useful: paths that gave frames.
            unreadable: those that the system did not let us read, and when their inode had last changed; they are known
                once somebody changes that.
        """
        growing_s = sum(spent.get(str(item.path), 0.0) for item in batch.found.items if item.growing)
        for item in batch.found.items:
            path = str(item.path)
            if item.growing:
                self._settling.took(path, now, growing_s, useful=path in useful)
            elif item.kind == "sequence":
                self._sequences.add(path)
                self._held[path] = now, now + max(self._settings.growing_s, 10 * spent.get(path, 0.0))
        self._closed |= unreadable
        for path in batch.signs.keys() - self._closed.keys():
            folder, _, name = path.rpartition("/")
            self._known.setdefault(folder, {})[name] = batch.signs[path]

    def vanished(self, now: float) -> list[str]:
        """Files that have been gone for a while from folders that are there; each told once."""
        if not self._fresh or now - self._scanned > 1:  # only right after a look
            return []
        self._fresh = False
        paths = [p for p in self._presence.gone(now - _GONE * self._settings.settle_s) if _sign(p) is None]
        for path in paths:
            folder, _, name = path.rpartition("/")
            self._known.get(folder, {}).pop(name, None)
            if not self._known.get(folder, True):
                del self._known[folder]
        return paths

    def _load(self, catalog: Catalog, *, retry_broken: bool) -> None:
        names = "kind", "path", "device", "inode", "size", "mtime_ns", "outcome", "fingerprint"
        for kind, path, device, inode, size, mtime_ns, outcome, print_ in catalog.source_columns(*names):
            tops = [top for top in self._tops if below(path, top)]
            if not tops:
                continue
            folder, _, name = path.rpartition("/")
            self._presence.remember(tops, folder, device)
            if kind == "sequence":
                self._sequences.add(path)
            elif outcome in (None, Outcome.MISSING) or is_unfinished(print_):
                continue
            elif outcome not in (Outcome.BROKEN, Outcome.PARTIAL) or not retry_broken:
                self._known.setdefault(folder, {})[name] = sign_of(device, inode, size, mtime_ns)

    def _drain(self, pump: Pump[Seen], now: float) -> None:
        until = time.monotonic() + _DRAIN_S
        while time.monotonic() < until:
            try:
                seen = pump.get(_DRAIN_S / 5)
            except StopIteration:
                self._pump = None
                self._finish(now)
                return
            if seen is None:
                return
            for name, sign in seen.changed.items():
                self._see(f"{seen.folder}/{name}", sign, now)
            if seen.gone:
                self._missed[seen.folder] = seen.gone

    def _see(self, path: str, sign: int, now: float) -> None:
        """A file is not as known."""
        if path not in self._closed or self._closed[path] != changed_ns(path):
            self._closed.pop(path, None)
            self._settling.see(path, sign, now)

    def _finish(self, now: float) -> None:
        """A look has ended."""
        began = time.thread_time()
        self._closed = {path: at for path, at in self._closed.items() if at == changed_ns(path)}
        self._held = {f: held for f, held in self._held.items() if now < held[1] or f not in self._sequences}
        if self._first_take == float("inf"):
            self._first_take = now + self._settings.settle_s
        changed = self._presence.judge(self._scans, self._missed, now)
        if self._settings.notices == "auto" and (changed or self._notices is None):
            self._listen_anew()
        unread = {folder: why for scan in self._scans for folder, why in scan.unread.items() if folder != scan.top}
        for folder, why in unread.items():
            if folder not in self._unread and not gone(Path(folder)):
                log.warning("%s: cannot be read: %s", folder, why)
        self._unread = set(unread)
        self._readable = {folder for scan in self._scans for folder in scan.devices}
        self._ruled = {folder for scan in self._scans for folder in scan.ruled}
        self._fresh = True
        self._cost_s = sum(scan.cpu_s for scan in self._scans) + time.thread_time() - began
        self._scanned, self._next_scan = now, now + max(self._settings.poll_s, self._cost_s / _SHARE)

    def _listen_anew(self) -> None:
        """The system forgets a folder that goes."""
        if self._notices is not None:
            self._notices.close()
        here = [str(top) for top in self.present()]
        self._notices = Notices(here) if here else None

    def _listen(self, notices: Notices, now: float) -> None:
        if notices.refused and self._refused != notices.refused:
            self._refused = notices.refused
            log.warning("the system does not tell of changes (%s): looking every so often instead", self._refused)
        paths = notices.take()
        soon = paths is None
        for path in paths or ():
            folder, _, name = path.rpartition("/")
            if below(path, self._store):
                continue
            if name.startswith(".") or folder in self._ruled or folder not in self._readable:
                soon = soon or not name.startswith(".")
                continue
            sign = _sign(path)
            if sign is None:
                soon = True  # a folder, or gone
            elif sign != self._known.get(folder, {}).get(name):
                self._see(path, sign, now)
        if soon:
            self._next_scan = min(self._next_scan, self._scanned + self._cost_s / _SHARE)

    def _add(self, batch: Batch, folder: str, names: dict[str, int], now: float) -> None:
        """The items of some files of a folder that stand still: single ones, or a frame folder."""
        known = self._known.get(folder, {})
        if folder not in self._sequences and any(kind_of(b"", Path(n).suffix) == "photo" for n in known):
            self._add_files(batch, folder, names)
            return
        try:
            rules = rules_above(next(top for top in self._tops if below(folder, top)), folder)
        except OSError:  # what is left out there is not known now: they are met again by a look that can tell
            for name in names:
                self._settling.drop(f"{folder}/{name}")
            return
        first, _ = self._held.pop(folder, (now, now))
        for item in discover_folder(Path(folder), rules, self._settings.sequence_fps):
            if item.kind == "sequence":
                names = self._add_sequence(batch, item, names, first, now)
        self._add_files(batch, folder, names)

    def _add_sequence(
        self, batch: Batch, item: Item, names: dict[str, int], first: float, now: float
    ) -> dict[str, int]:
        """Its pictures up to the first one that is on its way; the names that are left."""
        folder, members = str(item.path), item.members
        signs: dict[str, int] = {}
        for place, name in enumerate(m.path.name for m in item.members):
            path = f"{folder}/{name}"
            sign = names.get(name, self._settling.sign(path, now) if path in self._settling else 0)
            if sign is None:
                members = item.members[:place]
                break
            if sign:
                signs[name] = sign
        ready = len(members) == len(item.members) or folder in self._sequences or self._overdue(first, now)
        if ready and len(members) >= MIN_MEMBERS and signs:
            batch.found.items.append(replace(item, members=members))
            self._sign_off(batch, folder, signs)
        else:
            self._held[folder] = first, now + self._settings.settle_s
        mine = {m.path.name for m in item.members}
        return {name: sign for name, sign in names.items() if name not in mine}

    def _overdue(self, first: float, now: float) -> bool:
        return now - first >= self._settings.growing_s

    def _add_files(self, batch: Batch, folder: str, names: dict[str, int]) -> None:
        batch.found.items += [Item("file", Path(folder, name)) for name in sorted(names, key=natural_key)]
        self._sign_off(batch, folder, names)

    def _sign_off(self, batch: Batch, folder: str, names: dict[str, int]) -> None:
        for name, sign in names.items():
            path = f"{folder}/{name}"
            self._settling.drop(path)
            batch.signs[path] = sign


def _sign(path: str) -> int | None:
    """Of a file; None if there is none."""
    try:
        status = os.stat(path)  # noqa: PTH116 - many of them
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return sign_of(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _is_video(path: str) -> bool:
    try:
        return probe(Path(path)).kind == "video"
    except OSError:
        return False
