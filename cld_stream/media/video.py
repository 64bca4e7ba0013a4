"""One video, from file to small JPEGs: plan, choose a reader, cut into chunks that can be committed and continued."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import av

from cld_stream.errors import MediaError
from cld_stream.media.decord_reader import read_decord
from cld_stream.media.frames import MediaFrame, moment, square_jpeg
from cld_stream.media.job import Chunk, Done, Event, Job, Outcome, Started
from cld_stream.media.orientation import Orientation, orientation_of
from cld_stream.media.plan import NoVideoError, Plan, cell_of, make_plan, open_container, video_stream
from cld_stream.media.pyav_reader import Damage, Picture, read_pyav
from cld_stream.media.reasons import DAMAGED_PART, too_large, video_reason
from cld_stream.media.shots import ShotTracker

__all__ = ["read_video"]

CHUNK_FRAMES = 16
_NO_FRAME = "the file is damaged: none of its frames can be decoded"
CHUNK_S = 0.3  # a chunk is handed over after this long, however few frames it holds


def _no_beat() -> None:
    """Nobody listens for signs of life."""


@dataclass
class _Position:
    """Where reading stands; its JSON is the cursor. `time_s` is that of the last frame."""

    fps: float
    cell: int = 0
    time_s: float = 0.0
    frames: int = 0
    damage: Damage = field(default_factory=Damage)
    shots: ShotTracker = field(default_factory=ShotTracker)

    @classmethod
    def at(cls, cursor: str | None, fps: float) -> "_Position":
        if cursor is None:
            return cls(fps)
        c = json.loads(cursor)
        cell = c["cell"] if c.get("fps", fps) == fps else cell_of(c["time_s"], fps) + 1
        return cls(fps, cell, c.get("time_s", 0.0), c["frames"], Damage(*c["damage"]), ShotTracker(*c["shot"]))

    def cursor(self) -> str:
        damage = [self.damage.count, self.damage.reason]
        state = {"fps": self.fps, "cell": self.cell, "time_s": self.time_s, "frames": self.frames, "damage": damage}
        return json.dumps(state | {"shot": self.shots.state()}, separators=(",", ":"))


def read_video(job: Job, beat: Callable[[], None] = _no_beat, chunk_frames: int = CHUNK_FRAMES) -> Iterator[Event]:
    """Read one video; the last event is `Done`, whatever the file holds.

    Args:
        job: what to read. Its cursor continues an earlier run: the same times and bytes as without the break.
        beat: called at least at every packet, as a sign of life.
        chunk_frames: most frames in a chunk.
    """
    try:
        with open_container(job.path) as container:
            yield from _read(container, job, beat, chunk_frames)
    except NoVideoError as error:
        yield Done("SKIPPED", str(error))
    except MediaError as error:
        yield Done("BROKEN", str(error))


def _read(container: Any, job: Job, beat: Callable[[], None], chunk_frames: int) -> Iterator[Event]:
    position = _Position.at(job.cursor, job.fps)
    plan = make_plan(container, job.fps, beat)
    refusal = _refusal(plan, job)
    if refusal is not None:
        yield refusal
        return
    reader = _reader(job)
    yield Started(reader, _note(plan))
    if reader == "decord":
        pictures = read_decord(job, plan, position.cell, _orientation(job), beat)
    else:
        pictures = read_pyav(container, job, plan, position.cell, position.damage, beat)
    try:
        yield from _chunks(job, plan, pictures, position, chunk_frames)
    except (MediaError, av.FFmpegError, OSError, MemoryError) as error:
        known = isinstance(error, MediaError)
        position.damage.add(str(error) if known else video_reason(job.path, error, DAMAGED_PART))
    yield _done(plan, position, reader)


def _refusal(plan: Plan, job: Job) -> Done | None:
    if plan.packets == 0:
        return Done("BROKEN", plan.damage or "the file is cut off or damaged: it holds no frame")
    if plan.width * plan.height > job.max_pixels:
        return Done("SKIPPED", too_large(f"{plan.width:,} x {plan.height:,}", job.max_pixels))
    return None


def _reader(job: Job) -> Literal["decord", "pyav"]:
    """`auto` reads through PyAV: measured, decord was nowhere faster (docs/decisions/012-video-reader.md)."""
    return "decord" if job.reader == "decord" and not job.growing else "pyav"


def _note(plan: Plan) -> str:
    what = {"keys": "key frames", "references": "referenced frames", "all": "all frames"}[plan.mode]
    return f"{plan.codec} {plan.width}x{plan.height}, {what}"


def _orientation(job: Job) -> Orientation:
    """What makes the picture upright; the first frame tells."""
    with open_container(job.path) as container:
        stream = video_stream(container)
        try:
            frame: Any = next(container.decode(stream))
        except (StopIteration, av.FFmpegError) as error:
            raise MediaError(_NO_FRAME) from error
        return orientation_of(frame)


def _chunks(job: Job, plan: Plan, pictures: Iterator[Picture], position: _Position, most: int) -> Iterator[Chunk]:
    begun_utc = job.start_utc if job.start_utc is not None else plan.created_utc
    frames: list[MediaFrame] = []
    handed_over = time.monotonic()
    for picture in pictures:
        frames.append(_frame(job, picture, begun_utc, position.shots))
        position.cell, position.time_s, position.frames = picture.cell + 1, picture.time_s, position.frames + 1
        if len(frames) >= most or time.monotonic() - handed_over > CHUNK_S:
            yield Chunk(frames, position.cursor())
            frames, handed_over = [], time.monotonic()
    if frames:
        yield Chunk(frames, position.cursor())


def _frame(job: Job, picture: Picture, begun_utc: float | None, shots: ShotTracker) -> MediaFrame:
    return MediaFrame(
        jpeg=square_jpeg(picture.rgb, picture.target, job.size, job.quality),
        time_s=picture.time_s,
        wall_utc=None if begun_utc is None else moment(begun_utc + picture.time_s),
        shot=shots.see(picture.rgb),
        aspect=picture.aspect,
    )


def _done(plan: Plan, position: _Position, reader: str) -> Done:
    reason = plan.damage or position.damage.reason or position.damage.tail
    if position.frames == 0:
        return Done("BROKEN", reason or _NO_FRAME, reader)
    outcome: Outcome = "PARTIAL" if reason else "ADDED"
    return Done(outcome, reason, reader)
