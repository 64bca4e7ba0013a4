"""How the C library holds memory that is taken and freed again and again."""

import ctypes

__all__ = ["give_freed_memory_back", "keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
"""Numbers of glibc's malloc.h."""

_DEFAULT = 128 << 10
"""What glibc begins with, for all three [bytes]."""

_KEPT, _AHEAD, _PIECE = 1 << 30, 64 << 20, 32 << 20
"""Most memory that lies idle; what is fetched at a time; the largest piece for which one may ask this [bytes]."""


def keep_freed_memory() -> None:
    """Let this process keep the memory it frees, up to a gibibyte, for what it takes next.

    A training step frees and takes all its activations. By default large ones go back to the kernel at once, which
    must hand out zeroed pages again: a tenth of a step's CPU time (benchmarks/results/step.md). Under a C library
    other than glibc nothing changes.
    """
    _set(_PIECE, _KEPT, _AHEAD)


def give_freed_memory_back() -> None:
    """Let go of what lies idle, now and from now on; blocks of 128 kB and more are mapped apart, and leave no holes.

    For a step after memory has run out, when others than malloc need some, and for a process that is to stay small for
    weeks.
    """
    _set(_DEFAULT, _DEFAULT, _DEFAULT)
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _set(piece: int, kept: int, ahead: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in ((_M_MMAP_THRESHOLD, piece), (_M_TRIM_THRESHOLD, kept), (_M_TOP_PAD, ahead)):
            mallopt(option, value)
