"""A learner's state survives kills and notices damage."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cld_stream.errors import CorruptError, FormatTooNewError, StoreNotFoundError
from cld_stream.storage.checkpoints import (
    list_checkpoints,
    load_checkpoint,
    pin_checkpoint,
    pinned_checkpoint,
    save_checkpoint,
)


def state(seed: int) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(seed)
    return {
        "w": rng.standard_normal((4, 3)).astype(np.float32).T,
        "ids": rng.integers(0, 9, 5),
        "scalar": np.array(2.5),
        "empty": np.zeros((0, 3), np.float16),
        "mask": np.array([True, False]),
    }


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def test_what_is_saved_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 7, state(1), {"cursor": [1, 2], "rate": 0.1})
    loaded = load_checkpoint(tmp_path)
    assert (loaded.step, loaded.meta, loaded.warning) == (7, {"cursor": [1, 2], "rate": 0.1}, "")
    for name, value in state(1).items():
        assert loaded.tensors[name].dtype == value.dtype
        np.testing.assert_array_equal(loaded.tensors[name], value)
        assert loaded.tensors[name].shape == value.shape


def test_the_newest_are_kept_and_the_pinned_one_always(tmp_path: Path) -> None:
    for step in range(1, 7):
        save_checkpoint(tmp_path, step, state(step), {}, keep=2, pin=step == 2)
    assert list_checkpoints(tmp_path) == [2, 5, 6]
    assert pinned_checkpoint(tmp_path) == 2
    pin_checkpoint(tmp_path, 5)
    save_checkpoint(tmp_path, 7, state(7), {}, keep=1)
    assert list_checkpoints(tmp_path) == [5, 7]
    with pytest.raises(StoreNotFoundError, match="step 2"):
        pin_checkpoint(tmp_path, 2)


@pytest.mark.parametrize("file", ["state.safetensors", "meta.json"])
def test_a_damaged_newest_one_is_passed_over_and_named(tmp_path: Path, file: str) -> None:
    save_checkpoint(tmp_path, 1, state(1), {"at": 1})
    newest = save_checkpoint(tmp_path, 2, state(2), {"at": 2})
    damage(newest / file)
    loaded = load_checkpoint(tmp_path)
    assert loaded.step == 1
    assert loaded.meta == {"at": 1}
    assert str(newest) in loaded.warning
    with pytest.raises(CorruptError, match="damaged"):
        load_checkpoint(tmp_path, 2)
    (tmp_path / "checkpoints" / f"{1:012d}" / file).unlink()
    with pytest.raises(CorruptError):
        load_checkpoint(tmp_path)


def test_a_number_that_is_another_one_is_damage(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, state(1), {"cursor": 64}) / "meta.json"
    path.write_text(path.read_text().replace('"cursor": 64', '"cursor": 65'))
    with pytest.raises(CorruptError, match="wrong checksum"):
        load_checkpoint(tmp_path)


def test_none_at_all_is_an_error_that_says_what_makes_them(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="cld-stream train"):
        load_checkpoint(tmp_path)


def test_a_newer_format_is_refused_with_the_upgrade_line(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, state(1), {}) / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 2}))
    with pytest.raises(FormatTooNewError, match="Upgrade cld-stream the way it was installed"):
        load_checkpoint(tmp_path)


def test_one_step_saved_twice_is_the_second(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 3, state(1), {"n": 1})
    path = save_checkpoint(tmp_path, 3, state(2), {"n": 2})
    assert load_checkpoint(tmp_path).meta == {"n": 2}
    path.rename(path.with_name(f"{path.name}.old"))  # killed between the two renames
    assert load_checkpoint(tmp_path).meta == {"n": 2}
    assert sorted(p.name for p in path.parent.iterdir()) == [f"{3:012d}.old"]


def test_the_pinned_one_stays_though_a_kill_left_it_under_its_second_name(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 5, state(5), {}, pin=True)
    folder = tmp_path / "checkpoints"
    (folder / "000000000005").rename(folder / "000000000005.old")  # killed while it was saved once more
    save_checkpoint(tmp_path, 6, state(6), {}, keep=1)
    assert list_checkpoints(tmp_path) == [5, 6]
    assert pinned_checkpoint(tmp_path) == 5
    assert load_checkpoint(tmp_path, 5).tensors.keys() == state(5).keys()
    save_checkpoint(tmp_path, 7, state(7), {}, keep=1, pin=True)
    assert sorted(p.name for p in folder.iterdir()) == ["000000000007", "pinned"]


SAVER = """
import sys
from pathlib import Path
import numpy as np
from cld_stream.storage.checkpoints import save_checkpoint
step = 0
while True:
    step += 1
    save_checkpoint(Path(sys.argv[1]), step, {"x": np.full(200_000, step)}, {"step": step}, keep=2)
"""


def test_a_kill_at_any_moment_leaves_a_whole_newest_checkpoint(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        child = subprocess.Popen([sys.executable, "-c", SAVER, str(tmp_path)])
        deadline = time.monotonic() + 30
        while not list_checkpoints(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(float(rng.uniform(0, 0.1)))
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        loaded = load_checkpoint(tmp_path)
        assert loaded.warning == ""
        assert loaded.meta["step"] == loaded.step
        assert (loaded.tensors["x"] == loaded.step).all()
