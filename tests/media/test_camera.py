"""Cameras, against a real RTSP server on the loopback: nothing that one does stops the line for good."""

import os
import resource
import signal
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path

import pytest

from cld_stream.config import IngestSettings
from cld_stream.media import camera
from cld_stream.media.address import is_camera, masked
from cld_stream.media.camera import read_camera
from cld_stream.media.frames import MediaFrame
from cld_stream.media.job import Chunk, Done, Event, Job, Started
from cld_stream.media.link import CameraLink
from tests.media.rtsp_server import RtspCamera, free_port
from tests.media.test_sandbox import sent
from tests.pipelines.footage import film

SETTINGS = IngestSettings(camera_timeout_s=2.0, camera_retry_s=0.2)


def job(url: str, fps: float = 5.0) -> Job:
    return Job(key=0, kind="camera", path=Path(masked(url)), url=url, size=32, fps=fps, timeout_s=2.0)


class Listening:
    """A link, and what came over it."""

    def __init__(self, url: str, settings: IngestSettings = SETTINGS) -> None:
        self.link = CameraLink(job(url), settings)
        self.events: list[Event] = []

    def until(self, holds: Callable[[], object], seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {self.reasons}"
            self.events += self.link.poll()
            time.sleep(0.02)

    def until_more(self, frames: int = 5) -> None:
        """Wait for frames of a call that is yet to be answered."""
        calls = sum(isinstance(e, Started) for e in self.events)
        self.until(lambda: sum(isinstance(e, Started) for e in self.events) > calls)
        wanted = len(self.frames) + frames
        self.until(lambda: len(self.frames) >= wanted)

    @property
    def frames(self) -> list[MediaFrame]:
        return [frame for e in self.events if isinstance(e, Chunk) for frame in e.frames]

    @property
    def reasons(self) -> list[str]:
        return [e.reason for e in self.events if isinstance(e, Done)]


@pytest.fixture
def listen() -> Iterator[Callable[[str], Listening]]:
    lines: list[Listening] = []

    def call(url: str, settings: IngestSettings = SETTINGS) -> Listening:
        lines.append(Listening(url, settings))
        return lines[-1]

    yield call
    for line in lines:
        line.link.close()


def test_a_camera_may_be_down_die_change_and_stall_and_the_line_is_taken_up_again(
    listen: Callable[[str], Listening],
) -> None:
    server = RtspCamera()
    line = listen(server.url.replace("//", "//me:secret@"))
    line.until(lambda: line.reasons)  # it is not there yet
    with server.on() as child:
        line.until_more()
        assert line.link.live
        child.kill()
        line.until(lambda: not line.link.live)
    with server.on(640, 360) as child:  # it comes back with other pictures
        line.until_more()
        child.send_signal(signal.SIGSTOP)
        line.until(lambda: not line.link.live)
        child.send_signal(signal.SIGCONT)
        line.until_more()
        os.killpg(line.link.pids[0], signal.SIGKILL)
        line.until(lambda: "killed" in line.reasons[-1])
        line.until_more(1)
    said = dict.fromkeys(line.reasons)
    assert {"Connection refused", "it ended the stream", "nothing came from it for 2 s"} < set(said)
    assert not any("secret" in reason for reason in said)
    assert [f.aspect for f in line.frames] == sorted(f.aspect for f in line.frames)
    assert {round(f.aspect, 2) for f in line.frames} == {1.33, 1.78}
    positions = [f.time_s for f in line.frames]
    assert positions[0] == 0
    assert all(b > a for a, b in pairwise(positions))
    begun = line.frames[0].wall_utc or 0.0
    assert [f.wall_utc for f in line.frames] == pytest.approx([begun + p for p in positions], abs=0.1)
    assert abs(begun + positions[-1] - time.time()) < 30


def test_a_worker_that_hangs_or_goes_mad_on_a_camera_is_replaced(listen: Callable[..., Listening]) -> None:
    server = RtspCamera()
    line = listen(server.url, replace(SETTINGS, camera_timeout_s=0.1))
    with server.on():
        line.until_more()
        os.kill(line.link.pids[0], signal.SIGSTOP)
        line.until(lambda: line.reasons)
        assert "the decoder hung" in line.reasons[-1]
        line.until_more()
        worker = line.link._worker
        assert worker is not None
        worker.pipe.close()
        worker.pipe = sent(b"garbage")
        line.until(lambda: len(line.reasons) > 1)
        assert "no answer" in line.reasons[-1]
        line.until_more()


def test_a_machine_that_can_start_no_process_is_waited_for(listen: Callable[[str], Listening]) -> None:
    line, before = listen(RtspCamera().url), resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        line.until(lambda: line.reasons)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert line.reasons == ["no process can be started to call it: Too many open files"]
    line.until(lambda: line.reasons[-1] == "Connection refused")


def test_garbage_costs_pictures_and_no_call(listen: Callable[[str], Listening]) -> None:
    server = RtspCamera()
    line = listen(server.url)
    with server.on(320, 240, "garbage"):
        line.until_more(10)
    assert line.reasons == []


def ends(asked: Job) -> list[Event]:
    """The first that one call gives, but for how it begins."""
    return [event for event in islice(read_camera(asked, lambda: None), 5) if not isinstance(event, Started)]


def test_a_camera_of_which_nothing_can_be_decoded_is_lost() -> None:
    server = RtspCamera()
    with server.on(320, 240, "noise"):
        events = ends(job(server.url))
    assert events == [Done("BROKEN", "nothing that it sent in 2 s could be decoded", "pyav-camera")]


def test_a_camera_whose_pictures_are_too_large_is_lost() -> None:
    server = RtspCamera()
    with server.on(320, 240):
        events = ends(replace(job(server.url), max_pixels=320 * 240 - 1))
    assert events == [Done("BROKEN", "its pictures exceed ingest.max_pixels = 76799", "pyav-camera")]


@pytest.mark.parametrize("way", ["", "file:", "concat:"])
def test_an_address_never_opens_a_file(way: str, tmp_path: Path) -> None:
    """Whatever a camera refers to."""
    asked = job(way + str(film(tmp_path / "private.mkv", seconds=1)))
    assert ends(asked) == [Done("BROKEN", "Invalid argument", "pyav-camera")]


class _Refuses(socketserver.StreamRequestHandler):
    """Every request is answered with 401."""

    def handle(self) -> None:
        for raw in self.rfile:
            if raw.lower().startswith(b"cseq"):
                number = raw.split(b":")[1].strip()
            elif raw == b"\r\n":
                challenge = b'WWW-Authenticate: Basic realm="camera"'
                self.wfile.write(b"RTSP/1.0 401 Unauthorized\r\nCSeq: " + number + b"\r\n" + challenge + b"\r\n\r\n")


def test_a_wrong_password_is_named_and_not_shown() -> None:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Refuses) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        asked = job(f"rtsp://me:secret@127.0.0.1:{server.server_address[1]}/live")
        events = list(read_camera(asked, lambda: None))
        server.shutdown()
    assert events == [Done("BROKEN", "it refuses this user name and password", "pyav-camera")]
    assert "secret" not in repr(asked)


