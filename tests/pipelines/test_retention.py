"""A store within limits: the oldest frames go, the buffer's stay, and snapshots go on answering."""

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cld_stream
from cld_stream.config import IngestSettings, PublishSettings, Settings, StoreSettings, load_settings
from cld_stream.errors import StoreNotFoundError
from cld_stream.pipelines.extend import Extender
from cld_stream.pipelines.forget import forget
from cld_stream.pipelines.ingest import ingest
from cld_stream.pipelines.publish import publish
from cld_stream.pipelines.query import query
from cld_stream.pipelines.restore import restore_learner
from cld_stream.pipelines.retention import Retention
from cld_stream.pipelines.status import status
from cld_stream.pipelines.train import train
from cld_stream.storage.check import check
from cld_stream.storage.checkpoints import buffered_ids
from cld_stream.storage.rebuild import rebuild_catalog
from cld_stream.storage.schema import Outcome
from cld_stream.storage.snapshots import named_ids, remove_snapshot
from cld_stream.storage.store import Store
from tests.pipelines.footage import photograph
from tests.pipelines.published import ENCODER, Published, add_video, published
from tests.pipelines.test_train import SMALL, grow
from tests.storage.pictures import new_source, picture


def limited(**limits: float) -> Settings:
    return load_settings(overrides=["store.shard_frames=8", *(f"ingest.{k}={v}" for k, v in limits.items())])


def keep(store: Store, **limits: float) -> int:
    with store.writer("test") as writer:
        retention = Retention(store, writer, IngestSettings(**limits))  # type: ignore[arg-type]
        return retention.enforce()


def test_ingest_keeps_the_newest_and_does_not_take_the_oldest_in_again(tmp_path: Path) -> None:
    for n, name in enumerate(sorted(f"{a}{b}" for a in "abcdef" for b in "uvwxy")):
        photograph(tmp_path / "media" / f"{name}.png", seed=n)
    first = ingest(tmp_path / "store", [str(tmp_path / "media")], limited(max_frames=20))
    assert (first.frames, len(first.files)) == (30, 30)
    assert first.dropped == 12  # to a tenth below the limit, so that not every commit drops
    with Store.open(tmp_path / "store") as store:
        assert store.catalog.live_ids().tolist() == list(range(12, 30))
        assert check(store) == []
    again = ingest(tmp_path / "store", [str(tmp_path / "media")], limited(max_frames=20))
    assert (again.frames, again.dropped, again.notes) == (0, 0, [])
    assert again.counts == {"ADDED": 30}


def test_a_long_ingest_stays_within_its_limit_all_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enforce, seen = Retention.enforce, list[int]()

    def watched(self: Retention) -> int:
        seen.append(self._store.catalog.frame_count())
        return enforce(self)

    monkeypatch.setattr(Retention, "enforce", watched)
    for n in range(100):
        photograph(tmp_path / "media" / f"{n:02}x.png", seed=n)
    report = ingest(tmp_path / "store", [str(tmp_path / "media")], limited(max_frames=20, commit_s=0.001))
    assert report.frames == 100
    assert max(seen) < 100


def test_a_file_that_changes_after_all_of_its_frames_were_dropped_is_another_source(tmp_path: Path) -> None:
    for n in range(30):
        photograph(tmp_path / "media" / f"{n:02}x.png", seed=n)
    ingest(tmp_path / "store", [str(tmp_path / "media")], limited(max_frames=20))
    photograph(tmp_path / "media" / "00x.png", seed=99)
    ingest(tmp_path / "store", [str(tmp_path / "media")], limited(max_frames=20))
    with Store.open(tmp_path / "store") as store:
        before, now = store.catalog.sources(path=str(tmp_path / "media" / "00x.png"))
    assert (before.outcome, before.frames) == (Outcome.MISSING, 0)  # what a snapshot holds of it is of the old picture
    assert (now.outcome, now.frames) == (Outcome.ADDED, 1)


def test_frames_that_are_gone_are_neither_lag_nor_fed_nor_thinned(tmp_path: Path) -> None:
    settings = load_settings(overrides=[*SMALL, "store.shard_frames=16", "train.max_lag=40"])
    grow(tmp_path, 120, settings)
    with Store.open(tmp_path) as store:
        kept = 120 - keep(store, max_frames=40)
        assert kept < 40
        assert status(tmp_path).lag == kept
        report = train(tmp_path, settings, steps=1)
        assert (report.fed, report.thinned, report.lag) == (16, 0, kept - 16)
        assert status(tmp_path).lag == status(tmp_path).trained["lag"] == kept - 16
        with store.writer("test") as writer:
            writer.drop(store.catalog.live_ids()[-5:])
        report = train(tmp_path, settings, until_caught_up=True)
    assert (report.fed, report.thinned, report.lag, status(tmp_path).lag) == (kept - 5, 0, 0, 0)


