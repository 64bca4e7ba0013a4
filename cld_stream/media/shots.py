"""Where one camera shot ends and the next begins: a jump of the colour histogram between kept frames."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["SHOT_CHANGE", "ShotTracker"]

SHOT_CHANGE = 0.5  # share of the pixels whose colour bin changes; 0 = same picture, 1 = no overlap
_LEVELS = 4  # per colour channel


class ShotTracker:
    """Counts the shots of one source.

    Args:
        shot: number of the current shot.
        counts: histogram of the last kept frame, as `state` gave it; None before the first.
    """

    def __init__(self, shot: int = 0, counts: list[int] | None = None) -> None:
        self.shot = shot
        self._last = None if counts is None else np.asarray(counts, np.int64)

    def see(self, rgb: NDArray[np.uint8]) -> int:
        """The shot that the next kept frame (H x W x 3) belongs to."""
        counts = _histogram(rgb)
        if self._last is not None and _distance(self._last, counts) > SHOT_CHANGE:
            self.shot += 1
        self._last = counts
        return self.shot

    def state(self) -> tuple[int, list[int] | None]:
        """(shot, histogram): what the constructor needs to go on."""
        return self.shot, None if self._last is None else self._last.tolist()


def _histogram(rgb: NDArray[np.uint8]) -> NDArray[np.int64]:
    bins = rgb[::4, ::4] // (256 // _LEVELS)
    index = (bins[..., 0] * _LEVELS + bins[..., 1]) * _LEVELS + bins[..., 2]
    return np.bincount(index.ravel(), minlength=_LEVELS**3)


def _distance(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    return float(np.abs(a / max(1, a.sum()) - b / max(1, b.sum())).sum()) / 2
