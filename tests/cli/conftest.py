"""Runs the command line in this process and shows what a person would see."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from cld_stream.cli import main
from cld_stream.cli.output import console


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


Cli = Callable[..., Ended]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    def run(*argv: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["cld-stream", *map(str, argv)])
        capsys.readouterr()
        monkeypatch.setattr(console, "_file", sys.stderr)
        code = 0
        try:
            main()
        except SystemExit as e:
            code = int(e.code or 0)
        seen = capsys.readouterr()
        return Ended(code, seen.out, seen.err)

    return run
