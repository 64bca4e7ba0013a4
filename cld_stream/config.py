"""Every setting: its type, default, unit and reason. `cld-stream config` prints this file as commented TOML.

Settings are frozen dataclasses of the standard library, so that `cld_stream.learn` needs torch alone. Precedence:
defaults < recipe (by name, or of the device) < `--config FILE.toml` < `--set section.key=value`. Parsing and type
checks are pydantic's.
"""

import difflib
import json
import math
import operator
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from cld_stream.errors import UsageError

__all__ = [
    "AugmentSettings", "BufferSettings", "EncoderSettings", "GuardSettings", "IngestSettings", "LossSettings",
    "OpsSettings", "OptimSettings", "PublishSettings", "Settings", "StoreSettings", "TrainSettings", "as_dict",
    "as_toml", "load_settings",
]  # fmt: skip


_MOST_BYTES = 1_000_000  # of a file of settings


def setting(
    default: Any,
    doc: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
) -> Any:
    """A dataclass field with its meaning and its range."""
    return field(default=default, metadata={"doc": doc, "ge": ge, "gt": gt, "le": le})


_BOUNDS: tuple[tuple[str, Callable[[float, float], bool], str], ...] = (
    ("ge", operator.ge, ">="),
    ("gt", operator.gt, ">"),
    ("le", operator.le, "<="),
)


