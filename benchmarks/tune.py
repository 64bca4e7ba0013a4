"""Does the label-free score of `cld-stream tune` rank settings as labels would? Rank correlation on two data sets.

    python -m benchmarks.tune ETH80 GTSRB --work DIR [--steps 600] [--seeds 0] [--minutes M]

ETH80 and GTSRB are unpacked folders with labels.tsv; of GTSRB only the train split is read. Each is ingested into
a store below --work. Every setting of `GRID` is trained from scratch by the functions behind `cld-stream tune`, and
scored by them without labels; then labels say what the same encoder is worth: kNN (k = 20) over five folds of whole
sequences, so that near-repeats are never on both sides. A finished run is one line of --out and is not run again; the
page beside it (FILE.md) is rewritten at the end.
"""

import argparse
import csv
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cld_stream.config import Settings, load_settings
from cld_stream.learn.augment import central_view
from cld_stream.learn.learner import Learner
from cld_stream.learn.probes import alignment, effective_rank, group_coherence, knn_classify, uniformity
from cld_stream.pipelines.origins import origin_of
from cld_stream.pipelines.tune_slice import Slice, measure, take_slice, train_on
from cld_stream.storage.store import Store

BASE = (
    "store.size=48", "encoder.width=0.125", "encoder.crop=24", "optim.batch=64", "optim.amp=always", "augment.flip=0",
    "optim.average_decay=0.99", "optim.warmup_steps=20",
)  # fmt: skip
TEMPERATURES, ARMS = (0.03, 0.1, 0.3, 1.0), (("cld_weight=0",), ("groups=32",))
OTHERS = ("groups=16", "groups=64", "temperature_group=0.1", "temperature_group=0.4", "cld_weight=0.25")
UNTRAINED = ("optim.lr=1e-9",)
GRID = [
    UNTRAINED,
    *(tuple(f"loss.{part}" for part in (f"temperature_instance={t}", *arm)) for arm, t in product(ARMS, TEMPERATURES)),
    *(("loss.temperature_instance=0.1", "loss.groups=32", f"loss.{other}") for other in OTHERS),
]
Setting = tuple[str, ...]
FRAMES, K, SIGMA, FOLDS = 2560, 20, 0.1, 5
MOST_JUDGED = 4096  # frames that labels judge
FEWEST = 5  # settings, or there is no correlation to speak of
SCORES = (
    "view", "time", "both", "coherence", "-alignment", "-uniformity", "effective_rank", "-loss",
)  # fmt: skip


def make_store(folder: Path, work: Path, settings: Settings, split: str | None) -> Store:
    """Ingest the sequences of a folder in stream order, unless that is done already."""
    from cld_stream.pipelines.ingest import ingest

    work.mkdir(parents=True, exist_ok=True)
    table = work / f"{folder.name}.tsv"
    with (folder / "labels.tsv").open() as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if split in (None, row["split"])]
    with table.open("w") as out:
        out.write("path\tsequence\tframe\tlabel\n")
        out.writelines(f"{folder / r['path']}\t{r['sequence']}\t{r['frame']}\t{r['label']}\n" for r in rows)
    ingest(work / folder.name, [f"@{table}"], replace(settings, ingest=replace(settings.ingest, order="path")))
    return Store.open(work / folder.name)


