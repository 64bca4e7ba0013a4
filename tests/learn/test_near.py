"""Near-repeats: the relation, where it enters the losses, segments, partners, alignment."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from cld_stream.config import LossSettings, Settings, load_settings
from cld_stream.errors import UsageError
from cld_stream.learn.alignment import Alignment
from cld_stream.learn.branches import BRANCHES, Batch
from cld_stream.learn.branches.moco import KeyQueue
from cld_stream.learn.buffer import Ids, Origin, ReplayBuffer
from cld_stream.learn.learner import Learner, StepReport
from cld_stream.learn.losses import npid_loss, nt_xent
from cld_stream.learn.near import Near, NearRepeats
from cld_stream.learn.segments import Segmenter
from tests.learn.test_groups import unit_rows
from tests.learn.test_learner import PIXELS, SMALL, differing, state

TIMED = LossSettings(near="time", near_s=1.0, near_positives=1.0)


def origin(ids: Ids) -> Origin:
    """Recordings of 16 frames, two a second."""
    return Origin(ids // 16, ids % 16 / 2)


def step(learner: Learner, start: int, fresh: int = 8) -> StepReport:
    ids = np.arange(start, start + fresh)
    plan = learner.plan(ids, origin(ids))
    return learner.step(plan, PIXELS[torch.from_numpy(plan.wanted)], torch.full((len(plan.wanted),), 1.5))


def run(learner: Learner, steps: int, start: int = 0) -> list[float]:
    return [step(learner, start + 8 * i).loss for i in range(steps)]


places = st.lists(st.tuples(st.integers(-1, 3), st.integers(0, 6)), min_size=1, max_size=12)


@given(batch=places, table=places, within=st.sampled_from([0.0, 1.0, 3.0]))
def test_pairs_in_the_buffer_are_those_of_the_definition(
    batch: list[tuple[int, int]], table: list[tuple[int, int]], within: float
) -> None:
    (place_N, time_N), (place_M, time_M) = (torch.tensor(t).T.contiguous() for t in (batch, table))
    near = Near(place_N, time_N.double(), place_M, time_M.double(), within)
    expected = {
        (i, j)
        for i, (p, t) in enumerate(batch)
        for j, (q, u) in enumerate(table)
        if p == q >= 0 and abs(t - u) <= within
    }
    assert {tuple(pair) for pair in near.in_buffer().T.tolist()} == expected
    assert {tuple(pair) for pair in near.to(place_M, time_M.double()).nonzero().tolist()} == expected


def test_a_hidden_row_is_as_good_as_absent_and_an_aged_one_counts_less() -> None:
    f, bank = unit_rows(3, 8, 0), unit_rows(6, 8, 1)
    own = torch.tensor([0, 1, 2])
    hidden = torch.tensor([[0, 1, 2], [5, 5, 5]])
    without = npid_loss(f, bank[:5], own, 0.2)
    assert npid_loss(f, bank, own, 0.2, near_2P=hidden) == pytest.approx(float(without))
    weight = torch.tensor([0.0, 0, 0, 0, 0, np.log(0.5)])
    twice = torch.cat([bank[:5], bank[5:], bank[5:]])  # one row that counts half, twice, is one row
    weights = torch.cat([weight, weight[5:]])
    assert npid_loss(f, twice, own, 0.2, weight_M=weights) == pytest.approx(float(npid_loss(f, bank, own, 0.2)))


def test_near_views_of_a_batch_are_no_negatives_but_the_own_other_view_stays_the_positive() -> None:
    f1, f2 = unit_rows(3, 8, 0), unit_rows(3, 8, 1)
    near = torch.eye(3, dtype=torch.bool)
    near[0, 1] = near[1, 0] = True
    views, logits = torch.cat([f1, f2]), torch.cat([f1, f2]) @ torch.cat([f1, f2]).T / 0.2
    terms = []
    for v in range(6):
        other = (v + 3) % 6
        rivals = [w for w in range(6) if w % 3 != v % 3 and not near[v % 3, w % 3]]
        terms.append(torch.cat([logits[v, [other]], logits[v, rivals]]).logsumexp(0) - logits[v, other])
    assert len(views) == 6
    assert nt_xent(f1, f2, 0.2, near) == pytest.approx(float(torch.stack(terms).mean()), rel=1e-5)


def test_keys_of_near_repeats_are_hidden_until_they_leave_the_queue() -> None:
    queue = KeyQueue(6, 4)
    near = Near(torch.tensor([5, 7]), torch.tensor([0.0, 0.0]).double(), *(torch.empty(0),) * 2, 1.0)
    queue.push(unit_rows(2, 4, 0), torch.tensor([10, 11]), near)
    assert near.to(queue.place_K, queue.time_K).tolist() == [[True, *[False] * 5], [False, True, *[False] * 4]]
    queue.forget(torch.tensor([10]))
    assert queue.place_K.tolist() == [-1, 7, -1, -1, -1, -1]
    old = {name: t for name, t in queue.state_dict().items() if name not in ("place_K", "time_K")}
    KeyQueue(6, 4).load_state_dict(old)  # as the first release saved it


def scenes(lengths: list[int], dim: int = 32, noise: float = 2.0) -> NDArray[np.float32]:
    """Unit features that stay near one direction for so many frames, then near another."""
    rng = np.random.default_rng(3)
    rows = [c + noise * rng.standard_normal((n, dim)) for n in lengths for c in [3 * rng.standard_normal(dim)]]
    f = np.concatenate(rows).astype(np.float32)
    return np.asarray(f / np.linalg.norm(f, axis=1, keepdims=True))


def test_segments_are_cut_where_the_features_change_and_where_the_recording_does() -> None:
    lengths = [40, 25, 60, 30, 45]
    f = scenes(lengths)
    segmenter, found = Segmenter(), []
    for at in range(0, 200, 16):  # as batches of fresh frames come
        part = f[at : at + 16]
        before = segmenter.state_dict()
        segments, after = segmenter.cut(part, Origin(np.zeros(len(part), np.int64), np.zeros(len(part))))
        assert all(np.array_equal(before[k], v) for k, v in segmenter.state_dict().items())
        segmenter = Segmenter()
        segmenter.load_state_dict(after.state_dict())
        found += segments.tolist()
    changes = set(np.flatnonzero(np.diff(found)) + 1)
    assert set(np.cumsum(lengths)[:-1].tolist()) <= changes
    assert len(changes) <= len(lengths) + 4  # few cuts inside
    two = Origin(np.array([1] * 5 + [2] * 5), np.zeros(10))
    assert Segmenter().cut(f[:10], two)[0].tolist() == [0] * 5 + [1] * 5


def test_frames_from_nobody_knows_where_share_no_segment() -> None:
    origin = Origin(np.array([4, 4, -1, -1, -1, 4, 4]), np.zeros(7))
    assert Segmenter().cut(scenes([7]), origin)[0].tolist() == [0, 0, 1, 2, 3, 4, 4]


def test_partners_are_other_near_repeats_that_stay() -> None:
    buffer, rng = ReplayBuffer(64, "fifo"), np.random.default_rng(0)
    ids = np.arange(64)
    buffer.admit(ids, rng, origin=origin(ids))
    near = NearRepeats(TIMED, 64)
    slots, gone = np.arange(10, 40), np.arange(0, 10)
    partner = near.partners(buffer, slots, buffer.origin(slots), gone, rng)
    assert (partner >= 10).all()
    assert (partner != slots).all()
    assert (buffer.source[partner] == buffer.source[slots]).all()
    assert (np.abs(buffer.time[partner] - buffer.time[slots]) <= 1).all()
    half = NearRepeats(replace(TIMED, near_positives=0.5), 64)
    share = np.mean([(half.partners(buffer, slots, buffer.origin(slots), gone, rng) >= 0).mean() for _ in range(60)])
    assert share == pytest.approx(0.5, abs=0.05)
    alone = half.partners(buffer, np.array([3]), Origin.unknown(1), gone, rng)
    assert alone.tolist() == [-1]


def near_settings(*more: str) -> Settings:
    return load_settings(overrides=[*SMALL, "loss.near_s=1.5", "loss.queue=50", "loss.key_momentum=0.9", *more])


VARIANTS = [
    ("loss.near=time", "loss.near_negatives=false", "loss.near_positives=0.5"),
    ("loss.near=segment", "loss.near_negatives=false", "loss.near_positives=0.5", "loss.cross_level=segments"),
    ("loss.align=bank", "loss.row_half_life=20"),
    ("loss.align=ema",),
]


@pytest.mark.parametrize("more", VARIANTS)
def test_ten_steps_a_reload_and_ten_more_are_twenty_bit_for_bit(more: tuple[str, ...]) -> None:
    settings = near_settings(*more)
    whole, first = Learner(settings), Learner(settings)
    losses = run(whole, 20)
    assert torch.tensor(losses).isfinite().all()
    again = run(first, 10)
    second = Learner(settings)
    second.load_state_dict(*first.state_dict())
    assert losses == again + run(second, 10, start=80)
    assert differing(state(whole), state(second)) == []


def test_segments_of_other_frames_do_not_stay_when_a_state_without_any_comes_back() -> None:
    by_time, by_segment = (Learner(near_settings(f"loss.near={kind}")) for kind in ("time", "segment"))
    run(by_time, 3)
    run(by_segment, 6)
    assert (by_segment.near.segment_M >= 0).any()
    by_segment.load_state_dict(*by_time.state_dict())
    assert (by_segment.near.segment_M == -1).all()
    step(by_segment, 200)
    assert by_segment.near.segment_M.max() == 0


@pytest.mark.parametrize("more", VARIANTS)
def test_a_bad_step_changes_nothing(more: tuple[str, ...]) -> None:
    learner = Learner(near_settings(*more))
    run(learner, 6)
    before = state(learner)
    hook = next(learner.encoder.parameters()).register_hook(lambda grad: grad * float("nan"))  # type: ignore[no-untyped-call]
    assert not step(learner, 200).ok
    assert differing(before, state(learner)) == []
    hook.remove()
    assert step(learner, 208).ok


@pytest.mark.parametrize(("branch", "negatives"), [*((name, 0) for name in BRANCHES if name != "byol"), ("npid", 16)])
def test_without_near_negatives_every_contrast_is_easier(branch: str, negatives: int) -> None:
    more = (f"loss.branch={branch}", f"loss.negatives={negatives}", "loss.near=time", "loss.near_s=9")
    plain, masked = (Learner(near_settings(*more, f"loss.near_negatives={v}")) for v in ("true", "false"))
    for learner in (plain, masked):
        step(learner, 0, fresh=24)
    first, second = (step(learner, 24).instance for learner in (plain, masked))
    assert second < first - 1e-3


def test_the_second_view_of_a_frame_with_a_partner_shows_the_partner() -> None:
    quiet = ("augment.jitter=0", "augment.grey=0", "augment.scale_min=1", "loss.near=time", "loss.near_positives=1")
    learner = Learner(near_settings(*quiet))
    run(learner, 5)
    ids = np.arange(40, 48)
    plan = learner.plan(ids, origin(ids))
    assert len(plan.partners) > 10
    light = torch.arange(len(plan.wanted), dtype=torch.uint8) * 5  # every frame is one shade of grey
    pixels = light[:, None, None, None].expand(-1, 20, 20, 3).contiguous()
    views = learner._views(plan, pixels, torch.ones(len(pixels)), torch.Generator().manual_seed(0))
    assert views.shape[:2] == (2, len(plan.ids))
    shade = torch.cat(
        [
            views[0].mean((1, 2, 3)),
            learner.views(pixels, torch.ones(len(pixels)), torch.Generator())[0, len(plan.ids) :].mean((1, 2, 3)),
        ]
    )
    torch.testing.assert_close(views[1].mean((1, 2, 3)), shade[torch.from_numpy(plan.second)], atol=1e-4, rtol=0)


def test_segments_as_groups_are_the_frames_of_one_segment() -> None:
    learner = Learner(near_settings("loss.near=time", "loss.cross_level=segments"))
    g1, g2 = unit_rows(4, 16, 0), unit_rows(4, 16, 1)
    none = torch.empty(0)
    near = Near(torch.tensor([4, 4, -1, -1]), torch.zeros(4).double(), none, none, 1.0)
    slots, newborn = torch.arange(4), torch.zeros(4, dtype=torch.bool)
    found = learner.cross_level(g1, g2, slots, newborn, torch.tensor([2, 0, 3, 1]), near)
    label, t = torch.tensor([2, 2, 1, 0]), learner.settings.loss.temperature_group

    def centroids(g: Tensor) -> Tensor:
        return torch.stack([g[3], g[2], g[:2].mean(0)])

    expected = (F.cross_entropy(g1 @ centroids(g2).T / t, label) + F.cross_entropy(g2 @ centroids(g1).T / t, label)) / 2
    assert found == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("align", ["bank", "ema"])
def test_the_aligner_learns_to_tell_the_stored_features_and_no_gradient_reaches_them(align: str) -> None:
    learner = Learner(near_settings(f"loss.align={align}"))
    run(learner, 4)
    assert isinstance(learner.alignment, Alignment)
    f1, f2 = (unit_rows(6, 16, i).requires_grad_() for i in (0, 1))
    slots = torch.from_numpy(np.flatnonzero(learner.buffer.ids >= 0)[:6])
    views = torch.randn(2, 6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    newborn = torch.tensor([True, *[False] * 5])
    batch = Batch(slots, slots, newborn, views, f1, f2, learner.bank, torch.Generator())
    optimiser = torch.optim.Adam(learner.alignment.aligner.parameters(), 0.01)
    start = float(learner.alignment(batch).detach())
    for _ in range(150):
        optimiser.zero_grad()
        learner.alignment(batch).backward()
        optimiser.step()
    assert float(learner.alignment(batch).detach()) < start / 3
    assert f1.grad is not None
    assert (f1.grad[0] == 0).all()  # it was born in this step: nothing is stored of it
    assert not learner.bank.rows_MD.requires_grad
    nobody = replace(batch, newborn_N=torch.ones(6, dtype=torch.bool))
    assert learner.alignment(nobody) == 0


def test_settings_that_need_near_repeats_say_so() -> None:
    for item in ("loss.cross_level=segments", "loss.near_positives=0.5", "loss.near_negatives=false"):
        with pytest.raises(UsageError, match=r"loss\.near: must be time or segment"):
            load_settings(overrides=[item])
