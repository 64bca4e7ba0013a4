"""What others may know of a running ingest or train: runs, locks, status, probes, metrics, the service manager."""

import json
import os
import re
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import fields, replace
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import psutil
import pytest

from cld_stream.config import OpsSettings
from cld_stream.errors import PortTakenError, StoreError, UsageError
from cld_stream.pipelines import life
from cld_stream.pipelines.extend import extend
from cld_stream.pipelines.forget import forget
from cld_stream.pipelines.ingest import IngestProgress
from cld_stream.pipelines.life import Life
from cld_stream.pipelines.metrics import TrainProgress
from cld_stream.pipelines.probes import INGEST, STORE, TRAIN, _Handler
from cld_stream.pipelines.status import Status, status
from cld_stream.storage.store import Store
from tests.media.rtsp_server import free_port
from tests.pipelines.footage import film
from tests.pipelines.published import add_video, published, small_store
from tests.pipelines.watching import Watching

ROOT = Path(__file__).parents[2]
SMALL = (
    "encoder.width=0.125", "encoder.crop=16", "encoder.feature_dim=16", "loss.groups=12", "buffer.capacity=64",
    "optim.batch=24", "optim.fresh=8", "train.min_frames=16", "train.idle_steps=3", "train.poll_s=0.5",
    "train.log_steps=1", "train.threads=1", "publish.groups=4",
)  # fmt: skip


def get(port: int, path: str) -> tuple[int, str]:
    with closing(HTTPConnection("127.0.0.1", port, timeout=20)) as to:
        to.request("GET", path)
        answer = to.getresponse()
        return answer.status, answer.read().decode()


def until(true: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.05)


def process(path: Path, kind: str) -> dict[str, object]:
    (one,) = [p for p in status(path).processes if p.kind == kind]
    return {"state": one.state, "outcome": one.outcome, "pid": one.pid, "line": one.line()}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with small_store(tmp_path / "store") as opened:
        yield opened


def test_a_run_is_running_while_its_lock_is_held_and_then_ended(store: Store) -> None:
    with store.trainer_lock(), Life(store, "train", OpsSettings()) as life:
        life.beat("training", lambda: {"frames_s": 12.0, "buffered": 5, "capacity": 9}, now=True)
        told = process(store.path, "train")
        assert told["state"] == "running"
        assert "training, 12 frames/s, buffer 5 of 9" in str(told["line"])
    assert process(store.path, "train") | {"line": ""} == {
        "state": "ended", "outcome": "done", "pid": os.getpid(), "line": ""
    }  # fmt: skip


def test_a_run_that_fails_says_how_it_ended(store: Store) -> None:
    with pytest.raises(RuntimeError), store.trainer_lock(), Life(store, "train", OpsSettings()):
        raise RuntimeError("out of patience")
    assert "RuntimeError: out of patience" in str(process(store.path, "train")["line"])


def test_a_run_that_fails_at_a_path_that_is_no_text_says_how_it_ended(store: Store) -> None:
    with pytest.raises(StoreError), store.trainer_lock(), Life(store, "train", OpsSettings()):
        raise StoreError(os.fsdecode(b"/data/\xff: the store is full"))
    assert process(store.path, "train")["outcome"] == r"StoreError: /data/\udcff: the store is full"


def test_a_run_that_is_broken_off_by_hand_says_so(store: Store) -> None:
    with pytest.raises(KeyboardInterrupt), store.trainer_lock(), Life(store, "train", OpsSettings()):
        raise KeyboardInterrupt
    assert str(process(store.path, "train")["line"]).endswith(" ago: Ctrl-C, twice")


