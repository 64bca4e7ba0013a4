"""A full tmpfs at every place where something is written."""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from cld_stream.config import IngestSettings, OpsSettings, PublishSettings, Settings, load_settings
from cld_stream.errors import StoreFullError, StoreNotFoundError
from cld_stream.pipelines import keeper, patience
from cld_stream.pipelines.extend import Extender
from cld_stream.pipelines.forget import forget
from cld_stream.pipelines.life import Life
from cld_stream.pipelines.migrate import migrate
from cld_stream.pipelines.publish import publish
from cld_stream.pipelines.query import query
from cld_stream.pipelines.retention import Retention
from cld_stream.pipelines.train import TrainProgress, train
from cld_stream.storage import header, migrations
from cld_stream.storage.check import check
from cld_stream.storage.checkpoints import list_checkpoints, load_checkpoint, save_checkpoint
from cld_stream.storage.durable import atomic_write
from cld_stream.storage.lock import FileLock
from cld_stream.storage.rebuild import rebuild_catalog
from cld_stream.storage.store import Store
from tests.faults.faulty import ROOT, Disk, flip, small_disk
from tests.media.rtsp_server import free_port
from tests.pipelines.footage import film, photograph
from tests.pipelines.published import ENCODER, add_video, published, small_store, weights
from tests.pipelines.test_life import get, until
from tests.pipelines.test_train import SMALL, grow, metrics
from tests.pipelines.watching import Watching, ledger
from tests.storage.kill_child import fill as fill_store
from tests.storage.test_migrations import GOLDEN, NOTES

STEPS = range(0, 120_000, 8192)  # bytes left, from none to enough
BUFFERED = os.environ | {"PYTHONUNBUFFERED": ""}  # as it is when nobody says otherwise


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with small_disk(tmp_path / "disk", megabytes=32) as made:
        yield made


def rows(path: Path) -> list[tuple[int, float, bytes]]:
    with Store.open(path) as store, store.reader(1) as reader:
        assert check(store) == []
        frames = store.catalog.rows()
        return list(zip(frames.ids.tolist(), frames.time_s.tolist(), reader.jpegs(frames.ids), strict=True))


def test_adding_frames_fails_in_a_line_wherever_the_space_ends_and_goes_on_once_there_is_some(disk: Disk) -> None:
    fill_store(disk.path / "whole")
    whole, failed = rows(disk.path / "whole"), 0
    for left in STEPS:
        path = disk.path / f"left{left}"
        disk.fill(left)
        try:
            fill_store(path)
        except StoreFullError:
            failed += 1
        finally:
            disk.free()
        assert not list(path.rglob(".*.tmp")), "what a failed write took is given back"
        fill_store(path)
        assert rows(path) == whole
    assert 3 < failed < len(STEPS)


def test_a_checkpoint_for_which_there_is_no_room_leaves_the_others_and_no_rest(disk: Disk) -> None:
    save_checkpoint(disk.path, 1, {"a": np.arange(9000)}, {"feed": 1})
    disk.fill(20_000)
    with pytest.raises(StoreFullError):
        save_checkpoint(disk.path, 2, {"a": np.arange(9000)}, {"feed": 2})
    with pytest.raises(StoreFullError):
        save_checkpoint(disk.path, 1, {"a": np.arange(9000)}, {"feed": 2})
    assert load_checkpoint(disk.path).meta == {"feed": 1}
    assert {p.name for p in (disk.path / "checkpoints").iterdir()} == {f"{1:012d}"}
    disk.free()
    save_checkpoint(disk.path, 2, {"a": np.arange(9000)}, {"feed": 2})
    assert load_checkpoint(disk.path).step == 2


