"""Compiles the native runtime where it can be; all else about the package stands in pyproject.toml.

Without a compiler, or where compiling fails, the package installs all the same, says so in a line and runs in PyTorch.
"""

import runpy
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

NATIVE = Path("src/deepnarrow/runtime/native")
BUILD = runpy.run_path(str(NATIVE / "build.py"))


class Build(build_ext):
    """One library, made by native/build.py; no module of Python's, so its name holds no version of Python."""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"

    def build_extension(self, ext: Extension) -> None:
        library = Path(self.get_ext_fullpath(ext.name))
        if not self.force and library.exists():
            changed = max(path.stat().st_mtime for path in NATIVE.iterdir() if path.is_file())
            if library.stat().st_mtime > changed:  # `pip install -e '.[dev]'` after `pip install -e .`
                return
        try:
            BUILD["build"](library)
        except BUILD["BuildError"] as error:
            self.distribution.ext_modules = []
            self.warn(f"the native runtime was not built, models will run in PyTorch: {error}")


class Wheel(bdist_wheel):
    """For any Python 3 on this kind of machine; for any machine, where there is no library."""

    def run(self) -> None:
        self.run_command("build")
        self.root_is_pure = not self.distribution.has_ext_modules()
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", "any") if self.root_is_pure else ("py3", "none", super().get_tag()[2])


setup(
    cmdclass={"build_ext": Build, "bdist_wheel": Wheel},
    ext_modules=[
        Extension(
            "deepnarrow.runtime._native",
            sources=sorted(str(path) for path in NATIVE.glob("*.cpp")),
            depends=sorted(str(path) for path in NATIVE.glob("*.h")),
            optional=True,
        )
    ],
)
