import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from numpy.typing import NDArray

from cld_stream.config import GuardSettings, Settings, load_settings
from cld_stream.errors import GuardStopError, HeldError
from cld_stream.learn.probes import knn_classify
from cld_stream.pipelines.checkup import check_encoder
from cld_stream.pipelines.embed import Embedder
from cld_stream.pipelines.forget import forget
from cld_stream.pipelines.guard import Checkup, Guard, Level, assess
from cld_stream.pipelines.measures import Shares
from cld_stream.pipelines.publish_checkpoint import publish_checkpoint
from cld_stream.pipelines.restore import buffer_batches, restore_learner
from cld_stream.pipelines.snapshots import list_snapshots, open_snapshot
from cld_stream.pipelines.status import status
from cld_stream.pipelines.train import train
from cld_stream.storage.checkpoints import load_checkpoint, pinned_checkpoint
from cld_stream.storage.schema import NewFrame, Outcome
from cld_stream.storage.store import Store
from tests.products import Products

SETTINGS = GuardSettings()
SCENES, KINDS = 200, 10
ONE = Shares(1, 1, 1)
WELL, DEAD = Checkup(ONE, 0.4, 0.7, ONE, "s"), Checkup(Shares(0.6, 0.1, 1), 0.1, 1.2, ONE, "s")

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
        (replace(WELL, shares=Shares(3, 2, 1.2)), Level.OK),
        (replace(WELL, shares=Shares(1, 0.45, 1)), Level.WARN),
        (replace(WELL, shares=Shares(0.3, 1, 1)), Level.HOLD),
        (replace(WELL, shares=Shares(1, 1, 0.2)), Level.ROLLBACK),
        (replace(WELL, shares=Shares(1, 0.6, 1), best=Shares(1, 2, 1)), Level.HOLD),
        (replace(WELL, shares=Shares(1, 0.1, 1), best=Shares(1, math.nan, 1)), Level.OK),
        (replace(WELL, agreement=0.0), Level.WARN),
        (replace(WELL, loss_ratio=1.1), Level.WARN),
        (replace(WELL, shares=Shares(1, 0.0, 1), agreement=math.nan), Level.ROLLBACK),
    ],
)
def test_each_number_has_its_response_and_drift_alone_is_only_a_warning(checkup: Checkup, level: Level) -> None:
    assert assess(checkup, SETTINGS)[0] == level


def test_one_bad_look_holds_and_the_second_in_a_row_asks_for_the_good_state() -> None:
    guard = Guard(SETTINGS)
    held = []
    for clock, checkup in enumerate((WELL, DEAD, WELL, DEAD)):
        guard.judge(checkup, clock)
        assert guard.wanted is None
        held.append(guard.holding)
    assert held == [False, True, False, True]
    guard = Guard(SETTINGS, json.loads(json.dumps(guard.state_dict())))  # a restart forgets nothing
    guard.judge(DEAD, 3)
    assert guard.wanted is None  # that was the same encoder
    guard.judge(DEAD, 4)
    guard = Guard(SETTINGS, guard.state_dict())
    assert [guard.wanted is None, guard.holding] == [False, True]
    guard.restored()
    assert [guard.wanted is None, guard.holding] == [True, False]
    assert (guard.holds, guard.rollbacks) == (2, 1)


def test_a_slow_decline_over_publications_is_held_though_no_step_of_it_is_steep() -> None:
    """Each snapshot has 30% less rank than the one before."""
    guard, best = Guard(SETTINGS), ONE
    for n in range(6):
        guard = Guard(SETTINGS, json.loads(json.dumps(guard.state_dict())))  # published, then killed and started again
        guard.judge(Checkup(Shares(1, 0.7, 1), 0.4, 0.7, best, f"s{n}"), n)
        if guard.holding:
            break
        best = Shares.read(json.loads(json.dumps(guard.last.standing)))
    assert n == 2  # 0.7, 0.49, 0.343
    assert "0.34 of the best so far" in guard.why


def test_the_best_of_all_looks_counts_not_only_what_was_published() -> None:
    guard = Guard(SETTINGS)
    for clock, share in enumerate((1.0, 4.0, 1.2)):
        guard.judge(replace(WELL, shares=Shares(1, share, 1)), clock)
    assert guard.holding
    guard.judge(replace(WELL, snapshot="published by hand, in spite of the guard"), 3)
    assert not guard.holding


def test_a_young_encoder_is_no_measure_of_rank() -> None:
    guard, unknown = Guard(SETTINGS), Shares(1, math.nan, 1)
    young = Checkup(Shares(1, 1, 1), best=unknown, snapshot="s", young=True)
    for clock, rank in enumerate((1.0, 0.3)):  # a random encoder has more directions than most trained ones
        guard.judge(replace(young, shares=Shares(1, rank, 1)), clock)
        assert guard.level == Level.OK
    assert guard.last.standing["rank"] is None
    for clock, (rank, level) in enumerate(((0.3, Level.OK), (0.14, Level.WARN), (0.1, Level.HOLD)), 2):
        guard.judge(replace(young, shares=Shares(2, rank, 1), young=False), clock)
        assert guard.level == level
    guard.judge(replace(young, shares=Shares(0.5, 1, 1)), 9)  # its spread is one: it grows from the first step
    assert guard.level == Level.HOLD


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


