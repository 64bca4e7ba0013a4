import pytest
import typer.main

from cld_stream.cli import app
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
