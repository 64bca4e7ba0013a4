"""Size and capture time of a picture, from its header: read by Python alone, so that it is safe outside of a worker.

Pillow opens most formats in Python; WebP, HEIF and AVIF it hands to C libraries at once, so those are read here.
"""

import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from cld_stream.media.boxes import Box, walk
from cld_stream.media.pictures import open_picture, taken_utc

__all__ = ["Header", "read_header"]

_PLAIN = ("JPEG", "PNG", "GIF", "TIFF", "BMP", "DIB", "ICO", "PPM", "PSD", "QOI", "TGA", "JPEG2000", "PCX", "SGI")
_MOST_EXIF = 2**20
_MOST_ITEMS = 4096


@dataclass(frozen=True, slots=True)
class Header:
    """Width and height [pixels], as stored, and when it was taken [s since 1970] if the camera says so."""

    size: tuple[int, int]
    taken_utc: float | None


def read_header(path: Path) -> Header:
    """The header of a picture; none of its pixels is decoded.

    Raises:
        Exception: whatever a damaged file brings about.
    """
    with path.open("rb") as file:
        head = file.read(30)
        if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
            return Header(_webp_size(head), _taken(_webp_exif(file)))
        if head[4:8] == b"ftyp":
            return _heif(file)
    with open_picture(path, max_pixels=2**62, formats=_PLAIN) as picture:
        exif = (
            picture.getexif() if picture.format != "PNG" else Image.Image.getexif(picture)
        )  # else it would be decoded
        return Header(picture.size, taken_utc(exif))


def _taken(data: bytes) -> float | None:
    exif = Image.Exif()
    exif.load(data)
    return taken_utc(exif)


def _webp_size(head: bytes) -> tuple[int, int]:
    kind = head[12:16]
    if kind == b"VP8X":
        return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack("<HH", head[26:30])
    return width & 0x3FFF, height & 0x3FFF


def _webp_exif(file: BinaryIO) -> bytes:
    at, end = 12, file.seek(0, os.SEEK_END)
    for _ in range(_MOST_ITEMS):
        if at + 8 > end:
            break
        file.seek(at)
        kind, size = struct.unpack("<4sI", file.read(8))
        if kind == b"EXIF":
            return file.read(min(size, _MOST_EXIF))
        at += 8 + size + size % 2
    return b""


def _heif(file: BinaryIO) -> Header:
    meta = next(box for box in walk(file) if box.kind == b"meta")
    inside = {box.kind: box for box in walk(file, meta.body + 4, meta.end)}
    sizes = [
        struct.unpack(">II", _read(file, Box(b"", one.body + 4, one.body + 12)))
        for group in walk(file, inside[b"iprp"].body, inside[b"iprp"].end)
        if group.kind == b"ipco"
        for one in walk(file, group.body, group.end)
        if one.kind == b"ispe"
    ]
    taken = None
    with suppress(Exception):  # the size is worth something without it
        item = next(_items(file, inside[b"iinf"], b"Exif"))
        taken = _taken(_item_exif(file, inside[b"iloc"], item))
    return Header(max(sizes), taken)


def _items(file: BinaryIO, table: Box, kind: bytes) -> Iterator[int]:
    """Numbers of the items of a kind."""
    wide = _read(file, table)[:1] != b"\0"
    for entry in walk(file, table.body + (8 if wide else 6), table.end):
        data = _read(file, entry)
        number, after = (
            (struct.unpack(">H", data[4:6])[0], 8) if data[0] < 3 else (struct.unpack(">I", data[4:8])[0], 10)
        )
        if data[after : after + 4] == kind:
            yield number


def _item_exif(file: BinaryIO, table: Box, wanted: int) -> bytes:
    """EXIF data of an item that lies in one piece in the file."""
    data = _read(file, table)
    version, widths = data[0], struct.unpack(">H", data[4:6])[0]
    offset_b, length_b, base_b, index_b = widths >> 12, widths >> 8 & 15, widths >> 4 & 15, widths & 15
    at, number_b = 6, 4 if version == 2 else 2

    def take(size: int) -> int:
        nonlocal at
        at += size
        return int.from_bytes(data[at - size : at], "big")

    for _ in range(min(take(number_b), _MOST_ITEMS)):
        number = take(number_b)
        method = take(2) if version else 0
        take(2)
        base = take(base_b)
        for part in range(take(2)):
            take(index_b if version else 0)
            start, length = base + take(offset_b), take(length_b)
            if number == wanted and part == 0 and method == 0 and at <= len(data):
                content = _read(file, Box(b"", start, start + length))
                return content[4 + int.from_bytes(content[:4], "big") :]
            if at > len(data):
                return b""
    return b""


def _read(file: BinaryIO, box: Box) -> bytes:
    file.seek(box.body)
    return file.read(min(box.end - box.body, _MOST_EXIF))
