"""A worker process a core: jobs in, events out, in the order of the jobs, whatever a file does to its worker."""

import contextlib
import logging
import os
import signal
import socket
import struct
import subprocess  # nosec B404
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType

from cld_stream.config import IngestSettings
from cld_stream.errors import CldError, MediaError
from cld_stream.media.answers import receive
from cld_stream.media.job import Chunk, Done, Event, Job, Started
from cld_stream.media.sandbox import scrubbed
from cld_stream.media.watchdog import Watchdog

__all__ = ["DecodePool", "Worker"]

log = logging.getLogger("cld_stream.ingest")
_START_S = 60.0  # a new worker may take this long to load, on a busy machine
_DEAF_S = 5 * _START_S  # who takes nothing of its job for so long will not read it any more
_DEATH_S = 5.0  # an end may take this long to be seen
_PAUSE_S = 5.0  # at most, between two tries to start a worker
_ROUND_S = 3600.0  # a wait is no longer: the system's counts milliseconds, in 32 bits
_WINDOW_JOBS = 64  # jobs ahead of the one whose events are handed out
_WINDOW_BYTES = 64 * 2**20  # events of such jobs kept in memory


class Worker:
    """One confined process (see `sandbox`), in its own process group, and the socket to it.

    Args:
        settings: how much memory it may take, and how long it may be silent.
        camera: what it may reach besides files: nothing, "net", or the path of a device.
    """

    def __init__(self, settings: IngestSettings, camera: str = "") -> None:
        ours, theirs = socket.socketpair()
        memory_mb = str(settings.worker_memory_mb)
        module = ["-P", "-m", "cld_stream.media.worker"]  # without -P, modules in the current folder would come first
        command = [sys.executable, *module, str(theirs.fileno()), memory_mb, camera]
        self.process = subprocess.Popen(  # noqa: S603 - no shell  # nosec B603
            command,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        theirs.close()
        for way, most_s in ((socket.SO_RCVTIMEO, settings.heartbeat_s), (socket.SO_SNDTIMEO, _DEAF_S)):
            ours.setsockopt(socket.SOL_SOCKET, way, _timeval(most_s))  # else half a message would hold ingest up
        self.pipe = Connection(ours.detach())
        self.job: Job | None = None
        self.files = 0
        self.spent = False
        self.watchdog = Watchdog(self.pid, settings.heartbeat_s, settings.compute_s, _START_S)

    @property
    def pid(self) -> int:
        """Process id, which is also its process group."""
        return self.process.pid

    def take(self, job: Job) -> None:
        """Start a job. A worker that is already gone is noticed at the next receive."""
        self.job, self.files = job, self.files + 1
        self.watchdog.rest()
        with contextlib.suppress(OSError):
            self.pipe.send(job)

    def kill(self) -> None:
        """End it and whatever it started, at once. Who waits for a drive that does not answer dies when it does."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self.pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=_DEATH_S)

    def obituary(self) -> str:
        """Why it closed its socket."""
        source = "what it sends" if self.job and self.job.kind == "camera" else "the file"
        try:
            status = self.process.wait(timeout=_DEATH_S)
        except subprocess.TimeoutExpired:
            return "the decoder stopped answering"
        if status == -signal.SIGKILL:
            return "the decoder was killed (SIGKILL), as the system does when memory runs out"
        if not self.watchdog.spoken:
            return f"the decoder ended as it started (exit status {status})"
        if status < 0:
            return f"the decoder crashed on it ({signal.Signals(-status).name}); {source} is probably damaged"
        return f"the decoder gave up on it (exit status {status}); {source} is probably damaged"


def _timeval(seconds: float) -> bytes:
    """As the system has it; zero would be for ever."""
    whole, part = divmod(min(max(seconds, 0.001), 1e6), 1.0)
    return struct.pack("@ll", int(whole), int(part * 1e6))


def _environment() -> dict[str, str]:
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    one = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    return {**scrubbed(os.environ), **one, "PYTHONPATH": path}


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Pending:
    """A job whose events are not all handed out yet.

    Attributes:
        rest: what is left of the job.
        again: a worker that read it was killed.
    """

    def __init__(self, job: Job) -> None:
        self.job = self.rest = job
        self.again = self._started = False
        self.events: deque[Event] = deque()
        self.done = False
        self.bytes = 0

    def add(self, event: Event) -> None:
        if isinstance(event, Started):
            if self._started:
                return
            self._started = True
        if isinstance(event, Chunk):
            self.rest = replace(self.rest, cursor=event.cursor)
        self.events.append(event)
        self.bytes += _weight(event)
        self.done = isinstance(event, Done)

    def pop(self) -> Event:
        event = self.events.popleft()
        self.bytes -= _weight(event)
        return event


def _weight(event: Event) -> int:
    return sum(len(f.jpeg) + 200 for f in event.frames) if isinstance(event, Chunk) else 200


class DecodePool:
    """Persistent workers, started as jobs come; a context manager.

    A worker that hangs (see `Watchdog`), or that dies, costs the file it was reading: `Done` BROKEN with the reason,
    and a new worker. If it was killed (SIGKILL), which is rarely the file's doing, a new one goes on where it stopped,
    once. One is also replaced after `settings.worker_files` files. They stay for the next `run`, whatever thread that
    is in. One that cannot be started, or ends as it starts, says nothing of the file: it is tried again.

    Args:
        workers: processes; 0 = one a core that this process may use.
        settings: of ingest.
        patience_s: for so long the machine may be out of processes, memory or files.
    """

    def __init__(self, workers: int, settings: IngestSettings, patience_s: float = 10.0) -> None:
        self._settings, self._patience_s = settings, patience_s
        self._lacking_since: float | None = None  # none has started since
        self._count = workers or _cores()
        self._workers: list[Worker] = []
        self._midwife = ThreadPoolExecutor(1)  # workers die with the thread that started them

    def __enter__(self) -> "DecodePool":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        self._midwife.shutdown()

    @property
    def pids(self) -> list[int]:
        """Process ids of the living workers."""
        return [worker.pid for worker in self._workers]

    def close(self) -> None:
        """Kill every worker. Nothing is lost: what was not handed out was not committed."""
        while self._workers:
            self._workers.pop().kill()

    def run(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Event]]:
        """Read the jobs, several at a time, and hand out their events in the order of the jobs.

        Every job ends with exactly one `Done`. Jobs are drawn only as far as the window reaches. A run that is
        abandoned half-way kills the workers that were reading.

        Raises:
            CldError: no worker has started for `patience_s`.
        """
        source, queue = iter(jobs), deque[_Pending]()
        try:
            exhausted = False
            while True:
                exhausted = exhausted or not self._fill(source, queue)
                while queue and (queue[0].events or queue[0].done):
                    head = queue[0]
                    while head.events:
                        yield head.job, head.pop()
                    if head.done:
                        queue.popleft()
                        exhausted = exhausted or not self._fill(source, queue)
                if not queue:
                    return
                self._listen(queue)
        finally:
            for worker in [w for w in self._workers if w.job is not None]:
                self._workers.remove(worker)
                worker.kill()

    def _fill(self, source: Iterator[Job], queue: deque[_Pending]) -> bool:
        """Give every idle worker a job while the window allows; False when there are no more jobs."""
        while len(queue) < _WINDOW_JOBS:
            idle = next((w for w in self._workers if w.job is None), None)
            if idle is None and len(self._workers) >= self._count:
                return True
            job = next(source, None)
            if job is None:
                return False
            queue.append(_Pending(job))
            (self._hire() if idle is None else self._fresh(idle)).take(job)
        return True

    def _hire(self) -> Worker:
        self._workers.append(self._new())
        return self._workers[-1]

    def _new(self) -> Worker:
        while True:
            try:
                return self._midwife.submit(Worker, self._settings).result()
            except OSError as error:
                self._wait(f"no process can be started ({error.strerror})")

    def _wait(self, why: str) -> None:
        """Some time, before another worker is tried."""
        now = time.monotonic()
        if self._lacking_since is None:
            self._lacking_since = now
            log.warning("no file can be read now: %s; trying again", why)
        lacked_s = now - self._lacking_since
        if lacked_s > self._patience_s:
            raise CldError(f"no file can be read: {why}. `cld-stream doctor` tells what this machine lacks.")
        time.sleep(min(_PAUSE_S, max(0.1, lacked_s)))

    def _fresh(self, worker: Worker) -> Worker:
        """The worker itself, or a new one in its place when it has read or grown enough."""
        ended = worker.process.poll() is not None
        old = ended or worker.spent or worker.files >= self._settings.worker_files
        return self._replace(worker) if old else worker

    def _replace(self, worker: Worker) -> Worker:
        worker.kill()
        new = self._new()
        self._workers[self._workers.index(worker)] = new
        return new

    def _listen(self, queue: deque[_Pending]) -> None:
        """Wait for news, at most until the next deadline; take one message from each worker that has some."""
        full = sum(p.bytes for p in queue) > _WINDOW_BYTES
        head = queue[0].job.key
        busy = [w for w in self._workers if w.job and not (full and w.job.key != head)]
        next_look = min(w.watchdog.next_look for w in busy)
        ready = wait([w.pipe for w in busy], min(_ROUND_S, max(0.0, next_look - time.monotonic())))
        by_key = {p.job.key: p for p in queue}
        for worker in busy:
            job = worker.job
            assert job is not None
            if worker.pipe in ready:
                self._receive(worker, by_key[job.key])
            elif time.monotonic() > worker.watchdog.next_look and (why := worker.watchdog.verdict()):
                by_key[job.key].add(Done("BROKEN", why))
                self._replace(worker)

    def _receive(self, worker: Worker, pending: _Pending) -> None:
        try:
            event, spent = receive(worker.pipe)
        except MediaError as error:
            pending.add(Done("BROKEN", str(error)))
            self._replace(worker)
            return
        except (EOFError, OSError):
            self._bury(worker, pending)
            return
        if not worker.watchdog.spoken:
            self._lacking_since = None
        worker.watchdog.heard()
        if event is not None:
            pending.add(event)
            if isinstance(event, Done):
                worker.job, worker.spent = None, spent

    def _bury(self, worker: Worker, pending: _Pending) -> None:
        """A new worker in the place of one that died; it goes on with the file unless that may have been the cause."""
        why, status = worker.obituary(), worker.process.poll()
        unborn = status is not None and not worker.watchdog.spoken
        if unborn:
            self._wait(why)
        new = self._replace(worker)
        if unborn or (status == -signal.SIGKILL and not pending.again):
            pending.again = pending.again or not unborn
            new.take(pending.rest)
        else:
            pending.add(Done("BROKEN", why))
