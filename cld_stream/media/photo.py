"""Photos: one frame each. Animated pictures: short videos, sampled as videos are."""

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cld_stream.media.boxes import missing_bytes
from cld_stream.media.frames import MediaFrame, encode_frame, moment
from cld_stream.media.job import Chunk, Done, Event, Job, Started
from cld_stream.media.pictures import open_picture, shown_aspect, taken_utc, upright_rgb
from cld_stream.media.reasons import MISSING_REST, picture_reason, too_large

__all__ = ["Still", "read_photo", "read_still"]

READER = "pillow"
_ANIMATED = frozenset(("GIF", "PNG", "WEBP", "AVIF"))
_CHUNK_FRAMES = 32
_QUICK_MS = 10  # shorter durations mean "unset"; viewers show such frames for 100 ms


@dataclass(frozen=True, slots=True)
class Still:
    """The first page of a picture as a frame, and what was wrong or left out ("" = nothing)."""

    frame: MediaFrame
    damage: str = ""
    note: str = ""


def read_photo(job: Job, beat: Callable[[], None] = lambda: None) -> Iterator[Event]:
    """Read one picture file.

    Args:
        beat: called at every frame of an animation, as a sign of life.

    Yields:
        `Started`, `Chunk`s, `Done`: PARTIAL if the file is cut short, SKIPPED if it holds more than
        `job.max_pixels`, BROKEN if nothing of it decodes.
    """
    try:
        with open_picture(job.path, job.max_pixels) as picture:
            moving = job.kind == "photo" and picture.format in _ANIMATED
            animated = moving and getattr(picture, "is_animated", False)
        yield Started(READER)
        if animated:
            yield from _read_animation(job, beat)
        else:
            still = read_still(job)
            if job.cursor is None:  # else its one frame is committed, and what was wrong is not
                yield Chunk([still.frame], json.dumps({"next": 1}))
            yield Done("PARTIAL" if still.damage else "ADDED", still.damage or still.note, READER)
    except Image.DecompressionBombError:
        yield Done("SKIPPED", too_large("its", job.max_pixels), READER)
    except Exception as error:  # noqa: BLE001 - hostile bytes make Pillow raise anything
        yield Done("BROKEN", picture_reason(job.path, error), READER)


def read_still(job: Job, path: Path | None = None) -> Still:
    """Decode the first page of `path` (default: `job.path`) into a frame.

    Raises:
        Exception: as `open_picture`, if nothing of it decodes.
    """
    path = path or job.path
    try:
        still = _decode_still(job, path, tolerant=False)
        return Still(still.frame, _cut_short(path), still.note)
    except (OSError, SyntaxError, EOFError, ValueError) as error:
        damage = picture_reason(path, error)
        try:
            still = _decode_still(job, path, tolerant=True)
        except Exception:  # noqa: BLE001 - the first failure says more
            raise error from None
        return Still(still.frame, damage, still.note)


def _decode_still(job: Job, path: Path, *, tolerant: bool) -> Still:
    with open_picture(path, job.max_pixels, tolerant=tolerant) as picture:
        aspect = shown_aspect(picture)
        wall = _wall_utc(job, path, picture)
        pages = _pages(picture)
        rgb = upright_rgb(picture, job.size)
        if tolerant and rgb.size and int(rgb.min()) == int(rgb.max()):
            raise OSError("cut short before the first pixel")
    jpeg = encode_frame(rgb, aspect, job.fit, job.size, job.quality)
    note = f"first of {pages} pages" if pages > 1 else ""
    return Still(MediaFrame(jpeg, 0.0, wall, 0, aspect), note=note)


def _cut_short(path: Path) -> str:
    """HEIF and AVIF decoders do not tell of bytes that are not there."""
    with path.open("rb") as file:
        if file.read(8)[4:] != b"ftyp":
            return ""
        return MISSING_REST if missing_bytes(file) else ""


def _read_animation(job: Job, beat: Callable[[], None]) -> Iterator[Event]:
    """Cell k holds the frame that appears nearest to k / fps, as for videos."""
    start = json.loads(job.cursor)["next"] if job.cursor else 0
    kept: list[MediaFrame] = []
    emitted, damage = 0, ""
    with open_picture(job.path, job.max_pixels) as picture:
        aspect, wall = shown_aspect(picture), _wall_utc(job, job.path, picture)
        shown = _shown_frames(picture, job, beat)
        while True:
            try:
                time_s, rgb = next(shown)
            except StopIteration:
                break
            except Exception as error:  # noqa: BLE001 - keep what came before
                damage = picture_reason(job.path, error)
                break
            emitted += 1
            if emitted > start:
                jpeg = encode_frame(rgb, aspect, job.fit, job.size, job.quality)
                shown_utc = None if wall is None else moment(wall + time_s)
                kept.append(MediaFrame(jpeg, time_s, shown_utc, 0, aspect))
            if len(kept) >= _CHUNK_FRAMES:
                yield Chunk(kept, json.dumps({"next": emitted}))
                kept = []
    if kept:
        yield Chunk(kept, json.dumps({"next": emitted}))
    if emitted == 0:
        yield Done("BROKEN", damage or "the picture is damaged: there is no frame in it", READER)
    else:
        yield Done("PARTIAL" if damage else "ADDED", damage, READER)


def _shown_frames(
    picture: Image.Image, job: Job, beat: Callable[[], None]
) -> Iterator[tuple[float, NDArray[np.uint8]]]:
    """(time [s], picture) of the kept frames; a frame found before damage is given before the error."""
    best: tuple[float, float, NDArray[np.uint8]] | None = None  # distance to the cell, time, picture
    cell, time_ms, failure = 0, 0.0, None
    for index in range(_pages(picture)):
        beat()
        try:
            picture.seek(index)
            picture.load()  # WebP knows the duration of a frame only then
            mine = round(time_ms / 1000 * job.fps)
            distance = abs(time_ms / 1000 - mine / job.fps)
            if best is not None and mine != cell:
                yield best[1], best[2]
                best = None
            if best is None or distance < best[0]:
                cell, best = mine, (distance, time_ms / 1000, upright_rgb(picture.copy(), job.size))
            duration = float(picture.info.get("duration") or 0)
            time_ms += duration if duration > _QUICK_MS else 100.0
        except Exception as error:  # noqa: BLE001 - told after the frames before it
            failure = error
            break
    if best is not None:
        yield best[1], best[2]
    if failure is not None:
        raise failure


def _pages(picture: Image.Image) -> int:
    try:
        return int(getattr(picture, "n_frames", 1))
    except Exception:  # noqa: BLE001 - a damaged page table; the first page may still be fine
        return 1


def _wall_utc(job: Job, path: Path, picture: Image.Image) -> float | None:
    """EXIF time, else when the file was last written."""
    if job.start_utc is not None and path == job.path:
        return moment(job.start_utc)
    taken = None
    with contextlib.suppress(Exception):
        taken = taken_utc(picture.getexif())
    return moment(path.stat().st_mtime if taken is None else taken)
