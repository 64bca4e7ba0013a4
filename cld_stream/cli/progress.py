"""Live displays on a terminal, plain log lines otherwise."""

import math
import sys
import time
from collections import Counter
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cld_stream.cli.output import answer, console, safe
from cld_stream.cli.tables import print_table

if TYPE_CHECKING:
    from cld_stream.pipelines.evaluate import EvalProgress
    from cld_stream.pipelines.ingest import IngestProgress, IngestReport
    from cld_stream.pipelines.report import WatchEvent, WatchProgress, WatchReport
    from cld_stream.pipelines.train import TrainProgress, TrainReport
    from cld_stream.pipelines.tune import TuneProgress, TuneReport

_LINE_EVERY_S = 10.0
_PLANNED = {
    "known": "known", "read": "to read", "continue": "to go on with", "twin": "with the content of others",
    "skip": "to skip", "broken": "that cannot be read",
}  # fmt: skip


class _Display:
    """A panel that is redrawn in place; without a terminal, a line every ten seconds."""

    def __init__(self) -> None:
        one_screen = sys.stdout.isatty()  # else the lines of an answer would go to the terminal, not to the pipe
        live = Live(console=console, refresh_per_second=4, transient=True, redirect_stdout=one_screen)
        self._live = live if console.is_terminal else None
        self._line_due = time.monotonic() + _LINE_EVERY_S

    def __enter__(self) -> Self:
        if self._live and not console.quiet:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live:
            self._live.stop()

    def _show(self, panel: RenderableType, line: str) -> None:
        if self._live:
            self._live.update(panel)
        elif time.monotonic() >= self._line_due:
            self._line_due = time.monotonic() + _LINE_EVERY_S
            console.print(line, markup=False, soft_wrap=True)


def _panel(title: str, share: float, pairs: list[tuple[str, str]]) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    for _ in range(4):
        table.add_column()
    for i in range(0, len(pairs), 2):
        cells = [Text(text, style="dim" if j % 2 == 0 else "") for j, text in enumerate(sum(pairs[i : i + 2], ()))]
        table.add_row(*cells)
    return Group(Text(title, style="bold"), ProgressBar(total=1.0, completed=share, width=60), table)


class IngestDisplay(_Display):
    """Files, frames, frames a second, CPU share, skipped and broken, time left."""

    def __call__(self, p: "IngestProgress") -> None:
        """Show where ingest is."""
        share = p.files_done / p.files_total if p.files_total else 1.0
        rate = p.frames / p.seconds if p.seconds else 0.0
        left = f"{p.seconds / share - p.seconds:,.0f} s" if share > 0.02 else "?"
        pairs = [
            ("files", f"{p.files_done:,} of {p.files_total:,}"), ("frames", f"{p.frames:,} ({rate:,.0f}/s)"),
            ("skipped", f"{p.skipped:,}"), ("broken", f"{p.broken:,}"),
            ("CPU", f"{p.cpu_share:.0%}"), ("time left", left),
        ]  # fmt: skip
        line = ", ".join(f"{name} {value}" for name, value in pairs)
        self._show(_panel(f"Ingest  {safe(p.current)[-60:]}", share, pairs), f"ingest: {line}")


class WatchDisplay(_Display):
    """A panel on a terminal; otherwise a line when something has changed, at most every ten seconds."""

    _said = ""

    def __call__(self, p: "WatchProgress") -> None:
        """Show how watching stands."""
        known = p.files + p.waiting
        pairs = [
            ("files", f"{p.files:,}"), ("waiting to settle", f"{p.waiting:,}"),
            ("taken", f"{p.taken:,}"), ("broken", f"{p.broken:,}"),
            ("frames", f"{p.frames:,}"), ("cameras", f"{p.live} of {p.cameras} up" if p.cameras else "none"),
        ]  # fmt: skip
        line = "ingest: " + ", ".join(f"{name} {value}" for name, value in pairs)
        if self._live or line != self._said:
            title = f"Watching  {safe(p.current)[-60:]}"
            due = time.monotonic() >= self._line_due
            self._show(_panel(title, p.files / known if known else 1.0, pairs), line)
            self._said = line if due else self._said

    def tell(self, e: "WatchEvent") -> None:
        """A line for what a person may have to look after; the rest is in the counts."""
        if e.event == "folder":
            line = f"{e.path} is back" if e.state == "back" else f"{e.path} is gone ({e.reason}): waiting for it"
        elif e.event == "camera":
            line = f"{e.path} is up" if e.state == "up" else f"{e.path} is down ({e.reason}): trying again"
        elif e.event == "store":
            line = f"{e.path} can be written again" if e.state == "well" else f"{e.reason} Waiting for that."
        elif e.outcome in {"BROKEN", "MISSING"} or (e.outcome == "PARTIAL" and e.reason != "still being written"):
            line = f"{e.outcome} {e.path}: {e.reason}"
        else:
            return
        console.print(f"{time.strftime('%H:%M:%S')} {safe(line)}", markup=False, soft_wrap=True)


def _known(value: float | None, form: str = "") -> str:
    return "?" if value is None or math.isnan(value) else format(value, form)


