"""Temporal segments: where what a recording shows changes, found online in the features of its frames."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from cld_stream.learn.buffer import Ids, Origin

__all__ = ["Segmenter"]

# Shape suffixes: F fresh frames in stream order, D features.

_UNLIKE = 3.0
"""A change: a cosine so many standard deviations below what frames of one segment usually have."""

_PACE = 0.01
"""Of the running mean and variance of that cosine; of the first hundred frames they are the plain ones."""

_FEWEST = 10
"""Cosines that tell what is usual; before, only another recording begins a segment."""


@dataclass
class Segmenter:
    """Numbers segments of the stream: 0, 1, 2, ...

    A frame begins a new one when it is of another recording or shot than the frame before, or when its mean cosine
    with the frames of the open segment is unusually low: a change point in feature space, as in Memory Storyboard
    (https://arxiv.org/abs/2501.12254), but decided online, from the sum of the open segment's features. One of which
    it is not known where it comes from is a segment by itself.

    Attributes:
        segment: number of the open one; -1 = there is none yet.
        source: what it belongs to; -1 = not known.
        mean, variance: running, of the mean cosine of a frame with the open segment; after `count` frames.
        size, sum_D: frames of the open segment, and the sum of their unit features; empty before the first one.
    """

    segment: int = -1
    source: int = -1
    mean: float = 0.0
    variance: float = 0.0
    count: int = 0
    size: int = 0
    sum_D: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))

    def cut(self, f_FD: NDArray[np.float32], origin: Origin) -> tuple[Ids, "Segmenter"]:
        """Number the next frames of the stream, changing nothing.

        Args:
            f_FD: unit features.
            origin: of these frames.

        Returns:
            (F) segments, and the segmenter behind these frames.
        """
        after, segments_F = replace(self), np.empty(len(f_FD), np.int64)
        for i, (f_D, source) in enumerate(zip(f_FD, origin.source.tolist(), strict=True)):
            segments_F[i] = after._join(f_D, source)
        return segments_F, after

    def _join(self, f_D: NDArray[np.float32], source: int) -> int:
        """The segment of the next frame."""
        new = self.segment < 0 or source < 0 or source != self.source
        if not new:
            cosine = float(f_D @ self.sum_D) / self.size
            lowest = self.mean - _UNLIKE * self.variance**0.5
            new = self.count >= _FEWEST and cosine < lowest
            self._follow(lowest if new else cosine)  # how large a change is says little of what is usual
        if new:
            self.segment, self.source, self.size, self.sum_D = self.segment + 1, source, 1, f_D
        else:
            self.size, self.sum_D = self.size + 1, self.sum_D + f_D
        return self.segment

    def _follow(self, cosine: float) -> None:
        self.count += 1
        pace, away = max(_PACE, 1 / self.count), cosine - self.mean
        self.mean += pace * away
        self.variance += pace * (away * (cosine - self.mean) - self.variance)

    def state_dict(self) -> dict[str, NDArray[np.float64]]:
        """Numbers and the sum, as arrays."""
        numbers = [self.segment, self.source, self.count, self.size, self.mean, self.variance]
        return {"numbers": np.array(numbers, np.float64), "sum": self.sum_D.astype(np.float64)}

    def load_state_dict(self, state: Mapping[str, NDArray[np.float64]]) -> None:
        """Go on from a saved place."""
        *whole, self.mean, self.variance = state["numbers"].tolist()
        self.segment, self.source, self.count, self.size = map(int, whole)
        self.sum_D = np.array(state["sum"], np.float32)
