"""What this machine can do at best, so that a speed can be told as a share of it.

Two ceilings: how fast matrices are multiplied (GEMM, in GFLOP/s) and how fast memory is read (GB/s). Both are measured
with the same library and the same number of threads the model runs with, so they say what PyTorch reaches here, not
what the data sheet promises; a share near or above 100 % is possible and means "as good as that".

Reading depends on how much is read: what fits a cache comes faster. So `read_bandwidth` is asked for a working set.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from statistics import median

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Rows, inner, columns: first a small one, which shows whether larger ones fit the time (without units for bfloat16 a
# processor may do half a GFLOP/s in it), then some like T5's, then a large square.
PRODUCTS = ((512, 512, 512), (1024, 1024, 1024), (2048, 512, 2048), (2048, 2048, 2048))
PRODUCTS_CUDA = ((4096, 1024, 4096), (4096, 4096, 4096), (8192, 8192, 8192))
REPEATS = 5
GEMM_SECONDS = 0.8  # for each dtype; a size of which one product would take longer than what is left is not begun
READ_SECONDS = 0.15  # for each working set
BEYOND_CACHE = 2**28  # bytes; larger than any last-level cache of today's processors but a few servers'
BEYOND_CACHE_CUDA = 2**31


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """GFLOP/s of matrix products and GB/s (10**9 bytes) of reading more than the caches hold."""

    device: str
    threads: int
    gemm_float32_gflops: float
    gemm_bfloat16_gflops: float
    bandwidth_gbs: float

    def gemm(self, dtype: str) -> float:
        """The GFLOP/s ceiling for "float32" or "bfloat16"."""
        return self.gemm_bfloat16_gflops if dtype == "bfloat16" else self.gemm_float32_gflops


def ceilings(device: str = "cpu") -> Ceilings:
    """Measure once for each process, device and number of threads; about two seconds."""
    return _ceilings(device, torch.get_num_threads())


@cache
def _ceilings(device: str, threads: int) -> Ceilings:
    return Ceilings(
        device=device,
        threads=threads,
        gemm_float32_gflops=gemm_gflops("float32", device),
        gemm_bfloat16_gflops=gemm_gflops("bfloat16", device),
        bandwidth_gbs=read_bandwidth(BEYOND_CACHE_CUDA if device.startswith("cuda") else BEYOND_CACHE, device),
    )


def gemm_gflops(dtype: str, device: str = "cpu", *, seconds: float = GEMM_SECONDS) -> float:
    """The best size's median speed."""
    where = torch.device(device)
    best, began = 0.0, time.perf_counter()
    for rows, inner, columns in PRODUCTS_CUDA if where.type == "cuda" else PRODUCTS:
        flops = 2 * rows * inner * columns
        if best and time.perf_counter() - began + flops / (best * 1e9) > seconds:
            break
        left = torch.randn(rows, inner, device=where, dtype=DTYPES[dtype])
        right = torch.randn(inner, columns, device=where, dtype=DTYPES[dtype])
        out = torch.empty(rows, columns, device=where, dtype=DTYPES[dtype])
        taken: list[float] = []
        while len(taken) < 2 or (len(taken) <= REPEATS and time.perf_counter() - began < seconds):
            taken.append(elapsed(partial(torch.mm, left, right, out=out), where))
        best = max(best, flops / median(taken[1:]) / 1e9)  # the first warms up
    return best


def read_bandwidth(working_set: int, device: str = "cpu") -> float:
    """GB/s of reading `working_set` bytes over and over. Sizes within an eighth of each other share one measurement."""
    step = max(1, 2 ** (max(working_set, 4096).bit_length() - 4))
    return _read_bandwidth(-(-max(working_set, 4096) // step) * step, device, torch.get_num_threads())


@cache
def _read_bandwidth(size: int, device: str, threads: int) -> float:
    """A sum reads every byte once and writes nothing; the median of as many sweeps as fit `READ_SECONDS`."""
    where = torch.device(device)
    data = torch.ones(size // 4, device=where)
    elapsed(lambda: data.sum(), where)
    taken: list[float] = []
    end = time.perf_counter() + READ_SECONDS
    while len(taken) < 3 or time.perf_counter() < end:
        taken.append(elapsed(lambda: data.sum(), where))
    return data.nbytes / median(taken) / 1e9


def elapsed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds `work` takes, from an idle device to an idle device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
