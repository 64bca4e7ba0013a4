"""Near-repeats: which frames show nearly the same, by where they come from and when."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cld_stream.config import LossSettings
from cld_stream.learn.buffer import Admission, Ids, Origin, ReplayBuffer
from cld_stream.learn.segments import Segmenter

__all__ = ["Near", "NearRepeats"]

# Shape suffixes: N frames of the batch, F fresh ones, M slots of the buffer, P pairs.

NOWHERE = -1


@dataclass(frozen=True)
class Near:
    """The relation on one batch and on the buffer as it stands after the step. Frames of place -1 are near nobody.

    Attributes:
        place_N, time_N: int64 and float64, of the batch's frames.
        place_M, time_M: the same of every slot.
        within: largest distance in time of two frames of one place [s].
    """

    place_N: Tensor
    time_N: Tensor
    place_M: Tensor
    time_M: Tensor
    within: float

    def to(self, place_K: Tensor, time_K: Tensor) -> Tensor:
        """(N x K) bool: which of K other frames are near-repeats of each frame of the batch."""
        same_NK = (self.place_N[:, None] == place_K) & (self.place_N >= 0)[:, None]
        return same_NK & ((self.time_N[:, None] - time_K).abs() <= self.within)

    def in_buffer(self) -> Tensor:
        """(2 x P): frame of the batch and slot of each pair of near-repeats; the frame's own slot is among them."""
        place_M, slot_M = self.place_M.sort()
        first_N = torch.searchsorted(place_M, self.place_N)
        count_N = (torch.searchsorted(place_M, self.place_N, right=True) - first_N) * (self.place_N >= 0)
        frame_P = torch.arange(len(count_N), device=place_M.device).repeat_interleave(count_N)
        begin_N = count_N.cumsum(0) - count_N
        rank_P = torch.arange(len(frame_P), device=place_M.device) - begin_N[frame_P]
        slot_P = slot_M[first_N[frame_P] + rank_P]
        near_P = (self.time_N[frame_P] - self.time_M[slot_P]).abs() <= self.within
        return torch.stack([frame_P[near_P], slot_P[near_P]])


class NearRepeats:
    """Keeps the relation that `loss.near` names: frames of one shot and close in time, or of one segment.

    Attributes:
        segment_M: segment of each slot's frame; -1 = not known: it was only remembered so far when it came.
    """

    def __init__(self, loss: LossSettings, capacity: int) -> None:
        self._kind, self._within = loss.near, loss.near_s
        self._positives, self._segmenter = loss.near_positives, Segmenter()
        self.segment_M: Ids = np.full(capacity, NOWHERE, np.int64)

    def partners(self, buffer: ReplayBuffer, slots: Ids, origin: Origin, gone: Ids, rng: np.random.Generator) -> Ids:
        """For some of N frames another buffered near-repeat, from which their second view may be taken.

        Args:
            slots: of the frames after the step; -1 = none.
            origin: where the frames come from.
            gone: slots that newcomers take.

        Returns:
            (N) slots; -1 = none.
        """
        partner_N = np.full(len(slots), NOWHERE, np.int64)
        if self._kind == "none" or self._positives == 0:
            return partner_N
        kept = np.ones(buffer.capacity, np.bool_)
        kept[gone] = False
        place_M, time_M = self._table(buffer.source, buffer.time, buffer.ids, self.segment_M)
        place_M[~kept] = NOWHERE
        place_N, time_N = origin.source, origin.time
        if self._kind == "segment":  # fresh frames have none yet
            fresh_N = (slots < 0) | ~kept[slots]
            place_N, time_N = np.where(fresh_N, NOWHERE, self.segment_M[slots]), np.zeros(len(slots))
        order_M = np.lexsort((time_M, place_M))
        sorted_M, chosen_N = place_M[order_M], rng.random((2, len(slots)))
        first_N, stop_N = np.searchsorted(sorted_M, place_N), np.searchsorted(sorted_M, place_N, "right")
        for i in np.flatnonzero((chosen_N[0] < self._positives) & (place_N >= 0) & (stop_N > first_N)):
            row = order_M[first_N[i] : stop_N[i]]
            low, high = np.searchsorted(time_M[row], [time_N[i] - self._within, time_N[i] + self._within + 1e-9])
            row = row[low:high]
            row = row[row != slots[i]]
            if len(row):
                partner_N[i] = row[int(chosen_N[1, i] * len(row))]
        return partner_N

    def look(
        self, buffer: ReplayBuffer, slots: Ids, origin: Origin, admission: Admission, f_FD: Tensor
    ) -> tuple[Near | None, "_Found"]:
        """The relation for a step, changing nothing, and what `follow` wants once the step has gone well.

        Args:
            slots, origin: of the N frames of the batch.
            admission: of its F fresh frames, which come first.
            f_FD: unit features of the fresh frames, without gradient.
        """
        found = _Found(self._segmenter, np.full(len(admission.ids), NOWHERE, np.int64))
        if self._kind == "none":
            return None, found
        taken, fresh = admission.slots >= 0, len(admission.ids)
        into, new = admission.slots[taken], admission.origin[taken]
        ids, source, time = buffer.ids.copy(), buffer.source.copy(), buffer.time.copy()
        ids[into], source[into], time[into] = admission.ids[taken], new.source, new.time
        segment_M = self.segment_M
        place_N, time_N = origin.source, origin.time
        if self._kind == "segment":
            segment_F, after = self._segmenter.cut(f_FD.float().cpu().numpy(), admission.origin)
            found, segment_M = _Found(after, segment_F), segment_M.copy()
            segment_M[into] = segment_F[taken]
            place_N, time_N = np.concatenate([segment_F, segment_M[slots[fresh:]]]), np.zeros(len(slots))
        place_M, time_M = self._table(source, time, ids, segment_M)
        at_N, when_N, at_M, when_M = (torch.from_numpy(c).to(f_FD.device) for c in (place_N, time_N, place_M, time_M))
        return Near(at_N, when_N, at_M, when_M, self._within), found

    def follow(self, admission: Admission, found: "_Found") -> None:
        """The step has gone well."""
        if self._kind == "segment":
            taken = admission.slots >= 0
            self._segmenter = found.segmenter
            self.segment_M[admission.slots[taken]] = found.segment_F[taken]

    def forget(self, slots: Ids) -> None:
        """These slots hold frames whose segments are not known, or none at all."""
        self.segment_M[slots] = NOWHERE

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Empty unless there are segments."""
        if self._kind != "segment":
            return {}
        return {"segment": self.segment_M.copy()} | self._segmenter.state_dict()

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take a saved state over. Without one (the setting is new) segments begin here, and those of old are gone."""
        self.segment_M[:], self._segmenter = NOWHERE, Segmenter()
        if self._kind == "segment" and "segment" in state:
            self.segment_M[:] = state["segment"]
            self._segmenter.load_state_dict(state)

    def _table(
        self, source: Ids, time: NDArray[np.float64], ids: Ids, segment_M: Ids
    ) -> tuple[Ids, NDArray[np.float64]]:
        """Place and time of every slot."""
        if self._kind == "segment":
            return np.where(ids >= 0, segment_M, NOWHERE), np.zeros(len(ids))
        return np.where(ids >= 0, source, NOWHERE), time


@dataclass(frozen=True)
class _Found:
    """The segmenter behind a batch, and the segments of its fresh frames."""

    segmenter: Segmenter
    segment_F: Ids
