"""Publishing: what is stored is what the encoder says, whatever happens on the way."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cld_stream.config import PublishSettings, Settings, load_settings
from cld_stream.errors import CorruptError, HeldError, LockHeldError, StoreError
from cld_stream.pipelines import extend as extending
from cld_stream.pipelines import publish as publishing
from cld_stream.pipelines.embed import Embedder, Features
from cld_stream.pipelines.extend import Extender, extend
from cld_stream.pipelines.forget import forget
from cld_stream.pipelines.publish import Publication, publish
from cld_stream.pipelines.publish_checkpoint import publish_checkpoint
from cld_stream.pipelines.restore import fresh_learner, meta_of
from cld_stream.pipelines.snapshots import change_snapshots, list_snapshots, open_snapshot
from cld_stream.pipelines.train import train
from cld_stream.storage import vectors
from cld_stream.storage.checkpoints import save_checkpoint
from cld_stream.storage.segments import FeatureSegment, list_segments, merge_segments
from cld_stream.storage.snapshots import Snapshot, drop_features
from cld_stream.storage.store import Store
from tests.pipelines.published import ENCODER, add_video, published, small_store, weights


def small_settings() -> Settings:
    return load_settings(
        overrides=[
            "encoder.width=0.1", "encoder.crop=32", "encoder.feature_dim=16", "optim.batch=16", "loss.groups=4",
            "buffer.capacity=64", "train.min_frames=16", "publish.groups=4", "train.idle_steps=0",
        ]
    )  # fmt: skip


def embedded_again(store: Store, snapshot: Snapshot, ids: np.ndarray) -> Features:
    rows = store.catalog.rows(ids)
    with store.reader(threads=1) as reader:
        return Embedder.of(snapshot).embed(reader.read(ids)[0], rows.aspect)


def test_features_equal_embedding_the_frames_again_with_the_snapshots_own_weights(tmp_path: Path) -> None:
    made = published(tmp_path / "s")
    assert made.snapshot.ids.tolist() == list(range(36))
    again = embedded_again(made.store, made.snapshot, made.snapshot.ids)
    for space, values in again.items():
        stored = made.snapshot.features(space)[1]
        assert stored.dtype == np.float16
        np.testing.assert_allclose(stored.astype(np.float32), values.astype(np.float32), atol=2e-3, rtol=2e-3)
    for space in ("instance", "group"):
        norms = np.linalg.norm(made.snapshot.features(space)[1].astype(np.float32), axis=1)
        np.testing.assert_allclose(norms, 1, atol=2e-3)
    for name, value in made.snapshot.weights().items():
        np.testing.assert_array_equal(value, made.weights[name])


def test_groups_label_every_row_with_its_nearest_centroid(tmp_path: Path) -> None:
    made = published(tmp_path / "s")
    centroids, labels = made.snapshot.groups()
    products = made.snapshot.features("group")[1].astype(np.float32) @ centroids.T
    assert centroids.shape == (4, 16)
    np.testing.assert_allclose(products.max(1), products[np.arange(36), labels], atol=1e-5)


def test_new_frames_become_a_segment_and_the_publication_stays_as_it_is(tmp_path: Path) -> None:
    made = published(tmp_path / "s")
    before = {p: p.read_bytes() for p in made.snapshot.segments[0].path.rglob("*") if p.is_file()}
    extender = Extender(made.store)
    assert extender.run() == 0
    add_video(made.store, "/media/new.mp4", 9, frames=5)
    assert extender.run() == 5
    assert extender.run() == 0
    extender.close()
    ids, features = made.snapshot.features("instance")
    assert ids.tolist() == list(range(41))
    again = embedded_again(made.store, made.snapshot, np.arange(36, 41))["instance"]
    np.testing.assert_allclose(features[36:].astype(np.float32), again.astype(np.float32), atol=2e-3)
    assert len(made.snapshot.groups()[1]) == 41
    assert made.snapshot.covered() == 41
    assert {p: p.read_bytes() for p in before} == before
    assert [s.frames for s in made.store.catalog.segments(made.snapshot.id)] == [5]


def test_many_small_segments_are_merged_without_changing_an_answer(tmp_path: Path) -> None:
    made = published(tmp_path / "s", videos=1)
    extender = Extender(made.store)
    for n in range(18):
        add_video(made.store, f"/media/more{n}.mp4", 50 + n, frames=2)
        assert extender.run() == 2
        assert made.snapshot.ids.tolist() == list(range(12 + 2 * n + 2))
    extender.close()
    assert len(made.snapshot.segments) < 10
    again = embedded_again(made.store, made.snapshot, np.arange(48))["group"]
    np.testing.assert_allclose(
        made.snapshot.features("group")[1].astype(np.float32), again.astype(np.float32), atol=2e-3
    )


def test_forgotten_frames_leave_no_feature_in_any_snapshot(tmp_path: Path) -> None:
    made = published(tmp_path / "s")
    add_video(made.store, "/media/new.mp4", 9, frames=5)
    extend(made.store)
    publish(made.store, ENCODER, weights(1), step=8)
    doomed = np.array([13, 14, 37])
    lost = made.snapshot.features("instance")[1][doomed]
    assert drop_features(made.store, doomed) == 6
    assert drop_features(made.store, doomed) == 0
    for row in list_snapshots(tmp_path / "s"):
        snapshot = open_snapshot(made.store, row.id)
        assert np.flatnonzero(snapshot.ids < 0).tolist() == doomed.tolist()
        for space in snapshot.spaces:
            assert not snapshot.features(space)[1][doomed].any()
        assert (snapshot.groups()[1][doomed] == -1).all()
    raw = b"".join(p.read_bytes() for p in (tmp_path / "s" / "snapshots").rglob("*") if p.is_file())
    assert not any(feature.tobytes() in raw for feature in lost)


def test_frames_forgotten_while_they_were_embedded_are_dropped(tmp_path: Path) -> None:
    store = small_store(tmp_path / "s")
    with Publication(store, ENCODER, weights(), step=1) as work:
        assert not work.advance()
        with store.writer("test") as writer:
            writer.forget(2)
        snapshot = work.finish()
    assert np.flatnonzero(snapshot.ids < 0).tolist() == list(range(12, 24))
    assert not snapshot.features("backbone")[1][12:24].any()


def test_features_that_come_after_their_frames_were_forgotten_do_not_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "_AT_ONCE", 20)
    store = small_store(tmp_path / "s")
    with Publication(store, ENCODER, weights(), step=1) as work:
        assert work.advance()
        assert work.rows_done == 0, "they are in memory alone"
        assert forget(store.path, "clip0.mp4").features == 12
        while work.advance():
            pass
        snapshot = work.finish()
    assert np.flatnonzero(snapshot.ids < 0).tolist() == list(range(12))
    for space in snapshot.spaces:
        stored = np.concatenate([segment.features(space) for segment in snapshot.segments])
        assert not stored[:12].any()
        assert stored[12:].any(1).all()


def test_segments_joined_while_their_frames_are_forgotten_do_not_bring_them_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = published(tmp_path / "s", videos=1)
    store, extender = made.store, Extender(made.store)
    folder = made.snapshot.path / "segments"

    def read_before_and_renamed_after_a_forget(folder: Path) -> FeatureSegment | None:
        shutil.copytree(folder, tmp_path / "read")
        forget(store.path, "more0.mp4")
        shutil.rmtree(folder)
        (tmp_path / "read").rename(folder)
        return merge_segments(folder)

    for n in range(16):
        add_video(store, f"/media/more{n}.mp4", 50 + n, frames=2)
        if n == 15:
            monkeypatch.setattr(extending, "merge_segments", read_before_and_renamed_after_a_forget)
        assert extender.run() == 2
    extender.close()
    assert len(list_segments(folder)) == 2, "they were joined"
    assert np.flatnonzero(made.snapshot.ids < 0).tolist() == [12, 13]


PUBLISHER = """
import sys, time
from pathlib import Path
from cld_stream.storage import vectors
from cld_stream.storage.checkpoints import save_checkpoint
vectors.CHUNK_ROWS = 4
from cld_stream.pipelines.publish import Publication
from cld_stream.storage.store import Store
from tests.pipelines.published import ENCODER, weights
with Publication(Store.open(Path(sys.argv[1])), ENCODER, weights(), step=3) as work:
    while work.advance():
        print(work.rows_done, flush=True)
        time.sleep(0.05)
    time.sleep(60)
