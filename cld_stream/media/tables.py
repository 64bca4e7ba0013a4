"""Lists of files and tables of sequences, as a user gives them with `@`."""

import csv
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import parse_qsl

from cld_stream.errors import UsageError
from cld_stream.media.job import Member

__all__ = ["CLOCKS", "TableSequence", "clock_of", "read_list", "read_rows", "read_table", "split_filter"]

CLOCKS = ("time", "frame", "order")
"""Columns that order the pictures of a sequence; the first one that is there counts."""


@dataclass(frozen=True, slots=True)
class TableSequence:
    """One `sequence` value of a table: its pictures in order."""

    name: str
    members: tuple[Member, ...]
    label: str | None
    split: str | None


def split_filter(text: str) -> tuple[Path, dict[str, str]]:
    """`labels.tsv?split=train&label=3` -> (path, {column: value}). An existing file of that very name wins."""
    path, mark, query = text.partition("?")
    if not mark or Path(text).exists():
        return Path(text), {}
    return Path(path), dict(parse_qsl(query, keep_blank_values=True))


def read_list(path: Path) -> list[str]:
    """Paths, one a line, relative to the list; `#` starts a comment line. NUL-separated lists work too."""
    text = _read_text(path)
    entries = text.split("\0") if "\0" in text else text.splitlines()
    return [str(path.parent / e) for e in entries if e.strip() and not e.startswith("#")]


def read_table(path: Path, where: dict[str, str], sequence_fps: float) -> list[TableSequence]:
    """Sequences in order of first appearance; pictures of one by `time`, else `frame`, else `order`.

    Args:
        path: tab-separated with a header: `path` (relative to the table), `sequence`, one of `time` (seconds, or
            ISO 8601 date and time), `frame` or `order` (numbers), optional `label` and `split`; others are ignored.
        where: rows count only if these columns hold these values.
        sequence_fps: frames per second that `frame` or `order` numbers stand for.

    Raises:
        UsageError: a column is missing, a number does not parse, or no row is left.
    """
    columns, lines = _open_table(path)
    clock = next((c for c in CLOCKS if c in columns), "")
    missing = ({"path", "sequence"} | set(where)) - columns
    if missing or not clock:
        needed = ", ".join(sorted(missing)) or "time, frame or order"
        raise UsageError(
            f"{path}: the table has no column {needed}; its first line must name path, sequence and one of time, frame,"
            f" order, separated by tabs. Found: {_named(columns)}."
        )
    rows: dict[str, list[dict[str, str]]] = {}
    for row in _chosen(path, lines, where):
        rows.setdefault(row["sequence"], []).append(row)
    parse = clock_of(path, clock)
    return [_sequence(path, n, r, clock, parse, sequence_fps) for n, r in rows.items()]


def read_rows(path: Path, where: dict[str, str], needed: set[str]) -> tuple[set[str], list[dict[str, str]]]:
    """Names of the columns, and the rows as they stand; the column "" of a row is its line number.

    Args:
        path: tab-separated with a header.
        where: rows count only if these columns hold these values.
        needed: columns that must be there; `path` must have a value.

    Raises:
        UsageError: a column is missing, or no row is left.
    """
    columns, lines = _open_table(path)
    missing = (needed | set(where)) - columns
    if missing:
        raise UsageError(
            f"{path}: the table has no column {', '.join(sorted(missing))}; its first line must name "
            f"{', '.join(sorted(needed))}, separated by tabs. Found: {_named(columns)}."
        )
    return columns, _chosen(path, lines, where)


def _open_table(path: Path) -> tuple[set[str], "csv.DictReader[str]"]:
    text = _read_text(path)
    if (at := text.find("\0")) >= 0:
        line = text.count("\n", 0, at) + 1
        raise UsageError(f"{path}: line {line} holds a zero byte, as no path does. Save the table as UTF-8 text.")
    reader = csv.DictReader(text.split("\n"), delimiter="\t", quoting=csv.QUOTE_NONE)
    with _told(path, reader):
        return set(reader.fieldnames or ()), reader


@contextmanager
def _told(path: Path, lines: "csv.DictReader[str]") -> Iterator[None]:
    try:
        yield
    except csv.Error as error:
        raise UsageError(
            f"{path}: line {lines.line_num + 1} cannot be read ({error}). Write lines that end with a line feed, and "
            "columns separated by tabs."
        ) from None


def _chosen(path: Path, lines: "csv.DictReader[str]", where: dict[str, str]) -> list[dict[str, str]]:
    with _told(path, lines):
        rows = [
            row | {"": str(lines.line_num)}
            for row in lines
            if row["path"] and all(row[c] == v for c, v in where.items())
        ]
    if not rows:
        asked = " and ".join(f"{column}={value}" for column, value in where.items())
        wanted = f"no row has {asked}; check the filter after `?`" if where else "no rows in it"
        raise UsageError(f"{path}: {wanted}.")
    return rows


def _named(columns: set[str]) -> str:
    return ", ".join(sorted(columns)) or "nothing"


def _sequence(
    path: Path,
    name: str,
    rows: list[dict[str, str]],
    clock: str,
    parse: Callable[[dict[str, str]], tuple[float, bool]],
    fps: float,
) -> TableSequence:
    timed = sorted(((*parse(row), row) for row in rows), key=lambda t: t[0])
    first = timed[0][0]
    members = []
    for value, is_date, row in timed:
        time_s = value - first if is_date else value if clock == "time" else (value - first) / fps
        members.append(Member(path.parent / row["path"], time_s, value if is_date else None))
    return TableSequence(name, tuple(members), rows[0].get("label"), rows[0].get("split"))


def clock_of(path: Path, clock: str) -> Callable[[dict[str, str]], tuple[float, bool]]:
    """Reads the column `clock` of a row of the table: (a number, whether it is a date [s since 1970])."""

    def parse(row: dict[str, str]) -> tuple[float, bool]:
        text = row[clock] or ""
        try:
            return float(text), False
        except ValueError:
            pass
        try:
            if clock == "time":
                stamp = datetime.fromisoformat(text)
                return (stamp if stamp.tzinfo else stamp.replace(tzinfo=UTC)).timestamp(), True
        except ValueError:
            pass
        raise UsageError(f"{path}: line {row['']}: {clock} is {text!r}; expected a number.")

    return parse


def _read_text(path: Path) -> str:
    try:
        if stat.S_ISCHR(path.stat().st_mode):
            raise UsageError(f"@{path}: this is a device, not a list. Check the path.")
        return path.read_bytes().decode("utf-8-sig", "surrogateescape").replace("\r\n", "\n")
    except OSError as error:
        raise UsageError(f"@{path}: cannot read the list: {error.strerror}. Check the path.") from None  # fmt: skip
