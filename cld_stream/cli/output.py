"""What a person or a program reads: stdout carries the answer, stderr everything else."""

import io
import json
import logging
import math
import os
import select
import sys
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Any, cast

from rich.console import Console
from rich.logging import RichHandler

from cld_stream.storage.durable import FULL

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

console = Console(stderr=True, highlight=False, emoji=False)  # names are shown as they are


def safe(text: object) -> str:
    r"""Text from outside (a file name, a reason) as one harmless line: control bytes and surrogates become `\x..`."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def escape_what_cannot_be_encoded() -> None:
    """A name that stdout or stderr has no character for is shown escaped, whatever the locale."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class _Lossy(io.FileIO):
    """A file that takes what it can: what fails with `of` is lost, and another failure says that stdout had it."""

    def __init__(self, fd: int, of: type[OSError]) -> None:
        super().__init__(fd, "w", closefd=False)
        self._of, self.lost, self.told = of, False, False

    def write(self, data: "ReadableBuffer", /) -> int:
        try:
            while (taken := super().write(data)) is None:  # who shares it has set it not to wait, as node and ssh do
                select.select([], [self], [])
            return taken
        except OSError as error:
            if not isinstance(error, self._of):
                raise OSError(error.errno, error.strerror, "stdout") from error
            self.lost = True
            return memoryview(data).nbytes


def work_without_readers() -> None:
    """What stderr does not take is lost and ends nothing; so is an answer whose reader has gone, as `| head` does.

    So is what would go to a stream that was closed before the start; and no file of a store gets its number, to which
    libraries write their complaints.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: PTH123, SIM115 - until the end
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: PTH123, SIM115
    if isinstance(sys.stderr, io.TextIOWrapper) and sys.stderr is sys.__stderr__:
        sys.stderr = _lossy(sys.stderr, OSError)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout is sys.__stdout__:
        sys.stdout = _lossy(sys.stdout, BrokenPipeError)


def _lossy(stream: io.TextIOWrapper, of: type[OSError]) -> io.TextIOWrapper:
    at_once = stream.line_buffering or stream.write_through
    raw = io.BufferedWriter(_Lossy(stream.fileno(), of))
    return io.TextIOWrapper(raw, stream.encoding, stream.errors, line_buffering=at_once)


def answer(text: str) -> None:
    """Print the answer of a command to stdout."""
    sys.stdout.write(text + "\n")


def answer_json(value: Any) -> None:
    """Print the answer of a command to stdout as JSON."""
    answer(json.dumps(_plain(value), indent=2, default=str))


def answer_line(value: Any, *, may_be_lost: bool = False) -> None:
    """Print one of many answers to stdout as JSON in a line, at once.

    Args:
        may_be_lost: on a full disk it is printed later, or not at all; that its reader has gone is said once.
    """
    try:
        answer(json.dumps(_plain(value), default=str))
        sys.stdout.flush()
    except OSError as error:
        if not may_be_lost or error.errno not in FULL:
            raise
    raw = getattr(sys.stdout.buffer, "raw", None)
    if may_be_lost and isinstance(raw, _Lossy) and raw.lost and not raw.told:
        raw.told = True
        logging.getLogger("cld_stream.cli").warning("the reader of stdout has gone: it goes on, and its lines are lost")


def finish_answer() -> None:
    """What could not be written of the answer is an error, and none any more when the interpreter ends."""
    try:
        if sys.stdout:
            sys.stdout.flush()
    except OSError:
        sys.stdout = None
        raise


def _plain(value: Any) -> Any:
    """The same with null for NaN and infinity, which JSON has not."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {name: _plain(one) for name, one in value.items()}
        case list() | tuple():
            return [_plain(one) for one in value]
    return value


def fail(message: str) -> None:
    """One line to stderr: what, where, why, what to do next."""
    if isinstance(console.file, _LogLines):
        logging.getLogger("cld_stream.cli").error(safe(message))
    else:
        console.print(safe(message), style="red", markup=False, soft_wrap=True)


class _LogLines(io.TextIOBase):
    """What would be printed for a person, as log lines."""

    def write(self, text: str) -> int:
        for line in filter(str.strip, text.splitlines()):
            logging.getLogger("cld_stream.cli").info(line.rstrip())
        return len(text)


class _Harmless(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return safe(super().formatMessage(record))


class _AsJson(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        said = {"time": time, "level": record.levelname, "logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            said["exception"] = self.formatException(record.exc_info)
        return json.dumps(said)


def set_up_logging(verbosity: int, *, debug: bool, as_json: bool = False) -> None:
    """Warnings by default; `-v` adds progress notes, `--debug` everything. A terminal gets colours.

    As JSON, everything on stderr is a log line, what is else printed for a person too, and the events of training.
    """
    level = logging.DEBUG if debug else (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbosity, 2)]
    if as_json:
        handler: logging.Handler = logging.StreamHandler()
        handler.setFormatter(_AsJson())
        console.file = cast(IO[str], _LogLines())
        logging.getLogger("cld_stream.cli").setLevel(logging.INFO)
    elif console.is_terminal:
        handler = RichHandler(console=console, show_path=False, markup=False)
        handler.setFormatter(_Harmless("%(message)s"))
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(_Harmless("%(asctime)s %(levelname)s %(message)s"))
    handler.setLevel(min(level, logging.INFO) if as_json else level)  # below it loggers let more pass, for train.log
    log = logging.getLogger("cld_stream")
    log.handlers[:] = [handler]
    log.setLevel(level)
