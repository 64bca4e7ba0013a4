"""The daemon: feed what ingest commits, learn, publish, and never lose its place."""

import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cld_stream.config import GuardSettings, Settings, load_settings
from cld_stream.errors import CorruptError, DeviceFullError
from cld_stream.learn.buffer import Ids
from cld_stream.learn.feed import MOST_REMEMBERED, Feed, shown
from cld_stream.learn.learner import Learner, StepPlan
from cld_stream.learn.memory import keep_freed_memory
from cld_stream.learn.pieces import foreseen_lack
from cld_stream.pipelines.guard import Guard
from cld_stream.pipelines.keeper import Keeper
from cld_stream.pipelines.metrics import TrainProgress, TrainReport, log
from cld_stream.pipelines.pixels import FreshBatch, FreshFrames, GoneError, PixelCache
from cld_stream.pipelines.rescue import Rescue
from cld_stream.pipelines.restore import check_settings, fresh_learner, learner_of, saved_settings, settings_of_state
from cld_stream.storage.checkpoints import list_checkpoints, load_checkpoint
from cld_stream.storage.frames import FrameReader
from cld_stream.storage.store import Store

__all__ = ["FEWEST", "STREAM", "TrainProgress", "TrainReport", "train", "train_settings"]

FEWEST = 2
"""Frames that a step needs: one has nothing to differ from."""

STREAM = "stream"
"""The recipe of who names none."""

_HOLD_S = 2.0  # an incomplete batch of fresh frames waits this long for more


def train_settings(
    device: str,
    config: Path | None = None,
    overrides: Iterable[str] = (),
    *,
    recipe: str | None = None,
    store_path: Path | None = None,
) -> Settings:
    """A recipe, without a name `stream` in the size of the device, under the user's own settings.

    Args:
        store_path: where it was trained before without a name, what its state depends on stays as it is, whatever
            the recipe says by now.
    """
    size = "gpu" if device.startswith("cuda") else "cpu"
    known = settings_of_state(store_path, STREAM) if store_path and not recipe else {}
    if known and known["encoder"]["head"] != load_settings(recipe=STREAM).encoder.head:
        lines = GuardSettings()  # those of the recipe are for its head
        known["guard"] = {"warn": lines.warn, "hold": lines.hold, "rollback": lines.rollback}
    return load_settings(config, overrides, recipe=recipe or (STREAM, size), known=known)


