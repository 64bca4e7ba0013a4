"""Which committed frames are fed next: a cursor over frame ids.

Arithmetic only; that an id may have no frame any more is the reader's affair.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["MOST_REMEMBERED", "Feed", "shown"]

MOST_REMEMBERED = 64
"""Frames that are remembered at a time: policies know beforehand of so many who may leave, and look at as many."""


@dataclass
class Feed:
    """A cursor that never goes back: an id is fed once, or thinned once, or still ahead.

    A backlog of more than `max_lag` ids is thinned evenly in time (ids are in stream order): one id
    in `stride` is fed up to the id `until`, and every one from there on. The stride is chosen anew
    whenever more than `max_lag` frames would be left to feed.

    Attributes:
        max_lag: most frames that may wait [frames].
        cursor: first id that is not yet decided on.
        fed, thinned: ids handed out (who finds no frame behind one takes it off), and ids passed over.
        stride: >= 1; distance between fed ids below `until`.
    """

    max_lag: int
    cursor: int = 0
    fed: int = 0
    thinned: int = 0
    until: int = 0
    stride: float = 1.0
    _next: float = 0.0

    def lag(self, committed: int) -> int:
        """Ids from the cursor to `committed`, the first id that the store has not given out."""
        return max(0, committed - self.cursor)

    def take(self, n: int, committed: int) -> NDArray[np.int64]:
        """The next at most n ids below `committed`; the cursor moves behind the last one."""
        self._plan(committed)
        taken: list[int] = []
        while len(taken) < n and self.cursor < committed:
            if self.cursor >= self.until:  # the end of a thinned stretch: every id from here on
                many = min(n - len(taken), committed - self.cursor)
                taken += range(self.cursor, self.cursor + many)
                self.cursor += many
                continue
            at = math.floor(self._next)
            self._next += self.stride
            after = min(self.until, math.floor(self._next))
            self.thinned += after - self.cursor - 1
            self.cursor = after
            taken.append(at)
        self.fed += len(taken)
        return np.array(taken, np.int64)

    def skip_to(self, first: int) -> None:
        """Ids before this one have no frame: they are neither fed nor thinned, and no backlog."""
        self.cursor = max(self.cursor, first)
        self._next = max(self._next, float(self.cursor))

    def _plan(self, committed: int) -> None:
        """Choose a stride for the whole backlog when too much of it would be left to feed."""
        thin = max(0, self.until - self.cursor)
        left = thin / self.stride + self.lag(committed) - thin
        if left > self.max_lag:
            self.stride = self.lag(committed) / self.max_lag
            self.until, self._next = committed, float(self.cursor)

    def state_dict(self) -> dict[str, int | float]:
        """Plain numbers, as JSON holds them."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, int | float]) -> None:
        """Go on from a saved place; `max_lag` stays as it is here."""
        for name, value in state.items():
            if name != "max_lag":
                setattr(self, name, value)


def shown(n: int, most: int) -> NDArray[np.bool_]:
    """Which of n fresh frames are in the batch of their step: at most so many, evenly spread; 0 = all of them."""
    chosen = np.full(n, most == 0 or n <= most)
    if not chosen.all():
        chosen[np.arange(most) * n // most] = True
    return chosen
