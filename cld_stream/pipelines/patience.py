"""What a daemon does where it cannot go on now: wait and try again, or do without; it says so once."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from cld_stream.errors import CldError, LockHeldError, StoreBusyError, StoreFullError

__all__ = ["Attempts", "Patience"]

T = TypeVar("T")
_RETRY_S = 5.0
_TICK_S = 0.2


class Patience:
    """For what must be done: waits while the disk is full or another process keeps the catalog.

    Args:
        say: told why it waits and, with None, that it goes on.
        alive: called several times a second while it waits.
        stop: asked then; once true, it does not wait any more.
    """

    def __init__(self, say: Callable[[str | None], None], alive: Callable[[], None], stop: Callable[[], bool]) -> None:
        self._say, self._alive, self._stop = say, alive, stop
        self.waiting = False

    def __call__(self, work: Callable[[], T]) -> T:
        """What the work gives, once it could be done.

        Raises:
            StoreFullError, StoreBusyError: it could not, and an end was asked for.
        """
        while True:
            try:
                done = work()
            except (StoreFullError, StoreBusyError) as error:
                if self._stop():
                    raise
                if not self.waiting:
                    self._say(str(error))
                self.waiting = True
                self._pause()
            else:
                if self.waiting:
                    self._say(None)
                self.waiting = False
                return done

    def _pause(self) -> None:
        until = time.monotonic() + _RETRY_S
        while time.monotonic() < until and not self._stop():
            self._alive()
            time.sleep(_TICK_S)


class Attempts:
    """For what can be done later: a failure is told once, and that it is over."""

    def __init__(self, log: logging.Logger) -> None:
        self._log, self._failing = log, dict[str, CldError | OSError]()

    def attempt(self, what: str, work: Callable[[], object], *, part: bool = False) -> bool:
        """Do it, if that is possible now; whether it was.

        Args:
            what: in words that make a sentence with "failed": "a checkpoint".
            part: it is not done with this alone; `over` is called when it is.
        """
        try:
            work()
        except LockHeldError as error:
            self._log.info("%s was left to another process: %s", what, error)
            return False
        except (CldError, OSError) as error:
            if what not in self._failing:
                self._log.error("%s failed; training goes on, and it is tried again: %s", what, error)
            self._failing[what] = error
            return False
        if not part:
            self.over(what)
        return True

    def over(self, what: str) -> None:
        """It has worked."""
        if what in self._failing:
            self._log.warning("%s has worked again", what)
            del self._failing[what]

    def failure(self, what: str) -> CldError | OSError | None:
        """Why it failed the last time; None where it did not."""
        return self._failing.get(what)
