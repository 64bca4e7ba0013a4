"""Opening one picture of any format, safely, and turning it into upright 8-bit RGB."""

import contextlib
import functools
import logging
import threading
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile

__all__ = ["open_picture", "shown_aspect", "taken_utc", "upright_rgb"]

# EPS and friends run other programs, so the formats are named, not left to whatever is installed.
_FORMATS = (
    "JPEG", "PNG", "GIF", "WEBP", "AVIF", "HEIF", "TIFF", "BMP", "DIB", "ICO", "PPM", "PSD", "QOI", "TGA",
    "JPEG2000", "PCX", "SGI",
)  # fmt: skip
_OVERSAMPLE = 3  # pixels kept per pixel of the frame before the last, filtered resize
_LARGE_PIXELS = 32_000_000
_STRIP_ROWS = 16
_TRANSPOSED = frozenset((5, 6, 7, 8))
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
logging.getLogger("PIL").addHandler(logging.NullHandler())  # else what it says of damage reaches the terminal
_limits = threading.RLock()  # Pillow's limits are process-wide


@contextlib.contextmanager
def open_picture(
    path: Path, max_pixels: int = 250_000_000, *, tolerant: bool = False, formats: tuple[str, ...] = _FORMATS
) -> Iterator[Image.Image]:
    """Open a picture; its header is read, its pixels are not.

    Args:
        path: any file.
        max_pixels: larger pictures are refused, before and (for nested ones) during decoding.
        tolerant: decode what is there of a truncated file.
        formats: as Pillow names them.

    Raises:
        Image.DecompressionBombError: larger than `max_pixels`.
        Exception: whatever Pillow makes of a damaged file.
    """
    _register_formats()
    with _limits, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
        # Pillow raises above twice its limit and warns above it.
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = (max_pixels + 1) // 2, tolerant
        try:
            with Image.open(path, formats=formats) as picture:
                if picture.width * picture.height > max_pixels:
                    raise Image.DecompressionBombError(f"{picture.width} x {picture.height} pixels")
                yield picture
        finally:
            Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = before


def shown_aspect(picture: Image.Image) -> float:
    """Width / height of the whole picture as shown, its orientation applied. Ask before decoding."""
    width, height = picture.size
    return height / width if _orientation(picture) in _TRANSPOSED else width / height


def upright_rgb(picture: Image.Image, size: int) -> NDArray[np.uint8]:
    """Decode the current page as H x W x 3, upright, alpha over white, 16 bits scaled to 8.

    Args:
        picture: an open picture.
        size: side of the frame it will become [pixels]; the result is not much larger than three times that.
    """
    turn = _orientation(picture)
    if picture.format in ("JPEG", "MPO"):
        picture.draft(None, (_OVERSAMPLE * size, _OVERSAMPLE * size))
    if picture.format == "HEIF" and picture.width * picture.height > _LARGE_PIXELS:
        picture = _shrunk_heif(picture, size)
    picture.load()
    rgb = _shrink(_as_rgb(picture, size), size)
    if turn in _TURN:
        rgb = rgb.transpose(_TURN[turn])
    return np.asarray(rgb)


def taken_utc(exif: Image.Exif) -> float | None:
    """EXIF capture time [s since 1970]. Without an EXIF offset it is taken as local time of this machine."""
    with contextlib.suppress(Exception):
        detail = exif.get_ifd(ExifTags.IFD.Exif)
        for text, offset, fraction in (
            (detail.get(0x9003), detail.get(0x9011), detail.get(0x9291)),  # DateTimeOriginal
            (detail.get(0x9004), detail.get(0x9012), detail.get(0x9292)),  # DateTimeDigitized
            (exif.get(0x0132), detail.get(0x9010), detail.get(0x9290)),  # DateTime
        ):
            utc = _parse_exif_time(text, offset, fraction)
            if utc is not None:
                return utc
    return None


def _parse_exif_time(text: Any, offset: Any, fraction: Any) -> float | None:
    try:
        stamp = datetime.strptime(str(text).strip("\0 ")[:19], "%Y:%m:%d %H:%M:%S")
    except ValueError:
        return None
    if stamp.year < 1990:
        return None
    digits = str(fraction or "").strip("\0 ")
    seconds = float(f"0.{digits}") if digits.isdecimal() else 0.0
    return stamp.replace(tzinfo=_zone(offset)).timestamp() + seconds


def _zone(offset: Any) -> timezone | None:
    text = str(offset or "").strip("\0 ")
    if text == "Z":
        return UTC
    with contextlib.suppress(ValueError, IndexError):
        hours, minutes = text[1:].split(":")
        shift = timedelta(hours=int(hours), minutes=int(minutes))
        return timezone(-shift if text[0] == "-" else shift)
    return None


@functools.cache
def _register_formats() -> None:
    import pi_heif

    Image.init()
    pi_heif.options.DECODE_THREADS = 1
    pi_heif.register_heif_opener()


def _orientation(picture: Image.Image) -> int:
    with contextlib.suppress(Exception):
        return int(picture.getexif().get(ExifTags.Base.Orientation, 1))
    return 1


def _as_rgb(picture: Image.Image, size: int) -> Image.Image:
    mode = picture.mode
    if mode.startswith("I") or mode == "F":
        return _from_deep(picture)
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        layer = picture if mode == "RGBA" else picture.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    if mode in ("L", "CMYK", "YCbCr", "LAB"):
        picture = _shrink(picture, size)
    return picture if mode == "RGB" else picture.convert("RGB")


def _shrink(picture: Image.Image, size: int) -> Image.Image:
    """Average whole blocks of pixels away, so that what follows is cheap."""
    return _shrink_to(picture, picture.size, size)


def _shrink_to(part: Image.Image, whole: tuple[int, int], size: int) -> Image.Image:
    """Shrink a part of a picture as `_shrink` shrinks all of it."""
    least = _OVERSAMPLE * size
    factor = max(1, whole[0] // least), max(1, whole[1] // least)
    return part.reduce(factor) if factor != (1, 1) else part


def _shrunk_heif(picture: Image.Image, size: int) -> Image.Image:
    """Shrink while reading out of the decoder: Pillow's way holds the whole picture three times."""
    import pi_heif

    decoded = pi_heif.open_heif(getattr(picture, "filename", ""))
    pixels = np.asarray(decoded)  # a view: `decoded` must outlive it
    rows = max(1, picture.height // (_OVERSAMPLE * size)) * _STRIP_ROWS
    strips = [
        np.asarray(_shrink_to(Image.fromarray(pixels[y : y + rows]), picture.size, size))
        for y in range(0, len(pixels), rows)
    ]
    return Image.fromarray(np.concatenate(strips))


def _from_deep(picture: Image.Image) -> Image.Image:
    """Samples of 16 or 32 bits, or floats, as grey. A stated largest sample value (TIFF) is believed."""
    values = np.asarray(picture).astype(np.float32)
    values[~np.isfinite(values)] = 0
    low, high = 0.0, 65535.0
    if values.size and picture.mode == "F":
        high = 1.0 if values.max() <= 1 else 255.0 if values.max() <= 255 else float(values.max())
    elif values.size and values.max() > 65535:
        low, high = float(values.min()), float(values.max())
    stated = getattr(picture, "tag_v2", {}).get(281)
    if stated:
        high = float(np.max(stated))
    grey = np.clip((values - low) * (255 / max(high - low, 1e-9)), 0, 255)
    clear = picture.info.get("transparency")
    if isinstance(clear, int):
        grey[values == clear] = 255
    return Image.fromarray(grey.round().astype(np.uint8)).convert("RGB")
