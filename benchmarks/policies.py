"""What a replay policy and persistent groups cost a step, with 100,000 rows in the buffer.

    python -m benchmarks.policies [--rows 100000] [--rounds 40] [--json]

The step is that of the CPU recipe as shipped (`reservoir`, local groups), over so many rows. Then each policy alone, on
a full buffer, as the step calls it: plan, apply and follow, 16 fresh frames and 112 replayed ones; what it takes to
look at frames, for those policies that want to know; and persistent groups over the bank (`loss.cross_level=bank`):
following the batch, and a share of the refinement that comes every `loss.bank_refine_steps` steps. Rows: directions
around 2,000 centres; those that are replayed move. CPU time.
"""

import argparse
import json
import math
import platform
import statistics
import time
from datetime import date
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.step import Bench
from cld_stream.config import Settings, load_settings
from cld_stream.learn.buffer import EMPTY, ReplayBuffer
from cld_stream.learn.incremental import IncrementalKMeans
from cld_stream.learn.looks import Looks
from cld_stream.learn.policies import POLICIES

GOAL = 0.05
CENTRES, SPREAD, MOVED = 2000, 0.15, 0.05
WARM = 8
"""Rounds before the measured ones."""


class Rows:
    """Features of newcomers, and of replayed frames some steps later."""

    def __init__(self, dim: int) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.centres = self._noise(CENTRES, dim)

    def new(self, n: int) -> torch.Tensor:
        which = torch.randint(0, CENTRES, (n,), generator=self.generator)
        return self.moved(self.centres[which] + SPREAD * self._noise(n, self.centres.shape[1]))

    def moved(self, rows: torch.Tensor) -> torch.Tensor:
        moved: torch.Tensor = F.normalize(rows + MOVED * self._noise(*rows.shape), dim=1)
        return moved

    def _noise(self, n: int, dim: int) -> torch.Tensor:
        noise = torch.randn(n, dim, generator=self.generator)
        return noise / math.sqrt(dim)


class Memory:
    """A full buffer and bank, led as the learner leads them."""

    def __init__(self, settings: Settings, policy: str) -> None:
        self.settings, self.rng = settings, np.random.default_rng(0)
        capacity, dim = settings.buffer.capacity, settings.encoder.feature_dim
        self.rows, self.looks = Rows(dim), Looks(capacity, dim, settings.encoder.crop, torch.device("cpu"))
        self.buffer, self.fed = ReplayBuffer(capacity, policy, settings.buffer), 0
        while self.fed < capacity:
            self.step(fresh=2048, replays=0)

    def step(self, fresh: int, replays: int) -> float:
        """CPU seconds that buffer and policy take in a step."""
        ids = np.arange(self.fed, self.fed + fresh)
        self.fed += fresh
        began = time.process_time()
        admission = self.buffer.propose(ids, self.rng)
        taken = admission.slots[admission.slots != EMPTY]
        replayed = self.buffer.sample(replays, self.rng, exclude=taken)
        took = time.process_time() - began
        slots = np.concatenate([admission.slots, replayed])
        seen = torch.from_numpy(slots[self.looks.choose(slots, fresh)])
        bank, new = self.looks.bank, min(fresh, len(seen))
        bank.fill(seen, torch.cat([self.rows.new(new), self.rows.moved(bank.rows_MD[seen[new:]])]), self.fed)
        began = time.process_time()
        self.buffer.apply(admission, 0)
        self.buffer.touch(replayed)
        if self.buffer.policy.looks:
            self.buffer.follow(bank.rows_MD, bank.live_M, seen.numpy())
        return took + time.process_time() - began


