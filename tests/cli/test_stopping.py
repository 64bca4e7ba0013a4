"""A signal ends every command in order, however early it comes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


def catches(pid: int, number: int) -> bool:
    """Whether the process has a handler for a signal."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_train_that_is_stopped_while_it_loads_ends_well(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cld_stream", "train", "--store", str(tmp_path / "none")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as train:
        while not catches(train.pid, signal.SIGTERM):  # before torch is there: that takes seconds
            assert train.poll() is None
            time.sleep(0.005)
        os.kill(train.pid, signal.SIGTERM)
        out, err = train.communicate(timeout=100)
    assert (train.returncode, out) == (0, ""), err
    assert err.splitlines()[-1] == "Stopped before training began."
