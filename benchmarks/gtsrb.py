"""Does CLD help on a real stream? gtsrb-tracks in recorded order, one pass, from scratch, CPU, with lambda 1 and 0.

    python benchmarks/gtsrb.py TRACKS --work DIR [--seeds 0 1 2] [--cld 1 0] [--out FILE.jsonl]

TRACKS is the unpacked gtsrb-tracks folder. Both splits are ingested into stores below --work; training reads the
train store in stream order through the same Feed, ReplayBuffer and Learner as `cld-stream train`. Then kNN (k = 20):
every train frame is in the gallery, every eval frame is a query. No label reaches the learner. A finished cell is one
line of --out; cells that are there already are not run again. --tune holds every fifth train track out and never looks
at the eval split.
"""

import argparse
import csv
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from cld_stream.config import Settings, as_dict, load_settings
from cld_stream.learn.augment import central_view
from cld_stream.learn.buffer import Origin
from cld_stream.learn.feed import Feed
from cld_stream.learn.learner import Learner
from cld_stream.learn.memory import keep_freed_memory
from cld_stream.learn.probes import knn_classify

RECIPE = (
    "store.size=48", "encoder.backbone=resnet18", "encoder.width=0.25", "encoder.crop=32", "loss.groups=64",
    "loss.temperature_instance=0.1", "loss.temperature_group=0.2", "augment.flip=0", "buffer.capacity=2000",
    "buffer.policy=reservoir", "optim.batch=128", "optim.fresh=16", "optim.lr=0.06", "optim.amp=always",
    "train.min_frames=256",
)  # fmt: skip
K, SIGMA = 20, 0.1


@dataclass(frozen=True)
class Split:
    """Frames in stream order: (N x S x S x 3) uint8, width / height, class, number of the track, origin."""

    pixels: torch.Tensor
    aspect: torch.Tensor
    label: NDArray[np.int64]
    track: NDArray[np.int64]
    origin: Origin

    def __getitem__(self, at: NDArray[Any]) -> "Split":
        rows = torch.from_numpy(at)
        return Split(self.pixels[rows], self.aspect[rows], self.label[at], self.track[at], self.origin[at])


def read_split(tracks: Path, work: Path, split: str, settings: Settings) -> Split:
    """Ingest a split unless that is done already, and read all of it."""
    from cld_stream.pipelines.ingest import ingest
    from cld_stream.pipelines.origins import origin_of
    from cld_stream.storage.store import Store

    work.mkdir(parents=True, exist_ok=True)
    table = work / f"{split}.tsv"
    with (tracks / "labels.tsv").open() as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["split"] == split]
    rows.sort(key=lambda row: int(row["order"]))
    with table.open("w") as out:
        out.write("path\tsequence\tframe\tlabel\n")
        out.writelines(f"{tracks / r['path']}\t{r['sequence']}\t{r['frame']}\t{r['label']}\n" for r in rows)
    ordered = replace(settings, ingest=replace(settings.ingest, order="path"))
    ingest(work / split, [f"@{table}"], ordered)
    with Store.open(work / split) as store:
        frames = store.catalog.rows()
        pixels, present = store.reader().read(frames.ids)
        origin = origin_of(store, frames)
        labels = {source.id: int(source.label or -1) for source in store.catalog.sources()}
    if len(frames.ids) != len(rows) or not present.all():
        sys.exit(f"{work / split} holds {int(present.sum())} of {len(rows)} frames; remove it and run again")
    label = np.array([labels[source] for source in frames.source.tolist()])
    return Split(torch.from_numpy(pixels), torch.from_numpy(frames.aspect), label, frames.source, origin)


def train(settings: Settings, stream: Split) -> Learner:
    """One pass in stream order. Before enough frames are buffered, frames are only remembered."""
    learner, feed = Learner(settings), Feed(max_lag=len(stream.label))
    while len(fresh := feed.take(settings.optim.fresh, len(stream.label))):
        if len(learner.buffer) < settings.train.min_frames:
            learner.remember(fresh, stream.origin[fresh])
            continue
        plan = learner.plan(fresh, stream.origin[fresh])
        rows = torch.from_numpy(plan.wanted)
        report = learner.step(plan, stream.pixels[rows], stream.aspect[rows])
        if not report.ok or learner.updates % 100 == 0:
            print(
                f"  step {learner.updates} loss {report.instance:.3f} + {report.cld:.3f} {'' if report.ok else 'BAD'}",
                file=sys.stderr,
                flush=True,
            )
    return learner


