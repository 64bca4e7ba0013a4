import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cld_stream.learn.groups import Grouping, local_kmeans
from cld_stream.learn.losses import cross_level_loss, npid_loss
from tests.learn.conftest import Golden
from tests.learn.test_groups import CASES, unit_rows


def by_kmeans(k: int, iters: int) -> Grouping:
    return partial(local_kmeans, k=k, iters=iters)


seeds = st.integers(0, 10**6)


def discrimination(query: Tensor, positive: Tensor, negatives: list[Tensor], temperature: float) -> float:
    """C(q, pos, neg; T) of the paper."""
    own = math.exp(float(query @ positive) / temperature)
    return -math.log(own / (own + sum(math.exp(float(query @ v) / temperature) for v in negatives)))


@pytest.mark.data
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("form", ["", "_detached"])
def test_cross_level_loss_and_gradients_are_those_of_the_authors(golden: Golden, case: str, form: str) -> None:
    def grouping(x: Tensor) -> tuple[Tensor, Tensor]:
        labels, centroids = local_kmeans(x, int(k), int(iters))
        return labels, centroids.detach() if form else centroids

    x1, x2 = (golden(f"cld/{case}/x{v}").requires_grad_() for v in (1, 2))
    k, iters, t = (float(golden(f"cld/{case}/{name}")) for name in ("K", "iters", "T"))
    loss = cross_level_loss(x1, x2, grouping, t)
    grad1, grad2 = torch.autograd.grad(loss, (x1, x2))
    torch.testing.assert_close(loss, golden(f"cld/{case}/loss"), atol=1e-5, rtol=0)
    torch.testing.assert_close(grad1, golden(f"cld/{case}/grad1{form}"), atol=1e-6, rtol=0)
    torch.testing.assert_close(grad2, golden(f"cld/{case}/grad2{form}"), atol=1e-6, rtol=0)


@pytest.mark.data
def test_instance_loss_and_gradient_are_those_of_the_authors(golden: Golden) -> None:
    x, bank, own = golden("npid/x").requires_grad_(), golden("npid/bank_before"), golden("npid/index")
    loss = npid_loss(x, bank, own, 0.1)
    (grad,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(loss, golden("npid/loss"), atol=1e-5, rtol=0)
    torch.testing.assert_close(grad, golden("npid/grad"), atol=1e-5, rtol=0)


@settings(max_examples=50, deadline=None)
@given(st.data(), st.integers(1, 6), st.integers(1, 12), seeds)
def test_instance_loss_is_the_papers_over_live_rows_with_the_other_view_for_newborns(
    data: st.DataObject, n: int, m: int, seed: int
) -> None:
    f, other, bank = unit_rows(n, 5, seed), unit_rows(n, 5, seed + 1), unit_rows(m, 5, seed + 2)
    slots = data.draw(st.permutations(range(m)))
    rows = [slots[i] if i < m and data.draw(st.booleans()) else -1 for i in range(n)]
    newborn = [r >= 0 and data.draw(st.booleans()) for r in rows]
    live = [j in rows or data.draw(st.booleans()) for j in range(m)]
    bank[~torch.tensor(live)] = 0

    expected = 0.0
    for i in range(n):
        positive = other[i] if newborn[i] or rows[i] < 0 else bank[rows[i]]
        negatives = [bank[j] for j in range(m) if live[j] and j != rows[i]]
        expected += discrimination(f[i], positive, negatives, 0.2) / n
    loss = npid_loss(
        f,
        bank,
        torch.tensor(rows),
        0.2,
        live_M=torch.tensor(live),
        other_ND=other,
        newborn_N=torch.tensor(newborn),
    )
    assert float(loss) == pytest.approx(expected, abs=1e-5)


def test_only_the_view_itself_receives_a_gradient_and_it_is_the_slope_of_the_loss() -> None:
    bank = unit_rows(6, 4, 0).requires_grad_()
    f, other = unit_rows(3, 4, 1).requires_grad_(), unit_rows(3, 4, 2).requires_grad_()
    live = torch.tensor([True, True, False, True, False, True])
    loss = npid_loss(f, bank, torch.tensor([0, -1, 3]), 0.1, live_M=live, other_ND=other)
    grad, *others = torch.autograd.grad(loss, (f, bank, other), allow_unused=True)
    assert others == [None, None]
    assert grad is not None

    def value(row: int, column: int, step: float) -> float:
        moved = f.detach().clone()
        moved[row, column] += step
        return float(npid_loss(moved, bank, torch.tensor([0, -1, 3]), 0.1, live_M=live, other_ND=other))

    for row in range(3):
        for column in range(4):
            slope = (value(row, column, 1e-2) - value(row, column, -1e-2)) / 2e-2
            assert float(grad[row, column]) == pytest.approx(slope, abs=5e-3)


def test_a_first_frame_without_any_row_has_nothing_to_be_told_from() -> None:
    f = unit_rows(1, 4, 0).requires_grad_()
    nobody = torch.zeros(3, dtype=torch.bool)
    loss = npid_loss(f, torch.zeros(3, 4), torch.tensor([-1]), 0.1, live_M=nobody, other_ND=f)
    (grad,) = torch.autograd.grad(loss, f)
    assert loss.item() == pytest.approx(0)
    assert grad.isfinite().all()


def test_a_frame_without_a_row_needs_the_other_view() -> None:
    with pytest.raises(ValueError, match="other view"):
        npid_loss(unit_rows(2, 4, 0), unit_rows(3, 4, 1), torch.tensor([0, -1]), 0.1)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 10), st.integers(1, 14), st.integers(1, 4), seeds)
def test_cross_level_loss_is_the_papers(n: int, k: int, iters: int, seed: int) -> None:
    g = (unit_rows(n, 5, seed), unit_rows(n, 5, seed + 1))
    expected = 0.0
    for view in (0, 1):
        labels, centroids = local_kmeans(g[1 - view], k, iters)
        for i in range(n):
            others = [centroids[j] for j in range(k) if j != labels[i]]
            expected += discrimination(g[view][i], centroids[labels[i]], others, 0.2) / (2 * n)
    assert float(cross_level_loss(*g, by_kmeans(k, iters), 0.2)) == pytest.approx(expected, abs=1e-5)


def test_cross_level_loss_treats_both_views_and_all_frames_alike() -> None:
    g1, g2, k = unit_rows(40, 8, 0), unit_rows(40, 8, 1), 6
    order = torch.cat([torch.arange(k), k + torch.randperm(34, generator=torch.Generator().manual_seed(3))])
    loss = cross_level_loss(g1, g2, by_kmeans(k, 5), 0.2)
    torch.testing.assert_close(loss, cross_level_loss(g2, g1, by_kmeans(k, 5), 0.2))
    torch.testing.assert_close(loss, cross_level_loss(g1[order], g2[order], by_kmeans(k, 5), 0.2))


def test_losses_stay_in_float32_under_autocast() -> None:
    f, bank = unit_rows(8, 16, 0), unit_rows(20, 16, 1)
    own = torch.arange(8)
    plain = npid_loss(f, bank, own, 0.1), cross_level_loss(f, bank[:8], by_kmeans(3, 5), 0.2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = npid_loss(f, bank, own, 0.1), cross_level_loss(f, bank[:8], by_kmeans(3, 5), 0.2)
    assert plain == cast
