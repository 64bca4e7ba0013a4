"""`cld_stream.open`, and the page that documents it."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cld_stream
from cld_stream.errors import StoreNotFoundError, UsageError
from cld_stream.pipelines.extend import extend
from tests.pipelines.published import Published, add_video, published, scene

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return published(tmp_path_factory.mktemp("api") / "s")


def test_frames_come_as_arrays_rows_and_pictures(made: Published) -> None:
    with cld_stream.open(made.store.path) as store:
        assert len(store.frames) == 36
        assert store.frames.ids.tolist() == list(range(36))
        assert store.frames[[3, 1]].shape == (2, 48, 48, 3)
        np.testing.assert_array_equal(store.frames[3], store.frames[[3, 1]][0])
        assert store.frames.rows([13]).time_s.tolist() == [0.5]
        assert len(store.frames.rows()) == 36
        assert store.frames.picture(3).size == (72, 48)
        assert store.sources[0].path == "/media/day0/clip0.mp4"
        with pytest.raises(StoreNotFoundError, match="no frame 99"):
            store.frames[[3, 99]]
        with pytest.raises(StoreNotFoundError, match="no frame 99"):
            store.frames.picture(99)
        assert repr(store).endswith("36 frames, 1 snapshots>")


def test_features_come_in_the_order_asked(made: Published) -> None:
    with cld_stream.open(str(made.store.path)) as store:
        snapshot = store.snapshot()
        assert snapshot.id == store.snapshots[0].id
        assert snapshot.features().shape == (36, 16)
        for space in snapshot.spaces:
            everything = snapshot.features(space=space)
            np.testing.assert_array_equal(snapshot.features([30, 2], space), everything[[30, 2]])
        with pytest.raises(StoreNotFoundError, match="frame 36"):
            snapshot.features([36])
        with pytest.raises(UsageError, match="space 'x'"):
            snapshot.features(space="x")
        assert snapshot.groups()[1].shape == (36,)


def test_frame_vector_picture_array_and_file_can_be_asked(made: Published, tmp_path: Path) -> None:
    with cld_stream.open(made.store.path) as store:
        snapshot = store.snapshot()
        by_id = snapshot.query(17, 5)
        assert by_id[0].frame == 17
        assert snapshot.query(snapshot.features([17])[0], 5) == by_id
        assert snapshot.query(np.int64(17), 5) == by_id
        picture = store.frames.picture(17)
        picture.save(tmp_path / "p.png")
        by_picture = snapshot.query(picture, 3)
        assert by_picture[0].similarity > 0.98
        assert by_picture[0].source_id == 2
        assert snapshot.query(np.asarray(picture), 3) == by_picture
        assert snapshot.query(tmp_path / "p.png", 3) == by_picture
        assert len(snapshot.query(17, 36, distinct_s=100)) == 3
        with pytest.raises(UsageError, match="uint8"):
            snapshot.query(np.zeros((4, 4, 3)))
        for other in ([0.1, 0.2], 17.0, None):
            with pytest.raises(UsageError, match="frame's id"):
                snapshot.query(other)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="k must"):
            snapshot.query(17, 0)
    assert isinstance(picture, Image.Image)


def test_an_open_snapshot_sees_what_is_added_and_what_is_forgotten(tmp_path: Path) -> None:
    made = published(tmp_path / "s", videos=1)
    with cld_stream.open(made.store.path) as store:
        snapshot = store.snapshot()
        assert len(snapshot.query(3, 100)) == 12
        add_video(made.store, "/media/new.mp4", 9)
        assert extend(made.store) == 12
        assert len(snapshot.ids) == len(snapshot.query(3, 100)) == 24
        with made.store.writer("test") as writer:
            writer.forget(1)
        assert len(snapshot.query(15, 100)) == 12
        with pytest.raises(StoreNotFoundError, match="forgotten"):
            snapshot.query(3)


def test_every_example_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = published(tmp_path / "cld-store")
    made.store.close()
    Image.fromarray(scene(1, 0)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)  # the examples build on each other


def test_no_store_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="there is no store here"):
        cld_stream.open(tmp_path)
