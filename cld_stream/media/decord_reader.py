"""Frames of a video through decord: random access by frame number, in small batches, at the store's size."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from cld_stream.errors import MediaError
from cld_stream.media.job import Job
from cld_stream.media.orientation import Orientation
from cld_stream.media.plan import Plan, cell_of
from cld_stream.media.pyav_reader import Picture, Shape

__all__ = ["read_decord"]

_BATCH = 4  # frames a call: a long call shows no sign of life


def read_decord(job: Job, plan: Plan, first_cell: int, way: Orientation, beat: Callable[[], None]) -> Iterator[Picture]:
    """The chosen frames of the cells from `first_cell` on, in order.

    Those before are decoded too: what decord gives for a frame depends, in MPEG-TS and AVI and where something is
    damaged, on what it was asked for before.

    Args:
        way: what makes the picture upright; decord turns it itself, and does not reflect it.

    Raises:
        MediaError: decord cannot read the file (one bad packet is enough), or miscounts its frames.
    """
    shape = Shape(plan.aspect, job.fit, job.size)
    width, height = (plan.height, plan.width) if way.sideways else (plan.width, plan.height)
    if not plan.aspect:
        raise MediaError("its header has no size of the picture; the reader auto goes by the decoded pixels")
    aspect = 1 / plan.aspect if way.sideways else plan.aspect
    w, h, cut, target = shape.scaled(width, height, aspect)
    reader = _open(job, w, h)
    chosen = _choose(reader, plan, job.fps)
    for at in range(0, len(chosen), _BATCH):
        batch = chosen[at : at + _BATCH]
        try:
            pixels = reader.get_batch([index for _, _, index in batch]).asnumpy()
        except Exception as error:  # decord raises its own DECORDError for everything
            raise MediaError("decord cannot decode it; --reader pyav salvages the readable part") from error
        beat()
        for (cell, time_s, _), rgb in zip(batch, pixels, strict=True):
            if cell >= first_cell:
                inner = way.reflected(rgb)[cut.y : cut.y + cut.height, cut.x : cut.x + cut.width]
                yield Picture(cell, time_s, inner, target, aspect)


def _open(job: Job, width: int, height: int) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import decord

    decord.logging.set_level(decord.logging.QUIET)
    try:
        return decord.VideoReader(str(job.path), width=width, height=height, num_threads=1)
    except Exception as error:
        raise MediaError("decord cannot open it; --reader pyav may") from error


def _choose(reader: Any, plan: Plan, fps: float) -> list[tuple[int, float, int]]:
    """(cell, time [s], frame number) of every frame to keep."""
    if plan.start is not None and len(reader) == len(plan.times):
        number = {ticks: index for index, ticks in enumerate(plan.times)}
        times = [((t - plan.start) * plan.tick_s, number[t]) for t in plan.wanted]
        return [(cell_of(t, fps), t, index) for t, index in times]
    begins = np.asarray(reader.get_frame_timestamp(range(len(reader))))[:, 0].astype(np.float64)
    best: dict[int, tuple[float, float, int]] = {}
    for index, t in enumerate((begins - begins.min()).tolist()):
        cell = cell_of(t, fps)
        rank = (abs(t - cell / fps), t, index)
        best[cell] = min(best.get(cell, rank), rank)
    return [(cell, t, index) for cell, (_, t, index) in sorted(best.items())]