def judged(store: Store) -> tuple[Slice, NDArray[np.int64], NDArray[np.int64]]:
    """Frames spread evenly over the store, with their labels and sequences."""
    ids = store.catalog.live_ids()
    ids = ids[:: -(-len(ids) // MOST_JUDGED)]
    rows = store.catalog.rows(ids)
    with store.reader() as reader:
        pixels, _ = reader.read(ids)
    labels = {source.id: int(source.label or -1) for source in store.catalog.sources()}
    every = np.zeros(len(ids), np.bool_)
    origin = origin_of(store, rows)
    frames = Slice(ids, torch.from_numpy(pixels), torch.from_numpy(rows.aspect), rows.source, every, origin)
    return frames, np.array([labels[s] for s in rows.source.tolist()]), rows.source


@torch.no_grad()
def labelled_knn(learner: Learner, data: Slice, frames: Slice, label: NDArray[Any], track: NDArray[Any]) -> float:
    """Share of right answers; the sequences of a fold ask those of the others."""
    encoder = learner.averaged(data.batches(learner.buffer.ids[learner.draw(1024)]))
    crop = learner.settings.encoder.crop
    x_ND = torch.cat([encoder(central_view(p, a, crop)).instance_Nd for p, a in frames.batches(np.arange(len(label)))])
    fold = np.unique(track, return_inverse=True)[1] % FOLDS
    labels, right = torch.from_numpy(label), 0
    for n in range(FOLDS):
        asks, others = torch.from_numpy(fold == n), torch.from_numpy(fold != n)
        _, found = knn_classify(x_ND[others], labels[others], x_ND[asks], K, SIGMA, int(labels.max()) + 1)
        right += int((found == labels[asks]).sum())
    return right / len(label)


def run(key: dict[str, Any], data: Slice, labelled: tuple[Slice, NDArray[Any], NDArray[Any]]) -> dict[str, Any]:
    """One setting, one seed."""
    began = time.process_time()
    overrides = [*BASE, *key["setting"], f"optim.seed={key['seed']}"]
    base, settings = load_settings(overrides=BASE), load_settings(overrides=overrides)
    learner = train_on(settings, data, 2 if tuple(key["setting"]) == UNTRAINED else key["steps"], "cpu")
    assert learner is not None
    answers = measure(learner, data, base.augment)
    apart, spread = alignment(answers.first_ND, answers.second_ND), uniformity(answers.centre_ND)
    return key | {
        "knn": labelled_knn(learner, data, *labelled),
        "view": float(answers.view.mean()),
        "time": float(answers.time.mean()),
        "both": float((answers.view.mean() + answers.time.mean()) / 2),
        "coherence": group_coherence(answers.centre_ND, torch.from_numpy(answers.view_run)),
        "-alignment": -apart,
        "-uniformity": -spread,
        "effective_rank": effective_rank(answers.centre_ND),
        "-loss": -2 * apart - spread,
        "cpu_s": round(time.process_time() - began, 1),
    }


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Pearson's correlation of the ranks; ties share theirs."""
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic)


def means(cells: list[dict[str, Any]]) -> dict[str, dict[Setting, dict[str, float]]]:
    """By data set and setting: every score and the kNN, mean of the seeds."""
    found: dict[str, dict[Setting, dict[str, float]]] = {}
    for cell in cells:
        found.setdefault(cell["data"], {}).setdefault(tuple(cell["setting"]), {})
    for data, settings in found.items():
        for setting, scores in settings.items():
            mine = [c for c in cells if c["data"] == data and tuple(c["setting"]) == setting]
            scores.update({name: float(np.mean([c[name] for c in mine])) for name in ("knn", *SCORES)})
    return found


def table(cells: list[dict[str, Any]]) -> str:
    """Correlations over the trained settings, what the first choice costs, and every setting."""
    every = means(cells)
    trained = {data: [r for s, r in settings.items() if s != UNTRAINED] for data, settings in every.items()}
    head = " | ".join(f"{d}: Spearman of {len(rows)} | its first choice: kNN" for d, rows in trained.items())
    out = [f"| score | {head} |", "|" + " --- |" * (1 + 2 * len(every))]
    for name in SCORES:
        line = []
        for rows in trained.values():
            if len(rows) < FEWEST:
                line += ["", ""]
                continue
            best = max(rows, key=lambda r: r[name])
            line += [f"{spearman([r[name] for r in rows], [r['knn'] for r in rows]):+.2f}", f"{best['knn']:.3f}"]
        out += [f"| {name} | " + " | ".join(line) + " |"]
    for data, settings in every.items():
        knn = [r["knn"] for r in trained[data]] or [np.nan]
        out += ["", f"{data}: kNN of the trained {min(knn):.3f} to {max(knn):.3f}, mean {np.mean(knn):.3f}.", ""]
        out += ["| setting | " + " | ".join(("knn", *SCORES)) + " |", "|" + " --- |" * (2 + len(SCORES))]
        for setting, r in sorted(settings.items(), key=lambda item: -item[1]["knn"]):
            short = " ".join(part.removeprefix("loss.") for part in setting)
            short = "untrained" if setting == UNTRAINED else short
            out += [f"| {short} | " + " | ".join(f"{r[name]:.3f}" for name in ("knn", *SCORES)) + " |"]
    return "\n".join(out)


def page(cells: list[dict[str, Any]], asked: argparse.Namespace) -> str:
    """What is finished, as the results page has it."""
    wanted = len(asked.seeds) * len(GRID) * 2
    return f"""# Does a label-free score rank settings as labels would?

`python -m benchmarks.tune ETH80 GTSRB --work DIR --steps {asked.steps} --seeds {" ".join(map(str, asked.seeds))}`,
{date.today()}, {os.cpu_count()}-core {platform.machine()} virtual machine, CPU, torch {torch.__version__}, one thread,
{sum(c["cpu_s"] for c in cells) / 60:.1f} CPU-minutes. {len(cells)} of {wanted} runs are finished.

Each setting is trained from its start ({asked.steps} steps of 64 frames, ResNet-18 of width 0.125, 24 px views) by
the functions behind `cld-stream tune`, and scored by them. kNN (k = {K}) of the instance features over {FOLDS} folds
of whole sequences says what labels think of the same encoder. Spearman: rank correlation of score and kNN over
the trained settings; with thirteen of them, less than 0.56 may be chance (5%, two-sided).

{table(cells)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("eth80", type=Path)
    parser.add_argument("gtsrb", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="stores are made here")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/tune.jsonl"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument(
        "--minutes", type=float, default=1e6, help="begin no run after so long; 0 = only write the page"
    )
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()

    began = time.monotonic()
    torch.set_num_threads(asked.threads)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    cells = [json.loads(line) for line in asked.out.read_text().splitlines()] if asked.out.exists() else []
    folders = {asked.eth80: None, asked.gtsrb: "train"}
    keys = [
        {"data": folder.name, "setting": list(setting), "seed": seed, "steps": asked.steps, "base": list(BASE)}
        for seed, setting, folder in product(asked.seeds, GRID, folders)
    ]
    todo = [key for key in keys if not any(key.items() <= cell.items() for cell in cells)]
    problems = {}
    for folder, split in folders.items() if todo and asked.minutes else ():
        with make_store(folder, asked.work, load_settings(overrides=BASE), split) as store:
            problems[folder.name] = take_slice(store, FRAMES, "cpu"), judged(store)
    for key in todo:
        if time.monotonic() >= began + 60 * asked.minutes:
            break
        cells.append(run(key, *problems[key["data"]]))
        with asked.out.open("a") as out:
            out.write(json.dumps(cells[-1]) + "\n")
        print(json.dumps({k: v for k, v in cells[-1].items() if k != "base"}), file=sys.stderr, flush=True)
    mine = [c for c in cells if c["steps"] == asked.steps and c["seed"] in asked.seeds and c["base"] == list(BASE)]
    asked.out.with_suffix(".md").write_text(page(mine, asked))
    print(table(mine))


if __name__ == "__main__":
    main()
