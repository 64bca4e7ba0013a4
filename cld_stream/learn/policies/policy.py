"""What every replay policy is."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cld_stream.config import BufferSettings

if TYPE_CHECKING:
    from cld_stream.learn.buffer import ReplayBuffer

__all__ = ["EMPTY", "Ids", "Policy", "fill_up"]

Ids = NDArray[np.int64]
EMPTY = -1


class Policy:
    """Everyone enters, and whoever is here is as likely to be replayed as any other. Who leaves, a subclass says.

    Deciding (`admit`, `evict`, `sample`) changes nothing: a step that goes wrong must leave no trace. What a policy
    remembers moves in `follow` and `forget`, lies on the host, and is all in `state_dict`.

    Attributes:
        looks: whether it wants to know what frames look like.
    """

    looks = False

    def __init__(self, capacity: int, settings: BufferSettings) -> None:
        del settings
        self.capacity = capacity

    def admit(self, number_N: Ids, rng: np.random.Generator) -> NDArray[np.bool_]:
        """Which of the newcomers (numbers in the stream, from 0) enter a full buffer."""
        del rng
        return np.ones(len(number_N), np.bool_)

    def evict(self, buffer: "ReplayBuffer", n: int, rng: np.random.Generator) -> Ids:
        """Slots for n newcomers, in order. A slot named twice goes to the later one.

        Free slots belong to newcomers of this very batch.
        """
        raise NotImplementedError

    def sample(self, buffer: "ReplayBuffer", candidates: Ids, n: int, rng: np.random.Generator) -> Ids:
        """At most n distinct ones of the candidate slots."""
        del buffer
        return rng.choice(candidates, min(n, len(candidates)), replace=False)

    def follow(self, buffer: "ReplayBuffer", rows_MD: Tensor, live_M: Tensor, slots: Ids) -> None:
        """A step has gone well. Called only if `looks`.

        Args:
            rows_MD, live_M: looks of the frames (unit rows), by slot, on any device. Frames that were only remembered
                have none yet.
            slots: distinct ones whose rows were born or have moved.
        """

    def forget(self, slots: Ids) -> None:
        """The frames of these slots are gone; others may come in their place."""

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Copies of all that is remembered."""
        return {}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take a saved memory over; an empty one is that of another policy, and this one starts anew.

        Raises:
            ValueError: it has another shape.
        """


def fill_up(buffer: "ReplayBuffer", chosen: Ids, n: int, rng: np.random.Generator) -> Ids:
    """Slots for n newcomers: the chosen ones (distinct, occupied), then any other frames, then those of this batch."""
    if len(chosen) >= n:
        return chosen[:n]
    occupied = buffer.ids != EMPTY
    free = np.flatnonzero(~occupied)
    occupied[chosen] = False
    others = np.flatnonzero(occupied)
    others = rng.choice(others, min(n - len(chosen), len(others)), replace=False)
    return np.resize(np.concatenate([chosen, others, free]), n)
