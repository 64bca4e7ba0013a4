"""What the last encoder of a cell is worth: kNN of f_I and a linear probe of the backbone, on all the questions."""

import torch
from torch import Tensor

from benchmarks.offline.data import Images, Problem
from cld_stream.learn.augment import central_view
from cld_stream.learn.learner import Learner
from cld_stream.learn.probes import effective_rank, knn_classify, linear_probe

__all__ = ["NEIGHBOURS", "score"]

NEIGHBOURS = 200
"""Lowered to the size of the smallest class of the training set."""

PENALTY = 1e-4
"""Of the linear probe, the same for everyone."""


@torch.no_grad()
def score(learner: Learner, problem: Problem) -> dict[str, float]:
    """Shares of right answers in [0, 1], and the effective rank of f_I. The training set is gallery and probe's lesson.

    kNN: votes weighted with exp(cosine / T_I), as in the paper.
    """
    instance_Nd, backbone_ND, labels_N = _embed(learner, problem.train)
    asked_Qd, asked_QD, truth_Q = _embed(learner, problem.test)
    sizes = torch.bincount(labels_N)
    k, classes = min(NEIGHBOURS, int(sizes[sizes > 0].min())), len(sizes)
    sigma = learner.settings.loss.temperature_instance
    _, found_Q = knn_classify(instance_Nd, labels_N, asked_Qd, k, sigma, classes)
    return {
        "knn": _share(found_Q, truth_Q),
        "linear": _share(
            linear_probe(backbone_ND, labels_N, asked_QD, classes, penalties=[PENALTY]).predicted_Q, truth_Q
        ),
        "rank": effective_rank(asked_Qd[:2000]),
        "neighbours": k,
    }


def _embed(learner: Learner, images: Images) -> tuple[Tensor, Tensor, Tensor]:
    """f_I, backbone features and labels, in float32 on the learner's device."""
    encoder, crop = learner.encoder.eval(), learner.settings.encoder.crop
    outs = []
    for part_nSS3 in torch.split(images.pixels_NSS3, 500):
        views = central_view(part_nSS3.to(learner.device), torch.ones(len(part_nSS3)), crop)
        outs.append(encoder(views))
    instance_Nd, backbone_ND = (torch.cat(parts) for parts in ([o[1] for o in outs], [o[0] for o in outs]))
    return instance_Nd, backbone_ND, images.labels_N.to(learner.device)


def _share(found_Q: Tensor, truth_Q: Tensor) -> float:
    return round(float((found_Q == truth_Q).float().mean()), 4)
