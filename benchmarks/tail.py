"""What rare things are worth to a replay policy: CIFAR-10 as a stream, three classes of it one frame in a hundred.

    python -m benchmarks.tail CIFAR.npz [--policies reservoir minred groups] [--seeds 0 1 2] [--out FILE.jsonl]

A clip is eight near-repeats (jittered copies) of an image; clips come in random order, one pass, from scratch, a buffer
of 5% of the frames, a small encoder, CPU. Seven classes are what is always there: 20 images of each return in clip
after clip, as things do before a camera. Of the three rare classes every clip is another image. --returning 0 lets no
image return. No label reaches the learner. Asked afterwards, of the tail classes and of the others:

- memory: share of the images of which the buffer still holds a frame;
- kNN memory: recall of test images by their neighbours among the frames that the buffer holds (k = 10);
- kNN: the same by neighbours among 100 labelled images of every class, none of the stream: the encoder alone (k = 20).

CIFAR.npz as `benchmarks.offline` reads it. A finished cell is a line of --out and is not run again. --held-out asks
train images instead of test images, for choosing settings.
"""

import argparse
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from benchmarks.offline.data import Images, jittered, read
from cld_stream.config import Settings, load_settings
from cld_stream.learn.augment import central_view
from cld_stream.learn.learner import Learner
from cld_stream.learn.policies import POLICIES
from cld_stream.learn.probes import knn_classify

CLASSES, TAIL, CLIP, CLIPS = 10, 3, 8, 800
ASKED, LABELLED = 100, 100
"""Images of each class that ask, and that answer for the encoder alone."""

RECIPE = (
    "encoder.backbone=resnet18", "encoder.width=0.125", "encoder.crop=24", "loss.groups=32", "optim.batch=64",
    "optim.fresh=16", "buffer.capacity=320", "optim.warmup_steps=50", "augment.flip=0.5",
)  # fmt: skip
SPACES = ("memory", "knn_memory", "knn")


def tail_of(seed: int) -> list[int]:
    """The rare classes of a seed."""
    return [(3 * seed + i) % CLASSES for i in range(TAIL)]


@dataclass(frozen=True)
class Task:
    """The stream in order with the image of every clip, a labelled gallery, and the questions; no image is in two."""

    stream: Images
    source: NDArray[np.int64]
    gallery: Images
    asked: Images


