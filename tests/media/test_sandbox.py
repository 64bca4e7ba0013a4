"""A worker tries what a taken-over decoder would try; beside it, a process that is not confined does the same."""

import ctypes
import json
import os
import pickle
import platform
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from cld_stream.errors import MediaError
from cld_stream.media.answers import receive
from cld_stream.media.frames import MediaFrame
from cld_stream.media.job import Chunk, Done, Event, Started
from cld_stream.media.sandbox import MOST_FILES, scrubbed
from cld_stream.media.sandbox_check import worker_abilities
from cld_stream.media.sandbox_probe import Abilities
from tests.media.refused import EPERM, KILL

ROOT = Path(__file__).parents[2]
LANDLOCK = {"landlock_create_ruleset": 444, "landlock_add_rule": 445, "landlock_restrict_self": 446}


def landlock_abi() -> int:
    return int(ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1)) if sys.platform == "linux" else 0


needs_landlock = pytest.mark.skipif(landlock_abi() < 3, reason="this kernel has no Landlock, or an old one")
needs_seccomp = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"), reason="no filter for this machine"
)


def _has_uring() -> bool:
    """Whether the system lets any process make one."""
    switch = Path("/proc/sys/kernel/io_uring_disabled")
    return switch.exists() and switch.read_text().strip() == "0"


@pytest.fixture(scope="module")
def secret() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "not for a decoder")
        yield "AWS_SECRET_ACCESS_KEY"


@pytest.fixture(scope="module")
def file_worker(secret: str) -> Abilities:
    return worker_abilities()


@pytest.fixture(scope="module")
def camera_worker(secret: str) -> Abilities:
    return worker_abilities("net")


@pytest.fixture(scope="module")
def unconfined(secret: str, tmp_path_factory: pytest.TempPathFactory) -> Abilities:
    """The same attempts in a process that gave up nothing: without it the tests below could pass by mistake."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        folder, port = tmp_path_factory.mktemp("unconfined"), listener.getsockname()[1]
        code = (
            "import sys; from pathlib import Path; from cld_stream.media.job import Job;"
            "from cld_stream.media.sandbox_probe import read_probe;"
            "print(*(e.reason for e in read_probe(Job(key=0, kind='probe', path=Path(sys.argv[1]), url=sys.argv[2]))))"
        )
        told = subprocess.run([sys.executable, "-c", code, folder, str(port)], capture_output=True, check=True)
    return Abilities(**json.loads(told.stdout))


def test_a_process_that_is_not_confined_can_do_it_all(unconfined: Abilities, secret: str) -> None:
    assert unconfined.network
    assert unconfined.datagrams
    assert unconfined.uring or not _has_uring()
    assert unconfined.files
    assert unconfined.programs
    assert unconfined.processes
    assert unconfined.outside
    assert unconfined.descriptors > MOST_FILES
    assert secret in unconfined.environment


@needs_seccomp
def test_a_worker_that_reads_files_reaches_no_network(file_worker: Abilities) -> None:
    assert not file_worker.network
    assert not file_worker.datagrams
    assert not file_worker.uring


def test_a_worker_that_crashes_leaves_no_memory_behind(unconfined: Abilities, file_worker: Abilities) -> None:
    if not unconfined.dumps:
        pytest.skip("nothing may leave its memory here")
    assert not file_worker.dumps


@needs_seccomp
def test_a_worker_starts_no_program_and_no_process(file_worker: Abilities, camera_worker: Abilities) -> None:
    for worker in (file_worker, camera_worker):
        assert not worker.programs
        assert not worker.processes


@needs_landlock
def test_a_worker_writes_no_file(file_worker: Abilities, camera_worker: Abilities) -> None:
    assert not file_worker.files
    assert not camera_worker.files


@needs_landlock
def test_the_environment_of_the_parent_is_out_of_reach(file_worker: Abilities, camera_worker: Abilities) -> None:
    assert not file_worker.outside
    assert not camera_worker.outside


def test_a_worker_inherits_no_secret(file_worker: Abilities, camera_worker: Abilities, secret: str) -> None:
    assert secret not in file_worker.environment
    assert secret not in camera_worker.environment


def test_a_worker_has_few_file_descriptors(file_worker: Abilities) -> None:
    assert 8 <= file_worker.descriptors <= MOST_FILES


def test_a_camera_is_called_over_the_network(camera_worker: Abilities) -> None:
    assert camera_worker.network
    assert camera_worker.datagrams


def abilities_where_refused(action: int, numbers: list[int], camera: str = "") -> Abilities:
    command = [sys.executable, "-m", "tests.media.refused", camera, str(action), *map(str, numbers)]
    return Abilities(**json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout))


@needs_landlock
@pytest.mark.parametrize("camera", ["", "/dev/null"])
def test_a_worker_lives_under_the_filter_of_its_service(camera: str) -> None:
    """systemd 252 has landlock_* in none of the groups that a service is given, and kills by default."""
    unit = (ROOT / "contrib" / "systemd" / "cld-stream-ingest.service").read_text()
    (named,) = (line.split() for line in unit.splitlines() if line.startswith("SystemCallFilter="))
    assert abilities_where_refused(KILL, [n for name, n in LANDLOCK.items() if name not in named], camera).descriptors
    assert "SystemCallErrorNumber=EPERM" in unit


@needs_landlock
@needs_seccomp
def test_a_worker_does_without_the_calls_that_are_refused() -> None:
    able = abilities_where_refused(EPERM, list(LANDLOCK.values()))
    assert (able.network, able.programs, able.processes) == (False, False, False)


def test_of_an_environment_only_what_python_needs_is_kept() -> None:
    kept = {"PATH": "/bin", "LC_ALL": "C", "LANG": "C", "PYTHONPATH": "/x", "LD_LIBRARY_PATH": "/y"}
    gone = {"PYTHON_TOKEN": "1", "PATH_TO_KEY": "2", "CLD_STREAM_STORE": "3", "HF_TOKEN": "4", "LC_": "5"}
    assert scrubbed({**kept, **gone}) == kept


class Runs:
    """What a taken-over worker would send."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def sent(*messages: object) -> Connection:
    ours, theirs = socket.socketpair()
    with Connection(theirs.detach()) as out:
        for message in messages:
            out.send_bytes(message if isinstance(message, bytes) else pickle.dumps(message))
    return Connection(ours.detach())