def of_looks(bench: Bench, rounds: int) -> list[float]:
    """Seconds of each round."""
    learner, crop = bench.learner, bench.settings.encoder.crop
    looks = Looks(bench.settings.buffer.capacity, bench.settings.encoder.feature_dim, crop, learner.device)
    slots, fresh, seconds = np.arange(bench.settings.optim.batch), bench.settings.optim.fresh, []
    for _ in range(rounds):
        began = time.process_time()
        at = looks.choose(slots, fresh)
        rows = torch.from_numpy(at)
        looks.look(learner.average, learner.encoder, slots[at], bench.pixels[rows], bench.aspect[rows], 0)
        seconds.append(time.process_time() - began)
    return seconds


def of_policy(settings: Settings, policy: str, rounds: int) -> list[float]:
    """Seconds of each round."""
    memory, optim = Memory(settings, policy), settings.optim
    return [memory.step(optim.fresh, optim.batch - optim.fresh) for _ in range(WARM + rounds)][WARM:]


def of_groups(settings: Settings, rounds: int) -> list[float]:
    """Seconds of each round: following the batch, and a step's share of a refinement."""
    loss, dim, capacity = settings.loss, settings.encoder.feature_dim, settings.buffer.capacity
    rows, generator = Rows(dim), torch.Generator().manual_seed(0)
    bank, live = rows.new(capacity), torch.ones(capacity, dtype=torch.bool)
    groups = IncrementalKMeans(loss.bank_groups, dim, capacity)
    groups.refine(bank, live, generator)
    began = time.process_time()
    for _ in range(3):
        groups.refine(bank, live, generator)
    refinement = (time.process_time() - began) / 3 / loss.bank_refine_steps
    seconds = []
    for _ in range(rounds):
        slots = torch.randperm(capacity, generator=generator)[: settings.optim.batch]
        bank[slots] = rows.moved(bank[slots])
        began = time.process_time()
        groups.partial_fit(bank[slots], slots)
        seconds.append(time.process_time() - began + refinement)
    return seconds


def measure(rows: int, rounds: int) -> dict[str, Any]:
    """Mean cost a step of every policy and of the groups, beside the step."""
    settings = load_settings(overrides=[f"buffer.capacity={rows}"], recipe="cpu")
    bench = Bench(settings, torch.device("cpu"))
    bench.full()
    step = statistics.median(bench.full() for _ in range(max(5, rounds // 4)))
    costs = {name: of_policy(settings, name, rounds) for name in POLICIES}
    looks = statistics.mean(of_looks(bench, rounds // 2))
    costs = {n: [x + looks * POLICIES[n].looks for x in s] for n, s in costs.items()}
    costs["groups over the bank"] = of_groups(settings, rounds)
    return {
        "rows": rows,
        "step_ms": round(1000 * step, 1),
        "looks_ms": round(1000 * looks, 2),
        "mean_ms": {name: round(1000 * statistics.mean(s), 2) for name, s in costs.items()},
        "most_ms": {name: round(1000 * max(s), 2) for name, s in costs.items()},
        "goal": GOAL,
        "cpu": platform.machine(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "date": f"{date.today():%Y-%m-%d}",
    }


def page(found: dict[str, Any]) -> str:
    """Markdown."""
    step, bank = found["step_ms"], found["mean_ms"]["groups over the bank"]
    lines = [
        f"{found['rows']:,} rows, step of the CPU recipe {step} ms of CPU time; {found['cpu']}, torch "
        f"{found['torch']}, {found['threads']} thread(s), {found['date']}. "
        f"Goal: policy and groups < {found['goal']:.0%}.",
        "",
        f"Of minred and groups, {found['looks_ms']} ms are looking at frames.",
        "",
        "| part | mean [ms] | most [ms] | share of the step | with groups over the bank |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, ms in found["mean_ms"].items():
        both = f"{(ms + bank) / step:.1%}" if name in POLICIES else ""
        lines.append(f"| {name} | {ms} | {found['most_ms'][name]} | {ms / step:.1%} | {both} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = measure(args.rows, args.rounds)
    print(json.dumps(found) if args.json else page(found))


if __name__ == "__main__":
    main()
