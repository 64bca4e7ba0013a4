"""Who is ahead, and how sure that is: a bootstrap over seeds and runs of frames."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["SURE", "Standing", "rank_candidates"]

# Shape suffixes: C candidates, T seeds, Q questions, R runs of frames, B resamples.

RESAMPLES = 2000

SURE = 0.95
"""Share of the resamples from which one candidate counts as ahead of another."""

_SAME = 1e-12


@dataclass(frozen=True)
class Standing:
    """One candidate among the others.

    Attributes:
        index: of the candidate as given.
        score: mean over seeds and questions, 0 to 1.
        spread: standard deviation of the seeds' means; 0 of one seed.
        first: share of the resamples in which it is ahead of all others.
        beaten: share of the resamples in which the best one is ahead of it; 0.5 = it cannot be told, and of the best.
    """

    index: int
    score: float
    spread: float
    first: float
    beaten: float


def rank_candidates(score_CTQ: NDArray[np.float64], run_Q: NDArray[np.int64], seed: int = 0) -> list[Standing]:
    """Best first.

    Neighbouring frames ask nearly the same question, and a seed is luck too: `RESAMPLES` times seeds and runs of frames
    are drawn with replacement, the same ones for every candidate. Two that are equal in a resample share it.

    Args:
        score_CTQ: the same seeds and questions for every candidate.
        run_Q: run of each question.
    """
    mean_BC = _resampled_means(score_CTQ, run_Q, np.random.default_rng(seed))
    best_BC = mean_BC >= mean_BC.max(1, keepdims=True) - _SAME
    first_C = (best_BC / best_BC.sum(1, keepdims=True)).mean(0)
    score_C = score_CTQ.mean((1, 2))
    spread_C = score_CTQ.mean(2).std(1, ddof=min(1, score_CTQ.shape[1] - 1))
    order = np.argsort(-score_C, kind="stable")
    lead_BC = mean_BC[:, order[:1]] - mean_BC
    beaten_C = ((lead_BC > _SAME) + (np.abs(lead_BC) <= _SAME) / 2).mean(0)
    return [Standing(int(c), *(float(v[c]) for v in (score_C, spread_C, first_C, beaten_C))) for c in order]


def _resampled_means(
    score_CTQ: NDArray[np.float64], run_Q: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Mean score of each candidate (columns) in each resample (rows)."""
    runs, at_Q = np.unique(run_Q, return_inverse=True)
    sum_CTR, size_R = score_CTQ @ np.eye(len(runs))[at_Q], np.bincount(at_Q)
    times_BR, times_BT = (rng.multinomial(n, np.full(n, 1 / n), RESAMPLES) for n in (len(runs), score_CTQ.shape[1]))
    drawn_BC = np.einsum("ctb,bt->bc", sum_CTR @ times_BR.T, times_BT)
    return np.asarray(drawn_BC / (score_CTQ.shape[1] * (times_BR @ size_R))[:, None])
