"""The encoder: any torchvision or timm backbone under two projection heads."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from cld_stream.config import EncoderSettings
from cld_stream.errors import UsageError
from cld_stream.learn.heads import make_head
from cld_stream.learn.pieces import out_of_memory

__all__ = ["SMALL_CROP", "Encoder", "Output", "build_encoder"]

SMALL_CROP = 96
"""Views with fewer pixels a side get the small-image stem of the authors' CIFAR runs."""

FULL_RESOLUTION_CROP = 48
"""Up to here that stem keeps the resolution; above, it halves it, or a step would cost four times as much."""

_NOTHING = 1e-2
"""A distance of batch norm's output from its mean that is rounding: others are one to ten."""

_RESNETS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], list[int]]] = {
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
    "resnet101": (Bottleneck, [3, 4, 23, 3]),
    "resnet152": (Bottleneck, [3, 8, 36, 3]),
}


class Output(NamedTuple):
    """What the encoder says about N pictures.

    Attributes:
        backbone_ND: h, the backbone's output as it is.
        instance_Nd: f_I, unit rows, float32.
        group_Nd: f_G, unit rows, float32.
    """

    backbone_ND: Tensor
    instance_Nd: Tensor
    group_Nd: Tensor


class Encoder(nn.Module):
    """Backbone, instance head, group head. Grouping and discrimination clash on one head, hence two.

    Use `build_encoder`.

    Attributes:
        backbone_dim: width of the backbone's output.
    """

    def __init__(self, backbone: nn.Module, backbone_dim: int, head: str, feature_dim: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.backbone_dim = backbone_dim
        self.instance_head = make_head(head, backbone_dim, feature_dim)
        self.group_head = make_head(head, backbone_dim, feature_dim)
        self._centred = head.startswith("bn")

    def forward(self, x_N3CC: Tensor) -> Output:
        """Normalised pictures (see `augment`) to features. Memory format channels_last is the fast one."""
        h_ND = self.backbone(x_N3CC).flatten(1)
        instance_Nd, group_Nd = self.instance_head(h_ND).float(), self.group_head(h_ND).float()
        if self.training and self._centred:
            instance_Nd, group_Nd = _without_rounding(instance_Nd), _without_rounding(group_Nd)
        return Output(h_ND, F.normalize(instance_Nd), F.normalize(group_Nd))


def _without_rounding(x_Nd: Tensor) -> Tensor:
    """Rows that are all but the mean of the batch become zero, without a gradient.

    Batch norm behind a head leaves nothing but its bias and rounding of pictures that are all the same (a black
    screen). Made unit rows, that has gradients of up to a million times the usual, and few steps of them are the end of
    the head.
    """
    fixed_Nd = x_Nd.detach()
    return torch.where((fixed_Nd - fixed_Nd.mean(0)).norm(dim=1, keepdim=True) > _NOTHING, x_Nd, 0)


def build_encoder(settings: EncoderSettings, weights: Mapping[str, Tensor] | None = None) -> Encoder:
    """The encoder that the settings describe, in train mode, in memory format channels_last, on the CPU.

    The architecture follows from the settings alone. `width` scales the ResNets 18 to 152 and nothing else. The
    small-image stem (3x3, no max-pool; stride 1 up to 48 pixels, 2 above) goes to torchvision's ResNet family when
    `crop` < 96, unless `init` is `pretrained`: those weights fit the published stem. A random start draws from torch's
    global generator.

    Args:
        weights: tensors by name, which the caller has read from a file: those of a whole encoder, or of its backbone
            alone (a classifier is ignored, fresh heads stay). They take the place of `settings.init`: nothing is
            downloaded.

    Raises:
        UsageError: an unknown backbone (the nearest one is named) or one that cannot take pictures of `crop` pixels, a
            combination that does not exist, weights that do not fit, or weights that cannot be downloaded.
    """
    download = settings.init == "pretrained" and weights is None
    if settings.init not in ("random", "pretrained") and not settings.init.endswith(".safetensors"):
        raise UsageError(f"encoder.init = {settings.init!r}: expected random, pretrained or a .safetensors file")
    if settings.init.endswith(".safetensors") and weights is None:
        raise ValueError(f"the tensors of {settings.init} must be passed in")
    backbone, width = _fitting_backbone(settings, download)
    encoder = Encoder(backbone, width, settings.head, settings.feature_dim)
    if weights is not None:
        _load(encoder, weights, settings)
    return encoder.to(memory_format=torch.channels_last)


def _fitting_backbone(settings: EncoderSettings, download: bool) -> tuple[nn.Module, int]:
    """The backbone, tried out on a picture, and the width of what it gives."""
    try:
        backbone = _backbone(settings, download)
        return backbone, _output_width(backbone, settings.crop)
    except (AssertionError, RuntimeError, ValueError) as e:
        if out_of_memory(e) is not None:
            raise
        reason = str(e).partition("\n")[0]
        raise UsageError(
            f"encoder.backbone: {settings.backbone} cannot take pictures of {settings.crop} pixels ({reason}). "
            "Try another encoder.crop (a larger one, or a multiple of 32) or another backbone."
        ) from e


def _backbone(settings: EncoderSettings, download: bool) -> nn.Module:
    """The backbone without its classifier."""
    name, pretrained = settings.backbone, settings.init == "pretrained"
    if pretrained and name in _RESNETS and settings.width != 1:
        raise UsageError(
            f"encoder.init = pretrained: {name} has weights at full width only, not at width {settings.width:g}. "
            "Add --set encoder.width=1, or choose init=random."
        )
    if name.startswith("timm:"):
        model = _timm_model(name.removeprefix("timm:"), settings.crop, download)
    elif name in _RESNETS and not pretrained:
        model = _ScaledResNet(*_RESNETS[name], settings.width)
    else:
        model = _torchvision_model(name, settings.crop, download)
    if isinstance(model, ResNet) and settings.crop < SMALL_CROP and not pretrained:
        stride = 1 if settings.crop <= FULL_RESOLUTION_CROP else 2
        model.conv1 = nn.Conv2d(3, model.conv1.out_channels, 3, stride=stride, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
    _drop_classifier(model)
    if settings.norm == "group":
        found = _use_group_norm(model)
        if found and pretrained:
            raise UsageError(
                f"encoder.norm = group: the pretrained weights of {name} belong to batch norm. "
                "Choose norm=batch, or init=random."
            )
    if settings.activation == "mish" and _use_mish(model) and pretrained:
        raise UsageError(
            f"encoder.activation = mish: the pretrained weights of {name} belong to ReLU. "
            "Choose activation=relu, or init=random."
        )
    return model


class _ScaledResNet(ResNet):  # type: ignore[misc]  # torchvision is untyped
    """torchvision's ResNet with every number of channels times `width`, in multiples of four."""

    inplanes: int

    def __init__(self, block: type[BasicBlock] | type[Bottleneck], layers: list[int], width: float) -> None:
        self._width = width
        super().__init__(block, layers, num_classes=1)

    def _make_layer(self, block: Any, planes: int, *args: Any, **kwargs: Any) -> nn.Sequential:
        planes = max(4, round(planes * self._width / 4) * 4)
        if planes != self.inplanes and not hasattr(self, "layer1"):  # the stem is as wide as the first stage
            self.inplanes = planes
            self.conv1 = nn.Conv2d(3, planes, 7, stride=2, padding=3, bias=False)
            self.bn1 = nn.BatchNorm2d(planes)
        return super()._make_layer(block, planes, *args, **kwargs)  # type: ignore[no-any-return]


def _torchvision_model(name: str, crop: int, download: bool) -> nn.Module:
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        meant = f"; did you mean timm:{name}?" if _timm_knows(name) else _nearest(name, known)
        raise UsageError(f"encoder.backbone = {name!r}: torchvision has no such model{meant}")
    options: dict[str, Any] = {"weights": "DEFAULT" if download else None}
    if name.startswith("vit_"):
        options["image_size"] = crop
    if name in ("googlenet", "inception_v3"):
        options |= {"init_weights": True} if not download else {}
    return _built(name, lambda: torchvision.models.get_model(name, **options), download)


def _timm_knows(name: str) -> bool:
    try:
        import timm
    except ImportError:
        return False
    return name.partition(".")[0] in timm.list_models()


def _timm_model(name: str, crop: int, download: bool) -> nn.Module:
    import timm

    known = timm.list_models()
    if name.partition(".")[0] not in known:
        raise UsageError(f"encoder.backbone = 'timm:{name}': timm has no such model{_nearest(name, known, 'timm:')}")

    def build(**options: Any) -> nn.Module:
        return _built(
            f"timm:{name}",
            lambda: timm.create_model(name, pretrained=download, num_classes=0, **options),
            download,
        )

    try:
        return build(img_size=crop)  # transformers need to know
    except TypeError:
        return build()


def _built(name: str, build: Callable[[], nn.Module], download: bool) -> nn.Module:
    """The model, or in one line why there is none."""
    try:
        return build()
    except (OSError, RuntimeError, ValueError) as e:
        if not download:
            raise
        reason = str(e).partition("\n")[0]
        raise UsageError(
            f"encoder.init = pretrained: no weights for {name}: {reason}. "
            "A download needs a network; or choose init=random."
        ) from e


def _drop_classifier(model: nn.Module) -> None:
    """Let everything from the last linear layer of a torchvision classifier on pass its input through.

    SqueezeNet's classifier is a convolution, whose classes are then averaged over the picture: the averaging stays.
    """
    for name in ("fc", "classifier", "heads", "head"):
        part = getattr(model, name, None)
        if isinstance(part, nn.Linear):
            setattr(model, name, nn.Identity())
        elif isinstance(part, nn.Sequential):
            linear = [i for i, layer in enumerate(part) if isinstance(layer, nn.Linear)]
            for i, layer in enumerate(part):
                if isinstance(layer, nn.Dropout | nn.Conv2d) or (linear and i >= linear[-1]):
                    part[i] = nn.Identity()
    for name in ("aux1", "aux2", "AuxLogits"):
        if hasattr(model, name):
            setattr(model, name, None)
            model.aux_logits = False  # type: ignore[assignment]


def _use_group_norm(module: nn.Module) -> int:
    """Put GroupNorm in place of every BatchNorm below the module; returns how many there were."""
    found = 0
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            channels = child.num_features
            groups = max(g for g in range(1, max(1, min(32, channels // 4)) + 1) if channels % g == 0)
            norm: nn.Module = nn.GroupNorm(groups, channels)
            if isinstance(act := getattr(child, "act", None), nn.Module):  # timm folds it in
                norm = nn.Sequential(norm, act)
            setattr(module, name, norm)
            found += 1
        else:
            found += _use_group_norm(child)
    return found


def _use_mish(module: nn.Module) -> int:
    """Put Mish (https://arxiv.org/abs/1908.08681) in place of every ReLU below; returns how many there were."""
    found = 0
    for name, child in module.named_children():
        if isinstance(child, nn.ReLU):
            setattr(module, name, nn.Mish(inplace=True))
            found += 1
        else:
            found += _use_mish(child)
    return found


@torch.no_grad()
def _output_width(backbone: nn.Module, crop: int) -> int:
    """Width of what the backbone gives for one picture, found by trying."""
    backbone.eval()
    width = backbone(torch.zeros(1, 3, crop, crop)).flatten(1).shape[1]
    backbone.train()
    return int(width)


def _load(encoder: Encoder, weights: Mapping[str, Tensor], settings: EncoderSettings) -> None:
    """Copy the tensors in; see `build_encoder` for which."""
    own = encoder.state_dict()
    if not any(name.startswith("backbone.") for name in weights):
        weights = {f"backbone.{name}": tensor for name, tensor in weights.items()}
    fitting = {n: t for n, t in weights.items() if n in own}
    wrong = [n for n, t in fitting.items() if t.shape != own[n].shape]
    wrong += [n for n in own if n.startswith("backbone.") and n not in fitting]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UsageError(
            f"encoder.init = {settings.init}: tensors are absent or of another shape for {settings.backbone} at width "
            f"{settings.width:g}, crop {settings.crop}: {', '.join(wrong[:3])}{more}. "
            "Give the backbone, width, norm, crop and head that they were saved with."
        )
    encoder.load_state_dict(fitting, strict=False)


def _nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)
    return f"; did you mean {prefix}{match[0]}?" if match else ""