@torch.no_grad()
def score(learner: Learner, stream: Split, queries: Split) -> dict[str, float]:
    """kNN accuracy of the averaged encoder in each space."""
    settings, buffered = learner.settings, learner.draw(16 * 256)
    ids = torch.from_numpy(learner.buffer.ids[buffered])
    encoder = learner.averaged((stream.pixels[rows], stream.aspect[rows]) for rows in torch.split(ids, 256))

    def embed(split: Split) -> dict[str, torch.Tensor]:
        outs = [
            encoder(central_view(p, a, settings.encoder.crop))
            for p, a in zip(torch.split(split.pixels, 512), torch.split(split.aspect, 512), strict=True)
        ]
        return {
            "instance": torch.cat([o.instance_Nd for o in outs]),
            "backbone": F.normalize(torch.cat([o.backbone_ND for o in outs]), dim=1),
        }

    gallery, asked = embed(stream), embed(queries)
    labels, truth = torch.from_numpy(stream.label), torch.from_numpy(queries.label)
    classes = int(labels.max()) + 1
    found = {}
    for space, train_f in gallery.items():
        _, predicted = knn_classify(train_f, labels, asked[space], K, SIGMA, classes)
        found[f"knn_{space}"] = float((predicted == truth).float().mean())
    return found


def table(cells: Sequence[dict[str, Any]]) -> str:
    """Mean and standard deviation over the seeds, one row a lambda."""
    lines = ["lambda  seeds  kNN instance     kNN backbone     CBP       seconds"]
    for cld in sorted({cell["cld"] for cell in cells}, reverse=True):
        mine = [cell for cell in cells if cell["cld"] == cld]
        spread = []
        for name in ("knn_instance", "knn_backbone"):
            values = [cell[name] for cell in mine]
            spread.append(f"{mean(values):.3f} ± {stdev(values) if len(values) > 1 else 0:.3f}")
        lines.append(
            f"{cld:<7g} {len(mine):<6} {spread[0]:<16} {spread[1]:<16} "
            f"{max(cell['cbp'] for cell in mine):<9,} {mean(cell['seconds'] for cell in mine):,.0f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tracks", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="stores are made here")
    parser.add_argument("--out", type=Path, default=Path(f"benchmarks/results/gtsrb-{date.today():%Y-%m-%d}.jsonl"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cld", type=float, nargs="+", default=[1.0, 0.0], help="lambda")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--tune", action="store_true")
    asked = parser.parse_args()

    torch.set_num_threads(asked.threads)
    keep_freed_memory()
    base = load_settings(overrides=[*RECIPE, *asked.set])
    stream = read_split(asked.tracks, asked.work, "train", base)
    if asked.tune:
        held_out = np.unique(stream.track, return_inverse=True)[1] % 5 == 0
        queries, stream = stream[np.flatnonzero(held_out)], stream[np.flatnonzero(~held_out)]
    else:
        queries = read_split(asked.tracks, asked.work, "eval", base)

    asked.out.parent.mkdir(parents=True, exist_ok=True)
    cells = [json.loads(line) for line in asked.out.read_text().splitlines()] if asked.out.exists() else []
    for seed in asked.seeds:
        for cld in asked.cld:
            key = {"seed": seed, "cld": cld, "tune": asked.tune, "set": asked.set}
            if any(key.items() <= cell.items() for cell in cells):
                continue
            settings = replace(base, optim=replace(base.optim, seed=seed), loss=replace(base.loss, cld_weight=cld))
            began = time.monotonic()
            learner = train(settings, stream)
            cell = key | score(learner, stream, queries) | {"cbp": learner.cbp, "steps": learner.updates}
            cell |= {
                "seconds": round(time.monotonic() - began),
                "threads": asked.threads,
                "settings": as_dict(settings),
            }
            with asked.out.open("a") as out:
                out.write(json.dumps(cell) + "\n")
            cells.append(cell)
            print(json.dumps({name: value for name, value in cell.items() if name != "settings"}), flush=True)
    same = [cell for cell in cells if cell["tune"] == asked.tune and cell["set"] == asked.set]
    print(table(same))


if __name__ == "__main__":
    main()