def test_publishing_and_extending_fail_wherever_the_space_ends_and_the_next_time_works(disk: Disk) -> None:
    store, tensors = small_store(disk.path / "store"), weights()
    failed = 0
    for left in STEPS:
        disk.fill(left)
        try:
            publish(store, ENCODER, tensors, step=left, settings=PublishSettings(groups=4, keep=1))
        except StoreFullError:
            failed += 1
        finally:
            disk.free()
        publish(store, ENCODER, tensors, step=left, settings=PublishSettings(groups=4, keep=1))
        add_video(store, f"/more/{left}.mp4", left + 9, frames=2)
        extender = Extender(store)
        disk.fill(left // 4)
        try:
            extender.run()
        except StoreFullError:
            failed += 1
        finally:
            disk.free()
        extender.run()
        assert check(store) == []
        assert sorted(p.name for p in (store.path / "snapshots").iterdir()) == [r.id for r in store.catalog.snapshots()]
    assert failed > 6
    store.close()


def test_a_lock_on_a_full_disk_is_held_and_given_back(disk: Disk) -> None:
    disk.fill()
    for _ in range(3):
        with FileLock(disk.path / "extender.lock", "extender"):
            pass


def test_training_goes_on_over_a_full_disk_and_says_so_once(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keeper, "_RETRY_S", 0.3)
    path = disk.path / "store"
    settings: Settings = load_settings(
        overrides=[
            *SMALL, "train.checkpoint_s=0.3", "train.publish_s=0.3", "train.publish_share=0.9", "guard.enabled=false"
        ]
    )  # fmt: skip
    grow(path, 60, settings)
    before: list[int] = []
    steps: list[int] = []

    def said(*words: str) -> bool:
        return all(any(word in r.message for r in caplog.records) for word in words)

    def watch(p: TrainProgress) -> None:
        if not steps and p.step >= 5 and len(list_checkpoints(path)) > 1:
            disk.fill()
            steps.append(p.step)
            before.extend(list_checkpoints(path))
        elif len(steps) == 1 and said("a checkpoint failed", "publishing failed") and p.step > steps[0] + 5:
            assert list_checkpoints(path) == before
            assert load_checkpoint(path).warning == ""
            disk.free()
            steps.append(p.step)

    def over() -> bool:
        return len(steps) == 2 and said("a checkpoint has worked again", "publishing has worked again")

    train(path, settings, steps=100_000, on_progress=watch, stop=over)
    errors = [r.message for r in caplog.records if r.levelname == "ERROR"]
    assert len(errors) == 2, errors
    assert load_checkpoint(path).step > steps[1]
    lines = metrics(path)  # each is whole
    assert lines[-1]["step"] > steps[1]
    assert events(path)[-1] > steps[1]
    with Store.open(path) as store:
        assert check(store) == []
        assert store.catalog.runs("train")[-1].outcome == "done"


def events(path: Path) -> list[int]:
    """Steps of every curve point that TensorBoard reads."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    files = sorted((path / "logs" / "tensorboard").iterdir())
    return [e.step for file in files for e in EventFileLoader(str(file)).Load() if e.HasField("summary")]


def test_a_trainer_killed_on_a_full_disk_starts_again_on_it(disk: Disk) -> None:
    path = disk.path / "store"
    settings = load_settings(overrides=SMALL)
    grow(path, 60, settings)
    train(path, settings, steps=3)
    disk.fill()
    with pytest.raises(StoreFullError):  # its last checkpoint is what it must not lose in silence
        train(path, settings, steps=2)
    assert load_checkpoint(path).step == 3
    disk.free()
    assert train(path, settings, steps=2).step == 5


def test_a_limit_on_files_is_a_full_disk(tmp_path: Path) -> None:
    """As `ulimit -f` sets it, with the error of its own that a quota has, too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(StoreFullError, match="Free some space"):
            atomic_write(tmp_path / "file", [bytes(8192)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_a_trainer_that_ends_without_its_publication_says_so(disk: Disk) -> None:
    path = disk.path / "store"
    settings = load_settings(overrides=SMALL)
    grow(path, 60, settings)

    def stop() -> bool:
        if 3 in list_checkpoints(path):  # the last one is saved; what comes is the publication
            disk.fill()
        return False

    with pytest.raises(StoreFullError):
        train(path, settings, steps=3, stop=stop)
    assert load_checkpoint(path).step == 3
    disk.free()
    assert train(path, settings, until_caught_up=True).snapshot is not None


def test_a_watch_waits_for_space_and_takes_everything_then(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "_RETRY_S", 0.2)
    media, store = tmp_path / "media", disk.path / "store"
    film(media / "first.mp4", seconds=3)
    with Watching(store, media) as w:
        w.until_taken("first.mp4")
        disk.fill()
        for n in range(40):
            photograph(media / f"p{n}.png", seed=n)
        w.until(lambda: [e for e in w.events if e.event == "store"])
        w.until(lambda: True)
        disk.free()
        w.until_taken(*(f"p{n}.png" for n in range(40)))
    assert [e.state for e in w.events if e.event == "store"] == ["waiting", "well"]
    assert all(row.frames == 1 for name, row in ledger(store).items() if name != "first.mp4")
    rows(store)


def test_a_watch_that_starts_on_a_full_disk_says_so_once(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(patience, "_RETRY_S", 0.2)
    small_store(disk.path / "store").close()
    photograph(tmp_path / "media" / "a.png")
    disk.fill()
    with Watching(disk.path / "store", tmp_path / "media") as w:
        w.until(lambda: [e for e in w.events if e.event == "store"])
        disk.free()
        w.until_taken("a.png")
    assert [e.state for e in w.events if e.event == "store"] == ["waiting", "well"]
    assert [r.message for r in caplog.records if r.levelname == "WARNING"] == []


def test_a_watch_that_holds_says_so_and_ends_when_it_is_told_to(disk: Disk, tmp_path: Path) -> None:
    media, store, port = tmp_path / "media", disk.path / "store", free_port()
    photograph(media / "first.png")

    def does(state: str) -> bool:
        with suppress(OSError):
            return bool(json.loads(get(port, "/healthz")[1])["state"] == state)
        return False

    command = [sys.executable, "-m", "cld_stream", "ingest", "--watch", str(media), "--store", str(store), "-q"]
    with subprocess.Popen([*command, "--port", str(port)], cwd=ROOT, stderr=subprocess.PIPE, text=True) as child:
        try:
            until(lambda: does("watching") and "first.png" in ledger(store))
            disk.fill()
            for n in range(40):
                photograph(media / f"p{n}.png", seed=n)
            until(lambda: does("holding"))
            child.terminate()
            _, said = child.communicate(timeout=60)
        finally:
            child.kill()
    assert child.returncode == 1
    assert "the disk is full" in said.splitlines()[-1]
    disk.free()
    rows(store)


def test_an_ingest_on_a_full_disk_is_one_line_and_the_same_command_goes_on(disk: Disk, tmp_path: Path) -> None:
    for n in range(200):
        photograph(tmp_path / "media" / f"p{n}.png", seed=n)
    command = [sys.executable, "-m", "cld_stream", "ingest", str(tmp_path / "media"), "-q", "--json", "--store"]
    disk.fill(300_000)
    ended = subprocess.run([*command, str(disk.path / "store")], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 1
    assert len(ended.stderr.strip().splitlines()) == 1, ended.stderr
    assert "the disk is full" in ended.stderr
    disk.free()
    again = subprocess.run([*command, str(disk.path / "store")], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert again.returncode == 0, again.stderr
    subprocess.run([*command, str(tmp_path / "whole")], cwd=ROOT, check=True, capture_output=True, timeout=100)
    assert rows(disk.path / "store") == rows(tmp_path / "whole")
    assert json.loads(again.stdout)["stopped"] is False


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("answers", [[], ["--json"]])
def test_a_watch_whose_words_find_no_room_goes_on(tmp_path: Path, answers: list[str]) -> None:
    """`nohup ... 2>>log`, on the disk that is full, and a folder that comes and goes, so that there is much to say."""
    media, store = tmp_path / "media", tmp_path / "store"
    photograph(media / "a.png")
    command = [sys.executable, "-m", "cld_stream", "ingest", "--watch", *answers, "--store", str(store)]
    flags = ["ingest.workers=1", "ingest.settle_s=0.2", "ingest.poll_s=0.1", "ingest.commit_s=0.1"]
    with Path("/dev/full").open("w") as full, subprocess.Popen(
        [*command, str(media), *(word for flag in flags for word in ("--set", flag))],
        cwd=ROOT, env=BUFFERED, stdout=full if answers else subprocess.DEVNULL, stderr=full,
    ) as process:  # fmt: skip
        try:
            until(lambda: (store / "store.json").exists() and "a.png" in ledger(store), 20)
            media.rename(tmp_path / "away")
            time.sleep(2)  # it says so
            (tmp_path / "away").rename(media)
            photograph(media / "b.png", seed=1)
            until(lambda: process.poll() is not None or "b.png" in ledger(store))
            assert process.poll() is None
            process.terminate()
            assert process.wait(60) == (1 if answers else 0), "an answer that is lost is a failure; words are not"
        finally:
            process.kill()
    with Store.open(store) as opened:
        assert opened.catalog.runs("ingest")[-1].outcome == "done"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_trainer_whose_words_find_no_room_goes_on(tmp_path: Path) -> None:
    grow(tmp_path, 60, load_settings(overrides=SMALL))
    command = [sys.executable, "-m", "cld_stream", "train", "--steps", "6", "--device", "cpu", "--store", str(tmp_path)]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [*command, *(word for item in SMALL for word in ("--set", item))], cwd=ROOT, stderr=full, timeout=100
        )
    assert ended.returncode == 0
    assert load_checkpoint(tmp_path).step == 6


def test_an_answer_that_finds_no_room_is_one_line(tmp_path: Path) -> None:
    small_store(tmp_path / "store").close()
    command = [sys.executable, "-m", "cld_stream", "status", "--store", str(tmp_path / "store")]
    for more in ([], ["--json"]):
        with Path("/dev/full").open("w") as full:
            ended = subprocess.run(
                [*command, *more], cwd=ROOT, env=BUFFERED, stdout=full, stderr=subprocess.PIPE, text=True, timeout=100
            )
        assert ended.returncode == 1
        assert len(ended.stderr.splitlines()) == 1, ended.stderr
        assert ended.stderr.startswith("stdout: No space left")


@pytest.fixture
def nobody_reads() -> Iterator[int]:
    """A pipe to write to whose reader has gone."""
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_answer_whose_reader_has_gone_ends_quietly(whole: Path, nobody_reads: int, unbuffered: str) -> None:
    """As `| head` does: a line, a table, JSON, help."""
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered, "CLD_STREAM_STORE": str(whole)}
    for words in ("--version", "--help", "status", "snapshots", "query --frame 0 -k 30 --json"):
        command = [sys.executable, "-m", "cld_stream", *words.split()]
        ended = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=nobody_reads, stderr=subprocess.PIPE, text=True, timeout=100
        )
        assert (ended.returncode, ended.stderr) == (0, ""), words


def test_a_watch_whose_reader_has_gone_goes_on_and_says_so_once(tmp_path: Path, nobody_reads: int) -> None:
    media, store = tmp_path / "media", tmp_path / "store"
    photograph(media / "a.png")
    command = [sys.executable, "-m", "cld_stream", "-q", "ingest", "--watch", "--json", "--store", str(store)]
    flags = ["ingest.workers=1", "ingest.settle_s=0.2", "ingest.poll_s=0.1", "ingest.commit_s=0.1"]
    with subprocess.Popen(
        [*command, str(media), *(word for flag in flags for word in ("--set", flag))],
        cwd=ROOT, stdout=nobody_reads, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            until(lambda: (store / "store.json").exists() and "a.png" in ledger(store))
            photograph(media / "b.png", seed=1)
            until(lambda: process.poll() is not None or "b.png" in ledger(store))
            assert process.poll() is None
            process.terminate()
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0, said
    (line,) = said.splitlines()
    assert line.endswith("the reader of stdout has gone: it goes on, and its lines are lost")


def test_a_full_disk_answers_queries(disk: Disk) -> None:
    with small_store(disk.path / "store") as store:
        publish(store, ENCODER, weights(), step=1, settings=PublishSettings(groups=4))
    disk.fill()
    assert len(query(disk.path / "store", frame=0, k=3).hits) == 3


def unfinished(path: Path) -> list[str]:
    return [file.name for file in path.rglob(".*.tmp*")]


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """36 frames of three sources in two shards and a tail; a snapshot; nothing in the catalog's log."""
    made = published(tmp_path / "whole")
    made.store.close()
    return made.store.path


def test_forgetting_fails_wherever_the_space_ends_and_is_completed_by_the_next_writer(disk: Disk, whole: Path) -> None:
    failed = 0
    for left in STEPS:
        path = shutil.copytree(whole, disk.path / "store")
        disk.fill(left)
        try:
            forget(path, "clip1.mp4")
        except StoreFullError:
            failed += 1
        finally:
            disk.free()
        assert unfinished(path) == []
        with suppress(StoreNotFoundError):  # the writer has completed it
            forget(path, "clip1.mp4")
        with Store.open(path) as store:
            assert check(store) == []
            assert [source.id for source in store.catalog.sources()] == [1, 3]
            assert store.catalog.frame_count() == 24
        assert b"clip1" not in (path / "catalog.db").read_bytes()
        shutil.rmtree(path)
    assert 3 < failed < len(STEPS)


def test_dropping_the_oldest_frames_fails_wherever_the_space_ends_and_the_next_time_works(
    disk: Disk, whole: Path
) -> None:
    failed = 0
    for left in range(0, 80_000, 4096):
        path = shutil.copytree(whole, disk.path / "store")
        with Store.open(path) as store, store.writer() as writer:
            retention = Retention(store, writer, IngestSettings(max_frames=20))
            disk.fill(left)
            try:
                retention.enforce()
            except StoreFullError:
                failed += 1
            finally:
                disk.free()
            assert unfinished(path) == []
            retention.enforce()
            assert store.catalog.frame_count() == 18
            assert check(store) == []
        with Store.open(path) as store, store.writer():
            assert store.catalog.live_ids().tolist() == list(range(18, 36))
            assert check(store) == []
        shutil.rmtree(path)
    assert 1 < failed < 15


def test_rebuilding_fails_wherever_the_space_ends_and_leaves_what_was_there(disk: Disk, whole: Path) -> None:
    failed = 0
    for left in range(0, 160_000, 4096):
        path = shutil.copytree(whole, disk.path / "store")
        flip(path / "catalog.db", 0.0, 100)
        before = (path / "catalog.db").read_bytes()
        disk.fill(left)
        try:
            rebuild_catalog(path)
        except StoreFullError:
            failed += 1
            assert (path / "catalog.db").read_bytes() == before
            assert unfinished(path) == []
            disk.free()
            rebuild_catalog(path)
        finally:
            disk.free()
        with Store.open(path) as store:
            assert check(store) == []
            assert store.catalog.frame_count() >= 32
            assert len(store.catalog.snapshots()) == 1
        shutil.rmtree(path)
    assert 3 < failed < 40


def test_migrating_fails_wherever_the_space_ends_and_the_next_time_works(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(header, "VERSION", 2)
    monkeypatch.setattr(migrations, "STEPS", NOTES)
    monkeypatch.setattr("cld_stream.pipelines.migrate.migrate_store", partial(migrations.migrate_store, steps=NOTES))
    monkeypatch.setattr("cld_stream.pipelines.migrate.pending_steps", partial(migrations.pending_steps, steps=NOTES))
    failed = 0
    for left in STEPS:
        path = shutil.copytree(GOLDEN / "store", disk.path / "store")
        disk.fill(left)
        try:
            migrate(path)
        except StoreFullError:
            failed += 1
            disk.free()
            assert unfinished(path) == []
            migrate(path)
        finally:
            disk.free()
        assert header.read_header(path).version == 2
        with Store.open(path) as store:
            assert check(store) == []
        shutil.rmtree(path)
    assert 3 < failed < len(STEPS)


def test_signs_of_life_on_a_full_disk_are_missed_in_one_line_and_come_back(
    disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    with small_store(disk.path / "store") as store, store.trainer_lock(), Life(store, "train", OpsSettings()) as life:
        disk.fill()
        for _ in range(3):
            life.beat("training", lambda: {"words": "x" * 2_000_000}, now=True)
        assert store.catalog.runs()[-1].info == {}
        disk.free()
        life.beat("training", lambda: {"step": 7}, now=True)
        assert store.catalog.runs()[-1].info == {"state": "training", "step": 7}
    assert len([r for r in caplog.records if "no sign of life" in r.message]) == 1
