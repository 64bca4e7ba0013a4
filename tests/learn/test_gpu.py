"""The same on a GPU as on a CPU; `make gpu` runs these where there is one."""

import gc
from functools import partial

import pytest
import torch

from cld_stream.config import AugmentSettings, load_settings
from cld_stream.learn.augment import RandomViews
from cld_stream.learn.branches import BRANCHES
from cld_stream.learn.groups import local_kmeans
from cld_stream.learn.incremental import IncrementalKMeans
from cld_stream.learn.learner import Learner
from cld_stream.learn.losses import cross_level_loss, info_nce, npid_loss
from cld_stream.learn.pieces import LEAST
from tests.learn.test_groups import unit_rows
from tests.learn.test_learner import PIXELS, SMALL

DEVICE = "cuda"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]


def test_losses_and_groups_are_those_of_the_cpu_also_under_autocast() -> None:
    f, other, bank, own = unit_rows(64, 32, 0), unit_rows(64, 32, 1), unit_rows(5000, 32, 2), torch.arange(64)
    grouping = partial(local_kmeans, k=32, iters=5)

    def all_of_them(device: str) -> tuple[list[float], torch.Tensor]:
        q, k, rows = (x.to(device) for x in (f, other, bank))
        losses = (
            npid_loss(q, rows, own.to(device), 0.1),
            info_nce(q, k, rows, 0.1),
            cross_level_loss(q, k, grouping, 0.2),
        )
        return [float(loss) for loss in losses], grouping(q)[0].cpu()

    expected, labels = all_of_them("cpu")
    for precision in ("highest", "high"):  # "high" lets others use TF32
        torch.set_float32_matmul_precision(precision)
        with torch.autocast(DEVICE, torch.bfloat16):
            found, found_labels = all_of_them(DEVICE)
        torch.set_float32_matmul_precision("highest")
        assert found == pytest.approx(expected, abs=1e-4)
        assert torch.equal(found_labels, labels)


def test_views_are_those_of_the_cpu_when_the_generator_is() -> None:
    augment = AugmentSettings(blur=0.5, erase=0.5)
    frames, aspect = PIXELS[:40], torch.linspace(0.5, 2, 40)
    here, there = (
        RandomViews(augment, 16, 2)(frames.to(d), aspect.to(d), torch.Generator().manual_seed(3)).cpu()
        for d in ("cpu", DEVICE)
    )
    torch.testing.assert_close(here, there, atol=2e-3, rtol=0)


def test_incremental_groups_are_deterministic() -> None:
    rows, live = unit_rows(2000, 32, 0).to(DEVICE), torch.ones(2000, dtype=torch.bool, device=DEVICE)
    means = []
    for _ in range(2):
        groups = IncrementalKMeans(50, 32, 2000, device=DEVICE)
        groups.partial_fit(rows[:256], torch.arange(256, device=DEVICE))
        for _ in range(3):
            groups.refine(rows, live, torch.Generator().manual_seed(0))
        means.append(groups.means_KD.cpu())
    assert torch.equal(*means)


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("cross_level", ["local", "both"])
def test_a_learner_learns_saves_and_goes_on(branch: str, cross_level: str) -> None:
    extra = [
        f"loss.branch={branch}",
        f"loss.cross_level={cross_level}",
        "loss.bank_groups=6",
        "loss.bank_refine_steps=4",
    ]
    settings = load_settings(overrides=[*SMALL, *extra])
    learner = Learner(settings, DEVICE)

    def steps(learner: Learner, start: int, n: int) -> None:
        for i in range(start, start + n):
            plan = learner.plan(range(8 * i, 8 * i + 8))
            pixels = PIXELS[torch.from_numpy(plan.ids)].to(DEVICE)
            assert learner.step(plan, pixels, torch.ones(len(pixels), device=DEVICE)).ok

    steps(learner, 0, 10)
    again = Learner(settings, DEVICE)
    again.load_state_dict(*learner.state_dict())
    steps(again, 10, 5)
    assert again.updates == 15


@pytest.mark.parametrize("branch", BRANCHES)
def test_a_step_that_a_gpu_does_not_hold_is_done_in_pieces(branch: str, caplog: pytest.LogCaptureFixture) -> None:
    extra = [f"loss.branch={branch}", "loss.align=ema", "encoder.norm=group", "encoder.crop=64", "encoder.width=0.5"]
    size = ["optim.batch=256", "optim.fresh=256", "buffer.capacity=256", "optim.amp=never"]
    settings = load_settings(overrides=[*SMALL, *extra, *size])
    pixels = PIXELS[:256].to(DEVICE)

    def first_step(learner: Learner) -> float:
        report = learner.step(learner.plan(range(256)), pixels, torch.ones(256, device=DEVICE))
        assert report.ok
        return report.loss

    whole = Learner(settings, DEVICE)
    torch.cuda.reset_peak_memory_stats()
    expected = first_step(whole)
    peak, total = torch.cuda.max_memory_allocated(), torch.cuda.get_device_properties(0).total_memory
    del whole
    gc.collect()
    torch.cuda.empty_cache()
    learner = Learner(settings, DEVICE)
    torch.cuda.set_per_process_memory_fraction(0.6 * peak / total)
    try:
        assert first_step(learner) == pytest.approx(expected, rel=1e-3)
        assert learner.pieces.frames is not None
        assert LEAST <= learner.pieces.frames < 256
        assert "out of memory with 256 frames at a time" in caplog.records[0].getMessage()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
