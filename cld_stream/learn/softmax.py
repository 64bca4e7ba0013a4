"""The logarithm of a sum of exponentials over many rows, without ever holding all logits at once."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cld_stream.learn.precision import fast_float32

__all__ = ["Hide", "log_sum_exp"]

# Shape suffixes: N queries, M rows, C rows of one piece, D features.

Hide = Callable[[Tensor, slice], object]
"""Puts -inf into logits_NC, in place, where a row of this piece of the M rows is none of a query's."""

_PIECE = {"cpu": 2048}
"""Rows at a time: on a CPU the logits stay in its cache, on a GPU few kernels are launched."""
_PIECE_ELSEWHERE = 32_768


def log_sum_exp(q_ND: Tensor, rows_MD: Tensor, hide: Hide | None = None) -> Tensor:
    """log sum_j exp(q . v_j) for each query, whatever the number of rows.

    The gradient is the expected row, sum_j p_j v_j with p the softmax, and is gathered on the way, as the output of
    attention is: Dao et al. 2022 (https://arxiv.org/abs/2205.14135), algorithm 1. Nothing of size N x M exists.

    Args:
        q_ND: queries, already divided by the temperature.
        rows_MD: same type and device; never receive a gradient.
        hide: which rows do not take part; None = all do.

    Returns:
        (N); -inf for a query that has no row. Its gradient is zero then.
    """
    total_N: Tensor = _LogSumExp.apply(q_ND, rows_MD, hide)
    return total_N


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_ND: Tensor, rows_MD: Tensor, hide: Hide | None) -> Tensor:
        n, m, size = len(q_ND), len(rows_MD), _PIECE.get(q_ND.device.type, _PIECE_ELSEWHERE)
        top_N1 = q_ND.new_full((n, 1), torch.finfo(q_ND.dtype).min)  # greatest logit so far
        total_N1 = q_ND.new_zeros(n, 1)  # sum of exp(logit - top)
        row_ND = torch.zeros_like(q_ND)  # the same sum, of rows
        memory = q_ND.new_empty(n * min(size, m))
        with fast_float32(q_ND.device):
            for start in range(0, m, size):
                piece = slice(start, min(start + size, m))
                rows_CD = rows_MD[piece]
                logits_NC = torch.mm(q_ND, rows_CD.T, out=memory[: n * len(rows_CD)].view(n, -1))
                if hide is not None:
                    hide(logits_NC, piece)
                before_N1, top_N1 = top_N1, torch.maximum(top_N1, logits_NC.amax(1, keepdim=True))
                share_NC = logits_NC.sub_(top_N1).exp_()
                shrink_N1 = (before_N1 - top_N1).exp_()
                total_N1.mul_(shrink_N1).add_(share_NC.sum(1, keepdim=True))
                row_ND.mul_(shrink_N1).addmm_(share_NC, rows_CD)
        ctx.save_for_backward(row_ND.div_(total_N1.clamp(min=torch.finfo(q_ND.dtype).tiny)))
        return (top_N1 + total_N1.log())[:, 0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor, None, None]:
        (expected_ND,) = ctx.saved_tensors
        return grad_N[:, None] * expected_ND, None, None
