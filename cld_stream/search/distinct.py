"""One hit a moment: repeats of the same scene must not fill the list."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cld_stream.search.flat import FlatIndex, Vectors

__all__ = ["search_distinct"]


def search_distinct(
    index: FlatIndex,
    query: Vectors,
    k: int,
    repeats: Callable[[int], NDArray[np.int64]],
    allowed: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The best hits of which none is a repeat of a better one.

    The list is what a walk through all rows from the best on would keep. It searches, keeps what is
    new, shuts out the repeats of all that was kept and searches again, so that each pass costs the
    same however many repeats there are.

    Args:
        query: d.
        k: most hits wanted.
        repeats: of a row, all rows that say the same, for example those of its source within some seconds.
        allowed: one bool a row; None = all.

    Returns:
        (similarity, row), best first, at most k of each.
    """
    open_rows = np.ones(len(index), bool) if allowed is None else allowed.copy()
    kept: list[int] = []
    similarities: list[np.float32] = []
    while len(kept) < k:
        similarity, rows = index.search(query[None], k, open_rows)
        rows = rows[0][rows[0] >= 0]
        if not len(rows):
            break
        for value, row in zip(similarity[0], rows.tolist(), strict=False):
            if len(kept) < k and open_rows[row]:
                kept.append(row)
                similarities.append(value)
                open_rows[repeats(row)] = False
                open_rows[row] = False
    return np.array(similarities, np.float32), np.array(kept, np.int64)
