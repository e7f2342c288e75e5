"""The native library with its memory, its arithmetic, its leaks and its threads watched: `make sanitize`, `make fuzz`.

Needs GCC's sanitizers, on Linux. The library is built anew with each, and loaded into a Python that is not, so that the
sanitizer comes first by LD_PRELOAD; C++'s own library comes with it, for the sanitizer has to find what it stands in
front of. Three things are not of the library and left aside:

- leaks of Python and of what it imports: objects of modules live until the process ends. A leak counts where the
  library stands in the stack that asked for the memory.
- one test that measures the process's memory: the sanitizer keeps what was freed, to see who still reads it.
- threads of anything but the library: only it is built for the thread sanitizer, which runs without torch.
"""

import argparse
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
NATIVE = ROOT / "src" / "deepnarrow" / "runtime" / "native"
BUILD = runpy.run_path(str(NATIVE / "build.py"))
OUT = ROOT / "build" / "sanitize"
TESTS = [  # of the library; those of searches over it train and decode in PyTorch too, which takes hours when watched
    f"tests/runtime/test_{name}.py" for name in ("native", "format", "fuzz")
]
MEASURED = "tests/runtime/test_native.py::test_rows_and_memories_are_given_back"
ADDRESS = "halt_on_error=1:detect_leaks=1:malloc_context_size=12:intercept_tls_get_addr=0"


def library(kind: str) -> Path:
    """Built where it is older than its sources."""
    out = OUT / f"{kind.split(',')[0]}.so"
    if not out.exists() or out.stat().st_mtime < max(path.stat().st_mtime for path in NATIVE.iterdir()):
        BUILD["build"](out, sanitize=kind)
    return out


def watched(kind: str, arguments: list[str], **others: str) -> list[str]:
    """Run Python over a watched library; its output, its last line shown. Ends the program on any finding."""
    built, logs = library(kind), OUT / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    for old in logs.iterdir():
        old.unlink()
    compiler = BUILD["default_compiler"]()
    first = "libasan.so" if kind.startswith("address") else "libtsan.so"
    preload = [BUILD["run"]([*compiler, f"-print-file-name={name}"]).strip() for name in (first, "libstdc++.so")]
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(preload),
        "DEEPNARROW_LIBRARY": str(built),
        "PYTHONMALLOC": "malloc",  # Python's own pools would hide what lies beside an array
        "OMP_NUM_THREADS": "2",
        "ASAN_OPTIONS": ADDRESS,
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "LSAN_OPTIONS": f"exitcode=0:log_path={logs / 'leaks'}",
        "TSAN_OPTIONS": "halt_on_error=1:exitcode=66",
        **others,
    }
    plain = ["setarch", "-R"] if kind == "thread" else []  # the thread sanitizer knows no addresses laid out at random
    done = subprocess.run([*plain, sys.executable, *arguments], env=environment, cwd=ROOT, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace")  # fmt: skip
    lines = done.stdout.strip().splitlines()
    if done.returncode:
        print(done.stdout[-8000:])
        sys.exit(f"{kind}: {' '.join(arguments)} ended with {done.returncode}")
    leaks = [text for path in logs.glob("leaks*") for text in path.read_text(errors="replace").split("\n\n")]
    if ours := [leak for leak in leaks if "/runtime/native/" in leak or built.name in leak]:
        sys.exit(f"{kind}: {len(ours)} leaks of the library\n{ours[0]}")
    print(f"{kind}: {lines[-1] if lines else 'no output'}", flush=True)
    return lines


def threads() -> str:
    """The pool by itself, built with the thread sanitizer throughout."""
    program = OUT / "threads_check"
    OUT.mkdir(parents=True, exist_ok=True)
    flags = ["-std=c++17", "-O1", "-g", "-pthread", "-fsanitize=thread", f"-I{NATIVE}"]
    texts = [str(HERE / "threads_check.cpp"), str(NATIVE / "threads.cpp")]
    BUILD["run"]([*BUILD["default_compiler"](), *flags, *texts, "-o", str(program)])
    done = subprocess.run(["setarch", "-R", str(program)], capture_output=True, text=True, timeout=600)
    if done.returncode:
        sys.exit(f"thread: the pool\n{done.stdout}{done.stderr[-6000:]}")
    print(f"thread: {done.stdout.strip()}", flush=True)
    return done.stdout


def sanitize(seconds: float) -> None:
    threads()
    tests = watched(
        "address,undefined", ["-m", "pytest", "--capture=no", *TESTS, "--deselect", MEASURED, "-m", "not slow"]
    )
    passed = re.search(r"(\d+) passed", tests[-1])
    if not passed:
        sys.exit("no test ran")
    fuzz = ["tests/runtime/test_fuzz.py", "--seconds", str(seconds)]
    watched("address,undefined", fuzz)
    watched("thread", fuzz, PYTHONMALLOC="pymalloc")
    print(
        f"sanitizers: memory, arithmetic, leaks and threads are clean: {passed[1]} tests, twice {seconds:.0f} s of fuzz"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--fuzz", type=float, metavar="SECONDS", help="only fuzz the file loader, so long")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    if asked.fuzz is None:
        return sanitize(60)
    lines = watched("address,undefined", ["tests/runtime/test_fuzz.py", "--seconds", str(asked.fuzz), "--seed",
                                          str(asked.seed), "--folder", str(OUT / "fuzz")])  # fmt: skip
    return print(lines[-1])


if __name__ == "__main__":
    sys.exit(main())
