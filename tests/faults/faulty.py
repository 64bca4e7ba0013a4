"""Real faults: a full disk, changed bytes, a process that stopped while it held the catalog, a clock that jumps."""

import ctypes
import importlib.util
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["Disk", "bound_by_modes", "flip", "holding_the_catalog", "shifted_clock", "small_disk"]

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


def shifted_clock(shift: Path) -> dict[str, str]:
    """Environment of a process whose wall clock is off by what a file says (`-730d`), which may change meanwhile.

    Skips the test where libfaketime is not there. Time stamps of files and the monotonic clock stay true.
    """
    spec = importlib.util.find_spec("libfaketime")
    if spec is None or spec.origin is None or (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("needs libfaketime, which is in the extra `dev` for Linux on x86-64: pip install libfaketime")
    library = Path(spec.origin).parent / "vendor" / "libfaketime" / "src" / "libfaketime.so.1"
    fake = {"LD_PRELOAD": library, "FAKETIME_TIMESTAMP_FILE": shift, "FAKETIME_NO_CACHE": 1, "NO_FAKE_STAT": 1}
    return {**os.environ, **{k: str(v) for k, v in fake.items()}, "DONT_FAKE_MONOTONIC": "1"}


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


@contextmanager
def bound_by_modes() -> Iterator[None]:
    """Root too may read and write what the modes of files allow, and no more; what is started here is not bound."""
    if os.geteuid() != 0:
        yield
        return
    libc, everywhere = ctypes.CDLL(None, use_errno=True), (1 << 1) | (1 << 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable
    assert libc.capget(header, sets) == 0
    before = sets[0]
    sets[0] &= ~everywhere
    assert libc.capset(header, sets) == 0
    try:
        yield
    finally:
        sets[0] = before
        assert libc.capset(header, sets) == 0
