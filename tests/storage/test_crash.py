"""A writer killed at any instant leaves the old state or the new, and the next one completes it."""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cld_stream.storage.check import check
from cld_stream.storage.schema import Frames
from cld_stream.storage.store import Store
from tests.storage.kill_child import DROPPED, PLAN, fill
from tests.storage.pictures import jpeg

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")

ROOT = Path(__file__).parents[2]
EXPECTED = [jpeg(s, i) for s, n in enumerate(PLAN.values(), 1) for i in range(n)]
FORGOTTEN = [b""] * PLAN["/a/one.mp4"] + EXPECTED[PLAN["/a/one.mp4"] :]


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory where there is one: SIGKILL loses nothing that a kernel has."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place) as folder:
        yield Path(folder)


def child(what: str, path: Path, steps: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.storage.kill_child", what, str(path), str(steps)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> int | None:
    """Durable steps of a child that came to its end; None for one that was killed."""
    out, _ = process.communicate(timeout=60)
    assert process.returncode in (0, -signal.SIGKILL)
    return int(out) if process.returncode == 0 else None


def in_child(what: str, path: Path, steps: int) -> bool:
    """The same in a fork, which starts a hundred times faster; true when it came to its end."""
    from tests.storage.kill_child import Fuse, drop, forget

    pid = os.fork()
    if pid == 0:
        Fuse(steps).insert()
        {"fill": fill, "forget": forget, "drop": drop}[what](path)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


def look(path: Path) -> None:
    """What a reader may see of an unfinished fill: true frames from 0 on without a hole."""
    if not (path / "store.json").exists():
        return
    with Store.open(path) as store, store.reader(threads=1) as reader:
        ids = store.catalog.live_ids()
        assert ids.tolist() == list(range(len(ids)))
        assert reader.jpegs(ids) == EXPECTED[: len(ids)]
        assert check(store) == []


def rows(path: Path) -> tuple[Frames, list[object]]:
    with Store.open(path) as store:
        assert check(store) == []
        return store.catalog.rows(), list(store.catalog.sources())


def same(a: Frames, b: Frames) -> bool:
    return all(np.array_equal(getattr(a, n), getattr(b, n), equal_nan=True) for n in Frames.__slots__)


def test_a_writer_killed_at_every_durable_step_in_turn_ends_with_the_same_store(
    memory: Path,
) -> None:
    fill(memory / "whole")
    whole, sources = rows(memory / "whole")
    steps = 1
    while not in_child("fill", memory / f"cut{steps}", steps):
        path = memory / f"cut{steps}"
        look(path)
        fill(path)
        again, known = rows(path)
        assert same(whole, again), f"killed at step {steps}"
        assert sources == known, f"killed at step {steps}"
        steps += 1
    assert steps > 30  # the fuse does sit in the way


def test_a_forget_killed_at_every_durable_step_is_completed_by_the_next_writer(
    memory: Path,
) -> None:
    steps = 1
    while True:
        path = memory / f"cut{steps}"
        fill(path)
        ended = in_child("forget", path, steps)
        with Store.open(path) as store, store.reader(threads=1) as reader:
            begun = store.catalog.live_ids()[0] != 0 or reader.jpegs([0]) == [b""]
            assert check(store) == [], f"killed at step {steps}"  # what is begun is no damage
            with store.writer("next"):
                pass
            got = reader.jpegs(range(len(EXPECTED)))
            assert got == FORGOTTEN or (not begun and got == EXPECTED), f"killed at step {steps}"
            assert check(store) == []
            if got == FORGOTTEN:
                assert_no_trace(path)
        if ended:
            break
        steps += 1
    assert steps > 10


def test_a_drop_killed_at_every_durable_step_is_completed_by_the_next_writer(memory: Path) -> None:
    steps = 1
    while True:
        path = memory / f"cut{steps}"
        fill(path)
        ended = in_child("drop", path, steps)
        with Store.open(path) as store, store.reader(threads=1) as reader:
            begun = store.catalog.keeps_dropped() and len(store.catalog.dropped(source=1)) > 0
            seen = reader.jpegs(range(len(EXPECTED)))
            assert all(jpeg in (b"", whole) for jpeg, whole in zip(seen, EXPECTED, strict=True)), f"killed at {steps}"
            assert seen[DROPPED:] == EXPECTED[DROPPED:], f"killed at step {steps}"
            assert check(store) == [], f"killed at step {steps}"  # what is begun is no damage
            with store.writer("next"):
                pass
            assert reader.jpegs(range(DROPPED)) == ([b""] * DROPPED if begun else EXPECTED[:DROPPED])
            assert len(store.catalog.live_ids()) == len(EXPECTED) - DROPPED * begun
            assert sum(s.frames for s in store.catalog.sources()) == store.catalog.frame_count()
            assert check(store) == [], f"killed at step {steps}"
        if ended:
            assert begun
            break
        steps += 1
    assert steps > 8


def assert_no_trace(path: Path) -> None:
    """No byte string of a forgotten frame is left in any file."""
    bodies = [jpeg(1, i)[-60:-20] for i in range(PLAN["/a/one.mp4"])]
    for file in path.rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            assert not any(body in data for body in bodies), file
            assert b"/a/one.mp4" not in data, file


def test_kills_at_random_moments_leave_the_store_of_an_uninterrupted_run(
    tmp_path: Path,
) -> None:
    fill(tmp_path / "whole")
    rng = random.Random(5)
    path = tmp_path / "cut"
    ended = None
    for _ in range(6):
        process = child("fill", path, 10**9)
        time.sleep(rng.uniform(0.35, 0.75))
        process.kill()
        ended = finish(process)
        look(path)
    if ended is None:
        fill(path)
    assert same(rows(tmp_path / "whole")[0], rows(path)[0])


def test_the_child_counts_its_steps_when_nothing_kills_it(tmp_path: Path) -> None:
    steps = finish(child("fill", tmp_path / "store", 10**9))
    assert steps is not None
    assert steps > 30
