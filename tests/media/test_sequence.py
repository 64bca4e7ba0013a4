"""Sequences: pictures in order, one source."""

from pathlib import Path

import pytest
import simplejpeg
from PIL import Image

import cld_stream.media.sequence as sequence_module
from cld_stream.media.job import Chunk, Done, Job, Member
from cld_stream.media.sequence import read_sequence


def sequence(folder: Path, count: int, cursor: str | None = None) -> Job:
    members = tuple(Member(folder / f"{i}.png", i / 4, 1e9 + i) for i in range(count))
    return Job(key=0, kind="sequence", path=folder, members=members, cursor=cursor, size=16)


def draw(folder: Path, count: int) -> None:
    for i in range(count):
        Image.new("RGB", (8, 4), (i * 2, 0, 0)).save(folder / f"{i}.png")


def test_all_pictures_are_kept_with_their_times(tmp_path: Path) -> None:
    draw(tmp_path, 5)
    events = list(read_sequence(sequence(tmp_path, 5)))
    frames = [f for e in events if isinstance(e, Chunk) for f in e.frames]
    assert [(f.time_s, f.wall_utc, f.aspect) for f in frames] == [(i / 4, 1e9 + i, 2.0) for i in range(5)]
    assert simplejpeg.decode_jpeg(frames[4].jpeg).shape == (16, 16, 3)
    assert events[-1] == Done("ADDED", "", "pillow-sequence")


def test_a_broken_member_leaves_a_gap_and_a_reason(tmp_path: Path) -> None:
    draw(tmp_path, 4)
    (tmp_path / "1.png").write_text("no")
    (tmp_path / "2.png").unlink()
    events = list(read_sequence(sequence(tmp_path, 4)))
    assert [f.time_s for e in events if isinstance(e, Chunk) for f in e.frames] == [0.0, 0.75]
    assert isinstance(events[-1], Done)
    assert events[-1].outcome == "PARTIAL"
    assert events[-1].reason.startswith("2 of 4 pictures unreadable; 1.png: ")


def test_pictures_behind_very_many_that_are_unreadable_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second without a readable picture is no chunk without frames, which would be no answer; nor is it silence."""
    monkeypatch.setattr(sequence_module, "_CHUNK_S", 0.0)
    draw(tmp_path, 8)
    for bad in range(1, 7):
        (tmp_path / f"{bad}.png").unlink()
    signs: list[int] = []
    events = list(read_sequence(sequence(tmp_path, 8), lambda: signs.append(1)))
    assert [[f.time_s for f in e.frames] for e in events if isinstance(e, Chunk)] == [[0.0], [1.75]]
    assert len(signs) == 8


def test_no_readable_member_is_broken(tmp_path: Path) -> None:
    done = list(read_sequence(sequence(tmp_path, 3)))[-1]
    assert isinstance(done, Done)
    assert (done.outcome, done.reason) == ("BROKEN", "3 of 3 pictures unreadable; 0.png: no such file")


def test_a_cursor_continues_exactly_there(tmp_path: Path) -> None:
    draw(tmp_path, 100)
    (tmp_path / "3.png").unlink()
    events = list(read_sequence(sequence(tmp_path, 100)))
    chunks = [e for e in events if isinstance(e, Chunk)]
    rest = list(read_sequence(sequence(tmp_path, 100, chunks[0].cursor)))
    assert [f for e in rest if isinstance(e, Chunk) for f in e.frames] == [f for c in chunks[1:] for f in c.frames]
    assert rest[-1] == events[-1]
