"""What a whole step costs beside the bare forward and backward of its two views, and where the rest goes.

    python -m benchmarks.step [--case shipped|cpu|resnet18|resnet50] [--rounds 15] [--set SECTION.KEY=VALUE] [--json]

The full step: augmentation, two views through the encoder, both losses over a full bank, local groups, buffer and
policy, SGD with its check, averaged weights. `shipped` is what `train` takes without a GPU when told nothing: recipe
`stream` under the sizes of `cpu`, with shots of 60 frames two seconds apart. Bare: two views of the same size through
the same encoder, a sum as the loss, backward. Both alternate in one process; the median of the ratios of CPU time (on
a GPU: of wall time after synchronising) counts. Then every part is measured alone; reading pixels is in none (the
daemon prefetches them).
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from typing import Any

import numpy as np
import torch

from cld_stream.config import Settings, load_settings
from cld_stream.learn.branches import Batch
from cld_stream.learn.buffer import Origin
from cld_stream.learn.learner import Learner
from cld_stream.learn.losses import cross_level_loss
from cld_stream.learn.memory import keep_freed_memory
from cld_stream.learn.undo import Undo

BANK = 65_536
CASES: dict[str, tuple[tuple[str, ...], list[str]]] = {
    "shipped": (("stream", "cpu"), []),
    "cpu": (("cpu",), []),
    "resnet18": (("stream", "gpu"), ["encoder.crop=128", "optim.batch=256"]),
    "resnet50": (("stream", "gpu"), ["encoder.backbone=resnet50", "encoder.crop=128", "optim.batch=256"]),
}
GOAL = {"cpu": 1.25, "gpu": 1.10}
SHOT = 60
"""Frames of a shot: those of one are each other's near-repeats."""


def settings_of(case: str, changes: list[str]) -> tuple[Settings, str]:
    """The recipe as shipped, with a bank of 65,536 rows and K half the batch, unless changed."""
    recipe, overrides = CASES[case]
    overrides = [*overrides, f"buffer.capacity={BANK}", *changes]
    batch = load_settings(overrides=overrides, recipe=recipe).optim.batch
    return load_settings(overrides=[f"loss.groups={batch // 2}", *overrides], recipe=recipe), recipe[-1]


