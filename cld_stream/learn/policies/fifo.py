"""The newest frames."""

from typing import TYPE_CHECKING

import numpy as np

from cld_stream.learn.policies.policy import EMPTY, Ids, Policy

if TYPE_CHECKING:
    from cld_stream.learn.buffer import ReplayBuffer

__all__ = ["Fifo"]


class Fifo(Policy):
    """The newest frames."""

    def evict(self, buffer: "ReplayBuffer", n: int, rng: np.random.Generator) -> Ids:
        """The frames that came first; a batch larger than the buffer goes round."""
        del rng
        # free slots belong to newcomers of this very batch: they are the youngest
        key = np.where(buffer.ids == EMPTY, buffer.seen + np.arange(buffer.capacity), buffer.order)
        oldest_first = np.argsort(key, kind="stable")
        return np.resize(oldest_first, n)
