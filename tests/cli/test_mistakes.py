"""Mistakes people make: each gives one clear line and the right exit code, never a traceback."""

import contextlib
import fcntl
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cld_stream.cli.output import console, fail
from cld_stream.cli.tables import print_table
from cld_stream.errors import StoreNotFoundError
from tests.cli.conftest import Cli
from tests.faults.faulty import bound_by_modes


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a picture, a broken picture, and a store that holds both; made once."""
    from cld_stream.config import Settings
    from cld_stream.pipelines.ingest import ingest

    home = tmp_path_factory.mktemp("mistakes")
    (home / "media").mkdir()
    rng = np.random.default_rng(0)
    for n in range(2):
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8)).save(home / "media" / f"photo{n}.png")
    (home / "media" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(300))
    ingest(home / "store", [str(home / "media")], Settings())
    return home


@pytest.fixture
def home(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the shared folder that a test may spoil, as the current folder."""
    copy = tmp_path / "home"
    shutil.copytree(shared, copy)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("CLD_STREAM_STORE", str(copy / "store"))
    return copy


# name: (arguments, exit code, words that the message must hold)
MISTAKES: dict[str, tuple[str, int, tuple[str, ...]]] = {
    "unknown command": ("ingst media", 2, ("ingst",)),
    "unknown option": ("ingest media --fsp 2", 2, ("--fsp",)),
    "no path": ("ingest", 2, ("PATH",)),
    "absent path": ("ingest nowhere", 2, ("nowhere",)),
    "an address that is no camera's": ("ingest http://me:cat@cam/mjpg", 2, ("http://cam/mjpg: cameras are",)),
    "a camera without a host": ("ingest rtsp://", 2, ("rtsp://: no host",)),
    "a camera's user that is not set": ("ingest 'rtsp://$NO_USER:b@127.0.0.1:1/s'", 2, ("$NO_USER", "no such")),
    "a camera's password that is not set": ("ingest 'rtsp://a:${NO_PASS}@127.0.0.1:1/s'", 2, ("$NO_PASS", "Set it")),
    "absent list": ("ingest @nowhere.txt", 2, ("nowhere.txt",)),
    "table without a header": ("ingest @bad.tsv", 2, ("bad.tsv", "path")),
    "zero frames a second": ("ingest media --fps 0", 2, ("fps", "greater than 0")),
    "unknown reader": ("ingest media --reader opencv", 2, ("reader", "decord")),
    "unknown fit": ("ingest media --store new --fit squeeze", 2, ("fit", "stretch")),
    "unknown order": ("ingest media --order random", 2, ("order", "path")),
    "another size than the store's": ("ingest media --size 96", 2, ("size", "160", "96")),
    "unknown setting": ("ingest media --set ingest.fsp=2", 2, ("ingest.fps",)),
    "setting of the wrong type": ("train --set optim.lr=fast", 2, ("optim.lr", "number")),
    "absent settings file": ("train --config nowhere.toml", 2, ("nowhere.toml",)),
    "settings that are not TOML": ("train --config bad.tsv", 2, ("bad.tsv", "TOML")),
    "train without a store": ("train --store nowhere", 2, ("nowhere", "ingest")),
    "device that is not there": ("train --device cuda:7", 2, ("cuda:7", "cpu")),
    "device that makes no sense": ("train --device tpu", 2, ("tpu", "cuda")),
    "unknown backbone": ("train --set encoder.backbone=resnet19 --steps 1", 2, ("resnet19", "resnet18")),
    "absent weights": ("train --init nowhere.safetensors --steps 1", 2, ("nowhere.safetensors",)),
    "query before training": ("query media/photo0.png", 2, ("snapshot", "train")),
    "query with nothing": ("query", 2, ("--frame",)),
    "query with two things": ("query media/photo0.png --frame 0", 2, ("one",)),
    "source without a time": ("query --source photo0.png", 2, ("--at",)),
    "vector that is no array": ("query --vector bad.tsv", 2, ("bad.tsv",)),
    "unknown space": ("query --frame 0 --space colour", 2, ("colour", "instance")),
    "unknown snapshot": ("query --frame 0 --snapshot 2019", 2, ("2019",)),
    "time that is none": ("query --frame 0 --after yesterday", 2, ("yesterday", "2026-01-31")),
    "publish before training": ("snapshot", 2, ("train",)),
    "pin an unknown snapshot": ("snapshots --pin 2019", 2, ("2019",)),
    "forget an unknown source": ("forget nowhere.mp4", 2, ("nowhere.mp4",)),
    "forget what the name does not settle": ("forget .png", 2, (".png",)),
    "status without a store": ("status --store nowhere", 2, ("nowhere", "ingest")),
    "a store that is a file": ("status --store bad.tsv", 2, ("bad.tsv",)),
    "broken files under --strict": ("ingest media --strict --retry-broken", 4, ("broken",)),
    "judge before training": ("eval", 2, ("snapshot", "train")),
    "judge a checkpoint before training": ("eval --checkpoint latest", 2, ("no checkpoint", "train")),
    "a checkpoint that makes no sense": ("eval --checkpoint new", 2, ("new", "step", "latest")),
    "a checkpoint and a snapshot": ("eval --checkpoint 3 --snapshot 2019", 2, ("--snapshot", "--checkpoint")),
    "unknown probe": ("eval --probes linear,kn", 2, ("kn", "did you mean knn")),
    "unknown space of an evaluation": ("eval --space colour", 2, ("colour", "instance")),
    "empty path": ("ingest ''", 2, ("empty path",)),
    "new store where a file is": ("ingest media --store bad.tsv", 1, ("bad.tsv", "this is a file")),
    "list that is a device": ("ingest @/dev/zero", 2, ("/dev/zero", "device")),
    "endless settings": ("config --config /dev/zero", 2, ("/dev/zero", "settings")),
    "settings that are a picture": ("config --config media/photo0.png", 2, ("photo0.png", "not text")),
    "vector that is a pipe": ("query --vector pipe", 2, ("pipe", "numpy.save")),
    "demo into a file": ("demo --out bad.tsv --media media", 1, ("bad.tsv", "exists")),
    "forget a number that no id can be": ("forget 99999999999999999999", 2, ("no source",)),
    "prune to nothing": ("snapshots --prune -3", 2, ("--prune", "1")),
    "a backbone for larger pictures": (
        "train --steps 1 --set encoder.backbone=vit_b_16 --set encoder.crop=50",
        2,
        ("vit_b_16", "50 pixels", "crop"),
    ),
    "demo of a folder that is not there": ("demo --media nowhere", 2, ("--media nowhere", "no such file")),
    "unknown recipe": ("config --recipe tpu", 2, ("tpu", "cpu")),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gives_a_clear_line_and_its_exit_code(cli: Cli, home: Path, name: str) -> None:
    arguments, code, words = MISTAKES[name]
    (home / "bad.tsv").write_text("a\tb\n1\t2\n")
    os.mkfifo(home / "pipe")
    ended = cli(*shlex.split(arguments))
    assert (ended.code, "Traceback" in ended.err) == (code, False), ended.err
    flat = " ".join(ended.err.replace("│", " ").split())
    assert all(word in flat for word in words), ended.err
    if "╭" not in ended.err:  # the option parser draws a box
        assert len(ended.err.strip().splitlines()) <= (3 if code == 2 else 1), ended.err


@pytest.mark.parametrize("arguments", ["ingst media", "ingest media --fsp 2", "ingest", "ingest media --fps two", ""])
def test_with_json_logs_what_the_option_parser_refuses_is_a_log_line(home: Path, arguments: str) -> None:
    command = [sys.executable, "-m", "cld_stream", "--json-logs", *shlex.split(arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = map(json.loads, ended.stderr.splitlines())
    assert (line["level"], line["message"][-13:]) == ("ERROR", ". See --help.")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a snapshot."""
    from tests.pipelines.published import published

    path = tmp_path_factory.mktemp("trained") / "store"
    published(path, videos=1).store.close()
    return path


def test_that_no_frame_fits_is_said(cli: Cli, trained: Path) -> None:
    ended = cli("query", "--frame", 1, "--after", "2030-01-01", "--store", trained)
    assert (ended.code, ended.out, ended.err) == (0, "", "No stored frame fits.\n")
    asked = cli("query", "--frame", 1, "--after", "2030-01-01", "--store", trained, "--json")
    assert (json.loads(asked.out)["hits"], asked.err) == ([], "")


def test_the_first_line_of_status_is_the_store(cli: Cli, home: Path) -> None:
    assert cli("status").out.splitlines()[0].startswith("store ")


def test_that_there_is_no_store_is_all_that_train_says(cli: Cli, home: Path) -> None:
    assert cli("train", "--store", "nowhere", "--device", "cpu").err.startswith("nowhere: there is no store here.")


def test_the_beginning_of_two_snapshots_names_neither(cli: Cli, trained: Path) -> None:
    from cld_stream.storage.store import Store

    with Store.open(trained) as store:
        (one,) = store.catalog.snapshots()
        store.catalog.add_snapshot(replace(one, id=f"{one.id[:8]}-older", created_utc=one.created_utc - 1))
    assert cli("query", "--frame", 1, "--store", trained, "--snapshot", one.id[:10]).code == 0
    ended = cli("query", "--frame", 1, "--store", trained, "--snapshot", one.id[:8])
    assert ended.code == 2
    assert f"2 snapshots begin with '{one.id[:8]}'" in ended.err, ended.err
    with Store.open(trained) as store:
        store.catalog.drop_snapshot(f"{one.id[:8]}-older")


def test_the_latest_snapshot_is_marked(cli: Cli, trained: Path) -> None:
    assert cli("snapshots", "--store", trained).out.splitlines()[1].endswith("latest")


def test_a_stopped_ingest_says_how_far_it_came(cli: Cli, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from cld_stream.cli.progress import print_ingest_summary
    from cld_stream.config import Settings
    from cld_stream.pipelines.ingest import ingest

    print_ingest_summary(ingest(home / "new", ["media"], Settings(), stop=lambda: True), dry_run=False)
    assert capsys.readouterr().out.splitlines()[-1] == "Stopped: 0 of 3 files; the same command goes on."
    assert "Stopped" not in cli("ingest", "media", "--store", "new").out


def test_a_dry_run_says_what_would_be_done(cli: Cli, home: Path) -> None:
    assert cli("ingest", "media", "--dry-run", "--store", "new").out == "Files: 3 to read.\n"
    cli("ingest", "media", "--store", "new")
    (home / "media" / "twin.png").write_bytes((home / "media" / "photo0.png").read_bytes())
    told = cli("ingest", "media", "--dry-run", "--store", "new").out
    assert told.splitlines()[-1] == "Files: 3 known, 1 with the content of others."
    assert "damaged" in next(line for line in told.splitlines() if line.startswith("BROKEN"))


def test_a_dry_run_is_as_strict_about_files_that_are_known_to_be_broken(cli: Cli, home: Path) -> None:
    assert cli("ingest", "media", "--dry-run", "--strict", "--store", "new").code == 0
    cli("ingest", "media", "--store", "new")
    ended = cli("ingest", "media", "--dry-run", "--strict", "--json", "--store", "new")
    assert (ended.code, json.loads(ended.out)["strict"]) == (4, True)
    assert "Everything else" not in ended.err


@pytest.mark.parametrize("readable", [0, 1])
def test_a_demo_of_too_little_ends_before_it_trains(cli: Cli, tmp_path: Path, readable: int) -> None:
    media = tmp_path / "media"
    media.mkdir()
    (media / "notes.txt").write_text("no picture")
    for n in range(readable):
        Image.new("RGB", (40, 40)).save(media / f"{n}.png")
    ended = cli("demo", "--media", media, "--out", tmp_path / "out")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.splitlines()[-1].startswith(f"--media {media}: {readable} frames could be read")
    assert "2. cld-stream train" not in ended.err


# arguments, words that the message must hold
ASKED: dict[str, tuple[str, tuple[str, ...]]] = {
    "a page that is a folder": ("--frame 1 --html .", ("--html", "folder")),
    "an empty name for the sheet": ("--frame 1 --sheet ''", ("--sheet", "folder")),
    "a frame that no id can be": ("--frame 99999999999999999999", ("no frame 99999999999999999999", "0 to 11")),
    "a negative frame": ("--frame -1", ("no frame -1",)),
    "a source that no id can be": ("--source 99999999999999999999 --at 0", ("no source",)),
    "a moment that is no number": ("--source clip0.mp4 --at nan", ("--at nan", "seconds")),
    "a moment before the start": ("--source clip0.mp4 --at -1", ("--at -1", "seconds")),
    "a moment that never comes": ("--source clip0.mp4 --at inf", ("--at inf", "seconds")),
}


@pytest.mark.parametrize("name", ASKED)
def test_a_mistake_in_a_question_is_told_in_a_line(cli: Cli, trained: Path, name: str) -> None:
    arguments, words = ASKED[name]
    ended = cli("query", "--store", trained, *shlex.split(arguments))
    assert (ended.code, ended.out, len(ended.err.splitlines())) == (2, "", 1), ended.err
    assert all(word in ended.err for word in words), ended.err


@pytest.mark.parametrize("asked", ["film.mp4", "pipe", "/dev/zero"])
def test_asking_with_what_is_no_picture_is_told_in_a_line(cli: Cli, trained: Path, tmp_path: Path, asked: str) -> None:
    from tests.pipelines.footage import film

    film(tmp_path / "film.mp4", seconds=1)
    os.mkfifo(tmp_path / "pipe")
    ended = cli("query", tmp_path / asked, "--store", trained)
    assert (ended.code, ended.out, len(ended.err.splitlines())) == (2, "", 1), ended.err
    assert ended.err.startswith(f"{tmp_path / asked}: ")
    assert ("the file is a video, not a picture" if asked == "film.mp4" else "this is not a file") in ended.err


def test_a_second_writer_is_told_who_holds_the_lock(cli: Cli, home: Path) -> None:
    from cld_stream.storage.store import Store

    with Store.open(home / "store") as store, store.writer("a writer"):
        ended = cli("ingest", "media")
    assert ended.code == 3
    assert f"pid {os.getpid()}" in ended.err


def test_a_second_trainer_is_told_who_holds_the_lock(cli: Cli, home: Path) -> None:
    from cld_stream.storage.store import Store

    with Store.open(home / "store") as store, store.trainer_lock("a trainer"):
        ended = cli("train", "--steps", "1")
    assert ended.code == 3
    assert f"pid {os.getpid()} on {socket.gethostname()} since 2" in ended.err
    assert ": a trainer. Wait for it, or stop it." in ended.err


def test_a_store_of_a_newer_format_is_refused_with_the_upgrade(cli: Cli, home: Path) -> None:
    header = home / "store" / "store.json"
    header.write_text(json.dumps(json.loads(header.read_text()) | {"version": 99}))
    ended = cli("status")
    assert ended.code == 1
    assert "99" in ended.err
    assert "Upgrade cld-stream the way it was installed" in ended.err


def test_a_file_name_cannot_talk_to_the_terminal(cli: Cli, home: Path) -> None:
    evil = home / "media" / "red\x1b[31m\nname.txt"
    evil.write_text("not a picture")
    ended = cli("ingest", "media")
    assert ended.code == 0
    assert "\x1b[31m" not in ended.out + ended.err
    assert "\\x1b[31m" in ended.out


def test_a_file_name_between_colons_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("source",), [("/v/12:key:31.mp4",)])
    fail("/v/12:key:31.mp4: gone")
    said = capsys.readouterr()
    assert said.out.split() == ["source", "/v/12:key:31.mp4"]
    assert said.err == "/v/12:key:31.mp4: gone\n"


def test_quiet_says_only_the_answer(cli: Cli, home: Path) -> None:
    ended = cli("--quiet", "ingest", "media", "--json")
    console.quiet = False
    assert ended.err == ""
    assert json.loads(ended.out)["frames"] == 0


def test_what_is_no_file_is_left_out_and_told(cli: Cli, home: Path) -> None:
    os.mkfifo(home / "media" / "film.mp4")
    with socket.socket(socket.AF_UNIX) as ear:
        ear.bind("media/ear.mp4")
        for path in ("media", "media/film.mp4", "media/ear.mp4", "/dev/zero"):
            ended = cli("ingest", path)
            assert (ended.code, ended.err) == (0, "")
            assert "pipe, socket or device" in ended.out


@pytest.mark.parametrize("kilobytes", [0, 200])
def test_a_disk_that_takes_no_more_is_told_in_a_line(home: Path, kilobytes: int) -> None:
    """A limit on the size of files stands for a full disk: while the store is made, and while it is filled."""
    big = np.random.default_rng(0).integers(0, 255, (160, 160, 3), np.uint8)
    for n in range(40):
        Image.fromarray(np.roll(big, n)).save(home / "media" / f"big{n}.png")
    command = f"ulimit -f {kilobytes}; exec {sys.executable} -m cld_stream ingest media --store new -q"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=100)
    assert ended.returncode == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1, ended.stderr
    assert "disk" in ended.stderr or "too large" in ended.stderr


def test_a_store_among_the_footage_is_no_footage(cli: Cli, home: Path) -> None:
    before = json.loads(cli("ingest", ".", "--json").out)
    again = json.loads(cli("ingest", ".", "--json").out)
    assert not any("catalog.db" in f["path"] for f in before["files"])
    assert again["changed"] == 0
    assert "a frame store" in cli("ingest", "store").out


def test_training_on_a_store_that_may_not_be_written_is_told_in_a_line(cli: Cli, shared: Path) -> None:
    from cld_stream.storage.store import Store

    with tempfile.TemporaryDirectory() as open_to_all:
        store = Path(open_to_all) / "store"
        shutil.copytree(shared / "store", store)
        Path(open_to_all).chmod(0o755)
        with Store.open(store) as opened, opened.trainer_lock("a trainer"):
            assert cli("train", "--store", store).code == 3  # what is imported late is there from now on
        store.chmod(0o555)
        with nobody():
            ended = cli("train", "--steps", "1", "--store", store)
        store.chmod(0o755)
    assert ended.code == 1, ended.err
    assert ended.err.splitlines()[-1].startswith(f"{store}/")
    assert "ermission" in ended.err.splitlines()[-1]
    assert "Traceback" not in ended.err


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """Without root's right to write everything."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def test_a_store_in_a_closed_folder_is_a_matter_of_permission(cli: Cli, home: Path) -> None:
    (home / "closed").mkdir(mode=0)
    with bound_by_modes():
        ended = cli("ingest", "media", "--store", "closed/store")
    assert (ended.code, "ermission" in ended.err) == (1, True), ended.err


DENIED = "cannot be read: Permission denied"


def test_a_photo_that_may_not_be_read_is_told_in_a_line_and_the_others_are_taken(cli: Cli, home: Path) -> None:
    closed, shut = home / "media" / "photo0.png", home / "media" / "shut"
    (home / "media" / "broken.jpg").unlink()
    shutil.copytree(home / "media", shut)
    closed.chmod(0)
    shut.chmod(0)
    with bound_by_modes():
        ended = cli("ingest", "media", "--store", "fresh")
        strict = cli("ingest", "media", "--store", "fresh", "--strict")
    lines = [line.split(maxsplit=2) for line in ended.out.splitlines() if str(home) in line]
    assert lines == [["SKIPPED", str(shut), DENIED], ["BROKEN", str(closed), DENIED]]
    assert "1 frames added" in ended.out
    assert "Traceback" not in ended.out + ended.err
    assert (ended.code, strict.code) == (0, 4)
    for path in (shut, closed):
        path.chmod(0o755)
    assert "Files: 2 ADDED, 2 ALREADY_PRESENT." in cli("ingest", "media", "--store", "fresh").out


def test_a_known_folder_that_may_not_be_read_any_more_is_told_in_a_line(cli: Cli, home: Path) -> None:
    shut = home / "media" / "shut"
    shut.mkdir()
    (home / "media" / "photo0.png").rename(shut / "photo0.png")
    assert cli("ingest", "media", "--store", "fresh").code == 0
    shutil.copy(shut / "photo0.png", home / "media" / "copy.png")
    shut.chmod(0)
    with bound_by_modes():
        ended = cli("ingest", "media", "--store", "fresh")
    shut.chmod(0o755)
    assert ended.code == 0, ended.err
    told = [line.split() for line in ended.out.splitlines() if "shut " in line]
    assert told == [["SKIPPED", str(shut), *DENIED.split()]]
    rows = json.loads(cli("ingest", "media", "--store", "fresh", "--json").out)["files"]
    assert {Path(f["path"]).name: f["outcome"] for f in rows} == {
        "photo0.png": "ADDED", "photo1.png": "ADDED", "copy.png": "ALREADY_PRESENT", "broken.jpg": "BROKEN",
    }  # fmt: skip


def test_how_much_is_told_may_be_said_after_the_command(cli: Cli, home: Path) -> None:
    ended = cli("ingest", "media", "--quiet", "--json")
    console.quiet = False
    assert (ended.code, ended.err) == (0, "")
    assert cli("status", "-vv").code == 0
    with pytest.raises(StoreNotFoundError):  # the trace that --debug asks for
        cli("status", "--store", "nowhere", "--debug")
    assert cli("status").code == 0
    assert cli("ingest", "--", "-q").err.startswith("-q: no such file")


def test_the_lock_is_a_kernel_lock(cli: Cli, home: Path) -> None:
    lock = next((home / "store").glob("*writer*"))
    with lock.open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert cli("ingest", "media").code == 3
    assert cli("ingest", "media").code == 0


def test_from_a_folder_that_was_removed_one_line_says_so(home: Path) -> None:
    code = (
        "import os, sys\n"
        "os.mkdir('gone'), os.chdir('gone'), os.rmdir('../gone')\n"
        "from cld_stream.cli import main\n"
        "sys.argv = ['cld-stream', 'ingest', 'media']\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert done.stderr.startswith("the current folder has been removed")


def test_without_a_search_path_nothing_is_broken(home: Path) -> None:
    poor = {name: value for name, value in os.environ.items() if name != "PATH"}
    done = subprocess.run([sys.executable, "-m", "cld_stream", "doctor"], capture_output=True, text=True, env=poor)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_ends_with_a_word_and_without_a_traceback() -> None:
    code = (
        "import sys, cld_stream.pipelines.status as status\n"
        "from cld_stream.cli import main\n"
        "def pressed(store): raise KeyboardInterrupt\n"
        "status.status, sys.argv = pressed, ['cld-stream', 'status']\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.startswith("Ended at once")
    assert len(done.stderr.splitlines()) == 1
