"""Size and capture time without a decoder: the same as Pillow and its plugins find."""

import io
import struct
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from PIL import Image

from cld_stream.media.boxes import walk
from cld_stream.media.header import read_header
from cld_stream.media.pictures import open_picture, taken_utc
from cld_stream.media.probe import probe

MOMENT = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
FORMATS = ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"]


def written(path: Path, kind: str, **options: object) -> Path:
    exif = Image.Exif()
    exif[0x0132], exif.get_ifd(0x8769)[0x9010] = MOMENT.strftime("%Y:%m:%d %H:%M:%S"), "+00:00"
    Image.new("RGB", (50, 30), (200, 30, 40)).save(path, kind, exif=exif, **options)
    return path


@pytest.mark.parametrize("kind", FORMATS)
def test_size_and_time_are_found(tmp_path: Path, kind: str) -> None:
    header = read_header(written(tmp_path / "a", kind))
    assert (header.size, header.taken_utc) == ((50, 30), MOMENT.timestamp())


@pytest.mark.parametrize("options", [{"lossless": True}, {"lossless": False}])
@pytest.mark.parametrize("exif", [True, False])
def test_every_kind_of_webp_tells_its_size(tmp_path: Path, options: dict[str, bool], exif: bool) -> None:
    path = tmp_path / "a.webp"
    if exif:
        written(path, "WEBP", **options)
    else:
        Image.new("RGB", (50, 30)).save(path, "WEBP", **options)
    assert read_header(path).size == (50, 30)


@pytest.mark.data
def test_the_zoo_is_read_as_by_its_decoders(data_dir: Path) -> None:
    compared = 0
    for path in sorted((data_dir / "media-zoo" / "image").rglob("*")):
        if path.name == "truncated.heic":  # its first picture and its main one differ
            continue
        try:
            with open_picture(path) as picture:
                size, taken = picture.size, taken_utc(picture.getexif())
        except Exception:  # noqa: BLE001 - a broken one
            continue
        header = read_header(path)
        assert set(header.size) == set(size), path  # a HEIF picture may be turned
        assert header.taken_utc == taken, path
        compared += 1
    assert compared > 60


def test_a_probe_decodes_nothing(tmp_path: Path) -> None:
    """Of a picture that would take 300 MB: the EXIF of PNG is behind the pixels, where Pillow looks for it."""
    path = tmp_path / "huge.png"
    Image.new("RGB", (10_000, 10_000)).save(path, compress_level=1)
    code = (
        "import resource, sys; from pathlib import Path; from cld_stream.media.probe import probe;"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; probe(Path(sys.argv[1]));"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    told = subprocess.run([sys.executable, "-c", code, path], capture_output=True, check=True)
    assert int(told.stdout) < 50_000  # kB


def test_ingest_itself_loads_no_decoder_that_sees_a_file(tmp_path: Path) -> None:
    for kind in FORMATS:
        written(tmp_path / f"a.{kind.lower()}", kind)
    code = (
        "import sys; from pathlib import Path; from cld_stream.media.probe import probe;"
        "[probe(p) for p in Path(sys.argv[1]).iterdir()];"
        "from PIL import Image; import PIL.WebPImagePlugin as w, PIL.AvifImagePlugin as a;"
        "fail = lambda *_: sys.exit('a C library saw the file');"
        "w._webp = a._avif = type('No', (), {'__getattr__': fail})();"
        "print([probe(p).taken_utc for p in Path(sys.argv[1]).iterdir()])"
    )
    told = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert told.stdout.count(str(MOMENT.timestamp())) == len(FORMATS)


@pytest.mark.parametrize("kind", FORMATS)
def test_damage_is_no_time_and_no_failure(tmp_path: Path, kind: str) -> None:
    whole = written(tmp_path / "a", kind).read_bytes()
    damaged = tmp_path / "b"
    for at in range(0, min(len(whole), 400), 3):
        damaged.write_bytes(whole[:at] + b"\xff\xff\xff\xff" + whole[at + 4 :])
        probe(damaged)
        damaged.write_bytes(whole[:at])
        probe(damaged)


def test_a_file_of_empty_boxes_is_left_soon() -> None:
    file = io.BytesIO(struct.pack(">I4s", 8, b"free") * 1_000_000)
    assert sum(1 for _ in walk(file)) <= 200_000
