from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tvf

from cld_stream.config import AugmentSettings
from cld_stream.learn import augment, colour
from cld_stream.learn.augment import (
    MEAN,
    RATIOS,
    STD,
    Boxes,
    RandomViews,
    central_view,
    erase,
    random_boxes,
    resized_crops,
)

PLAIN: dict[str, Any] = {"scale_min": 1.0, "flip": 0.0, "jitter": 0.0, "grey": 0.0, "blur": 0.0}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def frames(n: int, side: int = 48) -> Tensor:
    """Smooth colourful pictures with some noise, (n, side, side, 3) uint8."""
    coarse = torch.rand(n, 3, 5, 5, generator=seeded(1))
    fine = torch.rand(n, 3, side, side, generator=seeded(2))
    x = 0.8 * F.interpolate(coarse, side, mode="bilinear") + 0.2 * fine
    return (x * 255).byte().permute(0, 2, 3, 1).contiguous()


def pixels(views: Tensor) -> Tensor:
    """Undo the normalisation."""
    return views * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]


@pytest.mark.parametrize("box", [(0, 0, 48, 48), (3, 5, 20, 30), (10, 8, 9, 12), (7, 7, 16, 16), (47, 0, 1, 1)])
@pytest.mark.parametrize("crop", [16, 64])
def test_a_crop_is_torchvisions_antialiased_one(box: tuple[int, int, int, int], crop: int) -> None:
    top, left, height, width = box
    x = frames(2)
    bytes_23SS = x.permute(0, 3, 1, 2)
    shares = Boxes(*(torch.full((2,), v / 48) for v in (left, top, width, height)))
    mirrored = torch.tensor([True, False])

    ours = resized_crops(x, shares, crop, mirrored)
    expected = tvf.resized_crop(bytes_23SS, top, left, height, width, [crop, crop], antialias=True).clone()
    expected[0] = expected[0].flip(-1)
    assert torch.equal((ours * 255).round().byte(), expected)
    assert torch.equal(resized_crops(x, shares, crop)[1], ours[1])
    assert torch.equal(
        resized_crops(x, Boxes(*(part[:1] for part in shares)), crop, of_V=torch.tensor([1]))[0], ours[1]
    )

    # elsewhere than on a CPU: the same of floats
    by_products = augment._crops_by_products(x, augment._whole_pixels(shares, 48), crop, mirrored)
    exact = tvf.resized_crop(bytes_23SS.float() / 255, top, left, height, width, [crop, crop], antialias=True)
    exact[0] = exact[0].flip(-1)
    torch.testing.assert_close(by_products, exact, atol=1e-5, rtol=0)
    assert (by_products - ours).abs().max() <= 1.01 / 255


def test_boxes_are_rounded_to_whole_pixels_of_which_there_is_at_least_one() -> None:
    shares = Boxes(
        *(torch.tensor(v) for v in ([0.0, 0.26, 0.999], [0.0, 0.24, 0.5], [1.0, 0.5, 0.001], [0.1, 0.0, 0.5]))
    )
    assert augment._whole_pixels(shares, 10).T.tolist() == [[0, 1, 0, 10], [2, 3, 3, 8], [5, 10, 9, 10]]


@pytest.mark.parametrize("aspect", [0.4, 1.0, 16 / 9, 4.0])
def test_crops_have_torchvisions_areas_and_ratios_in_the_true_picture(aspect: float) -> None:
    n, height = 4000, 300
    width = round(height * aspect)
    boxes = random_boxes(torch.full((n,), aspect), 0.2, torch.rand(n, 22, generator=seeded(3)))
    assert all(bool((start + length <= 1 + 1e-6).all()) for start, length in zip(boxes[:2], boxes[2:], strict=True))
    assert all(bool((part >= -1e-6).all()) for part in boxes)
    ours = torch.stack([*boxes, boxes.width_N * boxes.height_N], 1)
    ours = torch.cat([ours, (aspect * boxes.width_N / boxes.height_N).log()[:, None]], 1)

    torch.manual_seed(4)
    picture = torch.empty(3, height, width)
    crop = v2.RandomResizedCrop(8, scale=(0.2, 1), ratio=RATIOS)
    drawn = [crop.make_params([picture]) for _ in range(n)]
    rows = [[p["left"] / width, p["top"] / height, p["width"] / width, p["height"] / height] for p in drawn]
    theirs = torch.tensor(rows)
    theirs = torch.cat(
        [
            theirs,
            (theirs[:, 2] * theirs[:, 3])[:, None],
            (aspect * theirs[:, 2] / theirs[:, 3]).log()[:, None],
        ],
        1,
    )
    torch.testing.assert_close(ours.mean(0), theirs.mean(0), atol=0.015, rtol=0)
    torch.testing.assert_close(ours.std(0), theirs.std(0), atol=0.015, rtol=0)


