"""Exact nearest neighbours by inner product, over every vector.

A million float16 vectors of width 128 are one pass over 256 MB, about 10 ms on one core: below that
size an approximate index would only add errors and a file to keep.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["FlatIndex", "Vectors"]

Vectors: TypeAlias = NDArray[np.float16] | NDArray[np.float32]


class FlatIndex:
    """Vectors in memory, in the order they were added; row numbers start at 0.

    Float16 vectors are held as float16 (half the memory, half the time); products are summed in
    float32 either way. With unit vectors the inner product is the cosine similarity.

    Args:
        width: d, components of a vector.
        dtype: how the vectors are held.
    """

    def __init__(self, width: int, dtype: type[np.float16] | type[np.float32] = np.float16) -> None:
        import faiss

        if width < 1:
            raise ValueError(f"an index needs vectors of width >= 1, got {width}")
        self.width, self.dtype = width, np.dtype(dtype)
        self._faiss: Any = faiss
        self._index: Any = (
            faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
            if self.dtype == np.float16
            else faiss.IndexFlatIP(width)
        )

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def add(self, vectors: Vectors) -> None:
        """Append rows.

        Args:
            vectors: N x d; taken over bit for bit where the dtype is that of the index.

        Raises:
            ValueError: not two-dimensional, or another width.
        """
        rows = np.ascontiguousarray(self._matrix(vectors), dtype=self.dtype)
        if len(rows):
            self._index.add_sa_codes(rows.view(np.uint8).reshape(len(rows), -1))

    def search(
        self,
        queries: Vectors,
        k: int,
        allowed: NDArray[np.bool_] | None = None,
        threads: int = 1,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The k rows of largest inner product, best first.

        Args:
            queries: N x d.
            k: neighbours asked for, >= 1.
            allowed: one bool a row of the index; False rows are passed over.
            threads: of faiss. One is best for a single query: two on a busy core take several times
                longer.

        Returns:
            (similarity N x k, row N x k). Where fewer than k rows are allowed, the rest is
            (-inf, -1).

        Raises:
            ValueError: a wrong width, k < 1, or a mask of another length.
        """
        wanted = np.ascontiguousarray(self._matrix(queries), dtype=np.float32)
        if k < 1:
            raise ValueError(f"k must be >= 1, got {k}")
        if allowed is not None and allowed.shape != (len(self),):
            raise ValueError(f"the mask has shape {allowed.shape}, the index {len(self)} rows")
        similarity = np.full((len(wanted), k), -np.inf, np.float32)
        row = np.full((len(wanted), k), -1, np.int64)
        depth = min(k, len(self) if allowed is None else int(np.count_nonzero(allowed)))
        if depth and len(wanted):
            with self._threads(threads):
                similarity[:, :depth], row[:, :depth] = self._index.search(wanted, depth, params=self._passing(allowed))
        return similarity, row

    def _matrix(self, vectors: Vectors) -> Vectors:
        if vectors.ndim != 2 or vectors.shape[1] != self.width:
            raise ValueError(f"expected vectors of shape N x {self.width}, got {vectors.shape}")
        return vectors

    def _passing(self, allowed: NDArray[np.bool_] | None) -> Any:
        """Faiss's form of the mask; it keeps its own copy of the bits alive."""
        if allowed is None:
            return None
        bits = np.packbits(allowed, bitorder="little")
        chosen = self._faiss.IDSelectorBitmap(len(allowed), self._faiss.swig_ptr(bits))
        chosen.bits_kept_alive = bits
        return self._faiss.SearchParameters(sel=chosen)

    @contextmanager
    def _threads(self, count: int) -> Iterator[None]:
        before = self._faiss.omp_get_max_threads()
        self._faiss.omp_set_num_threads(count)
        try:
            yield
        finally:
            self._faiss.omp_set_num_threads(before)
