"""The index against numpy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cld_stream.search.flat import FlatIndex


def unit(rng: np.random.Generator, rows: int, width: int) -> NDArray[np.float32]:
    x = rng.standard_normal((rows, width)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 60),
    width=st.integers(1, 20),
    k=st.integers(1, 12),
    seed=st.integers(0, 1000),
    masked=st.booleans(),
)
def test_it_finds_what_sorting_all_products_finds(
    dtype: type[np.float16], rows: int, width: int, k: int, seed: int, masked: bool
) -> None:
    rng = np.random.default_rng(seed)
    vectors, queries = unit(rng, rows, width).astype(dtype), unit(rng, 3, width)
    allowed = rng.random(rows) < 0.5 if masked else None
    index = FlatIndex(width, dtype)
    index.add(vectors[: rows // 2])
    index.add(vectors[rows // 2 :])

    similarity, row = index.search(queries, k, allowed)

    products = queries @ vectors.astype(np.float32).T
    if allowed is not None:
        products[:, ~allowed] = -np.inf
    expected = -np.sort(-products, axis=1)[:, :k]
    found = row >= 0
    np.testing.assert_array_equal(found.sum(1), min(k, rows if allowed is None else int(allowed.sum())))
    np.testing.assert_allclose(
        similarity[:, : expected.shape[1]][found[:, : expected.shape[1]]],
        expected[np.isfinite(expected)],
        atol=1e-5,
    )
    for q in range(3):
        np.testing.assert_allclose(similarity[q][found[q]], products[q][row[q][found[q]]], atol=1e-5)
        assert len(set(row[q][found[q]].tolist())) == found[q].sum()


def test_float16_rows_are_taken_over_bit_for_bit() -> None:
    vectors = unit(np.random.default_rng(1), 50, 16).astype(np.float16)
    index = FlatIndex(16)
    index.add(vectors)
    similarity, row = index.search(np.eye(16, dtype=np.float32), 50)
    for axis in range(16):
        np.testing.assert_array_equal(similarity[axis], vectors[row[axis], axis].astype(np.float32))


def test_an_empty_index_answers_with_nothing() -> None:
    similarity, row = FlatIndex(4).search(np.ones((2, 4), np.float32), 3)
    assert (row == -1).all()
    assert np.isneginf(similarity).all()


def test_wrong_shapes_are_named() -> None:
    index = FlatIndex(4)
    with pytest.raises(ValueError, match="N x 4"):
        index.add(np.zeros((2, 5), np.float16))
    with pytest.raises(ValueError, match="N x 4"):
        index.search(np.zeros(4, np.float32), 1)
    with pytest.raises(ValueError, match="mask"):
        index.search(np.zeros((1, 4), np.float32), 1, np.ones(3, bool))
    with pytest.raises(ValueError, match="k must"):
        index.search(np.zeros((1, 4), np.float32), 0)
    with pytest.raises(ValueError, match="width"):
        FlatIndex(0)
