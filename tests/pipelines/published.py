"""A small real store with a published encoder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray

from cld_stream.config import EncoderSettings, PublishSettings, StoreSettings
from cld_stream.learn.encoder import build_encoder
from cld_stream.pipelines.publish import publish
from cld_stream.storage.schema import NewFrame, Outcome
from cld_stream.storage.snapshots import Snapshot
from cld_stream.storage.store import Store

ENCODER = EncoderSettings(width=0.1, crop=32, feature_dim=16)
SIZE = 48
NOON = 1_700_000_000.0


@dataclass
class Published:
    """The store, its snapshot and the encoder behind it."""

    store: Store
    snapshot: Snapshot
    weights: dict[str, NDArray[Any]]


def weights(seed: int = 0) -> dict[str, NDArray[Any]]:
    torch.manual_seed(seed)
    return {name: tensor.numpy() for name, tensor in build_encoder(ENCODER).state_dict().items()}


def scene(seed: int, at: float) -> NDArray[np.uint8]:
    """A smooth picture that changes slowly with `at`."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    waves = [np.sin(2 * np.pi * (a * x + b * y) + p + at / 8) for a, b, p in rng.uniform(-3, 3, (3, 3))]
    return ((np.stack(waves, 2) + 1) * 127).astype(np.uint8)


def add_video(store: Store, name: str, seed: int, frames: int = 12, *, aspect: float = 1.5) -> int:
    """A source of frames half a second apart."""
    with store.writer("test") as writer:
        source = writer.add_source(
            kind="video", path=name, device=0, inode=seed, size=1, mtime_ns=0, fingerprint=f"f{seed}"
        )
        new = [
            NewFrame(simplejpeg.encode_jpeg(scene(seed, i), quality=95), i / 2, NOON + 100 * seed + i / 2, 0, aspect)
            for i in range(frames)
        ]
        writer.append(source, new, None)
        writer.finish(source, Outcome.ADDED)
    return source


def small_store(path: Path, videos: int = 3) -> Store:
    store = Store.create(path, StoreSettings(size=SIZE, shard_frames=16))
    for n in range(videos):
        add_video(store, f"/media/day{n % 2}/clip{n}.mp4", n)
    return store


def published(path: Path, videos: int = 3) -> Published:
    store, tensors = small_store(path, videos), weights()
    made = publish(store, ENCODER, tensors, step=7, settings=PublishSettings(groups=4))
    assert made is not None
    return Published(store, made, tensors)
