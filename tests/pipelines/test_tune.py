import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from cld_stream.config import load_settings
from cld_stream.errors import StoreError, UsageError
from cld_stream.pipelines.train import train
from cld_stream.pipelines.tune import Given, TuneProgress, TuneReport, tune
from cld_stream.pipelines.tune_candidates import list_candidates
from cld_stream.storage.store import Store
from tests.pipelines.test_tune_slice import SMALL, footage

GIVEN = Given(overrides=(*SMALL, "train.threads=1"))

CANDIDATES = """
[[candidates]]
optim.lr = 1e-9

[[candidates]]
loss.groups = [4, 12]
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with footage and a file of candidates, made once and only read."""
    home = tmp_path_factory.mktemp("tune")
    footage(home / "store", 24, 16)
    (home / "some.toml").write_text(CANDIDATES)
    return home


@pytest.fixture
def home(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it as the current folder."""
    shutil.copytree(made, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


def run(home: Path, **more: object) -> TuneReport:
    asked: dict[str, object] = {"candidates": home / "some.toml", "steps": 40, "seeds": 2, "frames": 384}
    return tune(home / "store", GIVEN, **(asked | more))  # type: ignore[arg-type]


def test_settings_that_learn_nothing_come_last_and_surely(home: Path) -> None:
    report = run(home, steps=25, seeds=1)
    last = report.standings[-1]
    assert report.candidates[last.index].changes == ("optim.lr=1e-09",)
    assert last.beaten > 0.95
    assert [c.changes for c in report.candidates] == [
        (), ("optim.lr=1e-09",), ("loss.groups=4",), ("loss.groups=12",),
    ]  # fmt: skip


def test_what_is_finished_is_not_run_again_and_a_stop_loses_nothing(home: Path) -> None:
    seen: list[TuneProgress] = []

    def stop() -> bool:
        return bool(seen) and (seen[-1].run, seen[-1].step) == (6, 2)

    stopped = run(home, steps=4, on_progress=seen.append, stop=stop)
    assert (stopped.done, stopped.runs, stopped.seeds) == (5, 8, 1)
    assert len(stopped.standings) == 4
    seen.clear()
    finished = run(home, steps=4, on_progress=seen.append)
    assert (finished.done, finished.seeds) == (8, 2)
    assert {p.run for p in seen} == {6, 7, 8}
    seen.clear()
    again = run(home, steps=4, on_progress=seen.append)
    assert not seen
    assert again.standings == finished.standings
    run(home, steps=3, seeds=1, on_progress=seen.append)
    assert {p.run for p in seen} == {1, 2, 3, 4}


def test_stopped_before_every_candidate_had_a_run_nothing_is_compared(home: Path) -> None:
    report = run(home, steps=2, stop=lambda: True, out=home / "tuned.toml")
    assert (report.done, list(report.standings), report.use) == (0, [], None)
    assert "nothing is compared" in report.verdict()[0]
    assert not (home / "tuned.toml").exists()


def test_a_spoilt_file_of_a_finished_run_is_run_again(home: Path) -> None:
    whole = run(home, steps=2, seeds=1)
    files = sorted((home / "store" / "logs" / "tune").iterdir())
    files[0].write_text("[0.5,")
    files[1].write_text("[0.5, 0.5]")
    assert run(home, steps=2, seeds=1).standings == whole.standings


def test_the_store_may_be_in_use_and_nothing_of_it_is_touched(home: Path) -> None:
    def files() -> dict[str, bytes]:
        kept = (f for f in (home / "store").rglob("*") if f.is_file() and f.parent.name != "tune")
        return {str(f): f.read_bytes() for f in kept if f.suffix not in (".db-wal", ".db-shm")}

    with Store.open(home / "store") as store, store.trainer_lock("trainer"), store.writer("ingest"):
        before = files()
        assert run(home, steps=2, seeds=1).done == 4
        assert files() == before


def test_the_best_settings_are_written_as_train_reads_them(home: Path) -> None:
    (home / "tuned.toml").symlink_to("elsewhere.toml")
    report = run(home, steps=2, out=home / "tuned.toml")
    assert (home / "tuned.toml").is_symlink(), "written through"
    best = report.candidates[report.standings[0].index]
    assert load_settings(home / "tuned.toml") == best.settings
    assert report.out == home / "tuned.toml"


def test_equal_scores_are_called_equal() -> None:
    from cld_stream.pipelines.tune_ranking import Standing

    candidates = list_candidates(GIVEN, None)[:3]
    equal = [Standing(i, 0.5, 0.0, 1 / 3, 0.5) for i in (1, 0, 2)]
    report = TuneReport(candidates, equal, 2, 6, 6, 96, 32, 10, 1.0, "use", None, None)
    assert "Cannot tell ranks 1, 2, 3 apart" in report.verdict()[0]
    assert "no good reason to change" in report.verdict()[1]
    clear = replace(report, standings=[equal[0], *(replace(s, beaten=0.99) for s in equal[1:])])
    assert "ahead of every other one" in clear.verdict()[0]
    assert "in 99% of the resamples" in clear.verdict()[1]
    assert "luck of a start" in replace(report, seeds=1).verdict()[-2]


def test_without_a_file_one_thing_is_changed_at_a_time() -> None:
    changes = [c.changes for c in list_candidates(Given(), None)]
    assert changes == [
        (), ("loss.temperature_instance=0.05",), ("loss.temperature_instance=0.2",), ("loss.cld_weight=0",),
        ("loss.cld_weight=0.25",), ("loss.temperature_group=0.1",), ("loss.temperature_group=0.4",),
        ("loss.groups=32",), ("loss.groups=128",),
    ]  # fmt: skip
    assert all(len(c.changes) <= 1 for c in list_candidates(Given(recipe="byol-cld-32"), None))


def test_lists_of_values_are_every_combination_and_repeats_stand_once(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(
        "[[candidates]]\nloss.groups = [8, 64]\nloss.cld_weight = [0.5, 1]\n"
        '[[candidates]]\nencoder.head = "mlp"\n[[candidates]]\nloss.groups = 8\n'
    )
    assert [c.name for c in list_candidates(Given(), file)] == [
        "the present settings", "loss.groups=8 loss.cld_weight=0.5", "loss.groups=8 loss.cld_weight=1",
        "loss.groups=64 loss.cld_weight=0.5", 'encoder.head="mlp"',
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[candidates]]\nloss.group = 3\n", "candidate 1: loss.group=3: there is no setting loss.group; did you mean"),
        ("[[candidates]]\nloss.groups = 3\n[[candidates]]\nlos.groups = 3\n", "candidate 2"),
        ("[[candidates]]\nloss.groups = 'many'\n", "loss.groups"),
        ("[[candidates]]\nloss.groups = [0]\n", "groups"),
        ("[[candidates]]\nloss.groups = 2020-01-01\n", "loss.groups"),
        ("[[candidates]]\nloss.groups = []\n", "expected a value"),
        ("[[candidates]]\nloss = 3\n", "expected section.key"),
        ("[[candidates]]\nstore.size = 32\n", "no effect"),
        ("[[candidates]]\noptim.seed = [0, 1]\n", "--seeds"),
        ("[[candidates]]\nloss.groups = 64\n", "no candidate differs"),
        ("[[candidate]]\nloss.groups = 3\n", "[[candidates]]"),
        ("loss.groups = 3\n", "[[candidates]]"),
        ("candidates = 3\n", "[[candidates]]"),
        ("", "[[candidates]]"),
        ("[[candidates\n", "not valid TOML"),
    ],
)
def test_a_mistake_among_the_candidates_is_one_clear_line(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(UsageError) as e:
        list_candidates(Given(), file)
    assert words in str(e.value)
    assert "c.toml" in str(e.value)
    assert "\n" not in str(e.value)


def test_what_cannot_be_built_shows_before_the_first_run(home: Path) -> None:
    (home / "some.toml").write_text('[[candidates]]\nencoder.backbone = "resnet19"\n')
    with pytest.raises(UsageError, match="resnet19"):
        run(home, on_progress=lambda _: pytest.fail("it ran"))


def test_a_winner_that_does_not_fit_what_was_trained_is_told(home: Path) -> None:
    as_now = (*GIVEN.overrides, "train.min_frames=32")
    train(home / "store", load_settings(overrides=as_now), recipe="stream", steps=1)  # as of before its head changed
    (home / "one.toml").write_text("[[candidates]]\noptim.lr = 1e-9\n")
    asked = {"candidates": home / "one.toml", "steps": 2, "seeds": 1, "frames": 384}
    assert tune(home / "store", Given(overrides=as_now), **asked).misfit is None  # type: ignore[arg-type]
    misfit = tune(home / "store", Given(overrides=(*as_now, "loss.cross_level=bank")), **asked).misfit  # type: ignore[arg-type]
    assert misfit
    assert "loss.cross_level = local, now bank" in misfit


def test_finished_runs_follow_no_link_out_of_the_store(home: Path) -> None:
    outside = home / "outside"
    outside.mkdir()
    shutil.rmtree(home / "store" / "logs", ignore_errors=True)
    (home / "store" / "logs").symlink_to(outside)
    with pytest.raises(StoreError, match="this is a link"):
        run(home, steps=1, seeds=1)
    assert not list(outside.iterdir())
