"""Tables on stdout: wide enough for a pipe, fitted to a terminal."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from cld_stream.cli.output import safe

if TYPE_CHECKING:
    from cld_stream.pipelines.neighbours import Hit


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> None:
    """Print rows; numbers stand right, text is shown harmlessly. A column name ending in `>` is right-aligned."""
    table = Table(title=title, box=None, pad_edge=False, header_style="bold", title_justify="left")
    for name in columns:
        table.add_column(name.removesuffix(">"), justify="right" if name.endswith(">") else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_text(v) for v in row))
    out = Console(highlight=False)
    if not out.is_terminal:
        out = Console(highlight=False, width=200)
    out.print(table, markup=False)


def print_hits(hits: "Sequence[Hit]") -> None:
    """Print the neighbours of a query, best first."""
    print_table(
        ("rank>", "similarity>", "source", "at>", "taken", "frame>", ""),
        [(h.rank, f"{h.similarity:.3f}", h.source, clock(h.time_s), when(h.wall_utc), h.frame, _note(h)) for h in hits],
    )


def _note(hit: "Hit") -> str:
    return "picture gone" if hit.gone else ""


def clock(seconds: float) -> str:
    """Position in a source, as m:ss.s or h:mm:ss.s."""
    minutes, s = divmod(seconds, 60)
    hours, m = divmod(int(minutes), 60)
    return f"{hours}:{m:02d}:{s:04.1f}" if hours else f"{m}:{s:04.1f}"


def when(utc: float | None) -> str:
    """A moment in UTC; empty when unknown."""
    return "" if utc is None else datetime.fromtimestamp(utc, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def size(n: float) -> str:
    """Bytes for a person."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


def _text(value: object) -> str:
    return "" if value is None else safe(value)