def origin_of(ids: range) -> Origin:
    """Shots of `SHOT` frames, two seconds apart."""
    at = np.arange(ids.start, ids.stop)
    return Origin(at // SHOT, 2 * (at % SHOT).astype(np.float64))


class Clock:
    """Seconds of this process: CPU time, or wall time where the work is on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"

    def __call__(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()


class Bench:
    """A learner with a full buffer and bank, and the bare passes of its encoder."""

    def __init__(self, settings: Settings, device: torch.device) -> None:
        self.settings, self.clock = settings, Clock(device)
        self.learner = Learner(settings, device)
        capacity = settings.buffer.capacity
        self.learner.remember(range(capacity), origin_of(range(capacity)))
        everyone = torch.arange(capacity, device=device)
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(capacity, settings.encoder.feature_dim, generator=generator)
        self.learner.bank.fill(everyone, rows.to(device))
        if self.learner.looks is not None:
            self.learner.looks.bank.fill(everyone, rows.to(device))
        n, side, crop = settings.optim.batch, settings.store.size, settings.encoder.crop
        pixels = torch.randint(
            0, 256, (2 * n, side, side, 3), dtype=torch.uint8, generator=generator
        )  # of partners too
        self.pixels, self.aspect = pixels.to(device), torch.full((2 * n,), 4 / 3, device=device)
        views = torch.randn(2 * n, 3, crop, crop, generator=generator).to(device)
        self.views = views.contiguous(memory_format=torch.channels_last)
        self.next_id = capacity

    def full(self) -> float:
        """A step with its fresh frames; seconds."""
        fresh = range(self.next_id, self.next_id + self.settings.optim.fresh)
        self.next_id = fresh.stop
        began = self.clock()
        plan = self.learner.plan(fresh, origin_of(fresh))
        report = self.learner.step(plan, self.pixels[: len(plan.wanted)], self.aspect[: len(plan.wanted)])
        assert report.ok
        return self.clock() - began

    def bare(self) -> float:
        """Forward and backward of two views; seconds."""
        encoder, began = self.learner.encoder.train(), self.clock()
        with self.learner._autocast():
            out = encoder(self.views)
        (out.instance_Nd.sum() + out.group_Nd.sum()).backward()
        seconds = self.clock() - began
        encoder.zero_grad()
        return seconds

    def parts(self) -> dict[str, Callable[[], object]]:
        """Each part of a step as a call of its own, on the state at hand. Losses include their backward pass."""
        learner, s = self.learner, self.settings
        n, slots = s.optim.batch, torch.arange(s.optim.batch, device=learner.device)
        new = slots[: s.optim.fresh]
        with torch.no_grad():
            out = learner.encoder.eval()(self.views)
        (f1, f2), (g1, g2) = (x.detach().requires_grad_().chunk(2) for x in (out.instance_Nd, out.group_Nd))
        batch = Batch(slots, slots, slots < 0, self.views[None, :0], f1, f2, learner.bank, torch.Generator())
        parameters = list(learner.encoder.parameters())
        for p in parameters:
            p.grad = torch.zeros_like(p)
        grads = [p.grad for p in parameters if p.grad is not None]
        optimiser = torch.optim.SGD(parameters, lr=0.0, momentum=s.optim.momentum)

        def cross_level() -> None:
            cross_level_loss(g1, g2, learner.cross_level.grouping, s.loss.temperature_group).backward()  # type: ignore[no-untyped-call]

        def finite_and_sgd() -> None:
            torch.stack([norm.isfinite() for norm in torch._foreach_norm(grads)]).all().item()
            optimiser.step()

        fresh = range(self.next_id, self.next_id + s.optim.fresh)
        plan = learner.plan(fresh, origin_of(fresh))
        pixels, aspect = self.pixels[: len(plan.wanted)], self.aspect[: len(plan.wanted)]

        def bank() -> None:
            learner.bank.fill(new, f1.detach()[: len(new)])
            learner.bank.update(slots[len(new) :], f1.detach()[len(new) :], f2.detach()[len(new) :])

        return {
            "two views": lambda: learner._views(plan, pixels, aspect, torch.Generator(learner.device)),
            f"instance loss over {s.buffer.capacity:,} rows": lambda: learner.branch(batch).backward(),
            f"local groups (K {s.loss.groups} of {n}) and cross-level loss": cross_level,
            "bank": bank,
            "buffer: plan of a batch": lambda: learner.plan(fresh, origin_of(fresh)),
            "policy: looks at frames, and what it makes of them": lambda: learner._look(plan, pixels, aspect),
            "finite check and SGD": finite_and_sgd,
            "averaged weights": lambda: learner.average.follow(learner.encoder),
            "undo, should the step go wrong": lambda: Undo(learner.encoder, learner.bank, new),
        }


def measure(case: str, rounds: int, changes: list[str]) -> dict[str, Any]:
    """Median ratio of the full step to the bare passes, and the share of every part in the bare passes."""
    settings, recipe = settings_of(case, changes)
    device = torch.device("cuda" if recipe == "gpu" else "cpu")
    bench = Bench(settings, device)
    bench.full()
    bench.bare()
    pairs = [(bench.full(), bench.bare()) for _ in range(rounds)]
    bare = statistics.median(b for _, b in pairs)
    shares = {}
    for name, part in bench.parts().items():
        part()
        times = []
        for _ in range(rounds):
            began = bench.clock()
            part()
            times.append(bench.clock() - began)
        shares[name] = round(statistics.median(times) / bare, 4)
    ratios = [full / bare for full, bare in pairs]
    return {
        "case": " ".join([case, *changes]),
        "ratio": round(statistics.median(ratios), 3),
        "least": round(min(ratios), 3),
        "most": round(max(ratios), 3),
        "goal": GOAL[recipe],
        "bare_ms": round(1000 * bare, 2),
        "step_ms": round(1000 * statistics.median(f for f, _ in pairs), 2),
        "shares": shares,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "date": f"{date.today():%Y-%m-%d}",
    }


def page(found: dict[str, Any]) -> str:
    """Markdown."""
    clock = "CPU time" if "CPU" in found["device"] else "wall time"
    rows = [
        f"{found['case']}: step {found['step_ms']} ms, bare {found['bare_ms']} ms ({clock}): "
        f"ratio {found['ratio']} ({found['least']} to {found['most']}), goal {found['goal']}; "
        f"{found['device']}, {found['threads']} threads, torch {found['torch']}, {found['date']}",
        "",
        "| part, measured alone | share of the bare passes |",
        "| --- | --- |",
    ]
    return "\n".join(rows + [f"| {name} | {100 * share:.1f}% |" for name, share in found["shares"].items()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, default="shipped")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    keep_freed_memory()
    found = measure(asked.case, asked.rounds, asked.set)
    print(json.dumps(found) if asked.json else page(found))


if __name__ == "__main__":
    main()
