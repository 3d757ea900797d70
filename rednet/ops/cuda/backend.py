"""The CUDA backend: prepares tensors, compiles what they need once, and launches it."""

from __future__ import annotations

import warnings
from math import gcd

import numpy as np
import torch
from torch import Tensor

from rednet.ops import shifted
from rednet.ops.backends import Backend, Problem
from rednet.ops.cuda import availability
from rednet.ops.cuda.compiler import CompilationError, Compiler, Kernel, compile_with_cupy
from rednet.ops.cuda.plan import WIDEST_ACCESS, plan
from rednet.ops.cuda.problem import Call, Specialization
from rednet.ops.geometry import Geometry

_TOO_LARGE = "a row of windows exceeds shared memory, or a coordinate exceeds 30 bits"


def _unknown() -> None:
    """Stands for a kernel that has not been compiled yet."""


class CudaInvolution:
    """Involution and its gradients by the CUDA kernels.

    A tensor that is neither contiguous nor channels_last is copied. If the compiler refuses a
    kernel, the ``shifted`` backend computes instead, and a warning says so.

    Args:
        compile_kernel: Makes a kernel of a specialization. The tests put the CPU in its place.
    """

    def __init__(self, compile_kernel: Compiler = compile_with_cupy) -> None:
        self._compile = compile_kernel
        self._kernels: dict[Specialization, Kernel | None] = {}

    def unsupported_reason(self, problem: Problem) -> str | None:
        """None if the kernels can hold the problem and compile, in both memory formats."""
        for channels_last in (False, True):
            launch = plan(_call(problem, channels_last, alignment=problem.dtype.itemsize))
            if launch is None:
                return _TOO_LARGE
            if self._kernels.get(launch.specialization, _unknown) is None:
                return "the compiler refused its kernel"
        return None

    def forward(self, input: Tensor, weight: Tensor, output: Tensor, geometry: Geometry) -> None:
        """Fills output, (N, C, Ho, Wo)."""
        self._run("forward", input, weight, output, geometry)

    def grad_input(
        self, grad_output: Tensor, weight: Tensor, grad_input: Tensor, geometry: Geometry
    ) -> None:
        """Fills grad_input, (N, C, H, W)."""
        self._run("grad_input", grad_output, weight, grad_input, geometry)

    def grad_weight(
        self, grad_output: Tensor, input: Tensor, grad_weight: Tensor, geometry: Geometry
    ) -> None:
        """Fills grad_weight, (N, G, Kh, Kw, Ho, Wo)."""
        self._run("grad_weight", grad_output, input, grad_weight, geometry)

    def _run(
        self, operation: str, first: Tensor, second: Tensor, result: Tensor, geometry: Geometry
    ) -> None:
        planes, channels_last = _in_one_format(first, second, result)
        problem = Problem.read(operation, first, second, result, geometry)
        alignment = gcd(WIDEST_ACCESS, *(tensor.data_ptr() for tensor in planes))
        call = _call(problem, channels_last, alignment)
        launch = plan(call)
        if launch is None:
            raise ValueError(f"the kernels cannot hold {call}: {_TOO_LARGE}")
        kernel = self._kernel(launch.specialization, result.device)
        if kernel is None:
            getattr(shifted, operation)(first, second, result, geometry)
            return
        addresses = (np.uint64(tensor.data_ptr()) for tensor in planes)
        kernel(launch, (*addresses, launch.problem), result.device)

    def _kernel(self, specialization: Specialization, device: torch.device) -> Kernel | None:
        """None where the compiler refuses it, which a warning says once."""
        if specialization not in self._kernels:
            try:
                self._kernels[specialization] = self._compile(specialization, device)
            except CompilationError as error:
                self._kernels[specialization] = None
                text = f"involution uses the backend 'shifted' for {specialization}: {error}"
                warnings.warn(text, RuntimeWarning, stacklevel=2)
        return self._kernels[specialization]


def _call(problem: Problem, channels_last: bool, alignment: int) -> Call:
    return Call(
        operation=problem.operation,
        dtype=problem.dtype,
        channels_last=channels_last,
        batch=problem.batch,
        channels=problem.channels,
        groups=problem.groups,
        image=problem.image,
        output=problem.output,
        geometry=problem.geometry,
        alignment=alignment,
    )


def _in_one_format(
    first: Tensor, second: Tensor, result: Tensor
) -> tuple[tuple[Tensor, Tensor, Tensor], bool]:
    """The tensors as (N, channels, height, width), dense and all in the result's format.

    The result, which the operator has allocated, is never copied. The flag says whether the format
    is channels_last.
    """
    image, target = _planes(first), _planes(result)
    either = target.is_contiguous() and image.is_contiguous()  # of one pixel or one channel, say
    channels_last = target.is_contiguous(memory_format=torch.channels_last) and not either
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    other = _planes(second).contiguous(memory_format=memory_format)
    return (image.contiguous(memory_format=memory_format), other, target), channels_last


def _planes(tensor: Tensor) -> Tensor:
    """A weight's groups and taps are one dimension: its channels."""
    return tensor.flatten(1, 3) if tensor.dim() == 6 else tensor


_involution = CudaInvolution()


def _unsupported_reason(problem: Problem) -> str | None:
    reason = availability.unsupported_reason(problem.device)
    return _involution.unsupported_reason(problem) if reason is None else reason


BACKEND = Backend(
    "cuda",
    _involution.forward,
    _involution.grad_input,
    _involution.grad_weight,
    _unsupported_reason,
)
