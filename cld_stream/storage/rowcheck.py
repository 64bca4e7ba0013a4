"""Checksums of rows of the catalog: they tell what is left of a damaged one from garbage (`SPEC.md` section 3)."""

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import google_crc32c
from sqlalchemy import Connection, bindparam, inspect, select, text, update

from cld_stream.storage import schema
from cld_stream.storage.catalog import Catalog, source_row
from cld_stream.storage.database import among
from cld_stream.storage.schema import SourceRow

__all__ = ["GARBAGE", "add_checksums", "frame_crc", "is_whole", "note_source_crcs", "source_crc", "without_checksums"]

GARBAGE = (ValueError, TypeError, ArithmeticError, LookupError, struct.error)
"""What comes of working with values of damaged rows."""

_FRAME = ("id", "source", "time_s", "wall_utc", "shot", "aspect")


def frame_crc(row: Mapping[str, Any], jpeg: bytes) -> int:
    """CRC-32C over a row of `frames` and its picture; neither ever changes."""
    id_, source, time_s, wall_utc, shot, aspect = (row[name] for name in _FRAME)
    wall_utc = math.nan if wall_utc is None else wall_utc + 0.0  # SQLite keeps no -0.0
    return int(google_crc32c.value(struct.pack("<qqddqd", id_, source, time_s + 0.0, wall_utc, shot, aspect) + jpeg))


def is_whole(row: Mapping[str, Any], jpeg: bytes, crc: int | None) -> bool:
    """Whether a row and its picture are what was committed; without a checksum whether they could be.

    A damaged row may hold anything.
    """
    try:
        return frame_crc(row, jpeg) == crc or crc is None
    except GARBAGE:
        return False


def source_crc(source: SourceRow) -> int:
    """CRC-32C over a source, without its number of frames, which retention changes."""
    values = asdict(source)
    del values["frames"]
    return int(google_crc32c.value(json.dumps(list(values.values())).encode()))


def note_source_crcs(tx: Connection, ids: Sequence[int]) -> None:
    """Renew the checksums of sources that were added or changed in this transaction."""
    id_ = schema.sources.c.id
    renew = update(schema.sources).where(id_ == bindparam("of")).values(crc=bindparam("is"))
    rows = tx.execute(select(*schema.SOURCE_COLUMNS).where(among(id_, ids))).mappings().all()
    if rows:
        tx.execute(renew, [{"of": row["id"], "is": source_crc(source_row(row))} for row in rows])


def add_checksums(catalog: Catalog) -> None:
    """Give a catalog of an older release the columns; rows that are there already stay without."""
    with catalog.reading() as tx:
        old = without_checksums(tx)
    if old:
        with catalog.writing() as tx:
            for table in old:
                tx.execute(text(f"ALTER TABLE {table} ADD COLUMN crc BIGINT"))


def without_checksums(tx: Connection) -> list[str]:
    """Tables in which a catalog of an older release has no column for them."""
    look = inspect(tx)
    return [t for t in ("tail", "sources") if "crc" not in {c["name"] for c in look.get_columns(t)}]
