"""What ingest knows about every file, and what it therefore does with a file it meets.

The rules (design: identity of a source):

| the file at this path | is | and is then |
| --- | --- | --- |
| same device, inode, size, mtime | known | left alone, or continued if it was interrupted |
| other inode or mtime, same fingerprint | known, touched | the same |
| longer, its old length has the old fingerprint | grown | continued (a photo: read as new) |
| anything else | changed in place | a new source; the old one, if it has frames, is MISSING |
| path unknown, bytes of a source whose file is gone | renamed | the same source at its new path |
| path unknown, a video's inode, begins with its bytes, its path gone | renamed and grown | continued at its new path |
| path unknown, bytes of a source that is still there | a twin | ALREADY_PRESENT, of no frames |

A recording that was taken while it grew (`identity.is_unfinished`) is continued even if it has not grown since.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cld_stream.media.discover import Item
from cld_stream.media.identity import fingerprint, fingerprint_sequence, is_unfinished
from cld_stream.media.paths import gone
from cld_stream.media.probe import probe
from cld_stream.storage.schema import Outcome, SourceKind, SourceRow

__all__ = ["Action", "Entry", "Ledger", "Stat", "fingerprint_item", "previous_outcome", "stat_item"]

Action = Literal["known", "read", "continue", "twin", "skip", "broken"]
_RETRIED = (Outcome.BROKEN, Outcome.PARTIAL)  # on request: the cause may have passed
_PREVIOUS = re.compile(r"\(was (\w+)\)$")


@dataclass(frozen=True, slots=True)
class Stat:
    """What tells a file without reading it. Of a sequence: its folder or table, all bytes, the latest mtime."""

    device: int
    inode: int
    size: int
    mtime_ns: int

    def columns(self) -> dict[str, int]:
        """As columns of a source."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(eq=False, slots=True)
class Entry:
    """One source, as the ledger has it or will have it, and what to do with it.

    Attributes:
        row: its row; None = not in the catalog yet.
        stat, fingerprint: as on disk now.
        action: what this run does.
        cursor: where reading continues.
        twin: the source with the same bytes.
        update: columns that are to be written before anything else.
        displaced: a source that this one takes the path from.
        item: where it was met in this run; None = not met.
    """

    kind: SourceKind | Literal["other"]
    path: Path
    stat: Stat
    fingerprint: str
    row: SourceRow | None = None
    action: Action = "known"
    reason: str = ""
    cursor: str | None = None
    twin: "Entry | None" = None
    update: dict[str, Any] = field(default_factory=dict)
    displaced: "Entry | None" = None
    item: Item | None = None


