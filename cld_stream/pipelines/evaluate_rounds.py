"""Who asks whom: the rounds of an evaluation with labels. Near-repeats are never on both sides."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cld_stream.pipelines.evaluate_frames import JudgedFrames

__all__ = ["FOLDS", "MOST_ASKED", "Plan", "Round", "plan_rounds", "spread"]

FOLDS = 5
"""Where there is no test split: the sequences of each class are dealt out to so many folds, in order."""

MOST_ASKED = 50_000
"""Questions in all; of more, so many are taken evenly."""


@dataclass(frozen=True)
class Round:
    """Rows of the frames.

    Attributes:
        gallery: whose labels are known.
        held_out: those of the gallery that choose what a probe has to choose.
        asked: the questions.
    """

    gallery: NDArray[np.int64]
    held_out: NDArray[np.bool_]
    asked: NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """The rounds, or why there are none.

    Attributes:
        protocol: in words.
        unusable: why labels cannot judge these frames, or "".
        notes: what weakens the numbers.
    """

    rounds: list[Round]
    protocol: str
    unusable: str = ""
    notes: tuple[str, ...] = ()


def plan_rounds(frames: JudgedFrames) -> Plan:
    """Train asks nobody and test asks train, where there are splits; else every fold asks the others."""
    labelled = frames.label >= 0
    if len(frames.classes) < 2:
        why = f"one class only ({frames.classes[0]}), at least two are needed" if frames.classes else "no labels"
        return Plan([], "", why)
    fold = _deal(frames.label, frames.sequence)
    if (frames.split == "test").any():
        train, test = (np.flatnonzero(labelled & (frames.split == name)) for name in ("train", "test"))
        rounds = [Round(train, fold[train] == 0, spread(test, MOST_ASKED))]
        protocol = "train split answers, test split asks"
    else:
        rows = np.flatnonzero(labelled)
        rounds = []
        for n in range(FOLDS):
            gallery, asked = rows[fold[rows] != n], rows[fold[rows] == n]
            if len(gallery) and len(asked):
                rounds.append(Round(gallery, fold[gallery] == (n + 1) % FOLDS, _share(asked, len(rows))))
        alone = len(np.unique(frames.sequence[rows])) == len(rows)
        what = "every fifth picture of each class" if alone else "whole sequences"
        protocol = f"{FOLDS} folds of {what}, each asks the others"
    return _checked(frames, Plan(rounds, protocol))


def spread(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most so many rows, evenly."""
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).round().astype(np.int64)]


def _share(asked: NDArray[np.int64], of: int) -> NDArray[np.int64]:
    return spread(asked, max(1, MOST_ASKED * len(asked) // max(of, MOST_ASKED)))


def _deal(label: NDArray[np.int64], sequence: NDArray[np.int64]) -> NDArray[np.int64]:
    """Fold of each row: the sequences of each class (that of their first row) in order to fold 0, 1, ... in turn."""
    _, first, inverse = np.unique(sequence, return_index=True, return_inverse=True)
    order = np.lexsort((first, label[first]))
    _, start, count = np.unique(label[first][order], return_index=True, return_counts=True)
    fold = np.empty(len(first), np.int64)
    fold[order] = (np.arange(len(first)) - np.repeat(start, count)) % FOLDS
    return fold[inverse]


def _checked(frames: JudgedFrames, plan: Plan) -> Plan:
    """The plan with what is wrong with it."""
    notes, unknown, asked = [], 0, 0
    for one in plan.rounds:
        absent = ~np.isin(frames.label[one.asked], frames.label[one.gallery])
        unknown, asked = unknown + int(absent.sum()), asked + len(absent)
    if unknown == asked:
        needed = "no class is in both splits" if "split" in plan.protocol else "no class has two sequences"
        return Plan([], plan.protocol, f"{needed}, so that no question has an answer")
    if unknown:
        notes.append(f"{unknown:,} questions are of a class that nobody asked has: wrong, but not in recall and map.")
    if (frames.split == "test").any():
        shared = np.intersect1d(*(frames.sequence[frames.split == name] for name in ("train", "test")))
        if len(shared):
            notes.append(f"{len(shared):,} sequences are in both splits: their near-repeats flatter the numbers.")
        if n := int((frames.split == "other").sum()):
            notes.append(f"{n:,} frames are in neither the train nor the test split; labels do not judge them.")
    if n := int((frames.label < 0).sum()):
        notes.append(f"{n:,} of {len(frames):,} frames have no label; labels do not judge them.")
    return Plan(plan.rounds, plan.protocol, "", tuple(notes))
