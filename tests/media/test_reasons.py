"""Reasons are words for the person whose file it is."""

import errno
import re
from pathlib import Path

import pytest

from cld_stream.media.job import Done, Job
from cld_stream.media.photo import read_photo
from cld_stream.media.reasons import video_reason
from cld_stream.media.video import read_video

RIDDLES = re.compile(r"Error|error -?\d|Exception|errno|0x|<|bytes not processed")

# name: (content, words)
PICTURES = {
    "empty.jpg": (b"", "empty"),
    "text.jpg": (b"a shopping list", "no picture"),
    "film.jpg": (b"\x1a\x45\xdf\xa3" + bytes(200), "video"),
    "new.jxl": (b"\xff\x0a" + bytes(200), "JPEG XL"),
    "camera.cr2": (b"II*\0\x10\0\0\0CR\x02\0" + bytes(200), "raw photo"),
    "odd.tif": (b"II*\0\x08\0\0\0\0\0\0\0", "damaged"),
    "zeros.png": (b"\x89PNG\r\n\x1a\n" + bytes(200), "damaged"),
    "start.jpg": (b"\xff\xd8\xff\xe0\x00\x10JFIF", "cut off|damaged"),
    "start.heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic\0\0\0\x99meta", "damaged|cut off"),
}
VIDEOS = {
    "empty.mp4": (b"", "empty"),
    "text.mp4": (b"a shopping list", "header"),
    "start.mp4": (b"\0\0\0\x18ftypisom\0\0\0\0isommp41\0\0\x99\0moov", "cut off|damaged"),
    "start.mkv": (b"\x1a\x45\xdf\xa3\x93\x42\x82\x88matroska", "cut off|damaged"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_broken_picture_is_told_in_plain_words(name: str, tmp_path: Path) -> None:
    content, words = PICTURES[name]
    (tmp_path / name).write_bytes(content)
    done = list(read_photo(Job(key=0, kind="photo", path=tmp_path / name)))[-1]
    check(done, words)


@pytest.mark.parametrize("name", VIDEOS)
def test_a_broken_video_is_told_in_plain_words(name: str, tmp_path: Path) -> None:
    content, words = VIDEOS[name]
    (tmp_path / name).write_bytes(content)
    check(list(read_video(Job(key=0, kind="video", path=tmp_path / name)))[-1], words)


def check(done: object, words: str) -> None:
    assert isinstance(done, Done)
    assert done.outcome == "BROKEN"
    assert re.search(words, done.reason), done.reason
    assert not RIDDLES.search(done.reason), done.reason


@pytest.mark.parametrize(
    ("number", "words"), [(errno.EIO, "damaged"), (errno.EPERM, "damaged"), (errno.EACCES, "perm")]
)
def test_an_error_of_the_system_that_is_none_is_not_blamed_on_it(number: int, words: str, tmp_path: Path) -> None:
    """FFmpeg gives EIO and EPERM for damaged files."""
    (tmp_path / "a.mkv").write_bytes(bytes(100))
    assert words in video_reason(tmp_path / "a.mkv", OSError(number, "as the system says it"))


def test_a_disk_that_fails_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.mkv").mkdir()  # cannot be read either
    assert "disk" in video_reason(tmp_path / "a.mkv", OSError(errno.EIO, "Input/output error"))
