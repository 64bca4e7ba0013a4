"""One hit a moment, against a plain walk through all rows."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cld_stream.search.cluster import nearest_group, spherical_kmeans
from cld_stream.search.distinct import search_distinct
from cld_stream.search.flat import FlatIndex


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 80),
    sources=st.integers(1, 4),
    k=st.integers(1, 10),
    gap_s=st.sampled_from([0.0, 0.5, 3.0, 1e9]),
    share=st.sampled_from([0.0, 0.4, 1.0]),
    seed=st.integers(0, 1000),
)
def test_it_keeps_what_a_walk_through_all_rows_keeps(
    rows: int, sources: int, k: int, gap_s: float, share: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((rows, 6)).astype(np.float32)
    query = rng.standard_normal(6).astype(np.float32)
    source = rng.integers(0, sources, rows)
    time_s = rng.integers(0, 20, rows) / 2.0
    allowed = rng.random(rows) < share
    index = FlatIndex(6, np.float32)
    index.add(vectors)

    def repeats(row: int) -> NDArray[np.int64]:
        return np.flatnonzero((source == source[row]) & (abs(time_s - time_s[row]) <= gap_s))

    similarity, found = search_distinct(index, query, k, repeats, allowed)

    kept: list[int] = []
    for row in np.argsort(-(vectors @ query), kind="stable").tolist():
        repeat = any(source[o] == source[row] and abs(time_s[o] - time_s[row]) <= gap_s for o in kept)
        if allowed[row] and not repeat and len(kept) < k:
            kept.append(row)
    assert found.tolist() == kept
    np.testing.assert_allclose(similarity, vectors[found] @ query, atol=1e-5)


def test_groups_of_well_apart_bundles_are_the_bundles() -> None:
    rng = np.random.default_rng(0)
    centres = np.eye(5, 16, dtype=np.float32)
    truth = rng.integers(0, 5, 400)
    vectors = centres[truth] + 0.05 * rng.standard_normal((400, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    centroids = spherical_kmeans(vectors.astype(np.float16), 5, seed=3)
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-4)
    labels = nearest_group(vectors.astype(np.float16), centroids)
    for bundle in range(5):
        assert len(set(labels[truth == bundle].tolist())) == 1
    np.testing.assert_array_equal(
        labels, nearest_group(vectors, spherical_kmeans(vectors.astype(np.float16), 5, seed=3))
    )


def test_fewer_rows_than_groups_give_as_many_groups_as_rows() -> None:
    vectors = np.eye(3, dtype=np.float16)
    assert spherical_kmeans(vectors, 8).shape == (3, 3)
    assert spherical_kmeans(vectors[:0], 8).shape == (0, 3)
    assert nearest_group(vectors, np.zeros((0, 3), np.float32)).tolist() == [-1, -1, -1]
