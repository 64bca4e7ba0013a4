"""The catalog made anew from shards and sidecars; the golden store of format 1."""

import json
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from cld_stream.config import StoreSettings
from cld_stream.errors import CorruptError, FormatTooNewError, StoreError
from cld_stream.pipelines.publish import publish
from cld_stream.pipelines.snapshots import change_snapshots, list_snapshots
from cld_stream.storage.check import check
from cld_stream.storage.rebuild import rebuild_catalog
from cld_stream.storage.schema import Frames, Outcome
from cld_stream.storage.sidecars import read_sidecar, write_sidecar
from cld_stream.storage.store import Store
from tests.pipelines.published import ENCODER, published, weights
from tests.storage.pictures import jpeg, new_source, picture

SMALL = StoreSettings(size=16, shard_frames=4)
GOLDEN = Path(__file__).parents[1] / "golden" / "v1"


def filled(path: Path) -> Store:
    """Two shards (8 frames of three sources) and a tail of 3; sources without frames of every kind."""
    store = Store.create(path, SMALL)
    with store.writer("t") as writer:
        writer.finish(new_source(writer, "/v/notes.txt"), Outcome.SKIPPED, "no picture or video")
        for name, frames in (("/v/a", 3), ("/v/b", 5), ("/v/c", 2)):
            source = new_source(writer, name)
            writer.append(source, [picture(source, i) for i in range(frames)], f"{frames}")
            writer.finish(source, Outcome.ADDED, reader="pyav")
            if name == "/v/a":
                copy = new_source(writer, "/v/copy of a", same_as=source)
                writer.finish(copy, Outcome.ALREADY_PRESENT)
        writer.commit()
        source = new_source(writer, "/v/d")
        writer.append(source, [picture(source, 0)], "1")
    return store


def equal(a: Frames, b: Frames) -> bool:
    return all(np.array_equal(getattr(a, n), getattr(b, n), equal_nan=True) for n in Frames.__slots__)


