"""Rank candidate settings on the user's own store, without a label, and say how sure that is."""

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cld_stream.config import Settings, as_toml
from cld_stream.errors import CorruptError, StoreNotFoundError, UsageError
from cld_stream.learn.memory import keep_freed_memory
from cld_stream.pipelines.restore import check_settings, fresh_learner, saved_settings
from cld_stream.pipelines.tune_candidates import Candidate, Given, list_candidates
from cld_stream.pipelines.tune_ranking import Standing, rank_candidates
from cld_stream.pipelines.tune_report import TuneProgress, TuneReport
from cld_stream.pipelines.tune_runs import FinishedRuns
from cld_stream.pipelines.tune_slice import Slice, measure, take_slice, train_on
from cld_stream.storage.checkpoints import load_checkpoint
from cld_stream.storage.durable import atomic_write_bytes, stays
from cld_stream.storage.lock import refuse_links
from cld_stream.storage.store import Store

__all__ = ["STEPS", "Given", "TuneProgress", "TuneReport", "tune"]

STEPS = 600
"""Of a short run: after so many the score ranked as labels do, after 200 it did not (decision 043)."""


def tune(
    store_path: Path,
    given: Given,
    *,
    candidates: Path | None = None,
    steps: int = STEPS,
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
        StoreError: a link in the store leads elsewhere.
        UsageError: too few frames, settings that cannot be, or `out` has no folder.
    """
    if out and (out.is_dir() or not out.absolute().parent.is_dir()):
        raise UsageError(f"--out {out}: cannot be a file there. Name one in a folder that exists.")
    contenders = list_candidates(replace(given, store_path=store_path), candidates)
    present = contenders[0].settings
    if present.train.threads:
        torch.set_num_threads(present.train.threads)
    keep_freed_memory()
    with Store.open(store_path) as store:
        refuse_links(store_path)
        data = take_slice(store, frames, given.device)
    for each in contenders:
        _try_out(each, given.device)
    finished = FinishedRuns(store_path / "logs" / "tune", data, present, steps)
    work = _Comparison(contenders, data, finished, steps, seeds, given.device, on_progress, stop)
    work.run()
    standings, compared = work.standings()
    use = misfit = None
    if standings:
        best = contenders[standings[0].index]
        use, misfit = _command(store_path, given, best), _misfit(store_path, best.settings)
        if out:
            _write(out, best, standings[0])
    return TuneReport(
        contenders, standings, compared, work.done, work.runs, int((~data.asked).sum()), int(data.asked.sum()), steps,
        work.seconds, use, misfit, out if standings else None,
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


def _misfit(store_path: Path, settings: Settings) -> str | None:
    """Why training that was begun in the store cannot go on with them, if so."""
    try:
        check_settings(saved_settings(load_checkpoint(store_path)), settings, store_path)
    except (StoreNotFoundError, CorruptError):
        return None  # not begun, or nothing to go on from
    except UsageError as e:
        return str(e)
    return None


def _write(out: Path, best: Candidate, standing: Standing) -> None:
    said = f"# By `cld-stream tune`: {best.name}; ahead of all others in {standing.first:.0%} of the resamples.\n"
    write = Path.write_bytes if stays(out) else atomic_write_bytes
    try:
        write(out, (said + as_toml(best.settings)).encode())
    except OSError as e:
        raise UsageError(f"--out {out}: cannot write it: {e.strerror}. The finished runs are kept.") from None
