"""Measure an encoder against the current snapshot, over the same stored frames."""

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from cld_stream.config import EncoderSettings
from cld_stream.errors import CorruptError, StoreNotFoundError
from cld_stream.pipelines.embed import Embedder
from cld_stream.pipelines.guard import Checkup
from cld_stream.pipelines.measures import Shares, compare, spread_evenly
from cld_stream.pipelines.publish import embed_frames
from cld_stream.pipelines.snapshots import with_snapshot
from cld_stream.storage.snapshots import Snapshot
from cld_stream.storage.store import Store

__all__ = ["best_up_to", "check_encoder"]

log = logging.getLogger("cld_stream.guard")
_FEWEST = 32


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

    Frames are spread evenly over what the snapshot covers, not the buffer: when a dark camera has filled the buffer,
    its features look alike under the best encoder. A damaged snapshot is passed over for the newest one that is whole.
    No shares before the first snapshot, where none is whole, and of another width.

    Args:
        updates: of this encoder.
        grown_up_at: as of `grown_up`.
    """
    nothing = Checkup(loss_ratio=loss, young=updates < grown_up_at)
    if store.catalog.latest_snapshot() is None:
        return nothing
    try:
        snapshot, best, ids, features = with_snapshot(
            store, "latest", lambda s: (s, best_up_to(s, grown_up_at), *s.features("instance"))
        )
    except (CorruptError, StoreNotFoundError) as error:
        log.error("the encoder is compared with no snapshot: %s", error)
        return nothing
    rows = np.flatnonzero(ids >= 0)
    rows = rows[spread_evenly(len(rows))]
    if len(rows) < _FEWEST or features.shape[1] != encoder.feature_dim:
        return nothing
    nothing = replace(nothing, snapshot=snapshot.id, best=best)
    embedder = Embedder(encoder, weights, store.header.fit, device)
    with store.reader(on_damage=lambda _: None) as reader:  # training and publishing say so
        fresh, present = embed_frames(store, reader, embedder, ids[rows])
    # a whole number of times `_FEWEST`: oneDNN keeps the code that it compiles for each size of product
    there = np.flatnonzero(present)[: present.sum() // _FEWEST * _FEWEST]
    if not len(there):
        return nothing
    then_ND = F.normalize(torch.from_numpy(features[rows][there]).float(), dim=1)
    now_ND = F.normalize(torch.from_numpy(fresh["instance"][there]).float(), dim=1)
    shares, agreement = compare(now_ND, then_ND)
    return replace(nothing, shares=shares, agreement=agreement)


def best_up_to(snapshot: Snapshot, grown_up_at: int) -> Shares:
    """The best encoder up to this snapshot, in units of what the snapshot's own encoder makes of frames.

    It stands in the snapshot, so that it outlives older ones and a killed daemon. One published without the guard, or
    in spite of it, starts anew.
    """
    info = snapshot.manifest["info"]
    return Shares.of_published(info.get("best"), young=info.get("updates", grown_up_at) < grown_up_at)
