"""A recent tier, first in first out, and a long one: a reservoir over what leaves the recent one."""

from typing import TYPE_CHECKING

import numpy as np

from cld_stream.config import BufferSettings
from cld_stream.learn.policies.policy import EMPTY, Ids, Policy

if TYPE_CHECKING:
    from cld_stream.learn.buffer import ReplayBuffer

__all__ = ["TwoTier"]


class TwoTier(Policy):
    """The newest frames, and a uniform sample of all that were before them (Memory Storyboard, arXiv 2501.12254).

    Nothing is remembered: everyone enters the recent tier and leaves it in order, so that who is in it, and how many
    have left it, follows from the frames' numbers in the stream.

    Departure: the long tier takes single frames; in the paper, clips.

    Attributes:
        recent: R, slots of the recent tier; frame number t leaves it when number t + R enters.
        share: of the replayed frames, how many come from it.
    """

    def __init__(self, capacity: int, settings: BufferSettings) -> None:
        super().__init__(capacity, settings)
        self.recent = min(max(1, round(settings.recent * capacity)), max(1, capacity - 1))
        self.share = settings.recent_share

    def evict(self, buffer: "ReplayBuffer", n: int, rng: np.random.Generator) -> Ids:
        """Frame t leaves the recent tier: it takes the place of one in the long tier with L / (t + 1), or goes.

        Of a batch larger than the recent tier, the first frames leave it again at once, in the same way.
        """
        free = np.flatnonzero(buffer.ids == EMPTY)
        # the newcomers before these filled free slots; what left the recent tier for them went over without a draw
        left = buffer.seen + len(free) - self.recent
        number_M = buffer.order.copy()
        number_M[free] = buffer.seen + np.arange(len(free))
        long = np.flatnonzero(number_M < left)
        room = self.capacity - self.recent
        size, slots = len(long), self._slots_of(number_M, left + np.arange(self.recent)).tolist()
        for i in range(n):  # slots: of the recent tier, and of these newcomers behind it
            leaver, stays = slots[i], rng.random() * (left + i + 1) < room
            if leaver != EMPTY and not (stays and size):
                slots.append(leaver)
                continue
            at = rng.integers(size)
            slots.append(int(long[at]))
            if leaver == EMPTY:  # it was dropped, and the slot it had is filled: the long tier is one too large
                size -= 1
                leaver = long[size]
            long[at] = leaver
        return np.array(slots[self.recent :], np.int64)

    def sample(self, buffer: "ReplayBuffer", candidates: Ids, n: int, rng: np.random.Generator) -> Ids:
        """The set share from the recent tier, the others from the long one; what one lacks comes from the other."""
        recent = buffer.order[candidates] >= buffer.seen - self.recent
        new, old = candidates[recent], candidates[~recent]
        few = min(len(new), max(round(self.share * n), n - len(old)))
        return np.concatenate([
            rng.choice(new, few, replace=False), rng.choice(old, min(n - few, len(old)), replace=False)
        ])  # fmt: skip

    @staticmethod
    def _slots_of(number_M: Ids, number_N: Ids) -> Ids:
        """Slot of each of these consecutive numbers of the stream; -1 = not here."""
        slot_N = np.full(len(number_N), EMPTY, np.int64)
        at = number_M - number_N[0]
        here = np.flatnonzero((at >= 0) & (at < len(number_N)))
        slot_N[at[here]] = here
        return slot_N
