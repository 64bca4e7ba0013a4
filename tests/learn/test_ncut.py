import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cld_stream.learn.groups import local_kmeans
from cld_stream.learn.ncut import normalised_cuts
from tests.learn.conftest import Golden
from tests.learn.test_groups import unit_rows


def embedding_from_the_paper(x_ND: Tensor, eigenvectors: int) -> Tensor:
    """Loops over pairs of rows; the Laplacian itself, in float64."""
    n, x_ND = len(x_ND), x_ND.double()
    w = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n):
        for j in range(n):
            if i != j:
                w[i, j] = (x_ND[i] @ x_ND[j]).abs() / (x_ND[i].norm() * x_ND[j].norm())
    degree = w.sum(1)
    half = torch.diag(degree.pow(-0.5))
    _, vectors = torch.linalg.eigh(half @ (torch.diag(degree) - w) @ half)
    y = half @ vectors
    embedded: Tensor = (y / y[0, 0])[:, :eigenvectors].float()
    return embedded


def rows_in_camps(n: int, d: int, camps: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows around `camps` orthogonal directions, and the direction of each."""
    camp = torch.arange(n) % camps
    return torch.eye(d)[camp] + 0.02 * unit_rows(n, d, seed), camp


@pytest.mark.data
def test_cuts_are_those_of_the_authors(golden: Golden) -> None:
    x = golden("ncut/x")
    k, eigenvectors, iters = (int(golden(f"ncut/{name}")) for name in ("clusters", "eigenvectors", "iters"))
    labels, centroids = normalised_cuts(x, k, eigenvectors, iters)
    assert torch.equal(labels, golden("ncut/labels"))
    torch.testing.assert_close(centroids, golden("ncut/centroids"), atol=1e-6, rtol=0)


@settings(max_examples=30, deadline=None)
@given(st.integers(4, 24), st.integers(1, 8), st.integers(1, 4), st.integers(0, 10**6))
def test_cuts_are_the_kmeans_of_the_eigenvectors_of_the_laplacian(n: int, k: int, iters: int, seed: int) -> None:
    x = unit_rows(n, 6, seed) * 3
    labels, centroids = normalised_cuts(x, k, k, iters)
    expected, _ = local_kmeans(embedding_from_the_paper(x, k), k, iters)
    assert labels.tolist() == expected.tolist()
    for j in range(k):
        mine = x[labels == j]
        torch.testing.assert_close(centroids[j], mine.mean(0) if len(mine) else torch.zeros(6), atol=1e-5, rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 5), st.integers(0, 10**6))
def test_separate_camps_are_cut_apart(camps: int, seed: int) -> None:
    x, camp = rows_in_camps(8 * camps, 8, camps, seed)
    labels, _ = normalised_cuts(x, camps, camps, 10)
    assert all(len(set(labels[camp == c].tolist())) == 1 for c in range(camps))
    assert len(set(labels.tolist())) == camps


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(1, 12), st.integers(1, 12), st.integers(0, 10**6))
def test_few_rows_repeats_and_zero_rows_give_finite_groups(n: int, k: int, eigenvectors: int, seed: int) -> None:
    x = torch.cat([unit_rows(n, 4, seed)[torch.arange(n) % max(1, n // 2)], torch.zeros(1, 4)])[:n]
    for rows in (x, x * 0):
        labels, centroids = normalised_cuts(rows, k, eigenvectors, 4)
        assert centroids.shape == (k, 4)
        assert centroids.isfinite().all()
        assert ((labels >= 0) & (labels < k)).all()
        sizes = torch.bincount(labels, minlength=k)
        torch.testing.assert_close((sizes[:, None] * centroids).sum(0), rows.sum(0), atol=1e-5, rtol=0)


def test_cuts_stay_in_float32_under_autocast() -> None:
    x = unit_rows(48, 16, 5)
    expected = normalised_cuts(x, 6, 6, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        labels, centroids = normalised_cuts(x, 6, 6, 5)
    assert torch.equal(labels, expected[0])
    assert torch.equal(centroids, expected[1])


def test_the_gradient_flows_through_the_last_mean_of_x_alone() -> None:
    x = unit_rows(12, 4, 2).requires_grad_()
    labels, centroids = normalised_cuts(x, 4, 4, 3)
    (slope,) = torch.autograd.grad(centroids.sum(), x)
    size = torch.bincount(labels, minlength=4)
    torch.testing.assert_close(slope, (1 / size[labels].float())[:, None].expand(12, 4))


def test_a_row_that_is_not_finite_shows_in_the_centroids() -> None:
    x = unit_rows(12, 4, 2)
    x[3, 1] = torch.nan
    assert not normalised_cuts(x, 4, 4, 3)[1].isfinite().all()


@pytest.mark.parametrize(("k", "eigenvectors", "iters"), [(0, 2, 5), (3, 2, 0), (3, 0, 5)])
def test_cuts_without_groups_eigenvectors_or_rounds_are_refused(k: int, eigenvectors: int, iters: int) -> None:
    with pytest.raises(ValueError, match=r"at least one eigenvector|k-means needs"):
        normalised_cuts(unit_rows(4, 4, 0), k, eigenvectors, iters)


def test_cuts_of_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="k-means needs"):
        normalised_cuts(torch.zeros(0, 4), 2, 2, 2)
