"""Publish the newest checkpoint by hand, unless something better is published already."""

from pathlib import Path

from cld_stream.errors import HeldError
from cld_stream.learn.learner import Learner
from cld_stream.pipelines.checkup import check_encoder
from cld_stream.pipelines.guard import Guard, Level, assess
from cld_stream.pipelines.measures import grown_up
from cld_stream.pipelines.publish import publish
from cld_stream.pipelines.restore import buffer_batches, restore_learner
from cld_stream.storage.checkpoints import Checkpoint
from cld_stream.storage.schema import SnapshotRow
from cld_stream.storage.store import Store

__all__ = ["publish_checkpoint"]


def publish_checkpoint(store_path: Path, device: str = "cpu", *, force: bool = False) -> SnapshotRow:
    """Publish the encoder of the newest checkpoint by hand.

    Args:
        force: also when it is untrained, older than the latest snapshot, or held by the guard.

    Raises:
        StoreNotFoundError: there is no store, or nothing was trained yet.
        LockHeldError: another process publishes.
        HeldError: it is untrained, older than the latest snapshot, or held by the guard.
    """
    with Store.open(store_path) as store:
        learner, checkpoint = restore_learner(store_path, device)
        if not force:
            _require_news(store, learner, checkpoint)
        encoder, weights = learner.publishable(buffer_batches(store, learner))
        guard, best = learner.settings.guard, None
        if guard.enabled and not force:
            checkup = check_encoder(
                store, encoder, weights, device, updates=learner.updates, grown_up_at=grown_up(learner.settings)
            )
            checkup = Guard(guard, checkpoint.meta.get("guard")).compare(checkup)
            level, why = assess(checkup, guard)
            if level >= Level.HOLD:
                raise HeldError(
                    f"{store_path}: the encoder of step {checkpoint.step} is held by the guard: {why}. The last "
                    "snapshot stays current. `cld-stream snapshot --force` publishes it all the same."
                )
            best = checkup.standing
        settings, info = learner.settings.publish, {"updates": learner.updates, "best": best}
        made = publish(store, encoder, weights, step=checkpoint.step, settings=settings, device=device, info=info)
        assert made is not None
        return made.row()


def _require_news(store: Store, learner: Learner, checkpoint: Checkpoint) -> None:
    """A running trainer publishes more often than it saves, so that its newest checkpoint may be behind."""
    latest = store.catalog.latest_snapshot()
    if learner.updates == 0:
        why = "has no training step behind it"
    elif latest is not None and checkpoint.step < latest.step:
        why = f"is older than the latest snapshot, {latest.id} of step {latest.step}"
    else:
        return
    raise HeldError(
        f"{store.path}: nothing was published: the newest checkpoint, of step {checkpoint.step}, {why}. Wait for the "
        "next one that `cld-stream train` saves, or publish it all the same: `cld-stream snapshot --force`."
    )
