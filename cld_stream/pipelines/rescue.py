"""Back to the pinned good state: when losses stop being finite, or the guard says so."""

from collections.abc import Mapping
from pathlib import Path

from cld_stream.config import TrainSettings
from cld_stream.errors import GuardStopError
from cld_stream.learn.buffer import Ids
from cld_stream.learn.learner import Learner, StepReport
from cld_stream.pipelines.metrics import log
from cld_stream.storage.checkpoints import load_checkpoint, pinned_checkpoint

__all__ = ["Rescue"]

_SLOWER = 0.5


class Rescue:
    """Counts bad steps; after `bad_steps` in a row the pinned good checkpoint comes back, once.

    A bad step changes nothing, so a few in a row cost their frames only. After a rescue the learning rate is halved
    and all random choices differ; the feed goes on where it is. When it happens again before a later state has proved
    good, training stops for good.

    Attributes:
        rescues: so far.
        good: whether every step since the last checkpoint went well.
    """

    def __init__(self, store_path: Path, settings: TrainSettings, state: Mapping[str, int] | None = None) -> None:
        self._store_path, self._limit = store_path, settings.bad_steps
        self._in_a_row, self.good = 0, True
        state = state or {}
        self.rescues, self._on_trial = state.get("rescues", 0), bool(state.get("on_trial", 0))

    def state_dict(self) -> dict[str, int]:
        """As JSON holds it."""
        return {"rescues": self.rescues, "on_trial": int(self._on_trial)}

    def saved(self, *, pinned: bool) -> None:
        """A checkpoint was written."""
        if pinned:
            self._on_trial = False
        self.good = True

    def after_step(self, learner: Learner, report: StepReport, ids: Ids, sick: str | None = None) -> bool:
        """Take note of a step over these frames.

        Args:
            sick: why the guard wants the good state back, or None.

        Returns:
            Whether an old state was restored: the caller saves it.

        Raises:
            GuardStopError: the rescue did not help.
        """
        if report.ok:
            self._in_a_row = 0
            return sick is not None and self._back(learner, sick)
        self.good = False
        self._in_a_row += 1
        log.warning(
            "step %d: loss %s, not finite; nothing was changed; frames %s", learner.clock, report.loss, ids.tolist()
        )
        if self._in_a_row < self._limit:
            return False
        return self._back(learner, f"{self._limit} steps in a row were not finite")

    def _back(self, learner: Learner, why: str) -> bool:
        if self._on_trial:
            raise GuardStopError(
                f"{self._store_path}: training diverged again after its last good state was restored at half the rate: "
                f"{why}. Lower optim.lr, look at the newest frames (logs/train.log), then train again."
            )
        self.good = False
        self._restore(learner, why)
        return True

    def _restore(self, learner: Learner, why: str) -> None:
        clock, salt, rate = learner.clock, learner.salt, learner.rate
        step = pinned_checkpoint(self._store_path)
        checkpoint = load_checkpoint(self._store_path, step)
        learner.load_state_dict(checkpoint.tensors, checkpoint.meta["learner"])
        learner.clock, learner.salt, learner.rate = clock, salt + 1, rate * _SLOWER
        self.rescues += 1
        self._in_a_row, self._on_trial = 0, True
        log.error("%s: back to the good state of step %d, learning rate now x %g", why, checkpoint.step, learner.rate)
