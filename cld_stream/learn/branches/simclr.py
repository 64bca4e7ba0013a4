"""SimCLR: each view against the other views of the batch (Chen et al. 2020)."""

from torch import Tensor

from cld_stream.config import Settings
from cld_stream.learn.branches.branch import Batch, Branch
from cld_stream.learn.encoder import Encoder
from cld_stream.learn.losses import nt_xent

__all__ = ["SimCLR"]


class SimCLR(Branch):
    """In-batch negatives; it remembers nothing."""

    def __init__(self, settings: Settings, encoder: Encoder) -> None:
        super().__init__(settings, encoder)
        self._temperature = settings.loss.temperature_instance

    def forward(self, batch: Batch) -> Tensor:
        """Both views, each among all others."""
        near_NN = None if batch.near is None else batch.near.to(batch.near.place_N, batch.near.time_N)
        return nt_xent(batch.f1_ND, batch.f2_ND, self._temperature, near_NN)
