"""Dropping frames: their pictures go, ids never move, and what is known of them stays while a snapshot names them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cld_stream.config import StoreSettings
from cld_stream.errors import StoreFullError
from cld_stream.storage.check import check
from cld_stream.storage.rebuild import rebuild_catalog
from cld_stream.storage.retention import FrameBytes, forget_unnamed
from cld_stream.storage.schema import Outcome
from cld_stream.storage.shards import ArrayState, index_bytes, read_array_state
from cld_stream.storage.store import Store
from tests.storage.pictures import jpeg, new_source, picture
from tests.storage.test_frames import as_zarr_reads

GOLDEN = Path(__file__).parents[1] / "golden" / "v1" / "store"


def made(path: Path, *frames: int) -> Store:
    """A store of shards of four with a source of so many frames each."""
    store = Store.create(path, StoreSettings(size=16, shard_frames=4))
    with store.writer("test") as writer:
        for number, count in enumerate(frames, 1):
            source = new_source(writer, f"/v/{number}.mp4")
            writer.append(source, [picture(source, i) for i in range(count)], str(count))
            writer.finish(source, Outcome.ADDED, reader="test")
    return store


def test_dropped_frames_are_empty_elements_and_nothing_else_moves(tmp_path: Path) -> None:
    with made(tmp_path / "s", 6, 5) as store, store.reader() as reader:
        kept = reader.jpegs(range(11))
        before = store.catalog.totals()
        with store.writer("t") as writer:
            assert writer.drop(np.array([0, 1, 2, 3, 5, 9])) == 6
            assert store.catalog.live_ids().tolist() == [4, 6, 7, 8, 10]
            assert reader.jpegs(range(11)) == [kept[i] if i in (4, 6, 7, 8, 10) else b"" for i in range(11)]
            source = new_source(writer, "/v/3.mp4")
            assert writer.append(source, [picture(source, 0)], None) == range(11, 12)  # ids are not used again
            writer.finish(source, Outcome.ADDED)
        sealed = as_zarr_reads(store.path)
        assert sealed == reader.jpegs(range(len(sealed)))
        assert len(sealed) == 12
        assert [s.frames for s in store.catalog.sources()] == [1, 4, 1]
        assert [s.outcome for s in store.catalog.sources()] == [Outcome.ADDED] * 3
        assert store.catalog.totals().bytes < before.bytes
        assert check(store) == []


def test_a_reader_learns_of_a_drop_that_failed_at_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise StoreFullError("no room")

    with made(tmp_path / "s", 6, 5) as store, store.reader() as reader, store.writer("t") as writer:
        kept = reader.jpegs(range(11))
        with monkeypatch.context() as patch:
            patch.setattr(store.catalog, "checkpoint", full)
            with pytest.raises(StoreFullError):
                writer.drop(np.array([0, 1]))
        source = new_source(writer, "/v/3.mp4")
        writer.append(source, [picture(source, 0)], None)
        writer.commit()  # seals a shard
        assert read_array_state(store.path / "frames") == store.catalog.array_state() == ArrayState(12, 1)
        assert reader.jpegs(range(11)) == [b"", b"", *kept[2:]]


def test_what_is_known_of_a_dropped_frame_stays_until_no_snapshot_names_it(tmp_path: Path) -> None:
    with made(tmp_path / "s", 6, 5) as store:
        whole = store.catalog.rows([3, 7])
        with store.writer("t") as writer:
            writer.drop(np.array([3, 7]))
            again, dropped = store.catalog.known([3, 4, 7, 99, 4])
            assert again.ids.tolist() == [3, 4, 7, 4]
            assert dropped.tolist() == [True, False, True, False]
            for name in ("source", "time_s", "wall_utc", "shot", "aspect"):
                assert np.array_equal(getattr(again, name)[[0, 2]], getattr(whole, name), equal_nan=True)
            assert forget_unnamed(store.catalog, np.array([7])) == 1
            assert store.catalog.known([3, 7])[0].ids.tolist() == [7]


def test_forget_takes_what_is_known_of_dropped_frames_too(tmp_path: Path) -> None:
    with made(tmp_path / "s", 6, 5) as store, store.writer("t") as writer:
        writer.drop(np.array([0, 1, 6]))
        assert writer.forget(1) == 4
        assert store.catalog.dropped(np.arange(11)).ids.tolist() == [6]
        assert check(store) == []


@pytest.mark.parametrize("way", ["drop", "forget"])
def test_a_damaged_frame_can_be_removed(tmp_path: Path, way: str) -> None:
    with made(tmp_path / "s", 2, 6) as store:
        shard = tmp_path / "s" / "frames" / "c" / "0"
        data = bytearray(shard.read_bytes())
        data[30] ^= 1  # inside the first frame
        shard.write_bytes(data)
        assert check(store) != []
        with store.writer("t") as writer:
            assert (writer.drop(np.array([0, 1])) if way == "drop" else writer.forget(1)) == 2
        assert check(store) == []


def test_forget_wins_over_a_drop_that_was_begun(tmp_path: Path) -> None:
    from cld_stream.storage.retention import begin_dropping

    with made(tmp_path / "s", 6, 5) as store:
        begin_dropping(store.catalog, np.array([0, 1, 6]))  # and killed here
        with store.writer("forget") as writer:
            assert writer.forget(1) == 4  # two were dropped on entering
        assert store.catalog.live_ids().tolist() == [7, 8, 9, 10]
        assert store.catalog.dropped(np.arange(11)).ids.tolist() == [6]
        assert check(store) == []


@pytest.mark.parametrize("drop", [[0, 1, 2, 3], [0, 1, 2, 3, 4, 5], [0, 4, 8]])
def test_a_rebuilt_catalog_calls_nothing_lost_that_was_dropped(tmp_path: Path, drop: list[int]) -> None:
    path = tmp_path / "s"
    with made(path, 4, 2, 6) as store, store.writer("t") as writer:
        writer.drop(np.array(drop))
        sources, rows = store.catalog.sources(), store.catalog.rows()
    (path / "catalog.db").unlink()
    report = rebuild_catalog(path)
    assert report.partial == 0
    with Store.open(path) as store:
        assert store.catalog.sources() == sources
        assert store.catalog.rows().ids.tolist() == rows.ids.tolist()


def test_a_store_of_the_first_release_can_drop(tmp_path: Path) -> None:
    path = tmp_path / "s"
    shutil.copytree(GOLDEN, path)
    with Store.open(path) as store, store.reader() as reader:
        assert not store.catalog.keeps_dropped()
        ids = store.catalog.live_ids()
        assert len(store.catalog.dropped(ids)) == 0
        with store.writer("t") as writer:
            assert writer.drop(ids[:2]) == 2
        assert reader.jpegs(ids[:2]) == [b"", b""]
        assert store.catalog.dropped(ids).ids.tolist() == ids[:2].tolist()
        assert check(store) == []


def test_files_are_looked_at_only_once_frames_came_or_went_and_empty_ones_never_again(tmp_path: Path) -> None:
    with made(tmp_path / "s", 11) as store, store.writer("t") as writer:
        taken = FrameBytes(store.path, store.header, store.catalog)
        before = taken.count()
        shards = store.path / "frames" / "c"
        shards.rename(tmp_path / "aside")
        assert taken.count() == before
        (tmp_path / "aside").rename(shards)
        writer.drop(np.arange(4))
        less = taken.count()
        assert 0 < less < before
        (shards / "0").write_bytes(bytes(9999))
        writer.drop(np.arange(4, 6))
        assert 0 < taken.count() < less


@settings(max_examples=10, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.sets(st.integers(0, 30), max_size=8)), min_size=1, max_size=6))
def test_any_mix_of_adding_and_dropping_equals_a_dictionary(tmp_path_factory: pytest.TempPathFactory, plan) -> None:  # type: ignore[no-untyped-def]
    model: dict[int, bytes] = {}
    path = tmp_path_factory.mktemp("mix") / "s"
    with Store.create(path, StoreSettings(size=16, shard_frames=4)) as store, store.reader(threads=1) as reader:
        taken = FrameBytes(path, store.header, store.catalog)
        for count, drop in plan:
            with store.writer("t") as writer:
                source = new_source(writer, f"/v/{writer.next_id}")
                ids = writer.append(source, [picture(source, i) for i in range(count)], None)
                writer.finish(source, Outcome.ADDED)
                model |= {id_: jpeg(source, i) for i, id_ in enumerate(ids)}
                writer.commit()
                gone = np.array(sorted(drop & model.keys()), np.int64)
                assert writer.drop(gone) == len(gone)
            for id_ in gone.tolist():
                del model[id_]
            totals = store.catalog.totals()
            assert taken.count() == totals.bytes - totals.sealed // 4 * index_bytes(4)
            everything = range(store.catalog.next_id())
            assert reader.jpegs(everything) == [model.get(id_, b"") for id_ in everything]
            assert store.catalog.live_ids().tolist() == sorted(model)
        assert check(store) == []
