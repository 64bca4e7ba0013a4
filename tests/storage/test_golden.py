"""Snapshot and checkpoints of the first release stay readable: `tests/golden/v1-trained`."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from cld_stream.storage.check import check
from cld_stream.storage.checkpoints import (
    buffered_ids,
    list_checkpoints,
    load_checkpoint,
    pinned_checkpoint,
    save_checkpoint,
)
from cld_stream.storage.segments import merge_segments
from cld_stream.storage.snapshots import Snapshot, drop_features
from cld_stream.storage.store import Store
from tests.golden.make_v1_trained import make

GOLDEN = Path(__file__).parents[1] / "golden" / "v1-trained" / "store"
ID = "20260131-142500-000012"


@pytest.fixture(params=["golden", "of today"])
def path(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A copy of the golden store; and what its script writes today, which must read the same."""
    if request.param == "golden":
        shutil.copytree(GOLDEN, tmp_path / "store")
    else:
        make(tmp_path)
    return tmp_path / "store"


def read_snapshot(path: Path) -> None:
    snapshot = Snapshot(path / "snapshots" / ID)
    assert snapshot.spaces == {"instance": 4, "group": 2, "backbone": 3}
    assert snapshot.covered() == 9
    ids, instance = snapshot.features("instance")
    assert (ids.dtype.name, instance.dtype.name) == ("int64", "float16")
    assert ids.tolist() == [0, 1, -1, 3, 4, 5, 6, 7, 8]
    assert instance[:4].tolist() == [
        [0, 1, 2, 3],
        [0.125, 1.125, 2.125, 3.125],
        [0, 0, 0, 0],
        [0.375, 1.375, 2.375, 3.375],
    ]
    assert snapshot.features("group")[1][[4, 8]].tolist() == [[0.5, 1.5], [1, 2]]
    assert snapshot.features("backbone")[1][7].tolist() == [0.875, 1.875, 2.875]
    centroids, labels = snapshot.groups()
    assert (centroids.dtype.name, centroids.tolist()) == ("float32", [[1, 0], [0, 1]])
    assert (labels.dtype.name, labels.tolist()) == ("int32", [0, 1, -1, 1, 0, 1, 1, 1, 0])
    weights = snapshot.weights()
    assert {name: (value.dtype.name, value.tolist()) for name, value in weights.items()} == {
        "stem.weight": ("float32", [[0, 0.25, 0.5], [0.75, 1, 1.25]]),
        "norm.running_mean": ("float32", [0.5, -1.5]),
        "norm.num_batches_tracked": ("int64", 7),
    }


def test_a_snapshot_of_the_first_release_is_read(path: Path) -> None:
    read_snapshot(path)
    with Store.open(path) as store:
        uuid = store.header.uuid
        (row,) = store.catalog.snapshots()
        assert store.catalog.latest_snapshot() == row == Snapshot(path / "snapshots" / ID).row()
        assert check(store) == []
    manifest = Snapshot(path / "snapshots" / ID).manifest
    files = manifest.pop("files")
    assert sorted(files) == ["groups.safetensors", "weights.safetensors"]
    assert all(set(file) == {"bytes", "sha256"} for file in files.values())
    assert manifest == {
        "format": "cld-stream.snapshot",
        "version": 1,
        "id": ID,
        "created_utc": 1769869500.5,
        "step": 12,
        "encoder": {
            "settings": {"backbone": "resnet18", "width": 0.25},
            "sha256": "9a0c6ec9d92e611087dc3b0762ec9ecec1a5b013b5f4b93a1b4275ba9ab933b6",
        },
        "store": {"uuid": uuid, "size": 16, "fit": "stretch"},
        "settings": {"groups": 2},
        "info": {"updates": 34, "best": None},
        "spaces": {"instance": 4, "group": 2, "backbone": 3},
        "frames": 6,
        "segment": "000000000000-000000000006",
    }


def test_a_snapshot_of_the_first_release_can_grow_be_merged_and_be_forgotten_from(path: Path) -> None:
    snapshot = Snapshot(path / "snapshots" / ID)
    new = np.array([9])
    features = {space: np.full((1, width), 0.5, np.float16) for space, width in snapshot.spaces.items()}
    snapshot.add_segment(9, 10, new, features, np.array([1], np.int32))
    assert merge_segments(snapshot.path / "segments", at_least=2)
    with Store.open(path) as store:
        assert drop_features(store, np.array([9, 6])) == 2
    assert snapshot.ids.tolist() == [0, 1, -1, 3, 4, 5, -1, 7, 8, -1]


def test_checkpoints_of_the_first_release_are_read_and_followed(path: Path) -> None:
    assert (list_checkpoints(path), pinned_checkpoint(path)) == ([3, 12], 3)
    assert buffered_ids(path).tolist() == [3, 8]
    for step, asked in ((12, None), (3, 3)):
        read = load_checkpoint(path, asked)
        assert (read.step, read.warning) == (step, "")
        assert read.meta == {
            "learner": {"step": step, "rate": 0.1},
            "feed": {"cursor": step, "name": "ü"},
            "settings": {},
        }
        assert {name: (value.dtype.name, value.tolist()) for name, value in read.tensors.items()} == {
            "encoder.stem.weight": ("float32", [[0, 0.25, 0.5], [0.75, 1, 1.25]]),
            "encoder.norm.running_mean": ("float32", [0.5, -1.5]),
            "encoder.norm.num_batches_tracked": ("int64", 7),
            "buffer.ids": ("int64", [8, 3, -1]),
            "rng": ("uint8", [1, 2, 255]),
        }
    save_checkpoint(path, 13, read.tensors, read.meta, keep=1)
    assert list_checkpoints(path) == [3, 13]
