import urllib.error
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from cld_stream.config import EncoderSettings
from cld_stream.errors import UsageError
from cld_stream.learn.encoder import Encoder, build_encoder
from cld_stream.learn.heads import NormLinear, make_head


def built(**settings: Any) -> Encoder:
    torch.manual_seed(0)
    return build_encoder(EncoderSettings(**settings))


def pictures(n: int, crop: int) -> Tensor:
    return torch.randn(n, 3, crop, crop, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("backbone", "crop", "width", "norm", "backbone_dim"),
    [
        ("resnet18", 32, 0.25, "batch", 128),
        ("resnet18", 32, 0.25, "group", 128),
        ("resnet18", 112, 1.0, "batch", 512),
        ("resnet50", 32, 0.125, "batch", 256),
        ("mobilenet_v3_small", 32, 0.25, "group", 1024),
        ("vit_b_16", 32, 0.25, "batch", 768),
        ("googlenet", 32, 0.25, "batch", 1024),
        ("squeezenet1_0", 32, 0.25, "batch", 512),
        ("timm:resnet10t", 32, 0.25, "group", 512),
        ("timm:vit_tiny_patch16_224", 32, 0.25, "batch", 192),
    ],
)
def test_any_backbone_gives_unit_features_and_a_gradient_everywhere(
    backbone: str, crop: int, width: float, norm: str, backbone_dim: int
) -> None:
    encoder = built(backbone=backbone, crop=crop, width=width, norm=norm, feature_dim=16)
    out = encoder(pictures(2, crop))
    assert out.backbone_ND.shape == (2, backbone_dim) == (2, encoder.backbone_dim)
    for features in (out.instance_Nd, out.group_Nd):
        assert features.shape == (2, 16)
        torch.testing.assert_close(features.norm(dim=1), torch.ones(2))
    assert encoder.training
    aim = out.instance_Nd[:, 0].sum() + out.group_Nd[:, 0].sum()
    slopes = torch.autograd.grad(aim, list(encoder.parameters()), allow_unused=True)
    assert all(slope is not None for slope in slopes)
    batch_norms = sum(isinstance(m, nn.BatchNorm2d) for m in encoder.modules())
    assert norm == "batch" or batch_norms == 0


def test_mish_stands_in_place_of_every_relu_of_the_backbone() -> None:
    encoder = built(width=0.125, crop=32, activation="mish", norm="group")
    kinds = [type(layer) for layer in encoder.backbone.modules()]
    assert nn.ReLU not in kinds
    assert kinds.count(nn.Mish) == 9
    assert (encoder.backbone.get_submodule("layer1")(torch.randn(1, 8, 4, 4)) < 0).any()


def test_full_width_is_torchvisions_resnet_but_for_the_small_image_stem() -> None:
    for crop in (112, 32):
        ours = dict(built(width=1.0, crop=crop).backbone.named_parameters())
        theirs = dict(torchvision.models.resnet18().named_parameters())
        stem = {name for name in theirs if name in ours and ours[name].shape != theirs[name].shape}
        assert set(theirs) - set(ours) == {"fc.weight", "fc.bias"}
        assert stem == (set() if crop == 112 else {"conv1.weight"})


@pytest.mark.parametrize(("crop", "stride"), [(32, 1), (48, 1), (64, 2)])
def test_the_small_image_stem_has_no_pooling_and_keeps_small_crops_whole(crop: int, stride: int) -> None:
    small, large = built(crop=crop).backbone, built(crop=96).backbone
    assert isinstance(small.maxpool, nn.Identity)
    assert isinstance(large.maxpool, nn.MaxPool2d)
    assert isinstance(small.conv1, nn.Conv2d)
    assert (small.conv1.kernel_size, small.conv1.stride) == ((3, 3), (stride, stride))


