"""Changed bytes, a catalog that others keep, a clock that jumps back."""

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

import cld_stream
from cld_stream.config import OpsSettings, PublishSettings, load_settings
from cld_stream.errors import CldError, CorruptError, StoreBusyError, UsageError
from cld_stream.pipelines import patience
from cld_stream.pipelines.doctor import doctor
from cld_stream.pipelines.evaluate import evaluate
from cld_stream.pipelines.forget import forget
from cld_stream.pipelines.life import Life
from cld_stream.pipelines.publish import publish
from cld_stream.pipelines.query import query
from cld_stream.pipelines.train import train, train_settings
from cld_stream.pipelines.tune_slice import take_slice
from cld_stream.storage import database
from cld_stream.storage.check import check
from cld_stream.storage.checkpoints import list_checkpoints, load_checkpoint, pinned_checkpoint
from cld_stream.storage.store import Store
from tests.faults.faulty import ROOT, flip, holding_the_catalog, shifted_clock
from tests.pipelines.footage import film, photograph
from tests.pipelines.published import ENCODER, Published, published, weights
from tests.pipelines.test_train import SMALL, grow
from tests.pipelines.watching import QUICK, Watching


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Published]:
    one = published(tmp_path / "store")  # 36 frames in shards of 16: two sealed, four in the tail
    yield one
    one.store.close()


def broken(path: Path) -> str:
    return " ".join(c.detail for c in doctor(path).checks if c.state == "broken")


@pytest.mark.parametrize(("at", "what"), [(0.1, "frame 1 "), (0.999, "the index")])
def test_a_damaged_shard_is_named_and_all_else_goes_on(
    made: Published, caplog: pytest.LogCaptureFixture, at: float, what: str
) -> None:
    path, whole = made.store.path, at > 0.9
    flip(path / "frames" / "c" / "0", at)
    assert "frames/c/0" in broken(path)
    assert "It holds frames of 1 /media/day0/clip0.mp4, 2 /media/day1/clip1.mp4." in broken(path)
    with made.store.reader(1) as reader:
        with pytest.raises(CorruptError):
            reader.read(range(16))
        assert reader.read(range(16, 36))[1].all()
    again = publish(made.store, ENCODER, weights(1), step=8, settings=PublishSettings(groups=4))
    assert again is not None
    lost = set(range(36)) - set(again.ids.tolist())
    assert lost == set(range(16)) if whole else 0 < len(lost) < 3
    assert len([r for r in caplog.records if "pictures are damaged" in r.message]) == 1
    hits = query(path, frame=20, k=36, snapshot=again.id).hits
    assert {hit.frame for hit in hits} == set(range(36)) - lost
    query(path, frame=min(lost), k=3, snapshot=made.snapshot.id, sheet=path.parent / "sheet.png")
    report = forget(path, "clip0.mp4")  # and what is damaged can be forgotten
    assert report.frames == 12
    with Store.open(path) as store:
        assert store.catalog.frame_count() == 24


@pytest.mark.parametrize(
    "damage",
    ["UPDATE tail SET jpeg = CAST(substr(jpeg, 1, length(jpeg) - 3) || x'00FFD9' AS BLOB) WHERE id = 34",
     "UPDATE frames SET time_s = time_s + 1 WHERE id = 34",
     "UPDATE frames SET shot = 1.5 WHERE id = 34",
     "UPDATE tail SET jpeg = 'text' WHERE id = 34",
     "DELETE FROM tail WHERE id = 34"],
)  # fmt: skip
def test_a_damaged_frame_of_the_tail_is_named_with_its_source(made: Published, damage: str) -> None:
    """SQLite's own check looks at pages, not at what is in them."""
    path = made.store.path
    assert not broken(path)
    made.store.close()
    with closing(sqlite3.connect(path / "catalog.db")) as catalog, catalog:
        assert catalog.execute(damage).rowcount == 1
    assert "frames whose picture or row is damaged: 34, of 3 /media/day0/clip2.mp4." in broken(path)


