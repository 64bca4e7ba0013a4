"""The three processes, started again whenever they end, as a service manager would."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

__all__ = ["SETTINGS", "Service", "services"]

SETTINGS = (
    "store.size=32", "store.shard_frames=256", "ingest.commit_s=0.5", "ingest.settle_s=4.0", "ingest.poll_s=1.0",
    "ingest.growing_s=6.0", "ingest.workers=1",
    "encoder.width=0.125", "encoder.crop=16", "encoder.feature_dim=16", "loss.groups=12", "buffer.capacity=40000",
    "optim.batch=32", "optim.fresh=16", "train.min_frames=32", "train.idle_steps=50", "train.poll_s=0.5",
    "train.log_steps=5", "train.threads=1", "train.checkpoint_s=3", "train.publish_s=20", "train.extend_s=2",
    "publish.groups=8", "publish.keep=3", "ops.log_mb=10",
)  # fmt: skip


class Service:
    """One of them.

    Attributes:
        starts, kills: so far.
        problems: what a service manager would have logged: ends that nobody asked for, tracebacks.
    """

    def __init__(self, name: str, command: list[str], log: Path) -> None:
        self.name, self._command, self._log = name, command, log
        self.starts = self.kills = 0
        self.problems: list[str] = []
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the process at work."""
        assert self._child is not None
        return self._child.pid

    def keep_up(self) -> None:
        """Start it where it is not at work; an end of its own accord is a problem."""
        if self._child is not None and self._child.poll() is None:
            return
        if self._child is not None:
            self.problems.append(f"{self.name} ended by itself with code {self._child.returncode}: {self.said()}")
            time.sleep(0.5)
        self.starts += 1
        with self._log.open("ab") as log:
            self._child = subprocess.Popen(
                self._command, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    def kill(self) -> None:
        """SIGKILL, at once and without a word."""
        if self._child is not None and self._child.poll() is None:
            self._child.kill()
            self._child.wait()
            self._child = None
            self.kills += 1

    def stop(self, timeout_s: float = 120.0) -> None:
        """SIGTERM; it must end in order."""
        if self._child is None:
            return
        self._child.send_signal(signal.SIGTERM)
        try:
            code = self._child.wait(timeout_s)
            if code and (self.name, code) != ("query", -signal.SIGTERM):  # it knows no other end
                self.problems.append(f"{self.name} ended with code {code} when it was asked to end: {self.said()}")
        except subprocess.TimeoutExpired:
            self._child.kill()
            self.problems.append(f"{self.name} did not end within {timeout_s:g} s of being asked to")
        self._child = None
        if "Traceback" in self._log.read_text(errors="replace"):
            self.problems.append(f"{self.name} printed a traceback: see {self._log.name}")

    def said(self) -> str:
        """The end of what it wrote."""
        return self._log.read_text(errors="replace")[-400:]


def services(work: Path, store: Path, media: Path, more: tuple[str, ...] = ()) -> list[Service]:
    """Ingest, train and the reader, with further settings."""
    flags = [word for item in (*SETTINGS, *more) for word in ("--set", item)]
    cld = [sys.executable, "-m", "cld_stream"]
    at = ["--store", str(store)]
    return [
        Service("ingest", [*cld, "ingest", "--watch", str(media), *at, *flags], work / "ingest.log"),
        Service("train", [*cld, "train", "--device", "cpu", *at, *flags], work / "train.log"),
        Service("query", [sys.executable, "-m", "benchmarks.chaos.reader", str(store), str(work)], work / "query.log"),
    ]