@dataclass(frozen=True, kw_only=True)
class _Section:
    """Checks the stated ranges, whoever builds it."""

    def __post_init__(self) -> None:
        for f in fields(self):
            value, m = getattr(self, f.name), f.metadata
            for bound, holds, sign in _BOUNDS:
                if m.get(bound) is not None and not holds(value, m[bound]):
                    raise ValueError(f"{f.name} must be {sign} {m[bound]:g}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class StoreSettings(_Section):
    """The frame store. Fixed when the store is created."""

    size: int = setting(160, "side of a stored frame [pixels]", ge=16, le=2048)
    fit: Literal["stretch", "crop", "pad"] = setting(
        "stretch",
        "how a picture becomes square; stretch loses no field of view and is undone later",
    )
    jpeg_quality: int = setting(90, "JPEG quality of stored frames", ge=1, le=100)
    shard_frames: int = setting(4096, "frames in a sealed shard", ge=1, le=1_000_000)


@dataclass(frozen=True, kw_only=True)
class IngestSettings(_Section):
    """From files to frames."""

    fps: float = setting(2.0, "frames kept per second of video", gt=0, le=1000)
    workers: int = setting(0, "decoding processes; 0 = one a core", ge=0, le=1024)
    reader: Literal["auto", "decord", "pyav"] = setting("auto", "video reader")
    order: Literal["time", "path"] = setting("time", "stream order: capture time when known, or natural path order")
    sequence_fps: float = setting(
        25.0, "frames per second that frame numbers of picture sequences stand for", gt=0, le=10_000
    )
    commit_s: float = setting(2.0, "new frames are durable after this long at the latest [s]", gt=0, le=60)
    heartbeat_s: float = setting(
        20.0, "a worker that neither shows progress nor computes for this long is killed [s]", gt=0
    )
    compute_s: float = setting(60.0, "CPU time that a worker may use without showing progress [s]", gt=0)
    worker_memory_mb: int = setting(1024, "address space a worker may take beyond its start [MB]", ge=256, le=10**9)
    worker_files: int = setting(1000, "a worker is replaced after this many files", ge=1)
    max_frames: int = setting(0, "the oldest frames beyond this many are dropped; 0 = none are", ge=0)
    max_gb: float = setting(0.0, "the oldest frames are dropped when all take more than this; 0 = none are [GB]", ge=0)
    max_pixels: int = setting(250_000_000, "larger pictures are refused before decoding [pixels]", ge=1)
    poll_s: float = setting(
        5.0, "pause between two looks at watched folders; longer where a look would cost over 1% of a core [s]", gt=0
    )
    notices: Literal["auto", "never"] = setting("auto", "look sooner when the system tells of changes, or poll alone")
    settle_s: float = setting(5.0, "a watched file is taken once size and time stood still for this long [s]", gt=0)
    growing_s: float = setting(
        30.0, "a recording that does not stand still is taken, as far as it goes, this often at most [s]", gt=0
    )
    camera_timeout_s: float = setting(10.0, "a camera that sends nothing for this long is called again [s]", gt=0)
    camera_retry_s: float = setting(60.0, "longest pause between two calls to a camera that is down [s]", gt=0)


@dataclass(frozen=True, kw_only=True)
class EncoderSettings(_Section):
    """Backbone and heads."""

    backbone: str = setting("resnet18", "any torchvision model, or `timm:NAME` for any timm one")
    init: str = setting(
        "random",
        "random, pretrained (downloads torchvision's or timm's weights), or a .safetensors file",
    )
    width: float = setting(0.25, "width factor of a ResNet; 1 = as published", gt=0, le=8)
    norm: Literal["batch", "group"] = setting(
        "batch", "normalisation: batch, or group (no leak between frames of a batch)"
    )
    activation: Literal["relu", "mish"] = setting("relu", "nonlinearity of the backbone, in place of its ReLUs")
    crop: int = setting(
        64,
        "side of the views that the encoder sees [pixels]; below 96 the small-image stem is used",
        ge=16,
        le=1024,
    )
    head: Literal["linear", "normlinear", "bnlinear", "mlp", "normmlp", "bnmlp"] = setting(
        "linear", "projection head, of both branches; bn: batch norm behind every linear layer"
    )
    feature_dim: int = setting(128, "width of the instance and of the group features", ge=2, le=4096)


@dataclass(frozen=True, kw_only=True)
class LossSettings(_Section):
    """L = instance term + cld_weight x cross-level term (Wang, Liu, Yu 2021)."""

    branch: Literal["npid", "moco", "byol", "simclr"] = setting(
        "npid", "instance branch: how a frame is told from all others"
    )
    negatives: int = setting(0, "npid: bank rows drawn as noise in a step; 0 = full softmax over all", ge=0)
    queue: int = setting(16_384, "moco: keys in the queue", ge=1)
    key_momentum: float = setting(
        0.999, "moco, byol: momentum of the encoder of keys or targets; of a thousand steps or fewer it needs less",
        ge=0, le=1,
    )  # fmt: skip
    cld_weight: float = setting(1.0, "lambda, the weight of the cross-level term; 0 turns CLD off", ge=0)
    temperature_instance: float = setting(0.1, "T_I; smaller is sharper", gt=0)
    temperature_group: float = setting(0.2, "T_G; smaller is sharper", gt=0)
    groups: int = setting(64, "K, local groups in a batch", ge=1)
    grouping: Literal["kmeans", "ncut"] = setting("kmeans", "how a batch is grouped: k-means, or normalised cuts")
    cross_level: Literal["local", "bank", "both", "segments"] = setting(
        "local",
        "groups that a view must find: those of the batch, persistent ones over the bank, half of each, or the shots "
        "or segments that `near` tells apart",
    )
    bank_groups: int = setting(256, "persistent groups over the bank, at most", ge=1)
    bank_rows_per_group: int = setting(
        1, "bank rows for each of them: their number grows with the buffer; 1 = all of them from the start", ge=1
    )
    bank_refine_steps: int = setting(
        50, "steps between their refinements; about 6% of the rows may change in between", ge=1
    )
    kmeans_iters: int = setting(5, "iterations of the local k-means", ge=1, le=100)
    bank_momentum: float = setting(0.5, "m of the memory bank: v <- norm(m v + (1 - m) f)", ge=0, le=1)
    row_half_life: float = setting(
        0.0, "steps in which a bank row that is not refreshed loses half its weight as a negative; 0 = none", ge=0
    )
    near: Literal["none", "time", "segment"] = setting(
        "none", "near-repeats: frames of one shot within `near_s`, or of one segment found by its change points"
    )
    near_s: float = setting(2.0, "frames of one shot this far apart are near-repeats [s]", ge=0)
    near_negatives: bool = setting(True, "near-repeats are each other's negatives")
    near_positives: float = setting(
        0.0, "probability that the second view of a frame is taken from a buffered near-repeat", ge=0, le=1
    )
    align: Literal["none", "bank", "ema"] = setting(
        "none", "replayed frames are aligned with their bank rows, or with a slowly following encoder"
    )
    align_weight: float = setting(1.0, "weight of that alignment", ge=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        wants = self.cross_level == "segments" or self.near_positives > 0 or not self.near_negatives
        if wants and self.near == "none":
            raise ValueError(
                "near must be time or segment where cross_level is segments, near_positives > 0 or near_negatives is "
                "false, got 'none'"
            )


@dataclass(frozen=True, kw_only=True)
class AugmentSettings(_Section):
    """The random views of a frame. Probabilities are per sample."""

    scale_min: float = setting(0.2, "least area of a random crop, as a share of the frame", gt=0, le=1)
    flip: float = setting(
        0.5,
        "probability of a horizontal flip; 0 where mirrored things are other things",
        ge=0,
        le=1,
    )
    jitter: float = setting(1.0, "probability of colour jitter", ge=0, le=1)
    brightness: float = setting(0.4, "strength", ge=0, le=1)
    contrast: float = setting(0.4, "strength", ge=0, le=1)
    saturation: float = setting(0.4, "strength", ge=0, le=1)
    hue: float = setting(0.1, "strength, in turns of the colour wheel", ge=0, le=0.5)
    grey: float = setting(0.2, "probability of greyscale", ge=0, le=1)
    blur: float = setting(0.0, "probability of Gaussian blur", ge=0, le=1)
    erase: float = setting(0.0, "probability that a random rectangle becomes the mean colour", ge=0, le=1)


@dataclass(frozen=True, kw_only=True)
class BufferSettings(_Section):
    """The replay buffer."""

    capacity: int = setting(16_384, "frames remembered; the memory bank has as many rows", ge=2, le=2**40)
    policy: Literal["reservoir", "fifo", "two-tier", "minred", "groups"] = setting(
        "reservoir", "who stays when it is full: a uniform sample, the newest, some of both, what has no near-repeat "
        "here, or as many of every group of similar frames"
    )  # fmt: skip
    recent: float = setting(0.1, "two-tier: share of the buffer that holds the newest frames", gt=0, le=0.9)
    recent_share: float = setting(
        0.12, "two-tier: share of the replayed frames that come from them; up to half where the buffer is small",
        ge=0, le=1,
    )  # fmt: skip
    max_replays: int = setting(
        0, "a frame that was replayed so often is not drawn again, though it stays a negative; 0 = no limit", ge=0
    )
    groups: int = setting(
        256, "groups: most long-term groups that it is balanced over, and most short-term ones; at least two slots a "
        "group", ge=1,
    )  # fmt: skip
    cache_mb: int = setting(
        2048,
        "decoded pixels kept on the training device; beyond it JPEG bytes are kept instead [MB]",
        ge=0,
    )


@dataclass(frozen=True, kw_only=True)
class OptimSettings(_Section):
    """SGD. A stream has no end to anneal towards, so its rate is constant after warm-up; a cosine needs an end."""

    batch: int = setting(
        128, "frames in a step, fresh and replayed; where it is not above `fresh` no frame is replayed with fresh ones",
        ge=2,
    )  # fmt: skip
    fresh: int = setting(16, "most new frames that come with a step", ge=1)
    shown: int = setting(
        0,
        "of the frames that come with a step so many are in its batch, evenly spread over them; the others are only "
        "offered to the buffer, and seen if they are replayed. 0 = all are",
        ge=0,
    )
    lr: float = setting(0.06, "learning rate", gt=0)
    warmup_steps: int = setting(100, "steps over which the rate rises from lr/100", ge=0)
    schedule: Literal["constant", "cosine"] = setting("constant", "the rate after the warm-up")
    total_steps: int = setting(0, "steps until a cosine schedule reaches zero; of no meaning to a constant one", ge=0)
    momentum: float = setting(0.9, "SGD momentum", ge=0, le=1)
    weight_decay: float = setting(5e-4, "L2 penalty", ge=0)
    average_decay: float = setting(
        0.999,
        "d of the averaged weights that are published; warms up as min(d, (1+t)/(10+t))",
        ge=0,
        le=1,
    )
    amp: Literal["gpu", "always", "never"] = setting(
        "gpu", "bf16 autocast; `always` pays on CPUs with bf16 instructions"
    )
    seed: int = setting(0, "of every random choice", ge=0, le=2**63 - 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.schedule == "cosine" and self.total_steps <= self.warmup_steps:
            raise ValueError(
                f"total_steps must be > warmup_steps = {self.warmup_steps} under a cosine schedule, "
                f"got {self.total_steps}"
            )


@dataclass(frozen=True, kw_only=True)
class TrainSettings(_Section):
    """The daemon: what it feeds, and when it writes."""

    max_lag: int = setting(100_000, "a larger backlog is thinned evenly in time [frames]", ge=1)
    min_frames: int = setting(256, "no update before this many frames are buffered, unless the store holds fewer", ge=2)
    updates_per_step: int = setting(1, "optimiser steps per batch of fresh frames", ge=1)
    idle_steps: int = setting(
        500,
        "further steps on the buffer once everything is fed, at most one a fresh frame; then sleep until new ones come",
        ge=0,
    )
    poll_s: float = setting(1.0, "how often a sleeping trainer looks for new frames [s]", gt=0, le=60)
    checkpoint_s: float = setting(300.0, "time between checkpoints [s]", gt=0)
    checkpoints_kept: int = setting(3, "newest checkpoints kept beside the pinned one", ge=1)
    publish_s: float = setting(3600.0, "time between published encoders [s]", gt=0)
    publish_share: float = setting(0.2, "most of the compute that publishing may take", gt=0, le=1)
    extend_s: float = setting(20.0, "new frames get features under the published encoder after this long [s]", gt=0)
    log_steps: int = setting(20, "steps between lines of metrics.jsonl", ge=1)
    bad_steps: int = setting(5, "non-finite steps in a row before the last good checkpoint is restored", ge=1)
    threads: int = setting(0, "CPU threads of torch; 0 = torch's choice", ge=0, le=1024)


@dataclass(frozen=True, kw_only=True)
class PublishSettings(_Section):
    """Snapshots."""

    batch: int = setting(256, "frames embedded at a time", ge=1)
    keep: int = setting(5, "newest snapshots kept beside the pinned ones", ge=1)
    groups: int = setting(256, "groups (spherical k-means over the group features) written beside the features", ge=1)
    bn_batches: int = setting(4, "buffer batches that re-estimate batch-norm statistics of the averaged weights", ge=1)


@dataclass(frozen=True, kw_only=True)
class GuardSettings(_Section):
    """What is done when features fall apart (docs/guard.md). Lines are shares of the best so far."""

    enabled: bool = setting(True, "look, warn, hold publishing, roll back")
    every_steps: int = setting(
        200, "steps between two looks; a look embeds 256 frames, and `publish.bn_batches` batches", ge=1
    )
    warn: float = setting(
        0.5, "spread, effective rank or group entropy below this share: a line in the log", ge=0, le=1
    )
    hold: float = setting(0.35, "below this share: nothing is published, no checkpoint is pinned", ge=0, le=1)
    rollback: float = setting(
        0.25, "below this share, `patience` looks in a row: the good state comes back", ge=0, le=1
    )
    patience: int = setting(2, "looks in a row before the good state comes back", ge=1)
    young_steps: int = setting(
        200, "updates after the warm-up before the effective rank of an encoder is a measure for later ones", ge=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.rollback <= self.hold <= self.warn:
            raise ValueError(f"rollback <= hold <= warn is needed, got {self.rollback:g}, {self.hold:g}, {self.warn:g}")


@dataclass(frozen=True, kw_only=True)
class OpsSettings(_Section):
    """What a running ingest or train shows to whoever watches over it."""

    port: int = setting(0, "port of /healthz, /readyz and /metrics; 0 = none", ge=0, le=65_535)
    address: str = setting("127.0.0.1", "where that port listens; it asks nobody for a password")
    stalled_s: float = setting(300.0, "without progress for this long it calls itself unhealthy [s]", gt=0)
    log_mb: int = setting(
        100,
        "most that metrics.jsonl, train.log and the TensorBoard events may each take; the oldest goes first [MB]",
        ge=1,
    )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All of them."""

    store: StoreSettings = field(default_factory=StoreSettings)
    ingest: IngestSettings = field(default_factory=IngestSettings)
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    buffer: BufferSettings = field(default_factory=BufferSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    publish: PublishSettings = field(default_factory=PublishSettings)
    guard: GuardSettings = field(default_factory=GuardSettings)
    ops: OpsSettings = field(default_factory=OpsSettings)

    def __post_init__(self) -> None:
        if self.loss.near == "segment" and 0 < self.optim.shown < self.optim.fresh:
            raise ValueError(
                f"optim.shown must be 0 where loss.near is segment, got {self.optim.shown}: segments are found in "
                "frames that are all in a batch"
            )


def load_settings(
    config: Path | None = None,
    overrides: Iterable[str] = (),
    *,
    recipe: str | Iterable[str] | None = None,
    known: Mapping[str, Mapping[str, Any]] | None = None,
) -> Settings:
    """Resolve the settings.

    Args:
        config: a TOML file with sections as in `cld-stream config`.
        overrides: `section.key=value` strings, applied in order.
        recipe: name of a packaged recipe (`stream`, `cpu`, `moco-cld-32`, ...) that stands under both, or several,
            the later on top.
        known: values by section and key, over the recipe and under the others.

    Raises:
        UsageError: an unknown key (the nearest one is named), a value of the wrong type or out of range, a bad file.
    """
    tree: dict[str, dict[str, Any]] = {}
    for name in [recipe] if isinstance(recipe, str) else recipe or ():
        _merge(tree, tomllib.loads(_recipe(name)), f"recipe {name}")
    _merge(tree, known or {}, "what was trained")
    if config is not None:
        try:
            _merge(tree, tomllib.loads(_text_of(config)), str(config))
        except OSError as e:
            raise UsageError(f"{config}: cannot read the settings: {e.strerror}. Check --config.") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
            why = "it is not text" if isinstance(e, UnicodeDecodeError) else e
            raise UsageError(f"{config}: not valid TOML: {why}. `cld-stream config` prints a valid file.") from None
    for item in overrides:
        _merge(tree, _parse_override(item), f"--set {item}")
    return _validate(tree)


def as_dict(settings: Settings) -> dict[str, dict[str, Any]]:
    """Sections of plain values, as JSON or TOML hold them."""
    return {
        s.name: {f.name: getattr(getattr(settings, s.name), f.name) for f in fields(getattr(settings, s.name))}
        for s in fields(settings)
    }


def as_toml(settings: Settings) -> str:
    """Every setting as commented TOML; reading it back gives the same settings."""
    out: list[str] = []
    for s in fields(settings):
        section = getattr(settings, s.name)
        out += [f"# {(type(section).__doc__ or '').strip()}", f"[{s.name}]"]
        hints = get_type_hints(type(section))
        for f in fields(section):
            choices = " | ".join(map(str, get_args(hints[f.name]))) if get_origin(hints[f.name]) is Literal else ""
            note = f.metadata["doc"] + (f" ({choices})" if choices else "")
            out.append(f"{f.name} = {_literal(getattr(section, f.name))}".ljust(34) + f"  # {note}")
        out.append("")
    return "\n".join(out)


def _literal(value: Any) -> str:
    """As TOML writes it: as JSON does, but for infinity and for characters of more than 16 bits."""
    if isinstance(value, str):
        letters = (json.dumps(c)[1:-1] if ord(c) < 2**16 else f"\\U{ord(c):08x}" for c in value)
        return '"' + "".join(letters) + '"'
    return str(value) if value in (math.inf, -math.inf) else json.dumps(value)


def _text_of(config: Path) -> str:
    """A file of settings, or a pipe; what is endless is refused."""
    with config.open("rb") as file:
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise UsageError(f"{config}: this is no file of settings: it is larger than a megabyte. Check --config.")
    return data.decode()


def _recipe(name: str) -> str:
    folder = resources.files("cld_stream").joinpath("recipes")
    known = sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml"))
    if name not in known:
        raise UsageError(f"there is no recipe {name!r}; the packaged ones are {', '.join(known)}.")
    return folder.joinpath(f"{name}.toml").read_text()


def _parse_override(item: str) -> dict[str, Any]:
    name, eq, raw = item.partition("=")
    section, dot, key = name.strip().partition(".")
    if not eq or not dot or not key:
        raise UsageError(f"--set {item}: expected section.key=value, for example --set optim.lr=0.03")
    try:
        value = tomllib.loads(f"v = {raw}")["v"]
    except tomllib.TOMLDecodeError:
        value = raw.strip()
    return {section: {key: value}}


def _merge(tree: dict[str, dict[str, Any]], new: Mapping[str, Any], where: str) -> None:
    """Lay `new` over `tree`; every key must exist."""
    known = {name: {f.name for f in fields(kind)} for name, kind in get_type_hints(Settings).items()}
    for section, values in new.items():
        if section not in known:
            raise UsageError(f"{where}: there is no section {section!r}{_nearest(section, known)}")
        if not isinstance(values, Mapping):
            raise UsageError(f"{where}: {section!r} is a section; write [{section}] and keys below it")
        for key, value in values.items():
            if key not in known[section]:
                raise UsageError(
                    f"{where}: there is no setting {section}.{key}{_nearest(key, known[section], section, known)}"
                )
            tree.setdefault(section, {})[key] = value


def _nearest(name: str, names: Iterable[str], section: str = "", known: Mapping[str, set[str]] | None = None) -> str:
    for other, keys in (known or {}).items():
        if name in keys:
            return f"; did you mean {other}.{name}?"
    match = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; did you mean {section + '.' if section else ''}{match[0]}?" if match else "; see `cld-stream config`"


def _validate(tree: dict[str, dict[str, Any]]) -> Settings:
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(Settings).validate_python(tree)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(str(p) for p in first["loc"])
        got = "" if isinstance(first["input"], dict) else f", got {first['input']!r}"
        reason = first["msg"].removeprefix("Value error, ")
        if isinstance(first["input"], dict):  # a check of several values names the key itself
            key, _, reason = reason.partition(" ")
            where = f"{where}.{key}".lstrip(".")
        raise UsageError(f"setting {where}: {reason[0].lower() + reason[1:]}{got}. See `cld-stream config`.") from None
