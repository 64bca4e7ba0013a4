"""What the guard measures, in plain numbers: features as shares of other features, and the loss."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cld_stream.config import Settings
from cld_stream.learn.branches.moco import MoCo
from cld_stream.learn.branches.npid import NPID
from cld_stream.learn.learner import Learner, StepReport
from cld_stream.learn.probes import effective_rank, feature_std, group_entropy, neighbour_agreement

__all__ = ["Shares", "compare", "grown_up", "loss_ratio", "spread_evenly"]

_FRAMES, _GROUPS, _NEIGHBOURS = 256, 16, 10
_DULL = 0.05  # spread below which frames look alike to the older encoder itself: nothing can be lost
_FEWEST, _YOUNG = 32, 200  # choices and updates before the loss says anything
_NAMES = {"std": "spread", "rank": "effective rank", "entropy": "entropy of the groups"}


@dataclass(frozen=True)
class Shares:
    """Spread, effective rank and group-size entropy of features, each as a share of some other features'.

    1 = as good, near 0 = collapsed, NaN = not known or of no meaning.
    """

    std: float = math.nan
    rank: float = math.nan
    entropy: float = math.nan

    @classmethod
    def read(cls, numbers: Mapping[str, float | None]) -> "Shares":
        """What `as_dict` gave."""
        return cls(**{n: v for n in _NAMES if (v := numbers.get(n)) is not None})

    @classmethod
    def of_published(cls, best: Mapping[str, float | None] | None, *, young: bool) -> "Shares":
        """The best so far in units of a published encoder, by what was noted with it; it is no worse than itself."""
        return cls.read(best or {}).known_or(cls(1.0, math.nan if young else 1.0, 1.0))

    def as_dict(self) -> dict[str, float | None]:
        """As JSON holds it."""
        return {n: None if math.isnan(v) else v for n, v in self._items()}

    @property
    def least(self) -> float:
        """1 where nothing is known."""
        return min((v for _, v in self._items() if not math.isnan(v)), default=1.0)

    @property
    def worst(self) -> str:
        """In words: which of them is the least."""
        return next((_NAMES[n] for n, v in self._items() if v == self.least), "")

    def over(self, other: "Shares") -> "Shares":
        """As shares of what has these shares itself; NaN where either is."""
        return Shares(*(v / max(1e-6, w) for (_, v), (_, w) in zip(self._items(), other._items(), strict=True)))

    def at_least(self, other: "Shares") -> "Shares":
        """The greater of each; what is NaN counts for nothing."""
        pairs = zip(self._items(), other._items(), strict=True)
        return Shares(*(w if math.isnan(v) or w > v else v for (_, v), (_, w) in pairs))

    def known_or(self, other: "Shares") -> "Shares":
        """The other's where this is NaN."""
        pairs = zip(self._items(), other._items(), strict=True)
        return Shares(*(w if math.isnan(v) else v for (_, v), (_, w) in pairs))

    def _items(self) -> list[tuple[str, float]]:
        return [(n, getattr(self, n)) for n in _NAMES]


def spread_evenly(n: int) -> NDArray[np.int64]:
    """Which of n frames to look at: 256 of them at most, evenly spread, in random order that is always the same."""
    return np.random.default_rng(0).permutation(np.linspace(0, n - 1, min(_FRAMES, n)).astype(np.int64))


def compare(now_ND: Tensor, then_ND: Tensor) -> tuple[Shares, float]:
    """What an encoder makes of frames, as shares of what an older one does, and the agreement of neighbours.

    Nothing is known (NaN) where the frames look alike to the older one itself.

    Args:
        now_ND, then_ND: unit features of the same frames, in no order.
    """
    if not now_ND.isfinite().all():
        return Shares(0.0, 0.0, 0.0), 0.0
    then = _measure(then_ND)
    if then.std < _DULL:
        return Shares(), math.nan
    return _measure(now_ND).over(then), neighbour_agreement(now_ND, then_ND, _NEIGHBOURS)


def _measure(x_ND: Tensor) -> Shares:
    """Of unit rows in no order."""
    return Shares(feature_std(x_ND), effective_rank(x_ND), group_entropy(x_ND, _GROUPS))


def grown_up(settings: Settings) -> int:
    """Updates from which on an encoder's effective rank is a measure for others: before, it falls from a random
    encoder's, which is higher than that of most trained ones."""
    return settings.optim.warmup_steps + settings.guard.young_steps


def loss_ratio(learner: Learner, report: StepReport | None) -> float:
    """Instance loss over log(n) with n frames to choose from; NaN for branches without such a choice, and at first."""
    branch, n = learner.branch, 0
    if isinstance(branch, NPID) and not learner.settings.loss.negatives:
        n = int(learner.bank.live_M.sum())
    elif isinstance(branch, MoCo):
        n = 1 + int((branch.queue.ids_K >= 0).sum())
    if report is None or n < _FEWEST or learner.updates < _YOUNG:
        return math.nan
    return report.instance / math.log(n)
