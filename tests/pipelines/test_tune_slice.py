from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch

from cld_stream.config import AugmentSettings, Settings, load_settings
from cld_stream.errors import UsageError
from cld_stream.pipelines.tune_slice import ASKED, BLOCK, measure, take_slice, train_on
from cld_stream.storage.schema import NewFrame, Outcome
from cld_stream.storage.store import Store

SMALL = (
    "store.size=24", "encoder.width=0.125", "encoder.crop=16", "encoder.feature_dim=16", "loss.groups=8",
    "optim.batch=16", "optim.warmup_steps=5",
)  # fmt: skip


@pytest.fixture
def settings() -> Settings:
    return load_settings(overrides=SMALL)


def footage(path: Path, sources: int, frames: int, fit: str = "stretch") -> Path:
    """A store of scenes: coarse patterns of a source's own colours that move a little from frame to frame."""
    settings = load_settings(overrides=[*SMALL, f"store.fit={fit}"])
    rng = np.random.default_rng(0)
    with Store.create(path, settings.store) as store, store.writer("test") as writer:
        for number in range(sources):
            source = writer.add_source(
                kind="video", path=f"/v{number}", device=0, inode=number, size=1, mtime_ns=0, fingerprint=str(number)
            )
            scene = np.kron(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8), np.ones((6, 6, 1), np.uint8))
            moved = (np.ascontiguousarray(np.roll(scene, (t // 2, t), (0, 1))) for t in range(frames))
            writer.append(
                source, [NewFrame(simplejpeg.encode_jpeg(p), t / 2, None, 0, 1.5) for t, p in enumerate(moved)], None
            )
            writer.finish(source, Outcome.ADDED)
        writer.commit()
    return path


def test_a_slice_is_blocks_in_a_row_spread_over_the_store(tmp_path: Path) -> None:
    with Store.open(footage(tmp_path / "s", 10, 52)) as store:
        data = take_slice(store, 160, "cpu")
        whole = take_slice(store, 10_000, "cpu")
    assert len(data.ids) == 160
    blocks = data.ids.reshape(-1, BLOCK)
    assert (np.diff(blocks, axis=1) == 1).all()
    assert (blocks[0, 0], blocks[-1, 0]) == (0, 512)
    assert (np.unique(np.diff(blocks[:, 0])) <= 32).all()
    assert data.asked.reshape(-1, BLOCK).all(1).sum() == data.asked.sum() / BLOCK == 160 / BLOCK / ASKED
    assert len(whole.ids) == 520


def test_a_run_never_crosses_a_source_or_a_block(tmp_path: Path) -> None:
    with Store.open(footage(tmp_path / "s", 10, 52)) as store:
        data = take_slice(store, 520, "cpu")
        source = store.catalog.rows(data.ids).source
    for run in np.unique(data.run):
        rows = np.flatnonzero(data.run == run)
        assert len(np.unique(source[rows])) == len(np.unique(rows // BLOCK)) == len(np.unique(data.asked[rows])) == 1
    starts = np.flatnonzero(np.diff(data.run))
    assert ((np.diff(source) != 0) <= (np.diff(data.run) != 0)).all()
    assert len(starts) == 520 // BLOCK - 1 + (np.flatnonzero(np.diff(source)) % BLOCK != BLOCK - 1).sum()


def test_a_slice_has_the_pixels_and_the_shapes_of_its_frames(tmp_path: Path) -> None:
    with Store.open(footage(tmp_path / "s", 5, 40)) as store, store.reader() as reader:
        data = take_slice(store, 200, "cpu")
        pixels, _ = reader.read(data.ids)
    assert torch.equal(data.pixels, torch.from_numpy(pixels))
    assert (data.aspect == 1.5).all()
    with Store.open(footage(tmp_path / "cropped", 5, 40, fit="crop")) as store:
        assert (take_slice(store, 200, "cpu").aspect == 1).all()


def test_forgotten_frames_are_not_in_a_slice(tmp_path: Path) -> None:
    from cld_stream.pipelines.forget import forget

    path = footage(tmp_path / "s", 5, 40)
    forget(path, "/v2")
    with Store.open(path) as store:
        assert not np.isin(take_slice(store, 200, "cpu").ids, np.arange(80, 120)).any()


def test_too_few_frames_are_refused_with_their_number(tmp_path: Path) -> None:
    with Store.open(footage(tmp_path / "s", 1, 100)) as store, pytest.raises(UsageError, match=r"128.*100.*Ingest"):
        take_slice(store, 4096, "cpu")


def test_frames_that_ask_are_never_trained_on(tmp_path: Path, settings: Settings) -> None:
    with Store.open(footage(tmp_path / "s", 5, 40)) as store:
        data = take_slice(store, 200, "cpu")
    learner = train_on(settings, data, 3, "cpu")
    assert learner is not None
    assert set(learner.buffer.ids.tolist()) == set(np.flatnonzero(~data.asked).tolist())
    assert learner.updates == 3


def test_a_run_ends_when_it_is_told_to(tmp_path: Path, settings: Settings) -> None:
    with Store.open(footage(tmp_path / "s", 5, 40)) as store:
        data = take_slice(store, 200, "cpu")
    seen: list[int] = []
    assert train_on(settings, data, 10, "cpu", lambda step: seen.append(step) or step == 2) is None  # type: ignore[func-returns-value]
    assert seen == [0, 1, 2]


def test_the_same_learner_gives_the_same_answers(tmp_path: Path, settings: Settings) -> None:
    with Store.open(footage(tmp_path / "s", 5, 40)) as store:
        data = take_slice(store, 200, "cpu")
    learner = train_on(settings, data, 2, "cpu")
    assert learner is not None
    one, other = (measure(learner, data, settings.augment) for _ in range(2))
    assert np.array_equal(one.view, other.view)
    assert np.array_equal(one.time, other.time)
    assert len(one.view) == len(one.view_run) == data.asked.sum()
    assert ((one.view > 0) & (one.view <= 1)).all()


def test_views_that_change_nothing_find_each_other_among_different_frames(tmp_path: Path, settings: Settings) -> None:
    """The rank of the other view is 1 where both views are the same picture and no other frame is."""
    still = AugmentSettings(scale_min=1, flip=0, jitter=0, grey=0)
    with Store.open(footage(tmp_path / "s", 16, 8, fit="crop")) as store:
        data = take_slice(store, 128, "cpu")
    learner = train_on(settings, data, 2, "cpu")
    assert learner is not None
    assert measure(learner, data, still).view.mean() > 0.95
    assert measure(learner, data, settings.augment).view.mean() < 0.9


def test_the_frame_half_a_run_later_is_the_one_to_find(tmp_path: Path, settings: Settings) -> None:
    with Store.open(footage(tmp_path / "s", 16, 8)) as store:
        data = take_slice(store, 128, "cpu")
    learner = train_on(settings, data, 1, "cpu")
    assert learner is not None
    found = measure(learner, data, settings.augment)
    x_ND, run = found.centre_ND.double().numpy(), data.run[data.asked]
    expected = []
    for row in range(len(run)):
        if row % BLOCK < BLOCK // 2:
            similar = x_ND @ x_ND[row]
            expected.append(1 / (1 + (similar[run != run[row]] >= similar[row + BLOCK // 2]).sum()))
    assert np.allclose(found.time, expected)


def test_lone_photos_have_views_but_no_later_frame(tmp_path: Path, settings: Settings) -> None:
    with Store.open(footage(tmp_path / "s", 130, 1)) as store:
        data = take_slice(store, 1000, "cpu")
    learner = train_on(settings, data, 1, "cpu")
    assert learner is not None
    found = measure(learner, data, settings.augment)
    assert (len(found.view), len(found.time)) == (32, 0)
