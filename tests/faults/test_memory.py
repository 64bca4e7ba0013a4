"""Memory that does not hold a step: processes whose address space is limited (as by `ulimit -v`)."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cld_stream.config import load_settings
from cld_stream.errors import DeviceFullError
from cld_stream.learn.encoder import build_encoder
from cld_stream.pipelines.embed import Embedder
from cld_stream.pipelines.train import train
from cld_stream.storage.checkpoints import load_checkpoint, pinned_checkpoint
from tests.faults.faulty import ROOT
from tests.pipelines.published import ENCODER, weights
from tests.pipelines.test_train import SMALL, grow, metrics

BIG = (
    "store.size=48", "encoder.width=0.25", "encoder.crop=48", "encoder.norm=group", "encoder.feature_dim=16",
    "loss.groups=16", "buffer.capacity=128", "optim.batch=64", "optim.fresh=64", "optim.warmup_steps=5",
    "train.min_frames=16", "train.log_steps=1", "train.threads=1", "train.poll_s=0.05", "publish.groups=4",
)  # fmt: skip
"""A step takes about 515 MB whole, 235 in halves, 170 in quarters."""

LIMITED = """
import resource, sys
import cld_stream.cli.progress, cld_stream.pipelines.train, faiss, tensorboard.summary.writer.record_writer
from cld_stream.cli import main
if __name__ == "__main__":
    with open("/proc/self/statm") as statm:
        now = int(statm.read().split()[0]) * resource.getpagesize()
    most = now + int(sys.argv.pop(1)) * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    main()
