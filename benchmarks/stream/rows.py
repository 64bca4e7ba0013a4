"""The rows of the table: each is a few settings on top of its track's.

Baselines carry the SimCLR loss that their papers compare them with.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import Any

from benchmarks.stream.tracks import Track
from cld_stream.config import Settings, load_settings
from cld_stream.errors import UsageError

__all__ = ["BASELINES", "ROWS", "Row", "changed", "overrides_of", "settings_of"]

Overrides = dict[str, Any]

SIMCLR: Overrides = {
    "loss.branch": "simclr",
    "loss.cld_weight": 0.0,
    "loss.temperature_instance": 0.5,  # Chen et al. 2020, on CIFAR-10
    "encoder.head": "bnmlp",  # the published one
}
NPID: Overrides = {"loss.branch": "npid"}
MOCO: Overrides = {"loss.branch": "moco", "loss.temperature_instance": 0.1}
PLAIN: Overrides = {"loss.cld_weight": 0.0}
RESERVOIR: Overrides = {"buffer.policy": "reservoir"}


@dataclass(frozen=True)
class Row:
    """One learner.

    Attributes:
        what: for the table.
        overrides: on the track's settings.
        recipe: a packaged one that stands under both.
        shuffled: the frames of the stream in random order.
        alone: no replay: the memory is the newest batch, and all the steps that a batch is worth are taken on it.
        trained: False = the random encoder.
        lightly: "simclr" or "moco": loss and projection head of the package `lightly`.
        pixels: the features are the pixels of the view.
        rates: learning rates of its sweep, where the common ones do not hold its best.
        tracks: those of the table that have it; () = every one. Elsewhere it runs when it is named.
    """

    what: str
    overrides: Overrides = field(default_factory=dict)
    recipe: str | None = None
    shuffled: bool = False
    alone: bool = False
    trained: bool = True
    lightly: str | None = None
    pixels: bool = False
    rates: tuple[float, ...] | None = None
    tracks: tuple[str, ...] = ()


ROWS = {
    "pixels": Row("the pixels themselves", SIMCLR | RESERVOIR, trained=False, pixels=True),
    "random": Row("random encoder", SIMCLR | RESERVOIR, trained=False),
    "none-bn": Row("no replay, BatchNorm; SimCLR", SIMCLR, alone=True),
    "none-gn": Row(
        "no replay, GroupNorm; SimCLR",
        SIMCLR | {"encoder.norm": "group"},
        alone=True,
        rates=(0.004, 0.008, 0.015, 0.03),
    ),
    "fifo": Row("FIFO; SimCLR", SIMCLR | {"buffer.policy": "fifo"}),
    "reservoir": Row("reservoir; SimCLR", SIMCLR | RESERVOIR),
    "minred": Row("MinRed; SimCLR", SIMCLR | {"buffer.policy": "minred"}),
    "cla-r": Row("CLA-R: reservoir, alignment with bank rows; SimCLR", SIMCLR | RESERVOIR | {"loss.align": "bank"}),
    "lightly-simclr": Row("SimCLR of lightly, reservoir", SIMCLR | RESERVOIR, lightly="simclr"),
    "lightly-moco": Row("MoCo of lightly, reservoir", SIMCLR | RESERVOIR, lightly="moco"),
    "npid": Row("NPID, reservoir", NPID | PLAIN | RESERVOIR),
    "npid+cld": Row("NPID + CLD, reservoir", NPID | RESERVOIR),
    "moco": Row("MoCo, reservoir", MOCO | PLAIN | RESERVOIR),
    "moco+cld": Row("MoCo + CLD, reservoir", MOCO | RESERVOIR),
    "ours-cld0": Row("ours without CLD", PLAIN, recipe="stream"),
    "ours": Row("ours: recipe `stream`", recipe="stream"),
    "iid-0": Row("i.i.d., NPID, reservoir", NPID | PLAIN | RESERVOIR, shuffled=True),
    "iid-1": Row("i.i.d., NPID + CLD, reservoir", NPID | RESERVOIR, shuffled=True),
    "iid-simclr": Row("i.i.d., SimCLR, reservoir", SIMCLR | RESERVOIR, shuffled=True, tracks=("B",)),
    "ours-iid-cld0": Row("i.i.d., recipe `stream` without CLD", PLAIN, recipe="stream", shuffled=True),
    "ours-iid": Row("i.i.d., recipe `stream`", recipe="stream", shuffled=True),
}

BASELINES = (
    "none-bn", "none-gn", "fifo", "reservoir", "minred", "cla-r", "lightly-simclr", "lightly-moco", "npid", "moco",
)  # fmt: skip


def in_table(track: str, name: str) -> bool:
    """Whether the table asks for this row on this track."""
    return name in ROWS and (not ROWS[name].tracks or track in ROWS[name].tracks)


def changed(name: str, sets: Sequence[str]) -> tuple[str, Row]:
    """The row, with `section.key=value` on top of it and in its name.

    Raises:
        UsageError: there is no such row.
    """
    if name not in ROWS:
        raise UsageError(f"there is no row {name!r}; the rows are {', '.join(ROWS)}.")
    row = ROWS[name]
    if not sets:
        return name, row
    values = {key.strip(): _value(raw) for key, _, raw in (item.partition("=") for item in sets)}
    return f"{name}[{','.join(sets)}]", replace(row, overrides=row.overrides | values)


def overrides_of(track: Track, row: Row, rate: float) -> Overrides:
    """Every setting that is not at its default because of recipe, track, row or rate, by `section.key`.

    Raises:
        UsageError: there is no such recipe.
    """
    found = _recipe(row.recipe) if row.recipe else {}
    found |= track.overrides()
    if row.alone:
        found |= {
            "buffer.policy": "fifo",
            "buffer.capacity": track.batch,
            "optim.fresh": track.batch,
            "optim.shown": 0,
            "train.updates_per_step": track.passes,
        }
    return found | row.overrides | {"optim.lr": rate}


def settings_of(overrides: Overrides, seed: int) -> Settings:
    """The same for the learner.

    Raises:
        UsageError: a setting that does not exist (yet).
    """
    return load_settings(overrides=[f"{k}={_toml(v)}" for k, v in overrides.items()] + [f"optim.seed={seed}"])


def _recipe(name: str) -> Overrides:
    load_settings(recipe=name)  # it is there, and valid
    text = resources.files("cld_stream").joinpath(f"recipes/{name}.toml").read_text()
    return {f"{section}.{key}": v for section, values in tomllib.loads(text).items() for key, v in values.items()}


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _value(raw: str) -> Any:
    try:
        return tomllib.loads(f"v = {raw}")["v"]
    except tomllib.TOMLDecodeError:
        return raw.strip()