def test_a_killed_run_is_told_by_its_free_lock_at_once_and_noted_by_the_next(store: Store) -> None:
    code = (
        "import sys; from pathlib import Path; from cld_stream.config import OpsSettings\n"
        "from cld_stream.pipelines.life import Life; from cld_stream.storage.store import Store\n"
        "store = Store.open(Path(sys.argv[1])); store.trainer_lock().acquire()\n"
        "Life(store, 'train', OpsSettings()).__enter__(); print('at work', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(store.path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "at work\n"
        assert process(store.path, "train")["state"] == "running"
        child.kill()
    assert process(store.path, "train")["state"] == "killed"
    with store.trainer_lock(), Life(store, "train", OpsSettings()):
        assert process(store.path, "train")["state"] == "running"
    assert [run.outcome for run in store.catalog.runs("train")] == ["killed", "done"]


def test_a_run_that_holds_its_lock_and_says_nothing_is_silent(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cld_stream.pipelines.status.SILENT_S", 0.2)
    with store.trainer_lock(), Life(store, "train", OpsSettings()) as life:
        time.sleep(0.3)
        assert process(store.path, "train")["state"] == "silent"
        life.beat("training", dict, now=True)
        assert process(store.path, "train")["state"] == "running"


def test_another_holder_of_the_writer_lock_is_not_taken_for_the_killed_ingest(store: Store) -> None:
    with store.writer():
        store.catalog.begin_run("ingest", ["ingest"])
    child = subprocess.Popen(
        [sys.executable, "-c", "import sys; from pathlib import Path; from cld_stream.storage.lock import FileLock\n"
         "FileLock(Path(sys.argv[1]) / 'writer.lock', 'writer', 'forget x').acquire(); print('held', flush=True)\n"
         "sys.stdin.read()", str(store.path)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        assert process(store.path, "ingest")["state"] == "killed"
        assert process(store.path, "writer")["pid"] == child.pid
        assert "forget x" in str(process(store.path, "writer")["line"])
    finally:
        child.kill()
        child.communicate()


def test_asking_who_holds_a_lock_never_keeps_anyone_from_it(store: Store) -> None:
    asking = subprocess.Popen(
        [sys.executable, "-c", "import sys; from pathlib import Path; from cld_stream.storage.lock import lock_holder\n"
         "print('begun', flush=True)\nwhile True: lock_holder(Path(sys.argv[1]) / 'trainer.lock')", str(store.path)],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        with store.trainer_lock():
            pass
        assert asking.stdout is not None
        assert asking.stdout.readline() == "begun\n"
        for _ in range(50):
            with store.trainer_lock():
                pass
    finally:
        asking.kill()
        asking.communicate()


def test_lag_of_a_store_that_was_never_trained_on_is_everything(store: Store) -> None:
    assert status(store.path).lag == store.catalog.next_id()


@pytest.mark.parametrize(("free", "said"), [(123_456_789_012, "123.5 GB"), (49_999_999, "50.0 MB"), (0, "0.0 MB")])
def test_little_space_is_told_in_megabytes(store: Store, free: int, said: str) -> None:
    assert dict(replace(status(store.path), disk_free=free).lines())["disk free"] == said


def said_by_ingest(path: Path) -> dict[str, float]:
    return next((p.numbers for p in status(path).processes if p.kind == "ingest"), {})


def test_time_to_full_follows_what_a_watch_has_added_not_how_fast_it_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(life, "_BEAT_S", 0.1)
    monkeypatch.setattr(life, "_ASLEEP_S", 0.1)
    store, media = tmp_path / "store", tmp_path / "media"
    film(media / "a.mp4", seconds=3)
    with Watching(store, media) as w:
        w.until_taken("a.mp4")
        w.until(lambda: said_by_ingest(store).get("frames") and said_by_ingest(store)["frames_s"] == 0)
        now = status(store)
        spent = now.processes[0].numbers["seconds"]
        assert now.full_in_s == pytest.approx(now.disk_free / (now.bytes / spent), rel=0.3)
        assert "full in" in dict(now.lines())["disk free"]
        w.until(lambda: said_by_ingest(store)["seconds"] > spent + 1)
        assert (status(store).full_in_s or 0) > (now.full_in_s or 0) > 0  # nothing came since
    assert status(store).full_in_s is None


@pytest.mark.parametrize(
    ("limit", "said"), [({"max_frames": 900}, False), ({"max_gb": 1.0}, False), ({"max_gb": 1e9}, True)]
)
def test_a_store_whose_limit_holds_first_never_fills_the_disk(
    tmp_path: Path, limit: dict[str, Any], said: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(life, "_BEAT_S", 0.1)
    store, media = tmp_path / "store", tmp_path / "media"
    film(media / "a.mp4", seconds=3)
    with Watching(store, media, **limit) as w:
        w.until(lambda: (store / "store.json").exists() and said_by_ingest(store).get("frames"))
        assert (status(store).full_in_s is not None) == said


def test_growth_is_that_of_the_last_hour(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(life, "_GROWTH_S", 1.0)
    monkeypatch.setattr(life, "_COUNT_S", 0.1)
    with store.writer(), Life(store, "ingest", OpsSettings()) as one:
        for wait_s, grows in ((0.2, True), (0.2, True), (1.1, False)):
            time.sleep(wait_s)
            one.beat("reading", lambda: {"frames": 600}, now=True)
            assert (one.numbers["growth_s"] != 0) == grows


def test_a_damaged_snapshot_is_called_so(tmp_path: Path) -> None:
    made = published(tmp_path / "store")
    assert status(made.store.path).snapshot_health == "sound"
    with (made.snapshot.path / "weights.safetensors").open("ab") as f:
        f.write(b"x")
    assert "DAMAGED: weights.safetensors" in str(status(made.store.path).snapshot_health)
    (made.snapshot.path / "manifest.json").unlink()
    assert "DAMAGED" in dict(status(made.store.path).lines())["snapshot"]
    made.store.close()


def test_forgotten_frames_have_no_features(tmp_path: Path) -> None:
    made = published(tmp_path / "store")
    add_video(made.store, "/media/new.mp4", 9, frames=5)
    extend(made.store)
    assert status(made.store.path).covered == 41
    forget(made.store.path, "clip1.mp4")
    assert status(made.store.path).covered == status(made.store.path).frames == 29
    made.store.close()


def test_health_is_lost_by_a_loop_that_stands_still_and_comes_back(store: Store) -> None:
    port = free_port()
    with store.trainer_lock(), Life(store, "train", OpsSettings(port=port, stalled_s=0.5)) as life:
        assert get(port, "/healthz")[0] == 200
        assert get(port, "/readyz")[0] == 503  # it has not come round yet
        life.beat("training", dict)
        assert [get(port, path)[0] for path in ("/healthz", "/readyz")] == [200, 200]
        time.sleep(0.6)
        assert [get(port, path)[0] for path in ("/healthz", "/readyz")] == [503, 503]
        assert "cld_stream_healthy 0.0" in get(port, "/metrics")[1]
        life.beat("training", dict)
        assert get(port, "/healthz")[0] == 200
        assert get(port, "/etc/passwd")[0] == 404
    with pytest.raises(ConnectionRefusedError):
        get(port, "/healthz")


def test_health_is_told_while_the_drive_of_the_store_is_away(store: Store) -> None:
    port = free_port()
    with store.trainer_lock(), Life(store, "train", OpsSettings(port=port)):
        away = store.path.rename(store.path.with_name("away"))
        status_, said = get(port, "/metrics")
        away.rename(store.path)
        assert (status_, "cld_stream_healthy 1.0" in said, "cld_stream_store_frames" in said) == (200, True, False)
        assert "cld_stream_store_frames" in get(port, "/metrics")[1]


def test_the_port_is_open_to_this_machine_only(store: Store) -> None:
    port = free_port()
    with store.trainer_lock(), Life(store, "train", OpsSettings(port=port)):
        assert [c.laddr.ip for c in psutil.Process().net_connections() if c.laddr.port == port] == ["127.0.0.1"]


def test_a_port_in_use_is_one_clear_line_and_leaves_no_run(store: Store) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortTakenError, match=f"{port}.*else listens"), Life(store, "train", OpsSettings(port=port)):
            pass
    assert store.catalog.runs() == []


def test_an_address_that_is_not_of_this_machine_is_a_setting_that_is_wrong(store: Store) -> None:
    settings = OpsSettings(port=free_port(), address="192.0.2.1")
    with pytest.raises(UsageError, match=r"192\.0\.2\.1: cannot listen there"), Life(store, "train", settings):
        pass


def test_a_client_that_never_asks_blocks_nobody(store: Store) -> None:
    port = free_port()
    with store.trainer_lock(), Life(store, "train", OpsSettings(port=port)):
        client = socket.create_connection(("127.0.0.1", port))
        assert get(port, "/healthz")[0] == 200
        client.close()


def test_a_client_that_hangs_up_or_never_asks_is_worth_no_line(
    store: Store, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert 0 < (_Handler.timeout or 0) < 60
    monkeypatch.setattr(_Handler, "timeout", 0.2)
    port = free_port()
    with store.trainer_lock(), Life(store, "train", OpsSettings(port=port)):
        for asked in (b"", b"GET /metr"):
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(asked)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
        with socket.create_connection(("127.0.0.1", port)) as client:
            assert client.recv(1) == b""
        time.sleep(0.2)
        assert get(port, "/healthz")[0] == 200
    assert capfd.readouterr().err == ""


def test_the_service_manager_is_told_and_no_file_name_can_speak_to_it(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        with store.writer(), Life(store, "ingest", OpsSettings()) as life:
            life.beat("reading", lambda: {"frames": 3, "current": "a\nMAINPID=1"}, now=True)
        said = manager.recv(4096).decode()
        assert said.startswith("READY=1\nWATCHDOG=1\nSTATUS=reading: frames 3, frames_s ")
        assert "MAINPID" not in said
        assert manager.recv(4096) == b"STOPPING=1"


def test_what_metrics_show_is_what_a_beat_says() -> None:
    train = {f.name for f in fields(TrainProgress)}
    ingest = {f.name for f in fields(IngestProgress)} | {"frames_s", "dropped"}
    assert [one.name for one in TRAIN if one.key not in train] == []
    assert [one.name for one in INGEST if one.key not in ingest] == []
    assert [one.name for one in STORE if one.key not in {f.name for f in fields(Status)}] == []


def exported() -> set[str]:
    fixed = {"cld_stream_healthy", "cld_stream_silent_seconds", "cld_stream_state", "cld_stream_store_sources"}
    tables = {f"cld_stream_{one.name}{'_total' if one.counter else ''}" for one in (*TRAIN, *INGEST, *STORE)}
    return fixed | tables


def test_the_dashboard_shows_every_metric_and_nothing_else() -> None:
    board = json.loads((ROOT / "contrib" / "grafana" / "cld-stream.json").read_text())
    asked = " ".join(target["expr"] for panel in board["panels"] for target in panel["targets"])
    process_metrics = {"process_resident_memory_bytes", "process_cpu_seconds_total"}
    names = set(re.findall(r"\b(?:cld_stream|process)_\w+", asked))
    assert names == exported() | process_metrics


def test_the_page_lists_every_metric() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    assert sorted(name for name in exported() if f"`{name}`" not in page) == []


def everything(manager: socket.socket) -> Iterator[bytes]:
    manager.setblocking(False)
    while True:
        try:
            yield manager.recv(4096)
        except BlockingIOError:
            return


def test_a_service_manager_that_stopped_listening_holds_nobody_up(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        with store.writer(), Life(store, "ingest", OpsSettings()) as life:
            for _ in range(50):
                life.beat("reading", dict, now=True)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[tuple[Path, int, subprocess.Popen[str], socket.socket]]:
    """A real trainer that has come to rest, watched by a service manager."""
    with small_store(tmp_path / "store"):
        pass
    port, overrides = free_port(), [part for item in SMALL for part in ("--set", item)]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        child = subprocess.Popen(
            [sys.executable, "-m", "cld_stream", "--json-logs", "train", "--store", str(tmp_path / "store"),
             "--device", "cpu", "--port", str(port), *overrides],
            cwd=ROOT, text=True, stderr=subprocess.PIPE, env=os.environ | {"NOTIFY_SOCKET": str(tmp_path / "notify")},
        )  # fmt: skip
        manager.settimeout(60)
        try:
            assert manager.recv(4096).startswith(b"READY=1\n")
            until(lambda: status(tmp_path / "store").trained.get("state") == "waiting")
            yield tmp_path / "store", port, child, manager
        finally:
            child.kill()
            child.communicate()


def test_a_trainer_sleeps_without_cpu_wakes_for_a_commit_and_ends_in_order(
    daemon: tuple[Path, int, subprocess.Popen[str], socket.socket],
) -> None:
    path, port, child, manager = daemon
    assert get(port, "/readyz")[0] == 200
    shown = {line.split("{")[0].split()[0] for line in get(port, "/metrics")[1].splitlines() if line[0] != "#"}
    optional = {
        "cld_stream_store_full_seconds",
        "cld_stream_train_guard_agreement",
    }  # nothing is added, nor compared yet
    ingest = {name for name in exported() if name.startswith("cld_stream_ingest")}
    assert exported() - optional - ingest - shown == set()

    until(lambda: status(path).snapshot is not None)
    time.sleep(1)
    watched = psutil.Process(child.pid)
    before = sum(watched.cpu_times()[:2])
    time.sleep(3)
    assert sum(watched.cpu_times()[:2]) - before < 0.2  # measured: 0.06 s in 20 s

    waits = []
    with Store.open(path) as store:
        for n in range(10, 13):
            add_video(store, f"/media/new{n}.mp4", n, frames=4)
            committed, began = store.catalog.next_id(), time.monotonic()
            until(lambda to=committed: status(path).trained["fed_to"] >= to)  # type: ignore[misc]
            waits.append(time.monotonic() - began)
    assert min(waits) < 5  # the others only where the machine is busy

    said = list(everything(manager))
    assert any(b"STATUS=waiting: step" in one for one in said)
    child.terminate()
    _, err = child.communicate(timeout=60)
    assert child.returncode == 0
    lines = [json.loads(line) for line in err.splitlines()]
    assert all({"time", "level", "logger", "message"} == set(line) for line in lines)
    assert any("checkpoint at step" in line["message"] for line in lines)
    assert any("Stopping" in line["message"] for line in lines)
    assert process(path, "train")["outcome"] == "done"
    assert list(everything(manager))[-1] == b"STOPPING=1"
