"""Back to the pinned good state: when losses stop being finite, or the guard says so."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cld_stream.config import TrainSettings
from cld_stream.errors import CorruptError, GuardStopError
from cld_stream.learn.buffer import Ids
from cld_stream.learn.learner import Learner, StepReport
from cld_stream.pipelines.guard import Level
from cld_stream.pipelines.metrics import log
from cld_stream.storage.checkpoints import Checkpoint, list_checkpoints, load_checkpoint, pinned_checkpoint

__all__ = ["Rescue"]

_SLOWER = 0.5


class Rescue:
    """Counts bad steps; after `bad_steps` in a row the pinned good checkpoint comes back, once.

    A bad step changes nothing, so a few in a row cost their frames only. After a rescue the learning rate is halved
    and all random choices differ; the feed goes on where it is. When it happens again before a later state has proved
    good, the good state comes back once more, for whoever starts training again, and training stops for good.

    Attributes:
        rescues: so far.
        good: whether every step since the last checkpoint went well.
        wanted: why the good state must come back, until it did; None = it need not.
    """

    def __init__(self, store_path: Path, settings: TrainSettings, state: Mapping[str, Any] | None = None) -> None:
        self._store_path, self._limit = store_path, settings.bad_steps
        state, self._in_a_row = state or {}, 0
        self.rescues, self._on_trial = int(state.get("rescues", 0)), bool(state.get("on_trial", 0))
        self.wanted: str | None = state.get("wanted")
        self.good = self.wanted is None

    def state_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"rescues": self.rescues, "on_trial": int(self._on_trial), "wanted": self.wanted}

    def saved(self, *, pinned: bool) -> None:
        """A checkpoint was written."""
        if pinned:
            self._on_trial = False
        self.good = self.wanted is None

    def after_step(self, learner: Learner, report: StepReport, ids: Ids) -> None:
        """Take note of a step over these frames."""
        if report.ok:
            self._in_a_row = 0
            return
        self.good = False
        self._in_a_row += 1
        log.warning(
            "step %d: loss %s, not finite; nothing was changed; frames %s", learner.clock, report.loss, ids.tolist()
        )
        if self._in_a_row >= self._limit:
            self.wanted = f"{self._in_a_row} steps in a row were not finite"

    def back(self, learner: Learner, why: str) -> GuardStopError | None:
        """Restore the good state; where no checkpoint holds one any more, go on from the present one, as slowly.

        Returns:
            What to raise once that is saved, when the last rescue did not help.
        """
        stop = None
        if self._on_trial:
            stop = GuardStopError(
                f"{self._store_path}: training diverged again after its last good state was restored at half the rate: "
                f"{why}. Lower optim.lr, look at the newest frames (logs/train.log), then train again."
            )
        clock, salt, rate = learner.clock, learner.salt, learner.rate
        checkpoint = self._good()
        if checkpoint is not None:
            learner.load_state_dict(checkpoint.tensors, checkpoint.meta["learner"])
        learner.clock, learner.salt, learner.rate = clock, salt + 1, rate if stop else rate * _SLOWER
        self.rescues += 1
        self._in_a_row, self._on_trial, self.good, self.wanted = 0, True, False, None
        to = (
            "no good state is left to go back to"
            if checkpoint is None
            else f"back to the good state of step {checkpoint.step}"
        )
        log.error("%s: %s, learning rate now x %g", why, to, learner.rate)
        return stop

    def _good(self) -> Checkpoint | None:
        """The pinned checkpoint; where that is damaged, the newest whole one that nothing was said against."""
        pinned = pinned_checkpoint(self._store_path)
        for step in sorted(list_checkpoints(self._store_path), key=lambda step: (step == pinned, step), reverse=True):
            try:
                checkpoint = load_checkpoint(self._store_path, step)
            except CorruptError as error:
                log.error("%s", error)
                continue
            rescue, guard = (checkpoint.meta.get(name) or {} for name in ("rescue", "guard"))
            if step == pinned or (rescue.get("wanted") is None and guard.get("level", 0) < Level.HOLD):
                return checkpoint
        return None
