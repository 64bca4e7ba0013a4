"""Measure an encoder against the current snapshot, over the same stored frames."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from cld_stream.config import EncoderSettings, Settings
from cld_stream.learn.branches.moco import MoCo
from cld_stream.learn.branches.npid import NPID
from cld_stream.learn.learner import Learner, StepReport
from cld_stream.learn.probes import effective_rank, feature_std, group_entropy, neighbour_agreement
from cld_stream.pipelines.embed import Embedder
from cld_stream.pipelines.guard import Checkup, Shares
from cld_stream.pipelines.publish import embed_frames
from cld_stream.pipelines.snapshots import open_snapshot
from cld_stream.storage.snapshots import Snapshot
from cld_stream.storage.store import Store

__all__ = ["best_up_to", "check_encoder", "grown_up", "loss_ratio"]

_FRAMES, _FEWEST = 256, 32
_GROUPS, _NEIGHBOURS = 16, 10
_DULL = 0.05  # spread below which frames look alike to the snapshot itself: nothing can be lost
_YOUNG = 200  # updates before the loss says anything


def check_encoder(
    store: Store,
    encoder: EncoderSettings,
    weights: Mapping[str, NDArray[Any]],
    device: str,
    *,
    updates: int,
    grown_up_at: int,
    loss: float = math.nan,
) -> Checkup:
    """A checkup of what `Learner.publishable` gives.

    256 frames, spread evenly over what the snapshot covers, not the buffer: when a dark camera has filled the buffer,
    its features look alike under the best encoder. No shares before the first snapshot, and of another width.

    Args:
        updates: of this encoder.
        grown_up_at: as of `grown_up`.
    """
    nothing = Checkup(loss_ratio=loss, young=updates < grown_up_at)
    if store.catalog.latest_snapshot() is None:
        return nothing
    snapshot = open_snapshot(store)
    ids, features = snapshot.features("instance")
    rows = np.flatnonzero(ids >= 0)
    rows = rows[np.linspace(0, len(rows) - 1, min(_FRAMES, len(rows))).astype(np.int64)] if len(rows) else rows
    rows = np.random.default_rng(0).permutation(np.unique(rows))
    if len(rows) < _FEWEST or features.shape[1] != encoder.feature_dim:
        return nothing
    nothing = replace(nothing, snapshot=snapshot.id, best=best_up_to(snapshot, grown_up_at))
    embedder = Embedder(encoder, weights, store.header.fit, device)
    with store.reader(on_damage=lambda _: None) as reader:  # training and publishing say so
        fresh, present = embed_frames(store, reader, embedder, ids[rows])
    # a whole number of times `_FEWEST`: oneDNN keeps the code that it compiles for each size of product
    there = np.flatnonzero(present)[: present.sum() // _FEWEST * _FEWEST]
    if not len(there):
        return nothing
    then_ND = F.normalize(torch.from_numpy(features[rows][there]).float(), dim=1)
    now_ND = F.normalize(torch.from_numpy(fresh["instance"][there]).float(), dim=1)
    if not now_ND.isfinite().all():
        return replace(nothing, shares=Shares(0.0, 0.0, 0.0), agreement=0.0)
    then = _measure(then_ND)
    if then.std < _DULL:
        return nothing
    agreement = neighbour_agreement(now_ND, then_ND, _NEIGHBOURS)
    return replace(nothing, shares=_measure(now_ND).over(then), agreement=agreement)


def best_up_to(snapshot: Snapshot, grown_up_at: int) -> Shares:
    """The best encoder up to this snapshot, in units of what the snapshot's own encoder makes of frames.

    It stands in the snapshot, so that it outlives older ones and a killed daemon. One published without the guard, or
    in spite of it, starts anew.
    """
    info = snapshot.manifest["info"]
    young = info.get("updates", grown_up_at) < grown_up_at
    return Shares.read(info.get("best") or {}).known_or(Shares(1.0, math.nan if young else 1.0, 1.0))


def grown_up(settings: Settings) -> int:
    """Updates from which on an encoder's effective rank is a measure for others: before, it falls from a random
    encoder's, which is higher than that of most trained ones."""
    return settings.optim.warmup_steps + settings.guard.young_steps


def _measure(x_ND: torch.Tensor) -> Shares:
    """Of unit rows in no order."""
    return Shares(feature_std(x_ND), effective_rank(x_ND), group_entropy(x_ND, _GROUPS))


def loss_ratio(learner: Learner, report: StepReport | None) -> float:
    """Instance loss over log(n) with n frames to choose from; NaN for branches without such a choice, and at first."""
    branch, n = learner.branch, 0
    if isinstance(branch, NPID) and not learner.settings.loss.negatives:
        n = int(learner.bank.live_M.sum())
    elif isinstance(branch, MoCo):
        n = 1 + int((branch.queue.ids_K >= 0).sum())
    if report is None or n < _FEWEST or learner.updates < _YOUNG:
        return math.nan
    return report.instance / math.log(n)
