"""The rows in an SQLite file, page by page, whatever else of it is damaged.

Python's SQLite has no recovery of its own. Here every leaf of a table is read where it lies, without the header, the
schema or the pages above it, so a damaged page costs what is in it and nothing else. Format:
https://www.sqlite.org/fileformat2.html
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["table_rows"]

_PAGE = 512  # SPEC.md section 3; no reserved bytes, auto-vacuum
_LEAF = 0x0D
_MAPPED = _PAGE // 5 + 1  # pages from one pointer map to the next
_FREE = b"\2\0\0\0\0"
_MOST, _LEAST = _PAGE - 35, (_PAGE - 12) * 32 // 255 - 23  # payload bytes in a leaf, the others are in a chain
_INTEGERS = (0, 1, 2, 3, 4, 6, 8)  # bytes by serial type
_GARBAGE = (IndexError, ValueError, struct.error, OverflowError)


def table_rows(file: Path) -> Iterator[tuple[int, list[Any]]]:
    """Row id and columns of what looks like a row of any table, the log included. Nothing of it is checked."""
    image = _image(file)
    for start in range(0, len(image), _PAGE):
        head = start + (100 if start == 0 else 0)
        if len(image) - start < _PAGE or image[head] != _LEAF or _is_free(image, start // _PAGE + 1):
            continue
        (count,) = struct.unpack_from(">H", image, head + 3)
        for at in range(head + 8, min(head + 8 + 2 * count, start + _PAGE - 1), 2):
            try:
                row_id, payload = _cell(image, start + struct.unpack_from(">H", image, at)[0])
                row = _columns(payload)
            except _GARBAGE:
                continue
            yield row_id, row


def _image(file: Path) -> bytearray:
    """The file with every commit of its log."""
    image = bytearray(file.read_bytes() if file.exists() else b"")
    wal = file.with_name(f"{file.name}-wal")
    log = wal.read_bytes() if wal.exists() else b""
    salt, most = log[16:24], (len(image) + len(log)) // _PAGE
    begun: dict[int, int] = {}
    for at in range(32, len(log) - _PAGE - 23, _PAGE + 24):
        number, size = struct.unpack_from(">II", log, at)
        if log[at + 8 : at + 16] != salt or not 0 < number <= most:
            continue  # of an older round, or damaged
        begun[number] = at + 24
        if 0 < size <= most:  # a commit
            image.extend(bytes(max(0, size * _PAGE - len(image))))
            for page, of in begun.items():
                image[(page - 1) * _PAGE : page * _PAGE] = log[of : of + _PAGE]
            del image[size * _PAGE :]
            begun.clear()
    return image


def _is_free(image: bytearray, page: int) -> bool:
    pointers = (page - 2) // _MAPPED * _MAPPED + 2
    at = (pointers - 1) * _PAGE + 5 * (page - pointers - 1)
    return page > pointers and image[at : at + 5] == _FREE


def _cell(image: bytearray, at: int) -> tuple[int, bytes]:
    size, at = _varint(image, at)
    row_id, at = _varint(image, at)
    if size > len(image):
        raise ValueError("longer than the file")
    here = size
    if size > _MOST:
        here = _LEAST + (size - _LEAST) % (_PAGE - 4)
        here = here if here <= _MOST else _LEAST
    payload = image[at : at + here]
    (follows,) = struct.unpack_from(">I", image, at + here) if here < size else (0,)
    while len(payload) < size:
        if not 0 < follows <= len(image) // _PAGE:
            raise ValueError("a chain that leads nowhere")
        start = (follows - 1) * _PAGE
        (follows,) = struct.unpack_from(">I", image, start)
        payload += image[start + 4 : start + min(_PAGE, 4 + size - len(payload))]
    return row_id, bytes(payload)


def _columns(payload: bytes) -> list[Any]:
    end, at = _varint(payload, 0)
    if end > len(payload):
        raise ValueError("a header longer than its row")
    row, start = list[Any](), end
    while at < end:
        kind, at = _varint(payload, at)
        value, start = _value(payload, start, kind)
        row.append(value)
    if start != len(payload):
        raise ValueError("columns shorter than their row")
    return row


def _value(payload: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind >= 12:
        size = (kind - 12) // 2
        part = payload[at : at + size]
        return (part.decode() if kind % 2 else part), at + size
    if kind in (8, 9):
        return kind - 8, at
    if kind == 7:
        return struct.unpack_from(">d", payload, at)[0], at + 8
    size = _INTEGERS[kind]  # 10 and 11 do not exist
    return (int.from_bytes(payload[at : at + size], "big", signed=True) if size else None), at + size


def _varint(data: bytes | bytearray, at: int) -> tuple[int, int]:
    value = 0
    for i in range(8):
        byte = data[at + i]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + i + 1
    return value << 8 | data[at + 8], at + 9
