import json
import shutil
import tomllib
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.pipelines.test_tune import CANDIDATES, GIVEN
from tests.pipelines.test_tune_slice import footage


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with footage and a file of candidates, made once and only read."""
    home = tmp_path_factory.mktemp("tune")
    footage(home / "store", 9, 16)
    (home / "some.toml").write_text(CANDIDATES)
    return home


@pytest.fixture
def home(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it as the current folder."""
    shutil.copytree(made, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


def test_the_command_answers_as_a_table_and_as_json(home: Path, cli: Cli) -> None:
    sets = [word for item in GIVEN.overrides for word in ("--set", item)]
    command = ["tune", "--store", "store", "--candidates", "some.toml", "--steps", 2, "--seeds", 1, *sets]
    shown = cli(*command, "--out", "tuned.toml")
    assert shown.code == 0, shown.err
    assert all(word in shown.out for word in ("the present settings", "score", "cld-stream train --store store"))
    assert tomllib.loads((home / "tuned.toml").read_text())["store"]["size"] == 24
    answer = json.loads(cli(*command, "--json").out)
    assert set(answer) == {
        "candidates", "sure", "verdict", "use", "misfit", "out", "finished", "done", "runs", "seeds", "steps",
        "frames", "questions", "seconds",
    }  # fmt: skip
    assert set(answer["candidates"][0]) == {"rank", "changes", "present", "score", "spread", "first", "beaten", "tied"}
    assert sum(c["present"] for c in answer["candidates"]) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--store nowhere", "nowhere"),
        ("--candidates nowhere.toml", "nowhere.toml"),
        ("--out nowhere/tuned.toml", "nowhere"),
        ("--out store", "--out store"),
        ("--recipe tpu", "moco-cld-32"),
        ("--frames 12", "frames"),
        ("--set loss.group=3", "loss.groups"),
        ("--device cuda:9", "cuda:9"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_clear_line(
    home: Path,
    cli: Cli,
    arguments: str,
    words: str,
) -> None:
    ended = cli("tune", *("" if "--store" in arguments else "--store store").split(), *arguments.split())
    assert ended.code == 2
    assert words in ended.err
    assert "Traceback" not in ended.err
