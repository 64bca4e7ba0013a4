"""A learner from settings or from a checkpoint, and a checkpoint from a learner."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cld_stream.config import Settings, as_dict
from cld_stream.errors import CorruptError, UsageError
from cld_stream.learn.learner import Learner
from cld_stream.pipelines.pixels import GoneError, PixelCache
from cld_stream.storage.checkpoints import Checkpoint, load_checkpoint, newest_meta
from cld_stream.storage.store import Store

__all__ = [
    "buffer_batches",
    "check_settings",
    "fresh_learner",
    "learner_of",
    "restore_learner",
    "saved_settings",
    "settings_of_state",
]

_FIXED = (
    "encoder.backbone", "encoder.width", "encoder.norm", "encoder.activation", "encoder.crop",
    "encoder.head", "encoder.feature_dim",
    "loss.branch", "loss.negatives", "loss.queue", "loss.cross_level",
    "loss.bank_groups", "loss.align", "buffer.capacity", "buffer.groups",
)  # fmt: skip


def settings_of_state(store_path: Path, recipe: str) -> dict[str, dict[str, Any]]:
    """By section and key, what the newest checkpoint's state depends on; {} where nothing was trained by this recipe.

    Checkpoints of older versions do not name theirs.
    """
    meta, found = newest_meta(store_path), dict[str, dict[str, Any]]()
    saved = meta.get("settings", {}) if meta.get("recipe", recipe) == recipe else {}
    for section, key in (name.split(".") for name in _FIXED):
        if key in saved.get(section, {}):
            found.setdefault(section, {})[key] = saved[section][key]
    return found


def fresh_learner(settings: Settings, device: str) -> Learner:
    """A learner at its start. `encoder.init` may name a .safetensors file.

    Raises:
        UsageError: the file cannot be read, or does not fit the encoder.
    """
    init, weights = settings.encoder.init, None
    if init.endswith(".safetensors"):
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            weights = load_file(init)
        except (OSError, SafetensorError) as e:
            raise UsageError(f"{init}: cannot read these weights: {e}. Check --init.") from None
    return Learner(settings, device, weights)


def learner_of(checkpoint: Checkpoint, settings: Settings, device: str) -> Learner:
    """The learner that a checkpoint holds, under settings that fit it.

    Raises:
        CorruptError: it does not hold what it should.
    """
    prefix = "encoder."
    weights = {
        name.removeprefix(prefix): torch.from_numpy(np.array(value))
        for name, value in checkpoint.tensors.items()
        if name.startswith(prefix)
    }
    try:
        learner = Learner(settings, device, weights)
        learner.load_state_dict(checkpoint.tensors, checkpoint.meta["learner"])
    except (KeyError, ValueError, RuntimeError) as e:
        raise CorruptError(f"the checkpoint of step {checkpoint.step} does not hold a learner: {e}.") from None
    return learner


def restore_learner(store_path: Path, device: str = "cpu", step: int | None = None) -> tuple[Learner, Checkpoint]:
    """The learner of a checkpoint, without `step` of the newest one, with the settings it was trained with.

    Raises:
        StoreNotFoundError: there is no checkpoint (of this step).
        CorruptError: it is not whole, or none is.
    """
    checkpoint = load_checkpoint(store_path, step)
    return learner_of(checkpoint, saved_settings(checkpoint), device), checkpoint


def saved_settings(checkpoint: Checkpoint) -> Settings:
    """The settings that a checkpoint was trained with."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(Settings).validate_python(checkpoint.meta["settings"])
    except (KeyError, ValidationError) as e:
        raise CorruptError(f"the checkpoint of step {checkpoint.step} has no readable settings: {e}.") from None


def check_settings(saved: Settings, asked: Settings, store_path: Path) -> Settings:
    """The settings to go on with: those asked for, with `encoder.init` as it was.

    Raises:
        UsageError: one that the saved state depends on has changed; names it.
    """
    old, new = as_dict(saved), as_dict(asked)
    for name in _FIXED:
        section, key = name.split(".")
        before, now = old[section][key], new[section][key]
        if before != now:
            raise UsageError(
                f"{store_path}: it was trained with {name} = {before}, now {now} is asked for: the state does not fit. "
                f"Go on with --set {name}={before} (all of its settings: --config {store_path}/logs/settings.toml), "
                "or train on another store."
            )
    return replace(asked, encoder=replace(asked.encoder, init=saved.encoder.init))


def buffer_batches(store: Store, learner: Learner, cache: PixelCache | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches (pixels, aspect) of buffered frames, for batch-norm statistics; the same ones for one state.

    Args:
        cache: where pixels are kept; without one they are read from the store.
    """
    publish = learner.settings.publish
    slots = learner.draw(publish.batch * publish.bn_batches)
    with store.reader(on_damage=lambda _: None) as reader:  # whoever embeds or trains says so
        cache = cache or PixelCache(store, reader, learner.buffer.capacity, 0, learner.device)
        for start in range(0, len(slots), publish.batch):
            part = slots[start : start + publish.batch]
            try:
                batch = cache.get(learner.buffer.ids[part], part)
            except GoneError:  # forgotten a moment ago: the others will do
                continue
            if len(part) > 1:
                yield batch


def meta_of(learner_numbers: Mapping[str, Any], settings: Settings, **more: Any) -> dict[str, Any]:
    """What a checkpoint holds beside the arrays."""
    return {"learner": dict(learner_numbers), "settings": as_dict(settings), **more}
