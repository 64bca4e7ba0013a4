"""Say what an encoder is worth: on the store's own frames, or on labelled pictures from outside."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cld_stream.errors import CorruptError, UsageError
from cld_stream.pipelines.embed import Embedder
from cld_stream.pipelines.evaluate_frames import JudgedFrames, Tell, labelled_pictures, own_frames
from cld_stream.pipelines.evaluate_probes import LABELLED, NEIGHBOURS, PROBES, Number, Problem, choose_probes
from cld_stream.pipelines.evaluate_rounds import Plan, plan_rounds
from cld_stream.pipelines.snapshots import open_snapshot
from cld_stream.storage.snapshots import SPACES, Snapshot
from cld_stream.storage.store import Store

__all__ = ["EvalProgress", "EvalReport", "evaluate"]


@dataclass(frozen=True, slots=True)
class EvalProgress:
    """What is being done, and how much of it is done, of how much."""

    stage: str
    done: int
    total: int


@dataclass
class EvalReport:
    """What the probes say.

    Attributes:
        snapshot, checkpoint: which encoder; one of them is None. `step` is the learner's.
        labels: the folder or table, `store`, or None where labels judge nothing.
        frames, sequences: that were judged.
        protocol: who asks whom, in words; "" without labels.
        skipped: pictures that could not be read, and why.
        notes: what else the reader must know.
        stopped: asked to stop; `numbers` are those of the probes that were done.
    """

    store: str
    snapshot: str | None
    checkpoint: int | None
    step: int
    space: str
    labels: str | None = None
    frames: int = 0
    sequences: int = 0
    classes: list[str] = field(default_factory=list)
    protocol: str = ""
    numbers: list[Number] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    stopped: bool = False
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON; `numbers` by name."""
        numbers = {
            n.name: {
                "value": n.value, "n": n.n, "better": n.better, "range": [n.low, n.high], "probe": n.probe,
                "meaning": n.meaning,
            }
            for n in self.numbers
        }  # fmt: skip
        return asdict(self) | {"numbers": numbers, "skipped": [{"path": p, "reason": r} for p, r in self.skipped]}


class _StoppedError(Exception):
    """Asked to stop."""


