"""How much memory a piece of work takes, and what happens when there is not enough."""

import ctypes
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from deepnarrow import machine

STATUS = Path("/proc/self/status")
SAMPLE_SECONDS = 0.002
RESERVE = 0.05  # share of the free memory that is left to the rest of the machine
FULL = re.compile(r"out of memory|can't allocate memory|not enough memory|bad_alloc|Cannot allocate memory", re.I)


class Peak:
    """Bytes by which the work inside `peak_growth` raised memory at its highest; None where that is not to be had."""

    bytes: int | None = None


@contextmanager
def peak_growth(device: torch.device) -> Iterator[Peak]:
    """Measure the block's peak: allocated memory on CUDA, the process's resident set elsewhere.

    The resident set is read from the kernel's own high-water mark (Linux), which is set back first. Where the kernel
    does not set it back, a thread looks every 2 ms. Memory freed before but not yet given back would hide growth, so
    it is given back first.
    """
    found = Peak()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield found
        found.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    give_back()
    start = resident("VmRSS")
    if start is None:
        yield found
    elif reset_high_water():
        yield found
        highest = resident("VmHWM")
        found.bytes = None if highest is None else max(0, highest - start)
    else:
        with sampled() as highest_seen:
            yield found
        found.bytes = max(0, max(highest_seen) - start)


def give_back() -> None:
    """Hand freed memory to the system, where the C library can (glibc)."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return


def resident(field: str) -> int | None:
    """Bytes of one line of the process's status, e.g. `VmRSS`, or None outside Linux."""
    try:
        match = re.search(rf"^{field}:\s+(\d+) kB", STATUS.read_text(), re.M)
    except OSError:
        return None
    return int(match[1]) * 1024 if match else None


def reset_high_water() -> bool:
    """Set `VmHWM` to what is resident now (man 5 proc: writing 5 to clear_refs)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    highest, now = resident("VmHWM"), resident("VmRSS")
    return highest is not None and now is not None and highest < now + 2**24


@contextmanager
def sampled() -> Iterator[list[int]]:
    """Look at the resident set until the block ends; the list holds what was seen."""
    seen = [resident("VmRSS") or 0]
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            seen[0] = max(seen[0], resident("VmRSS") or 0)
            time.sleep(SAMPLE_SECONDS)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def free_memory(device: torch.device) -> int | None:
    """Bytes this process may still take, by the machine and by the container's limit; None where nobody says."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return machine.free_memory()


@contextmanager
def fenced(device: torch.device) -> Iterator[None]:
    """Make an allocation beyond the free memory fail here, as an error, before the system ends the process for it."""
    data, free = resident("VmData"), free_memory(device)
    if device.type == "cuda" or data is None or free is None:
        yield
        return
    import resource  # Unix alone, as is the file read above

    old = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = data + int(free * (1 - RESERVE))
    if old[0] != resource.RLIM_INFINITY:
        wanted = min(wanted, old[0])
    resource.setrlimit(resource.RLIMIT_DATA, (wanted, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, old)


def is_full(error: BaseException) -> bool:
    """Whether an error means that memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(FULL.search(str(error)))
