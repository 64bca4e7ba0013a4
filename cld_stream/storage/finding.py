"""Which frames a search may answer with: asked of the catalog's indexes, never row by row."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, select, union_all
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from cld_stream.storage import schema
from cld_stream.storage.catalog import Catalog
from cld_stream.storage.database import among
from cld_stream.storage.schema import SourceRow

__all__ = ["frames_near", "frames_where", "sources_under"]

Row: TypeAlias = ReadOnlyColumnCollection[str, Any]


def frames_near(catalog: Catalog, source: int, time_s: float, gap_s: float) -> NDArray[np.int64]:
    """Ids of the frames of a source, live or dropped, within `gap_s` of a time in it."""
    return _ids(catalog, lambda row: (row.source == source, row.time_s.between(time_s - gap_s, time_s + gap_s)))


def frames_where(
    catalog: Catalog,
    *,
    sources: Iterable[int] | None = None,
    after: float | None = None,
    before: float | None = None,
) -> NDArray[np.int64]:
    """Ids of frames, live or dropped, ascending.

    Args:
        sources: only of these.
        after, before: only those known to be taken in [after, before) [s since 1970, UTC].
    """
    wanted = None if sources is None else list(sources)

    def conditions(row: Row) -> Iterator[ColumnElement[bool]]:
        if wanted is not None:
            yield among(row.source, wanted)
        if after is not None:
            yield row.wall_utc >= after
        if before is not None:
            yield row.wall_utc < before

    return _ids(catalog, conditions)


def sources_under(catalog: Catalog, *paths: str) -> list[SourceRow]:
    """Sources that are one of these files, or lie in one of these folders; paths as ingested."""
    roots = {path.rstrip("/") or "/" for path in paths}
    return [
        row
        for row in catalog.sources()
        if any(row.path == root or row.path.startswith(root.rstrip("/") + "/") for root in roots)
    ]


def _ids(catalog: Catalog, conditions: Callable[[Row], Iterable[ColumnElement[bool]]]) -> NDArray[np.int64]:
    tables = [schema.frames, schema.dropped] if catalog.keeps_dropped() else [schema.frames]
    queries = [select(table.c.id).where(*conditions(table.c)) for table in tables]
    with catalog.reading() as tx:
        return np.unique(np.fromiter(tx.execute(union_all(*queries)).scalars(), np.int64))
