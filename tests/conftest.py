"""Shared fixtures: where the measured data lies, if it is there."""

import os
from pathlib import Path

import pytest

# Tests run a process a core; more threads than cores made some of them ten times slower. Children inherit it.
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder that CLD_STREAM_DATA names; a test that needs it skips where it is absent."""
    name = os.environ.get("CLD_STREAM_DATA", "")
    if not name or not Path(name).is_dir():
        pytest.skip("CLD_STREAM_DATA names no folder: the measured data is not on this machine")
    return Path(name)
