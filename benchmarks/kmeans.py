"""The local k-means of a batch against the same by broadcasting: `python -m benchmarks.kmeans`.

N = 256 rows of width 128, K = 128, 5 rounds: the CIFAR-10 setting of the paper. Both in turn, CPU time of one thread.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from cld_stream.learn.groups import local_kmeans

N, K, WIDTH, ROUNDS = 256, 128, 128, 5


def by_broadcasting(x_ND: Tensor, k: int, rounds: int) -> tuple[Tensor, Tensor]:
    """As one would write it down: all N x K x D differences."""
    centroids_KD = x_ND[:k].clone()
    for _ in range(rounds):
        labels_N = (x_ND[:, None] - centroids_KD[None]).square().sum(2).argmin(1)
        sums_KD = torch.zeros_like(centroids_KD).index_add(0, labels_N, x_ND)
        centroids_KD = sums_KD / torch.bincount(labels_N, minlength=k).clamp(min=1)[:, None]
    return labels_N, centroids_KD


class Largest(TorchFunctionMode):
    """Elements of the largest tensor that any call gives."""

    numel = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **kwargs or {})
        if isinstance(result, Tensor):
            self.numel = max(self.numel, result.numel())
        return result


def cpu(work: Callable[[], object], times: int) -> float:
    start = time.process_time()
    for _ in range(times):
        work()
    return 1e3 * (time.process_time() - start) / times


def main() -> None:
    """Compare and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--repeats", type=int, default=20)
    chosen = options.parse_args()
    torch.set_num_threads(1)
    x_ND = F.normalize(torch.randn(N, WIDTH, generator=torch.Generator().manual_seed(0)), dim=1)
    theirs, ours = by_broadcasting(x_ND, K, ROUNDS), local_kmeans(x_ND, K, ROUNDS)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
        f"torch {torch.__version__.partition('+')[0]}"
    )
    print(
        f"same labels: {torch.equal(theirs[0], ours[0])}, centroids differ by {(theirs[1] - ours[1]).abs().max():.0e}"
    )
    slow, fast = [], []
    for _ in range(chosen.repeats):
        slow.append(cpu(lambda: by_broadcasting(x_ND, K, ROUNDS), 3))
        fast.append(cpu(lambda: local_kmeans(x_ND, K, ROUNDS), 60))
    ratios = sorted(s / f for s, f in zip(slow, fast, strict=True))
    print(f"broadcast {statistics.median(slow):.1f} ms, local_kmeans {statistics.median(fast):.2f} ms")
    print(f"ratio: median {statistics.median(ratios):.0f}, from {ratios[0]:.0f} to {ratios[-1]:.0f}")
    for name, work in (("broadcast", by_broadcasting), ("local_kmeans", local_kmeans)):
        with Largest() as largest:
            work(x_ND, K, ROUNDS)
        print(f"largest tensor, {name}: {largest.numel:,} numbers")


if __name__ == "__main__":
    main()
