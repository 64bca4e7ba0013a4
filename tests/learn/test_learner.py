from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cld_stream.config import Settings, load_settings
from cld_stream.learn.augment import central_view
from cld_stream.learn.branches import BRANCHES
from cld_stream.learn.learner import Learner, StepReport
from cld_stream.learn.probes import feature_std, knn_classify

SMALL = (
    "encoder.width=0.125", "encoder.crop=16", "encoder.feature_dim=16", "loss.groups=12", "buffer.capacity=40",
    "optim.batch=24", "optim.fresh=8", "optim.warmup_steps=5", "augment.flip=0",
)  # fmt: skip


@pytest.fixture
def settings() -> Settings:
    return load_settings(overrides=SMALL)


def frames(n: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (n, 20, 20, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


PIXELS = frames(400)


def step(learner: Learner, fresh: range | tuple[()] = (), pixels: Tensor = PIXELS) -> StepReport:
    plan = learner.plan(fresh)
    return learner.step(plan, pixels[torch.from_numpy(plan.ids)], torch.full((len(plan.ids),), 1.5))


def run(learner: Learner, steps: int, start: int = 0) -> list[float]:
    return [step(learner, range(start + 8 * i, start + 8 * i + 8)).loss for i in range(steps)]


def state(learner: Learner) -> dict[str, NDArray[Any]]:
    """Everything but the clock, which moves on even when a step goes wrong."""
    arrays, numbers = learner.state_dict()
    return arrays | {k: np.array(v) for k, v in numbers.items() if k != "clock"}


def differing(a: dict[str, NDArray[Any]], b: dict[str, NDArray[Any]]) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if not np.array_equal(a[name], b[name])]


def assert_resumes(settings: Settings) -> None:
    """Twenty steps are ten, a reload and ten more, bit for bit."""
    whole, first = Learner(settings), Learner(settings)
    losses = run(whole, 20)
    assert torch.tensor(losses).isfinite().all()
    again = run(first, 10)
    second = Learner(settings)
    second.load_state_dict(*first.state_dict())
    again += run(second, 10, start=80)
    assert losses == again
    assert differing(state(whole), state(second)) == []


def test_a_batch_is_the_fresh_frames_first_and_then_distinct_replays_of_others(settings: Settings) -> None:
    learner = Learner(settings)
    run(learner, 6)
    plan = learner.plan(range(48, 56))
    assert plan.ids[:8].tolist() == list(range(48, 56))
    assert len(set(plan.ids.tolist())) == 24
    assert not set(plan.ids[8:].tolist()) & set(plan.admission.evicted.tolist())
    assert (learner.buffer.ids[plan.slots[8:]] == plan.ids[8:]).all()


def test_no_frame_is_replayed_more_often_than_allowed(settings: Settings) -> None:
    learner = Learner(replace(settings, buffer=replace(settings.buffer, max_replays=3)))
    run(learner, 6)
    while len(learner.plan().ids) > 1:
        step(learner)
    assert learner.buffer.replays.max() == 3
    assert (learner.buffer.replays < 3).sum() <= 1
    assert 8 <= len(learner.plan(range(100, 108)).ids) <= 9


def test_planning_changes_nothing(settings: Settings) -> None:
    learner = Learner(settings)
    run(learner, 6)
    before = state(learner)
    first, second = learner.plan(range(48, 56)), learner.plan(range(48, 56))
    assert (first.ids == second.ids).all()
    assert differing(before, state(learner)) == []


def test_bank_rows_and_buffer_rows_are_alive_together(settings: Settings) -> None:
    learner = Learner(settings)
    run(learner, 9)
    assert (learner.bank.live_M.numpy() == (learner.buffer.ids >= 0)).all()
    norms = learner.bank.rows_MD[learner.bank.live_M].norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms))


def test_a_remembered_frame_gets_its_bank_row_when_it_is_first_replayed(settings: Settings) -> None:
    learner = Learner(settings)
    learner.remember(range(24))
    assert not learner.bank.live_M.any()
    assert step(learner).ok
    assert learner.bank.live_M.sum() == 24


def test_a_remembered_frame_does_not_inherit_the_row_of_the_one_it_replaces(settings: Settings) -> None:
    learner = Learner(replace(settings, buffer=replace(settings.buffer, policy="fifo")))
    run(learner, 6)
    slots = learner.remember(range(100, 110)).slots
    assert not learner.bank.live_M[torch.from_numpy(slots)].any()


