from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cld_stream.config import load_settings
from cld_stream.learn.augment import central_view
from cld_stream.learn.learner import Learner
from cld_stream.learn.looks import Looks
from tests.learn.test_learner import PIXELS, SMALL, frames, run, step


def test_the_fresh_frames_are_looked_at_and_then_those_of_the_oldest_looks() -> None:
    looks = Looks(60, 4, 16, torch.device("cpu"))
    looks.bank.fill(torch.arange(40), torch.ones(40, 4))
    looks.bank.step_M[:40] = torch.arange(40)
    replayed = np.array([5, 20, 50, 1, 39, 38, 37, 36, 35, 34, 33])
    at = looks.choose(np.concatenate([[41, -1, 42], replayed]), 3)
    assert at[:2].tolist() == [0, 2]
    assert np.concatenate([[41, -1, 42], replayed])[at[2:]].tolist() == [50, 1, 5, 20, 33, 34]


def test_batches_of_looks_have_few_sizes() -> None:
    looks = Looks(60, 4, 16, torch.device("cpu"))
    assert {len(looks.choose(np.arange(40), fresh)) for fresh in range(17)} == {4, 8, 12, 16, 20}


def test_a_look_is_the_feature_of_the_central_view_under_the_averaged_weights() -> None:
    learner = Learner(load_settings(overrides=[*SMALL, "buffer.policy=minred"]))
    run(learner, 6)
    assert learner.looks is not None
    assert (learner.looks.bank.live_M.numpy() == (learner.buffer.ids >= 0)).all()
    fresh = torch.arange(40, 48)  # those of the last step
    encoder = learner.average.module(learner.encoder).eval()
    with torch.no_grad():
        expected = F.normalize(encoder(central_view(PIXELS[fresh], torch.full((8,), 1.5), 16)).instance_Nd, dim=1)
    slots = [int(np.flatnonzero(learner.buffer.ids == i)[0]) for i in fresh.tolist()]
    torch.testing.assert_close(learner.looks.bank.rows_MD[slots], expected)
    assert learner.encoder.training


@pytest.mark.parametrize("policy", ["minred", "groups"])
def test_a_newcomer_that_memory_does_not_hold_to_be_looked_at_has_no_look_and_not_that_of_the_frame_it_replaces(
    policy: str,
) -> None:
    learner = Learner(load_settings(overrides=[*SMALL, f"buffer.policy={policy}", "buffer.capacity=24"]))
    run(learner, 6)
    assert learner.looks is not None
    assert learner.looks.bank.live_M.all()

    def no_room_to_look(module: nn.Module, _: tuple[torch.Tensor, ...]) -> None:
        if not module.training:
            torch.empty(1 << 50)

    learner.encoder.register_forward_pre_hook(no_room_to_look)
    step(learner, range(60, 68))
    newcomers = np.flatnonzero(learner.buffer.ids >= 60)
    assert len(newcomers) == 8
    assert not learner.looks.bank.live_M[newcomers].any()
    assert int(learner.looks.bank.live_M.sum()) == 16


def test_frames_that_are_only_remembered_are_looked_at_if_their_pixels_are_there() -> None:
    learner = Learner(load_settings(overrides=[*SMALL, "buffer.policy=minred", "buffer.capacity=200"]))
    run(learner, 6)
    assert learner.looks is not None
    known = int(learner.looks.bank.live_M.sum())
    learner.remember(range(100, 107))
    assert int(learner.looks.bank.live_M.sum()) == known
    slots = learner.remember(range(110, 117), None, PIXELS[110:117], torch.full((7,), 1.5)).slots
    encoder = learner.average.module(learner.encoder).eval()
    with torch.no_grad():
        views = central_view(PIXELS[110:117], torch.full((7,), 1.5), 16)
        expected = F.normalize(encoder(views).instance_Nd, dim=1)
    torch.testing.assert_close(learner.looks.bank.rows_MD[torch.from_numpy(slots)], expected)
    assert int(learner.looks.bank.live_M.sum()) == known + 7
    assert step(learner, range(120, 128)).ok


def test_what_was_looked_at_changes_nothing_in_the_training_of_a_buffer_that_is_not_full() -> None:
    settings = load_settings(overrides=[*SMALL, "buffer.capacity=200"])
    losses = {
        p: run(Learner(replace(settings, buffer=replace(settings.buffer, policy=p))), 8) for p in ("fifo", "minred")
    }
    assert losses["fifo"] == losses["minred"]


def test_of_near_repeats_in_a_stream_the_learner_keeps_fewer_than_of_what_differs() -> None:
    base = frames(400, seed=3).float()
    base[100:300] = base[100] + 4 * torch.randn(200, 20, 20, 3, generator=torch.Generator().manual_seed(0))
    pixels = base.clamp(0, 255).to(torch.uint8)
    held = {}
    for policy in ("reservoir", "minred"):
        learner = Learner(load_settings(overrides=[*SMALL, f"buffer.policy={policy}"]))
        for i in range(37):
            step(learner, range(8 * i, 8 * i + 8), pixels)
        held[policy] = int((learner.buffer.ids >= 100).sum())
    assert held["minred"] < held["reservoir"] - 8
