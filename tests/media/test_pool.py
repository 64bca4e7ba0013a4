"""The worker pool: order kept, bad files cost themselves only, nothing outlives its parent."""

import csv
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cld_stream.config import IngestSettings
from cld_stream.errors import CldError
from cld_stream.media.job import Chunk, Done, Event, Job, Started
from cld_stream.media.link import CameraLink
from cld_stream.media.pool import DecodePool
from cld_stream.media.video import read_video
from tests.media.test_video import counter, frames_of, same, steady


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(") ", 1)[1][0] not in "ZX"


def video_jobs(paths: list[Path], **options: object) -> list[Job]:
    return [Job(key=i, kind="video", path=p, **options) for i, p in enumerate(paths)]  # type: ignore[arg-type]


def outcomes(pool: DecodePool, jobs: list[Job]) -> list[Done]:
    return [event for _, event in pool.run(jobs) if isinstance(event, Done)]


def test_modules_in_the_current_folder_are_not_what_a_worker_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("numpy", "PIL", "av", "cld_stream"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(1)")
    Image.new("RGB", (20, 20)).save(tmp_path / "a.jpg")
    monkeypatch.chdir(tmp_path)
    with DecodePool(1, IngestSettings()) as pool:
        (done,) = outcomes(pool, [Job(key=0, kind="photo", path=tmp_path / "a.jpg")])
    assert done.outcome == "ADDED", done.reason


def test_events_come_in_job_order_and_hold_what_the_reader_gives(tmp_path: Path) -> None:
    paths = [counter(tmp_path / f"{i}.mp4", steady(400 if i % 5 == 0 else 20)) for i in range(12)]
    jobs = video_jobs(paths)
    with DecodePool(3, IngestSettings()) as pool:
        events = list(pool.run(jobs))
        assert [job.key for job, _ in events] == sorted(job.key for job, _ in events)
        for job in jobs:
            own = [e for j, e in events if j.key == job.key]
            assert isinstance(own[0], Started)
            assert isinstance(own[-1], Done)
            assert same(frames_of(iter(own)), frames_of(read_video(job)))


def test_workers_stay_for_the_next_run_and_end_with_the_pool(tmp_path: Path) -> None:
    path = counter(tmp_path / "a.mp4", steady(20))
    with DecodePool(2, IngestSettings()) as pool:
        first = threading.Thread(target=lambda: list(pool.run(video_jobs([path] * 4))))
        first.start()
        first.join()
        pids = pool.pids
        time.sleep(0.2)  # a worker that died with that thread would be gone by now
        assert {d.outcome for d in outcomes(pool, video_jobs([path] * 4))} == {"ADDED"}
        assert pool.pids == pids
        assert all(alive(pid) for pid in pids)
    assert not any(alive(pid) for pid in pids)


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGSEGV])
def test_a_crash_costs_the_file_and_no_other(number: int, tmp_path: Path) -> None:
    long, short = counter(tmp_path / "l.mp4", steady(256)), counter(tmp_path / "s.mp4", steady(20))
    with DecodePool(1, IngestSettings()) as pool:
        done = []
        for job, event in pool.run(video_jobs([short, long, short], fps=25.0)):
            if job.key == 1 and isinstance(event, Started):
                os.kill(pool.pids[0], number)
            if isinstance(event, Done):
                done.append(event)
    assert [d.outcome for d in done] == ["ADDED", "BROKEN", "ADDED"]
    assert signal.Signals(number).name in done[1].reason


