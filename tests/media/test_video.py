"""Reading videos: the right frames at the right times, upright, whatever the container says."""

import io
import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from cld_stream.media.frames import MediaFrame
from cld_stream.media.job import Chunk, Done, Event, Job
from cld_stream.media.plan import Plan, make_plan, open_container
from cld_stream.media.pyav_reader import Shape
from cld_stream.media.video import read_video

TICK = Fraction(1, 1000)
Rgb = NDArray[np.uint8]


def numbered(number: int, width: int = 96, height: int = 64) -> Rgb:
    """Eight bars, black or white: the binary digits of `number`, most significant at the left."""
    bits = np.array([number >> (7 - b) & 1 for b in range(8)], np.uint8) * 255
    row = np.repeat(bits, -(-width // 8))[:width]
    return np.ascontiguousarray(np.broadcast_to(row[None, :, None], (height, width, 3)))


def number_in(frame: MediaFrame) -> int:
    """What `numbered` drew, read from the stored JPEG."""
    pixels = np.asarray(Image.open(io.BytesIO(frame.jpeg)).convert("L"))
    middle = (np.arange(8) * 2 + 1) * pixels.shape[1] // 16
    return int(sum(int(b) << (7 - i) for i, b in enumerate(pixels[80, middle] > 127)))


def write_video(
    path: Path,
    pictures: list[Rgb],
    times_ms: list[int],
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    gop: int = 250,
    pixel: Fraction | None = None,
    **options: str,
) -> Path:
    """Encode pictures shown at the given times."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"preset": "ultrafast", **options})
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt, stream.gop_size, stream.time_base = pix_fmt, gop, TICK
        stream.codec_context.time_base = TICK
        if pixel is not None:
            stream.codec_context.sample_aspect_ratio = pixel
        for picture, time_ms in zip(pictures, times_ms, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = time_ms, TICK
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def counter(path: Path, times_ms: list[int], **options: object) -> Path:
    return write_video(path, [numbered(i) for i in range(len(times_ms))], times_ms, **options)  # type: ignore[arg-type]


def steady(count: int, period_ms: int = 40) -> list[int]:
    return [i * period_ms for i in range(count)]


def read(path: Path, **options: object) -> tuple[list[MediaFrame], Done]:
    events = list(read_video(Job(key=1, kind="video", path=path, **options)))  # type: ignore[arg-type]
    done = events[-1]
    assert isinstance(done, Done)
    return frames_of(iter(events)), done


def plan_of(path: Path, fps: float) -> Plan:
    with open_container(path) as container:
        return make_plan(container, fps, lambda: None)


def frames_of(events: Iterator[Event]) -> list[MediaFrame]:
    return [f for e in events if isinstance(e, Chunk) for f in e.frames]


def same(a: list[MediaFrame], b: list[MediaFrame]) -> bool:
    return [(f.time_s, f.jpeg, f.shot) for f in a] == [(f.time_s, f.jpeg, f.shot) for f in b]


def check_times(path: Path, times_ms: list[int], fps: float, **options: object) -> None:
    """Every frame is where it says, within half a period of its cell, and no cell with frames is missing."""
    frames, done = read(path, fps=fps, **options)
    assert done.outcome == "ADDED", done
    start = times_ms[0]
    for frame in frames:
        assert frame.time_s * 1000 == pytest.approx(times_ms[number_in(frame)] - start, abs=1.5)
        cell = round(frame.time_s * fps)
        assert abs(frame.time_s - cell / fps) <= 0.5 / fps + 1e-6
    cells = {int((t - start) / 1000 * fps + 0.5 + 1e-9) for t in times_ms}
    assert [int(f.time_s * fps + 0.5 + 1e-9) for f in frames] == sorted(cells)


STEADY: dict[str, Callable[[Path], Path]] = {
    "long GOP": lambda d: counter(d / "a.mp4", steady(120)),
    "B-frames": lambda d: counter(
        d / "a.mp4", steady(120), bf="3", preset="medium", **{"x264-params": "b-adapt=0:scenecut=0"}
    ),
    "open GOP": lambda d: counter(
        d / "a.mkv", steady(120), gop=20, preset="medium", bf="3", **{"x264-params": "open-gop=1"}
    ),
    "dense key frames": lambda d: counter(d / "a.mp4", steady(120), gop=10),
    "B-frames and dense key frames": lambda d: counter(d / "a.mp4", steady(200), gop=20, preset="medium", bf="3"),
    "mpeg4 avi": lambda d: counter(d / "a.avi", steady(120), codec="mpeg4"),
    "10 bit": lambda d: counter(d / "a.mp4", steady(60), pix_fmt="yuv420p10le"),
    "rgb": lambda d: counter(d / "a.mkv", steady(60), codec="libx264rgb", pix_fmt="rgb24"),
    "hevc": lambda d: counter(d / "a.mp4", steady(60), codec="libx265", **{"x265-params": "log-level=none"}),
    "transport stream": lambda d: counter(d / "a.ts", steady(60)),
    "vp9": lambda d: counter(d / "a.webm", steady(40), codec="libvpx-vp9", **{"cpu-used": "8"}),
}


@pytest.mark.parametrize("name", STEADY)
@pytest.mark.parametrize("fps", [2.0, 5.0])
def test_frames_are_taken_at_their_presentation_time(name: str, fps: float, tmp_path: Path) -> None:
    path = STEADY[name](tmp_path)
    times = steady(len(plan_of(path, fps).times) or 120)
    check_times(path, times, fps)


@given(gaps=st.lists(st.integers(10, 900), min_size=3, max_size=60), fps=st.sampled_from([0.5, 2.0, 7.0]))
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_variable_frame_rate_is_sampled_by_time(gaps: list[int], fps: float, tmp_path: Path) -> None:
    times = [sum(gaps[:i]) for i in range(len(gaps))]
    check_times(counter(tmp_path / "v.mkv", times), times, fps)


@pytest.mark.parametrize("room", [0, 16 * 2**20], ids=["packets read again", "packets kept"])
@pytest.mark.parametrize("name", ["long GOP", "B-frames", "open GOP", "dense key frames", "mpeg4 avi"])
def test_resuming_at_any_cursor_gives_the_same_frames_and_bytes(
    name: str, room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = STEADY[name](tmp_path)
    kept_whole = frames_of(read_video(Job(key=1, kind="video", path=path, fps=4.0)))
    monkeypatch.setattr("cld_stream.media.plan._KEPT_BYTES", room)
    assert bool(plan_of(path, 4.0).kept) == (room > 0)
    job = Job(key=1, kind="video", path=path, fps=4.0)
    events = list(read_video(job, chunk_frames=1))
    whole = frames_of(iter(events))
    assert len(whole) > 10
    assert same(whole, kept_whole)
    for at, event in enumerate(e for e in events if isinstance(e, Chunk)):
        rest = list(read_video(Job(key=1, kind="video", path=path, fps=4.0, cursor=event.cursor)))
        assert same(frames_of(iter(rest)), whole[at + 1 :])
        assert rest[-1] == events[-1]


@pytest.mark.parametrize("fps", [1.0, 10.0])
def test_resuming_at_another_rate_goes_on_behind_the_last_frame(fps: float, tmp_path: Path) -> None:
    job = Job(key=1, kind="video", path=counter(tmp_path / "a.mp4", steady(250)), fps=4.0)
    chunk = next(e for e in read_video(job, chunk_frames=20) if isinstance(e, Chunk))
    last = chunk.frames[-1].time_s
    times = [f.time_s for f in frames_of(read_video(replace(job, fps=fps, cursor=chunk.cursor)))]
    anew = [f.time_s for f in frames_of(read_video(replace(job, fps=fps)))]
    assert times == [t for t in anew if round(t * fps) > round(last * fps)]
    assert last < times[0] < last + 2 / fps


def test_resuming_a_stream_that_is_refreshed_bit_by_bit_loses_no_frame(tmp_path: Path) -> None:
    """Its key frames are whole only some frames later."""
    pictures = [numbered(i, 640) for i in range(120)]
    params: dict[str, Any] = {"x264-params": "intra-refresh=1:keyint=30:bframes=0"}
    path = write_video(tmp_path / "a.mp4", pictures, steady(120), preset="medium", **params)
    job = Job(key=1, kind="video", path=path, fps=7.0)
    events = list(read_video(job, chunk_frames=1))
    whole = frames_of(iter(events))
    for at, event in enumerate(e for e in events if isinstance(e, Chunk)):
        assert same(frames_of(read_video(replace(job, cursor=event.cursor))), whole[at + 1 :])


def test_resuming_a_damaged_file_gives_the_same_frames_and_verdict(tmp_path: Path) -> None:
    path = counter(tmp_path / "a.mkv", steady(150), gop=25)
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : len(data) // 3 + 40] = b"\xff" * 40
    path.write_bytes(data)
    job = Job(key=1, kind="video", path=path, fps=4.0)
    events = list(read_video(job, chunk_frames=1))
    whole = frames_of(iter(events))
    for at, event in enumerate(e for e in events if isinstance(e, Chunk)):
        rest = list(read_video(Job(key=1, kind="video", path=path, fps=4.0, cursor=event.cursor)))
        assert same(frames_of(iter(rest)), whole[at + 1 :])
        assert isinstance(rest[-1], Done)
        assert isinstance(events[-1], Done)
        assert rest[-1].outcome == events[-1].outcome


def test_key_frames_alone_are_decoded_when_they_are_dense_enough(tmp_path: Path) -> None:
    path = counter(tmp_path / "a.mp4", steady(200), gop=25)
    sparse, dense = (plan_of(path, fps) for fps in (1.0, 5.0))
    assert (sparse.mode, dense.mode != "keys") == ("keys", True)
    assert set(sparse.wanted) <= set(sparse.keys) | {t for t in sparse.times if t > sparse.keys[-1]}
    check_times(path, steady(200), 1.0)


def test_the_key_frame_plan_agrees_with_the_rule_by_time(tmp_path: Path) -> None:
    path = counter(tmp_path / "a.mp4", steady(200), gop=25)
    frames, _ = read(path, fps=1.0)
    assert [number_in(f) for f in frames] == [0, 25, 50, 75, 100, 125, 150, 175, 199]


def test_what_the_plan_wants_is_what_the_reader_gives(tmp_path: Path) -> None:
    for number, name in enumerate(["B-frames", "open GOP", "dense key frames", "B-frames and dense key frames"]):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = STEADY[name](folder)
        for fps in (0.7, 1.0, 2.0, 6.0):
            plan = plan_of(path, fps)
            assert plan.start is not None
            wanted = [(t - plan.start) * plan.tick_s for t in plan.wanted]
            assert [f.time_s for f in read(path, fps=fps)[0]] == pytest.approx(wanted)


# Display matrix (a, b, c, d): the pixel at (x, y) is shown at (a x + c y, b x + d y), moved into view.
TURNS: dict[str, tuple[tuple[int, int, int, int], Callable[[Rgb], Rgb]]] = {
    "as it is": ((1, 0, 0, 1), lambda x: x),
    "a quarter turn clockwise": ((0, 1, -1, 0), lambda x: np.rot90(x, -1)),
    "upside down": ((-1, 0, 0, -1), lambda x: np.rot90(x, 2)),
    "a quarter turn counter-clockwise": ((0, -1, 1, 0), np.rot90),
    "left and right swapped": ((-1, 0, 0, 1), np.fliplr),
    "top and bottom swapped": ((1, 0, 0, -1), np.flipud),
    "mirrored at one diagonal": ((0, 1, 1, 0), lambda x: x.swapaxes(0, 1)),
    "mirrored at the other": ((0, -1, -1, 0), lambda x: np.rot90(x.swapaxes(0, 1), 2)),
}


def set_display_matrix(path: Path, a: int, b: int, c: int, d: int) -> None:
    """Rewrite the track's matrix in an MP4 file."""
    data = bytearray(path.read_bytes())
    upright = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    at = data.index(upright, data.index(b"tkhd"))
    data[at : at + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


@pytest.mark.parametrize("reader", ["pyav", "decord"])
@pytest.mark.parametrize("turn", TURNS)
def test_every_display_matrix_is_applied(reader: str, turn: str, tmp_path: Path) -> None:
    picture = np.full((64, 96, 3), 255, np.uint8)
    picture[:32, :48], picture[:32, 48:] = 0, 100  # a dark upper left corner, a grey upper right one
    matrix, show = TURNS[turn]
    path = write_video(tmp_path / "r.mp4", [picture] * 10, steady(10))
    set_display_matrix(path, *matrix)
    frames, done = read(path, reader=reader)
    assert (done.outcome, done.reader) == ("ADDED", reader)
    shown = np.asarray(Image.open(io.BytesIO(frames[0].jpeg)).convert("L"))
    upright = show(picture[..., 0])
    height, width = upright.shape
    for y, x in ((0.25, 0.25), (0.25, 0.75), (0.75, 0.25), (0.75, 0.75)):
        assert abs(int(shown[int(y * 160), int(x * 160)]) - int(upright[int(y * height), int(x * width)])) < 20
    assert frames[0].aspect == pytest.approx(width / height)


def test_pixels_that_are_not_square_count_in_the_aspect(tmp_path: Path) -> None:
    path = write_video(tmp_path / "p.mp4", [numbered(3)] * 3, steady(3), pixel=Fraction(4, 3))
    assert read(path)[0][0].aspect == pytest.approx(96 / 64 * 4 / 3)


def test_pixels_that_no_footage_has_are_taken_for_square(tmp_path: Path) -> None:
    path = write_video(tmp_path / "p.mp4", [numbered(3)] * 3, steady(3), pixel=Fraction(40, 1))
    assert read(path)[0][0].aspect == pytest.approx(96 / 64)


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (175, 143), (16, 480), (640, 2)])
def test_any_size_becomes_a_square_frame(fit: str, width: int, height: int, tmp_path: Path) -> None:
    picture = np.full((height, width, 3), 200, np.uint8)
    path = write_video(tmp_path / "s.mp4", [picture] * 3, steady(3), pix_fmt="yuv444p")
    frames, done = read(path, fit=fit)
    assert done.outcome == "ADDED"
    shown = Image.open(io.BytesIO(frames[0].jpeg))
    assert shown.size == (160, 160)
    gray = np.asarray(shown.convert("L"))
    assert np.median(gray[gray > 100]) == pytest.approx(200, abs=25)


def test_colours_survive(tmp_path: Path) -> None:
    for colour in ((220, 30, 30), (30, 200, 40), (40, 40, 230)):
        picture = np.full((64, 64, 3), colour, np.uint8)
        path = write_video(tmp_path / "c.mp4", [picture] * 3, steady(3))
        pixel = Image.open(io.BytesIO(read(path)[0][0].jpeg)).getpixel((80, 80))
        assert pixel == pytest.approx(colour, abs=8)


def test_a_cut_begins_a_new_shot_and_motion_does_not(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scene = [rng.integers(lo, lo + 90, (64, 96, 3)).astype(np.uint8) for lo in (0, 160)]
    pictures = [np.roll(scene[i // 50], i, axis=1) for i in range(100)]
    frames, _ = read(write_video(tmp_path / "s.mp4", pictures, steady(100)))
    assert [f.shot for f in frames] == [0 if f.time_s < 2 else 1 for f in frames]


def test_wall_time_follows_the_given_start(tmp_path: Path) -> None:
    frames, _ = read(counter(tmp_path / "w.mp4", steady(50)), start_utc=1e9)
    assert [f.wall_utc for f in frames] == [1e9 + f.time_s for f in frames]


def test_the_readable_part_of_a_cut_off_file_is_kept(tmp_path: Path) -> None:
    path = counter(tmp_path / "t.mkv", steady(250))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    frames, done = read(path)
    assert done.outcome == "PARTIAL"
    assert "cut off" in done.reason
    assert 5 < len(frames) < 15


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty"), (b"\0" * 5000, "header"), (b"RIFF\x10\0\0\0AVI LIST", "cut off|damaged")],
)
def test_a_file_without_any_frame_is_broken_for_a_stated_reason(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "b.avi"
    path.write_bytes(content)
    frames, done = read(path)
    assert (frames, done.outcome) == ([], "BROKEN")
    assert any(r in done.reason for r in reason.split("|")), done.reason


def test_tags_that_are_no_text_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "t.mp4"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "Zwanzig"
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(5), format="rgb24")))
        container.mux(stream.encode(None))
    assert path.read_bytes().count(b"Zwanzig") == 1
    path.write_bytes(path.read_bytes().replace(b"Zwanzig", b"Zw\xe4nzig"))
    frames, done = read(path)
    assert (len(frames), done.outcome) == (1, "ADDED")


@pytest.mark.parametrize(
    ("suffix", "container", "codec"),
    [
        ("3gp", "3gp", "mpeg4"), ("asf", "asf", "wmv2"), ("avi", "avi", "mpeg4"), ("dv", "dv", "dvvideo"),
        ("f4v", "f4v", "libx264"), ("flv", "flv", "flv"), ("h264", "h264", "libx264"), ("hevc", "hevc", "libx265"),
        ("ivf", "ivf", "libvpx"), ("m2ts", "mpegts", "libx264"), ("m2v", "mpeg2video", "mpeg2video"),
        ("m4v", "m4v", "mpeg4"), ("mj2", "mov", "jpeg2000"), ("mjpeg", "mjpeg", "mjpeg"),
        ("mkv", "matroska", "libx264"), ("mov", "mov", "mjpeg"), ("mpg", "mpeg1video", "mpeg1video"),
        ("mxf", "mxf", "mpeg2video"), ("nut", "nut", "mpeg4"), ("rm", "rm", "rv20"), ("vob", "vob", "mpeg2video"),
        ("webm", "webm", "libvpx"), ("y4m", "yuv4mpegpipe", "wrapped_avframe"),
    ],
)  # fmt: skip
def test_every_container_is_read(suffix: str, container: str, codec: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    pixels = np.zeros((576, 720, 3), np.uint8)
    with av.open(str(path), "w", format=container) as file:
        stream: Any = file.add_stream(codec, rate=25, width=720, height=576)
        stream.pix_fmt = {"mjpeg": "yuvj420p"}.get(codec, "yuv422p" if suffix == "mxf" else "yuv420p")
        for shade in range(0, 250, 50):
            frame = av.VideoFrame.from_ndarray(pixels + np.uint8(shade), format="rgb24")
            file.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
        file.mux(stream.encode(None))
    frames, done = read(path, fps=25.0)
    assert (len(frames), done.outcome) == (5, "ADDED"), done.reason


@pytest.mark.parametrize("reader", ["auto", "decord"])
def test_a_list_of_other_files_is_no_video(reader: str, tmp_path: Path) -> None:
    """A few bytes of it would be any number of frames, of files that nobody gave to be read."""
    write_video(tmp_path / "a.mp4", [numbered(i) for i in range(5)], [40 * i for i in range(5)])
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\n" + 9 * "file a.mp4\n")
    reason = "the file is cut off or damaged: its header cannot be read"
    assert read(tmp_path / "list.mp4", reader=reader) == ([], Done("BROKEN", reason))


def test_a_missing_file_is_broken(tmp_path: Path) -> None:
    assert read(tmp_path / "none.mp4")[1] == Done("BROKEN", "the file vanished before it was read")


def test_a_file_with_sound_only_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    assert read(path)[1] == Done("SKIPPED", "it holds no video, only sound or data")


def test_pictures_above_the_pixel_limit_are_refused(tmp_path: Path) -> None:
    done = read(counter(tmp_path / "a.mp4", steady(3)), max_pixels=1000)[1]
    assert done.outcome == "SKIPPED"
    assert "max_pixels" in done.reason


def test_a_cursor_at_the_end_yields_nothing_more(tmp_path: Path) -> None:
    path = counter(tmp_path / "a.mp4", steady(60))
    events = list(read_video(Job(key=1, kind="video", path=path)))
    cursor = next(e.cursor for e in reversed(events) if isinstance(e, Chunk))
    assert json.loads(cursor)["frames"] == len(frames_of(iter(events)))
    again = list(read_video(Job(key=1, kind="video", path=path, cursor=cursor)))
    assert frames_of(iter(again)) == []
    assert again[-1] == events[-1]


@pytest.mark.parametrize("name", ["long GOP", "B-frames", "dense key frames"])
def test_decord_by_name_gives_the_frames_at_the_same_times(name: str, tmp_path: Path) -> None:
    path = STEADY[name](tmp_path)
    ours, theirs = read(path, reader="pyav")[0], read(path, reader="decord")[0]
    assert [f.time_s for f in theirs] == pytest.approx([f.time_s for f in ours])
    assert [number_in(f) for f in theirs] == [number_in(f) for f in ours]


@pytest.mark.parametrize("suffix", ["ts", "avi"])
def test_decord_resumes_at_any_cursor_with_the_same_frames_and_bytes(suffix: str, tmp_path: Path) -> None:
    options = {"bf": "3", "preset": "medium", "x264-params": "scenecut=0"}
    path = counter(tmp_path / f"a.{suffix}", steady(150), gop=48, **options)
    job = Job(key=1, kind="video", path=path, reader="decord")
    events = list(read_video(job, chunk_frames=1))
    whole = frames_of(iter(events))
    for at, event in enumerate(e for e in events if isinstance(e, Chunk)):
        assert same(frames_of(read_video(replace(job, cursor=event.cursor))), whole[at + 1 :])


def test_frames_that_carry_exif_are_read(tmp_path: Path) -> None:
    """As in the Motion JPEG of still cameras."""
    with av.open(tmp_path / "a.avi", "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuvj420p"
        for n in range(10):
            buffer, exif = io.BytesIO(), Image.Exif()
            exif[0x010F] = "Maker"
            Image.fromarray(numbered(n)).save(buffer, "JPEG", exif=exif)
            packet = av.Packet(buffer.getvalue())
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, n, n, Fraction(1, 25)
            packet.is_keyframe = True
            container.mux(packet)
    frames, done = read(tmp_path / "a.avi", fps=25.0)
    assert (done.outcome, done.reason, len(frames)) == ("ADDED", "", 10)


def test_a_stream_that_begins_later_in_the_file_does_no_harm(tmp_path: Path) -> None:
    counter(tmp_path / "a.ts", steady(20))
    with av.open(tmp_path / "b.ts", "w") as container:
        sound = container.add_stream("mp2", rate=44_100)
        for n in range(40):
            frame = av.AudioFrame(format="s16", layout="stereo", samples=1152)
            frame.planes[0].update(bytes(frame.planes[0].buffer_size))
            frame.rate, frame.pts = 44_100, 1152 * n
            container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    other = bytearray((tmp_path / "b.ts").read_bytes())
    for at in range(0, len(other), 188):  # another place for the sound: the first file's video is at 0x100
        if other[at + 1] & 0x1F == 1 and other[at + 2] == 0:
            other[at + 2] = 0x55
    (tmp_path / "c.ts").write_bytes((tmp_path / "a.ts").read_bytes() * 40 + bytes(other))
    _, done = read(tmp_path / "c.ts")
    assert done.outcome in ("ADDED", "PARTIAL")


def test_where_the_header_has_no_shape_that_of_the_pixels_counts() -> None:
    assert Shape(0.0, "stretch", 32).picture(av.VideoFrame(64, 48, "rgb24"))[2] == 64 / 48


def test_a_time_of_day_that_no_calendar_has_is_left_out(tmp_path: Path) -> None:
    path, begun = tmp_path / "far.mkv", datetime(2020, 5, 1, tzinfo=UTC)
    with av.open(str(path), "w") as container:
        container.metadata["creation_time"] = begun.isoformat()
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.time_base = 96, 64, "yuvj420p", TICK
        for number, time_s in enumerate((0, 1, 10**14)):
            for packet in stream.encode(av.VideoFrame.from_ndarray(numbered(number), format="rgb24")):
                packet.pts = packet.dts = time_s * 1000
                packet.time_base, packet.stream = TICK, stream
                container.mux(packet)
    frames, done = read(path)
    assert done.outcome == "ADDED"
    assert [f.time_s for f in frames] == [0, 1, 1e14]
    assert [f.wall_utc for f in frames] == [begun.timestamp(), begun.timestamp() + 1, None]
