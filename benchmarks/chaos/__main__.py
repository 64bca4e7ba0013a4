"""Kill ingest, train and query again and again while files come and go; the store must not show it.

    python -m benchmarks.chaos --minutes 60

`ingest --watch`, `train` and a reader that asks without end work on one store. Files are added, grown, renamed and
removed; one of the three is killed (SIGKILL) every few seconds and started again at once. At the end everything may
come to rest, and a verifier compares every frame with those of one undisturbed ingest of the same files, and the
trainer's buffer with the stream. Exits 1 if anything is lost, doubled, wrong or failed.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.chaos.churn import Churn
from benchmarks.chaos.services import SETTINGS, Service, services
from benchmarks.chaos.verify import trained_to, verify_frames, verify_training
from cld_stream.pipelines.train import STREAM, train, train_settings
from cld_stream.storage.store import Store

_RESULTS = Path(__file__).parents[1] / "results"
_CALM_S = 180.0


@dataclass
class Result:
    """What happened. `advanced` of `rounds`: spells between two kills of the trainer in which a checkpoint moved on."""

    minutes: float = 0.0
    seed: int = 0
    kills: dict[str, int] = field(default_factory=dict)
    starts: dict[str, int] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    frames: dict[str, int] = field(default_factory=dict)
    questions: int = 0
    frames_read: int = 0
    steps: int = 0
    advanced: int = 0
    rounds: int = 0
    problems: list[str] = field(default_factory=list)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--every-s", type=float, default=14.0, help="mean time between kills [s]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="work here and leave everything")
    parser.add_argument("--write", action="store_true", help="write results/chaos.json and .md")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cld-chaos-") as made:
        work = chosen.keep or Path(made)
        work.mkdir(parents=True, exist_ok=True)
        result = run(work, chosen.minutes, chosen.every_s, chosen.seed)
    text = markdown(result)
    print(text)
    if chosen.write:
        (_RESULTS / "chaos.json").write_text(json.dumps(asdict(result), indent=1) + "\n")
        (_RESULTS / "chaos.md").write_text(text)
    return 1 if result.problems else 0


def run(work: Path, minutes: float, every_s: float, seed: int) -> Result:
    rng, store, began = random.Random(seed), work / "store", time.monotonic()
    churn = Churn(work / "media", work / "kept", random.Random(seed + 1))
    three, result = services(work, store, work / "media"), Result(minutes=minutes, seed=seed)
    try:
        kill_and_churn(three, churn, rng, store, result, began + 60 * minutes, every_s)
        churn.finish()
        come_to_rest(three, store, work / "media", result)
    finally:
        for one in three:
            one.stop() if sys.exc_info()[0] is None else one.kill()
    result.kills, result.starts = {s.name: s.kills for s in three}, {s.name: s.starts for s in three}
    result.files = {"added": churn.added, "grown": churn.grown, "renamed": churn.renamed, "removed": len(churn.removed)}
    train(store, train_settings("cpu", overrides=SETTINGS, store_path=store), recipe=STREAM, until_caught_up=True)
    result.frames, problems = verify_frames(store, work / "kept", churn.removed)
    result.problems += problems + verify_training(store) + [p for s in three for p in s.problems]
    asked = [int(line) for line in lines(work / "asked.txt")]
    result.questions, result.frames_read, result.steps = len(asked), sum(asked), trained_to(store)[0]
    result.problems += [f"the reader failed: {line}" for line in lines(work / "failures.txt")]
    if not result.advanced:
        result.problems.append("training never advanced between two kills")
    return result


def kill_and_churn(
    three: list[Service], churn: Churn, rng: random.Random, store: Path, result: Result, until: float, every_s: float
) -> None:
    due, before = time.monotonic() + every_s, (0, 0)
    while time.monotonic() < until:
        for one in three:
            one.keep_up()
        churn.step()
        if time.monotonic() > due:
            due = time.monotonic() + rng.uniform(0.2, 1.8) * every_s
            one = rng.choice(three)
            one.kill()
            if one.name == "train":
                now = trained_to(store)
                if now < before:
                    result.problems.append(f"training went back from (step, cursor) {before} to {now}")
                result.rounds, result.advanced = result.rounds + 1, result.advanced + (now > before)
                before = now
        time.sleep(0.05)


def come_to_rest(three: list[Service], store: Path, media: Path, result: Result) -> None:
    """Wait until every file has an outcome and nothing has changed for a while."""
    until, last, since = time.monotonic() + _CALM_S, -1, time.monotonic()
    while time.monotonic() < until:
        for one in three:
            one.keep_up()
        with Store.open(store) as opened:
            rows = [row for row in opened.catalog.sources() if Path(row.path).exists()]
            frames = opened.catalog.next_id()
        open_ = [row.path for row in rows if row.outcome is None or row.reason == "still being written"]
        unknown = {str(p) for p in media.glob("[0-9]*")} - {row.path for row in rows}
        if frames != last:
            last, since = frames, time.monotonic()
        if not open_ and not unknown and time.monotonic() - since > 10:
            return
        time.sleep(0.5)
    result.problems.append(f"not at rest within {_CALM_S:g} s: {len(open_)} open, {len(unknown)} not taken")


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def markdown(r: Result) -> str:
    day = datetime.now(UTC).date()
    rows = [
        ("minutes", f"{r.minutes:g}"), ("kills (SIGKILL)", f"{sum(r.kills.values())}: {counted(r.kills)}"),
        ("starts", counted(r.starts)), ("files", counted(r.files)), ("frames", counted(r.frames)),
        ("questions, frames read meanwhile", f"{r.questions:,}, {r.frames_read:,}"),
        ("training steps", f"{r.steps:,}"),
        ("spells between kills of the trainer in which its checkpoint moved on", f"{r.advanced} of {r.rounds}"),
        ("problems", str(len(r.problems))),
    ]  # fmt: skip
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    problems = "".join(f"\n- {problem}" for problem in r.problems[:50])
    command = f"python -m benchmarks.chaos --minutes {r.minutes:g} --seed {r.seed}"
    machine = f"{os.cpu_count()}-core {os.uname().machine} machine"
    return f"# Chaos\n\n`{command}`, {machine}, {day}.\n\n| | |\n| --- | --- |\n{table}\n{problems}\n"


def counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


if __name__ == "__main__":
    sys.exit(main())
