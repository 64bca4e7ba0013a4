"""What doctor finds beside processes at work, and in a store that was left in the middle: damage, and nothing else."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import insert

from cld_stream.storage import schema
from cld_stream.storage.check import check
from cld_stream.storage.checkpoints import save_checkpoint
from cld_stream.storage.retention import begin_dropping
from cld_stream.storage.schema import Outcome
from cld_stream.storage.shards import empty_elements
from cld_stream.storage.snapshot_builder import SnapshotBuilder
from cld_stream.storage.snapshots import SPACES, remove_snapshot
from cld_stream.storage.store import Store
from tests.storage.pictures import new_source, picture
from tests.storage.test_retention import made
from tests.storage.test_snapshots import MANIFEST, WEIGHTS

SECONDS = 3.0


def add(store: Store, frames: int) -> int:
    """A source with so many frames; gives its id."""
    with store.writer("test") as writer:
        source = new_source(writer, f"/v/{writer.next_id}.mp4")
        writer.append(source, [picture(source, i) for i in range(frames)], str(frames))
        writer.finish(source, Outcome.ADDED, reader="test")
    return source


def drop_and_forget(store: Store, turn: int) -> None:
    """Twelve frames come, the oldest go, and of what is left a source."""
    source = add(store, 12)
    with store.writer("test") as writer:
        if turn % 5 == 0:
            writer.forget(source)
        writer.drop(store.catalog.oldest_ids(max(0, store.catalog.frame_count() - 20)))


def save(store: Store, step: int) -> None:
    """A checkpoint, twice, in place of the one before; the first stays and takes a while to read."""
    for _ in range(2):
        state = {"w": np.zeros(2_000_000 if step == 1 else 10)}
        save_checkpoint(store.path, step, state, {}, keep=1, pin=step == 1)


def publish(store: Store, step: int) -> None:
    """A snapshot, in place of the one before."""
    ids, widths = np.arange(500), dict.fromkeys(SPACES, 64)
    builder = SnapshotBuilder(store.path, f"s{step}", MANIFEST | {"step": step}, WEIGHTS, ids, 500, widths)
    while (rows := builder.next_rows()) is not None:
        builder.write(rows, {space: np.zeros((rows.stop - rows.start, 64), np.float16) for space in SPACES})
    store.catalog.add_snapshot(builder.finish(np.eye(2, 64, dtype=np.float32), np.zeros(500, np.int32)).row())
    for row in store.catalog.snapshots()[:-1]:
        store.catalog.drop_snapshot(row.id)
        remove_snapshot(store.path, row.id)


@contextmanager
def at_work(path: Path, work: Callable[[Store, int], None]) -> Iterator[None]:
    """A thread that does this as another process would, again and again, for as long as it lasts."""
    done, failures = threading.Event(), list[BaseException]()

    def go_on() -> None:
        try:
            with Store.open(path) as store:
                for turn in count(1):
                    if done.is_set():
                        return
                    work(store, turn)
        except BaseException as e:  # noqa: BLE001 - shown below
            failures.append(e)

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    for failure in failures:
        raise failure


@pytest.mark.parametrize("work", [drop_and_forget, save, publish])
def test_nothing_is_damaged_beside_others_at_work(tmp_path: Path, work: Callable[[Store, int], None]) -> None:
    with made(tmp_path / "s", 10) as store, at_work(store.path, work):
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            assert [str(finding) for finding in check(store)] == []


@pytest.mark.parametrize("way", ["drop", "forget"])
def test_damage_beside_frames_that_are_leaving_is_found(tmp_path: Path, way: str) -> None:
    with made(tmp_path / "s", 6, 5) as store:
        if way == "drop":
            begin_dropping(store.catalog, np.arange(6))
        else:
            with store.catalog.writing() as tx:
                tx.execute(insert(schema.forgetting).values(source=1))
        empty_elements(store.path / "frames", 4, np.arange(6))
        assert check(store) == []
        shard = store.path / "frames" / "c" / "1"
        data = bytearray(shard.read_bytes())
        data[30] ^= 1  # inside frame 6, the first that stays
        shard.write_bytes(data)
        (finding,) = check(store)
        assert "element 2 (frame 6)" in str(finding)
        assert str(finding).endswith("It holds frames of 2 /v/2.mp4.")
