"""Train one cell with the daemon's own Learner: epochs over a fixed set, all of it in the replay buffer."""

import json
import os
import time
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.offline.recipes import Cell
from cld_stream.learn.buffer import Admission, Ids, Origin
from cld_stream.learn.learner import Learner, StepPlan

__all__ = ["Run", "state_file"]

_NONE: Ids = np.empty(0, np.int64)
_NOBODY = Admission(_NONE, _NONE, _NONE, Origin.unknown(0))


@dataclass
class Run:
    """A cell in training, and what it has cost so far, over every process that worked on it.

    Attributes:
        steps: of the whole run; an epoch leaves out what does not fill a batch.
        seconds, cpu_seconds: spent in steps.
    """

    cell: Cell
    learner: Learner
    pixels_NSS3: Tensor
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    @classmethod
    def start(cls, cell: Cell, pixels_NSS3: Tensor, device: str) -> "Run":
        """Every image is remembered; nothing is learnt yet. Slot and id of an image are its row."""
        n = len(pixels_NSS3)
        learner = Learner(cell.recipe.settings(cell.method, n, cell.seed), device)
        learner.remember(range(n))
        if cell.recipe.bank == "random":
            rows_ND = torch.randn(n, learner.bank.rows_MD.shape[1], generator=torch.Generator().manual_seed(cell.seed))
            learner.bank.fill(torch.arange(n, device=device), rows_ND.to(device))
        return cls(cell, learner, pixels_NSS3.to(device))

    @property
    def steps(self) -> int:
        return self.cell.recipe.epochs * self._epoch

    @property
    def _epoch(self) -> int:
        return len(self.pixels_NSS3) // self.cell.recipe.batch

    def until(self, deadline: float) -> bool:
        """Train to the end, or past `deadline` [s since 1970] by one step at most. True = at the end."""
        while self.learner.clock < self.steps:
            began, cpu = time.monotonic(), time.process_time()
            self._step()
            self.seconds += time.monotonic() - began
            self.cpu_seconds += time.process_time() - cpu
            if time.time() >= deadline:
                break
        return self.learner.clock >= self.steps

    def _step(self) -> None:
        clock, batch = self.learner.clock, self.cell.recipe.batch
        rows = self._order(clock // self._epoch)[clock % self._epoch * batch :][:batch]
        pixels = self.pixels_NSS3[torch.from_numpy(rows).to(self.pixels_NSS3.device)]
        self.learner.step(StepPlan(rows, rows, _NOBODY, Origin.unknown(batch)), pixels, torch.ones(batch))

    def _order(self, epoch: int) -> Ids:
        """A permutation that depends on seed and epoch alone."""
        return np.random.default_rng([self.cell.seed, epoch]).permutation(len(self.pixels_NSS3))

    def save(self, file: Path) -> None:
        """Keep the whole state; a reader sees the old one or the new one."""
        arrays, numbers = self.learner.state_dict()
        numbers |= {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds}
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        with part.open("wb") as out:
            np.savez(out, **arrays, json=np.frombuffer(json.dumps(numbers).encode(), np.uint8))  # type: ignore[arg-type]
            out.flush()
            os.fsync(out.fileno())
        part.replace(file)

    def load(self, file: Path) -> None:
        """Go on from a saved state."""
        with np.load(file) as saved:
            arrays = {name: saved[name] for name in saved.files}
        numbers: dict[str, Any] = json.loads(arrays.pop("json").tobytes())
        self.seconds, self.cpu_seconds = numbers.pop("seconds"), numbers.pop("cpu_seconds")
        self.learner.load_state_dict(arrays, numbers)


def state_file(cell: Cell, work: Path) -> Path:
    """Where an unfinished cell is kept: another recipe, another file."""
    digest = sha256(json.dumps(asdict(cell), sort_keys=True).encode()).hexdigest()[:8]
    return work / f"{cell.name}-{digest}.npz"
