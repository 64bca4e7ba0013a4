"""What is in a store, who works on it, and how far training has come."""

import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from cld_stream.errors import CldError
from cld_stream.storage.checkpoints import list_checkpoints
from cld_stream.storage.lock import lock_holder
from cld_stream.storage.schema import Run, SnapshotRow, Totals
from cld_stream.storage.snapshots import Snapshot, snapshots_folder
from cld_stream.storage.store import Store

__all__ = ["Process", "Status", "status", "status_of"]

SILENT_S = 60.0
"""A process that holds its lock and gives no sign for this long hangs, or its machine does."""

_LOCKS = {"ingest": "writer.lock", "train": "trainer.lock"}


@dataclass(frozen=True)
class Process:
    """Someone who works on the store, or did.

    Attributes:
        kind: the verb; `writer` for a short command that holds the writer's lock.
        state: `running`; `silent` (holds its lock, but gives no sign for a minute); `unsure` (holds its lock, but its
            last sign is from the future: the clock was set back); `killed` (its lock is free, and it never said that it
            ended); `ended`.
        heartbeat_utc: the last sign; None where none is given.
        outcome: how it ended: `done`, or the error; None while it runs.
        numbers: what it said last.
    """

    kind: str
    state: Literal["running", "silent", "unsure", "killed", "ended"]
    pid: int
    host: str
    argv: str
    started_utc: float | None
    heartbeat_utc: float | None
    ended_utc: float | None
    outcome: str | None
    numbers: dict[str, Any]

    def line(self) -> str:
        """For a person."""
        who = f"pid {self.pid} on {self.host}" if self.pid else "it has just started"
        if self.state == "running":
            since = f", for {_ago(self.started_utc)}" if self.started_utc else f": {self.argv}"
            return f"running, {who}{since}{self._doing()}"
        if self.state == "silent":
            return f"SILENT for {_ago(self.heartbeat_utc)}, {who}: it hangs. Stop it with kill -9 and start it again."
        if self.state == "unsure":
            return (
                f"running or hanging, {who}: its last sign is from the future, so the clock was set back. Ask again in "
                "a minute: if it says this still, it hangs. Stop it with kill -9 and start it again."
            )
        if self.state == "killed" or self.outcome == "killed":
            return f"not running: killed, {who}, last sign {_ago(self.heartbeat_utc)} ago. The same command goes on."
        how = "" if self.outcome == "done" else f": {self.outcome}"
        return f"not running: ended {_ago(self.ended_utc)} ago{how}"

    def _doing(self) -> str:
        n = self.numbers
        said = f"; {n['state']}" if "state" in n else ""
        said += f", {n['frames_s']:,.0f} frames/s" if n.get("frames_s") is not None else ""
        if "files_total" in n:
            said += f", {n['files_done']:,} of {n['files_total']:,} files"
        if "capacity" in n:
            said += f", buffer {n['buffered']:,} of {n['capacity']:,}"
        return said


@dataclass(frozen=True)
class Status:
    """A store at a glance.

    Attributes:
        outcomes: sources by outcome; those still being read under "".
        frames, bytes: live frames, and what their JPEGs take.
        snapshot: the newest published one, or None; `covered` of the frames have features under it.
        snapshot_health: "sound", or what is wrong with its files; `snapshot_info`: what the trainer noted of it.
        processes: ingest and train at work or, where none is, the last one; other holders of the writer's lock.
        trained: what the newest trainer said last (step, fed, lag, loss, ...); empty before the first.
        lag: committed frames that are not fed yet; None where that is not known.
        disk_free: bytes left where the store lies; `full_in_s`: seconds until none is, at the rate of the
            last hour; None where nothing was added in it, or a limit of the store holds before.
    """

    path: str
    frame_size: int
    fit: str
    outcomes: dict[str, int]
    frames: int
    bytes: int
    snapshot: str | None
    snapshot_utc: float | None
    snapshot_health: str | None
    snapshot_info: dict[str, Any]
    snapshots: int
    covered: int
    processes: list[Process]
    trained: dict[str, Any]
    lag: int | None
    disk_free: int
    full_in_s: float | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def lines(self) -> list[tuple[str, str]]:
        """For a person: what, and how it stands."""
        sources = ", ".join(f"{n:,} {name or 'in progress'}" for name, n in sorted(self.outcomes.items())) or "none"
        full = f", full in {_span(self.full_in_s)} at this rate" if self.full_in_s is not None else ""
        out = [
            ("store", f"{self.path} ({self.frame_size} px, {self.fit})"),
            ("sources", sources),
            ("frames", f"{self.frames:,} ({self.bytes / 1e6:,.1f} MB)"),
            ("trained", self._trained_line()),
            ("snapshot", self._snapshot_line()),
            ("guard", self._guard_line()),
            ("disk free", f"{_room(self.disk_free)}{full}"),
        ]
        out += [(process.kind, process.line()) for process in self.processes]
        return out if self.processes else [*out, ("at work", "nobody")]

    def _trained_line(self) -> str:
        if not self.trained:
            return "not yet; run `cld-stream train`"
        return f"step {self.trained.get('step', 0):,}, lag {self.lag or 0:,} frames"

    def _guard_line(self) -> str:
        n = self.trained
        if "guard" not in n:
            return "nothing to guard yet"
        counts = (f"{n.get(f'guard_{name}', 0)} {name}" for name in ("warnings", "holds", "rollbacks"))
        return f"{n['guard']} ({', '.join(counts)} so far)"

    def _snapshot_line(self) -> str:
        if self.snapshot is None or self.snapshot_utc is None:
            return "none yet; `cld-stream train` publishes one"
        age = _span(time.time() - self.snapshot_utc)
        return (
            f"{self.snapshot}, {age} old, {self.snapshot_health}, features of {self.covered:,} frames "
            f"({self.snapshots} kept)"
        )