def test_frames_remembered_one_after_another_and_those_of_the_next_step_take_places_of_their_own(
    settings: Settings,
) -> None:
    learner = Learner(replace(settings, buffer=replace(settings.buffer, policy="reservoir")))
    run(learner, 6)
    places = [learner.remember(range(100 + 20 * i, 120 + 20 * i)).slots for i in range(3)]
    places.append(learner.plan(range(200, 220)).admission.slots)
    assert len({tuple(slots.tolist()) for slots in places}) == 4
    taken = [set(slots[slots >= 0].tolist()) for slots in places]
    assert all(len(a & b) < min(len(a), len(b)) for a, b in pairwise(taken))


def test_forgotten_frames_leave_buffer_and_bank(settings: Settings) -> None:
    learner = Learner(settings)
    run(learner, 4)
    slots = learner.forget([3, 5, 999])
    assert len(slots) == 2
    assert not learner.bank.live_M[torch.from_numpy(slots)].any()
    assert not {3, 5} & set(learner.buffer.ids.tolist())
    assert step(learner, range(200, 208)).ok


def test_ten_steps_a_reload_and_ten_more_are_twenty_bit_for_bit(settings: Settings) -> None:
    assert_resumes(settings)


def test_a_backbone_that_leaves_something_to_chance_resumes_bit_for_bit() -> None:
    # EfficientNet has stochastic depth
    settings = load_settings(overrides=[*SMALL, "encoder.backbone=efficientnet_b0", "encoder.crop=32", "optim.batch=8"])
    whole, second = Learner(settings), Learner(settings)
    run(whole, 1)
    second.load_state_dict(*whole.state_dict())
    before = torch.random.get_rng_state()
    losses = run(whole, 2, start=8)
    assert torch.equal(torch.random.get_rng_state(), before)  # nobody else's draws depend on it
    with torch.random.fork_rng():
        torch.manual_seed(1)  # another process
        again = run(second, 2, start=8)
    assert losses == again
    assert differing(state(whole), state(second)) == []


def test_a_step_that_is_not_finite_changes_nothing(settings: Settings) -> None:
    learner = Learner(settings)
    run(learner, 8)
    learner.rate = 1e30  # throws the weights out of range: a real divergence
    while step(learner, range(200 + 8 * learner.clock, 208 + 8 * learner.clock)).ok:
        assert learner.clock < 20
    before, clock = state(learner), learner.clock
    report = step(learner, range(390, 398))
    assert not report.ok
    assert differing(before, state(learner)) == []
    assert learner.clock == clock + 1


def test_a_gradient_that_is_not_finite_changes_nothing(settings: Settings) -> None:
    learner = Learner(settings)
    run(learner, 8)
    before = state(learner)
    hook = next(learner.encoder.parameters()).register_hook(lambda grad: grad * float("nan"))  # type: ignore[no-untyped-call]
    assert not step(learner, range(200, 208)).ok
    assert differing(before, state(learner)) == []
    hook.remove()
    assert step(learner, range(208, 216)).ok


def test_after_a_bad_step_other_replays_are_drawn(settings: Settings) -> None:
    learner = Learner(settings)
    run(learner, 8)
    before = learner.plan()
    learner.clock += 1
    assert (learner.plan().ids != before.ids).any()
    learner.clock -= 1
    learner.salt += 1
    assert (learner.plan().ids != before.ids).any()


@pytest.mark.parametrize("head", ["bnlinear", "bnmlp"])
def test_a_stream_that_begins_black_learns_once_there_is_something_to_see(head: str) -> None:
    learner = Learner(load_settings(overrides=[*SMALL, f"encoder.head={head}"]))
    for i in range(3):
        assert step(learner, range(8 * i, 8 * i + 8), torch.zeros_like(PIXELS)).ok
    assert max(float(p.detach().abs().max()) for p in learner.encoder.parameters()) < 2
    run(learner, 9, start=24)
    assert feature_std(step(learner, range(96, 104)).features) > 0.5


def test_the_rate_rises_from_a_hundredth_and_then_stays(settings: Settings) -> None:
    learner = Learner(settings)
    rates = [step(learner, range(8 * i, 8 * i + 8)).lr for i in range(8)]
    lr = settings.optim.lr
    assert rates[0] == pytest.approx(lr / 100)
    assert rates == sorted(rates)
    assert rates[5:] == pytest.approx([lr] * 3)


