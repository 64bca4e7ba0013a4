"""Questions in every form, their answers, and every mistake in one line."""

import os
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cld_stream.errors import CldError, StoreNotFoundError, UsageError
from cld_stream.media.frames import encode_frame
from cld_stream.pipelines.extend import extend
from cld_stream.pipelines.forget import forget
from cld_stream.pipelines.neighbours import Searcher
from cld_stream.pipelines.publish import publish
from cld_stream.pipelines.query import query
from cld_stream.pipelines.sheet import as_shown
from tests.pipelines.published import ENCODER, NOON, Published, add_video, published, scene, small_store, weights


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Published:
    """Three clips of twelve frames; nobody may change it."""
    return published(tmp_path_factory.mktemp("query") / "s")


def exact(made: Published, vector: np.ndarray, space: str = "instance") -> np.ndarray:
    features = made.snapshot.features(space)[1].astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features @ (vector.astype(np.float32) / np.linalg.norm(vector.astype(np.float32))))


def test_a_source_that_is_forgotten_while_an_answer_is_made_is_not_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = published(tmp_path / "s")
    known = made.store.catalog.known

    def known_and_then_forgotten(ids: np.ndarray) -> Any:
        found = known(ids)
        monkeypatch.undo()
        forget(made.store.path, "clip1.mp4")
        return found

    monkeypatch.setattr(made.store.catalog, "known", known_and_then_forgotten)
    hits = Searcher(made.store, made.snapshot).find(made.snapshot.features("instance")[1][17], 5)
    assert len(hits) == 5
    assert not {hit.frame for hit in hits} & set(range(12, 24))


@pytest.mark.parametrize("space", ["instance", "group", "backbone"])
def test_a_frame_finds_itself_and_then_what_numpy_finds(made: Published, space: str) -> None:
    answer = query(made.store.path, frame=17, k=36, space=space)
    products = exact(made, made.snapshot.features(space)[1][17], space)
    assert sorted(h.frame for h in answer.hits) == list(range(36))
    assert [h.rank for h in answer.hits] == list(range(1, 37))
    np.testing.assert_allclose([h.similarity for h in answer.hits], -np.sort(-products), atol=2e-3)
    np.testing.assert_allclose([h.similarity for h in answer.hits], products[[h.frame for h in answer.hits]], atol=2e-3)
    assert answer.hits[0].similarity == pytest.approx(1, abs=2e-3)


def test_a_moment_of_a_source_is_its_nearest_frame(made: Published) -> None:
    answer = query(made.store.path, source="clip1.mp4", at=2.6, k=1, distinct_s=1)
    (hit,) = answer.hits
    assert (hit.frame, hit.source, hit.time_s) == (17, "/media/day1/clip1.mp4", 2.5)
    assert hit.wall_utc == NOON + 102.5
    assert answer.question.title == "frame 17 of clip1.mp4 at 2.5 s"


def test_a_vector_file_is_asked_as_it_is(made: Published, tmp_path: Path) -> None:
    vector = np.random.default_rng(0).standard_normal((1, 16))
    np.save(tmp_path / "v.npy", vector)
    answer = query(made.store.path, vector=tmp_path / "v.npy", k=5)
    products = exact(made, vector[0])
    np.testing.assert_allclose([h.similarity for h in answer.hits], -np.sort(-products)[:5], atol=1e-3)
    assert answer.as_dict()["hits"][0]["frame"] == int(products.argmax())


def test_the_picture_of_a_stored_frame_finds_that_frame(made: Published, tmp_path: Path) -> None:
    with made.store.reader() as reader:
        jpeg = reader.jpegs([29])[0]
    as_shown(jpeg, 1.5, "stretch").resize((720, 480)).save(tmp_path / "p.png")
    answer = query(made.store.path, picture=tmp_path / "p.png", k=3)
    assert answer.hits[0].source == "/media/day0/clip2.mp4"
    assert answer.hits[0].similarity > 0.99
    assert answer.question.aspect == 1.5


