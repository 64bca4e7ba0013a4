import json
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch

from cld_stream.config import GuardSettings, Settings, load_settings
from cld_stream.errors import GuardStopError, LockHeldError, StoreError, StoreNotFoundError, UsageError
from cld_stream.learn.buffer import Ids
from cld_stream.learn.feed import Feed
from cld_stream.pipelines.pixels import FreshFrames, GoneError, PixelCache
from cld_stream.pipelines.probes import TRAIN, families
from cld_stream.pipelines.restore import restore_learner
from cld_stream.pipelines.status import status
from cld_stream.pipelines.train import TrainProgress, train, train_settings
from cld_stream.storage.check import check
from cld_stream.storage.checkpoints import list_checkpoints, load_checkpoint, pinned_checkpoint
from cld_stream.storage.schema import NewFrame, Outcome
from cld_stream.storage.store import Store

SMALL = (
    "store.size=20", "encoder.width=0.125", "encoder.crop=16", "encoder.feature_dim=16", "loss.groups=12",
    "buffer.capacity=48", "optim.batch=24", "optim.fresh=8", "optim.warmup_steps=5", "train.min_frames=16",
    "train.idle_steps=3", "train.poll_s=0.05", "train.log_steps=1", "train.threads=1", "publish.groups=4",
)  # fmt: skip

GO_ON = """
import sys
from pathlib import Path
from cld_stream.config import load_settings
from cld_stream.pipelines.train import train
if __name__ == "__main__":
    train(Path(sys.argv[1]), load_settings(overrides=sys.argv[3:]), steps=int(sys.argv[2]))
"""


@pytest.fixture
def settings() -> Settings:
    return load_settings(overrides=SMALL)


def grow(path: Path, frames: int, settings: Settings, *, same: bool = False) -> int:
    """Commit a source of frames of noise, each its own or all the same; gives its id."""
    store = Store.open(path) if (path / "store.json").exists() else Store.create(path, settings.store)
    with store, store.writer("test") as writer:
        number = store.catalog.next_id()
        rng = np.random.default_rng(number)
        size = settings.store.size
        source = writer.add_source(
            kind="video", path=f"/v{number}", device=0, inode=number, size=1, mtime_ns=0, fingerprint=str(number)
        )
        pictures = rng.integers(0, 256, (1 if same else frames, size, size, 3), dtype=np.uint8)
        pictures = np.resize(pictures, (frames, size, size, 3))
        writer.append(
            source, [NewFrame(simplejpeg.encode_jpeg(p), i / 2, None, 0, 1.5) for i, p in enumerate(pictures)], None
        )
        writer.finish(source, Outcome.ADDED)
        writer.commit()
    return source


def metrics(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (path / "logs" / "metrics.jsonl").read_text().splitlines()]


def go_on(path: Path, steps: int, *more: str) -> None:
    """Train in a process of its own."""
    subprocess.run([sys.executable, "-c", GO_ON, str(path), str(steps), *SMALL, *more], check=True, timeout=100)


@pytest.mark.parametrize(("shown", "updates"), [(0, 1), (3, 1), (3, 2)])
def test_nine_steps_and_eleven_in_a_new_process_are_twenty_bit_for_bit(
    tmp_path: Path, shown: int, updates: int
) -> None:
    """Also where the nine end between the two steps that fresh frames are worth."""
    more = (f"optim.shown={shown}", f"train.updates_per_step={updates}")
    settings = load_settings(overrides=[*SMALL, *more])
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for path in (whole, parts):
        grow(path, 170, settings)
    threads = torch.get_num_threads()
    try:
        train(whole, settings, steps=20)
        train(parts, settings, steps=9)
    finally:
        torch.set_num_threads(threads)
    go_on(parts, 11, *more)
    a, b = load_checkpoint(whole), load_checkpoint(parts)
    assert a.step == b.step == 20
    assert a.tensors.keys() == b.tensors.keys()
    assert [name for name in a.tensors if a.tensors[name].tobytes() != b.tensors[name].tobytes()] == []
    assert a.meta["learner"] == b.meta["learner"]
    assert a.meta["feed"] == b.meta["feed"]
    assert [m["loss"] for m in metrics(whole)] == [m["loss"] for m in metrics(parts)]


