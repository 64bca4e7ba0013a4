"""clip-64: every picture becomes consecutive frames along a smooth random walk of crop and colour.

After the streams of Purushwalkam et al. 2022 (https://arxiv.org/abs/2203.12710): 64-frame clips, one after another.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["CLIP", "render"]

# Shape suffixes: N pictures, T frames of a clip, P parameters of a frame, S side.

CLIP = 64
"""Frames of a clip."""

ZOOM, BRIGHTNESS, CONTRAST, TINT = 1.6, 0.3, 0.25, 0.12
"""A frame shows 1 / 1.6 to all of a picture's side, is up to 30% brighter or darker, has up to 25% more or less
contrast, and each of its colours is up to 12% stronger or weaker."""

SPEED, INERTIA = 0.045, 0.9
"""Of the walk in phase: noise of the velocity in a frame [rad], and the share of the velocity that lasts."""


def render(pictures_NSS3: Tensor, seed: int, frames: int = CLIP) -> Tensor:
    """(N x T) x S x S x 3 uint8: the frames of the first picture, then those of the second, ..."""
    n, side = len(pictures_NSS3), pictures_NSS3.shape[1]
    walks_NTP = torch.from_numpy(_walks(n, frames, seed))
    return torch.cat([_clip(pictures_NSS3[i], walks_NTP[i], side) for i in range(n)])


def _walks(n: int, frames: int, seed: int) -> np.ndarray[tuple[int, int, int], np.dtype[np.float32]]:
    """Zoom, shifts, brightness, contrast, three tints; each in [-1, 1] and smooth in time."""
    rng = np.random.default_rng([seed, 64])
    phase = rng.uniform(0, 2 * np.pi, (n, 8))
    velocity = rng.normal(0, SPEED / np.sqrt(1 - INERTIA**2), (n, 8))
    walks = np.empty((n, frames, 8), np.float32)
    for t in range(frames):
        walks[:, t] = np.sin(phase)
        velocity = INERTIA * velocity + rng.normal(0, SPEED, (n, 8))
        phase = phase + velocity
    return walks


def _clip(picture_SS3: Tensor, walk_TP: Tensor, side: int) -> Tensor:
    frames = len(walk_TP)
    zoom_T = 1 / (1 + (ZOOM - 1) * (walk_TP[:, 0] + 1) / 2)
    theta_T23 = torch.zeros(frames, 2, 3)
    theta_T23[:, 0, 0] = theta_T23[:, 1, 1] = zoom_T
    theta_T23[:, :, 2] = walk_TP[:, 1:3] * (1 - zoom_T)[:, None]  # the crop never leaves the picture
    x_T3SS = picture_SS3.permute(2, 0, 1).float().expand(frames, 3, side, side)
    grid = F.affine_grid(theta_T23, [frames, 3, side, side], align_corners=False)
    x_T3SS = F.grid_sample(x_T3SS, grid, padding_mode="border", align_corners=False)
    mean_T = x_T3SS.mean((1, 2, 3), keepdim=True)
    x_T3SS = mean_T + (x_T3SS - mean_T) * (1 + CONTRAST * walk_TP[:, 4])[:, None, None, None]
    x_T3SS = x_T3SS * (1 + BRIGHTNESS * walk_TP[:, 3])[:, None, None, None]
    x_T3SS = x_T3SS * (1 + TINT * walk_TP[:, 5:8])[:, :, None, None]
    return x_T3SS.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
