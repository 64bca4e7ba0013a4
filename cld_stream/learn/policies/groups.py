"""A memory balanced over groups of similar frames, which come up as the stream goes on."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cld_stream.config import BufferSettings
from cld_stream.learn.policies.policy import EMPTY, Ids, Policy, fill_up

if TYPE_CHECKING:
    from cld_stream.learn.buffer import ReplayBuffer

__all__ = ["Groups"]

# Shape suffixes: M slots, N frames, D features, G places of groups.

Floats = NDArray[np.float32]

_WINDOW = 1000
"""Newcomers whose distances to the nearest centroid tell what is far ..."""

_NOVEL = 0.95
"""... farther than this share of them is new ..."""

_FEWEST = 20
"""... as soon as there are so many."""


class Groups(Policy):
    """The most crowded group gives a frame away. After CLIMB (CoLLAs 2026, https://arxiv.org/abs/2606.31275).

    A newcomer that is farther from every centroid than 95% of the last 1,000 were opens a short-term group; any other
    joins the nearest group. A short-term group becomes a long-term one once it holds half of a fair share of the
    buffer. Of more than K long-term groups the two closest are merged.

    Departures: the oldest short-term group becomes a long-term one too when there are more than K of them, so that what
    is rare but far from everything is kept; of a crowded group the frame nearest to the centroid goes (CLIMB: any), so
    that what does not quite belong there stays; a replayed frame joins the group that is now nearest to it, and the
    centroid moves as a running mean over its members (CLIMB: an EMA of .1); frames are drawn for replay from all groups
    alike, since the buffer is balanced already (CLIMB: half from short-term groups).

    Frames without a live row have no group; together they count as one, as crowded as it is.

    Attributes:
        most: K, most long-term groups, and most short-term ones; four slots a group at least.
        group_M: group of each slot's frame; -1 = none.
        cosine_M: float32 cosine of each frame with its centroid when it was last looked at.
        mean_GD: float32 running mean of the rows of each group.
        opened_G: when it was opened, counted from 1; 0 = the place is free.
        long_G: whether it is a long-term group.
        distance: the last distances of newcomers (1 - cosine) to their nearest centroid.
        observed: how many there have been.
    """

    looks = True

    def __init__(self, capacity: int, settings: BufferSettings) -> None:
        super().__init__(capacity, settings)
        self.most = max(1, min(settings.groups, capacity // 4))
        self.full = max(2, capacity // (2 * self.most))
        self._reset()

    def _reset(self, dim: int = 0) -> None:
        places = 2 * self.most
        self.group_M = np.full(self.capacity, EMPTY, np.int64)
        self.cosine_M = np.zeros(self.capacity, np.float32)
        self.mean_GD = np.zeros((places, dim), np.float32)
        self.opened_G = np.zeros(places, np.int64)
        self.long_G = np.zeros(places, np.bool_)
        self.distance = np.zeros(_WINDOW, np.float32)
        self.observed = 0

    def evict(self, buffer: "ReplayBuffer", n: int, rng: np.random.Generator) -> Ids:
        """One after the other from the group that is then the most crowded, of its frames the most typical."""
        occupied = buffer.ids != EMPTY
        size = np.bincount(self.group_M[occupied] + 1, minlength=len(self.opened_G) + 1)
        crowded = []
        for _ in range(min(n, int(size.sum()))):
            g = int(size.argmax())
            size[g] -= 1
            crowded.append(g - 1)
        slots = [np.zeros(0, np.int64)]
        for g, count in zip(*np.unique(crowded, return_counts=True), strict=True):
            members = np.flatnonzero(occupied & (self.group_M == g))
            if g == EMPTY:
                slots.append(rng.choice(members, count, replace=False))
            else:
                slots.append(members[np.argsort(-self.cosine_M[members], kind="stable")[:count]])
        return fill_up(buffer, np.concatenate(slots), n, rng)

    def follow(self, buffer: "ReplayBuffer", rows_MD: Tensor, live_M: Tensor, slots: Ids) -> None:
        """Members take their centroids along, newcomers join or open groups."""
        del buffer
        if not self.mean_GD.shape[1]:
            self._reset(rows_MD.shape[1])
        slots = slots[live_M.cpu().numpy()[slots]]
        x_ND = rows_MD[slots].cpu().numpy()
        size_G = self._sizes()
        self.opened_G[size_G == 0] = 0
        new = self.group_M[slots] == EMPTY
        self._move(x_ND[~new], slots[~new])
        self._join(x_ND[new], slots[new])

    def forget(self, slots: Ids) -> None:
        """The centroids stay where they are."""
        self.group_M[slots] = EMPTY

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Copies of all that is remembered."""
        named: dict[str, NDArray[Any]] = {"group": self.group_M, "cosine": self.cosine_M, "mean": self.mean_GD}
        named |= {"opened": self.opened_G, "long": self.long_G}
        named |= {"distance": self.distance, "observed": np.array([self.observed])}
        return {name: array.copy() for name, array in named.items()}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take a saved memory over; without one the frames join groups when they are next replayed."""
        self._reset(state["mean"].shape[1] if state else 0)
        if state:
            self.group_M[:], self.mean_GD[:], self.opened_G[:] = state["group"], state["mean"], state["opened"]
            self.cosine_M[:], self.long_G[:], self.distance[:] = state["cosine"], state["long"], state["distance"]
            self.observed = int(state["observed"][0])

    def _sizes(self) -> Ids:
        """Frames of each group."""
        return np.bincount(self.group_M + 1, minlength=len(self.opened_G) + 1)[1:]

    def _cosines(self, x_ND: Floats) -> Floats:
        """With every centroid; -inf where a place is free. N x G."""
        length_G = np.linalg.norm(self.mean_GD, axis=1)
        cosine_NG: Floats = x_ND @ (self.mean_GD / np.maximum(length_G, 1e-6)[:, None]).T
        cosine_NG[:, self.opened_G == 0] = -np.inf
        return cosine_NG

    def _move(self, x_ND: Floats, slots: Ids) -> None:
        """Rows of members have moved: each joins its nearest group, and the groups move towards them."""
        if not len(slots):
            return
        cosine_NG = self._cosines(x_ND)
        label_N = cosine_NG.argmax(1)
        self.group_M[slots], self.cosine_M[slots] = label_N, cosine_NG.max(1)
        size_G = self._sizes()
        which, at = np.unique(label_N, return_inverse=True)
        sums = np.zeros((len(which), x_ND.shape[1]), np.float32)
        np.add.at(sums, at, x_ND)
        counts = np.bincount(at)[:, None]
        share = (counts / size_G[which][:, None]).astype(np.float32)
        self.mean_GD[which] += share * (sums / counts - self.mean_GD[which])

    def _join(self, x_ND: Floats, slots: Ids) -> None:
        """Newcomers, one after the other."""
        if not len(slots):
            return
        known = self.distance[: min(self.observed, _WINDOW)]
        far = np.quantile(known, _NOVEL) if len(known) >= _FEWEST else np.inf
        cosine_NG = self._cosines(x_ND)
        size_G = self._sizes()
        for i, slot in enumerate(slots.tolist()):
            g = int(cosine_NG[i].argmax())
            distance = 1 - cosine_NG[i, g]
            self.cosine_M[slot] = cosine_NG[i, g]
            if np.isfinite(distance):
                self.distance[self.observed % _WINDOW] = distance
                self.observed += 1
            if distance > far or not self.opened_G[g]:
                g = self._open(x_ND[i])
                self.group_M[slot], self.cosine_M[slot] = g, 1
                cosine_NG, size_G = self._cosines(x_ND), self._sizes()
                continue
            self.group_M[slot] = g
            size_G[g] += 1
            self.mean_GD[g] += (x_ND[i] - self.mean_GD[g]) / size_G[g]
            if size_G[g] >= self.full and not self.long_G[g]:
                self._promote(g)
                cosine_NG, size_G = self._cosines(x_ND), self._sizes()

    def _open(self, x_D: Floats) -> int:
        """A new short-term group around this row; the oldest one makes room."""
        short = np.flatnonzero((self.opened_G > 0) & ~self.long_G)
        if len(short) >= self.most:
            self._promote(int(short[self.opened_G[short].argmin()]))
        g = int(self.opened_G.argmin())  # a free place: there are at most K long-term groups, and K - 1 others
        self.opened_G[g], self.long_G[g], self.mean_GD[g] = self.opened_G.max() + 1, False, x_D
        return g

    def _promote(self, g: int) -> None:
        """Group g becomes a long-term one; of too many the two closest are merged."""
        self.long_G[g] = True
        long = np.flatnonzero((self.opened_G > 0) & self.long_G)
        if len(long) <= self.most:
            return
        unit_KD = self.mean_GD[long] / np.maximum(np.linalg.norm(self.mean_GD[long], axis=1), 1e-6)[:, None]
        cosine = unit_KD @ unit_KD.T
        np.fill_diagonal(cosine, -np.inf)
        i, j = np.unravel_index(int(cosine.argmax()), cosine.shape)
        keeps, goes = (int(long[k]) for k in (i, j))
        size_G = self._sizes()
        share = size_G[goes] / max(1, size_G[keeps] + size_G[goes])
        self.mean_GD[keeps] += np.float32(share) * (self.mean_GD[goes] - self.mean_GD[keeps])
        self.group_M[self.group_M == goes] = keeps
        self.opened_G[goes] = 0
