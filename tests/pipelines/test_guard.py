import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray

from cld_stream.config import GuardSettings, Settings, load_settings
from cld_stream.errors import GuardStopError, HeldError
from cld_stream.pipelines.guard import Checkup, Guard, Level, assess
from cld_stream.pipelines.publish import publish_checkpoint
from cld_stream.pipelines.snapshots import list_snapshots
from cld_stream.pipelines.status import status
from cld_stream.pipelines.train import train
from cld_stream.storage.checkpoints import load_checkpoint, pinned_checkpoint
from cld_stream.storage.schema import NewFrame, Outcome
from cld_stream.storage.store import Store

SETTINGS = GuardSettings()
WELL, DEAD = Checkup(1, 1, 1, 0.4, 0.7), Checkup(0.6, 0.1, 1, 0.1, 1.2)

SMALL = (
    "store.size=20", "encoder.width=0.125", "encoder.crop=16", "encoder.feature_dim=16", "loss.groups=12",
    "buffer.capacity=64", "buffer.policy=fifo", "optim.batch=24", "optim.fresh=8", "optim.warmup_steps=5",
    "optim.average_decay=0.9", "train.min_frames=16", "train.idle_steps=10", "train.poll_s=0.05", "train.threads=1",
    "publish.groups=4", "guard.every_steps=5",
)  # fmt: skip


@pytest.mark.parametrize(
    ("checkup", "level"),
    [
        (Checkup(), Level.OK),
        (WELL, Level.OK),
        (Checkup(3, 2, 1.2, 0.3), Level.OK),
        (replace(WELL, rank=0.45), Level.WARN),
        (replace(WELL, std=0.3), Level.HOLD),
        (replace(WELL, entropy=0.2), Level.ROLLBACK),
        (replace(WELL, agreement=0.0), Level.WARN),
        (replace(WELL, loss_ratio=1.1), Level.WARN),
        (replace(WELL, rank=0.0, agreement=math.nan), Level.ROLLBACK),
    ],
)
def test_each_number_has_its_response_and_drift_alone_is_only_a_warning(checkup: Checkup, level: Level) -> None:
    assert assess(checkup, SETTINGS)[0] == level


def test_one_bad_look_holds_and_the_second_in_a_row_asks_for_the_good_state() -> None:
    guard = Guard(SETTINGS)
    assert guard.judge(WELL) is None
    held = []
    for checkup in (DEAD, WELL):
        assert guard.judge(checkup) is None
        held.append(guard.holding)
    assert held == [True, False]
    assert guard.judge(DEAD) is None
    guard = Guard(SETTINGS, guard.state_dict())  # a restart forgets nothing
    assert guard.judge(DEAD) is not None
    guard.rolled_back()
    assert (guard.holding, guard.holds, guard.rollbacks) == (False, 2, 1)


def grow(path: Path, pictures: NDArray[np.uint8], settings: Settings) -> None:
    store = Store.open(path) if (path / "store.json").exists() else Store.create(path, settings.store)
    with store, store.writer("test") as writer:
        n = store.catalog.next_id()
        source = writer.add_source(
            kind="video", path=f"/v{n}", device=0, inode=n, size=1, mtime_ns=0, fingerprint=str(n)
        )
        writer.append(
            source, [NewFrame(simplejpeg.encode_jpeg(p), i / 2, None, 0, 1.0) for i, p in enumerate(pictures)], None
        )
        writer.finish(source, Outcome.ADDED)
        writer.commit()


def scenes(n: int) -> NDArray[np.uint8]:
    """Patches of colour, each its own."""
    small = np.random.default_rng(0).integers(0, 256, (n, 5, 5, 3), dtype=np.uint8)
    return small.repeat(4, 1).repeat(4, 2)


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Path, Settings]:
    """A store with a snapshot of an encoder that is well, then more frames of a dark camera than the buffer holds."""
    settings = load_settings(overrides=SMALL)
    grow(tmp_path, scenes(200), settings)
    train(tmp_path, settings, until_caught_up=True)
    assert load_checkpoint(tmp_path).meta["guard"]["warnings"] == 0
    grow(tmp_path, np.zeros((400, 20, 20, 3), np.uint8), settings)
    return tmp_path, settings


def wild(settings: Settings, *, enabled: bool, patience: int = 10_000) -> Settings:
    guard = replace(settings.guard, enabled=enabled, patience=patience)
    return replace(settings, optim=replace(settings.optim, lr=100.0), guard=guard)


def test_in_a_disaster_the_last_good_snapshot_stays_current(trained: tuple[Path, Settings]) -> None:
    path, settings = trained
    good, pinned = list_snapshots(path), pinned_checkpoint(path)
    train(path, wild(settings, enabled=True), until_caught_up=True)
    assert list_snapshots(path) == good
    assert pinned_checkpoint(path) == pinned
    now = status(path)
    assert now.lag == 0
    assert now.trained["guard_holds"] >= 1
    assert "holds publishing" in dict(now.lines())["guard"]
    with pytest.raises(HeldError, match="--force"):
        publish_checkpoint(path)
    publish_checkpoint(path, force=True)
    assert len(list_snapshots(path)) == len(good) + 1


def test_without_the_guard_the_broken_encoder_is_published(trained: tuple[Path, Settings]) -> None:
    path, settings = trained
    good = list_snapshots(path)
    train(path, wild(settings, enabled=False), until_caught_up=True)
    assert len(list_snapshots(path)) == len(good) + 1


def test_the_guard_takes_the_good_state_back_once_and_then_stops_for_good(trained: tuple[Path, Settings]) -> None:
    path, settings = trained
    before = load_checkpoint(path)
    with pytest.raises(GuardStopError, match="of what it was in the snapshot"):
        train(path, wild(settings, enabled=True, patience=1), until_caught_up=True)
    after = load_checkpoint(path)
    assert after.meta["guard"]["rollbacks"] == 1
    assert after.meta["learner"]["rate"] == 0.5
    assert after.meta["feed"]["cursor"] > before.meta["feed"]["cursor"]
    assert all((after.tensors[n] == before.tensors[n]).all() for n in before.tensors if n.startswith("encoder."))
