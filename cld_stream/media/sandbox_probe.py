"""What a worker is still able to do, found out by trying. `read_probe` runs in the worker itself."""

import ctypes
import json
import os
import resource
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from cld_stream.media.job import Done, Event, Job

__all__ = ["Abilities", "read_probe"]

_MANY = 4096
_IO_URING_SETUP = 425  # on every machine


@dataclass(frozen=True, kw_only=True)
class Abilities:
    """What succeeded.

    Attributes:
        network: connecting to a TCP port of this machine.
        datagrams: making a socket for UDP, which name servers are asked by.
        uring: making an io_uring, which has sockets of its own.
        files: writing a file.
        programs: starting another program.
        processes: starting another process.
        outside: reading the environment of the process that started it.
        dumps: leaving its memory in a file when it crashes.
        descriptors: files that could be opened at once, of 4096.
        environment: names of its environment variables.
    """

    network: bool
    datagrams: bool
    uring: bool
    files: bool
    programs: bool
    processes: bool
    outside: bool
    dumps: bool
    descriptors: int
    environment: list[str]


def read_probe(job: Job) -> Iterator[Event]:
    """Try everything; the answer is JSON of `Abilities` in the reason of `Done` ADDED.

    Args:
        job: `path` is a folder that its owner can write to; `url` a TCP port of this machine at which somebody listens.
    """
    found = Abilities(
        network=_connects(int(job.url)),
        datagrams=_makes_datagrams(),
        uring=_makes_uring(),
        files=_writes(job.path / "written-by-a-worker"),
        programs=_runs_program(),
        processes=_forks(),
        outside=_reads(Path(f"/proc/{os.getppid()}/environ")),
        dumps=resource.getrlimit(resource.RLIMIT_CORE)[1] != 0,
        descriptors=_opens(_MANY),
        environment=sorted(os.environ),
    )
    yield Done("ADDED", json.dumps(asdict(found)))


def _connects(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def _makes_datagrams() -> bool:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()
    except OSError:
        return False
    return True


def _makes_uring() -> bool:
    descriptor = ctypes.CDLL(None).syscall(_IO_URING_SETUP, 1, ctypes.create_string_buffer(120))
    if descriptor < 0:
        return False
    os.close(descriptor)
    return True


def _writes(path: Path) -> bool:
    try:
        path.write_bytes(b"x")
    except OSError:
        return False
    path.unlink()
    return True


def _runs_program() -> bool:
    try:
        pid = os.posix_spawn("/bin/true", ["true"], {})
    except OSError:
        return False
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _forks() -> bool:
    try:
        pid = os.fork()
    except OSError:
        return False
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return True


def _reads(path: Path) -> bool:
    try:
        path.read_bytes()
    except OSError:
        return False
    return True


def _opens(most: int) -> int:
    opened: list[int] = []
    try:
        while len(opened) < most:
            opened.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        pass
    for descriptor in opened:
        os.close(descriptor)
    return len(opened)
