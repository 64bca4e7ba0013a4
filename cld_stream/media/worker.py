"""A decoding worker: `python -m cld_stream.media.worker FD MEMORY_MB [CAMERA]`, started by `Worker`.

It takes jobs from the socket FD and answers (event, spent); an event None is a sign of life, `spent` asks for a
new worker. It ignores Ctrl-C, dies with its parent, and may take so much address space beyond its start and no more.
It is confined before its first job: see `sandbox`. With CAMERA ("net", or a device) it may reach that.
"""

import contextlib
import ctypes
import importlib
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

from cld_stream.media.address import is_device
from cld_stream.media.job import Done, Event, Job
from cld_stream.media.reasons import TOO_MUCH_MEMORY
from cld_stream.media.sandbox import confine

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1
_BEAT_S = 0.5
_MOST_REASON = 500  # characters


def main(argv: list[str]) -> int:
    """Serve jobs until the other end closes the socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_parent()
    pipe, memory = Connection(int(argv[1])), _Memory(int(argv[2]))
    memory.load("cld_stream.media.video")
    camera = argv[3] if len(argv) > 3 else ""
    confine(network=camera == "net", device=camera if is_device(camera) else "")
    with contextlib.suppress(EOFError, OSError):
        pipe.send((None, False))
        while (job := pipe.recv()) is not None:
            _serve(job, pipe, memory)
    return 0


def _serve(job: Job, pipe: Connection, memory: "_Memory") -> None:
    told = time.monotonic()

    def beat() -> None:
        nonlocal told
        if time.monotonic() - told > _BEAT_S:
            told = time.monotonic()
            pipe.send((None, False))

    def done(reason: str, spent: bool = False) -> None:
        pipe.send((Done("BROKEN", reason[:_MOST_REASON]), spent or memory.spent()))

    try:
        if job.reader == "decord":
            memory.load("decord")
        for event in _read(job, beat):
            pipe.send((event, isinstance(event, Done) and memory.spent()))
            told = time.monotonic()
    except MemoryError:
        done(TOO_MUCH_MEMORY, spent=True)
    except ConnectionError:
        raise
    except OSError as error:
        done(f"cannot read the file: {error.strerror or error}")
    except Exception as error:  # noqa: BLE001  (a file never stops the run; the reason names the bug)
        done(f"cld-stream failed on it ({type(error).__name__}: {error}); please report this")


def _read(job: Job, beat: Callable[[], None]) -> Iterator[Event]:
    if job.kind == "video":
        from cld_stream.media.video import read_video

        return read_video(job, beat)
    if job.kind in ("photo", "still"):
        from cld_stream.media.photo import read_photo

        return read_photo(job, beat)
    if job.kind == "camera":
        from cld_stream.media.camera import read_camera

        return read_camera(job, beat)
    if job.kind == "probe":
        from cld_stream.media.sandbox_probe import read_probe

        return read_probe(job)
    from cld_stream.media.sequence import read_sequence

    return read_sequence(job, beat)


def _die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the parent ends (Linux); elsewhere the closed socket does it."""
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


class _Memory:
    """Address space: what the code takes plus `megabytes`. A breach is a MemoryError, or ENOMEM in a decoder."""

    def __init__(self, megabytes: int) -> None:
        self._allowed, self._start, self._loaded = megabytes * 2**20, 0, set[str]()

    def load(self, module: str) -> None:
        """Import a module; what it takes does not count."""
        if module in self._loaded:
            return
        self._loaded.add(module)
        _set_limit(resource.RLIM_INFINITY)
        before = _address_space()
        importlib.import_module(module)
        self._start += _address_space() - (before if self._start else 0)
        _set_limit(self._start + self._allowed)

    def spent(self) -> bool:
        """Whether so much was taken and not given back that the next file deserves a new worker."""
        return _address_space() > self._start + self._allowed // 2


def _address_space() -> int:
    if sys.platform != "linux":
        return 0
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _set_limit(limit: int) -> None:
    """As far as who started ingest lets it: batch systems and services have a hard limit of their own."""
    if sys.platform != "linux":
        return
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    known = [one for one in (limit, hard) if one != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(known, default=resource.RLIM_INFINITY), hard))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
