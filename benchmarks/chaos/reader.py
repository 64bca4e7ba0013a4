"""Ask and read without end; whatever fails is a line in `failures.txt`."""

import hashlib
import random
import sys
import time
import warnings
from pathlib import Path

import numpy as np

from cld_stream.errors import StoreNotFoundError
from cld_stream.pipelines.query import query
from cld_stream.storage.store import Store

__all__: list[str] = []


def main() -> None:
    warnings.simplefilter("ignore")
    store, work = Path(sys.argv[1]), Path(sys.argv[2])
    known: dict[int, bytes] = {}
    rng, done = random.Random(), 0
    while True:
        try:
            done += look(store, known, rng)
        except StoreNotFoundError:  # not made, nothing published, or this frame has no features yet
            time.sleep(0.2)
        except BaseException as error:  # noqa: BLE001 - whatever a reader meets is a finding
            with (work / "failures.txt").open("a") as f:
                f.write(f"{type(error).__name__}: {error}\n")
        with (work / "asked.txt").open("a") as f:
            f.write(f"{done}\n")
        done = 0
        time.sleep(0.3)


def look(path: Path, known: dict[int, bytes], rng: random.Random) -> int:
    """Read some frames, all new ones among them, and ask one question; gives how many were read."""
    with Store.open(path) as store, store.reader(1) as reader:
        live = store.catalog.live_ids()
        new = live[live > max(known, default=-1)]
        ids = np.union1d(new, rng.choices(live, k=100)) if len(live) else live
        for id_, jpeg in zip(ids.tolist(), reader.jpegs(ids), strict=True):
            if not jpeg:
                if len(store.catalog.rows([id_])):  # else it was dropped a moment ago, to make room
                    raise AssertionError(f"frame {id_} is empty")
            elif known.setdefault(id_, digest := hashlib.blake2b(jpeg, digest_size=12).digest()) != digest:
                raise AssertionError(f"frame {id_} has changed")
        for gone in known.keys() - set(live.tolist()):
            del known[gone]
    if len(live):
        query(path, frame=int(rng.choice(live[-200:])), k=5)
    return len(ids)


if __name__ == "__main__":
    main()
