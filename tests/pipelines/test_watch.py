"""Watching folders: everything once, when it stands still, and nothing is taken for deleted that is only away."""

import errno
import itertools
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from cld_stream.cli.output import safe
from cld_stream.errors import LockHeldError, UsageError
from cld_stream.media.discover import Item
from cld_stream.media.notices import Notices
from cld_stream.pipelines.folders import Folders
from cld_stream.pipelines.forget import forget
from cld_stream.pipelines.ingest import ingest
from cld_stream.pipelines.ledger import Entry, Ledger
from cld_stream.pipelines.status import status
from cld_stream.storage.schema import Outcome
from cld_stream.storage.store import Store
from tests.faults.faulty import bound_by_modes
from tests.media.rtsp_server import RtspCamera
from tests.pipelines.footage import film, photograph
from tests.pipelines.watching import QUICK, Watching, arrive, ledger, times


@pytest.fixture
def media(tmp_path: Path) -> Path:
    folder = tmp_path / "media"
    film(folder / "a.mp4", seconds=2)
    photograph(folder / "deep" / "c.jpg", seed=2)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.mark.parametrize("notices", ["auto", "never"])
def test_what_is_there_and_what_comes_is_taken_once(media: Path, store: Path, notices: str) -> None:
    poll_s = 600.0 if notices == "auto" else 0.05  # then only the system can have told
    with Watching(store, media, notices=notices, poll_s=poll_s) as w:
        w.until_taken("a.mp4", "c.jpg")
        if notices == "auto":
            time.sleep(1)  # its thread has begun to listen
        arrive(photograph, media / "later.png", seed=3)
        arrive(film, media / "new" / "folder" / "b.mkv", seconds=1, seed=4)
        (media / ".notes").write_text("hello")
        (media / ".notes").rename(media / "notes.txt")
        w.until_taken("later.png", "b.mkv", "notes.txt")
        w.quiet()
        assert sorted(Path(e.path).name for e in w.events) == ["a.mp4", "b.mkv", "c.jpg", "later.png", "notes.txt"]
    assert w.report is not None
    assert (w.report.frames, w.report.outcomes) == (5 + 1 + 1 + 3, {"ADDED": 4, "SKIPPED": 1})
    rows = ledger(store)
    assert rows["a.mp4"].id < rows["later.png"].id
    assert ingest(store, [str(media)], QUICK).changed == 0


def test_a_file_that_a_look_meets_while_it_is_read_is_not_read_again(media: Path, store: Path) -> None:
    """The look compares with what was known when it began."""
    with Store.create(store, QUICK.store) as opened:
        folders = Folders([str(media)], opened, QUICK.ingest, lambda path, reason: None)
        _look(folders)
        time.sleep(2 * QUICK.ingest.settle_s)
        batch = folders.take(time.monotonic())
        assert sorted(item.path.name for item in batch.found.items) == ["a.mp4", "c.jpg"]
        _look(folders)  # they are in hand, and not known yet
        folders.took(batch, time.monotonic(), {}, set(), {})
        time.sleep(2 * QUICK.ingest.settle_s)
        assert folders.take(time.monotonic()).found.items == []
        assert (folders.files, folders.waiting) == (2, 0)
        folders.close()


