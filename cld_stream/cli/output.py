"""What a person or a program reads: stdout carries the answer, stderr everything else."""

import json
import logging
import sys
from typing import Any

from rich.console import Console
from rich.logging import RichHandler

console = Console(stderr=True, highlight=False)


def safe(text: object) -> str:
    r"""Text from outside (a file name, a reason) as one harmless line: control bytes and surrogates become `\x..`."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def answer(text: str) -> None:
    """Print the answer of a command to stdout."""
    sys.stdout.write(text + "\n")


def answer_json(value: Any) -> None:
    """Print the answer of a command to stdout as JSON."""
    answer(json.dumps(value, indent=2, default=str))


def answer_line(value: Any) -> None:
    """Print one of many answers to stdout as JSON in a line, at once."""
    answer(json.dumps(value, default=str))
    sys.stdout.flush()


def fail(message: str) -> None:
    """One line to stderr: what, where, why, what to do next."""
    console.print(safe(message), style="red", markup=False, soft_wrap=True)


def set_up_logging(verbosity: int, *, debug: bool) -> None:
    """Warnings by default; `-v` adds progress notes, `--debug` everything. A terminal gets colours."""
    level = logging.DEBUG if debug else (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbosity, 2)]
    if console.is_terminal:
        handler: logging.Handler = RichHandler(console=console, show_path=False, markup=False)
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log = logging.getLogger("cld_stream")
    log.handlers[:] = [handler]
    log.setLevel(level)
