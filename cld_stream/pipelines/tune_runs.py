"""Finished runs of `tune`, a small file each, so that an interrupted command goes on where it was."""

import hashlib
import json
import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import cld_stream
from cld_stream.config import Settings, as_dict
from cld_stream.pipelines.tune_slice import Slice
from cld_stream.storage.durable import atomic_write_bytes, make_dir

__all__ = ["FinishedRuns"]

log = logging.getLogger(__name__)

Scores = NDArray[np.float64]


class FinishedRuns:
    """Scores per question, by what a run depends on. What cannot be written or read is simply run again.

    Args:
        folder: made with the first run.
        data: the slice; another one is another question.
        views: the settings of the views that ask.
    """

    def __init__(self, folder: Path, data: Slice, views: Settings, steps: int) -> None:
        self._folder, self._writes = folder, True
        frames = hashlib.sha256(data.ids.tobytes() + data.asked.tobytes()).hexdigest()
        self._common = [cld_stream.__version__, frames, as_dict(views)["augment"], steps]

    def get(self, settings: Settings, questions: int) -> Scores | None:
        """The scores of a finished run of these settings, seed included."""
        try:
            score_Q = np.array(json.loads(self._path(settings).read_text()), np.float64)
        except (OSError, ValueError):
            return None
        return score_Q if score_Q.shape == (questions,) else None

    def put(self, settings: Settings, score_Q: Scores) -> None:
        """Keep a finished run."""
        if not self._writes:
            return
        try:
            make_dir(self._folder)
            atomic_write_bytes(self._path(settings), json.dumps(score_Q.tolist()).encode())
        except OSError as e:
            self._writes = False
            log.warning(
                "%s: finished runs cannot be kept: %s. An interrupted run starts anew.", self._folder, e.strerror
            )

    def _path(self, settings: Settings) -> Path:
        every = as_dict(settings)
        matters = [every[name] for name in ("encoder", "loss", "augment", "optim")]
        matters += [every["buffer"][name] for name in ("policy", "recent", "recent_share", "groups")]
        key = hashlib.sha256(json.dumps([*self._common, *matters]).encode()).hexdigest()
        return self._folder / f"{key[:24]}.json"
