"""What an evaluation says about pictures whose answer is known."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from cld_stream.config import PublishSettings, Settings, StoreSettings, load_settings
from cld_stream.errors import UsageError
from cld_stream.learn import probes
from cld_stream.media.labelled import read_labelled
from cld_stream.pipelines.embed import Embedder
from cld_stream.pipelines.evaluate import EvalProgress, EvalReport, evaluate
from cld_stream.pipelines.evaluate_frames import JudgedFrames, Pixels, own_frames
from cld_stream.pipelines.evaluate_probes import LABELLED, PROBES, Problem, choose_probes
from cld_stream.pipelines.evaluate_rounds import plan_rounds
from cld_stream.pipelines.forget import forget
from cld_stream.pipelines.ingest import ingest
from cld_stream.pipelines.publish import publish
from cld_stream.pipelines.publish_checkpoint import publish_checkpoint
from cld_stream.pipelines.snapshots import open_snapshot
from cld_stream.pipelines.train import train
from cld_stream.storage.store import Store
from tests.faults.faulty import bound_by_modes
from tests.pipelines.published import ENCODER, SIZE, published, weights

COLOURS = {"red": (220, 40, 30), "green": (30, 200, 60), "blue": (40, 60, 220), "grey": (128, 128, 128)}
TRACKS, LENGTH = 6, 5  # sequences of a class, pictures of a sequence


def picture(path: Path, colour: NDArray[np.float64], seed: int) -> Path:
    """A noisy picture of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).normal(0, 12, (24, 32, 3))
    Image.fromarray((colour + noise).clip(0, 255).astype(np.uint8)).save(path)
    return path


def draw(folder: Path) -> Path:
    """Class folders of sequences of pictures of the colour that they are named after, and a table of them."""
    lines = ["path\tsequence\tframe\tlabel\tother\tsplit"]
    for c, (name, colour) in enumerate(COLOURS.items()):
        for track in range(TRACKS):
            hue = np.array(colour) + np.random.default_rng([c, track]).normal(0, 12, 3)
            for n in range(LENGTH):
                at = Path(name) / f"{name}{track}" / f"{n}.png"
                picture(folder / at, hue, 100 * track + n)
                other = list(COLOURS)[(c + track) % len(COLOURS)]
                lines.append(f"{at}\t{name}{track}\t{n}\t{name}\t{other}\t{'eval' if track < 2 else 'train'}")
    (folder / "all.tsv").write_text("\n".join(lines) + "\n")
    return folder


def columns(table: Path, made: Path, **names: str) -> Path:
    """Another table with some of the columns under other names."""
    rows = [line.split("\t") for line in table.read_text().splitlines()]
    kept = [rows[0].index(source) for source in names.values()]
    lines = ["\t".join(names), *("\t".join(row[i] for i in kept) for row in rows[1:])]
    made.write_text("\n".join(lines) + "\n")
    return made


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("colours"))


