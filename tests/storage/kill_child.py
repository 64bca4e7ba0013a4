"""A writer that kills itself at its n-th durable step. Run as a program by `test_crash.py`.

It dies just before an fsync, a rename or a commit of the catalog: what is on disk changes nowhere else. Frames arrive
in a fixed order, and a restarted child goes on from the cursor, as ingest does.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Connection, event
from sqlalchemy.engine import Engine

from cld_stream.config import StoreSettings
from cld_stream.errors import StoreNotFoundError
from cld_stream.storage.schema import Outcome
from cld_stream.storage.store import Store
from tests.storage.pictures import new_source, picture

SETTINGS = StoreSettings(size=16, shard_frames=5)
PLAN = {"/a/one.mp4": 6, "/a/two.mp4": 3, "/a/three.jpg": 1, "/a/four.mp4": 3}  # frames of each
COMMIT = 3  # frames in a commit
DROPPED = 7  # frames


class Fuse:
    """Ends the process, as a power cut would, at the step where the count runs out."""

    def __init__(self, steps: int) -> None:
        self.left = steps
        self.count = 0

    def step(self) -> None:
        self.count += 1
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def fused(*args: Any, **kwargs: Any) -> Any:
            self.step()
            return call(*args, **kwargs)

        return fused

    def insert(self) -> None:
        os.fsync = self.before(os.fsync)
        Path.replace = self.before(Path.replace)  # type: ignore[method-assign]
        event.listen(Engine, "commit", self.step_if_writing)

    def step_if_writing(self, tx: Connection) -> None:
        if tx.get_execution_options().get("write"):
            self.step()


def fill(path: Path) -> None:
    """Add everything that is planned and not there yet."""
    try:
        store = Store.open(path)
    except StoreNotFoundError:
        store = Store.create(path, SETTINGS)
    with store, store.writer("fill") as writer:
        for name, frames in PLAN.items():
            row = store.catalog.source_by_path(name)
            if row is not None and row.outcome is not None:
                continue
            source = row.id if row else new_source(writer, name)
            done = int(row.cursor or 0) if row else 0
            for i in range(done, frames):
                writer.append(source, [picture(source, i)], str(i + 1))
                if writer.pending >= COMMIT:
                    writer.commit()
            writer.finish(source, Outcome.ADDED, reader="test")


def forget(path: Path) -> None:
    """Forget the first source."""
    with Store.open(path) as store, store.writer("forget") as writer:
        if store.catalog.sources(id=1):
            writer.forget(1)


def drop(path: Path) -> None:
    """Drop the oldest frames, of the first shard and of a part of the second."""
    with Store.open(path) as store, store.writer("drop") as writer:
        if store.catalog.frame_count() == sum(PLAN.values()):
            writer.drop(np.arange(DROPPED))


def main() -> None:
    what, path, steps = sys.argv[1:]
    fuse = Fuse(int(steps))
    fuse.insert()
    {"fill": fill, "forget": forget, "drop": drop}[what](Path(path))
    print(fuse.count)


if __name__ == "__main__":
    main()
