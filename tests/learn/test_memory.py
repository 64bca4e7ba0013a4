"""Freed memory that is taken again costs no page of the kernel's."""

import platform
import subprocess
import sys

import pytest

TAKE_AND_FREE = """
import resource, sys
import torch
from cld_stream.learn.memory import give_freed_memory_back, keep_freed_memory

order = (give_freed_memory_back, keep_freed_memory)
for tell in order if sys.argv[1] == "kept" else reversed(order):
    tell()
def step():
    return [torch.ones(3_000_000 + 100_000 * i) for i in range(20)]  # 12 to 20 MB each
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str) -> int:
    run = subprocess.run([sys.executable, "-c", TAKE_AND_FREE, how], capture_output=True, text=True, check=True)
    return int(run.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc")
def test_steps_take_the_memory_that_steps_before_them_freed_until_it_is_given_back() -> None:
    """Without either it is now this, now that: glibc moves its own thresholds."""
    given_back = page_faults("given back")
    assert given_back > 200  # pages of 2 MB, perhaps
    assert page_faults("kept") < given_back / 10
