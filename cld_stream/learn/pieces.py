"""Where memory does not hold a whole step: its frames go through the encoders in pieces, its loss stays that of all.

The losses compare every frame with all others of the batch (local groups, in-batch negatives), so the gradients of
smaller batches may not simply be added up. Each piece is passed forward without keeping what its gradient needs; the
loss is that of the joined features; and each piece is passed forward again when the gradient reaches it. Paper: Gao et
al. 2021 (https://arxiv.org/abs/2101.06983), here by torch's checkpointing (Chen et al. 2016,
https://arxiv.org/abs/1604.06174). See docs/decisions/038-out-of-memory.md.
"""

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cld_stream.errors import DeviceFullError
from cld_stream.learn.memory import give_freed_memory_back
from cld_stream.learn.undo import Undo

__all__ = ["LEAST", "Pieces", "foreseen_lack", "out_of_memory"]

# Shape suffixes: v views of N frames, V views of some frames in one batch, C side of a view, D features.

log = logging.getLogger("cld_stream.train")

LEAST = 8
"""Frames in a piece, at least: batch norm needs some company, and passes of fewer would take for ever."""

_SIGNS = (
    "can't allocate memory",  # torch's allocator on a CPU
    "bad_alloc",
    "could not create a primitive",  # oneDNN; it does not say why
    "CUDA error: out of memory",
    "_STATUS_ALLOC_FAILED",  # cuBLAS, cuDNN
    "unable to find an engine to execute this computation",  # cuDNN, where there is no room for any algorithm
)

_WHAT_TO_DO = (
    "Nothing that was saved is lost. End other processes that take memory (`status`, nvidia-smi), or take less: --set "
    "buffer.cache_mb=0 keeps pixels off the device, --set optim.batch=... (with optim.fresh below it) and "
    "publish.batch=... make batches smaller. The same command goes on."
)

_BELOW = " with optim.fresh below it (fresh frames are all in the batch, and others are replayed in what room is left)"

T = TypeVar("T")
Network = Callable[[Tensor], tuple[Tensor, ...]]
"""Views (V, 3, C, C) to features (V, D) of one kind or more."""


class Pieces:
    """How many frames go through an encoder at a time. It is halved where memory runs out, and stays so.

    What the machine holds is no part of the training's state, as little as the number of its threads: another process
    begins with whole batches again.

    Args:
        setting: which one makes the whole smaller; for the log.

    Attributes:
        frames: most at a time, with all views of each; None = as many as there are.
    """

    def __init__(self, frames: int | None = None, setting: str = "optim.batch") -> None:
        self.frames, self._setting = frames, setting

    def of(self, n: int) -> list[slice]:
        """N frames in as few pieces as it takes, of the same size but for one."""
        count = -(-n // (self.frames or max(n, 1)))
        edges = [0, *(n * (i + 1) // count for i in range(count))]
        return [slice(a, b) for a, b in pairwise(edges)]

    def through(self, network: Network, views_vN3CC: Tensor) -> tuple[Tensor, ...]:
        """Features (v, N, D) of all views, with gradients where they are enabled.

        In one piece, this is one pass. In more, every frame still has all its views in one piece. Departure from the
        undivided pass: batch norm in training takes the statistics of a piece, and with gradients its running ones
        follow each piece twice. Without batch norm both are the same up to rounding.
        """
        (v, n), pieces = views_vN3CC.shape[:2], self.of(views_vN3CC.shape[1])
        if len(pieces) == 1:
            return tuple(f_VD.view(v, n, -1) for f_VD in network(views_vN3CC.flatten(0, 1)))

        def one(piece: slice) -> tuple[Tensor, ...]:
            f = network(torch.cat(tuple(views_vN3CC[:, piece])))
            return tuple(f_VD.view(v, piece.stop - piece.start, -1) for f_VD in f)

        parts = [checkpoint(one, piece, use_reentrant=False) for piece in pieces]
        return tuple(torch.cat(kind, 1) for kind in zip(*parts, strict=True))

    def attempt(self, work: Callable[[], T], n: int, what: str, undo: Undo | None = None) -> T:
        """Do it; where memory runs out, undo what was done, and do it again with half as many frames at a time.

        Args:
            n: frames in all.
            what: names it in the log.
            undo: puts everything back as it was.

        Raises:
            DeviceFullError: memory does not even hold `LEAST` frames at a time. Everything is as it was.
        """
        while True:
            try:
                return work()
            except (RuntimeError, MemoryError) as error:
                why = out_of_memory(error)
                if why is None or (undo is not None and not undo.possible):
                    raise
            # Only here, behind the error, nobody holds the tensors of what was tried.
            _let_go()
            if undo is not None:
                undo()
            self._halve(n, what, why)

    def _halve(self, n: int, what: str, why: str) -> None:
        before = min(n, self.frames or n)
        if before <= LEAST:
            raise DeviceFullError(f"{what}: out of memory, even with {before} frames at a time: {why}. {_WHAT_TO_DO}")
        self.frames = max(LEAST, -(-before // 2))
        log.warning(
            "%s: out of memory with %d frames at a time: %s. Nothing is lost: from now on %d at a time go through the "
            "encoder, which takes longer; all else stays as it was. To avoid that, end other processes that take "
            "memory, or take less: --set %s=%d%s, or --set buffer.cache_mb=0 to keep pixels off the device.",
            what, before, why, self.frames, self._setting, self.frames,
            _BELOW if self._setting == "optim.batch" else "",
        )  # fmt: skip


@contextmanager
def foreseen_lack(what: str) -> Iterator[None]:
    """Where there is no doing it with less: to run out of memory is a failure that the program foresees.

    Raises:
        DeviceFullError: memory does not hold it.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        why = out_of_memory(error)
        if why is None:
            raise
        raise DeviceFullError(f"{what}: out of memory: {why}. {_WHAT_TO_DO}") from None


def _let_go() -> None:
    """Free what was made for a pass that failed."""
    with torch.inference_mode(mode=False), torch.enable_grad():
        # On a CPU torch holds the open ends of a failed backward pass, and so all activations, until the next one.
        torch.zeros(1, requires_grad=True).sum().backward()  # type: ignore[no-untyped-call]
    gc.collect()
    torch.cuda.empty_cache()
    give_freed_memory_back()


def out_of_memory(error: BaseException) -> str | None:
    """What an error says of memory that ran out, in a line; None when it is another error."""
    said = " ".join(str(error).split())
    if not isinstance(error, MemoryError | torch.OutOfMemoryError) and not any(sign in said for sign in _SIGNS):
        return None
    said = said.partition("DefaultCPUAllocator: ")[2] or said
    return said.partition(" Of the allocated memory")[0].rstrip(".") or "no memory is left"
