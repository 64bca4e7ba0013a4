"""The frame store against its limits: random reads, appends, opening, bytes written.

    python benchmarks/frames.py [--json] [--frames 100000] [--folder DIR]

Frames are smooth random scenes at the default 160 pixels and quality 90, about 5.7 kB each, as footage gives.
`--folder` should be on the disk to be measured.
"""

import argparse
import gc
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from cld_stream.config import StoreSettings
from cld_stream.storage.schema import NewFrame
from cld_stream.storage.store import Store
from cld_stream.storage.writer import Writer

TARGETS = {
    "read_ratio": (">=", 0.85, "random batches of 256 against pure simplejpeg, one thread"),
    "append_per_cpu_s": (">=", 3000, "frames appended per CPU-second, rows and fsync included"),
    "append_per_s": (">=", 0, "the same per second of wall clock"),
    "open_ms": ("<", 50, "opening the store [ms]"),
    "write_factor": ("<=", 3, "bytes written / JPEG bytes, one frame a second, commits of 2 s"),
}


def pictures(count: int, size: int, quality: int) -> list[bytes]:
    """Distinct JPEGs of smooth random scenes, of about the size that footage gives."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:size, 0:size] / size
    jpegs = []
    for _ in range(count):
        image = np.zeros((size, size, 3))
        for _ in range(24):
            fx, fy, phase = *rng.normal(0, 9, 2), rng.uniform(0, 7)
            image += np.sin(fx * x + fy * y + phase)[..., None] * rng.normal(0, 14, 3)
        image += rng.normal(0, 3.5, image.shape) + 128
        rgb = np.clip(image, 0, 255).astype(np.uint8)
        jpegs.append(simplejpeg.encode_jpeg(rgb, quality=quality, colorspace="RGB", colorsubsampling="420"))
    return jpegs


def new_source(writer: Writer, name: str) -> int:
    return writer.add_source(kind="video", path=name, device=1, inode=1, size=1, mtime_ns=1, fingerprint=name)


def append(store: Store, jpegs: list[bytes], frames: int, commit_frames: int) -> dict[str, float]:
    """Append and commit `frames` frames; every shard that fills is sealed."""
    wall, cpu = time.perf_counter(), time.process_time()
    with store.writer("benchmark") as writer:
        for first in range(0, frames, 30_000):
            source = new_source(writer, f"/bench/{first}.mp4")
            for start in range(first, min(frames, first + 30_000), commit_frames):
                stop = min(start + commit_frames, frames)
                batch = [NewFrame(jpegs[i % len(jpegs)], i / 2, None, 0, 1.78) for i in range(start, stop)]
                writer.append(source, batch, json.dumps({"frame": stop}))
                writer.commit()
    return {
        "append_per_s": frames / (time.perf_counter() - wall),
        "append_per_cpu_s": frames / (time.process_time() - cpu),
    }


def read(store: Store, frames: int, rounds: int) -> dict[str, float]:
    """Our reader and pure decoding of the same bytes in memory, alternating."""
    rng = np.random.default_rng(1)
    size = store.header.size
    out = np.empty((256, size, size, 3), np.uint8)
    ours: list[float] = []
    pure: list[float] = []
    with store.reader(threads=1) as reader:
        for i in range(rounds + 3):
            ids = rng.integers(0, frames, 256)
            jpegs = reader.jpegs(ids)

            def decode(jpegs: list[bytes] = jpegs) -> None:
                for at, jpeg in enumerate(jpegs):
                    simplejpeg.decode_jpeg(jpeg, "RGB", buffer=out[at])

            def fetch(ids: Any = ids) -> None:
                reader.read(ids, out)

            pairs: list[tuple[Callable[[], None], list[float]]] = [(decode, pure), (fetch, ours)]
            for work, times in pairs if i % 2 else pairs[::-1]:
                began = time.perf_counter()
                work()
                if i >= 3:
                    times.append(time.perf_counter() - began)
    return {
        "read_ratio": statistics.median(p / o for p, o in zip(pure, ours, strict=True)),
        "read_per_s": 256 / statistics.median(ours),
        "pure_per_s": 256 / statistics.median(pure),
    }


def read_threads(store: Store, frames: int, rounds: int) -> dict[str, float]:
    rng = np.random.default_rng(2)
    times = []
    with store.reader() as reader:
        for _ in range(rounds):
            ids = rng.integers(0, frames, 256)
            began = time.perf_counter()
            reader.read(ids)
            times.append(time.perf_counter() - began)
    return {"read_all_cores_per_s": 256 / statistics.median(times)}


def open_time(path: Path) -> dict[str, float]:
    times = []
    for _ in range(11):
        gc.collect()
        began = time.perf_counter()
        with Store.open(path) as store, store.reader(threads=1) as reader:
            reader.read([0])
        times.append(time.perf_counter() - began)
    return {"open_ms": 1000 * statistics.median(times), "open_worst_ms": 1000 * max(times)}


def written() -> int:
    """Bytes that this process has sent to a disk."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["write_bytes"])


def trickle(path: Path, jpegs: list[bytes]) -> dict[str, float]:
    """Two shards' worth, two frames a commit, as a camera of one frame a second gives."""
    settings = StoreSettings()
    frames = 2 * settings.shard_frames
    with Store.create(path, settings) as store:
        before = written()
        append(store, jpegs, frames, 2)
    os.sync()
    payload = sum(len(jpegs[i % len(jpegs)]) for i in range(frames))
    return {"write_factor": (written() - before) / payload}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", action="store_true", help="print JSON only")
    parser.add_argument("--frames", type=int, default=100_000, help="frames in the large store")
    parser.add_argument("--rounds", type=int, default=40, help="batches measured")
    parser.add_argument("--folder", type=Path, help="where to put the stores")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="frames-", dir=args.folder))
    try:
        settings = StoreSettings()
        jpegs = pictures(512, settings.size, settings.jpeg_quality)
        result: dict[str, float] = {"jpeg_bytes": statistics.mean(map(len, jpegs))}
        with Store.create(folder / "large", settings) as store:
            result |= append(store, jpegs, args.frames, 128)
            result |= read(store, args.frames, args.rounds)
            result |= read_threads(store, args.frames, args.rounds)
        result |= open_time(folder / "large")
        result |= trickle(folder / "trickle", jpegs)
    finally:
        shutil.rmtree(folder)
    if args.json:
        print(json.dumps({"machine": platform.platform(), "cpus": os.cpu_count()} | result))
        return
    print(f"{platform.platform()}, {os.cpu_count()} CPUs, {args.frames:,} frames")
    for name, value in result.items():
        sign, target, meaning = TARGETS.get(name, ("", 0, ""))
        print(f"{name:22} {value:12.2f}   {sign} {target or '':<6} {meaning}")


if __name__ == "__main__":
    main()
