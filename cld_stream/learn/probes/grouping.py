"""What groups are worth: against labels, and against chance."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["group_coherence", "nmi", "purity"]

# Shape suffixes: N rows, D features, K groups, L labels.


@torch.no_grad()
def nmi(groups_N: Tensor, labels_N: Tensor) -> float:
    """Normalised mutual information, 2 I / (H(groups) + H(labels)): 0 = unrelated, 1 = the same partition.

    It rises with the number of groups even by chance: compare at one K. 1 where neither has more than one part.
    """
    share_KL = _contingency(groups_N, labels_N)
    share_KL /= share_KL.sum()
    group, label, joint = (torch.special.entr(s).sum() for s in (share_KL.sum(1), share_KL.sum(0), share_KL))
    return float((2 * (group + label - joint) / (group + label)).clamp(0, 1)) if group + label > 0 else 1.0


@torch.no_grad()
def purity(groups_N: Tensor, labels_N: Tensor) -> float:
    """Share of rows that have the commonest label of their group; 1 when every row is its own group."""
    table_KL = _contingency(groups_N, labels_N)
    return float(table_KL.amax(1).sum() / table_KL.sum())


@torch.no_grad()
def group_coherence(x_ND: Tensor, groups_N: Tensor, seed: int = 0) -> float:
    """How much nearer rows are to the mean of their group than to that of a random group of the same size.

    With c = the mean cosine of rows to the mean of their group, and c' = the same after the group numbers were
    permuted among the rows: (c - c') / (1 - c'). 0 = the groups mean nothing, 1 = each is one point. Groups of one row
    say nothing and are left out; 0 where there are no others.

    Args:
        x_ND: unit rows.
        groups_N: group of each row, >= 0.
        seed: of the permutation.
    """
    _, groups_N, sizes_K = torch.unique(groups_N, return_inverse=True, return_counts=True)
    shared_N = sizes_K[groups_N] > 1
    if not shared_N.any():
        return 0.0
    x_ND, groups_N = x_ND[shared_N].float(), groups_N[shared_N]
    order_N = torch.randperm(len(groups_N), generator=torch.Generator().manual_seed(seed)).to(groups_N.device)
    found, chance = (_cohesion(x_ND, g_N, len(sizes_K)) for g_N in (groups_N, groups_N[order_N]))
    return (found - chance) / (1 - chance) if chance < 1 else 0.0


def _cohesion(x_ND: Tensor, groups_N: Tensor, k: int) -> float:
    """Mean cosine of rows to the mean of their group."""
    sums_KD = x_ND.new_zeros(k, x_ND.shape[1]).index_add_(0, groups_N, x_ND)
    return float((x_ND * F.normalize(sums_KD)[groups_N]).sum(1).mean())


def _contingency(groups_N: Tensor, labels_N: Tensor) -> Tensor:
    """Rows of each group and label: K x L."""
    (_, group_N), (_, label_N) = (torch.unique(v, return_inverse=True) for v in (groups_N, labels_N))
    k, n_labels = int(group_N.max()) + 1, int(label_N.max()) + 1
    return torch.bincount(group_N * n_labels + label_N, minlength=k * n_labels).view(k, n_labels).double()
