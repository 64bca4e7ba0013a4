"""What a video holds, learned by walking its packets without decoding any; and from that, what must be decoded.

The sampling rule: cell k holds the displayed frames whose time lies in [(k - 1/2) / fps, (k + 1/2) / fps), counted
from the first displayed frame; of every cell one frame is kept, the nearest to k / fps among those that are decoded.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import av.logging

from cld_stream.errors import MediaError
from cld_stream.media.reasons import DAMAGED_PART, video_reason
from cld_stream.media.references import reference_test

__all__ = [
    "NoVideoError", "Plan", "cell_of", "make_plan", "open_container", "packets_of", "path_of", "pixel_aspect",
    "ticks_of", "video_stream",
]  # fmt: skip

_FLATTEST = 32  # times as wide as high, or as high as wide: real pixels are below three

av.logging.set_level(av.logging.PANIC)  # reasons are reported, FFmpeg's chatter is not

Mode = Literal["keys", "references", "all"]
# PyAV before 19 stumbles over tags that are not UTF-8 unless told otherwise; since then it has no such option.
_TAGS: dict[str, Any] = {} if int(av.__version__.partition(".")[0]) >= 19 else {"metadata_errors": "replace"}
_FORMATS = (  # one file each: playlists are files too, and name others, any number of times
    "mov,matroska,avi,flv,live_flv,asf,asf_o,mpeg,mpegts,mpegvideo,ogg,mxf,gxf,dv,ivf,nut,rm,nsv,wtv,avs,yuv4mpegpipe,"
    "m4v,h261,h263,h264,hevc,vvc,evc,obu,av1,vc1,cavsvideo,dirac,dnxhd,apv,mjpeg,mjpeg_2000,mpjpeg,smjpeg,"
    "dhav,hxvs,ifv,luodat"  # recorders of cameras, which name them .mp4 too
)
_SEEKABLE = {"mov", "matroska", "webm", "mp4"}
_KEPT_BYTES = 16 * 2**20  # of a file with more, the packets are read again
_PACKET_BYTES = 512  # what a packet takes besides its data, roughly


class NoVideoError(MediaError):
    """The file holds sound or data, but no moving picture."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to read one video.

    Attributes:
        mode: decode only `keys` (and after the last one whatever its cell leaves uncovered), only the `references` that
            other frames refer to, or `all`.
        times: presentation time of every packet [ticks], sorted; empty where the container gives none.
        wanted: time of the frame that the rule chooses for each cell [ticks], sorted.
        keys: times of the key frames [ticks], sorted.
        start: time of the first displayed frame [ticks]; None where the container gives no times.
        first: time of the first packet [ticks].
        tick_s: seconds a tick.
        aspect: width / height as shown, before rotation.
        seekable: an earlier run can be continued from a key frame.
        damage: why the file is only partly readable, or "".
        created_utc: when the recording began, if the container says so.
        kept: the video packets, last the empty one that flushes the decoder; nothing if the file is large or damaged.
    """

    codec: str
    width: int
    height: int
    aspect: float
    mode: Mode
    times: list[int]
    wanted: list[int]
    keys: list[int]
    start: int | None
    first: int | None
    tick_s: float
    rate: float
    packets: int
    seekable: bool
    skip_unreferenced: bool
    damage: str
    created_utc: float | None
    kept: list[Any]

    @property
    def forward_from(self) -> int | None:
        """In mode `keys`: the key frame from which on everything is decoded, if the end is not covered by keys."""
        return self.keys[-1] if self.keys and self.wanted[-1] > self.keys[-1] else None


@dataclass
class _Walk:
    """What the packets said: (time, key, reference) of every displayed one, and the times of all."""

    shown: list[tuple[int, bool, bool]] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    packets: int = 0
    timed: bool = True
    end_s: float = 0.0
    damage: str = ""
    kept: list[Any] = field(default_factory=list)
    room: int = 0  # bytes that kept packets may still take

    def keep(self, packet: Any) -> None:
        """Keep a packet to decode, as long as there is room for all of them."""
        self.room -= packet.size + _PACKET_BYTES
        if self.room >= 0:
            self.kept.append(packet)
        else:
            self.kept.clear()


def cell_of(time_s: float, fps: float) -> int:
    """Number of the cell that a frame belongs to."""
    return math.floor(time_s * fps + 0.5 + 1e-9)


def ticks_of(item: Any) -> int | None:
    """Presentation time of a packet or frame; its decoding time where there is none."""
    ticks = item.pts if item.pts is not None else item.dts
    return None if ticks is None else int(ticks)


def open_container(path: Path) -> Any:
    """A PyAV container: this file alone.

    Raises:
        MediaError: it cannot be opened; the message is a reason in plain words.
    """
    try:
        return av.open(f"file:{path}", options={"protocol_whitelist": "file", "format_whitelist": _FORMATS}, **_TAGS)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise MediaError(video_reason(path, error)) from error


def path_of(container: Any) -> Path:
    """The file of a container that `open_container` opened."""
    return Path(container.name.removeprefix("file:"))


def make_plan(container: Any, fps: float, beat: Callable[[], None]) -> Plan:
    """Walk the packets of a file.

    Args:
        container: an opened video, at its start.
        fps: frames to keep per second.
        beat: called at every packet, as a sign of life.

    Raises:
        NoVideoError: there is no video stream.
        MediaError: nothing in it can be read.
    """
    stream = video_stream(container)
    walk = _walk(container, stream, beat)
    context, tick_s = stream.codec_context, float(stream.time_base or Fraction(1, 1000))
    start = min((t for t, _, _ in walk.shown), default=None) if walk.timed else None
    pixel = pixel_aspect(stream.sample_aspect_ratio, context.sample_aspect_ratio)
    keys = sorted(t for t, key, _ in walk.shown if key) if walk.timed else []
    mode, candidates, skip = _choose(walk, start, tick_s, fps)
    return Plan(
        codec=context.name,
        width=context.width,
        height=context.height,
        aspect=context.width * pixel / max(1, context.height),
        mode=mode,
        times=sorted(walk.times) if walk.timed else [],
        wanted=_nearest(candidates, start or 0, tick_s, fps),
        keys=keys,
        start=start,
        first=walk.times[0] if walk.timed and walk.times else None,
        tick_s=tick_s,
        rate=float(stream.average_rate or stream.guessed_rate or 25),
        packets=walk.packets,
        seekable=walk.timed and not walk.damage and _seekable(container),
        skip_unreferenced=skip,
        damage=walk.damage or _cut_off(container, stream, walk),
        created_utc=_created(container),
        kept=[] if walk.damage else walk.kept,
    )


def pixel_aspect(*said: Fraction | None) -> float:
    """Width / height of a pixel, by the first who says it and may be right; 1 where nobody does.

    A damaged header claims any number.
    """
    return next((float(ratio) for ratio in said if ratio and 1 / _FLATTEST <= ratio <= _FLATTEST), 1.0)


def video_stream(container: Any) -> Any:
    """The first moving picture of a container (cover art is none).

    Raises:
        NoVideoError, MediaError: there is none; there is no stream at all.
    """
    if not container.streams:
        raise MediaError("the file is damaged: neither video nor sound can be found in it")
    for stream in container.streams.video:
        if stream.codec_context is not None and not stream.disposition & _COVER:
            return stream
    raise NoVideoError("it holds no video, only sound or data")


_COVER = av.stream.Disposition.attached_pic


def packets_of(container: Any, streams: list[Any]) -> Iterator[Any]:
    """Every packet of some streams. PyAV fails at one of a stream that begins later in the file: those are left out."""
    while True:
        try:
            yield from container.demux(*streams)
        except IndexError:
            continue
        return


def _walk(container: Any, stream: Any, beat: Callable[[], None]) -> _Walk:
    walk, ends = _Walk(room=_KEPT_BYTES), dict[int, int]()
    referenced, index = reference_test(stream.codec_context), stream.index
    try:
        # MP4 counts its frames, so that a cut is seen without reading the sound
        for packet in packets_of(container, [stream] if _counts_frames(container) else list(container.streams)):
            beat()
            if packet.stream.index == index:
                walk.keep(packet)
            if packet.size == 0:
                continue
            at, ticks = packet.stream_index, ticks_of(packet)
            if ticks is not None:
                ends[at] = max(ends.get(at, 0), ticks + (packet.duration or 0))
            if at != index:
                continue
            walk.packets += 1
            walk.timed = walk.timed and packet.pts is not None
            if packet.is_corrupt:
                walk.damage = "a part of the file is damaged or cut off"
            if ticks is not None:
                walk.times.append(ticks)
                if not packet.is_discard:
                    key = packet.is_keyframe
                    walk.shown.append((ticks, key, key or referenced(packet)))
    except (av.FFmpegError, OSError) as error:
        walk.damage = video_reason(path_of(container), error, DAMAGED_PART)
    tick_s = {s.index: float(s.time_base) for s in container.streams if s.time_base}
    walk.end_s = max((end * tick_s.get(at, 0.0) for at, end in ends.items()), default=0.0)
    return walk


def _choose(walk: _Walk, start: int | None, tick_s: float, fps: float) -> tuple[Mode, list[int], bool]:
    """(mode, times of the frames to choose from, whether unreferenced frames may be left out)."""
    if start is None:
        return "all", [], False
    cell = {t: cell_of((t - start) * tick_s, fps) for t, _, _ in walk.shown}
    keys = [t for t, key, _ in walk.shown if key]
    references = [t for t, _, reference in walk.shown if reference]
    every = list(cell)
    skip = len(references) < len(every) and {cell[t] for t in references} == set(cell.values())
    forward = references if skip else every
    if len(keys) > 1:
        last = max(keys)
        before = {c for t, c in cell.items() if t <= last}
        covered = {cell[t] for t in keys}
        if before <= covered and len(keys) < len(every):
            rest = [] if max(cell.values()) in covered else [t for t in forward if t > last]
            return "keys", keys + rest, skip
    return ("references" if skip else "all"), forward, skip


def _nearest(ticks: Iterable[int], start: int, tick_s: float, fps: float) -> list[int]:
    best: dict[int, tuple[float, int]] = {}
    for t in ticks:
        time_s = (t - start) * tick_s
        cell = cell_of(time_s, fps)
        rank = (abs(time_s - cell / fps), t)
        best[cell] = min(best.get(cell, rank), rank)
    return [t for _, (_, t) in sorted(best.items())]


def _seekable(container: Any) -> bool:
    return bool(_SEEKABLE & set(container.format.name.split(",")))


def _counts_frames(container: Any) -> bool:
    """Whether `stream.frames` is the number of packets (AVI counts the gaps between frames, too)."""
    return "mov" in container.format.name


def _cut_off(container: Any, stream: Any, walk: _Walk) -> str:
    """Whether the header promises more than there is."""
    if _counts_frames(container) and stream.frames > walk.packets > 0:
        return f"the file is cut off: {walk.packets} of {stream.frames} frames are there"
    if _counts_frames(container):
        return ""
    promised = (container.duration or 0) / av.time_base + max(0, container.start_time or 0) / av.time_base
    if walk.timed and walk.packets and promised - walk.end_s > max(1.0, 0.05 * promised):
        return f"the file is cut off: it ends at {walk.end_s:.1f} s of {promised:.1f} s"
    return ""


def _created(container: Any) -> float | None:
    try:
        created = datetime.fromisoformat(container.metadata["creation_time"])
    except (KeyError, ValueError):
        return None
    if created.tzinfo is None:
        created = created.replace(tzinfo=UTC)
    return created.timestamp() if created.year > 1971 else None
