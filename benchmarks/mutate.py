"""Damage to media files, as disks, networks and attackers do it. Same generator state, same bytes."""

import random
import struct
from collections.abc import Callable

__all__ = ["mutated"]

_HEAD = 1024  # bytes in which most formats keep their sizes and tables
_EXTREME = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_SHARE_OF_TWO = 0.13  # of the damage, what joins two files


def mutated(data: bytes, others: list[bytes], rng: random.Random) -> tuple[bytes, str]:
    """One to four kinds of damage, one after another.

    Args:
        data: a whole file.
        others: other files, to take parts from.

    Returns:
        (the damaged file, the names of what was done to it).
    """
    done = []
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        if rng.random() < _SHARE_OF_TWO:
            joined = rng.choice((splice, graft))
            data = joined(data, rng.choice(others), rng)
            done.append(joined.__name__)
        else:
            damage = rng.choice(_DAMAGES)
            data = damage(data, rng)
            done.append(damage.__name__)
    return data, "+".join(done)


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def cut_a_little(data: bytes, rng: random.Random) -> bytes:
    return data[: max(0, len(data) - rng.randint(1, 64))]


def flip(data: bytes, rng: random.Random) -> bytes:
    return _set(data, rng, rng.choice((1, 4, 16, 64, 256)), len(data))


def flip_head(data: bytes, rng: random.Random) -> bytes:
    return _set(data, rng, rng.choice((1, 2, 4, 8)), _HEAD)


def extreme_number(data: bytes, rng: random.Random) -> bytes:
    """A size, count or dimension at the edge of its type, in the head or anywhere."""
    if len(data) < 8:
        return data
    at = rng.randrange(min(len(data), _HEAD if rng.random() < 0.7 else len(data)) - 4)
    kind = rng.choice(("<H", ">H", "<I", ">I"))
    raw = struct.pack(kind, rng.choice(_EXTREME) & (0xFFFF if kind[1] == "H" else 0xFFFFFFFF))
    return data[:at] + raw + data[at + len(raw) :]


def near_number(data: bytes, rng: random.Random) -> bytes:
    """A number of the head that is off by a little."""
    if len(data) < 8:
        return data
    at, kind = rng.randrange(min(len(data), _HEAD) - 4), rng.choice(("<I", ">I"))
    (value,) = struct.unpack_from(kind, data, at)
    return data[:at] + struct.pack(kind, (value + rng.randint(-16, 16)) % 2**32) + data[at + 4 :]


def box_kind(data: bytes, rng: random.Random) -> bytes:
    """One four-letter name (of a box, a chunk) in place of another of the same file."""
    names = [i for i in range(len(data[: 64 * _HEAD]) - 4) if data[i : i + 4].isalpha()]
    if len(names) < 2:
        return data
    source, target = rng.sample(names, 2)
    return data[:target] + data[source : source + 4] + data[target + 4 :]


def delete(data: bytes, rng: random.Random) -> bytes:
    start, stop = _span(data, rng)
    return data[:start] + data[stop:]


def repeat(data: bytes, rng: random.Random) -> bytes:
    start, stop = _span(data, rng)
    return data[:stop] + data[start:stop] * rng.choice((1, 1, 2, 8)) + data[stop:]


def swap(data: bytes, rng: random.Random) -> bytes:
    (a, b), (c, d) = sorted((_span(data, rng), _span(data, rng)))
    return data if b > c else data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def blank(data: bytes, rng: random.Random) -> bytes:
    start, stop = _span(data, rng)
    return data[:start] + rng.choice((b"\0", b"\xff")) * (stop - start) + data[stop:]


def splice(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """The beginning of one file and the end of another."""
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


def graft(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """A part of another file, in the middle of this one."""
    start, stop = _span(other, rng)
    at = rng.randrange(len(data) + 1)
    return data[:at] + other[start:stop] + data[at:]


_DAMAGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    cut, cut_a_little, flip, flip_head, flip_head, extreme_number, extreme_number, near_number, box_kind, delete,
    repeat, swap, blank,
)  # fmt: skip


def _span(data: bytes, rng: random.Random) -> tuple[int, int]:
    if not data:
        return 0, 0
    start = rng.randrange(len(data))
    return start, min(len(data), start + rng.choice((1, 4, 16, 128, 1024, 8192)))


def _set(data: bytes, rng: random.Random, count: int, most: int) -> bytes:
    changed = bytearray(data)
    for _ in range(count if data else 0):
        changed[rng.randrange(min(len(data), most))] = rng.randrange(256)
    return bytes(changed)
