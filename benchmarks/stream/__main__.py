"""Learning from streams against baselines at equal cost and memory: tracks A (classes in tasks), B (clips of
near-repeats), C (recorded sequences) and D (what stale features cost; measured on the way in A and C).

    python -m benchmarks.stream --data FOLDER --work DIR [--tracks A B] [--rows ours fifo] [--jobs 2] [--minutes 30]

Each row first gets the same learning-rate sweep on a miniature of the stream, judged on held-out train data, and
further rates where the best is the highest or the lowest; then every seed runs at the best rate. A finished cell is one
line of --out and is not run again; --minutes begins no further cell after that time. A row whose settings do not exist
is left out with a message. SimCLR on frames in random order is asked on B alone, where no replay and FIFO are held
against it as published; elsewhere by name.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from benchmarks.offline import ledger
from benchmarks.stream import data, estimate, table
from benchmarks.stream.cells import Cell, Job, cell_of, finish_all
from benchmarks.stream.rows import ROWS, Row, changed, in_table
from benchmarks.stream.tracks import RATES, TRACKS
from cld_stream.errors import UsageError

MOST_RATES = 7
"""In a row's sweep, those beyond its edges among them."""

CPU_TRACKS = ("A", "B", "C-gtsrb", "C-eth80")


def main() -> None:
    asked = arguments()
    if asked.table:
        table.write(asked.out)
        return
    rows = [changed(name, asked.set) for name in asked.rows or ROWS]
    known = [pair for pair in available(asked.tracks, rows) if asked.rows or in_table(pair[0], pair[2])]
    sweep = [
        cell_of(*pair, 0, rate, tuning=True)
        for pair in known
        if pair[3].trained
        for rate in asked.rates or pair[3].rates or RATES
    ]
    if asked.estimate:
        estimate.show([cell_of(*pair, 0, RATES[0], tuning=False) for pair in known], sweep, len(asked.seeds))
        return
    deadline = time.time() + 60 * asked.minutes if asked.minutes else float("inf")
    folders = data.Folders(asked.data, asked.work, asked.cifar100, asked.tiny)
    for track in asked.tracks:
        data.prepare(TRACKS[track].kind, TRACKS[track].source, TRACKS[track].size, folders)
    job = Job(folders, asked.out, asked.device, asked.threads, deadline, commit())
    done, more = True, [] if asked.rate else sweep
    while done and more:
        done, more = finish_all(more, job, asked.jobs), [] if asked.rates else beyond(known, sweep, asked.out)
        sweep += more
    if done and not asked.tune:
        done = finish_all(list(finals(known, sweep, asked)), job, asked.jobs)
    table.write(asked.out)
    sys.exit(0 if done else 3)


Pair = tuple[str, Any, str, Row]


def available(tracks: Sequence[str], rows: Sequence[tuple[str, Row]]) -> Iterator[Pair]:
    """Every track with every row whose settings exist; the others are named once."""
    told = set()
    for track in tracks:
        for name, row in rows:
            try:
                cell_of(track, TRACKS[track], name, row, 0, RATES[0], tuning=False)
            except UsageError as e:
                if name not in told:
                    print(f"row {name} is left out: {e}", file=sys.stderr)
                told.add(name)
                continue
            yield track, TRACKS[track], name, row


def finals(known: Sequence[Pair], sweep: Sequence[Cell], asked: argparse.Namespace) -> Iterator[Cell]:
    """Every row at its best rate, seeds outermost."""
    lines = ledger.read(asked.out)
    for seed in asked.seeds:
        for pair in known:
            mine = [c for c in sweep if (c.track, c.row) == (pair[0], pair[2])]
            rate = asked.rate or best_rate(mine, lines)
            yield cell_of(*pair, seed, rate, tuning=False, held_out=asked.held_out)


def beyond(known: Sequence[Pair], sweep: Sequence[Cell], out: Path) -> list[Cell]:
    """For every row whose best rate is the highest or the lowest of its sweep, one that is twice or half as high."""
    lines, more = ledger.read(out), []
    for pair in known:
        mine = [c for c in sweep if (c.track, c.row) == (pair[0], pair[2])]
        rates = [c.overrides["optim.lr"] for c in mine]
        best = best_rate(mine, lines)
        if rates and len(rates) < MOST_RATES and best in (min(rates), max(rates)):
            more.append(cell_of(*pair, 0, 2 * best if best == max(rates) else best / 2, tuning=True))
    return more


def best_rate(mine: Sequence[Cell], lines: list[ledger.Line]) -> float:
    """The rate of the highest linear accuracy on held-out train data."""
    found = [line for cell in mine if (line := ledger.find(lines, cell))]
    rate: float = max(found, key=lambda line: line["linear"])["overrides"]["optim.lr"] if found else RATES[0]
    return rate


def commit() -> str:
    """Of the checkout; "" where there is none."""
    with suppress(OSError):
        git = ["git", "describe", "--always", "--dirty"]
        return subprocess.run(git, cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()
    return ""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.stream",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit codes: 0 = every cell is finished; 3 = the time was up, call again; 2 = a wrong call.",
    )
    home = os.environ.get("CLD_STREAM_DATA")
    parser.add_argument("--data", type=Path, default=home and Path(home), help="holds cifar10, gtsrb-tracks, eth80")
    parser.add_argument("--work", type=Path, help="stores and decoded images are made here")
    parser.add_argument("--tracks", nargs="+", default=CPU_TRACKS, metavar="TRACK", help=", ".join([*TRACKS, "D"]))
    parser.add_argument("--rows", nargs="+", metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="on top of the rows")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rates", type=float, nargs="+", help="of the sweep, instead of each row's own")
    parser.add_argument("--rate", type=float, help="this learning rate, without a sweep")
    parser.add_argument("--tune", action="store_true", help="the sweep alone")
    parser.add_argument("--held-out", action="store_true", help="asked with held-out train data: to choose settings by")
    parser.add_argument("--minutes", type=float, help="begin no cell after that")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time")
    parser.add_argument("--threads", type=int, default=1, help="of each cell")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--cifar100", type=Path, metavar="FOLDER", help="train/CLASS/..., test/CLASS/...")
    parser.add_argument("--tiny", type=Path, metavar="FOLDER", help="Tiny-ImageNet, laid out like that")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/stream.jsonl"))
    parser.add_argument("--table", action="store_true", help="write the page and the curves from --out, run nothing")
    parser.add_argument("--estimate", action="store_true", help="what all of it will cost, from measured steps")
    asked = parser.parse_args()
    asked.tracks = list(dict.fromkeys("C-gtsrb" if name == "D" else name for name in asked.tracks))
    for name in asked.tracks:
        if name not in TRACKS:
            parser.error(f"there is no track {name!r}; the tracks are {', '.join(TRACKS)} and D")
    for name in asked.rows or ():
        if name not in ROWS:
            parser.error(f"there is no row {name!r}; the rows are {', '.join(ROWS)}")
    if any(item.partition("=")[0].strip() == "optim.lr" for item in asked.set):
        parser.error("a learning rate is named with --rate, or tried in the sweep (--rates), not with --set")
    if not (asked.table or asked.estimate or (asked.data and asked.work)):
        parser.error("name the data folder with --data (or CLD_STREAM_DATA) and a folder to work in with --work")
    return asked


if __name__ == "__main__":
    main()
