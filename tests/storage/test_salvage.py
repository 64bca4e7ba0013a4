"""A damaged catalog: what can still be read of it comes back, and nothing is invented."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from cld_stream.config import StoreSettings
from cld_stream.errors import CorruptError, StoreError
from cld_stream.pipelines.doctor import doctor
from cld_stream.storage.check import check
from cld_stream.storage.rebuild import rebuild_catalog
from cld_stream.storage.salvage import salvage
from cld_stream.storage.schema import Frames, Outcome, SourceRow
from cld_stream.storage.store import Store
from tests.storage.pictures import new_source, picture

GOLDEN = Path(__file__).parents[1] / "golden" / "v1" / "store"
PAGE = 512
Rows = dict[int, tuple[object, ...]]


def filled(path: Path, shard_frames: int = 4096) -> Store:
    """98 frames of 7 sources, the last one being read still; two files without a picture."""
    store = Store.create(path, StoreSettings(size=16, shard_frames=shard_frames))
    with store.writer("t") as writer:
        for name, frames in (("a", 20), ("b", 1), ("notes.txt", 0), ("c", 3), ("d", 40), ("ü \udcff", 12), ("f", 17)):
            source = new_source(writer, f"/v/{name}")
            writer.append(source, [picture(source, i) for i in range(frames)], f"{frames}")
            writer.finish(source, Outcome.ADDED if frames else Outcome.SKIPPED, reader="pyav")
            writer.commit()
        source = new_source(writer, "/v/g")
        writer.append(source, [picture(source, i) for i in range(5)], "5")
    return store


def content(path: Path) -> tuple[Rows, dict[int, SourceRow]]:
    """Every frame with its bytes, by id, and every source."""
    with Store.open(path) as store, store.reader() as reader:
        rows = store.catalog.rows()
        jpegs = reader.jpegs(rows.ids)
        columns = [np.nan_to_num(getattr(rows, name), nan=-1).tolist() for name in Frames.__slots__]
        found = {row[0]: row for row in zip(*columns, jpegs, strict=True)}
        return found, {source.id: source for source in store.catalog.sources()}


def overwrite(file: Path, pages: list[int], rng: np.random.Generator) -> None:
    data = bytearray(file.read_bytes())
    for page in pages:
        data[(page - 1) * PAGE : page * PAGE] = rng.bytes(PAGE) if rng.random() < 0.7 else bytes(PAGE)
    file.write_bytes(data)


def pages_of(file: Path) -> dict[int, tuple[str, str]]:
    """Table or index, and kind, of every page that is part of one."""
    with closing(sqlite3.connect(file)) as db:
        try:
            return {n: (name, kind) for n, name, kind in db.execute("SELECT pageno, name, pagetype FROM dbstat")}
        except sqlite3.OperationalError:
            pytest.skip("this SQLite does not tell whose a page is")


def test_a_rebuild_that_is_killed_before_the_new_catalog_has_its_name_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s"
    filled(path).close()
    frames, sources = content(path)
    overwrite(path / "catalog.db", [1], np.random.default_rng(0))
    rename = Path.rename

    def killed(old: Path, new: Path) -> Path:
        if new.name == "catalog.db":
            raise KeyboardInterrupt
        return rename(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            rebuild_catalog(path)
    assert not (path / "catalog.db").exists()
    assert rebuild_catalog(path).lost == 0
    assert content(path) == (frames, sources)


@pytest.mark.parametrize("shard_frames", [4096, 32])
def test_what_comes_back_of_overwritten_pages_is_as_it_was(tmp_path: Path, shard_frames: int) -> None:
    good, path, rng = tmp_path / "good", tmp_path / "s", np.random.default_rng(shard_frames)
    filled(good, shard_frames).close()
    frames, sources = content(good)
    salvaged = refused = 0
    for _ in range(20):
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(good, path)
        count = (path / "catalog.db").stat().st_size // PAGE
        first = int(rng.integers(1, count + 1))
        some = rng.integers(1, count + 1, int(rng.integers(1, 9))).tolist()
        overwrite(path / "catalog.db", some if rng.random() < 0.5 else [*range(first, min(first + 8, count + 1))], rng)
        try:
            report = rebuild_catalog(path)
        except StoreError:  # in order, as far as SQLite looks
            refused += 1
            continue
        salvaged += report.salvaged
        back, their = content(path)
        assert back.items() <= frames.items()
        assert report.frames == len(back)
        assert report.lost in (None, len(frames) - len(back))
        assert report.whole == (report.lost == 0)
        for id_, source in their.items():
            assert source == sources[id_] or (source.outcome, source.path) == (Outcome.PARTIAL, sources[id_].path)
            assert source.frames == sum(row[1] == id_ for row in back.values())
        with Store.open(path) as store:
            assert check(store) == []
            with store.writer("t") as writer:  # a new frame gets an id that no other ever had
                new = new_source(writer, "/v/new")
                assert writer.append(new, [picture(new, 0)], None).start > max(frames)
        assert {id_: row for id_, row in content(path)[0].items() if row[1] != new} == back
    assert salvaged > 20 * len(frames) / 4 if shard_frames > 98 else salvaged > 0
    assert refused < 12


def test_whatever_is_damaged_beside_the_rows_of_the_tail_all_of_it_comes_back(tmp_path: Path) -> None:
    path, rng = tmp_path / "s", np.random.default_rng(1)
    filled(path).close()
    whole, whose = content(path), pages_of(path / "catalog.db")
    count = (path / "catalog.db").stat().st_size // PAGE
    needed = {n for n, (name, kind) in whose.items() if name in ("tail", "frames", "sources") and kind != "internal"}
    needed |= {n for n, (name, _) in whose.items() if name == "state"}
    overwrite(path / "catalog.db", sorted(set(range(1, count + 1)) - needed), rng)  # header, schema, indexes
    report = rebuild_catalog(path)
    assert (report.salvaged, report.lost, report.partial, report.whole) == (98, 0, 0, True)
    assert content(path) == whole


def test_how_many_are_lost_is_said_where_it_is_known_and_never_called_ok(tmp_path: Path) -> None:
    path, rng = tmp_path / "s", np.random.default_rng(2)
    filled(path).close()
    whose, old = pages_of(path / "catalog.db"), (path / "catalog.db").read_bytes()
    overwrite(path / "catalog.db", [1, *[n for n, page in whose.items() if page == ("tail", "leaf")][:2]], rng)
    (row,) = [c for c in doctor(path, rebuild_catalog=True).checks if c.name == "rebuild"]
    lost = 98 - len(content(path)[0])
    assert 0 < lost < 20
    assert row.state == "note"
    assert f"{98 - lost} salvaged from the old catalog; {lost} are lost" in row.detail
    (path / "catalog.db").write_bytes(old)
    overwrite(path / "catalog.db", [1, *[n for n, page in whose.items() if page[0] == "state"]], rng)
    report = rebuild_catalog(path)
    assert (report.salvaged, report.lost, report.whole) == (98, None, False)
    assert "98 salvaged from the old catalog; how many are lost is not known" in str(report)


def test_what_is_in_the_log_alone_is_salvaged_too(tmp_path: Path) -> None:
    path, copy = tmp_path / "s", tmp_path / "copy"
    with filled(path) as store:
        shutil.copytree(path, copy)  # nothing of it has reached the file yet
        whole = content(path)
        store.catalog.totals()
    assert (copy / "catalog.db-wal").stat().st_size > 100 * PAGE
    assert salvage(copy / "catalog.db", 0).lost(98) == 0
    with (copy / "catalog.db-wal").open("r+b") as log:  # SQLite goes no further than this page
        log.seek(32 + 20 * (PAGE + 24) + 100)
        log.write(b"damage!")
    (copy / "catalog.db").write_bytes(b"\0" * (copy / "catalog.db").stat().st_size)
    report = rebuild_catalog(copy)
    assert report.salvaged > 90
    assert content(copy)[0].items() <= whole[0].items()


def test_a_catalog_of_the_first_release_gets_checksums_with_its_next_writer(tmp_path: Path) -> None:
    path = tmp_path / "s"
    shutil.copytree(GOLDEN, path)
    with Store.open(path) as store:
        old = store.catalog.live_ids(store.catalog.totals().sealed).tolist()
        with store.writer("t") as writer:
            source = new_source(writer, "/v/new")
            new = writer.append(source, [picture(source, 0)], None)
    assert old
    left = salvage(path / "catalog.db", 0)
    assert set(left.frames) == set(new)
    assert set(left.sources) == {source}


def test_bytes_that_are_no_catalog_give_nothing_and_no_traceback(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    for size in (0, 1, 511, 512, 100_000):
        data = bytearray(rng.bytes(size))
        data[::PAGE] = b"\x0d" * len(data[::PAGE])  # every page says that it is a leaf
        (tmp_path / "catalog.db").write_bytes(data)
        (tmp_path / "catalog.db-wal").write_bytes(data)
        left = salvage(tmp_path / "catalog.db", 0)
        assert (left.frames, left.sources, left.lost(0)) == ({}, {}, None)


def test_a_flipped_bit_of_a_row_is_a_row_that_does_not_come_back(tmp_path: Path) -> None:
    filled(tmp_path / "s").close()
    file, rng = tmp_path / "s" / "catalog.db", np.random.default_rng(4)
    whole, data = salvage(file, 0), file.read_bytes()
    assert (len(whole.frames), len(whole.sources)) == (98, 8)
    for _ in range(60):
        bad = bytearray(data)
        for at in rng.integers(0, len(data), 20).tolist():
            bad[at] ^= 1 << int(rng.integers(8))
        file.write_bytes(bad)
        left = salvage(file, 0)
        assert left.frames.items() <= whole.frames.items()
        assert left.jpegs.items() <= whole.jpegs.items()
        assert all(source.path == whole.sources[id_].path for id_, source in left.sources.items())


def test_a_source_that_was_being_read_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "s"
    filled(path).close()
    overwrite(path / "catalog.db", [1], np.random.default_rng(5))
    with pytest.raises(CorruptError):
        Store.open(path)
    assert rebuild_catalog(path).whole
    with Store.open(path) as store:
        last = store.catalog.sources()[-1]
        assert (last.path, last.outcome, last.cursor, last.frames) == ("/v/g", None, "5", 5)
