"""Which bytes a source is made of: cheap enough to ask of every file, strong enough to tell files apart.

A fingerprint covers the length and a hash of the head, the tail and evenly strided blocks, at most 1 MiB read however
long the file is; smaller files are hashed whole. Asked over a prefix it answers as if the file ended there, so that a
file that only grew can be recognised. Of a recording in progress the head does not count: Matroska, AVI and FLV write
their length there when they are closed.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from cld_stream.media.paths import is_no_file

__all__ = ["SCHEME", "fingerprint", "fingerprint_sequence", "is_unfinished"]

SCHEME = "b1"
_UNFINISHED = "g1"
_HEAD_BYTES = 1 << 16
_WHOLE_BYTES = 1 << 20
_EDGE_BYTES = 1 << 18
_BLOCK_BYTES = 1 << 14
_BLOCKS = 32
_MEMBER_EDGE_BYTES = 1 << 13


def is_unfinished(print_: str) -> bool:
    """Whether it was taken of a recording in progress."""
    return print_.startswith(f"{_UNFINISHED}-")


def fingerprint(path: Path, length: int | None = None, *, growing: bool = False) -> str:
    """The identity of a file's first `length` bytes.

    Args:
        path: a regular file.
        length: bytes that count; None = all of them.
        growing: leave out the head (64 KiB, at most half): of a recording in progress.

    Returns:
        `b1-LENGTH-HASH`, or `g1-LENGTH-HASH` of a growing one; equal for equal bytes, whatever the name.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is shorter than `length`.
    """
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if length is not None and length > size:
            raise ValueError(f"{path} holds {size} bytes, fewer than {length}")
        size = size if length is None else length
        skipped = min(_HEAD_BYTES, size // 2) if growing else 0
        digest = hashlib.blake2b(digest_size=16)
        for start, count in _blocks(size - skipped):
            digest.update(os.pread(file.fileno(), count, skipped + start))
    return f"{_UNFINISHED if growing else SCHEME}-{size}-{digest.hexdigest()}"


def fingerprint_sequence(members: Sequence[Path]) -> str:
    """The identity of pictures in order: every member's length, head and tail, in one hash.

    A member that cannot be read counts as empty, so that its return makes the sequence another one.
    """
    digest = hashlib.blake2b(digest_size=16)
    total = 0
    for member in members:
        try:
            if is_no_file(member):
                raise OSError(f"{member} is no file")
            with member.open("rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                head = file.read(_MEMBER_EDGE_BYTES)
                tail_start = max(len(head), size - _MEMBER_EDGE_BYTES)
                tail = os.pread(file.fileno(), size - tail_start, tail_start)
        except OSError:
            size, head, tail = 0, b"", b""
        total += size
        digest.update(size.to_bytes(8, "little") + head + tail)
    return f"{SCHEME}s{len(members)}-{total}-{digest.hexdigest()}"


def _blocks(size: int) -> list[tuple[int, int]]:
    """(start, bytes) of the parts that are hashed, in order, without overlap."""
    if size <= _WHOLE_BYTES:
        return [(0, size)]
    stride = (size - 2 * _EDGE_BYTES) // _BLOCKS
    middle = [(_EDGE_BYTES + i * stride, min(_BLOCK_BYTES, stride)) for i in range(_BLOCKS)]
    return [(0, _EDGE_BYTES), *middle, (size - _EDGE_BYTES, _EDGE_BYTES)]