def test_a_limit_in_bytes_holds(tmp_path: Path) -> None:
    with published(tmp_path / "store").store as store:
        before = store.catalog.totals().bytes
        assert keep(store, max_gb=before / 2e9) > 0
        assert 0 < store.catalog.totals().bytes <= before / 2 + 3 * 260  # three shard indexes are not counted
        assert store.catalog.live_ids()[-1] == store.catalog.next_id() - 1


def sqlite_steps(store: Store, work: Callable[[], object]) -> int:
    """Instructions that SQLite executes."""
    steps = 0

    def step() -> int:
        nonlocal steps
        steps += 1
        return 0

    with store.catalog.reading() as tx:
        raw = tx.connection.driver_connection
        assert isinstance(raw, sqlite3.Connection)
    raw.set_progress_handler(step, 1)
    work()
    raw.set_progress_handler(None, 1)
    assert steps
    return steps


def test_a_limit_costs_no_more_with_many_sources_than_with_few(tmp_path: Path) -> None:
    idle, busy = [], []
    for sources in (20, 2000):
        path = tmp_path / f"{sources}"
        with Store.create(path, StoreSettings(size=16, shard_frames=4)) as store, store.writer("test") as writer:
            for number in range(sources):
                source = new_source(writer, f"/v/{number}")
                if number < 10:
                    writer.append(source, [picture(source, 0)], None)
            writer.commit()
            retention = Retention(store, writer, IngestSettings(max_frames=1000, max_gb=1))
            retention.enforce()
            idle.append(sqlite_steps(store, retention.enforce))
            writer.append(source, [picture(source, 0)], None)
            writer.commit()
            busy.append(sqlite_steps(store, retention.enforce))
    assert idle[0] == idle[1]
    assert busy[0] == busy[1]
    assert idle[0] < busy[0]


def test_what_the_buffer_holds_stays_and_a_limit_below_it_says_so(tmp_path: Path) -> None:
    settings = load_settings(overrides=[*SMALL, "store.shard_frames=16"])
    grow(tmp_path, 120, settings)
    train(tmp_path, settings, until_caught_up=True)
    held = buffered_ids(tmp_path)
    learner, _ = restore_learner(tmp_path)
    assert held.tolist() == sorted(learner.buffer.ids[learner.buffer.ids >= 0].tolist())
    assert len(held) == 48
    with Store.open(tmp_path) as store:
        assert keep(store, max_frames=80) == 48
        live = store.catalog.live_ids()
        assert np.isin(held, live).all()
        others = np.setdiff1d(np.arange(120), held)
        assert np.setdiff1d(live, held).tolist() == others[48:].tolist()  # of the others the oldest went
        with store.writer("test") as writer:
            tight = Retention(store, writer, IngestSettings(max_frames=20))
            tight.enforce()
            left = store.catalog.live_ids()
            assert np.isin(held, left).all()
            assert np.setdiff1d(live[-9:], held).size  # what training has not kept
            assert np.isin(live[-9:], left).all()  # the newer half of the limit, without a lump
            assert "replay buffer stay" in tight.note
    assert train(tmp_path, settings, steps=3).steps == 3


def test_training_goes_on_while_frames_are_dropped_and_forgotten_under_it(tmp_path: Path) -> None:
    settings = load_settings(overrides=[*SMALL, "store.shard_frames=16", "train.extend_s=0.2"])
    grow(tmp_path, 60, settings)
    train(tmp_path, settings, until_caught_up=True)  # something to query
    done, failures = threading.Event(), list[BaseException]()

    def guarded(work: object) -> threading.Thread:
        def run() -> None:
            try:
                work()  # type: ignore[operator]
            except BaseException as e:  # noqa: BLE001 - shown below
                failures.append(e)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def ask() -> None:
        while not done.is_set():
            newest = int(named_ids(tmp_path)[-1])
            with suppress(StoreNotFoundError):  # it was forgotten at that moment
                assert len(query(tmp_path, frame=newest, k=5).hits) == 5

    workers = [guarded(lambda: train(tmp_path, settings, stop=done.is_set)), guarded(ask)]
    try:
        for _ in range(4):
            source = grow(tmp_path, 40, settings)
            with Store.open(tmp_path) as store:
                keep(store, max_frames=90)
            time.sleep(0.3)
            forget(tmp_path, str(source))
    finally:
        done.set()
        for worker in workers:
            worker.join()
    for failure in failures:
        raise failure
    with Store.open(tmp_path) as store:
        assert check(store) == []
        live = store.catalog.live_ids()
        learner, _ = restore_learner(tmp_path)
        held = learner.buffer.ids[learner.buffer.ids >= 0]
        assert not np.isin(held, np.arange(60, 220)).any()  # every one of these was forgotten
        assert not np.isin(named_ids(tmp_path), np.arange(60, 220)).any()
        assert np.isin(live, np.arange(60)).all()


@pytest.fixture
def dropped(tmp_path: Path) -> Iterator[Published]:
    """A store of three sources with a snapshot, of which the first source's frames were dropped."""
    made = published(tmp_path / "store")
    with made.store.writer("test") as writer:
        writer.drop(np.arange(12))
    yield made
    made.store.close()


