"""Memory: growth is seen, and running out of it is an outcome."""

import subprocess
import sys

import pytest
import torch

from deepnarrow.measure import memory
from deepnarrow.measure.memory import fenced, free_memory, is_full, peak_growth, resident

CPU = torch.device("cpu")
linux = pytest.mark.skipif(resident("VmRSS") is None, reason="reads /proc, which only Linux has")


@linux
def test_the_peak_is_seen_though_it_is_gone_at_the_end() -> None:
    with peak_growth(CPU) as peak:
        data = torch.ones(25_000_000)  # 100 MB
        del data
    assert peak.bytes is not None
    assert 95e6 < peak.bytes < 140e6


@linux
def test_without_the_kernels_mark_a_thread_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "reset_high_water", lambda: False)
    with peak_growth(CPU) as peak:
        data = [torch.ones(2_500_000) for _ in range(10)]
        data.append(sum(data))
    assert peak.bytes is not None
    assert 80e6 < peak.bytes < 250e6


def test_where_nobody_says_the_answer_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "STATUS", memory.Path("/nonexistent"))
    with peak_growth(CPU) as peak:
        torch.ones(1000)
    assert peak.bytes is None
    with fenced(CPU):
        torch.ones(1000)


@linux
def test_behind_the_fence_a_large_allocation_is_an_error_and_not_the_end() -> None:
    """In a process of its own: a fence is a limit on the process."""
    script = (
        "import torch; from deepnarrow.measure import memory\n"
        "memory.free_memory = lambda device: 200_000_000\n"
        "try:\n"
        "    with memory.fenced(torch.device('cpu')):\n"
        "        torch.ones(10_000_000)\n"
        "        torch.ones(100_000_000)\n"
        "except RuntimeError as error:\n"
        "    print('full', memory.is_full(error))\n"
        "print('after', torch.ones(100_000_000).numel())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["full", "True", "after", "100000000"]


def test_only_memory_is_memory() -> None:
    assert is_full(MemoryError())
    assert is_full(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_full(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"))
    assert not is_full(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_full(ValueError("out of memory"))


def test_free_memory_is_some() -> None:
    free = free_memory(CPU)
    assert free is None or free > 0
