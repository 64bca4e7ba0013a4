"""The line to a camera: a killable worker that is on the phone with it, and another call whenever the line is lost."""

import time
from dataclasses import replace

from cld_stream.config import IngestSettings
from cld_stream.errors import MediaError
from cld_stream.media.address import is_device
from cld_stream.media.answers import receive
from cld_stream.media.job import Chunk, Done, Event, Job
from cld_stream.media.pool import Worker

__all__ = ["CameraLink"]

_FIRST_PAUSE_S = 1.0
_AT_ONCE = 64  # events taken in one go


class CameraLink:
    """Keeps calling one camera. Its pauses double from 1 s to `settings.camera_retry_s`, until a frame comes again.

    Args:
        job: of kind `camera`; its cursor is kept up to date.
        settings: of ingest.

    Attributes:
        live: whether frames are coming.
    """

    def __init__(self, job: Job, settings: IngestSettings) -> None:
        self.job = job
        self.live = False
        patience_s = 2 * settings.camera_timeout_s + 5  # time to call, and to be answered
        self._settings = replace(settings, heartbeat_s=patience_s)
        self._worker: Worker | None = None
        self._failures, self._call_at = 0, time.monotonic()

    def poll(self) -> list[Event]:
        """What happened since the last time, without waiting: `Started`, `Chunk`s, and `Done` whenever it was lost."""
        worker = self._worker
        if worker is None or worker.job is None:
            return self._call() if time.monotonic() >= self._call_at else []
        events: list[Event] = []
        try:
            while len(events) < _AT_ONCE and self._worker is worker and worker.pipe.poll(0):
                event, worker.spent = receive(worker.pipe)
                worker.watchdog.heard()
                if event is not None:
                    events.append(self._take(event))
        except (EOFError, OSError, MediaError) as error:
            why = str(error) if isinstance(error, MediaError) else worker.obituary()
            events.append(self._take(Done("BROKEN", why)))
            self.close()
        busy = self._worker is worker and worker.job is not None
        if busy and time.monotonic() > worker.watchdog.next_look and (why := worker.watchdog.verdict()):
            events.append(self._take(Done("BROKEN", why)))
            self.close()
        return events

    def close(self) -> None:
        """Hang up. `poll` would call again."""
        if self._worker is not None:
            self._worker.kill()
            self._worker = None

    @property
    def pids(self) -> list[int]:
        """Process id of the worker, if there is one."""
        return [] if self._worker is None else [self._worker.pid]

    def _call(self) -> list[Event]:
        """Nothing, or why there was no calling: the machine may be out of processes, memory or files for a moment."""
        old = self._worker
        if old is not None and (old.spent or old.process.poll() is not None):
            self.close()
        try:
            worker = self._worker or Worker(self._settings, self.job.url if is_device(self.job.url) else "net")
        except OSError as error:
            return [self._take(Done("BROKEN", f"no process can be started to call it: {error.strerror}"))]
        self._worker = worker
        worker.take(self.job)
        return []

    def _take(self, event: Event) -> Event:
        if isinstance(event, Chunk):
            self.live, self._failures = True, 0
            self.job = replace(self.job, cursor=event.cursor)
        elif isinstance(event, Done):
            self.live = False
            pause = min(self._settings.camera_retry_s, _FIRST_PAUSE_S * 2 ** min(self._failures, 20))
            self._failures, self._call_at = self._failures + 1, time.monotonic() + pause
            if self._worker is not None:
                self._worker.job = None
        return event
