"""What is in a store, who works on it, and how far training has come."""

import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cld_stream.storage.schema import Run
from cld_stream.storage.store import Store

_SILENT_S = 60.0  # a run that gives no sign for this long is taken for dead


@dataclass(frozen=True)
class Status:
    """A store at a glance.

    Attributes:
        outcomes: sources by outcome; those still being read under "".
        frames, bytes: live frames, and what their JPEGs take.
        snapshot: the newest published one, or None; `covered` of the frames have features under it.
        runs: processes at work now.
        trained: what the newest trainer said last (step, fed, lag, loss, ...); empty before the first.
        disk_free: bytes left where the store lies.
    """

    path: str
    frame_size: int
    fit: str
    outcomes: dict[str, int]
    frames: int
    bytes: int
    snapshot: str | None
    snapshot_utc: float | None
    snapshots: int
    covered: int
    runs: list[dict[str, Any]]
    trained: dict[str, Any]
    lag: int | None
    disk_free: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def lines(self) -> list[tuple[str, str]]:
        """For a person: what, and how it stands."""
        sources = ", ".join(f"{n:,} {name or 'in progress'}" for name, n in sorted(self.outcomes.items())) or "none"
        out = [
            ("store", f"{self.path} ({self.frame_size} px, {self.fit})"),
            ("sources", sources),
            ("frames", f"{self.frames:,} ({self.bytes / 1e6:,.1f} MB)"),
            ("trained", self._trained_line()),
            ("snapshot", self._snapshot_line()),
            ("disk free", f"{self.disk_free / 1e9:,.1f} GB"),
        ]
        out += [
            (r["kind"], f"pid {r['pid']} on {r['host']}, for {_span(time.time() - r['started_utc'])}")
            for r in self.runs
        ]
        return out if self.runs else [*out, ("at work", "nobody")]

    def _trained_line(self) -> str:
        if not self.trained:
            return "not yet; run `cld-stream train`"
        return f"step {self.trained.get('step', 0):,}, lag {self.lag or 0:,} frames"

    def _snapshot_line(self) -> str:
        if self.snapshot is None or self.snapshot_utc is None:
            return "none yet; `cld-stream train` publishes one"
        age = _span(time.time() - self.snapshot_utc)
        return f"{self.snapshot}, {age} old, features of {self.covered:,} frames ({self.snapshots} kept)"


def status(path: Path) -> Status:
    """Read a store's state; takes no lock and writes nothing.

    Raises:
        StoreNotFoundError: there is no store at `path`.
    """
    with Store.open(path) as store:
        catalog = store.catalog
        totals, latest = catalog.totals(), catalog.latest_snapshot()
        runs = catalog.runs()
        said = [r.info for r in runs if r.kind == "train" and r.info]
        fed = said[-1].get("fed_to") if said else None
        covered = 0
        if latest is not None:
            covered = latest.frames + sum(s.frames for s in catalog.segments(latest.id))
        return Status(
            path=str(path),
            frame_size=store.header.size,
            fit=store.header.fit,
            outcomes=totals.outcomes,
            frames=totals.frames,
            bytes=totals.bytes,
            snapshot=latest.id if latest else None,
            snapshot_utc=latest.created_utc if latest else None,
            snapshots=len(catalog.snapshots()),
            covered=covered,
            runs=[_brief(r) for r in runs if _alive(r)],
            trained=said[-1] if said else {},
            lag=None if fed is None else max(0, totals.next_id - int(fed)),
            disk_free=shutil.disk_usage(path).free,
        )


def _alive(run: Run) -> bool:
    return run.ended_utc is None and time.time() - run.heartbeat_utc < _SILENT_S


def _brief(run: Run) -> dict[str, Any]:
    return {"kind": run.kind, "pid": run.pid, "host": run.host, "argv": run.argv, "started_utc": run.started_utc}


def _span(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"
