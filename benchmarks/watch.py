"""What an idle `ingest --watch` costs: share of a core and memory, with very many known files.

Makes FILES little photos below a folder, and a store that knows them, then watches them for SECONDS at the default
settings in a process of its own: without the system's notices (polling alone) and with them. CPU is that of the
process, from 90 s after its start on; the CPU time of one look is printed beside it.

    python -m benchmarks.watch [--files 100000] [--folder-files 1000] [--seconds 300] [--keep FOLDER]
"""

import argparse
import json
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from cld_stream.config import StoreSettings
from cld_stream.media.discover import Item
from cld_stream.media.identity import fingerprint
from cld_stream.media.scan import Scan
from cld_stream.pipelines.ledger import stat_item
from cld_stream.storage.schema import Outcome
from cld_stream.storage.store import Store
from tests.pipelines.footage import photograph


def make(folder: Path, files: int, in_one: int) -> None:
    """Little photos, all different."""
    folder.mkdir(parents=True)
    jpeg = photograph(folder.parent / "one.jpg").read_bytes()
    for i in range(files):
        day = folder / f"day {i // in_one:04d}"
        day.mkdir(exist_ok=True)
        (day / f"IMG_{i:06d}.jpg").write_bytes(jpeg + i.to_bytes(4, "big"))


def know(store: Path, folder: Path, settings: StoreSettings) -> None:
    """Put every file into the ledger as ingest leaves it, but for the frames: decoding is not what is measured."""
    with Store.create(store, settings) as made, made.writer("benchmark") as writer:
        for path in sorted(folder.rglob("*.jpg")):
            stat = stat_item(Item("file", path))
            print_ = fingerprint(path)
            id_ = writer.add_source(
                kind="photo", path=str(path), **stat.columns(), fingerprint=print_, label=None, split=None
            )
            writer.finish(id_, Outcome.ADDED, "", "pillow")


def look_s(folder: Path) -> float:
    """CPU time of one look at files that are all known."""
    known: dict[str, dict[str, int]] = {}
    for seen in Scan(str(folder), known):
        known[seen.folder] = seen.changed
    scan = Scan(str(folder), known)
    assert not list(scan)
    return scan.cpu_s


def watch_idle(store: Path, folder: Path, seconds: float, notices: str) -> dict[str, float]:
    """CPU share and memory of a watch with nothing to do."""
    child = subprocess.Popen(
        [sys.executable, "-m", "cld_stream", "ingest", "--watch", str(folder), "--store", str(store), "--json",
         "--set", f"ingest.notices={notices}"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    process = psutil.Process(child.pid)
    time.sleep(90)  # it has loaded what it knows, and looked
    assert child.poll() is None

    def used() -> float:
        t = process.cpu_times()
        return float(t.user + t.system)

    began, cpu, memory = time.monotonic(), used(), process.memory_info().rss
    time.sleep(seconds)
    share = (used() - cpu) / (time.monotonic() - began)
    after = process.memory_info().rss
    child.send_signal(signal.SIGTERM)
    out = child.communicate()[0].splitlines()
    assert [json.loads(line)["event"] for line in out] == ["end"], "something was found that is known"
    return {"core_share": share, "rss_mb": after / 2**20, "rss_growth_mb": (after - memory) / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--folder-files", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--keep", type=Path, help="work in this folder, and go on with what is in it")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        base: Path = args.keep or Path(scratch)
        folder, store = base / "photos", base / "store"
        if not folder.exists():
            make(folder, args.files, args.folder_files)
        if not store.exists():
            know(store, folder, StoreSettings(size=32))
        print(f"{platform.machine()}, Python {platform.python_version()}")
        print(f"{args.files:,} known files, {args.folder_files:,} in a folder")
        print(f"a look with nothing new: {look_s(folder):.3f} s of CPU")
        print(f"{'notices':8} {'share of a core':>16} {'memory MB':>10} {'growth MB':>10}")
        for notices in ("never", "auto"):
            r = watch_idle(store, folder, args.seconds, notices)
            print(f"{notices:8} {r['core_share']:16.2%} {r['rss_mb']:10.0f} {r['rss_growth_mb']:10.1f}")


if __name__ == "__main__":
    main()
