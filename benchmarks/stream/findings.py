"""What a track's numbers say about the questions that were asked beforehand."""

from collections.abc import Iterable, Sequence
from statistics import mean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.stream.rows import BASELINES
from benchmarks.stream.score import MARKS

__all__ = ["alarms", "best", "findings", "first_reached", "over_sequences", "staleness", "told"]

Line = dict[str, Any]
Groups = dict[tuple[str, str], list[Line]]

IID = ("iid-0", "iid-1")
OURS_IID = ("ours-iid-cld0", "ours-iid")
PAIRS = (("npid", "npid+cld"), ("moco", "moco+cld"), ("ours-cld0", "ours"), IID, OURS_IID)
SHUFFLED = dict.fromkeys(("none-bn", "none-gn", "fifo", "reservoir"), ("iid-simclr",)) | {"ours": OURS_IID}
"""Of a row, what has its loss and a memory on frames in random order."""


def findings(track: str, groups: Groups) -> list[str]:
    """Ours against baselines and i.i.d.; CLD's gain; accuracy along the stream."""
    rows = {name: lines for (where, name), lines in groups.items() if where == track}
    return [*_ahead(rows), *_gains(rows), "", *_along(rows)]


def best(rows: dict[str, list[Line]], names: Iterable[str], score: str = "linear") -> str | None:
    """Of these rows the one with the highest mean; None when none has run."""
    there = [name for name in names if name in rows]
    return max(there, key=lambda name: _mean(rows[name], score), default=None)


def first_reached(lines: Sequence[Line], accuracy: float) -> float | None:
    """CBP at which the mean kNN curve first comes up to an accuracy, linear between its points; None = never."""
    points = [(_mean_at(lines, i, "cbp"), _mean_at(lines, i, "knn")) for i in range(len(lines[0]["points"]))]
    before = points[0]
    for point in points:
        if point[1] >= accuracy:
            rise = point[1] - before[1]
            share = (accuracy - before[1]) / rise if rise > 0 else 1.0
            return before[0] + max(0.0, share) * (point[0] - before[0])
        before = point
    return None


def over_sequences(
    mine: Sequence[Line], others: Sequence[Line], draws: int = 10_000
) -> tuple[float, float, int] | None:
    """What the difference in FA would be with other sequences and seeds: 95% of bootstrap draws of those that were.

    Frames of a sequence are near-repeats, so that a standard deviation over seeds says nothing of it.

    Returns:
        Lower and upper end, number of sequences; None where a line does not tell its sequences.
    """
    if not all("by_sequence" in line for line in (*mine, *others)):
        return None
    rng = np.random.default_rng(0)
    asked_S = np.array(mine[0]["by_sequence"])[:, 1]
    times_DS = _drawn(rng, draws, len(asked_S))
    mine_DS, other_DS = (_mean_right(rng, draws, lines) for lines in (mine, others))
    gaps = ((mine_DS - other_DS) * times_DS).sum(1) / (times_DS @ asked_S)
    low, high = np.percentile(gaps, (2.5, 97.5)).tolist()
    return low, high, len(asked_S)


def staleness(groups: Groups) -> list[str]:
    """Recall of stored and of re-encoded features, mean over the places of the stream after the first."""
    rows = []
    for (track, name), lines in groups.items():
        points = [p for line in lines for p in line["points"][1:]]
        if not points or "recall1_stored" not in points[0]:
            continue
        cells = []
        for k in (1, 10):
            fresh, stored = (100 * mean(p[f"recall{k}_{kind}"] for p in points) for kind in ("fresh", "stored"))
            cells += [f"{fresh:.1f}", f"{stored:.1f}", f"{fresh - stored:+.1f}"]
        rows.append(f"| {track} | {name} | {' | '.join(cells)} |")
    return told(
        "Recall of the query's class among the frames fed so far, f_I; stored = under the encoder that was published\n"
        "(eleven times a stream) when the frame came, query and re-encoded features under the newest. Mean over\n"
        "the stream, percent.",
        ["track", "row", "R@1 re-encoded", "R@1 stored", "gap", "R@10 re-encoded", "R@10 stored", "gap"],
        rows,
    )


def alarms(groups: Groups) -> list[str]:
    """What the guard of the daemon said at the places of the stream where the encoder was looked at."""
    rows = []
    for (track, name), lines in groups.items():
        looks = [p for line in lines for p in line["points"] if "kept" in p]
        if looks:
            ends = [line["points"][-1] for line in lines]
            counts = " | ".join(str(sum(p[kind] for p in ends)) for kind in ("warnings", "holds", "rollbacks"))
            rows.append(f"| {track} | {name} | {len(looks)} | {counts} | {min(p['kept'] for p in looks):.2f} |")
    return told(
        "The guard of `train` at every place where the encoder is looked at; each is a publication, unless it holds.\n"
        "How often it warned, began to hold, and wanted the good state back; least share of the best so far.",
        ["track", "row", "looks", "warnings", "holds", "roll-backs", "least share"],
        rows,
    )


