"""Which frames a search may answer with: asked of the catalog's indexes, never row by row."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Select, select

from cld_stream.storage import schema
from cld_stream.storage.catalog import Catalog
from cld_stream.storage.schema import SourceRow

__all__ = ["frames_near", "frames_where", "sources_under"]


def frames_near(catalog: Catalog, source: int, time_s: float, gap_s: float) -> NDArray[np.int64]:
    """Ids of the live frames of a source within `gap_s` of a time in it."""
    frame = schema.frames.c
    query = select(frame.id).where(frame.source == source, frame.time_s.between(time_s - gap_s, time_s + gap_s))
    return _ids(catalog, query)


def frames_where(
    catalog: Catalog,
    *,
    sources: Iterable[int] | None = None,
    after: float | None = None,
    before: float | None = None,
) -> NDArray[np.int64]:
    """Ids of live frames, ascending.

    Args:
        sources: only of these.
        after, before: only those known to be taken in [after, before) [s since 1970, UTC].
    """
    frame = schema.frames.c
    query = select(frame.id)
    if sources is not None:
        query = query.where(frame.source.in_(list(sources)))
    if after is not None:
        query = query.where(frame.wall_utc >= after)
    if before is not None:
        query = query.where(frame.wall_utc < before)
    return np.sort(_ids(catalog, query))


def sources_under(catalog: Catalog, path: str) -> list[SourceRow]:
    """Sources that are this file, or lie in this folder; the path as ingested, or relative to here."""
    roots = {path.rstrip("/") or "/", str(Path(path).absolute())}
    return [
        row
        for row in catalog.sources()
        if any(row.path == root or row.path.startswith(root.rstrip("/") + "/") for root in roots)
    ]


def _ids(catalog: Catalog, query: Select[tuple[int]]) -> NDArray[np.int64]:
    with catalog.reading() as tx:
        return np.fromiter(tx.execute(query).scalars(), np.int64)
