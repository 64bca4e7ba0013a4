import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cld_stream.learn.groups import TIE, local_kmeans
from tests.learn.conftest import Golden

CASES = ("small", "cifar", "tied", "more_groups_than_rows")


def unit_rows(n: int, d: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


def kmeans_from_the_paper(x_ND: Tensor, k: int, iters: int) -> tuple[list[int], Tensor]:
    """Loops over rows and groups."""
    n, d = x_ND.shape
    centroids = torch.stack([x_ND[j] if j < n else torch.zeros(d) for j in range(k)])
    labels: list[int] = []
    for _ in range(iters):
        labels = []
        for i in range(n):
            distances = [float((x_ND[i] - c).square().sum()) for c in centroids]
            labels.append(next(j for j, v in enumerate(distances) if v <= min(distances) + TIE))
        rows = [[x_ND[i] for i in range(n) if labels[i] == j] for j in range(k)]
        centroids = torch.stack([torch.stack(r).mean(0) if r else torch.zeros(d) for r in rows])
    return labels, centroids


@pytest.mark.data
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("view", [1, 2])
def test_local_groups_are_those_of_the_authors(golden: Golden, case: str, view: int) -> None:
    x = golden(f"cld/{case}/x{view}")
    k, iters = int(golden(f"cld/{case}/K")), int(golden(f"cld/{case}/iters"))
    labels, centroids = local_kmeans(x, k, iters)
    assert torch.equal(labels, golden(f"cld/{case}/labels{view}"))
    torch.testing.assert_close(centroids, golden(f"cld/{case}/centroids{view}"), atol=1e-6, rtol=0)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 14),
    st.integers(2, 5),
    st.integers(1, 18),
    st.integers(1, 4),
    st.integers(0, 10**6),
    st.booleans(),
)
def test_matrix_products_group_as_the_loops_do(n: int, d: int, k: int, iters: int, seed: int, repeats: bool) -> None:
    x = unit_rows(n, d, seed)
    if repeats:
        x = x[torch.arange(n) % max(1, n // 2)]
    labels, centroids = local_kmeans(x, k, iters)
    expected_labels, expected_centroids = kmeans_from_the_paper(x, k, iters)
    assert labels.tolist() == expected_labels
    torch.testing.assert_close(centroids, expected_centroids, atol=1e-5, rtol=0)


def test_groups_do_not_depend_on_the_order_of_the_rows_after_the_first_k() -> None:
    x, k = unit_rows(60, 8, 3), 10
    order = torch.cat([torch.arange(k), k + torch.randperm(50, generator=torch.Generator().manual_seed(1))])
    labels, centroids = local_kmeans(x, k, 5)
    shuffled_labels, shuffled_centroids = local_kmeans(x[order], k, 5)
    assert torch.equal(labels[order], shuffled_labels)
    torch.testing.assert_close(centroids, shuffled_centroids)


def test_grouping_stays_in_float32_under_autocast() -> None:
    x = unit_rows(64, 16, 5)
    expected = local_kmeans(x, 12, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        labels, centroids = local_kmeans(x, 12, 5)
    assert centroids.dtype == torch.float32
    assert torch.equal(labels, expected[0])
    assert torch.equal(centroids, expected[1])


def test_grouping_leaves_the_matmul_precision_as_it_found_it() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        local_kmeans(unit_rows(8, 4, 0), 3, 2)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def test_the_gradient_flows_through_the_last_mean_alone() -> None:
    x = unit_rows(12, 4, 2).requires_grad_()
    labels, centroids = local_kmeans(x, 4, 3)
    (slope,) = torch.autograd.grad(centroids.sum(), x)
    size = torch.bincount(labels, minlength=4)
    torch.testing.assert_close(slope, (1 / size[labels].float())[:, None].expand(12, 4))


@pytest.mark.parametrize(("k", "iters"), [(0, 5), (3, 0)])
def test_a_grouping_without_groups_or_rounds_is_refused(k: int, iters: int) -> None:
    with pytest.raises(ValueError, match="k-means needs"):
        local_kmeans(unit_rows(4, 4, 0), k, iters)
