"""Snapshots on disk: readable by zarr, resumable, honest about damage."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cld_stream.config import StoreSettings
from cld_stream.errors import CorruptError, FormatTooNewError, StoreNotFoundError
from cld_stream.storage import vectors
from cld_stream.storage.segments import list_segments, merge_segments, segment_name, write_segment
from cld_stream.storage.snapshot_builder import SnapshotBuilder, encoder_hash
from cld_stream.storage.snapshots import Snapshot, drop_features, snapshot_rows
from cld_stream.storage.store import Store
from cld_stream.storage.vectors import VectorArray

MANIFEST = {"created_utc": 1.5, "step": 3, "encoder": {"sha256": "abc", "settings": {}}, "info": {"note": "x"}}
WEIGHTS = {"w": np.arange(6, dtype=np.float32).reshape(2, 3).T, "count": np.array(7)}


def build(store: Path, rows: int = 10, seed: int = 0) -> Snapshot:
    rng = np.random.default_rng(seed)
    builder = SnapshotBuilder(store, "one", MANIFEST, WEIGHTS, np.arange(rows) * 2, 2 * rows, {"a": 3, "b": 5})
    while (chunk := builder.next_rows()) is not None:
        count = chunk.stop - chunk.start
        builder.write(chunk, {s: rng.standard_normal((count, d)).astype(np.float16) for s, d in (("a", 3), ("b", 5))})
    return builder.finish(np.eye(2, 5, dtype=np.float32), np.arange(rows, dtype=np.int32) % 2)


def values(rng: np.random.Generator, rows: int, width: int) -> NDArray[np.float16]:
    return rng.standard_normal((rows, width)).astype(np.float16)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(0, 30), width=st.integers(0, 4), chunk=st.integers(1, 9), seed=st.integers(0, 99))
def test_zarr_reads_what_we_write(
    tmp_path_factory: pytest.TempPathFactory, rows: int, width: int, chunk: int, seed: int
) -> None:
    path, rng = tmp_path_factory.mktemp("v"), np.random.default_rng(seed)
    data = rng.integers(-9, 9, (rows, width)[: 2 if width else 1]).astype(np.float16 if width else np.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "CHUNK_ROWS", chunk)
        array = VectorArray.write(path / "x", data)
    np.testing.assert_array_equal(array.read(), data)
    np.testing.assert_array_equal(zarr.open_array(str(path / "x"), mode="r")[:], data)
    if rows:
        wanted = rng.integers(0, rows, 7)
        np.testing.assert_array_equal(array.read_rows(wanted), data[wanted])
        array.overwrite(np.unique(wanted), -1)
        data[wanted] = -1
        np.testing.assert_array_equal(zarr.open_array(str(path / "x"), mode="r")[:], data)


def test_two_that_forget_at_once_undo_nothing_of_each_other(tmp_path: Path) -> None:
    with Store.create(tmp_path / "s", StoreSettings(size=16, shard_frames=4)) as store:
        made = build(store.path, rows=200)
        with ThreadPoolExecutor(2) as pool:
            for frames in zip(range(0, 200, 4), range(2, 200, 4), strict=True):
                list(pool.map(lambda frame: drop_features(store, np.array([frame])), frames))
        assert (made.ids[:100] == -1).all()
        assert (made.ids[100:] == np.arange(200, 400, 2)).all()
        for space in ("a", "b"):
            features = made.features(space)[1]
            assert not features[:100].any()
            assert features[100:].any(1).all()


def test_what_is_built_is_read_back(tmp_path: Path) -> None:
    built = build(tmp_path)
    again = Snapshot(tmp_path / "snapshots" / "one")
    assert again.ids.tolist() == list(range(0, 20, 2))
    assert (again.covered(), again.spaces) == (20, {"a": 3, "b": 5})
    np.testing.assert_array_equal(again.features("a")[1], built.features("a")[1])
    assert again.groups()[1].tolist() == [0, 1] * 5
    for name, value in WEIGHTS.items():
        np.testing.assert_array_equal(again.weights()[name], value)
    (row,) = snapshot_rows(tmp_path)
    assert (row.id, row.step, row.created_utc, row.encoder_hash, row.frames) == ("one", 3, 1.5, "abc", 10)
    assert row.info == {"note": "x"}


def test_a_build_goes_on_after_the_last_whole_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "CHUNK_ROWS", 4)
    spaces = {"a": 3}
    first = SnapshotBuilder(tmp_path, "one", MANIFEST, WEIGHTS, np.arange(10), 10, spaces)
    first.write(slice(0, 4), {"a": np.ones((4, 3), np.float16)})
    second = SnapshotBuilder(tmp_path, "one", MANIFEST, {}, np.arange(99), 99, spaces)
    assert SnapshotBuilder.unfinished(tmp_path, "abc") == "one"
    assert SnapshotBuilder.unfinished(tmp_path, "other") is None
    assert (second.rows_done, second.next_rows(), len(second.ids)) == (4, slice(4, 8), 10)
    second.write(slice(4, 8), {"a": np.full((4, 3), 2, np.float16)})
    second.write(slice(8, 10), {"a": np.full((2, 3), 3, np.float16)})
    assert second.next_rows() is None
    made = second.finish(np.zeros((0, 3), np.float32), np.full(10, -1, np.int32))
    assert made.features("a")[1][:, 0].tolist() == [1] * 4 + [2] * 4 + [3] * 2
    assert SnapshotBuilder.unfinished(tmp_path, "abc") is None


def test_merged_segments_answer_as_before_and_a_kill_in_between_is_harmless(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ids: list[int] = []
    for n in range(6):
        part = np.arange(n * 10, n * 10 + n)
        ids += part.tolist()
        features = {"a": values(rng, n, 3)}
        write_segment(tmp_path / segment_name(n * 10, n * 10 + 10), part, features, np.zeros(n, np.int32))
    before = np.concatenate([s.features("a") for s in list_segments(tmp_path)])
    assert not merge_segments(tmp_path, at_least=6)
    left = tmp_path / segment_name(20, 30)
    kept = {p: p.read_bytes() for p in left.rglob("*") if p.is_file()}
    assert merge_segments(tmp_path, at_least=5)
    for path, data in kept.items():  # killed before it was removed
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    merged = list_segments(tmp_path)
    assert [(s.first, s.stop) for s in merged] == [(0, 10), (10, 60)]
    assert np.concatenate([s.ids() for s in merged]).tolist() == ids
    np.testing.assert_array_equal(np.concatenate([s.features("a") for s in merged]), before)


def test_a_segment_that_a_killed_merge_had_half_removed_is_no_damage(tmp_path: Path) -> None:
    with Store.create(tmp_path / "s", StoreSettings(size=16, shard_frames=4)) as store:
        made = build(store.path, rows=2)
        for first in (4, 6, 8):
            features = {space: np.ones((2, width), np.float16) for space, width in made.spaces.items()}
            made.add_segment(first, first + 2, np.arange(first, first + 2), features, np.zeros(2, np.int32))
        left = made.segments[1].path
        data = (left / "a" / "c" / "0" / "0").read_bytes()
        assert merge_segments(left.parent, at_least=3)
        (left / "a" / "c" / "0").mkdir(parents=True)
        (left / "a" / "c" / "0" / "0").write_bytes(data)
        damage: list[CorruptError] = []
        assert drop_features(store, np.array([5]), damage.append) == 1
        assert damage == []
        assert made.ids.tolist() == [0, 2, 4, -1, 6, 7, 8, 9]
        assert not left.exists()  # it holds features of the forgotten frame


@pytest.mark.parametrize("name", ["weights.safetensors", "groups.safetensors"])
def test_damaged_files_are_named(tmp_path: Path, name: str) -> None:
    snapshot = build(tmp_path)
    path = snapshot.path / name
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(CorruptError, match=f"{name} has a wrong checksum"):
        _ = snapshot.weights() if name.startswith("w") else snapshot.centroids()
    path.unlink()
    with pytest.raises(CorruptError, match=f"{name} is missing"):
        _ = snapshot.weights() if name.startswith("w") else snapshot.centroids()


def test_no_flipped_bit_of_a_manifest_changes_what_it_says(tmp_path: Path) -> None:
    snapshot = build(tmp_path)
    path, manifest = snapshot.path / "manifest.json", snapshot.manifest
    good = path.read_bytes()
    for at in range(len(good)):
        for bit in (1, 2):
            path.write_bytes(good[:at] + bytes([good[at] ^ bit]) + good[at + 1 :])
            try:
                found = Snapshot(snapshot.path).manifest
            except (CorruptError, FormatTooNewError):
                continue
            assert {name: found[name] for name in manifest} == manifest  # all that changed is the name of the checksum
    path.write_text(json.dumps({name: value for name, value in manifest.items() if name != "spaces"}))
    with pytest.raises(CorruptError, match="something is missing"):  # one of an older release, without a checksum
        Snapshot(snapshot.path)


def test_newer_formats_and_absent_snapshots_are_refused(tmp_path: Path) -> None:
    path = build(tmp_path).path / "manifest.json"
    manifest: dict[str, Any] = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"version": 2}))
    with pytest.raises(FormatTooNewError, match="Upgrade cld-stream the way it was installed"):
        Snapshot(path.parent)
    path.write_text("{")
    with pytest.raises(CorruptError, match=r"manifest\.json"):
        Snapshot(path.parent)
    assert snapshot_rows(tmp_path) == []
    with pytest.raises(StoreNotFoundError):
        Snapshot(tmp_path / "snapshots" / "two")


def test_the_hash_of_an_encoder_changes_with_anything_in_it() -> None:
    base = {"w": np.zeros(3, np.float32)}
    seen = {
        encoder_hash(base, {}),
        encoder_hash(base, {"crop": 32}),
        encoder_hash({"v": base["w"]}, {}),
        encoder_hash({"w": base["w"].reshape(1, 3)}, {}),
        encoder_hash({"w": np.zeros(3, np.int32)}, {}),
        encoder_hash({"w": np.ones(3, np.float32)}, {}),
    }
    assert len(seen) == 6
    assert encoder_hash(dict(base), {}) in seen
