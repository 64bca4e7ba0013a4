"""What the table will cost, from a few measured steps of every row."""

import time
from collections import defaultdict
from collections.abc import Sequence

import torch

from benchmarks.stream.cells import Cell, make_learner
from benchmarks.stream.score import PLACES, QUICK_ASKED, QUICK_LABELLED

__all__ = ["show"]

FRAMES = {"gtsrb-tracks": 21_750, "eth80": 2_624}
STEPS = 3


def show(cells: Sequence[Cell], sweep: Sequence[Cell], seeds: int) -> None:
    """CPU seconds of a cell of every row (probes included), and of everything."""
    torch.set_num_threads(1)
    total: dict[str, float] = defaultdict(float)
    for cell in cells:
        own, slices = _seconds(cell), [c for c in sweep if (c.track, c.row) == (cell.track, cell.row)]
        tuned = sum(own * c.stream["slice"] for c in slices)
        total[cell.track] += seeds * own + tuned
        print(f"{cell.track:<10} {cell.row:<16} {own:6.0f} s a cell, {tuned:5.0f} s its sweep", flush=True)
    for track, seconds in total.items():
        print(f"{track}: {seconds / 3600:.2f} CPU hours with {seeds} seeds")
    print(f"all: {sum(total.values()) / 3600:.2f} CPU hours")


def _seconds(cell: Cell) -> float:
    learner = make_learner(cell, "cpu")
    s = learner.settings
    frames = cell.stream["frames"] or FRAMES[cell.stream["source"]]
    size, batch = s.store.size, s.optim.batch
    pixels = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8)
    learner.remember(range(batch))
    learner.step(learner.plan(), pixels, torch.ones(batch))
    began = time.process_time()
    for _ in range(STEPS):
        learner.step(learner.plan(), pixels, torch.ones(batch))
    step = (time.process_time() - began) / STEPS
    looks = len(PLACES) * (QUICK_LABELLED + QUICK_ASKED) + 30_000
    steps = 0 if cell.learner in ("untrained", "pixels") else frames / s.optim.fresh * s.train.updates_per_step
    return step * steps + looks * step / (8 * batch)  # a forward pass is a quarter of a step's two views
