"""Cameras into a store: one source each, for ever; frames go in as they come."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from cld_stream.config import IngestSettings
from cld_stream.errors import UsageError
from cld_stream.media.address import masked
from cld_stream.media.job import Chunk, Done, Job, Started
from cld_stream.media.link import CameraLink
from cld_stream.storage.schema import NewFrame, Outcome
from cld_stream.storage.store import Store
from cld_stream.storage.writer import Writer

__all__ = ["Cameras"]


@dataclass
class _Camera:
    address: str
    link: CameraLink
    source: int
    frames: int
    up: bool | None = None  # as it was said
    reason: str = ""  # why it was lost last
    reader: str = ""


class Cameras:
    """Every camera at once. A context manager: it hangs up, and notes what became of each.

    Args:
        urls: as on the command line; `$NAME` in them is taken from the environment.
        say: told when a camera goes down (why) or comes up (None); not again for every call in vain.

    Attributes:
        frames: taken so far.
    """

    def __init__(
        self,
        urls: Sequence[str],
        store: Store,
        writer: Writer,
        settings: IngestSettings,
        say: Callable[[str, str | None], None],
    ) -> None:
        self.frames = 0
        self._store, self._writer, self._settings, self._say = store, writer, settings, say
        self._cameras = [self._open(key, url) for key, url in enumerate(dict.fromkeys(urls))]
        if len({camera.address for camera in self._cameras}) < len(self._cameras):
            raise UsageError("two cameras have the same address (names and passwords do not count). Name each once.")

    def __enter__(self) -> "Cameras":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for camera in self._cameras:
            camera.link.close()
        if kind is None:
            self._conclude()

    def __len__(self) -> int:
        return len(self._cameras)

    @property
    def live(self) -> int:
        """Cameras from which frames are coming."""
        return sum(camera.link.live for camera in self._cameras)

    def poll(self) -> None:
        """Take what has come, without waiting; it is for the caller to commit."""
        for camera in self._cameras:
            for event in camera.link.poll():
                if isinstance(event, Chunk):
                    frames = [NewFrame(f.jpeg, f.time_s, f.wall_utc, f.shot, f.aspect) for f in event.frames]
                    self._writer.append(camera.source, frames, event.cursor)
                    camera.frames += len(frames)
                    self.frames += len(frames)
                    self._tell(camera, None)
                elif isinstance(event, Started):
                    camera.reader = event.reader
                elif isinstance(event, Done):
                    camera.reason = event.reason
                    self._tell(camera, event.reason)

    def _conclude(self) -> None:
        """A camera that gave frames is ADDED, one that never did is BROKEN."""
        for camera in self._cameras:
            outcome = Outcome.ADDED if camera.frames else Outcome.BROKEN
            self._writer.finish(camera.source, outcome, "" if camera.up else camera.reason, camera.reader)
        self._writer.commit()

    def _open(self, key: int, url: str) -> _Camera:
        address, header, chosen = masked(url), self._store.header, self._settings
        known = self._store.catalog.sources(kind="camera", path=address)
        if known:
            source, frames, cursor = known[-1].id, known[-1].frames, known[-1].cursor
            self._writer.update_source(source, outcome=None, reason="")
        else:
            print_ = f"camera-{blake2b(address.encode(errors='surrogateescape'), digest_size=16).hexdigest()}"
            source = self._writer.add_source(
                kind="camera", path=address, device=0, inode=0, size=0, mtime_ns=0, fingerprint=print_
            )
            frames, cursor = 0, None
        job = Job(
            key=key,
            kind="camera",
            path=Path(address),
            url=os.path.expandvars(url),
            cursor=cursor,
            size=header.size,
            fit=header.fit,
            quality=header.jpeg_quality,
            fps=chosen.fps,
            max_pixels=chosen.max_pixels,
            timeout_s=chosen.camera_timeout_s,
        )
        return _Camera(address, CameraLink(job, chosen), source, frames)

    def _tell(self, camera: _Camera, reason: str | None) -> None:
        if camera.up is not (reason is None):
            camera.up = reason is None
            self._say(camera.address, reason)