class TrainDisplay(_Display):
    """Loss terms, rates, lag, buffer, and how healthy the features are."""

    def __call__(self, p: "TrainProgress") -> None:
        """Show where training is."""
        decided = p.fed + p.thinned
        share = decided / (decided + p.lag) if decided else 0.0
        pairs = [
            ("step", f"{p.step:,}"), ("loss", _known(p.loss, ".3f")),
            ("instance", _known(p.instance, ".3f")), ("cross-level", _known(p.cld, ".3f")),
            ("frames/s", f"{p.frames_s:,.0f}"), ("data wait", f"{p.data_wait:.0%}"),
            ("lag", f"{p.lag:,} frames"), ("thinned", f"{p.thinned:,}"),
            ("buffer", f"{p.buffered:,} of {p.capacity:,}"), ("groups", _known(p.groups)),
            ("feature std", _known(p.feature_std, ".4f")), ("effective rank", _known(p.effective_rank, ".1f")),
        ]  # fmt: skip
        line = ", ".join(f"{name} {value}" for name, value in pairs)
        self._show(_panel(f"Train  {p.state}", share, pairs), f"train ({p.state}): {line}")


class EvalDisplay(_Display):
    """Which probe is at work, and how far it is."""

    def __call__(self, p: "EvalProgress") -> None:
        """Show where the evaluation is."""
        share, done = p.done / p.total if p.total else 1.0, f"{p.done:,} of {p.total:,}"
        self._show(_panel(f"Eval  {p.stage}", share, [("done", done)]), f"eval: {p.stage} {done}")


class TuneDisplay(_Display):
    """Which short run of how many, and the time left."""

    def __call__(self, p: "TuneProgress") -> None:
        """Show where the comparison is."""
        share = (p.run - 1 + p.step / p.steps) / p.runs
        left = "?" if p.left_s is None else str(timedelta(seconds=round(p.left_s)))
        pairs = [
            ("run", f"{p.run} of {p.runs}"), ("seed", f"{p.seed}"),
            ("step", f"{p.step:,} of {p.steps:,}"), ("time left", left),
        ]  # fmt: skip
        line = ", ".join(f"{name} {value}" for name, value in pairs)
        self._show(_panel(f"Tune  {safe(p.candidate)[-60:]}", share, pairs), f"tune ({safe(p.candidate)}): {line}")


def print_ingest_summary(report: "IngestReport", *, dry_run: bool) -> None:
    """Counts by outcome, then every file that did not go in whole."""
    odd = [f for f in report.files if f.outcome in {"PARTIAL", "BROKEN", "SKIPPED", "MISSING"}]
    if odd:
        print_table(("outcome", "file", "reason"), [(f.outcome, f.path, f.reason) for f in odd])
        answer("")
    if report.counts.get("BROKEN"):
        answer("A BROKEN file is left alone until it changes: copy it again from its origin, or use --retry-broken.")
    if dry_run:
        plan = Counter(f.action for f in report.files)
        answer(
            "Files: " + (", ".join(f"{plan[a]:,} {what}" for a, what in _PLANNED.items() if plan[a]) or "none") + "."
        )
    else:
        counts = ", ".join(f"{n:,} {outcome}" for outcome, n in sorted(report.counts.items()) if n) or "no files"
        dropped = f" {report.dropped:,} of the oldest were dropped." if report.dropped else ""
        answer(f"{report.frames:,} frames added in {report.seconds:.1f} s. Files: {counts}.{dropped}")
    if report.stopped:
        answer(f"Stopped: {len(report.files):,} of {report.files_total:,} files; the same command goes on.")
    for note in report.notes:
        console.print(f"Note: {safe(note)}", markup=False, soft_wrap=True)


def print_watch_summary(report: "WatchReport") -> None:
    """What this run did, in a line."""
    counts = ", ".join(f"{n:,} {outcome}" for outcome, n in sorted(report.outcomes.items())) or "none"
    dropped = f" {report.dropped:,} of the oldest were dropped." if report.dropped else ""
    answer(f"{report.frames:,} frames added in {report.seconds:,.0f} s of watching. Files: {counts}.{dropped}")
    for note in report.notes:
        console.print(f"Note: {safe(note)}", markup=False, soft_wrap=True)


def print_train_summary(report: "TrainReport") -> None:
    """What this run did, in a line."""
    answer(
        f"{report.steps:,} steps, {report.fed:,} frames fed so far, lag {report.lag:,}. "
        f"Checkpoint at step {report.step:,}; snapshot {report.snapshot or 'none yet'}."
    )


def print_tune_report(report: "TuneReport") -> None:
    """The ranking, how sure it is, and how to use the best."""
    if report.standings:
        rows = ((report.candidates[s.index].name, s) for s in report.standings)
        print_table(
            ("rank>", "candidate", "score>", "between seeds>", "ahead of all>", "behind rank 1>"),
            [
                (
                    n,
                    name,
                    f"{s.score:.4f}",
                    f"{s.spread:.4f}" if report.seeds > 1 else "",
                    f"{s.first:.0%}",
                    "" if n == 1 else f"{s.beaten:.0%}",
                )
                for n, (name, s) in enumerate(rows, 1)
            ],
        )
        answer("")
    for line in report.verdict():
        answer(line)
    if report.done < report.runs:
        answer(f"{report.done} of {report.runs} runs are finished and kept; the same command goes on from there.")
    if report.use:
        answer(f"Rank 1: {report.use}")
    if report.misfit:
        answer(safe(f"It needs a store of its own. {report.misfit}"))
    if report.out:
        answer(f"Wrote {safe(report.out)}: use it with --config.")
