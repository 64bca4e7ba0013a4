"""Paths as sources have them."""

import errno
import os
import stat
from pathlib import Path

__all__ = ["absolute", "changed_ns", "gone", "is_no_file"]

_NOTHING = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}


def absolute(path: str | Path) -> Path:
    """The whole path, without `.` and `..`; links are kept as named."""
    return Path(os.path.normpath(os.path.abspath(path)))  # noqa: PTH100 - follows no link


def changed_ns(path: str) -> int | None:
    """When an inode last changed, its rights and owner included; None if that cannot be told."""
    try:
        return os.stat(path).st_ctime_ns  # noqa: PTH116 - watching asks often
    except (OSError, ValueError):
        return None


def gone(path: Path) -> bool:
    """Whether there is nothing at a path; false where the system does not let us look (rights, a dead mount)."""
    try:
        path.stat()
    except OSError as error:
        return error.errno in _NOTHING
    return False


def is_no_file(path: Path) -> bool:
    """Whether there is something that cannot be read again: a pipe, on which opening waits, a device, a folder."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False