def test_a_snapshot_that_names_dropped_frames_answers_and_says_that_the_pictures_are_gone(
    dropped: Published, tmp_path: Path
) -> None:
    answer = query(
        dropped.store.path, frame=3, k=20, sheet=tmp_path / "sheet.png", html=tmp_path / "page.html"
    )  # fmt: skip
    assert answer.question.title.endswith("(its picture is gone)")
    assert answer.hits[0].frame == 3
    assert answer.hits[0].similarity == pytest.approx(1, abs=1e-3)
    assert answer.hits[0].source == "/media/day0/clip0.mp4"
    assert answer.hits[0].time_s == 1.5
    assert {hit.frame: hit.gone for hit in answer.hits} == {hit.frame: hit.frame < 12 for hit in answer.hits}
    assert 0 < sum(hit.gone for hit in answer.hits) < 20
    assert json.loads(json.dumps(answer.as_dict()))["hits"][0]["gone"] is True
    assert (tmp_path / "page.html").read_text().count("picture gone") == sum(hit.gone for hit in answer.hits)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size[0] > 500


def test_filters_find_dropped_frames_too(dropped: Published) -> None:
    path = dropped.store.path
    assert {h.frame for h in query(path, frame=0, k=50, under="/media/day0/clip0.mp4").hits} == set(range(12))
    assert len(query(path, frame=0, k=50, under="/media/day0/clip0.mp4", distinct_s=2.0).hits) < 12
    early = query(path, frame=20, k=50, before=1_700_000_000.0 + 50)
    assert {h.frame for h in early.hits} == set(range(12))


def test_from_python_a_dropped_frame_is_a_hit_without_a_picture(dropped: Published) -> None:
    with cld_stream.open(dropped.store.path) as store:
        hits = store.snapshot().query(5, k=3)
        assert hits[0].gone
        for look in (store.frames.picture, store.frames.__getitem__):
            with pytest.raises(StoreNotFoundError, match="picture of frame 5 is gone"):
                look(5)


def test_forget_takes_the_features_of_dropped_frames(dropped: Published) -> None:
    assert np.isin(np.arange(12), dropped.snapshot.ids).all()
    gone = forget(dropped.store.path, "clip0.mp4")
    assert (gone.frames, gone.features) == (0, 12)
    assert not np.isin(np.arange(12), dropped.snapshot.ids).any()
    assert not any(hit.frame < 12 for hit in query(dropped.store.path, frame=20, k=50).hits)
    with pytest.raises(StoreNotFoundError, match="was forgotten"):
        query(dropped.store.path, frame=3)


def test_what_no_snapshot_names_is_not_remembered(dropped: Published) -> None:
    store = dropped.store
    add_video(store, "/media/late.mp4", 9)
    assert keep(store, max_frames=30) > 0
    assert len(store.catalog.dropped(np.arange(100))) > 12  # the snapshot names all of them
    store.catalog.drop_snapshot(dropped.snapshot.id)
    remove_snapshot(store.path, dropped.snapshot.id)
    assert keep(store, max_frames=10) > 0
    assert len(store.catalog.dropped(np.arange(100))) == 0


def test_asking_by_a_dropped_frame_says_that_it_was_dropped(dropped: Published) -> None:
    path = dropped.store.path
    newer = publish(dropped.store, ENCODER, dropped.weights, step=2, settings=PublishSettings(groups=4))
    with pytest.raises(StoreNotFoundError, match="frame 3 was dropped to stay within limits, and has no features"):
        query(path, frame=3)
    assert query(path, frame=3, snapshot=dropped.snapshot.id).hits[0].frame == 3
    dropped.store.catalog.drop_snapshot(dropped.snapshot.id)
    remove_snapshot(path, dropped.snapshot.id)
    assert keep(dropped.store, max_frames=20) > 0
    with pytest.raises(StoreNotFoundError, match="frame 3 was forgotten, or dropped to stay within limits"):
        query(path, frame=3)
    assert newer is not None
    assert query(path, frame=30).snapshot == newer.id


def test_joined_segments_keep_the_features_of_dropped_frames(tmp_path: Path) -> None:
    made = published(tmp_path / "s", videos=1)
    extender = Extender(made.store)
    for n in range(16):
        add_video(made.store, f"/media/more{n}.mp4", 50 + n, frames=2)
        if n == 15:
            assert keep(made.store, max_frames=20) > 0
        assert extender.run() == 2
    extender.close()
    assert len(made.snapshot.segments) == 2, "they were joined"
    assert (made.snapshot.ids >= 0).all()


def test_a_rebuilt_catalog_leaves_no_features_that_forget_would_not_find(dropped: Published) -> None:
    path = dropped.store.path
    dropped.store.close()
    for file in path.glob("catalog.db*"):
        file.unlink()
    rebuild_catalog(path)
    with Store.open(path) as store:
        assert named_ids(path).tolist() == store.catalog.live_ids().tolist()
    answer = query(path, frame=20, k=50)
    assert {hit.frame for hit in answer.hits} == set(named_ids(path).tolist())
