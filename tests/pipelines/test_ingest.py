"""Ingest: every file gets its outcome once, and nothing that happens to a run shows in the store."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cld_stream.config import IngestSettings, Settings, StoreSettings
from cld_stream.errors import BrokenFilesError, StoreNotFoundError, UsageError
from cld_stream.media.answers import receive
from cld_stream.media.discover import Item
from cld_stream.media.job import Chunk, Job
from cld_stream.media.pool import DecodePool, Worker
from cld_stream.pipelines import ingest as pipeline
from cld_stream.pipelines.forget import forget
from cld_stream.pipelines.ingest import IngestProgress, IngestReport, explained, ingest
from cld_stream.pipelines.ingest_run import Run
from cld_stream.pipelines.ledger import Stat, stat_item
from cld_stream.storage.schema import Outcome, SourceRow
from cld_stream.storage.store import Store
from tests.pipelines.footage import film, photograph

SETTINGS = Settings(store=StoreSettings(size=32, shard_frames=16), ingest=IngestSettings(workers=1, commit_s=0.05))


def take(store: Path, *inputs: Path | str, settings: Settings = SETTINGS, **more: Any) -> IngestReport:
    return ingest(store, [str(i) for i in inputs], settings, **more)


def rows(store: Path) -> list[tuple[int, str, float, bytes]]:
    """(id, source, time, bytes) of every frame."""
    with Store.open(store) as opened, opened.reader(1) as reader:
        frames = opened.catalog.rows()
        names = {s.id: s.path for s in opened.catalog.sources()}
        jpegs = reader.jpegs(frames.ids)
    columns = frames.ids.tolist(), frames.source.tolist(), frames.time_s.tolist(), jpegs
    return [(i, names[s], t, j) for i, s, t, j in zip(*columns, strict=True)]


def ledger(store: Path) -> list[SourceRow]:
    with Store.open(store) as opened:
        return opened.catalog.sources()


def outcomes(store: Path) -> dict[str, str]:
    return {Path(s.path).name: str(s.outcome) for s in ledger(store)}


@pytest.fixture
def media(tmp_path: Path) -> Path:
    folder = tmp_path / "media"
    film(folder / "a.mp4", seconds=3)
    film(folder / "b.mkv", seconds=2, seed=1)
    photograph(folder / "c.jpg", seed=2)
    (folder / "notes.txt").write_text("hello")
    (folder / "broken.mp4").write_text("not a video")
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def test_every_file_gets_an_outcome_and_a_second_run_changes_nothing(media: Path, store: Path) -> None:
    first = take(store, media)
    wanted = {"a.mp4": "ADDED", "b.mkv": "ADDED", "c.jpg": "ADDED", "notes.txt": "SKIPPED", "broken.mp4": "BROKEN"}
    assert outcomes(store) == wanted
    assert {Path(f.path).name: str(f.outcome) for f in first.files} == wanted
    assert first.counts == {"ADDED": 3, "SKIPPED": 1, "BROKEN": 1}
    assert (first.frames, first.changed) == (7 + 5 + 1, 5)
    assert all(s.reason for s in ledger(store) if s.outcome in (Outcome.SKIPPED, Outcome.BROKEN))
    before = rows(store), ledger(store)
    second = take(store, media)
    assert (second.frames, second.changed, second.counts) == (0, 0, first.counts)
    assert (rows(store), ledger(store)) == before


def test_progress_is_told_and_the_report_is_json(media: Path, store: Path) -> None:
    told: list[IngestProgress] = []
    photograph(media / os.fsdecode(b"odd \xff\n.jpg"), seed=9)
    report = take(store, media, on_progress=told.append)
    assert told
    assert told[-1].files_total == 6
    assert 0 <= told[-1].cpu_share <= 1
    assert json.loads(json.dumps(report.as_dict()))["counts"] == report.counts
    assert os.fsdecode(b"odd \xff\n.jpg") in outcomes(store)
    assert take(store, media).changed == 0


def test_the_same_ids_whatever_the_number_of_workers(media: Path, tmp_path: Path) -> None:
    for i in range(6):
        photograph(media / f"p{i}.png", seed=i)
    one, three = tmp_path / "one", tmp_path / "three"
    take(one, media)
    take(three, media, settings=replace(SETTINGS, ingest=replace(SETTINGS.ingest, workers=3)))
    assert rows(one) == rows(three)
    assert [(s.id, s.path) for s in ledger(one)] == [(s.id, s.path) for s in ledger(three)]


def test_capture_time_orders_the_stream_and_path_order_is_a_choice(tmp_path: Path) -> None:
    media = tmp_path / "media"
    for name, taken in (("x.jpg", "2024:01:03 10:00:00"), ("y.jpg", None), ("z2.jpg", "2024:01:01 10:00:00")):
        photograph(media / name, seed=len(name) + ord(name[0]), taken=taken)
    take(tmp_path / "time", media)
    assert [Path(r[1]).name for r in rows(tmp_path / "time")] == ["z2.jpg", "x.jpg", "y.jpg"]
    take(tmp_path / "path", media, settings=replace(SETTINGS, ingest=replace(SETTINGS.ingest, order="path")))
    assert [Path(r[1]).name for r in rows(tmp_path / "path")] == ["x.jpg", "y.jpg", "z2.jpg"]


def test_a_twin_is_already_present_and_a_twin_of_a_broken_file_is_broken(media: Path, store: Path) -> None:
    shutil.copy(media / "a.mp4", media / "a copy.mp4")
    shutil.copy(media / "broken.mp4", media / "broken too.mp4")
    take(store, media)
    found = {Path(s.path).name: s for s in ledger(store)}
    twin, original = sorted((found["a.mp4"], found["a copy.mp4"]), key=lambda s: s.outcome == "ADDED")
    assert (twin.outcome, twin.same_as, twin.frames, original.frames) == ("ALREADY_PRESENT", original.id, 0, 7)
    assert found["broken too.mp4"].outcome == "BROKEN"
    shutil.copy(media / "c.jpg", media / "late.jpg")
    assert take(store, media).frames == 0
    assert outcomes(store)["late.jpg"] == "ALREADY_PRESENT"


def test_a_renamed_file_is_the_same_source(media: Path, store: Path) -> None:
    take(store, media)
    before = {Path(s.path).name: s for s in ledger(store)}
    (media / "deep").mkdir()
    (media / "a.mp4").rename(media / "deep" / "renamed.mp4")
    shutil.copyfile(media / "b.mkv", media / "moved.mkv")  # another inode
    (media / "b.mkv").unlink()
    report = take(store, media)
    after = {Path(s.path).name: s for s in ledger(store)}
    assert (report.frames, report.changed) == (0, 0)
    assert (after["renamed.mp4"].id, after["moved.mkv"].id) == (before["a.mp4"].id, before["b.mkv"].id)
    assert "a.mp4" not in after


def test_two_files_that_change_names_stay_the_same_two_sources(media: Path, store: Path) -> None:
    take(store, media)
    before = {s.fingerprint: s.id for s in ledger(store)}
    (media / "a.mp4").rename(media / "swap")
    (media / "b.mkv").rename(media / "a.mp4")
    (media / "swap").rename(media / "b.mkv")
    report = take(store, media)
    assert (report.frames, report.changed) == (0, 0)
    assert {s.fingerprint: s.id for s in ledger(store)} == before


def test_a_touched_file_is_known(media: Path, store: Path) -> None:
    take(store, media)
    os.utime(media / "a.mp4")
    assert take(store, media).frames == 0
    assert {s.mtime_ns for s in ledger(store)} >= {(media / "a.mp4").stat().st_mtime_ns}


@pytest.mark.parametrize("utc", [13_569_465_600, -11_644_473_600], ids=["2400", "1601"])
def test_a_file_of_a_time_that_no_catalog_holds_is_taken_and_known(tmp_path: Path, store: Path, utc: int) -> None:
    photograph(tmp_path / "media" / "old.jpg")
    os.utime(tmp_path / "media" / "old.jpg", (utc, utc))  # a file system that cannot hold it, either, cuts it off
    photograph(tmp_path / "media" / "new.jpg", seed=1)
    assert take(store, tmp_path / "media").frames == 2
    again = take(store, tmp_path / "media")
    assert (again.frames, [file.action for file in again.files]) == (0, ["known", "known"])


def test_a_file_that_shrinks_between_two_looks_ends_no_run(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photograph(tmp_path / "media" / "a.jpg")
    photograph(tmp_path / "media" / "b.jpg", seed=1)
    take(store, tmp_path / "media")
    os.utime(tmp_path / "media" / "a.jpg", (1.7e9, 1.7e9))

    looks: list[str] = []

    def look(item: Item) -> Stat:
        found = stat_item(item)
        looks.append(item.path.name)
        if looks.count("a.jpg") == 2:  # the first is for the order
            os.truncate(tmp_path / "media" / "a.jpg", 10)
        return found

    monkeypatch.setattr("cld_stream.pipelines.ledger.stat_item", look)
    report = take(store, tmp_path / "media")
    assert [(Path(file.path).name, file.action) for file in report.files] == [("a.jpg", "known"), ("b.jpg", "known")]


def test_a_grown_video_is_continued(tmp_path: Path, store: Path) -> None:
    whole = film(tmp_path / "whole.ts", seconds=8).read_bytes()
    growing = tmp_path / "media" / "rec.ts"
    growing.parent.mkdir()
    growing.write_bytes(whole[: len(whole) // 2 // 188 * 188])
    first = take(store, growing)
    assert 0 < first.frames < 16
    growing.write_bytes(whole)
    second = take(store, growing)
    assert len(ledger(store)) == 1
    take(tmp_path / "at once", tmp_path / "whole.ts")
    times = [r[2] for r in rows(store)]
    assert first.frames + second.frames == len(times) == len(set(times))
    assert times == pytest.approx([r[2] for r in rows(tmp_path / "at once")], abs=0.25)


def test_a_file_changed_in_place_is_a_new_source(media: Path, store: Path) -> None:
    take(store, media)
    film(media / "a.mp4", seconds=1, seed=7)
    report = take(store, media)
    mine = [s for s in ledger(store) if s.path.endswith("a.mp4")]
    assert [(s.outcome, s.frames) for s in mine] == [("MISSING", 7), ("ADDED", 3)]
    assert mine[0].reason == "changed in place; its new content is another source (was ADDED)"
    told = [(f.outcome, f.changed) for f in report.files if f.path.endswith("a.mp4")]
    assert (told, report.frames, report.changed) == ([("MISSING", True), ("ADDED", True)], 3, 2)
    assert take(store, media).changed == 0


def test_a_vanished_file_is_missing_until_it_returns(media: Path, store: Path, tmp_path: Path) -> None:
    take(store, media)
    (media / "a.mp4").rename(tmp_path / "away.mp4")
    report = take(store, media)
    assert [(Path(f.path).name, f.outcome) for f in report.files if f.changed] == [("a.mp4", "MISSING")]
    assert take(store, media).changed == 0
    (tmp_path / "away.mp4").rename(media / "a.mp4")
    report = take(store, media)
    assert (report.frames, outcomes(store)["a.mp4"]) == (0, "ADDED")


def test_an_absent_or_empty_input_folder_loses_nothing(media: Path, store: Path, tmp_path: Path) -> None:
    take(store, media)
    before = ledger(store)
    media.rename(tmp_path / "unplugged")
    with pytest.raises(UsageError, match="no such file or folder"):
        take(store, media)
    media.mkdir()
    assert "is empty" in take(store, media).notes[0]
    assert ledger(store) == before


def test_a_broken_file_is_retried_when_it_changes_or_on_request(media: Path, store: Path) -> None:
    take(store, media)
    assert [f.action for f in take(store, media).files if f.path.endswith("broken.mp4")] == ["known"]
    again = take(store, media, retry_broken=True)
    assert [(f.action, f.changed) for f in again.files if f.path.endswith("broken.mp4")] == [("continue", False)]
    film(media / "broken.mp4", seconds=1, seed=5)
    assert take(store, media).frames == 3
    assert outcomes(store)["broken.mp4"] == "ADDED"


def test_what_killed_decoders_left_undone_is_done_on_request(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    film(tmp_path / "media/long.mp4", seconds=100)
    every = replace(SETTINGS, ingest=replace(SETTINGS.ingest, fps=10.0))
    take(tmp_path / "whole", tmp_path / "media", settings=every)
    receive, killed = DecodePool._receive, set[int]()

    def then_killed(pool: DecodePool, worker: Worker, pending: Any) -> None:
        receive(pool, worker, pending)
        if len(killed) < 2 and worker.pid not in killed and pending.events and isinstance(pending.events[-1], Chunk):
            killed.add(worker.pid)
            os.kill(worker.pid, signal.SIGKILL)

    monkeypatch.setattr(DecodePool, "_receive", then_killed)
    report = take(store, tmp_path / "media", settings=every)
    assert [(f.outcome, f.frames > 0) for f in report.files] == [("PARTIAL", True)]
    assert [f.action for f in take(store, tmp_path / "media", settings=every).files] == ["known"]
    again = take(store, tmp_path / "media", settings=every, retry_broken=True)
    assert [(f.action, f.outcome, f.reason) for f in again.files] == [("continue", "ADDED", "")]
    assert rows(store) == rows(tmp_path / "whole")


def test_twins_that_could_not_be_read_are_taken_once_on_request(
    media: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(media / "a.mp4", media / "a copy.mp4")
    begin, left = Worker.take, [2]

    def killed_before(worker: Worker, job: Job) -> None:
        if left[0]:
            left[0] -= 1
            receive(worker.pipe)
            worker.watchdog.heard()
            os.kill(worker.pid, signal.SIGKILL)
        begin(worker, job)

    monkeypatch.setattr(Worker, "take", killed_before)
    assert take(store, media / "a.mp4", media / "a copy.mp4").counts == {"BROKEN": 2}
    for _ in range(2):
        report = take(store, media / "a.mp4", media / "a copy.mp4", retry_broken=True)
        assert report.counts == {"ADDED": 1, "ALREADY_PRESENT": 1}
    assert len(rows(store)) == 7


def test_strict_fails_after_everything_is_done(media: Path, store: Path) -> None:
    report = take(store, media, strict=True)
    assert len(rows(store)) == 13
    with pytest.raises(BrokenFilesError, match=r"1 files are broken: .*broken\.mp4"):
        report.raise_if_strict()
    take(store, media).raise_if_strict()


def test_a_dry_run_tells_and_writes_nothing(media: Path, store: Path) -> None:
    report = take(store, media, dry_run=True)
    assert sorted(f.action for f in report.files) == ["read"] * 4 + ["skip"]
    assert not store.exists()
    take(store, media)
    again = take(store, media, dry_run=True).files
    assert {f.action for f in again} == {"known"}
    told = {row.path: (row.outcome, row.reason) for row in ledger(store)}
    assert {f.path: (f.outcome, f.reason) for f in again} == told
    assert all(reason for outcome, reason in told.values() if outcome is Outcome.BROKEN)


def test_a_table_of_sequences_keeps_labels_and_grows(tmp_path: Path, store: Path) -> None:
    lines = ["path\tsequence\tframe\tlabel\tsplit"]
    for name, count in (("b", 3), ("a", 2)):
        for i in range(count):
            photograph(tmp_path / f"{name}{i}.png", seed=i)
            lines.append(f"{name}{i}.png\t{name}\t{i}\tthing-{name}\ttrain")
    table = tmp_path / "list.tsv"
    table.write_text("\n".join(lines) + "\n")
    assert take(store, f"@{table}").frames == 5
    assert [(s.path, s.label, s.split, s.frames) for s in ledger(store)] == [
        (f"{table}#b", "thing-b", "train", 3), (f"{table}#a", "thing-a", "train", 2),
    ]  # fmt: skip
    assert take(store, f"@{table}").changed == 0
    photograph(tmp_path / "a2.png", seed=8)
    table.write_text("\n".join([*lines, "a2.png\ta\t2\tthing-a\ttrain"]) + "\n")
    assert take(store, f"@{table}").frames == 1
    assert [s.frames for s in ledger(store)] == [3, 3]


@pytest.mark.parametrize("way", ["folder", "table"])
def test_a_pipe_among_pictures_is_not_waited_for(tmp_path: Path, way: str) -> None:
    for n in range(12):
        photograph(tmp_path / "media" / f"{n:04}.jpg", seed=n)
    (tmp_path / "media" / "0005.jpg").unlink()
    os.mkfifo(tmp_path / "media" / "0005.jpg")
    table = "".join(f"media/{n:04}.jpg\ts\t{n}\n" for n in range(12))
    (tmp_path / "t.tsv").write_text(f"path\tsequence\torder\n{table}")
    what = tmp_path / "media" if way == "folder" else f"@{tmp_path}/t.tsv"
    done = subprocess.run(
        [sys.executable, "-m", "cld_stream", "ingest", str(what), "--store", str(tmp_path / "store"), "--json"],
        capture_output=True, timeout=60, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["frames"] == 11
    assert b"pipe" in done.stdout


def test_stopping_commits_and_the_next_run_goes_on(tmp_path: Path, store: Path) -> None:
    media = tmp_path / "media"
    film(media / "long.mkv", seconds=30)
    settings = replace(SETTINGS, ingest=replace(SETTINGS.ingest, fps=10.0, commit_s=0.001))
    report = take(store, media, settings=settings, stop=lambda: _committed(store) > 0)
    assert report.stopped
    assert 300 > len(rows(store)) == report.frames > 0
    take(store, media, settings=settings)
    take(tmp_path / "whole", media, settings=settings)
    assert rows(store) == rows(tmp_path / "whole")


def test_a_killed_run_leaves_no_trace(tmp_path: Path, store: Path) -> None:
    media = tmp_path / "media"
    for i in range(3):
        film(media / f"clip{i}.mkv", seconds=15, seed=i)
    command = [sys.executable, "-m", "cld_stream", "ingest", str(media), "--store", str(store), "--size", "32"]
    command += ["--set", "store.shard_frames=64", "--set", "ingest.commit_s=0.02", "--workers", "1", "--fps", "10"]
    for frames in (1, 200):
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while child.poll() is None and _committed(store) < frames:
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
        child.wait()
    killed_at = len(rows(store))
    settings = replace(SETTINGS, ingest=replace(SETTINGS.ingest, fps=10.0))
    take(store, media, settings=settings)
    take(tmp_path / "whole", media, settings=settings)
    assert 0 < killed_at <= len(rows(store))
    assert rows(store) == rows(tmp_path / "whole")
    assert [(s.path, s.outcome, s.frames) for s in ledger(store)] == [
        (s.path, s.outcome, s.frames) for s in ledger(tmp_path / "whole")
    ]


def _committed(store: Path) -> int:
    try:
        with Store.open(store) as opened:
            return opened.catalog.next_id()
    except StoreNotFoundError:
        return 0


def test_forgetting_removes_the_frames_and_the_source(media: Path, store: Path) -> None:
    take(store, media)
    gone = forget(store, "a.mp4")
    assert (Path(gone.path).name, gone.frames) == ("a.mp4", 7)
    assert len(rows(store)) == 6
    assert "a.mp4" not in outcomes(store)
    with pytest.raises(StoreNotFoundError):
        forget(store, "a.mp4")


def test_a_source_to_forget_may_be_named_from_here(
    media: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(media, tmp_path / "other")
    (tmp_path / "other" / "a.mp4").write_bytes((media / "a.mp4").read_bytes() + b"more")
    take(store, media, tmp_path / "other")
    monkeypatch.chdir(media)
    with pytest.raises(StoreNotFoundError, match="no source ''"):
        forget(store, "")
    assert forget(store, "./c.jpg").path == str(media / "c.jpg")
    assert forget(store, "../other/a.mp4").path == str(tmp_path / "other" / "a.mp4")
    assert forget(store, "a.mp4").path == str(media / "a.mp4")


def test_a_full_disk_is_named_and_other_errors_are_left_alone() -> None:
    full = explained(Path("store"), OSError(errno.ENOSPC, "No space left on device"))
    assert "the disk is full. What was committed is safe" in str(full)
    other = OSError(errno.EIO, "Input/output error")
    assert explained(Path("store"), other) is other


def test_unreadable_members_and_files_do_not_stop_a_run(media: Path, store: Path) -> None:
    Image.new("RGB", (4, 4)).save(media / "last.png")
    (media / "dangling.mp4").symlink_to(media / "nowhere")
    report = take(store, media)
    assert [f.reason for f in report.files if "dangling" in f.path] == ["a link that leads nowhere"]
    assert outcomes(store)["last.png"] == "ADDED"


@pytest.mark.parametrize("moment", ["looked at", "read"])
def test_files_that_vanish_during_a_run_are_told_and_harm_no_other(
    moment: str, media: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = [media / "a.mp4", media / "c.jpg"]
    module, name = (pipeline, "discover") if moment == "looked at" else (Run, "_job")
    before = getattr(module, name)

    def then_they_vanish(*args: Any) -> Any:
        found = before(*args)
        for path in gone:
            path.unlink(missing_ok=True)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(module, name, then_they_vanish)
        report = take(store, media)
    told = {Path(f.path): (f.outcome, f.reason) for f in report.files}
    assert [told[path] for path in gone] == [("MISSING", "the file vanished before it was read (was UNFINISHED)")] * 2
    assert (report.frames, outcomes(store)["b.mkv"]) == (5, "ADDED")
    assert take(store, media).changed == 0
    film(gone[0], seconds=3)
    assert (take(store, media).frames, outcomes(store)["a.mp4"]) == (7, "ADDED")
