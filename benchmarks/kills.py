"""Kill an ingest again and again; the store must not show it.

    python -m benchmarks.kills --kills 50

Every round ingests a folder of videos, is killed (SIGKILL) at random moments (sometimes the process alone, sometimes
its workers with it) and started again until it is through; rounds go on until all kills are used. Meanwhile a second
process reads every frame that it can see: each must be there, decode, and never change. After each round the rows
(source path, time, id) and the bytes equal those of an uninterrupted run; then the catalog is deleted and rebuilt from
the shards: the same rows for every sealed shard. Exits 1 if anything is otherwise.

The folder is the ordinary videos of the media zoo where CLD_STREAM_DATA names it, else synthetic footage.
"""

import argparse
import csv
import hashlib
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import av
import numpy as np
import simplejpeg

from cld_stream.errors import StoreNotFoundError
from cld_stream.storage.rebuild import rebuild_catalog
from cld_stream.storage.store import Store

_TIMEOUT_S = 300.0
Row = tuple[int, str, float, str]  # id, source path, time, hash of the bytes


@dataclass
class Tally:
    """What happened."""

    kills: int = 0
    inside: int = 0  # kills that hit while the writer lock was held
    rounds: int = 0
    frames: int = 0
    seen: int = 0  # frames checked by the reader, repeats included
    violations: list[str] = field(default_factory=list)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fps", type=float, default=10.0)
    parser.add_argument("--shard-frames", type=int, default=100)
    chosen = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="cld-kills-") as made:
        tally = run(Path(made), chosen.kills, random.Random(chosen.seed), chosen.fps, chosen.shard_frames)
    print(
        f"{tally.kills} kills ({tally.inside} while it was writing) in {tally.rounds} rounds,"
        f" {tally.frames} frames a round; the reader checked {tally.seen} frames; {len(tally.violations)} violations;"
        f" {time.monotonic() - started:.0f} s on {os.cpu_count()} cores"
    )
    for violation in tally.violations[:20]:
        print("VIOLATION:", violation)
    return 1 if tally.violations else 0


def run(work: Path, kills: int, rng: random.Random, fps: float, shard_frames: int) -> Tally:
    tally, footage = Tally(), work / "footage"
    gather(footage)
    command = [
        *(sys.executable, "-m", "cld_stream", "ingest", str(footage), "--fps", str(fps), "--size", "64"),
        *("--set", f"store.shard_frames={shard_frames}", "--set", "ingest.commit_s=0.2"),
    ]
    subprocess.run([*command, "--store", str(work / "whole")], check=True, capture_output=True)
    expected = rows_of(work / "whole")
    tally.frames = len(expected)
    while tally.kills < kills:
        tally.rounds += 1
        store = work / f"round{tally.rounds}"
        with Watcher(store) as watcher:
            one_round([*command, "--store", str(store)], store, kills, rng, tally)
        tally.seen += watcher.seen
        tally.violations += watcher.violations
        check_round(store, expected, outcomes_of(work / "whole"), tally)
        shutil.rmtree(store)
    return tally


def one_round(command: list[str], store: Path, kills: int, rng: random.Random, tally: Tally) -> None:
    """Start, kill, start again, until a run comes through."""
    while True:
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        if tally.kills < kills:
            if rng.random() < 0.8:  # else anywhere, also while it starts or makes the store
                wait_for_lock(store, child)
            try:
                child.wait(rng.uniform(0.0, 1.2))
            except subprocess.TimeoutExpired:
                tally.inside += lock_holder(store) == child.pid
                kill(child.pid, workers_too=rng.random() < 0.3)
                child.communicate()
                tally.kills += 1
                continue
        _, errors = child.communicate(timeout=_TIMEOUT_S)
        if child.returncode != 0:
            tally.violations.append(f"a run exited {child.returncode}: {errors.decode()[-500:]}")
        return


def wait_for_lock(store: Path, child: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + 30
    while lock_holder(store) != child.pid and child.poll() is None and time.monotonic() < until:
        time.sleep(0.01)


def lock_holder(store: Path) -> int:
    try:
        text = (store / "writer.lock").read_text()
        return int(text.partition('"pid": ')[2].partition(",")[0] or 0)
    except (OSError, ValueError):
        return 0


def kill(pid: int, *, workers_too: bool) -> None:
    pids = [pid]
    if workers_too:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            pids += [int(child) for child in children.read_text().split()]
    for one in pids:
        try:
            os.kill(one, signal.SIGKILL)
        except ProcessLookupError:
            continue


def check_round(store: Path, expected: list[Row], outcomes: dict[str, str], tally: Tally) -> None:
    found = rows_of(store)
    if found != expected:
        first = next((i for i, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]), -1)
        tally.violations.append(
            f"round {tally.rounds}: {len(found)} rows, not the {len(expected)} of an uninterrupted run;"
            f" first difference at {first}: {found[first][:3]} for {expected[first][:3]}"
        )
    others = {path: told for path, told in outcomes_of(store).items() if told != outcomes.get(path)}
    if others or len(outcomes_of(store)) != len(outcomes):
        tally.violations.append(f"round {tally.rounds}: other outcomes: {others}")
    with Store.open(store) as opened:
        sealed = opened.catalog.totals().sealed
    for path in store.glob("catalog.db*"):
        path.unlink()
    rebuild_catalog(store)
    if rows_of(store)[:sealed] != expected[:sealed]:
        tally.violations.append(f"round {tally.rounds}: the rebuilt catalog has other rows below {sealed}")


