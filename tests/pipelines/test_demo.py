from pathlib import Path

import av
import numpy as np
import pytest

from cld_stream.pipelines.demo import CLIP_FPS, CLIP_S, PHOTOGRAPHS, film, photographs


def test_every_photograph_ships_with_its_package() -> None:
    pytest.importorskip("skimage")
    assert [name for name, _ in photographs()] == list(PHOTOGRAPHS)


def test_a_clip_moves_smoothly_and_stays_inside_its_photograph(tmp_path: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(60, 255, (12, 16, 3), np.uint8)).resize((640, 480))
    film(noise, tmp_path / "clip.mp4", rng)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        frames = np.stack([f.to_ndarray(format="gray") for f in container.decode(video=0)]).astype(np.float32)
    assert len(frames) == CLIP_S * CLIP_FPS
    assert frames.min() > 15, "black corners: the camera left the photograph"
    moved = np.abs(np.diff(frames, axis=0)).mean((1, 2))
    assert 0.1 < np.median(moved) < 20
