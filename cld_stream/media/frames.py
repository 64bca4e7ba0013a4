"""A frame on its way to the store: a small square JPEG with its time and its true shape."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

__all__ = ["Fit", "MediaFrame", "Window", "encode_frame", "moment", "square_jpeg", "windows"]

Fit = Literal["stretch", "crop", "pad"]

_YEAR_1, _YEAR_10000 = -62_135_596_800, 253_402_300_799  # [s since 1970]


@dataclass(frozen=True, slots=True)
class MediaFrame:
    """One kept frame.

    Attributes:
        jpeg: S x S, RGB, chroma halved (4:2:0).
        time_s: position in its source, from the start of the played part [s]; 0 for a photo.
        wall_utc: when it was taken [s since 1970, UTC], if known.
        shot: number of the camera shot within its source, from 0.
        aspect: width / height of the whole picture as shown (rotation and pixel shape applied).
    """

    jpeg: bytes
    time_s: float
    wall_utc: float | None
    shot: int
    aspect: float


@dataclass(frozen=True, slots=True)
class Window:
    """A rectangle [pixels]."""

    x: int
    y: int
    width: int
    height: int


def moment(utc: float | None) -> float | None:
    """A time of day [s since 1970, UTC], if a calendar has it: a file may claim any number, and NaN."""
    return utc if utc is not None and _YEAR_1 <= utc < _YEAR_10000 else None


def windows(width: int, height: int, aspect: float, fit: Fit, size: int) -> tuple[Window, Window]:
    """Which part of a `width` x `height` picture lands on which part of the S x S frame.

    Args:
        width, height: stored pixels of the picture, upright.
        aspect: width / height as shown; differs from width / height where pixels are not square.
        fit: `stretch` the whole picture, `crop` the middle square, or `pad` with black.
        size: S [pixels].

    Returns:
        (part of the picture, part of the frame).
    """
    whole, frame = Window(0, 0, width, height), Window(0, 0, size, size)
    if fit == "crop":
        w = max(1, min(width, round(width / max(aspect, 1.0))))
        h = max(1, min(height, round(height * min(aspect, 1.0))))
        return Window((width - w) // 2, (height - h) // 2, w, h), frame
    if fit == "pad":
        w = max(1, round(size * min(aspect, 1.0)))
        h = max(1, round(size / max(aspect, 1.0)))
        return whole, Window((size - w) // 2, (size - h) // 2, w, h)
    return whole, frame


def encode_frame(rgb: NDArray[np.uint8], aspect: float, fit: Fit, size: int, quality: int) -> bytes:
    """A picture as an S x S JPEG.

    Args:
        rgb: H x W x 3, upright.
        aspect: width / height as shown.
        fit, size, quality: the store's settings.
    """
    height, width = rgb.shape[:2]
    source, target = windows(width, height, aspect, fit, size)
    image = Image.fromarray(rgb).resize(
        (target.width, target.height),
        Image.Resampling.BILINEAR,
        box=(source.x, source.y, source.x + source.width, source.y + source.height),
        reducing_gap=3.0,
    )
    return square_jpeg(np.asarray(image), target, size, quality)


def square_jpeg(rgb: NDArray[np.uint8], target: Window, size: int, quality: int) -> bytes:
    """An already scaled picture, set into its place in an S x S frame, as JPEG."""
    if rgb.shape[:2] != (size, size):
        frame = np.zeros((size, size, 3), np.uint8)
        frame[target.y : target.y + target.height, target.x : target.x + target.width] = rgb
        rgb = frame
    return bytes(
        simplejpeg.encode_jpeg(np.ascontiguousarray(rgb), quality=quality, colorspace="RGB", colorsubsampling="420")
    )
