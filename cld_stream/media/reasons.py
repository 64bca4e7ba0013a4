"""Why a file cannot be read, or not all of it, in words for the person whose file it is: what is wrong, what helps."""

import errno
from pathlib import Path

from PIL import UnidentifiedImageError

from cld_stream.media.probe import kind_of

__all__ = [
    "DAMAGED_PART", "LACKS", "MISSING_REST", "TOO_MUCH_MEMORY", "VANISHED", "picture_reason", "too_large",
    "unreadable_reason", "video_reason",
]  # fmt: skip

DAMAGED_PART = "a part of the file is damaged and was left out"
MISSING_REST = "the file is cut off: its end is missing"
TOO_MUCH_MEMORY = "reading it takes more memory than ingest.worker_memory_mb allows; raise that"
LACKS = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM))  # of the system, for a moment; no fault of a file
VANISHED = "the file vanished before it was read"
_NO_HEADER = "the file is cut off or damaged: its header cannot be read"
_PIECE, _PIECES = 2**20, 256
_CUT = ("truncated", "end of file", "cut short")  # as decoders say it
_RAW = (".arw", ".cr2", ".cr3", ".crw", ".dng", ".nef", ".orf", ".raf", ".rw2")


def picture_reason(path: Path, error: BaseException) -> str:
    """Why a picture cannot be read.

    Args:
        path: of the picture.
        error: whatever Pillow raised, and hostile bytes make it raise anything.
    """
    system = _system_reason(path, error)
    if system:
        return system
    if not isinstance(error, UnidentifiedImageError):
        cut = isinstance(error, EOFError) or any(w in str(error).lower() for w in _CUT)
        return MISSING_REST if cut else "the picture is damaged"
    head = _head(path)
    if path.suffix.lower() in _RAW:
        return "a camera's raw photo that is damaged or not supported; export it as JPEG"
    if head.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        return "JPEG XL is not supported; convert it to JPEG or PNG"
    kind = kind_of(head)
    if kind == "video":
        return "the file is a video, not a picture"
    if kind == "photo":
        return "the picture is damaged, or of a kind that is not supported"
    return "the file is no picture, whatever its name says"


def video_reason(path: Path, error: BaseException, otherwise: str = _NO_HEADER) -> str:
    """Why a video, or a part of it, cannot be read.

    Args:
        path: of the video.
        error: whatever PyAV raised.
        otherwise: the reason if it is not the system's, nor a decoder's absence.
    """
    system = _system_reason(path, error)
    if system:
        return system
    if "NotFound" in type(error).__name__:
        return "FFmpeg knows no way to decode it; convert the file, for example to H.264 in MP4"
    return otherwise


def unreadable_reason(error: OSError) -> str:
    """Why the system does not let us look at a file."""
    return VANISHED if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror or error}"


def too_large(pixels: str, most: int) -> str:
    """A picture or video above the limit."""
    return f"{pixels} pixels are more than ingest.max_pixels = {most:,}; raise that if you trust the file"


def _system_reason(path: Path, error: BaseException) -> str:
    """What the operating system has to say, or ""."""
    try:
        size = path.stat().st_size
    except OSError:
        return VANISHED
    if isinstance(error, PermissionError) and error.errno == errno.EACCES:  # EPERM is FFmpeg's -1, for any failure
        return "no permission to read the file"
    if size == 0:
        return "the file is empty"
    if isinstance(error, MemoryError):
        return TOO_MUCH_MEMORY
    if isinstance(error, OSError) and error.errno in LACKS:
        return unreadable_reason(error)
    if (
        isinstance(error, OSError)
        and error.errno in (errno.EIO, errno.ESTALE, errno.ENXIO, errno.ENODEV)
        and _fails(path)
    ):
        return f"the disk cannot read it ({error.strerror}); check the disk or its cable"
    return ""


def _fails(path: Path) -> bool:
    """Whether the disk really fails to give the file's start: FFmpeg says EIO of damaged files too."""
    try:
        with path.open("rb") as file:
            for _ in range(_PIECES):
                if not file.read(_PIECE):
                    break
    except OSError:
        return True
    return False


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4096)
