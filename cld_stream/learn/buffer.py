"""The replay buffer: a bounded table of frame ids. A frame's slot is also its row in the memory bank.

Admission is a proposal first and an act second, so that a step that goes wrong changes nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cld_stream.config import BufferSettings
from cld_stream.learn.policies import EMPTY, Ids, make_policy

__all__ = ["EMPTY", "Admission", "Ids", "Origin", "ReplayBuffer"]


@dataclass(frozen=True)
class Origin:
    """Where N frames come from: what tells near-repeats before anything is learnt.

    Attributes:
        source: (N) int64 number of the recording that a frame belongs to; -1 = not known, near no other frame.
        time: (N) float64 when, on the clock of that recording [s].
    """

    source: Ids
    time: NDArray[np.float64]

    @classmethod
    def unknown(cls, n: int) -> Self:
        """Of n frames of which nothing is known."""
        return cls(np.full(n, EMPTY, np.int64), np.zeros(n))

    def __getitem__(self, at: NDArray[Any] | slice) -> "Origin":
        return Origin(self.source[at], self.time[at])

    def __add__(self, other: "Origin") -> "Origin":
        return Origin(np.concatenate([self.source, other.source]), np.concatenate([self.time, other.time]))


@dataclass(frozen=True)
class Admission:
    """Where newcomers would go. N newcomers.

    Attributes:
        ids: (N) their frame ids.
        slots: (N) their slots; -1 = not taken. No slot appears twice.
        evicted: ids of the frames that lose their slots.
        origin: where the newcomers come from.
    """

    ids: Ids
    slots: Ids
    evicted: Ids
    origin: Origin


class ReplayBuffer:
    """At most `capacity` frames, each in a slot of its own. No operation loops over the rows.

    Random choices come from the generator that is passed in; the table itself is deterministic. Policies are in
    `cld_stream.learn.policies`; `settings` are those of the policy.

    Attributes:
        ids: frame id of each slot, -1 where it is free.
        order: the frame's number in the stream of everything offered; tells who came first.
        born: the learner's step at admission; age = present step - born [steps].
        replays: how often the frame was replayed since.
        source, time: its `Origin`.
        seen: frames offered so far, taken or not.
    """

    def __init__(self, capacity: int, policy: str, settings: BufferSettings | None = None) -> None:
        if capacity < 1:
            raise ValueError(f"a buffer needs room for at least one frame, got {capacity}")
        self.capacity = capacity
        self.policy, self._prefix = make_policy(policy, capacity, settings or BufferSettings()), f"{policy}."
        self.ids: Ids = np.full(capacity, EMPTY, np.int64)
        self.order: Ids = np.zeros(capacity, np.int64)
        self.born: Ids = np.zeros(capacity, np.int64)
        self.replays: Ids = np.zeros(capacity, np.int64)
        self.source: Ids = np.full(capacity, EMPTY, np.int64)
        self.time: NDArray[np.float64] = np.zeros(capacity)
        self.seen = 0

    def __len__(self) -> int:
        return int(np.count_nonzero(self.ids != EMPTY))

    def propose(self, ids_N: Ids, rng: np.random.Generator, origin: Origin | None = None) -> Admission:
        """Decide where newcomers would go, changing nothing. Free slots are filled first, in order.

        Raises:
            ValueError: an id is negative, repeated, or in the buffer already; or `origin` is not that of N frames.
        """
        ids_N = np.asarray(ids_N, np.int64)
        known = np.isin(ids_N, self.ids)
        if (ids_N < 0).any() or len(np.unique(ids_N)) < len(ids_N) or known.any():
            raise ValueError(f"frame ids must be new, distinct and not negative, got {ids_N}")
        origin = Origin.unknown(len(ids_N)) if origin is None else origin
        if not len(origin.source) == len(origin.time) == len(ids_N):
            raise ValueError(f"{len(ids_N)} frames, but the origin of {len(origin.source)}")
        slots_N = np.full(len(ids_N), EMPTY, np.int64)
        free = np.flatnonzero(self.ids == EMPTY)[: len(ids_N)]
        slots_N[: len(free)] = free
        late = np.arange(len(free), len(ids_N))
        late = late[self.policy.admit(self.seen + late, rng)]
        slots_N[late] = self.policy.evict(self, len(late), rng)
        slots_N = _last_wins(slots_N)
        replaced = self.ids[slots_N[slots_N != EMPTY]]
        return Admission(ids_N, slots_N, replaced[replaced != EMPTY], origin)

    def apply(self, admission: Admission, step: int) -> None:
        """Carry a proposal out; `step` becomes the birth of the newcomers."""
        number_N = self.seen + np.arange(len(admission.ids))
        taken = admission.slots != EMPTY
        slots = admission.slots[taken]
        self.policy.forget(slots)
        self.ids[slots] = admission.ids[taken]
        self.order[slots] = number_N[taken]
        self.born[slots] = step
        self.replays[slots] = 0
        self.source[slots] = admission.origin.source[taken]
        self.time[slots] = admission.origin.time[taken]
        self.seen += len(admission.ids)

    def admit(self, ids_N: Ids, rng: np.random.Generator, step: int = 0, origin: Origin | None = None) -> Admission:
        """Propose and carry out."""
        admission = self.propose(ids_N, rng, origin)
        self.apply(admission, step)
        return admission

    def sample(self, n: int, rng: np.random.Generator, exclude: Ids | None = None, *, max_replays: int = 0) -> Ids:
        """Distinct occupied slots, none of `exclude`: n, or all there are when fewer.

        Args:
            max_replays: those that were replayed so often are left out, too; 0 = no limit.
        """
        candidates = self.ids != EMPTY
        if max_replays:
            candidates &= self.replays < max_replays
        if exclude is not None:
            candidates[exclude] = False
        return self.policy.sample(self, np.flatnonzero(candidates), n, rng)

    def origin(self, slots: Ids) -> Origin:
        """Where the frames of these slots come from."""
        return Origin(self.source[slots], self.time[slots])

    def touch(self, slots: Ids) -> None:
        """Count a replay of these (distinct) slots."""
        self.replays[slots] += 1

    def drop(self, ids: Ids) -> Ids:
        """Free the slots of frames that no longer exist; ids that are not here are ignored.

        Returns:
            The freed slots.
        """
        slots = np.flatnonzero(np.isin(self.ids, ids) & (self.ids != EMPTY))
        self.ids[slots] = EMPTY
        self.policy.forget(slots)
        return slots

    def follow(self, rows_MD: Tensor, live_M: Tensor, slots: Ids) -> None:
        """Tell the policy, after a step that went well, whose rows (distinct slots) were born or have moved."""
        self.policy.follow(self, rows_MD, live_M, slots)

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Copies of the table, and of what the policy remembers."""
        columns = {name: getattr(self, name).copy() for name in _COLUMNS}
        columns |= {f"{self._prefix}{name}": array for name, array in self.policy.state_dict().items()}
        return columns | {"seen": np.array([self.seen], np.int64)}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take a saved table over. Without origins (older checkpoints) they are not known.

        A table that another policy kept is read too; the present one gets to know its frames as they are replayed.

        Raises:
            ValueError: it has another capacity.
        """
        if len(state["ids"]) != self.capacity:
            raise ValueError(f"saved with {len(state['ids'])} rows, this one has {self.capacity}")
        for name in _COLUMNS:
            if name in state or name not in _ORIGIN:
                getattr(self, name)[:] = state[name]
        self.seen = int(state["seen"][0])
        n = len(self._prefix)
        self.policy.load_state_dict({name[n:]: array for name, array in state.items() if name.startswith(self._prefix)})


_ORIGIN = ("source", "time")
_COLUMNS = ("ids", "order", "born", "replays", *_ORIGIN)


def _last_wins(slots_N: Ids) -> Ids:
    """Of newcomers that were given one slot only the last keeps it; the others get -1."""
    _, last = np.unique(slots_N[::-1], return_index=True)
    keep = np.zeros(len(slots_N), np.bool_)
    keep[len(slots_N) - 1 - last] = True
    return np.where(keep, slots_N, EMPTY)
