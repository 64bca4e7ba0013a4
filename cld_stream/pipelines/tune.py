"""Rank candidate settings on the user's own store, without a label, and say how sure that is."""

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cld_stream.config import Settings, as_toml
from cld_stream.errors import UsageError
from cld_stream.pipelines.restore import fresh_learner
from cld_stream.pipelines.tune_candidates import Candidate, Given, list_candidates
from cld_stream.pipelines.tune_ranking import SURE, Standing, rank_candidates
from cld_stream.pipelines.tune_runs import FinishedRuns
from cld_stream.pipelines.tune_slice import Slice, measure, take_slice, train_on
from cld_stream.storage.durable import atomic_write_bytes
from cld_stream.storage.store import Store

__all__ = ["Given", "TuneProgress", "TuneReport", "tune"]


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
        return lines

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        rows = [
            {"rank": n, "changes": list(c.changes), "present": not c.changes, "score": s.score, "spread": s.spread,
             "first": s.first, "beaten": s.beaten, "tied": n in self.tied}
            for n, (s, c) in enumerate(((s, self.candidates[s.index]) for s in self.standings), 1)
        ]  # fmt: skip
        return {
            "candidates": rows, "sure": len(self.tied) == 1, "verdict": " ".join(self.verdict()), "use": self.use,
            "out": self.out and str(self.out), "finished": self.done == self.runs, "done": self.done,
            "runs": self.runs, "seeds": self.seeds, "steps": self.steps, "frames": self.frames,
            "questions": self.questions, "seconds": round(self.seconds, 1),
        }  # fmt: skip


def tune(
    store_path: Path,
    given: Given,
    *,
    candidates: Path | None = None,
    steps: int = 200,
    seeds: int = 2,
    frames: int = 4096,
    out: Path | None = None,
    on_progress: Callable[[TuneProgress], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> TuneReport:
    """Train every candidate shortly, from its start, on most of a slice of the store; ask the rest.

    It reads the store as a query does: no lock, nothing of the trainer's. Finished runs are kept in its `logs/tune`.

    Args:
        given: the present settings.
        candidates: see `list_candidates`.
        out: TOML file for the best settings.
        stop: asked before every step; finished runs stay, and the same call goes on from there.

    Raises:
        StoreNotFoundError: there is no store.
        UsageError: too few frames, settings that cannot be, or `out` has no folder.
    """
    if out and (out.is_dir() or not out.absolute().parent.is_dir()):
        raise UsageError(f"--out {out}: cannot be a file there. Name one in a folder that exists.")
    contenders = list_candidates(given, candidates)
    present = contenders[0].settings
    if present.train.threads:
        torch.set_num_threads(present.train.threads)
    with Store.open(store_path) as store:
        data = take_slice(store, frames, given.device)
    for each in contenders:
        _try_out(each, given.device)
    finished = FinishedRuns(store_path / "logs" / "tune", data, present, steps)
    work = _Comparison(contenders, data, finished, steps, seeds, given.device, on_progress, stop)
    work.run()
    standings, compared = work.standings()
    use = None
    if standings:
        best = contenders[standings[0].index]
        use = _command(store_path, given, best)
        if out:
            _write(out, best, standings[0])
    return TuneReport(
        contenders, standings, compared, work.done, work.runs, int((~data.asked).sum()), int(data.asked.sum()), steps,
        work.seconds, use, out if standings else None,
    )  # fmt: skip


class _Comparison:
    """Every candidate under every seed, seeds outermost, so that an early stop still compares all."""

    def __init__(
        self,
        contenders: Sequence[Candidate],
        data: Slice,
        finished: FinishedRuns,
        steps: int,
        seeds: int,
        device: str,
        on_progress: Callable[[TuneProgress], None] | None,
        stop: Callable[[], bool],
    ) -> None:
        self._contenders, self._data, self._finished = contenders, data, finished
        self._steps, self._seeds, self._device = steps, seeds, device
        self._on_progress, self._stop = on_progress, stop
        self._began, self._stepped = time.monotonic(), 0
        self._scores: dict[tuple[int, int], NDArray[np.float64]] = {}
        self._run_Q = data.run[data.asked]
        self.runs = len(contenders) * seeds

    @property
    def done(self) -> int:
        """Finished runs."""
        return len(self._scores)

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._began

    def run(self) -> None:
        """All that is not finished, until stopped."""
        todo = []
        for seed, number in product(range(self._seeds), range(len(self._contenders))):
            settings = _seeded(self._contenders[number].settings, seed)
            kept_Q = self._finished.get(settings, len(self._run_Q))
            if kept_Q is None:
                todo.append((seed, number, settings))
            else:
                self._scores[seed, number] = kept_Q
        for seed, number, settings in todo:
            learner = train_on(settings, self._data, self._steps, self._device, self._ticker(seed, number))
            if learner is None:
                break
            score_Q = measure(learner, self._data, self._contenders[0].settings.augment).view
            self._finished.put(settings, score_Q)
            self._scores[seed, number] = score_Q

    def standings(self) -> tuple[list[Standing], int]:
        """The ranking over the seeds that every candidate has, and how many these are."""
        every = range(len(self._contenders))
        seeds = [t for t in range(self._seeds) if all((t, c) in self._scores for c in every)]
        if not seeds:
            return [], 0
        score_CTQ = np.array([[self._scores[t, c] for t in seeds] for c in every])
        return rank_candidates(score_CTQ, self._run_Q), len(seeds)

    def _ticker(self, seed: int, number: int) -> Callable[[int], bool]:
        """Shows progress before each step, and says whether to stop."""
        name = self._contenders[number].name

        def tick(step: int) -> bool:
            ahead = (self.runs - self.done) * self._steps - step
            left_s = self.seconds / self._stepped * ahead if self._stepped else None
            self._stepped += 1
            if self._on_progress:
                self._on_progress(
                    TuneProgress(self.done + 1, self.runs, name, seed, step, self._steps, self.seconds, left_s)
                )
            return self._stop()

        return tick


def _seeded(settings: Settings, seed: int) -> Settings:
    return replace(settings, optim=replace(settings.optim, seed=seed))


def _try_out(candidate: Candidate, device: str) -> None:
    """Build its learner once: what cannot be must not show after an hour."""
    small = replace(candidate.settings, buffer=replace(candidate.settings.buffer, capacity=2))
    try:
        fresh_learner(small, device)
    except UsageError as e:
        raise UsageError(f"{candidate.name}: {e}") from None


def _command(store_path: Path, given: Given, best: Candidate) -> str:
    """How to train with these settings."""
    words = ["cld-stream", "train", "--store", str(store_path)]
    words += ["--recipe", given.recipe] if given.recipe else []
    words += ["--config", str(given.config)] if given.config else []
    for item in (*given.overrides, *best.changes):
        words += ["--set", item]
    return shlex.join(words)


def _write(out: Path, best: Candidate, standing: Standing) -> None:
    said = f"# By `cld-stream tune`: {best.name}; ahead of all others in {standing.first:.0%} of the resamples.\n"
    try:
        atomic_write_bytes(out, (said + as_toml(best.settings)).encode())
    except OSError as e:
        raise UsageError(f"--out {out}: cannot write it: {e.strerror}. The finished runs are kept.") from None
