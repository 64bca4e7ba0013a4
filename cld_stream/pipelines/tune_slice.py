"""A slice of a store: short training runs on most of it, label-free questions about the rest."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cld_stream.config import AugmentSettings, Settings
from cld_stream.errors import CorruptError, UsageError
from cld_stream.learn.augment import RandomViews, central_view
from cld_stream.learn.buffer import Origin
from cld_stream.learn.encoder import Encoder
from cld_stream.learn.learner import Learner
from cld_stream.learn.probes import target_ranks
from cld_stream.pipelines.origins import origin_of
from cld_stream.pipelines.restore import fresh_learner
from cld_stream.storage.store import Store

__all__ = ["Answers", "Slice", "measure", "take_slice", "train_on"]

log = logging.getLogger(__name__)

# Shape suffixes: N frames of the slice, Q questions, S side of a stored frame, D features.

BLOCK = 8
"""Frames in a row that are taken together, so that neighbours in time are in the slice."""

ASKED = 4
"""One block in so many is held out of training and asks the questions."""

_LEAST = 128
_BATCH = 256


@dataclass(frozen=True)
class Slice:
    """Frames of a store, in its order.

    Attributes:
        ids: of the N frames in the store.
        pixels, aspect: stored frames (uint8, on the training device), width / height of what they show.
        run: number of the run that each frame is in: frames in a row of one source in one block.
        asked: (N) held out of training.
        origin: where the frames come from.
    """

    ids: NDArray[np.int64]
    pixels: Tensor
    aspect: Tensor
    run: NDArray[np.int64]
    asked: NDArray[np.bool_]
    origin: Origin

    def batches(self, rows: NDArray[np.int64]) -> Iterator[tuple[Tensor, Tensor]]:
        """Pixels and aspects, a few hundred at a time."""
        for part in torch.split(torch.from_numpy(rows).to(self.pixels.device), _BATCH):
            yield self.pixels[part], self.aspect[part]


@dataclass(frozen=True)
class Answers:
    """What an encoder says about the held-out frames, without a label.

    Attributes:
        view: 1 / rank of each frame's other view, among the other views of all frames of other runs.
        time: 1 / rank of the frame half a run later, among all frames of other runs; empty where no run has two frames.
        view_run, time_run: run of each question.
        first_ND, second_ND, centre_ND: unit features of both random views and of the central view.
    """

    view: NDArray[np.float64]
    time: NDArray[np.float64]
    view_run: NDArray[np.int64]
    time_run: NDArray[np.int64]
    first_ND: Tensor
    second_ND: Tensor
    centre_ND: Tensor


def take_slice(store: Store, frames: int, device: str) -> Slice:
    """Blocks of consecutive frames, spread evenly over the store.

    Raises:
        UsageError: the store holds too few frames.
    """
    live = store.catalog.live_ids()
    _require_enough(store, len(live))
    blocks = len(live) // BLOCK
    wanted = min(blocks, max(_LEAST, frames) // BLOCK)
    starts = np.linspace(0, blocks - 1, wanted).round().astype(np.int64) * BLOCK
    at = (starts[:, None] + np.arange(BLOCK)).ravel()
    block = np.repeat(np.arange(wanted), BLOCK)
    with store.reader(on_damage=_left_out) as reader:
        pixels, present = reader.read(live[at])
    rows = store.catalog.rows(live[at])
    present &= np.isin(live[at], rows.ids)  # frames may be forgotten meanwhile
    _require_enough(store, int(present.sum()))
    kept = np.isin(rows.ids, live[at][present])
    block, source = block[present], rows.source[kept]
    run = np.cumsum(np.r_[False, (np.diff(block) != 0) | (np.diff(source) != 0)])
    aspect = rows.aspect[kept] if store.header.fit == "stretch" else np.ones(kept.sum(), np.float32)
    pixels_N, aspect_N = (torch.from_numpy(a).to(device) for a in (pixels[present], aspect))
    origin = origin_of(store, rows)[kept]
    return Slice(live[at][present], pixels_N, aspect_N, run, block % ASKED == ASKED - 1, origin)


def _require_enough(store: Store, frames: int) -> None:
    if frames < _LEAST:
        raise UsageError(f"{store.path}: tuning needs at least {_LEAST} frames, there are {frames}. Ingest more.")


def _left_out(error: CorruptError) -> None:
    log.error("damaged frames are left out: %s", error)


def train_on(
    settings: Settings, data: Slice, steps: int, device: str, stop: Callable[[int], bool] = lambda _: False
) -> Learner | None:
    """A short run: every training frame is buffered from the start, each step replays a random batch of them.

    Args:
        settings: `buffer.capacity` becomes the number of frames, the warm-up at most a fifth of the steps.
        stop: asked before each step, with its number.

    Returns:
        The learner, or None when stopped.
    """
    rows = np.flatnonzero(~data.asked)
    warmup = min(settings.optim.warmup_steps, steps // 5)
    settings = replace(
        settings,
        buffer=replace(settings.buffer, capacity=len(rows)),
        optim=replace(settings.optim, warmup_steps=warmup),
    )
    learner = fresh_learner(settings, device)
    learner.remember(rows.tolist(), data.origin[rows])
    for step in range(steps):
        if stop(step):
            return None
        plan = learner.plan()
        batch = torch.from_numpy(plan.wanted).to(data.pixels.device)
        learner.step(plan, data.pixels[batch], data.aspect[batch])
    return learner


@torch.no_grad()
def measure(learner: Learner, data: Slice, augment: AugmentSettings) -> Answers:
    """Ask the averaged encoder about the held-out frames, in the instance space.

    Args:
        augment: of the views; the same for all who are compared.
    """
    slots = learner.draw(4 * _BATCH)
    encoder = learner.averaged(data.batches(learner.buffer.ids[slots]))
    rows = np.flatnonzero(data.asked)
    run = data.run[rows]
    first_ND, second_ND = _two_views(learner, encoder, data, rows, augment)
    centre_ND = torch.cat(
        [encoder(central_view(p, a, learner.settings.encoder.crop)).instance_Nd for p, a in data.batches(rows)]
    )
    same_NN = torch.from_numpy(run[:, None] == run).to(first_ND.device)
    own_N = torch.arange(len(rows), device=first_ND.device)
    view_N = target_ranks(first_ND, second_ND, own_N, same_NN)
    asks, target = _half_a_run_later(run)
    asks_Q, target_Q = (torch.from_numpy(a).to(first_ND.device) for a in (asks, target))
    time_Q = target_ranks(centre_ND[asks_Q], centre_ND, target_Q, same_NN[asks_Q])
    view, time = (1 / ranks.cpu().numpy().astype(np.float64) for ranks in (view_N, time_Q))
    return Answers(view, time, run, run[asks], first_ND, second_ND, centre_ND)


def _two_views(
    learner: Learner, encoder: Encoder, data: Slice, rows: NDArray[np.int64], augment: AugmentSettings
) -> tuple[Tensor, Tensor]:
    """Instance features of two random views of each frame; the same views whenever asked."""
    views = RandomViews(augment, learner.settings.encoder.crop)
    generator = torch.Generator().manual_seed(0)
    pairs = [views(pixels, aspect, generator) for pixels, aspect in data.batches(rows)]
    first, second = ([encoder(pair[i]).instance_Nd for pair in pairs] for i in (0, 1))
    return torch.cat(first), torch.cat(second)


def _half_a_run_later(run: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the first half of each run, and the row half a run after each."""
    _, first, length = np.unique(run, return_index=True, return_counts=True)
    half = length // 2
    asks = np.concatenate([np.arange(a, a + h) for a, h in zip(first, half, strict=True)]).astype(np.int64)
    return asks, asks + np.repeat(half, half)
