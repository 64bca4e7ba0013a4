"""Where stored frames come from, as the learner wants to know it."""

import numpy as np

from cld_stream.learn.buffer import Origin
from cld_stream.storage.schema import Frames
from cld_stream.storage.store import Store

__all__ = ["origin_of"]

_SHOTS = 2**20  # more than a source has: (source, shot) in one number
_PHOTOS = 0  # sources are numbered from 1


def origin_of(store: Store, rows: Frames) -> Origin:
    """Of every row: the shot it belongs to, and when.

    All photos of known time are one recording, on the clock on the wall, so that bursts are near-repeats; a photo of
    unknown time is near no other frame.
    """
    kinds = {source.id: source.kind for source in store.catalog.sources(id=np.unique(rows.source).tolist())}
    photo = np.array([kinds.get(source) == "photo" for source in rows.source.tolist()], np.bool_)
    source = np.where(photo, np.where(np.isnan(rows.wall_utc), -1, _PHOTOS), rows.source * _SHOTS + rows.shot)
    return Origin(source, np.where(photo, np.nan_to_num(rows.wall_utc), rows.time_s))