def make(file: Path, seed: int, returning: int, *, held_out: bool) -> Task:
    """The same for one seed."""
    train, rng = read(file, "train"), np.random.default_rng(seed)
    order = rng.permutation(len(train))
    labels = train.labels_N.numpy()[order]
    rare = CLIPS // 100
    sizes = [rare if c in tail_of(seed) else (CLIPS - TAIL * rare) // (CLASSES - TAIL) for c in range(CLASSES)]
    of_class = [order[labels == c] for c in range(CLASSES)]
    pools = [rows if c in tail_of(seed) or not returning else rows[:returning] for c, rows in enumerate(of_class)]
    sources = rng.permutation(np.concatenate([np.resize(p, n) for p, n in zip(pools, sizes, strict=True)]))
    gallery = np.concatenate([rows[-LABELLED:] for rows in of_class])
    if held_out:
        asked = train[np.concatenate([rows[-LABELLED - ASKED : -LABELLED] for rows in of_class])]
    else:
        test = read(file, "test")
        asked = test[np.concatenate([np.flatnonzero(test.labels_N.numpy() == c)[:ASKED] for c in range(CLASSES)])]
    return Task(jittered(train[sources], CLIP, seed), sources, train[gallery], asked)


def learn(settings: Settings, stream: Images) -> Learner:
    """One pass."""
    learner, optim = Learner(settings), settings.optim
    for start in range(0, len(stream), optim.fresh):
        plan = learner.plan(range(start, min(start + optim.fresh, len(stream))))
        assert learner.step(plan, stream.pixels_NSS3[torch.from_numpy(plan.wanted)], torch.ones(len(plan.wanted))).ok
    return learner


@torch.no_grad()
def score(learner: Learner, task: Task, tail: list[int]) -> dict[str, float]:
    """Everything asked, of the tail and of the other classes."""
    ids = np.sort(learner.buffer.ids[learner.buffer.ids >= 0])
    held = task.stream[ids]
    encoder = learner.averaged((x, torch.ones(len(x))) for x in torch.split(held.pixels_NSS3, 128))

    def embed(images: Images) -> torch.Tensor:
        n, crop = len(images), learner.settings.encoder.crop
        return F.normalize(encoder(central_view(images.pixels_NSS3, torch.ones(n), crop)).backbone_ND, dim=1)

    image, first = np.unique(task.source, return_index=True)
    rare = np.isin(task.stream.labels_N.numpy()[::CLIP][first], tail)
    found = _split("memory", np.isin(image, task.source[ids // CLIP]), rare)
    found["share_tail"] = float(np.isin(held.labels_N.numpy(), tail).mean())
    questions, truth = embed(task.asked), task.asked.labels_N
    for name, images, k in (("knn_memory", held, 10), ("knn", task.gallery, 20)):
        _, answer = knn_classify(embed(images), images.labels_N, questions, k, 0.1, CLASSES)
        found |= _split(name, (answer == truth).numpy(), np.isin(truth.numpy(), tail))
    return found


def _split(name: str, right: NDArray[np.bool_], rare: NDArray[np.bool_]) -> dict[str, float]:
    return {f"{name}_tail": float(right[rare].mean()), f"{name}_head": float(right[~rare].mean())}


def cell(file: Path, key: dict[str, Any]) -> dict[str, Any]:
    """One policy, one seed."""
    policy, seed, changes = key["policy"], key["seed"], key["set"]
    settings = load_settings(overrides=[*RECIPE, f"optim.seed={seed}", f"buffer.policy={policy}", *changes])
    began = time.process_time()
    task = make(file, seed, key["returning"], held_out=key["held_out"])
    learner = learn(settings, task.stream)
    return {
        **key,
        **{name: round(value, 4) for name, value in score(learner, task, tail_of(seed)).items()},
        "cbp": learner.cbp,
        "cpu_seconds": round(time.process_time() - began, 1),
        "cpu": platform.machine(),
        "date": f"{date.today():%Y-%m-%d}",
    }


def table(cells: Sequence[dict[str, Any]]) -> str:
    """Markdown: mean and standard deviation over the seeds, in percent."""
    columns = [f"{space}_{part}" for space in SPACES for part in ("tail", "head")] + ["share_tail"]
    lines = [f"| policy | seeds | {' | '.join(c.replace('_', ' ') for c in columns)} | CBP | CPU [s] |"]
    lines.append("| --- " * (len(columns) + 4) + "|")
    for name in dict.fromkeys(" ".join([c["policy"], *c["set"]]) for c in cells):
        mine = [c for c in cells if " ".join([c["policy"], *c["set"]]) == name]
        values = [[100 * c[column] for c in mine] for column in columns]
        spread = [f"{mean(v):.1f} ± {stdev(v) if len(v) > 1 else 0:.1f}" for v in values]
        seconds = mean(c["cpu_seconds"] for c in mine)
        lines.append(f"| {name} | {len(mine)} | {' | '.join(spread)} | {mine[0]['cbp']:,} | {seconds:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cifar", type=Path)
    parser.add_argument("--policies", nargs="+", choices=sorted(POLICIES), default=["reservoir", "minred", "groups"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--returning", type=int, default=20)
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/tail.jsonl"))
    args = parser.parse_args()
    same = {"returning": args.returning, "held_out": args.held_out}
    done = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    for seed in args.seeds:
        for policy in args.policies:
            key = {"policy": policy, "seed": seed, "set": args.set} | same
            if any(key.items() <= c.items() for c in done):
                continue
            done.append(cell(args.cifar, key))
            with args.out.open("a") as out:
                print(json.dumps(done[-1]), file=out)
    print(table([c for c in done if same.items() <= c.items()]))


if __name__ == "__main__":
    main()