CHANGES: list[tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, float], Tensor], list[float]]] = [
    (colour.brightness, tvf.adjust_brightness, [0.0, 0.6, 1.0, 1.4]),
    (colour.contrast, tvf.adjust_contrast, [0.0, 0.6, 1.0, 1.4]),
    (colour.saturation, tvf.adjust_saturation, [0.0, 0.6, 1.0, 1.4]),
    (colour.hue, tvf.adjust_hue, [-0.5, -0.1, 0.0, 0.1, 0.5]),
    (colour.blur, lambda x, s: tvf.gaussian_blur(x, [5, 5], [s, s]), [0.1, 0.7, 2.0]),
]


@pytest.mark.parametrize(("ours", "theirs", "factors"), CHANGES)
def test_a_colour_change_gives_torchvisions_pixels_with_a_factor_for_each_sample(
    ours: Callable[[Tensor, Tensor], Tensor],
    theirs: Callable[[Tensor, float], Tensor],
    factors: list[float],
) -> None:
    x = torch.rand(len(factors), 3, 40, 40, generator=seeded(5))
    x[:, :, :4] = 0.25  # colourless, black, white and pure
    x[:, :, 4], x[:, :, 5] = 0.0, 1.0
    x[:, :2, 6], x[:, 2, 6] = 0.0, 1.0
    before = x.clone()
    expected = torch.stack([theirs(one, factor) for one, factor in zip(x, factors, strict=True)])
    torch.testing.assert_close(ours(x, torch.tensor(factors)), expected, atol=1e-5, rtol=0)
    assert torch.equal(x, before)


def test_grey_is_torchvisions_and_no_blur_is_none() -> None:
    x = torch.rand(2, 3, 20, 20, generator=seeded(6))
    torch.testing.assert_close(colour.saturation(x, torch.zeros(2)), tvf.rgb_to_grayscale(x, 3))
    torch.testing.assert_close(colour.blur(x, torch.zeros(2)), x)


def test_jittered_colours_are_distributed_as_torchvisions() -> None:
    n = 1500
    x = frames(1, 8).expand(n, -1, -1, -1).contiguous()
    settings = AugmentSettings(**{**PLAIN, "jitter": 0.8, "grey": 0.2})
    views = RandomViews(settings, 16)
    ours = torch.cat(  # the order of the jitters is one for a batch: many small batches
        [pixels(views(x[i : i + 10], torch.ones(10), seeded(i))[0]) for i in range(0, n, 10)]
    )
    torch.manual_seed(7)
    theirs_of = v2.Compose(
        [
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(0.2),
        ]
    )
    start = pixels(RandomViews(AugmentSettings(**PLAIN), 16)(x[:1], torch.ones(1), seeded())[0])[0]
    theirs = torch.stack([theirs_of(start) for _ in range(n)])
    statistics: list[Callable[[Tensor], Tensor]] = [
        lambda v: v.mean((2, 3)),  # brightness of each colour
        lambda v: v.std((1, 2, 3))[:, None],  # contrast
        lambda v: (v.amax(1) - v.amin(1)).mean((1, 2))[:, None],  # colourfulness
    ]
    for statistic in statistics:
        a, b = statistic(ours), statistic(theirs)
        torch.testing.assert_close(a.mean(0), b.mean(0), atol=0.015, rtol=0)
        torch.testing.assert_close(a.std(0), b.std(0), atol=0.015, rtol=0)


