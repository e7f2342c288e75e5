"""Compiles the native library: which source with which flags, in one place.

`setup.py` calls `build` when the package is installed; as a script it makes the library anew after a change, or a
variant of it for a check (of memory, of threads, for another processor):

    python src/deepnarrow/runtime/native/build.py
    python src/deepnarrow/runtime/native/build.py --out build/address.so --sanitize address,undefined

Needs a compiler (GCC 11, Clang 12 or later) and nothing but Python's own library: it runs before anything is installed.
The kernels stand in one text that is compiled once for each set of instructions; a run of the library looks at the
processor and takes the best, so that a library made on one machine serves on another.
"""

import argparse
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
LIBRARY = HERE.parent / "_native.so"  # one name on Linux and macOS: it is opened by path, never imported
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-fno-math-errno", "-pthread")
WARNINGS = ("-Wall", "-Wextra")
AVX2 = ("-mavx2", "-mfma", "-mf16c")
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni")
KERNELS = {  # a source that is made for some processors alone: (their architecture, their flags)
    "kernels_avx2.cpp": ("x86_64", AVX2),
    "kernels_avx2vnni.cpp": ("x86_64", (*AVX2, "-mavxvnni")),
    "kernels_avx512.cpp": ("x86_64", AVX512),
    "kernels_avx512bf16.cpp": ("x86_64", (*AVX512, "-mavx512bf16")),
}
EXPORTED = "{ global: dn_*; local: *; };"  # templates of C++'s library would be seen, and exchanged with another's
SECONDS = 600  # for one source; the largest takes some ten


class BuildError(Exception):
    """Why there will be no library, in one line."""


def build(
    out: Path,
    *,
    compiler: Sequence[str] | None = None,
    sanitize: str = "",
    extra: Sequence[str] = (),
    flags_of: dict[str, Sequence[str]] | None = None,
    jobs: int | None = None,
) -> Path:
    """Compile every source beside this file and link them into `out`; raises `BuildError`.

    `sanitize` is what to give to -fsanitize, `extra` goes to every command, and `flags_of` takes the place of a
    source's own flags (so that an emulation can be built without them). A kernel made for another architecture is left
    out, unless `flags_of` names it.
    """
    command = list(compiler or default_compiler())
    architecture = target(command)
    flags = [*FLAGS, *WARNINGS, *shlex.split(os.environ.get("CXXFLAGS", "")), *extra]
    if sanitize:  # lines and frames for its reports; the first finding ends the run
        flags += [f"-fsanitize={sanitize}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g", "-O1"]
    with tempfile.TemporaryDirectory() as folder:
        made = []
        for source in sources(architecture, flags_of or {}):
            own = (flags_of or {}).get(source.name, KERNELS.get(source.name, ("", ()))[1])
            target_file = Path(folder, source.with_suffix(".o").name)
            made.append(([*command, *flags, *own, "-c", str(source), "-o", str(target_file)], target_file))
        if not made:
            raise BuildError(f"no sources in {HERE}")
        with ThreadPoolExecutor(jobs or os.cpu_count()) as pool:
            list(pool.map(run, [line for line, _ in made]))
        linked, exported = Path(folder, out.name), Path(folder, "exported")
        exported.write_text(EXPORTED)
        objects = [str(item) for _, item in made]
        run([*command, *flags, "-shared", *objects, "-o", str(linked), *link(sanitize, exported)])
        out.parent.mkdir(parents=True, exist_ok=True)
        beside = out.with_name(f".{out.name}.{os.getpid()}")  # a process may have the old one mapped: rename over it
        shutil.copy(linked, beside)
        os.replace(beside, out)
    return out


def sources(architecture: str, flags_of: dict[str, Sequence[str]]) -> list[Path]:
    """What to compile for an architecture."""
    return [
        path
        for path in sorted(HERE.glob("*.cpp"))
        if path.name in flags_of or KERNELS.get(path.name, (architecture,))[0] == architecture
    ]


def link(sanitize: str, exported: Path) -> list[str]:
    """C++'s own library goes into ours, hidden: it then runs beside any other, and where there is none."""
    if sys.platform == "darwin" or sanitize:
        return []
    return ["-static-libstdc++", "-static-libgcc", f"-Wl,--version-script={exported}", "-Wl,-z,defs"]


def default_compiler() -> list[str]:
    """The compiler of CXX, else the first that is there, for the one architecture that ARCHFLAGS asks for."""
    named = shlex.split(os.environ.get("CXX", ""))
    found = named or next(([path] for name in COMPILERS if (path := shutil.which(name))), [])
    if not found or not shutil.which(found[0]):
        raise BuildError(f"no C++ compiler ({found[0] if found else ', '.join(COMPILERS)})")
    return [*found, *shlex.split(os.environ.get("ARCHFLAGS", ""))]


def target(command: Sequence[str]) -> str:
    """The architecture that a compiler makes code for: "x86_64", "arm64", ..., as it says itself.

    Asked of two at once (macOS's "universal"), a compiler names one; the kernels are compiled for one at a time.
    """
    if list(command).count("-arch") > 1:
        raise BuildError(f"one architecture at a time, not {' '.join(command)}")
    if "-arch" in command:
        return command[list(command).index("-arch") + 1]
    name = run([*command, "-dumpmachine"]).split("-")[0] or platform.machine()
    return {"amd64": "x86_64"}.get(name, name)


def run(command: Sequence[str]) -> str:
    """A command's output; where it fails, its first line that tells of an error."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]}: {error}") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
        raise BuildError(next((line for line in lines if "error" in line.lower()), lines[-1]).strip())
    if done.stderr.strip() and __name__ == "__main__":
        print(done.stderr.strip(), file=sys.stderr)  # warnings, for who works on the sources
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description="Compile the native library.")
    parser.add_argument("--out", type=Path, default=LIBRARY, help="where to (default: %(default)s)")
    parser.add_argument("--sanitize", default="", help="such as address,undefined or thread")
    parser.add_argument("--compiler", type=shlex.split, help="such as aarch64-linux-gnu-g++")
    parser.add_argument("--extra", type=shlex.split, default=[], help="more flags for every command")
    parser.add_argument("--jobs", type=int, help="compilers at once (default: one for each processor)")
    asked = parser.parse_args()
    try:
        out = build(asked.out, compiler=asked.compiler, sanitize=asked.sanitize, extra=asked.extra, jobs=asked.jobs)
    except BuildError as error:
        sys.exit(f"{asked.out.name} was not built: {error}")
    print(out)


if __name__ == "__main__":
    main()
