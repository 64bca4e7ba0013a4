"""Frames of a video through PyAV: read forward, choose by presentation time, salvage what a broken file still holds."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, dropwhile
from typing import Any

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from cld_stream.media.frames import Fit, Window, windows
from cld_stream.media.job import Job
from cld_stream.media.orientation import orientation_of
from cld_stream.media.plan import Plan, cell_of, open_container, packets_of, path_of, ticks_of, video_stream
from cld_stream.media.reasons import DAMAGED_PART, video_reason

__all__ = ["Damage", "Picture", "Shape", "read_pyav"]


@dataclass
class Damage:
    """Errors met while decoding: before the last good picture, and after it, where a file that grows may heal.

    Attributes:
        count, reason: errors before it, and the first one's reason; what a cursor keeps.
        tail: reason of the first error after it.
    """

    count: int = 0
    reason: str = ""
    tail: str = ""
    _tail_at: int | None = None

    def add(self, reason: str, at: int | None = None) -> None:
        """An error in the packet of time `at` [ticks]."""
        self.tail, self._tail_at = self.tail or reason, at

    def good(self, at: int | None) -> None:
        """A good picture of time `at` [ticks]. A decoder holds some back, so it may be older than the error."""
        if self.tail and (at is None or self._tail_at is None or at > self._tail_at):
            self.count, self.reason, self.tail = self.count + 1, self.reason or self.tail, ""


@dataclass(frozen=True, slots=True)
class Picture:
    """One chosen frame, scaled: its cell, time [s], pixels, place in the frame, and aspect as shown."""

    cell: int
    time_s: float
    rgb: NDArray[np.uint8]
    target: Window
    aspect: float


class Shape:
    """Turns decoded frames into upright RGB pictures of the store's size.

    Args:
        aspect: width / height as shown, before rotation; 0 = that of the decoded pixels (a damaged header has none).
        fit, size: the store's settings.
    """

    def __init__(self, aspect: float, fit: Fit, size: int) -> None:
        self.aspect, self.fit, self.size = aspect, fit, size
        self._scaler = VideoReformatter()

    def scaled(self, width: int, height: int, aspect: float) -> tuple[int, int, Window, Window]:
        """Size to scale an upright `width` x `height` picture to, what to cut from it, and where that goes."""
        source, target = windows(width, height, aspect, self.fit, self.size)
        w = max(target.width, round(width * target.width / source.width))
        h = max(target.height, round(height * target.height / source.height))
        cut = Window((w - target.width) // 2, (h - target.height) // 2, target.width, target.height)
        return w, h, cut, target

    def picture(self, frame: Any) -> tuple[NDArray[np.uint8], Window, float]:
        """(upright pixels, their place in the S x S frame, aspect as shown)."""
        way = orientation_of(frame)
        width, height = (frame.height, frame.width) if way.sideways else (frame.width, frame.height)
        aspect = self.aspect or frame.width / frame.height
        aspect = 1 / aspect if way.sideways else aspect
        w, h, cut, target = self.scaled(width, height, aspect)
        upright = way.upright(self._rgb(frame, *((h, w) if way.sideways else (w, h))))
        inner = upright[cut.y : cut.y + cut.height, cut.x : cut.x + cut.width]
        return inner, target, aspect

    def _rgb(self, frame: Any, width: int, height: int) -> NDArray[np.uint8]:
        method = Interpolation.AREA if frame.width > width else Interpolation.BILINEAR
        scaled = self._scaler.reformat(frame, width, height, "rgb24", interpolation=method, threads=1)
        return np.asarray(scaled.to_ndarray(), np.uint8)


def read_pyav(
    container: Any, job: Job, plan: Plan, first_cell: int, damage: Damage, beat: Callable[[], None]
) -> Iterator[Picture]:
    """The chosen frames of the cells from `first_cell` on, in order.

    What the plan kept is decoded as it is. Of other files the packets are read again from `container`, the one that
    the plan was made from: rewound where that is exact, else the file is opened again.
    Damaged packets are skipped and noted in `damage`; an unreadable rest ends the iteration. Of a growing file the
    last cell is left out: what is written next may have a better frame for it.
    """
    shape = Shape(plan.aspect, job.fit, job.size)
    best: tuple[float, int, float, Any] | None = None
    for frame, time_s in _timed(_decoded(container, job, plan, first_cell, damage, beat), plan):
        cell = cell_of(time_s, job.fps)
        if cell < first_cell:
            continue
        off = abs(time_s - cell / job.fps)
        if best is None or (cell == best[1] and off < best[0]):
            best = (off, cell, time_s, frame)
        elif cell > best[1]:
            yield Picture(best[1], best[2], *shape.picture(best[3]))
            best = (off, cell, time_s, frame)
    if best is not None and not job.growing:
        yield Picture(best[1], best[2], *shape.picture(best[3]))


def _timed(frames: Iterator[Any], plan: Plan) -> Iterator[tuple[Any, float]]:
    """Each frame with its time from the start of the played part [s]."""
    start = plan.start
    for number, frame in enumerate(frames):
        ticks = ticks_of(frame)
        if ticks is None:
            yield frame, number / plan.rate
            continue
        start = ticks if start is None else start
        yield frame, (ticks - start) * plan.tick_s


def _decoded(
    container: Any, job: Job, plan: Plan, first_cell: int, damage: Damage, beat: Callable[[], None]
) -> Iterator[Any]:
    target = _entry(plan, job.fps, first_cell) if damage.count == 0 else plan.first
    with contextlib.ExitStack() as opened:
        packets = _kept_from(target, plan) or _packets_from(container, target, plan, damage)
        if packets is None:
            again = opened.enter_context(open_container(job.path))
            packets = _packets(again, _set_up(video_stream(again), plan), damage)
        for packet in _needed(packets, plan):
            beat()
            try:
                frames = packet.decode()
            except av.FFmpegError as error:
                damage.add(video_reason(job.path, error, DAMAGED_PART), packet.pts)
                continue
            for frame in frames:
                if frame.is_corrupt:
                    damage.add(DAMAGED_PART, frame.pts)
                else:
                    damage.good(frame.pts)
                    yield frame


def _kept_from(target: int | None, plan: Plan) -> Iterator[Any] | None:
    """What the plan kept, from the packet at `target` on where decoding can begin there; None if it kept nothing."""
    if not plan.kept:
        return None
    _set_up(plan.kept[0].stream, plan)
    if plan.seekable and any(packet.pts == target for packet in plan.kept):
        _show_first(plan.kept[0], target)
        return dropwhile(lambda packet: packet.pts != target, plan.kept)
    return iter(plan.kept)


def _set_up(stream: Any, plan: Plan) -> Any:
    """The stream, its decoder ready for this plan."""
    stream.codec_context.thread_count = 1
    if plan.skip_unreferenced:
        stream.codec_context.skip_frame = "NONREF"
    return stream


def _show_first(packet: Any, target: int | None) -> None:
    """Let the decoder see the first packet before it begins at `target`, and forget its pictures.

    Files may say something there alone that all of them need: x264 its version, from which FFmpeg knows which errors
    of old versions to expect in 4:4:4.
    """
    if packet.pts != target:
        with contextlib.suppress(av.FFmpegError):
            packet.decode()
        packet.stream.codec_context.flush_buffers()


def _needed(packets: Iterator[Any], plan: Plan) -> Iterator[Any]:
    """The packets that the plan decodes; the last one is empty and flushes the decoder."""
    forward, begin = plan.mode != "keys", plan.forward_from
    for packet in packets:
        if begin is not None and packet.pts == begin:
            forward = True
        if packet.size == 0:
            yield packet
            return
        if forward or packet.is_keyframe:  # (`Stream.discard` would do it sooner, but then MP4 times are wrong)
            yield packet


def _packets(container: Any, stream: Any, damage: Damage) -> Iterator[Any]:
    """Every packet, as far as the file can be read."""
    try:
        yield from packets_of(container, [stream])
    except (av.FFmpegError, OSError) as error:
        damage.add(video_reason(path_of(container), error, "the rest of the file is damaged and was left out"))


def _packets_from(container: Any, target: int | None, plan: Plan, damage: Damage) -> Iterator[Any] | None:
    """The packets from the one at `target` on, by a seek; None where that cannot be had exactly."""
    if not plan.seekable or target is None:
        return None
    stream = _set_up(video_stream(container), plan)
    try:
        container.seek(plan.first, stream=stream, backward=True)
        _show_first(next(container.demux(stream)), target)
        container.seek(target, stream=stream, backward=True)
    except (av.FFmpegError, StopIteration):
        return None
    packets = _packets(container, stream, damage)
    first = next(packets, None)
    if first is None or first.pts != target:
        return None
    return chain([first], packets)


def _entry(plan: Plan, fps: float, first_cell: int) -> int | None:
    """Where decoding can begin for the frames of `first_cell` on: the last key frame but one before that cell.

    The last one may be where a stream that refreshes its picture bit by bit begins to, and is whole only at the next.
    """
    start = plan.start or 0
    before = [t for t in plan.keys if cell_of((t - start) * plan.tick_s, fps) < first_cell]
    return before[-2] if len(before) > 1 else plan.first