@pytest.mark.parametrize("kills", [1, 2])
def test_a_file_whose_worker_was_killed_is_read_on_once(kills: int, tmp_path: Path) -> None:
    """By the system, when memory ran out: that is rarely the file's doing."""
    jobs = video_jobs([counter(tmp_path / name, steady(256)) for name in ("a.mp4", "b.mp4")], fps=25.0)
    killed, events = set[int](), list[tuple[Job, Event]]()
    with DecodePool(1, IngestSettings()) as pool:
        for job, event in pool.run(jobs):
            events.append((job, event))
            if job.key == 0 and isinstance(event, Chunk) and len(killed) < kills and pool.pids[0] not in killed:
                killed.add(pool.pids[0])
                os.kill(pool.pids[0], signal.SIGKILL)
    assert len(killed) == kills
    first, second = ([e for job, e in events if job.key == key] for key in (0, 1))
    assert [isinstance(e, Started) for e in first].count(True) == 1
    ends = [e for one in (first, second) for e in one if isinstance(e, Done)]
    assert [end.outcome for end in ends] == ["ADDED" if kills == 1 else "BROKEN", "ADDED"]
    if kills == 1:
        assert same(frames_of(iter(first)), frames_of(read_video(jobs[0])))
    else:
        assert "killed (SIGKILL)" in ends[0].reason


@pytest.fixture
def fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """Lets the next workers end in this way as they start, so many times."""
    python, real, left = tmp_path / "python", sys.executable, tmp_path / "left"

    def fail(how: str, times: int) -> None:
        left.write_text("." * times)
        shorten = f'rest=$(cat {left})\nprintf %s "${{rest#.}}" >{left}'
        python.write_text(f'#!/bin/sh\n[ -s {left} ] || exec {real} "$@"\n{shorten}\n{how}\n')
        python.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(python))

    return fail


@pytest.mark.parametrize("how", ["exit 7", "kill -9 $$"])
def test_a_worker_that_ends_as_it_starts_is_no_fault_of_the_file(
    how: str, tmp_path: Path, fails: Callable[[str, int], None]
) -> None:
    path = counter(tmp_path / "a.mp4", steady(256))
    fails(how, 3)
    with DecodePool(1, IngestSettings()) as pool:
        assert [done.outcome for done in outcomes(pool, video_jobs([path]))] == ["ADDED"]
        seen = list[Event]()
        for _, event in pool.run(video_jobs([path], fps=25.0)):
            seen.append(event)
            if sum(isinstance(e, Chunk) for e in seen) == 1 and isinstance(event, Chunk):
                fails(how, 3)  # what the system lacks, it still lacks when the next one starts
                os.kill(pool.pids[0], signal.SIGKILL)
        assert seen[-1] == Done("ADDED", "", "pyav")


def test_workers_that_never_start_end_the_run(tmp_path: Path, fails: Callable[[str, int], None]) -> None:
    path = counter(tmp_path / "a.mp4", steady(20))
    fails("exit 7", 1000)
    with DecodePool(1, IngestSettings(), patience_s=0.5) as pool, pytest.raises(CldError, match="exit status 7"):
        outcomes(pool, video_jobs([path]))


def test_a_machine_out_of_files_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    path, before = counter(tmp_path / "a.mp4", steady(20)), resource.getrlimit(resource.RLIMIT_NOFILE)
    with DecodePool(1, IngestSettings()) as pool:
        again = threading.Timer(1.0, resource.setrlimit, (resource.RLIMIT_NOFILE, before))
        again.start()
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
        try:
            assert [done.outcome for done in outcomes(pool, video_jobs([path]))] == ["ADDED"]
        finally:
            again.join()
    with DecodePool(1, IngestSettings(), patience_s=0.5) as pool:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
        try:
            with pytest.raises(CldError, match="Too many open files"):
                outcomes(pool, video_jobs([path]))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_hung_worker_is_killed_and_replaced(tmp_path: Path) -> None:
    long, short = counter(tmp_path / "l.mp4", steady(256)), counter(tmp_path / "s.mp4", steady(20))
    with DecodePool(1, IngestSettings(heartbeat_s=1.0)) as pool:
        list(pool.run(video_jobs([short])))
        stopped, done = pool.pids[0], []
        for job, event in pool.run(video_jobs([long, short], fps=25.0)):
            if job.key == 0 and isinstance(event, Started):
                os.kill(stopped, signal.SIGSTOP)
            if isinstance(event, Done):
                done.append(event)
        assert not alive(stopped)
    assert [d.outcome for d in done] == ["BROKEN", "ADDED"]
    assert "hung" in done[0].reason