def test_a_cosine_rate_falls_to_zero_at_the_last_step(settings: Settings) -> None:
    optim = replace(settings.optim, schedule="cosine", total_steps=12, warmup_steps=4)
    learner = Learner(replace(settings, optim=optim))
    rates = [step(learner, range(8 * i, 8 * i + 8)).lr for i in range(13)]
    assert rates[:5] == sorted(rates[:5])
    assert rates[4] == pytest.approx(optim.lr)
    assert rates[8] == pytest.approx(optim.lr / 2)
    assert rates[12] == pytest.approx(0, abs=1e-12)


def test_without_cld_the_group_head_learns_nothing(settings: Settings) -> None:
    learner = Learner(replace(settings, loss=replace(settings.loss, cld_weight=0.0)))
    report = step(learner, range(8))
    assert report.cld == 0
    assert report.loss == report.instance


def test_the_published_encoder_is_averaged_and_leaves_training_alone(settings: Settings) -> None:
    learner = Learner(settings)
    run(learner, 6)
    before = state(learner)
    slots = learner.draw(20)
    batch = PIXELS[torch.from_numpy(learner.buffer.ids[slots])], torch.ones(20)
    encoder, weights = learner.publishable([batch])
    assert encoder == settings.encoder
    assert differing(before, state(learner)) == []
    trained = learner.encoder.state_dict()
    assert weights.keys() == trained.keys()
    assert not np.array_equal(weights["instance_head.weight"], trained["instance_head.weight"].numpy())


@pytest.mark.parametrize("head", ["linear", "bnlinear"])
def test_a_batch_of_one_frame_says_nothing_about_batch_norm(head: str) -> None:
    learner = Learner(load_settings(overrides=[*SMALL, f"encoder.head={head}"]))
    run(learner, 2)
    whole, one = (PIXELS[:8], torch.ones(8)), (PIXELS[8:9], torch.ones(1))
    for batches, same in (([whole, one], [whole]), ([one], [])):
        expected = learner.averaged(same).state_dict()
        assert all(torch.equal(expected[name], t) for name, t in learner.averaged(batches).state_dict().items())


def test_too_few_frames_or_another_number_than_planned_are_refused(settings: Settings) -> None:
    learner = Learner(settings)
    plan = learner.plan([0])
    with pytest.raises(ValueError, match="at least 2"):
        learner.step(plan, PIXELS[:1], torch.ones(1))
    plan = learner.plan(range(8))
    with pytest.raises(ValueError, match="has 8 frames"):
        learner.step(plan, PIXELS[:7], torch.ones(7))


def scenes(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Six classes of stripes (three directions, two widths) in any place and light, under noise."""
    label = torch.randint(0, 6, (n,), generator=generator)
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(20.0), indexing="ij")
    angle, pitch = (label % 3) * 1.047, torch.where(label < 3, 0.6, 1.5)
    phase = torch.rand(n, generator=generator) * 6.3
    wave = torch.cos(angle)[:, None, None] * x + torch.sin(angle)[:, None, None] * y
    wave = torch.sin(pitch[:, None, None] * wave + phase[:, None, None])
    light = 128 + 25 * torch.randn(n, 1, 1, generator=generator)
    picture = light + 40 * wave + 25 * torch.randn(n, 20, 20, generator=generator)
    return picture.clamp(0, 255).to(torch.uint8)[..., None].expand(-1, -1, -1, 3).contiguous(), label


@pytest.mark.parametrize("branch", BRANCHES)
def test_a_short_training_beats_the_random_encoder(settings: Settings, branch: str) -> None:
    n, train = 500, 320
    pixels, label = scenes(n, torch.Generator().manual_seed(0))
    settings = replace(
        settings,
        buffer=replace(settings.buffer, capacity=train),
        optim=replace(settings.optim, batch=48),
        loss=replace(settings.loss, groups=24, branch=branch, key_momentum=0.9, queue=192),  # type: ignore[arg-type]
        augment=replace(settings.augment, scale_min=0.5),
    )

    def accuracy(learner: Learner) -> float:
        encoder = learner.averaged([(pixels[:256], torch.ones(256))])
        with torch.no_grad():
            f = F.normalize(encoder(central_view(pixels, torch.ones(n), 16)).backbone_ND)
        _, found = knn_classify(f[:train], label[:train], f[train:], 10, 0.1, 6)
        return float((found == label[train:]).float().mean())

    learner = Learner(settings)
    start = accuracy(learner)
    for i in range(train // 8):
        step(learner, range(8 * i, 8 * i + 8), pixels)
    for _ in range(60):
        step(learner, (), pixels)
    assert accuracy(learner) > start + 0.1, branch
