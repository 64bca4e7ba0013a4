"""The paper's offline protocol on CIFAR-10: the gain of CLD for each instance branch, last epoch, kNN and linear.

    python -m benchmarks.offline --scale cpu --cifar FILE.npz [--jobs 2] [--only npid,moco]

A finished cell is one line of --out and is not run again; the page beside it (FILE.md) is rewritten at the end. With
--minutes the command stops in time and keeps the state of the unfinished cell in --work; the next call goes on.
--sweep compares learning rates on held-out train images; --dry-run takes every cell through save, stop and resume.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.offline import data, ledger, table
from benchmarks.offline.cells import Job, finish, finish_all
from benchmarks.offline.recipes import METHODS, SCALES, TABLE_VARIANTS, Cell, cells, changed, dry

SWEPT = (0.03, 0.06, 0.12)


def rehearse(wanted: Sequence[Cell], job: Job) -> None:
    """Each cell in miniature, stopped after every step and resumed; nothing of it is kept."""
    with tempfile.TemporaryDirectory() as folder:
        place = replace(job, out=Path(folder, "out.jsonl"), work=Path(folder), deadline=time.time() + 1)
        for cell in map(dry, wanted):
            while not finish(cell, replace(place, deadline=time.time() + 0.01)):
                pass
        print(f"{len(ledger.read(place.out))} of {len(wanted)} cells went through save, stop, resume and scores")


def swept(wanted: Sequence[Cell]) -> Iterator[Cell]:
    """The balanced cells of the first seed at every rate, asked with held-out train images."""
    for rate in SWEPT:
        for cell in wanted:
            if (cell.variant, cell.seed) == ("balanced", wanted[0].seed):
                yield replace(cell, recipe=replace(cell.recipe, rate=rate), held_out=True)


def main() -> None:
    asked = arguments()
    wanted = list(cells(asked.scale, asked.only, asked.variants, asked.seeds))
    wanted = [changed(cell, dict(asked.set)) for cell in (swept(wanted) if asked.sweep else wanted)]
    deadline = time.time() + 60 * asked.minutes if asked.minutes else float("inf")
    job = Job(asked.cifar, asked.out, asked.work, asked.device, asked.threads, deadline)
    if asked.dry_run:
        rehearse(wanted, job)
        return
    done = finish_all(wanted, job, asked.jobs)
    if not asked.sweep and not asked.set:
        everything = cells(asked.scale, variants=asked.variants, methods=asked.known)
        table.write(asked.out.with_suffix(".md"), asked.scale, ledger.read(asked.out), list(everything))
    sys.exit(0 if done else 3)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.offline",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit codes: 0 = every cell is finished; 3 = the time was up, call again; 2 = a wrong call.",
    )
    home = os.environ.get("CLD_STREAM_DATA", "")
    parser.add_argument("--scale", choices=SCALES, default="cpu")
    parser.add_argument(
        "--cifar", type=Path, default=Path(home, "cifar10/cifar10_jpeg.npz"), help="CIFAR-10 as JPEG files in one npz"
    )
    parser.add_argument("--out", type=Path, help="finished cells (default benchmarks/results/offline-SCALE.jsonl)")
    parser.add_argument("--work", type=Path, default=Path("offline-work"), help="states of unfinished cells")
    parser.add_argument(
        "--only", type=_names, metavar="NAME,NAME", help=f"methods (default {','.join(METHODS)}; h200: npid,moco)"
    )
    parser.add_argument("--variants", type=_names, metavar="NAME,NAME", help=f"sets, of {', '.join(data.VARIANTS)}")
    parser.add_argument("--seeds", type=int, nargs="+", help="default 0 1 2; h200: 0")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time")
    parser.add_argument("--threads", type=int, default=1, help="of each cell")
    parser.add_argument("--minutes", type=float, help="stop in time and keep the state")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--set", type=pair, action="append", default=[], metavar="NAME=VALUE", help="of the recipe")
    parser.add_argument("--sweep", action="store_true", help=f"rates {SWEPT} on held-out train images")
    parser.add_argument("--dry-run", action="store_true")
    asked = parser.parse_args()
    asked.known = METHODS if asked.scale == "cpu" else METHODS[:2]
    asked.only = asked.only or asked.known
    asked.variants = asked.variants or (TABLE_VARIANTS if asked.scale == "cpu" else ("full",))
    asked.seeds = asked.seeds or ((0, 1, 2) if asked.scale == "cpu" else (0,))
    asked.out = asked.out or Path(f"benchmarks/results/offline-{asked.scale}.jsonl")
    for option, names, known in (("--only", asked.only, METHODS), ("--variants", asked.variants, data.VARIANTS)):
        for name in names:
            if name not in known:
                parser.error(f"{option}: there is no {name!r}; choose from {', '.join(known)}")
    if not asked.cifar.is_file():
        parser.error(f"{asked.cifar}: no such file. Name the npz with --cifar, or its data folder in CLD_STREAM_DATA.")
    return asked


def _names(text: str) -> list[str]:
    return text.split(",")


def pair(text: str) -> tuple[str, Any]:
    """NAME=VALUE, the value as JSON or as it is."""
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


if __name__ == "__main__":
    main()
