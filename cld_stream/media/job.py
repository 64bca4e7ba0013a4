"""What a decoding worker is asked for, and what it answers."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from cld_stream.media.frames import Fit, MediaFrame

__all__ = ["Chunk", "Done", "Event", "Job", "Member", "Outcome", "Started"]

Outcome = Literal["ADDED", "PARTIAL", "SKIPPED", "BROKEN"]


@dataclass(frozen=True, slots=True)
class Member:
    """One picture of a sequence; its time in the sequence [s] and when it was taken [UTC]."""

    path: Path
    time_s: float | None = None
    wall_utc: float | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """One source to read.

    Attributes:
        key: the caller's own number for it.
        kind: what to read; `still` is the first page of a picture alone, `probe` reads nothing and tells what the
            worker may do (see `sandbox_probe`).
        path: the file; of a sequence, its folder or table.
        members: the pictures of a sequence, in order.
        cursor: where an earlier run stopped (the cursor of its last `Chunk`); None = the start.
        start_utc: when the recording began [s since 1970], if the caller knows.
        size, fit, quality: the store's frame.
        fps: frames kept per second of video.
        max_pixels: larger pictures are refused before decoding.
        growing: more is being written to the file: what the next read may know better is left to it.
        url: of a camera, with whatever opens it; not to be shown.
        timeout_s: a camera may be silent for so long.
    """

    key: int
    kind: Literal["video", "photo", "still", "sequence", "camera", "probe"]
    path: Path
    members: tuple[Member, ...] = ()
    cursor: str | None = None
    start_utc: float | None = None
    size: int = 160
    fit: Fit = "stretch"
    quality: int = 90
    fps: float = 2.0
    reader: Literal["auto", "decord", "pyav"] = "auto"
    max_pixels: int = 250_000_000
    growing: bool = False
    url: str = field(default="", repr=False)
    timeout_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Started:
    """The source could be opened; `note` says how it is read."""

    reader: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some frames, in order, and the cursor that continues right after them."""

    frames: list[MediaFrame]
    cursor: str


@dataclass(frozen=True, slots=True)
class Done:
    """The last event of every job."""

    outcome: Outcome
    reason: str = ""
    reader: str = ""


Event: TypeAlias = Started | Chunk | Done
