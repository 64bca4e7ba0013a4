"""The guard: what is done when features fall apart. Decisions over plain numbers; `checkup.py` measures them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

from cld_stream.config import GuardSettings
from cld_stream.pipelines.measures import Shares
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
        shares: of what the snapshot's encoder makes of these frames. Dull footage is dull for both.
        agreement: common neighbours beyond chance; 1 = the same, 0 = unrelated.
        loss_ratio: instance loss over log(n), the loss of one who knows nothing.
        best: the best so far in the same unit: what the snapshot's encoder makes of these frames.
        snapshot: id of it; "" = there is none, or it cannot be compared with.
        young: whether this encoder has had too few updates for its effective rank to be a measure for others.
    """

    shares: Shares = field(default_factory=Shares)
    agreement: float = math.nan
    loss_ratio: float = math.nan
    best: Shares = field(default_factory=Shares)
    snapshot: str = ""
    young: bool = False

    @property
    def kept(self) -> Shares:
        """Of the best so far."""
        return self.shares.over(self.best)

    @property
    def best_with_this(self) -> Shares:
        """The best so far, this encoder among them; the rank of a young one is no measure."""
        return self.best.at_least(replace(self.shares, rank=math.nan) if self.young else self.shares)

    @property
    def standing(self) -> dict[str, float | None]:
        """The best so far in units of this encoder: what a snapshot of it has to remember."""
        return self.best_with_this.over(self.shares).as_dict()


def assess(checkup: Checkup, settings: GuardSettings) -> tuple[Level, str]:
    """What one look says, and why in plain words."""
    kept = checkup.kept
    lines = ((Level.ROLLBACK, settings.rollback), (Level.HOLD, settings.hold), (Level.WARN, settings.warn))
    for level, line in lines:
        if kept.least < line:
            return level, f"the {kept.worst} of the features is {kept.least:.2f} of the best so far"
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
        wanted: why the good state must come back, until it did; None = it need not.
        last: the last look.
    """

    def __init__(self, settings: GuardSettings, state: Mapping[str, Any] | None = None) -> None:
        self._settings, state = settings, state or {}
        self.level, self.why = Level(state.get("level", 0)), str(state.get("why", ""))
        self._in_a_row, self._clock = int(state.get("in_a_row", 0)), int(state.get("clock", -1))
        self.warnings, self.holds, self.rollbacks = (int(state.get(n, 0)) for n in ("warnings", "holds", "rollbacks"))
        self.wanted: str | None = state.get("wanted") if settings.enabled else None
        self._snapshot, self._best = str(state.get("snapshot", "")), Shares.read(state.get("best", {}))
        self.last = Checkup()

    def state_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "level": int(self.level), "why": self.why, "in_a_row": self._in_a_row, "clock": self._clock,
            "warnings": self.warnings, "holds": self.holds, "rollbacks": self.rollbacks, "wanted": self.wanted,
            "snapshot": self._snapshot, "best": self._best.as_dict(),
        }  # fmt: skip

    @property
    def holding(self) -> bool:
        """Whether what there is must be neither published nor pinned."""
        return self._settings.enabled and self.level >= Level.HOLD

    def due(self, clock: int) -> bool:
        """Whether to look after this step."""
        return self._settings.enabled and clock % self._settings.every_steps == 0

    def looked(self, clock: int) -> bool:
        """Whether the encoder of this step was judged."""
        return self._clock == clock

    def compare(self, checkup: Checkup) -> Checkup:
        """With the best of all looks since the snapshot, too."""
        if checkup.snapshot != self._snapshot:
            return checkup
        return replace(checkup, best=checkup.best.at_least(self._best))

    def judge(self, checkup: Checkup, clock: int) -> None:
        """Take note of a look at the encoder of this step, with a line in the log when something changes."""
        before, again = self.level, self.looked(clock)
        self.last = checkup = self.compare(checkup)
        self.level, self.why = assess(checkup, self._settings)
        self._snapshot, self._best, self._clock = checkup.snapshot, checkup.best_with_this, clock
        if self.level >= Level.HOLD > before:
            self.holds += 1
            log.error("guard: %s. Nothing is published until that is better.", self.why)
        elif self.level == Level.WARN > before:
            self.warnings += 1
            log.warning("guard: %s", self.why)
        elif self.level < before and before >= Level.HOLD:
            log.info("guard: the features are well again; publishing goes on")
        if not again:  # one encoder is bad once, however often it is looked at
            self._in_a_row = self._in_a_row + 1 if self.level == Level.ROLLBACK else 0
        if self._in_a_row >= self._settings.patience:
            self.wanted = self.why

    def restored(self) -> None:
        """The good state is there again, whoever wanted it."""
        self.rollbacks += self.wanted is not None
        self.level, self.why, self._in_a_row, self.wanted = Level.OK, "", 0, None

    def line(self) -> str:
        """For a person and for `status`."""
        if not self._settings.enabled:
            return "off"
        word = {Level.OK: "ok", Level.WARN: "warning"}.get(self.level, "holds publishing")
        return f"{word}: {self.why}" if self.why else word
