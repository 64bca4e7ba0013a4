"""Local groups: the k-means of a mini-batch."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from cld_stream.learn.precision import fast_float32

__all__ = ["TIE", "Grouping", "group_means", "local_kmeans", "segment_means"]

# Shape suffixes: N rows, D features, K groups.

Grouping = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From rows of one view (N x D) to labels_N and centroids_KD, as `local_kmeans` with its k and iters."""

TIE = 1e-5
"""Squared distances this close to the least count as equal; the lowest group number wins. Matrix
products round differently from the authors' broadcast differences, so exact repeats need it."""


def local_kmeans(x_ND: Tensor, k: int, iters: int) -> tuple[Tensor, Tensor]:
    """Euclidean k-means of a mini-batch that starts from its first K rows.

    Paper: Wang, Liu, Yu 2021, section 3 (https://arxiv.org/abs/2008.03813), as in the authors' code.

    Args:
        x_ND: unit rows; any float type, computed in float32 whatever autocast says.
        k: groups; may exceed N, the surplus is empty.
        iters: >= 1 rounds of assignment and mean.

    Returns:
        labels_N (the last assignment) and centroids_KD: means of the rows of each group, not
        re-normalised, zero for an empty group. The last mean is differentiable in x; the
        assignment is not.

    Raises:
        ValueError: k or iters below 1, or no rows.
    """
    if k < 1 or iters < 1 or len(x_ND) < 1:
        raise ValueError(f"k-means needs rows, k >= 1 and iters >= 1; got {len(x_ND)}, {k}, {iters}")
    with fast_float32(x_ND.device):
        x_ND = x_ND.float()
        fixed_ND = x_ND.detach()
        centroids_KD = F.pad(fixed_ND[:k], (0, 0, 0, max(0, k - len(x_ND))))
        for _ in range(iters - 1):
            centroids_KD = segment_means(fixed_ND, _nearest(fixed_ND, centroids_KD), k)
        labels_N = _nearest(fixed_ND, centroids_KD)
        return labels_N, group_means(x_ND, labels_N, k)


def _nearest(x_ND: Tensor, centroids_KD: Tensor) -> Tensor:
    """Number of the nearest centroid; the lowest one among those within `TIE`."""
    # |x|^2 is the same for every centroid
    distance_NK = torch.addmm(centroids_KD.square().sum(1), x_ND, centroids_KD.T, alpha=-2)
    near_NK = distance_NK <= distance_NK.amin(1, keepdim=True) + TIE
    return near_NK.view(torch.uint8).argmax(1)


def group_means(x_ND: Tensor, labels_N: Tensor, k: int) -> Tensor:
    """Mean row of each of k groups (K x D); zero for an empty one. A matrix product: deterministic on every device."""
    member_KN = (labels_N == torch.arange(k, device=labels_N.device)[:, None]).to(x_ND.dtype)
    return member_KN @ x_ND / member_KN.sum(1, keepdim=True).clamp(min=1)


@torch.no_grad()
def segment_means(x_ND: Tensor, labels_N: Tensor, k: int) -> Tensor:
    """The same without a gradient and without the K x N table: rows are sorted by group and added up group by group.

    Several times faster than the product on a CPU, just as deterministic on every device, and nothing waits for a GPU.
    """
    sorted_N, order_N = labels_N.sort(stable=True)
    first_K = torch.searchsorted(sorted_N, torch.arange(k, device=x_ND.device))
    return F.embedding_bag(order_N, x_ND, first_K, mode="mean")
