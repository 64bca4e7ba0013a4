"""What `train` says, and how loudly."""

from pathlib import Path

import pytest

from cld_stream.cli.output import console
from cld_stream.config import load_settings
from tests.cli.conftest import Cli
from tests.pipelines.test_train import SMALL, grow


@pytest.mark.parametrize(
    ("flags", "says"), [([], False), (["-q"], False), (["-v"], True), (["--debug"], True), (["--json-logs"], True)]
)
def test_the_events_of_training_are_said_with_v_and_as_json(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], says: bool
) -> None:
    grow(tmp_path, 30, load_settings(overrides=SMALL))
    settings = [word for item in SMALL for word in ("--set", item)]
    monkeypatch.setattr(console, "quiet", False)
    ended = cli(*flags, "train", "--store", tmp_path, "--device", "cpu", "--steps", 1, *settings)
    assert ended.code == 0, ended.err
    assert ("checkpoint at step" in ended.err) == says, ended.err
    assert "checkpoint at step" in (tmp_path / "logs" / "train.log").read_text()
    if "-q" in flags:
        assert ended.err == ""