def status(path: Path) -> Status:
    """Read a store's state; writes nothing, and asks the kernel who holds the locks.

    Raises:
        StoreNotFoundError: there is no store at `path`.
    """
    with Store.open(path) as store:
        return status_of(store)


def status_of(store: Store) -> Status:
    """The same for a store that is open."""
    path, catalog = store.path, store.catalog
    totals, latest, runs = catalog.totals(), catalog.latest_snapshot(), catalog.runs()
    covered = 0 if latest is None else _covered(store, latest)
    processes, free = _processes(path, runs), shutil.disk_usage(path).free
    trained = next((run.info for run in reversed(runs) if run.kind == "train" and run.info), {})
    return Status(
        path=str(path),
        frame_size=store.header.size,
        fit=store.header.fit,
        outcomes=totals.outcomes,
        frames=totals.frames,
        bytes=totals.bytes,
        snapshot=latest.id if latest else None,
        snapshot_utc=latest.created_utc if latest else None,
        snapshot_health=_health(snapshots_folder(path) / latest.id) if latest else None,
        snapshot_info=latest.info if latest else {},
        snapshots=len(catalog.snapshots()),
        covered=covered,
        processes=processes,
        trained=trained,
        lag=_lag(store, trained),
        disk_free=free,
        full_in_s=_full_in_s(processes, totals, free),
    )


def _processes(path: Path, runs: list[Run]) -> list[Process]:
    """The newest run of each verb, as its lock and its last sign tell, and who holds a lock without a run."""
    found = []
    for kind, lock in _LOCKS.items():
        holder = lock_holder(path / lock)
        newest = next((run for run in reversed(runs) if run.kind == kind), None)
        mine = False
        if newest is not None:
            mine = newest.ended_utc is None and holder is not None and _same(holder, newest)
            found.append(_process(newest, holds=mine))
        if holder is not None and not mine:
            who: dict[str, Any] = {"pid": 0, "host": "", "argv": ""} | holder
            name = "train" if kind == "train" else "writer"
            found.append(
                Process(name, "running", who["pid"], who["host"], who["argv"], None, None, None, None, numbers={})
            )
    return found


def _process(run: Run, *, holds: bool) -> Process:
    state: Literal["running", "silent", "unsure", "killed", "ended"] = "ended"
    if run.ended_utc is None and not holds:
        state = "killed"
    elif run.ended_utc is None:
        age = time.time() - run.heartbeat_utc
        state = "silent" if age > SILENT_S else "unsure" if age < -SILENT_S else "running"
    return Process(
        kind=run.kind,
        state=state,
        pid=run.pid,
        host=run.host,
        argv=" ".join(run.argv),
        started_utc=run.started_utc,
        heartbeat_utc=run.heartbeat_utc,
        ended_utc=run.ended_utc,
        outcome=run.outcome,
        numbers=run.info,
    )


def _same(holder: dict[str, Any], run: Run) -> bool:
    return (holder.get("pid"), holder.get("host")) == (run.pid, run.host)


def _lag(store: Store, trained: dict[str, Any]) -> int | None:
    if "fed_to" in trained:
        return store.catalog.live_from(int(trained["fed_to"]))
    return None if list_checkpoints(store.path) else store.catalog.frame_count()


def _full_in_s(processes: list[Process], totals: Totals, free: int) -> float | None:
    """From what ingest has added of late and what a frame takes here."""
    said = next((p.numbers for p in processes if p.kind == "ingest" and p.state == "running"), {})
    each = totals.bytes / totals.frames if totals.frames else 0.0
    growth = (said.get("growth_s") or 0.0) * each
    limits = [limit for limit in (said.get("max_bytes"), (said.get("max_frames") or 0) * each) if limit]
    limited = any(limit - totals.bytes < free for limit in limits)
    return free / growth if growth > 0 and not limited else None


def _covered(store: Store, latest: SnapshotRow) -> int:
    """Frames with features; of a damaged snapshot those that once had some."""
    try:
        return int((Snapshot(snapshots_folder(store.path) / latest.id).ids >= 0).sum())
    except (CldError, OSError):
        return latest.frames + sum(segment.frames for segment in store.catalog.segments(latest.id))


def _health(path: Path) -> str:
    """Whether the files of a snapshot are there, as long as they should be. Their checksums are `doctor`'s affair."""
    try:
        snapshot = Snapshot(path)
        for name, written in snapshot.manifest["files"].items():
            size = (path / name).stat().st_size
            if size != written["bytes"]:
                return f"DAMAGED: {name} has {size:,} bytes, not {written['bytes']:,}"
        return "sound" if snapshot.segments else "DAMAGED: its features are gone"
    except (CldError, OSError) as e:
        return f"DAMAGED: {e}"


def _room(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 50_000_000 else f"{size / 1e6:,.1f} MB"


def _ago(utc: float | None) -> str:
    return "?" if utc is None else _span(time.time() - utc)


def _span(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{max(0, seconds):.0f} s"
