"""Sealed frames: a sharded zarr v3 array, written and read by our own code (`SPEC.md` section 2).

zarr-python reads the same files; it is the oracle in our tests, and is not needed here.
"""

import errno
import json
import os
import struct
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from cld_stream.errors import CorruptError, StoreError
from cld_stream.storage.durable import atomic_write, atomic_write_json, fsync_dir, make_dir

__all__ = [
    "ArrayState",
    "LocalShards",
    "OpenShard",
    "ShardBytes",
    "ShardIndex",
    "ShardStorage",
    "elements",
    "empty_elements",
    "index_bytes",
    "read_array_state",
    "read_element",
    "read_index",
    "shard_key",
    "shard_parts",
    "write_array_state",
]

_EMPTY = (1 << 64) - 1
_HEAD = struct.Struct("<II")
_CRC = struct.Struct("<I")
_RESIDUE = 0x48674BC7  # CRC-32C of anything followed by its own CRC-32C
_OPEN_FILES = 64  # of a reader; a trainer has four, and a process may open 1,024 files at most as things are

ShardIndex = NDArray[np.uint64]  # n x 2: offset, length


class ShardBytes(Protocol):
    """Where shards can be read. Keys are relative paths such as `c/12`."""

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """`length` bytes from `start`; counted from the end where `start` is negative."""


class ShardStorage(ShardBytes, Protocol):
    """What shards need of the place that holds them."""

    def put(self, key: str, parts: Iterable[bytes]) -> None:
        """Write a whole object durably, replacing the old one in one step."""

    def delete(self, key: str) -> None:
        """Remove an object; no error when it is absent."""


class LocalShards:
    """`ShardStorage` in a folder. Keeps files open, so it goes on reading what it first opened.

    Args:
        root: the array's folder, `STORE/frames`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._files: OrderedDict[str, OpenShard] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, key: str, parts: Iterable[bytes]) -> None:
        """See `ShardStorage`."""
        make_dir((self.root / key).parent)
        atomic_write(self.root / key, parts)
        with self._lock:
            self._files.pop(key, None)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """See `ShardStorage`.

        Raises:
            CorruptError: the object is absent, cannot be read or is too short.
        """
        return self.opened(key).get_range(key, start, length)

    def opened(self, key: str) -> "OpenShard":
        """An object as it was when it was opened, whatever takes its place meanwhile.

        Raises:
            CorruptError: it is absent or cannot be read.
        """
        return self._files.get(key) or self._open(key)

    def delete(self, key: str) -> None:
        """See `ShardStorage`."""
        with self._lock:
            self._files.pop(key, None)
        (self.root / key).unlink(missing_ok=True)
        fsync_dir((self.root / key).parent)

    def _open(self, key: str) -> "OpenShard":
        with self._lock:
            if key not in self._files:
                try:
                    self._files[key] = OpenShard(self.root / key)
                except OSError as e:
                    if e.errno in (errno.EMFILE, errno.ENFILE):
                        raise StoreError(
                            f"{self.root / key}: too many files are open; raise the limit (ulimit -n)."
                        ) from None
                    raise _damaged(self.root / key, f"it cannot be opened: {e.strerror}") from None
                if len(self._files) > _OPEN_FILES:
                    self._files.popitem(last=False)
            return self._files[key]


class OpenShard:
    """One file; it closes when the last reader lets go of it.

    Attributes:
        stamp: tells it from the one that takes its place.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        status = os.fstat(self._fd)
        self._size, self.stamp = status.st_size, (status.st_ino, status.st_mtime_ns, status.st_size)
        weakref.finalize(self, os.close, self._fd)

    def get_range(self, key: str, start: int, length: int) -> bytes:  # noqa: ARG002
        """See `ShardBytes`; whatever the key, it is this file.

        Raises:
            CorruptError: it cannot be read or is too short.
        """
        at = start if start >= 0 else self._size + start
        try:
            data = os.pread(self._fd, length, at) if at >= 0 else b""
        except OSError as e:
            raise _damaged(self._path, f"reading failed: {e.strerror}") from None
        if len(data) != length:
            raise _damaged(self._path, f"it ends before byte {at + length}")
        return data


@dataclass(frozen=True, slots=True)
class ArrayState:
    """What `frames/zarr.json` says: ids below `sealed` are in shards of the given generation."""

    sealed: int
    generation: int


def shard_key(shard: int) -> str:
    """Key of a shard by zarr's default chunk key encoding."""
    return f"c/{shard}"


def shard_parts(jpegs: Iterable[bytes], shard_frames: int) -> Iterator[bytes]:
    """The bytes of a shard file.

    Args:
        jpegs: exactly `shard_frames` elements; `b""` for an empty one.
        shard_frames: n.
    """
    return _joined(map(_chunk, jpegs), shard_frames)


def _chunk(jpeg: bytes) -> bytes:
    if not jpeg:
        return b""
    body = _HEAD.pack(1, len(jpeg)) + jpeg
    return body + _CRC.pack(google_crc32c.value(body))


