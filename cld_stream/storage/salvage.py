"""What a damaged catalog still holds that shards and sidecars do not (`SPEC.md` section 8)."""

from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import TypeDecorator
from sqlalchemy.dialects.sqlite import dialect

from cld_stream.storage import schema
from cld_stream.storage.catalog import source_row
from cld_stream.storage.pages import table_rows
from cld_stream.storage.rowcheck import GARBAGE, frame_crc, source_crc
from cld_stream.storage.schema import SourceRow

__all__ = ["Counts", "Salvage", "salvage"]

_FRAME = [column.name for column in schema.frames.c]
_SOURCE = [column.name for column in schema.sources.c]
_SNAPSHOT = [column.name for column in schema.snapshots.c]


@dataclass(frozen=True, slots=True)
class Counts:
    """What looks like the row of the table `state`, which has no checksum."""

    next_id: int
    next_source: int
    sealed: int
    frames: int


@dataclass(frozen=True)
class Salvage:
    """Rows whose checksums hold.

    Attributes:
        frames: rows of the table `frames` by id, those of the tail alone.
        jpegs: their pictures.
        sources: by id.
        pinned: ids of snapshots that were pinned; such rows have no checksum.
        counts: any of them may be garbage.
    """

    frames: dict[int, dict[str, Any]]
    jpegs: dict[int, bytes]
    sources: dict[int, SourceRow]
    pinned: set[str]
    counts: list[Counts]

    def lost(self, frames: int) -> int | None:
        """How many frames are missing where so many were found; None = nobody knows."""
        last, source = max(self.frames, default=-1), max(self.sources, default=0)
        credible = [
            c for c in self.counts
            if last < c.next_id and source < c.next_source and frames <= c.frames <= c.next_id and c.sealed <= c.next_id
        ]  # fmt: skip
        return max(credible, key=lambda c: c.next_id).frames - frames if credible else None


def salvage(file: Path, sealed: int) -> Salvage:
    """Every row that can still be read and whose checksum holds; of frames those with an id from `sealed` on."""
    pictures = defaultdict[int, list[tuple[bytes, int]]](list)
    rows, sources, pinned, counts = list[dict[str, Any]](), dict[int, SourceRow](), set[str](), list[Counts]()
    for id_, row in table_rows(file):
        if len(row) == len(schema.tail.c) and isinstance(row[1], bytes) and id_ >= sealed:
            pictures[id_].append((row[1], row[2]))
        elif len(row) == len(_FRAME):
            if id_ == 1 and all(isinstance(value, int) for value in row[1:]):
                counts.append(Counts(*row[1:5]))
            if id_ >= sealed:
                rows.append(dict(zip(_FRAME, [id_, *row[1:]], strict=True)))
        elif len(row) == len(_SNAPSHOT):
            snapshot = dict(zip(_SNAPSHOT, row, strict=True))
            if snapshot["pinned"] == 1:
                pinned.add(snapshot["id"])
        elif len(row) == len(_SOURCE):
            source = _source(id_, row)
            if source and (id_ not in sources or source.frames > sources[id_].frames):
                sources[id_] = source
    frames, jpegs = dict[int, dict[str, Any]](), dict[int, bytes]()
    for frame in rows:
        for jpeg, crc in pictures.get(frame["id"], ()):
            with suppress(*GARBAGE):
                if frame_crc(frame, jpeg) == crc:
                    frames[frame["id"]], jpegs[frame["id"]] = frame, jpeg
    return Salvage(frames, jpegs, sources, pinned, counts)


def _source(id_: int, row: list[Any]) -> SourceRow | None:
    """The source in a row, if its checksum holds."""
    values = dict(zip(_SOURCE, [id_, *row[1:]], strict=True))
    with suppress(*GARBAGE):
        for column in schema.SOURCE_COLUMNS:
            if isinstance(column.type, TypeDecorator):
                values[column.name] = column.type.process_result_value(values[column.name], dialect())
        source = source_row(values)
        if source_crc(source) == values["crc"]:
            return source
    return None
