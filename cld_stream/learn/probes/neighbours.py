"""Nearest neighbours as a probe: a weighted vote, retrieval by label, and retrieval of one known row."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Retrieval", "knn_classify", "retrieval", "target_ranks"]

# Shape suffixes: N gallery rows, Q queries, q queries of one chunk, D features, k neighbours, L labels.


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
        sigma: > 0.0015; the authors use T_I.
        chunk: queries compared at a time.

    Returns:
        scores_QL (float64) and the class of the highest score of each query.
    """
    k, train_ND = min(k, len(train_ND)), train_ND.float()
    scores = []
    for start in range(0, len(test_QD), chunk):
        similarity_qk, row_qk = (test_QD[start : start + chunk].float() @ train_ND.T).topk(k)
        similarity_qk = similarity_qk.double()  # exp(1 / sigma) leaves float32 below sigma = 0.0113
        zeros_qL = similarity_qk.new_zeros(len(similarity_qk), classes)
        scores.append(zeros_qL.scatter_add_(1, train_labels_N[row_qk], (similarity_qk / sigma).exp_()))
    scores_QL = torch.cat(scores) if scores else train_ND.new_zeros(0, classes, dtype=torch.float64)
    return scores_QL, scores_QL.argmax(1)


class Retrieval(NamedTuple):
    """How well rows of the query's label are found.

    Attributes:
        recall: for each k asked, the share of queries with a row of their label among the k nearest.
        mean_average_precision: mean over the queries of the average precision over the whole gallery.
        queries: those that count: whose label is in the gallery at all.
    """

    recall: dict[int, float]
    mean_average_precision: float
    queries: int


@torch.no_grad()
def retrieval(
    gallery_ND: Tensor,
    gallery_labels_N: Tensor,
    query_QD: Tensor,
    query_labels_Q: Tensor,
    ks: Sequence[int] = (1, 5, 10),
    chunk: int = 256,
) -> Retrieval:
    """Rank the gallery for each query by cosine; equal ones in the gallery's order.

    Args:
        gallery_ND, query_QD: unit rows; no query may be in the gallery.
        ks: >= 1.
        chunk: queries ranked at a time; memory is a few times chunk x N numbers.
    """
    gallery_ND, total, precision = gallery_ND.float(), 0, 0.0
    hits = dict.fromkeys(ks, 0)
    place_N = torch.arange(1, len(gallery_ND) + 1, device=gallery_ND.device)
    for start in range(0, len(query_QD), chunk):
        similarity_qN = query_QD[start : start + chunk].float() @ gallery_ND.T
        order_qN = similarity_qN.argsort(dim=1, descending=True, stable=True)
        right_qN = gallery_labels_N[order_qN] == query_labels_Q[start : start + chunk, None]
        right_qN = right_qN[right_qN.any(1)]
        total += len(right_qN)
        for k in ks:
            hits[k] += int(right_qN[:, :k].any(1).sum())
        precision_qN = right_qN.cumsum(1) / place_N
        precision += float(((precision_qN * right_qN).sum(1) / right_qN.sum(1)).sum())
    return Retrieval({k: hits[k] / max(1, total) for k in ks}, precision / max(1, total), total)


@torch.no_grad()
def target_ranks(
    query_QD: Tensor, gallery_ND: Tensor, target_Q: Tensor, blocked_QN: Tensor | None = None, chunk: int = 512
) -> Tensor:
    """Rank of each query's one target among the gallery by cosine: 1 = nearest; ties count against it.

    Args:
        query_QD, gallery_ND: unit rows.
        target_Q: row of the gallery that each query should find.
        blocked_QN: rows that are no distractors for a query, such as its near repeats; a target may be among them.
    """
    ranks, gallery_ND = [], gallery_ND.float()
    for start in range(0, len(query_QD), chunk):
        part = slice(start, start + chunk)
        similarity_qN = query_QD[part].float() @ gallery_ND.T
        at_q1 = target_Q[part, None]
        ahead_qN = ~(similarity_qN < similarity_qN.gather(1, at_q1))  # also where one of them is not a number
        if blocked_QN is not None:
            ahead_qN &= ~blocked_QN[part]
        ahead_qN.scatter_(1, at_q1, True)
        ranks.append(ahead_qN.sum(1))
    return torch.cat(ranks) if ranks else target_Q.new_zeros(0)
