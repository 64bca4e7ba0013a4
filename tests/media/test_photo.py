"""Photos: every kind of file becomes the upright RGB frame that a viewer would show."""

import io
import struct
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from cld_stream.media.frames import encode_frame
from cld_stream.media.job import Chunk, Done, Job
from cld_stream.media.photo import read_photo
from cld_stream.media.pictures import open_picture, taken_utc

SIDE = 64
RED, GREEN, BLUE, WHITE = (220, 30, 30), (30, 200, 40), (30, 40, 210), (250, 250, 250)


def job(path: Path, **more: object) -> Job:
    return Job(key=0, kind="photo", path=path, size=SIDE, quality=95, **more)  # type: ignore[arg-type]


def read(path: Path, **more: object) -> tuple[list[np.ndarray], list[float], Done]:
    events = list(read_photo(job(path, **more)))
    frames = [f for e in events if isinstance(e, Chunk) for f in e.frames]
    done = events[-1]
    assert isinstance(done, Done)
    return [simplejpeg.decode_jpeg(f.jpeg) for f in frames], [f.time_s for f in frames], done


def quarters(width: int = 96, height: int = 64) -> Image.Image:
    """Red, green over blue, white: every turn of it is another picture."""
    picture = Image.new("RGB", (width, height))
    for i, colour in enumerate((RED, GREEN, BLUE, WHITE)):
        w, h = width // 2, height // 2
        picture.paste(colour, ((i % 2) * w, (i // 2) * h, (i % 2 + 1) * w, (i // 2 + 1) * h))
    return picture


def corners(frame: np.ndarray) -> list[tuple[int, ...]]:
    q = SIDE // 4
    return [tuple(frame[y, x].tolist()) for y in (q, 3 * q) for x in (q, 3 * q)]


def close(found: Sequence[tuple[int, ...]], wanted: Sequence[tuple[int, ...]], within: int = 12) -> bool:
    return bool(np.abs(np.array(found) - np.array(wanted)).max() <= within)


UPRIGHT = [RED, GREEN, BLUE, WHITE]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_every_exif_orientation_comes_out_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    stored = {
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
    }[orientation]  # fmt: skip
    picture = quarters() if stored is None else quarters().transpose(stored)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{suffix}"
    picture.save(path, exif=exif, quality=95)
    events = list(read_photo(job(path)))
    assert isinstance(events[1], Chunk)
    frame = events[1].frames[0]
    assert close(corners(simplejpeg.decode_jpeg(frame.jpeg)), UPRIGHT)
    assert frame.aspect == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("mode", "name"),
    [("RGB", "a.jpg"), ("CMYK", "a.jpg"), ("CMYK", "a.tif"), ("P", "a.png"), ("P", "a.gif"), ("RGBA", "a.png"),
     ("RGB", "a.avif"), ("RGB", "a.bmp"), ("RGB", "a.ppm"), ("RGB", "a.tga"), ("RGB", "a.qoi"), ("RGB", "a.jp2")],
)  # fmt: skip
def test_every_colour_mode_keeps_its_colours(tmp_path: Path, mode: str, name: str) -> None:
    path = tmp_path / name
    quarters().convert(mode).save(path, quality=95)
    frames, times, done = read(path)
    assert done.outcome == "ADDED", done.reason
    assert times == [0.0]
    assert close(corners(frames[0]), UPRIGHT, within=20)


def test_alpha_is_laid_over_white(tmp_path: Path) -> None:
    picture = quarters().convert("RGBA")
    picture.putalpha(0)
    picture.save(tmp_path / "clear.png")
    assert read(tmp_path / "clear.png")[0][0].min() > 250


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (64, 1))
    Image.fromarray(ramp).save(tmp_path / f"deep.{suffix}")
    row = read(tmp_path / f"deep.{suffix}")[0][0][32, :, 0].astype(int)
    assert np.abs(row - np.linspace(0, 255, 64)).max() <= 4


def test_a_large_jpeg_looks_the_same_as_when_decoded_whole(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    large = small.resize((3200, 2400), Image.Resampling.BICUBIC)
    large.save(tmp_path / "large.jpg", quality=95)
    direct = simplejpeg.decode_jpeg(encode_frame(np.asarray(large), 4 / 3, "stretch", SIDE, 95)).astype(int)
    assert np.abs(read(tmp_path / "large.jpg")[0][0].astype(int) - direct).mean() < 4


def test_an_animation_is_a_short_video_sampled_by_time(tmp_path: Path) -> None:
    shades = [Image.new("RGB", (32, 32), (i * 20, 0, 0)) for i in range(12)]
    durations = [100] * 6 + [500] * 6  # starts: 0 .1 .2 .3 .4 .5 | .6 1.1 1.6 2.1 2.6 3.1
    shades[0].save(tmp_path / "moving.webp", save_all=True, append_images=shades[1:], duration=durations, lossless=True)
    frames, times, done = read(tmp_path / "moving.webp", fps=2.0)
    assert done.outcome == "ADDED"
    assert times == pytest.approx([0.0, 0.5, 1.1, 1.6, 2.1, 2.6, 3.1])
    shown = [round(int(f[16, 16, 0]) / 20) for f in frames]
    assert shown == [0, 5, 7, 8, 9, 10, 11]


def test_a_long_animation_shows_that_it_is_at_work(tmp_path: Path) -> None:
    """Frames that are not kept may take minutes, as at the beginning of one that is continued."""
    frames = [Image.new("RGB", (8, 8), (i, 0, 0)) for i in range(20)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], duration=20, lossless=True)
    signs: list[int] = []
    assert len(list(read_photo(job(tmp_path / "a.webp"), lambda: signs.append(1)))) == 3
    assert len(signs) == 20


def test_an_interrupted_animation_continues_without_repeat_or_loss(tmp_path: Path) -> None:
    shades = [Image.new("RGB", (16, 16), (i * 2, 0, 0)) for i in range(80)]
    shades[0].save(tmp_path / "long.png", save_all=True, append_images=shades[1:], duration=500)
    whole = [e for e in read_photo(job(tmp_path / "long.png")) if isinstance(e, Chunk)]
    assert len(whole) > 1
    rest = [e for e in read_photo(job(tmp_path / "long.png", cursor=whole[0].cursor)) if isinstance(e, Chunk)]
    assert [f for c in rest for f in c.frames] == [f for c in whole[1:] for f in c.frames]


def test_a_multi_page_picture_gives_its_first_page(tmp_path: Path) -> None:
    pages = [Image.new("RGB", (20, 20), c) for c in (RED, GREEN)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    frames, _, done = read(tmp_path / "pages.tif")
    assert len(frames) == 1
    assert close(corners(frames[0]), [RED] * 4)
    assert "first of 2" in done.reason


def test_what_is_said_of_a_picture_does_not_depend_on_a_break_behind_its_frame(tmp_path: Path) -> None:
    pages = [Image.new("RGB", (20, 20), c) for c in (RED, GREEN)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "half.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "half.jpg").read_bytes()[:-9000])
    for name, outcome in (("pages.tif", "ADDED"), ("half.jpg", "PARTIAL")):
        started, chunk, done = read_photo(job(tmp_path / name))
        assert isinstance(chunk, Chunk)
        assert isinstance(done, Done)
        assert (done.outcome, bool(done.reason)) == (outcome, True)
        assert list(read_photo(job(tmp_path / name, cursor=chunk.cursor))) == [started, done]


def test_too_many_pixels_are_refused_before_decoding(tmp_path: Path) -> None:
    Image.new("L", (300, 300)).save(tmp_path / "bomb.png")
    frames, _, done = read(tmp_path / "bomb.png", max_pixels=89_999)
    assert (frames, done.outcome) == ([], "SKIPPED")
    assert "89,999" in done.reason
    assert read(tmp_path / "bomb.png", max_pixels=90_000)[2].outcome == "ADDED"


def test_a_truncated_picture_is_partial_and_garbage_is_broken(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8))
    whole = io.BytesIO()
    noise.save(whole, "JPEG")
    (tmp_path / "half.jpg").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "empty.jpg").touch()
    assert read(tmp_path / "half.jpg")[2].outcome == "PARTIAL"
    for name, reason in (("text.jpg", "no picture"), ("empty.jpg", "empty"), ("gone.jpg", "vanished")):
        frames, _, done = read(tmp_path / name)
        assert (frames, done.outcome) == ([], "BROKEN")
        assert reason in done.reason


@pytest.mark.parametrize(("offset", "utc"), [("+02:00", 10), ("-05:30", 17.5), ("Z", 12)])  # 12:00 on the clock there
def test_exif_time_uses_its_offset(tmp_path: Path, offset: str, utc: float) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769).update({0x9003: "2024:05:06 12:00:00", 0x9011: offset, 0x9291: "25"})
    Image.new("RGB", (8, 8)).save(tmp_path / "timed.jpg", exif=exif)
    with open_picture(tmp_path / "timed.jpg") as picture:
        found = taken_utc(picture.getexif())
    assert found == datetime(2024, 5, 6, tzinfo=UTC).timestamp() + utc * 3600 + 0.25


def test_without_exif_the_time_is_when_the_file_was_written(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    events = list(read_photo(job(tmp_path / "plain.png")))
    assert isinstance(events[1], Chunk)
    assert events[1].frames[0].wall_utc == (tmp_path / "plain.png").stat().st_mtime


def test_what_pillow_says_of_damage_does_not_reach_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.new("RGB", (8, 8)).save(path)
    data = path.read_bytes()
    samples = struct.pack("<HHI", 277, 3, 1)  # SamplesPerPixel, a short
    assert samples in data
    path.write_bytes(data.replace(samples + b"\3\0", samples + b"\3\x40"))
    code = (
        "import sys\nfrom pathlib import Path\nfrom cld_stream.media.probe import probe\n"
        "print(probe(Path(sys.argv[1])).kind)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("photo\n", "")