def test_a_worker_that_does_not_die_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that waits for a network drive without end cannot be killed; here its death is kept from it."""
    path = counter(tmp_path / "a.mp4", steady(20))
    monkeypatch.setattr("cld_stream.media.pool._DEATH_S", 0.2)
    with DecodePool(1, IngestSettings(heartbeat_s=0.5)) as pool:
        list(pool.run(video_jobs([path])))
        deathless = pool._workers[0].process
        with monkeypatch.context() as patch:
            patch.setattr(os, "killpg", lambda *_: os.kill(deathless.pid, signal.SIGSTOP))
            os.kill(deathless.pid, signal.SIGSTOP)
            assert [d.outcome for d in outcomes(pool, video_jobs([path]))] == ["BROKEN"]
        assert alive(deathless.pid)
        assert [d.outcome for d in outcomes(pool, video_jobs([path]))] == ["ADDED"]
    deathless.kill()
    deathless.wait()


@pytest.fixture(scope="module")
def laborious(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture whose decoder computes for a second in one call, without a sign of life."""
    path = tmp_path_factory.mktemp("laborious") / "noise.jp2"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (1800, 1800, 3), dtype=np.uint8)).save(path)
    return path


def test_a_worker_that_stops_within_a_message_is_killed_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that has taken a decoder over may do that, and so may a machine."""
    path = counter(tmp_path / "a.mp4", steady(20))
    half = f"#!{sys.executable}\nimport os, sys, time\nos.write(int(sys.argv[4]), b'\\0\\0\\0dhalf')\ntime.sleep(60)\n"
    (tmp_path / "half").write_text(half)
    (tmp_path / "half").chmod(0o755)
    job, settings = video_jobs([path])[0], IngestSettings(heartbeat_s=0.5, camera_timeout_s=0.1)
    monkeypatch.setattr("cld_stream.media.pool._DEATH_S", 0.5)
    with DecodePool(1, settings) as pool:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "executable", str(tmp_path / "half"))
            link = CameraLink(replace(job, kind="camera", url="rtsp://127.0.0.1:1/"), settings)
            link.poll()
            pool._hire()  # reads nothing yet
        began = time.monotonic()
        (done,) = outcomes(pool, [job])
        assert (done.outcome, done.reason) == ("BROKEN", "the decoder stopped answering")
        assert outcomes(pool, [job])[0].outcome == "ADDED"
    events: list[Event] = []
    while not events:
        time.sleep(0.05)
        events = link.poll()
    link.close()
    assert [event.reason for event in events if isinstance(event, Done)] == ["the decoder stopped answering"]
    assert time.monotonic() - began < 40


@pytest.mark.parametrize("seconds", [float("inf"), 1e9])
def test_workers_may_be_waited_for_without_end(seconds: float, tmp_path: Path) -> None:
    path = counter(tmp_path / "a.mp4", steady(20))
    with DecodePool(1, IngestSettings(heartbeat_s=seconds, compute_s=seconds)) as pool:
        assert outcomes(pool, video_jobs([path]))[0].outcome == "ADDED"


def test_a_decoder_that_computes_is_slow_and_not_hung(laborious: Path) -> None:
    jobs = [Job(key=i, kind="photo", path=laborious) for i in range(2)]  # the first may find the worker starting
    with DecodePool(1, IngestSettings(heartbeat_s=0.2)) as pool:
        assert [d.outcome for d in outcomes(pool, jobs)] == ["ADDED"] * 2


def test_a_decoder_that_computes_for_ever_is_ended_and_replaced(laborious: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.png"
    Image.new("RGB", (20, 20)).save(small)
    jobs = [Job(key=i, kind="photo", path=p) for i, p in enumerate([laborious, small])]
    with DecodePool(1, IngestSettings(compute_s=0.5)) as pool:
        done = outcomes(pool, jobs)
    assert [d.outcome for d in done] == ["BROKEN", "ADDED"]
    assert "0.5 s of computing" in done[0].reason


def test_a_slow_consumer_is_not_taken_for_a_hung_worker(tmp_path: Path) -> None:
    paths = [counter(tmp_path / f"{i}.mp4", steady(100)) for i in range(3)]
    with DecodePool(2, IngestSettings(heartbeat_s=1.0)) as pool:
        done = []
        for job, event in pool.run(video_jobs(paths, fps=25.0)):
            if job.key == 0 and isinstance(event, Started):
                time.sleep(1.5)
            if isinstance(event, Done):
                done.append(event.outcome)
    assert done == ["ADDED"] * 3


def test_a_file_that_needs_too_much_memory_is_broken_and_the_next_is_read(tmp_path: Path) -> None:
    huge = tmp_path / "huge.png"
    Image.new("RGB", (11000, 9000)).save(huge, compress_level=1)
    small = tmp_path / "small.png"
    Image.new("RGB", (20, 20)).save(small)
    jobs = [Job(key=i, kind="photo", path=p) for i, p in enumerate([huge, small])]
    with DecodePool(1, IngestSettings(worker_memory_mb=256)) as pool:
        done = outcomes(pool, jobs)
    assert [d.outcome for d in done] == ["BROKEN", "ADDED"]
    assert "memory" in done[0].reason


def test_files_are_read_under_a_hard_limit_of_memory(tmp_path: Path) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "a.jpg")
    command = [sys.executable, "-m", "cld_stream", "ingest", "a.jpg", "--json", "--store", "store"]
    limited = ["sh", "-c", 'ulimit -v 16000000; exec "$@"', "sh", *command]  # the soft and the hard one [kB]
    ran = subprocess.run(limited, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(ran.stdout)["counts"] == {"ADDED": 1}, ran.stdout


def test_a_worker_is_recycled_after_so_many_files(tmp_path: Path) -> None:
    path, seen = counter(tmp_path / "a.mp4", steady(10)), set()
    with DecodePool(1, IngestSettings(worker_files=2)) as pool:
        for _, event in pool.run(video_jobs([path] * 6)):
            if isinstance(event, Started):
                seen.add(pool.pids[0])
    assert len(seen) == 3


def test_an_abandoned_run_leaves_the_pool_usable(tmp_path: Path) -> None:
    path = counter(tmp_path / "a.mp4", steady(200))
    with DecodePool(2, IngestSettings()) as pool:
        run = pool.run(video_jobs([path] * 5, fps=25.0))
        next(run)
        run.close()  # type: ignore[attr-defined]
        assert [d.outcome for d in outcomes(pool, video_jobs([path] * 3))] == ["ADDED"] * 3


def test_jobs_are_drawn_only_as_far_as_the_window_reaches(tmp_path: Path) -> None:
    path, drawn = counter(tmp_path / "a.mp4", steady(10)), 0

    def endless() -> Iterator[Job]:
        nonlocal drawn
        while True:
            drawn += 1
            yield Job(key=drawn, kind="video", path=path)

    with DecodePool(2, IngestSettings()) as pool:
        run = pool.run(endless())
        for _ in range(30):
            next(run)
        run.close()  # type: ignore[attr-defined]
    assert drawn <= 30 + 64


def test_ctrl_c_reaches_the_parent_only(tmp_path: Path) -> None:
    path = counter(tmp_path / "a.mp4", steady(200))
    with DecodePool(1, IngestSettings()) as pool:
        list(pool.run(video_jobs([path])))
        os.killpg(pool.pids[0], signal.SIGINT)
        assert os.getpgid(pool.pids[0]) != os.getpgid(0)
        done = outcomes(pool, video_jobs([path]))
    assert done[0].outcome == "ADDED"


@pytest.mark.skipif(sys.platform != "linux", reason="the parent's death signal is Linux's")
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a worker that hangs does not notice")
def test_workers_die_with_a_killed_parent() -> None:
    """At once, also one that hangs."""
    code = (
        "import sys, time\n"
        "from cld_stream.config import IngestSettings\n"
        "from cld_stream.media.pool import DecodePool\n"
        "pool = DecodePool(2, IngestSettings())\n"
        "pool._hire(), pool._hire()\n"
        "time.sleep(1)\n"
        "print(*pool.pids, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(p) for p in parent.stdout.readline().split()]
    assert len(pids) == 2
    os.kill(pids[0], signal.SIGSTOP)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 5
    while any(alive(p) for p in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(p) for p in pids)


def test_frames_arrive_while_the_file_is_still_being_read(tmp_path: Path) -> None:
    path = counter(tmp_path / "a.mp4", steady(256))
    with DecodePool(1, IngestSettings()) as pool:
        chunks = [e for _, e in pool.run(video_jobs([path], fps=25.0)) if isinstance(e, Chunk)]
    assert len(chunks) >= 256 / 16
    assert max(len(c.frames) for c in chunks) <= 16


def test_nothing_reaches_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = counter(tmp_path / "a.mp4", steady(100))
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 200] = b"\xff" * 200
    path.write_bytes(data)
    capfd.readouterr()
    with DecodePool(1, IngestSettings()) as pool:
        outcomes(pool, video_jobs([path]))
    list(read_video(video_jobs([path])[0]))
    assert capfd.readouterr() == ("", "")


@pytest.mark.data
def test_every_video_of_the_zoo_gets_an_allowed_outcome(data_dir: Path) -> None:
    zoo = data_dir / "media-zoo"
    with (zoo / "manifest.tsv").open(newline="") as file:
        rows = [r for r in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if r["kind"] == "video"]
    with DecodePool(0, IngestSettings()) as pool:
        done = outcomes(pool, video_jobs([zoo / r["path"] for r in rows]))
    wrong = [
        f"{r['path']}: {d.outcome} ({d.reason}), expected {r['outcome']}"
        for r, d in zip(rows, done, strict=True)
        if d.outcome not in r["outcome"].split("|")
    ]
    assert wrong == []
    assert all(d.reason for d in done if d.outcome != "ADDED")


@pytest.mark.data
def test_damaged_videos_of_the_zoo_resume_exactly(data_dir: Path) -> None:
    for name in ("derived/realshort_bitflip.mp4", "video/decord/corrupted.mp4", "derived/vfr_h264.mp4"):
        job = Job(key=0, kind="video", path=data_dir / "media-zoo" / name, fps=3.0)
        events = list(read_video(job, chunk_frames=1))
        whole = frames_of(iter(events))
        for at, event in enumerate(e for e in events if isinstance(e, Chunk)):
            again = Job(key=0, kind="video", path=job.path, fps=3.0, cursor=event.cursor)
            assert same(frames_of(read_video(again)), whole[at + 1 :]), (name, at)


@pytest.mark.data
@pytest.mark.parametrize("kept", [True, False])
def test_what_only_the_first_packet_says_is_known_where_an_earlier_run_is_continued(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    """4:4:4 of an old x264, whose version stands in the first packet: without it FFmpeg decodes the rest wrongly."""
    if not kept:  # as of a large file
        monkeypatch.setattr("cld_stream.media.plan._KEPT_BYTES", 0)
    path = data_dir / "media-zoo/video/imageio/cockatoo.mp4"
    job = Job(key=0, kind="video", path=path, fps=4.0, size=32)
    events = list(read_video(job, chunk_frames=18))
    whole, chunks, before = frames_of(iter(events)), [e for e in events if isinstance(e, Chunk)], 0
    for event in chunks[:-1]:
        before += len(event.frames)  # on a slow machine fewer than asked for
        again = list(read_video(replace(job, cursor=event.cursor)))
        assert same(frames_of(iter(again)), whole[before:])
        assert again[-1] == events[-1]


def test_a_pool_may_be_used_from_a_thread(tmp_path: Path) -> None:
    path, done = counter(tmp_path / "a.mp4", steady(20)), list[Done]()

    def work() -> None:
        with DecodePool(1, IngestSettings()) as pool:
            done.extend(outcomes(pool, video_jobs([path])))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done[0].outcome == "ADDED"
