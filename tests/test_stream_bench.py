"""The stream benchmark on tiny data: streams have the order they claim, rows are valid, a cell runs once."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks.offline import ledger
from benchmarks.stream import data, table
from benchmarks.stream.__main__ import beyond, main
from benchmarks.stream.cells import Cell, Job, cell_of, finish
from benchmarks.stream.clips import CLIP, render
from benchmarks.stream.findings import first_reached, over_sequences
from benchmarks.stream.rows import ROWS, changed, settings_of
from benchmarks.stream.score import Judge, by_sequence
from benchmarks.stream.tracks import TRACKS, Track
from benchmarks.stream.watched import Watched
from cld_stream.errors import UsageError
from cld_stream.learn.buffer import Origin
from cld_stream.learn.learner import Learner

CLASSES, EACH = 4, 40

TINY = Track(
    kind="split", source="cifar10", frames=120, tasks=2, size=16, crop=16, width=0.125, capacity=32, batch=16, fresh=8,
    slice=0.4, more={"train.min_frames": 16},
)  # fmt: skip


@pytest.fixture
def folders(tmp_path: Path) -> data.Folders:
    """Decoded images of 4 classes, each with a colour of its own, where the benchmark keeps them."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        label = np.arange(CLASSES * EACH) % CLASSES
        pixels = rng.integers(0, 60, (len(label), 16, 16, 3)) + 40 * label[:, None, None, None]
        np.save(tmp_path / f"cifar10-16-{split}.npy", pixels.astype(np.uint8))
        np.save(tmp_path / f"cifar10-16-{split}-labels.npy", label)
    return data.Folders(tmp_path, tmp_path)


def cell(name: str, *, tuning: bool = False, seed: int = 0, track: Track = TINY) -> Cell:
    return cell_of("A", track, name, ROWS[name], seed, 0.06, tuning=tuning)


def stream_of(found: Cell) -> data.Stream:
    return data.Stream(**found.stream)


def rows_of(frames: data.Frames) -> set[bytes]:
    return {p.numpy().tobytes() for p in frames.pixels}


def test_a_split_stream_has_its_classes_task_by_task_and_every_seed_has_another_order(folders: data.Folders) -> None:
    problem = data.build(stream_of(cell("npid")), folders, seed=0)
    first, second = problem.stream.label[:60], problem.stream.label[60:]
    assert len(set(first)) == len(set(second)) == 2
    assert set(first).isdisjoint(second)
    assert len(set(first[:20])) == 2  # shuffled within the task
    other = data.build(stream_of(cell("npid")), folders, seed=1)
    assert not np.array_equal(other.stream.label, problem.stream.label)
    assert np.array_equal(problem.stream.label[problem.at], problem.labelled.label)


def test_clips_are_near_repeats_in_class_order_and_no_probe_sees_their_sources(folders: data.Folders) -> None:
    stream = stream_of(cell("npid", track=replace(TINY, kind="clips", frames=8 * CLIP)))
    problem = data.build(stream, folders, seed=0)
    labels, clip = problem.stream.label, problem.stream.origin.source
    assert np.array_equal(clip, np.arange(8).repeat(CLIP))
    assert len(np.flatnonzero(np.diff(labels))) == CLASSES - 1
    x = problem.stream.pixels.flatten(1).float()
    apart = (x[:, None, :] - x[None, ::16, :]).square().mean(2).sqrt()
    same = torch.from_numpy(clip[:, None] == clip[None, ::16])
    assert apart[same].mean() < 0.6 * apart[~same].mean()
    assert (problem.at == -1).all()
    assert rows_of(problem.labelled).isdisjoint(rows_of(problem.stream) | rows_of(problem.asked))