def test_a_trainer_that_sleeps_trains_no_frames(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cld_stream.pipelines.keeper._LULL_S", 1.0)
    grow(tmp_path, 60, settings)
    said: list[TrainProgress] = []
    until = time.monotonic() + 40

    def slept() -> bool:
        asleep = bool(said) and said[-1].state == "waiting" and said[-1].step > 0
        return (asleep and said[-1].frames_s == 0) or time.monotonic() > until

    train(tmp_path, settings, on_progress=said.append, stop=slept)
    assert metrics(tmp_path)[-1]["frames_s"] > 0
    assert (said[-2].state, said[-2].frames_s, said[-2].data_wait) == ("waiting", 0, 0)  # the last is the end


def test_frames_that_come_after_an_older_catalog_was_restored_are_new_ones(tmp_path: Path, settings: Settings) -> None:
    """The checkpoint, the snapshots and the shards know ids that the backup does not."""
    path, backup = tmp_path / "store", tmp_path / "catalog.db"
    small = replace(settings, store=replace(settings.store, shard_frames=32))
    grow(path, 60, small)
    with closing(sqlite3.connect(path / "catalog.db")) as now, closing(sqlite3.connect(backup)) as then:
        now.backup(then)
    grow(path, 60, small)
    train(path, small, until_caught_up=True)
    for file in path.glob("catalog.db*"):
        file.unlink()
    shutil.copy(backup, path / "catalog.db")
    train(path, small, until_caught_up=True)  # as it may be started first
    grow(path, 40, small)
    with Store.open(path) as store, store.reader() as reader:
        ids = store.catalog.live_ids()
        assert ids.tolist() == [*range(60), *range(120, 160)]
        assert reader.read(ids)[1].all()
    report = train(path, small, until_caught_up=True)
    assert (report.fed, report.lag) == (160, 0)
    buffered = load_checkpoint(path).tensors["buffer.ids"]
    assert not ((buffered >= 60) & (buffered < 120)).any()
    with Store.open(path) as store:
        assert check(store) == []


@pytest.mark.parametrize("instead", ["nothing", "an empty mount point", "another store"])
def test_a_trainer_whose_store_is_moved_ends_and_makes_nothing_where_it_was(
    tmp_path: Path, settings: Settings, instead: str
) -> None:
    path, moved = tmp_path / "store", tmp_path / "moved"
    grow(path, 60, settings)
    often = replace(settings, train=replace(settings.train, checkpoint_s=0.2, extend_s=1))
    said: list[TrainProgress] = []
    until = time.monotonic() + 60

    def stop() -> bool:
        if path.exists() and not moved.exists() and said and said[-1].state == "waiting" and said[-1].step > 0:
            path.rename(moved)
            if instead == "another store":
                grow(path, 2, settings)
            elif instead == "an empty mount point":
                path.mkdir()
        return time.monotonic() > until

    with pytest.raises(StoreError, match="moved or removed, or its drive is away"):
        train(path, often, on_progress=said.append, stop=stop)
    assert not (path / "checkpoints").exists()
    report = train(moved, settings, until_caught_up=True)
    assert report.fed == 60


def test_a_trainer_that_sleeps_saves_once(tmp_path: Path, settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """A month of sleep must not write one state every five minutes; what was forgotten meanwhile leaves it."""
    grow(tmp_path, 40, settings)
    source = grow(tmp_path, 20, settings)
    often = replace(settings, train=replace(settings.train, checkpoint_s=0.2))
    said: list[TrainProgress] = []
    counts: list[int] = []
    since, until = time.monotonic(), time.monotonic() + 60

    def stop() -> bool:
        nonlocal since
        now = time.monotonic()
        if not (said and said[-1].state == "waiting" and said[-1].step > 0):
            since = now
        if now - since > (2 if len(counts) % 2 else 1):  # it has had the time for one, then for several
            counts.append(sum(record.msg.startswith("checkpoint at") for record in caplog.records))
            if len(counts) == 2:
                with Store.open(tmp_path) as store, store.writer("test") as writer:
                    writer.forget(source)
            since = now
        return len(counts) == 4 or now > until

    with caplog.at_level("INFO"):
        train(tmp_path, often, on_progress=said.append, stop=stop)
    first = counts[0]
    assert counts == [first, first, first + 1, first + 1]
    assert load_checkpoint(tmp_path).tensors["buffer.ids"].max() < 40


def test_what_was_not_measured_yet_is_no_number(tmp_path: Path, settings: Settings) -> None:
    rare = replace(settings, train=replace(settings.train, log_steps=1000, idle_steps=0))
    measured = {"groups", "feature_std", "effective_rank"}
    grow(tmp_path, 60, settings)
    for missing in (measured, measured | {"loss", "instance", "cld", "lr"}):  # the second run takes no step
        train(tmp_path, rare, until_caught_up=True)
        now = status(tmp_path)
        assert {name for name in missing if now.trained[name] is None} == missing
        shown = {metric.name for metric in families(TRAIN, now.trained)}
        assert {f"cld_stream_{one.name}" for one in TRAIN if one.key in missing} & shown == set()
        assert (now.snapshot_info["feature_std"], now.snapshot_info["effective_rank"]) == (None, None)
    train(tmp_path, settings, steps=1)
    assert min(status(tmp_path).trained[name] for name in (*measured, "loss", "lr")) > 0


def test_on_a_growing_store_no_frame_is_fed_twice_or_skipped(tmp_path: Path, settings: Settings) -> None:
    grow(tmp_path, 30, settings)
    settings = replace(settings, buffer=replace(settings.buffer, capacity=400))

    def ingest() -> None:
        for _ in range(6):
            time.sleep(0.1)
            grow(tmp_path, 13, settings)

    writer = threading.Thread(target=ingest)
    writer.start()
    train(tmp_path, settings, steps=4)
    train(tmp_path, settings, steps=3)
    writer.join()
    report = train(tmp_path, settings, until_caught_up=True)
    assert (report.fed, report.lag, report.thinned) == (108, 0, 0)
    # the buffer is larger than the stream, so it holds every frame that was ever fed
    learner, _ = restore_learner(tmp_path)
    assert sorted(learner.buffer.ids[learner.buffer.ids >= 0].tolist()) == list(range(108))
    assert learner.buffer.order[learner.buffer.ids.argsort()[-108:]].tolist() == list(range(108))


@pytest.mark.parametrize(("policy", "shown"), [("reservoir", 3), ("minred", 3), ("minred", 1)])
def test_frames_that_are_not_shown_are_in_the_buffer_all_the_same(tmp_path: Path, policy: str, shown: int) -> None:
    settings = load_settings(
        overrides=[
            *SMALL,
            "buffer.capacity=400",
            f"buffer.policy={policy}",
            f"optim.shown={shown}",
            "train.idle_steps=0",
        ]
    )
    grow(tmp_path, 16, settings)
    assert train(tmp_path, settings, until_caught_up=True).steps == 1  # 8 are too few, 16 are enough
    grow(tmp_path, 160, settings)
    report = train(tmp_path, settings, until_caught_up=True)
    assert (report.fed, report.steps) == (176, 20)
    learner, _ = restore_learner(tmp_path)
    assert sorted(learner.buffer.ids[learner.buffer.ids >= 0].tolist()) == list(range(176))
    batches = [min(24, 8 + shown), *[min(24, 8 * n + shown) for n in range(2, 22)]]
    assert learner.cbp == 2 * sum(batches)  # a batch is full as soon as the buffer can fill it


def test_many_near_repeats_that_come_at_once_drive_nothing_else_out(tmp_path: Path) -> None:
    settings = load_settings(
        overrides=[
            *SMALL,
            "buffer.capacity=128",
            "buffer.policy=minred",
            "optim.fresh=200",
            "optim.shown=8",
            "train.idle_steps=0",
        ]
    )
    grow(tmp_path, 100, settings)
    train(tmp_path, settings, until_caught_up=True)
    grow(tmp_path, 600, settings, same=True)
    train(tmp_path, settings, until_caught_up=True)
    learner, _ = restore_learner(tmp_path)
    # half of the buffer is the 64 newest, of which nobody knows yet that they are all the same
    assert np.count_nonzero((learner.buffer.ids >= 0) & (learner.buffer.ids < 100)) > 50


def test_where_no_frame_may_be_replayed_again_training_ends_and_no_fresh_frame_is_lost(
    tmp_path: Path, settings: Settings
) -> None:
    grow(tmp_path, 41, settings)
    settings = replace(settings, buffer=replace(settings.buffer, capacity=400, max_replays=1))
    report = train(tmp_path, settings, steps=500)
    assert (report.fed, report.lag) == (41, 0)
    assert 2 < report.steps < 20
    learner, _ = restore_learner(tmp_path)
    assert len(learner.buffer) == 41
    assert learner.buffer.replays.max() == 1


def test_a_long_backlog_is_thinned_and_counted(tmp_path: Path, settings: Settings) -> None:
    grow(tmp_path, 160, settings)
    report = train(tmp_path, replace(settings, train=replace(settings.train, max_lag=40)), until_caught_up=True)
    assert (report.fed, report.thinned, report.lag) == (40, 120, 0)


def test_the_end_is_a_checkpoint_a_snapshot_and_metrics(tmp_path: Path, settings: Settings) -> None:
    grow(tmp_path, 60, settings)
    shown: list[TrainProgress] = []
    report = train(tmp_path, settings, until_caught_up=True, on_progress=shown.append)
    assert report.steps == report.step == list_checkpoints(tmp_path)[-1]
    assert report.snapshot is not None
    assert shown[-1].state == "done"
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, report.steps + 1))
    assert {"loss", "instance", "cld", "frames_s", "data_wait", "lag", "thinned", "fed", "buffered", "groups"} <= lines[
        -1
    ].keys()
    assert {"feature_std", "effective_rank", "lr", "cbp", "time_utc"} <= lines[-1].keys()
    assert list((tmp_path / "logs" / "tensorboard").iterdir())
    assert "published" in (tmp_path / "logs" / "train.log").read_text()
    with Store.open(tmp_path) as store:
        run = store.catalog.runs("train")[-1]
        assert run.outcome == "done"
        assert run.info["fed_to"] == 60
    # nothing new: the same encoder is not published again
    assert train(tmp_path, settings, until_caught_up=True).snapshot == report.snapshot


