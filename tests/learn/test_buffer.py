from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cld_stream.learn.buffer import Admission, Origin, ReplayBuffer
from cld_stream.learn.policies import POLICIES


def offer(buffer: ReplayBuffer, sizes: list[int], rng: np.random.Generator) -> list[Admission]:
    """Frames 0, 1, 2, ... in batches of these sizes."""
    starts = np.cumsum([0, *sizes])
    return [
        buffer.admit(np.arange(a, a + n), rng, step) for step, (a, n) in enumerate(zip(starts[:-1], sizes, strict=True))
    ]


def held(buffer: ReplayBuffer) -> list[int]:
    return sorted(buffer.ids[buffer.ids >= 0].tolist())


@given(capacity=st.integers(1, 9), sizes=st.lists(st.integers(0, 20), max_size=12))
def test_fifo_holds_what_a_deque_would(capacity: int, sizes: list[int]) -> None:
    buffer, oracle = ReplayBuffer(capacity, "fifo"), deque[int](maxlen=capacity)
    offer(buffer, sizes, np.random.default_rng(0))
    oracle.extend(range(sum(sizes)))
    assert held(buffer) == sorted(oracle)


@given(
    policy=st.sampled_from(sorted(POLICIES)),
    capacity=st.integers(1, 9),
    sizes=st.lists(st.integers(0, 20), max_size=12),
)
def test_admission_says_who_came_and_who_went(policy: str, capacity: int, sizes: list[int]) -> None:
    buffer, rng = ReplayBuffer(capacity, policy), np.random.default_rng(1)
    present: set[int] = set()
    for admission in offer(buffer, sizes, rng):
        taken = admission.slots >= 0
        assert len(set(admission.slots[taken].tolist())) == taken.sum()
        assert set(admission.evicted.tolist()) <= present
        present -= set(admission.evicted.tolist())
        present |= set(admission.ids[taken].tolist())
    assert held(buffer) == sorted(present)
    assert len(buffer) == min(capacity, sum(sizes))
    assert buffer.seen == sum(sizes)


def test_a_reservoir_keeps_every_frame_of_the_stream_with_equal_probability() -> None:
    capacity, stream, trials = 20, 100, 2000
    rng, kept = np.random.default_rng(2), np.zeros(stream)
    for _ in range(trials):
        buffer = ReplayBuffer(capacity, "reservoir")
        offer(buffer, [7] * 14 + [2], rng)
        kept[buffer.ids] += 1
    expected = trials * capacity / stream
    chi2 = ((kept - expected) ** 2 / (expected * (1 - capacity / stream))).sum()
    assert abs(chi2 - stream) < 5 * np.sqrt(2 * stream)  # mean = degrees of freedom, sd = sqrt(2 df)


def test_a_proposal_changes_nothing_until_it_is_applied() -> None:
    buffer, rng = ReplayBuffer(4, "reservoir"), np.random.default_rng(3)
    offer(buffer, [4], rng)
    before = buffer.state_dict()
    admission = buffer.propose(np.array([10, 11, 12]), rng)
    assert all((before[k] == v).all() for k, v in buffer.state_dict().items())
    buffer.apply(admission, step=5)
    taken = admission.slots >= 0
    assert (buffer.ids[admission.slots[taken]] == admission.ids[taken]).all()
    assert (buffer.born[admission.slots[taken]] == 5).all()


def test_samples_are_distinct_occupied_and_leave_out_the_excluded() -> None:
    buffer, rng = ReplayBuffer(10, "reservoir"), np.random.default_rng(4)
    offer(buffer, [6], rng)
    slots = buffer.sample(100, rng, exclude=np.array([0, 1]))
    assert sorted(slots.tolist()) == [2, 3, 4, 5]
    buffer.touch(slots)
    assert buffer.replays.tolist() == [0, 0, 1, 1, 1, 1, 0, 0, 0, 0]


def test_every_row_is_as_likely_to_be_replayed_as_any_other() -> None:
    buffer, rng = ReplayBuffer(50, "fifo"), np.random.default_rng(5)
    offer(buffer, [50], rng)
    for _ in range(2000):
        buffer.touch(buffer.sample(5, rng))
    assert abs(buffer.replays - 200).max() < 5 * np.sqrt(200)


def test_forgotten_frames_leave_and_their_slots_are_filled_first() -> None:
    buffer, rng = ReplayBuffer(5, "reservoir"), np.random.default_rng(6)
    offer(buffer, [5], rng)
    assert buffer.drop(np.array([1, 3, 99])).tolist() == [1, 3]
    assert held(buffer) == [0, 2, 4]
    assert not set(buffer.sample(5, rng).tolist()) & {1, 3}
    assert buffer.admit(np.array([7, 8]), rng).slots.tolist() == [1, 3]


def test_a_restored_buffer_goes_on_as_the_original() -> None:
    first, second = ReplayBuffer(8, "reservoir"), ReplayBuffer(8, "reservoir")
    offer(first, [5, 9], np.random.default_rng(7))
    second.load_state_dict(first.state_dict())
    for buffer in (first, second):
        rng = np.random.default_rng(8)
        buffer.admit(np.arange(50, 70), rng)
        buffer.touch(buffer.sample(3, rng))
    assert all((second.state_dict()[k] == v).all() for k, v in first.state_dict().items())


@pytest.mark.parametrize("ids", [[3], [7, 7], [-1]])
def test_an_id_that_is_present_repeated_or_negative_is_refused(ids: list[int]) -> None:
    buffer, rng = ReplayBuffer(8, "fifo"), np.random.default_rng(9)
    offer(buffer, [5], rng)
    with pytest.raises(ValueError, match="new, distinct"):
        buffer.admit(np.array(ids), rng)


def test_another_capacity_is_refused() -> None:
    with pytest.raises(ValueError, match="8 rows, this one has 9"):
        ReplayBuffer(9, "fifo").load_state_dict(ReplayBuffer(8, "fifo").state_dict())


def test_where_a_frame_comes_from_stays_with_its_slot_and_in_the_saved_table() -> None:
    buffer, rng = ReplayBuffer(5, "fifo"), np.random.default_rng(0)
    for first in (0, 3, 6):
        ids = np.arange(first, first + 3)
        buffer.admit(ids, rng, origin=Origin(ids + 100, ids / 2))
    other = ReplayBuffer(5, "fifo")
    other.load_state_dict(buffer.state_dict())
    for table in (buffer, other):
        assert table.source.tolist() == (table.ids + 100).tolist()
        assert table.time.tolist() == (table.ids / 2).tolist()
    with pytest.raises(ValueError, match="origin of 2"):
        buffer.admit(np.array([20]), rng, origin=Origin.unknown(2))


def test_a_table_saved_before_there_were_origins_is_read() -> None:
    buffer = ReplayBuffer(3, "fifo")
    buffer.admit(np.arange(3), np.random.default_rng(0))
    old = {name: column for name, column in buffer.state_dict().items() if name not in ("source", "time")}
    other = ReplayBuffer(3, "fifo")
    other.load_state_dict(old)
    assert other.ids.tolist() == [0, 1, 2]
    assert (other.source == -1).all()
