"""One run of the real `train` on a real store, and what its published encoder recognises afterwards."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks.disaster.footage import Footage, Shot, append, broken, good, static_camera
from cld_stream.config import Settings, load_settings
from cld_stream.errors import GuardStopError
from cld_stream.learn.probes import knn_classify
from cld_stream.pipelines.embed import Embedder
from cld_stream.pipelines.guard import Checkup, Guard
from cld_stream.pipelines.snapshots import list_snapshots, open_snapshot
from cld_stream.pipelines.train import train
from cld_stream.storage.checkpoints import load_checkpoint
from cld_stream.storage.store import Store

__all__ = ["ARMS", "HEALTHY", "RATES", "Folders", "disaster", "healthy"]

RECIPE = (
    "store.size=32", "encoder.width=0.125", "encoder.crop=16", "loss.groups=16", "augment.flip=0",
    "buffer.capacity=512", "optim.batch=32", "optim.fresh=16", "optim.warmup_steps=50", "optim.average_decay=0.99",
    "train.min_frames=64", "train.updates_per_step=2", "train.idle_steps=0", "train.poll_s=0.05", "train.threads=1",
    "train.log_steps=1000000",
    "train.checkpoint_s=1e6", "train.publish_s=1e6", "train.extend_s=1e6", "publish.groups=16", "guard.every_steps=20",
)  # fmt: skip
"""The recipe that `train` takes when told nothing, in miniature. Publications and checkpoints come after so many steps,
not seconds, so that a run is the same on every machine."""

RATES = {"narrow": 20.0, "black": 6.0, "noise": 6.0}
"""Of the disasters; 0.06 is the ordinary one."""

ARMS = ("no guard", "guard")
HEALTHY = ("gtsrb", "eth80", "cifar", "static", "young")

_NEIGHBOURS, _SIGMA = 20, 0.1
_BROKEN_FRAMES = 1000
_LATER_SHOTS = 24
_ROUND = 60  # steps from one publication to the next
_GROWN_UP = 100  # updates: earlier than shipped, so that most of these short runs are judged by their rank too
_YOUNG = (2, 3, 5, 10, 20, 40, 80, 80)  # steps from one publication to the next


@dataclass(frozen=True)
class Folders:
    """Where the data is, and where stores are made."""

    data: Path
    work: Path


def settings_of(seed: int) -> Settings:
    """The recipe, with a seed."""
    return load_settings(overrides=[*RECIPE, f"optim.seed={seed}"], recipe=("stream", "cpu"))


def disaster(folders: Folders, kind: str, arm: str, seed: int) -> dict[str, Any]:
    """A good encoder, then thousands of broken frames at a rate that is too high."""
    began, footage, settings = time.process_time(), good("eth80", seed, folders.data), settings_of(seed)
    path = _fresh(folders.work / f"disaster-{seed}")
    shutil.copytree(_base(folders, footage, seed, settings), path)
    before, snapshot = recognised(path, footage), list_snapshots(path)[-1]
    append(path, broken(kind, _BROKEN_FRAMES, seed), settings)
    guard = replace(settings.guard, enabled=arm == "guard")
    wild = replace(settings, guard=guard, optim=replace(settings.optim, lr=RATES[kind]))
    found: dict[str, Any] = {"before": before, "exit": 0}
    with looks() as seen:
        try:
            steps = _rounds(path, wild)
        except GuardStopError as stop:
            found["exit"], steps = stop.exit_code, load_checkpoint(path).step - snapshot.step
    found |= {"after": recognised(path, footage), "steps": steps, "lag": _lag(path)}
    found |= {"least": _least(seen), **_counts(path)}
    found["same snapshot"] = list_snapshots(path)[-1].id == snapshot.id
    if arm == "guard":  # what the message of exit 5 says: a lower rate; and the camera is well again
        append(path, good("gtsrb", seed, folders.data).shots[:_LATER_SHOTS], settings)
        _rounds(path, settings)
        found |= {"later": recognised(path, footage), "later lag": _lag(path)}
        found["later steps"] = load_checkpoint(path).step - snapshot.step - steps
        found["later snapshot"] = list_snapshots(path)[-1].id != snapshot.id
    shutil.rmtree(path)
    return found | {"cpu_s": round(time.process_time() - began, 1)}


def healthy(folders: Folders, name: str, seed: int) -> dict[str, Any]:
    """From scratch at the ordinary rate; every warning, hold and roll-back is a false alarm."""
    began, path, settings = time.process_time(), _fresh(folders.work / f"healthy-{seed}"), settings_of(seed)
    settings = replace(settings, guard=replace(settings.guard, young_steps=_GROWN_UP - settings.optim.warmup_steps))
    shots: list[Shot] = good(name if name in ("gtsrb", "eth80", "cifar") else "gtsrb", seed, folders.data).shots
    if name == "static":
        shots = static_camera(1200, seed) + shots[:40]
    append(path, shots, settings)
    with looks() as seen:
        for steps in _YOUNG if name == "young" else ():
            train(path, settings, steps=steps)
        _rounds(path, settings)
    published = {c.snapshot for c in seen if c.snapshot} | {list_snapshots(path)[-1].id}
    found: dict[str, Any] = {"steps": load_checkpoint(path).step, "looks": len(seen), "publications": len(published)}
    found |= {"least": _least(seen), "least of the snapshot": _least(seen, naive=True), **_counts(path)}
    found["below hold of the snapshot"] = sum(c.shares.least < settings.guard.hold for c in seen)
    shutil.rmtree(path)
    return found | {"cpu_s": round(time.process_time() - began, 1)}


@torch.no_grad()
def recognised(path: Path, footage: Footage) -> float:
    """kNN accuracy on frames that are not in the store, through the current snapshot, as `query` finds them."""
    with Store.open(path) as store:
        snapshot = open_snapshot(store)
        ids, gallery = snapshot.features("instance")
        rows = store.catalog.rows(ids)
        label_of = {source.id: int(source.label) for source in store.catalog.sources() if source.label}
        labels = np.array([label_of.get(source, -1) for source in rows.source.tolist()])
        known = labels >= 0
        asked = Embedder.of(snapshot).embed(footage.asked, np.ones(len(footage.asked), np.float32))["instance"]
    features, questions = (torch.from_numpy(x).float() for x in (gallery[known], asked))
    classes = int(max(labels.max(), footage.truth.max())) + 1
    _, said = knn_classify(features, torch.from_numpy(labels[known]), questions, _NEIGHBOURS, _SIGMA, classes)
    return round(float((said.numpy() == footage.truth).mean()), 3)


@contextmanager
def looks() -> Iterator[list[Checkup]]:
    """Every look of the guard inside."""
    seen: list[Checkup] = []
    judge = Guard.judge

    def note(self: Guard, checkup: Checkup, clock: int) -> None:
        judge(self, checkup, clock)
        seen.append(self.last)

    with mock.patch.object(Guard, "judge", note):
        yield seen


def _rounds(path: Path, settings: Settings) -> int:
    """Until every frame is fed, with a publication after every round; how many steps."""
    steps, before = 0, -1
    while steps != before:
        before = steps
        if _lag(path) != 0:
            steps += train(path, settings, steps=_ROUND).steps
    return steps


def _lag(path: Path) -> int:
    """Frames that are not fed yet; -1 before the first checkpoint."""
    with Store.open(path) as store:
        committed = store.catalog.next_id()
    if not (path / "checkpoints").exists():
        return -1
    return max(0, committed - int(load_checkpoint(path).meta["feed"]["cursor"]))


def _counts(path: Path) -> dict[str, int]:
    state = load_checkpoint(path).meta["guard"]
    return {name: state[name] for name in ("warnings", "holds", "rollbacks")}


def _least(seen: list[Checkup], *, naive: bool = False) -> float:
    """Least share of the best so far; or of the current snapshot, whatever its age, as an earlier guard had it."""
    return round(min(((c.shares if naive else c.kept).least for c in seen), default=1.0), 3)


def _base(folders: Folders, footage: Footage, seed: int, settings: Settings) -> Path:
    """A store whose current snapshot recognises objects: from scratch, at the ordinary rate."""
    path = folders.work / f"base-{seed}"
    if not (path / "done").exists():
        append(_fresh(path), footage.shots, settings)
        _rounds(path, settings)
        (path / "done").touch()
    return path


def _fresh(path: Path) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