def test_idle_steps_are_bounded_by_the_fresh_frames_and_their_limit(tmp_path: Path, settings: Settings) -> None:
    grow(tmp_path, 60, settings)
    report = train(tmp_path, settings, until_caught_up=True)
    feeding = 8 - 1  # 8 batches of up to 8 frames, the first of which only fills the buffer
    assert report.steps == feeding + settings.train.idle_steps
    assert train(tmp_path, settings, until_caught_up=True).steps == 0


def test_the_word_to_stop_ends_a_sleeping_daemon_with_a_checkpoint(tmp_path: Path, settings: Settings) -> None:
    grow(tmp_path, 40, settings)
    until = time.monotonic() + 2.5
    before = time.process_time()
    report = train(tmp_path, settings, stop=lambda: time.monotonic() > until)
    assert report.lag == 0
    assert list_checkpoints(tmp_path)[-1] == report.step
    assert time.process_time() - before < 60
    assert train(tmp_path, settings, steps=5, stop=lambda: True).steps == 0


@pytest.mark.parametrize("frames", [0, 1])
def test_a_store_with_too_few_frames_is_waited_at_in_a_line_and_goes_on(
    frames: int, tmp_path: Path, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    grow(tmp_path / "s", frames, settings)
    report = train(tmp_path / "s", settings, until_caught_up=True)
    assert (report.steps, report.snapshot) == (0, None)  # an untrained encoder is not published
    assert not [r for r in caplog.records if r.levelname == "WARNING"]
    states: set[str] = set()

    def more(progress: TrainProgress) -> None:
        if "waiting" in states and progress.state == "waiting" and progress.committed == frames:
            grow(tmp_path / "s", 30, settings)
        states.add(progress.state)

    assert train(tmp_path / "s", settings, steps=2, on_progress=more).steps == 2
    warnings = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert len(warnings) == 1
    assert f"waiting for more frames; a step needs at least 2, and {frames} are there" in warnings[0]


@pytest.mark.parametrize("change", ["encoder.width=0.25", "buffer.capacity=49", "encoder.crop=24"])
def test_a_changed_setting_that_breaks_the_state_is_named(tmp_path: Path, settings: Settings, change: str) -> None:
    grow(tmp_path, 30, settings)
    train(tmp_path, settings, steps=1)
    with pytest.raises(UsageError, match=change.partition("=")[0]):
        train(tmp_path, load_settings(overrides=[*SMALL, change]), steps=1)
    assert train(tmp_path, load_settings(overrides=[*SMALL, "optim.lr=0.01"]), steps=1).steps == 1


def test_what_was_trained_goes_on_with_its_own_settings_where_the_recipe_has_become_another(
    tmp_path: Path, settings: Settings
) -> None:
    """As after an upgrade, or on a machine with another device."""
    grow(tmp_path, 40, settings)
    before = train_settings("cpu", overrides=[*SMALL, "encoder.head=normmlp"], store_path=tmp_path)
    train(tmp_path, before, recipe="stream", steps=2)
    free = [item for item in SMALL if item.partition(".")[0] in ("train", "optim", "publish")]
    now = train_settings("cuda", overrides=free, store_path=tmp_path)
    assert (now.encoder.head, now.encoder.width, now.encoder.crop) == ("normmlp", 0.125, 16)
    assert now.buffer.policy == "minred"
    assert now.guard == GuardSettings(), "the recipe's lines are for its own head"
    assert train_settings("cpu").guard.hold > GuardSettings().hold
    assert train(tmp_path, now, recipe="stream", steps=2).step == 4
    told = train_settings("cpu", overrides=[*free, "encoder.head=mlp"], store_path=tmp_path)
    with pytest.raises(UsageError, match=r"trained with encoder\.head = normmlp, now mlp is asked for"):
        train(tmp_path, told, steps=1)
    assert train_settings("cpu", recipe="cpu", store_path=tmp_path).encoder.head == "linear", "named by the user"
    train(tmp_path, now, recipe="mine", steps=1)
    assert train_settings("cpu", store_path=tmp_path).encoder.head == "bnlinear", "another recipe was forgotten"


def test_a_second_trainer_is_refused(tmp_path: Path, settings: Settings) -> None:
    grow(tmp_path, 30, settings)
    with Store.open(tmp_path) as store, store.trainer_lock(), pytest.raises(LockHeldError, match="trainer"):
        train(tmp_path, settings, steps=1)


def test_divergence_brings_the_good_state_back_once_and_then_stops_for_good(tmp_path: Path, settings: Settings) -> None:
    grow(tmp_path, 170, settings)
    settings = replace(settings, train=replace(settings.train, bad_steps=2))
    train(tmp_path, settings, steps=6)
    good = pinned_checkpoint(tmp_path)
    wild = replace(settings, optim=replace(settings.optim, lr=1e30))
    with pytest.raises(GuardStopError, match=r"Lower optim\.lr"):
        train(tmp_path, wild, until_caught_up=True)
    assert pinned_checkpoint(tmp_path) == good
    after = load_checkpoint(tmp_path)
    assert after.meta["rescue"]["rescues"] == 2  # once to go on, once for whoever goes on after the end
    assert after.meta["learner"]["rate"] == 0.5
    assert after.meta["learner"]["salt"] == 2
    assert after.meta["feed"]["cursor"] > load_checkpoint(tmp_path, good).meta["feed"]["cursor"]
    assert all(np.isfinite(a).all() for a in after.tensors.values())
    report = train(tmp_path, settings, until_caught_up=True)  # a sane rate goes on from there
    assert report.lag == 0


def test_what_was_forgotten_does_not_come_back_with_the_good_state(tmp_path: Path, settings: Settings) -> None:
    source = grow(tmp_path, 24, settings)
    grow(tmp_path, 150, settings)
    train(tmp_path, settings, steps=6)
    good = load_checkpoint(tmp_path, pinned_checkpoint(tmp_path)).tensors["buffer.ids"]
    assert ((good >= 0) & (good < 24)).any()
    with Store.open(tmp_path) as store, store.writer("forget") as writer:
        writer.forget(source)
    settings = replace(settings, train=replace(settings.train, bad_steps=2))
    wild = replace(settings, optim=replace(settings.optim, lr=1e30))
    with pytest.raises(GuardStopError):
        train(tmp_path, wild, until_caught_up=True)
    held = load_checkpoint(tmp_path).tensors["buffer.ids"]
    assert held.max() >= 24
    assert not ((held >= 0) & (held < 24)).any()


def test_a_forgotten_source_leaves_buffer_and_cache(tmp_path: Path, settings: Settings) -> None:
    grow(tmp_path, 24, settings)
    source = grow(tmp_path, 24, settings)
    train(tmp_path, settings, until_caught_up=True)
    with Store.open(tmp_path) as store, store.writer("forget") as writer:
        assert writer.forget(source) == 24
    grow(tmp_path, 24, settings)
    report = train(tmp_path, settings, until_caught_up=True)
    assert report.lag == 0
    learner, _ = restore_learner(tmp_path)
    held = learner.buffer.ids[learner.buffer.ids >= 0]
    assert not ((held >= 24) & (held < 48)).any()
    assert (held >= 48).sum() == 24


def test_what_is_forgotten_as_training_ends_is_not_in_the_last_checkpoint(tmp_path: Path, settings: Settings) -> None:
    source = grow(tmp_path, 24, settings)
    grow(tmp_path, 24, settings)
    told: list[TrainProgress] = []

    def stop() -> bool:
        ends = bool(told) and told[-1].fed == 48
        if ends:
            with Store.open(tmp_path) as store, store.writer("forget") as writer, suppress(StoreNotFoundError):
                writer.forget(source)
        return ends

    train(tmp_path, settings, on_progress=told.append, stop=stop)
    held = restore_learner(tmp_path)[0].buffer.ids
    assert held.max() >= 24
    assert not ((held >= 0) & (held < 24)).any()


@pytest.mark.parametrize("budget_mb", [1, 0])
def test_the_cache_gives_what_the_store_holds(tmp_path: Path, settings: Settings, budget_mb: int) -> None:
    grow(tmp_path, 40, settings)
    with Store.open(tmp_path) as store, store.reader() as reader:
        cache = PixelCache(store, reader, 40, budget_mb, torch.device("cpu"))
        assert cache.decoded == (budget_mb == 1)
        ids: Ids = np.arange(39, -1, -1)
        slots: Ids = np.arange(40)
        expected, _ = reader.read(ids)
        for _ in range(2):
            pixels, aspect = cache.get(ids, slots)
            assert (pixels.numpy() == expected).all()
            assert (aspect == 1.5).all()
        assert cache.misses == 40
        swapped = ids[::-1].copy()
        assert (cache.get(swapped, slots)[0].numpy() == expected[::-1]).all()
        with pytest.raises(GoneError, match="40"):
            cache.get(np.array([3, 40]), np.array([0, 1]))


def test_what_is_read_ahead_does_not_move_the_feed(tmp_path: Path, settings: Settings) -> None:
    grow(tmp_path, 30, settings)
    feed = Feed(max_lag=1000)
    with Store.open(tmp_path) as store, store.reader() as reader:
        fresh = FreshFrames(store, reader, feed, 8, 0.1, 0.02)
        try:
            batches = [fresh.take(5) for _ in range(4)]
            assert feed.cursor == 0
            assert [len(b.ids) for b in batches if b] == [8, 8, 8, 6]
            assert [b.feed.cursor for b in batches if b] == [8, 16, 24, 30]
            assert fresh.take(0.1) is None
        finally:
            fresh.close()
