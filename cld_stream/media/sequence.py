"""Frame folders and tables: pictures in order, one source."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from PIL import Image

from cld_stream.media.frames import MediaFrame, moment
from cld_stream.media.job import Chunk, Done, Event, Job, Outcome, Started
from cld_stream.media.paths import is_no_file
from cld_stream.media.photo import read_still
from cld_stream.media.reasons import VANISHED, picture_reason, too_large

__all__ = ["READER", "read_sequence"]

READER = "pillow-sequence"
_CHUNK_FRAMES = 64
_CHUNK_S = 1.0
_NO_FILE = "a pipe, device or folder, not a file"


def read_sequence(job: Job, beat: Callable[[], None] = lambda: None) -> Iterator[Event]:
    """Read every picture of `job.members`, in order; all are kept, whatever `job.fps`.

    An unreadable picture leaves a gap and makes the outcome PARTIAL; none readable: BROKEN. The cursor is
    `{"next": first member to read, "bad": unreadable so far, "why": the first reason}`.

    Args:
        beat: called at every picture, as a sign of life: very many in a row may be unreadable.
    """
    state: dict[str, Any] = {"next": 0, "bad": 0, "why": ""}
    if job.cursor is not None:
        state = json.loads(job.cursor)
    yield Started(READER, f"{len(job.members)} pictures")
    kept: list[MediaFrame] = []
    since = time.monotonic()
    for index in range(state["next"], len(job.members)):
        beat()
        try:
            kept.append(_read_member(job, index))
        except Exception as error:  # noqa: BLE001 - one bad picture must not end the sequence
            state["bad"] += 1
            state["why"] = state["why"] or f"{job.members[index].path.name}: {_reason(job, index, error)}"  # fmt: skip
        state["next"] = index + 1
        if len(kept) >= _CHUNK_FRAMES or (kept and time.monotonic() - since >= _CHUNK_S):
            yield Chunk(kept, json.dumps(state))
            kept, since = [], time.monotonic()
    if kept:
        yield Chunk(kept, json.dumps(state))
    yield _done(state["bad"], state["why"], len(job.members))


def _read_member(job: Job, index: int) -> MediaFrame:
    member = job.members[index]
    if is_no_file(member.path):
        raise OSError(_NO_FILE)
    frame = read_still(job, member.path).frame
    time_s = float(index) if member.time_s is None else member.time_s
    return MediaFrame(frame.jpeg, time_s, moment(member.wall_utc), 0, frame.aspect)


def _reason(job: Job, index: int, error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return too_large("its", job.max_pixels)
    if is_no_file(job.members[index].path):
        return _NO_FILE
    reason = picture_reason(job.members[index].path, error)
    return "no such file" if reason == VANISHED else reason  # a table may name what never was


def _done(bad: int, why: str, members: int) -> Done:
    if bad == 0:
        return Done("ADDED", reader=READER)
    outcome: Outcome = "BROKEN" if bad >= members else "PARTIAL"
    return Done(outcome, f"{bad} of {members} pictures unreadable; {why}", READER)