GOOD = MediaFrame(b"\xff\xd8\xff", 1.5, None, 0, 1.0)
FAR = MediaFrame(b"\xff\xd8\xff", 1e14, -3e9, 2**31 - 1, 1e-6)


@pytest.mark.parametrize(
    "event",
    [
        None,
        Started("pyav", "h264"),
        Chunk([GOOD, FAR], "{}" * 1000),
        Done("BROKEN", "why", "pyav"),
        Done("PARTIAL", "odd \udcff.jpg: no", "pillow"),
    ],
)
def test_an_answer_arrives_as_it_was_sent(event: Event | None) -> None:
    with sent((event, True)) as pipe:
        assert receive(pipe) == (event, True)


def test_an_answer_that_would_run_code_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "made-by-a-worker"
    with sent((Runs(target), False)) as pipe, pytest.raises(MediaError, match="no answer"):
        receive(pipe)
    assert not target.exists()
    pickle.loads(pickle.dumps(Runs(target)))  # it would have
    assert target.exists()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x80\x05garbage",
        pickle.dumps(5),
        pickle.dumps(("text", False)),
        pickle.dumps((Done("DELETE", ""), False)),  # type: ignore[arg-type]
        pickle.dumps((Done("ADDED", "x" * 100_000), False)),
        pickle.dumps((Chunk([], "{}"), False)),
        pickle.dumps((Chunk([MediaFrame(b"GIF89a", 0.0, None, 0, 1.0)], "{}"), False)),
        pickle.dumps((Chunk([MediaFrame(b"\xff\xd8", float("nan"), None, 0, 1.0)], "{}"), False)),
        pickle.dumps((Chunk([MediaFrame(b"\xff\xd8", 0.0, float("inf"), 0, 1.0)], "{}"), False)),
        pickle.dumps((Chunk([MediaFrame(b"\xff\xd8", 0.0, 1e14, 0, 1.0)], "{}"), False)),
        pickle.dumps((Chunk([MediaFrame(b"\xff\xd8", 0.0, None, 0, 0.0)], "{}"), False)),
        pickle.dumps((Chunk([MediaFrame(b"\xff\xd8", "0", None, 0, 1.0)], "{}"), False)),  # type: ignore[arg-type]
        *(
            pickle.dumps((Chunk([MediaFrame(b"\xff\xd8", time_s, None, shot, aspect)], "{}"), False))
            for time_s, shot, aspect in [
                (0.0, 2**31, 1.0), (0.0, 2**40, 1.0), (0.0, 2**63, 1.0), (0.0, 10**400, 1.0), (0.0, -1, 1.0),
                (0.0, 0, 1e300), (0.0, 0, 1e-300), (0.0, 0, float("nan")), (1e300, 0, 1.0), (-1e300, 0, 1.0),
            ]
        ),
        pickle.dumps((Chunk([GOOD], "x" * 100_000), False)),
        pickle.dumps((Chunk([GOOD], "\ud800"), False)),
        pickle.dumps((Done("BROKEN", "\ud800"), False)),
        pickle.dumps((Started("\udcff"), False)),
    ],
)  # fmt: skip
def test_what_is_no_answer_ends_the_worker_and_not_us(answer: bytes) -> None:
    with sent(answer) as pipe, pytest.raises(MediaError, match="no answer"):
        receive(pipe)


def test_a_message_is_not_as_long_as_a_worker_says() -> None:
    ours, theirs = socket.socketpair()
    with theirs, Connection(ours.detach()) as pipe:
        theirs.sendall(struct.pack("!i", 2**30))
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(OSError, match="bad message length"):
            receive(pipe)
