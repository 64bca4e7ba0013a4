"""Byte for byte: what is in the store is what one undisturbed ingest of the same files gives."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.chaos.services import SETTINGS
from cld_stream.pipelines.restore import restore_learner
from cld_stream.storage.check import check
from cld_stream.storage.checkpoints import load_checkpoint
from cld_stream.storage.store import Store

__all__ = ["frames_by_file", "trained_to", "verify_frames", "verify_training"]

Frames = list[tuple[float, bytes]]  # time [s], hash of the bytes
_CELL_S = 0.5  # at the default rate


def verify_frames(store: Path, kept: Path, removed: set[str]) -> tuple[dict[str, int], list[str]]:
    """(counts, problems): every file must have given the frames that one undisturbed ingest takes, each once.

    Of a recording that was taken while it grew the frames may be neighbours of those (less was known when they were
    chosen): each must be byte for byte the frame of its time, one for each of theirs. A file that was removed may have
    given a beginning only.
    """
    expected, found = one_ingest(kept, "whole"), frames_by_file(store)
    every = {file: dict(frames) for file, frames in one_ingest(kept, "every", "ingest.fps=100").items()}
    counts = {"frames": 0, "lost": 0, "duplicated": 0, "wrong": 0}
    problems: list[str] = []
    for file, want in expected.items():
        got = [frame for frames in found.get(file, []) for frame in frames]
        grown = file in growing(kept)
        times = [t for t, _ in got]
        twice = len(times) - len(set(times))
        wrong = [t for t, body in got if (every[file] if grown else dict(want)).get(t) != body]
        aligned = got[: len(want)] if file in removed else got
        lost = len(want) - len(got) if file not in removed else 0
        apart = [t for (t, _), (w, _) in zip(aligned, want, strict=False) if abs(t - w) > (_CELL_S if grown else 0)]
        counts["frames"] += len(got)
        counts["duplicated"] += max(twice, -lost)
        counts["wrong"] += len(wrong)
        counts["lost"] += max(0, lost) or len(apart)
        if twice or wrong or lost or apart:
            problems.append(
                f"file {file}: {len(got)} of {len(want)}, twice {twice}, wrong {wrong[:5]}, off {apart[:5]}"
            )
    with Store.open(store) as opened:
        ids = opened.catalog.live_ids()
        if not np.array_equal(ids, np.arange(opened.catalog.next_id())):
            problems.append("the ids have holes")
        problems += [str(finding) for finding in check(opened)]
    return counts, problems


def growing(kept: Path) -> set[str]:
    """Numbers of the files that were written bit by bit."""
    return {path.stem for path in kept.glob("*.ts")}


def one_ingest(kept: Path, name: str, *more: str) -> dict[str, Frames]:
    """The frames of each file, from a store of its own that nothing disturbs."""
    whole = kept.with_name(name)
    flags = [word for item in (*SETTINGS, *more) for word in ("--set", item)]
    command = [sys.executable, "-m", "cld_stream", "ingest", str(kept), "--store", str(whole), *flags]
    subprocess.run(command, check=True, capture_output=True)
    return {file: [frame for frames in sources for frame in frames] for file, sources in frames_by_file(whole).items()}


def frames_by_file(path: Path) -> dict[str, list[Frames]]:
    """The frames of each source, in order, by the number of the file."""
    out: dict[str, list[Frames]] = {}
    with Store.open(path) as store, store.reader(1) as reader:
        for row in store.catalog.sources():
            frames = store.catalog.rows(store.catalog.live_ids(source=row.id))
            hashes = [hashlib.blake2b(jpeg, digest_size=16).digest() for jpeg in reader.jpegs(frames.ids)]
            pairs = list(zip(np.round(frames.time_s, 4).tolist(), hashes, strict=True))
            out.setdefault(Path(row.path).name[:5], []).append(pairs)
    return out


def trained_to(store: Path) -> tuple[int, int]:
    """(step, cursor of the feed) of the newest checkpoint; zeros before the first."""
    for meta in sorted(store.glob("checkpoints/[0-9]*/meta.json"), reverse=True):
        try:
            said = json.loads(meta.read_bytes())
            return int(said["step"]), int(said["meta"]["feed"]["cursor"])
        except (OSError, ValueError):
            continue
    return 0, 0


def verify_training(store: Path) -> list[str]:
    """No frame was fed twice or passed over: the buffer, which is larger than the stream, has each once, in order."""
    feed = load_checkpoint(store).meta["feed"]
    learner, _ = restore_learner(store)
    held = learner.buffer.ids
    with Store.open(store) as opened:
        frames = opened.catalog.next_id()
    problems = []
    if sorted(held[held >= 0].tolist()) != list(range(frames)):
        problems.append(f"the buffer holds {(held >= 0).sum()} frames of {frames}: some were passed over or fed twice")
    if (feed["fed"], feed["thinned"], feed["cursor"]) != (frames, 0, frames):
        problems.append(f"the feed stands at {feed}, of {frames} frames")
    return problems
