"""Changes of colour with a factor for each sample; with one factor for all, torchvision's functions.

All take float (N, 3, C, C) in [0, 1] and a factor per sample, and return the same shape and range.
"""

import torch
from torch import Tensor

__all__ = ["blur", "brightness", "contrast", "hue", "saturation"]


def brightness(x_N3CC: Tensor, factor_N: Tensor) -> Tensor:
    """Towards black (0), unchanged (1), brighter (> 1)."""
    return (x_N3CC * factor_N[:, None, None, None]).clamp_(0, 1)


def contrast(x_N3CC: Tensor, factor_N: Tensor) -> Tensor:
    """Towards the mean grey of the picture (0), unchanged (1), away from it (> 1)."""
    mean_N111 = _luma(x_N3CC).mean((1, 2, 3), keepdim=True)
    return _blend(x_N3CC, mean_N111, factor_N)


def saturation(x_N3CC: Tensor, factor_N: Tensor) -> Tensor:
    """To grey, that is luma in all three colours (0), unchanged (1), more colourful (> 1)."""
    return _blend(x_N3CC, _luma(x_N3CC), factor_N)


def hue(x_N3CC: Tensor, turns_N: Tensor) -> Tensor:
    """Turn the hue of HSV by a share of the colour wheel, in [-0.5, 0.5]; value and saturation stay."""
    r, g, b = x_N3CC.unbind(1)
    top, bottom = torch.maximum(torch.maximum(r, g), b), torch.minimum(torch.minimum(r, g), b)
    chroma = top - bottom
    # how far from red, in turns, towards green (+) or blue (-); anything where there is no colour
    from_red = (g + b).sub_(r).sub_(bottom).div_(chroma.clamp(min=1e-12)).add_(1).div_(6)
    turned = from_red.copysign_(g - b).add_(turns_N[:, None, None])
    third_3 = torch.tensor([0.0, 1 / 3, 2 / 3], device=x_N3CC.device)[:, None, None]
    # how far from each primary, in [0, 1/2]: at its full value up to 1/6 away from it, at its least from 1/3 on
    away_N3CC = turned[:, None] - third_3
    away_N3CC.sub_(away_N3CC.round()).abs_().sub_(1 / 6).clamp_(0, 1 / 6)
    return torch.addcmul(top[:, None], away_N3CC, chroma[:, None], value=-6)


def blur(x_N3CC: Tensor, sigma_N: Tensor) -> Tensor:
    """Gaussian blur over about a tenth of the side, mirrored at the edges; sigma [pixels], 0 = none."""
    side = x_N3CC.shape[-1]
    reach = max(1, side // 20)
    offset_W = torch.arange(-reach, reach + 1, device=x_N3CC.device)
    weight_NW = torch.exp(-0.5 * (offset_W / sigma_N.clamp(min=1e-3)[:, None]).square())
    weight_NW = weight_NW / weight_NW.sum(1, keepdim=True)
    source_CW = torch.arange(side, device=x_N3CC.device)[:, None] + offset_W
    source_CW = (side - 1) - ((side - 1) - source_CW.abs()).abs()
    matrix_NCC = x_N3CC.new_zeros(len(x_N3CC), side, side)
    shape = (len(x_N3CC), side, len(offset_W))
    matrix_NCC.scatter_add_(2, source_CW.expand(shape), weight_NW[:, None].expand(shape).contiguous())
    return matrix_NCC[:, None] @ x_N3CC @ matrix_NCC.transpose(1, 2)[:, None]


def _luma(x_N3CC: Tensor) -> Tensor:
    """(N, 1, C, C), by ITU-R 601."""
    r, g, b = x_N3CC.unbind(1)
    return (0.2989 * r).add_(g, alpha=0.587).add_(b, alpha=0.114)[:, None]


def _blend(x_N3CC: Tensor, other: Tensor, factor_N: Tensor) -> Tensor:
    factor_N111 = factor_N[:, None, None, None]
    return (x_N3CC * factor_N111).add_(other * (1 - factor_N111)).clamp_(0, 1)
