"""Learner states on disk (`SPEC.md` section 9): numbers and JSON, nothing that can run code on load."""

import hashlib
import json
import re
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cld_stream.errors import CldError, CorruptError, FormatTooNewError, StoreNotFoundError
from cld_stream.storage.durable import (
    atomic_write_bytes,
    fsync_dir,
    fsync_tree,
    json_checksum,
    make_dir,
    publish_dir,
    remove_dir,
    temporary,
    whole,
)

__all__ = [
    "Checkpoint",
    "buffered_ids",
    "checkpoint_damage",
    "list_checkpoints",
    "load_checkpoint",
    "newest_meta",
    "pin_checkpoint",
    "pinned_checkpoint",
    "save_checkpoint",
    "seen_below",
]

_FORMAT, _VERSION = "cld-stream.checkpoint", 1
_LOOKS = 10
_STATE, _META, _PIN = "state.safetensors", "meta.json", "pinned"


@dataclass(frozen=True)
class Checkpoint:
    """A learner state.

    Attributes:
        step: when it was saved.
        tensors, meta: what `save_checkpoint` was given.
        warning: why this is not the newest one, or "".
    """

    step: int
    tensors: dict[str, NDArray[Any]]
    meta: dict[str, Any]
    warning: str = ""


def save_checkpoint(
    store_path: Path,
    step: int,
    tensors: Mapping[str, NDArray[Any]],
    meta: Mapping[str, Any],
    *,
    keep: int = 3,
    pin: bool = False,
) -> Path:
    """Write `checkpoints/<step>/`, then remove all but the newest `keep` and the pinned one.

    A process killed at any instant leaves the state before or after; a second save of one step
    replaces the first.

    Args:
        meta: anything that JSON holds.
        keep: >= 1.
        pin: make this the pinned checkpoint, in place of the one that was.

    Raises:
        StoreFullError: there is no room for it; the others are as they were.
    """
    from safetensors.numpy import save

    path = _folder(store_path) / f"{step:012d}"
    aside = temporary(path)
    make_dir(path.parent)
    shutil.rmtree(aside, ignore_errors=True)
    state = save({name: np.array(value, order="C") for name, value in tensors.items()})
    header = {
        "format": _FORMAT,
        "version": _VERSION,
        "step": step,
        "created_utc": time.time(),
        "state": {"bytes": len(state), "sha256": hashlib.sha256(state).hexdigest()},
        "meta_sha256": json_checksum(meta),
        "meta": dict(meta),
    }
    with whole(aside):
        aside.mkdir()
        (aside / _STATE).write_bytes(state)
        (aside / _META).write_text(json.dumps(header, indent=1))
        fsync_tree(aside)
        if path.exists():  # until the new one has the name, the old one is found under its second name
            old = path.with_name(f"{path.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
        publish_dir(aside, path)
    if pin:
        pin_checkpoint(store_path, step)
    _prune(store_path, keep)
    return path


def load_checkpoint(store_path: Path, step: int | None = None) -> Checkpoint:
    """Read a checkpoint; without `step` the newest one that is whole.

    Raises:
        StoreNotFoundError: there is none (or none of this step).
        CorruptError: the one asked for, or every one, is damaged.
        FormatTooNewError: written by a newer release.
    """
    known = _directories(store_path)
    found = {s: path for s, path in known.items() if step in (None, s)}
    if not found:
        which = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        there = f"; there are {', '.join(map(str, sorted(known)))}" if known else ""
        raise StoreNotFoundError(f"{store_path}: {which}{there}. `cld-stream train` makes them.")
    damage: list[str] = []
    for number in sorted(found, reverse=True):
        try:
            tensors, meta = _read(found[number])
        except CorruptError as e:
            damage.append(str(e))
            continue
        warning = f"{' '.join(damage)} Going on from step {number}." if damage else ""
        return Checkpoint(number, tensors, meta, warning)
    raise CorruptError(" ".join([*damage, *([none_whole(store_path)] if step is None else [])]))


def checkpoint_damage(store_path: Path, step: int) -> CldError | None:
    """What is wrong with a checkpoint; one that is removed or saved anew while it is read is not damaged by that."""
    place, damage = None, None
    for _ in range(_LOOKS):
        now = _place(store_path, step)
        if now is None:
            return None
        if now == place:
            return damage
        place = now
        try:
            _read(now[0])
        except CldError as e:
            damage = e
        else:
            return None
    return None


def none_whole(store_path: Path) -> str:
    """What to do when every checkpoint is damaged."""
    folder = _folder(store_path)
    return f"None is whole. To train anew on the same frames, move them away: mv {folder} {folder}.damaged"


def list_checkpoints(store_path: Path) -> list[int]:
    """Steps of the checkpoints, oldest first; damaged ones are among them."""
    return sorted(_directories(store_path))


def buffered_ids(store_path: Path) -> NDArray[np.int64]:
    """Ids of the frames in the replay buffer of the newest readable checkpoint, ascending; none without one.

    Checksums are not looked at: this is asked for often, and a wrong id only keeps a frame.
    """
    from safetensors import SafetensorError, safe_open

    for _, path in sorted(_directories(store_path).items(), reverse=True):
        try:
            with safe_open(path / _STATE, "numpy") as file:
                ids: NDArray[np.int64] = file.get_tensor("buffer.ids")
        except (OSError, SafetensorError):
            continue
        return np.unique(ids[ids >= 0])
    return np.zeros(0, np.int64)


def seen_below(store_path: Path) -> int:
    """Every frame id that the newest checkpoint knows is below this; 0 without one."""
    with suppress(FormatTooNewError):
        return int(newest_meta(store_path).get("feed", {}).get("cursor", 0))
    return 0


def newest_meta(store_path: Path) -> dict[str, Any]:
    """What the newest checkpoint says besides its arrays, at which nobody looks here; {} without one.

    Where that is damaged it is what the one before says, as for `load_checkpoint`.
    """
    for _, path in sorted(_directories(store_path).items(), reverse=True):
        with suppress(OSError, ValueError, KeyError, TypeError):
            meta: dict[str, Any] = _header(path)["meta"]
            return meta
    return {}


def pin_checkpoint(store_path: Path, step: int) -> None:
    """Make this the one checkpoint that is never pruned.

    Raises:
        StoreNotFoundError: there is none of this step.
    """
    if step not in _directories(store_path):
        raise StoreNotFoundError(f"{store_path}: no checkpoint of step {step} to pin.")
    atomic_write_bytes(_folder(store_path) / _PIN, str(step).encode())


def pinned_checkpoint(store_path: Path) -> int | None:
    """Step of the pinned checkpoint, or None."""
    try:
        step = int((_folder(store_path) / _PIN).read_text())
    except (OSError, ValueError):
        return None
    return step if step in _directories(store_path) else None


def _folder(store_path: Path) -> Path:
    return store_path / "checkpoints"


def _directories(store_path: Path) -> dict[int, Path]:
    """Checkpoints by step."""
    found: dict[int, Path] = {}
    folder = _folder(store_path)
    for path in sorted(folder.iterdir(), reverse=True) if folder.is_dir() else ():
        if re.fullmatch(r"\d{12}(\.old)?", path.name):  # "N.old" sorts after "N", so N wins
            found[int(path.name[:12])] = path
    return found


def _place(store_path: Path, step: int) -> tuple[Path, int, int] | None:
    """Where a checkpoint is, and what tells it from another one in the same place; None where there is none."""
    path = _directories(store_path).get(step)
    with suppress(FileNotFoundError):
        if path is not None:
            stat = path.stat()
            return path, stat.st_ino, stat.st_mtime_ns
    return None


def _read(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        header = _header(path)
        state = (path / _STATE).read_bytes()
        if hashlib.sha256(state).hexdigest() != header["state"]["sha256"]:
            raise ValueError(f"{_STATE} has a wrong checksum")
        return load(state), header["meta"]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as e:
        raise CorruptError(f"{path}: this checkpoint is damaged ({e}).") from None


def _header(path: Path) -> dict[str, Any]:
    header: dict[str, Any] = json.loads((path / _META).read_bytes())
    if header["format"] != _FORMAT:
        raise ValueError(f"format {header['format']!r}")
    if header["version"] > _VERSION:
        raise FormatTooNewError(
            f"{path} has checkpoint format {header['version']}; this cld-stream reads up to "
            f"{_VERSION}. Upgrade cld-stream the way it was installed."
        )
    if json_checksum(header["meta"]) != header["meta_sha256"]:
        raise ValueError(f"{_META} has a wrong checksum")
    return header


def _prune(store_path: Path, keep: int) -> None:
    found, pinned = _directories(store_path), pinned_checkpoint(store_path)
    newest = sorted(found)[-max(1, keep) :]
    for step, path in found.items():
        if step not in newest and step != pinned:
            remove_dir(path)
    for path in _folder(store_path).iterdir():
        unfinished = path.name.startswith(".") and path.name.endswith(".tmp")
        replaced = path.name.endswith(".old") and path.with_name(path.name.removesuffix(".old")).exists()
        if path.is_dir() and (unfinished or replaced):
            shutil.rmtree(path, ignore_errors=True)
    fsync_dir(_folder(store_path))
