"""Finished cells as a page: a table a track, what the numbers say, the sweep, and curves as pictures beside it."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.offline import ledger
from benchmarks.stream import curves
from benchmarks.stream.findings import alarms, findings, staleness, told
from benchmarks.stream.rows import ROWS, in_table
from benchmarks.stream.tracks import TRACKS

__all__ = ["ablation", "grouped", "spread", "summary", "sweep", "write"]

Line = dict[str, Any]
Groups = dict[tuple[str, str], list[Line]]

NOTES = "## Notes"

_HOW = """Single pass from scratch, no labels, no task ids; every row of a track has the same memory and the same CBP
(2 views x batch x steps; without replay the memory is a batch, and 1 to 7% more is spent: frames before the first step
of the others are trained on, too). A row is a few settings on the `Learner`, `ReplayBuffer` and `Feed` of the daemon.
No replay: the memory is the newest batch, and every step that this batch is worth is taken on it. i.i.d.: the same
frames in random order; with SimCLR they belong to the table of B, elsewhere to what was asked besides. Heads: SimCLR an
MLP with batch norm, as published; NPID and MoCo, with CLD or not, a linear layer, as published; the recipe `stream` a
linear layer with batch norm. The recipe, shuffled or not, takes up to half of its second views from other frames of the
same recording within two seconds, which no baseline does: on eth80 and gtsrb-tracks, folders of pictures that count as
25 frames a second, from any other view of the same object or sign; on B from a near-repeat of the same picture, where
one within two seconds is remembered; on A, where no frame says where it comes from, none. Every row is scored as
published: averaged weights, batch-norm statistics from its own memory.
The linear probe learns from 4,000 labelled frames of the stream on A, 4,000 pictures that are in no clip on B, every
fourth frame on gtsrb-tracks and every frame on eth80.
FA: linear probe (penalty 1e-3) after the whole stream, all classes. CA: mean over ten even places of the stream of kNN
(k 20) on the backbone, all classes, every time with the same 2,000 labelled frames and 1,000 questions at most, as in
the curves. kNN: on the backbone (h) and on f_I, at the end, with everything. Linear accuracy before the end: 2,000
questions. Percent, mean ± standard deviation over seeds. Learning rates: the sweep below, one seed, a miniature of the
stream, judged on held-out train data; the best one is at no edge of it, unless seven rates were not enough. CPU seconds
and peak memory without and with the data, each cell in a process of its own."""


def write(out: Path) -> None:
    """Rewrite FILE.md and the curves beside FILE.jsonl; what stands below "Notes" was written by hand and stays."""
    lines, page = ledger.read(out), out.with_suffix(".md")
    asked = [line for line in lines if line["tuning"] or not line["stream"]["held_out"]]
    final, tuned = grouped(asked, tuning=False), [line for line in asked if line["tuning"]]
    named = {key: lines for key, lines in final.items() if key[1] in ROWS}
    found = [*named.items(), *grouped(tuned, tuning=True).items()]
    table = [line for (track, name), cells in found if in_table(track, name) for line in cells]
    text = ["# Learning from streams", "", *_stamp(lines, table), "", *_HOW.splitlines()]
    for track in _tracks(named):
        text += ["", f"## Track {track}", "", _size(track, named), "", *summary(track, named)]
        picture = curves.draw(track, named, out)
        text += ["", f"![accuracy against frames seen]({picture.name})", "", *findings(track, named)]
    if changed := ablation(final):
        text += ["", "## Rows with one thing changed", "", *changed]
    if stale := staleness(named):
        text += ["", "## Track D: the cost of stale features", "", *stale]
    if said := alarms(named):
        text += ["", "## The guard", "", *said]
    if tuned:
        text += ["", "## Learning rates", "", *sweep(tuned)]
    before = page.read_text() if page.exists() else ""
    notes = before[before.index(NOTES) :].rstrip() if NOTES in before else NOTES
    page.write_text("\n".join([*text, "", notes, ""]))


def grouped(lines: Sequence[Line], *, tuning: bool) -> Groups:
    """Lines by track and row, rows in the table's order; of a row that ran with several settings the newest ones.

    In a sweep the rate is none of them.
    """
    groups: Groups = {}
    for line in lines:
        if line["tuning"] == tuning:
            groups.setdefault((line["track"], line["row"]), []).append(line)
    place = {name: i for i, name in enumerate(ROWS)}
    keys = sorted(groups, key=lambda key: (list(TRACKS).index(key[0]), place.get(key[1], len(place)), key[1]))
    return {key: [line for line in groups[key] if _setup(line) == _setup(groups[key][-1])] for key in keys}


def _setup(line: Line) -> tuple[Line, Line]:
    varied = {"optim.lr"} if line["tuning"] else set()
    return {k: v for k, v in line["overrides"].items() if k not in varied}, line["stream"]


def summary(track: str, groups: Groups) -> list[str]:
    """A row for each learner."""
    rows = ["| row | | seeds | rate | FA | CA | kNN h | kNN f_I | CBP | CPU s | MB |", "| --- " * 11 + "|"]
    for (where, name), lines in groups.items():
        if where == track:
            scores = " | ".join(spread([line[k] for line in lines]) for k in ("linear", "ca", "knn", "knn_f"))
            rows.append(
                f"| {name} | {ROWS[name].what} | {len(lines)} | {lines[0]['overrides']['optim.lr']:g} | {scores} | "
                f"{max(line['cbp'] for line in lines):,} | {mean(line['cpu_seconds'] for line in lines):.0f} | "
                f"{max(line['peak_mb'] for line in lines)} |"
            )
    return rows


def ablation(groups: Groups) -> list[str]:
    """Rows with settings on top (`--set`), less the row itself, over the seeds and at the rate of both."""
    rows = []
    for (track, name), lines in groups.items():
        row, _, setting = name.partition("[")
        plain = {line["seed"]: line for line in groups.get((track, row), [])}
        pairs = [(plain[b["seed"]], b) for b in lines if b["seed"] in plain]
        pairs = [(a, b) for a, b in pairs if _without(setting, a) == _without(setting, b)]
        if setting and pairs:
            gains = [spread([b[k] - a[k] for a, b in pairs], "+") for k in ("linear", "ca", "knn", "knn_f")]
            score = spread([b["linear"] for _, b in pairs])
            rows.append(f"| {track} | {row}: {setting[:-1]} | {len(pairs)} | {score} | {' | '.join(gains)} |")
    return told(
        "At the rate tuned for the row as it is, with its seeds, memory and CBP. Differences from the row as it is.",
        ["track", "changed", "seeds", "FA", "difference in FA", "in CA", "in kNN h", "in kNN f_I"],
        rows,
    )


def _without(setting: str, line: Line) -> Line:
    """The line's settings but those that stand in `section.key=value,...]`."""
    keys = {item.partition("=")[0] for item in setting.split(",")}
    return {k: v for k, v in line["overrides"].items() if k not in keys}


