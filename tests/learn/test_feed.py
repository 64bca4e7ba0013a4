import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cld_stream.learn.feed import Feed, shown


def test_below_the_limit_everything_is_fed_in_order() -> None:
    feed = Feed(max_lag=100)
    assert feed.take(4, 10).tolist() == [0, 1, 2, 3]
    assert feed.take(100, 10).tolist() == [4, 5, 6, 7, 8, 9]
    assert feed.take(4, 10).tolist() == []
    assert (feed.cursor, feed.fed, feed.thinned, feed.lag(12)) == (10, 10, 0, 2)


def test_a_large_backlog_is_thinned_evenly() -> None:
    feed = Feed(max_lag=300)
    ids = np.concatenate([feed.take(16, 1000) for _ in range(100)])
    assert len(ids) == 300
    assert set(np.diff(ids)) == {3, 4}  # 1000 / 300
    assert ids[0] == 0
    assert ids[-1] >= 1000 - 4
    assert (feed.thinned, feed.cursor) == (700, 1000)


def test_after_a_thinned_stretch_every_frame_is_fed_again() -> None:
    feed = Feed(max_lag=10)
    assert feed.take(10, 20).tolist() == list(range(0, 20, 2))
    assert feed.take(10, 25).tolist() == [20, 21, 22, 23, 24]


def test_ids_without_frames_are_no_backlog() -> None:
    feed = Feed(max_lag=10)
    feed.skip_to(990)
    assert feed.take(20, 1000).tolist() == list(range(990, 1000))
    assert (feed.fed, feed.thinned, feed.cursor) == (10, 0, 1000)
    feed.skip_to(3)
    assert feed.cursor == 1000
    assert feed.take(2, 1020).tolist() == [1000, 1002]  # every second one of twenty
    feed.skip_to(1015)
    assert feed.take(9, 1020).tolist() == [1015, 1017, 1019]


@given(
    max_lag=st.integers(1, 50),
    moves=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 20)), max_size=30),
)
def test_on_a_growing_store_each_id_is_fed_once_or_counted_as_thinned(
    max_lag: int, moves: list[tuple[int, int]]
) -> None:
    feed, committed, fed = Feed(max_lag=max_lag), 0, list[int]()
    for grow, n in moves:
        committed += grow
        fed += feed.take(n, committed).tolist()
        assert feed.fed + feed.thinned == feed.cursor <= committed
    while feed.lag(committed):
        fed += feed.take(7, committed).tolist()
    assert fed == sorted(set(fed))
    assert len(fed) == feed.fed
    assert feed.fed + feed.thinned == committed


@given(max_lag=st.integers(1, 50), committed=st.integers(0, 300), first=st.integers(0, 40))
def test_a_feed_restored_from_json_goes_on_as_the_original(max_lag: int, committed: int, first: int) -> None:
    feed, again = Feed(max_lag=max_lag), Feed(max_lag=max_lag)
    feed.take(first, committed)
    again.load_state_dict(json.loads(json.dumps(feed.state_dict())))
    assert feed.take(30, committed + 20).tolist() == again.take(30, committed + 20).tolist()
    assert feed == again


@given(st.integers(0, 200), st.integers(0, 200))
def test_as_many_are_shown_as_may_be_and_evenly_spread(n: int, most: int) -> None:
    at = np.flatnonzero(shown(n, most))
    assert len(at) == (min(n, most) if most else n)
    gaps = np.diff(at)
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1
