"""Leave ingest, train and query alone for an hour: memory, descriptors and threads must not grow.

    python -m benchmarks.soak --minutes 60 --write

The processes and the files that come and go are those of `benchmarks.chaos`, without kills, and with a limit on frames
and on files: one goes whenever one comes. The store knows 5,000 files before, as one that has been at work for a while.
Every second resident memory, open descriptors and threads of each process (workers included) and the trainer's lag are
noted. Ingest and train are asked for their health and metrics five times a second: in an hour as often as in three days
by a monitor that asks every quarter of a minute. A straight line through what comes after the warm-up has the slope
that is printed, with an interval (from means of minutes, since neighbouring seconds tell the same): with 95% confidence
all nine slopes lie in theirs.
Memory also goes in steps: a table that is made anew elsewhere in the heap touches pages that nothing had touched. So
its line may have one step, if that explains most of what a line without one leaves; the step is printed beside the
slope, and further steps are part of the slope.
Exits 1 if memory grows beyond its interval by 4 MB an hour, a descriptor or thread count by one, if memory steps up by
10 MB, a process ends, or one that answered does not.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks.chaos.churn import Churn
from benchmarks.chaos.services import SETTINGS, Service, services
from benchmarks.watch import know, make
from cld_stream.config import load_settings
from cld_stream.errors import CldError
from cld_stream.pipelines.status import status
from tests.media.rtsp_server import free_port

_RESULTS = Path(__file__).parent / "results"
_BOUNDED = ("ingest.max_frames=400", "buffer.capacity=150")  # a store of a steady size, after three minutes
_MEASURES = {"memory": "MB", "descriptors": "", "threads": ""}
_KNOWN, _CHANGING = 5_000, 40  # files
_ASKED_HZ = 5
_MOST = {"memory": 4.0, "descriptors": 1.0, "threads": 1.0}  # an hour, beyond the interval
_HIGHEST_STEP = 10.0  # MB
_APART = 3  # minutes between a step and an end
_NINE = 3.0  # standard errors to each side: nine of such intervals hold all at once with 95% (Bonferroni, t of 35)


@dataclass(frozen=True)
class Slope:
    """Of one measure of one process, an hour: value, and half the width of its interval.

    Attributes:
        step: (second, height) of the one step that the line has; None where it has none.
    """

    process: str
    measure: str
    last: float
    hourly: float
    within: float
    step: tuple[float, float] | None = None

    def grows(self) -> bool:
        """Whether it is beyond noise, and what a month of it would be beyond bearing; or the step is."""
        height = self.step[1] if self.step else 0.0
        return self.hourly - self.within > _MOST[self.measure] or height > _HIGHEST_STEP


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--warm-up", type=float, help="minutes that do not count [default: a third]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="write results/soak.md, soak.json and soak.png")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cld-soak-") as made:
        seen, problems = watch(Path(made), chosen.minutes, chosen.seed)
    warm_up = chosen.minutes / 3 if chosen.warm_up is None else chosen.warm_up
    slopes = [
        slope(name, measure, seen[name][:, [0, n]], 60 * warm_up)
        for name in ("ingest", "train", "query")
        for n, measure in enumerate(_MEASURES, 1)
    ]
    problems += [f"{s.process} {s.measure} grows" for s in slopes if s.grows()]
    text = markdown(chosen.minutes, warm_up, slopes, seen["lag"], problems)
    print(text)
    if chosen.write:
        (_RESULTS / "soak.md").write_text(text)
        (_RESULTS / "soak.json").write_text(json.dumps({name: rows.tolist() for name, rows in seen.items()}) + "\n")
        plot(seen, _RESULTS / "soak.png")
    return 1 if problems else 0


def watch(work: Path, minutes: float, seed: int) -> tuple[dict[str, NDArray[np.float64]], list[str]]:
    """({process: rows of (second, MB, descriptors, threads); lag: rows of (second, frames)}, problems)."""
    probes = {name: free_port() for name in ("ingest", "train")}
    os.environ |= {f"CLD_STREAM_{name.upper()}_PORT": str(port) for name, port in probes.items()}
    answered, silent = set[str](), list[str]()
    churn = Churn(work / "media", work / "kept", random.Random(seed), _CHANGING)
    make(work / "media" / "before", _KNOWN, 1000)
    know(work / "store", work / "media" / "before", load_settings(overrides=SETTINGS).store)
    three = services(work, work / "store", work / "media", _BOUNDED)
    rows: dict[str, list[tuple[float, ...]]] = {name: [] for name in (*(one.name for one in three), "lag")}
    began = due = ask = time.monotonic()
    try:
        while (now := time.monotonic()) < began + 60 * minutes:
            for one in three:
                one.keep_up()
            churn.step()
            if now >= ask:
                ask = now + 1 / _ASKED_HZ
                well = {name for name, port in probes.items() if answers(port)}
                silent += [
                    f"{n} was not healthy, or had no metrics, after {now - began:.0f} s" for n in answered - well
                ]
                answered |= well
            if now >= due:
                due = now + 1.0
                for one in three:
                    if (found := look(one)) is not None:
                        rows[one.name].append((now - began, *found))
                if (lag := lag_of(work / "store")) is not None:
                    rows["lag"].append((now - began, lag))
            time.sleep(0.05)
    finally:
        for one in three:
            one.stop()
    problems = [*silent, *(f"{name} never answered" for name in probes.keys() - answered)]
    problems += [p for one in three for p in one.problems]
    return {name: np.array(values) for name, values in rows.items()}, problems


def answers(port: int) -> bool:
    """Whether a process is healthy and gives its metrics."""
    try:
        for page in ("healthz", "metrics"):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/{page}", timeout=5) as reply:
                reply.read()
    except OSError:
        return False
    return True


def look(service: Service) -> tuple[float, float, float] | None:
    """(MB, descriptors, threads) of a process and those below it."""
    try:
        top = psutil.Process(service.pid)
        family = [top, *top.children(recursive=True)]
        memory = sum(p.memory_info().rss for p in family) / 2**20
        return memory, sum(p.num_fds() for p in family), sum(p.num_threads() for p in family)
    except psutil.Error:
        return None


def lag_of(store: Path) -> float | None:
    try:
        return status(store).lag
    except (CldError, OSError):
        return None


def slope(process: str, measure: str, rows: NDArray[np.float64], after_s: float) -> Slope:
    """Least squares through the means of minutes, or of twelfths where there are fewer; memory's may have a step."""
    rows = rows[rows[:, 0] >= after_s]
    parts = np.array_split(rows, max(12, int(len(rows) // 60)))
    t, y = np.array([part.mean(0) for part in parts if len(part)]).T
    line = np.stack((np.ones_like(t), (t - t.mean()) / 3600), axis=1)
    stepped = [np.column_stack((line, t >= at)) for at in t[_APART:-_APART] if measure == "memory"]
    best = min(stepped, key=lambda design: _left(design, y), default=line)
    design = best if 2 * _left(best, y) < _left(line, y) else line
    level_slope_step = np.linalg.lstsq(design, y)[0]
    error = float(np.sqrt(_left(design, y) / (len(t) - design.shape[1]) * np.linalg.inv(design.T @ design)[1, 1]))
    step = (float(t[design[:, 2] > 0][0]), float(level_slope_step[2])) if design is not line else None
    return Slope(process, measure, float(y[-1]), float(level_slope_step[1]), _NINE * error, step)


def _left(design: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Sum of squares that a least-squares fit leaves."""
    return float(((y - design @ np.linalg.lstsq(design, y)[0]) ** 2).sum())


def markdown(minutes: float, warm_up: float, slopes: list[Slope], lag: NDArray[np.float64], problems: list[str]) -> str:
    lines = [
        f"| {s.process} | {s.measure} | {s.last:,.1f} {_MEASURES[s.measure]} | {s.hourly:+.2f} +- {s.within:.2f} | "
        + (f"{s.step[1]:+.1f} {_MEASURES[s.measure]}, minute {s.step[0] / 60:.0f} |" if s.step else "|")
        for s in slopes
    ]
    return "\n".join(
        [
            f"# Soak\n\n`python -m benchmarks.soak --minutes {minutes:g}`, {os.cpu_count()}-core "
            f"{os.uname().machine} machine, {datetime.now(UTC).date()}. Slopes after {warm_up:.3g} minutes; "
            "with 95% confidence all are within.\n",
            "| process | | at the end | an hour | a step |\n| --- | --- | --- | --- | --- |",
            *lines,
            f"\nLag: median {np.median(lag[:, 1]):,.0f} frames, at most {lag[:, 1].max():,.0f}. ",
            *[f"- {problem}" for problem in problems],
            "![](soak.png)\n",
        ]
    )


def plot(seen: dict[str, NDArray[np.float64]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(4, 1, figsize=(9, 11), sharex=True)
    for n, (measure, unit) in enumerate(_MEASURES.items(), 1):
        for name in ("ingest", "train", "query"):
            axes[n - 1].plot(seen[name][:, 0] / 60, seen[name][:, n], label=name, linewidth=0.8)
        axes[n - 1].set_ylabel(f"{measure} {unit}")
    axes[3].plot(seen["lag"][:, 0] / 60, seen["lag"][:, 1], linewidth=0.8)
    axes[3].set_ylabel("lag [frames]")
    axes[3].set_xlabel("minutes")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