def test_a_rebuilt_catalog_has_the_same_rows_for_every_sealed_shard(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with filled(path) as store:
        before, sources = store.catalog.rows(stop=8), store.catalog.sources()
    (path / "catalog.db").unlink()
    report = rebuild_catalog(path)
    assert (report.shards, report.frames, report.partial, report.problems) == (2, 8, 0, ())
    with Store.open(path) as store, store.reader() as reader:
        assert equal(store.catalog.rows(), before)
        assert store.catalog.sources() == [s for s in sources if s.path not in ("/v/c", "/v/d")]
        assert check(store) == []
        assert store.catalog.next_id() >= 11  # a lost id is never given to another picture
        with store.writer("t") as writer:
            source = new_source(writer, "/v/e")
            (id_,) = writer.append(source, [picture(source, 0)], None)
        assert source not in [s.id for s in sources[:-1]]
        assert reader.jpegs([8, id_]) == [b"", jpeg(source, 0)]
        assert check(store) == []


def test_a_lost_id_is_not_given_again_though_the_newest_sidecar_is_lost_too(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with Store.create(path, SMALL) as store, store.writer("t") as writer:
        source = new_source(writer, "/v/a")
        for number in range(11):
            writer.append(source, [picture(source, number)], f"{number}")
            writer.commit()
    (path / "catalog.db").unlink()
    (path / "sidecars" / "1.npz").unlink()
    assert rebuild_catalog(path).frames == 4
    with Store.open(path) as store:
        assert store.catalog.next_id() >= 11


def test_a_source_that_lost_frames_or_was_being_read_becomes_partial(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with Store.create(path, SMALL) as store, store.writer("t") as writer:
        whole, open_ = new_source(writer, "/v/whole"), new_source(writer, "/v/open")
        writer.append(whole, [picture(1, i) for i in range(2)], None)
        writer.finish(whole, Outcome.ADDED)
        writer.append(open_, [picture(2, i) for i in range(3)], "3")
    (path / "catalog.db").unlink()
    assert rebuild_catalog(path).partial == 1
    with Store.open(path) as store:
        a, b = store.catalog.sources()
        assert (a.outcome, a.frames) == (Outcome.ADDED, 2)
        assert (b.outcome, b.frames, b.cursor) == (Outcome.PARTIAL, 2, None)
        assert "1 known frames and what followed are lost" in b.reason


def test_a_sound_catalog_is_not_replaced_and_a_damaged_one_is_kept_aside(tmp_path: Path) -> None:
    path = tmp_path / "s"
    filled(path).close()
    with pytest.raises(StoreError, match="newest 3 frames"):
        rebuild_catalog(path)
    with Store.open(path) as store, store.writer("t") as writer:
        writer.forget(store.catalog.find_source("/v/c").id)
    with pytest.raises(StoreError, match="newest 1 frames"):
        rebuild_catalog(path)
    (path / "catalog.db").write_bytes(b"garbage")
    assert rebuild_catalog(path).frames == 8
    assert (path / "catalog.db.old").read_bytes() == b"garbage"


def test_a_pinned_snapshot_is_still_pinned_after_a_rebuild(tmp_path: Path) -> None:
    published(tmp_path / "s")
    with Store.open(tmp_path / "s") as store:
        for seed in (1, 2):
            publish(store, ENCODER, weights(seed), step=seed)
    made = [row.id for row in list_snapshots(tmp_path / "s")]
    change_snapshots(tmp_path / "s", pin=made[1])
    with (tmp_path / "s" / "catalog.db").open("r+b") as file:
        file.write(bytes(100))
    rebuild_catalog(tmp_path / "s")
    assert [(row.id, row.pinned) for row in list_snapshots(tmp_path / "s")] == [(id_, id_ == made[1]) for id_ in made]


def test_a_damaged_sidecar_is_found_and_a_newer_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with filled(path) as store:
        file = path / "sidecars" / "0.npz"
        good = file.read_bytes()
        file.write_bytes(good[:200] + b"?" + good[201:])
        assert [f.where for f in check(store)] == ["sidecars/0.npz"]
        file.write_bytes(good)
        sidecar = read_sidecar(file)
        assert json.dumps([s.path for s in sidecar.sources]) == json.dumps(
            ["/v/notes.txt", "/v/a", "/v/copy of a", "/v/b", "/v/c"]
        )
        write_sidecar(file, sidecar)
        assert check(store) == []
        with np.load(file) as old:
            columns = dict(old)
        header = json.loads(columns.pop("header").tobytes()) | {"version": 2}
        np.savez(file, header=np.frombuffer(json.dumps(header).encode(), np.uint8), **columns)
        with pytest.raises(FormatTooNewError, match="up to 1"):
            read_sidecar(file)
        with pytest.raises(CorruptError):
            read_sidecar(path / "sidecars" / "9.npz")


def test_no_flipped_byte_of_a_sidecar_passes_unnoticed(tmp_path: Path) -> None:
    filled(tmp_path / "s").close()
    file = tmp_path / "s" / "sidecars" / "0.npz"
    whole, good = read_sidecar(file), file.read_bytes()
    for at in np.random.default_rng(0).permutation(len(good))[:400].tolist():
        file.write_bytes(good[:at] + bytes([good[at] ^ 0x55]) + good[at + 1 :])
        try:
            read = read_sidecar(file)
        except CorruptError:
            continue
        assert equal(read.frames, whole.frames)  # a byte that means nothing, such as a date
        assert read.sources == whole.sources


def test_forgetting_takes_the_duplicates_along_and_leaves_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with filled(path) as store:
        with store.writer("t") as writer:
            assert writer.forget(2) == 3
        assert [s.path for s in store.catalog.sources()] == ["/v/notes.txt", "/v/b", "/v/c", "/v/d"]
        for file in path.rglob("*"):
            if file.is_file():
                data = file.read_bytes()
                assert not any(jpeg(2, i)[-60:-20] in data for i in range(3)), file
                assert b"copy of a" not in data, file
        for shard in (0, 1):
            sidecar = read_sidecar(path / "sidecars" / f"{shard}.npz")
            assert not {s.path for s in sidecar.sources} & {"/v/a", "/v/copy of a"}
        assert check(store) == []


def test_a_source_with_more_duplicates_than_a_query_takes_numbers_can_be_forgotten(tmp_path: Path) -> None:
    with Store.create(tmp_path / "s", SMALL) as store:
        with store.writer("t") as writer:
            source = new_source(writer, "/v/a")
            writer.append(source, [picture(source, 0)], "1")
            for number in range(40):
                new_source(writer, f"/v/{number}", same_as=source)
        with store.catalog.reading() as tx:  # where there is one connection, it is the one that will be used
            raw = tx.connection.driver_connection
            assert isinstance(raw, sqlite3.Connection)
            raw.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 30)  # 32,766 as SQLite comes
        with store.writer("t") as writer:
            assert writer.forget(source) == 1
        assert store.catalog.sources() == []


def test_the_golden_store_of_format_1_is_read_written_and_rebuilt(tmp_path: Path) -> None:
    expected = json.loads((GOLDEN / "expected.json").read_text())
    path = tmp_path / "v1"
    shutil.copytree(GOLDEN / "store", path)
    with Store.open(path) as store, store.reader() as reader:
        assert check(store) == []
        rows = store.catalog.rows()
        assert rows.ids.tolist() == expected["ids"]
        assert rows.source.tolist() == expected["source"]
        assert rows.time_s.tolist() == expected["time_s"]
        assert [s.path for s in store.catalog.sources()] == expected["paths"]
        pixels, present = reader.read(range(store.catalog.next_id()))
        assert present.tolist() == expected["present"]
        np.testing.assert_allclose(
            pixels.mean((1, 2, 3)), expected["mean"], atol=1.0
        )  # decoders may differ in the last bit
        with store.writer("t") as writer:
            source = new_source(writer, "/v/new")
            writer.append(source, [picture(source, i) for i in range(4)], None)
        assert check(store) == []
        sealed = store.catalog.totals().sealed
        known = store.catalog.rows(stop=sealed)
    (path / "catalog.db").unlink()
    rebuild_catalog(path)
    with Store.open(path) as store:
        assert equal(store.catalog.rows(), known)
