"""Every set of kernels against the plainest sums (kernels_check.cpp): as shipped, and with memory and numbers watched.

A processor's own instructions run where it has them. AVX-512 and VNNI are else emulated, by SIMDe (Debian's
libsimde-dev), and ARM by qemu (g++-aarch64-linux-gnu, qemu-user-static).
"""

import platform
import runpy
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from deepnarrow.runtime import native
from deepnarrow.runtime.format import write
from deepnarrow.runtime.layout import PRECISIONS, layout
from deepnarrow.shapes.shape import parse

HERE = Path(__file__).parent
NATIVE = HERE.parents[1] / "src" / "deepnarrow" / "runtime" / "native"
BUILD = runpy.run_path(str(NATIVE / "build.py"))
NEEDED = {  # what Linux calls the instructions of a set, and the number that emulated.h knows it by
    "avx2": ("avx2 fma f16c", 0),
    "avx2vnni": ("avx2 fma f16c avx_vnni", 256),
    "avx512": ("avx512f avx512bw avx512dq avx512vl avx512_vnni", 512),
    "avx512bf16": ("avx512f avx512bw avx512dq avx512vl avx512_vnni avx512_bf16", 513),
}
WATCHED = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1")

pytestmark = pytest.mark.slow


def compiler() -> list[str]:
    try:
        return BUILD["default_compiler"]()
    except BUILD["BuildError"] as error:
        pytest.skip(str(error))


def has(flags: str) -> bool:
    info = Path("/proc/cpuinfo")
    return info.exists() and set(flags.split()) <= set(info.read_text().split())


def own_flags(name: str, command: list[str]) -> list[str]:
    """A set's flags where this machine can run them, else those of its emulation; skips where neither is to be had."""
    if name == "portable":
        return []
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip(f"{name} is of another processor")
    needed, emulation = NEEDED[name]
    if has(needed):
        return list(BUILD["KERNELS"][f"kernels_{name}.cpp"][1])
    if not emulation or not has(NEEDED["avx2"][0]):
        pytest.skip(f"this processor lacks {needed}")
    header = subprocess.run([*command, "-E", "-x", "c++", "-"], input="#include <simde/simde-common.h>", text=True,
                            capture_output=True)  # fmt: skip
    if header.returncode:
        pytest.skip(f"this processor lacks {needed}, and SIMDe, which emulates it, is not installed")
    return [*BUILD["AVX2"], f"-DEMULATE={emulation}", "-include", str(HERE / "emulated.h"), "-Wno-psabi"]


def check(command: list[str], name: str, flags: Sequence[str], folder: Path, run_by: Sequence[str] = ()) -> None:
    program, kernels = folder / "check", folder / "kernels.o"
    common = [*command, *BUILD["FLAGS"], f"-I{NATIVE}"]
    BUILD["run"]([*common, *flags, "-c", str(NATIVE / f"kernels_{name}.cpp"), "-o", str(kernels)])
    plain = [flag for flag in flags if flag in WATCHED or flag == "-static"]  # the checks themselves: for any processor
    BUILD["run"]([*common, "-O1", *plain, f"-DCHECKED=kernels_{name}", str(HERE / "kernels_check.cpp"), str(kernels),
                  "-o", str(program)])  # fmt: skip
    done = subprocess.run([*run_by, str(program)], capture_output=True, text=True, timeout=600)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == f"{name} passed"


@pytest.mark.parametrize("name", ["portable", *NEEDED])
@pytest.mark.parametrize("watched", [(), WATCHED], ids=["shipped", "watched"])
def test_kernels_compute_what_plain_sums_do(name: str, watched: Sequence[str], tmp_path: Path) -> None:
    command = compiler()
    check(command, name, [*own_flags(name, command), *watched], tmp_path)


def arm() -> tuple[str, str]:
    """A compiler and an emulator."""
    command = shutil.which("aarch64-linux-gnu-g++")
    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if not command or not emulator:
        pytest.skip("needs aarch64-linux-gnu-g++ and qemu's user emulation")
    return command, emulator


def test_kernels_for_arm(tmp_path: Path) -> None:
    command, emulator = arm()
    check([command], "portable", ["-static"], tmp_path, run_by=[emulator])


def test_the_network_on_arm(tmp_path: Path) -> None:
    """Logits of whole models: those of the library here."""
    command, emulator = arm()
    if not native.usable():
        pytest.skip("the native library is not built")
    texts = [*BUILD["sources"]("aarch64", {}), HERE / "network_check.cpp"]
    program, path, rng = tmp_path / "network", tmp_path / "model.dn", np.random.default_rng(5)
    BUILD["run"]([command, *BUILD["FLAGS"], "-O2", "-static", f"-I{NATIVE}", *map(str, texts), "-o", str(program)])
    for name in ("tiny-nl2-dm64-ff96-kv16-nh4-v300", "tiny-el1-dl2-dm40-ff36-kv12-nh4-kh2-skv-v67-geglu-untied"):
        for precision in PRECISIONS:
            shape = parse(name)
            tensors = {
                part: rng.normal(size=(rows, section.columns)).astype(np.float32) * 0.2
                for section in layout(shape, precision).sections
                for part, rows in section.parts
            }
            write(path, shape, precision, tensors)
            engine = native.open_engine(path, kernels="portable")
            ids, answer = [*range(3, 30), 1], [0, 7, 9, 40, 12]
            [memory] = engine.encode([ids])
            row = engine.start(memory)
            here = np.concatenate([engine.logits([row], [[token]]) for token in answer])
            given = bytes(native.described(shape, precision))
            for part in (engine.file.payload, np.array(ids, np.int32), np.array(answer, np.int32)):
                given += np.int64(part.nbytes if part is engine.file.payload else len(part)).tobytes() + part.tobytes()
            done = subprocess.run([emulator, str(program)], input=given, capture_output=True, timeout=600)
            assert done.returncode == 0, done.stderr
            there = np.frombuffer(done.stdout, np.float32).reshape(here.shape)
            np.testing.assert_allclose(there, here, atol=2e-4 * np.abs(here).max(), err_msg=f"{name} {precision}")


@pytest.mark.parametrize("name", ["portable", *NEEDED])
def test_kernels_lend_no_function_to_the_rest(name: str, tmp_path: Path) -> None:
    """What one set compiles must never be linked in place of another's: an older processor would stop at it."""
    if name != "portable" and platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip(f"{name} is of another processor")
    if not shutil.which("nm"):
        pytest.skip("needs nm")
    made = tmp_path / "kernels.o"
    flags = BUILD["KERNELS"].get(f"kernels_{name}.cpp", ("", ()))[1]
    BUILD["run"]([*compiler(), *BUILD["FLAGS"], *flags, "-c", str(NATIVE / f"kernels_{name}.cpp"), "-o", str(made)])
    shared = [line.split()[-1] for line in BUILD["run"](["nm", "-C", "--defined-only", "-g", str(made)]).splitlines()]
    assert shared == [f"dn::kernels_{name}()"]
