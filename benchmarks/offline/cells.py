"""Cells, one or several at a time: a finished one is a line of the ledger, an unfinished one a file of its state."""

import os
import platform
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.offline import data, ledger
from benchmarks.offline.recipes import Cell
from benchmarks.offline.score import score
from benchmarks.offline.train import Run, state_file
from cld_stream.learn.memory import keep_freed_memory

__all__ = ["Job", "finish", "finish_all"]


@dataclass(frozen=True)
class Job:
    """Where a cell reads and writes, and when it must stop [s since 1970]."""

    cifar: Path
    out: Path
    work: Path
    device: str
    threads: int
    deadline: float


def finish(cell: Cell, job: Job) -> bool:
    """Train and score a cell unless its line is there. False = the time is up; its state is kept."""
    if ledger.find(ledger.read(job.out), cell):
        return True
    if time.time() >= job.deadline:
        return False
    torch.set_num_threads(job.threads)
    keep_freed_memory()
    problem = data.build(job.cifar, cell.variant, cell.recipe.images, cell.seed, held_out=cell.held_out)
    run, kept = Run.start(cell, problem.train.pixels_NSS3, job.device), state_file(cell, job.work)
    if kept.exists():
        run.load(kept)
    if not run.until(job.deadline):
        run.save(kept)
        print(
            f"{cell.name}: {run.learner.clock} of {run.steps} steps; call again to go on", file=sys.stderr, flush=True
        )
        return False
    began, cpu = time.monotonic(), time.process_time()
    found: dict[str, Any] = score(run.learner, problem)
    found |= {
        "seconds": round(run.seconds + time.monotonic() - began, 1),
        "cpu_seconds": round(run.cpu_seconds + time.process_time() - cpu, 1),
        "cbp": run.learner.cbp,
        "steps": run.learner.updates,
        "bad": run.learner.clock - run.learner.updates,
        "threads": job.threads,
        "machine": _machine(job.device),
        "torch": torch.__version__,
        "date": f"{date.today():%Y-%m-%d}",
    }
    ledger.add(job.out, cell, found)
    kept.unlink(missing_ok=True)
    print(
        f"{cell.name}: kNN {found['knn']:.3f} linear {found['linear']:.3f} ({found['cpu_seconds']:.0f} CPU s)",
        file=sys.stderr,
        flush=True,
    )
    return True


def finish_all(wanted: Sequence[Cell], job: Job, jobs: int) -> bool:
    """Several cells at a time, each in a process of its own."""
    if jobs == 1:
        done = [finish(cell, job) for cell in wanted]  # each has its turn, also where one is not finished
        return all(done)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        return all(list(pool.map(finish, wanted, [job] * len(wanted))))


def _machine(device: str) -> str:
    """What computed: the accelerator, or the number of cores."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()}-core {platform.machine()} CPU"
