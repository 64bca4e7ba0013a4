"""CIFAR-10 from one npz of JPEG files, and the sets that are built from it. Labels travel beside the pixels, never in.

The file holds train_jpeg (bytes, end to end), train_offsets (N + 1), train_labels (N), and the same for test.
"""

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchvision.io import decode_jpeg

__all__ = ["VARIANTS", "Images", "Problem", "build", "class_sizes", "jittered", "read"]

# Shape suffixes: N images, S side, 3 colours.

VARIANTS = (
    "full", "balanced", "long-tailed-10", "long-tailed-50", "long-tailed-100",
    "high-correlation-1", "high-correlation-5", "high-correlation-20",
)  # fmt: skip

HELD_OUT = 5
"""For choosing settings, one train image in so many asks the questions; the test images stay unseen."""

SHIFT, ZOOM, BRIGHTNESS = 2.0, 1.15, 0.15
"""Jitter of a copy: shifted by up to 2 pixels each way, enlarged 1 to 1.15 times, 0.85 to 1.15 times as bright."""

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Images:
    """N pictures: (N x S x S x 3) uint8 and their classes."""

    pixels_NSS3: Tensor
    labels_N: Tensor

    def __len__(self) -> int:
        return len(self.labels_N)

    def __getitem__(self, at: Ids) -> "Images":
        rows = torch.from_numpy(at)
        return Images(self.pixels_NSS3[rows], self.labels_N[rows])


@dataclass(frozen=True)
class Problem:
    """What a cell learns from (its labels are for the probes alone) and what it is asked."""

    train: Images
    test: Images


@cache
def read(file: Path, split: str) -> Images:
    """Decode one split, once a process; about four seconds for all of CIFAR-10.

    Raises:
        OSError, KeyError: there is no such file, or it holds something else.
    """
    with np.load(file) as arrays:
        stream = torch.from_numpy(arrays[f"{split}_jpeg"])
        ends = arrays[f"{split}_offsets"].tolist()
        labels_N = torch.from_numpy(arrays[f"{split}_labels"].astype(np.int64))
    pictures = [decode_jpeg(stream[a:b]).permute(1, 2, 0) for a, b in pairwise(ends)]
    return Images(torch.stack(pictures), labels_N)


def build(file: Path, variant: str, images: int, seed: int, *, held_out: bool = False) -> Problem:
    """A training set of about that many images in random order, and the questions.

    It has fewer where the largest class of a long-tailed set would need more images than there are.

    Args:
        variant: one of `VARIANTS`; `full` takes every train image, whatever `images` says.
        seed: of the choice of images, their jitter and their order.
        held_out: questions are 2,000 train images that no such set contains, instead of the test images.

    Raises:
        ValueError: CIFAR-10 has too few images of a class.
    """
    train = read(file, "train")
    asks = np.arange(len(train)) % HELD_OUT == 0
    test = train[np.flatnonzero(asks)[:2000]] if held_out else read(file, "test")
    if held_out:
        train = train[np.flatnonzero(~asks)]
    rng = np.random.default_rng(seed)
    kind, _, number = variant.rpartition("-")
    if variant == "full":
        chosen = train
    elif kind == "high-correlation":
        sources = train[_draw(train.labels_N, class_sizes(images // int(number), 1), rng)]
        chosen = jittered(sources, int(number), seed)
    else:
        imbalance = 1 if variant == "balanced" else int(number)
        most = int(torch.bincount(train.labels_N).min())
        chosen = train[_draw(train.labels_N, class_sizes(images, imbalance, most=most), rng)]
    return Problem(chosen[rng.permutation(len(chosen))], test)


def class_sizes(images: int, imbalance: int, classes: int = 10, most: int | None = None) -> list[int]:
    """Images of each class: size falls exponentially from class 0 to the last, which has 1 / imbalance as many.

    Cui et al. 2019 (https://arxiv.org/abs/1901.05555), scaled so that they add up to `images`, or so that class 0 has
    `most` where that is less: of all of CIFAR-10 12,406 images with imbalance 100, as there.
    """
    share = float(imbalance) ** -(np.arange(classes) / max(1, classes - 1))
    total = images if most is None else min(images, int(most * share.sum()))
    ends = np.rint(np.cumsum(share / share.sum()) * total).astype(int)
    return [int(n) for n in np.diff(ends, prepend=0)]


def jittered(sources: Images, copies: int, seed: int) -> Images:
    """Each source `copies` times in a row, every copy with a jitter of its own (see `SHIFT`, `ZOOM`, `BRIGHTNESS`)."""
    pixels = sources.pixels_NSS3.repeat_interleave(copies, 0)
    n, side = len(pixels), pixels.shape[1]
    u_N4 = torch.rand(n, 4, generator=torch.Generator().manual_seed(seed))
    theta_N23 = torch.zeros(n, 2, 3)
    theta_N23[:, 0, 0] = theta_N23[:, 1, 1] = 1 / (1 + (ZOOM - 1) * u_N4[:, 0])
    theta_N23[:, :, 2] = (2 * u_N4[:, 1:3] - 1) * 2 * SHIFT / side
    x_N3SS = pixels.permute(0, 3, 1, 2).float()
    grid = F.affine_grid(theta_N23, [n, 3, side, side], align_corners=False)
    x_N3SS = F.grid_sample(x_N3SS, grid, padding_mode="reflection", align_corners=False)
    x_N3SS *= (1 + BRIGHTNESS * (2 * u_N4[:, 3] - 1))[:, None, None, None]
    moved = x_N3SS.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    return Images(moved, sources.labels_N.repeat_interleave(copies))


def _draw(labels_N: Tensor, sizes: list[int], rng: np.random.Generator) -> Ids:
    """So many distinct images of each class."""
    rows = []
    for label, size in enumerate(sizes):
        members = np.flatnonzero(labels_N.numpy() == label)
        if size > len(members):
            raise ValueError(f"class {label} has {len(members)} images, {size} are asked for; ask for fewer images")
        rows.append(rng.choice(members, size, replace=False))
    return np.concatenate(rows)
