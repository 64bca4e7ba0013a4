"""Local groups by normalised cuts: the authors' alternative to the k-means of a mini-batch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from cld_stream.learn.groups import group_means, local_kmeans
from cld_stream.learn.precision import fast_float32

__all__ = ["normalised_cuts"]

# Shape suffixes: N rows, D features, E eigenvectors, K groups.


def normalised_cuts(x_ND: Tensor, k: int, eigenvectors: int, iters: int) -> tuple[Tensor, Tensor]:
    """K-way normalised cuts of a mini-batch: the rows are embedded by eigenvectors, and k-means groups those.

    Shi and Malik 2000 (https://doi.org/10.1109/34.868688) on the affinity |cos|, as in the code of Wang, Liu, Yu 2021.

    Args:
        x_ND: rows of any length; any float type, computed in float32 whatever autocast says.
        k: groups; may exceed N, the surplus is empty.
        eigenvectors: >= 1 to embed with, those of the smallest eigenvalues of the Laplacian; the first is constant.
            More than N count as N.
        iters: >= 1 rounds of `local_kmeans`.

    Returns:
        labels_N and centroids_KD: means of the rows of x of each group, as `local_kmeans` gives them: not
        re-normalised, zero for an empty group, differentiable in x. Rows that are not finite make them not finite.

    Raises:
        ValueError: k, eigenvectors or iters below 1, or no rows.
    """
    if eigenvectors < 1:
        raise ValueError(f"normalised cuts need at least one eigenvector, got {eigenvectors}")
    with fast_float32(x_ND.device):
        x_ND = x_ND.float()
        labels_N, _ = local_kmeans(_embedding(x_ND.detach(), eigenvectors), k, iters)
        return labels_N, group_means(x_ND, labels_N, k)


def _embedding(x_ND: Tensor, eigenvectors: int) -> Tensor:
    """Generalised eigenvectors of (D - W) y = lambda D y with |y|_D^2 = trace(D), so that the first is all ones.

    A row without affinity to any other stands at the origin.
    """
    unit_ND = F.normalize(x_ND, dim=1)
    # eigh refuses what is not finite; such rows count as zero here and speak up in the centroids
    affinity_NN = (unit_ND @ unit_ND.T).abs().nan_to_num(0, 0, 0).fill_diagonal_(0)
    degree_N = affinity_NN.sum(1)
    scale_N = torch.where(degree_N > 0, degree_N.rsqrt(), 0)
    # the largest eigenvalues of D^-1/2 W D^-1/2 are the smallest of the Laplacian
    _, vectors_NN = torch.linalg.eigh(scale_N[:, None] * affinity_NN * scale_N)
    y_NE: Tensor = degree_N.sum().sqrt() * scale_N[:, None] * vectors_NN[:, -eigenvectors:]
    return y_NE