def test_training_passes_damaged_frames_over_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = load_settings(overrides=[*SMALL, "store.shard_frames=16"])
    grow(tmp_path, 60, settings)
    flip(tmp_path / "frames" / "c" / "1", 0.999)
    report = train(tmp_path, settings, until_caught_up=True)
    assert (report.lag, report.steps > 0) == (0, True)
    assert len([r for r in caplog.records if "damaged frames are passed over" in r.message]) == 1


def test_settings_are_kept_by_the_checkpoint_that_training_goes_on_from(tmp_path: Path) -> None:
    """Not by a damaged newest one."""
    settings = load_settings(overrides=SMALL)
    grow(tmp_path, 40, settings)
    for steps in (2, 2):
        train(tmp_path, settings, recipe="stream", steps=steps)
    meta = tmp_path / "checkpoints" / f"{4:012d}" / "meta.json"
    meta.write_text(meta.read_text().replace('"head"', '"hefd"').replace('"width": 0.125', '"width": 0.625'))
    kept = train_settings("cpu", overrides=["train.threads=1"], store_path=tmp_path)
    assert (kept.encoder.head, kept.encoder.width) == ("linear", 0.125)


def test_the_many_sources_of_a_damaged_shard_are_named_by_id(tmp_path: Path) -> None:
    settings = load_settings(overrides=[*SMALL, "store.shard_frames=16"])
    for _ in range(8):
        source = grow(tmp_path, 2, settings)
    forget(tmp_path, "3")
    for _ in range(2):
        source = grow(tmp_path, 1, settings)
    flip(tmp_path / "frames" / "c" / "0", 0.999)
    assert source == 10
    assert "frames of 1 /v0, 2 /v2, 4 /v6, 5 /v8, 6 /v10 and others; all by id: 1-2, 4-8." in broken(tmp_path)


