"""Where frames come from, seen through a real store."""

from pathlib import Path
from typing import Literal

import numpy as np

from cld_stream.config import StoreSettings
from cld_stream.pipelines.origins import origin_of
from cld_stream.storage.schema import NewFrame, Outcome
from cld_stream.storage.store import Store


def add(
    store: Store, kind: Literal["video", "photo"], name: str, frames: list[tuple[float, float | None, int]]
) -> None:
    """A source of (position, clock on the wall, shot); pictures do not matter here."""
    with store.writer("test") as writer:
        source = writer.add_source(
            kind=kind, path=f"/{name}", device=0, inode=hash(name) % 1000, size=1, mtime_ns=0, fingerprint=name
        )
        writer.append(source, [NewFrame(b"jpeg", time, wall, shot, 1.0) for time, wall, shot in frames], None)
        writer.finish(source, Outcome.ADDED)
        writer.commit()


def test_shots_of_videos_are_apart_and_dated_photos_are_together(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store", StoreSettings()) as store:
        add(store, "video", "a", [(0.0, None, 0), (0.5, None, 0), (1.0, None, 1)])
        add(store, "video", "b", [(0.0, 1e9, 0)])
        add(store, "photo", "c", [(0.0, 1e9, 0)])
        add(store, "photo", "d", [(0.0, 1e9 + 3, 0)])
        add(store, "photo", "e", [(0.0, None, 0)])
        origin = origin_of(store, store.catalog.rows())
    same = origin.source[:, None] == origin.source
    together = [{0, 1}, {2}, {3}, {4, 5}, {6}]
    assert [set(np.flatnonzero(row).tolist()) for row in same] == [
        next(g for g in together if i in g) for i in range(7)
    ]
    assert origin.source[6] == -1
    assert origin.time[:3].tolist() == [0.0, 0.5, 1.0]
    assert origin.time[5] - origin.time[4] == 3
