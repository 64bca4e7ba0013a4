"""SIGINT and SIGTERM: the first asks for a clean end, a second SIGINT ends at once."""

import signal
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Self

from cld_stream.cli.output import console


class StopSignals:
    """Context manager; while it is open, `stop()` tells whether an end was asked for."""

    def __init__(self) -> None:
        self._asked = False

    def __call__(self) -> bool:
        """Whether to finish what is at hand and end."""
        return self._asked

    def __enter__(self) -> Self:
        self._old = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True
        with suppress(RuntimeError):  # it came while something was being said: a stream takes no words within words
            console.print(
                "Stopping: finishing what is at hand. Press Ctrl-C again to end at once (nothing committed is lost).",
                soft_wrap=True,
            )