def test_files_below_a_cldignore_that_cannot_be_read_keep_no_others_waiting(
    media: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cld_stream.pipelines.folders._AT_ONCE", 2)
    with Store.create(store, QUICK.store) as opened:
        folders = Folders([str(media)], opened, QUICK.ingest, lambda path, reason: None)

        def next_batch() -> list[str]:
            _look(folders)
            time.sleep(2 * QUICK.ingest.settle_s)
            batch = folders.take(time.monotonic())
            folders.took(batch, time.monotonic(), {}, set(), {})
            return sorted(item.path.name for item in batch.found.items)

        assert next_batch() == ["a.mp4", "c.jpg"]
        for i in range(3):
            photograph(media / "ruled" / "deep" / f"n{i}.jpg", seed=i)
        _look(folders)
        rules = media / "ruled" / ".cldignore"
        rules.write_text("# much\n" * 20_000)  # before they stand still
        photograph(media / "other" / "new.jpg", seed=9)
        assert "new.jpg" in next_batch() + next_batch() + next_batch()
        rules.unlink()
        assert sorted(next_batch() + next_batch()) == ["n0.jpg", "n1.jpg", "n2.jpg"]
        folders.close()


def test_frame_folders_that_wait_for_nothing_are_not_gone_through(tmp_path: Path, store: Path) -> None:
    """Five times a second, for ever: a hundred thousand of them took 2% of a core."""
    media = tmp_path / "media"
    for i in range(12):
        photograph(media / "seq" / f"{i:04d}.png", seed=i)
    with Store.create(store, QUICK.store) as opened:
        folders = Folders([str(media)], opened, QUICK.ingest, lambda path, reason: None)
        _look(folders)
        time.sleep(2 * QUICK.ingest.settle_s)
        batch = folders.take(time.monotonic())
        assert [item.path.name for item in batch.found.items] == ["seq"]
        folders.took(batch, time.monotonic(), {}, set(), {})
        assert list(folders._held) == [str(media / "seq")]
        time.sleep(QUICK.ingest.growing_s)
        _look(folders)
        assert not folders._held
        photograph(media / "seq" / "0012.png", seed=12)  # and it is one sequence still
        _look(folders)
        time.sleep(2 * QUICK.ingest.settle_s)
        (item,) = folders.take(time.monotonic()).found.items
        assert (item.kind, len(item.members)) == ("sequence", 13)
        folders.close()


def _look(folders: Folders) -> None:
    """One whole look."""
    time.sleep(2 * QUICK.ingest.poll_s)
    until = time.monotonic() + 1
    while time.monotonic() < until:
        folders.look(time.monotonic())


def test_the_first_batch_is_in_the_order_of_a_plain_ingest(tmp_path: Path, store: Path) -> None:
    media = tmp_path / "media"
    for name, taken in (("x.jpg", "2024:01:03 10:00:00"), ("y.jpg", None), ("z.jpg", "2024:01:01 10:00:00")):
        arrive(photograph, media / name, seed=ord(name[0]), taken=taken)
    with Watching(store, media) as w:
        w.until_taken("x.jpg", "y.jpg", "z.jpg")
    ingest(tmp_path / "plain", [str(media)], QUICK)
    ours, plain = ledger(store), ledger(tmp_path / "plain")
    assert [(n, s.id) for n, s in ours.items()] == [(n, s.id) for n, s in plain.items()]


def test_a_file_is_not_touched_before_it_stands_still(media: Path, store: Path) -> None:
    whole = photograph(media.parent / "whole.png", seed=9).read_bytes()
    with Watching(store, media, settle_s=1.0, growing_s=60.0) as w:
        w.until_taken("a.mp4")
        written = [time.monotonic()]
        with (media / "slow.png").open("wb") as file:
            for i in range(6):
                file.write(whole[len(whole) * i // 6 : len(whole) * (i + 1) // 6])
                file.flush()
                time.sleep(0.3)
                written.append(time.monotonic())
        longest = max(b - a for a, b in itertools.pairwise(written))  # a busy machine may have paused us
        assert not w.taken("slow.png") or longest > 0.8
        w.until_taken("slow.png")
        told = w.taken("slow.png")
        assert (told[-1].outcome, sum(e.frames for e in told)) == (Outcome.ADDED, 1)


def record(whole: bytes, path: Path, enough: Callable[[], object]) -> bytes:
    """Write a file a little at a time, as recorders do, until there is enough; gives the rest."""
    parts = 400
    with path.open("wb") as file:
        for i in range(parts):
            file.write(whole[len(whole) * i // parts : len(whole) * (i + 1) // parts])
            file.flush()
            if enough():
                break
            time.sleep(0.05)
        return whole[file.tell() :]


def test_a_growing_recording_is_taken_in_parts_without_repeating_or_losing_a_frame(
    media: Path, store: Path, tmp_path: Path
) -> None:
    whole = film(tmp_path / "whole.mkv", seconds=20).read_bytes()
    rec = media / "rec.mkv"
    begun = bytearray(whole)  # Matroska's head is completed when it is closed
    at = whole.find(b"\x18\x53\x80\x67") + 4  # the length of the segment
    begun[at : at + 8] = b"\x01" + 7 * b"\xff"
    with Watching(store, media, settle_s=0.5, growing_s=0.5) as w:
        w.until_taken("a.mp4")
        rest = record(bytes(begun), rec, lambda: any(e.frames for e in w.taken(rec.name)))
        with rec.open("r+b") as file:
            file.seek(0, os.SEEK_END)
            file.write(rest)
            file.seek(0)
            file.write(whole[:4096])
        w.until_taken(rec.name)
        said = w.taken(rec.name)
        assert any((e.outcome, e.reason) == (Outcome.PARTIAL, "still being written") for e in said)
        assert (said[-1].outcome, said[-1].reason) == (Outcome.ADDED, "")
    assert [Path(s).name for s in ledger(store)].count(rec.name) == 1
    ingest(tmp_path / "at once", [str(tmp_path / "whole.mkv")], QUICK)
    wanted = times(tmp_path / "at once", 1)
    assert times(store, ledger(store)[rec.name].id) == pytest.approx(wanted)
    assert ingest(store, [str(media)], QUICK).frames == 0


def test_a_recording_that_is_renamed_when_it_is_closed_goes_on(media: Path, store: Path, tmp_path: Path) -> None:
    whole = film(tmp_path / "whole.ts", seconds=20).read_bytes()
    with Watching(store, media, settle_s=0.5, growing_s=0.5) as w:
        rest = record(whole, media / "rec.part.ts", lambda: any(e.frames for e in w.taken("rec.part.ts")))
        with (media / "rec.part.ts").open("ab") as file:
            file.write(rest)
        (media / "rec.part.ts").rename(media / "rec.ts")
        w.until_taken("rec.ts")
    ingest(tmp_path / "at once", [str(tmp_path / "whole.ts")], QUICK)
    assert "rec.part.ts" not in ledger(store)
    assert times(store, ledger(store)["rec.ts"].id) == pytest.approx(times(tmp_path / "at once", 1), abs=0.25)


def test_a_recorder_that_was_killed_leaves_its_last_part(media: Path, store: Path, tmp_path: Path) -> None:
    whole = film(tmp_path / "whole.ts", seconds=20).read_bytes()
    ingest(tmp_path / "at once", [str(tmp_path / "whole.ts")], QUICK)
    with Watching(store, media, settle_s=0.5, growing_s=0.5) as w:
        rest = record(whole, media / "rec.ts", lambda: any(e.frames for e in w.taken("rec.ts")))
    assert ledger(store)["rec.ts"].outcome is Outcome.PARTIAL  # it was still growing when we ended
    with (media / "rec.ts").open("ab") as file:
        file.write(rest)
    assert ingest(store, [str(media)], QUICK).frames > 0
    assert ledger(store)["rec.ts"].outcome is Outcome.ADDED
    assert times(store, ledger(store)["rec.ts"].id) == pytest.approx(times(tmp_path / "at once", 1))


def test_a_recording_that_ended_while_nobody_watched_is_finished(media: Path, store: Path, tmp_path: Path) -> None:
    """With the very bytes that were taken of it as it grew: it is not as it was known, though nothing changed."""
    whole, rec = film(tmp_path / "whole.ts", seconds=20).read_bytes(), media / "rec.ts"
    with Watching(store, media, settle_s=0.5, growing_s=0.5) as w:
        record(whole, rec, lambda: any(e.frames for e in w.taken(rec.name)))
    row = ledger(store)[rec.name]
    assert row.outcome is Outcome.PARTIAL
    os.truncate(rec, row.size)
    os.utime(rec, ns=(row.mtime_ns, row.mtime_ns))
    with Watching(store, media) as w:
        w.until_taken(rec.name)
    assert (ledger(store)[rec.name].id, ledger(store)[rec.name].reason[:5] == "still") == (row.id, False)


@pytest.mark.parametrize("how", ["unmounted", "emptied"])
def test_a_folder_that_is_away_is_no_deletion(media: Path, store: Path, tmp_path: Path, how: str) -> None:
    with Watching(store, media) as w:
        w.until_taken("a.mp4", "c.jpg")
        media.rename(tmp_path / "drive")
        if how == "emptied":
            media.mkdir()
        w.until(lambda: w.events[-1].event == "folder")
        w.quiet(1.0)
        if how == "emptied":
            media.rmdir()
        (tmp_path / "drive").rename(media)
        arrive(photograph, media / "new.png", seed=7)
        w.until_taken("new.png")
        told = [(e.state, e.path, bool(e.reason)) for e in w.events if e.event == "folder"]
        assert told == [("gone", str(media), True), ("back", str(media), False)]
    assert {s.outcome for s in ledger(store).values()} == {Outcome.ADDED}


def test_a_folder_that_may_not_be_read_any_more_stops_nothing(media: Path, store: Path) -> None:
    with bound_by_modes(), Watching(store, media) as w:
        w.until_taken("a.mp4", "c.jpg")
        (media / "other").mkdir()
        shutil.copy(media / "deep" / "c.jpg", media / "other" / ".copy")
        (media / "deep").chmod(0)
        (media / "other" / ".copy").rename(media / "other" / "copy.jpg")
        w.until_taken("copy.jpg")
        w.quiet()
        (media / "deep").chmod(0o755)
        w.quiet()
    kept = {name: row.outcome for name, row in ledger(store).items()}
    assert kept == {"a.mp4": Outcome.ADDED, "c.jpg": Outcome.ADDED, "copy.jpg": Outcome.ALREADY_PRESENT}


def test_a_folder_below_one_that_may_not_be_entered_is_waited_for(media: Path, store: Path, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    (tmp_path / "open").mkdir()
    media.rename(closed / "media")
    with bound_by_modes():
        closed.chmod(0)
        with Watching(store, tmp_path / "open", closed / "media") as w:
            w.until(lambda: [(e.state, e.reason) for e in w.events if e.path == str(closed / "media")])
            assert w.events[-1].reason == "Permission denied"
            closed.chmod(0o755)
            w.until_taken("a.mp4", "c.jpg")


def test_a_file_that_may_not_be_read_is_taken_once_it_may(media: Path, store: Path) -> None:
    with bound_by_modes(), Watching(store, media) as w:
        w.until_taken("a.mp4", "c.jpg")
        hidden = photograph(media / ".mine.png", seed=7)
        hidden.chmod(0)
        hidden.rename(media / "mine.png")
        w.until_taken("mine.png")
        w.quiet()
        assert [e.outcome for e in w.taken("mine.png")] == [Outcome.BROKEN]
        (media / "mine.png").chmod(0o600)
        w.until(lambda: len(w.taken("mine.png")) > 1)
        w.quiet()
    assert [e.outcome for e in w.taken("mine.png")] == [Outcome.BROKEN, Outcome.ADDED]
    assert ledger(store)["mine.png"].frames == 1


def test_a_system_out_of_files_or_threads_for_a_moment_leaves_no_trace(
    media: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, opened, lacks = threading.Thread.start, Path.open, threading.Event()

    def out_of_threads(thread: threading.Thread) -> None:
        if lacks.is_set():
            raise RuntimeError("can't start new thread")
        start(thread)

    def out_of_files(path: Path, *args: Any, **more: Any) -> Any:
        if path.name == "late.jpg" and not w.taken("late.jpg"):
            raise OSError(errno.ENFILE, "Too many open files in system")
        return opened(path, *args, **more)

    monkeypatch.setattr(threading.Thread, "start", out_of_threads)
    monkeypatch.setattr(Path, "open", out_of_files)
    with Watching(store, media) as w:
        w.until_taken("a.mp4", "c.jpg")
        lacks.set()
        photograph(media / "late.jpg", seed=7)
        time.sleep(1)
        lacks.clear()
        w.until(lambda: len(w.taken("late.jpg")) > 1)
    assert [e.outcome for e in w.taken("late.jpg")] == [Outcome.BROKEN, Outcome.ADDED]
    assert ledger(store)["late.jpg"].frames == 1


def test_a_folder_that_is_away_at_the_start_is_waited_for(media: Path, store: Path, tmp_path: Path) -> None:
    ingest(store, [str(media)], QUICK)
    media.rename(tmp_path / "drive")
    with Watching(store, media) as w:
        w.until(lambda: [e.state for e in w.events] == ["gone"])
        (tmp_path / "drive").rename(media)
        arrive(photograph, media / "new.png", seed=7)
        w.until_taken("new.png")
    assert {s.outcome for s in ledger(store).values()} == {Outcome.ADDED}


def test_a_drive_below_a_folder_that_is_detached_is_no_deletion(media: Path, store: Path, tmp_path: Path) -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system at /dev/shm")
    drive = memory / f"cld-stream-{os.getpid()}"
    try:
        arrive(photograph, drive / "on drive.png", seed=8)
        (media / "mnt").symlink_to(drive)
        with Watching(store, media) as w:
            w.until_taken("a.mp4", "c.jpg", "on drive.png")
            (media / "mnt").unlink()
            (media / "a.mp4").unlink()
            w.until_taken("a.mp4")
            w.until(lambda: w.taken("a.mp4")[-1].outcome is Outcome.MISSING)
            w.quiet()
    finally:
        shutil.rmtree(drive)
    assert (ledger(store)["on drive.png"].outcome, ledger(store)["c.jpg"].outcome) == (Outcome.ADDED, Outcome.ADDED)


def test_a_deleted_file_is_missing_its_frames_stay_and_it_may_return(media: Path, store: Path, tmp_path: Path) -> None:
    with Watching(store, media) as w:
        w.until_taken("a.mp4", "c.jpg")
        (media / "a.mp4").rename(tmp_path / "kept.mp4")
        w.until(lambda: w.taken("a.mp4")[-1].outcome is Outcome.MISSING)
        assert (ledger(store)["a.mp4"].frames, ledger(store)["c.jpg"].outcome) == (5, Outcome.ADDED)
        (tmp_path / "kept.mp4").rename(media / "a.mp4")
        w.until(lambda: w.taken("a.mp4")[-1].outcome is Outcome.ADDED)
        w.quiet()
    assert (w.report.frames if w.report else 0, len(ledger(store))) == (6, 2)


def test_a_file_is_missing_after_it_was_gone_for_a_while(media: Path, store: Path) -> None:
    with Watching(store, media, settle_s=0.4) as w:
        w.until_taken("a.mp4", "c.jpg")
        gone = time.monotonic()
        (media / "a.mp4").unlink()
        w.until(lambda: len(w.taken("a.mp4")) > 1)
        assert time.monotonic() - gone >= 4 * 0.4


def test_a_file_that_is_back_since_the_last_look_is_not_missing(media: Path, store: Path) -> None:
    ingest(store, [str(media)], QUICK)
    with Store.open(store) as opened:
        folders = Folders([str(media)], opened, QUICK.ingest, lambda path, reason: None)
        (media / "a.mp4").rename(media / ".kept")
        (media / "deep" / "c.jpg").rename(media / "deep" / ".kept")
        photograph(media / "new.png", seed=7)
        _look(folders)
        time.sleep(5 * QUICK.ingest.settle_s)
        _look(folders)
        (media / ".kept").rename(media / "a.mp4")
        assert folders.vanished(time.monotonic()) == [str(media / "deep" / "c.jpg")]
        folders.close()


def test_a_folder_that_is_back_is_listened_to_anew(
    media: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system has forgotten it."""
    heard: list[list[str]] = []

    class Heard(Notices):
        def __init__(self, folders: Sequence[str]) -> None:
            heard.append(list(folders))
            super().__init__(folders)

    monkeypatch.setattr("cld_stream.pipelines.folders.Notices", Heard)
    with Watching(store, media, notices="auto") as w:
        w.until_taken("a.mp4", "c.jpg")
        media.rename(tmp_path / "drive")
        w.until(lambda: w.events[-1].state == "gone")
        (tmp_path / "drive").rename(media)
        w.until(lambda: w.events[-1].state == "back")
        w.until(lambda: len(heard) > 1)
    assert heard == [[str(media)]] * 2


def test_a_renamed_file_is_the_same_source(media: Path, store: Path) -> None:
    with Watching(store, media) as w:
        w.until_taken("a.mp4", "c.jpg")
        before = ledger(store)["a.mp4"]
        (media / "a.mp4").rename(media / "deep" / "b.mp4")
        shutil.copy(media / "deep" / "c.jpg", media / ".copied.jpg")  # another inode and time
        (media / ".copied.jpg").rename(media / "copied.jpg")
        (media / "deep" / "c.jpg").unlink()
        w.until_taken("b.mp4", "copied.jpg")
        w.quiet(1.0)
    rows = ledger(store)
    assert (set(rows), rows["b.mp4"].id) == ({"b.mp4", "copied.jpg"}, before.id)
    assert {s.outcome for s in rows.values()} == {Outcome.ADDED}


def test_a_file_that_is_replaced_by_another_known_one_is_missing(media: Path, store: Path) -> None:
    arrive(film, media / "b.mp4", seconds=1, seed=5)
    with Watching(store, media) as w:
        w.until_taken("a.mp4", "b.mp4")
        old = ledger(store)["a.mp4"].id
        (media / "b.mp4").replace(media / "a.mp4")
        w.until(lambda: len(w.taken("a.mp4")) == 3)
    with Store.open(store) as opened:
        rows = {s.id: s for s in opened.catalog.sources()}
    assert rows[old].outcome is Outcome.MISSING
    assert [s.outcome for s in rows.values() if s.path.endswith("a.mp4") and s.id != old] == [Outcome.ADDED]


def test_a_frame_folder_that_fills_is_one_sequence(tmp_path: Path, store: Path) -> None:
    media = tmp_path / "media"
    arrive(photograph, media / "first" / "x.jpg")
    with Watching(store, media, settle_s=0.3) as w:
        w.until_taken("x.jpg")
        for i in range(30):
            arrive(photograph, media / "seq" / f"{i:04d}.png", seed=i)
            time.sleep(0.01)
        w.until_taken("seq")
        for i in range(30, 40):
            arrive(photograph, media / "seq" / f"{i:04d}.png", seed=i)
        w.until(lambda: sum(e.frames for e in w.taken("seq")) == 40)
    rows = ledger(store)
    assert set(rows) == {"x.jpg", "seq"}
    assert times(store, rows["seq"].id) == pytest.approx([i / 25 for i in range(40)])
    assert ingest(store, [str(media)], QUICK).changed == 0


def test_a_frame_folder_does_not_wait_for_what_was_read_beside_it(
    media: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first batch may take hours."""
    decide = Ledger.decide

    def slowly(self: Ledger, item: Item) -> Entry:
        time.sleep(1.5 * (item.path.name == "a.mp4"))
        return decide(self, item)

    monkeypatch.setattr(Ledger, "decide", slowly)
    for i in range(12):
        photograph(media / "seq" / f"{i:04d}.png", seed=i)
    with Watching(store, media) as w:
        w.until_taken("a.mp4", "seq")
        photograph(media / "seq" / "0012.png", seed=12)
        w.until(lambda: sum(e.frames for e in w.taken("seq")) == 13, seconds=10)


def test_numbered_photos_that_come_one_by_one_stay_photos(tmp_path: Path, store: Path) -> None:
    media = tmp_path / "media"
    arrive(photograph, media / "0000.png", seed=0)
    with Watching(store, media) as w:
        for i in range(1, 9):
            arrive(photograph, media / f"{i:04d}.png", seed=i)
            w.until_taken(f"{i - 1:04d}.png")
        w.until_taken("0008.png")
    assert {s.kind for s in ledger(store).values()} == {"photo"}
    assert ingest(store, [str(media)], QUICK).frames == 0
    with Watching(store, media) as w:
        arrive(photograph, media / "0009.png", seed=12)
        w.until_taken("0009.png")
    assert len(ledger(store)) == 10


def test_hidden_and_ignored_files_and_the_store_itself_are_left_alone(media: Path) -> None:
    (media / ".cldignore").write_text("*.tmp.png\n")
    arrive(photograph, media / "half.tmp.png")
    arrive(photograph, media / ".hidden.png")
    Store.create(media / "another store", QUICK.store).close()
    store = media / "store"
    with Watching(store, media, notices="auto") as w:
        w.until_taken("a.mp4", "c.jpg")
        arrive(photograph, media / "more.tmp.png")
        arrive(photograph, media / "more.png", seed=5)
        w.until_taken("more.png")
        w.quiet()
    assert set(ledger(store)) == {"a.mp4", "c.jpg", "more.png"}


def test_a_watch_tells_once_of_a_folder_below_that_cannot_be_read(
    media: Path, store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (media / "odd").mkdir()
    arrive(photograph, media / "odd" / "new.png", seed=5)
    (media / "odd" / ".cldignore").write_text("*.tmp\n" * 20_000)
    with Watching(store, media) as w:
        w.until_taken("a.mp4", "c.jpg")
        w.quiet()
        assert "new.png" not in ledger(store)
        said = [line for line in caplog.messages if str(media / "odd") in line]
        assert said == [f"{media / 'odd'}: cannot be read: its .cldignore is larger than 64 kB"]
        (media / "odd" / ".cldignore").write_text("*.tmp\n")
        w.until_taken("new.png")


def test_inputs_that_cannot_be_watched_are_named_and_no_store_is_made(media: Path, store: Path) -> None:
    for text, match in (
        ("nowhere", "no such folder"),
        (str(media / "a.mp4"), "only folders and cameras can be watched"),
        ("@list.txt", "only folders and cameras"),
        ("http://me:secret@host/film.mp4", "cameras are rtsp://"),
    ):
        with pytest.raises(UsageError, match=match) as raised, Watching(store, text) as w:
            w._thread.join()
        assert "secret" not in str(raised.value)
    assert not store.exists()


def test_a_second_writer_is_told_who_is_at_work_and_status_shows_it(media: Path, store: Path) -> None:
    with Watching(store, media) as w:
        w.until_taken("a.mp4", "c.jpg")
        with pytest.raises(LockHeldError, match=rf"pid {os.getpid()} .*ingest --watch {media}"):
            ingest(store, [str(media)], QUICK)
        with pytest.raises(LockHeldError, match="stop it, forget, and start it again"):
            forget(store, "a.mp4")
        assert [(p.kind, p.state) for p in status(store).processes] == [("ingest", "running")]
    (last,) = status(store).processes
    assert (last.kind, last.state, last.outcome, last.numbers["state"]) == ("ingest", "ended", "done", "done")
    assert (last.numbers["taken"], last.numbers["frames"], last.numbers["dropped"]) == (2, 6, 0)


def test_a_store_stays_within_limits_while_it_is_watched(tmp_path: Path, store: Path) -> None:
    media = tmp_path / "media"
    for i in range(24):
        arrive(photograph, media / f"{chr(97 + i)}.png", seed=i)
    with Watching(store, media, max_frames=20) as w:
        w.until_taken("a.png", "x.png")
        for i in range(24, 40):
            arrive(photograph, media / "later" / f"later {chr(73 + i)}.png", seed=i)
        w.until_taken(*(f"later {chr(73 + i)}.png" for i in range(24, 40)))
    assert w.report is not None
    assert (w.report.frames, w.report.frames - w.report.dropped, w.report.notes) == (40, _frames(store), [])
    assert 0 < _frames(store) <= 20
    assert {s.outcome for s in ledger(store).values()} == {Outcome.ADDED}


def test_a_system_that_does_not_tell_of_changes_is_no_error(tmp_path: Path) -> None:
    code = (
        "import os, resource, sys, time\n"
        "from cld_stream.media.notices import Notices\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "try:\n  while True: os.open('/dev/null', 0)\nexcept OSError: pass\n"
        "notices = Notices([sys.argv[1]])\n"
        "while not notices.refused: time.sleep(0.01)\n"
        "print(notices.refused, notices.take())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert "Too many open files" in done.stdout, done.stderr
    assert done.stdout.endswith(" set()\n")


def command(store: Path, *more: object) -> list[str]:
    quick = ("ingest.settle_s=0.3", "ingest.poll_s=0.1", "ingest.commit_s=0.02", "store.shard_frames=64")
    settings = itertools.chain.from_iterable(("--set", text) for text in quick)
    return [sys.executable, "-m", "cld_stream", "ingest", "--watch", "--store", str(store), "--size", "32",
            "--workers", "1", *settings, *map(str, more)]  # fmt: skip


def test_a_signal_ends_it_cleanly_and_json_is_an_object_a_line(media: Path, store: Path) -> None:
    child = subprocess.Popen(command(store, "--json", media), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    lines = [json.loads(child.stdout.readline()) for _ in range(2)]
    child.send_signal(signal.SIGTERM)
    rest, said = child.communicate(timeout=60)
    lines += map(json.loads, rest.splitlines())
    assert (child.returncode, "Stopping" in said, "Traceback" in said) == (0, True, False)
    assert [(e["event"], Path(e.get("path", "")).name) for e in lines] == [
        ("file", "a.mp4"), ("file", "c.jpg"), ("end", ""),
    ]  # fmt: skip
    assert (lines[-1]["frames"], lines[-1]["outcomes"]) == (6, {"ADDED": 2})
    assert len(ledger(store)) == 2


def test_a_killed_watch_leaves_no_trace(tmp_path: Path, store: Path) -> None:
    media = tmp_path / "media"
    for i in range(3):
        arrive(film, media / f"clip{i}.mkv", seconds=6, seed=i)
    for frames in (1, 80):
        child = subprocess.Popen(command(store, "--fps", 10, media), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while child.poll() is None and _frames(store) < frames:
            time.sleep(0.005)
        child.kill()
        child.communicate()
    assert _frames(store) > 0
    with Watching(store, media, fps=10.0) as w:
        w.until(lambda: _frames(store) == 180 and all(s.outcome for s in ledger(store).values()))
    ingest(tmp_path / "whole", [str(media)], QUICK)
    assert {n: (s.id, s.outcome) for n, s in ledger(store).items()} == {
        n: (s.id, s.outcome) for n, s in ledger(tmp_path / "whole").items()
    }
    for source in (1, 2, 3):
        assert times(store, source) == pytest.approx([i / 10 for i in range(60)], abs=0.051)


def _frames(store: Path) -> int:
    try:
        with Store.open(store) as opened:
            return opened.catalog.frame_count()
    except Exception:  # noqa: BLE001 - not made yet
        return 0


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_hundred_thousand_files_arrive_and_memory_stays_flat(tmp_path: Path, store: Path) -> None:
    media, total = tmp_path / "media", 100_000
    media.mkdir()
    pixels = photograph(tmp_path / "one.jpg").read_bytes()
    child = subprocess.Popen(
        command(store, "--json", "--workers", 2, media), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert child.stdout is not None
    process, seen, memory = psutil.Process(child.pid), set[str](), {}
    writer = subprocess.Popen([sys.executable, "-c", _MANY.format(total=total), str(media), pixels.hex()])
    for line in child.stdout:
        event = json.loads(line)
        assert event["event"] == "file"
        assert event["path"] not in seen, "found twice"
        assert event["outcome"] == "ADDED"
        seen.add(event["path"])
        if len(seen) % 10_000 == 0:
            memory[len(seen)] = process.memory_info().rss / 2**20
        if len(seen) == total:
            break
    assert writer.wait() == 0
    print({n: round(mb) for n, mb in memory.items()})
    child.send_signal(signal.SIGTERM)
    assert json.loads(child.communicate()[0].splitlines()[-1])["frames"] == total
    assert child.returncode == 0
    assert _frames(store) == total
    assert memory[total] - memory[total // 5] < 80, "more than what is remembered of a file: 1 kB"


_MANY = """
import sys, pathlib
top, jpeg = pathlib.Path(sys.argv[1]), bytes.fromhex(sys.argv[2])
for i in range({total}):
    if i % 1000 == 0:
        (folder := top / f"day {{i // 1000:03d}}").mkdir()
    (folder / f"IMG_{{i:06d}}.jpg").write_bytes(jpeg + i.to_bytes(4, "big"))
"""


def test_names_from_outside_are_shown_as_one_harmless_line() -> None:
    assert safe("a\nb\x1b[31m") == "a\\nb\\x1b[31m"


def test_cameras_and_folders_go_in_at_once_and_no_password_is_kept(media: Path, store: Path) -> None:
    server, other = RtspCamera(), RtspCamera()
    url = server.url.replace("//", "//me:sesame@")
    down = other.url.replace("//", "//me:sesame@")
    with Watching(store, media, url, down, camera_retry_s=0.2, fps=10.0) as w:
        w.until(lambda: [e.state for e in w.events if e.path == server.url] == ["down"])  # it is not there yet
        with server.on():
            w.until(lambda: _frames_of(store, server.url) > 5)  # committed while it goes on
            w.until_taken("a.mp4", "c.jpg")
            with pytest.raises(LockHeldError, match="rtsp://127") as held:
                ingest(store, [str(media)], QUICK)
            shown = repr(w.events) + str(held.value) + repr(status(store))
        w.until(lambda: [e.state for e in w.events if e.path == server.url] == ["down", "up", "down"])
    with Store.open(store) as opened:
        rows = {s.path: s for s in opened.catalog.sources(kind="camera")}
    assert {s: r.outcome for s, r in rows.items()} == {server.url: Outcome.ADDED, other.url: Outcome.BROKEN}
    assert rows[other.url].reason == "Connection refused"
    shown += b"".join(f.read_bytes() for f in store.rglob("*") if f.is_file()).decode("latin-1")
    assert "sesame" not in shown
    before = times(store, rows[server.url].id)
    with server.on(), Watching(store, url, camera_retry_s=0.2, fps=10.0) as w:  # another day: the same source goes on
        w.until(lambda: _frames_of(store, server.url) > len(before) + 2)
    after = times(store, rows[server.url].id)
    assert after[: len(before)] == before
    assert all(b > a for a, b in itertools.pairwise(after))
    assert ledger(store)["a.mp4"].outcome is Outcome.ADDED
    assert forget(store, url).frames == len(after)


def _frames_of(store: Path, path: str) -> int:
    if not (store / "store.json").exists():
        return 0
    with Store.open(store) as opened:
        row = opened.catalog.source_by_path(path)
        return row.frames if row else 0


def test_a_camera_is_named_once(store: Path) -> None:
    with (
        pytest.raises(UsageError, match="two cameras have the same address"),
        Watching(store, "rtsp://me:a@127.0.0.1:1/x", "rtsp://you:b@127.0.0.1:1/x") as w,
    ):
        w._thread.join()


TAKE_AND_FREE = """
import resource, sys
from pathlib import Path
from cld_stream.config import load_settings
from cld_stream.pipelines.watch import watch

watch(Path(sys.argv[1]), [sys.argv[2]], load_settings(), stop=lambda: True)
for _ in range(3):
    b"x" * 2_000_000
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    b"x" * 2_000_000
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc")
def test_large_blocks_leave_no_holes_among_small_ones_that_stay(media: Path, store: Path) -> None:
    run = subprocess.run([sys.executable, "-c", TAKE_AND_FREE, store, media], capture_output=True, text=True)
    assert int(run.stdout) >= 20, run.stderr  # each is mapped and unmapped: a page of 2 MB at least
