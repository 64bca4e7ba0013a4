"""What training says about itself: metrics.jsonl, TensorBoard, train.log, and the numbers of a live panel."""

import errno
import json
import logging
import math
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from io import BytesIO, FileIO
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["MetricsLog", "TrainProgress", "TrainReport", "finite", "log"]

log = logging.getLogger("cld_stream.train")

_PARTS = 5  # a log is this many files at most; the oldest goes when the newest is full
_LOOK_EVERY = 100  # points of TensorBoard

T = TypeVar("T")


@dataclass(frozen=True)
class TrainProgress:
    """How training stands. NaN (None of `groups`) is what is not known: nothing was measured since the start.

    Attributes:
        state: `training`, `idle` (further steps on the buffer), `waiting` (for frames), `publishing`.
        step: steps tried; updates: steps taken.
        loss, instance, cld: of the last step [nats]; loss = instance + lambda x cld.
        frames_s: fresh and replayed frames a second, over the last `train.log_steps`; 0 where no step is taken.
        data_wait: share of the time that was spent waiting for pixels.
        lag: committed frames not yet fed; thinned: passed over so far; fed: fed so far.
        committed: frame ids handed out by the store.
        buffered, capacity: of the replay buffer.
        groups: local groups of the last measured batch that hold a frame.
        feature_std, effective_rank: of its instance features; near 0 and near 1 when collapsed.
        frames_at_once: frames that go through the encoder at a time: the batch, but where memory does not hold it.
        cbp: cumulative backward passes, views x frames.
        rescues: how often an old state was restored.
        guard: what the guard says; see `Guard` and `Checkup` for the numbers (None = not known).
    """

    state: str
    step: int
    updates: int
    loss: float
    instance: float
    cld: float
    frames_s: float
    data_wait: float
    lag: int
    thinned: int
    fed: int
    committed: int
    buffered: int
    capacity: int
    groups: int | None
    feature_std: float
    effective_rank: float
    lr: float
    frames_at_once: int
    cbp: int
    rescues: int
    guard: str
    guard_warnings: int
    guard_holds: int
    guard_rollbacks: int
    guard_kept: float
    guard_entropy: float
    guard_agreement: float
    guard_loss_ratio: float


@dataclass(frozen=True)
class TrainReport:
    """What a run did.

    Attributes:
        steps: in this run; step: in all, the number of the last checkpoint.
        fed, lag, thinned: frames, in all.
        snapshot: id of the newest one, or None.
        seconds: of this run.
    """

    steps: int
    step: int
    fed: int
    thinned: int
    lag: int
    snapshot: str | None
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class MetricsLog:
    """The files below `logs/`. Numbers go to metrics.jsonl and TensorBoard, events to train.log.

    A context manager.

    Args:
        folder: made when absent.
        limit_mb: most that each of the three takes, with its older parts (`metrics.jsonl.1`, ...).
        level: of train.log.
    """

    def __init__(self, folder: Path, limit_mb: int = 100, level: int = logging.INFO) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._limit = limit_mb * 1_000_000
        self._lines = self._rotating(folder / "metrics.jsonl", "%(message)s")
        self._events = self._rotating(folder / "train.log", "%(asctime)s %(levelname)s %(message)s")
        self._board = _Board(folder / "tensorboard", self._limit)
        log.addHandler(self._events)
        log.setLevel(level)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        self._board.close()
        log.removeHandler(self._events)
        for handler in (self._lines, self._events):
            with suppress(OSError):  # the disk is full
                handler.close()

    def write(self, progress: TrainProgress) -> None:
        """One line, and one point of every curve."""
        values = {name: finite(value) for name, value in asdict(progress).items()}
        line = json.dumps({"time_utc": round(time.time(), 3), **values})
        self._lines.handle(logging.makeLogRecord({"msg": line}))
        numbers = {f"train/{name}": float(v) for name, v in values.items() if isinstance(v, int | float)}
        self._board.write(progress.step, numbers)

    def _rotating(self, path: Path, line: str) -> RotatingFileHandler:
        handler = _Rotating(path, maxBytes=self._limit // _PARTS, backupCount=_PARTS - 1)
        handler.setFormatter(logging.Formatter(line))
        return handler


class _Board:
    """Events for TensorBoard. Its own writer leaves the work to a thread, which a full disk ends with a traceback."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit, self._points = folder, limit, 0
        self._file: FileIO | None = None

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """One point of every curve; lost where the disk is full, and the file stays whole."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        self._append(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
        self._points += 1
        if self._points % _LOOK_EVERY == 0:
            self._trim()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _append(self, event: Any) -> None:
        try:
            if self._file is None:
                self._open()
            self._record(event)
        except OSError:  # a checkpoint says that the disk is full
            self.close()

    def _open(self) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():017.6f}.{os.getpid()}"
        self._file = FileIO(self._folder / name, "xb")
        try:
            self._record(Event(wall_time=time.time(), file_version="brain.Event:2"))
        except OSError:  # a full disk has room for names still: one for every attempt
            (self._folder / name).unlink()
            raise
        self._trim()

    def _record(self, event: Any) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        assert self._file is not None
        whole = BytesIO()
        RecordWriter(whole).write(event.SerializeToString())
        end = self._file.tell()
        try:
            if self._file.write(whole.getvalue()) != len(whole.getvalue()):
                raise OSError(errno.ENOSPC, "only a part was written")
        except OSError:
            self._file.truncate(end)
            raise

    def _trim(self) -> None:
        """Begin another file when this one is long or was taken away, and remove the oldest beyond the limit."""
        found, own = [], None if self._file is None else Path(str(self._file.name))
        for file in self._folder.glob("events.out.*"):
            with suppress(OSError):  # somebody tidies up
                found.append((file == own, file.stat().st_mtime_ns, file.stat().st_size, file))
        found.sort()  # the one that is written is the newest, whatever the clock did meanwhile
        total = sum(size for _, _, size, _ in found)
        for _, _, size, old in found[:-1]:
            if total > self._limit * (_PARTS - 1) // _PARTS:
                total -= size
                with suppress(OSError):
                    old.unlink()
        if not found or found[-1][3] != own or found[-1][2] > self._limit // _PARTS:
            self.close()


class _Rotating(RotatingFileHandler):
    def shouldRollover(self, record: logging.LogRecord) -> int:  # noqa: N802
        """Whether the file is full; one that somebody took away or replaced is begun anew first."""
        if self.stream is not None and not self._is_in_place(self.stream.fileno()):
            self.stream.close()
            self.stream = self._open()
        return super().shouldRollover(record)

    def _is_in_place(self, fd: int) -> bool:
        try:
            return os.path.samestat(Path(self.baseFilename).stat(), os.fstat(fd))
        except OSError:
            return False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """A line that cannot be written is lost without a word: where the disk is full, a checkpoint says so."""


def finite(value: T) -> T | None:
    """The value, or None for a float that JSON cannot hold."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
