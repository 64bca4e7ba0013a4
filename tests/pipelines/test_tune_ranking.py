import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cld_stream.pipelines.tune_ranking import SURE, rank_candidates

RUN = np.repeat(np.arange(20), 8)


def scores(*lifts: float, seeds: int = 2, noise: float = 0.05) -> NDArray[np.float64]:
    """A candidate each, over questions whose difficulty the runs of frames share."""
    rng = np.random.default_rng(0)
    hard_Q = 0.1 * rng.standard_normal(20)[RUN]
    return np.stack([0.5 + hard_Q + lift + noise * rng.standard_normal((seeds, len(RUN))) for lift in lifts])


def test_a_candidate_that_is_clearly_ahead_is_sure() -> None:
    best, second = rank_candidates(scores(0.0, 0.1), RUN)
    assert (best.index, second.index) == (1, 0)
    assert best.first > 0.99
    assert second.beaten > SURE


def test_equal_candidates_share_every_resample() -> None:
    one = scores(0.0)[0]
    standings = rank_candidates(np.stack([one, one, one]), RUN)
    assert [s.index for s in standings] == [0, 1, 2]
    assert all(abs(s.first - 1 / 3) < 1e-9 and s.beaten == 0.5 for s in standings)


def test_candidates_that_differ_by_chance_alone_are_not_told_apart() -> None:
    standings = rank_candidates(scores(0.0, 0.0, 0.0, noise=0.3), RUN)
    assert standings[1].beaten < SURE
    assert standings[0].first < SURE


def test_questions_of_one_run_count_as_one() -> None:
    """An advantage in a single long run of repeats is luck, however many frames ask it again."""
    score_CTQ = np.full((2, 1, 160), 0.5)
    score_CTQ[1, 0, :80] = 1.0
    lone = rank_candidates(score_CTQ, np.r_[np.zeros(80), np.arange(1, 81)].astype(np.int64))
    many = rank_candidates(score_CTQ, np.arange(160))
    assert many[0].first > SURE > lone[0].first


def test_a_lead_of_one_seed_out_of_two_is_not_sure() -> None:
    score_CTQ = np.full((2, 2, len(RUN)), 0.5)
    score_CTQ[1, 0], score_CTQ[1, 1] = 0.8, 0.4
    assert rank_candidates(score_CTQ, RUN)[0].first < SURE


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(4)), st.integers(1, 3))
def test_the_order_in_which_candidates_are_given_changes_nothing(order: list[int], seeds: int) -> None:
    score_CTQ = scores(0.0, 0.03, -0.2, 0.01, seeds=seeds)
    one, other = rank_candidates(score_CTQ, RUN), rank_candidates(score_CTQ[order], RUN)
    assert [s.index for s in one] == [order[s.index] for s in other]
    for a, b in zip(one, other, strict=True):
        assert np.allclose((a.score, a.spread, a.first, a.beaten), (b.score, b.spread, b.first, b.beaten))


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 5), st.integers(1, 3), st.integers(1, 12), st.integers(0, 99))
def test_shares_are_shares_and_scores_are_means(candidates: int, seeds: int, questions: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    score_CTQ = rng.random((candidates, seeds, questions)).round(1)
    standings = rank_candidates(score_CTQ, rng.integers(0, 4, questions))
    assert np.isclose(sum(s.first for s in standings), 1)
    assert [s.score for s in standings] == sorted((s.score for s in standings), reverse=True)
    for s in standings:
        assert np.isclose(s.score, score_CTQ[s.index].mean())
        assert 0 <= s.first <= 1
        assert 0 <= s.beaten <= 1
