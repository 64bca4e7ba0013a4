"""How soon is a committed frame counted, and how soon is it learned from? Three processes on one store.

    python -m benchmarks.lag TRACKS [--early 100] [--late 20] [--every 8]

TRACKS is the unpacked gtsrb-tracks folder. One process ingests its train split as sequences in `labels.tsv` order, one
trains and one queries, all at the same time; --early leaves only so many tracks at the start. The last --late tracks
come one by one, every few seconds, once the trainer has caught up. This process watches the catalog: when an id is
handed out (its commit), when the trainer's heartbeat first counts it in its lag, and when the heartbeat says that it
was fed. Heartbeats come every 2 seconds, and that wait is in the numbers. Exits 1 if a commit is counted later than
10 s, or fed later than 10 s with lag 0.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cld_stream.errors import StoreNotFoundError
from cld_stream.storage.store import Store

_LIMIT_S = 10.0
_POLL_S = 0.1
_TRAIN = (
    "encoder.crop=32", "buffer.capacity=2000", "optim.fresh=64", "augment.flip=0", "train.idle_steps=64",
    "train.publish_s=60",
)  # fmt: skip
_CLI = (sys.executable, "-m", "cld_stream")


@dataclass
class Watch:
    """Times at which ids were first seen committed, counted in the lag, and fed (id bound, monotonic seconds)."""

    committed: list[tuple[int, float]] = field(default_factory=list)
    counted: list[tuple[int, float]] = field(default_factory=list)
    fed: list[tuple[int, float]] = field(default_factory=list)

    def look(self, store: Store) -> None:
        now = time.monotonic()
        _note(self.committed, store.catalog.next_id(), now)
        said = [run.info for run in store.catalog.runs() if run.kind == "train" and run.info]
        if said:
            _note(self.counted, int(said[-1]["fed_to"]) + int(said[-1]["lag"]), now)
            _note(self.fed, int(said[-1]["fed_to"]), now)

    def caught_up(self, frames: int) -> bool:
        return bool(self.fed) and self.fed[-1][0] >= frames


def _note(seen: list[tuple[int, float]], bound: int, now: float) -> None:
    if bound and (not seen or bound > seen[-1][0]):
        seen.append((bound, now))


def delays(committed: Sequence[tuple[int, float]], reached: Sequence[tuple[int, float]], start: int = 0) -> list[float]:
    """Seconds from each commit beyond id `start` until `reached` covered it."""
    pairs = [(bound, at) for bound, at in committed if bound > start]
    return [next(t for bound2, t in reached if bound2 >= bound) - at for bound, at in pairs]


def write_tables(tracks: Path, work: Path, early: int | None, late: int) -> tuple[Path, list[Path], int]:
    """The train split without its last tracks, a table for each of those, and the number of frames in the first."""
    with (tracks / "labels.tsv").open() as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["split"] == "train"]
    rows.sort(key=lambda row: int(row["order"]))
    names = list(dict.fromkeys(row["sequence"] for row in rows))

    def table(name: str, keep: set[str]) -> Path:
        path = work / f"{name}.tsv"
        lines = [
            f"{tracks / r['path']}\t{r['sequence']}\t{r['frame']}\t{r['label']}\n"
            for r in rows
            if r["sequence"] in keep
        ]
        path.write_text("path\tsequence\tframe\tlabel\n" + "".join(lines))
        return path

    begin, end = set(names[: len(names) - late][:early]), names[len(names) - late :]
    first = table("early", begin)
    return first, [table(name, {name}) for name in end], sum(r["sequence"] in begin for r in rows)


def keep_asking(store: Path, picture: Path, done: threading.Event) -> tuple[Callable[[], None], dict[str, list[float]]]:
    """A loop of cold `query` commands, each a process of its own, and the seconds that each took by outcome."""
    took: dict[str, list[float]] = {"answered": [], "no snapshot yet": [], "failed": []}

    def loop() -> None:
        while not done.wait(1.0):
            began = time.monotonic()
            asked = subprocess.run(
                [*_CLI, "query", str(picture), "--store", str(store), "--json"], capture_output=True, text=True
            )
            outcome = "answered" if asked.returncode == 0 and json.loads(asked.stdout) else "failed"
            if asked.returncode and "snapshot" in asked.stderr:
                outcome = "no snapshot yet"
            took[outcome].append(time.monotonic() - began)

    return loop, took


def run(tracks: Path, work: Path, early: int | None, late: int, every_s: float) -> int:
    store_path, (first, later, frames) = work / "store", write_tables(tracks, work, early, late)
    watch, done = Watch(), threading.Event()
    picture = next((tracks / "stream").rglob("*.*g"))
    ask, took = keep_asking(store_path, picture, done)

    def ingest(table: Path) -> subprocess.Popen[bytes]:
        command = [*_CLI, "ingest", f"@{table}", "--store", str(store_path), "--size", "48", "--order", "path"]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def watching(until: Callable[[], bool]) -> None:
        while not until():
            watch.look(store)
            time.sleep(_POLL_S)

    ingesting = ingest(first)
    while not (store_path / "catalog.db").exists():
        time.sleep(_POLL_S)
    time.sleep(1)
    settings = [word for setting in _TRAIN for word in ("--set", setting)]
    with (work / "train.log").open("w") as said:
        training = subprocess.Popen([*_CLI, "train", "--store", str(store_path), *settings], stdout=said, stderr=said)
    asking = threading.Thread(target=ask)
    asking.start()
    try:
        with _open(store_path) as store:
            watching(lambda: ingesting.poll() is not None)
            ingested = time.monotonic()
            watching(lambda: watch.caught_up(frames) or training.poll() is not None)
            print(f"caught up {time.monotonic() - ingested:.0f} s after the ingest of {frames:,} frames", flush=True)
            for table in later:
                more, next_at = ingest(table), time.monotonic() + every_s
                watching(lambda: more.poll() is not None and time.monotonic() > next_at)  # noqa: B023
            watching(lambda: watch.caught_up(store.catalog.next_id()) or training.poll() is not None)
    finally:
        done.set()
        training.terminate()
        code = training.wait(120)
        asking.join()
    at_work = watch.counted[0][0]  # commits from before the trainer's first heartbeat are not its to count
    counted, fed = delays(watch.committed, watch.counted, at_work), delays(watch.committed, watch.fed, frames)
    _say("commit to counted in the lag, all commits while it trains", counted)
    _say("commit to fed, commits at lag 0", fed)
    for outcome, seconds in took.items():
        if seconds:
            _say(f"query, {outcome}", seconds)
    print(f"train ended with {code} on SIGTERM")
    return int(max(counted) > _LIMIT_S or max(fed) > _LIMIT_S or code != 0 or bool(took["failed"]))


def _open(path: Path) -> Store:
    for _ in range(100):
        try:
            return Store.open(path)
        except StoreNotFoundError:
            time.sleep(_POLL_S)
    return Store.open(path)


def _say(what: str, seconds: Sequence[float]) -> None:
    print(f"{what}: n {len(seconds)}, median {statistics.median(seconds):.1f} s, worst {max(seconds):.1f} s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tracks", type=Path)
    parser.add_argument("--early", type=int, help="tracks ingested at the start; all but the late ones by default")
    parser.add_argument("--late", type=int, default=20, help="tracks that come one by one")
    parser.add_argument("--every", type=float, default=8.0, help="seconds between them")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cld-lag-") as work:
        return run(asked.tracks.absolute(), Path(work), asked.early, asked.late, asked.every)


if __name__ == "__main__":
    sys.exit(main())