def told(what: str, columns: Sequence[str], rows: Sequence[str]) -> list[str]:
    """A table below a few words; nothing where it has no rows."""
    return [*what.splitlines(), "", f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|", *rows] if rows else []


def _ahead(rows: dict[str, list[Line]]) -> list[str]:
    """Ours less the best baseline, in FA and CA, and less i.i.d."""
    said = []
    against = (
        ("the best baseline", BASELINES),
        ("CLD on a baseline with a reservoir", ("npid+cld", "moco+cld")),
        ("i.i.d. (the better lambda)", IID),
        ("the same recipe on i.i.d. frames (the better lambda)", OURS_IID),
    )
    for title, names in against:
        for score, label in (("linear", "FA"), ("ca", "CA")):
            other = best(rows, names, score)
            if "ours" in rows and other:
                gap = _mean(rows["ours"], score) - _mean(rows[other], score)
                around = ", ".join(_around(name, rows[name], score) for name in ("ours", other))
                said.append(f"- {label}: ours {100 * gap:+.1f} against {title}, {other} ({around}).")
                if score == "linear" and (between := over_sequences(rows["ours"], rows[other])):
                    low, high, n = between
                    said.append(
                        f"  With other seeds, and other sequences like the {n} that ask: "
                        f"{100 * low:+.1f} to {100 * high:+.1f} (95%)."
                    )
    for name, uppers in SHUFFLED.items():
        upper = best(rows, uppers)
        if upper and name in rows:
            ratios = [_mean(rows[name], score) / _mean(rows[upper], score) for score in ("linear", "ca", "knn")]
            fa, ca, knn = (f"{100 * ratio:.0f}%" for ratio in ratios)
            said.append(f"- {name}: {fa} of the decorrelated stream's FA, {ca} of its CA, {knn} of its kNN ({upper}).")
    return said


def _around(name: str, lines: Sequence[Line], score: str) -> str:
    values = [line[score] for line in lines]
    return f"{name} ± {100 * stdev(values):.1f}" if len(values) > 1 else f"{name} of one seed"


def _gains(rows: dict[str, list[Line]]) -> list[str]:
    """CLD's gain, seed by seed."""
    said = []
    for plain, with_cld in PAIRS:
        if plain in rows and with_cld in rows:
            seeds = {line["seed"]: line for line in rows[plain]}
            pairs = [(seeds[line["seed"]], line) for line in rows[with_cld] if line["seed"] in seeds]
            parts = []
            for score, label in (("linear", "FA"), ("ca", "CA"), ("knn", "kNN h"), ("knn_f", "kNN f_I")):
                gain = [100 * (b[score] - a[score]) for a, b in pairs]
                if gain:
                    parts.append(f"{label} {mean(gain):+.1f}" + (f" ± {stdev(gain):.1f}" if len(gain) > 1 else ""))
            said.append(f"- CLD, {with_cld} against {plain}: {', '.join(parts)} ({len(pairs)} seeds).")
    return said


def _along(rows: dict[str, list[Line]]) -> list[str]:
    """Linear accuracy at the marks, and CBP to where the best baseline's curve ends."""
    goal_of = best(rows, BASELINES, "knn")
    goal = _mean_at(rows[goal_of], -1, "knn") if goal_of else None
    marks = [f"{100 * m:.0f}%" for m in MARKS]
    reach = f"CBP to kNN h of {goal_of}, {100 * goal:.1f}" if goal is not None else "CBP"
    table = [f"| linear, after | {' | '.join(marks)} | {reach} |", "| --- " * (2 + len(marks)) + "|"]
    for name, lines in rows.items():
        if len(lines[0]["points"]) == 1:
            continue
        at = [i for i, p in enumerate(lines[0]["points"]) if p["share"] in MARKS]
        needed = first_reached(lines, goal) if goal is not None else None
        cells = [f"{100 * _mean_at(lines, i, 'linear'):.1f}" for i in at]
        cells.append("" if goal is None else "never" if needed is None else f"{needed:,.0f}")
        table.append(f"| {name} | {' | '.join(cells)} |")
    return table


def _mean_right(rng: np.random.Generator, draws: int, lines: Sequence[Line]) -> NDArray[np.float64]:
    """Right answers in every sequence, mean over drawn seeds, (draws, S)."""
    right_NS = np.array([[right for right, _ in line["by_sequence"]] for line in lines])
    mean_DS: NDArray[np.float64] = _drawn(rng, draws, len(lines)) @ right_NS / len(lines)
    return mean_DS


def _drawn(rng: np.random.Generator, draws: int, n: int) -> NDArray[np.int64]:
    """How often each of n is among n that are drawn with replacement, (draws, n)."""
    return rng.multinomial(n, np.full(n, 1 / n), size=draws)


def _mean(lines: Sequence[Line], score: str) -> float:
    return float(mean(line[score] for line in lines))


def _mean_at(lines: Sequence[Line], point: int, score: str) -> float:
    return float(mean(line["points"][point][score] for line in lines))
