"""Writes that a power cut cannot tear: a sibling temporary file, fsync, rename, fsync of the directory."""

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = [
    "atomic_write",
    "atomic_write_bytes",
    "atomic_write_json",
    "fsync_dir",
    "fsync_tree",
    "make_dir",
    "publish_dir",
    "remove_dir",
    "temporary",
]


def temporary(path: Path) -> Path:
    """Where `path` is written before it gets its name. Always the same, so that a retry overwrites it."""
    return path.with_name(f".{path.name}.tmp")


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
    with aside.open("wb") as f:
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


def make_dir(path: Path) -> None:
    """Make a directory and its parents; their names are durable afterwards."""
    if path.is_dir():
        return
    make_dir(path.parent)
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


def remove_dir(path: Path) -> None:
    """Remove a directory in one step for readers: first its name, then its content."""
    aside = temporary(path)
    shutil.rmtree(aside, ignore_errors=True)
    if path.exists():
        path.rename(aside)
        fsync_dir(path.parent)
        shutil.rmtree(aside)
