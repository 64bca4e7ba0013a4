"""What `tune` says while it works, and at the end."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cld_stream.pipelines.tune_candidates import Candidate
from cld_stream.pipelines.tune_ranking import SURE, Standing

__all__ = ["TuneProgress", "TuneReport"]

WORTH = (
    "The score is label-free: it says how well the encoder tells frames apart. On two labelled sets it ranked thirteen "
    "settings (temperatures, K, lambda) nearly as labels do after 600 steps, and did not after 200 (docs/tune.md)."
)


@dataclass(frozen=True)
class TuneProgress:
    """Where a comparison is.

    Attributes:
        run, runs: number of the run under way, from 1, and of all; finished ones of an earlier command included.
        left_s: estimate, None while there is nothing to go by [s].
    """

    run: int
    runs: int
    candidate: str
    seed: int
    step: int
    steps: int
    seconds: float
    left_s: float | None


@dataclass(frozen=True)
class TuneReport:
    """Who is ahead.

    Attributes:
        standings: best first; empty when not every candidate had a run before the stop.
        seeds: over which every candidate is compared.
        done, runs: finished runs, of how many.
        frames, questions: trained on, and asked.
        use: the command line that trains with the best settings.
        misfit: why training that was begun in this store cannot go on with them.
        out: the file that holds them.
    """

    candidates: Sequence[Candidate]
    standings: Sequence[Standing]
    seeds: int
    done: int
    runs: int
    frames: int
    questions: int
    steps: int
    seconds: float
    use: str | None
    misfit: str | None
    out: Path | None

    @property
    def tied(self) -> list[int]:
        """Ranks, from 1, of those that the best one cannot be told from, itself included."""
        return [1, *(n for n, s in enumerate(self.standings[1:], 2) if s.beaten < SURE)] if self.standings else []

    def verdict(self) -> list[str]:
        """Plain words: how sure, and what of the present settings."""
        if not self.standings:
            return [
                f"Stopped after {self.done} of {self.runs} runs: not every candidate had one, so nothing is compared."
            ]
        best, tied = self.standings[0], self.tied
        present = next(n for n, s in enumerate(self.standings, 1) if not self.candidates[s.index].changes)
        beaten = self.standings[present - 1].beaten
        if len(tied) == 1:
            lines = [f"Rank 1 is ahead of every other one, each time in at least {SURE:.0%} of the resamples."]
        else:
            lines = [
                f"Cannot tell ranks {', '.join(map(str, tied))} apart: rank 1 is ahead of each of the others in less "
                f"than {SURE:.0%} of the resamples, and ahead of all candidates in {best.first:.0%}."
            ]
        if present == 1:
            lines.append("Rank 1 are your present settings: there is no reason to change.")
        elif present in tied:
            lines.append(f"Your present settings (rank {present}) are among them: there is no good reason to change.")
        else:
            lines.append(f"Rank 1 is ahead of your present settings (rank {present}) in {beaten:.0%} of the resamples.")
        if self.seeds == 1:
            lines.append("With one seed the luck of a start does not count in this: --seeds 2 or more say it better.")
        return [*lines, WORTH]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        rows = [
            {"rank": n, "changes": list(c.changes), "present": not c.changes, "score": s.score, "spread": s.spread,
             "first": s.first, "beaten": s.beaten, "tied": n in self.tied}
            for n, (s, c) in enumerate(((s, self.candidates[s.index]) for s in self.standings), 1)
        ]  # fmt: skip
        return {
            "candidates": rows, "sure": len(self.tied) == 1, "verdict": " ".join(self.verdict()), "use": self.use,
            "misfit": self.misfit, "out": self.out and str(self.out), "finished": self.done == self.runs,
            "done": self.done, "runs": self.runs, "seeds": self.seeds, "steps": self.steps, "frames": self.frames,
            "questions": self.questions, "seconds": round(self.seconds, 1),
        }  # fmt: skip
