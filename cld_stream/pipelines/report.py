"""What ingest tells while it works, and when it is done."""

import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from cld_stream.errors import BrokenFilesError
from cld_stream.storage.schema import Outcome

__all__ = ["FileReport", "IngestProgress", "IngestReport", "WatchEvent", "WatchProgress", "WatchReport"]


@dataclass(frozen=True, slots=True)
class IngestProgress:
    """How far it is.

    Attributes:
        files_total: sources met so far that this run has to look at, known ones included.
        files_done: of those, finished.
        frames: added by this run.
        skipped, broken: files with that outcome so far.
        seconds: since the start.
        cpu_share: CPU time of this process and its workers / (seconds x cores), 0 to 1.
        current: the source in hand.
    """

    files_total: int
    files_done: int
    frames: int
    skipped: int
    broken: int
    seconds: float
    cpu_share: float
    current: str


@dataclass(frozen=True, slots=True)
class FileReport:
    """One source.

    Attributes:
        outcome: what the ledger says of it now; None = not read (a dry run, or stopped before it was done).
        action: what this run did or, in a dry run, would do: `known`, `read`, `continue`, `twin`, `skip`, `missing`.
        frames: added by this run.
        changed: whether its outcome is another one than before.
    """

    path: str
    kind: str
    outcome: Outcome | None
    reason: str
    reader: str = ""
    action: str = "known"
    frames: int = 0
    changed: bool = False


@dataclass
class IngestReport:
    """The result of a run.

    Attributes:
        files: every source that was met, in stream order, and those found missing.
        files_total: sources to look at; more than `files` after a stop.
        frames: added by this run.
        dropped: the oldest ones, dropped by this run to stay within limits.
        stopped: it was asked to stop; the next run goes on from there.
        notes: what the user should know beside the files.
    """

    store: str
    files: list[FileReport] = field(default_factory=list)
    files_total: int = 0
    frames: int = 0
    dropped: int = 0
    seconds: float = 0.0
    cpu_share: float = 0.0
    stopped: bool = False
    dry_run: bool = False
    strict: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """Files by outcome; those not read under "" (a dry run, or stopped)."""
        return dict(Counter(str(f.outcome or "") for f in self.files))

    @property
    def changed(self) -> int:
        """Sources whose outcome this run changed."""
        return sum(f.changed for f in self.files)

    def as_dict(self) -> dict[str, Any]:
        """As JSON: file names that are not valid text are shown with backslashes."""
        whole = asdict(self) | {"counts": self.counts, "changed": self.changed}
        for row in whole["files"]:
            row["path"] = _shown(row["path"])
        return whole

    def raise_if_strict(self) -> None:
        """Call it last: everything is in the store that can be.

        Raises:
            BrokenFilesError: `strict` was asked for, and some files are BROKEN.
        """
        broken = [f.path for f in self.files if f.outcome is Outcome.BROKEN]
        if self.strict and broken:
            more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
            rest = "" if self.dry_run else "Everything else is in the store. "
            raise BrokenFilesError(
                f"{len(broken)} files are broken: {', '.join(map(ascii, broken[:3]))}{more}. "
                f"{rest}Repair or remove them, or leave out --strict."
            )


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """Something that happened while watching; as JSON one object a line.

    Attributes:
        event: `file` (one was taken, or found missing), `folder` (`state` gone or back), `camera` (down or up),
            `store` (`state` waiting, because its disk is full or its catalog is kept by others, or well).
        path: the file or folder, or the camera's address without user and password.
        outcome: of a file, as in the ledger; None = nothing in it can be read yet.
        frames: that it gave now.
        reason: why it is so, in words.
    """

    event: Literal["file", "folder", "camera", "store"]
    path: str
    state: str = ""
    kind: str = ""
    outcome: Outcome | None = None
    reason: str = ""
    reader: str = ""
    action: str = ""
    frames: int = 0

    def as_dict(self) -> dict[str, Any]:
        """As JSON: what does not apply is left out, and the time is in it."""
        known = ("event", "path", "outcome", "frames", "reason", "kind", "reader", "action")
        names = known if self.event == "file" else ("event", "path", "state", "reason")
        return {name: getattr(self, name) for name in names} | {"path": _shown(self.path), "utc": round(time.time(), 3)}


@dataclass(frozen=True, slots=True)
class WatchProgress:
    """How watching stands.

    Attributes:
        state: `watching`, `reading`, or `holding`: the store takes nothing now.
        files: in the folders, known and done with.
        waiting: files that do not stand still yet.
        taken, broken: files since the start.
        frames: added since the start.
        cameras, live: all of them, and those that send.
        dropped: frames, the oldest, that made room for new ones.
        current: the file in hand.
    """

    state: Literal["watching", "reading", "holding"]
    files: int
    waiting: int
    taken: int
    broken: int
    frames: int
    cameras: int
    live: int
    dropped: int
    seconds: float
    current: str

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self) | {"current": _shown(self.current)}


@dataclass
class WatchReport:
    """The result of a watch: frames added and dropped, files taken by outcome, and what the user should know."""

    store: str
    frames: int = 0
    dropped: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """As JSON: the last line of the answer."""
        return {"event": "end"} | asdict(self)


def _shown(path: str) -> str:
    """File names that are not valid text are shown with backslashes."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
