"""Tables on stdout: wide enough for a pipe, fitted to a terminal."""

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from cld_stream.cli.output import answer, console, safe

if TYPE_CHECKING:
    from cld_stream.pipelines.evaluate import EvalReport
    from cld_stream.pipelines.neighbours import Hit


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> None:
    """Print rows, without any name no header. Text is harmless; a column name ending in `>` is right-aligned."""
    table = Table(
        title=title, box=None, pad_edge=False, show_header=any(columns), header_style="bold", title_justify="left"
    )
    for name in columns:
        table.add_column(name.removesuffix(">"), justify="right" if name.endswith(">") else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_text(v) for v in row))
    out = Console(highlight=False, emoji=False)
    if not out.is_terminal:
        out = Console(highlight=False, emoji=False, width=200)
    out.print(table, markup=False)


def print_hits(hits: "Sequence[Hit]") -> None:
    """Print the neighbours of a query, best first."""
    columns = ("rank>", "similarity>", "source", "at>", "taken", "frame>", "")
    print_table(columns, [_hit(h) for h in hits])


def _hit(h: "Hit") -> tuple[object, ...]:
    gone = "picture gone" if h.gone else ""
    return h.rank, f"{h.similarity:.3f}", h.source, clock(h.time_s), when(h.wall_utc), h.frame, gone


def print_eval(report: "EvalReport") -> None:
    """Print what the probes say: the encoder and the protocol, then a line a number."""
    if report.frames:
        answer(safe(_judged(report)) + "\n")
    if report.numbers:
        print_table(
            ("probe", "value>", "range", "better", "n>", "what it says"),
            [(n.name, f"{n.value:.3f}", f"{n.low:g} to {n.high:g}", n.better, f"{n.n:,}", n.meaning)
             for n in report.numbers],
        )  # fmt: skip
    if report.skipped:
        some = "; ".join(f"{path}: {reason}" for path, reason in report.skipped[:3])
        more = f"; and {len(report.skipped) - 3:,} more (--json names all)" if len(report.skipped) > 3 else ""
        _note(f"Skipped {len(report.skipped):,} of {report.frames + len(report.skipped):,} pictures: {some}{more}")
    for note in report.notes:
        _note(note)
    if report.stopped:
        _note("Stopped before the end, as asked; nothing was written.")


def _judged(report: "EvalReport") -> str:
    encoder = f"snapshot {report.snapshot}" if report.snapshot else f"checkpoint {report.checkpoint}"
    alone = report.sequences == report.frames
    frames = f"{report.frames:,} frames" + ("" if alone else f" of {report.sequences:,} sequences")
    by = f"{len(report.classes)} classes; {report.protocol}" if report.protocol else "without labels"
    return f"{encoder}, step {report.step:,}, space {report.space}: {frames}, {by}"


def _note(text: str) -> None:
    console.print(safe(text), markup=False, soft_wrap=True)


def clock(seconds: float) -> str:
    """Position in a source, as m:ss.s or h:mm:ss.s; empty when it is no number."""
    if not math.isfinite(seconds):
        return ""
    minutes, s = divmod(seconds, 60)
    hours, m = divmod(int(minutes), 60)
    return f"{hours}:{m:02d}:{s:04.1f}" if hours else f"{m}:{s:04.1f}"


def when(utc: float | None) -> str:
    """A moment in UTC; empty when unknown, or in no calendar."""
    try:
        return "" if utc is None else datetime.fromtimestamp(utc, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return ""


def size(n: float) -> str:
    """Bytes for a person."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


def _text(value: object) -> str:
    return "" if value is None else safe(value)
