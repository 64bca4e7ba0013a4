"""Queries on a store of a million made-up vectors: `python -m benchmarks.query [--rows N] [--store FOLDER]`.

Targets: warm, from Python, under 40 ms and exact; cold, as a command, under 6 s.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import insert, update

import cld_stream
from cld_stream.config import StoreSettings
from cld_stream.search.flat import FlatIndex
from cld_stream.storage import schema
from cld_stream.storage.snapshot_builder import SnapshotBuilder
from cld_stream.storage.store import Store

WIDTH, PER_SOURCE, SHOTS, QUERIES = 128, 1000, 20_000, 30


def made_up(rows: int) -> NDArray[np.float16]:
    """Unit vectors in bundles, as the frames of shots are."""
    rng = np.random.default_rng(0)
    shots = rng.standard_normal((SHOTS, WIDTH), np.float32)
    out = np.empty((rows, WIDTH), np.float16)
    for start in range(0, rows, 65_536):
        part = np.arange(start, min(start + 65_536, rows))
        x = shots[part * SHOTS // rows] + 0.5 * rng.standard_normal((len(part), WIDTH), np.float32)
        out[part] = x / np.linalg.norm(x, axis=1, keepdims=True)
    return out


def build(path: Path, rows: int) -> None:
    """A store with rows of frames but no pictures, and a snapshot with the instance space alone."""
    store = Store.create(path, StoreSettings(size=16))
    sources = rows // PER_SOURCE
    with store.catalog.writing() as tx:
        empty = {"device": 0, "size": 1, "mtime_ns": 0, "reader": "", "reason": "", "since_shard": 0}
        kind = {"kind": "video", "outcome": "ADDED", "frames": PER_SOURCE}
        tx.execute(
            insert(schema.sources),
            [
                empty | kind | {"id": n + 1, "path": f"/media/{n % 10}/{n}.mp4", "inode": n, "fingerprint": f"{n}"}
                for n in range(sources)
            ],
        )
        for source in range(sources):
            first = source * PER_SOURCE
            tx.execute(
                insert(schema.frames),
                [
                    {"id": first + i, "source": source + 1, "time_s": i / 2, "wall_utc": first + i / 2, "shot": 0,
                     "aspect": 1.5}
                    for i in range(PER_SOURCE)
                ],
            )  # fmt: skip
        tx.execute(update(schema.state).values(next_id=rows, frames=rows))
    manifest = {"created_utc": time.time(), "step": 0, "encoder": {"sha256": "made up", "settings": {}}}
    builder = SnapshotBuilder(path, "made-up", manifest, {}, np.arange(rows), rows, {"instance": WIDTH})
    features = made_up(rows)
    while (part := builder.next_rows()) is not None:
        builder.write(part, {"instance": features[part]})
    snapshot = builder.finish(np.zeros((0, WIDTH), np.float32), np.full(rows, -1, np.int32))
    store.catalog.add_snapshot(snapshot.row())
    store.close()


def timed(ask: Callable[[NDArray[np.float32]], object], queries: NDArray[np.float32]) -> str:
    wall, cpu = [], []
    for query in queries:
        start, busy = time.perf_counter(), time.process_time()
        ask(query)
        wall.append(1000 * (time.perf_counter() - start))
        cpu.append(1000 * (time.process_time() - busy))
    return f"median {np.median(wall):6.1f} ms, worst {max(wall):6.1f} ms, of the CPU {np.median(cpu):6.1f} ms"


def check(features: NDArray[np.float16], query: NDArray[np.float32], found: list[int]) -> bool:
    """Whether numpy finds the same ten; equal products may stand in any order."""
    scores = np.concatenate(
        [features[i : i + 65_536].astype(np.float32) @ query for i in range(0, len(features), 65_536)]
    )
    best = np.sort(scores)[::-1][: len(found)]
    return len(set(found)) == len(found) and bool(np.allclose(scores[found], best, atol=2e-6))


IMPORTS = """
import sys, time
start = time.perf_counter()
for name in ("numpy", "sqlalchemy", "faiss", "typer", "cld_stream.cli", "cld_stream.pipelines.query"):
    __import__(name)
    now = time.perf_counter()
    print(f"{name} {now - start:.2f} s", end="; ")
    start = now
print("torch " + ("imported" if "torch" in sys.modules else "not imported"))
"""


def main() -> None:
    """Build, ask, compare, print."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rows", type=int, default=1_000_000)
    options.add_argument("--store", type=Path, help="where to build it, and leave it")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = chosen.store or Path(folder) / "store"
        if not path.exists():
            start = time.perf_counter()
            build(path, chosen.rows)
            print(f"built {chosen.rows:,} x {WIDTH} in {time.perf_counter() - start:.0f} s")
        report(path, Path(folder))


def report(path: Path, folder: Path) -> None:
    """All measurements on a built store."""
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
        f"Python {platform.python_version()}"
    )
    with cld_stream.open(path) as store:
        snapshot = store.snapshot()
        features = snapshot.features()
        rng = np.random.default_rng(1)
        near = features[rng.integers(0, len(features), QUERIES)].astype(np.float32)
        queries = near + 0.3 / np.sqrt(WIDTH) * rng.standard_normal(near.shape, np.float32)
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
        start = time.perf_counter()
        snapshot.query(queries[0], 10)
        print(f"first query, features read    {time.perf_counter() - start:.2f} s")
        print(f"warm, k=10                    {timed(lambda q: snapshot.query(q, 10), queries)}")
        print(f"warm, k=100                   {timed(lambda q: snapshot.query(q, 100), queries)}")
        print(f"warm, k=10, distinct 60 s     {timed(lambda q: snapshot.query(q, 10, distinct_s=60), queries)}")
        print(f"warm, k=10, under a folder    {timed(lambda q: snapshot.query(q, 10, under='/media/3'), queries[:5])}")
        right = sum(check(features, q, [h.frame for h in snapshot.query(q, 10)]) for q in queries)
        print(f"the ten that numpy finds      {right} of {len(queries)} queries")
        for held in (features, features.astype(np.float32)):
            index = FlatIndex(WIDTH, held.dtype.type)
            index.add(held)
            ask = partial(lambda index, q: index.search(q[None], 10), index)
            print(f"index alone, {held.dtype}          {timed(ask, queries)}")
        np.save(folder / "vector.npy", queries[0])
    command = [
        sys.executable,
        "-m",
        "cld_stream",
        "query",
        "--store",
        str(path),
        "--vector",
        str(folder / "vector.npy"),
        "--json",
    ]
    for attempt in ("first", "second"):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        print(f"cold command, {attempt:6}          {time.perf_counter() - start:.2f} s")
    print(
        "imports of it:",
        subprocess.run([sys.executable, "-c", IMPORTS], check=True, capture_output=True, text=True).stdout.strip(),
    )


if __name__ == "__main__":
    main()
