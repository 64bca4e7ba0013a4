"""Neighbours among the stored frames: features in memory, the catalog beside them."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cld_stream.errors import StoreNotFoundError, UsageError
from cld_stream.media.address import masked
from cld_stream.pipelines.sources import sources_under
from cld_stream.search.distinct import search_distinct
from cld_stream.search.flat import FlatIndex
from cld_stream.storage.finding import frames_near, frames_where
from cld_stream.storage.schema import Frames, SourceRow
from cld_stream.storage.snapshots import Snapshot
from cld_stream.storage.store import Store

__all__ = ["Filters", "Hit", "Searcher"]

_GONE = -1


@dataclass(frozen=True)
class Hit:
    """A neighbour.

    Attributes:
        rank: from 1.
        similarity: cosine of its feature and the query's, -1 to 1.
        source: path of the file or folder it comes from.
        time_s: position in the source [s].
        wall_utc: when it was taken [s since 1970, UTC], or None.
        frame: its id.
        label: of its source, or None.
        aspect: width / height as shown.
        gone: the store dropped its picture to make room; the snapshot remembers its features.
    """

    rank: int
    similarity: float
    source: str
    source_id: int
    time_s: float
    wall_utc: float | None
    frame: int
    label: str | None
    aspect: float
    gone: bool = False

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Filters:
    """Which frames may be answered.

    Attributes:
        distinct_s: one hit per source within this time [s]; 0 = all.
        under: only sources that are this file or lie in this folder.
        after, before: only frames known to be taken in [after, before) [s since 1970, UTC].
    """

    distinct_s: float = 0.0
    under: str | None = None
    after: float | None = None
    before: float | None = None

    def __post_init__(self) -> None:
        if not self.distinct_s >= 0:
            raise UsageError(f"--distinct-s must be a time >= 0 in seconds, got {self.distinct_s}")
        if self.after is not None and self.before is not None and self.after >= self.before:
            raise UsageError("--after is not earlier than --before: no frame can fit. Swap them?")


class Searcher:
    """Exact search in one space of one snapshot. Sees new segments and forgotten frames by itself.

    Args:
        store: the store.
        snapshot: whose features.
        space: `instance`, `group` or `backbone` (by cosine there too).
    """

    def __init__(self, store: Store, snapshot: Snapshot, space: str = "instance") -> None:
        if space not in snapshot.spaces:
            raise UsageError(f"--space {space}: snapshot {snapshot.id} has {', '.join(snapshot.spaces)}")
        self._store, self._snapshot, self._space = store, snapshot, space
        self._seen: list[str] = []
        self._load()

    @property
    def width(self) -> int:
        """d, of a vector that can be asked."""
        return self._snapshot.spaces[self._space]

    def __len__(self) -> int:
        return len(self._ids)

    def feature(self, frame: int) -> NDArray[np.float16] | None:
        """The stored feature of a frame, or None if it is not embedded."""
        self._refresh()
        row = self._rows(np.array([frame]))
        return self._snapshot_row(int(row[0])) if len(row) else None

    def find(self, vector: NDArray[Any], k: int, filters: Filters | None = None) -> list[Hit]:
        """The k nearest stored frames that pass the filters, nearest first.

        Args:
            vector: d numbers; only its direction counts.
            k: >= 1.

        Raises:
            UsageError: a vector of another width, or without a direction; nothing lies under `under`.
        """
        filters = filters or Filters()
        self._refresh()
        query = self._direction(vector)
        allowed = self._allowed(filters)
        while True:
            similarity, rows = self._search(query, k, filters, allowed)
            ids = self._ids[rows]
            found, dropped = self._store.catalog.known(ids)
            sources = {row.id: row for row in self._store.catalog.sources(id=np.unique(found.source).tolist())}
            unknown = ~np.isin(ids, found.ids[np.isin(found.source, list(sources))])  # forgotten by now
            if not unknown.any():
                return _hits(sources, found, similarity, dropped)
            allowed = np.ones(len(self), bool) if allowed is None else allowed
            allowed[rows[unknown]] = False

    def _search(
        self, query: NDArray[np.float32], k: int, filters: Filters, allowed: NDArray[np.bool_] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        if not filters.distinct_s:
            similarity, rows = self._index.search(query[None], k, allowed)
            return similarity[0][rows[0] >= 0], rows[0][rows[0] >= 0]

        def repeats(row: int) -> NDArray[np.int64]:
            me, _ = self._store.catalog.known(self._ids[[row]])
            if not len(me):
                return np.array([row])
            near = frames_near(self._store.catalog, int(me.source[0]), float(me.time_s[0]), filters.distinct_s)
            return self._rows(near)

        return search_distinct(self._index, query, k, repeats, allowed)

    def _allowed(self, filters: Filters) -> NDArray[np.bool_] | None:
        """One bool a row; None = all."""
        if filters.under is None and filters.after is None and filters.before is None:
            return None if len(self._order) == len(self) else self._ids != _GONE
        sources: Iterable[int] | None = None
        if filters.under is not None:
            sources = [row.id for row in sources_under(self._store.catalog, filters.under)]
            if not sources:
                raise UsageError(
                    f"--under {masked(filters.under)}: no source of {self._store.path} lies there. "
                    "Give a file or folder as it was ingested."
                )
        allowed = np.zeros(len(self), bool)
        ids = frames_where(self._store.catalog, sources=sources, after=filters.after, before=filters.before)
        allowed[self._rows(ids)] = True
        return allowed

    def _direction(self, vector: NDArray[Any]) -> NDArray[np.float32]:
        with np.errstate(over="ignore"):  # what is too large becomes infinite, which is told
            query = np.asarray(vector, np.float32).reshape(-1)
        if len(query) != self.width:
            raise UsageError(
                f"the vector has {len(query)} numbers; the space {self._space!r} of snapshot "
                f"{self._snapshot.id} has {self.width}. Is it of another snapshot or --space?"
            )
        length = float(np.linalg.norm(query.astype(np.float64)))
        if not np.isfinite(length) or length == 0:
            raise UsageError("the vector is zero or not finite, so it points nowhere. Give a feature.")
        return query / np.float32(length)

    def _rows(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of those of the frames that are embedded."""
        sorted_ids = self._ids[self._order]
        at = np.searchsorted(sorted_ids, ids)
        at = np.minimum(at, max(0, len(sorted_ids) - 1))
        return self._order[at[sorted_ids[at] == ids]] if len(sorted_ids) else np.zeros(0, np.int64)

    def _snapshot_row(self, row: int) -> NDArray[np.float16]:
        start = 0
        for segment in self._snapshot.segments:
            count = len(segment)
            if row < start + count:
                found: NDArray[np.float16] = segment.features_at(self._space, np.array([row - start]))[0]
                return found
            start += count
        raise StoreNotFoundError(f"{self._snapshot.path}: row {row} is gone; ask again.")

    def _refresh(self) -> None:
        if [s.path.name for s in self._snapshot.segments] != self._seen:
            self._load()

    def _load(self) -> None:
        self._seen = [s.path.name for s in self._snapshot.segments]
        ids, features = self._snapshot.features(self._space)
        if self._space == "backbone":
            features = _unit(features)
        self._ids = ids
        self._order = np.flatnonzero(ids != _GONE)
        self._index = FlatIndex(self.width)
        self._index.add(features)


def _hits(
    sources: Mapping[int, SourceRow], frames: Frames, similarity: NDArray[np.float32], dropped: NDArray[np.bool_]
) -> list[Hit]:
    """Hits of these frames, in this order."""
    hits = []
    for n, frame in enumerate(frames.ids.tolist()):
        source = sources[int(frames.source[n])]
        wall = float(frames.wall_utc[n])
        hits.append(
            Hit(
                rank=n + 1,
                similarity=round(float(similarity[n]), 6),
                source=source.path,
                source_id=source.id,
                time_s=float(frames.time_s[n]),
                wall_utc=None if np.isnan(wall) else wall,
                frame=frame,
                label=source.label,
                aspect=float(frames.aspect[n]),
                gone=bool(dropped[n]),
            )
        )
    return hits


def _unit(features: NDArray[np.float16]) -> NDArray[np.float16]:
    """Rows of length 1; rows of zeros stay."""
    out = np.empty_like(features)
    for start in range(0, len(features), 65_536):
        part = features[start : start + 65_536].astype(np.float32)
        length = np.linalg.norm(part, axis=1, keepdims=True)
        out[start : start + len(part)] = part / np.maximum(length, 1e-12)
    return out
