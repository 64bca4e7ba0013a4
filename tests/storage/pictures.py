"""Small true pictures that say which frame they are."""

from functools import cache

import numpy as np
import simplejpeg

from cld_stream.storage.schema import NewFrame, SourceKind
from cld_stream.storage.writer import Writer


@cache
def jpeg(source: int, number: int, size: int = 16) -> bytes:
    rng = np.random.default_rng([source, number])
    low = rng.integers(0, 255, (2, 2, 3), dtype=np.uint8)
    rgb = np.ascontiguousarray(low.repeat(size // 2, 0).repeat(size // 2, 1))
    return bytes(simplejpeg.encode_jpeg(rgb, quality=90, colorspace="RGB", colorsubsampling="420"))


def picture(source: int, number: int, size: int = 16) -> NewFrame:
    """Frame `number` of a source: always the same."""
    wall = None if source % 2 else 1.7e9 + number
    return NewFrame(jpeg(source, number, size), number / 2, wall, number // 5, 1.7777)


def new_source(writer: Writer, path: str, kind: SourceKind = "video", same_as: int | None = None) -> int:
    return writer.add_source(
        kind=kind,
        path=path,
        device=2**64 - 3,
        inode=77,
        size=1000,
        mtime_ns=10**18,
        fingerprint=ascii(path),
        label="cat",
        split="train",
        same_as=same_as,
    )
