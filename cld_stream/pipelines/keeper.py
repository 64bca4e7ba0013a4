"""The cadence of the daemon: when it logs, checkpoints, publishes, extends, and shows a sign of life."""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

import torch
from numpy.typing import NDArray

from cld_stream.config import EncoderSettings, Settings, as_toml
from cld_stream.learn.feed import Feed
from cld_stream.learn.learner import Learner, StepReport
from cld_stream.learn.probes import effective_rank, feature_std
from cld_stream.pipelines.checkup import check_encoder
from cld_stream.pipelines.extend import Extender
from cld_stream.pipelines.guard import Guard
from cld_stream.pipelines.life import Life, Numbers
from cld_stream.pipelines.measures import grown_up, loss_ratio
from cld_stream.pipelines.metrics import MetricsLog, TrainProgress, finite, log
from cld_stream.pipelines.patience import Attempts
from cld_stream.pipelines.pixels import PixelCache
from cld_stream.pipelines.publish import Publication
from cld_stream.pipelines.rescue import Rescue
from cld_stream.pipelines.restore import buffer_batches, meta_of
from cld_stream.storage.checkpoints import save_checkpoint
from cld_stream.storage.durable import atomic_write_bytes
from cld_stream.storage.header import require_in_place
from cld_stream.storage.store import Store

__all__ = ["Keeper"]

_SHOW_S = 0.25
_EXTENDING = "giving features to new frames"
_RETRY_S = 60.0  # after a publication that failed
_LULL_S = 10.0  # without a step for this long, or for as long as three take, nothing is trained
_EXTEND_FRAMES = 512  # at a time: training must not wait long


