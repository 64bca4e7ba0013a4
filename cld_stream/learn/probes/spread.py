"""Numbers that need no label: whether features agree between views, and how much of their space they use."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["alignment", "effective_rank", "feature_std", "uniformity"]

# Shape suffixes: N rows, D features.


@torch.no_grad()
def alignment(x_ND: Tensor, other_ND: Tensor) -> float:
    """Mean squared distance of the unit rows of two views; 0 = the same, 2 = unrelated, 4 = opposite.

    Wang & Isola 2020 with alpha = 2 (https://arxiv.org/abs/2005.10242).
    """
    return float((x_ND.float() - other_ND.float()).square().sum(1).mean())


@torch.no_grad()
def uniformity(x_ND: Tensor, chunk: int = 1024) -> float:
    """Log of the mean of exp(-2 d^2) over all pairs of different unit rows; 0 = one point, about -4 = evenly spread.

    Wang & Isola 2020 with t = 2. Needs at least two rows; memory is chunk x N numbers.
    """
    x_ND = x_ND.float()
    n, total = len(x_ND), x_ND.new_zeros((), dtype=torch.float64)
    for start in range(0, n, chunk):
        squared_nN = (2 - 2 * x_ND[start : start + chunk] @ x_ND.T).clamp(min=0)
        total += (-2 * squared_nN).exp().sum(dtype=torch.float64)
    own = (-2 * (2 - 2 * x_ND.square().sum(1)).clamp(min=0)).exp().sum(dtype=torch.float64)
    return float(((total - own) / (n * (n - 1))).log())


@torch.no_grad()
def effective_rank(x_ND: Tensor) -> float:
    """exp of the entropy of the normalised singular values, features not centred.

    Roy & Vetterli 2007; called RankMe by Garrido et al. 2023 (https://arxiv.org/abs/2210.02885).

    1 = all rows point the same way; min(N, D) = they fill every direction alike. 0 for rows of zeros.
    """
    values = torch.linalg.svdvals(x_ND.float())
    share = values / values.sum().clamp(min=1e-12)
    return float(torch.special.entr(share).sum().exp()) if values.sum() > 0 else 0.0


@torch.no_grad()
def feature_std(x_ND: Tensor) -> float:
    """Spread of normalised rows: the mean standard deviation of a feature, times sqrt(D).

    0 = collapsed to a point; about 1 = spread over the whole sphere.
    """
    x_ND = F.normalize(x_ND.float(), dim=1)
    return float(x_ND.std(0, correction=0).mean() * math.sqrt(x_ND.shape[1]))
