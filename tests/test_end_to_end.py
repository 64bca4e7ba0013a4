"""Footage in, trained, neighbours out: the whole path through the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cld_stream
from cld_stream.pipelines.demo import film
from tests.cli.conftest import Cli, cli

__all__ = ["cli"]

TINY = [
    "encoder.crop=32", "encoder.width=0.125", "optim.batch=16", "optim.fresh=4", "loss.groups=8", "buffer.capacity=32",
    "train.min_frames=8", "train.idle_steps=4", "publish.groups=4", "optim.warmup_steps=2",
]  # fmt: skip


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three short clips of three different scenes."""
    media = tmp_path / "media"
    media.mkdir()
    for n in range(3):
        rng = np.random.default_rng(n)
        scene = Image.fromarray(rng.integers(0, 255, (12, 16, 3), np.uint8)).resize((320, 240))
        film(scene, media / f"scene{n}.mp4", rng)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_footage_goes_in_and_neighbours_come_out(cli: Cli, home: Path) -> None:
    tiny = [word for item in TINY for word in ("--set", item)]
    first = cli("ingest", "media", "--json", "--fps", "4", "--set", "store.size=48")
    assert first.code == 0, first.err
    frames = json.loads(first.out)["frames"]
    assert frames >= 3 * 30

    trained = cli("train", "--until-caught-up", "--json", *tiny)
    assert trained.code == 0, trained.err
    assert json.loads(trained.out)["lag"] == 0

    asked = cli("query", "--frame", "5", "-k", "5", "--json", "--sheet", "sheet.png", "--html", "page.html")
    assert asked.code == 0, asked.err
    hits = json.loads(asked.out)["hits"]
    assert [h["rank"] for h in hits] == [1, 2, 3, 4, 5]
    with Image.open("sheet.png") as sheet:
        assert sheet.width > 300
    assert "<html" in Path("page.html").read_text()

    view = cld_stream.open(home / "cld-store")
    assert len(view.frames) == frames
    assert [h.frame for h in view.snapshot().query(5, k=5)] == [h["frame"] for h in hits]

    resumed = cli("train", "--steps", "3", "--json", *tiny)
    assert resumed.code == 0, resumed.err
    assert json.loads(resumed.out)["step"] == json.loads(trained.out)["step"] + 3

    gone = cli("forget", "scene0.mp4", "--json")
    assert gone.code == 0, gone.err
    assert json.loads(cli("status", "--json").out)["frames"] == frames - json.loads(gone.out)["frames"]
    again = cli("query", "--frame", str(frames - 1), "-k", str(frames), "--json")
    assert again.code == 0, again.err
    assert not any("scene0" in h["source"] for h in json.loads(again.out)["hits"])
    assert cli("doctor").code == 0
