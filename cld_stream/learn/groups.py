"""Groups of features: the local k-means of a mini-batch, and the spherical k-means of a published snapshot."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["TIE", "full_precision", "local_kmeans", "spherical_kmeans"]

# Shape suffixes: N rows, D features, K groups.

TIE = 1e-5
"""Squared distances this close to the least count as equal; the lowest group number wins. Matrix
products round differently from the authors' broadcast differences, so exact repeats need it."""


@contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """float32 that is float32: no autocast and no TF32 in the block."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


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
    with full_precision(x_ND.device.type):
        x_ND = x_ND.float()
        fixed_ND = x_ND.detach()
        centroids_KD = F.pad(fixed_ND[:k], (0, 0, 0, max(0, k - len(x_ND))))
        for _ in range(iters - 1):
            centroids_KD = _means(fixed_ND, _nearest(fixed_ND, centroids_KD), k)
        labels_N = _nearest(fixed_ND, centroids_KD)
        return labels_N, _means(x_ND, labels_N, k)


def _nearest(x_ND: Tensor, centroids_KD: Tensor) -> Tensor:
    """Number of the nearest centroid; the lowest one among those within `TIE`."""
    # |x|^2 is the same for every centroid
    distance_NK = torch.addmm(centroids_KD.square().sum(1), x_ND, centroids_KD.T, alpha=-2)
    near_NK = distance_NK <= distance_NK.amin(1, keepdim=True) + TIE
    return near_NK.to(torch.uint8).argmax(1)


def _means(x_ND: Tensor, labels_N: Tensor, k: int) -> Tensor:
    """Mean row of every group; zero for an empty one. A matrix product: deterministic on every device."""
    member_KN = F.one_hot(labels_N, k).T.to(x_ND.dtype)
    return member_KN @ x_ND / member_KN.sum(1, keepdim=True).clamp(min=1)


@torch.no_grad()
def spherical_kmeans(
    x_ND: Tensor, k: int, iters: int, generator: torch.Generator, chunk: int = 65_536
) -> tuple[Tensor, Tensor]:
    """k-means by cosine, for the groups of a snapshot. Starts from distinct random rows; an
    emptied group moves to the row that is farthest from its centroid.

    Args:
        x_ND: unit rows, N >= 1; read in chunks of `chunk` rows, converted to float32.
        k: groups; lowered to N when there are fewer rows.
        iters: >= 1.
        generator: draws the start (on its own device).

    Returns:
        labels_N and unit centroids_KD (float32); every label belongs to its nearest centroid.
    """
    k = min(k, len(x_ND))
    start_K = torch.randperm(len(x_ND), generator=generator, device=generator.device)[:k]
    with full_precision(x_ND.device.type):
        centroids_KD = F.normalize(x_ND[start_K.to(x_ND.device)].float(), dim=1)
        for _ in range(iters):
            labels_N, similarity_N = _assign(x_ND, centroids_KD, chunk)
            sums_KD = torch.zeros_like(centroids_KD)
            for rows in range(0, len(x_ND), chunk):
                part = slice(rows, rows + chunk)
                sums_KD.index_add_(0, labels_N[part], x_ND[part].float())
            empty_E = (torch.bincount(labels_N, minlength=k) == 0).nonzero()[:, 0]
            worst_E = similarity_N.argsort(stable=True)[: len(empty_E)]
            sums_KD[empty_E] = x_ND[worst_E].float()
            centroids_KD = F.normalize(sums_KD, dim=1)
        return _assign(x_ND, centroids_KD, chunk)[0], centroids_KD


def _assign(x_ND: Tensor, centroids_KD: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Number and similarity of the nearest centroid of every row."""
    best = [(part.float() @ centroids_KD.T).max(1) for part in torch.split(x_ND, chunk)]
    return torch.cat([b.indices for b in best]), torch.cat([b.values for b in best])
