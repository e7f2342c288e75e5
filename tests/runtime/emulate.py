"""The whole library with instructions that this processor lacks, emulated by SIMDe: `make emulate`.

Every set of kernels is then there, and the tests of the library run over all of them, forced one after another. Needs
x86-64 with AVX2 and Debian's libsimde-dev.
"""

import os
import runpy
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILD = runpy.run_path(str(ROOT / "src" / "deepnarrow" / "runtime" / "native" / "build.py"))
OUT = ROOT / "build" / "emulated" / "emulated.so"
NUMBERS = {"avx2vnni": 256, "avx512": 512, "avx512bf16": 513}  # as in emulated.h


def emulated_flags(number: int) -> list[str]:
    return [*BUILD["AVX2"], f"-DEMULATE={number}", "-include", str(HERE / "emulated.h"), "-Wno-psabi"]


def main() -> int:
    flags = {f"kernels_{name}.cpp": emulated_flags(number) for name, number in NUMBERS.items()}
    BUILD["build"](OUT, extra=["-DDN_EMULATED"], flags_of=flags)
    environment = {**os.environ, "DEEPNARROW_LIBRARY": str(OUT), "OMP_NUM_THREADS": "1"}
    environment.pop("DEEPNARROW_KERNELS", None)
    said = "from deepnarrow.runtime import native; print('emulated:', *native.kernels())"
    subprocess.run([sys.executable, "-c", said], env=environment, check=True)
    for command in ([str(ROOT / "tests" / "installed.py")], ["-m", "pytest", "tests/runtime/test_native.py"]):
        done = subprocess.run([sys.executable, *command], env=environment, cwd=ROOT)
        if done.returncode:
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
