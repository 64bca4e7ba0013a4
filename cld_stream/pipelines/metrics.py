"""What training says about itself: metrics.jsonl, TensorBoard, train.log, and the numbers of a live panel."""

import json
import logging
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["MetricsLog", "TrainProgress", "TrainReport", "log"]

log = logging.getLogger("cld_stream.train")


@dataclass(frozen=True)
class TrainProgress:
    """How training stands.

    Attributes:
        state: `training`, `idle` (further steps on the buffer), `waiting` (for frames), `publishing`.
        step: steps tried; updates: steps taken.
        loss, instance, cld: of the last step [nats]; loss = instance + lambda x cld.
        frames_s: fresh and replayed frames a second, over the last second or so.
        data_wait: share of the time that was spent waiting for pixels.
        lag: committed frames not yet fed; thinned: passed over so far; fed: fed so far.
        committed: frame ids handed out by the store.
        buffered, capacity: of the replay buffer.
        groups: local groups of the last measured batch that hold a frame.
        feature_std, effective_rank: of its instance features; near 0 and near 1 when collapsed.
        cbp: cumulative backward passes, views x frames.
        rescues: how often an old state was restored.
    """

    state: str
    step: int
    updates: int
    loss: float
    instance: float
    cld: float
    frames_s: float
    data_wait: float
    lag: int
    thinned: int
    fed: int
    committed: int
    buffered: int
    capacity: int
    groups: int
    feature_std: float
    effective_rank: float
    lr: float
    cbp: int
    rescues: int


@dataclass(frozen=True)
class TrainReport:
    """What a run did.

    Attributes:
        steps: in this run; step: in all, the number of the last checkpoint.
        fed, lag, thinned: frames, in all.
        snapshot: id of the newest one, or None.
        seconds: of this run.
    """

    steps: int
    step: int
    fed: int
    thinned: int
    lag: int
    snapshot: str | None
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class MetricsLog:
    """The files below `logs/`. Numbers go to metrics.jsonl and TensorBoard, events to train.log.

    A context manager.

    Args:
        folder: made when absent.
        level: of train.log.
    """

    def __init__(self, folder: Path, level: int = logging.INFO) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._lines = (folder / "metrics.jsonl").open("a", buffering=1)
        self._board = SummaryWriter(str(folder / "tensorboard"))
        self._handler = logging.FileHandler(folder / "train.log")
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(self._handler)
        log.setLevel(level)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._board.close()
        log.removeHandler(self._handler)
        self._handler.close()

    def write(self, progress: TrainProgress) -> None:
        """One line, and one point of every curve."""
        numbers = asdict(progress).items()
        values = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in numbers}
        self._lines.write(json.dumps({"time_utc": round(time.time(), 3), **values}) + "\n")
        for name, value in values.items():
            if isinstance(value, int | float):
                self._board.add_scalar(f"train/{name}", value, progress.step)