def test_a_device_that_is_not_there_and_one_that_is_none_are_named(tmp_path: Path) -> None:
    assert [e.reason for e in read_camera(job("/dev/video99"), lambda: None) if isinstance(e, Done)] == [
        "No such file or directory"
    ]


def test_the_pauses_between_calls_double_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    link = CameraLink(job(f"rtsp://127.0.0.1:{free_port()}/live"), IngestSettings(camera_retry_s=8.0))
    pauses = []
    for _ in range(6):
        link._take(Done("BROKEN", "down"))
        pauses.append(round(link._call_at - time.monotonic()))
    link._take(Chunk([], "{}"))
    link._take(Done("BROKEN", "down"))
    assert pauses == [1, 2, 4, 8, 8, 8]
    assert round(link._call_at - time.monotonic()) == 1


def test_positions_go_on_over_calls_and_never_back_whatever_the_clock_does(monkeypatch: pytest.MonkeyPatch) -> None:
    wall, ticks = [1000.0], [50.0]
    monkeypatch.setattr(time, "time", lambda: wall[0])
    monkeypatch.setattr(time, "monotonic", lambda: ticks[0])

    def call(cursor: str | None, seconds: float) -> tuple[list[float], str]:
        clock = camera._Clock.at(cursor, 2.0)
        out = []
        for _ in range(round(seconds * 10)):
            stamp = clock.stamp()
            out += [] if stamp is None else [stamp[0]]
            wall[0], ticks[0] = wall[0] + 0.1, ticks[0] + 0.1
        return out, clock.cursor()

    first, cursor = call(None, 2.0)
    assert first == pytest.approx([0.0, 0.5, 1.0, 1.5])
    wall[0], ticks[0] = wall[0] + 60, ticks[0] + 60  # a minute without a line
    second, cursor = call(cursor, 1.0)
    assert second == pytest.approx([62.0, 62.5])
    wall[0] -= 3600  # the clock is set back
    third, _ = call(cursor, 1.0)
    assert third == pytest.approx([63.0, 63.5])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("rtsp://me:pass@cam:554/a?channel=1", "rtsp://cam:554/a?channel=1"),
        ("RTSP://me:p@ss:w@cam/live", "rtsp://cam/live"),
        ("rtsp://me:p/w@cam/live", "rtsp://cam/live"),
        ("rtsp://cam/stream@1", "rtsp://cam/stream@1"),
        ("rtsp://cam:554/stream@1", "rtsp://cam:554/stream@1"),
        ("rtsp://cam/live?usr=me&psw=x&ch=1", "rtsp://cam/live?usr=***&psw=***&ch=1"),
        ("rtsp://cam/live?pw=x&credentials=y&ch=1", "rtsp://cam/live?pw=***&credentials=***&ch=1"),
        ("rtsp://cam/live?token=ab/cd?e==&ch=1", "rtsp://cam/live?token=***&ch=1"),
        ("rtsp://cam/password=x/live?ch=1/2", "rtsp://cam/password=***/live?ch=1/2"),
        ("rtsp://cam/user=me&password=x&channel=1.sdp", "rtsp://cam/user=***&password=***&channel=1.sdp"),
        ("rtsps://[::1]:322/x?loginpas=1;pwd=2#f", "rtsps://[::1]:322/x?loginpas=***;pwd=***#f"),
        ("rtsp://cam?token=1", "rtsp://cam?token=***"),
        ("/dev/video0", "/dev/video0"),
    ],
)
def test_an_address_is_shown_without_what_opens_it(text: str, shown: str) -> None:
    assert (is_camera(text), masked(text), masked(masked(text))) == (True, shown, shown)


@pytest.mark.parametrize("text", ["/dev/shm/footage", "clip.mp4", "http://cam/film.mp4", "/data/rtsp://x", "@list.txt"])
def test_what_is_no_camera(text: str) -> None:
    assert not is_camera(text)
