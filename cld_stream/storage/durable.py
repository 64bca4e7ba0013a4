"""Writes that a power cut cannot tear: a sibling temporary file, fsync, rename, fsync of the directory."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cld_stream.errors import StoreFullError

__all__ = [
    "FULL",
    "atomic_write",
    "atomic_write_bytes",
    "atomic_write_json",
    "fsync_dir",
    "fsync_tree",
    "json_checksum",
    "make_dir",
    "publish_dir",
    "remove_dir",
    "stays",
    "temporary",
    "whole",
]

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Errors of a write for which there is no room."""


def temporary(path: Path) -> Path:
    """Where `path` is written before it gets its name. Always the same, so that a retry overwrites it."""
    return path.with_name(f".{path.name}.tmp")


def stays(path: Path) -> bool:
    """Whether a link, a pipe or a device is there: it is written through, and no file takes its name."""
    return path.is_symlink() or (path.exists() and not path.is_file())


@contextmanager
def whole(aside: Path) -> Iterator[None]:
    """Write a file or directory aside, or nothing of it: where that fails, what it took of the disk is given back.

    Raises:
        StoreFullError: there is no room for it.
    """
    try:
        yield
    except BaseException as error:
        with suppress(OSError):
            shutil.rmtree(aside) if aside.is_dir() else aside.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in FULL:
            raise StoreFullError(
                f"{aside.parent}: the disk is full; nothing that was there is harmed. Free some space and run again."
            ) from None
        raise


def fsync_dir(path: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def atomic_write(path: Path, parts: Iterable[bytes]) -> None:
    """Write a file so that every reader, also after a crash, sees the old content or all of the new."""
    aside = temporary(path)
    with whole(aside):
        aside.unlink(missing_ok=True)
        with aside.open("xb") as f:  # never through a link that somebody put there
            for part in parts:
                f.write(part)
            f.flush()
            os.fsync(f.fileno())
        aside.replace(path)
    fsync_dir(path.parent)


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """`atomic_write` of one piece."""
    atomic_write(path, [data])


def atomic_write_json(path: Path, value: Any) -> None:
    """`atomic_write` of indented UTF-8 JSON."""
    atomic_write_bytes(path, (json.dumps(value, indent=1) + "\n").encode())


def json_checksum(value: Mapping[str, Any]) -> str:
    """SHA-256 of a mapping as JSON with sorted keys, however it is laid out in its file."""
    return hashlib.sha256(json.dumps(dict(value), sort_keys=True).encode()).hexdigest()


def make_dir(path: Path) -> None:
    """Make a directory and its parents; their names are durable afterwards."""
    if path.is_dir():
        return
    make_dir(path.parent)
    with whole(temporary(path)):
        path.mkdir(exist_ok=True)
    fsync_dir(path.parent)


def fsync_tree(path: Path) -> None:
    """Make every file and directory below `path` durable, itself included."""
    for folder, _, names in os.walk(path):
        for name in names:
            fd = os.open(Path(folder, name), os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        fsync_dir(Path(folder))


def publish_dir(aside: Path, path: Path) -> None:
    """Give a directory that was written aside its name, durably. `path` must not exist."""
    fsync_tree(aside)
    aside.rename(path)
    fsync_dir(path.parent)


def remove_dir(path: Path, first: str = "") -> None:
    """Remove a directory in one step for readers: first its name, then its content.

    Args:
        first: the file in it by which what a kill leaves would be taken for something whole.
    """
    aside = temporary(path)
    shutil.rmtree(aside, ignore_errors=True)
    with suppress(FileNotFoundError):  # someone else was faster
        path.rename(aside)
        fsync_dir(path.parent)
        if first:
            (aside / first).unlink(missing_ok=True)
            fsync_dir(aside)
        shutil.rmtree(aside)