def test_group_norm_has_a_group_for_four_channels_and_no_leak_between_frames() -> None:
    encoder = built(norm="group", crop=32)
    norms = [m for m in encoder.modules() if isinstance(m, nn.GroupNorm)]
    assert {(m.num_channels, m.num_groups) for m in norms} == {(16, 4), (32, 8), (64, 16), (128, 32)}
    x = pictures(4, 32)
    together, alone = encoder(x).backbone_ND[:1], encoder(x[:1]).backbone_ND
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_the_same_seed_gives_the_same_encoder() -> None:
    first, second = built(crop=32).state_dict(), built(crop=32).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_features_are_unit_float32_under_autocast() -> None:
    encoder = built(crop=32).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = encoder(pictures(2, 32))
    assert out.instance_Nd.dtype == out.group_Nd.dtype == torch.float32
    torch.testing.assert_close(out.group_Nd.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize("kind", ["linear", "normlinear", "mlp", "normmlp"])
def test_heads_are_those_of_the_paper(kind: str) -> None:
    torch.manual_seed(0)
    head, h = make_head(kind, 6, 4), torch.randn(3, 6)
    hidden, last = h, head
    if isinstance(head, nn.Sequential):
        first, last = head[0], head[2]
        assert isinstance(first, nn.Linear)
        hidden = (h @ first.weight.T + first.bias).clamp(min=0)
    if kind.startswith("norm"):
        assert isinstance(last, NormLinear)
        w = last.weight
        expected = (hidden / hidden.norm(dim=1, keepdim=True)) @ (w / w.norm(dim=1, keepdim=True)).T
    else:
        assert isinstance(last, nn.Linear)
        expected = hidden @ last.weight.T + last.bias
    torch.testing.assert_close(head(h), expected)


@pytest.mark.parametrize("kind", ["bnlinear", "bnmlp"])
def test_heads_with_batch_norm_centre_and_scale_each_feature_over_the_batch(kind: str) -> None:
    torch.manual_seed(0)
    head, h = make_head(kind, 6, 4), torch.randn(50, 6) + 3
    out = head(h)
    assert isinstance(head, nn.Sequential)
    assert [type(m).__name__ for m in head] == {
        "bnlinear": ["Linear", "BatchNorm1d"],
        "bnmlp": ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"],
    }[kind]
    torch.testing.assert_close(out.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.var(0, unbiased=False), torch.ones(4), atol=1e-3, rtol=0)


def test_an_unknown_head_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown head"):
        make_head("linaer", 4, 4)


def test_saved_tensors_of_an_encoder_or_of_a_backbone_alone_take_the_place_of_the_random_start() -> None:
    saved = built(crop=32)
    torch.manual_seed(9)
    settings = EncoderSettings(crop=32, init="old.safetensors")
    whole = build_encoder(settings, saved.state_dict())
    part = build_encoder(settings, {**saved.backbone.state_dict(), "fc.weight": torch.zeros(3, 128)})
    own = saved.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in whole.state_dict().items())
    for name, tensor in part.state_dict().items():
        assert torch.equal(own[name], tensor) == (not name.endswith(("head.weight", "head.bias")))


def test_saved_tensors_spare_the_download_of_pretrained_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = EncoderSettings(backbone="mobilenet_v3_small", crop=32, init="pretrained")
    saved = built(backbone="mobilenet_v3_small", crop=32)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", _no_network)
    whole = build_encoder(settings, saved.state_dict())
    assert torch.equal(whole.instance_head.weight, saved.instance_head.weight)  # type: ignore[arg-type]


def _no_network(*_: Any, **__: Any) -> None:
    raise urllib.error.URLError("no network")


def test_pretrained_weights_that_cannot_be_downloaded_are_one_clear_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_model(*_: Any, **__: Any) -> None:
        _no_network()

    monkeypatch.setattr(torchvision.models, "get_model", no_model)
    with pytest.raises(UsageError, match=r"no weights for resnet18: .*no network.* choose init=random"):
        built(init="pretrained", width=1.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "resnet19"}, r"torchvision has no such model; did you mean resnet1"),
        (
            {"backbone": "mobilenetv3_small_100"},
            r"torchvision has no such model; did you mean timm:mobilenetv3_small_100",
        ),
        ({"backbone": "timm:resnet10tt"}, r"timm has no such model; did you mean timm:resnet10t\?"),
        ({"init": "pretraned"}, r"expected random, pretrained or a .safetensors file"),
        ({"init": "pretrained"}, r"full width only, not at width 0.25.*encoder.width=1"),
    ],
)
def test_settings_that_cannot_be_built_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        built(**settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("backbone", "crop"),
    [("inception_v3", 32), ("vit_b_16", 50), ("alexnet", 32), ("densenet121", 16), ("timm:inception_v3", 32)],
)
def test_a_backbone_that_cannot_take_pictures_so_small_is_named(backbone: str, crop: int) -> None:
    message = rf"^encoder.backbone: {backbone} cannot take pictures of {crop} pixels \(.*\). Try another encoder.crop"
    with pytest.raises(UsageError, match=message) as caught:
        built(backbone=backbone, crop=crop)
    assert "\n" not in str(caught.value)


def test_tensors_of_another_shape_are_named_with_what_to_do() -> None:
    saved = built(crop=32, width=0.125).state_dict()
    settings = EncoderSettings(crop=32, init="old.safetensors")
    with pytest.raises(UsageError, match=r"backbone.conv1.weight.* and \d+ more.*that they were saved with"):
        build_encoder(settings, saved)
    with pytest.raises(ValueError, match="must be passed in"):
        build_encoder(settings)
