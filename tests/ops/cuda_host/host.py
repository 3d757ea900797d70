r"""Compiles the CUDA kernels for the CPU and launches them there, in place of CuPy.

``CUDA_HOST_FLAGS`` adds flags to the compiler's. With a sanitizer the tests find accesses out of
bounds, misaligned ones, undefined arithmetic and races between the threads of a block:

    CUDA_HOST_FLAGS="-fsanitize=address,undefined -fno-sanitize-recover=all" \
        LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libstdc++.so)" \
        ASAN_OPTIONS=detect_leaks=0 python -m pytest -s tests/ops/test_cuda.py
    CUDA_HOST_FLAGS=-fsanitize=thread \
        LD_PRELOAD="$(g++ -print-file-name=libtsan.so) $(g++ -print-file-name=libstdc++.so)" \
        TSAN_OPTIONS=halt_on_error=1 OMP_NUM_THREADS=1 \
        setarch -R python -m pytest -s tests/ops/test_cuda.py
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import torch

from rednet.ops.cuda.compiler import SOURCES, Arguments, Kernel, read_source
from rednet.ops.cuda.plan import Launch
from rednet.ops.cuda.problem import PROBLEM, Specialization

FOLDER = Path(__file__).parent
COMPILER = shutil.which("g++") or shutil.which("clang++")
_FLAGS = ("-std=c++17", "-O1", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-unused", "-Werror")
_MORE_FLAGS = os.environ.get("CUDA_HOST_FLAGS", "").split()


class HostCompiler:
    """Makes kernels that run on the CPU.

    Attributes:
        compiled: Every specialization that was compiled, in order.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.compiled: list[Specialization] = []

    def __call__(self, specialization: Specialization, device: torch.device) -> Kernel:
        target = self._folder / f"{len(self.compiled)}.so"
        library = build(specialization, target, "-shared", "-fPIC")
        self.compiled.append(specialization)
        entry = ctypes.CDLL(str(library)).launch
        entry.restype = ctypes.c_char_p

        def launch_kernel(launch: Launch, arguments: Arguments, device: torch.device) -> None:
            grid = (launch.blocks, launch.threads, ctypes.c_size_t(launch.shared_bytes))
            error = entry(_pointers(arguments), *grid, int(torch.randint(2**31, ())))
            assert error is None, error.decode()

        return launch_kernel


def build(specialization: Specialization, target: Path, *flags: str) -> Path:
    """Compiles one specialization, with ``launch.cpp`` behind it."""
    macros = (f"#define {name} {value}\n" for name, value in specialization.macros().items())
    text = [
        *macros,
        (FOLDER / "emulated_device.h").read_text(),
        *map(read_source, SOURCES),
        (FOLDER / "launch.cpp").read_text(),
    ]
    source = target.with_suffix(".cpp")
    source.write_text("".join(text))
    command = [COMPILER, *_FLAGS, *_MORE_FLAGS, *flags, "-o", target, source]
    # A sanitizer that is loaded before Python would watch the compiler, too.
    subprocess.run(command, env={**os.environ, "LD_PRELOAD": ""}, check=True)
    return target


def _pointers(arguments: Arguments) -> ctypes.Array:
    """Pointers to the values, scalars or arrays of one, as CuPy hands them to cuLaunchKernel."""
    values = [np.asarray(argument) for argument in arguments]
    assert [value.dtype for value in values] == [np.uint64, np.uint64, np.uint64, PROBLEM]
    assert all(value.size == 1 for value in values)
    return (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
