"""The catalog rows of a sealed shard, kept beside it (`SPEC.md` section 4)."""

import io
import json
import zipfile
import zlib
from collections.abc import Set
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select

from cld_stream.errors import CorruptError, FormatTooNewError
from cld_stream.storage import schema
from cld_stream.storage.catalog import Catalog, columns, source_row
from cld_stream.storage.durable import atomic_write_bytes, make_dir
from cld_stream.storage.header import Header
from cld_stream.storage.schema import Frames, Outcome, SourceRow

__all__ = [
    "Sidecar",
    "catalog_sidecar",
    "mended_sidecar",
    "read_sidecar",
    "sidecar_path",
    "without_frames",
    "without_sources",
    "write_sidecar",
]

# What NumPy and zipfile raise on damaged bytes; RuntimeError: "encrypted", or an unknown compression.
_DAMAGE = (
    OSError,
    ValueError,
    LookupError,
    EOFError,
    TypeError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)
_FORMAT, _VERSION = "cld-stream.sidecar", 1


@dataclass(frozen=True)
class Sidecar:
    """What a sidecar holds.

    Attributes:
        store: uuid of the store.
        shard: number of the shard.
        next_id, next_source: ids handed out when the shard was sealed.
        sources: those with a frame in the shard, and those changed since the shard before.
        frames: live frames of the shard, in id order.
    """

    store: str
    shard: int
    next_id: int
    next_source: int
    sources: tuple[SourceRow, ...]
    frames: Frames


def sidecar_path(store: Path, shard: int) -> Path:
    """Where the sidecar of a shard is."""
    return store / "sidecars" / f"{shard}.npz"


def write_sidecar(path: Path, sidecar: Sidecar) -> None:
    """Write it, durably."""
    header = {
        "format": _FORMAT,
        "version": _VERSION,
        "store": sidecar.store,
        "shard": sidecar.shard,
        "next_id": sidecar.next_id,
        "next_source": sidecar.next_source,
        "sources": [asdict(source) for source in sidecar.sources],
    }
    columns = {name: getattr(sidecar.frames, name) for name in Frames.__slots__}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, header=np.frombuffer(json.dumps(header).encode(), np.uint8), **columns)
    make_dir(path.parent)
    atomic_write_bytes(path, buffer.getvalue())


def read_sidecar(path: Path) -> Sidecar:
    """Read it back.

    Raises:
        CorruptError: it is absent or fails its checksum.
        FormatTooNewError: a newer release wrote it.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            header = json.loads(file["header"].tobytes())
            frames = Frames(**{name: file[name] for name in Frames.__slots__})
    except _DAMAGE as e:
        raise CorruptError(
            f"{path}: this sidecar cannot be read ({e}). Restore it from a backup; "
            "the store works without it, but its catalog could not be rebuilt."
        ) from None
    if header["version"] > _VERSION:
        raise FormatTooNewError(
            f"{path} has format {header['version']}; this cld-stream reads up to {_VERSION}. "
            "Upgrade cld-stream the way it was installed."
        )
    sources = tuple(
        SourceRow(**{**row, "outcome": row["outcome"] and Outcome(row["outcome"])}) for row in header["sources"]
    )
    return Sidecar(
        header["store"],
        header["shard"],
        header["next_id"],
        header["next_source"],
        sources,
        frames,
    )


def catalog_sidecar(catalog: Catalog, header: Header, shard: int) -> Sidecar:
    """Rows of the shard's live frames; their sources, and every source that changed since the shard before."""
    size = header.shard_frames
    row, source = schema.frames.c, schema.sources.c
    mine = (row.id >= shard * size) & (row.id < (shard + 1) * size)
    wanted = source.id.in_(select(row.source).where(mine)) | (source.since_shard >= shard)
    with catalog.reading() as tx:
        rows = tx.execute(select(schema.frames).where(mine).order_by(row.id)).all()
        known = tx.execute(select(*schema.SOURCE_COLUMNS).where(wanted).order_by(source.id))
        sources = tuple(source_row(s) for s in known.mappings())
        now = tx.execute(select(schema.state)).mappings().one()
    return Sidecar(header.uuid, shard, now["next_id"], now["next_source"], sources, columns(rows))


def mended_sidecar(path: Path, catalog: Catalog, header: Header, shard: int) -> Sidecar:
    """The sidecar of a shard or, where it is damaged, what the catalog says would stand in it."""
    try:
        return read_sidecar(path)
    except CorruptError:
        return catalog_sidecar(catalog, header, shard)


def without_frames(sidecar: Sidecar, ids: NDArray[np.int64]) -> Sidecar:
    """The same without some frames."""
    keep = ~np.isin(sidecar.frames.ids, ids)
    return replace(sidecar, frames=Frames(*(getattr(sidecar.frames, name)[keep] for name in Frames.__slots__)))


def without_sources(sidecar: Sidecar, gone: Set[int]) -> Sidecar:
    """The same without some sources and their frames."""
    keep = ~np.isin(sidecar.frames.source, list(gone))
    return replace(
        sidecar,
        sources=tuple(source for source in sidecar.sources if source.id not in gone),
        frames=Frames(*(getattr(sidecar.frames, name)[keep] for name in Frames.__slots__)),
    )
