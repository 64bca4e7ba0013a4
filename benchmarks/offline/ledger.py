"""Finished cells, one JSON line each, in a file that several processes may append to."""

import fcntl
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["add", "find", "read"]

Line = dict[str, Any]


def read(file: Path) -> list[Line]:
    """Every finished cell, oldest first."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def find(lines: list[Line], cell: "DataclassInstance") -> Line | None:
    """The line of this very cell, every field included."""
    key = asdict(cell)
    return next((line for line in lines if key.items() <= line.items()), None)


def add(file: Path, cell: "DataclassInstance", found: Line) -> None:
    """Append the cell's line, unless another process was first."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as out:
        fcntl.flock(out, fcntl.LOCK_EX)
        if find(read(file), cell) is None:
            out.write(json.dumps(asdict(cell) | found) + "\n")
            out.flush()
