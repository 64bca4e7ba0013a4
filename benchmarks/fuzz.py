"""Feed damaged media to ingest; whatever the files are, it must end, and what it says must be true.

    python -m benchmarks.fuzz --files 1000

Seeds are the small files of the media zoo (CLD_STREAM_DATA). A round is a folder of a few hundred mutations of them,
read by `cld-stream ingest` into a new store. Checked is: it ends in time and with exit code 0, by itself;
each file has one outcome, in harmless characters; ADDED and PARTIAL mean frames, what is not read means none; no reason
asks for a bug report; every stored frame decodes at the store's size; the store is sound; the memory of the parent does
not grow. A file that breaks a rule is kept (`--keep`). A round is a line of `--out`; finished ones are not run again,
so that `--files` is a total over all runs into that file; `make fuzz` begins with none. `--write` puts it into
`benchmarks/results`. Exits 1 if a rule was ever broken.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.mutate import mutated
from cld_stream.errors import CldError
from cld_stream.storage.check import check
from cld_stream.storage.store import Store

_RESULTS = Path(__file__).parent / "results"
_OUT = Path("build") / "fuzz.jsonl"
_SMALL_BYTES = 600_000
_FILE_S = 100.0  # no file may cost more: 60 s of computing and 20 s of silence are allowed, and a busy machine is slow
_GROWTH_MB = 64.0
_MOST_MB = 256.0  # for a parent that decodes nothing itself
_OUTCOMES = {"ADDED", "PARTIAL", "SKIPPED", "BROKEN", "ALREADY_PRESENT"}


@dataclass
class Round:
    """What a round showed.

    Attributes:
        seconds, slowest_s: of the round; the longest time without any progress.
        cpu_s: of the parent and its workers.
        crashed, ended: workers that died of a file; that were ended because they hung or computed without end.
        rss_mb: resident memory of the parent: after a quarter of the round, at its end, at most.
        broken_rules: in words, with the names of the files that were kept.
    """

    round: int
    files: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    frames: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    crashed: int = 0
    ended: int = 0
    rss_mb: list[float] = field(default_factory=list)
    broken_rules: list[str] = field(default_factory=list)
    utc: str = ""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--files", type=int, default=1000, help="in total, earlier runs into --out included")
    parser.add_argument("--round", type=int, default=250, help="files in a round")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seeds", type=Path, help="default: media-zoo of CLD_STREAM_DATA")
    parser.add_argument("--out", type=Path, default=_OUT)
    parser.add_argument("--write", action="store_true", help="write results/fuzz.md and fuzz.jsonl")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"))
    chosen = parser.parse_args()
    folder = chosen.seeds or Path(os.environ.get("CLD_STREAM_DATA") or "nowhere", "media-zoo")
    seeds = read_seeds(folder)
    if not seeds:
        print(f"{folder}: no media of up to {_SMALL_BYTES:,} bytes. Set CLD_STREAM_DATA, or give --seeds FOLDER.")
        return 2
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    rounds = [Round(**json.loads(line)) for line in chosen.out.read_text().splitlines()] if chosen.out.exists() else []
    while sum(r.files for r in rounds) < chosen.files:
        number = max((r.round for r in rounds), default=-1) + 1
        rounds.append(run_round(number, seeds, chosen.round, chosen.workers, chosen.keep))
        with chosen.out.open("a") as out:
            out.write(json.dumps(asdict(rounds[-1])) + "\n")
        print(json.dumps(asdict(rounds[-1])), flush=True)
    print(summary(rounds))
    if chosen.write:
        shutil.copy(chosen.out, _RESULTS / "fuzz.jsonl")
        (_RESULTS / "fuzz.md").write_text(summary(rounds))
    return 1 if any(r.broken_rules for r in rounds) else 0


def read_seeds(folder: Path) -> list[tuple[str, bytes]]:
    """(suffix, content) of the small files below a folder, always in the same order."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix not in (".tsv", ".txt"))
    return [(p.suffix, p.read_bytes()) for p in files if 0 < p.stat().st_size <= _SMALL_BYTES]


def run_round(number: int, seeds: list[tuple[str, bytes]], files: int, workers: int, keep: Path) -> Round:
    """One folder through one ingest; everything is derived from `number`."""
    rng, result = random.Random(number), Round(number, utc=datetime.now(UTC).isoformat(timespec="seconds"))
    with tempfile.TemporaryDirectory(prefix="cld-fuzz-") as made:
        folder = Path(made, "media")
        folder.mkdir()
        contents = [data for _, data in seeds]
        for n in range(files):
            suffix, data = rng.choice(seeds)
            changed, how = mutated(data, contents, rng)
            (folder / f"r{number}-{n}-{how}"[:200]).with_suffix(suffix).write_bytes(changed)
        result.files = files
        told = _ingest(folder, Path(made, "store"), workers, result)
        blamed = _check_report(told, folder, result) if told else sorted(folder.iterdir())
        if told:
            _check_store(Path(made, "store"), told, result)
        if result.broken_rules:
            keep.mkdir(parents=True, exist_ok=True)
            for path in blamed:
                shutil.copy(path, keep)
    return result


