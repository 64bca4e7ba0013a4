"""Slow, hung, or astray: told of real processes by what they use."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from cld_stream.media.watchdog import Watchdog, cpu_seconds


@contextmanager
def running(code: str) -> Iterator[int]:
    """A Python process that has come to the end of its imports."""
    command = [sys.executable, "-S", "-c", f"import time; print(flush=True)\n{code}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process.pid
        finally:
            process.kill()


def verdict_of(watchdog: Watchdog, looks: int) -> str:
    """The first verdict that is none of "", in so many looks at most."""
    for _ in range(looks):
        time.sleep(max(0.0, watchdog.next_look - time.monotonic()))
        if why := watchdog.verdict():
            return why
    return ""


def test_who_sleeps_hangs() -> None:
    with running("time.sleep(60)") as pid:
        begun = time.monotonic()
        assert "hung" in verdict_of(Watchdog(pid, silence_s=0.3, compute_s=60.0, start_s=0.0), looks=3)
        assert 0.3 <= time.monotonic() - begun < 10


def test_who_computes_lives_until_the_bound() -> None:
    with running("while True: pass") as pid:
        watchdog, before = Watchdog(pid, silence_s=0.2, compute_s=1.0, start_s=0.0), cpu_seconds(pid)
        assert "1 s of computing" in verdict_of(watchdog, looks=1000)
        assert cpu_seconds(pid) - before >= 0.99


def test_a_word_counts_for_a_new_start() -> None:
    with running("while True: pass") as pid:
        watchdog, before = Watchdog(pid, silence_s=0.2, compute_s=1.0, start_s=0.0), cpu_seconds(pid)
        while cpu_seconds(pid) - before < 1.5:
            assert verdict_of(watchdog, looks=1) == ""
            watchdog.heard()


def test_a_new_process_has_longer_for_its_first_word() -> None:
    with running("time.sleep(60)") as pid:
        watchdog = Watchdog(pid, silence_s=0.1, compute_s=60.0, start_s=30.0)
        assert watchdog.next_look - time.monotonic() > 20
        watchdog.heard()
        assert watchdog.next_look - time.monotonic() < 20
