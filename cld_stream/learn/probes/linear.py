"""The linear probe: logistic regression on frozen features."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["PENALTIES", "LinearProbe", "linear_probe"]

# Shape suffixes: N train rows, Q test rows, D features, L classes.

PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
"""Strengths of the L2 penalty that are tried, strongest first."""

_ITERATIONS = 200
_FOLDS = 5
_ROWS = 65_536


class LinearProbe(NamedTuple):
    """What the probe says.

    Attributes:
        predicted_Q: class of each test row.
        penalty: the one that was chosen.
    """

    predicted_Q: Tensor
    penalty: float


def linear_probe(
    train_ND: Tensor,
    labels_N: Tensor,
    test_QD: Tensor,
    classes: int,
    held_out_N: Tensor | None = None,
    penalties: Sequence[float] = PENALTIES,
) -> LinearProbe:
    """Multinomial logistic regression on standardised features; deterministic.

    Protocol: each feature has mean 0 and standard deviation 1 over the train rows. Full-batch L-BFGS from zero, at most
    200 iterations with a strong Wolfe line search, minimises mean cross-entropy + penalty / 2 x |W|^2, the bias free.
    The penalty is the one that answers best on the held-out train rows when fitted on the others (of equals the
    strongest); then the layer is fitted on all train rows.

    Args:
        labels_N: 0 <= label < classes.
        held_out_N: which train rows choose the penalty; near repeats belong on one side. None = every fifth row of each
            class. Unless both sides have rows, the middle penalty is taken.
    """
    mean_D, std_D = train_ND.float().mean(0), train_ND.float().std(0, correction=0)
    std_D = torch.where(std_D > 1e-6, std_D, torch.ones_like(std_D))
    train_ND, test_QD = (train_ND.float() - mean_D) / std_D, (test_QD.float() - mean_D) / std_D
    held_N = _every_fifth(labels_N) if held_out_N is None else held_out_N
    penalty = penalties[len(penalties) // 2]
    if len(penalties) > 1 and held_N.any() and not held_N.all():
        right = [
            (_logits(_fit(train_ND[~held_N], labels_N[~held_N], classes, p), train_ND[held_N]).argmax(1)
             == labels_N[held_N]).sum()
            for p in penalties
        ]  # fmt: skip
        penalty = penalties[int(torch.stack(right).argmax())]
    return LinearProbe(_logits(_fit(train_ND, labels_N, classes, penalty), test_QD).argmax(1), penalty)


def _fit(x_ND: Tensor, labels_N: Tensor, classes: int, penalty: float) -> Tensor:
    """Weights and, as the last column, biases: L x (D + 1). Rows go through in parts, so that logits stay small."""
    weight_LE = x_ND.new_zeros(classes, x_ND.shape[1] + 1).requires_grad_()
    solver = torch.optim.LBFGS([weight_LE], max_iter=_ITERATIONS, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        loss = penalty / 2 * weight_LE[:, :-1].square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        for part_nD, part_n in zip(torch.split(x_ND, _ROWS), torch.split(labels_N, _ROWS), strict=True):
            part = F.cross_entropy(_logits(weight_LE, part_nD), part_n, reduction="sum") / len(x_ND)
            part.backward()  # type: ignore[no-untyped-call]
            loss = loss + part.detach()
        return loss.detach()

    with torch.enable_grad():
        solver.step(closure)  # type: ignore[no-untyped-call]
    return weight_LE.detach()


def _logits(weight_LE: Tensor, x_ND: Tensor) -> Tensor:
    return torch.addmm(weight_LE[:, -1], x_ND, weight_LE[:, :-1].T)


def _every_fifth(labels_N: Tensor) -> Tensor:
    """Rows 4, 9, ... of each class."""
    order_N = labels_N.argsort(stable=True)
    sizes_L = torch.bincount(labels_N)
    first_N = (sizes_L.cumsum(0) - sizes_L)[labels_N[order_N]]
    held_N = torch.zeros_like(labels_N, dtype=torch.bool)
    held_N[order_N] = (torch.arange(len(labels_N), device=labels_N.device) - first_N) % _FOLDS == _FOLDS - 1
    return held_N
