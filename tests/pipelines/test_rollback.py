"""A roll-back that is interrupted: done once, and what led to it is not fed again."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cld_stream.config import Settings
from cld_stream.errors import GuardStopError
from cld_stream.pipelines import keeper, rescue
from cld_stream.pipelines.restore import restore_learner
from cld_stream.pipelines.train import train
from cld_stream.storage.checkpoints import list_checkpoints, load_checkpoint, pinned_checkpoint
from tests.faults.faulty import flip
from tests.pipelines.test_guard import SMALL, good_store, trained, wild

__all__ = ["good_store", "trained"]

KILLED = """
import os, signal, sys
from pathlib import Path
from cld_stream.config import load_settings
from cld_stream.pipelines import rescue
from cld_stream.pipelines.train import train
rescue.load_checkpoint = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
train(Path(sys.argv[1]), load_settings(overrides=sys.argv[2:]), until_caught_up=True)
"""


class Killed(BaseException):
    """As sudden as SIGKILL: nothing between it and the test writes anything."""


def killed_in(module: Any, name: str, nth: int, *, after: bool) -> Callable[[pytest.MonkeyPatch], None]:
    """Killed in the nth call of it once the guard has decided, before or after its work."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[int] = []
        work = getattr(module, name)

        def killing(*args: Any, **more: Any) -> Any:
            meta = next((a for a in args if isinstance(a, dict) and "guard" in a), None)
            decided = bool(calls) or meta is None or meta["guard"]["wanted"] is not None
            calls.extend([1] * decided)
            if len(calls) == nth and not after:
                raise Killed
            done = work(*args, **more)
            if len(calls) == nth:
                raise Killed
            return done

        monkeypatch.setattr(module, name, killing)

    return patch


@pytest.mark.parametrize(
    "kill",
    [
        killed_in(keeper, "save_checkpoint", 1, after=True),
        killed_in(rescue, "load_checkpoint", 1, after=False),
        killed_in(keeper, "save_checkpoint", 2, after=False),
        killed_in(keeper, "save_checkpoint", 2, after=True),
    ],
    ids=["decided", "restoring", "restored", "saved"],
)
def test_a_roll_back_that_is_killed_happens_once_and_its_frames_are_not_fed_again(
    trained: tuple[Path, Settings], kill: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, settings = trained
    kill(monkeypatch)
    with pytest.raises(Killed):
        train(path, wild(settings, enabled=True, patience=1), until_caught_up=True)
    monkeypatch.undo()
    check_after_kill(path, settings)


def test_a_roll_back_survives_sigkill(trained: tuple[Path, Settings]) -> None:
    path, settings = trained
    changes = [*SMALL, "optim.lr=100", "guard.patience=1"]
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), *changes], timeout=100, check=False)
    assert done.returncode == -9
    check_after_kill(path, settings)


def check_after_kill(path: Path, settings: Settings) -> None:
    pinned = pinned_checkpoint(path)
    good, decided = load_checkpoint(path, pinned), load_checkpoint(path)
    cursor = decided.meta["feed"]["cursor"]
    assert cursor > good.meta["feed"]["cursor"] == 200
    gentle = replace(settings, optim=replace(settings.optim, lr=1e-9, fresh=4))
    train(path, gentle, steps=1)
    after = load_checkpoint(path)
    assert after.step == decided.step + 1
    assert after.meta["feed"]["cursor"] == cursor + 4
    assert (after.meta["guard"]["rollbacks"], after.meta["rescue"]["rescues"]) == (1, 1)
    assert (after.meta["learner"]["rate"], after.meta["learner"]["salt"]) == (0.5, 1)
    assert after.meta["guard"]["wanted"] is None
    assert after.meta["learner"]["updates"] == good.meta["learner"]["updates"] + 1
    learner, _ = restore_learner(path)
    held = learner.buffer.ids[learner.buffer.ids >= 0]
    assert not ((held >= 200) & (held < cursor)).any()
    assert (held >= cursor).sum() == 4


@pytest.mark.parametrize("all_of_them", [False, True])
def test_where_the_pinned_checkpoint_is_damaged_training_goes_on_all_the_same(
    trained: tuple[Path, Settings], all_of_them: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, settings = trained
    killed_in(keeper, "save_checkpoint", 1, after=True)(monkeypatch)
    with pytest.raises(Killed):
        train(path, wild(settings, enabled=True, patience=1), until_caught_up=True)
    monkeypatch.undo()
    pinned, decided = pinned_checkpoint(path), list_checkpoints(path)[-1]
    older = [step for step in list_checkpoints(path) if step not in (pinned, decided)]
    assert older
    for step in [pinned, *(older if all_of_them else [])]:
        flip(path / "checkpoints" / f"{step:012d}" / "state.safetensors")
    gentle = replace(settings, optim=replace(settings.optim, lr=1e-9, fresh=4))
    train(path, gentle, steps=1)
    to = "no good state is left to go back to" if all_of_them else f"back to the good state of step {max(older)}"
    assert [r.message for r in caplog.records if f"{to}, learning rate now x 0.5" in r.message]
    assert load_checkpoint(path).meta["guard"]["wanted"] is None
    assert train(path, gentle, steps=1).steps == 1


def test_a_decision_at_a_checkpoint_is_carried_out(trained: tuple[Path, Settings]) -> None:
    path, settings = trained
    settings = wild(settings, enabled=True, patience=2)
    settings = replace(
        settings,
        guard=replace(settings.guard, every_steps=10_000),
        train=replace(settings.train, checkpoint_s=1e-3),
    )
    with pytest.raises(GuardStopError):
        train(path, settings, until_caught_up=True)


def test_after_the_end_training_goes_on_from_the_good_state(trained: tuple[Path, Settings]) -> None:
    path, settings = trained
    pinned = pinned_checkpoint(path)
    with pytest.raises(GuardStopError, match="Lower optim"):
        train(path, wild(settings, enabled=True, patience=1), until_caught_up=True)
    good, left = load_checkpoint(path, pinned), load_checkpoint(path)
    same = [n for n in good.tensors if n.startswith("encoder.")]
    assert all((left.tensors[n] == good.tensors[n]).all() for n in same)
    gentle = replace(settings, optim=replace(settings.optim, lr=1e-9))
    assert train(path, gentle, steps=3).steps == 3
    after = load_checkpoint(path).meta
    assert after["learner"]["updates"] == good.meta["learner"]["updates"] + 3
    assert after["feed"]["cursor"] == left.meta["feed"]["cursor"] + 24
