"""The CUDA backend: prepares tensors, compiles what they need once, and launches it."""

from __future__ import annotations

import warnings
from math import gcd

import numpy as np
import torch
from torch import Tensor

from rednet.ops import shifted
from rednet.ops.backends import Backend
from rednet.ops.cuda.availability import why_not
from rednet.ops.cuda.compiler import CompilationError, Compiler, Kernel, compile_with_cupy
from rednet.ops.cuda.plan import WIDEST_ACCESS, plan
from rednet.ops.cuda.problem import Call, Specialisation
from rednet.ops.geometry import Geometry


class CudaInvolution:
    """Involution and its gradients by the CUDA kernels.

    A tensor that is neither contiguous nor channels_last is copied. What the kernels cannot hold
    (a row of windows wider than shared memory, coordinates of more than 30 bits) is left to the
    shifted backend; so is, with a warning, what the compiler refuses.

    Args:
        compile_kernel: Makes a kernel of a specialisation. The tests put the CPU in its place.
    """

    def __init__(self, compile_kernel: Compiler = compile_with_cupy) -> None:
        self._compile = compile_kernel
        self._kernels: dict[Specialisation, Kernel | None] = {}

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
        input, weight = _input_and_weight(operation, first, second, result)
        call = Call(
            operation=operation,
            dtype=input.dtype,
            channels_last=channels_last,
            batch=input.shape[0],
            channels=input.shape[1],
            groups=weight.shape[1],
            image=(input.shape[2], input.shape[3]),
            output=(weight.shape[4], weight.shape[5]),
            geometry=geometry,
            alignment=gcd(WIDEST_ACCESS, *(tensor.data_ptr() for tensor in planes)),
        )
        launch = plan(call)
        kernel = None if launch is None else self._kernel(launch.specialisation, result.device)
        if launch is None or kernel is None:
            getattr(shifted, operation)(first, second, result, geometry)
            return
        addresses = (np.uint64(tensor.data_ptr()) for tensor in planes)
        kernel(launch, (*addresses, launch.problem), result.device)

    def _kernel(self, specialisation: Specialisation, device: torch.device) -> Kernel | None:
        """None where the compiler refuses it, which a warning says once."""
        if specialisation not in self._kernels:
            try:
                self._kernels[specialisation] = self._compile(specialisation, device)
            except CompilationError as error:
                self._kernels[specialisation] = None
                text = f"involution falls back to eager PyTorch for {specialisation}: {error}"
                warnings.warn(text, RuntimeWarning, stacklevel=2)
        return self._kernels[specialisation]


def _input_and_weight(
    operation: str, first: Tensor, second: Tensor, result: Tensor
) -> tuple[Tensor, Tensor]:
    """The tensors of the input's and of the weight's shape among those of an operation."""
    if operation == "forward":
        return first, second
    return (result, second) if operation == "grad_input" else (second, result)


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
BACKEND = Backend(
    "cuda", _involution.forward, _involution.grad_input, _involution.grad_weight, why_not
)
