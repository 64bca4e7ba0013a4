"""Freed memory that is taken again costs no page of the kernel's."""

import platform
import subprocess
import sys

import pytest

TAKE_AND_FREE = """
import resource, sys
import torch
from cld_stream.learn.memory import give_freed_memory_back, keep_freed_memory

if sys.argv[1] != "given back":
    keep_freed_memory()
def step():
    return [torch.ones(3_000_000 + 100_000 * i) for i in range(20)]  # 12 to 20 MB each
for _ in range(3):
    step()
if sys.argv[1] == "given back later":
    give_freed_memory_back()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str) -> int:
    run = subprocess.run([sys.executable, "-c", TAKE_AND_FREE, how], capture_output=True, text=True, check=True)
    return int(run.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc")
def test_steps_take_the_memory_that_steps_before_them_freed() -> None:
    given_back = page_faults("given back")
    assert given_back > 200  # pages of 2 MB, perhaps; else there is nothing to win here
    assert page_faults("kept") < given_back / 10
    assert page_faults("given back later") > given_back / 2
