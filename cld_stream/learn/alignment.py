"""Alignment: what a replayed frame looks like now must tell what it looked like before."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cld_stream.config import Settings
from cld_stream.learn.branches import Batch
from cld_stream.learn.branches.momentum import MomentumEncoder
from cld_stream.learn.encoder import Encoder

__all__ = ["Alignment"]


class Alignment(nn.Module):
    """A two-layer aligner maps present features of replayed frames to stored ones; 1 - cosine is the loss.

    Paper: CLA (https://arxiv.org/abs/2507.10434). `bank` (CLA-R): the target is the frame's row of the memory bank.
    `ema` (CLA-E): the features of the same view under a slowly following encoder.
    """

    def __init__(self, settings: Settings, encoder: Encoder) -> None:
        super().__init__()
        dim = settings.encoder.feature_dim
        self.aligner = nn.Sequential(nn.Linear(dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim))
        self.slow = MomentumEncoder(encoder, settings.loss.key_momentum) if settings.loss.align == "ema" else None

    def forward(self, batch: Batch) -> Tensor:
        """Mean over both views of the replayed frames that have a row, in [0, 2]; 0 when there are none."""
        old_N = (batch.slots_N >= 0) & ~batch.newborn_N
        if not old_N.any():
            return batch.f1_ND.new_zeros(())
        if self.slow is None:
            row_ND = batch.bank.rows_MD[batch.slots_N[old_N]]
            targets = row_ND, row_ND
        else:
            targets = tuple(self.slow(batch.views[i : i + 1], batch.pieces)[0, old_N] for i in range(2))
        terms = [
            1 - F.cosine_similarity(self.aligner(f_ND[old_N]).float(), t_ND).mean()
            for f_ND, t_ND in zip((batch.f1_ND, batch.f2_ND), targets, strict=True)
        ]
        return torch.stack(terms).mean()

    def follow(self, encoder: Encoder) -> None:
        """The slow encoder moves, now that the step has gone well."""
        if self.slow is not None:
            self.slow.follow(encoder)