def test_a_shard_that_is_damaged_after_a_snapshot_stops_no_publication(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lenient = ("guard.warn=0.03", "guard.hold=0.02", "guard.rollback=0.01")  # noise is hard to tell apart
    settings = load_settings(overrides=[*SMALL, *lenient, "store.shard_frames=16"])
    grow(tmp_path, 60, settings)
    first = train(tmp_path, settings, until_caught_up=True).snapshot
    flip(tmp_path / "frames" / "c" / "1", 0.999)
    grow(tmp_path, 20, settings)
    second = train(tmp_path, settings, until_caught_up=True).snapshot
    assert second != first
    assert "failed" not in caplog.text
    assert "left the buffer: their pictures are gone or damaged" in caplog.text
    assert "forgotten" not in caplog.text
    assert len([r for r in caplog.records if "frames/c/1" in r.message]) == 2, "one line of training, one of publishing"


def test_a_damaged_shard_is_left_out_of_evaluation_and_said_in_one_line(made: Published) -> None:
    whole = evaluate(made.store.path)
    flip(made.store.path / "frames" / "c" / "0", 0.999)
    flip(made.store.path / "frames" / "c" / "1", 0.999)
    report = evaluate(made.store.path)
    asked = {number.name: number.n for number in report.numbers}
    assert asked == {number.name: number.n for number in whole.numbers} | {"alignment": 4}
    (note,) = set(report.notes) - set(whole.notes)
    assert "frames/c/" in note
    assert note.endswith("And 1 more.")


def test_a_damaged_shard_is_left_out_of_tuning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = load_settings(overrides=[*SMALL, "store.shard_frames=16"])
    grow(tmp_path, 160, settings)
    flip(tmp_path / "frames" / "c" / "1", 0.999)
    with Store.open(tmp_path) as store:
        assert take_slice(store, 160, "cpu").ids.tolist() == [n for n in range(160) if n // 16 != 1]
        flip(tmp_path / "frames" / "c" / "2", 0.999)
        flip(tmp_path / "frames" / "c" / "3", 0.999)
        with pytest.raises(UsageError, match="at least 128 frames, there are 112"):
            take_slice(store, 160, "cpu")
    assert len([r for r in caplog.records if "damaged frames are left out" in r.message]) == 4


def test_a_damaged_frame_is_an_error_from_python_and_the_others_are_given(made: Published) -> None:
    flip(made.store.path / "frames" / "c" / "0", 0.999)
    with cld_stream.open(made.store.path) as opened:
        assert len(opened.frames[[20, 35]]) == 2
        for read in (opened.frames.__getitem__, opened.frames.picture):
            with pytest.raises(CorruptError, match="frames/c/0"):
                read(3)


def test_a_damaged_array_header_is_read_around_and_mended(made: Published) -> None:
    path = made.store.path
    (path / "frames" / "zarr.json").write_bytes(b"\0" * 300)
    assert "zarr.json" in broken(path)
    with Store.open(path) as store, store.reader(1) as reader:
        assert reader.read(range(36))[1].all()
        with store.writer():
            pass
    assert not broken(path)


def test_a_damaged_sidecar_is_named_and_made_anew_when_frames_leave(made: Published) -> None:
    path = made.store.path
    flip(path / "sidecars" / "0.npz", 0.3, 8)
    assert "0.npz" in broken(path)
    forget(path, "clip0.mp4")
    assert not broken(path)


@pytest.mark.parametrize("name", ["manifest.json", "groups.safetensors", "segments/*/instance/c/0/0"])
def test_a_damaged_snapshot_is_named_and_queries_fall_back(
    made: Published, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    path = made.store.path
    second = publish(made.store, ENCODER, weights(1), step=8, settings=PublishSettings(groups=4))
    assert second is not None
    flip(next(second.path.glob(name)), 0.0)
    assert second.id in broken(path)
    if name == "groups.safetensors":
        return  # a query does not need it
    answer = query(path, frame=3, k=5)
    assert answer.snapshot == made.snapshot.id
    warnings = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert len(warnings) == 1
    assert second.id in warnings[0]
    assert made.snapshot.id in warnings[0]
    with pytest.raises(CorruptError):
        query(path, frame=3, k=5, snapshot=second.id)


@pytest.mark.parametrize("guard", ["false", "true"])
def test_a_damaged_snapshot_does_not_stop_training_publishing_or_forgetting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, guard: str
) -> None:
    settings = load_settings(overrides=[*SMALL, "train.extend_s=0.05", f"guard.enabled={guard}"])
    source = grow(tmp_path, 40, settings)
    first = train(tmp_path, settings, until_caught_up=True).snapshot
    flip(next(tmp_path.glob("snapshots/*/weights.safetensors")))
    for file in tmp_path.glob("snapshots/*/segments/*/*/c/0*"):
        flip(file / "0" if file.is_dir() else file, 0.0)
    grow(tmp_path, 20, settings)
    second = train(tmp_path, settings, until_caught_up=True).snapshot
    assert second != first
    assert len([r for r in caplog.records if "giving features" in r.message and r.levelname == "ERROR"]) == 1
    assert forget(tmp_path, str(source)).frames == 40
    assert any("too damaged" in r.message for r in caplog.records)
    with Store.open(tmp_path) as store:
        assert [row.id for row in store.catalog.snapshots()] == [second]


@pytest.mark.parametrize("what", ["manifest", "all"])
def test_where_no_snapshot_is_whole_the_next_one_is_published_all_the_same(tmp_path: Path, what: str) -> None:
    settings = load_settings(overrides=SMALL)
    grow(tmp_path, 60, settings)
    first = train(tmp_path, settings, until_caught_up=True).snapshot
    assert first is not None
    if what == "all":
        shutil.rmtree(tmp_path / "snapshots" / first)
    else:
        flip(tmp_path / "snapshots" / first / "manifest.json", 0.0)
    assert train(tmp_path, settings, steps=2).snapshot != first
    assert query(tmp_path, frame=3, k=5).snapshot != first
    pinned = load_checkpoint(tmp_path, pinned_checkpoint(tmp_path))
    assert pinned.step == list_checkpoints(tmp_path)[-1]


def test_training_goes_on_from_the_last_whole_checkpoint_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = load_settings(overrides=SMALL)
    grow(tmp_path, 60, settings)
    train(tmp_path, settings, steps=3)
    train(tmp_path, settings, steps=3)
    newest = list_checkpoints(tmp_path)[-1]
    state = tmp_path / "checkpoints" / f"{newest:012d}" / "state.safetensors"
    os.truncate(state, state.stat().st_size // 2)
    assert f"{newest:012d}" in broken(tmp_path)
    report = train(tmp_path, settings, steps=2)
    assert report.step == 5
    assert any("Going on from step 3" in r.message for r in caplog.records)


def test_when_no_checkpoint_is_whole_it_is_said_how_to_train_anew(tmp_path: Path) -> None:
    settings = load_settings(overrides=SMALL)
    grow(tmp_path, 60, settings)
    train(tmp_path, settings, steps=2)
    for step in list_checkpoints(tmp_path):
        flip(tmp_path / "checkpoints" / f"{step:012d}" / "state.safetensors")
    with pytest.raises(CorruptError) as told:
        train(tmp_path, settings, steps=1)
    (command,) = re.findall(r"move them away: (mv .+)$", str(told.value))
    assert command in broken(tmp_path)
    subprocess.run(command, shell=True, check=True)
    assert train(tmp_path, settings, steps=1).step == 1
    assert not broken(tmp_path)


def test_no_changed_page_of_a_catalog_is_a_traceback(made: Published) -> None:
    path, rng = made.store.path, np.random.default_rng(0)
    made.store.close()
    told = 0
    for n in range(24):
        copy = path.with_name("copy")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(path, copy)
        flip(copy / "catalog.db", float(rng.uniform(0, 1)) if n else 0.0, 200)
        try:
            query(copy, frame=int(rng.integers(36)), k=5, sheet=copy / "sheet.png")
            with Store.open(copy) as store:
                store.catalog.totals()
                store.catalog.sources()
        except (CldError, OSError) as error:  # what the command line says in a line; anything else fails here
            told += "doctor" in str(error)
    assert told > 2


def test_a_row_that_makes_no_sense_is_a_damaged_catalog(made: Published) -> None:
    with sqlite3.connect(made.store.path / "catalog.db") as raw:
        raw.execute("UPDATE snapshots SET info = '.('")
    raw.close()
    with pytest.raises(CorruptError, match="doctor --rebuild-catalog"):
        query(made.store.path, frame=3)


def test_a_catalog_that_others_keep_is_a_line_and_holds_no_trainer_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(database, "_BUSY_S", 0.2)
    settings = load_settings(overrides=[*SMALL, "guard.enabled=false"])
    grow(tmp_path, 60, settings)
    train(tmp_path, settings, steps=2)
    with holding_the_catalog(tmp_path):
        store = Store.open(tmp_path)
        with pytest.raises(StoreBusyError, match="one that hangs must be killed"), store.catalog.writing():
            pass
        store.close()
        with pytest.raises(StoreBusyError):  # of the publication behind the last step
            train(tmp_path, settings, steps=6)
        assert load_checkpoint(tmp_path).step == 8
        assert "publishing failed" in caplog.text
        assert "sign of life" not in caplog.text
    assert train(tmp_path, settings, steps=1).snapshot is not None


def test_a_watch_waits_for_a_catalog_that_others_keep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_BUSY_S", 0.2)
    monkeypatch.setattr(patience, "_RETRY_S", 0.2)
    photograph(tmp_path / "media" / "a.png")
    with Watching(tmp_path / "store", tmp_path / "media") as w:
        w.until_taken("a.png")
        with holding_the_catalog(tmp_path / "store"):
            photograph(tmp_path / "media" / "b.png", seed=1)
            w.until(lambda: [e for e in w.events if e.event == "store"])
        w.until_taken("b.png")
    assert [e.state for e in w.events if e.event == "store"] == ["waiting", "well"]
    assert QUICK.ingest.workers == 1


def test_a_clock_that_jumps_back_changes_no_order(tmp_path: Path) -> None:
    """Training in the present, then in a process for which it is two years ago: the later snapshot is the latest."""
    (tmp_path / "shift").write_text("-730d")
    clock = shifted_clock(tmp_path / "shift")
    tmp_path = tmp_path / "store"
    settings = load_settings(overrides=SMALL)
    grow(tmp_path, 40, settings)
    first = train(tmp_path, settings, recipe="stream", until_caught_up=True).snapshot
    grow(tmp_path, 24, settings)
    flags = [word for item in SMALL for word in ("--set", item)]
    ended = subprocess.run(
        [sys.executable, "-m", "cld_stream", "train", "--until-caught-up", "--device", "cpu",
         "--store", str(tmp_path), "--set", "publish.keep=1", *flags],
        cwd=ROOT, env=clock, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    with Store.open(tmp_path) as store:
        rows = store.catalog.snapshots()
        runs = store.catalog.runs("train")
    assert len(rows) == 1, "the older one was pruned, and not the new one"
    assert rows[0].id != first
    assert int(rows[0].id[:4]) <= datetime.now(UTC).year - 1, "its name says what the clock said"
    assert runs[-1].started_utc < runs[0].started_utc, "the clock did jump"
    assert load_checkpoint(tmp_path).meta["feed"]["cursor"] == 64


def test_a_clock_that_jumps_under_a_running_ingest_holds_nothing_up(tmp_path: Path) -> None:
    """Two days back, then five days ahead, while it watches: what comes is taken, in its order."""
    store, media, shift = tmp_path / "store", tmp_path / "media", tmp_path / "shift"
    shift.write_text("+0")
    command = [sys.executable, "-m", "cld_stream", "ingest", "--watch", "--json", "--store", str(store), str(media)]
    flags = ["ingest.workers=1", "ingest.settle_s=0.2", "ingest.poll_s=0.1", "ingest.commit_s=0.1", "store.size=32"]
    photograph(media / "a.png")
    with subprocess.Popen(
        [*command, *(word for flag in flags for word in ("--set", flag))],
        cwd=ROOT, env=shifted_clock(shift), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        said = (json.loads(line) for line in process.stdout)
        taken = [next(event for event in said if event["event"] == "file")]
        for seed, (name, days) in enumerate((("b.png", "-2d"), ("c.mp4", "+3d"), ("d.png", "-400d")), 1):
            shift.write_text(days)
            (photograph if name.endswith("png") else film)(media / f".{name}", seed=seed).rename(media / name)
            taken.append(next(event for event in said if event["event"] == "file"))
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode in (0, 130), errors
    assert "Traceback" not in errors
    assert [(Path(event["path"]).name, event["outcome"]) for event in taken] == [
        ("a.png", "ADDED"), ("b.png", "ADDED"), ("c.mp4", "ADDED"), ("d.png", "ADDED"),
    ]  # fmt: skip
    days = np.round(np.diff([event["utc"] for event in taken]) / 86_400).tolist()
    assert days == [-2, 5, -403], "the clock did jump"
    with Store.open(store) as opened:
        assert [Path(source.path).name for source in opened.catalog.sources()] == ["a.png", "b.png", "c.mp4", "d.png"]
        assert check(opened) == []
        (run,) = opened.catalog.runs("ingest")
    assert run.ended_utc is not None


@pytest.mark.parametrize(("days", "state"), [("-1d", "unsure"), ("+1d", "silent"), ("-20s", "running")])
def test_a_clock_that_jumps_makes_no_hanging_process_a_running_one(
    made: Published, tmp_path: Path, days: str, state: str
) -> None:
    """Its last sign is of no known age, until it gives a new one."""
    (tmp_path / "shift").write_text(days)
    clock = shifted_clock(tmp_path / "shift")
    ask = [sys.executable, "-m", "cld_stream", "status", "--store", str(made.store.path)]
    with made.store.trainer_lock(), Life(made.store, "train", OpsSettings()):  # it hangs
        words, whole = (
            subprocess.run([*ask, *more], cwd=ROOT, env=clock, check=True, capture_output=True, text=True).stdout
            for more in ([], ["--json"])
        )
    assert json.loads(whole)["processes"][0]["state"] == state
    assert ("the clock was set back" in words) == (state == "unsure")


def test_what_a_publisher_left_that_was_killed_before_it_was_done_is_removed(made: Published) -> None:
    left = made.snapshot.path.with_name("20200101-000000-000001")
    shutil.copytree(made.snapshot.path, left)
    publish(made.store, ENCODER, weights(1), step=8, settings=PublishSettings(groups=4))
    assert not left.exists()
    assert made.snapshot.path.exists()
