"""SimCLR and MoCo of the package `lightly` inside our loop: its loss and its projection head on the same backbone.

Batches, views, memory, optimiser and averaging are the learner's own; only head and instance term are lightly's.
"""

import torch
from lightly.loss import NTXentLoss
from lightly.models.modules.heads import MoCoProjectionHead, SimCLRProjectionHead
from torch import Tensor

from cld_stream.config import Settings
from cld_stream.learn.average import WeightAverage
from cld_stream.learn.branches import Batch, Branch
from cld_stream.learn.branches.momentum import MomentumEncoder
from cld_stream.learn.descent import Descent
from cld_stream.learn.encoder import Encoder
from cld_stream.learn.learner import Learner

__all__ = ["LightlyLearner"]

MOCO_TEMPERATURE = 0.1
"""Of its MoCo example; SimCLR's is the loss's default, 0.5."""

MOCO_BATCHES = 4
"""Batches of keys in its memory bank: with more, a replayed frame meets older keys of its own as negatives."""


class LightlyLearner(Learner):
    """A learner whose instance head and instance term come from lightly; CLD is off."""

    def __init__(self, method: str, settings: Settings, device: str = "cpu") -> None:
        super().__init__(settings, device)
        head = {"simclr": SimCLRProjectionHead, "moco": MoCoProjectionHead}[method]
        width = self.encoder.backbone_dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.optim.seed)
            self.encoder.instance_head = head(width, width, settings.encoder.feature_dim).to(self.device)
        branch = _SimCLR(settings, self.encoder) if method == "simclr" else _MoCo(settings, self.encoder)
        self.branch = branch.to(self.device)
        self.descent = Descent(dict(self.encoder.named_parameters()), settings.optim)
        self.average = WeightAverage(self.encoder, settings.optim.average_decay)


class _SimCLR(Branch):
    """NT-Xent among the views of the batch."""

    def __init__(self, settings: Settings, encoder: Encoder) -> None:
        super().__init__(settings, encoder)
        self._loss = NTXentLoss()

    def forward(self, batch: Batch) -> Tensor:
        """Both views, each among all others."""
        with torch.autocast(batch.f1_ND.device.type, enabled=False):
            loss: Tensor = self._loss(batch.f1_ND, batch.f2_ND)
        return loss


class _MoCo(Branch):
    """The first view against the key of the second and lightly's memory bank of keys."""

    def __init__(self, settings: Settings, encoder: Encoder) -> None:
        super().__init__(settings, encoder)
        self._loss = NTXentLoss(MOCO_TEMPERATURE, (MOCO_BATCHES * settings.optim.batch, settings.encoder.feature_dim))
        self.key_encoder = MomentumEncoder(encoder, settings.loss.key_momentum)

    def forward(self, batch: Batch) -> Tensor:
        """Each view is the query once, and the other one its key; in one call, so that no key meets its own view."""
        k_VND = self.key_encoder(batch.views, batch.pieces)
        with torch.autocast(batch.f1_ND.device.type, enabled=False):
            loss: Tensor = self._loss(torch.cat([batch.f1_ND, batch.f2_ND]), k_VND.flip(0).flatten(0, 1))
        return loss

    def follow(self, encoder: Encoder) -> None:
        """The key encoder moves."""
        self.key_encoder.follow(encoder)