"""


def test_a_killed_publication_is_resumed_by_the_next(tmp_path: Path) -> None:
    store = small_store(tmp_path / "s")
    child = subprocess.Popen([sys.executable, "-c", PUBLISHER, str(store.path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert [child.stdout.readline().strip() for _ in range(3)] == ["4", "8", "12"]
    with pytest.raises(LockHeldError, match=str(child.pid)), Publication(store, ENCODER, weights(), step=3):
        pass
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert store.catalog.latest_snapshot() is None
    (building,) = (store.path / "snapshots").glob(".*.tmp")
    done = sorted(p for p in building.rglob("c/*/0") if p.is_file() and "instance" in p.parts)
    written = {p: p.stat().st_mtime_ns for p in done}
    assert len(written) >= 3
    time.sleep(0.02)
    snapshot = publish(store, ENCODER, weights(), step=4)
    assert snapshot is not None
    assert snapshot.manifest["step"] == 3
    kept = [snapshot.path / p.relative_to(building) for p in done]
    assert [p.stat().st_mtime_ns for p in kept] == list(written.values())
    assert snapshot.ids.tolist() == list(range(36))
    again = embedded_again(store, snapshot, snapshot.ids)["instance"]
    np.testing.assert_allclose(snapshot.features("instance")[1].astype(float), again.astype(float), atol=2e-3)
    assert [p.name for p in (store.path / "snapshots").iterdir()] == [snapshot.id]


def test_a_build_of_another_encoder_is_not_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "CHUNK_ROWS", 4)
    store = small_store(tmp_path / "s")
    assert publish(store, ENCODER, weights(0), step=1, stop=lambda: True) is None
    snapshot = publish(store, ENCODER, weights(1), step=2)
    assert snapshot is not None
    again = embedded_again(store, snapshot, snapshot.ids)["instance"]
    np.testing.assert_allclose(snapshot.features("instance")[1].astype(float), again.astype(float), atol=2e-3)


def test_a_publication_advances_in_pieces_smaller_than_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "CHUNK_ROWS", 16)
    monkeypatch.setattr(publishing, "_AT_ONCE", 5)
    store = small_store(tmp_path / "s")
    with Publication(store, ENCODER, weights(), step=1) as work:
        durable = []
        while work.advance():
            durable.append(work.rows_done)
        snapshot = work.finish()
    assert durable == [0, 0, 0, 16, 16, 16, 16, 32]
    again = embedded_again(store, snapshot, snapshot.ids)["instance"]
    np.testing.assert_allclose(snapshot.features("instance")[1].astype(float), again.astype(float), atol=2e-3)


def test_features_that_are_not_the_encoders_are_not_published(tmp_path: Path) -> None:
    store = small_store(tmp_path / "s")
    with Publication(store, ENCODER, weights(), step=1) as work:
        with pytest.raises(StoreError, match="0 of 36"):
            work.finish()
        work.advance()
        (array,) = (store.path / "snapshots").glob(".*.tmp/segments/*/instance")
        wrong = np.random.default_rng(0).standard_normal((36, 16)).astype(np.float16)
        vectors.VectorArray(array).write_chunk(0, wrong)
        with pytest.raises(CorruptError, match="differ"):
            work.finish()
    assert store.catalog.latest_snapshot() is None


def test_an_empty_store_can_be_published_and_extended(tmp_path: Path) -> None:
    made = published(tmp_path / "s", videos=0)
    assert made.snapshot.ids.shape == (0,)
    add_video(made.store, "/media/first.mp4", 1)
    assert extend(made.store) == 12
    assert made.snapshot.features("backbone")[1].shape[0] == 12


def test_one_step_published_twice_in_a_second_is_two_snapshots(tmp_path: Path) -> None:
    store = small_store(tmp_path / "s", videos=1)
    made = [publish(store, ENCODER, weights(), step=1) for _ in range(2)]
    assert len({snapshot.id for snapshot in made if snapshot is not None}) == 2


def test_snapshots_are_listed_pinned_and_pruned(tmp_path: Path) -> None:
    store = small_store(tmp_path / "s", videos=1)
    made = []
    for step in range(4):
        snapshot = publish(store, ENCODER, weights(step), step=step, settings=PublishSettings(keep=10))
        assert snapshot is not None
        made.append(snapshot.id)
    assert [row.id for row in list_snapshots(store.path)] == made
    assert open_snapshot(store).id == made[-1]
    change_snapshots(store.path, pin=made[0])
    assert change_snapshots(store.path, prune=1) == made[1:3]
    assert [(row.id, row.pinned) for row in list_snapshots(store.path)] == [(made[0], True), (made[3], False)]
    assert sorted(p.name for p in (store.path / "snapshots").iterdir()) == [made[0], made[3]]
    change_snapshots(store.path, unpin=made[0])
    assert publish(store, ENCODER, weights(9), step=9, settings=PublishSettings(keep=1)) is not None
    assert len(list_snapshots(store.path)) == 1


def test_what_a_killed_pruning_left_is_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(left: Path, *, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            (left / "weights.safetensors").unlink()
            raise KeyboardInterrupt

    store = small_store(tmp_path / "s", videos=1)
    first, _ = (publish(store, ENCODER, weights(seed), step=seed) for seed in (0, 1))
    assert first is not None
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            change_snapshots(store.path, prune=1)
    again = publish(store, ENCODER, weights(0), step=2)
    assert again is not None
    assert again.id != first.id
    assert again.weights().keys() == weights(0).keys()
    assert [p.name for p in (store.path / "snapshots").glob(".*")] == []


def test_a_checkpoint_older_than_the_latest_snapshot_is_published_only_when_forced(tmp_path: Path) -> None:
    store = small_store(tmp_path / "s")
    train(store.path, small_settings(), steps=3)
    assert publish_checkpoint(store.path).step == publish_checkpoint(store.path).step == 3
    newer = publish(store, ENCODER, weights(), step=4)
    assert newer is not None
    with pytest.raises(
        HeldError, match=rf"of step 3, is older than the latest snapshot, {newer.id} of step 4.*--force"
    ):
        publish_checkpoint(store.path)
    assert store.catalog.latest_snapshot() == newer.row()
    assert publish_checkpoint(store.path, force=True).step == 3


def test_an_untrained_checkpoint_is_published_only_when_forced(tmp_path: Path) -> None:
    store, settings = small_store(tmp_path / "s"), small_settings()
    arrays, numbers = fresh_learner(settings, "cpu").state_dict()
    save_checkpoint(store.path, 0, arrays, meta_of(numbers, settings), keep=1)
    with pytest.raises(HeldError, match=r"no training step.*--force"):
        publish_checkpoint(store.path)
    assert store.catalog.latest_snapshot() is None
    assert publish_checkpoint(store.path, force=True).frames == 36


@pytest.mark.parametrize("what", ["prune", "pin", "unpin"])
@pytest.mark.parametrize("name", ["snapshots", "catalog.db"])
def test_changing_snapshots_follows_no_link_out_of_the_store(tmp_path: Path, name: str, what: str) -> None:
    store, outside = small_store(tmp_path / "s", videos=1), tmp_path / "outside"
    for step in range(2):
        publish(store, ENCODER, weights(step), step=step, settings=PublishSettings(keep=10))
    first, path = list_snapshots(store.path)[0].id, store.path
    store.close()
    (path / name).rename(outside)
    (path / name).symlink_to(outside)
    before = {p: p.read_bytes() for p in (outside, *outside.rglob("*")) if p.is_file()}
    with pytest.raises(StoreError, match="this is a link"):
        change_snapshots(path, **{what: 1 if what == "prune" else first})  # type: ignore[arg-type]
    assert {p: p.read_bytes() for p in (outside, *outside.rglob("*")) if p.is_file()} == before
    assert len(list_snapshots(path)) == 2