class Ledger:
    """Every source by path, by inode and by content. Decides; writes nothing."""

    def __init__(self, rows: Iterable[SourceRow], *, retry_broken: bool = False) -> None:
        self._retry_broken = retry_broken
        self._by_path: dict[Path, Entry] = {}
        self._by_stat: dict[Stat, Entry] = {}
        self._by_inode: dict[tuple[int, int], Entry] = {}
        self._by_content: dict[str, list[Entry]] = {}
        for row in rows:
            stat = Stat(row.device, row.inode, row.size, row.mtime_ns)
            entry = Entry(row.kind, Path(row.path), stat, row.fingerprint, row)
            other = self._by_path.get(entry.path)
            if other is None or row.outcome is not Outcome.MISSING or _is_missing(other):
                self._by_path[entry.path] = entry
            self._index(entry)

    def singly(self, item: Item) -> list[Item]:
        """The item; or the pictures of a frame folder one by one, if some of them were taken as photos before."""
        if item.kind == "file" or item.listed or item.path in self._by_path:
            return [item]
        if not any(member.path in self._by_path for member in item.members):
            return [item]
        return [Item("file", member.path) for member in item.members]

    def is_settled(self, item: Item) -> bool:
        """Whether the item is known, unchanged and done with, told without reading it."""
        entry = self._by_path.get(item.path)
        try:
            return entry is not None and entry.stat == stat_item(item) and self._is_done(entry)
        except OSError:
            return True

    def is_interrupted(self, item: Item) -> bool:
        """Whether an earlier run stopped inside it."""
        entry = self._by_path.get(item.path)
        return entry is not None and entry.row is not None and entry.row.outcome is None

    def decide(self, item: Item) -> Entry:
        """What to do with an item. Called once for each, in stream order.

        Raises:
            OSError: it cannot be read.
        """
        stat = stat_item(item)
        entry = self._at_path(item, stat) or self._moved(item, stat) or self._by_bytes(item, stat)
        entry.item = item
        return entry

    def unreadable(self, item: Item, reason: str) -> Entry:
        """The entry of an item that the system does not let us read."""
        known = self._by_path.get(item.path)
        if known is not None and known.row is not None and known.row.outcome is not None:
            known.item = item
            return known
        kind: SourceKind = "sequence" if item.kind == "sequence" else "photo"
        entry = known or Entry(kind, item.path, Stat(0, 0, 0, 0), "")
        entry.item, entry.action, entry.reason = item, "broken", reason
        return entry

    def vanished(self, folders: Iterable[Path]) -> list[Entry]:
        """Sources below the folders whose file is gone, or whose path now holds another source."""
        tops = [f"{folder}/" for folder in folders]
        return [
            entry
            for entries in self._by_content.values()
            for entry in entries
            if entry.item is None
            and not _is_missing(entry)
            and any(str(entry.path).startswith(top) for top in tops)
            and (self._by_path.get(entry.path) is not entry or not _exists(entry))
        ]

    def _at_path(self, item: Item, stat: Stat) -> Entry | None:
        entry = self._by_path.get(item.path)
        if entry is None:
            return None
        if entry.stat == stat and not is_unfinished(entry.fingerprint):
            return self._resume(entry)
        if entry.fingerprint == self._prefix(item, entry, stat):
            grown = stat.size > entry.stat.size
            if not grown or entry.kind in ("video", "sequence"):
                return self._touch(entry, item, stat, grown=grown)
        moved = self._moved(item, stat)
        if moved is not None:
            return moved
        if entry.row is not None and entry.row.frames == 0 and entry.row.cursor is None:
            return self._read_again(entry, item, stat)
        fresh = self._by_bytes(item, stat)
        fresh.displaced = entry
        return fresh

    def _moved(self, item: Item, stat: Stat) -> Entry | None:
        """Known by inode, size and mtime, or as what a video of this inode began with; and no longer where it was."""
        if "#" in item.path.name:
            return None
        entry = self._by_stat.get(stat)
        if entry is not None and entry.path != item.path and not self._holds(entry):
            return self._move(entry, item, stat)
        entry = self._by_inode.get((stat.device, stat.inode))
        if entry is None or entry.kind != "video" or item.kind != "file" or entry.path == item.path:
            return None
        if _exists(entry) or entry.item is not None or entry.fingerprint != self._prefix(item, entry, stat):
            return None
        grown = stat.size > entry.stat.size
        self._rename(entry, item)
        return self._touch(entry, item, stat, grown=grown)

    def _by_bytes(self, item: Item, stat: Stat) -> Entry:
        kind = _kind(item)
        print_ = fingerprint_item(item, stat)
        for entry in self._by_content.get(print_, []):
            if entry.kind == kind and entry.row is not None and not self._holds(entry):
                return self._move(entry, item, stat)
        originals = self._originals(print_, kind)
        fresh = Entry(kind, item.path, stat, print_, action="read")
        if kind == "other":
            fresh.action, fresh.reason = "skip", "neither a video nor a photo"
        elif originals:
            fresh.action, fresh.twin = "twin", originals[0]
        self._by_path[item.path] = fresh
        self._index(fresh)
        return fresh

    def _originals(self, content: str, kind: str) -> list[Entry]:
        """Sources of this content that are no twins themselves."""
        return [
            e
            for e in self._by_content.get(content, [])
            if e.kind == kind and e.twin is None and (e.row is None or e.row.same_as is None)
        ]

    def _original(self, entry: Entry) -> Entry | None:
        """Another source of the same content that has frames, or whose turn was before."""
        had = Outcome.ADDED, Outcome.PARTIAL
        others = (e for e in self._originals(entry.fingerprint, entry.kind) if e is not entry)
        return next((e for e in others if e.item is not None or (e.row is not None and e.row.outcome in had)), None)

    def _resume(self, entry: Entry) -> Entry:
        """Known and unchanged: what an earlier run left undone is done."""
        row = entry.row
        if row is None or entry.action != "known":
            return entry
        outcome = _outcome(row)
        if outcome is None or (outcome in _RETRIED and self._retry_broken):
            entry.update |= {"outcome": None, "reason": ""}
            entry.twin = self._original(entry) if row.cursor is None else None
            entry.action, entry.cursor = ("twin" if entry.twin else "continue"), row.cursor
        elif row.outcome is Outcome.MISSING:
            entry.update |= {"outcome": outcome, "reason": ""}
        return entry

    def _touch(self, entry: Entry, item: Item, stat: Stat, *, grown: bool) -> Entry:
        entry.update |= stat.columns()
        self._restat(entry, stat)
        if not grown and not is_unfinished(entry.fingerprint):
            return self._resume(entry)
        entry.fingerprint = fingerprint_item(item, stat)
        entry.update |= {"fingerprint": entry.fingerprint, "outcome": None, "reason": ""}
        entry.action, entry.cursor = "continue", entry.row.cursor if entry.row else None
        return entry

    def _move(self, entry: Entry, item: Item, stat: Stat) -> Entry:
        self._rename(entry, item)
        if is_unfinished(entry.fingerprint):
            return self._touch(entry, item, stat, grown=False)
        entry.update |= stat.columns()
        self._restat(entry, stat)
        return self._resume(entry)

    def _rename(self, entry: Entry, item: Item) -> None:
        if self._by_path.get(entry.path) is entry:
            del self._by_path[entry.path]
        self._by_path[item.path] = entry
        entry.path = item.path
        entry.update |= {"path": str(item.path)}

    def _read_again(self, entry: Entry, item: Item, stat: Stat) -> Entry:
        """It never gave a frame (not even one that was dropped) and has changed: the same row, from the start."""
        kind = _kind(item)
        entry.fingerprint = fingerprint_item(item, stat)
        entry.update |= {"fingerprint": entry.fingerprint, "cursor": None, "same_as": None}
        entry.update |= stat.columns()
        entry.kind, entry.cursor, entry.twin = kind, None, None
        self._restat(entry, stat)
        if kind == "other":
            entry.action, entry.reason = "skip", "neither a video nor a photo"
            return entry
        originals = self._originals(entry.fingerprint, kind)
        entry.action, entry.twin = ("twin", originals[0]) if originals else ("read", None)
        self._by_content.setdefault(entry.fingerprint, []).append(entry)
        entry.update |= {"kind": kind}
        return entry

    def _prefix(self, item: Item, entry: Entry, stat: Stat) -> str:
        """The fingerprint of what the source was when it was last seen, taken from the item as it is now."""
        if stat.size < entry.stat.size:
            return ""
        if item.kind == "file":
            try:
                return fingerprint(item.path, entry.stat.size, growing=is_unfinished(entry.fingerprint))
            except ValueError:  # it is shorter by now
                return ""
        count = re.match(r"b1s(\d+)-", entry.fingerprint)
        return fingerprint_sequence([m.path for m in item.members[: int(count[1])]]) if count else ""  # fmt: skip

    def _holds(self, entry: Entry) -> bool:
        """Whether the source's own file is still at its path; true where that cannot be told."""
        if entry.item is not None:
            return True
        if self._by_path.get(entry.path) is not entry or not _exists(entry):
            return False
        if entry.kind == "sequence":
            return True
        try:
            status = entry.path.stat()
        except OSError:
            return not gone(entry.path)
        return status.st_size == entry.stat.size and (
            status.st_ino == entry.stat.inode or status.st_mtime_ns == entry.stat.mtime_ns
        )

    def _is_done(self, entry: Entry) -> bool:
        outcome = entry.row and entry.row.outcome
        if outcome in (None, Outcome.MISSING) or is_unfinished(entry.fingerprint):
            return False
        return not (outcome in _RETRIED and self._retry_broken)

    def _index(self, entry: Entry) -> None:
        self._by_stat.setdefault(entry.stat, entry)
        self._by_inode[entry.stat.device, entry.stat.inode] = entry
        self._by_content.setdefault(entry.fingerprint, []).append(entry)

    def _restat(self, entry: Entry, stat: Stat) -> None:
        entry.stat = stat
        self._by_stat[stat] = entry