def test_a_clip_walks_smoothly() -> None:
    picture = torch.randint(0, 256, (1, 32, 32, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    x = render(picture.repeat_interleave(2, 1).repeat_interleave(2, 2), seed=0).float()
    steps, far = (x[1:] - x[:-1]).abs().mean(), (x[32:] - x[:-32]).abs().mean()
    assert 0 < steps < 0.6 * far
    assert torch.equal(render(picture, 3), render(picture, 3))


def test_shuffling_changes_the_order_alone(folders: data.Folders) -> None:
    ordered, shuffled = (data.build(stream_of(cell(name)), folders, seed=0) for name in ("npid", "iid-0"))
    assert rows_of(ordered.stream) == rows_of(shuffled.stream)
    assert torch.equal(shuffled.stream.pixels[torch.from_numpy(shuffled.at)], shuffled.labelled.pixels)
    assert len(set(shuffled.stream.label[:30])) == CLASSES


def test_the_sweep_sees_a_miniature_of_the_stream_and_no_test_image(folders: data.Folders) -> None:
    whole, small = (data.build(stream_of(cell("npid", tuning=t)), folders, seed=0) for t in (False, True))
    assert len(small.stream) == 0.4 * len(whole.stream)
    assert set(small.stream.label[:24]) == set(whole.stream.label[:60])  # the same tasks
    assert set(small.stream.label[24:]) == set(whole.stream.label[60:])
    assert rows_of(small.asked).isdisjoint(rows_of(whole.stream) | rows_of(whole.asked))
    assert torch.equal(small.stream.pixels[torch.from_numpy(small.at)], small.labelled.pixels)


def test_settings_are_chosen_by_answers_to_questions_from_the_train_data(folders: data.Folders) -> None:
    final, chosen = (
        data.build(stream_of(cell_of("A", TINY, "npid", ROWS["npid"], 0, 0.06, tuning=False, held_out=h)), folders, 0)
        for h in (False, True)
    )
    assert torch.equal(final.stream.pixels, chosen.stream.pixels)
    assert rows_of(chosen.asked).isdisjoint(rows_of(final.asked) | rows_of(final.stream))


@pytest.mark.parametrize("name", ROWS)
def test_every_row_is_valid_on_every_track_and_costs_the_same(name: str) -> None:
    for track_name, track in TRACKS.items():
        try:
            found = cell_of(track_name, track, name, ROWS[name], 0, 0.06, tuning=False)
        except UsageError as e:
            pytest.skip(str(e))
        o = settings_of(found.overrides, 0)
        assert o.optim.batch / o.optim.fresh * o.train.updates_per_step == pytest.approx(
            track.batch / track.fresh * track.updates, rel=0.01
        )
        if not ROWS[name].alone:
            assert o.buffer.capacity == track.capacity


def test_a_setting_on_top_of_a_row_is_in_its_name_and_its_settings() -> None:
    name, row = changed("npid", ["loss.groups=7"])
    assert name == "npid[loss.groups=7]"
    assert cell_of("B", TRACKS["B"], name, row, 0, 0.1, tuning=False).overrides["loss.groups"] == 7
    with pytest.raises(UsageError, match="no row 'npit'"):
        changed("npit", [])


@pytest.mark.parametrize("name", ["npid+cld", "none-gn", "random", "pixels", "lightly-simclr", "lightly-moco"])
def test_a_cell_runs_and_is_not_run_again(name: str, folders: data.Folders, tmp_path: Path) -> None:
    if name.startswith("lightly"):
        pytest.importorskip("lightly")
    job = Job(folders, tmp_path / "out.jsonl", "cpu", 1, float("inf"))
    assert not finish(cell(name), replace(job, deadline=0))
    assert finish(cell(name), job)
    (line,) = ledger.read(job.out)
    assert line["bad"] == 0
    assert line["points"][-1]["frames"] == 120
    if name in ("random", "pixels"):
        assert line["cbp"] == 0
        assert name == "random" or line["linear"] > 0.9  # each class has a colour
    else:
        assert line["cbp"] == pytest.approx(120 * 2 * 2, rel=0.15)
        assert [p["share"] for p in line["points"] if "linear" in p] == [0.1, 0.25, 0.5, 1.0]
        assert {"recall1_fresh", "recall1_stored"} <= line["points"][0].keys()
        assert {"warnings", "holds", "rollbacks", "kept"} <= line["points"][-1].keys()
    assert finish(cell(name), replace(job, deadline=0))
    assert len(ledger.read(job.out)) == 1


def line_of(found: Cell, score: float) -> dict[str, object]:
    points = [
        {
            "share": share, "frames": 100 * share, "cbp": 1000 * share, "knn": score * share, "linear": score * share,
            "recall1_fresh": 0.5, "recall1_stored": 0.4, "recall10_fresh": 0.9, "recall10_stored": 0.85,
            "warnings": 1, "holds": int(share == 1), "rollbacks": 0, "kept": 0.4 + share,
        }
        for share in (0.1, 0.25, 0.5, 1.0)
    ]  # fmt: skip
    numbers = {"linear": score, "knn": score, "knn_f": score, "ca": score / 2, "cbp": 1000, "cpu_seconds": 5.0}
    where = {"probe_cpu_seconds": 1.0, "peak_mb": 10, "bad": 0, "machine": "m", "torch": "t", "date": "2026-11-25"}
    return vars(found) | numbers | where | {"code": "abc", "points": points}


def test_the_page_is_made_from_lines(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "stream.jsonl"
    scores = {"fifo": 0.4, "reservoir": 0.5, "npid": 0.6, "npid+cld": 0.7, "ours": 0.9, "iid-1": 0.8, "iid-simclr": 0.5}
    cells = [(cell(name, seed=seed), score + 0.02 * seed) for seed in (0, 1) for name, score in scores.items()]
    name, row = changed("npid", ["loss.groups=7"])
    cells.append((cell_of("A", TINY, "npid", row, 0, 0.12, tuning=True), 0.44))  # the row as it was once
    cells.append((cell("npid", tuning=True), 0.33))
    cells.append((cell_of("A", TINY, name, row, 1, 0.06, tuning=False), 0.52))
    name, row = changed("npid", ["loss.queue=9"])
    other = replace(row, overrides=row.overrides | {"loss.temperature_instance": 0.3})  # of a row as it was once
    cells.append((cell_of("A", TINY, name, other, 1, 0.06, tuning=False), 0.52))
    out.write_text("".join(json.dumps(line_of(*pair)) + "\n" for pair in cells))
    out.with_suffix(".md").write_text("old\n\n## Notes\n\nBy hand.\n")
    table.write(out)
    page = out.with_suffix(".md").read_text()
    assert "| npid+cld | NPID + CLD, reservoir | 2 | 0.06 | 71.0 ± 1.4 | 35.5 ± 0.7 |" in page
    assert "CLD, npid+cld against npid: FA +10.0 ± 0.0, CA +5.0 ± 0.0" in page
    assert "FA: ours +30.0 against the best baseline, npid (ours ± 1.4, npid ± 1.4)." in page
    assert "FA: ours +20.0 against CLD on a baseline with a reservoir, npid+cld (ours ± 1.4, npid+cld ± 1.4)." in page
    assert "- fifo: 80% of the decorrelated stream's FA, 80% of its CA, 80% of its kNN (iid-simclr)." in page
    assert "| npid+cld | 7.1 | 17.8 | 35.5 | 71.0 | 859 |" in page  # up to npid's 61.0 after 859 of 1,000 passes
    assert "| A | npid | 33.0 |\n" in page
    assert "The table with its sweep: 13 cells, 0.02 CPU hours; with all that was asked besides: 18 cells" in page
    assert "| A | fifo | 8 | 2 | 2 | 0 | 0.50 |" in page  # the guard
    assert "| A | npid: loss.groups=7 | 1 | 52.0 | -10.0 | -5.0 | -10.0 | -10.0 |" in page
    assert "loss.queue=9" not in page, "it differs from the row in more than that"
    assert "code of abc." in page
    assert "+10.0" in page
    assert page.endswith("## Notes\n\nBy hand.\n")
    assert (tmp_path / "stream-A.png").stat().st_size > 10_000


def test_what_few_sequences_say_of_others_is_told_with_its_spread() -> None:
    """Two of four sequences won whole: other draws of four win between none and all, each ten questions."""

    def lines(*right: int) -> list[dict[str, object]]:
        return [{"by_sequence": [[r, 10] for r in right]}]

    even = over_sequences(lines(7, 7, 7, 7), lines(5, 5, 5, 5))
    assert even == pytest.approx((0.2, 0.2, 4))
    split = over_sequences(lines(10, 10, 0, 0) * 2, lines(0, 0, 0, 0))
    assert split == pytest.approx((0, 1, 4))
    seeds = over_sequences(lines(10, 10, 10, 10) + lines(0, 0, 0, 0), lines(0, 0, 0, 0))
    assert seeds == pytest.approx((0, 1, 4)), "of two seeds one wins all: another draw of two may have either"
    assert over_sequences(lines(1), [{}]) is None


def test_questions_from_recordings_are_counted_by_recording() -> None:
    source = np.array([7, 7, 3, 3, 3])
    asked = data.Frames(torch.empty(5, 2, 2, 3), torch.ones(5), np.zeros(5, np.int64), Origin(source, np.zeros(5)))
    right = np.array([True, False, True, True, True])
    assert by_sequence(asked, right) == {"by_sequence": [[3, 3], [1, 2]]}
    unknown = replace(asked, origin=Origin.unknown(5))
    assert by_sequence(unknown, right) == {}


def test_an_accuracy_that_is_never_reached_has_no_cost() -> None:
    line = line_of(cell("npid"), 0.5)
    assert first_reached([line], 0.6) is None
    assert first_reached([line], 0.01) == 100


def test_the_guard_is_asked_as_the_daemon_asks_it_and_nothing_is_published_while_it_holds() -> None:
    learner, rng = Learner(settings_of(cell("npid").overrides, 0)), np.random.default_rng(0)
    good = F.normalize(torch.from_numpy(rng.normal(size=(600, 16))).float())
    collapsed = F.normalize(good[:1] + 0.01 * good)
    watched = Watched(learner)

    def look(features: torch.Tensor, fed: int) -> dict[str, object]:
        learner.clock = learner.updates = fed
        return watched.look(lambda at: features[torch.from_numpy(at)], fed, None)

    well = {"warnings": 0, "holds": 0, "rollbacks": 0, "kept": 1.0}
    assert look(good, 300) == well  # nothing to compare with
    assert look(good, 400) == well
    assert look(collapsed, 500)["holds"] == 1
    found = look(collapsed, 550)  # still against what was good
    assert (found["holds"], found["rollbacks"]) == (1, 1)
    assert look(good, 600) == {"warnings": 0, "holds": 1, "rollbacks": 1, "kept": 1.0}


def test_the_curve_has_the_same_gallery_and_questions_everywhere(folders: data.Folders) -> None:
    problem = data.build(stream_of(cell("pixels")), folders, seed=0)
    judge, learner = Judge(problem, pixels=True), Learner(settings_of(cell("pixels").overrides, 0))
    learner.remember(range(20))
    with pytest.MonkeyPatch.context() as patch:
        for name, most in (("QUICK_LABELLED", 30), ("QUICK_ASKED", 10), ("MARK_ASKED", 20)):
            patch.setattr(f"benchmarks.stream.score.{name}", most)
        for share in (0.2, 0.25, 0.3, 1.0):
            judge.look(learner, share, round(120 * share), None)
    assert len({p["knn"] for p in judge.points}) == 1
    assert [p for p in judge.points if "linear" in p] == [judge.points[1], judge.points[3]]
    assert judge.points[-1]["whole"].keys() == {"knn", "knn_f"}


@pytest.mark.parametrize("named", [[], ["--rows", "iid-simclr", "reservoir"]])
def test_a_row_of_one_track_runs_elsewhere_when_it_is_named(named: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Cell] = []
    monkeypatch.setattr("benchmarks.stream.estimate.show", lambda cells, *_: asked.extend(cells))
    monkeypatch.setattr(sys, "argv", ["stream", "--estimate", "--tracks", "A", "B", *named])
    main()
    tracks = {row: {c.track for c in asked if c.row == row} for row in ("iid-simclr", "reservoir")}
    assert tracks == {"iid-simclr": {"A", "B"} if named else {"B"}, "reservoir": {"A", "B"}}


def test_a_sweep_goes_on_where_its_best_rate_is_at_an_edge(tmp_path: Path) -> None:
    out, known = tmp_path / "out.jsonl", [("A", TINY, "npid", ROWS["npid"])]

    def swept(scores: dict[float, float]) -> list[float]:
        cells = [cell_of("A", TINY, "npid", ROWS["npid"], 0, rate, tuning=True) for rate in scores]
        pairs = zip(cells, scores.values(), strict=True)
        out.write_text("".join(json.dumps(line_of(c, score)) + "\n" for c, score in pairs))
        return [c.overrides["optim.lr"] for c in beyond(known, cells, out)]

    assert swept({0.03: 0.2, 0.06: 0.3, 0.12: 0.25}) == []
    assert swept({0.03: 0.2, 0.06: 0.3, 0.12: 0.35}) == [0.24]
    assert swept({0.03: 0.4, 0.06: 0.3, 0.12: 0.35}) == [0.015]
    assert swept({0.01 * 2**i: 0.1 * i for i in range(7)}) == []
