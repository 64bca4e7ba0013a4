"""A long-running verb shows that it is alive: in the catalog, to the service manager, and on a port for probes."""

import logging
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Literal, Self

from cld_stream.config import OpsSettings
from cld_stream.errors import StoreBusyError, StoreError, StoreFullError
from cld_stream.storage.store import Store

__all__ = ["Life", "Numbers"]

Numbers = Mapping[str, float | int | str | None]
_BEAT_S, _ASLEEP_S = 2.0, 10.0
_GROWTH_S, _COUNT_S = 3600.0, 60.0
_ASLEEP = ("waiting", "watching")
log = logging.getLogger("cld_stream.life")


class Life:
    """What others may know of this process. A context manager; enter it when the verb's lock is held.

    Only the loop itself calls `beat`: a loop that hangs is silent everywhere, whatever its threads do.

    Args:
        store: what it works on.
        kind: the verb.
        settings: the port, and how long a silence is allowed.
        argv: the command line to note, where the process' own must not be seen (a camera's password).
        warns: whether a full disk is worth a warning; a watch says so itself.

    Attributes:
        state, numbers: as of the last beat that was written down.

    Raises (on entering):
        PortTakenError: something else listens on the port.
        UsageError: the port cannot be had.
    """

    def __init__(
        self,
        store: Store,
        kind: Literal["ingest", "train"],
        settings: OpsSettings,
        argv: Sequence[str] | None = None,
        *,
        warns: bool = True,
    ) -> None:
        self.kind, self.store = kind, store
        self.state, self.numbers = "starting", dict[str, float | int | str | None]()
        self.ready = False
        self._settings, self._argv = settings, sys.argv if argv is None else argv
        self._moved = self._written = time.monotonic()
        self._counted = deque([(self._moved, 0)])  # (when, frames), one a minute
        self._open = ExitStack()
        self._run: int | None = None
        self._complained, self._level = False, logging.WARNING if warns else logging.INFO

    @property
    def silent_s(self) -> float:
        """Time since the last sign of progress [s]."""
        return time.monotonic() - self._moved

    @property
    def stalled(self) -> bool:
        """Whether it has been silent for longer than is allowed."""
        return self.silent_s > self._settings.stalled_s

    def __enter__(self) -> Self:
        if self._settings.port:
            from cld_stream.pipelines.probes import serve

            self._open.callback(serve(self, self._settings))
        try:
            self._begin()
        except BaseException:
            self._open.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        _notify("STOPPING=1")
        self._open.close()
        outcome = "done" if e is None else _told(e)
        try:
            if self._run is not None:
                self.store.catalog.end_run(self._run, outcome, hurry=e is not None)
        except StoreError as error:
            log.info("how this run ended could not be written: %s", error)

    def _begin(self) -> None:
        """Note the run; where that is not possible now, a later beat does it."""
        try:
            self._run = self.store.catalog.begin_run(self.kind, self._argv)
        except StoreBusyError:
            return
        except StoreFullError as error:
            self._complain(error)

    def _complain(self, error: StoreError | None) -> None:
        """Say it once: what matters fails by itself."""
        if error is not None and not self._complained:
            log.log(self._level, "no sign of life can be written, so `status` is out of date: %s", error)
        self._complained = error is not None

    def beat(self, state: str, numbers: Callable[[], Numbers], *, now: bool = False) -> None:
        """The loop has come round. Every two seconds, and when the state changes, it is written down.

        Args:
            state: in a word; while `waiting` or `watching` it is written down every ten seconds only.
            numbers: how it fares; asked for only when it is written down.
            now: write it down whatever the time.
        """
        self._moved = time.monotonic()
        due = self._moved - self._written >= (_ASLEEP_S if state in _ASLEEP else _BEAT_S)
        if not (due or now or state != self.state):
            return
        said = dict(numbers())
        self._add_rate(said)
        self._written, self.state, self.numbers = self._moved, state, {"state": state, **said}
        _notify(f"READY=1\nWATCHDOG=1\nSTATUS={state}: {_brief(self.numbers)}")
        self.ready = True
        try:
            if self._run is None:
                self._begin()
            else:
                self.store.catalog.heartbeat(self._run, self.numbers)
                self._complain(None)
        except StoreBusyError:  # the next beat will do
            return
        except StoreError as error:
            self._complain(error)

    def _add_rate(self, said: dict[str, float | int | str | None]) -> None:
        """Where frames are counted: `frames_s`, added since the last beat; `growth_s`, in the last hour or this run."""
        frames = said.get("frames")
        if isinstance(frames, int):
            before = self.numbers.get("frames") or 0
            assert isinstance(before, int)
            said.setdefault("frames_s", (frames - before) / max(1e-6, self._moved - self._written))
            said["growth_s"] = self._growth_s(frames)

    def _growth_s(self, frames: int) -> float:
        counted, now = self._counted, self._moved
        if now - counted[-1][0] >= _COUNT_S:
            counted.append((now, frames))
        while len(counted) > 1 and now - counted[1][0] >= _GROWTH_S:
            counted.popleft()
        return (frames - counted[0][1]) / max(1e-6, now - counted[0][0])


def _told(e: BaseException) -> str:
    """What the catalog can hold: a path in it may not be text."""
    said = "Ctrl-C, twice" if isinstance(e, KeyboardInterrupt) else f"{type(e).__name__}: {e}"[:500]
    return said.encode(errors="backslashreplace").decode()


def _brief(numbers: Numbers) -> str:
    """The numbers alone: a file name could say other things to the service manager."""
    return ", ".join(f"{name} {value:.5g}" for name, value in numbers.items() if isinstance(value, int | float))


def _notify(message: str) -> None:
    """Tell systemd, where it listens (`man sd_notify`)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to:
            to.setblocking(False)  # it may have stopped listening
            to.connect("\0" + address[1:] if address.startswith("@") else address)
            to.sendall(message.encode())