@pytest.fixture(scope="module")
def store(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures as labelled sequences, under an encoder that never learned anything."""
    path = tmp_path_factory.mktemp("eval") / "store"
    table = columns(
        pictures / "all.tsv", pictures / "plain.tsv", path="path", sequence="sequence", frame="frame", label="label"
    )
    ingest(path, [f"@{table}"], replace(Settings(), store=StoreSettings(size=SIZE)))
    with Store.open(path) as opened:
        publish(opened, ENCODER, weights(), step=7, settings=PublishSettings(groups=8))
    return path


@pytest.fixture(scope="module")
def own(store: Path) -> EvalReport:
    return evaluate(store)


def values(report: EvalReport) -> dict[str, float]:
    return {number.name: number.value for number in report.numbers}


def test_colours_are_told_apart_even_by_a_random_encoder(own: EvalReport) -> None:
    found = values(own)
    assert min(found["knn"], found["linear"], found["recall@1"], found["map"], found["purity"]) > 0.9
    assert found["nmi"] > 0.6
    assert found["coherence"] > 0.5
    assert found["time"] > 0.2  # at random 0.05
    assert (own.frames, own.sequences, own.classes) == (120, 24, sorted(COLOURS))
    assert {n.name: n.n for n in own.numbers}["time"] == 24 * (LENGTH - 1)
    assert own.protocol == "5 folds of whole sequences, each asks the others"


def test_every_number_lies_in_its_stated_range(own: EvalReport) -> None:
    assert {n.probe for n in own.numbers} == {name for name in PROBES if not name.startswith("fine")}
    assert all(n.low <= n.value <= n.high for n in own.numbers)


def test_a_table_of_the_same_pictures_gives_the_same_numbers_as_the_store(
    store: Path, own: EvalReport, pictures: Path
) -> None:
    outside = evaluate(store, labels=str(pictures / "plain.tsv"))
    assert values(outside) == pytest.approx(values(own), abs=5e-3)
    assert (outside.protocol, outside.sequences) == (own.protocol, own.sequences)
    assert (own.labels, outside.labels) == ("store", str(pictures / "plain.tsv"))


def test_class_folders_of_the_same_pictures_are_judged_alike(store: Path, own: EvalReport, pictures: Path) -> None:
    outside = evaluate(store, labels=str(pictures), names=["knn", "purity"])
    assert outside.sequences == own.sequences
    assert values(outside) == pytest.approx({n: values(own)[n] for n in ("knn", "purity")}, abs=0.02)


def test_labels_that_mean_nothing_are_at_chance(store: Path, pictures: Path) -> None:
    table = columns(
        pictures / "all.tsv", pictures / "mixed.tsv", path="path", sequence="sequence", frame="frame", label="other"
    )
    found = values(evaluate(store, labels=str(table), names=["knn"]))
    assert found["knn"] < 0.5  # chance is 0.25


def test_near_repeats_do_not_help(store: Path) -> None:
    rng = np.random.default_rng(0)
    centre, label = rng.standard_normal((40, 16)), rng.integers(0, 2, 40)  # of 40 sequences of 25 frames
    features = np.repeat(centre, 25, 0) + rng.normal(0, 0.1, (1000, 16))
    frames = _frames(np.repeat(label, 25).tolist(), np.repeat(np.arange(40), 25).tolist())
    frames = replace(frames, features={"instance": features.astype(np.float16)})
    with Store.open(store) as opened:
        embedder = Embedder.of(open_snapshot(opened))
    problem = Problem(frames, embedder, "instance", plan_rounds(frames), None, 4, "cpu")
    (told,) = PROBES["knn"](problem, lambda stage, done, total: None)
    assert (told.n, told.value < 0.7) == (1000, True)  # 1 if a sequence's own frames were asked


def test_a_given_split_is_the_protocol(store: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "fine_tune", partial(probes.fine_tune, steps=12))
    report = evaluate(store, labels=str(pictures / "all.tsv"), names=["knn", "linear", "fine-tuning-10"])
    assert report.protocol == "train split answers, test split asks"
    assert {n.n for n in report.numbers} == {4 * 2 * LENGTH}
    assert values(report)["fine-tuning-10"] > 0.4
    assert min(values(report)[name] for name in ("knn", "linear")) > 0.9


def test_broken_pictures_are_skipped_and_named(store: Path, tmp_path: Path) -> None:
    for c, (name, colour) in enumerate(COLOURS.items()):
        for n in range(7):
            picture(tmp_path / "train" / name / f"{n}.png", np.array(colour, float), 10 * c + n)
        picture(tmp_path / "val" / name / "0.jpg", np.array(colour, float), 99)
    (tmp_path / "train" / "red" / "notes.txt").write_text("not a picture")
    (tmp_path / "val" / "red" / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    report = evaluate(store, labels=str(tmp_path), names=["knn", "time", "alignment"])
    assert [Path(path).name for path, _ in report.skipped] == ["notes.txt", "cut.png"]
    assert all(reason for _, reason in report.skipped)
    assert (report.frames, values(report)["knn"]) == (32, 1.0)
    assert "time" not in values(report)
    assert any(note.startswith("time:") for note in report.notes)


def test_a_closed_folder_costs_its_pictures_and_not_the_evaluation(store: Path, tmp_path: Path) -> None:
    draw(tmp_path)
    closed = tmp_path / "red" / "red0"
    for n in range(LENGTH):
        (closed / f"{n}.png").write_bytes(b"\x89PNG\r\n\x1a\n")  # workers of root may open even what is closed
    (tmp_path / "blue" / "blue1" / "0.png").unlink()
    closed.chmod(0)
    with bound_by_modes():
        report = evaluate(store, labels=str(tmp_path / "all.tsv"), names=["knn"])
    closed.chmod(0o755)
    reasons = {str(Path(path).relative_to(tmp_path)): reason for path, reason in report.skipped}
    assert reasons.pop("blue/blue1/0.png") == "no such file"
    assert sorted(reasons) == [f"red/red0/{n}.png" for n in range(LENGTH)]
    assert "no such file" not in reasons.values()


def test_a_checkpoint_is_judged_as_it_would_be_published(store: Path, tmp_path: Path) -> None:
    import shutil

    mine = tmp_path / "store"
    shutil.copytree(store, mine)
    small = load_settings(
        overrides=[
            "encoder.width=0.1", "encoder.crop=32", "encoder.feature_dim=16", "optim.batch=16", "loss.groups=4",
            "buffer.capacity=64", "train.min_frames=16", "publish.groups=8", "train.idle_steps=0",
        ]
    )  # fmt: skip
    train(mine, small, steps=3)
    before = evaluate(mine, checkpoint="latest")
    made = publish_checkpoint(mine)
    after = evaluate(mine, snapshot=made.id)
    assert (before.snapshot, before.checkpoint, after.snapshot, after.checkpoint) == (None, 3, made.id, None)
    assert values(before) == pytest.approx(values(after), abs=5e-3)


def test_without_labels_only_the_probes_that_need_none_are_run(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "store"
    for n in range(3):
        picture(tmp_path / "media" / f"{n}.png", np.array([90.0 * n] * 3), n)
    ingest(path, [str(tmp_path / "media")], replace(Settings(), store=StoreSettings(size=SIZE)))
    with Store.open(path) as opened:
        publish(opened, ENCODER, weights(), step=1)
    report = evaluate(path)
    assert not {n.probe for n in report.numbers} & set(LABELLED)
    assert "uniformity" in values(report)
    assert report.labels is None
    assert "no labels" in report.notes[0]
    with pytest.raises(UsageError, match="no labels"):
        evaluate(path, names=["knn"])


def test_a_source_that_is_forgotten_during_an_evaluation_is_left_out(tmp_path: Path) -> None:
    made = published(tmp_path / "s")

    def forgetting(what: str, done: int, of: int) -> None:
        if made.store.catalog.live_ids(12, 24).any():
            forget(made.store.path, "clip1.mp4")

    with made.store.reader() as reader:
        frames = own_frames(made.store, reader, Embedder.of(made.snapshot), None, forgetting)
    assert len(frames.sequence) == len(frames.label) == len(frames.features["backbone"]) == 24


def test_a_stop_gives_what_is_done(store: Path) -> None:
    seen: list[EvalProgress] = []
    report = evaluate(store, on_progress=seen.append, stop=lambda: any(p.stage == "retrieval" for p in seen))
    assert report.stopped
    assert [n.name for n in report.numbers] == ["knn", "linear"]


def test_the_keys_of_the_json_are_these(own: EvalReport) -> None:
    told = own.as_dict()
    assert sorted(told) == [
        "checkpoint", "classes", "frames", "labels", "notes", "numbers", "protocol", "seconds", "sequences", "skipped",
        "snapshot", "space", "step", "stopped", "store",
    ]  # fmt: skip
    assert list(told["numbers"]) == [
        "knn", "linear", "recall@1", "recall@5", "recall@10", "map", "nmi", "purity", "alignment", "uniformity",
        "effective-rank", "coherence", "time",
    ]  # fmt: skip
    assert sorted(told["numbers"]["knn"]) == ["better", "meaning", "n", "probe", "range", "value"]


def _frames(labels: list[int], sequences: list[int]) -> JudgedFrames:
    def no_pixels(at: NDArray[np.int64]) -> Pixels:
        raise AssertionError

    order = np.argsort(sequences, kind="stable")
    label = np.array(labels)[order]
    return JudgedFrames({}, label, ["a", "b", "c"], np.array(sequences)[order], np.full(len(label), ""), no_pixels, [])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-1, 2), st.integers(0, 9)), min_size=2, max_size=60))
def test_no_sequence_is_on_both_sides_and_everyone_asks_once(rows: list[tuple[int, int]]) -> None:
    frames = _frames([label for label, _ in rows], [sequence for _, sequence in rows])
    plan = plan_rounds(frames)
    if plan.unusable:
        return
    for one in plan.rounds:
        assert not np.intersect1d(frames.sequence[one.gallery], frames.sequence[one.asked]).size
        held = one.gallery[one.held_out]
        assert not np.intersect1d(frames.sequence[held], frames.sequence[one.gallery[~one.held_out]]).size
    asked = np.sort(np.concatenate([one.asked for one in plan.rounds]))
    assert len(np.unique(asked)) == len(asked)
    assert set(asked) == set(np.flatnonzero(frames.label >= 0)) or len(plan.rounds) < 2


def test_pictures_that_stand_alone_ask_by_every_fifth_of_each_class() -> None:
    plan = plan_rounds(_frames([0, 1] * 10, list(range(20))))
    assert plan.rounds[0].asked.tolist() == [0, 1, 10, 11]
    assert "every fifth" in plan.protocol


def test_the_pictures_of_a_table_stand_in_time(tmp_path: Path) -> None:
    table = tmp_path / "t.tsv"
    table.write_text("path\tlabel\tsequence\tframe\na\tx\ts\t10\nb\ty\t\t\nc\tx\ts\t9\nd\tx\t3\t0\n")
    assert [(p.path.name, p.sequence) for p in read_labelled(str(table))] == [
        ("c", "s"), ("a", "s"), ("b", None), ("d", "3"),
    ]  # fmt: skip


@pytest.mark.parametrize(("asked", "words"), [("kn", "knn"), ("line", "linear"), ("zzz", "uniformity")])
def test_an_unknown_probe_is_answered_with_the_nearest(asked: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        choose_probes([asked])


MISTAKES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no classes": (lambda home: (home / "a.txt").write_text(""), "no class folders"),
    "one class": (lambda home: picture(home / "red" / "0.png", np.zeros(3), 0), "one class only"),
    "nothing to read": (lambda home: _text(home, "a/0.txt", "b/0.txt"), "none of its 2 pictures"),
    "too few": (lambda home: _two(home, 3), "kNN asks the 20 nearest"),
    "singles": (lambda home: _two(home, 1), "no class has two sequences"),
    "no label column": (lambda home: (home / "labels.tsv").write_text("path\tkind\na\tb\n"), "no column label"),
    "a label missing": (
        lambda home: (home / "labels.tsv").write_text("path\tlabel\na\tx\nb\t\nc\tx\n"),
        r"line 3 has no label \(1 of 3",
    ),
}


def _text(home: Path, *names: str) -> None:
    for name in names:
        (home / name).parent.mkdir(parents=True)
        (home / name).write_text("not a picture")


def _two(home: Path, each: int) -> None:
    for name in ("red", "blue"):
        for n in range(each):
            picture(home / name / f"{n}.png", np.array(COLOURS[name], float), n)


@pytest.mark.parametrize("name", MISTAKES)
def test_labels_that_cannot_be_used_are_said_in_one_line(store: Path, tmp_path: Path, name: str) -> None:
    make, words = MISTAKES[name]
    make(tmp_path)
    with pytest.raises(UsageError, match=words) as told:
        evaluate(store, labels=str(tmp_path))
    assert "\n" not in str(told.value)
    assert str(tmp_path) in str(told.value)
