"""NPID: each frame against the memory bank (Wu et al. 2018)."""

import math

import torch
from torch import Tensor

from cld_stream.config import Settings
from cld_stream.learn.branches.branch import Batch, Branch
from cld_stream.learn.encoder import Encoder
from cld_stream.learn.losses import nce_loss, nce_normaliser, npid_loss

__all__ = ["NPID"]

_PACE = 0.1
"""How fast the normaliser of the noise follows, in a step."""


class NPID(Branch):
    """Full softmax over all live rows, or noise-contrastive estimation with m drawn ones (`loss.negatives`).

    The bank itself belongs to the learner, which keeps one under every branch.
    """

    log_z: Tensor  # NaN until the first step

    def __init__(self, settings: Settings, encoder: Encoder) -> None:
        super().__init__(settings, encoder)
        self._temperature, self._negatives = settings.loss.temperature_instance, settings.loss.negatives
        self._half_life = settings.loss.row_half_life
        if self._negatives:
            self.register_buffer("log_z", torch.tensor(torch.nan))

    def forward(self, batch: Batch) -> Tensor:
        """Each view against the rows of the bank."""
        b, t = batch, self._temperature
        if self._negatives:
            return self._sampled(batch)
        f_VD, other_VD = torch.cat([b.f1_ND, b.f2_ND]), torch.cat([b.f2_ND, b.f1_ND])
        slots_V, newborn_V = b.slots_N.repeat(2), b.newborn_N.repeat(2)
        weight_M, near_2P = self._ageing(b), None
        if b.near is not None:
            first_2P = b.near.in_buffer()
            near_2P = torch.cat([first_2P, first_2P + first_2P.new_tensor([[len(b.slots_N)], [0]])], 1)  # of both views
        return npid_loss(
            f_VD, b.bank.rows_MD, slots_V, t, live_M=b.bank.live_M, other_ND=other_VD, newborn_N=newborn_V,
            weight_M=weight_M, near_2P=near_2P,
        )  # fmt: skip

    def _ageing(self, batch: Batch) -> Tensor | None:
        """Logarithm of the weight of every row: old features say little of what the frame looks like now."""
        if not self._half_life:
            return None
        age_M = batch.clock - batch.bank.step_M
        return age_M.float() * (-math.log(2) / self._half_life)

    def _sampled(self, batch: Batch) -> Tensor:
        """Each view must tell its own row from m drawn ones.

        Departures: Z follows the encoder. In the public implementations it stays what the first batch says, under rows
        that start at random; here rows are born as features of an encoder that tells nothing apart yet, and under
        their Z the features would stay as close together as they are then. Both views of a whole batch share one draw
        of m rows, with replacement, which makes it one matrix product. Positives of newborn frames are the other view,
        as in `npid_loss`.
        """
        b, t = batch, self._temperature
        live_L = b.bank.live_M.nonzero()[:, 0]
        u_m = torch.rand(self._negatives, generator=b.generator, device=b.generator.device).to(live_L.device)
        drawn_m = live_L[(u_m * len(live_L)).long()] if len(live_L) else live_L
        rows_mD, weight_Nm, weight_M = b.bank.rows_MD[drawn_m], None, self._ageing(b)
        if weight_M is not None or b.near is not None:
            weight_Nm = torch.ones(len(b.slots_N), len(drawn_m), device=drawn_m.device)
            if weight_M is not None:
                weight_Nm *= weight_M[drawn_m].exp()
            if b.near is not None:
                weight_Nm *= ~b.near.to(b.near.place_M[drawn_m], b.near.time_M[drawn_m])
        by_row_N1 = ((b.slots_N >= 0) & ~b.newborn_N)[:, None]
        own_ND = b.bank.rows_MD[b.slots_N.clamp(min=0)]
        positive1_ND = torch.where(by_row_N1, own_ND, b.f2_ND.detach())
        positive2_ND = torch.where(by_row_N1, own_ND, b.f1_ND.detach())
        now = nce_normaliser(b.f1_ND, positive1_ND, rows_mD, t)
        self._log_z = torch.where(self.log_z.isnan(), now, torch.lerp(self.log_z, now, _PACE))
        first = nce_loss(b.f1_ND, positive1_ND, rows_mD, t, self._log_z, weight_Nm)
        second = nce_loss(b.f2_ND, positive2_ND, rows_mD, t, self._log_z, weight_Nm)
        return (first + second) / 2

    def follow(self, encoder: Encoder) -> None:
        """The normaliser moves; the bank is the learner's."""
        del encoder
        if self._negatives:
            self.log_z.copy_(self._log_z)
