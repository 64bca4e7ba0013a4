"""Groups over everything that was embedded: spherical k-means."""

import numpy as np
from numpy.typing import NDArray

from cld_stream.search.flat import FlatIndex, Vectors

__all__ = ["nearest_group", "spherical_kmeans"]

_ROWS_PER_GROUP = 256


def spherical_kmeans(vectors: Vectors, groups: int, *, iterations: int = 20, seed: int = 0) -> NDArray[np.float32]:
    """Unit centroids of unit vectors.

    Args:
        vectors: N x d; at most 256 rows a group are drawn to fit the centroids.
        groups: K; fewer come back where there are fewer rows.

    Returns:
        min(K, N) x d.
    """
    import faiss

    vectors_ND = np.asarray(vectors)
    count = min(groups, len(vectors_ND))
    if count == 0:
        return np.zeros((0, vectors_ND.shape[1]), np.float32)
    rng = np.random.default_rng(seed)
    if len(vectors_ND) > count * _ROWS_PER_GROUP:
        chosen = np.sort(rng.choice(len(vectors_ND), count * _ROWS_PER_GROUP, replace=False))
        vectors_ND = vectors_ND[chosen]
    kmeans = faiss.Kmeans(
        vectors_ND.shape[1],
        count,
        niter=iterations,
        spherical=True,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=_ROWS_PER_GROUP + 1,
    )
    kmeans.train(np.ascontiguousarray(vectors_ND, dtype=np.float32))
    return np.asarray(kmeans.centroids, np.float32)


def nearest_group(vectors: Vectors, centroids: NDArray[np.float32]) -> NDArray[np.int32]:
    """The group of each row: that of the largest inner product; -1 where there are no groups."""
    if not len(centroids) or not len(vectors):
        return np.full(len(vectors), -1, np.int32)
    index = FlatIndex(centroids.shape[1], np.float32)
    index.add(centroids)
    return index.search(vectors, 1)[1][:, 0].astype(np.int32)
