"""A uniform sample of the stream."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cld_stream.learn.policies.policy import Ids, Policy

if TYPE_CHECKING:
    from cld_stream.learn.buffer import ReplayBuffer

__all__ = ["Reservoir"]


class Reservoir(Policy):
    """A uniform sample of everything offered (Vitter 1985, algorithm R), a batch at a time.

    Slots freed by `drop` are filled by the next frames without a draw: after a `forget` the
    sample leans to them.
    """

    def admit(self, number_N: Ids, rng: np.random.Generator) -> NDArray[np.bool_]:
        """Frame number t (from 0) enters with probability capacity / (t + 1)."""
        return rng.random(len(number_N)) * (number_N + 1) < self.capacity

    def evict(self, buffer: "ReplayBuffer", n: int, rng: np.random.Generator) -> Ids:
        """Any slot, as likely as any other; also that of a newcomer of the same batch."""
        return rng.integers(buffer.capacity, size=n)
