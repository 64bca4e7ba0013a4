"""How the C library holds the memory that a step takes and frees."""

import ctypes

__all__ = ["keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
"""Numbers of glibc's malloc.h."""

_KEPT, _AHEAD, _PIECE = 1 << 30, 64 << 20, 32 << 20
"""Most memory that lies idle; what is fetched at a time; the largest piece for which one may ask this [bytes]."""


def keep_freed_memory() -> None:
    """Let this process keep the memory it frees, up to a gibibyte, for what it takes next.

    A training step frees and takes all its activations. By default large ones go back to the kernel at once, which
    must hand out zeroed pages again: a tenth of a step's CPU time (benchmarks/results/step.md). Under a C library
    other than glibc nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in ((_M_MMAP_THRESHOLD, _PIECE), (_M_TRIM_THRESHOLD, _KEPT), (_M_TOP_PAD, _AHEAD)):
            mallopt(option, value)
