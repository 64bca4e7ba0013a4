"""Which folders are frame folders.

A folder is one sequence if it has no subfolders, holds no video, and all of its pictures, at least `MIN_MEMBERS` of one
file type, are numbered frames:

- the whole name is a number (`0001.jpg`, `17.png`), or one common prefix and a number (`frame_0001.jpg`), where the
  pictures must also be of one size in pixels;
- the numbers rise by one constant step; up to one step in ten may be a gap (lost frames);
- names as cameras give them (four characters and four digits: `IMG_0001`, `DSCN0027`; `PXL_`, `DSC_`, ...) never count,
  nor does a folder whose pictures carry EXIF capture times: that is a photo dump, and its pictures are single photos.

When in doubt it is a photo dump: every picture still becomes a frame, only one after another in time is not claimed.
A table (`@list.tsv`) says it outright.
"""

import contextlib
import re
from itertools import pairwise
from pathlib import Path

from cld_stream.media.header import read_header
from cld_stream.media.job import Member
from cld_stream.media.probe import kind_of

__all__ = ["MIN_MEMBERS", "numbered_sequence"]

MIN_MEMBERS = 8
_SAMPLED = 8  # pictures whose header is read
_CAMERA = re.compile(
    r"(?:[A-Z0-9_]{4}\d{4}|(?:IMG|DSC|DSCN|DSCF|PXL|MVIMG|PANO|BURST|WP|P)[_-]?\d+)(?:\D.*)?",
    re.IGNORECASE,
)
_NUMBERED = re.compile(r"(.*?)(\d+)", re.S)


def numbered_sequence(files: list[Path], fps: float) -> tuple[Member, ...]:
    """The members of a frame folder in order, or () if `files` are no frame folder.

    Args:
        files: everything in one leaf folder.
        fps: frames per second that one step of the counter stands for.
    """
    pictures = [p for p in files if kind_of(b"", p.suffix) == "photo"]
    if len(pictures) < MIN_MEMBERS or any(kind_of(b"", p.suffix) == "video" for p in files):
        return ()
    parts = [_NUMBERED.fullmatch(p.stem) for p in pictures]
    if len({p.suffix.lower() for p in pictures}) > 1 or not all(parts):
        return ()
    numbered = sorted((int(m[2]), p) for m, p in zip(parts, pictures, strict=True) if m)
    prefixes = {m[1] for m in parts if m}
    if len(prefixes) > 1 or not _steady([n for n, _ in numbered]):
        return ()
    bare = prefixes == {""}
    if not bare and any(_CAMERA.fullmatch(p.stem) for p in pictures):
        return ()
    if not _looks_filmed([p for _, p in numbered], one_size=not bare):
        return ()
    first = numbered[0][0]
    step = min(b[0] - a[0] for a, b in pairwise(numbered))
    return tuple(Member(p, (n - first) / step / fps) for n, p in numbered)


def _steady(numbers: list[int]) -> bool:
    steps = [b - a for a, b in pairwise(numbers)]
    return min(steps) > 0 and sum(s != min(steps) for s in steps) <= len(steps) / 10


def _looks_filmed(pictures: list[Path], *, one_size: bool) -> bool:
    """Read a few headers: no capture time of a camera and, if asked for, one size."""
    sizes = set()
    for path in pictures[:: max(1, len(pictures) // _SAMPLED)]:
        with contextlib.suppress(Exception):
            header = read_header(path)
            if header.taken_utc is not None:
                return False
            sizes.add(header.size)
    return len(sizes) == 1 or (not one_size and bool(sizes))
