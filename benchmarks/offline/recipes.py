"""What is trained: the settings of every cell, by scale. Departures from the paper are named where they stand."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

from cld_stream.config import (
    AugmentSettings,
    BufferSettings,
    EncoderSettings,
    LossSettings,
    OptimSettings,
    Settings,
)

__all__ = ["METHODS", "SCALES", "TABLE_VARIANTS", "Cell", "Recipe", "cells", "changed", "dry"]

METHODS = ("npid", "moco", "simclr", "byol")
TABLE_VARIANTS = ("balanced", "long-tailed-100", "high-correlation-20")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train. A finished cell counts only under the very same recipe.

    Attributes:
        images: training images (`full` takes them all).
        rate: learning rate for a batch of 128; scaled with the batch.
        ratio: K, local groups, as a share of the batch.
        cld: lambda; 0 = without CLD.
        bank: rows at the start: "random", as in the authors' code, or "own", each image's first feature, as on streams.
        queue, follow: keys of MoCo, and momentum of the key encoder (BYOL: of the target).
    """

    images: int
    epochs: int
    warmup: int
    crop: int
    width: float
    batch: int
    head: str
    rate: float
    decay: float
    ratio: float
    cld: float
    t_instance: float
    t_group: float
    bank: str
    queue: int
    follow: float
    amp: str

    def settings(self, method: str, images: int, seed: int) -> Settings:
        """The same for the learner: every image is in the buffer, nothing is averaged."""
        steps = images // self.batch
        return Settings(
            encoder=EncoderSettings(width=self.width, crop=self.crop, head=self.head),  # type: ignore[arg-type]
            loss=LossSettings(
                branch=method,  # type: ignore[arg-type]
                queue=self.queue,
                key_momentum=self.follow,
                cld_weight=self.cld,
                temperature_instance=self.t_instance,
                temperature_group=self.t_group,
                groups=max(1, round(self.ratio * self.batch)),
            ),
            augment=AugmentSettings(hue=0.4),
            buffer=BufferSettings(capacity=images),
            optim=OptimSettings(
                batch=self.batch,
                lr=self.rate * self.batch / 128,
                warmup_steps=self.warmup * steps,
                schedule="cosine",
                total_steps=self.epochs * steps,
                weight_decay=self.decay,
                average_decay=0,
                amp=self.amp,  # type: ignore[arg-type]
                seed=seed,
            ),
        )


@dataclass(frozen=True)
class Cell:
    """One training run and its scores."""

    method: str
    variant: str
    seed: int
    recipe: Recipe
    held_out: bool = False

    @property
    def name(self) -> str:
        """For people and file names."""
        r, asked = self.recipe, "held-out" if self.held_out else "test"
        plus = f"cld{r.cld:g}" if r.cld else "plain"
        return f"{self.method}-{plus}-{r.head}-{self.variant}-{asked}-rate{r.rate:g}-seed{self.seed}"


# Published settings (method: T_I, weight decay, K / batch, lambda); SimCLR and BYOL are ours: no code was released.
_PAPER: dict[str, dict[str, Any]] = {
    "npid": {"t_instance": 0.1, "decay": 7e-4, "ratio": 128 / 256, "cld": 1.0},
    "moco": {"t_instance": 0.07, "decay": 8e-4, "ratio": 200 / 256, "cld": 0.8},
    "simclr": {"t_instance": 0.5, "decay": 7e-4, "ratio": 128 / 256, "cld": 1.0},
    "byol": {"t_instance": 0.1, "decay": 7e-4, "ratio": 128 / 256, "cld": 1.0},
}

_FULL = Recipe(
    images=50_000, epochs=200, warmup=5, crop=32, width=1.0, batch=256, head="linear", rate=0.03, decay=7e-4,
    ratio=0.5, cld=1.0, t_instance=0.1, t_group=0.2, bank="random", queue=12_288, follow=0.999, amp="gpu",
)  # fmt: skip

# Five epochs: the table takes 1.7 CPU hours and shows gains of several times their spread; with 20 (`--set epochs=20`)
# it would take 7, more than 2.5 hours on 2 cores. Views of 24 pixels (the mean crop of a 32-pixel picture has 25 a
# side) cost half of 32. A run has 390 steps, so the momentum encoder forgets in 100 of them, not in 1000, and the queue
# holds a quarter of the images, as in the paper.
_SMALL = replace(
    _FULL,
    images=10_000,
    epochs=5,
    warmup=1,
    crop=24,
    width=0.25,
    batch=128,
    bank="own",
    queue=2_560,
    follow=0.99,
    amp="always",
)

SCALES = {"cpu": _SMALL, "h200": _FULL}

RATES = {
    "npid": (0.03, 0.06), "moco": (0.03, 0.06), "simclr": (0.12, 0.06), "byol": (0.12, 0.12),
}  # fmt: skip
"""Of the cpu scale, for a batch of 128: without CLD, with CLD; the best of each in the sweep."""


def cells(
    scale: str,
    methods: Sequence[str] = METHODS,
    variants: Sequence[str] = TABLE_VARIANTS,
    seeds: Sequence[int] = (0, 1, 2),
) -> Iterator[Cell]:
    """Every cell of a scale's table, seeds outermost."""
    heads = ("linear", "normlinear") if scale == "h200" else ("linear",)
    for seed, variant, method, head, cld in product(seeds, variants, methods, heads, (False, True)):
        recipe = replace(SCALES[scale], head=head, **_PAPER[method])
        if scale == "cpu":
            recipe = replace(recipe, rate=RATES[method][cld])
        yield Cell(method, variant, seed, recipe if cld else replace(recipe, cld=0.0))


def changed(cell: Cell, values: dict[str, Any]) -> Cell:
    """The cell with other values in its recipe; lambda stays 0 in a cell without CLD.

    Raises:
        ValueError: the recipe has no such value.
    """
    unknown = values.keys() - {f.name for f in fields(Recipe)}
    if unknown:
        raise ValueError(f"a recipe has no {', '.join(sorted(unknown))}; it has {', '.join(_names())}")
    if not cell.recipe.cld:
        values = {name: value for name, value in values.items() if name != "cld"}
    return replace(cell, recipe=replace(cell.recipe, **values))


def dry(cell: Cell) -> Cell:
    """The same cell, small enough for seconds: 2 epochs of 4 steps."""
    small = replace(cell.recipe, images=64, epochs=2, warmup=1, width=0.125, crop=16, batch=16, queue=32)
    variant = "balanced" if cell.variant == "full" else cell.variant
    return replace(cell, variant=variant, recipe=small)


def _names() -> list[str]:
    return [f.name for f in fields(Recipe)]
