"""Frames in, frames out: against a plain list, against zarr-python, and while a writer is at work."""

import os
import resource
import tempfile
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from cld_stream.config import StoreSettings
from cld_stream.errors import CorruptError, StoreError
from cld_stream.storage import shards
from cld_stream.storage.check import check
from cld_stream.storage.schema import NewFrame, Outcome
from cld_stream.storage.shards import empty_elements
from cld_stream.storage.store import Store
from tests.storage.pictures import jpeg, new_source, picture

SMALL = StoreSettings(size=16, shard_frames=4)
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # a disk's fsync takes a while


def filled(path: Path, frames: int, settings: StoreSettings = SMALL) -> Store:
    store = Store.create(path, settings)
    with store.writer("test") as writer:
        source = new_source(writer, "/v/a.mp4")
        writer.append(source, [picture(source, i) for i in range(frames)], None)
        writer.finish(source, Outcome.ADDED)
    return store


def as_zarr_reads(path: Path) -> list[bytes]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr: variable-length bytes have no final specification
        array = zarr.open_array(path / "frames", mode="r")
        return list(np.asarray(array[:])) if array.shape[0] else []


actions = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(0, 11)),
        st.tuples(st.just("commit"), st.none()),
        st.tuples(st.just("reopen"), st.none()),
        st.tuples(st.just("forget"), st.integers(0, 5)),
    ),
    max_size=14,
)


@given(actions)
@settings(max_examples=20, deadline=None)
def test_a_store_answers_like_a_plain_list_whatever_is_done_to_it(
    steps: list[tuple[str, int | None]],
) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        path = Path(folder, "store")
        store = Store.create(path, SMALL)
        model: list[tuple[int, bytes]] = []  # (source, bytes) of every id handed out
        durable = 0
        writer = store.writer("test").__enter__()
        reader = store.reader(threads=1)
        for what, n in steps:
            if what == "append" and n is not None:
                source = new_source(writer, f"/v/{len(model)}")
                ids = writer.append(source, [picture(source, i) for i in range(n)], "c")
                assert list(ids) == list(range(len(model), len(model) + n))
                model += [(source, jpeg(source, i)) for i in range(n)]
            elif what == "commit":
                writer.commit()
                durable = len(model)
            elif what == "forget" and n is not None and store.catalog.sources(id=n):
                writer.forget(n)
                durable = len(model)
                model = [(s, b"" if s == n else data) for s, data in model]
            elif what == "reopen":
                writer.__exit__(None, None, None)
                durable = len(model)
                writer = store.writer("test").__enter__()
            expected = [data for _, data in model[:durable]]
            assert reader.jpegs(range(-1, durable + 2)) == [b"", *expected, b"", b""]
        writer.__exit__(None, None, None)
        expected = [data for _, data in model]
        sealed = store.catalog.totals().sealed
        assert sealed == len(model) // 4 * 4
        assert as_zarr_reads(path) == expected[:sealed]
        assert store.catalog.live_ids().tolist() == [i for i, d in enumerate(expected) if d]
        assert store.catalog.frame_count() == sum(map(bool, expected))
        assert store.catalog.next_id() == len(model)
        assert check(store) == []
        store.close()


def test_zarr_python_reads_every_sealed_frame_and_our_reader_agrees(tmp_path: Path) -> None:
    with filled(tmp_path / "s", 11) as store, store.reader() as reader:
        assert as_zarr_reads(store.path) == reader.jpegs(range(8)) == [jpeg(1, i) for i in range(8)]


def test_decoded_pixels_are_those_of_the_jpeg_in_any_order_with_any_number_of_threads(
    tmp_path: Path,
) -> None:
    ids = np.random.default_rng(0).integers(0, 60, 300)
    with filled(tmp_path / "s", 61) as store:
        expected = np.stack([simplejpeg.decode_jpeg(jpeg(1, i), "RGB") for i in ids.tolist()])
        for threads in (1, 3):
            with store.reader(threads) as reader:
                out = np.empty_like(expected)
                pixels, present = reader.read(ids, out)
                assert pixels is out
                assert present.all()
                np.testing.assert_array_equal(pixels, expected)


def test_a_frame_that_is_not_there_is_said_to_be_absent_and_its_pixels_are_zero(
    tmp_path: Path,
) -> None:
    with filled(tmp_path / "s", 5) as store, store.reader() as reader:
        pixels, present = reader.read([4, 5, 0, -1, 10**12], np.ones((5, 16, 16, 3), np.uint8))
        assert present.tolist() == [True, False, True, False, False]
        assert not pixels[~present].any()


