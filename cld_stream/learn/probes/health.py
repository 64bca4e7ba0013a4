"""Whether features are still of use: how evenly they fall into groups, and whether neighbours are still neighbours."""

import math

import torch
from torch import Tensor

from cld_stream.learn.groups import local_kmeans

__all__ = ["group_entropy", "neighbour_agreement"]

# Shape suffixes: N rows, D and E features, k neighbours, K groups.

_ITERATIONS = 10


@torch.no_grad()
def group_entropy(x_ND: Tensor, groups: int) -> float:
    """Entropy of the sizes of k-means groups over log(K): 1 = all alike, 0 = every row is in one of them.

    Args:
        x_ND: unit rows in no order: k-means starts from the first ones.
        groups: K; lowered to N when there are fewer rows.
    """
    k = min(groups, len(x_ND))
    if k < 2:
        return 1.0
    labels_N, _ = local_kmeans(x_ND, k, _ITERATIONS)
    share_K = torch.bincount(labels_N, minlength=k) / len(x_ND)
    return float(torch.special.entr(share_K).sum() / math.log(k))


@torch.no_grad()
def neighbour_agreement(x_ND: Tensor, before_NE: Tensor, k: int) -> float:
    """How many of a row's k nearest others are the same in two sets of features of the same N things.

    The mean share o of common neighbours, less what chance gives, c = k / (N - 1): (o - c) / (1 - c). 1 = all are the
    same, 0 = unrelated.

    Args:
        x_ND, before_NE: unit rows.
        k: 1 <= k < N - 1.

    Raises:
        ValueError: there are too few rows for k.
    """
    n = len(x_ND)
    if not 1 <= k < n - 1:
        raise ValueError(f"{k} neighbours of each of {n} rows: 1 <= k < N - 1 is needed")
    now_Nk, then_Nk = _neighbours(x_ND, k), _neighbours(before_NE, k)
    common = (now_Nk[:, :, None] == then_Nk[:, None, :]).any(2).float().mean()
    chance = k / (n - 1)
    return float((common - chance) / (1 - chance))


def _neighbours(x_ND: Tensor, k: int) -> Tensor:
    """Rows of the k largest cosines, not one's own."""
    similarity_NN = x_ND.float() @ x_ND.float().T
    return similarity_NN.fill_diagonal_(-torch.inf).topk(k).indices
