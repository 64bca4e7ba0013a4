"""One process at a time: a kernel lock on a file. What stands in the file is for the message only."""

import errno
import fcntl
import json
import os
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cld_stream.errors import LockHeldError, StoreError

__all__ = ["FileLock", "lock_holder", "refuse_links"]

_CANNOT_LOCK = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
_TRIES, _PAUSE_S = 5, 0.02  # `lock_holder` may have it for an instant


class FileLock:
    """An exclusive `flock` that ends with the process that holds it, however that ends.

    Args:
        path: the lock file; made when absent, never deleted.
        role: what the holder does, for the message: `writer`, `trainer`.
        command: how the holder was started; the process' own argv when empty.
        wait: until the other one is done, however long that takes.
    """

    def __init__(self, path: Path, role: str, command: str = "", *, wait: bool = False) -> None:
        self.path, self._wait = path, wait
        self.role = role
        self.command = command or " ".join(sys.argv)
        self._fd: int | None = None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            LockHeldError: another process (or another lock object of this one) has it, and this one does not wait.
            StoreError: the file system cannot lock, the store cannot be written, or a link in it leads elsewhere.
        """
        refuse_links(self.path.parent)
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except OSError as e:
            raise StoreError(
                f"{self.path}: cannot open the {self.role} lock: {e.strerror}. "
                "Adding or training needs a store that can be written."
            ) from None
        try:
            _flock(fd, wait=self._wait)
        except BlockingIOError:
            holder = _in_words(_content(fd))
            os.close(fd)
            raise LockHeldError(
                f"{self.path.parent}: another {self.role} is at work: {holder}. Wait for it, or stop it."
            ) from None
        except OSError as e:
            os.close(fd)
            if e.errno not in _CANNOT_LOCK:
                raise
            raise StoreError(
                f"{self.path.parent}: this file system cannot lock files ({e.strerror}), so two "
                "writers could destroy the store. Put it on a local disk."
            ) from None
        self._fd = fd
        who = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "argv": self.command,
            "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        with suppress(OSError):  # the disk is full: the lock holds without a word about its holder
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps(who).encode(), 0)

    def release(self) -> None:
        """Give the lock back. Does nothing when it is not held."""
        if self._fd is not None:
            with suppress(OSError):
                os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.release()


def lock_holder(path: Path) -> dict[str, Any] | None:
    """Who holds a lock now: `pid`, `host`, `argv`, `since` (nothing while it has just started); None = nobody.

    Asks the kernel with a shared lock for an instant, so it needs no right to write.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _content(fd)
    except OSError:
        return None
    finally:
        os.close(fd)
    return None


def refuse_links(folder: Path) -> None:
    """What is written to a store stays in it: nobody writes to one that has symbolic links inside.

    Taking a lock asks this; who writes without one asks it first.

    Raises:
        StoreError: there is one.
    """
    pending = [str(folder)]
    while pending:
        with suppress(OSError), os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_symlink():
                    raise StoreError(
                        f"{entry.path}: this is a link, and what is written to a store must stay in it. "
                        "Put there what it leads to, or make the whole store a link."
                    )
                if entry.is_dir():
                    pending.append(entry.path)


def _flock(fd: int, *, wait: bool) -> None:
    if wait:
        return fcntl.flock(fd, fcntl.LOCK_EX)
    for left in reversed(range(_TRIES)):
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not left:
                raise
            time.sleep(_PAUSE_S)
    return None


def _content(fd: int) -> dict[str, Any]:
    try:
        who = json.loads(os.pread(fd, 65536, 0))
        return {name: who[name] for name in ("pid", "host", "argv", "since")}
    except (ValueError, KeyError, TypeError):
        return {}


def _in_words(who: dict[str, Any]) -> str:
    return "pid {pid} on {host} since {since}: {argv}".format(**who) if who else "it has just started"
