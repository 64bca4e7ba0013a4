"""How much of the machine a run uses."""

import os
import resource
import time
from collections.abc import Iterable

from cld_stream.media.watchdog import cpu_seconds

__all__ = ["CpuMeter"]


class CpuMeter:
    """CPU time of this process and its children since it was made."""

    def __init__(self) -> None:
        self._wall = time.monotonic()
        self._cpu = _own_seconds()
        self._cores = len(os.sched_getaffinity(0))

    def share(self, living: Iterable[int]) -> float:
        """CPU seconds / (wall seconds x cores), 0 to 1.

        Args:
            living: process ids of children that still run; ended ones are counted by the system.
        """
        wall = max(time.monotonic() - self._wall, 1e-6)
        cpu = _own_seconds() - self._cpu + sum(map(cpu_seconds, living))
        return min(1.0, cpu / (wall * self._cores))


def _own_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)
