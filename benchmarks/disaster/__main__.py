"""Does the guard keep what was good, and does it keep quiet when all is well? The real `train`, on real stores, CPU.

    python -m benchmarks.disaster --data FOLDER [--work DIR] [--seeds 0 1 2] [--parts disaster healthy]

Disaster: an encoder that recognises objects (from scratch, by `train` at the ordinary rate, and published) meets a
broken stream at a rate that is a hundred or three hundred times too high: one picture that hardly changes, a dark
camera, noise. Asked of frames of objects that are not in the store, by their neighbours through the current snapshot
(kNN, k = 20): before; after the stream without a guard; with the guard. Where it was on, the camera is well again
afterwards (new tracks of traffic signs), and training goes on at the ordinary rate, as the guard's last message says.

Healthy: from scratch at the ordinary rate, every warning, hold and roll-back being a false alarm: tracks of traffic
signs, objects turned, clips of CIFAR-10, a camera that sees nothing new for 1,200 frames and then traffic signs, and
an encoder that is published after 2, 5, 10, 20, 40, ... updates.

FOLDER holds `gtsrb-tracks.tar`, `eth80.tar` and `cifar10/cifar10_jpeg.npz`. A finished cell is a line of --out and is
not run again; --table prints and writes the page only.
"""

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks.disaster.cells import ARMS, HEALTHY, RATES, Folders, disaster, healthy
from benchmarks.disaster.table import page

_OUT = Path("benchmarks/results/disaster.jsonl")


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("CLD_STREAM_DATA", "../shared/data")))
    parser.add_argument("--work", type=Path, help="stores are made here; without it in a temporary folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--parts", nargs="+", choices=["disaster", "healthy"], default=["disaster", "healthy"])
    parser.add_argument("--out", type=Path, default=_OUT)
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    done = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    with tempfile.TemporaryDirectory() as scratch:  # where --work is not given
        folders = Folders(args.data, args.work or Path(scratch))
        for key in () if args.table else keys(args.parts, args.seeds):
            if not any(key.items() <= cell.items() for cell in done):
                done.append(key | run(folders, key) | {"cpu": platform.machine(), "date": f"{date.today():%Y-%m-%d}"})
                with args.out.open("a") as out:
                    print(json.dumps(done[-1]), file=out)
    text = page([cell for cell in done if cell["seed"] in args.seeds])
    args.out.with_suffix(".md").write_text(text)
    print(text)


def keys(parts: list[str], seeds: list[int]) -> Iterator[dict[str, Any]]:
    """What names a cell."""
    for seed in seeds:
        if "disaster" in parts:
            yield from ({"part": "disaster", "name": k, "arm": arm, "seed": seed} for k in RATES for arm in ARMS)
        if "healthy" in parts:
            yield from ({"part": "healthy", "name": name, "seed": seed} for name in HEALTHY)


def run(folders: Folders, key: dict[str, Any]) -> dict[str, Any]:
    """One cell."""
    if key["part"] == "disaster":
        return disaster(folders, key["name"], key["arm"], key["seed"])
    return healthy(folders, key["name"], key["seed"])


if __name__ == "__main__":
    main()
