"""Makes a golden store of format 1 with a snapshot and checkpoints of version 1. `v1-trained/` is never edited.

python -m tests.golden.make_v1_trained FOLDER
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cld_stream.config import StoreSettings
from cld_stream.storage.checkpoints import save_checkpoint
from cld_stream.storage.schema import Outcome
from cld_stream.storage.snapshot_builder import SnapshotBuilder, encoder_hash
from cld_stream.storage.snapshots import drop_features
from cld_stream.storage.store import Store
from tests.storage.pictures import new_source, picture

SPACES = {"instance": 4, "group": 2, "backbone": 3}
WEIGHTS: dict[str, NDArray[Any]] = {
    "stem.weight": np.arange(6, dtype=np.float32).reshape(2, 3) / 4,
    "norm.running_mean": np.array([0.5, -1.5], np.float32),
    "norm.num_batches_tracked": np.array(7),
}


def features(ids: NDArray[np.int64]) -> dict[str, NDArray[np.float16]]:
    """Made up, exact in float16: id / 8 + column."""
    return {s: (ids[:, None] / 8 + np.arange(width)).astype(np.float16) for s, width in SPACES.items()}


def publish(store: Store) -> None:
    """Frames 0 to 5 in the publication, 6 to 8 in a segment; the features of 2 are removed."""
    settings = {"backbone": "resnet18", "width": 0.25}
    manifest = {
        "created_utc": 1769869500.5,
        "step": 12,
        "encoder": {"settings": settings, "sha256": encoder_hash(WEIGHTS, settings)},
        "store": {"uuid": store.header.uuid, "size": 16, "fit": store.header.fit},
        "settings": {"groups": 2},
        "info": {"updates": 34, "best": None},
    }
    ids = np.arange(6)
    builder = SnapshotBuilder(store.path, "20260131-142500-000012", manifest, WEIGHTS, ids, 6, SPACES)
    while (rows := builder.next_rows()) is not None:
        builder.write(rows, features(ids[rows]))
    snapshot = builder.finish(np.array([[1, 0], [0, 1]], np.float32), np.arange(6, dtype=np.int32) % 2)
    store.catalog.add_snapshot(snapshot.row())
    more = np.array([6, 7, 8])
    snapshot.add_segment(6, 9, more, features(more), np.array([1, 1, 0], np.int32))
    drop_features(store, np.array([2]))


def make(folder: Path) -> None:
    with Store.create(folder / "store", StoreSettings(size=16, shard_frames=4)) as store:
        with store.writer("golden") as writer:
            source = new_source(writer, "/films/a.mp4")
            writer.append(source, [picture(source, i) for i in range(9)], "9")
            writer.finish(source, Outcome.ADDED, reader="pyav")
            writer.commit()
        publish(store)
        tensors = {f"encoder.{name}": value for name, value in WEIGHTS.items()}
        tensors |= {"buffer.ids": np.array([8, 3, -1]), "rng": np.array([1, 2, 255], np.uint8)}
        for step, pin in ((3, True), (12, False)):
            meta = {"learner": {"step": step, "rate": 0.1}, "feed": {"cursor": step, "name": "ü"}, "settings": {}}
            save_checkpoint(store.path, step, tensors, meta, keep=1, pin=pin)
    for lock in (folder / "store").glob("*.lock"):
        lock.unlink()


if __name__ == "__main__":
    make(Path(sys.argv[1]))
