"""Semi-supervised fine-tuning: the whole encoder and a linear layer, with a few of the labels."""

import copy
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cld_stream.learn.augment import MEAN, STD, random_boxes, resized_crops
from cld_stream.learn.encoder import Encoder

__all__ = ["Classifier", "choose_labelled", "fine_tune"]

# Shape suffixes: N labelled pictures, B pictures of a step, S side of a stored frame, C side of a view, D features.

STEPS, BATCH = 300, 64
"""Cost is bounded: so many steps of so many pictures, however many labels there are."""

RATE, HEAD_RATE, MOMENTUM, DECAY = 0.01, 0.1, 0.9, 1e-4
"""Of SGD: rate of the encoder and of the new layer, Nesterov momentum, L2 penalty."""

LEAST_AREA = 0.5
"""Of a random crop, as a share of the picture."""


class Classifier(nn.Module):
    """A backbone under a linear layer."""

    def __init__(self, encoder: Encoder, classes: int) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(encoder.backbone).requires_grad_(True)
        self.layer = nn.Linear(encoder.backbone_dim, classes, device=next(encoder.parameters()).device)
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)
        self.eval()

    def forward(self, x_N3CC: Tensor) -> Tensor:
        """Normalised pictures to logits."""
        logits: Tensor = self.layer(self.backbone(x_N3CC).flatten(1).float())
        return logits


def choose_labelled(labels_N: Tensor, share: float, seed: int = 0) -> Tensor:
    """Rows whose labels are shown: of each class round(share x its rows), at least one; ascending.

    Args:
        share: in (0, 1].
    """
    generator, chosen = torch.Generator().manual_seed(seed), []
    for label in torch.unique(labels_N.cpu()):
        rows = (labels_N.cpu() == label).nonzero()[:, 0]
        count = max(1, round(share * len(rows)))
        chosen.append(rows[torch.randperm(len(rows), generator=generator)[:count]])
    return torch.cat(chosen).sort().values if chosen else torch.zeros(0, dtype=torch.int64)


def fine_tune(
    encoder: Encoder,
    pixels_NSS3: Tensor,
    aspect_N: Tensor,
    labels_N: Tensor,
    classes: int,
    crop: int,
    steps: int = STEPS,
    seed: int = 0,
    on_step: Callable[[int, int], None] | None = None,
) -> Classifier:
    """Fit a copy of the backbone and a linear layer on labelled pictures.

    Protocol: `STEPS` steps of SGD on `BATCH` pictures drawn with replacement, rates falling to zero as a cosine, a
    random crop (`LEAST_AREA` to all of the picture) of each, no flip (mirrored things may be other things) and no
    colour jitter. Departure from the common protocol: batch-norm statistics stay those of the encoder, since a
    handful of pictures has none of its own.

    Args:
        encoder: on any device; is not changed.
        pixels_NSS3, aspect_N: stored frames (uint8), and width / height of what they show.
        labels_N: 0 <= label < classes.
        crop: side of a view [pixels].
        on_step: told (steps done, steps in all); may raise to end it.

    Returns:
        The classifier in eval mode, on the encoder's device.
    """
    model, device = Classifier(encoder, classes), next(encoder.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (MEAN, STD))
    parts = [
        {"params": list(model.backbone.parameters()), "lr": RATE, "full": RATE},
        {"params": list(model.layer.parameters()), "lr": HEAD_RATE, "full": HEAD_RATE},
    ]
    optimiser = torch.optim.SGD(parts, lr=RATE, momentum=MOMENTUM, weight_decay=DECAY, nesterov=True)
    with torch.enable_grad():
        for step in range(steps):
            rows_B = torch.randint(len(labels_N), (BATCH,), generator=generator)
            aspect_B = aspect_N[rows_B].float()
            boxes = random_boxes(aspect_B, LEAST_AREA, torch.rand(BATCH, 22, generator=generator))
            boxes = type(boxes)(*(side.to(device) for side in boxes))
            x_B3CC = (resized_crops(pixels_NSS3[rows_B].to(device), boxes, crop) - mean) / std
            x_B3CC = x_B3CC.contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(model(x_B3CC), labels_N[rows_B].to(device))
            for group in optimiser.param_groups:
                group["lr"] = group["full"] * (1 + math.cos(math.pi * step / steps)) / 2
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            if on_step is not None:
                on_step(step + 1, steps)
    return model.requires_grad_(False)
