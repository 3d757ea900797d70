"""Builds the library that ONNX Runtime loads to run ``rednet::Involution2d``."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import torch

import rednet.ops.cpu
from rednet.errors import MissingDependencyError, UserError

HEADER = "onnxruntime_c_api.h"
# GCC's and clang's names for what the builds of the CPU backend use, by PyTorch's names.
INSTRUCTIONS = {"AVX512": ["-march=x86-64-v4"], "AVX2": ["-march=x86-64-v3"], "DEFAULT": []}

_SOURCE = Path(__file__).parent / "involution.cpp"
_KERNELS = Path(rednet.ops.cpu.__file__).parent / "src"
_FLAGS = ("-shared", "-fPIC", "-std=c++17", "-O3", "-fvisibility=hidden", "-fno-math-errno")


def build_library(headers: str | Path, path: str | Path, instructions: str | None = None) -> None:
    """Compiles the library with the C++ compiler that ``$CXX`` names, or else ``c++``.

    Args:
        headers: The folder of ONNX Runtime's ``onnxruntime_c_api.h``.
        path: The library to write.
        instructions: A key of ``INSTRUCTIONS``; None for what this processor can run.

    Raises:
        UserError: If the headers are not there, or the compiler refuses.
        MissingDependencyError: If there is no compiler.
    """
    if not Path(headers, HEADER).is_file():
        raise UserError(
            f"there is no {HEADER} in {headers}: give the folder of ONNX Runtime's C headers, "
            "include/ in its releases and include/onnxruntime/core/session in its sources"
        )
    capability = instructions or torch.backends.cpu.get_cpu_capability()
    compiler = os.environ.get("CXX", "c++")
    command = [
        compiler,
        *_FLAGS,
        *INSTRUCTIONS.get(capability, []),
        f"-I{headers}",
        f"-I{_KERNELS}",
    ]
    try:
        done = subprocess.run(
            [*command, str(_SOURCE), "-o", str(path)], capture_output=True, text=True
        )
    except FileNotFoundError as error:
        raise MissingDependencyError(f"there is no C++ compiler {compiler}") from error
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line]
        reason = errors[0] if errors else f"exit code {done.returncode}"
        raise UserError(f"{compiler} cannot build the library: {reason}")
