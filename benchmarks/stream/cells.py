"""Cells: one row of one track with one seed. A finished one is a line of the ledger."""

import os
import platform
import resource
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from benchmarks.offline import ledger
from benchmarks.stream.data import Folders, Frames, Problem, Stream, build
from benchmarks.stream.rows import Row, overrides_of, settings_of
from benchmarks.stream.score import PLACES, Judge
from benchmarks.stream.tracks import Track
from benchmarks.stream.watched import Watched
from cld_stream.learn.buffer import Ids
from cld_stream.learn.feed import MOST_REMEMBERED, Feed, shown
from cld_stream.learn.learner import Learner, StepPlan, StepReport
from cld_stream.learn.memory import keep_freed_memory

__all__ = ["Cell", "Job", "cell_of", "finish", "finish_all", "make_learner"]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What a line of the ledger is about: everything that its numbers depend on but the code.

    Attributes:
        tuning: a miniature of the stream, scored at its end alone.
        learner: "ours", "untrained", "pixels", or the method of lightly.
        overrides: settings that are not at their default.
        stream: see `Stream`, as a plain dict.
    """

    track: str
    row: str
    seed: int
    tuning: bool
    learner: str
    overrides: dict[str, Any]
    stream: dict[str, Any]

    @property
    def name(self) -> str:
        """For messages."""
        kind = f" tuning {self.overrides['optim.lr']:g}" if self.tuning else ""
        return f"{self.track} {self.row} seed {self.seed}{kind}"


def cell_of(
    track_name: str,
    track: Track,
    row_name: str,
    row: Row,
    seed: int,
    rate: float,
    *,
    tuning: bool,
    held_out: bool = False,
) -> Cell:
    """The cell, checked: its settings exist.

    Raises:
        UsageError: they do not (yet).
    """
    stream = Stream(
        kind=track.kind, source=track.source, frames=track.frames, tasks=track.tasks, size=track.size,
        labelled_every=track.thin[0], asked_every=track.thin[1],
        slice=track.slice if tuning else 1.0, held_out=tuning or held_out, shuffled=row.shuffled,
    )  # fmt: skip
    overrides = overrides_of(track, row, rate)
    settings_of(overrides, seed)
    learner = "pixels" if row.pixels else "untrained" if not row.trained else row.lightly or "ours"
    return Cell(
        track=track_name, row=row_name, seed=seed, tuning=tuning, learner=learner, overrides=overrides,
        stream=vars(stream),
    )  # fmt: skip


@dataclass(frozen=True)
class Job:
    """Where cells read and write, when no further one is begun [s since 1970], and which code it is."""

    folders: Folders
    out: Path
    device: str
    threads: int
    deadline: float
    code: str = ""


def finish(cell: Cell, job: Job) -> bool:
    """Train and score a cell unless its line is there. False = the time is up."""
    if ledger.find(ledger.read(job.out), cell):
        return True
    if time.time() >= job.deadline:
        return False
    torch.set_num_threads(job.threads)
    keep_freed_memory()
    began = time.monotonic()
    problem = build(Stream(**cell.stream), job.folders, cell.seed)
    found = _measure(cell, problem, job.device)
    found |= {
        "wall_seconds": round(time.monotonic() - began, 1),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "threads": job.threads,
        "machine": _machine(job.device),
        "torch": torch.__version__,
        "date": f"{date.today():%Y-%m-%d}",
        "code": job.code,
    }
    ledger.add(job.out, cell, found)
    print(
        f"{cell.name}: linear {found['linear']:.3f} kNN {found['knn']:.3f} CA {found['ca']:.3f} CBP {found['cbp']:,} "
        f"({found['cpu_seconds']:.0f} + {found['probe_cpu_seconds']:.0f} CPU s)",
        file=sys.stderr,
        flush=True,
    )
    return True


def finish_all(wanted: Sequence[Cell], job: Job, jobs: int) -> bool:
    """So many cells at a time, each in a process of its own, so that its peak memory is its own."""
    lines = ledger.read(job.out)
    left = [cell for cell in wanted if ledger.find(lines, cell) is None]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        return all(list(pool.map(finish, left, [job] * len(left))))


def make_learner(cell: Cell, device: str) -> Learner:
    """The daemon's learner, or one with lightly's loss and head."""
    settings = settings_of(cell.overrides, cell.seed)
    if cell.learner in ("simclr", "moco"):
        from benchmarks.stream.lightly_learner import LightlyLearner

        return LightlyLearner(cell.learner, settings, device)
    return Learner(settings, device)


def _measure(cell: Cell, problem: Problem, device: str) -> dict[str, Any]:
    """One pass over the stream, with a look at the encoder at every place."""
    learner, untrained = make_learner(cell, device), cell.learner in ("untrained", "pixels")
    watched = None if untrained or cell.tuning else Watched(learner)
    judge = Judge(problem, cell.learner == "pixels", watched)
    places = [1.0] if cell.tuning or untrained else list(PLACES)
    spent = probing = 0.0
    feed, n = Feed(max_lag=len(problem.stream)), len(problem.stream)
    report: StepReport | None = None
    for share in places:
        began = time.process_time()
        if untrained:
            learner.remember(feed.take(n, n))
        else:
            report = _train(learner, feed, problem.stream, round(share * n)) or report
        spent += time.process_time() - began
        began = time.process_time()
        judge.look(learner, share, feed.cursor, report)
        probing += time.process_time() - began
    last = judge.points[-1]
    even = [p["knn"] for p in judge.points if round(100 * p["share"]) % 10 == 0]
    return {
        "linear": last["linear"],
        **last.pop("whole"),
        "ca": round(mean(even), 4),
        "cbp": learner.cbp,
        "steps": learner.updates,
        "bad": learner.clock - learner.updates,
        "cpu_seconds": round(spent, 1),
        "probe_cpu_seconds": round(probing, 1),
        "points": judge.points,
    }


def _train(learner: Learner, feed: Feed, stream: Frames, until: int) -> StepReport | None:
    """Feed whole batches as the daemon does, until the cursor is there: remember, and once there are enough, step.

    Returns the last step's report.
    """
    s, report = learner.settings, None
    while feed.cursor < until:
        fresh = feed.take(s.optim.fresh, len(stream))
        origin, buffered = stream.origin[fresh], len(learner.buffer) + len(fresh)
        if buffered < min(s.train.min_frames, learner.buffer.capacity):
            _remember(learner, stream, fresh)
            continue
        chosen = shown(len(fresh), s.optim.shown)
        report = _step(learner, stream, learner.plan(fresh[chosen], origin[chosen]))
        _remember(learner, stream, fresh[~chosen])
        for _ in range(s.train.updates_per_step - 1):
            report = _step(learner, stream, learner.plan())
    return report


def _remember(learner: Learner, stream: Frames, ids: Ids) -> None:
    for at in range(0, len(ids), MOST_REMEMBERED):
        part = ids[at : at + MOST_REMEMBERED]
        frames = stream[part]
        learner.remember(part, frames.origin, frames.pixels, frames.aspect)


def _step(learner: Learner, stream: Frames, plan: StepPlan) -> StepReport:
    rows = torch.from_numpy(plan.wanted)
    return learner.step(plan, stream.pixels[rows].to(learner.device), stream.aspect[rows])


def _machine(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()}-core {platform.machine()} virtual machine"
