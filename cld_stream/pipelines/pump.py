"""An iterator run in a thread of its own, so that its consumer can wait for it with a time limit."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

__all__ = ["Pump"]

log = logging.getLogger("cld_stream.ingest")
T = TypeVar("T")
_AHEAD = 64  # items that may wait


class Pump(Generic[T]):
    """Draws from an iterator in the background, once the machine lets a thread start.

    Args:
        make: gives the iterator; called in the thread, which also closes it.
    """

    def __init__(self, make: Callable[[], Iterator[T]]) -> None:
        self._make = make
        self._items: queue.Queue[T] = queue.Queue(_AHEAD)
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._refused = False
        self._begin()

    def get(self, timeout_s: float) -> T | None:
        """The next item; None if there is none yet.

        Raises:
            StopIteration: the iterator has ended.
            Exception: whatever it raised, after the items before that.
        """
        thread = self._begin()
        if thread is None:
            time.sleep(timeout_s)
            return None
        alive = thread.is_alive()  # asked first: what it put before it ended is then seen
        try:
            return self._items.get(timeout=timeout_s) if alive else self._items.get_nowait()
        except queue.Empty:
            if alive:
                return None
        if self._error is not None:
            raise self._error
        raise StopIteration

    def stop(self, timeout_s: float) -> bool:
        """Ask the thread to close the iterator; whether it has done so in time."""
        self._stop.set()
        if self._thread is None:
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _begin(self) -> threading.Thread | None:
        """Its thread; None while the machine is out of processes or memory."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="pump", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                if not self._refused:
                    log.warning("%s; trying again", error)
                self._refused = True
                return None
            self._thread = thread
        return self._thread

    def _run(self) -> None:
        try:
            for item in (items := self._make()):
                while not self._stop.is_set():
                    try:
                        self._items.put(item, timeout=0.2)
                        break
                    except queue.Full:
                        continue
                if self._stop.is_set():
                    close = getattr(items, "close", None)
                    if close is not None:
                        close()
                    return
        except BaseException as error:  # noqa: BLE001 - raised again in the consumer
            self._error = error
