"""BYOL: each view predicts what a slowly moving target says of the other one; no negatives (Grill et al. 2020)."""

import torch
from torch import Tensor, nn

from cld_stream.config import Settings
from cld_stream.learn.branches.branch import Batch, Branch
from cld_stream.learn.branches.momentum import MomentumEncoder
from cld_stream.learn.encoder import Encoder
from cld_stream.learn.losses import byol_loss

__all__ = ["BYOL"]

_WIDER = 4
"""Hidden width of the predictor over the feature width. The paper's is 16 at 256 features."""


class BYOL(Branch):
    """Predictor on top of f_I, and the momentum encoder as target.

    The CLD paper reports BYOL+CLD, but its code was never released: this is ours. Departures from Grill et al.:
    the predictor reads the normalised projection; the projector is the head that all branches share, without batch
    norm; the loss is the mean of both directions, not their sum; the target's momentum is constant, since a stream
    has no end.
    """

    def __init__(self, settings: Settings, encoder: Encoder) -> None:
        super().__init__(settings, encoder)
        dim = settings.encoder.feature_dim
        hidden = _WIDER * dim
        # without running statistics: it never stands outside a step
        norm = nn.BatchNorm1d(hidden, track_running_stats=False)
        self.predictor = nn.Sequential(
            nn.Linear(dim, hidden),
            norm if settings.encoder.norm == "batch" else nn.LayerNorm(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, dim),
        )
        self.target = MomentumEncoder(encoder, settings.loss.key_momentum)

    def forward(self, batch: Batch) -> Tensor:
        """Each view's prediction against the target's word on the other view; in squared distance."""
        f_VD = torch.cat([batch.f1_ND, batch.f2_ND])
        p1_ND, p2_ND = self.predictor(f_VD).chunk(2)
        z1_ND, z2_ND = self.target(batch.views, batch.pieces)
        return (byol_loss(p1_ND, z2_ND) + byol_loss(p2_ND, z1_ND)) / 2

    def follow(self, encoder: Encoder) -> None:
        """The target moves."""
        self.target.follow(encoder)