def _joined(chunks: Iterable[bytes], shard_frames: int) -> Iterator[bytes]:
    """Chunks and their index; `b""` for an empty element."""
    index = np.full((shard_frames, 2), _EMPTY, np.uint64)
    offset, count = 0, 0
    for count, chunk in enumerate(chunks, 1):
        if chunk:
            index[count - 1] = offset, len(chunk)
            offset += len(chunk)
            yield chunk
    assert count == shard_frames, f"{count} elements for a shard of {shard_frames}"
    table = index.astype("<u8").tobytes()
    yield table + _CRC.pack(google_crc32c.value(table))


def index_bytes(shard_frames: int) -> int:
    """Size of a shard's index with its checksum."""
    return 16 * shard_frames + 4


def read_index(files: ShardBytes, shard: int, shard_frames: int) -> ShardIndex:
    """The index of a shard, n x 2 u64.

    Raises:
        CorruptError: its checksum does not fit.
    """
    size = index_bytes(shard_frames)
    data = files.get_range(shard_key(shard), -size, size)
    if google_crc32c.value(data) != _RESIDUE:
        raise CorruptError(f"shard frames/{shard_key(shard)}: the index fails its checksum. {_REMEDY}")
    return np.frombuffer(data, "<u8", 2 * shard_frames).reshape(-1, 2).astype(np.uint64)


def read_element(files: ShardBytes, shard: int, index: ShardIndex, at: int) -> bytes:
    """One JPEG, its checksum verified; `b""` for an empty element.

    Raises:
        CorruptError: the bytes are not what was written.
    """
    offset, length = index[at].tolist()
    if offset == _EMPTY:
        return b""
    chunk = files.get_range(shard_key(shard), offset, length)
    if google_crc32c.value(chunk) != _RESIDUE:
        raise CorruptError(
            f"shard frames/{shard_key(shard)}: element {at} (frame {shard * len(index) + at}) "
            f"fails its checksum. {_REMEDY}"
        )
    return chunk[8:-4]


def elements(files: ShardBytes, shard: int, shard_frames: int) -> Iterator[bytes]:
    """Every element of a shard in order, verified."""
    index = read_index(files, shard, shard_frames)
    for at in range(shard_frames):
        yield read_element(files, shard, index, at)


def empty_elements(root: Path, shard_frames: int, ids: NDArray[np.int64]) -> None:
    """Rewrite the shards of the given sealed frames without them.

    Damage is no obstacle: what goes is not read, what stays is copied as it is, and of a shard whose index is damaged
    nothing can be read, so nothing stays.
    """
    files = LocalShards(root)
    for shard in np.unique(ids // shard_frames).tolist():
        drop = set((ids[ids // shard_frames == shard] % shard_frames).tolist())
        files.put(shard_key(shard), _joined(_kept(files, shard, shard_frames, drop), shard_frames))


def _kept(files: LocalShards, shard: int, shard_frames: int, drop: set[int]) -> Iterator[bytes]:
    """The chunks that stay, with the damage that they have."""
    try:
        index = read_index(files, shard, shard_frames)
    except CorruptError:
        index = np.full((shard_frames, 2), _EMPTY, np.uint64)
    for at, (offset, length) in enumerate(index.tolist()):
        chunk = b""
        if at not in drop and offset != _EMPTY:
            with suppress(CorruptError):  # it lies beyond the end of a file that was cut off
                chunk = files.get_range(shard_key(shard), offset, length)
        yield chunk


def write_array_state(root: Path, now: ArrayState, shard_frames: int) -> None:
    """Write `frames/zarr.json`, durably."""
    crc: dict[str, Any] = {"name": "crc32c"}
    sharding = {
        "chunk_shape": [1],
        "codecs": [{"name": "vlen-bytes", "configuration": {}}, crc],
        "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, crc],
        "index_location": "end",
    }
    grid = {"name": "regular", "configuration": {"chunk_shape": [shard_frames]}}
    atomic_write_json(
        root / "zarr.json",
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [now.sealed],
            "data_type": "variable_length_bytes",
            "chunk_grid": grid,
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": "",
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            "attributes": {"cld_stream": {"generation": now.generation}},
            "storage_transformers": [],
        },
    )


def read_array_state(root: Path) -> ArrayState:
    """Read `frames/zarr.json`.

    Raises:
        CorruptError: it is absent or not what we write.
    """
    try:
        meta = json.loads((root / "zarr.json").read_bytes())
        return ArrayState(int(meta["shape"][0]), int(meta["attributes"]["cld_stream"]["generation"]))
    except (OSError, ValueError, LookupError, TypeError) as e:
        raise CorruptError(
            f"{root / 'zarr.json'}: {type(e).__name__}: {e}. It is read around; the next `ingest` makes it anew."
        ) from None


_REMEDY = (
    "Its disk may be failing: restore the file from a backup, or `forget` its sources (`cld-stream doctor` names them) "
    "and ingest them again."
)


def _damaged(path: Path, why: str) -> CorruptError:
    return CorruptError(f"{path}: {why}. {_REMEDY}")