def stat_item(item: Item) -> Stat:
    """What tells an item without reading it.

    Raises:
        OSError: the file, or the folder or table of a sequence, is gone.
    """
    if item.kind == "file":
        status = item.path.stat()
        return Stat(status.st_dev, status.st_ino, status.st_size, _kept_ns(status.st_mtime_ns))
    anchor = _anchor(item.path).stat()
    size, mtime_ns = 0, 0
    for member in item.members:
        try:
            status = os.stat(member.path)  # noqa: PTH116 - many of them
        except OSError:
            continue
        size, mtime_ns = size + status.st_size, max(mtime_ns, status.st_mtime_ns)
    return Stat(anchor.st_dev, anchor.st_ino, size, _kept_ns(mtime_ns))


def _kept_ns(mtime_ns: int) -> int:
    """A time as the catalog can hold it: from 1677 to 2262. Files of 1601 and 2400 happen (NTFS, damaged clocks)."""
    return min(max(mtime_ns, -(1 << 63)), (1 << 63) - 1)


def previous_outcome(row: SourceRow) -> str:
    """The note that lets a MISSING source that returns have its outcome back."""
    return f"(was {row.outcome or 'UNFINISHED'})"


def _outcome(row: SourceRow) -> Outcome | None:
    """The outcome that holds while the file is there."""
    if row.outcome is not Outcome.MISSING:
        return row.outcome
    before = _PREVIOUS.search(row.reason)
    name = before[1] if before else "UNFINISHED"
    return Outcome(name) if name in Outcome.__members__ else None


def _kind(item: Item) -> SourceKind | Literal["other"]:
    return "sequence" if item.kind == "sequence" else probe(item.path).kind


def fingerprint_item(item: Item, stat: Stat) -> str:
    """The identity of what an item was when `stat` was taken; it may have grown since.

    Raises:
        OSError: it cannot be read, or is shorter now.
    """
    if item.kind == "file":
        try:
            return fingerprint(item.path, stat.size, growing=item.growing)
        except ValueError as error:
            raise OSError("it shrinks while it is read") from error
    return fingerprint_sequence([member.path for member in item.members])


def _anchor(path: Path) -> Path:
    """The folder of a sequence, or its table: `TABLE#SEQUENCE`."""
    return Path(str(path).rpartition("#")[0] or path) if gone(path) else path


def _exists(entry: Entry) -> bool:
    return not gone(_anchor(entry.path) if entry.kind == "sequence" else entry.path)


def _is_missing(entry: Entry) -> bool:
    return entry.row is not None and entry.row.outcome is Outcome.MISSING
