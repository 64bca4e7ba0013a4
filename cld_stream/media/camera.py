"""Frames of a camera, as they come; runs in a worker. What arrives is stamped by the clock on the wall.

A position in a camera is the time since its first frame ever. It goes on over calls, restarts and nights without
power, and never back, whatever the clock does.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import av
import av.logging

from cld_stream.errors import MediaError
from cld_stream.media.address import is_device
from cld_stream.media.frames import MediaFrame, square_jpeg
from cld_stream.media.job import Chunk, Done, Event, Job, Started
from cld_stream.media.plan import pixel_aspect, video_stream
from cld_stream.media.pyav_reader import Shape
from cld_stream.media.shots import ShotTracker

__all__ = ["READER", "read_camera"]

READER = "pyav-camera"
av.logging.set_level(av.logging.PANIC)  # FFmpeg's chatter names the password
_OPTIONS = {
    "rtsp_flags": "prefer_tcp",  # lost packets are broken pictures
    "analyzeduration": "1000000",  # [us]
    "protocol_whitelist": "rtp,rtcp,srtp,udp,tcp,tls,crypto",
}


def read_camera(job: Job, beat: Callable[[], None]) -> Iterator[Event]:
    """Call a camera once and hand over its frames, one a chunk, until it is lost; the last event is `Done` BROKEN.

    Args:
        job: `url` is called. The cursor goes on from an earlier call.
        beat: called at every packet, as a sign of life.
    """
    try:
        with _call(job) as container:
            stream = video_stream(container)
            yield Started(READER, stream.codec_context.name)
            yield from _frames(container, stream, job, beat)
        reason = "it ended the stream"
    except MediaError as error:
        reason = str(error)
    except (av.FFmpegError, OSError, MemoryError) as error:
        reason = _in_words(error, job.timeout_s)
    yield Done("BROKEN", reason, READER)


def _call(job: Job) -> Any:
    limits = (job.timeout_s, job.timeout_s)
    if is_device(job.url):
        return av.open(job.url, format="v4l2", timeout=limits)
    return av.open(job.url, options=_OPTIONS, timeout=limits)


def _in_words(error: Exception, timeout_s: float) -> str:
    """Why a camera was lost. An error's own text names the address with its password: it is not used."""
    if isinstance(error, av.error.HTTPUnauthorizedError | av.error.HTTPForbiddenError):
        return "it refuses this user name and password"
    if isinstance(error, av.error.HTTPNotFoundError):
        return "it has no stream of this name"
    if isinstance(error, av.error.ExitError | TimeoutError):
        return f"nothing came from it for {timeout_s:g} s"
    if isinstance(error, MemoryError):
        return "it takes more memory than ingest.worker_memory_mb allows"
    if isinstance(error, EOFError):
        return "it ended the stream"
    if isinstance(error, av.error.InvalidDataError):
        return "what it sends is no video"
    text = getattr(error, "strerror", None)
    return str(text) if text else type(error).__name__


def _frames(container: Any, stream: Any, job: Job, beat: Callable[[], None]) -> Iterator[Chunk]:
    stream.codec_context.thread_count = 1
    clock, shape = _Clock.at(job.cursor, job.fps), None
    seen = 0, 0, 0.0
    good = time.monotonic()
    for packet in container.demux(stream):
        beat()
        for frame in _decoded(packet):
            good = time.monotonic()
            stamp = clock.stamp()
            if stamp is None:
                continue
            pixel = pixel_aspect(stream.codec_context.sample_aspect_ratio, stream.sample_aspect_ratio)
            now = frame.width, frame.height, pixel
            if shape is None or now != seen:  # cameras change their resolution as they please
                if frame.width * frame.height > job.max_pixels:
                    raise MediaError(f"its pictures exceed ingest.max_pixels = {job.max_pixels}")
                seen, shape = now, Shape(frame.width * now[2] / frame.height, job.fit, job.size)
            rgb, target, aspect = shape.picture(frame)
            jpeg = square_jpeg(rgb, target, job.size, job.quality)
            yield Chunk([MediaFrame(jpeg, *stamp, clock.shots.see(rgb), aspect)], clock.cursor())
        if time.monotonic() - good > job.timeout_s:
            raise MediaError(f"nothing that it sent in {job.timeout_s:g} s could be decoded")


def _decoded(packet: Any) -> list[Any]:
    """The whole pictures in a packet; garbage holds none."""
    try:
        return [frame for frame in packet.decode() if not frame.is_corrupt]
    except av.FFmpegError:
        return []


@dataclass
class _Clock:
    """Position and time of day of what arrives now; its JSON is the cursor.

    Attributes:
        begun_utc: when the very first frame came; None before it.
        time_s: position of the last kept frame.
    """

    fps: float
    begun_utc: float | None = None
    time_s: float = -1.0
    shots: ShotTracker = field(default_factory=ShotTracker)
    _call_began: tuple[float, float] | None = None  # position, and the monotonic clock there

    @classmethod
    def at(cls, cursor: str | None, fps: float) -> "_Clock":
        if cursor is None:
            return cls(fps)
        c = json.loads(cursor)
        return cls(fps, c["begun"], c["time_s"], ShotTracker(*c["shot"]))

    def cursor(self) -> str:
        state = {"begun": self.begun_utc, "time_s": self.time_s, "shot": self.shots.state()}
        return json.dumps(state, separators=(",", ":"))

    def stamp(self) -> tuple[float, float] | None:
        """(position [s], UTC) if a frame that comes now is to be kept: the first one of every 1 / fps."""
        wall, ticks = time.time(), time.monotonic()
        if self.begun_utc is None:
            self.begun_utc = wall
        if self._call_began is None:
            next_s = self.time_s + 1 / self.fps if self.time_s >= 0 else 0.0
            self._call_began = max(next_s, wall - self.begun_utc), ticks
        time_s = round(self._call_began[0] + ticks - self._call_began[1], 3)
        if self.time_s >= 0 and self._cell(time_s) <= self._cell(self.time_s):
            return None
        self.time_s = time_s
        return time_s, wall

    def _cell(self, time_s: float) -> int:
        return math.floor(time_s * self.fps + 1e-6)
