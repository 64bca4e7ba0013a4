"""Random views of every frame, and the one view that is embedded: tensor code on the frames' own device.

Each sample has a crop and factors of its own.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cld_stream.config import AugmentSettings
from cld_stream.learn.colour import blur, brightness, contrast, hue, saturation
from cld_stream.learn.precision import fast_float32

__all__ = ["MEAN", "RATIOS", "STD", "Boxes", "RandomViews", "central_view", "erase", "random_boxes", "resized_crops"]

# Shape suffixes: N frames, S side of a stored frame, C side of a view, 3 colours. V = 2 N (or 3 N) views.

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet: what published weights expect, and near enough for any footage."""

RATIOS = (3 / 4, 4 / 3)
"""Width / height of a crop in the true picture; squeezed to a square view, as torchvision's RandomResizedCrop does."""

ERASED, ERASED_RATIOS = (0.02, 0.33), (0.3, 3.3)
"""Share of the picture that erasing takes, and its height / width: torchvision's."""

_TRIES = 10

_PIECE = 16
"""Frames at a time on a CPU, so that all passes over their views stay in its cache. Elsewhere all at once."""


class Boxes(NamedTuple):
    """Crops in the true picture, as shares of its width and height."""

    left_N: Tensor
    top_N: Tensor
    width_N: Tensor
    height_N: Tensor

    def of(self, at: Tensor) -> "Boxes":
        """Those of these numbers."""
        return Boxes(*(part[at] for part in self))


class RandomViews:
    """Independent augmentations of each frame: crop, flip, colour jitter, grey, blur, normalise, erase.

    The distribution of every part is that of torchvision's transforms (RandomResizedCrop,
    ColorJitter, RandomGrayscale, GaussianBlur with sigma 0.1 to 2, RandomErasing). Departures: crops are drawn in
    the true picture, of which the stored square is a stretched copy, and rounded to whole pixels of that;
    the order of the four jitters is drawn once for each view of a batch, not for each sample.
    """

    def __init__(self, augment: AugmentSettings, crop: int, views: int = 2) -> None:
        self.augment, self.crop, self.views = augment, crop, views

    @torch.no_grad()
    def __call__(
        self,
        frames_NSS3: Tensor,
        aspect_N: Tensor,
        generator: torch.Generator,
        second_N: Tensor | None = None,
        at_once: int | None = None,
    ) -> Tensor:
        """So many views of each frame.

        Args:
            frames_NSS3: stored frames, uint8.
            aspect_N: width / height as shown, > 0.
            second_N: numbers of the frames that the second views show, where these are other ones; further frames,
                of which only second views are wanted, may then follow the first N.
            generator: the only source of randomness, on any device: draws are made there, so that
                with a CPU generator they do not depend on the frames' device.
            at_once: most frames at a time, where memory is scarce; None = as many as are fast.

        Returns:
            float32 (views, N, 3, crop, crop), normalised. Flattened to one batch it is channels_last.
        """
        device, a, views = frames_NSS3.device, self.augment, self.views
        n = len(frames_NSS3) if second_N is None else len(second_N)
        of_vN = torch.arange(n, device=device).expand(views, n)
        if second_N is not None:
            of_vN = torch.cat([of_vN[:1], second_N[None], of_vN[2:]])

        def uniform(rows: int, columns: int) -> Tensor:
            return torch.rand(rows, columns, generator=generator, device=generator.device).to(device)

        # columns: crop 0-21, flip, jitter, four strengths, grey, blur, sigma
        u_VR = uniform(views * n, 31)
        orders = [torch.randperm(4, generator=generator, device=generator.device).tolist() for _ in range(views)]
        aspect_V = aspect_N.to(device, torch.float32)[of_vN.flatten()]
        boxes, flip_V = random_boxes(aspect_V, a.scale_min, u_VR[:, :22]), u_VR[:, 22] < a.flip
        colours_VR = self._colours(u_VR[:, 23:])
        index_vN = torch.arange(views * n, device=device).view(views, n)
        x_V3CC = torch.empty(views * n, 3, self.crop, self.crop, device=device, memory_format=torch.channels_last)
        out = x_V3CC.view(views, n, *x_V3CC.shape[1:])
        size = _PIECE if device.type == "cpu" else min(n, at_once or n)
        for start in range(0, n, size):
            for i in range(views):
                at = index_vN[i, start : start + size]
                crops = resized_crops(frames_NSS3, boxes.of(at), self.crop, flip_V[at], of_vN[i, start : start + size])
                out[i, start : start + size] = _normalise(self._recoloured(crops, colours_VR[at], orders[i]))
        if a.erase > 0:
            for x in out:
                x.copy_(erase(x, a.erase, uniform(n, 23)))
        return out

    def _colours(self, u_VR: Tensor) -> Tensor:
        """(V, 6): factors of brightness, contrast and saturation, turns of the hue, factor of grey, sigma of blur."""
        a = self.augment
        strength_4 = u_VR.new_tensor([a.brightness, a.contrast, a.saturation, a.hue])
        neutral_4 = u_VR.new_tensor([1.0, 1.0, 1.0, 0.0])
        jitter_V4 = neutral_4 + strength_4 * (2 * u_VR[:, 1:5] - 1) * (u_VR[:, :1] < a.jitter)
        grey_V, blurred_V = u_VR[:, 5] >= a.grey, u_VR[:, 6] < a.blur
        return torch.cat([jitter_V4, torch.stack([grey_V, (0.1 + 1.9 * u_VR[:, 7]) * blurred_V], 1)], 1)

    def _recoloured(self, x_N3CC: Tensor, colours_NR: Tensor, order: list[int]) -> Tensor:
        """Colour jitter, grey and blur of one view; see `_colours`."""
        a, factors = self.augment, colours_NR.unbind(1)
        jitters = ((brightness, a.brightness), (contrast, a.contrast), (saturation, a.saturation), (hue, a.hue))
        for i in order:
            change, strength = jitters[i]
            if strength > 0 and a.jitter > 0:
                x_N3CC = change(x_N3CC, factors[i])
        if a.grey > 0:
            x_N3CC = saturation(x_N3CC, factors[4])
        return blur(x_N3CC, factors[5]) if a.blur > 0 else x_N3CC


