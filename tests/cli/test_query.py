"""Answers to a person and to a program, whatever a store holds."""

import json
from pathlib import Path

import pytest
import simplejpeg
from PIL import Image

from cld_stream.pipelines.extend import extend
from cld_stream.pipelines.sheet import as_shown
from cld_stream.storage.schema import NewFrame
from tests.cli.conftest import Cli
from tests.pipelines.published import published, scene


@pytest.mark.parametrize("far", [1e14, -1e14, float("inf"), 1e300])
def test_numbers_that_no_clock_shows_spoil_no_answer(cli: Cli, tmp_path: Path, far: float) -> None:
    made, jpeg = published(tmp_path / "s", videos=1), simplejpeg.encode_jpeg(scene(7, 0), quality=95)
    with made.store.writer("test") as writer:
        source = writer.add_source(
            kind="video", path="/media/far.mkv", device=0, inode=9, size=1, mtime_ns=0, fingerprint="far"
        )
        writer.append(source, [NewFrame(jpeg, far, far, 0, 1.0)], None)
    extend(made.store)
    ask = "query", "--store", made.store.path, "--frame", "12", "-k", "3"
    shown = cli(*ask, "--sheet", tmp_path / "a.png", "--html", tmp_path / "a.html")
    assert shown.code == 0
    assert "/media/far.mkv" in shown.out
    assert "far.mkv" in (tmp_path / "a.html").read_text()

    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is no JSON")

    first = json.loads(cli(*ask, "--json").out, parse_constant=refuse)["hits"][0]
    finite = far if abs(far) < float("inf") else None
    assert (first["frame"], first["time_s"], first["wall_utc"]) == (12, finite, finite)


@pytest.mark.parametrize("aspect", [1e9, 1e-9, float("inf"), float("nan")])
@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
def test_a_picture_that_claims_to_be_endless_is_shown_in_bounds(aspect: float, fit: str) -> None:
    shown = as_shown(simplejpeg.encode_jpeg(scene(7, 0), quality=95), aspect, fit)
    assert isinstance(shown, Image.Image)
    assert max(shown.size) <= 4800
