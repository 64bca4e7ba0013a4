"""Every instance branch in the learner, with and without CLD; MoCo's queue; BYOL's target."""

from collections import deque
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cld_stream.config import Settings, load_settings
from cld_stream.learn.bank import MemoryBank
from cld_stream.learn.branches import BRANCHES, Batch
from cld_stream.learn.branches.byol import BYOL
from cld_stream.learn.branches.moco import KeyQueue, MoCo
from cld_stream.learn.branches.npid import NPID
from cld_stream.learn.learner import Learner
from cld_stream.learn.losses import nce_loss, nce_normaliser, npid_loss
from tests.learn.conftest import Golden
from tests.learn.test_groups import unit_rows
from tests.learn.test_learner import SMALL, assert_resumes, differing, run, state, step

KINDS = [*((name, 0) for name in BRANCHES), ("npid", 16)]


def small(branch: str, negatives: int = 0, cld: float = 1.0, **loss: object) -> Settings:
    base = load_settings(overrides=[*SMALL, "loss.queue=50", "loss.key_momentum=0.9"])
    return replace(base, loss=replace(base.loss, branch=branch, negatives=negatives, cld_weight=cld, **loss))  # type: ignore[arg-type]


@pytest.mark.parametrize(("branch", "negatives"), KINDS)
@pytest.mark.parametrize("cld", [0.0, 1.0])
def test_ten_steps_a_reload_and_ten_more_are_twenty_bit_for_bit(branch: str, negatives: int, cld: float) -> None:
    assert_resumes(small(branch, negatives, cld))


@pytest.mark.parametrize(("branch", "negatives"), KINDS)
def test_a_bad_step_changes_nothing(branch: str, negatives: int) -> None:
    learner = Learner(small(branch, negatives))
    run(learner, 6)
    before = state(learner)
    hook = next(learner.encoder.parameters()).register_hook(lambda grad: grad * float("nan"))  # type: ignore[no-untyped-call]
    assert not step(learner, range(200, 208)).ok
    assert differing(before, state(learner)) == []
    hook.remove()
    assert step(learner, range(208, 216)).ok


@pytest.mark.parametrize("branch", BRANCHES)
def test_cld_is_the_same_add_on_in_every_branch(branch: str) -> None:
    plain, both = (step(Learner(small(branch, cld=w)), range(24)) for w in (0.0, 0.7))
    assert plain.instance == both.instance
    assert both.loss == pytest.approx(both.instance + 0.7 * both.cld)
    assert both.cld > 0
    assert plain.loss == plain.instance


@pytest.mark.data
def test_the_queue_wraps_as_the_authors(golden: Golden) -> None:
    queue = KeyQueue(24, 16)
    queue.keys_KD.copy_(golden("moco/queue_before"))
    queue.cursor.copy_(golden("moco/cursor_before"))
    queue.push(golden("moco/k"), torch.arange(8))
    assert torch.equal(queue.keys_KD, golden("moco/queue_after"))
    assert int(queue.cursor) == int(golden("moco/cursor_after"))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.lists(st.integers(1, 30), max_size=8))
def test_the_queue_holds_the_newest_keys_whatever_the_batch_size(size: int, batches: list[int]) -> None:
    queue, expected = KeyQueue(size, 2), deque[int](maxlen=size)
    count = 0
    for n in batches:
        ids = torch.arange(count, count + n)
        queue.push(ids[:, None].float().expand(n, 2), ids)
        expected.extend(ids.tolist())
        count += n
    held = queue.ids_K[queue.ids_K >= 0]
    assert sorted(held.tolist()) == sorted(expected)
    assert (queue.keys_KD[queue.ids_K >= 0, 0].long() == held).all()
    assert (queue.keys_KD[queue.ids_K < 0] == 0).all()


def test_a_forgotten_frame_leaves_the_queue_and_an_evicted_one_stays() -> None:
    learner = Learner(small("moco", queue=400))
    run(learner, 9)  # 72 frames have been seen, the buffer holds 40
    branch = learner.branch
    assert isinstance(branch, MoCo)
    queue, evicted = branch.queue, set(range(72)) - set(learner.buffer.ids.tolist())
    assert evicted <= set(queue.ids_K.tolist())
    gone = min(evicted)
    learner.forget([gone])
    assert gone not in queue.ids_K.tolist()
    assert evicted - {gone} <= set(queue.ids_K.tolist())
    assert (queue.keys_KD[queue.ids_K < 0] == 0).all()


def test_a_frame_is_never_its_own_negative_in_the_queue_and_empty_places_are_nobodys() -> None:
    settings = small("moco", queue=12)
    branch = MoCo(settings, Learner(settings).encoder)
    branch.queue.push(unit_rows(8, 16, 0), torch.tensor([7] * 8))  # four places stay empty
    views = torch.randn(3, 2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    f1, f2 = unit_rows(2, 16, 1), unit_rows(2, 16, 2)
    nobody, bank = torch.tensor([False, False]), MemoryBank(4, 16, 0.5)

    def loss(ids: list[int]) -> float:
        slots = torch.tensor([0, 1])
        return float(branch(Batch(torch.tensor(ids), slots, nobody, views, f1, f2, bank, torch.Generator())))

    assert loss([7, 7]) == pytest.approx(0, abs=1e-6)
    assert loss([7, 8]) > 0.1


def test_the_momentum_encoder_follows_by_its_equation_and_learns_nothing() -> None:
    learner = Learner(small("byol"))
    branch = learner.branch
    assert isinstance(branch, BYOL)
    before = [p.clone() for p in branch.target.parameters()]
    step(learner, range(24))
    for old, now, theta in zip(before, branch.target.parameters(), learner.encoder.parameters(), strict=True):
        torch.testing.assert_close(now, 0.9 * old + 0.1 * theta)
        assert not now.requires_grad


def test_the_predictor_is_trained_and_is_not_published() -> None:
    learner = Learner(small("byol"))
    branch = learner.branch
    assert isinstance(branch, BYOL)
    before = [p.clone() for p in branch.predictor.parameters()]
    step(learner, range(24))
    assert any(not torch.equal(a, b) for a, b in zip(before, branch.predictor.parameters(), strict=True))
    assert learner.averaged().state_dict().keys() == learner.encoder.state_dict().keys()


def test_the_normaliser_of_sampled_noise_follows_the_encoder() -> None:
    learner = Learner(small("npid", 16, cld=0.0))
    branch = learner.branch
    assert isinstance(branch, NPID)
    assert branch.log_z.isnan()
    step(learner, range(24))
    first = float(branch.log_z)
    for _ in range(60):
        f_ND = step(learner).features
    rows_MD = learner.bank.rows_MD[learner.bank.live_M]
    now = float(nce_normaliser(f_ND, f_ND, rows_MD, learner.settings.loss.temperature_instance))
    assert abs(now - first) > 1
    assert float(branch.log_z) == pytest.approx(now, abs=0.3)


def test_drawn_noise_agrees_with_the_full_softmax_about_who_is_near() -> None:
    """Both losses fall when a frame moves towards its own row, and rise when it moves towards the others."""
    f, bank = unit_rows(6, 8, 0), unit_rows(40, 8, 1)
    own = torch.arange(6)
    nearer = torch.nn.functional.normalize(f + bank[:6])
    z = nce_normaliser(f, bank[:6], bank, 0.2)
    assert npid_loss(nearer, bank, own, 0.2) < npid_loss(f, bank, own, 0.2)
    assert nce_loss(nearer, bank[:6], bank[6:], 0.2, z) < nce_loss(f, bank[:6], bank[6:], 0.2, z)
