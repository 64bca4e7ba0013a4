import json
from pathlib import Path

import pytest
import typer.main

from cld_stream.cli import app
from cld_stream.config import load_settings
from cld_stream.pipelines.device import choose_device
from cld_stream.pipelines.train import train_settings
from tests.cli.conftest import Cli

COMMANDS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def test_the_verbs_are_a_known_list() -> None:
    assert COMMANDS == [
        "config", "demo", "doctor", "eval", "forget", "ingest", "migrate", "query", "snapshot", "snapshots", "status",
        "train", "tune",
    ]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_has_an_example(cli: Cli, command: str) -> None:
    shown = cli(command, "--help")
    assert shown.code == 0
    assert f"Example: cld-stream {command}" in shown.out


def test_no_arguments_show_the_help(cli: Cli) -> None:
    assert "ingest" in cli().out + cli().err


def test_the_settings_are_printed_as_toml(cli: Cli) -> None:
    import tomllib

    assert tomllib.loads(cli("config", "--recipe", "gpu").out)["optim"]["batch"] == 256


def test_the_printed_settings_are_those_that_train_takes(cli: Cli, tmp_path: Path) -> None:
    """As a file for --config they change nothing: the recipe of `train` is in them."""
    file = tmp_path / "settings.toml"
    file.write_text(cli("config").out)
    device = choose_device("auto")
    assert train_settings(device, file) == train_settings(device) != load_settings()
    assert load_settings(file) == train_settings(device)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_help_text_has_brackets_which_are_taken_for_markup(command: str) -> None:
    verb = typer.main.get_command(app).commands[command]  # type: ignore[attr-defined]
    assert not [p.name for p in verb.params if "[" in (getattr(p, "help", "") or "")]


def test_the_help_shows_the_defaults_of_settings_that_have_a_flag(cli: Cli) -> None:
    shown = cli("ingest", "--help").out
    assert all(f"[default: ({value})]" in shown for value in (2, 160, "stretch", "one a core", "auto", "time"))


def test_settings_may_come_from_the_environment(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLD_STREAM_CONFIG_SET", "ingest.fps=3 optim.lr=0.5")
    told = json.loads(cli("config", "--json").out)
    assert (told["ingest"]["fps"], told["optim"]["lr"]) == (3.0, 0.5)


@pytest.mark.parametrize("value", ["1", "1.2.3"])
def test_a_variable_that_names_a_version_ends_no_command(cli: Cli, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("CLD_STREAM_VERSION", value)
    ended = cli("config", "--json")
    assert (ended.code, ended.out[:1]) == (0, "{"), ended.err