def sweep(lines: Sequence[Line]) -> list[str]:
    """Linear accuracy on held-out train data: a row for each learner, a column for each rate."""
    groups = grouped(lines, tuning=True)
    rates = sorted({line["overrides"]["optim.lr"] for asked in groups.values() for line in asked})
    rows = ["| track | row | " + " | ".join(f"rate {r:g}" for r in rates) + " |", "| --- " * (2 + len(rates)) + "|"]
    for (track, name), asked in groups.items():
        found = {line["overrides"]["optim.lr"]: line["linear"] for line in asked}
        cells = (f"{100 * found[r]:.1f}" if r in found else "" for r in rates)
        rows.append(f"| {track} | {name} | {' | '.join(cells)} |")
    return rows


def spread(values: Sequence[float], sign: str = "") -> str:
    """Mean ± standard deviation in percent."""
    around = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * mean(values):{sign}.1f}{around}"


def _tracks(groups: Groups) -> list[str]:
    return list(dict.fromkeys(track for track, _ in groups))


def _size(track: str, groups: Groups) -> str:
    mine = [lines[0] for key, lines in groups.items() if key[0] == track]
    line = min(mine, key=lambda line: line["overrides"]["optim.fresh"])  # not one without replay
    o, stream = line["overrides"], line["stream"]
    return (
        f"{stream['source']}, {line['points'][-1]['frames']:,} frames of {stream['size']} pixels, views of "
        f"{o['encoder.crop']}; ResNet-18 of width {o['encoder.width']:g}; memory {o['buffer.capacity']:,} frames; "
        f"batch {o['optim.batch']}, of which {o['optim.shown']} new, of {o['optim.fresh']} that come with it; steps "
        f"for each such batch: {o['train.updates_per_step']}; bf16."
    )


def _stamp(lines: Sequence[Line], table: Sequence[Line]) -> list[str]:
    machines = sorted({f"{line['machine']}, torch {line['torch']}" for line in lines})
    dates = sorted({line["date"] for line in lines})
    return [
        f"`python -m benchmarks.stream --data FOLDER --work DIR`; {'; '.join(machines)}; "
        f"{' to '.join(dict.fromkeys(dates[:: max(1, len(dates) - 1)]))}. "
        f"The table with its sweep: {_cost(table)}; with all that was asked besides: {_cost(lines)}. "
        f"{sum(line['bad'] for line in lines)} steps were not finite; "
        f"code of {', '.join(sorted({line['code'] for line in lines}))}."
    ]


def _cost(lines: Sequence[Line]) -> str:
    hours = sum(line["cpu_seconds"] + line["probe_cpu_seconds"] for line in lines) / 3600
    return f"{len(lines)} cells, {hours:.2f} CPU hours"