def train(
    store_path: Path,
    settings: Settings,
    *,
    device: str = "cpu",
    recipe: str = "",
    steps: int | None = None,
    until_caught_up: bool = False,
    on_progress: Callable[[TrainProgress], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> TrainReport:
    """Train on a store, following what is added to it; goes on from the newest checkpoint by itself.

    Args:
        settings: those that the saved state depends on must be as they were.
        device: torch's name of it.
        recipe: what lies under the settings; `train_settings` asks for it at the next start.
        steps: end after so many steps; once every frame is fed, the rest replays the buffer.
        until_caught_up: end where the daemon would fall asleep: every frame fed, the idle steps spent.
        on_progress: called a few times a second.
        stop: asked after every step and while waiting; once true: checkpoint and return, without publishing.

    Raises:
        StoreNotFoundError: there is no store.
        LockHeldError: another process trains on it.
        UsageError: a setting that the state depends on has changed.
        GuardStopError: training diverged, again after a rescue.
        DeviceFullError: memory does not hold a step, even in small pieces; the state is in a checkpoint.
    """
    if settings.train.threads:
        torch.set_num_threads(settings.train.threads)
    keep_freed_memory()
    began = time.monotonic()
    with foreseen_lack(f"training on {device}"), ExitStack() as opened:
        store = opened.enter_context(Store.open(store_path))
        opened.enter_context(store.trainer_lock())
        reader = opened.enter_context(store.reader(on_damage=_passed_over))
        start = _begin(store_path, settings, device)
        learner = start.learner
        buffer = learner.settings.buffer
        cache = PixelCache(store, reader, buffer.capacity, buffer.cache_mb, learner.device)
        keeper = opened.enter_context(
            Keeper(store, learner.settings, learner, cache, start.rescue, start.guard, start.feed, on_progress)
        )
        keeper.idle_steps, keeper.owed_steps, keeper.recipe = start.idle_steps, start.owed_steps, recipe
        if start.new:
            keeper.checkpoint()  # there is always a good state to go back to
        trainer = _Trainer(store, reader, learner, cache, keeper, start.rescue)
        opened.callback(trainer.close)
        done = trainer.run(steps, until_caught_up=until_caught_up, stop=stop)
        keeper.finish(reader.refresh(), stop)
        feed = keeper.feed
        return TrainReport(
            steps=done,
            step=learner.clock,
            fed=feed.fed,
            thinned=feed.thinned,
            lag=store.catalog.live_from(feed.cursor),
            snapshot=keeper.snapshot,
            seconds=time.monotonic() - began,
        )


def _passed_over(error: CorruptError) -> None:
    log.error("damaged frames are passed over: %s", error)


@dataclass(frozen=True)
class _Start:
    learner: Learner
    feed: Feed
    rescue: Rescue
    guard: Guard
    idle_steps: int
    owed_steps: int
    new: bool


def _begin(store_path: Path, settings: Settings, device: str) -> _Start:
    """The newest checkpoint's state, or a fresh one where there is none."""
    feed = Feed(max_lag=settings.train.max_lag)
    if not list_checkpoints(store_path):
        learner = fresh_learner(settings, device)
        return _Start(learner, feed, Rescue(store_path, settings.train), Guard(settings.guard), 0, 0, new=True)
    checkpoint = load_checkpoint(store_path)
    if checkpoint.warning:
        log.warning("%s", checkpoint.warning)
    settings = check_settings(saved_settings(checkpoint), settings, store_path)
    feed.load_state_dict(checkpoint.meta["feed"])
    rescue = Rescue(store_path, settings.train, checkpoint.meta["rescue"])
    guard = Guard(settings.guard, checkpoint.meta.get("guard"))
    learner = learner_of(checkpoint, settings, device)
    idle, owed = checkpoint.meta["idle_steps"], checkpoint.meta.get("owed_steps", 0)
    return _Start(learner, feed, rescue, guard, idle, owed, new=False)


class _Trainer:
    """The loop. Where the feed stands is in the keeper: what was read ahead but not used does not count."""

    def __init__(
        self, store: Store, reader: FrameReader, learner: Learner, cache: PixelCache, keeper: Keeper, rescue: Rescue
    ) -> None:
        self._store, self._reader = store, reader
        self._learner, self._cache, self._keeper, self._rescue = learner, cache, keeper, rescue
        self._settings = learner.settings.train
        poll_s = self._settings.poll_s
        self._fresh = FreshFrames(
            store, reader, keeper.feed, learner.settings.optim.fresh, max(_HOLD_S, poll_s), poll_s
        )
        self._steps, self._gone, self._told_too_few = 0, 0, False

    def close(self) -> None:
        """Stop reading ahead."""
        self._fresh.close()

    def run(self, limit: int | None, *, until_caught_up: bool, stop: Callable[[], bool]) -> int:
        """Steps until the limit, the end, or the word to stop; returns how many."""
        try:
            self._run(limit, until_caught_up=until_caught_up, stop=stop)
        except DeviceFullError:
            self._committed()
            self._keeper.try_checkpoint()
            raise
        self._committed()  # what was forgotten meanwhile must not be in the last checkpoint
        return self._steps

    def _run(self, limit: int | None, *, until_caught_up: bool, stop: Callable[[], bool]) -> None:
        while not stop() and (limit is None or self._steps < limit):
            self._recover()
            committed = self._committed()
            if self._keeper.owed_steps:
                self._keeper.owed_steps -= 1
                self._step(None, committed)
                self._keeper.tend("training", committed)
                continue
            caught_up = self._keeper.feed.lag(committed) == 0
            by_number = limit is not None and not until_caught_up  # steps asked for
            budget = by_number or self._keeper.idle_steps > 0
            may_idle = caught_up and budget and len(self._learner.buffer) >= FEWEST
            if until_caught_up and caught_up and not may_idle:
                break
            if caught_up and len(self._learner.buffer) < FEWEST:
                self._tell_too_few()
            batch = self._next(wait_s=0 if may_idle else self._settings.poll_s, waiting_costs=not caught_up)
            if batch is not None:
                self._feed(batch, committed)
            elif may_idle:
                stepped = self._step(None, committed)
                self._keeper.idle_steps = max(0, self._keeper.idle_steps - 1)
                if not stepped and by_number:
                    log.warning("ends early: every buffered frame was replayed buffer.max_replays times")
                    break
            state = "waiting" if batch is None and not may_idle else "training" if batch is not None else "idle"
            self._keeper.tend(state, committed)

    def _tell_too_few(self) -> None:
        """Say once why nothing happens."""
        if not self._told_too_few:
            self._told_too_few = True
            log.warning(
                "%s: waiting for more frames; a step needs at least %d, and %d are there. "
                "`cld-stream ingest` adds some.",
                self._store.path, FEWEST, len(self._learner.buffer),
            )  # fmt: skip

    def _next(self, *, wait_s: float, waiting_costs: bool) -> FreshBatch | None:
        began = time.monotonic()
        batch = self._fresh.take(wait_s)
        if waiting_costs:
            self._keeper.wait_s += time.monotonic() - began
        return batch and self._still_there(batch)

    def _still_there(self, batch: FreshBatch) -> FreshBatch:
        """Without the frames that left the store after they were read ahead."""
        return batch.part(np.isin(batch.ids, self._store.catalog.rows(batch.ids).ids))

    def _feed(self, batch: FreshBatch, committed: int) -> None:
        """Fresh frames: a step, others owed to them, or only a place in the buffer while there are too few."""
        learner, keeper = self._learner, self._keeper
        buffered = len(learner.buffer) + len(batch.ids)
        enough = buffered >= min(self._settings.min_frames, learner.buffer.capacity)
        may_step = buffered >= FEWEST and (enough or batch.feed.lag(committed) == 0)
        chosen = shown(len(batch.ids), learner.settings.optim.shown)
        stepped = may_step and self._step(batch.part(chosen), committed)
        keeper.feed = batch.feed  # whatever happens from here on, they are used
        self._remember(batch.part(~chosen) if stepped else batch)
        keeper.idle_steps = min(self._settings.idle_steps, keeper.idle_steps + len(batch.ids))
        keeper.owed_steps = self._settings.updates_per_step - 1 if stepped else 0

    def _remember(self, batch: FreshBatch) -> None:
        """A place in the buffer, without a step."""
        for part in batch.parts(MOST_REMEMBERED):
            aspect = torch.from_numpy(part.aspect)
            slots = self._learner.remember(part.ids, part.origin, part.pixels, aspect).slots
            self._cache.put(part.ids, slots, part.pixels, part.aspect)

    def _step(self, batch: FreshBatch | None, committed: int) -> bool:
        """One step, with fresh frames or without; False = there are too few frames for one."""
        learner, began = self._learner, time.monotonic()
        plan, pixels, aspect = self._gather(batch)
        self._keeper.wait_s += time.monotonic() - began
        if len(plan.ids) < FEWEST:
            return False
        report = learner.step(plan, pixels, aspect)
        if report.ok and batch is not None:
            self._cache.put(batch.ids, plan.slots[: plan.fresh], batch.pixels, batch.aspect)
        self._steps += 1
        self._keeper.after_step(report, len(plan.ids), committed)
        self._rescue.after_step(learner, report, plan.ids)
        return True

    def _recover(self) -> None:
        """Back to the good state, when guard or rescue want it.

        A checkpoint says so first, with the place in the stream: killed from here on, the next start does it.

        Raises:
            GuardStopError: it did not help the last time.
        """
        why = self._keeper.sick or self._rescue.wanted
        if why is None:
            return
        self._keeper.try_checkpoint()
        error = self._rescue.back(self._learner, why)
        self._keeper.rolled_back()
        self._forget_gone()
        self._keeper.try_checkpoint()
        if error is not None:
            raise error

    def _gather(self, batch: FreshBatch | None) -> tuple[StepPlan, torch.Tensor, torch.Tensor]:
        """A plan and its pixels. Frames that were forgotten meanwhile leave, and the plan is made again."""
        nothing = torch.empty((0, *[self._store.header.size] * 2, 3), dtype=torch.uint8)
        while True:
            plan = self._learner.plan() if batch is None else self._learner.plan(batch.ids, batch.origin)
            try:
                if batch is None:
                    pixels = self._cache.batch(plan.wanted, plan.wanted_slots, nothing, np.empty(0, np.float32))
                else:
                    pixels = self._cache.batch(plan.wanted, plan.wanted_slots, batch.pixels, batch.aspect)
                return plan, *pixels
            except GoneError as gone:
                self._drop(gone.ids, "gone or damaged")

    def _committed(self) -> int:
        """Ids handed out. Notices when frames were forgotten."""
        committed = self._reader.refresh()
        gone = committed - self._store.catalog.frame_count()
        if gone != self._gone:
            self._gone = gone
            self._forget_gone()
        return committed

    def _forget_gone(self) -> None:
        """Drop buffered frames that are not in the store any more."""
        ids = self._learner.buffer.ids
        held = ids[ids >= 0]
        self._drop(np.setdiff1d(held, self._store.catalog.rows(held).ids), "gone")

    def _drop(self, ids: Ids, why: str) -> None:
        if len(ids):
            self._cache.drop(self._learner.forget(ids))
            log.info("%d frames left the buffer: their pictures are %s", len(ids), why)
