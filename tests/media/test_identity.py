"""Identity: equal bytes, equal fingerprint; anything else, another one."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cld_stream.media.identity import fingerprint, fingerprint_sequence, is_unfinished

SIZES = st.integers(0, 3 << 20)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=SIZES, more=st.integers(0, 1 << 20))
def test_a_prefix_has_the_fingerprint_of_a_file_that_ends_there(tmp_path: Path, size: int, more: int) -> None:
    data = bytes(range(251)) * ((size + more) // 251 + 1)
    (tmp_path / "short").write_bytes(data[:size])
    (tmp_path / "long").write_bytes(data[: size + more])
    assert fingerprint(tmp_path / "long", size) == fingerprint(tmp_path / "short")
    assert (fingerprint(tmp_path / "long") == fingerprint(tmp_path / "short")) == (more == 0)


@pytest.mark.parametrize("size", [1, 1000, 1 << 20, 5 << 20])
@pytest.mark.parametrize("place", [0.0, 0.999999])
def test_a_changed_byte_at_either_end_changes_it(tmp_path: Path, size: int, place: float) -> None:
    data = bytearray(size)
    (tmp_path / "a").write_bytes(data)
    data[int(place * size)] ^= 1
    (tmp_path / "b").write_bytes(data)
    assert fingerprint(tmp_path / "a") != fingerprint(tmp_path / "b")


def test_a_prefix_longer_than_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12")
    with pytest.raises(ValueError, match="fewer than 3"):
        fingerprint(tmp_path / "a", 3)


def test_a_sequence_is_its_pictures_in_order(tmp_path: Path) -> None:
    paths = [tmp_path / str(i) for i in range(4)]
    for path in paths:
        path.write_text(path.name)
    whole = fingerprint_sequence(paths)
    assert fingerprint_sequence(paths) == whole
    assert len({whole, fingerprint_sequence(paths[::-1]), fingerprint_sequence(paths[:3])}) == 3
    paths[2].unlink()
    assert fingerprint_sequence(paths) != whole


def test_of_a_recording_in_progress_the_head_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "rec.mkv"
    path.write_bytes(bytes(range(256)) * 4096)
    was = fingerprint(path, 700_000, growing=True)
    with path.open("r+b") as file:
        file.write(b"closed")
    assert fingerprint(path, 700_000, growing=True) == was
    assert is_unfinished(was)
    assert not is_unfinished(fingerprint(path))
    with path.open("r+b") as file:
        file.seek(1 << 16)
        file.write(b"changed")
    assert fingerprint(path, 700_000, growing=True) != was
