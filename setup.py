"""Adds the compiled CPU kernels to what setup.cfg describes.

They are optional: where no C++ compiler is, the package installs without them and says so at the
first use. They know neither Python nor PyTorch, so they build without either's headers.
"""

from __future__ import annotations

import platform
import zlib
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

SOURCES = Path("rednet", "ops", "cpu", "src")
FILES = sorted(path for end in ("h", "cpp") for path in SOURCES.glob(f"[!.]*.{end}"))
# rednet/ops/cpu/loader.py compares it with the sources that it finds.
CHECKSUM = zlib.crc32(b"".join(path.read_bytes() for path in FILES))
INSTRUCTION_SETS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx2", "-mfma", *(f"-mavx512{part}" for part in ("f", "bw", "dq", "vl"))],
}


def kernels(name: str, flags: list[str]) -> Extension:
    """The kernels for one instruction set.

    They are linked to no OpenMP: its functions are those of the library that PyTorch has loaded.
    """
    return Extension(
        f"rednet.ops.cpu._{name}",
        [str(SOURCES / f"{name}.cpp")],
        depends=[str(header) for header in sorted(SOURCES.glob("*.h"))],
        define_macros=[("REDNET_CHECKSUM", f"{CHECKSUM}u")],
        extra_compile_args=[
            *("-std=c++17", "-O3", "-g0", "-fvisibility=hidden"),
            *("-fno-math-errno", "-fno-trapping-math", *flags),
        ],
        optional=True,
    )


class BuildLibraries(build_ext):
    """Builds shared libraries that no Python ABI is part of: ctypes loads them, not Python."""

    def get_ext_filename(self, fullname: str) -> str:
        """The file of a library, without the tag of a Python version."""
        return f"{Path(*fullname.split('.'))}.so"


class AnyPythonWheel(bdist_wheel):
    """A wheel for one platform and every Python."""

    def get_tag(self) -> tuple[str, str, str]:
        """Tags of Python, ABI and platform."""
        return "py3", "none", super().get_tag()[2]


names = list(INSTRUCTION_SETS) if platform.machine() == "x86_64" else ["baseline"]
setup(
    ext_modules=[kernels(name, INSTRUCTION_SETS[name]) for name in names],
    cmdclass={"build_ext": BuildLibraries, "bdist_wheel": AnyPythonWheel},
    options={"build_ext": {"parallel": len(names)}},
)