def test_an_upright_photo_and_its_turned_twin_are_the_same_question(made: Published, tmp_path: Path) -> None:
    picture = Image.fromarray(scene(5, 0)).resize((300, 200))
    picture.save(tmp_path / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.rotate(90, expand=True).save(tmp_path / "b.png", exif=exif)
    a, b = (query(made.store.path, picture=tmp_path / name, k=4) for name in ("a.png", "b.png"))
    assert [(h.frame, h.similarity) for h in a.hits] == [(h.frame, h.similarity) for h in b.hits]


def test_distinct_keeps_one_hit_a_moment(made: Published) -> None:
    everything = query(made.store.path, frame=17, k=36).hits
    for gap in (0.5, 2.0, 1000.0):
        kept: list[Any] = []
        for hit in everything:
            if not any(hit.source_id == o.source_id and abs(hit.time_s - o.time_s) <= gap for o in kept):
                kept.append(hit)
        assert [h.frame for h in query(made.store.path, frame=17, k=36, distinct_s=gap).hits] == [h.frame for h in kept]


def test_filters_keep_only_what_fits(made: Published) -> None:
    path = made.store.path
    day0 = query(path, frame=17, k=36, under="/media/day0").hits
    assert {h.source for h in day0} == {"/media/day0/clip0.mp4", "/media/day0/clip2.mp4"}
    assert len(day0) == 24
    assert len(query(path, frame=17, k=36, under="/media/day0/clip2.mp4").hits) == 12
    late = query(path, frame=17, k=36, after=NOON + 101, before=NOON + 201).hits
    assert sorted(h.frame for h in late) == [*range(14, 24), 24, 25]
    assert query(path, frame=17, k=36, after="2100-01-01").hits == []
    assert len(query(path, frame=17, k=36, before="2100-01-01T00:00:00+02:00", under="/media").hits) == 36


def test_a_path_may_be_given_from_here(made: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    path, here = made.store.path, "../" * 12
    monkeypatch.chdir(path.parent)
    assert len(query(path, frame=17, k=36, under=f"{here}media/./day0").hits) == 24
    assert len(query(path, frame=17, k=36, under="/media/day1/../day0/clip2.mp4").hits) == 12
    assert query(path, source=f"{here}media/day1/clip1.mp4", at=0, k=1).hits[0].source == "/media/day1/clip1.mp4"


def test_a_camera_is_asked_by_its_address_with_or_without_password(tmp_path: Path) -> None:
    store = small_store(tmp_path / "s", videos=1)
    add_video(store, "rtsp://cam/stream1", 5)
    made = publish(store, ENCODER, weights(), step=7)
    assert made is not None
    for given in ("rtsp://me:hush@cam/stream1", "rtsp://cam/stream1"):
        assert query(store.path, source=given, at=1.0, under=given, k=1).hits[0].source == "rtsp://cam/stream1"
    for elsewhere in ({"source": "rtsp://me:hush@elsewhere/", "at": 1.0}, {"frame": 1, "under": "rtsp://me:hush@e/"}):
        with pytest.raises(CldError) as caught:
            query(store.path, **elsewhere)  # type: ignore[arg-type]
        assert "hush" not in str(caught.value)


def test_an_open_searcher_sees_new_and_forgotten_frames(tmp_path: Path) -> None:
    made = published(tmp_path / "s")
    searcher = Searcher(made.store, made.snapshot)
    vector = made.snapshot.features("instance")[1][13]
    assert searcher.find(vector, 1)[0].frame == 13
    add_video(made.store, "/media/twin.mp4", 1)
    extend(made.store)
    assert {h.frame for h in searcher.find(vector, 2)} == {13, 37}
    with made.store.writer("test") as writer:
        writer.forget(2)
    hits = searcher.find(vector, 36)
    assert hits[0].frame == 37
    assert not {h.frame for h in hits} & set(range(12, 24))
    assert len(hits) == 36


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
def test_pictures_are_shown_in_their_true_shape(fit: Any) -> None:
    wide = np.zeros((200, 400, 3), np.uint8)
    wide[50:150, 150:250] = 255  # a square
    shown = np.asarray(as_shown(encode_frame(wide, 2.0, fit, 160, 95), 2.0, fit).convert("L")) > 128
    square = np.argwhere(shown)
    height, width = square.max(0) - square.min(0) + 1
    assert width / height == pytest.approx(1, abs=0.05)
    assert shown.shape[1] / shown.shape[0] == (1 if fit == "crop" else 2)


def test_the_sheet_and_the_page_show_every_neighbour(tmp_path: Path) -> None:
    made = published(tmp_path / "s", videos=1)
    add_video(made.store, '/media/<b>&"odd" \u202e\n.mp4', 5)
    extend(made.store)
    query(made.store.path, frame=15, k=7, sheet=tmp_path / "a.png", html=tmp_path / "a.html")
    with Image.open(tmp_path / "a.png") as sheet:
        assert sheet.width > 1000
        assert len(set(sheet.convert("L").tobytes())) > 100
    page = (tmp_path / "a.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 8
    assert page.count("<figure>") == 7
    assert "<b>&" not in page
    assert "&lt;b&gt;&amp;" in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    query(made.store.path, frame=15, after="2100-01-01", sheet=tmp_path / "b.png", html=tmp_path / "b.html")
    assert "No stored frame" in (tmp_path / "b.html").read_text()


def text_file(folder: Path) -> Path:
    (folder / "not.jpg").write_text("hello")
    return folder / "not.jpg"


def bomb(folder: Path) -> Path:
    """A picture of a few bytes that says it has 400 million pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    data += struct.pack(">I", 4) + b"IDAT" + bytes(8)
    (folder / "bomb.png").write_bytes(data)
    return folder / "bomb.png"


def cut(folder: Path) -> Path:
    Image.fromarray(scene(0, 0)).save(folder / "cut.jpg")
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:200])
    return folder / "cut.jpg"


def empty(folder: Path) -> Path:
    (folder / "empty.png").touch()
    return folder / "empty.png"


def npy(folder: Path, values: Any) -> Path:
    np.save(folder / "v.npy", values)
    return folder / "v.npy"


def damaged(folder: Path, data: bytes) -> Path:
    (folder / "v.npy").write_bytes(data)
    return folder / "v.npy"


MISTAKES: dict[str, tuple[Callable[[Path], dict[str, Any]], type[CldError], str]] = {
    "nothing": (lambda p: {}, UsageError, "exactly one of PICTURE"),
    "two": (lambda p: {"frame": 1, "vector": p}, UsageError, "got --frame and --vector"),
    "no time": (lambda p: {"source": "clip1.mp4"}, UsageError, "belong together"),
    "no source": (lambda p: {"frame": 1, "at": 1.0}, UsageError, "belong together"),
    "k": (lambda p: {"frame": 1, "k": 0}, UsageError, "-k must be at least 1"),
    "unknown frame": (lambda p: {"frame": 99}, StoreNotFoundError, "no frame 99; ids run from 0 to 35"),
    "unknown source": (lambda p: {"source": "x.mp4", "at": 1.0}, StoreNotFoundError, "no source 'x.mp4'"),
    "unknown snapshot": (lambda p: {"frame": 1, "snapshot": "x"}, StoreNotFoundError, "no snapshot 'x'"),
    "unknown space": (lambda p: {"frame": 1, "space": "x"}, UsageError, "instance, group, backbone"),
    "no file": (lambda p: {"picture": p / "no.jpg"}, UsageError, "no such file"),
    "a folder": (lambda p: {"picture": p}, UsageError, "folder"),
    "no picture": (lambda p: {"picture": text_file(p)}, UsageError, "not a picture"),
    "too large": (lambda p: {"picture": bomb(p)}, UsageError, "more than 250,000,000 pixels"),
    "cut off": (lambda p: {"picture": cut(p)}, UsageError, "cut off"),
    "empty": (lambda p: {"picture": empty(p)}, UsageError, "empty"),
    "no vector file": (lambda p: {"vector": p / "no.npy"}, UsageError, "no such file"),
    "not numpy": (lambda p: {"vector": text_file(p)}, UsageError, "not a .npy file"),
    "a matrix": (lambda p: {"vector": npy(p, np.ones((2, 16)))}, UsageError, r"expected one vector.*\(2, 16\)"),
    "words": (lambda p: {"vector": npy(p, np.array(["a"]))}, UsageError, "expected one vector"),
    "pickles": (lambda p: {"vector": npy(p, np.array([{}]))}, UsageError, "not a .npy file"),
    "half an archive": (lambda p: {"vector": damaged(p, b"PK\3\4")}, UsageError, "not a .npy file"),
    "a damaged header": (
        lambda p: {"vector": damaged(p, b"\x93NUMPY\1\0\x10\0{'a':(1,2,3,1:2}\n")},
        UsageError,
        "not a .npy file",
    ),
    "width": (lambda p: {"vector": npy(p, np.ones(9))}, UsageError, "has 9 numbers; .* has 16"),
    "zero": (lambda p: {"vector": npy(p, np.zeros(16))}, UsageError, "points nowhere"),
    "large": (lambda p: {"vector": npy(p, np.full(16, 1e300))}, UsageError, "points nowhere"),
    "nan": (lambda p: {"vector": npy(p, np.full(16, np.nan))}, UsageError, "points nowhere"),
    "gap": (lambda p: {"frame": 1, "distinct_s": -1.0}, UsageError, "--distinct-s"),
    "under": (lambda p: {"frame": 1, "under": "/elsewhere"}, UsageError, "no source of .* lies there"),
    "time": (lambda p: {"frame": 1, "after": "noon"}, UsageError, "--after noon: not a time"),
    "times": (lambda p: {"frame": 1, "after": "2024-02-01", "before": "2024-01-01"}, UsageError, "Swap"),
    "sheet": (lambda p: {"frame": 1, "sheet": p / "no" / "s.png"}, UsageError, "cannot write"),
    "page": (lambda p: {"frame": 1, "html": p / "no" / "s.html"}, UsageError, "cannot write"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_clear_line(made: Published, tmp_path: Path, name: str) -> None:
    arguments, kind, words = MISTAKES[name]
    with pytest.raises(kind, match=words) as caught:
        query(made.store.path, **arguments(tmp_path))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_an_answer_takes_the_place_of_no_link_and_no_pipe(made: Published, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("file")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    query(made.store.path, frame=0, k=1, sheet=tmp_path / "link", html=tmp_path / "pipe")
    assert os.read(reader, 15) == b"<!doctype html>"
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes().startswith(b"\x89PNG")


def test_a_name_below_a_file_is_told(made: Published, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"--sheet .*Not a directory"):
        query(made.store.path, frame=0, k=1, sheet=tmp_path / "file" / "sheet.png")


def test_before_anything_is_published_the_next_step_is_named(tmp_path: Path) -> None:
    small_store(tmp_path / "s").close()
    with pytest.raises(StoreNotFoundError, match="cld-stream train"):
        query(tmp_path / "s", frame=1)
    with pytest.raises(StoreNotFoundError, match="there is no store here"):
        query(tmp_path / "none", frame=1)


def test_forgotten_and_not_yet_embedded_frames_are_told_apart(tmp_path: Path) -> None:
    made = published(tmp_path / "s", videos=1)
    add_video(made.store, "/media/new.mp4", 9)
    with pytest.raises(StoreNotFoundError, match="frame 15 has no features in this snapshot yet"):
        query(made.store.path, frame=15)
    with made.store.writer("test") as writer:
        writer.forget(1)
    with pytest.raises(StoreNotFoundError, match="frame 3 was forgotten"):
        query(made.store.path, frame=3)


def test_a_damaged_feature_file_is_named_and_never_answered_from(tmp_path: Path) -> None:
    made = published(tmp_path / "s", videos=1)
    chunk = made.snapshot.segments[0].path / "instance" / "c" / "0" / "0"
    data = bytearray(chunk.read_bytes())
    data[40] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(CldError, match="wrong checksum"):
        query(made.store.path, frame=3)
    chunk.unlink()
    with pytest.raises(CldError, match="is missing"):
        query(made.store.path, frame=3)


def test_a_picture_is_decoded_in_a_worker_alone_and_none_is_left(made: Published, tmp_path: Path) -> None:
    Image.fromarray(scene(0, 0)).save(tmp_path / "p.png")
    Image.fromarray(scene(0, 0)).save(tmp_path / "p.gif", save_all=True, append_images=[Image.fromarray(scene(1, 0))])
    code = (
        "import sys, cld_stream, psutil; from pathlib import Path; from cld_stream.pipelines.query import query; "
        f"store, folder = Path({str(made.store.path)!r}), Path({str(tmp_path)!r}); "
        "hits = query(store, picture=folder / 'p.gif', k=1).hits; "
        "assert [h.frame for h in hits] == [h.frame for h in query(store, picture=folder / 'p.png', k=1).hits]; "
        "assert cld_stream.open(store).snapshot().query(folder / 'p.png', k=1)[0].frame == hits[0].frame; "
        "looked = {'cld_stream.media.photo', 'cld_stream.media.pictures', 'pi_heif'} & set(sys.modules); "
        "assert not looked, looked; assert not psutil.Process().children()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_vector_query_never_imports_torch(made: Published, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from cld_stream.pipelines.query import query; "
        f"query(Path({str(made.store.path)!r}), vector=Path({str(npy(tmp_path, np.ones(16)))!r}), distinct_s=1, "
        f"sheet=Path({str(tmp_path / 's.png')!r})); "
        "print([m for m in ('torch', 'decord', 'av', 'zarr') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_a_read_only_opening_leaves_the_store_as_it_was(made: Published) -> None:
    before = {p: p.stat().st_mtime_ns for p in made.store.path.rglob("*") if p.is_file() and "catalog" not in p.name}
    query(made.store.path, frame=3)
    after = {p: p.stat().st_mtime_ns for p in made.store.path.rglob("*") if p.is_file() and "catalog" not in p.name}
    assert before == after
