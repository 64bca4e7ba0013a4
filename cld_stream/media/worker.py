"""A decoding worker: `python -m cld_stream.media.worker FD MEMORY_MB`, started by `DecodePool`.

It takes jobs from the socket FD and answers (key, event); (key, None) is a sign of life. It ignores Ctrl-C, dies with
its parent, and may take so much address space beyond its start and no more.
"""

import contextlib
import ctypes
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

from cld_stream.media.job import Done, Event, Job

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1
_BEAT_S = 0.5


def main(argv: list[str]) -> int:
    """Serve jobs until the other end closes the socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_parent()
    pipe = Connection(int(argv[1]))
    import cld_stream.media.video  # noqa: F401  (loaded before the memory limit is measured)

    _limit_memory(int(argv[2]))
    with contextlib.suppress(EOFError, OSError):
        pipe.send((-1, None))
        while (job := pipe.recv()) is not None:
            _serve(job, pipe)
    return 0


def _serve(job: Job, pipe: Connection) -> None:
    told = time.monotonic()

    def beat() -> None:
        nonlocal told
        if time.monotonic() - told > _BEAT_S:
            told = time.monotonic()
            pipe.send((job.key, None))

    try:
        for event in _read(job, beat):
            pipe.send((job.key, event))
            told = time.monotonic()
    except MemoryError:
        reason = "reading it takes more memory than ingest.worker_memory_mb allows"
        pipe.send((job.key, Done("BROKEN", reason)))
    except ConnectionError:
        raise
    except OSError as error:
        pipe.send((job.key, Done("BROKEN", f"cannot read the file: {error.strerror or error}")))
    except Exception as error:  # noqa: BLE001  (a file never stops the run; the reason names the bug)
        pipe.send((job.key, Done("BROKEN", f"{type(error).__name__}: {error}")))


def _read(job: Job, beat: Callable[[], None]) -> Iterator[Event]:
    if job.kind == "video":
        from cld_stream.media.video import read_video

        return read_video(job, beat)
    if job.kind == "photo":
        from cld_stream.media.photo import read_photo

        return read_photo(job)
    from cld_stream.media.sequence import read_sequence

    return read_sequence(job)


def _die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the parent ends (Linux); elsewhere the closed socket does it."""
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _limit_memory(megabytes: int) -> None:
    """Address space: what is taken now plus `megabytes`. A breach is a MemoryError, or ENOMEM in a decoder."""
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + megabytes * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