def _ingest(folder: Path, store: Path, workers: int, result: Round) -> dict[str, Any] | None:
    """The report of `cld-stream ingest`; None if there is none."""
    command = [
        sys.executable,
        "-m",
        "cld_stream",
        "--json-logs",
        "ingest",
        str(folder),
        "--store",
        str(store),
        "--json",
    ]
    options = ["--size", "64", "--workers", str(workers)]
    began, resident = time.monotonic(), list[float]()
    before = os.times()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen([*command, *options], stdout=out, stderr=err)
        watched = psutil.Process(process.pid)
        while process.poll() is None and time.monotonic() - began < _FILE_S * result.files:
            resident.append(watched.memory_info().rss / 2**20)
            time.sleep(0.2)
        if process.poll() is None:
            process.kill()
            result.broken_rules.append("it did not end")
        code = process.wait()
        out.seek(0), err.seek(0)
        said, complaint = out.read(), err.read().decode(errors="replace")
    after = os.times()
    result.seconds = round(time.monotonic() - began, 1)
    result.cpu_s = round(after.children_user + after.children_system - before.children_user - before.children_system, 1)
    _check_memory(resident, result)
    if code != 0:
        result.broken_rules.append(f"exit code {code}: {complaint[-500:]}")
        return None
    if "Traceback" in complaint:
        result.broken_rules.append(f"a traceback: {complaint[-500:]}")
    told: dict[str, Any] = json.loads(said)
    return told


def _check_memory(resident: list[float], result: Round) -> None:
    quarter = max(1, len(resident) // 4)
    early, late = median(resident[quarter : 2 * quarter] or resident), median(resident[-quarter:])
    result.rss_mb = [round(early, 1), round(late, 1), round(max(resident), 1)]
    if late - early > _GROWTH_MB:
        result.broken_rules.append(f"the parent grew from {early:.0f} to {late:.0f} MB")
    if max(resident) > _MOST_MB:
        result.broken_rules.append(f"the parent took {max(resident):.0f} MB")


def _check_report(told: dict[str, Any], folder: Path, result: Round) -> list[Path]:
    """Every file, what is said of it, and whether that can be; the files that it cannot be of."""
    rows, blamed = {Path(f["path"]).name: f for f in told["files"]}, list[Path]()
    result.outcomes = dict(sorted(Counter(str(f["outcome"]) for f in told["files"]).items()))
    result.crashed = sum("crashed on it" in f["reason"] for f in told["files"])
    result.ended = sum("was ended" in f["reason"] or "hung:" in f["reason"] for f in told["files"])
    for path in sorted(folder.iterdir()):
        wrong = _wrong(rows[path.name]) if path.name in rows else "it has no outcome"
        if wrong:
            result.broken_rules.append(f"{path.name}: {wrong}")
            blamed.append(path)
    if len(told["files"]) != result.files:
        result.broken_rules.append(f"{len(told['files'])} rows for {result.files} files")
    return blamed


def _wrong(row: dict[str, Any]) -> str:
    """What cannot be in what is said of a file, or ""."""
    outcome, frames, reason = row["outcome"], row["frames"], str(row["reason"])
    if outcome not in _OUTCOMES:
        return f"outcome {outcome}"
    if outcome in ("ADDED", "PARTIAL") and frames == 0:
        return f"{outcome} without a frame"
    if outcome in ("SKIPPED", "ALREADY_PRESENT") and frames:
        return f"{outcome} with {frames} frames"
    if outcome in ("PARTIAL", "BROKEN", "SKIPPED") and not reason:
        return f"{outcome} without a reason"
    if "please report" in reason or "no answer" in reason:
        return reason
    return "" if reason.isprintable() else f"a reason with control characters: {reason!r}"


def _check_store(path: Path, told: dict[str, Any], result: Round) -> None:
    try:
        with Store.open(path) as store:
            count = store.catalog.frame_count()
            result.frames = count
            if count != told["frames"]:
                result.broken_rules.append(f"{told['frames']} frames were told of, {count} are there")
            with store.reader() as frames:
                _, present = frames.read(range(frames.refresh()))
            if int(present.sum()) != count:
                result.broken_rules.append(f"{int(present.sum())} of {count} frames decode")
            result.broken_rules += [f"the store: {finding}" for finding in check(store)]
    except CldError as error:
        result.broken_rules.append(f"the store: {error}")


def summary(rounds: list[Round]) -> str:
    """The results as a page."""
    files, outcomes = sum(r.files for r in rounds), Counter[str]()
    for r in rounds:
        outcomes.update(r.outcomes)
    rules = [f"- round {r.round}: {rule}" for r in rounds for rule in r.broken_rules]
    cpu, wall = sum(r.cpu_s for r in rounds), sum(r.seconds for r in rounds)
    growth = max((r.rss_mb[1] - r.rss_mb[0] for r in rounds), default=0.0)
    most = max((r.rss_mb[2] for r in rounds), default=0.0)
    table = "\n".join(f"| {outcome} | {count:,} |" for outcome, count in sorted(outcomes.items()))
    told = "\n".join(rules)
    return f"""# Fuzzing ingest

Printed by `python -m benchmarks.fuzz`, {rounds[-1].utc[:10]}, {os.cpu_count()}-core {os.uname().machine} machine.

{files:,} damaged files in {len(rounds)} rounds; {sum(r.frames for r in rounds):,} frames were stored.

| outcome | files |
| --- | --- |
{table}

- Workers that died of a file: {sum(r.crashed for r in rounds)}; that were ended because they hung or computed without
  end: {sum(r.ended for r in rounds)}.
- Memory of the parent: {most:.0f} MB at most; within a round it grew by {growth:.0f} MB at most.
- A thousand files: {1000 * cpu / files:.0f} s of CPU time, {1000 * wall / files:.0f} s.
- Rules broken: {len(rules)}.
{told}
"""


if __name__ == "__main__":
    sys.exit(main())
