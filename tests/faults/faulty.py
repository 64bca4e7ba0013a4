"""Real faults: a disk that is full, bytes that have changed, a process that stopped while it held the catalog."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["Disk", "flip", "holding_the_catalog", "small_disk"]

ROOT = Path(__file__).parents[2]


class Disk:
    """A file system of a few megabytes."""

    def __init__(self, path: Path) -> None:
        self.path, self._ballast = path, path / "ballast"

    def fill(self, left: int = 0) -> None:
        """Take all space but `left` bytes (rounded to pages)."""
        with self._ballast.open("ab", buffering=0) as f:
            try:
                while True:
                    f.write(bytes(4096))
            except OSError:
                f.truncate(max(0, f.tell() - left))

    def free(self) -> None:
        """Give it back."""
        self._ballast.unlink(missing_ok=True)


@contextmanager
def small_disk(path: Path, megabytes: int = 8) -> Iterator[Disk]:
    """A tmpfs at `path`; skips the test where it may not be mounted."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def flip(file: Path, at: float = 0.5, count: int = 1) -> None:
    """Change bytes of a file, from this part of its length on."""
    data = bytearray(file.read_bytes())
    start = int(at * (len(data) - count))
    for i in range(start, start + count):
        data[i] ^= 0x55
    inode = file.stat().st_ino
    with file.open("r+b") as f:
        f.write(data)
    assert file.stat().st_ino == inode


_HOLD = """
import sqlite3, sys
c = sqlite3.connect(sys.argv[1], isolation_level=None)
c.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def holding_the_catalog(store: Path) -> Iterator[None]:
    """Another process has begun to write, and was stopped (SIGSTOP) before it ended."""
    child = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(store / "catalog.db")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        child.send_signal(signal.SIGSTOP)
        yield
    finally:
        child.kill()
        child.communicate()
