"""Logs do not fill the disk, however long training runs."""

import json
import logging
import os
import resource
import signal
import sys
from pathlib import Path

import pytest

from cld_stream.cli.output import _AsJson
from cld_stream.pipelines.metrics import MetricsLog, TrainProgress, finite, log


def progress(step: int) -> TrainProgress:
    return TrainProgress(
        state="training", step=step, updates=step, loss=1.0, instance=0.5, cld=0.5, frames_s=1.0, data_wait=0.0, lag=0,
        thinned=0, fed=0, committed=0, buffered=0, capacity=1, groups=1, feature_std=0.1, effective_rank=3.0, lr=0.1,
        frames_at_once=24, cbp=1, rescues=0, guard="ok", guard_warnings=0, guard_holds=0, guard_rollbacks=0,
        guard_kept=1.0, guard_entropy=1.0, guard_agreement=0.5, guard_loss_ratio=0.5,
    )  # fmt: skip


def size(*files: Path) -> int:
    return sum(file.stat().st_size for file in files)


def test_every_log_stays_below_its_limit_and_loses_the_oldest_first(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, limit_mb=1) as logs:
        for step in range(3600):
            logs.write(progress(step))
        for n in range(3600):
            log.info("event %d of many: %s", n, "x" * 500)
    parts = [tmp_path / "metrics.jsonl", *sorted(tmp_path.glob("metrics.jsonl.*"))]
    steps = [json.loads(line)["step"] for part in reversed(parts) for line in part.read_text().splitlines()]
    assert steps == list(range(steps[0], 3600))
    assert 0 < steps[0] < 3000
    assert 500_000 < size(*parts) <= 1_000_000
    assert 500_000 < size(*tmp_path.glob("train.log*")) <= 1_000_000
    assert 500_000 < size(*(tmp_path / "tensorboard").iterdir()) <= 1_200_000  # looked at now and then


def test_a_log_on_a_full_disk_ends_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with MetricsLog(tmp_path) as logs:
        logs.write(progress(1))
    assert "Traceback" not in capsys.readouterr().err


def test_a_full_disk_leaves_no_empty_files_of_events(tmp_path: Path) -> None:
    before, old = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with MetricsLog(tmp_path) as logs:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))  # names may be made, bytes not written
            for step in range(10):
                logs.write(progress(step))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, old)
        assert list((tmp_path / "tensorboard").iterdir()) == []
        logs.write(progress(10))
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert file.stat().st_size > 0


def test_files_of_events_that_cannot_be_looked_at_or_removed_end_nothing(tmp_path: Path) -> None:
    events = tmp_path / "tensorboard"
    (events / "events.out.0").mkdir(parents=True)  # as one that may not be removed
    (events / "events.out.1").symlink_to("nowhere")  # as one that goes at that moment
    with MetricsLog(tmp_path, limit_mb=1) as logs:
        for step in range(800):
            logs.write(progress(step))
    assert sum(file.is_file() for file in events.iterdir()) < 8
    assert 500_000 < size(*(file for file in events.iterdir() if file.is_file())) <= 1_200_000


def test_what_json_cannot_hold_is_null() -> None:
    assert [finite(v) for v in (1, 2.5, "x", float("nan"), float("inf"))] == [1, 2.5, "x", None, None]


def test_a_clock_that_was_set_back_makes_no_events_grow_out_of_sight(tmp_path: Path) -> None:
    """Where files are from the future, the one that is written is not taken for the oldest."""
    with MetricsLog(tmp_path, limit_mb=1) as logs:
        logs.write(progress(0))
    (old,) = (tmp_path / "tensorboard").iterdir()
    old.write_bytes(bytes(700_000))
    os.utime(old, (1e10, 1e10))
    with MetricsLog(tmp_path, limit_mb=1) as logs:
        for step in range(400):
            logs.write(progress(step))
        written = set((tmp_path / "tensorboard").iterdir()) - {old}
        assert 0 < size(*written) <= 300_000
        assert len(written) <= 3
        for step in range(400, 2000):
            logs.write(progress(step))
    assert not old.exists()


def test_logs_that_somebody_takes_away_are_begun_anew(tmp_path: Path) -> None:
    names = ("metrics.jsonl", "train.log")
    with MetricsLog(tmp_path) as logs:
        logs.write(progress(0))
        log.info("before")
        for name in names:
            (tmp_path / name).rename(tmp_path / f"{name}-yesterday")
        for file in (tmp_path / "tensorboard").iterdir():
            file.unlink()
        for step in range(1, 200):
            logs.write(progress(step))
        log.info("after")
        assert [*(tmp_path / "tensorboard").iterdir()]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [*range(1, 200)]
    assert "after" in (tmp_path / "train.log").read_text()
    assert "after" not in (tmp_path / "train.log-yesterday").read_text()


def test_a_json_line_of_an_error_has_its_traceback() -> None:
    try:
        raise OSError("out of patience")
    except OSError:
        record = logging.LogRecord("cld_stream", logging.ERROR, "", 0, "it %s", ("failed",), sys.exc_info())
    said = json.loads(_AsJson().format(record))
    assert (said["level"], said["logger"], said["message"]) == ("ERROR", "cld_stream", "it failed")
    assert said["exception"].splitlines()[-1] == "OSError: out of patience"
