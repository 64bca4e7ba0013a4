"""Columns of numbers on disk: zarr v3 arrays, written a chunk at a time and read whole.

zarr-python reads them. We write and read the chunks ourselves, because a chunk must be durable once
it has its name, and because a missing chunk is damage here, where zarr would answer with zeros.
"""

import json
import struct
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import DTypeLike, NDArray

from cld_stream.errors import CorruptError
from cld_stream.storage.durable import atomic_write_bytes, make_dir

__all__ = ["CHUNK_ROWS", "VectorArray"]

CHUNK_ROWS = 4096
_TYPES = ("float16", "float32", "int32", "int64")


class VectorArray:
    """N rows of one number (`width` 0) or of `width` numbers.

    Args:
        path: the array's directory.

    Raises:
        CorruptError: it is not an array as this module writes them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            meta = json.loads((path / "zarr.json").read_bytes())
            self.shape = tuple(int(n) for n in meta["shape"])
            self.chunk_rows = int(meta["chunk_grid"]["configuration"]["chunk_shape"][0])
            if meta["data_type"] not in _TYPES:
                raise ValueError(meta["data_type"])
            self.dtype = np.dtype(meta["data_type"]).newbyteorder("<")
        except (OSError, ValueError, KeyError, TypeError, IndexError) as e:
            raise _damaged(path, f"no readable zarr.json ({e})") from None

    @classmethod
    def create(cls, path: Path, rows: int, width: int, dtype: DTypeLike) -> "VectorArray":
        """A new array without chunks. The caller makes it durable."""
        path.mkdir(parents=True, exist_ok=True)
        tail = [width] if width else []
        chunk = [max(1, min(rows, CHUNK_ROWS)), *tail]
        dtype = np.dtype(dtype)
        meta = {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [rows, *tail],
            "data_type": dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": 0 if dtype.kind == "i" else 0.0,
            "codecs": [
                {"name": "bytes", "configuration": {"endian": "little"}},
                {"name": "crc32c"},
            ],
            "attributes": {},
        }
        (path / "zarr.json").write_text(json.dumps(meta, indent=1))
        return cls(path)

    @classmethod
    def write(cls, path: Path, values: NDArray[Any]) -> "VectorArray":
        """A whole array at once. The caller makes it durable."""
        width = values.shape[1] if values.ndim == 2 else 0
        array = cls.create(path, len(values), width, values.dtype)
        for number in range(array.chunks):
            start = number * array.chunk_rows
            array.write_chunk(number, values[start : start + array.chunk_rows], durable=False)
        return array

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def chunks(self) -> int:
        """How many chunks a complete array has."""
        return -(-len(self) // self.chunk_rows)

    def chunks_written(self) -> int:
        """Chunks that are there, counted from the first without a gap."""
        return next((n for n in range(self.chunks) if not self._file(n).exists()), self.chunks)

    def write_chunk(self, number: int, values: NDArray[Any], *, durable: bool = True) -> None:
        """Write rows from `number` x `chunk_rows` on; durable when this returns, unless not asked to be."""
        block = np.zeros((self.chunk_rows, *self.shape[1:]), self.dtype)
        block[: len(values)] = values
        data = block.tobytes()
        data += struct.pack("<I", google_crc32c.value(data))
        if durable:
            make_dir(self._file(number).parent)
            atomic_write_bytes(self._file(number), data)
        else:
            self._file(number).parent.mkdir(parents=True, exist_ok=True)
            self._file(number).write_bytes(data)

    def read(self) -> NDArray[Any]:
        """All rows.

        Raises:
            CorruptError: a chunk is missing or its checksum is wrong.
        """
        out = np.empty(self.shape, self.dtype)
        for number in range(self.chunks):
            start = number * self.chunk_rows
            out[start : start + self.chunk_rows] = self.read_chunk(number)
        return out

    def read_rows(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """The given rows in their order; reads only the chunks they lie in."""
        out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        numbers = rows // self.chunk_rows
        for number in np.unique(numbers).tolist():
            here = numbers == number
            out[here] = self.read_chunk(number)[rows[here] - number * self.chunk_rows]
        return out

    def read_chunk(self, number: int) -> NDArray[Any]:
        """The rows of one chunk."""
        try:
            data = self._file(number).read_bytes()
        except FileNotFoundError:
            raise _damaged(self.path, f"chunk {number} is missing") from None
        except OSError as e:
            raise _damaged(self.path, f"chunk {number} cannot be read ({e.strerror})") from None
        size = self.chunk_rows * self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=int))
        body, end = data[:size], data[size:]
        if len(data) != size + 4 or struct.unpack("<I", end)[0] != google_crc32c.value(body):
            raise _damaged(self.path, f"chunk {number} has a wrong checksum")
        block = np.frombuffer(body, self.dtype).reshape(self.chunk_rows, *self.shape[1:])
        return block[: len(self) - number * self.chunk_rows]

    def overwrite(self, rows: NDArray[np.int64], value: float) -> None:
        """Set whole rows to one value; chunks that are not written yet are left alone."""
        numbers = rows // self.chunk_rows
        for number in np.unique(numbers).tolist():
            if self._file(number).exists():
                block = self.read_chunk(number).copy()
                block[rows[numbers == number] - number * self.chunk_rows] = value
                self.write_chunk(number, block)

    def _file(self, number: int) -> Path:
        return self.path.joinpath("c", str(number), *["0"] * (len(self.shape) - 1))


def _damaged(path: Path, what: str) -> CorruptError:
    return CorruptError(f"{path}: {what}. Publish again: cld-stream snapshot")
