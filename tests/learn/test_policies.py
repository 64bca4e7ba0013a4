"""Every replay policy: what holds for all of them, and what each promises."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cld_stream.config import BufferSettings, Settings, load_settings
from cld_stream.learn.bank import MemoryBank
from cld_stream.learn.buffer import Admission, Ids, ReplayBuffer
from cld_stream.learn.learner import Learner
from cld_stream.learn.policies import EMPTY, POLICIES
from cld_stream.learn.policies.groups import Groups
from cld_stream.learn.policies.minred import MinRed
from cld_stream.learn.policies.two_tier import TwoTier
from tests.learn.test_learner import SMALL, assert_resumes, differing, run, state, step

EVERY = sorted(POLICIES)


class Memory:
    """A buffer beside a bank, led as the learner leads them. `features` are those of frames 0, 1, 2, ..."""

    def __init__(self, capacity: int, policy: str, features: NDArray[np.float32], **settings: Any) -> None:
        self.buffer = ReplayBuffer(capacity, policy, BufferSettings(**settings))
        self.bank = MemoryBank(capacity, features.shape[1], 0.5)
        self.features = F.normalize(torch.from_numpy(features), dim=1)

    def feed(self, ids: Ids, rng: np.random.Generator, replays: int = 0) -> Admission:
        """One step: newcomers enter, and they and some replayed ones get their rows."""
        admission = self.buffer.propose(ids, rng)
        taken = admission.slots[admission.slots != EMPTY]
        replayed = self.buffer.sample(replays, rng, exclude=taken)
        self.buffer.apply(admission, 0)
        slots = np.concatenate([admission.slots, replayed])
        moved = slots[slots != EMPTY]
        self.bank.fill(torch.from_numpy(moved), self.features[torch.from_numpy(self.buffer.ids[moved])])
        self.buffer.follow(self.bank.rows_MD, self.bank.live_M, moved)
        return admission

    def remember(self, ids: Ids, rng: np.random.Generator) -> Admission:
        admission = self.buffer.admit(ids, rng)
        self.bank.kill(torch.from_numpy(admission.slots[admission.slots != EMPTY]))
        return admission

    def drop(self, ids: Ids) -> None:
        self.bank.kill(torch.from_numpy(self.buffer.drop(ids)))

    def held(self) -> set[int]:
        return set(self.buffer.ids[self.buffer.ids != EMPTY].tolist())


def noise(n: int, dim: int = 6, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


def assert_same(one: ReplayBuffer, other: ReplayBuffer) -> None:
    a, b = one.state_dict(), other.state_dict()
    assert a.keys() == b.keys()
    assert [name for name in a if not np.array_equal(a[name], b[name])] == []


MOVES = st.lists(
    st.tuples(st.sampled_from(["feed", "feed", "feed", "remember", "drop"]), st.integers(0, 14)), max_size=14
)


@settings(deadline=None)
@given(policy=st.sampled_from(EVERY), capacity=st.integers(1, 12), moves=MOVES, seed=st.integers(0, 5))
def test_whatever_happens_the_table_agrees_with_what_was_said(
    policy: str, capacity: int, moves: list[tuple[str, int]], seed: int
) -> None:
    memory, rng = Memory(capacity, policy, noise(400), groups=2), np.random.default_rng(seed)
    present: set[int] = set()
    fed = 0
    for kind, n in moves:
        if kind == "drop":
            gone = rng.integers(0, fed + 1, n)
            memory.drop(gone)
            present -= set(gone.tolist())
            continue
        room = capacity - len(present)
        act = memory.feed if kind == "feed" else memory.remember
        admission = act(np.arange(fed, fed + n), rng)
        taken = admission.slots != EMPTY
        assert len(set(admission.slots[taken].tolist())) == taken.sum()
        assert set(admission.evicted.tolist()) <= present
        assert room >= n or taken.sum() >= room
        fed += n
        present = present - set(admission.evicted.tolist()) | set(admission.ids[taken].tolist())
        if policy != "reservoir":
            newest = memory.buffer.policy.recent if isinstance(memory.buffer.policy, TwoTier) else capacity
            assert set(range(fed - min(n, newest), fed)) <= present  # they always enter
        assert memory.held() == present
        assert len(present) == min(capacity, capacity - room + n)
        slots = memory.buffer.sample(5, rng)
        assert len(set(slots.tolist())) == min(5, len(present))
        assert (memory.buffer.ids[slots] != EMPTY).all()


@settings(deadline=None, max_examples=30)
@given(policy=st.sampled_from(EVERY), capacity=st.integers(2, 30), seed=st.integers(0, 5))
def test_a_restored_memory_goes_on_as_the_original(policy: str, capacity: int, seed: int) -> None:
    features = noise(400, seed=seed)
    first, second = (Memory(capacity, policy, features, groups=3) for _ in range(2))
    rng = np.random.default_rng(seed)
    for i in range(12):
        first.feed(np.arange(7 * i, 7 * i + 7), rng, replays=6)
    first.drop(np.arange(60, 66))
    second.buffer.load_state_dict(first.buffer.state_dict())
    second.bank.load_state_dict(first.bank.state_dict())
    for memory in (first, second):
        rng = np.random.default_rng(seed + 1)
        for i in range(12, 20):
            memory.feed(np.arange(7 * i, 7 * i + 7), rng, replays=6)
    assert_same(first.buffer, second.buffer)


@pytest.mark.parametrize("policy", EVERY)
def test_deciding_changes_nothing(policy: str) -> None:
    memory, rng = Memory(30, policy, noise(400), groups=3), np.random.default_rng(0)
    for i in range(10):
        memory.feed(np.arange(7 * i, 7 * i + 7), rng, replays=6)
    twin = ReplayBuffer(30, policy, BufferSettings(groups=3))
    twin.load_state_dict(memory.buffer.state_dict())
    memory.buffer.propose(np.arange(300, 320), rng)
    memory.buffer.sample(9, rng)
    assert_same(memory.buffer, twin)


@pytest.mark.parametrize("policy", EVERY)
def test_a_table_that_another_policy_kept_is_taken_over(policy: str) -> None:
    rng = np.random.default_rng(0)
    for other in EVERY:
        old, new = (Memory(30, name, noise(900), groups=3) for name in (other, policy))
        for i in range(10):
            old.feed(np.arange(7 * i, 7 * i + 7), rng, replays=6)
        new.feed(np.arange(800, 820), rng)
        new.buffer.load_state_dict(old.buffer.state_dict())
        new.bank.load_state_dict(old.bank.state_dict())
        for i in range(10, 20):
            new.feed(np.arange(7 * i, 7 * i + 7), rng, replays=6)
        assert len(new.held()) == 30


def test_two_tiers_of_which_the_long_one_is_nothing_are_first_in_first_out() -> None:
    one, other = (Memory(20, name, noise(400)) for name in ("two-tier", "fifo"))
    assert isinstance(one.buffer.policy, TwoTier)
    one.buffer.policy.recent = 20
    for i in range(12):
        for memory in (one, other):
            memory.feed(np.arange(9 * i, 9 * i + 9), np.random.default_rng(0))
    assert one.held() == other.held()


@pytest.mark.parametrize("batches", [[4, 26, *[7] * 12], [25] * 5, [100]])
def test_the_long_tier_is_a_uniform_sample_of_what_left_the_recent_one(batches: list[int]) -> None:
    capacity, recent, stream, trials = 30, 10, 120, 2000
    kept, rng, ids = np.zeros(stream), np.random.default_rng(1), np.arange(stream)
    features = noise(stream)
    for _ in range(trials):
        memory = Memory(capacity, "two-tier", features, recent=recent / capacity)
        for part in np.split(ids, np.cumsum(batches)):
            memory.buffer.admit(part, rng)
        kept[memory.buffer.ids] += 1
    assert (kept[-recent:] == trials).all()
    old = kept[:-recent]
    share = (capacity - recent) / len(old)
    chi2 = ((old - trials * share) ** 2 / (trials * share * (1 - share))).sum()
    assert abs(chi2 - len(old)) < 5 * np.sqrt(2 * len(old))


def test_after_a_forget_the_tiers_get_their_sizes_back() -> None:
    memory, rng = Memory(30, "two-tier", noise(400), recent=1 / 3), np.random.default_rng(2)
    for i in range(10):
        memory.feed(np.arange(9 * i, 9 * i + 9), rng)
    memory.drop(np.array([85, 86, 87, *sorted(memory.held())[:4]]))
    for i in range(10, 14):
        memory.feed(np.arange(9 * i, 9 * i + 9), rng)
    assert set(range(116, 126)) <= memory.held()
    assert len(memory.held()) == 30


def test_the_recent_tier_has_its_share_of_the_replays() -> None:
    memory, rng = Memory(100, "two-tier", noise(400), recent=0.2, recent_share=0.4), np.random.default_rng(3)
    for i in range(30):
        memory.feed(np.arange(10 * i, 10 * i + 10), rng)
    newest = memory.buffer.order >= 280
    for n, expected in ((40, 16), (10, 4), (100, 20), (90, 20)):
        slots = memory.buffer.sample(n, rng)
        assert len(set(slots.tolist())) == n
        assert newest[slots].sum() == expected


def closest_pairs(memory: Memory, n: int) -> set[int]:
    """Brute force: n times, of the two closest rows the older one goes."""
    slots = np.flatnonzero(memory.buffer.ids != EMPTY).tolist()
    rows, gone = memory.bank.rows_MD.double().numpy(), set[int]()
    for _ in range(n):
        pairs = [(float(rows[a] @ rows[b]), a, b) for a in slots for b in slots if a < b]
        _, a, b = max(pairs)
        goes = a if memory.buffer.order[a] < memory.buffer.order[b] else b
        slots.remove(goes)
        gone.add(int(memory.buffer.ids[goes]))
    return gone


@settings(deadline=None, max_examples=25)
@given(capacity=st.integers(6, 16), sizes=st.lists(st.integers(1, 5), max_size=8), seed=st.integers(0, 1000))
def test_minred_evicts_what_brute_force_over_all_pairs_evicts(capacity: int, sizes: list[int], seed: int) -> None:
    memory, rng = Memory(capacity, "minred", noise(100, 4, seed)), np.random.default_rng(seed)
    memory.feed(np.arange(capacity), rng)
    fed = capacity
    for n in sizes:
        expected = closest_pairs(memory, n)
        admission = memory.feed(np.arange(fed, fed + n), rng, replays=3)
        assert set(admission.evicted.tolist()) == expected
        fed += n


def test_what_minred_knows_of_its_pairs_is_true_when_rows_move_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cld_stream.learn.policies.minred._WORK", 0)  # few rows look for a neighbour in a step
    memory, rng = Memory(300, "minred", noise(2000)), np.random.default_rng(4)
    policy = memory.buffer.policy
    assert isinstance(policy, MinRed)
    for i in range(60):
        memory.features = F.normalize(memory.features + 0.1 * torch.from_numpy(noise(2000, seed=i + 1)), dim=1)
        memory.feed(np.arange(16 * i, 16 * i + 16), rng, replays=30)
        memory.drop(np.array([16 * i - 40, 16 * i + 3]))
        known = np.flatnonzero(policy.near_M != EMPTY)
        near = policy.near_M[known]
        rows = memory.bank.rows_MD.numpy()
        assert (memory.buffer.ids[known] != EMPTY).all()
        assert (memory.buffer.ids[near] != EMPTY).all()
        assert (known != near).all()
        np.testing.assert_allclose(policy.cosine_M[known], (rows[known] * rows[near]).sum(1), atol=1e-5)
    assert len(known) > 200


def static_camera(seed: int, n: int = 2000) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """A scene in slowly changing light under noise, and in it 12 events of three frames each."""
    rng = np.random.default_rng(seed)
    scene, light, event = (rng.standard_normal(shape) for shape in (32, 32, (12, 32)))
    features = scene + 0.3 * np.sin(np.arange(n)[:, None] / 200) * light + 0.05 * rng.standard_normal((n, 32))
    at = rng.choice(n // 2 // 3, 12, replace=False)[:, None] * 3 + np.arange(3)
    features[at] = event[:, None] + 0.05 * rng.standard_normal((12, 3, 32))
    rare = np.zeros(n, np.bool_)
    rare[at] = True
    return features.astype(np.float32), rare


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_before_a_static_camera_rare_events_stay_in_memory(seed: int) -> None:
    features, rare = static_camera(seed)
    kept = {}
    for policy in ("reservoir", "minred", "groups"):
        memory, rng = Memory(100, policy, features, groups=12), np.random.default_rng(seed)
        for start in range(0, len(features), 16):
            memory.feed(np.arange(start, min(start + 16, len(features))), rng, replays=40)
        ids = sorted(memory.held())
        kept[policy] = int(rare[ids].sum())
    assert kept["reservoir"] < 9
    assert kept["minred"] >= 12  # one frame of every event
    assert kept["groups"] >= 30


def test_of_frames_that_repeat_each_other_in_one_batch_all_but_one_go_next() -> None:
    features = noise(200, 16)
    features[50:66] = features[50] + 0.01 * noise(16, 16, 1)
    memory, rng = Memory(50, "minred", features), np.random.default_rng(5)
    for ids in np.split(np.arange(81), [25, 50, 66]):
        memory.feed(ids, rng)
    assert len(memory.held() & set(range(50, 66))) == 1


@pytest.mark.parametrize("policy", ["minred", "groups"])
def test_a_buffer_that_is_only_remembered_works_and_its_frames_are_known_once_replayed(policy: str) -> None:
    memory, rng = Memory(40, policy, noise(400), groups=4), np.random.default_rng(6)
    for start in (0, 30, 60):
        memory.remember(np.arange(start, start + 30), rng)
    assert len(memory.held()) == 40
    for i in range(20):
        memory.feed(np.arange(100 + 4 * i, 104 + 4 * i), rng, replays=12)
    known = memory.buffer.policy.near_M if isinstance(memory.buffer.policy, MinRed) else memory.buffer.policy.group_M  # type: ignore[attr-defined]
    assert ((known != EMPTY) == memory.bank.live_M.numpy()).all()


def test_groups_are_bounded_and_every_frame_with_a_row_has_one() -> None:
    memory, rng = Memory(400, "groups", noise(4000, 8), groups=10), np.random.default_rng(7)
    policy = memory.buffer.policy
    assert isinstance(policy, Groups)
    for i in range(200):
        memory.feed(np.arange(16 * i, 16 * i + 16), rng, replays=20)
        open_ = policy.opened_G > 0
        assert (open_ & policy.long_G).sum() <= 10
        assert (open_ & ~policy.long_G).sum() <= 10
        assert open_[policy.group_M[memory.buffer.ids != EMPTY]].all()
    assert (open_ & policy.long_G).sum() == 10
    sizes = np.bincount(policy.group_M[policy.group_M != EMPTY], minlength=20)
    assert sizes.max() < 100


def test_groups_give_away_from_the_most_crowded() -> None:
    memory, rng = Memory(40, "groups", noise(400), groups=3), np.random.default_rng(8)
    policy = memory.buffer.policy
    assert isinstance(policy, Groups)
    memory.feed(np.arange(40), rng)
    policy.group_M[:] = np.repeat([0, 1, 2, 3], [20, 12, 6, 2])
    before = policy.group_M.copy()
    gone = before[memory.buffer.propose(np.arange(100, 112), rng).slots]
    assert np.bincount(gone).tolist() == [10, 2]


def small(policy: str) -> Settings:
    base = load_settings(overrides=[*SMALL, "buffer.groups=4"])
    return replace(base, buffer=replace(base.buffer, policy=policy))  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", EVERY)
def test_ten_steps_a_reload_and_ten_more_are_twenty_bit_for_bit(policy: str) -> None:
    assert_resumes(small(policy))


@pytest.mark.parametrize("policy", EVERY)
def test_a_bad_step_changes_nothing(policy: str) -> None:
    learner = Learner(small(policy))
    run(learner, 8)
    before = state(learner)
    hook = next(learner.encoder.parameters()).register_hook(lambda grad: grad * float("nan"))  # type: ignore[no-untyped-call]
    assert not step(learner, range(200, 208)).ok
    assert differing(before, state(learner)) == []
    hook.remove()
    assert step(learner, range(208, 216)).ok
    assert differing(before, state(learner)) != []


@pytest.mark.parametrize("policy", EVERY)
def test_a_learner_may_remember_and_forget_between_steps(policy: str) -> None:
    learner = Learner(small(policy))
    learner.remember(range(60))
    run(learner, 6, start=60)
    learner.forget(range(0, 110, 3))
    learner.remember(range(110, 140))
    assert step(learner, range(140, 148)).ok
    assert len(learner.buffer) == 40
    assert not set(range(0, 110, 3)) & set(learner.buffer.ids.tolist())
