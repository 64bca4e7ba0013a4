"""A trainer that is killed (SIGKILL) again and again."""

import subprocess
import sys
import time
from pathlib import Path

from cld_stream.config import load_settings
from cld_stream.pipelines.restore import restore_learner
from cld_stream.pipelines.train import train
from cld_stream.storage.checkpoints import list_checkpoints, load_checkpoint
from tests.faults.faulty import ROOT
from tests.pipelines.test_train import GO_ON, SMALL, grow, metrics

STEPS = 8
OFTEN = ("train.checkpoint_s=0.1", "train.publish_s=0.5", "guard.enabled=false")


def killed_after(path: Path, checkpoints: int) -> bool:
    """Train in a process that is killed once it has made so many more checkpoints; false if it came to its end."""
    goal = max(list_checkpoints(path), default=0)
    child = subprocess.Popen([sys.executable, "-c", GO_ON, str(path), "100000", *SMALL, *OFTEN], cwd=ROOT)
    try:
        for _ in range(checkpoints):
            while max(list_checkpoints(path), default=0) <= goal and child.poll() is None:
                time.sleep(0.01)
            goal = max(list_checkpoints(path), default=0)
        assert child.poll() is None
        return goal < STEPS
    finally:
        child.kill()
        child.wait()


def test_metrics_after_kills_are_those_of_an_uninterrupted_run_bit_for_bit(tmp_path: Path) -> None:
    settings = load_settings(overrides=[*SMALL, *OFTEN])
    for name in ("whole", "killed"):
        grow(tmp_path / name, 170, settings)
    while killed_after(tmp_path / "killed", 2):
        pass
    steps = load_checkpoint(tmp_path / "killed").step
    train(tmp_path / "whole", settings, steps=steps)
    whole = {m["step"]: (m["loss"], m["instance"], m["cld"], m["fed"]) for m in metrics(tmp_path / "whole")}
    killed = [(m["step"], (m["loss"], m["instance"], m["cld"], m["fed"])) for m in metrics(tmp_path / "killed")]
    assert len({step for step, _ in killed}) >= STEPS
    assert [step for step, values in killed if step <= steps and whole[step] != values] == []
    a, b = load_checkpoint(tmp_path / "whole"), load_checkpoint(tmp_path / "killed")
    assert [name for name in a.tensors if a.tensors[name].tobytes() != b.tensors[name].tobytes()] == []


def test_kills_on_a_growing_store_feed_no_frame_twice_and_skip_none(tmp_path: Path) -> None:
    settings = load_settings(overrides=[*SMALL, *OFTEN, "buffer.capacity=400"])
    code = ["-c", GO_ON, str(tmp_path), "100000", *SMALL, *OFTEN, "buffer.capacity=400"]
    grow(tmp_path, 30, settings)
    for _ in range(2):
        before = max(list_checkpoints(tmp_path), default=0)
        child = subprocess.Popen([sys.executable, *code], cwd=ROOT)
        while max(list_checkpoints(tmp_path), default=0) <= before and child.poll() is None:
            grow(tmp_path, 5, settings)
            time.sleep(0.3)
        assert child.poll() is None
        child.kill()
        child.wait()
    report = train(tmp_path, settings, until_caught_up=True)
    learner, _ = restore_learner(tmp_path)
    held = learner.buffer.ids[learner.buffer.ids >= 0]
    assert sorted(held.tolist()) == list(range(report.fed))
    assert (report.lag, report.thinned) == (0, 0)
