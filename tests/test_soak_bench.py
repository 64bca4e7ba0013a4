"""What `benchmarks.soak` calls growth."""

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.soak import slope

SECONDS = np.arange(0.0, 3600.0)
NOISE = np.random.default_rng(0).normal(0, 1, len(SECONDS))


def rows(memory: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.stack((SECONDS, 500 + memory + NOISE), axis=1)


@pytest.mark.parametrize(
    "memory",
    [
        pytest.param(5 * SECONDS / 3600, id="steadily"),
        pytest.param(1.5 * (SECONDS // 720), id="in steps every twelve minutes"),
        pytest.param(3.0 * (SECONDS > 1500) + 3.0 * (SECONDS > 2700), id="in two steps"),
        pytest.param(12.0 * (SECONDS > 2400), id="in one high step"),
    ],
)
def test_memory_that_grows_is_said_to(memory: NDArray[np.floating]) -> None:
    assert slope("train", "memory", rows(memory), 900).grows()


def test_one_low_step_is_told_apart_from_growth() -> None:
    found = slope("train", "memory", rows(6.0 * (SECONDS > 2400)), 900)
    assert not found.grows()
    assert found.step is not None
    assert found.step == pytest.approx((2400, 6.0), rel=0.03)
    assert abs(found.hourly) < found.within


def test_memory_that_stands_still_has_no_step() -> None:
    found = slope("train", "memory", rows(np.zeros_like(SECONDS)), 900)
    assert not found.grows()
    assert found.step is None


def test_a_thread_more_is_growth() -> None:
    threads = np.stack((SECONDS, 6.0 + (SECONDS > 2400)), axis=1)
    assert slope("train", "threads", threads, 900).grows()