@torch.no_grad()
def central_view(frames_NSS3: Tensor, aspect_N: Tensor, crop: int) -> Tensor:
    """The view of each frame that is embedded: its largest central box within the training ratios.

    That is the box on which RandomResizedCrop falls back. It shows the whole of a 4:3 photo and
    three quarters of a 16:9 video, and squeezes no shape more than a training crop does.

    Args:
        frames_NSS3: stored frames, uint8.
        aspect_N: width / height as shown, > 0.
        crop: side of the view [pixels].

    Returns:
        float32 (N, 3, crop, crop), normalised, channels_last, on the frames' device.
    """
    aspect_N = aspect_N.to(frames_NSS3.device, torch.float32)
    x_N3CC = resized_crops(frames_NSS3, _central_boxes(aspect_N), crop)
    return _normalise(x_N3CC).contiguous(memory_format=torch.channels_last)


def random_boxes(aspect_N: Tensor, scale_min: float, u_NR: Tensor) -> Boxes:
    """RandomResizedCrop's box: area uniform in [scale_min, 1] of the picture, log ratio uniform in
    log RATIOS, the first of ten tries that fits inside, else the central box.

    Args:
        aspect_N: width / height of the pictures.
        u_NR: 22 columns of uniform numbers in [0, 1).
    """
    low, high = math.log(RATIOS[0]), math.log(RATIOS[1])
    area_NT = (scale_min + (1 - scale_min) * u_NR[:, :_TRIES]) * aspect_N[:, None]
    ratio_NT = torch.exp(low + (high - low) * u_NR[:, _TRIES : 2 * _TRIES])
    width_NT = (area_NT * ratio_NT).sqrt() / aspect_N[:, None]
    height_NT = (area_NT / ratio_NT).sqrt()
    fits_NT = (width_NT <= 1) & (height_NT <= 1)
    first_N1 = fits_NT.to(torch.uint8).argmax(1, keepdim=True)
    centre, none_N = _central_boxes(aspect_N), ~fits_NT.any(1)
    width_N = torch.where(none_N, centre.width_N, width_NT.gather(1, first_N1)[:, 0])
    height_N = torch.where(none_N, centre.height_N, height_NT.gather(1, first_N1)[:, 0])
    left_N = torch.where(none_N, centre.left_N, (1 - width_N) * u_NR[:, -2])
    top_N = torch.where(none_N, centre.top_N, (1 - height_N) * u_NR[:, -1])
    return Boxes(left_N, top_N, width_N, height_N)


