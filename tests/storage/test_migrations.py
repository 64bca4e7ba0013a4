"""An older store becomes one of the present format, and can go back."""

import json
import os
import shutil
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from cld_stream.errors import FormatTooNewError, LockHeldError, StoreNotFoundError
from cld_stream.pipelines.migrate import migrate
from cld_stream.storage import header, migrations
from cld_stream.storage.check import check
from cld_stream.storage.migrations import STEPS, Step, migrate_store, pending_steps
from cld_stream.storage.store import Store
from tests.storage.pictures import new_source, picture

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")

GOLDEN = Path(__file__).parents[1] / "golden" / "v1"


def add_notes(path: Path) -> None:
    """A step as one may come: a column for what people write beside a source."""
    with closing(sqlite3.connect(path / "catalog.db")) as db:
        columns = [row[1] for row in db.execute("PRAGMA table_info(sources)")]
        if "note" not in columns:
            db.execute("ALTER TABLE sources ADD COLUMN note TEXT")
        db.execute("UPDATE sources SET note = 'from ' || path WHERE note IS NULL")
        db.commit()


NOTES = (Step(1, "a source has a note", add_notes),)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A copy of the golden store of format 1, with a frame that is only in the catalog's log."""
    path = tmp_path / "store"
    shutil.copytree(GOLDEN / "store", path)
    return path


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The release after: it knows format 2."""
    monkeypatch.setattr(header, "VERSION", 2)
    monkeypatch.setattr(migrations, "STEPS", NOTES)


def notes(path: Path) -> list[str]:
    with closing(sqlite3.connect(path / "catalog.db")) as db:
        return [row[0] for row in db.execute("SELECT note FROM sources ORDER BY id")]


def test_the_golden_store_needs_no_step(store: Path) -> None:
    assert pending_steps(store) == []
    before = sorted(p.name for p in store.rglob("*"))
    report = migrate(store)
    assert report.backup is None
    assert "Nothing to do" in report.lines()[0]
    assert sorted(p.name for p in store.rglob("*")) == before


def test_the_steps_have_no_gap_and_end_at_the_present_version() -> None:
    assert [step.number for step in STEPS] == list(range(1, header.VERSION))


@pytest.mark.usefixtures("newer")
def test_a_step_changes_the_catalog_keeps_the_frames_and_saves_what_was(store: Path) -> None:
    expected = json.loads((GOLDEN / "expected.json").read_text())
    saved = migrate_store(store, NOTES)
    assert saved is not None
    assert notes(store) == [f"from {path}" for path in expected["paths"]]
    assert json.loads((store / "store.json").read_text())["version"] == 2
    with Store.open(store) as opened:
        assert opened.catalog.rows().ids.tolist() == expected["ids"]
        assert check(opened) == []
    assert pending_steps(store, NOTES) == []
    assert migrate_store(store, NOTES) is None
    for file in store.glob("catalog.db*"):  # and back, as the page says
        file.unlink()
    for file in saved.iterdir():
        shutil.copy2(file, store)
    with Store.open(store) as opened:
        assert opened.header.version == 1
        assert opened.catalog.rows().ids.tolist() == expected["ids"]
        assert check(opened) == []


def test_the_backup_holds_what_is_in_the_log_only(store: Path) -> None:
    with Store.open(store) as opened, opened.writer("t") as writer:
        source = new_source(writer, "/films/late.mp4")
        writer.append(source, [picture(source, 0)], None)
        writer.commit()
        last = opened.catalog.next_id() - 1
        saved = migrations._save(store, 1)
    with closing(sqlite3.connect(saved / "catalog.db")) as db:
        assert db.execute("SELECT id FROM tail ORDER BY id DESC").fetchone() == (last,)


def test_a_dry_run_says_the_steps_and_touches_nothing(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cld_stream.pipelines.migrate.pending_steps", lambda path: pending_steps(path, NOTES))
    before = {p: p.read_bytes() for p in store.rglob("*") if p.is_file()}
    report = migrate(store, dry_run=True)
    assert report.lines()[1:] == ["1 -> 2: a source has a note", "Nothing was changed."]
    assert {p: p.read_bytes() for p in store.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("lock", ["writer", "trainer", "publisher"])
def test_a_store_that_someone_works_on_is_refused(store: Path, lock: str) -> None:
    from cld_stream.storage.lock import FileLock

    with FileLock(store / f"{lock}.lock", lock, f"a {lock}"), pytest.raises(LockHeldError, match=f"a {lock}"):
        migrate_store(store, NOTES)
    assert not (store / "backups").exists()


@pytest.mark.usefixtures("newer")
def test_a_migration_that_was_killed_is_taken_again(store: Path) -> None:
    def killed(path: Path) -> None:
        add_notes(path)
        os.kill(os.getpid(), signal.SIGKILL)

    pid = os.fork()
    if pid == 0:
        migrate_store(store, (Step(1, "a source has a note", killed),))
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    assert [step.number for step in pending_steps(store, NOTES)] == [1]
    assert migrate_store(store, NOTES) is not None
    assert pending_steps(store, NOTES) == []
    with Store.open(store) as opened:
        assert check(opened) == []


def test_what_is_no_store_or_a_newer_one_is_refused(store: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError):
        migrate(tmp_path / "nowhere")
    header.set_version(store, 2)
    with pytest.raises(FormatTooNewError, match="Upgrade cld-stream the way it was installed"):
        migrate(store)


def test_forget_takes_the_backups_too(store: Path) -> None:
    migrations._save(store, 1)
    with Store.open(store) as opened, opened.writer("t") as writer:
        writer.forget(2)
    assert not (store / "backups").exists()
