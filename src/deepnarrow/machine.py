"""What a number was measured with: the machine, the versions and the commit. No torch import."""

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from deepnarrow import __version__

RECORDED = ("torch", "numpy", "tokenizers", "sentencepiece", "safetensors")


@cache
def describe() -> dict[str, object]:
    """Processor, cores this process may use, memory in GiB, operating system."""
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(memory_bytes() / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


@cache
def versions() -> dict[str, str]:
    """Versions of Python, of this package and of the libraries that shape a result."""
    found = {"python": platform.python_version(), "deepnarrow": __version__}
    for name in RECORDED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


@cache
def commit() -> str | None:
    """The commit of the source tree this package runs from, `+dirty` if it was changed; None when it was installed."""
    folder = Path(__file__).resolve().parent
    if not (folder.parent.parent / ".git").exists():
        return None
    try:
        head = run("git", "rev-parse", "--short=12", "HEAD", folder=folder)
        dirty = run("git", "status", "--porcelain", "--untracked-files=no", folder=folder)
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+dirty" if dirty else "")


def today() -> str:
    """Now, in UTC, to the second: `2026-11-24T10:46:25Z`."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0


def run(*command: str, folder: Path) -> str:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10, check=True).stdout.strip()


def free_memory() -> int | None:
    """Bytes this process may still take, by the machine and by the container's limit; None where nobody says."""
    try:
        match = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.M)
    except OSError:
        return None
    limits = [int(match[1]) * 1024] if match else []
    for limit, used in (
        ("memory.max", "memory.current"),  # cgroup 2
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),  # cgroup 1
    ):
        try:
            folder = Path("/sys/fs/cgroup")
            limits.append(int((folder / limit).read_text()) - int((folder / used).read_text()))
        except (OSError, ValueError):
            continue
    return max(0, min(limits)) if limits else None
