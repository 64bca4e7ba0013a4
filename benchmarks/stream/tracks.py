"""The streams, their sizes and the settings that every row of a track shares."""

from dataclasses import dataclass, field
from typing import Any

__all__ = ["RATES", "TRACKS", "Track"]

RATES = (0.015, 0.03, 0.06, 0.12)
"""Learning rates of the sweep, the same for every row but where one names its own."""

_SHOWN = 8
"""One frame of a batch in so many is new at most (the anchors have 10 in 138): the others are replayed."""

Overrides = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Track:
    """A stream and its budget. CBP = 2 x frames x batch / fresh x updates, less the frames before the first step.

    Attributes:
        kind: "split" (classes in tasks), "clips" (64 near-repeats of every picture) or "recorded" (sequences).
        source: the data set.
        frames: of the stream; 0 = all there are.
        tasks: of a split stream.
        size, crop: side of a stored frame and of a view [pixels].
        capacity: of the replay buffer [frames].
        batch, fresh, updates: frames in a step, new ones that come with it, and steps for each such batch of new ones.
        slice: size of the miniature of the stream that the learning rates are tuned on.
        thin: one labelled frame in so many, and one question in so many, of a recorded set.
        more: further settings.
    """

    kind: str
    source: str
    frames: int = 0
    tasks: int = 1
    size: int = 32
    crop: int = 24
    width: float = 0.25
    capacity: int
    batch: int
    fresh: int
    updates: int = 1
    slice: float = 0.4
    thin: tuple[int, int] = (1, 1)
    more: Overrides = field(default_factory=dict)

    @property
    def passes(self) -> int:
        """Backward passes of a view that a new frame is worth."""
        return round(self.batch / self.fresh * self.updates)

    def overrides(self) -> Overrides:
        """As settings."""
        return {
            "store.size": self.size,
            "encoder.backbone": "resnet18",
            "encoder.width": self.width,
            "encoder.crop": self.crop,
            "loss.groups": self.batch // 2,
            "loss.queue": 4 * self.capacity // 5,
            "loss.key_momentum": 0.99,  # a cell has about a thousand steps
            "buffer.capacity": self.capacity,
            "optim.batch": self.batch,
            "optim.fresh": self.fresh,
            "optim.shown": min(self.fresh, self.batch // _SHOWN),
            "optim.warmup_steps": 30,
            "optim.amp": "always",
            "train.min_frames": 256,
            "train.updates_per_step": self.updates,
        } | self.more


TRACKS = {
    # 5 tasks of 2 classes; 24-pixel views cost half of 32-pixel ones (a mean crop of a 32-pixel picture has 25 a side)
    "A": Track(
        kind="split", source="cifar10", frames=22_500, tasks=5, capacity=1_250, batch=96, fresh=32, slice=0.3
    ),
    # CLA's low and CLIMB's high budget at full width, for a GPU
    "A-low": Track(
        kind="split", source="cifar10", frames=45_000, tasks=5, crop=32, width=1.0,
        capacity=2_500, batch=120, fresh=40, slice=0.2,
    ),
    "A-high": Track(
        kind="split", source="cifar10", frames=45_000, tasks=5, crop=32, width=1.0,
        capacity=2_500, batch=138, fresh=10, updates=3, slice=0.1,
    ),
    "A-cifar100": Track(
        kind="split", source="cifar100", frames=22_500, tasks=20, capacity=1_250, batch=120, fresh=20, slice=0.15
    ),
    "A-tiny": Track(
        kind="split", source="tiny", frames=22_500, tasks=20, size=64, crop=32,
        capacity=1_250, batch=120, fresh=20, slice=0.15,
    ),
    # 400 pictures, 40 of each class
    "B": Track(kind="clips", source="cifar10", frames=25_600, capacity=1_280, batch=96, fresh=48),
    "C-gtsrb": Track(
        kind="recorded", source="gtsrb-tracks", size=48, capacity=2_000, batch=96, fresh=24,
        thin=(4, 2), more={"augment.flip": 0.0},
    ),
    "C-eth80": Track(
        kind="recorded", source="eth80", size=48, capacity=400, batch=96, fresh=16, updates=3, slice=0.5,
        more={"train.min_frames": 128},
    ),
}  # fmt: skip
