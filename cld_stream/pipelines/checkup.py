"""Measure an encoder against the current snapshot, over the same stored frames."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from cld_stream.config import EncoderSettings
from cld_stream.learn.branches.moco import MoCo
from cld_stream.learn.branches.npid import NPID
from cld_stream.learn.learner import Learner, StepReport
from cld_stream.learn.probes import effective_rank, feature_std, group_entropy, neighbour_agreement
from cld_stream.pipelines.embed import Embedder
from cld_stream.pipelines.guard import Checkup
from cld_stream.pipelines.publish import embed_frames
from cld_stream.pipelines.snapshots import open_snapshot
from cld_stream.storage.store import Store

__all__ = ["check_encoder", "loss_ratio"]

_FRAMES, _FEWEST = 256, 32
_GROUPS, _NEIGHBOURS = 16, 10
_DULL = 0.05  # spread below which frames look alike to the snapshot itself: nothing can be lost
_YOUNG = 200  # updates before the loss says anything


def check_encoder(
    store: Store, encoder: EncoderSettings, weights: Mapping[str, NDArray[Any]], device: str, loss: float = math.nan
) -> Checkup:
    """A checkup of what `Learner.publishable` gives.

    256 frames, spread evenly over what the snapshot covers, not the buffer: when a dark camera has filled the buffer,
    its features look alike under the best encoder. All NaN but `loss` before the first snapshot, and for another width.
    """
    nothing = Checkup(loss_ratio=loss)
    if store.catalog.latest_snapshot() is None:
        return nothing
    snapshot = open_snapshot(store)
    ids, features = snapshot.features("instance")
    rows = np.flatnonzero(ids >= 0)
    rows = rows[np.linspace(0, len(rows) - 1, min(_FRAMES, len(rows))).astype(np.int64)] if len(rows) else rows
    rows = np.random.default_rng(0).permutation(np.unique(rows))
    if len(rows) < _FEWEST or features.shape[1] != encoder.feature_dim:
        return nothing
    embedder = Embedder(encoder, weights, store.header.fit, device)
    with store.reader() as reader:
        fresh, present = embed_frames(store, reader, embedder, ids[rows])
    if present.sum() < _FEWEST:
        return nothing
    then_ND = F.normalize(torch.from_numpy(features[rows][present]).float(), dim=1)
    now_ND = F.normalize(torch.from_numpy(fresh["instance"][present]).float(), dim=1)
    if not now_ND.isfinite().all():
        return Checkup(0.0, 0.0, 0.0, 0.0, loss)
    spread = feature_std(then_ND)
    if spread < _DULL:
        return nothing
    return Checkup(
        std=feature_std(now_ND) / spread,
        rank=effective_rank(now_ND) / effective_rank(then_ND),
        entropy=group_entropy(now_ND, _GROUPS) / max(1e-6, group_entropy(then_ND, _GROUPS)),
        agreement=neighbour_agreement(now_ND, then_ND, _NEIGHBOURS),
        loss_ratio=loss,
    )


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
