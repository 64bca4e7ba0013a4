"""A watch on a terminal."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.faults.faulty import ROOT
from tests.pipelines.footage import photograph
from tests.pipelines.test_life import until
from tests.pipelines.watching import ledger


@pytest.fixture
def terminal() -> Iterator[int]:
    """A terminal to write to, which somebody looks at."""
    screen, end = os.openpty()

    def look() -> None:
        with suppress(OSError):  # closed
            while os.read(screen, 4096):
                pass

    looking = threading.Thread(target=look)
    looking.start()
    yield end
    os.close(end)
    looking.join()
    os.close(screen)


def test_the_panel_on_the_terminal_takes_no_line_from_the_pipe(terminal: int, tmp_path: Path) -> None:
    media, store = tmp_path / "media", tmp_path / "store"
    photograph(media / "a.png")
    command = [sys.executable, "-m", "cld_stream", "ingest", "--watch", "--json", "--store", str(store), str(media)]
    flags = ["ingest.workers=1", "ingest.settle_s=0.2", "ingest.poll_s=0.1", "ingest.commit_s=0.1"]
    with subprocess.Popen(
        [*command, *(word for flag in flags for word in ("--set", flag))],
        cwd=ROOT, env=os.environ | {"TERM": "xterm"}, stdout=subprocess.PIPE, stderr=terminal, text=True,
    ) as process:  # fmt: skip
        try:
            until(lambda: (store / "store.json").exists() and "a.png" in ledger(store))
            process.terminate()
            said, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert [json.loads(line)["event"] for line in said.splitlines()] == ["file", "end"]
