"""The daemon's guard along a stream: a look at every place, and a publication unless it holds."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cld_stream.learn.learner import Learner, StepReport
from cld_stream.pipelines.guard import Checkup, Guard
from cld_stream.pipelines.measures import Shares, compare, grown_up, loss_ratio, spread_evenly

__all__ = ["Watched"]

Rows = NDArray[np.int64]


class Watched:
    """Looks as `check_encoder` does, at frames fed so far. All footage is healthy: what the guard says of ours is a
    false alarm."""

    def __init__(self, learner: Learner) -> None:
        self._learner, self._guard, self._grown_up = learner, Guard(learner.settings.guard), grown_up(learner.settings)
        self._published = 0
        self._rows, self._then_ND, self._best = np.empty(0, np.int64), torch.empty(0), Shares()

    def look(self, embed: Callable[[Rows], Tensor], fed: int, report: StepReport | None) -> dict[str, Any]:
        """Judge the encoder.

        Args:
            embed: gives f_I of frames of the stream.
            fed: how many of its frames have been fed.
            report: of the last step.

        Returns:
            How often it has warned, begun to hold, and wanted the good state back so far; and the least share.
        """
        learner, guard = self._learner, self._guard
        young = learner.updates < self._grown_up
        checkup = Checkup(loss_ratio=loss_ratio(learner, report), young=young)
        if self._published:
            shares, agreement = compare(embed(self._rows), self._then_ND)
            checkup = replace(
                checkup, shares=shares, agreement=agreement, best=self._best, snapshot=str(self._published)
            )
        guard.judge(checkup, learner.clock)
        if not guard.holding:
            self._published, self._rows = self._published + 1, spread_evenly(fed)
            self._then_ND = embed(self._rows)
            self._best = Shares.of_published(guard.last.standing, young=young)
        said = {"warnings": guard.warnings, "holds": guard.holds, "kept": round(guard.last.kept.least, 4)}
        if guard.wanted is not None:
            guard.restored()  # here nothing is
        return said | {"rollbacks": guard.rollbacks}
