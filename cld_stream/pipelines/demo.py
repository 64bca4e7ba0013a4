"""The whole job once: photographs become footage under a moving camera, then ingest, train, query."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cld_stream.config import Settings, load_settings
from cld_stream.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

# Photographs that ship inside the scikit-image wheel; none is downloaded.
PHOTOGRAPHS = (
    "astronaut", "camera", "chelsea", "coffee", "coins", "hubble_deep_field", "moon", "rocket", "brick", "grass",
    "gravel", "motorcycle_left", "page",
)  # fmt: skip
CLIPS_PER_PHOTOGRAPH = 3
CLIP_S, CLIP_FPS, WIDTH, HEIGHT = 8.0, 12, 320, 240

Display = Callable[[], AbstractContextManager[Callable[[Any], None]]]


def demo(
    out: Path, media: Path | None, *, say: Callable[[str], object], ingest_display: Display, train_display: Display
) -> Path:
    """Run the three verbs on made footage, or on the folder `media`.

    Args:
        out: receives `footage/`, `store/` and `neighbours.png`; an old store in it is continued.
        say: prints a line for the person.

    Returns:
        The contact sheet.

    Raises:
        UsageError: scikit-image is absent and no `media` was given; `media` does not exist, or holds too little to
            learn from.
    """
    from cld_stream.pipelines.device import choose_device
    from cld_stream.pipelines.ingest import ingest
    from cld_stream.pipelines.query import query
    from cld_stream.pipelines.train import STREAM, train

    if media is not None and not media.exists():
        raise UsageError(f"--media {media}: no such file or folder. Name a folder of videos or photos.")
    out.mkdir(parents=True, exist_ok=True)
    footage = media or make_footage(out / "footage", say)
    store = out / "store"
    settings, device = demo_settings(), choose_device("auto")
    say(f"1. cld-stream ingest {footage}")
    with ingest_display() as show:
        report = ingest(store, [str(footage)], settings, on_progress=show)
    say(f"   {report.frames:,} new frames in {report.seconds:.0f} s")
    _require_frames(store, footage)
    say("2. cld-stream train --until-caught-up")
    with train_display() as show:
        trained = train(store, settings, device=device, recipe=STREAM, until_caught_up=True, on_progress=show)
    say(f"   {trained.steps:,} steps; published {trained.snapshot}")
    sheet, frame = out / "neighbours.png", _frame_to_ask(store, made=media is None)
    say(f"3. cld-stream query --frame {frame} -k 12 --distinct-s 2 --sheet {sheet}")
    query(store, frame=frame, k=12, distinct_s=2.0, sheet=sheet)
    return sheet


def demo_settings() -> Settings:
    """What `train` takes on a CPU, sized for a few thousand frames and two minutes."""
    s = load_settings(recipe=("stream", "cpu"))
    return replace(
        s,
        buffer=replace(s.buffer, capacity=2048),
        optim=replace(s.optim, warmup_steps=20),
        train=replace(s.train, idle_steps=150),
        publish=replace(s.publish, groups=32),
    )


def make_footage(folder: Path, say: Callable[[str], object]) -> Path:
    """Film each photograph with a wandering camera, as ordinary H.264 files with rising dates."""
    folder.mkdir(exist_ok=True)
    pictures = photographs()
    say(f"Filming {len(pictures)} photographs with a moving camera: {folder}")
    for take in range(CLIPS_PER_PHOTOGRAPH):
        for n, (name, picture) in enumerate(pictures):
            path = folder / f"{take:02d}-{n:02d}-{name}.mp4"
            if not path.exists():
                part = path.with_suffix(".part")
                film(picture, part, np.random.default_rng((take, n)))
                part.rename(path)
    return folder


def photographs() -> "list[tuple[str, Image]]":
    """The photographs of the scikit-image wheel, at most 640 pixels wide.

    Raises:
        UsageError: scikit-image is not installed.
    """
    from importlib.util import find_spec

    from PIL import Image

    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise UsageError(
            "demo films photographs of scikit-image, which is not installed: pip install 'cld-stream[demo]', "
            "or name your own footage with --media FOLDER"
        )
    found = []
    for name in PHOTOGRAPHS:
        path = next((Path(spec.origin).parent / "data").glob(f"{name}.*"))
        with Image.open(path) as file:
            picture = file.convert("RGB")
        picture.thumbnail((640, 640))  # twice the film's width is all that the camera can see
        found.append((name, picture))
    return found


def film(picture: "Image", path: Path, rng: np.random.Generator) -> None:
    """One clip: the camera's centre, zoom, roll and light drift along smooth random paths."""
    import av
    from PIL import Image, ImageEnhance

    frames = int(CLIP_S * CLIP_FPS)
    x, y, zoom, roll, light = (_drift(rng, frames) for _ in range(5))
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=CLIP_FPS, options={"preset": "veryfast", "crf": "23"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for t in range(frames):
            camera = _camera(picture.size, x[t], y[t], zoom[t], roll[t])
            shot = picture.transform((WIDTH, HEIGHT), Image.Transform.AFFINE, camera, Image.Resampling.BILINEAR)
            shot = ImageEnhance.Brightness(shot).enhance(1 + 0.25 * light[t])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(shot), format="rgb24")))
        container.mux(stream.encode(None))


def _drift(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    """A smooth path in [-1, 1]: three slow sines of random phase."""
    t = np.linspace(0, 2 * np.pi, n)
    waves = [np.sin(t * f + rng.uniform(0, 2 * np.pi)) for f in rng.uniform(0.2, 1.2, 3)]
    return np.asarray(sum(waves)) / 3


def _camera(size: tuple[int, int], x: float, y: float, zoom: float, roll: float) -> tuple[float, ...]:
    """The affine map from film to picture; position, zoom and roll in [-1, 1] keep the film inside the picture."""
    w, h = size
    scale = min(w / WIDTH, h / HEIGHT) * (0.55 + 0.2 * zoom)
    c, s = scale * np.cos(0.1 * roll), scale * np.sin(0.1 * roll)
    room_x, room_y = (w - WIDTH * scale) / 2, (h - HEIGHT * scale) / 2
    centre_x, centre_y = w / 2 + 0.75 * room_x * x, h / 2 + 0.75 * room_y * y
    left, top = centre_x - (c * WIDTH - s * HEIGHT) / 2, centre_y - (s * WIDTH + c * HEIGHT) / 2
    return float(c), float(-s), float(left), float(s), float(c), float(top)


def _require_frames(store: Path, footage: Path) -> None:
    from cld_stream.pipelines.train import FEWEST
    from cld_stream.storage.store import Store

    with Store.open(store) as opened:
        frames = opened.catalog.frame_count()
    if frames < FEWEST:
        raise UsageError(
            f"--media {footage}: {frames} frames could be read, and training needs {FEWEST} at least. "
            "Name a folder of videos, or of many photos."
        )


def _frame_to_ask(store: Path, *, made: bool) -> int:
    """A colourful photograph in the last take; in the user's footage a frame near the end."""
    from cld_stream.storage.store import Store

    with Store.open(store) as opened:
        if made:
            last = f"{CLIPS_PER_PHOTOGRAPH - 1:02d}-{PHOTOGRAPHS.index('coffee'):02d}-coffee.mp4"
            return opened.catalog.frame_at(opened.catalog.find_source(last).id, CLIP_S / 2)
        ids = opened.catalog.live_ids()
    return int(ids[int(len(ids) * 0.9)])
