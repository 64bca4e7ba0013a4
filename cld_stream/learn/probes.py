"""What features are worth: a nearest-neighbour vote, and two numbers that fall when they collapse."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["effective_rank", "feature_std", "knn_classify"]

# Shape suffixes: N gallery rows, Q queries, D features, k neighbours, L labels.


@torch.no_grad()
def knn_classify(
    train_ND: Tensor,
    train_labels_N: Tensor,
    test_QD: Tensor,
    k: int,
    sigma: float,
    classes: int,
    chunk: int = 512,
) -> tuple[Tensor, Tensor]:
    """Weighted vote of the k nearest by cosine: each gives exp(similarity / sigma) to its class (Wu et al. 2018).

    Args:
        train_ND, test_QD: unit rows.
        train_labels_N: 0 <= label < classes.
        k: lowered to N when there are fewer.
        sigma: > 0; the authors use T_I.
        chunk: queries compared at a time.

    Returns:
        scores_QL and the class of the highest score of each query.
    """
    k, train_ND = min(k, len(train_ND)), train_ND.float()
    scores = []
    for start in range(0, len(test_QD), chunk):
        similarity_qk, row_qk = (test_QD[start : start + chunk].float() @ train_ND.T).topk(k)
        zeros_qL = similarity_qk.new_zeros(len(similarity_qk), classes)
        scores.append(zeros_qL.scatter_add_(1, train_labels_N[row_qk], (similarity_qk / sigma).exp_()))
    scores_QL = torch.cat(scores) if scores else train_ND.new_zeros(0, classes)
    return scores_QL, scores_QL.argmax(1)


@torch.no_grad()
def effective_rank(x_ND: Tensor) -> float:
    """exp of the entropy of the normalised singular values (Roy & Vetterli 2007), features not centred.

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
