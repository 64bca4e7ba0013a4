"""What buffered frames look like: their features without augmentation, by which a policy tells near-repeats."""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cld_stream.learn.augment import central_view
from cld_stream.learn.average import WeightAverage
from cld_stream.learn.bank import MemoryBank
from cld_stream.learn.encoder import Encoder
from cld_stream.learn.policies import EMPTY, Ids

__all__ = ["Looks"]

# Shape suffixes: N frames of a batch.

_AGAIN = 4
"""Replayed frames of a batch that are looked at again, at least: a forward pass each, of two forward and backward."""


class Looks:
    """f_I of the central view of every buffered frame, by slot, under the averaged weights.

    Rows of the memory bank will not do: they are means over few augmented views, and the nearest row of another frame
    is then as near as that of a near-repeat. The averaged weights change slowly, so that looks of different age can be
    compared. See docs/decisions/035-what-near-repeats-are-told-by.md.

    Attributes:
        bank: the features; the momentum is 0: a new look replaces the old one.
    """

    def __init__(self, capacity: int, dim: int, crop: int, device: torch.device) -> None:
        self.bank, self._crop = MemoryBank(capacity, dim, 0.0, device), crop

    def choose(self, slots_N: Ids, fresh: int) -> Ids:
        """Which frames of a batch to look at: the fresh ones with a slot, and a few replayed ones.

        Those are the ones never looked at, and then those of the oldest looks: as many as make all of them a multiple
        of `_AGAIN`, since libraries keep code and memory for every batch size they meet.

        Args:
            slots_N: slot of each frame, the fresh ones first; -1 = none.
            fresh: how many these are.
        """
        new, replayed = np.flatnonzero(slots_N[:fresh] != EMPTY), slots_N[fresh:]
        at = torch.from_numpy(replayed).to(self.bank.step_M.device)
        age = torch.where(self.bank.live_M[at], self.bank.step_M[at], -1).cpu().numpy()
        again = _AGAIN + -len(new) % _AGAIN
        return np.concatenate([new, fresh + np.argsort(age, kind="stable")[:again]])

    def look(
        self, average: WeightAverage, encoder: Encoder, slots: Ids, pixels: Tensor, aspect: Tensor, step: int
    ) -> None:
        """Take the looks of these frames (distinct slots), filled up with black ones to a multiple of `_AGAIN`."""
        views = F.pad(central_view(pixels, aspect, self._crop), (0, 0, 0, 0, 0, 0, 0, -len(slots) % _AGAIN))
        features = average.output(encoder, views.contiguous(memory_format=torch.channels_last)).instance_Nd
        self.bank.fill(torch.from_numpy(slots).to(features.device), features[: len(slots)], step)

    def forget(self, slots: Tensor) -> None:
        """The frames of these slots are gone."""
        self.bank.kill(slots)

    def state_dict(self) -> dict[str, Tensor]:
        """Its tensors (not copies)."""
        return self.bank.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take saved looks over; without any, frames are looked at when they are next replayed.

        Raises:
            ValueError: they have another shape.
        """
        if state:
            self.bank.load_state_dict(state)
        else:
            self.bank.live_M.zero_()