def scenes(n: int, seed: int = 0) -> NDArray[np.uint8]:
    """Patches of colour: frame i shows scene i % KINDS, each time in another light and with other patches amiss."""
    rng = np.random.default_rng(seed)
    kinds = np.random.default_rng(9).integers(0, 256, (KINDS, 5, 5, 3))
    small = np.where(rng.random((n, 5, 5, 1)) < 0.15, rng.integers(0, 256, (n, 5, 5, 3)), kinds[np.arange(n) % KINDS])
    small = small * rng.uniform(0.6, 1.0, (n, 1, 1, 1))
    return small.astype(np.uint8).repeat(4, 1).repeat(4, 2)


def recognised(path: Path) -> float:
    """Share of new pictures whose kind is found by a vote of their neighbours, through what `query` uses."""
    with Store.open(path) as store:
        snapshot = open_snapshot(store)
        ids, gallery = snapshot.features("instance")
        asked = Embedder.of(snapshot).embed(scenes(160, seed=1), np.ones(160, np.float32))["instance"]
    good = ids < SCENES
    f, q = (torch.from_numpy(x).float() for x in (gallery[good], asked))
    _, said = knn_classify(f, torch.from_numpy(ids[good] % KINDS), q, 10, 0.1, KINDS)
    return float((said == torch.arange(160) % KINDS).float().mean())


def info(path: Path) -> dict[str, Any]:
    """What the current snapshot remembers."""
    with Store.open(path) as store:
        return dict(open_snapshot(store).manifest["info"])


@pytest.fixture(scope="module")
def good_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a snapshot of an encoder that is well, then more frames of a dark camera than the buffer holds."""
    path, settings = tmp_path_factory.mktemp("good"), load_settings(overrides=SMALL)
    grow(path, scenes(SCENES), settings)
    train(path, settings, until_caught_up=True)
    assert load_checkpoint(path).meta["guard"]["warnings"] == 0
    grow(path, np.zeros((240, 20, 20, 3), np.uint8), settings)
    return path


@pytest.fixture
def trained(good_store: Path, tmp_path: Path) -> tuple[Path, Settings]:
    """A copy of it."""
    shutil.copytree(good_store, tmp_path / "store")
    return tmp_path / "store", load_settings(overrides=SMALL)


def wild(settings: Settings, *, enabled: bool, patience: int = 10_000) -> Settings:
    guard = replace(settings.guard, enabled=enabled, patience=patience)
    return replace(settings, optim=replace(settings.optim, lr=100.0), guard=guard)


def test_looks_at_stores_of_every_size_compute_products_of_few_sizes(tmp_path: Path) -> None:
    settings = load_settings(overrides=SMALL)
    for n in range(14):
        grow(tmp_path, scenes(64 if n == 0 else 7, seed=n), settings)
    train(tmp_path, settings, steps=12)
    publish_checkpoint(tmp_path, force=True)
    learner, _ = restore_learner(tmp_path, "cpu")
    looks = []
    with Store.open(tmp_path) as store, Products() as products:
        encoder, weights = learner.publishable(buffer_batches(store, learner))
        for source in store.catalog.sources()[1:]:
            looks.append(check_encoder(store, encoder, weights, "cpu", updates=500, grown_up_at=0))
            forget(tmp_path, str(source.id))
    assert all(look.shares.entropy > 0 for look in looks)
    rows = {sizes[1][0] for sizes in products.sizes if len(sizes) == 3}  # of k-means
    assert rows == {64, 96, 128}


def test_in_a_disaster_the_last_good_snapshot_stays_current(trained: tuple[Path, Settings]) -> None:
    path, settings = trained
    good, pinned, before = list_snapshots(path), pinned_checkpoint(path), recognised(path)
    assert before > 0.4
    train(path, wild(settings, enabled=True), until_caught_up=True)
    assert list_snapshots(path) == good
    assert recognised(path) == before
    assert pinned_checkpoint(path) == pinned
    now = status(path)
    assert now.lag == 0
    assert now.trained["guard_holds"] >= 1
    assert "holds publishing" in dict(now.lines())["guard"]
    with pytest.raises(HeldError, match="--force"):
        publish_checkpoint(path)
    assert info(path)["best"].keys() == {"std", "rank", "entropy"}
    publish_checkpoint(path, force=True)
    assert len(list_snapshots(path)) == len(good) + 1
    assert info(path)["best"] is None  # whoever insists makes it the measure


def test_without_the_guard_the_broken_encoder_is_published(trained: tuple[Path, Settings]) -> None:
    path, settings = trained
    good, before = list_snapshots(path), recognised(path)
    train(path, wild(settings, enabled=False), until_caught_up=True)
    assert len(list_snapshots(path)) == len(good) + 1
    assert recognised(path) < before - 0.25
    assert recognised(path) < 1.8 / KINDS


def test_the_guard_takes_the_good_state_back_once_and_then_stops_for_good(trained: tuple[Path, Settings]) -> None:
    path, settings = trained
    before = load_checkpoint(path)
    with pytest.raises(GuardStopError, match="of the best so far"):
        train(path, wild(settings, enabled=True, patience=1), until_caught_up=True)
    after = load_checkpoint(path)
    assert after.meta["guard"]["rollbacks"] == 2  # once to go on, once for whoever goes on after the end
    assert pinned_checkpoint(path) == before.step
    assert after.meta["learner"]["rate"] == 0.5
    assert after.meta["feed"]["cursor"] > before.meta["feed"]["cursor"]
    assert all((after.tensors[n] == before.tensors[n]).all() for n in before.tensors if n.startswith("encoder."))
