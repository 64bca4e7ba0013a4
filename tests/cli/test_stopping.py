"""A signal ends every command in order, however early it comes."""

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from cld_stream.cli.stopping import StopSignals
from cld_stream.media.watchdog import cpu_seconds
from cld_stream.pipelines.metrics import TrainReport
from cld_stream.pipelines.report import IngestReport, WatchReport
from cld_stream.pipelines.status import status
from tests.faults.faulty import ROOT, holding_the_catalog
from tests.pipelines.footage import photograph
from tests.pipelines.published import published, small_store
from tests.pipelines.test_life import SMALL, until


def catches(pid: int, number: int) -> bool:
    """Whether the process has a handler for a signal."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def stopped_while_it_loads(at: Path, *arguments: str) -> tuple[str, str]:
    """What a command says on stdout and stderr."""
    command = [sys.executable, "-m", "cld_stream", *arguments, "--store", "none"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=at, env=environment
    ) as loading:
        while not catches(loading.pid, signal.SIGTERM):  # before what takes time to load is there
            assert loading.poll() is None
            time.sleep(0.005)
        os.kill(loading.pid, signal.SIGTERM)
        out, err = loading.communicate(timeout=100)
    assert loading.returncode == 0, err
    assert not (at / "none").exists()
    return out, err


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("arguments", "last"),
    [(["train"], "Stopped before training began."), (["ingest", "."], "Stopped before anything was read.")],
)
def test_a_command_that_is_stopped_while_it_loads_ends_well(arguments: list[str], last: str, tmp_path: Path) -> None:
    out, err = stopped_while_it_loads(tmp_path, *arguments)
    assert (out, err.splitlines()[-1]) == ("", last)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("arguments", "report", "known"),
    [
        (["train"], TrainReport, {"steps": 0, "step": None, "seconds": 0.0}),
        (["ingest", "."], IngestReport, {"store": "none", "frames": 0, "stopped": True, "counts": {}}),
        (["ingest", ".", "--watch"], WatchReport, {"event": "end", "store": "none", "frames": 0}),
    ],
)
def test_a_command_that_is_stopped_while_it_loads_answers_as_json(
    arguments: list[str], report: type, known: dict[str, object], tmp_path: Path
) -> None:
    answer = json.loads(stopped_while_it_loads(tmp_path, *arguments, "--json")[0])
    assert known.items() <= answer.items()
    assert {f.name for f in fields(report)} <= answer.keys()


@pytest.mark.parametrize(
    ("arguments", "known"),
    [(["eval"], {"stopped": True, "numbers": {}}), (["tune", "--device", "cpu"], {"finished": False, "done": 0})],
)
def test_what_compares_and_is_stopped_while_it_loads_answers(
    arguments: list[str], known: dict[str, object], tmp_path: Path
) -> None:
    published(tmp_path / "store", videos=11).store.close()
    command = [sys.executable, "-X", "importtime", "-m", "cld_stream", *arguments, "--store", "store", "--json"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment
    ) as loading:
        assert loading.stderr is not None
        while not loading.stderr.readline().rstrip().endswith(" cld_stream.cli.progress"):  # torch comes after it
            assert loading.poll() is None
        loading.send_signal(signal.SIGTERM)
        out, err = loading.communicate(timeout=100)
    (said,) = (line for line in err.splitlines() if not line.startswith("import time:"))
    assert loading.returncode == 0
    assert said.startswith("Stopping: ")
    assert known.items() <= json.loads(out).items()


_TALKS = """
import sys
from cld_stream.cli.output import console, work_without_readers
from cld_stream.cli.stopping import StopSignals
work_without_readers()
with StopSignals() as stop:
    print("talking", flush=True)
    while not stop():
        console.print("x" * 200, soft_wrap=True)
