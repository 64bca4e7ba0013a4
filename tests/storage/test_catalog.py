"""Sources, rows, snapshots and runs as the catalog gives them back."""

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from cld_stream.config import StoreSettings
from cld_stream.errors import StoreNotFoundError
from cld_stream.storage.schema import NewFrame, Outcome, SnapshotRow
from cld_stream.storage.store import Store
from tests.storage.pictures import jpeg, new_source, picture

SMALL = StoreSettings(size=16, shard_frames=4)


@pytest.fixture
def store(tmp_path: Path):  # type: ignore[no-untyped-def]
    with Store.create(tmp_path / "s", SMALL) as made:
        yield made


def test_a_source_comes_back_as_it_went_in(store: Store) -> None:
    odd = "/v/h\udce9las.mp4"  # a name that is not valid UTF-8
    with store.writer("t") as writer:
        first = new_source(writer, odd)
        again = new_source(writer, "/v/copy.mp4", same_as=first)
        writer.append(first, [picture(1, 0)], '{"pts": 7}')
        writer.finish(first, Outcome.PARTIAL, "ends early", "pyav")
        writer.finish(again, Outcome.ALREADY_PRESENT)
        writer.commit()
        writer.update_source(again, path="/v/moved.mp4", size=5)
        with pytest.raises(ValueError, match="colour"):
            writer.update_source(again, colour="red")
    row = store.catalog.source(first)
    assert (row.path, row.device, row.inode) == (odd, 2**64 - 3, 77)
    assert (row.outcome, row.reason, row.reader) == (Outcome.PARTIAL, "ends early", "pyav")
    assert (row.cursor, row.frames, row.label, row.split) == ('{"pts": 7}', 1, "cat", "train")
    moved = store.catalog.source_by_path("/v/moved.mp4")
    assert moved is not None
    assert (moved.id, moved.size, moved.same_as) == (again, 5, first)
    assert store.catalog.source_by_path("/v/copy.mp4") is None
    assert [s.id for s in store.catalog.sources(fingerprint=row.fingerprint)] == [first]
    assert store.catalog.totals().outcomes == {"PARTIAL": 1, "ALREADY_PRESENT": 1}


def test_sources_are_asked_for_by_any_number_of_ids(store: Store) -> None:
    with store.writer("t") as writer:
        ids = [new_source(writer, f"/v/{number}") for number in range(40)]
    with store.catalog.reading() as tx:  # where there is one connection, it is the one that will be used
        raw = tx.connection.driver_connection
        assert isinstance(raw, sqlite3.Connection)
        raw.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 30)  # 32,766 as SQLite comes
    assert [source.id for source in store.catalog.sources(id=ids)] == ids


def test_a_person_may_name_a_source_by_id_path_or_a_unique_ending(store: Store) -> None:
    with store.writer("t") as writer:
        for path in ("/a/cat.mp4", "/b/cat.mp4", "/b/wildcat.mp4", "/b/dog.mp4", "12"):
            new_source(writer, path)
    find = store.catalog.find_source
    assert find("2").path == "/b/cat.mp4"
    assert find("12").id == 5
    assert find("/a/cat.mp4").id == 1
    assert find("dog.mp4").id == 4
    assert find("b/cat.mp4").id == 2
    assert find("g.mp4").id == 4
    with pytest.raises(StoreNotFoundError, match=r"2 sources end in 'cat.mp4': 1 /a/cat.mp4, 2 "):
        find("cat.mp4")
    with pytest.raises(StoreNotFoundError, match="no source 'cow'"):
        find("cow")


def test_rows_come_in_the_order_asked_and_without_those_that_are_gone(store: Store) -> None:
    with store.writer("t") as writer:
        for n in range(3):
            source = new_source(writer, f"/v/{n}")
            writer.append(source, [picture(source, i) for i in range(4)], None)
        writer.commit()
        writer.forget(2)
    rows = store.catalog.rows([9, 5, 0, 0, 99])
    assert rows.ids.tolist() == [9, 0, 0]
    assert rows.source.tolist() == [3, 1, 1]
    assert rows.time_s.tolist() == [0.5, 0.0, 0.0]
    assert np.isnan(rows.wall_utc).all()
    assert rows.aspect.dtype == np.float32
    assert store.catalog.rows(start=3, stop=9).ids.tolist() == [3, 8]
    assert store.catalog.live_ids(3).tolist() == [3, 8, 9, 10, 11]
    assert store.catalog.live_ids(source=3).tolist() == [8, 9, 10, 11]
    assert len(store.catalog.rows([])) == 0


def test_the_frame_at_a_time_is_the_nearest_one(store: Store) -> None:
    with store.writer("t") as writer:
        source, empty = new_source(writer, "/v/a"), new_source(writer, "/v/b")
        times = (0.0, 1.0, 2.5)
        writer.append(source, [NewFrame(jpeg(1, 0), t, None, 0, 1) for t in times], None)
    at = store.catalog.frame_at
    assert [at(source, t) for t in (-5, 0.5, 0.6, 1.74, 1.8, 99)] == [0, 0, 1, 1, 2, 2]
    with pytest.raises(StoreNotFoundError):
        at(empty, 0)


def test_snapshots_are_listed_pinned_and_dropped(store: Store) -> None:
    catalog = store.catalog
    assert catalog.latest_snapshot() is None
    for n, state in enumerate(("current", "current", "building")):
        row = SnapshotRow(f"s{n}", 100.0 + n, n, "hash", 10, False, state, {"n": n})  # type: ignore[arg-type]
        catalog.add_snapshot(row)
    latest = catalog.latest_snapshot()
    assert latest is not None
    assert (latest.id, latest.info) == ("s1", {"n": 1})
    catalog.pin("s0")
    catalog.set_snapshot_state("s1", "retired")
    assert catalog.snapshot("s0").pinned
    assert [s.state for s in catalog.snapshots()] == ["current", "retired", "building"]
    catalog.add_segment("s0", "b", 20, 30, 9)
    catalog.add_segment("s0", "a", 10, 20, 10)
    assert [(s.name, s.first, s.frames) for s in catalog.segments("s0")] == [
        ("a", 10, 10),
        ("b", 20, 9),
    ]
    catalog.drop_snapshot("s0")
    assert catalog.segments("s0") == []
    with pytest.raises(StoreNotFoundError, match="no snapshot 's0'; newest: s1, s2"):
        catalog.pin("s0")


def test_a_run_is_noted_while_another_process_writes_frames(store: Store) -> None:
    with store.writer("t") as writer:
        writer.append(new_source(writer, "/v/a"), [picture(1, 0)], None)
        run = store.catalog.begin_run("train", ["cld-stream", "train"])
        store.catalog.heartbeat(run, {"step": 7})
        writer.commit()
    (row,) = store.catalog.runs("train")
    assert (row.argv, row.info, row.ended_utc) == (["cld-stream", "train"], {"step": 7}, None)
    store.catalog.end_run(run, "done")
    assert store.catalog.runs()[0].outcome == "done"
    assert store.catalog.runs("ingest") == []
