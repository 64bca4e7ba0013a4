"""The boxes of an ISO base media file (MP4, QuickTime, HEIF, AVIF): walked by seeking, nothing else is read."""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

__all__ = ["Box", "missing_bytes", "walk"]


_MOST_BOXES = 200_000  # a day of fragments has fewer; a file of empty boxes would keep us for minutes


@dataclass(frozen=True, slots=True)
class Box:
    """A box: its kind, where its content starts, and where it says it ends [bytes]."""

    kind: bytes
    body: int
    end: int


def walk(file: BinaryIO, start: int = 0, end: int | None = None) -> Iterator[Box]:
    """The boxes from `start` to `end` (None = the end of the file), until one makes no sense or they are too many."""
    end = file.seek(0, os.SEEK_END) if end is None else end
    for _ in range(_MOST_BOXES):
        if start + 8 > end:
            return
        file.seek(start)
        size, kind = struct.unpack(">I4s", file.read(8))
        body = start + 8
        if size == 1:
            (size,) = struct.unpack(">Q", file.read(8).rjust(8, b"\0"))
            body += 8
        elif size == 0:
            size = end - start
        if start + size < body:
            return
        yield Box(kind, body, start + size)
        start += size


def missing_bytes(file: BinaryIO) -> int:
    """How many bytes the last box claims beyond the end of the file; 0 = complete."""
    length = file.seek(0, os.SEEK_END)
    return max([0, *(box.end - length for box in walk(file))])