def evaluate(
    store_path: Path,
    *,
    labels: str | None = None,
    snapshot: str = "latest",
    checkpoint: int | str | None = None,
    space: str = "instance",
    names: Sequence[str] = (),
    device: str = "cpu",
    on_progress: Callable[[EvalProgress], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> EvalReport:
    """Run probes on one encoder. Nothing is written.

    Args:
        labels: a folder or table as `read_labelled` takes it; None = the store's own frames, and the labels of
            their sources where they have some.
        snapshot: an id, its unique beginning, or `latest`.
        checkpoint: a step, or `latest`: judge its averaged encoder, as it would be published, instead of a snapshot.
        space: `instance`, `group` or `backbone`.
        names: of probes; none = all but the slow ones.
        on_progress: called after every piece of work.
        stop: asked as often; once true, what is done is returned.

    Raises:
        UsageError: an unknown space or probe, labels that cannot be used, fewer frames than a probe needs.
        StoreNotFoundError: there is no store, snapshot or checkpoint of that name.
    """
    if space not in SPACES:
        raise UsageError(f"--space {space}: expected one of {', '.join(SPACES)}")
    chosen, began = choose_probes(names), time.monotonic()

    def tell(stage: str, done: int, total: int) -> None:
        if stop():
            raise _StoppedError
        if on_progress is not None:
            on_progress(EvalProgress(stage, done, total))

    damage: list[CorruptError] = []
    with Store.open(store_path) as store, store.reader(on_damage=damage.append) as reader:
        judge = _judge(store, snapshot, checkpoint, device)
        report = EvalReport(
            str(store_path), judge.snapshot.id if judge.snapshot else None, judge.checkpoint, judge.step, space
        )
        try:
            if labels is None:
                frames = own_frames(store, reader, judge.embedder, judge.snapshot, tell)
            else:
                frames = labelled_pictures(store.header, judge.embedder, labels, tell)
            _probe(judge, frames, _usable(frames, chosen, names, labels, report), report, device, tell)
        except _StoppedError:
            report.stopped = True
    if damage:
        more = f" And {len(damage) - 1} more." if len(damage) > 1 else ""
        report.notes.append(f"Frames are left out where their pictures are damaged: {damage[0]}{more}")
    report.seconds = round(time.monotonic() - began, 1)
    return report


@dataclass(frozen=True)
class _Judge:
    """The encoder that is judged; `groups` is how many of them it would be published with."""

    embedder: Embedder
    step: int
    groups: int
    snapshot: Snapshot | None = None
    checkpoint: int | None = None


def _judge(store: Store, snapshot: str, checkpoint: int | str | None, device: str) -> _Judge:
    if checkpoint is None:
        chosen = open_snapshot(store, snapshot)
        return _Judge(Embedder.of(chosen, device), int(chosen.manifest["step"]), 0, snapshot=chosen)
    if snapshot != "latest":
        raise UsageError("--snapshot and --checkpoint name two encoders; give one of them.")
    if checkpoint != "latest" and not str(checkpoint).isdecimal():
        raise UsageError(f"--checkpoint {checkpoint}: expected the step of a checkpoint, or latest")
    from cld_stream.pipelines.restore import buffer_batches, restore_learner

    learner, saved = restore_learner(store.path, device, None if checkpoint == "latest" else int(checkpoint))
    settings, weights = learner.publishable(buffer_batches(store, learner))
    publish = learner.settings.publish
    embedder = Embedder(settings, weights, store.header.fit, device, publish.batch)
    return _Judge(embedder, saved.step, publish.groups, checkpoint=saved.step)


def _usable(
    frames: JudgedFrames, chosen: list[str], names: Sequence[str], labels: str | None, report: EvalReport
) -> tuple[Plan, list[str]]:
    """Who asks whom, and the probes that can be run. What was not asked for by name may be left out, with a note.

    Raises:
        UsageError: one that was asked for cannot be run.
    """
    report.frames, report.sequences = len(frames), int(frames.sequence.max()) + 1
    report.classes, report.skipped = frames.classes, frames.skipped
    plan, where = plan_rounds(frames), labels or report.store
    wanted = [name for name in chosen if name in LABELLED]
    asked = [name for name in wanted if labels is not None or name in names]
    if plan.unusable:
        if asked:
            advice = "See docs/eval.md, or ask for --probes that need no labels."
            raise UsageError(f"{where}: {plan.unusable}; {', '.join(asked)} need labels to judge by. {advice}")
        if len(frames) < 2:
            raise UsageError(f"{where}: one frame only; probes compare frames. Give more.")
        if wanted:
            report.notes.append(f"Only probes without labels: {plan.unusable}. Give --labels FOLDER for the others.")
        return plan, [name for name in chosen if name not in LABELLED]
    report.labels, report.protocol = labels or "store", plan.protocol
    report.notes += plan.notes
    smallest = min(len(one.gallery) for one in plan.rounds)
    if "knn" in wanted and smallest < NEIGHBOURS:
        why = f"{smallest} labelled pictures to be found by, but kNN asks the {NEIGHBOURS} nearest"
        if "knn" in asked:
            others = ",".join(name for name in chosen if name != "knn") or "linear"
            raise UsageError(f"{where}: {why}. Give more pictures, or leave it out: --probes {others}")
        report.notes.append(f"knn is left out: {why}.")
        return plan, [name for name in chosen if name != "knn"]
    return plan, chosen


def _probe(
    judge: _Judge, frames: JudgedFrames, usable: tuple[Plan, list[str]], report: EvalReport, device: str, tell: Tell
) -> None:
    """Run the probes one after another; the report grows."""
    plan, chosen = usable
    centroids = judge.snapshot.centroids() if judge.snapshot else None
    problem = Problem(frames, judge.embedder, report.space, plan, centroids, judge.groups, device)
    for name in chosen:
        tell(name, 0, 1)
        found = PROBES[name](problem, tell)
        report.numbers += found
        if not found:
            report.notes.append(f"{name}: no two frames of one sequence, or nothing but their near-repeats.")
