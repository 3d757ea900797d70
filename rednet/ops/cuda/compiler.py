"""The kernels' source, and CuPy, which compiles and launches it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np
import torch

from rednet.ops.cuda.plan import Launch
from rednet.ops.cuda.problem import Specialization

ENTRY_POINT = "involution"
OPTIONS = ("--std=c++17",)
# The first file holds all that needs a GPU. They are joined, not included: CuPy's disk cache goes
# by the text that it is given.
DEVICE_SOURCE = "device.cuh"
SOURCES = ("scalars.cuh", "problem.cuh", "memory.cuh", "staging.cuh", "involution.cu")

# The addresses of the three tensors and a single ``PROBLEM``: what the kernel takes, in its order.
Arguments = tuple[np.uint64, np.uint64, np.uint64, np.ndarray]
# kernel(launch, arguments, device) launches it on the current stream of the device.
Kernel = Callable[[Launch, Arguments, torch.device], None]
# compile(specialization, device) makes it or raises a CompilationError.
Compiler = Callable[[Specialization, torch.device], Kernel]


class CompilationError(RuntimeError):
    """The compiler refuses a kernel."""


@cache
def read_source(name: str) -> str:
    """A source file of this package."""
    return (files(__package__) / name).read_text(encoding="utf-8")


def source(specialization: Specialization) -> str:
    """The complete source of one specialization; it includes no other file."""
    macros = (f"#define {name} {value}\n" for name, value in specialization.macros().items())
    return "".join((*macros, *map(read_source, (DEVICE_SOURCE, *SOURCES))))


class _Stream(NamedTuple):
    """What CuPy needs of a stream that is given with a launch."""

    ptr: int


def compile_with_cupy(specialization: Specialization, device: torch.device) -> Kernel:
    """Compiles with NVRTC, or loads what it compiled once from CuPy's disk cache.

    The kernel serves every device; CuPy compiles it anew for each architecture.

    Raises:
        CompilationError: If NVRTC refuses the source. What may go well another time (no memory, a
            stream that is being captured) is left as CuPy raises it.
    """
    import cupy

    with torch.cuda.device(device):
        module = cupy.RawModule(code=source(specialization), options=OPTIONS)
        try:
            function = module.get_function(ENTRY_POINT)
        except cupy.cuda.compiler.CompileException as error:
            raise CompilationError(str(error)) from error

    def launch_kernel(launch: Launch, arguments: Arguments, device: torch.device) -> None:
        with torch.cuda.device(device):
            _launch(function, launch, arguments, _Stream(torch.cuda.current_stream().cuda_stream))

    return launch_kernel


def _launch(function: Any, launch: Launch, arguments: Arguments, stream: _Stream) -> None:
    function(
        (launch.blocks,),
        (launch.threads,),
        arguments,
        shared_mem=launch.shared_bytes,
        stream=stream,
    )
