"""The persistent groups on a drifting stream, and what they cost: `python -m benchmarks.incremental`.

100,000 unit vectors of width 128 pass in batches of 250 through a bank of 8,192 slots; once it is full, each takes the
place of a random older one. They come from 100 long-tailed clusters (the largest has 40 times the weight of the
smallest) whose centres turn by 40 degrees on the way: 70 stay throughout, 15 appear on the way, 15 vanish. Objective:
mean of 1 - cosine with the nearest centroid, over the rows in the bank at the end. Times are CPU time of one thread.

With --tracks gtsrb-tracks.tar also the frames of that archive in recorded order: 16 x 16 pixels, centred, their first
128 principal directions. There is no telling which groups should persist, so only objectives count.
"""

import argparse
import io
import os
import platform
import statistics
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.cluster import KMeans, MiniBatchKMeans
from torch import Tensor

from cld_stream.learn.incremental import IncrementalKMeans

WIDTH, CLUSTERS, STABLE, COME, BATCH, SLOTS = 128, 100, 70, 15, 250, 8192
TURN = np.radians(40)
NOISE = 0.75
"""Length of what is added to a centre of length one: cosines with it are about 0.8."""


class Stream(Protocol):
    """Where vectors come from."""

    vectors: int

    def batch(self, first: int) -> tuple[Tensor, Tensor]:
        """Vectors first .. first + BATCH - 1, and their clusters; -1 = unknown."""


class Tracks:
    """Recorded frames in their order."""

    def __init__(self, archive: Path) -> None:
        with tarfile.open(archive) as tar:
            names = sorted(m.name for m in tar if m.name.lower().endswith((".jpg", ".png", ".ppm")))
            frames = [Image.open(io.BytesIO(tar.extractfile(name).read())) for name in names]  # type: ignore[union-attr]
            pixels = np.stack([np.asarray(f.convert("RGB").resize((16, 16)), np.float32).ravel() for f in frames])
        x = torch.from_numpy(pixels - pixels.mean(1, keepdims=True))
        x = x - x.mean(0)
        torch.manual_seed(0)
        _, _, directions = torch.pca_lowrank(x, WIDTH)
        self._x = F.normalize(x @ directions, dim=1)
        self.vectors = len(x) // BATCH * BATCH

    def batch(self, first: int) -> tuple[Tensor, Tensor]:
        return self._x[first : first + BATCH], torch.full((BATCH,), -1)


class Drift:
    """The vectors and their clusters: numbered first those that stay, then those that come, then those that go."""

    def __init__(self, seed: int, vectors: int) -> None:
        self._rng, self.vectors = np.random.default_rng(seed), vectors
        start, aside = self._rng.standard_normal((2, CLUSTERS, WIDTH))
        self._start = start / np.linalg.norm(start, axis=1, keepdims=True)
        aside -= (aside * self._start).sum(1, keepdims=True) * self._start
        self._aside = aside / np.linalg.norm(aside, axis=1, keepdims=True)
        self._weight = self._rng.permutation(1 / np.arange(1, CLUSTERS + 1) ** 0.8)
        moment = self._rng.uniform(0.2, 0.8, CLUSTERS)
        number = np.arange(CLUSTERS)
        self._from = np.where((number >= STABLE) & (number < STABLE + COME), moment, 0)
        self._until = np.where(number >= STABLE + COME, moment, 1)

    def batch(self, first: int) -> tuple[Tensor, Tensor]:
        now = first / self.vectors
        weight = self._weight * ((self._from <= now) & (now < self._until))
        clusters = self._rng.choice(CLUSTERS, BATCH, p=weight / weight.sum())
        centres = np.cos(TURN * now) * self._start[clusters] + np.sin(TURN * now) * self._aside[clusters]
        x = centres + NOISE / np.sqrt(WIDTH) * self._rng.standard_normal((BATCH, WIDTH))
        return F.normalize(torch.from_numpy(x).float(), dim=1), torch.from_numpy(clusters)


@dataclass
class Pass:
    """One pass of the stream, and what it left."""

    groups: IncrementalKMeans
    minibatch: MiniBatchKMeans
    rows_MD: Tensor = field(default_factory=lambda: torch.zeros(SLOTS, WIDTH))
    live_M: Tensor = field(default_factory=lambda: torch.zeros(SLOTS, dtype=torch.bool))
    cluster_M: Tensor = field(default_factory=lambda: torch.full((SLOTS,), -1))
    early: dict[int, int] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def timed(self, name: str, work: Callable[[], object]) -> None:
        self.seconds.setdefault(name, []).append(cpu(work))

    def identities(self) -> Tensor:
        return self.groups.identity_K[self.groups.group_M.clamp(min=0)]

    def leaders(self) -> dict[int, int]:
        """By stable cluster: identity of the group that holds most of its rows."""
        held = {c: self.identities()[self.live_M & (self.cluster_M == c)] for c in range(STABLE)}
        return {c: int(i.mode().values) for c, i in held.items() if len(i)}

    def kept(self) -> tuple[int, int]:
        """Early leaders whose rows are still mostly of their cluster; and those that still lead it."""
        theirs = {c: self.cluster_M[self.live_M & (self.identities() == i)] for c, i in self.early.items()}
        meant = sum(len(rows) > 0 and int(rows.mode().values) == c for c, rows in theirs.items())
        leaders = self.leaders()
        return meant, sum(leaders.get(c) == i for c, i in self.early.items())

    def tenths(self) -> list[float]:
        """CPU time a vector in each tenth of the stream [us]."""
        parts = zip(*(np.array_split(self.seconds[name], 10) for name in ("fit", "refine")), strict=True)
        return [1e6 * (fit.sum() + refine.sum()) / (BATCH * len(fit)) for fit, refine in parts]


