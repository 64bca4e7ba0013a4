"""What a file is, told by its first bytes, and when it was taken, told by its header.

Nothing is decoded, and no C library sees the file: this runs outside of the workers. A name decides only where the
bytes say nothing: an unreadable `.jpg` is a broken photo, an unreadable `.txt` is not ours.
"""

import contextlib
import struct
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Literal

from cld_stream.media.boxes import walk
from cld_stream.media.header import read_header

__all__ = ["Kind", "Probe", "kind_of", "probe", "video_utc"]

Kind = Literal["video", "photo", "other"]

_HEAD_BYTES = 4096
_PHOTO_MAGIC = (
    b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+",
    b"\0\0\1\0", b"8BPS", b"qoif", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51", b"\xff\x0a", b"\0\0\0\x0cJXL ",
    b"II\x1a\0\0\0HEAP",
)  # fmt: skip
_VIDEO_MAGIC = (
    b"\x1a\x45\xdf\xa3", b"FLV\1", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", b"\0\0\1\xba", b"\0\0\1\xb3", b"OggS",
    b"\x06\x0e\x2b\x34",
    b"\x1f\x07\0", b".RMF", b"YUV4MPEG2", b"DKIF", b"nut/multimedia container",
)  # fmt: skip
_PHOTO_BRANDS = frozenset(
    (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"mif2", b"msf1", b"avif", b"avis", b"crx ")
)  # fmt: skip
_QUICKTIME_ATOMS = frozenset((b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"))
_PHOTO_SUFFIXES = frozenset((
    ".avif", ".avifs", ".bmp", ".cr2", ".cr3", ".crw", ".gif", ".heic", ".heif", ".hif", ".ico", ".j2k",
    ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".jxl", ".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".psd",
    ".qoi", ".tga", ".tif", ".tiff", ".webp",
))  # fmt: skip
_VIDEO_SUFFIXES = frozenset((
    ".264", ".265", ".3g2", ".3gp", ".asf", ".avi", ".dv", ".f4v", ".flv", ".h264", ".h265", ".hevc", ".ivf",
    ".m2t", ".m2ts", ".m2v", ".m4v", ".mj2", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4", ".mpe", ".mpeg", ".mpg",
    ".mts", ".mxf", ".nut", ".ogm", ".ogv", ".qt", ".rm", ".rmvb", ".ts", ".vob", ".webm", ".wmv", ".y4m",
))  # fmt: skip
_EPOCH_1904 = 2_082_844_800  # seconds from 1904 (QuickTime) to 1970
_EPOCH_2001 = 978_307_200  # seconds from 1970 to 2001 (Matroska)


@dataclass(frozen=True, slots=True)
class Probe:
    """What a file is, and when it was taken [s since 1970, UTC] if its header says so."""

    kind: Kind
    taken_utc: float | None = None


def probe(path: Path) -> Probe:
    """Tell a video from a photo from anything else, and find its capture time.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
        kind = kind_of(head, path.suffix)
        if kind == "video":
            return Probe(kind, video_utc(file, head))
    if kind == "photo":
        with contextlib.suppress(Exception):
            return Probe(kind, read_header(path).taken_utc)
    return Probe(kind)


def kind_of(head: bytes, suffix: str = "") -> Kind:
    """Judge the first bytes of a file (4 kB suffice); its suffix decides only if they are of no known kind."""
    if head[4:8] == b"ftyp":
        return "photo" if head[8:12] in _PHOTO_BRANDS else "video"
    if head[:4] == b"RIFF":
        form = head[8:12]
        return "photo" if form == b"WEBP" else "video" if form in (b"AVI ", b"AVIX") else "other"
    if head.startswith(_PHOTO_MAGIC) or _is_bmp(head) or _is_pnm(head):
        return "photo"
    if head.startswith(_VIDEO_MAGIC) or head[4:8] in _QUICKTIME_ATOMS or _is_transport_stream(head):
        return "video"
    suffix = suffix.lower()
    return "photo" if suffix in _PHOTO_SUFFIXES else "video" if suffix in _VIDEO_SUFFIXES else "other"  # fmt: skip


def video_utc(file: BinaryIO, head: bytes) -> float | None:
    """Creation time from a QuickTime/MP4 movie header or a Matroska DateUTC, by seeking over the rest."""
    with contextlib.suppress(OSError, struct.error, OverflowError):
        if head.startswith(b"\x1a\x45\xdf\xa3"):
            at = head.find(b"\x44\x61\x88")
            if 0 <= at <= len(head) - 11:
                return _plausible(struct.unpack_from(">q", head, at + 3)[0] / 1e9 + _EPOCH_2001)
        elif head[4:8] == b"ftyp" or head[4:8] in _QUICKTIME_ATOMS:
            return _movie_header_utc(file)
    return None


def _movie_header_utc(file: BinaryIO) -> float | None:
    for movie in (box for box in walk(file) if box.kind == b"moov"):
        for header in (box for box in walk(file, movie.body, movie.end) if box.kind == b"mvhd"):
            file.seek(header.body)
            wide = file.read(4)[:1] == b"\1"
            (stamp,) = struct.unpack(">Q" if wide else ">I", file.read(8 if wide else 4))
            return _plausible(float(stamp - _EPOCH_1904))
    return None


def _plausible(utc: float) -> float | None:
    """A clock that was never set writes the epoch of its format; such times say nothing."""
    return utc if datetime(1990, 1, 1, tzinfo=UTC).timestamp() < utc < 2**32 else None


def _is_bmp(head: bytes) -> bool:
    header_bytes = int.from_bytes(head[14:18], "little")
    return head[:2] == b"BM" and header_bytes in (12, 40, 52, 56, 64, 108, 124)


def _is_pnm(head: bytes) -> bool:
    return len(head) > 2 and head[:1] == b"P" and head[1] in b"123456" and head[2:3].isspace()


def _is_transport_stream(head: bytes) -> bool:
    return any(
        len(head) > start + 2 * step and all(head[start + i * step] == 0x47 for i in range(3))
        for start, step in ((0, 188), (4, 192))
    )