def test_out_of_the_wrong_shape_is_refused(tmp_path: Path) -> None:
    with (
        filled(tmp_path / "s", 5) as store,
        store.reader() as reader,
        pytest.raises(ValueError, match="shape"),
    ):
        reader.read([0], np.zeros((1, 8, 8, 3), np.uint8))


def test_readers_see_only_true_frames_while_a_writer_adds_seals_and_forgets(
    tmp_path: Path,
) -> None:
    store = Store.create(tmp_path / "s", SMALL)
    wrong: list[str] = []
    done = threading.Event()

    def watch() -> None:
        with Store.open(tmp_path / "s") as mine, mine.reader(threads=1) as reader:
            while not done.is_set():
                stop = reader.refresh()
                rows = mine.catalog.rows(stop=stop)
                got = reader.jpegs(rows.ids)
                for id_, source, data in zip(rows.ids.tolist(), rows.source.tolist(), got, strict=True):
                    right = jpeg(source, id_ % 1000)
                    if data != right and (data or source != 1):  # the first is forgotten meanwhile
                        wrong.append(f"frame {id_} of source {source}: {len(data)} bytes")

    threads = [threading.Thread(target=watch) for _ in range(2)]
    for thread in threads:
        thread.start()
    with store.writer("test") as writer:
        sources = [new_source(writer, f"/v/{n}") for n in range(3)]
        for i in range(120):
            source = sources[i // 40]
            writer.append(source, [picture(source, i)], None)
            if i % 3 == 0:
                writer.commit()
        writer.commit()
        writer.forget(sources[0])
    done.set()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[:3]
    with store.reader() as reader:
        assert reader.jpegs(range(41)) == [b""] * 40 + [jpeg(2, 40)]
    store.close()


def test_a_reader_that_has_a_shard_open_sees_it_forgotten(tmp_path: Path) -> None:
    with filled(tmp_path / "s", 9) as store, store.reader() as reader:
        assert reader.jpegs([0, 8]) == [jpeg(1, 0), jpeg(1, 8)]
        with store.writer("forget") as writer:
            assert writer.forget(1) == 9
        assert reader.jpegs([0, 8]) == [b"", b""]
        assert check(store) == []


@pytest.mark.parametrize("where", ["chunk", "index", "cut", "gone"])
def test_a_damaged_shard_is_an_error_and_never_a_wrong_picture(tmp_path: Path, where: str) -> None:
    store = filled(tmp_path / "s", 9)
    shard = tmp_path / "s" / "frames" / "c" / "1"
    data = bytearray(shard.read_bytes())
    if where == "gone":
        shard.unlink()
    else:
        data[{"chunk": 40, "index": -30, "cut": 0}[where]] ^= 1
        shard.write_bytes(data[:-100] if where == "cut" else data)
    with store.reader(threads=1) as reader:
        assert reader.jpegs([0, 1, 2, 3, 8]) == [jpeg(1, i) for i in (0, 1, 2, 3, 8)]
        with pytest.raises(CorruptError, match=r"frames/c/1"):
            reader.read([4, 5, 6, 7])
    found = check(store)
    assert [f.where for f in found] == ["frames/c/1"]
    store.close()


def test_a_shard_that_is_rewritten_is_never_read_by_the_index_of_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_OPEN_FILES", 1)
    with filled(tmp_path / "s", 8) as store, store.reader() as reader:
        frames = reader.jpegs(range(8))
        empty_elements(store.path / "frames", 4, np.array([0]))  # what `forget` does before the generation changes
        assert reader.jpegs(range(8)) == [b"", *frames[1:]]


def test_too_many_open_files_are_not_taken_for_a_damaged_shard(tmp_path: Path) -> None:
    store = filled(tmp_path / "s", 8)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with store.reader(threads=1) as reader:
        store.catalog.rows([0])
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            with pytest.raises(StoreError, match="too many files are open") as told:
                reader.read(np.arange(4))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert not isinstance(told.value, CorruptError)
        assert reader.read(np.arange(4))[1].all()


def test_bytes_that_are_no_picture_of_the_right_size_are_an_error(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "s", SMALL)
    with store.writer("test") as writer:
        source = new_source(writer, "/v/a")
        writer.append(source, [NewFrame(b"no picture", 0, None, 0, 1)], None)
        writer.append(source, [NewFrame(jpeg(1, 1, size=32), 0, None, 0, 1)], None)
    with store.reader() as reader:
        with pytest.raises(CorruptError, match="frame 0 is no valid JPEG"):
            reader.read([0])
        with pytest.raises(CorruptError, match="frame 1"):
            reader.read([1])
    assert [f.problem for f in check(store)] == ["frames whose picture or row is damaged: 0, 1, of 1 /v/a."]
    store.close()
