"""Tells a worker that is slow from one that hangs, by its signs of life and by the CPU time that it uses.

Silence alone proves nothing: one call of a decoder can take many seconds, and many times that on a busy machine.
"""

import os
import time
from pathlib import Path

__all__ = ["Watchdog", "cpu_seconds"]

_BUSY_SHARE = 0.02  # of one core: who gets less for a whole heartbeat waits for something that does not come


class Watchdog:
    """Watches one process.

    Args:
        pid: of the process.
        silence_s: it hangs if it neither says a word nor computes for this long.
        compute_s: it has lost its way if it uses so much CPU time without a word.
        start_s: least silence allowed before its first word.

    Attributes:
        spoken: it has said something.
    """

    def __init__(self, pid: int, silence_s: float, compute_s: float, start_s: float) -> None:
        self._pid, self._silence_s, self._compute_s = pid, silence_s, compute_s
        self._patience_s = max(silence_s, start_s)
        self.spoken = False
        self.rest()

    def heard(self) -> None:
        """It has said something."""
        self.spoken = True
        self._patience_s = self._silence_s
        self.rest()

    def rest(self) -> None:
        """Count from now, as when it is given work."""
        self._word_cpu = self._seen_cpu = cpu_seconds(self._pid)
        self._seen = time.monotonic()
        self.next_look = self._seen + min(self._patience_s, self._compute_s)

    def verdict(self) -> str:
        """Why it must be killed, or "". Ask at `next_look` (on the monotonic clock), which is then set anew."""
        now, used = time.monotonic(), cpu_seconds(self._pid)
        if used - self._word_cpu >= self._compute_s:
            return f"the decoder made no progress in {self._compute_s:g} s of computing, and was ended"
        if used - self._seen_cpu >= _BUSY_SHARE * self._patience_s or _wants_cpu(self._pid):
            self._seen, self._seen_cpu = now, used
        elif now - self._seen >= self._patience_s:
            return f"the decoder hung: no sign of life for {self._patience_s:g} s"
        left = self._compute_s - (used - self._word_cpu)
        self.next_look = now + max(0.1, min(self._patience_s, left))
        return ""


def _wants_cpu(pid: int) -> bool:
    """Whether it computes or waits for its turn to: on a busy machine its share may be almost nothing."""
    return _stat(pid)[:1] == ["R"]


def cpu_seconds(pid: int) -> float:
    """CPU time of a living process, all of its threads [s]; 0 where the system does not tell (only Linux does)."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def _stat(pid: int) -> list[str]:
    """What stands in /proc/PID/stat behind the name: state, ..., user and system time in ticks; [] if nothing does."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
