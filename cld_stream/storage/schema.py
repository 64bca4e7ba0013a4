"""The tables of the catalog (`SPEC.md` section 3) and the records that come out of them."""

import os
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
)
from sqlalchemy.types import TypeDecorator

__all__ = [
    "Frames",
    "NewFrame",
    "Outcome",
    "Run",
    "Segment",
    "SnapshotRow",
    "SourceKind",
    "SourceRow",
    "Totals",
]

SourceKind = Literal["video", "photo", "sequence", "camera"]


class Outcome(StrEnum):
    """What became of a source."""

    ADDED = "ADDED"
    PARTIAL = "PARTIAL"
    ALREADY_PRESENT = "ALREADY_PRESENT"
    SKIPPED = "SKIPPED"
    MISSING = "MISSING"
    BROKEN = "BROKEN"


@dataclass(frozen=True, slots=True)
class NewFrame:
    """A frame to be stored.

    Attributes:
        jpeg: S x S, RGB.
        time_s: position in its source [s].
        wall_utc: when it was taken [s since 1970, UTC], if known.
        shot: number of the camera shot within its source, from 0.
        aspect: width / height of the picture as shown.
    """

    jpeg: bytes
    time_s: float
    wall_utc: float | None
    shot: int
    aspect: float


@dataclass(frozen=True, slots=True)
class Frames:
    """Rows of N frames as columns; `wall_utc` is NaN where unknown."""

    ids: NDArray[np.int64]
    source: NDArray[np.int64]
    time_s: NDArray[np.float64]
    wall_utc: NDArray[np.float64]
    shot: NDArray[np.int32]
    aspect: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class SourceRow:
    """A source; columns as in `SPEC.md` section 3. `outcome` is None while it is being read."""

    id: int
    kind: SourceKind
    path: str
    device: int
    inode: int
    size: int
    mtime_ns: int
    fingerprint: str
    reader: str
    outcome: Outcome | None
    reason: str
    cursor: str | None
    frames: int
    label: str | None
    split: str | None
    same_as: int | None


@dataclass(frozen=True, slots=True)
class SnapshotRow:
    """A published encoder as the catalog knows it."""

    id: str
    created_utc: float
    step: int
    encoder_hash: str
    frames: int
    pinned: bool
    state: Literal["building", "current", "retired"]
    info: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Segment:
    """Features of frames [first, stop) that came after their snapshot."""

    id: int
    snapshot: str
    name: str
    first: int
    stop: int
    frames: int
    created_utc: float


@dataclass(frozen=True, slots=True)
class Run:
    """A process that worked on the store; `ended_utc` is None while it runs, or if it was killed."""

    id: int
    kind: str
    pid: int
    host: str
    argv: list[str]
    started_utc: float
    heartbeat_utc: float
    ended_utc: float | None
    outcome: str | None
    info: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Totals:
    """The store in numbers.

    Attributes:
        outcomes: sources by outcome; those being read under "".
        frames: live frames.
        bytes: what they take on disk: shards, and JPEG bytes in the catalog.
        next_id: ids handed out so far.
        sealed: ids below this are in shards, the others in the catalog.
    """

    outcomes: dict[str, int]
    sources: int
    frames: int
    bytes: int
    next_id: int
    sealed: int


class _Unsigned64(TypeDecorator[int]):
    """Device and inode numbers: unsigned 64 bits, kept as signed ones."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: Dialect) -> int | None:  # noqa: ARG002
        return value - (1 << 64) if value is not None and value >= 1 << 63 else value

    def process_result_value(self, value: int | None, dialect: Dialect) -> int | None:  # noqa: ARG002
        return None if value is None else value % (1 << 64)


class _OsText(TypeDecorator[str]):
    """Text that may hold a file name; kept as bytes where it is not valid UTF-8."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> Any:  # noqa: ARG002
        try:
            if value is not None:
                value.encode()
        except UnicodeEncodeError:
            return os.fsencode(str(value))
        return value

    def process_result_value(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002
        return os.fsdecode(value) if isinstance(value, bytes) else value


def _required(name: str, kind: Any) -> Column[Any]:
    return Column(name, kind, nullable=False)


metadata = MetaData()

state = Table(
    "state",
    metadata,
    Column("one", Integer, primary_key=True),
    *(_required(name, BigInteger) for name in ("next_id", "next_source", "sealed", "frames", "generation")),
)
sources = Table(
    "sources",
    metadata,
    Column("id", Integer, primary_key=True),
    _required("kind", Text),
    _required("path", _OsText),
    _required("device", _Unsigned64),
    _required("inode", _Unsigned64),
    _required("size", BigInteger),
    _required("mtime_ns", BigInteger),
    _required("fingerprint", Text),
    _required("reader", Text),
    Column("outcome", Text),
    _required("reason", _OsText),
    Column("cursor", Text),
    _required("frames", BigInteger),
    Column("label", _OsText),
    Column("split", _OsText),
    Column("same_as", BigInteger),
    _required("since_shard", BigInteger),
    Column("crc", BigInteger),
)
SOURCE_COLUMNS = [sources.c[name] for name in SourceRow.__slots__]
"""Those that a catalog of any age has."""
frames = Table(
    "frames",
    metadata,
    Column("id", Integer, primary_key=True),
    _required("source", BigInteger),
    _required("time_s", Double),
    Column("wall_utc", Double),
    _required("shot", Integer),
    _required("aspect", Double),
)
tail = Table(
    "tail",
    metadata,
    Column("id", Integer, primary_key=True),
    _required("jpeg", LargeBinary),
    Column("crc", BigInteger),
)
dropped = Table(
    "dropped",
    metadata,
    Column("id", Integer, primary_key=True),
    _required("source", BigInteger),
    _required("time_s", Double),
    Column("wall_utc", Double),
    _required("shot", Integer),
    _required("aspect", Double),
    Column("dropped_utc", Double, index=True),
)
forgetting = Table("forgetting", metadata, Column("source", Integer, primary_key=True))
snapshots = Table(
    "snapshots",
    metadata,
    Column("id", Text, primary_key=True),
    _required("created_utc", Double),
    _required("step", BigInteger),
    _required("encoder_hash", Text),
    _required("frames", BigInteger),
    _required("pinned", Boolean),
    _required("state", Text),
    _required("info", Text),
)
segments = Table(
    "segments",
    metadata,
    Column("id", Integer, primary_key=True),
    _required("snapshot", Text),
    _required("name", Text),
    _required("first", BigInteger),
    _required("stop", BigInteger),
    _required("frames", BigInteger),
    _required("created_utc", Double),
)
runs = Table(
    "runs",
    metadata,
    Column("id", Integer, primary_key=True),
    _required("kind", Text),
    _required("pid", Integer),
    _required("host", Text),
    _required("argv", Text),
    _required("started_utc", Double),
    _required("heartbeat_utc", Double),
    Column("ended_utc", Double),
    Column("outcome", Text),
    _required("info", Text),
)
Index("frames_by_time", frames.c.source, frames.c.time_s)
Index("sources_by_path", sources.c.path)
Index("sources_by_fingerprint", sources.c.fingerprint)
Index("sources_by_inode", sources.c.inode)