@pytest.mark.parametrize(("name", "share"), [("flip", 0.5), ("grey", 0.2), ("blur", 0.3), ("erase", 0.4)])
def test_chances_are_per_sample(name: str, share: float) -> None:
    x = frames(1, 16).expand(1000, -1, -1, -1).contiguous()
    changed, plain = (
        RandomViews(AugmentSettings(**{**PLAIN, name: p}), 16)(x, torch.ones(1000), seeded(8))[0] for p in (share, 0.0)
    )
    differ = (changed - plain).abs().amax((1, 2, 3)) > 1e-3
    assert float(differ.float().mean()) == pytest.approx(share, abs=0.06)


def test_erased_rectangles_are_distributed_as_torchvisions() -> None:
    n, side = 2000, 32
    x = torch.ones(n, 3, side, side)
    ours = erase(x, 0.5, torch.rand(n, 23, generator=seeded(11)))
    torch.manual_seed(12)
    theirs_of = v2.RandomErasing(0.5)
    theirs = torch.stack([theirs_of(one) for one in x])
    for hole in ((1 - v[:, 0]) for v in (ours, theirs)):
        assert float(hole.amax((1, 2)).mean()) == pytest.approx(0.5, abs=0.04)  # how often
    measures: list[Callable[[Tensor], Tensor]] = [
        lambda h: h.mean((1, 2)),  # share of the picture
        lambda h: h.amax(1).sum(1),  # width
        lambda h: h.amax(2).sum(1),  # height
        lambda h: (h * torch.arange(side)).sum((1, 2)) / h.sum((1, 2)),  # where, across
        lambda h: (h * torch.arange(side)[:, None]).sum((1, 2)) / h.sum((1, 2)),  # and down
    ]
    for of_hole in measures:
        a, b = (of_hole(h[h.amax((1, 2)) > 0]) for h in (1 - ours[:, 0], 1 - theirs[:, 0]))
        assert float(a.mean()) == pytest.approx(float(b.mean()), rel=0.06)
        assert float(a.std()) == pytest.approx(float(b.std()), rel=0.1)


def test_three_views_all_differ() -> None:
    x, aspect = frames(4), torch.ones(4)
    views = RandomViews(AugmentSettings(), 24, views=3)(x, aspect, seeded(13))
    assert [v.shape for v in views] == [(4, 3, 24, 24)] * 3
    assert min(float((views[i] - views[j]).abs().mean()) for i, j in ((0, 1), (0, 2), (1, 2))) > 0.1


def test_views_are_two_and_differ_and_depend_on_the_generator_alone() -> None:
    x, aspect = frames(6), torch.linspace(0.5, 2, 6)
    views = RandomViews(AugmentSettings(blur=0.5), 32)
    torch.manual_seed(0)
    x1, x2 = views(x, aspect, seeded(9))
    torch.manual_seed(1)
    again1, again2 = views(x, aspect, seeded(9))
    other, _ = views(x, aspect, seeded(10))
    assert torch.equal(x1, again1)
    assert torch.equal(x2, again2)
    assert x1.shape == x2.shape == (6, 3, 32, 32)
    assert x1.dtype == torch.float32
    assert x1.is_contiguous(memory_format=torch.channels_last)
    assert min(float((a - b).abs().mean()) for a, b in ((x1, x2), (x1, other))) > 0.1
    assert bool((pixels(x1) > -1e-4).all())
    assert bool((pixels(x1) < 1 + 1e-4).all())


@pytest.mark.parametrize("aspect", [0.5, 1.0, 4 / 3, 16 / 9, 3.0])
def test_the_embedded_view_is_the_central_box_of_the_true_picture(aspect: float) -> None:
    """A disc drawn in the true picture, stored stretched, comes back round within the training ratios."""
    side, crop = 160, 64
    y, x = ((torch.arange(side) + 0.5) / side - 0.5, ((torch.arange(side) + 0.5) / side - 0.5) * aspect)
    disc = (y[:, None].square() + x.square()).sqrt() < 0.3 * min(1, aspect)
    stored = (disc * 255).byte()[None, :, :, None].expand(1, side, side, 3).contiguous()
    view = pixels(central_view(stored, torch.tensor([aspect]), crop))[0, 0] > 0.5
    rows, columns = int(view.any(1).sum()), int(view.any(0).sum())
    squeeze = min(max(aspect, RATIOS[0]), RATIOS[1])
    assert rows / columns == pytest.approx(squeeze, rel=0.1)
    assert view.flip(0).eq(view).float().mean() > 0.97
    assert view.flip(1).eq(view).float().mean() > 0.97
