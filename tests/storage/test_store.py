"""Making, opening, locking and refusing stores."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from cld_stream.config import StoreSettings
from cld_stream.errors import (
    CorruptError,
    FormatTooNewError,
    LockHeldError,
    StoreError,
    StoreFullError,
    StoreNotFoundError,
)
from cld_stream.storage.catalog import Catalog
from cld_stream.storage.durable import atomic_write_bytes
from cld_stream.storage.store import Store
from tests.storage.pictures import jpeg, new_source, picture

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")

SMALL = StoreSettings(size=16, shard_frames=4)


def test_a_store_remembers_what_it_was_made_with(tmp_path: Path) -> None:
    Store.create(tmp_path / "deep" / "s", SMALL).close()
    with Store.open(tmp_path / "deep" / "s") as store:
        header = store.header
        assert (header.size, header.fit, header.jpeg_quality, header.shard_frames) == (
            16,
            "stretch",
            90,
            4,
        )
        assert len(header.uuid) == 32
        assert store.catalog.totals().frames == 0


def test_an_empty_folder_becomes_a_store_and_a_used_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    Store.create(tmp_path / "empty", SMALL).close()
    with pytest.raises(StoreError, match="already"):
        Store.create(tmp_path / "empty", SMALL)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.txt").write_text("mine")
    with pytest.raises(StoreError, match="not empty"):
        Store.create(tmp_path / "used", SMALL)
    assert (tmp_path / "used" / "thesis.txt").read_text() == "mine"


def test_two_that_make_one_store_at_once_do_not_take_each_others_catalog_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[LockHeldError] = []

    def meanwhile(file: Path, **values: int) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Catalog, "create", create)
            try:
                Store.create(tmp_path / "s", SMALL).close()
            except LockHeldError as error:
                refused.append(error)
        create(file, **values)

    create = Catalog.create
    monkeypatch.setattr(Catalog, "create", meanwhile)
    with Store.create(tmp_path / "s", SMALL) as store:
        assert store.catalog.frame_count() == 0
    assert len(refused) == 1


def test_a_store_that_lost_its_header_is_not_overwritten(tmp_path: Path) -> None:
    with Store.create(tmp_path / "s", SMALL) as store, store.writer("t") as writer:
        new_source(writer, "/v/a")
    (tmp_path / "s" / "store.json").unlink()
    with pytest.raises(StoreError, match=r"restore store\.json"):
        Store.create(tmp_path / "s", SMALL)


def test_opening_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="no store here"):
        Store.open(tmp_path / "nowhere")
    path = tmp_path / "s"
    Store.create(path, SMALL).close()
    header = json.loads((path / "store.json").read_text())
    (path / "store.json").write_text(json.dumps(header | {"version": 2}))
    with pytest.raises(FormatTooNewError, match=r"format 2.*up to 1\. Upgrade cld-stream the way it was installed."):
        Store.open(path)
    (path / "store.json").write_text("{")
    with pytest.raises(CorruptError, match="header is damaged"):
        Store.open(path)
    (path / "store.json").write_text(json.dumps(header))
    (path / "catalog.db").write_bytes(b"garbage " * 1000)
    with pytest.raises(CorruptError, match=f"--rebuild-catalog --store {path}$"):
        Store.open(path)
    (path / "catalog.db").unlink()
    with pytest.raises(CorruptError, match=f"--rebuild-catalog --store {path}$"):
        Store.open(path)


def test_a_second_writer_is_told_who_the_first_one_is(tmp_path: Path) -> None:
    with Store.create(tmp_path / "s", SMALL) as store, store.writer("ingest /films"):
        code = (
            "import sys; from pathlib import Path; from cld_stream.storage.store import Store\n"
            "with Store.open(Path(sys.argv[1])) as s, s.writer('other'): pass"
        )
        run = subprocess.run([sys.executable, "-c", code, str(tmp_path / "s")], capture_output=True, text=True)
        last = run.stderr.strip().splitlines()[-1]
        assert "LockHeldError" in last
        assert f"pid {os.getpid()} on " in last
        assert "ingest /films" in last
        assert "since 2" in last
        with store.trainer_lock("train"), pytest.raises(LockHeldError, match="another trainer"):
            store.trainer_lock("train").acquire()
    with store.writer("again"):
        pass


def test_the_lock_ends_with_the_process_that_held_it(tmp_path: Path) -> None:
    Store.create(tmp_path / "s", SMALL).close()
    pid = os.fork()
    if pid == 0:
        Store.open(tmp_path / "s").writer("child").__enter__()
        os._exit(0)
    os.waitpid(pid, 0)
    with Store.open(tmp_path / "s") as store, store.writer("parent"):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_that_cannot_lock_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def no_locks(fd: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    with Store.create(tmp_path / "s", SMALL) as store:
        monkeypatch.setattr(fcntl, "flock", no_locks)
        for lock in (store.writer("test"), store.trainer_lock()):
            with pytest.raises(StoreError, match=r"cannot lock files .*Put it on a local disk"):
                lock.__enter__()


def test_nothing_of_an_uncommitted_append_is_stored(tmp_path: Path) -> None:
    with Store.create(tmp_path / "s", SMALL) as store:
        writer = store.writer("test").__enter__()
        source = new_source(writer, "/v/a")
        writer.append(source, [picture(source, 0)], "1")
        writer.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
        assert store.catalog.next_id() == 0
        assert store.catalog.sources() == []
        with store.writer("test") as writer:
            assert new_source(writer, "/v/a") == source


def as_a_stranger(path: Path) -> list[str]:
    """What someone who may read the store, and write nothing, makes of it. Runs in a fork, not as root."""
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        said = []
        try:
            with Store.open(path) as store, store.reader(threads=1) as reader:
                said.append(f"{store.catalog.frame_count()} {reader.read(range(6))[1].all()}")
                for write in (
                    store.writer("test").__enter__,
                    lambda: store.catalog.begin_run("train", []),
                ):
                    try:
                        write()
                    except StoreError as e:
                        said.append(str(e))
        finally:
            os.write(send, "\n".join(said).encode())
            os._exit(0)
    os.close(send)
    os.waitpid(pid, 0)
    with os.fdopen(receive) as pipe:
        return pipe.read().splitlines()


@pytest.mark.parametrize("log", [False, True], ids=["at rest", "with a log"])
def test_a_read_only_store_is_read_by_someone_who_may_not_write(log: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = Path(folder, "s")
        store = Store.create(path, SMALL)
        with store.writer("test") as writer:
            source = new_source(writer, "/v/a")
            writer.append(source, [picture(source, i) for i in range(6)], None)
        if not log:
            store.close()
        for item in [path, *path.rglob("*")]:
            item.chmod(0o555 if item.is_dir() else 0o444)
        frames, writing, run = as_a_stranger(path)
        for item in [path, *path.rglob("*")]:
            item.chmod(0o755)
        store.close()
        assert frames == "6 True"
        assert "cannot open the writer lock" in writing
        assert "read-only here" in run


def test_a_commit_that_failed_is_due_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise StoreFullError("no room")

    with Store.create(tmp_path / "s", SMALL) as store, store.writer("test") as writer:
        source = new_source(writer, "/v/a")
        writer.append(source, [picture(source, 0)], None)
        monkeypatch.setattr(writer, "_committed_at", time.monotonic() - 60)
        with monkeypatch.context() as patch:
            patch.setattr(store.catalog, "writing", full)
            for _ in range(2):
                with pytest.raises(StoreFullError):
                    writer.commit_if_due(60)
        assert writer.commit_if_due(60) == 1
        writer.append(source, [picture(source, 1)], None)
        assert writer.commit_if_due(60) == 0


def test_frames_are_read_back_after_reopening(tmp_path: Path) -> None:
    with Store.create(tmp_path / "s", SMALL) as store, store.writer("test") as writer:
        source = new_source(writer, "/v/a")
        writer.append(source, [picture(source, i) for i in range(6)], None)
    with Store.open(tmp_path / "s") as store, store.reader() as reader:
        assert reader.jpegs([5, 0]) == [jpeg(1, 5), jpeg(1, 0)]


@pytest.mark.parametrize("name", ["frames", "frames/c", "sidecars", "writer.lock", "snapshots", "logs", "catalog.db"])
def test_a_link_inside_a_store_never_leads_a_write_outside(tmp_path: Path, name: str) -> None:
    path, outside = tmp_path / "store", tmp_path / "outside"
    Store.create(path, StoreSettings(size=16)).close()
    if (path / name).exists():
        (path / name).rename(outside)
    else:
        outside.mkdir()
    (path / name).symlink_to(outside)
    files = [p for p in (outside, *outside.rglob("*")) if p.is_file()]
    before = {p: p.read_bytes() for p in files}
    with pytest.raises(StoreError, match="this is a link"), Store.open(path) as store, store.writer("test"):
        pass
    with pytest.raises(StoreError, match="this is a link"), Store.open(path) as store, store.trainer_lock():
        pass
    assert {p: p.read_bytes() for p in (outside, *outside.rglob("*")) if p.is_file()} == before


def test_the_store_itself_may_be_behind_a_link(tmp_path: Path) -> None:
    Store.create(tmp_path / "store", SMALL).close()
    (tmp_path / "link").symlink_to(tmp_path / "store")
    with Store.open(tmp_path / "link") as store, store.writer("test"):
        pass


def test_a_link_where_a_file_is_written_aside_is_replaced(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / ".store.json.tmp").symlink_to(victim)
    atomic_write_bytes(tmp_path / "store.json", b"new")
    assert (victim.read_text(), (tmp_path / "store.json").read_bytes()) == ("mine", b"new")
    assert not (tmp_path / "store.json").is_symlink()


def test_a_writer_whose_store_was_moved_writes_nothing_where_it_was(tmp_path: Path) -> None:
    """Else sealed frames would leave the catalog, which moves with the store, for shards that do not."""
    path, moved = tmp_path / "store", tmp_path / "moved"
    with Store.create(path, SMALL) as store, store.writer("test") as writer:
        source = new_source(writer, "/a")
        writer.append(source, [picture(source, n) for n in range(3)], None)
        writer.commit()
        path.rename(moved)
        writer.append(source, [picture(source, n) for n in range(3, 9)], None)
        with pytest.raises(StoreError, match="moved or removed, or its drive is away"):
            writer.commit()
        assert not path.exists()
        moved.rename(path)  # in time: nothing is lost
    with Store.open(path) as store, store.reader() as reader:
        assert reader.read(store.catalog.live_ids())[1].tolist() == [True] * 9