def cpu(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def objective(x_ND: Tensor, centroids_KD: Tensor) -> float:
    return float(1 - (x_ND @ F.normalize(centroids_KD, dim=1).T).amax(1).mean())


def follow(stream: Stream, seed: int, k: int, every: int) -> Pass:
    """The stream once through the bank, the groups, and scikit-learn's MiniBatchKMeans."""
    chance, rng = np.random.default_rng(seed + 1), torch.Generator().manual_seed(seed)
    run = Pass(IncrementalKMeans(k, WIDTH, SLOTS), MiniBatchKMeans(k, batch_size=BATCH, random_state=seed, n_init=3))
    for first in range(0, stream.vectors, BATCH):
        x, clusters = stream.batch(first)
        full = first + BATCH > SLOTS
        slots = torch.from_numpy(chance.choice(SLOTS, BATCH, False) if full else np.arange(first, first + BATCH))
        run.rows_MD[slots], run.live_M[slots], run.cluster_M[slots] = x, True, clusters
        run.timed("fit", partial(run.groups.partial_fit, x, slots))
        if (first // BATCH + 1) % every == 0:
            run.timed("refine", partial(run.groups.refine, run.rows_MD, run.live_M, rng))
        run.timed("minibatch", partial(run.minibatch.partial_fit, x.numpy()))
        if not run.early and first >= stream.vectors // 4:
            run.early = run.leaders()
    return run


def refits(x_ND: Tensor, k: int, seed: int) -> dict[str, tuple[Tensor, float]]:
    """Centroids and seconds of full k-means on these rows, the best of five starts."""
    many = {"niter": 30, "nredo": 5, "seed": seed + 1, "min_points_per_centroid": 1, "max_points_per_centroid": 10**6}
    theirs, ours = faiss.Kmeans(WIDTH, k, spherical=True, **many), KMeans(k, n_init=5, random_state=seed)
    spent = cpu(lambda: theirs.train(x_ND.numpy())), cpu(lambda: ours.fit(x_ND.numpy()))
    return {
        "faiss Kmeans, refitted": (torch.from_numpy(theirs.centroids), spent[0]),
        "sklearn KMeans, refitted": (torch.from_numpy(ours.cluster_centers_).float(), spent[1]),
    }


def report(run: Pass, k: int, seed: int) -> None:
    x = run.rows_MD[run.live_M]
    spent = sum(run.seconds["fit"]) + sum(run.seconds["refine"])
    online = torch.from_numpy(run.minibatch.cluster_centers_).float(), sum(run.seconds["minibatch"])
    rows = {"incremental, whole stream": (run.groups.centroids(), spent), "MiniBatchKMeans, stream": online}
    rows |= refits(x, k, seed)
    values = {name: objective(x, centroids) for name, (centroids, _) in rows.items()}
    best = min(value for name, value in values.items() if "refitted" in name)
    print(f"K {k}, seed {seed}: {len(run.groups)} groups, {run.groups.opened} identities given")
    for name, value in values.items():
        print(f"  {name:26} objective {value:.4f} {100 * (value / best - 1):+6.1f}%   CPU {rows[name][1]:5.2f} s")
    meant, leads = run.kept()
    of, tenths = len(run.early), run.tenths()
    if of:
        print(f"  identities from a quarter to the end: {meant} of {of} kept, {leads} lead their cluster")
    print(f"  us a vector by tenths: {' '.join(f'{t:.0f}' for t in tenths)}")
    print(f"  last / first {tenths[-1] / tenths[0]:.2f}; last / second, bank full in both {tenths[-1] / tenths[1]:.2f}")


def cost(rows: int, k: int, batch: int) -> None:
    """Median CPU time of both calls on a full bank."""
    rng = torch.Generator().manual_seed(0)
    centres = torch.randn(k, WIDTH, generator=rng)[torch.randint(k, (rows,), generator=rng)]
    rows_MD = F.normalize(centres + torch.randn(rows, WIDTH, generator=rng), dim=1)
    live_M = torch.ones(rows, dtype=torch.bool)
    groups = IncrementalKMeans(k, WIDTH, rows)
    groups.refine(rows_MD, live_M, rng)
    refine = [cpu(lambda: groups.refine(rows_MD, live_M, rng)) for _ in range(5)]
    fit = []
    for _ in range(50):
        slots = torch.randperm(rows, generator=rng)[:batch]
        fit.append(cpu(partial(groups.partial_fit, rows_MD[slots], slots)))
    print(
        f"{rows:,} rows, K {k:4}: partial_fit on {batch} rows {1e3 * statistics.median(fit):.2f} ms, "
        f"refine {1e3 * statistics.median(refine):.0f} ms"
    )


def main() -> None:
    """Run, compare, print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--vectors", type=int, default=100_000)
    options.add_argument("--groups", type=int, nargs="+", default=[100, 128], help="K")
    options.add_argument("--every", type=int, default=2, help="batches between refinements")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--tracks", type=Path, help="gtsrb-tracks.tar")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
        f"torch {torch.__version__.partition('+')[0]}; {chosen.vectors:,} vectors, refined every {chosen.every} batches"
    )
    for k in chosen.groups:
        for seed in range(chosen.seeds):
            report(follow(Drift(seed, chosen.vectors), seed, k, chosen.every), k, seed)
    if chosen.tracks:
        tracks = Tracks(chosen.tracks)
        print(f"{chosen.tracks.name}, {tracks.vectors:,} frames")
        for k in chosen.groups:
            report(follow(tracks, 0, k, chosen.every), k, 0)
    for k in (256, 1024):
        cost(65_536, k, 256)


if __name__ == "__main__":
    main()