def rows_of(path: Path) -> list[Row]:
    with Store.open(path) as store:
        frames, reader = store.catalog.rows(), store.reader(1)
        names = {s.id: s.path for s in store.catalog.sources()}
        hashes = [digest(jpeg) for jpeg in reader.jpegs(frames.ids)]
        reader.close()
    columns = (frames.ids.tolist(), frames.source.tolist(), frames.time_s.tolist(), hashes)
    return [(id_, names[source], time_s, hash_) for id_, source, time_s, hash_ in zip(*columns, strict=True)]


def outcomes_of(path: Path) -> dict[str, str]:
    with Store.open(path) as store:
        return {s.path: f"{s.outcome} {s.frames} {s.reason}" for s in store.catalog.sources()}


def digest(jpeg: bytes) -> str:
    return hashlib.blake2b(jpeg, digest_size=12).hexdigest()


class Watcher:
    """The reader process; its findings once it has ended."""

    def __init__(self, store: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._end = context.Event()
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=watch, args=(store, self._end, theirs))
        self.seen, self.violations = 0, list[str]()

    def __enter__(self) -> "Watcher":
        self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        if self._pipe.poll(_TIMEOUT_S):
            self.seen, self.violations = self._pipe.recv()
        else:
            self.violations = ["the reader does not answer"]
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()


def watch(path: Path, end: Event, pipe: Any) -> None:
    """Check every frame when it appears, and a random part of the known ones again and again."""
    known: dict[int, str] = {}
    violations: list[str] = []
    rng, seen = np.random.default_rng(0), 0
    try:
        store = open_when_there(path, end)
        if store is not None:
            reader = store.reader(1)
            last = False
            while not last:
                last = end.is_set()
                next_id = reader.refresh()
                old = rng.choice(len(known), min(len(known), 200), replace=False) if known else np.empty(0, int)
                ids = np.concatenate([np.arange(len(known), next_id), np.arange(next_id) if last else old])
                seen += len(ids)
                for id_, jpeg in zip(ids.tolist(), reader.jpegs(ids.astype(np.int64)), strict=True):
                    violations += check_frame(id_, jpeg, known)
                time.sleep(0.02)
    except Exception as error:  # noqa: BLE001 - whatever a reader meets is a finding
        violations.append(f"the reader failed: {type(error).__name__}: {error}")
    pipe.send((seen, violations))


def open_when_there(path: Path, end: Event) -> Store | None:
    while not end.is_set():
        try:
            return Store.open(path)
        except StoreNotFoundError:
            time.sleep(0.02)
    return None


def check_frame(id_: int, jpeg: bytes, known: dict[int, str]) -> list[str]:
    if not jpeg:
        return [f"frame {id_} is empty"]
    try:
        picture = simplejpeg.decode_jpeg(jpeg)
    except ValueError as error:
        return [f"frame {id_} does not decode: {error}"]
    found = digest(jpeg)
    if picture.shape != (64, 64, 3) or known.setdefault(id_, found) != found:
        return [f"frame {id_} has changed"]
    return []


def gather(folder: Path) -> None:
    """Links to the zoo's ordinary videos, or synthetic ones."""
    folder.mkdir()
    zoo = Path(os.environ.get("CLD_STREAM_DATA", "")) / "media-zoo"
    if os.environ.get("CLD_STREAM_DATA") and (zoo / "manifest.tsv").exists():
        with (zoo / "manifest.tsv").open() as table:
            for i, row in enumerate(csv.DictReader(table, delimiter="\t")):
                if row["kind"] == "video" and row["expected"] == "ok":
                    (folder / f"{i:03d}-{Path(row['path']).name}").symlink_to((zoo / row["path"]).resolve())
        return
    for i in range(24):
        film(folder / f"clip{i}.mp4", seconds=12, seed=i)


def film(path: Path, seconds: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scene = np.kron(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8), np.ones((16, 16, 1), np.uint8))
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for t in range(seconds * 25):
            view = scene[t % 300 : t % 300 + 240, t % 500 : t % 500 + 320]
            picture = np.ascontiguousarray(view)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                out.mux(packet)
        for packet in stream.encode():
            out.mux(packet)


if __name__ == "__main__":
    sys.exit(main())