def erase(x_N3CC: Tensor, share: float, u_NR: Tensor) -> Tensor:
    """RandomErasing: a rectangle becomes zero, which is the mean colour once pictures are normalised.

    Its area is uniform in `ERASED` of the picture and its log ratio in log `ERASED_RATIOS`; the first of ten tries
    that is smaller than the picture on both sides counts, and when there is none the picture stays.

    Args:
        share: probability that a picture is touched.
        u_NR: 23 columns of uniform numbers in [0, 1).
    """
    side = x_N3CC.shape[-1]
    low, high = (math.log(r) for r in ERASED_RATIOS)
    area_NT = (ERASED[0] + (ERASED[1] - ERASED[0]) * u_NR[:, :_TRIES]) * side**2
    ratio_NT = torch.exp(low + (high - low) * u_NR[:, _TRIES : 2 * _TRIES])
    height_NT, width_NT = (area_NT * ratio_NT).sqrt().round(), (area_NT / ratio_NT).sqrt().round()
    fits_NT = (height_NT < side) & (width_NT < side)
    first_N1 = fits_NT.to(torch.uint8).argmax(1, keepdim=True)
    height_N1, width_N1 = height_NT.gather(1, first_N1), width_NT.gather(1, first_N1)
    top_N1 = ((side - height_N1 + 1) * u_NR[:, 20:21]).floor()
    left_N1 = ((side - width_N1 + 1) * u_NR[:, 21:22]).floor()
    pixel_C = torch.arange(side, device=x_N3CC.device)
    rows_NC = (pixel_C >= top_N1) & (pixel_C < top_N1 + height_N1)
    columns_NC = (pixel_C >= left_N1) & (pixel_C < left_N1 + width_N1)
    touched_N = (u_NR[:, 22] < share) & fits_NT.any(1)
    hole_N1CC = (rows_NC[:, None, :, None] & columns_NC[:, None, None, :]) & touched_N[:, None, None, None]
    return x_N3CC.masked_fill(hole_N1CC, 0)


def resized_crops(
    frames_NSS3: Tensor, boxes: Boxes, crop: int, flip_V: Tensor | None = None, of_V: Tensor | None = None
) -> Tensor:
    """Cut boxes on whole pixels and resize them, bilinear with antialiasing: torchvision's `resized_crop`.

    On a CPU by torch's own resampling of bytes, one by one, which is five times as fast there as products with
    matrices; elsewhere by these, all at once. The two differ by the rounding to bytes, at most 1 / 255.

    Args:
        frames_NSS3: uint8.
        boxes: V of them. At least one pixel of each is taken.
        crop: side of a view [pixels].
        flip_V: which views are mirrored; None = none.
        of_V: of which frame each box is; None = one of each frame, in order.

    Returns:
        float32 in [0, 1], (V, 3, crop, crop).
    """
    edges_4V = _whole_pixels(boxes, frames_NSS3.shape[1])
    if frames_NSS3.device.type == "cpu":
        of = range(len(frames_NSS3)) if of_V is None else of_V.tolist()
        return _crops_of_bytes(frames_NSS3, of, edges_4V, crop, flip_V)
    return _crops_by_products(frames_NSS3 if of_V is None else frames_NSS3[of_V], edges_4V, crop, flip_V)


