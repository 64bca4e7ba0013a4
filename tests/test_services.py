"""The systemd units, which neither give up nor start too early; the health of a container."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cld_stream.config import OpsSettings
from cld_stream.errors import GuardStopError, LockHeldError, StoreNotFoundError, UsageError
from tests.media.rtsp_server import free_port
from tests.pipelines.published import small_store

UNITS = Path(__file__).parents[1] / "contrib" / "systemd"
INGEST, TRAIN = (UNITS / f"cld-stream-{verb}.service" for verb in ("ingest", "train"))


def said(unit: Path, key: str) -> list[str]:
    """Every value of a key."""
    lines = (line.split("=", 1) for line in unit.read_text().splitlines() if "=" in line and line[0] != "#")
    return [value for name, value in lines if name == key]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
@pytest.mark.parametrize("unit", [INGEST, TRAIN])
def test_systemd_finds_nothing_wrong_with_a_unit(unit: Path, tmp_path: Path) -> None:
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace("/opt/cld-stream/bin/cld-stream", sys.executable))
    found = subprocess.run(["systemd-analyze", "verify", "--man=no", copy], capture_output=True, text=True)
    assert [line for line in found.stderr.splitlines() if unit.name in line] == []
    assert found.returncode == 0


@pytest.mark.parametrize("unit", [INGEST, TRAIN])
def test_a_service_is_started_again_for_ever_but_where_that_cannot_help(unit: Path) -> None:
    assert said(unit, "StartLimitIntervalSec") == ["0"]
    assert said(unit, "Restart") == ["on-failure"]
    never = {int(code) for codes in said(unit, "RestartPreventExitStatus") for code in codes.split()}
    assert never == {UsageError.exit_code, GuardStopError.exit_code}
    assert LockHeldError.exit_code not in never


@pytest.mark.parametrize("unit", [INGEST, TRAIN])
def test_a_service_whose_loop_stands_still_is_ended_after_its_probe_has_said_so(unit: Path) -> None:
    assert (said(unit, "Type"), said(unit, "NotifyAccess")) == (["notify"], ["main"])
    (minutes,) = re.findall(r"^WatchdogSec=(\d+)min$", unit.read_text(), re.MULTILINE)
    assert 60 * int(minutes) > OpsSettings().stalled_s
    assert f"for {minutes} minutes" in (UNITS.parents[1] / "docs" / "operations.md").read_text()


@pytest.mark.parametrize("unit", [INGEST, TRAIN])
def test_a_service_may_write_nothing_but_its_state(unit: Path) -> None:
    assert said(unit, "StateDirectory") == ["cld-stream"]
    assert said(unit, "ReadWritePaths") == []
    assert (said(unit, "User"), said(unit, "CapabilityBoundingSet")) == (["cld-stream"], [""])
    assert said(unit, "ProtectSystem") == ["strict"]
    assert [said(unit, key) for key in ("NoNewPrivileges", "PrivateTmp", "RestrictSUIDSGID")] == 3 * [["yes"]]


def test_the_trainer_is_not_started_before_there_is_a_store(tmp_path: Path) -> None:
    """A missing store ends it with a code after which it is not started again."""
    assert str(StoreNotFoundError.exit_code) in said(TRAIN, "RestartPreventExitStatus")[0].split()
    (wait,) = said(TRAIN, "ExecStartPre")
    command = [word.replace("$$", "$") for word in shlex.split(wait)]
    store = tmp_path / "a store"
    with subprocess.Popen(command, env=os.environ | {"CLD_STREAM_STORE": str(store)}) as waiting:
        try:
            with pytest.raises(subprocess.TimeoutExpired):
                waiting.wait(0.5)
            store.mkdir()
            (store / "store.json").touch()
            assert waiting.wait(30) == 0
        finally:
            waiting.kill()


def test_ingest_as_a_service_makes_no_store_on_a_mount_point_whose_drive_is_away(tmp_path: Path) -> None:
    """It fails, with a code after which it is tried again, and goes on once the drive is back."""
    (check,) = said(INGEST, "ExecStartPre")
    command = [word.replace("$$", "$") for word in shlex.split(check)]
    store = tmp_path / "a store"
    store.mkdir()

    def start() -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"CLD_STREAM_STORE": str(store)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    away = start()
    assert f"{store}: no store here" in away.stdout
    assert away.returncode not in (0, *(int(c) for c in said(INGEST, "RestartPreventExitStatus")[0].split()))
    assert list(store.iterdir()) == []
    (store / "store.json").touch()
    assert start().returncode == 0


@pytest.mark.parametrize(("unit", "verb"), [(INGEST, ["ingest", "--watch", "."]), (TRAIN, ["train"])])
def test_a_service_whose_port_is_taken_is_tried_again(unit: Path, verb: list[str], tmp_path: Path) -> None:
    small_store(tmp_path / "store").close()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "cld_stream", *verb, "--store", "store", "--port", str(port), "-q"]
        environment = os.environ | {"PYTHONPATH": str(UNITS.parents[1])}
        ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
    assert ended.returncode not in (0, *(int(c) for c in said(unit, "RestartPreventExitStatus")[0].split()))
    (line,) = ended.stderr.splitlines()
    assert f"ops.port {port} on 127.0.0.1: something else listens there" in line


def test_who_the_container_works_as_is_said_where_folders_are_bound() -> None:
    root = UNITS.parents[1]
    (user,) = re.findall(r"useradd .*--uid (\d+)", (root / "Dockerfile").read_text())
    for page in ("docs/operations.md", "compose.yaml"):
        assert f"sudo chown -R {user} /mnt/drive/store" in (root / page).read_text()


def test_what_a_capture_device_needs_is_said_in_the_unit_and_on_the_page() -> None:
    needed = "SupplementaryGroups=video"
    assert f"\n#{needed}\n" in INGEST.read_text()
    assert needed in (UNITS.parents[1] / "docs" / "operations.md").read_text()


@pytest.mark.parametrize("verb", [["ingest", "--watch", "."], ["train", "--device", "cpu"]])
def test_a_container_that_watches_or_trains_is_healthy(verb: list[str], tmp_path: Path) -> None:
    image = (UNITS.parents[1] / "Dockerfile").read_text().replace("9464", str(free_port()))
    (check,) = re.findall(r"HEALTHCHECK.*\\\n\s*CMD (\[.*\])", image)
    told = dict(pair.split("=", 1) for line in re.findall(r"^ENV (CLD_.*)$", image, re.M) for pair in line.split())
    small_store(tmp_path / "store").close()
    command = [sys.executable, "-m", "cld_stream", *verb, "--store", "store"]
    environment = os.environ | told | {"PYTHONPATH": str(UNITS.parents[1])}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL) as child:
        try:
            until = time.monotonic() + 60
            while subprocess.run([sys.executable, *json.loads(check)[1:]], stderr=subprocess.DEVNULL).returncode:
                assert time.monotonic() < until, "it never became healthy"
        finally:
            child.kill()