"""


def limited(path: Path, megabytes: int, *overrides: str) -> subprocess.CompletedProcess[str]:
    """`cld-stream train` with so much memory beyond what the program itself takes."""
    flags = [word for item in (*BIG, *overrides) for word in ("--set", item)]
    train = ["train", "--store", str(path), "--device", "cpu", "--steps", "2", "--json", "--recipe", "cpu"]
    return subprocess.run(
        [sys.executable, "-c", LIMITED, str(megabytes), *train, *flags],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
        capture_output=True, text=True, timeout=110,
    )  # fmt: skip


def test_a_batch_that_memory_does_not_hold_is_trained_on_in_pieces(tmp_path: Path) -> None:
    settings = load_settings(overrides=BIG)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for path in (whole, parts):
        grow(path, 64, settings)
    for megabytes in (360, 300, 440):
        done = limited(parts, megabytes)
        if done.returncode >= 0 and "could not create a primitive" not in done.stderr:
            break  # else it was oneDNN that ran out while it made code, and from that it does not recover
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 2
    told = [line for line in done.stderr.splitlines() if "out of memory" in line]
    assert "step 0, a batch of 64 frames on cpu: out of memory with 64 frames at a time" in told[0]
    frames = metrics(parts)[-1]["frames_at_once"]
    assert frames in (16, 32)
    assert len(told) == {32: 1, 16: 2}[int(frames)]
    train(whole, settings, steps=2)
    assert metrics(whole)[-1]["frames_at_once"] == 64
    for expected, found in zip(metrics(whole), metrics(parts), strict=True):
        for name in ("step", "loss", "instance", "cld", "feature_std"):
            assert found[name] == pytest.approx(expected[name], rel=1e-3), "the same batch, the same loss"


def test_where_not_even_the_smallest_pieces_fit_it_ends_with_a_line_and_a_checkpoint(tmp_path: Path) -> None:
    """With pictures so large that it is they that do not fit, and not the little things around them."""
    large = (
        "optim.batch=32",
        "encoder.width=0.5",
        "store.size=320",
        "encoder.crop=320",
        "optim.fresh=16",
        "train.min_frames=32",
    )
    settings = load_settings(overrides=[*BIG, *large])
    grow(tmp_path, 64, settings)
    done = limited(tmp_path, 300, *large)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    told = [line for line in done.stderr.splitlines() if "out of memory" in line]
    assert [f"with {n} frames at a time" in line for n, line in zip((32, 16, 8), told, strict=True)] == [True] * 3
    assert "step 0, a batch of 32 frames on cpu: out of memory, even with 8 frames at a time: can't alloc" in told[-1]
    assert "--set buffer.cache_mb=0" in told[-1]
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.meta["feed"]["cursor"] == 16, "the frames of the step that was not done are fed again"
    held = checkpoint.tensors["buffer.ids"]
    assert sorted(held[held >= 0]) == list(range(16))


def no_room_for(frames: int) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
    def hook(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if len(inputs[0]) > frames:
            torch.empty(1 << 50)

    return hook


def test_embedding_takes_fewer_frames_at_a_time_where_memory_runs_out(caplog: pytest.LogCaptureFixture) -> None:
    embedder = Embedder(ENCODER, weights(0), "stretch", batch=64)
    rng = np.random.default_rng(0)
    pixels, aspect = rng.integers(0, 256, (100, 20, 20, 3), dtype=np.uint8), np.ones(100, np.float32)
    expected = embedder.embed(pixels, aspect)
    hook = embedder.encoder.register_forward_pre_hook(no_room_for(20))
    found = embedder.embed(pixels, aspect)
    for space, values in expected.items():
        np.testing.assert_allclose(found[space], values, atol=2e-3, rtol=2e-3)
    assert ["--set publish.batch=" in r.getMessage() for r in caplog.records] == [True, True]  # 32, 16
    hook.remove()
    embedder.encoder.register_forward_pre_hook(no_room_for(4))
    with pytest.raises(DeviceFullError, match="even with 8 frames at a time"):
        embedder.embed(pixels, aspect)


@pytest.mark.parametrize(("room_for", "seen_at_once"), [(8, True), (0, False)])
def test_frames_that_memory_does_not_hold_to_be_looked_at_are_fed_once_and_looked_at_later(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    room_for: int,
    seen_at_once: bool,  # in pieces
) -> None:
    settings = load_settings(overrides=[*SMALL, "buffer.policy=minred", "optim.fresh=16", "optim.shown=4"])
    grow(tmp_path, 48, settings)
    short = True

    def no_room_to_look(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if short and not module.training:
            no_room_for(room_for)(module, inputs)

    def built(*args: Any) -> nn.Module:
        encoder = build_encoder(*args)
        encoder.register_forward_pre_hook(no_room_to_look)
        return encoder

    monkeypatch.setattr("cld_stream.learn.learner.build_encoder", built)
    with nullcontext() if seen_at_once else pytest.raises(DeviceFullError):  # of the publication behind the last step
        train(tmp_path, settings, steps=3)
    told = [r.getMessage() for r in caplog.records if "out of memory" in r.getMessage()]
    assert "looking at 12 frames on cpu: out of memory with 12 frames at a time" in " ".join(told)
    assert len([line for line in told if "sees frames later, in a replay (said once)" in line]) == (not seen_at_once)
    saved = load_checkpoint(tmp_path)
    assert saved.step == 3
    assert (saved.meta["feed"]["cursor"], saved.tensors["buffer.seen"][0]) == (48, 48), "each frame once"
    held = saved.tensors["buffer.ids"] >= 0
    assert set(saved.tensors["looks.live"][held]) == {seen_at_once}
    short = False
    train(tmp_path, settings, steps=30)
    later = load_checkpoint(tmp_path)
    assert later.tensors["buffer.seen"][0] == 48
    assert later.tensors["looks.live"][later.tensors["buffer.ids"] >= 0].all()


def test_training_goes_on_where_memory_does_not_hold_a_look_or_a_publication(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = load_settings(overrides=SMALL)
    grow(tmp_path, 60, settings)
    assert train(tmp_path, settings, steps=2).snapshot is not None  # a look needs one to compare with

    def too_large(*args: Any) -> nn.Module:
        encoder = build_encoder(*args)
        encoder.register_forward_pre_hook(no_room_for(4))
        return encoder

    monkeypatch.setattr("cld_stream.pipelines.embed.build_encoder", too_large)
    with pytest.raises(DeviceFullError):  # nobody is there to try the last publication again
        train(tmp_path, settings, steps=4)
    assert load_checkpoint(tmp_path).step == 6
    told = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert [line.partition(" failed")[0] for line in told] == ["the guard's look", "publishing"]
    assert pinned_checkpoint(tmp_path) != 6, "nobody has seen whether it is good"
