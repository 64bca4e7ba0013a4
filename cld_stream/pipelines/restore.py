"""A learner to and from a checkpoint, and the pictures that its averaged weights are tuned on."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from cld_stream.config import Settings, as_dict
from cld_stream.errors import CorruptError
from cld_stream.learn.learner import Learner
from cld_stream.storage.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from cld_stream.storage.store import Store

__all__ = ["buffer_batches", "restore_learner", "save_learner"]


def save_learner(store_path: Path, learner: Learner, meta: Mapping[str, Any], *, keep: int, pin: bool = False) -> Path:
    """Write a checkpoint of a learner; `meta` is what else its owner needs (the feed's cursor, ...)."""
    arrays, numbers = learner.state_dict()
    header = {**meta, "settings": as_dict(learner.settings), "learner": numbers}
    return save_checkpoint(store_path, learner.clock, arrays, header, keep=keep, pin=pin)


def restore_learner(
    store_path: Path, device: str = "cpu", *, step: int | None = None, settings: Settings | None = None
) -> tuple[Learner, Checkpoint]:
    """The learner of the newest checkpoint that is whole (or of one step).

    Args:
        settings: in place of those it was saved with; the encoder's must be the same.

    Raises:
        StoreNotFoundError: there is no checkpoint.
        CorruptError: none is whole, or it is not a learner's.
    """
    checkpoint = load_checkpoint(store_path, step)
    try:
        saved = TypeAdapter(Settings).validate_python(checkpoint.meta["settings"])
        learner = Learner(settings or saved, device)
        learner.load_state_dict(checkpoint.tensors, checkpoint.meta["learner"])
    except (KeyError, ValueError, RuntimeError, ValidationError) as e:
        reason = str(e).partition("\n")[0]
        raise CorruptError(
            f"{store_path}: the checkpoint of step {checkpoint.step} does not fit this release or these settings "
            f"({reason}). Train with the settings it was made with."
        ) from None
    return learner, checkpoint


def buffer_batches(store: Store, learner: Learner) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches (pixels, aspect) of buffered frames, read from the store, on the learner's device."""
    settings = learner.settings
    slots = learner.draw(settings.publish.bn_batches * settings.optim.batch)
    ids = learner.buffer.ids[slots]
    with store.reader() as reader:
        for start in range(0, len(ids), settings.optim.batch):
            rows = store.catalog.rows(ids[start : start + settings.optim.batch])
            pixels, present = reader.read(rows.ids)
            if present.sum() > 1:
                shapes = torch.from_numpy(rows.aspect[present])
                yield torch.from_numpy(pixels[present]).to(learner.device), shapes.to(learner.device)
