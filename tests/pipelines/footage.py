"""Small real footage for the tests of ingest."""

from pathlib import Path

import av
import numpy as np
from PIL import Image

__all__ = ["film", "photograph"]


def film(path: Path, seconds: float = 2.0, seed: int = 0, rate: int = 10) -> Path:
    """A little video; the container follows the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    scene = np.kron(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.gop_size = 5
        for t in range(round(seconds * rate)):
            picture = np.ascontiguousarray(np.roll(scene, 3 * t, 1)[:48, :64])
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    return path


def photograph(path: Path, seed: int = 0, taken: str | None = None) -> Path:
    """A little photo; `taken` as EXIF has it, UTC."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    exif = Image.Exif()
    if taken:
        exif.get_ifd(0x8769).update({0x9003: taken, 0x9011: "+00:00"})
    Image.fromarray(pixels).save(path, exif=exif)
    return path