print("ended")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_signal_that_comes_while_something_is_said_ends_in_order() -> None:
    """Nobody reads stderr meanwhile, so that it comes within the words."""
    command, environment = [sys.executable, "-c", _TALKS], os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as talking:
        assert talking.stdout is not None
        assert talking.stdout.readline() == b"talking\n"
        until(lambda: _sleeps(talking.pid))
        talking.send_signal(signal.SIGTERM)
        out, err = talking.communicate(timeout=60)
    assert (talking.returncode, out) == (0, b"ended\n"), err[-2000:]


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_pipe_that_was_set_not_to_wait_is_waited_for(stream: str) -> None:
    say = "answer" if stream == "stdout" else "console.print"
    code = "from cld_stream.cli.output import answer, console, work_without_readers\nwork_without_readers()\n"
    code += f"for _ in range(900): {say}('x' * 200)"
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    command, environment = [sys.executable, "-c", code], os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "300"}
    with subprocess.Popen(command, env=environment, **{stream: writing}) as talking:  # type: ignore[call-overload]
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            time.sleep(1)
            assert len(pipe.read()) == 900 * 201
    assert talking.returncode == 0


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_command_whose_streams_are_closed_does_its_work(closed: str, tmp_path: Path) -> None:
    photograph(tmp_path / "media" / "a.jpg")
    command = [sys.executable, "-m", "cld_stream", "ingest", "media", "--json", "--store", "store"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run(["sh", "-c", f'exec "$@" {closed}', "sh", *command], cwd=tmp_path, env=environment, timeout=60)
    assert ran.returncode == 0
    assert status(tmp_path / "store").frames == 1


def _sleeps(pid: int) -> bool:
    """Whether it still waits a while later, as for room in a pipe."""
    used = cpu_seconds(pid)
    time.sleep(0.5)
    return cpu_seconds(pid) == used


def script() -> str:
    """What the script `cld-stream` does."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, name = project["scripts"]["cld-stream"].split(":")
    return f"import sys; from {module} import {name}; sys.exit({name}())"


@pytest.mark.parametrize("program", [["-m", "cld_stream"], ["-c", script()]])
@pytest.mark.parametrize("loaded", ["typer._click", "rich._log_render", "cld_stream.cli.output"])
def test_ctrl_c_while_anything_loads_is_a_line_and_130(program: list[str], loaded: str, tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", *program, "query", "--frame", "0", "--store", "none"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell ignores it for what it sends behind
    ) as loading:  # fmt: skip
        assert loading.stderr is not None
        while not loading.stderr.readline().rstrip().endswith(f" {loaded}"):
            assert loading.poll() is None
        loading.send_signal(signal.SIGINT)
        _, err = loading.communicate(timeout=100)
    (said,) = (line for line in err.splitlines() if not line.startswith("import time:"))
    assert said.startswith("Ended at once, as asked.")
    assert loading.returncode == 130


@pytest.mark.parametrize("verb", ["ingest", "train"])
def test_a_second_ctrl_c_ends_at_once_also_while_another_process_keeps_the_catalog(verb: str, tmp_path: Path) -> None:
    store, media = tmp_path / "store", tmp_path / "media"
    small_store(store).close()
    photograph(media / "a.png")
    flags = SMALL if verb == "train" else ("ingest.workers=1", "ingest.settle_s=0.2", "ingest.poll_s=0.1")
    words = ["train", "--device", "cpu"] if verb == "train" else ["ingest", "--watch", str(media)]
    command = [sys.executable, "-m", "cld_stream", *words, *(word for flag in flags for word in ("--set", flag))]
    with subprocess.Popen([*command, "--store", str(store)], cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            until(lambda: any(p.numbers.get("state") in ("watching", "waiting") for p in status(store).processes))
            with holding_the_catalog(store):
                photograph(media / "b.png", seed=1)
                time.sleep(2)
                process.send_signal(signal.SIGINT)
                time.sleep(1)
                assert process.poll() is None, "it waits for the catalog"
                process.send_signal(signal.SIGINT)
                _, said = process.communicate(timeout=10)
        finally:
            process.kill()
    assert process.returncode == 130, said
    assert said.splitlines()[-1].startswith("Ended at once, as asked.")
    assert "Traceback" not in said


def test_sigterm_asks_as_often_as_it_likes_and_a_second_sigint_insists() -> None:
    with StopSignals() as stop:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(number)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_the_end_of_a_command_does_not_go_through_all_that_was_imported() -> None:
    program = (
        "import atexit, gc, sys; atexit.register(lambda: print(gc.get_freeze_count() > 1000)); "
        "sys.argv = ['cld-stream', '--version']; from cld_stream.cli import main; main()"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert (ended.returncode, ended.stdout.split()[-1]) == (0, "True"), ended.stderr


@pytest.mark.parametrize("chosen", [None, "7"])
def test_threads_that_wait_give_the_core_up_soon_unless_the_user_said_otherwise(chosen: str | None) -> None:
    program = (
        "import atexit, os, sys; atexit.register(lambda: print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)); "
        "sys.argv = ['cld-stream', '--version']; from cld_stream.cli import main; main()"
    )
    environment = {k: v for k, v in os.environ.items() if k != "GOMP_SPINCOUNT"}
    environment |= {} if chosen is None else {"GOMP_SPINCOUNT": chosen}
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=100, env=environment
    )
    assert ended.stdout.splitlines()[-1] == f"{chosen or 10000} False", ended.stderr  # torch reads it as it loads