def _whole_pixels(boxes: Boxes, side: int) -> Tensor:
    """(4, V) int64: first row, row after the last, first column, column after the last."""
    ends = []
    for start_V, length_V in ((boxes.top_N, boxes.height_N), (boxes.left_N, boxes.width_N)):
        first_V = (start_V * side).round().clamp(0, side - 1)
        ends += [first_V, ((start_V + length_V) * side).round().clamp(max=side).maximum(first_V + 1)]
    return torch.stack(ends).long()


def _crops_of_bytes(
    frames_NSS3: Tensor, of: Sequence[int], edges_4V: Tensor, crop: int, flip_V: Tensor | None
) -> Tensor:
    frames_N3SS, x = frames_NSS3.permute(0, 3, 1, 2), []
    for n, (top, bottom, left, right) in zip(of, edges_4V.T.tolist(), strict=True):
        box_13HW = frames_N3SS[n : n + 1, :, top:bottom, left:right]
        x.append(F.interpolate(box_13HW, (crop, crop), mode="bilinear", antialias=True))
    x_V3CC = torch.cat(x)
    if flip_V is not None:
        x_V3CC = torch.where(flip_V[:, None, None, None], x_V3CC.flip(3), x_V3CC)
    return x_V3CC.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def _crops_by_products(frames_VSS3: Tensor, edges_4V: Tensor, crop: int, flip_V: Tensor | None) -> Tensor:
    """A resize is a pair of matrices, one for rows and one for columns; a flip is then free."""
    views, side = frames_VSS3.shape[:2]
    top_V, bottom_V, left_V, right_V = edges_4V
    rows_VCS = _resize_matrix(top_V, bottom_V, side, crop).div_(255)
    columns_VCS = _resize_matrix(left_V, right_V, side, crop, flip_V)
    with fast_float32(frames_VSS3.device):
        x = rows_VCS @ frames_VSS3.to(torch.float32).view(views, side, side * 3)
        x = x.view(views, crop, side, 3).permute(0, 3, 1, 2).reshape(views, 3 * crop, side)
        x = x @ columns_VCS.transpose(1, 2)
    return x.view(views, 3, crop, crop)


def _resize_matrix(start_V: Tensor, stop_V: Tensor, side: int, crop: int, flip_V: Tensor | None = None) -> Tensor:
    """(V, crop, side): a triangle filter over the pixels of [start, stop)."""
    start_V11, stop_V11 = start_V[:, None, None], stop_V[:, None, None]
    scale_V11 = (stop_V11 - start_V11) / crop
    pixel_S = torch.arange(side, device=start_V.device)
    outside_V1S = (pixel_S < start_V11) | (pixel_S >= stop_V11)
    pixel_V1S = (pixel_S + 0.5 - start_V11).masked_fill(outside_V1S, torch.inf)
    centre_VC1 = (torch.arange(crop, device=start_V.device)[:, None] + 0.5) * scale_V11
    if flip_V is not None:
        centre_VC1 = torch.where(flip_V[:, None, None], centre_VC1.flip(1), centre_VC1)
    weight_VCS = (pixel_V1S - centre_VC1).abs_().neg_().add_(scale_V11.clamp(min=1)).clamp_(min=0)
    return weight_VCS.div_(weight_VCS.sum(2, keepdim=True))


def _central_boxes(aspect_N: Tensor) -> Boxes:
    """The largest central boxes with a ratio within RATIOS."""
    width_N = (RATIOS[1] / aspect_N).clamp(max=1)
    height_N = (aspect_N / RATIOS[0]).clamp(max=1)
    return Boxes((1 - width_N) / 2, (1 - height_N) / 2, width_N, height_N)


def _normalise(x_N3CC: Tensor) -> Tensor:
    """In place."""
    mean, std = (torch.tensor(v, device=x_N3CC.device)[:, None, None] for v in (MEAN, STD))
    return x_N3CC.sub_(mean).div_(std)
