"""The guard: what is done when features fall apart. Decisions over plain numbers; `checkup.py` measures them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from cld_stream.config import GuardSettings
from cld_stream.pipelines.metrics import log

__all__ = ["Checkup", "Guard", "Level", "assess"]

_UNRELATED = 0.02  # agreement: hardly more than chance
_KNOWS_NOTHING = 0.98  # of log(n)


class Level(IntEnum):
    """How bad it is, and what is done about it."""

    OK = 0
    WARN = 1
    HOLD = 2
    ROLLBACK = 3


@dataclass(frozen=True)
class Checkup:
    """An encoder against the current snapshot's, over the same stored frames. NaN = not known.

    Attributes:
        std, rank, entropy: spread, effective rank and group-size entropy as a share of what the snapshot's encoder
            makes of these frames; 1 = as good, near 0 = collapsed. Dull footage is dull for both.
        agreement: common neighbours beyond chance; 1 = the same, 0 = unrelated.
        loss_ratio: instance loss over log(n), the loss of one who knows nothing.
    """

    std: float = math.nan
    rank: float = math.nan
    entropy: float = math.nan
    agreement: float = math.nan
    loss_ratio: float = math.nan

    @property
    def kept(self) -> float:
        """The least of the three shares; 1 where there is nothing to compare with."""
        return min((v for v in (self.std, self.rank, self.entropy) if not math.isnan(v)), default=1.0)


def assess(checkup: Checkup, settings: GuardSettings) -> tuple[Level, str]:
    """What one look says, and why in plain words."""
    names = {"spread": checkup.std, "effective rank": checkup.rank, "entropy of the groups": checkup.entropy}
    lines = ((Level.ROLLBACK, settings.rollback), (Level.HOLD, settings.hold), (Level.WARN, settings.warn))
    for level, line in lines:
        if checkup.kept < line:
            worst = next(name for name, share in names.items() if share == checkup.kept)
            return level, f"the {worst} of the features is {checkup.kept:.2f} of what it was in the snapshot"
    if checkup.agreement < _UNRELATED:
        return Level.WARN, f"neighbours are not those of the snapshot (agreement {checkup.agreement:.2f})"
    if checkup.loss_ratio > _KNOWS_NOTHING:
        return Level.WARN, f"frames are not told apart (instance loss {checkup.loss_ratio:.2f} of log n)"
    return Level.OK, ""


class Guard:
    """Warn, hold, roll back: a state machine over looks.

    Attributes:
        level, why: of the last look.
        warnings, holds, rollbacks: how often each began.
    """

    def __init__(self, settings: GuardSettings, state: Mapping[str, Any] | None = None) -> None:
        self._settings, state = settings, state or {}
        self.level, self.why = Level(state.get("level", 0)), str(state.get("why", ""))
        self._in_a_row = int(state.get("in_a_row", 0))
        self.warnings, self.holds, self.rollbacks = (int(state.get(n, 0)) for n in ("warnings", "holds", "rollbacks"))
        self.last = Checkup()

    def state_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "level": int(self.level), "why": self.why, "in_a_row": self._in_a_row,
            "warnings": self.warnings, "holds": self.holds, "rollbacks": self.rollbacks,
        }  # fmt: skip

    @property
    def holding(self) -> bool:
        """Whether what there is must be neither published nor pinned."""
        return self._settings.enabled and self.level >= Level.HOLD

    def due(self, clock: int) -> bool:
        """Whether to look after this step."""
        return self._settings.enabled and clock % self._settings.every_steps == 0

    def judge(self, checkup: Checkup) -> str | None:
        """Take note of a look, with a line in the log when something changes.

        Returns:
            Why the good state must come back, or None.
        """
        before, self.last = self.level, checkup
        self.level, self.why = assess(checkup, self._settings)
        self._in_a_row = self._in_a_row + 1 if self.level == Level.ROLLBACK else 0
        if self.level >= Level.HOLD > before:
            self.holds += 1
            log.error("guard: %s. Nothing is published until that is better.", self.why)
        elif self.level == Level.WARN > before:
            self.warnings += 1
            log.warning("guard: %s", self.why)
        elif self.level < before and before >= Level.HOLD:
            log.info("guard: the features are well again; publishing goes on")
        if self._in_a_row < self._settings.patience:
            return None
        why, self._in_a_row = self.why, 0
        return why

    def rolled_back(self) -> None:
        """The good state is there again."""
        self.rollbacks += 1
        self.level, self.why = Level.OK, ""

    def line(self) -> str:
        """For a person and for `status`."""
        if not self._settings.enabled:
            return "off"
        word = {Level.OK: "ok", Level.WARN: "warning"}.get(self.level, "holds publishing")
        return f"{word}: {self.why}" if self.why else word
