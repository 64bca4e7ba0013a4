"""Finished cells as Markdown: mean ± standard deviation over seeds, and the gain of CLD, seed by seed."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.offline import ledger
from benchmarks.offline.recipes import METHODS, RATES, Cell

__all__ = ["PUBLISHED", "summary", "sweep", "write"]

Line = dict[str, Any]

PUBLISHED = {"npid": (80.8, 86.7), "moco": (82.1, 87.5)}
"""kNN on CIFAR-10 without and with CLD, linear heads (arXiv 2008.03813)."""

NOTES = "## Notes"


def summary(lines: Sequence[Line], wanted: Sequence[Cell], *, published: bool = False) -> list[str]:
    """A row for each variant, method and head: both scores without and with CLD, and the gain [points of 100]."""
    extra = (" published kNN |", " --- |") if published else ("", "")
    rows = [
        "| set | method | head | seeds | kNN | kNN + CLD | gain | linear | linear + CLD | gain |" + extra[0],
        "| --- " * 10 + "|" + extra[1],
    ]
    without = {_twin(cell): cell for cell in wanted if not cell.recipe.cld}
    pairs = [(without[_twin(cell)], cell) for cell in wanted if cell.recipe.cld]
    for variant, method, head in dict.fromkeys((c.variant, c.method, c.recipe.head) for _, c in pairs):
        both = [
            (a, b)
            for plain, cld in pairs
            if (cld.variant, cld.method, cld.recipe.head) == (variant, method, head)
            and (a := ledger.find(list(lines), plain)) and (b := ledger.find(list(lines), cld))
        ]  # fmt: skip
        if both:
            scores = " | ".join(_compared(both, name) for name in ("knn", "linear"))
            row = f"| {variant} | {method} | {head} | {len(both)} | {scores} |"
            if published:
                row += " {} / {} |".format(*PUBLISHED[method]) if head == "linear" else " |"
            rows.append(row)
    return rows


def sweep(lines: Sequence[Line]) -> list[str]:
    """kNN on held-out train images, a row for each method and lambda, a column for each learning rate."""
    held = [line for line in lines if line["held_out"]]
    rates = sorted({line["recipe"]["rate"] for line in held})
    rows = ["| method | lambda | " + " | ".join(f"rate {r:g}" for r in rates) + " |", "| --- " * (2 + len(rates)) + "|"]
    for method in METHODS:
        for cld in sorted({line["recipe"]["cld"] for line in held if line["method"] == method}):
            mine = {
                line["recipe"]["rate"]: f"{100 * line['knn']:.1f}"
                for line in held
                if (line["method"], line["recipe"]["cld"]) == (method, cld)
            }
            rows.append(f"| {method} | {cld:g} | " + " | ".join(mine.get(r, "") for r in rates) + " |")
    return rows


def write(file: Path, scale: str, lines: Sequence[Line], wanted: Sequence[Cell]) -> None:
    """Write the page anew; what stands below its heading "Notes" was written by hand and stays."""
    mine = [line for cell in wanted if (line := ledger.find(list(lines), cell))]
    page = [f"# The offline protocol, scale {scale}", "", *_preamble(scale, mine, wanted), ""]
    page += summary(lines, wanted, published=scale == "h200")
    if any(line["held_out"] for line in lines):
        recipe = next(line["recipe"] for line in lines if line["held_out"])
        rates = "; ".join(f"{method} {plain:g}, {cld:g}" for method, (plain, cld) in RATES.items())
        how = _SWEEP.format(rates=rates, images=recipe["images"], epochs=recipe["epochs"])
        page += ["", "## Learning rates", "", *how.splitlines(), "", *sweep(lines)]
    before = file.read_text() if file.exists() else ""
    notes = before[before.index(NOTES) :].rstrip() if NOTES in before else NOTES
    file.write_text("\n".join([*page, "", notes, ""]))


_SWEEP = """One seed, balanced set of {images:,} images, {epochs} epochs, kNN (k 200) of 2,000 held-out train images
that are in no set; the rates are for a batch of 128, the same grid for every method and lambda. The best of each is
used above (without CLD, with CLD): {rates}."""


def _preamble(scale: str, mine: Sequence[Line], wanted: Sequence[Cell]) -> list[str]:
    r, hours = wanted[0].recipe, sum(line["cpu_seconds"] for line in mine) / 3600
    stamps = sorted({line["date"] for line in mine})
    machines = sorted({f"{line['machine']}, torch {line['torch']}" for line in mine})
    return [
        f"`python -m benchmarks.offline --scale {scale} --cifar FILE.npz`; {'; '.join(machines)}; "
        f"{' to '.join(dict.fromkeys((stamps or ['-'])[:: max(1, len(stamps) - 1)]))}.",
        f"{len(mine)} of {len(wanted)} cells are finished; they took {hours:.2f} CPU hours.",
        "",
        f"CIFAR-10 (a JPEG copy), {r.images:,} images, ResNet-18 of width {r.width:g}, views of {r.crop} pixels, "
        f"{r.epochs} epochs, batch {r.batch}, SGD 0.9, cosine after {r.warmup} warm-up; T_G {r.t_group:g}.",
        "Last epoch. All 10,000 test images: kNN of f_I (k 200, or the smallest class), linear probe of the backbone.",
        "Percent, mean ± standard deviation over seeds; gain: of the pairs with one seed."
        if scale == "cpu"
        else "Percent.",
    ]


def _compared(both: Sequence[tuple[Line, Line]], name: str) -> str:
    without = [100 * a[name] for a, _ in both]
    with_cld = [100 * b[name] for _, b in both]
    gains = [b - a for a, b in zip(without, with_cld, strict=True)]
    return " | ".join((_spread(without), _spread(with_cld), _spread(gains, "+")))


def _spread(values: Sequence[float], sign: str = "") -> str:
    around = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{mean(values):{sign}.1f}{around}"


def _twin(cell: Cell) -> tuple[str, str, str, int]:
    """What a cell shares with the one that differs in CLD alone (and in the rate that suits it)."""
    return cell.variant, cell.method, cell.recipe.head, cell.seed