class _Every:
    """True once in so many seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.reset()

    def reset(self) -> None:
        self._last = time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self._last >= self.seconds


class Keeper:
    """Everything around the steps. A context manager: what it opened is closed, and the run's end is noted.

    Attributes:
        feed: where the feed stands; what a checkpoint saves.
        idle_steps: what is left of the steps without new frames.
        owed_steps: what is left of the steps that the last fresh frames are worth.
        recipe: for the next start.
        wait_s: time spent waiting for pixels since the last measurement [s].
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        learner: Learner,
        cache: PixelCache,
        rescue: Rescue,
        guard: Guard,
        feed: Feed,
        on_progress: Callable[[TrainProgress], None] | None,
    ) -> None:
        self.feed, self.idle_steps, self.owed_steps, self.wait_s, self.recipe = feed, 0, 0, 0.0, ""
        self._store, self._settings, self._learner, self._cache = store, settings, learner, cache
        self._rescue, self._guard, self._on_progress = rescue, guard, on_progress
        t = settings.train
        self._checkpoint, self._publish, self._extend = _Every(t.checkpoint_s), _Every(t.publish_s), _Every(t.extend_s)
        self._show, self._retry = _Every(_SHOW_S), _Every(_RETRY_S)
        self._attempts, self._failed = Attempts(log), False
        self._saved: tuple[object, ...] = ()
        self._open = ExitStack()
        self._publication: Publication | None = None
        self._publishing_s, self._began = 0.0, time.monotonic()
        self._published = self._unpublished = -1  # updates at the last publication, and at the one before
        self._report: StepReport | None = None
        self._health: tuple[int | None, float, float] = None, math.nan, math.nan  # not measured yet
        self._frames, self._since, self._rates = 0, time.monotonic(), (0.0, 0.0)
        self._stepped, self._lull_s = self._since, _LULL_S

    def __enter__(self) -> Self:
        logs = self._store.path / "logs"
        self._life = self._open.enter_context(Life(self._store, "train", self._settings.ops))
        self._log = self._open.enter_context(MetricsLog(logs, self._settings.ops.log_mb))
        settings = as_toml(self._settings).encode()
        self._attempts.attempt("writing settings.toml", lambda: atomic_write_bytes(logs / "settings.toml", settings))
        self._extender = Extender(self._store, str(self._learner.device), self._settings.publish.batch)
        self._open.callback(self._extender.close)
        latest = self._store.catalog.latest_snapshot()
        if latest is not None and latest.step == self._learner.clock:
            self._published = self._learner.updates
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        if self._publication is not None:
            self._publication.__exit__(kind, e, tb)
        self._open.__exit__(kind, e, tb)

    @property
    def snapshot(self) -> str | None:
        """Id of the newest snapshot."""
        row = self._store.catalog.latest_snapshot()
        return None if row is None else row.id

    @property
    def sick(self) -> str | None:
        """The guard's reason when the good state must come back."""
        return self._guard.wanted

    def after_step(self, report: StepReport, frames: int, committed: int) -> None:
        """Take note of a step over so many frames."""
        self._report, self._stepped = report, time.monotonic()
        self._frames += frames
        if report.ok and self._guard.due(self._learner.clock):
            self._look()
        if self._learner.clock % self._settings.train.log_steps == 0:
            if report.ok:  # features that are not numbers have no spread and no rank
                self._measure(report)
            self._log.write(self._progress("training", committed))

    def rolled_back(self) -> None:
        """An old state is back; what is being published may go on, it was sound."""
        self._guard.restored()
        self._published = min(self._published, self._learner.updates)

    def tend(self, state: str, committed: int) -> None:
        """Do what is due. `state` as in `TrainProgress`; while waiting, publishing need not share the machine.

        Raises:
            StoreError: the store was moved, or its drive is away.
        """
        if self._checkpoint.due():
            if self._unseen() or self._standing() != self._saved:
                self.try_checkpoint()
            self._checkpoint.reset()
        if self._extend.due():
            require_in_place(self._store.path, self._store.header)
            self._attempts.attempt(_EXTENDING, lambda: self._extender.run(_EXTEND_FRAMES))
            self._extend.reset()
        self._tend_publication(waiting=state == "waiting")
        self._show_life("publishing" if self._publication else state, committed)

    def try_checkpoint(self) -> None:
        """A checkpoint, if there is room for it; else the last one counts until the next is due."""
        self._checkpoint.reset()
        self._attempts.attempt("a checkpoint", self.checkpoint)

    def checkpoint(self) -> None:
        """Save everything that the next step depends on; a state behind which all went well is pinned."""
        require_in_place(self._store.path, self._store.header)
        if self._unseen():
            self._look()
        arrays, numbers = self._learner.state_dict()
        meta = meta_of(
            numbers,
            self._settings,
            feed=self.feed.state_dict(),
            idle_steps=self.idle_steps,
            owed_steps=self.owed_steps,
            recipe=self.recipe,
            rescue=self._rescue.state_dict(),
            guard=self._guard.state_dict(),
        )
        good = self._rescue.good and not self._guard.holding and not self._unseen()
        keep = self._settings.train.checkpoints_kept
        save_checkpoint(self._store.path, self._learner.clock, arrays, meta, keep=keep, pin=good)
        self._saved = self._standing()
        self._rescue.saved(pinned=good)
        self._checkpoint.reset()
        log.info(
            "checkpoint at step %d%s", self._learner.clock, "" if good else " (not pinned: it is not known to be good)"
        )

    def _standing(self) -> tuple[object, ...]:
        """Differs from that of the last checkpoint where there is something to save: not in a trainer that sleeps."""
        learner = self._learner
        counts = learner.clock, len(learner.buffer), self.idle_steps, self.owed_steps
        judged = self._guard.state_dict(), self._rescue.state_dict(), self._rescue.good
        return *counts, self.feed.state_dict(), *judged

    def finish(self, committed: int, stop: Callable[[], bool]) -> None:
        """The last checkpoint and, unless an end was asked for, a publication.

        Raises:
            CldError, OSError: one of them failed, and nobody is there to try it again.
        """
        self.checkpoint()
        publish = not stop()
        if publish and (self._publication is not None or self._learner.updates > max(self._published, 0)):
            if self._publication is None:
                self._begin_publication()
            while self._publication is not None and not stop():
                self._advance_publication()
                self._show_life("publishing", committed)
            if self._failed and (error := self._attempts.failure("publishing")) is not None:
                raise error
        elif publish:
            self._attempts.attempt(_EXTENDING, self._extender.run)
        self._life.beat("done", lambda: self._numbers("done", committed), now=True)
        if self._on_progress is not None:
            self._on_progress(self._progress("done", committed))

    def _show_life(self, state: str, committed: int) -> None:
        if self._on_progress is not None and self._show.due():
            self._show.reset()
            self._on_progress(self._progress(state, committed))
        self._life.beat(state, lambda: self._numbers(state, committed))

    def _tend_publication(self, *, waiting: bool) -> None:
        """Begin what is due; go on within the share of time that publishing may take."""
        learner = self._learner
        if self._publication is None:
            news = learner.updates - max(self._published, 0)
            asleep = waiting and (self._published < 0 or news >= max(1, self._settings.train.idle_steps))
            due = self._retry.due() if self._failed else self._publish.due() or asleep
            if news > 0 and due and self._share_left():
                self._begin_publication()
        elif waiting or self._share_left():
            self._advance_publication()

    def _share_left(self) -> bool:
        elapsed = time.monotonic() - self._began
        return self._publishing_s <= self._settings.train.publish_share * elapsed

    def _begin_publication(self) -> None:
        self._failed = not self._attempts.attempt("publishing", self._prepare_publication, part=True)
        if self._failed:
            self._publish.reset()
            self._retry.reset()

    def _prepare_publication(self) -> None:
        learner, began, before = self._learner, time.monotonic(), self._published
        encoder, weights = learner.publishable(buffer_batches(self._store, learner, self._cache))
        if self._settings.guard.enabled:
            self._judge(encoder, weights)
            if self._guard.holding:
                self._publish.reset()
                self._published = learner.updates  # dealt with, until there is something new
                log.warning("not publishing now: guard: %s", self._guard.why)
                return
        work = Publication(
            self._store,
            encoder,
            weights,
            step=learner.clock,
            settings=self._settings.publish,
            device=str(learner.device),
            info={
                "updates": learner.updates,
                "cbp": learner.cbp,
                "fed": self.feed.fed,
                "feature_std": finite(self._health[1]),
                "effective_rank": finite(self._health[2]),
                "best": self._guard.last.standing if self._settings.guard.enabled else None,
            },
        )
        self._publish.reset()
        self._publication, self._unpublished = work.__enter__(), before
        self._published = learner.updates
        self._publishing_s += time.monotonic() - began
        log.info("publishing the encoder of step %d: %d frames to embed", learner.clock, work.rows)

    def _advance_publication(self) -> None:
        work, began = self._publication, time.monotonic()
        assert work is not None

        def advance() -> None:
            if not work.advance():
                log.info("published %s", work.finish().id)
                self._attempts.over("publishing")
                self._publication = None

        if not self._attempts.attempt("publishing", advance, part=True):
            work.abandon()
            self._publication, self._failed, self._published = None, True, self._unpublished
            self._retry.reset()
        if self._publication is None:
            work.__exit__(None, None, None)
        self._publishing_s += time.monotonic() - began

    def _unseen(self) -> bool:
        """Whether the guard has still to look at the present state."""
        return self._settings.guard.enabled and not self._guard.looked(self._learner.clock)

    def _look(self) -> None:
        """The guard judges what would be published now; where memory does not hold that, it says nothing."""
        learner = self._learner
        batches = buffer_batches(self._store, learner, self._cache)
        self._attempts.attempt("the guard's look", lambda: self._judge(*learner.publishable(batches)))

    def _judge(self, encoder: EncoderSettings, weights: Mapping[str, NDArray[Any]]) -> None:
        learner = self._learner
        checkup = check_encoder(
            self._store,
            encoder,
            weights,
            str(learner.device),
            updates=learner.updates,
            grown_up_at=grown_up(self._settings),
            loss=loss_ratio(learner, self._report),
        )
        self._guard.judge(checkup, learner.clock)

    def _measure(self, report: StepReport) -> None:
        s, now = self._settings.loss, time.monotonic()
        groups = 0
        if s.cld_weight > 0:
            labels, _ = self._learner.cross_level.grouping(report.group_features)
            groups = int(torch.unique(labels).numel())
        self._health = groups, feature_std(report.features), effective_rank(report.features)
        elapsed = max(now - self._since, 1e-6)
        self._rates = self._frames / elapsed, min(1.0, self.wait_s / elapsed)
        self._lull_s = max(_LULL_S, 3 * elapsed / self._settings.train.log_steps)
        self._frames, self._since, self.wait_s = 0, now, 0.0

    def _progress(self, state: str, committed: int) -> TrainProgress:
        learner, report = self._learner, self._report
        rates = self._rates if time.monotonic() - self._stepped < self._lull_s else (0.0, 0.0)
        return TrainProgress(
            state=state,
            step=learner.clock,
            updates=learner.updates,
            loss=report.loss if report else math.nan,
            instance=report.instance if report else math.nan,
            cld=report.cld if report else math.nan,
            frames_s=rates[0],
            data_wait=rates[1],
            lag=self._lag(committed),
            thinned=self.feed.thinned,
            fed=self.feed.fed,
            committed=committed,
            buffered=len(learner.buffer),
            capacity=learner.buffer.capacity,
            groups=self._health[0],
            feature_std=self._health[1],
            effective_rank=self._health[2],
            lr=report.lr if report else math.nan,
            frames_at_once=learner.pieces.frames or self._settings.optim.batch,
            cbp=learner.cbp,
            rescues=self._rescue.rescues,
            guard=self._guard.line(),
            guard_warnings=self._guard.warnings,
            guard_holds=self._guard.holds,
            guard_rollbacks=self._guard.rollbacks,
            guard_kept=self._guard.last.kept.least,
            guard_entropy=self._guard.last.kept.entropy,
            guard_agreement=self._guard.last.agreement,
            guard_loss_ratio=self._guard.last.loss_ratio,
        )

    def _lag(self, committed: int) -> int:
        return self.feed.lag(committed) and self._store.catalog.live_from(self.feed.cursor)

    def _numbers(self, state: str, committed: int) -> Numbers:
        """What a beat says; `fed_to` is the first id that is not fed yet."""
        numbers = {name: finite(value) for name, value in asdict(self._progress(state, committed)).items()}
        return numbers | {"fed_to": self.feed.cursor}
