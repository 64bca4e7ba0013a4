"""Products of float32 that are float32, at the full speed of the CPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

__all__ = ["fast_float32"]


@contextmanager
def fast_float32(device: torch.device) -> Iterator[None]:
    """No autocast and no reduced precision in the block, and on a CPU the faster of the two libraries for products.

    MKL, torch's first choice, uses half of AVX-512 on processors of AMD. torch's "medium" hands float32 products to
    oneDNN and allows it to round factors to bf16, which it does only on CPUs with units for that (AMX); on all others
    it is float32 at full speed. See docs/decisions/034-float32-on-cpus.md.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if device.type == "cpu" and _medium_is_exact() else "highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@cache
def _medium_is_exact() -> bool:
    """Whether "medium" rounds no factor on this CPU: tried on one that neither bf16 nor TF32 can hold."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    ones = torch.ones(256, 256)
    exact = torch.equal((1 + 2**-12) * ones @ ones, (256 + 2**-4) * ones)
    torch.set_float32_matmul_precision(before)
    return exact
