"""Who is ahead, and how sure that is: a bootstrap over seeds and runs of frames."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["Standing", "rank_candidates"]

# Shape suffixes: C candidates, T seeds, Q questions, R runs of frames.

RESAMPLES = 2000


@dataclass(frozen=True)
class Standing:
    """One candidate among the others.

    Attributes:
        index: of the candidate as given.
        score: mean over seeds and questions, 0 to 1.
        spread: standard deviation of the seeds' means; 0 of one seed.
        first: share of the resamples in which it is ahead of all others.
        ahead: share of the resamples in which it is ahead of the next one; 1 for the last.
    """

    index: int
    score: float
    spread: float
    first: float
    ahead: float


def rank_candidates(score_CTQ: NDArray[np.float64], run_Q: NDArray[np.int64], seed: int = 0) -> list[Standing]:
    """Best first.

    Neighbouring frames ask nearly the same question, and a seed is luck too: `RESAMPLES` times seeds and runs of frames
    are drawn with replacement, the same ones for every candidate. Two that are equal in a resample share it.

    Args:
        score_CTQ: the same seeds and questions for every candidate.
        run_Q: run of each question.
    """
    runs, at_Q = np.unique(run_Q, return_inverse=True)
    member_QR = np.eye(len(runs))[at_Q]
    sum_CTR, size_R = score_CTQ @ member_QR, member_QR.sum(0)
    rng, seeds = np.random.default_rng(seed), score_CTQ.shape[1]
    means = []
    for _ in range(RESAMPLES):
        weight_R = rng.multinomial(len(runs), np.full(len(runs), 1 / len(runs)))
        drawn_C = sum_CTR[:, rng.integers(seeds, size=seeds)].sum(1) @ weight_R
        means.append(drawn_C / (seeds * (size_R @ weight_R)))
    mean_BC = np.stack(means)
    best_BC = np.isclose(mean_BC, mean_BC.max(1, keepdims=True), rtol=0, atol=1e-12)
    first_C = (best_BC / best_BC.sum(1, keepdims=True)).mean(0)
    score_C, spread_C = score_CTQ.mean((1, 2)), score_CTQ.mean(2).std(1, ddof=min(1, seeds - 1))
    order = np.argsort(-score_C, kind="stable")
    ahead = [_share_ahead(mean_BC[:, a], mean_BC[:, b]) for a, b in pairwise(order)]
    return [
        Standing(int(c), float(score_C[c]), float(spread_C[c]), float(first_C[c]), share)
        for c, share in zip(order, [*ahead, 1.0], strict=True)
    ]


def _share_ahead(a_B: NDArray[np.float64], b_B: NDArray[np.float64]) -> float:
    return float(((a_B > b_B + 1e-12) + (np.abs(a_B - b_B) <= 1e-12) / 2).mean())
