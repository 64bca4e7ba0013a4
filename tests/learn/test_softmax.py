"""The streaming softmax against torch's own over all logits at once."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cld_stream.learn import softmax
from cld_stream.learn.precision import fast_float32
from cld_stream.learn.softmax import Hide, log_sum_exp
from tests.learn.test_groups import unit_rows


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(softmax._PIECE, "cpu", 4)


def hiding(hidden_NM: Tensor) -> Hide:
    return lambda logits_NC, piece: logits_NC.masked_fill_(hidden_NM[:, piece], -math.inf)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(0, 13),
    st.sampled_from([0.01, 0.1, 1.0, 100.0]),
    st.floats(0, 1),
    st.integers(0, 10**6),
)
def test_value_and_gradient_are_those_of_torch_over_all_rows_at_once(
    n: int, m: int, temperature: float, share: float, seed: int
) -> None:
    q, rows = unit_rows(n, 6, seed) / temperature, unit_rows(m + 1, 6, seed + 1)[:m]
    hidden = torch.rand(n, m, generator=torch.Generator().manual_seed(seed)) < share
    weight = torch.linspace(1, 2, n)
    q.requires_grad_()

    total = log_sum_exp(q, rows, hiding(hidden))
    (grad,) = torch.autograd.grad((weight * total).nan_to_num(neginf=0).sum(), q)
    logits = (q.double() @ rows.double().T).masked_fill(hidden, -math.inf)
    expected = torch.logsumexp(logits, 1)
    share_of = torch.softmax(logits, 1).nan_to_num(0)  # of a query without rows: nothing
    torch.testing.assert_close(total.double(), expected, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(grad.double(), weight[:, None] * (share_of @ rows.double()), atol=1e-5, rtol=0)


@pytest.mark.parametrize("m", [1, 3, 4, 5, 8, 9])
def test_the_gradient_is_the_slope_wherever_the_last_piece_ends(m: int) -> None:
    q, rows = unit_rows(3, 4, 0).double().requires_grad_(), unit_rows(m, 4, 1).double()
    hidden = torch.zeros(3, m, dtype=torch.bool)
    hidden[0, 0] = m > 1
    assert torch.autograd.gradcheck(lambda x: log_sum_exp(5 * x, rows, hiding(hidden)), (q,))


def test_logits_beyond_the_range_of_exp_stay_finite_in_any_order() -> None:
    rows = torch.tensor([[-1.0], [1.0]]).repeat(5, 1)
    for rows_M1 in (rows, rows.sort(0).values, -rows.sort(0).values):
        q = torch.tensor([[1e4], [-1e4]], requires_grad=True)
        total = log_sum_exp(q, rows_M1)
        (grad,) = torch.autograd.grad(total.sum(), q)
        torch.testing.assert_close(total, torch.full((2,), 1e4 + math.log(5)))
        torch.testing.assert_close(grad, torch.tensor([[1.0], [-1.0]]))


def test_a_query_without_rows_has_an_infinitely_small_sum_and_no_gradient() -> None:
    for rows in (unit_rows(9, 4, 0), torch.empty(0, 4)):
        q = unit_rows(2, 4, 1).requires_grad_()
        total = log_sum_exp(q, rows, hiding(torch.ones(2, len(rows), dtype=torch.bool)))
        (grad,) = torch.autograd.grad(torch.logaddexp(total, torch.zeros(2)).sum(), q)
        assert total.tolist() == [-math.inf] * 2
        assert torch.equal(grad, torch.zeros(2, 4))


def test_what_is_not_a_number_is_not_hidden() -> None:
    q = torch.tensor([[1.0, 0.0], [math.nan, 0.0]])
    assert log_sum_exp(q, unit_rows(9, 2, 0)).isnan().tolist() == [False, True]


def test_float32_products_are_float32_on_this_cpu_and_autocast_is_off() -> None:
    x, y = unit_rows(256, 128, 0), unit_rows(512, 128, 1)
    before = torch.get_float32_matmul_precision()
    with torch.autocast("cpu", torch.bfloat16), fast_float32(x.device):
        product = x @ y.T
    assert product.dtype == torch.float32
    torch.testing.assert_close(product.double(), x.double() @ y.double().T, atol=1e-6, rtol=0)
    assert torch.get_float32_matmul_precision() == before


def test_the_same_again_bit_for_bit() -> None:
    q, rows = unit_rows(32, 16, 0) / 0.1, unit_rows(50, 16, 1)
    assert torch.equal(log_sum_exp(q, rows), log_sum_exp(q, rows))
