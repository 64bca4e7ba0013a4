"""Least redundancy: of the two frames that are closest to each other, one goes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cld_stream.config import BufferSettings
from cld_stream.learn.policies.policy import EMPTY, Ids, Policy, fill_up
from cld_stream.learn.precision import fast_float32

if TYPE_CHECKING:
    from cld_stream.learn.buffer import ReplayBuffer

__all__ = ["MinRed"]

# Shape suffixes: M slots, D features, B slots of a block, C candidates.

_WORK = 2**21
"""Cosines taken in a step for rows whose neighbour was found long ago: all of up to 1,448 rows every time."""

_FEWEST = 8
"""At least so many of these rows in a step."""

_BLOCK = 2**23
"""Most cosines in memory at a time."""

_TOP = 128
"""The most redundant rows, among which and whose neighbours the next to go are picked: up to so many, exactly."""

_AHEAD = 64
"""How many are picked in advance: as many as are remembered at a time. Beyond them, whoever."""


class MinRed(Policy):
    """Purushwalkam et al., ECCV 2022 (https://arxiv.org/abs/2203.12710): the frame nearest to another one goes.

    Which of the two is a tie; as in the code of those who compare with it, the older one goes.

    A newcomer has no feature before its first step, so two near-repeats may both enter, and one goes soon after. A
    frame without a live row is not redundant.

    Cost of a step is bounded. Newcomers look for their neighbour among all rows, and so do those who lost theirs and
    a few of the rows that have looked least recently (`_WORK`). The cosine with the neighbour is always that of the
    present rows; that no other row has come nearer since is not looked at before the row's turn comes.

    Attributes:
        near_M: slot of each frame's nearest neighbour; -1 = not known.
        cosine_M: float32 cosine with it; -inf = not known.
        looked_M: clock of its last search; -1 = it is due.
        doomed: slots of the next to go, in order. No two of them are each other's only likeness.
    """

    looks = True

    def __init__(self, capacity: int, settings: BufferSettings) -> None:
        super().__init__(capacity, settings)
        self._reset()

    def _reset(self) -> None:
        self.near_M = np.full(self.capacity, EMPTY, np.int64)
        self.cosine_M = np.full(self.capacity, -np.inf, np.float32)
        self.looked_M = np.full(self.capacity, -1, np.int64)
        self.doomed = np.zeros(0, np.int64)
        self.clock = 0

    def evict(self, buffer: "ReplayBuffer", n: int, rng: np.random.Generator) -> Ids:
        """The most redundant; where more are to go than are known to be redundant, any."""
        return fill_up(buffer, self.doomed, n, rng)

    @torch.no_grad()
    def follow(self, buffer: "ReplayBuffer", rows_MD: Tensor, live_M: Tensor, slots: Ids) -> None:
        """One product of the newcomers and a few others with all rows."""
        live = live_M.cpu().numpy()
        slots = slots[live[slots]]
        with fast_float32(rows_MD.device):
            self._measure(rows_MD, slots)
            self._search(rows_MD, live_M, self._due(live, slots))
            self.doomed = np.zeros(0, np.int64)
            if not (buffer.ids == EMPTY).any():
                self.doomed = self._pick(buffer.order, rows_MD)
        self.clock += 1

    def forget(self, slots: Ids) -> None:
        """Those of whom one was the neighbour look for another."""
        gone = np.zeros(self.capacity, np.bool_)
        gone[slots] = True
        lost = gone | ((self.near_M != EMPTY) & gone[self.near_M])
        self.near_M[lost], self.cosine_M[lost], self.looked_M[lost] = EMPTY, -np.inf, -1
        self.doomed = self.doomed[~gone[self.doomed]]

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Copies of all that is remembered."""
        named: dict[str, NDArray[Any]] = {"near": self.near_M, "cosine": self.cosine_M, "looked": self.looked_M}
        named |= {"doomed": self.doomed, "clock": np.array([self.clock])}
        return {name: array.copy() for name, array in named.items()}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take a saved memory over; without one every live row is due."""
        self._reset()
        if state:
            self.near_M[:], self.cosine_M[:], self.looked_M[:] = state["near"], state["cosine"], state["looked"]
            self.doomed, self.clock = np.array(state["doomed"]), int(state["clock"][0])

    def _measure(self, rows_MD: Tensor, slots: Ids) -> None:
        """Cosines of the pairs of which one has moved."""
        moved = np.zeros(self.capacity, np.bool_)
        moved[slots] = True
        pairs = np.flatnonzero((self.near_M != EMPTY) & (moved | moved[self.near_M]))
        one, other = (torch.from_numpy(at).to(rows_MD.device) for at in (pairs, self.near_M[pairs]))
        self.cosine_M[pairs] = (rows_MD[one] * rows_MD[other]).sum(1).cpu().numpy()

    def _due(self, live: NDArray[np.bool_], slots: Ids) -> Ids:
        """Who looks for a neighbour now: the newcomers, and those who have looked least recently."""
        never = np.iinfo(np.int64).max
        new = slots[self.looked_M[slots] == -1]
        key_M = np.where(live, self.looked_M, never)
        key_M[new] = never
        n = min(max(_FEWEST, _WORK // self.capacity), self.capacity)
        longest = torch.from_numpy(key_M).topk(n, largest=False, sorted=False).indices.numpy()  # argpartition: 100 x
        return np.concatenate([new, np.sort(longest[key_M[longest] < never])])

    def _search(self, rows_MD: Tensor, live_M: Tensor, due: Ids) -> None:
        """The nearest other live row of each of these."""
        everyone = bool(live_M.all())
        for start in range(0, len(due), size := max(1, _BLOCK // self.capacity)):
            block = due[start : start + size]
            at = torch.from_numpy(block).to(rows_MD.device)
            cosine_BM = rows_MD[at] @ rows_MD.T
            if not everyone:
                cosine_BM.masked_fill_(~live_M, -torch.inf)
            cosine_BM.scatter_(1, at[:, None], -torch.inf)
            cosine, near = _most(cosine_BM)
            self.near_M[block] = np.where(cosine > -np.inf, near, EMPTY)  # it may be the only one
            self.cosine_M[block], self.looked_M[block] = cosine, self.clock

    def _pick(self, order_M: Ids, rows_MD: Tensor) -> Ids:
        """The next to go: of the closest pair the older one, then the same among all others, and so on.

        Among the most redundant rows and their neighbours every cosine is looked at, so that of a crowd of
        near-repeats all but one may go.
        """
        n = min(_TOP, int(np.count_nonzero(self.near_M != EMPTY)))
        if not n:
            return np.zeros(0, np.int64)
        top = np.argpartition(-self.cosine_M, n - 1)[:n]
        slot_C = np.unique(np.concatenate([top, self.near_M[top]]))
        x_CD = rows_MD[torch.from_numpy(slot_C).to(rows_MD.device)]
        cosine_CC = (x_CD @ x_CD.T).fill_diagonal_(-torch.inf).cpu().numpy()
        near_C, most_C = cosine_CC.argmax(1), cosine_CC.max(1)
        picked = []
        for _ in range(min(_AHEAD, len(slot_C) - 1)):
            one = int(most_C.argmax())
            other = int(near_C[one])
            goes = min(one, other, key=lambda c: int(order_M[slot_C[c]]))
            picked.append(int(slot_C[goes]))
            cosine_CC[:, goes] = most_C[goes] = -np.inf
            lost = np.flatnonzero((near_C == goes) & (most_C > -np.inf))
            near_C[lost], most_C[lost] = cosine_CC[lost].argmax(1), cosine_CC[lost].max(1)
        return np.array(picked, np.int64)


def _most(cosine_BM: Tensor) -> tuple[NDArray[np.float32], Ids]:
    """The largest of each row, and where it is."""
    if cosine_BM.device.type != "cpu":
        cosine_B, near_B = cosine_BM.max(1)
        return cosine_B.cpu().numpy(), near_B.cpu().numpy()
    near = cosine_BM.numpy().argmax(1)  # a tenth of torch's time
    return np.take_along_axis(cosine_BM.numpy(), near[:, None], 1)[:, 0], near
