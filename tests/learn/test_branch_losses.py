"""The losses of the instance branches, against plain loops over the equations and the authors' values."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cld_stream.learn.losses import byol_loss, info_nce, nce_loss, nce_normaliser, nt_xent
from tests.learn.conftest import Golden
from tests.learn.test_groups import unit_rows
from tests.learn.test_losses import discrimination, seeds


@pytest.mark.data
def test_info_nce_is_the_cross_entropy_of_the_authors_logits(golden: Golden) -> None:
    q, k, queue, logits = (golden(f"moco/{name}") for name in ("q", "k", "queue_before", "logits"))
    expected = (logits.logsumexp(1) - logits[:, 0]).mean()
    torch.testing.assert_close(info_nce(q, k, queue, 0.07), expected, atol=1e-5, rtol=0)


@settings(max_examples=50, deadline=None)
@given(st.data(), st.integers(1, 6), st.integers(0, 9), seeds)
def test_info_nce_is_the_papers_over_the_keys_that_are_negatives(
    data: st.DataObject, n: int, size: int, seed: int
) -> None:
    q, k, queue = unit_rows(n, 5, seed), unit_rows(n, 5, seed + 1), unit_rows(max(size, 1), 5, seed + 2)[:size]
    mask = data.draw(st.lists(st.booleans(), min_size=n * size, max_size=n * size))
    others = torch.tensor(mask, dtype=torch.bool).reshape(n, size)
    expected = sum(
        discrimination(q[i], k[i], [queue[j] for j in range(size) if others[i, j]], 0.2) / n for i in range(n)
    )
    assert float(info_nce(q, k, queue, 0.2, others)) == pytest.approx(expected, abs=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 8), seeds)
def test_nt_xent_is_the_papers(n: int, seed: int) -> None:
    views = [*unit_rows(n, 5, seed), *unit_rows(n, 5, seed + 1)]
    expected = 0.0
    for i in range(2 * n):
        partner = (i + n) % (2 * n)
        others = [views[j] for j in range(2 * n) if j not in (i, partner)]
        expected += discrimination(views[i], views[partner], others, 0.5) / (2 * n)
    assert float(nt_xent(torch.stack(views[:n]), torch.stack(views[n:]), 0.5)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1e-6])
def test_no_view_is_its_own_negative_at_any_temperature(temperature: float) -> None:
    one = unit_rows(1, 5, 0)
    for other in (unit_rows(1, 5, 1), -one):
        assert float(nt_xent(one, other, temperature)) == 0  # there is nobody else


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 8), seeds)
def test_byol_loss_is_the_squared_distance_of_unit_vectors(n: int, seed: int) -> None:
    p, z = 3 * unit_rows(n, 5, seed), 0.1 * unit_rows(n, 5, seed + 1)
    expected = sum(float((p[i] / p[i].norm() - z[i] / z[i].norm()).square().sum()) / n for i in range(n))
    assert float(byol_loss(p, z)) == pytest.approx(expected, abs=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 6), st.integers(1, 9), st.floats(-2, 4), seeds)
def test_nce_loss_is_the_papers(n: int, m: int, log_z: float, seed: int) -> None:
    f, positive, noise = unit_rows(n, 5, seed), unit_rows(n, 5, seed + 1), unit_rows(m, 5, seed + 2)

    def h(query: Tensor, row: Tensor) -> float:
        """Eq. 7, with M rows in all: P = e / (z M), P_n = 1 / M."""
        rows = 1000
        p = math.exp(float(query @ row) / 0.2) / (math.exp(log_z) * rows)
        return p / (p + m / rows)

    expected = 0.0
    for i in range(n):
        expected -= math.log(h(f[i], positive[i])) / n
        expected -= sum(math.log(1 - h(f[i], v)) for v in noise) / n
    assert float(nce_loss(f, positive, noise, 0.2, torch.tensor(log_z))) == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_the_normaliser_is_the_log_of_the_mean_exponential() -> None:
    f, positive, noise = unit_rows(3, 5, 0), unit_rows(3, 5, 1), unit_rows(4, 5, 2)
    every = [math.exp(float(f[i] @ positive[i]) / 0.2) for i in range(3)]
    every += [math.exp(float(q @ v) / 0.2) for q in f for v in noise]
    assert float(nce_normaliser(f, positive, noise, 0.2)) == pytest.approx(math.log(sum(every) / len(every)), abs=1e-5)


def test_only_what_is_learnt_receives_a_gradient() -> None:
    def rows(seed: int) -> Tensor:
        return unit_rows(4, 6, seed).requires_grad_()

    q, k, others = rows(0), rows(1), rows(2)
    for loss in (
        info_nce(q, k, others, 0.1),
        nce_loss(q, k, others, 0.1, torch.tensor(0.5)),
        byol_loss(q, k) + 0 * others.detach().sum(),
    ):
        learnt, *fixed = torch.autograd.grad(loss, (q, k, others), allow_unused=True)
        assert fixed == [None, None]
        assert learnt is not None
        assert learnt.abs().sum() > 0
    both = torch.autograd.grad(nt_xent(q, k, 0.1), (q, k))
    assert all(g.abs().sum() > 0 for g in both)


def test_branch_losses_stay_in_float32_under_autocast() -> None:
    q, k, others, z = unit_rows(8, 16, 0), unit_rows(8, 16, 1), unit_rows(20, 16, 2), torch.tensor(0.3)

    def all_of_them() -> list[float]:
        return [
            float(loss)
            for loss in (
                info_nce(q, k, others, 0.1), nce_loss(q, k, others, 0.1, z), byol_loss(q, k), nt_xent(q, k, 0.1),
            )
        ]  # fmt: skip

    plain = all_of_them()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all_of_them() == plain
