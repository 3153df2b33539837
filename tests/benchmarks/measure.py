"""Clocks and limits that the benchmarks share."""

import contextlib
import ctypes
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil
import torch


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """The result of `work`, its wall time in seconds, and the memory it added at its peak in MB."""
    process, done = psutil.Process(), threading.Event()
    with contextlib.suppress(OSError, AttributeError):  # glibc: memory kept for later is not used
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = process.memory_info().rss
    peak = [before]

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], process.memory_info().rss)

    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    start = time.perf_counter()
    result = work()
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    added = torch.cuda.max_memory_allocated() if cuda else peak[0] - before
    return result, seconds, added / 1e6


def matmul_rate(device: torch.device, size: int = 2048) -> float:
    """Floating-point operations a second of a large float32 matrix product: the best of five."""
    a, b = torch.randn(2, size, size, device=device)
    best = min(timed(lambda: a @ b)[1] for _ in range(6))
    return 2 * size**3 / best
