"""The momentum encoder of MoCo and BYOL. Not the average that is published (see `average`): it is trained against."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cld_stream.learn.encoder import Encoder
from cld_stream.learn.pieces import Pieces

__all__ = ["MomentumEncoder"]


class MomentumEncoder(nn.Module):
    """A copy of the encoder that follows it: theta_k <- m theta_k + (1 - m) theta_q.

    Paper: He et al. 2020, eq. 2 (https://arxiv.org/abs/1911.05722); Grill et al. 2020, eq. 1. Its batch-norm layers
    take the statistics of the batch at hand and keep none, so that its parameters are its whole state. Departures
    from both: the two views are one batch to batch norm. From MoCo: no shuffling over devices, since there is one.
    """

    def __init__(self, encoder: Encoder, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.encoder = copy.deepcopy(encoder).requires_grad_(requires_grad=False).eval()
        for layer in self.encoder.modules():
            if isinstance(layer, _BatchNorm):
                layer.train()
                layer.track_running_stats = False

    @torch.no_grad()
    def forward(self, views_vN3CC: Tensor, pieces: Pieces) -> Tensor:
        """Unit instance features (v, N, D), float32, without gradient."""
        return pieces.through(lambda x_V3CC: (self.encoder(x_V3CC).instance_Nd,), views_vN3CC)[0]

    @torch.no_grad()
    def follow(self, encoder: Encoder) -> None:
        """Move towards the encoder's present parameters."""
        torch._foreach_lerp_(list(self.encoder.parameters()), list(encoder.parameters()), 1 - self.momentum)
