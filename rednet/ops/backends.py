"""The backends of the involution operator and the choice between them.

A backend is functions that fill an output tensor which the operator has allocated. The first
registered backend that supports a problem is used, unless one is forced by :func:`backend` or by
the environment variable ``REDNET_BACKEND``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rednet.errors import ArgumentError
from rednet.ops.dtypes import SUPPORTED_DTYPES
from rednet.ops.geometry import Geometry, IntOrPair, Pair, pair

ENVIRONMENT_VARIABLE = "REDNET_BACKEND"

Kernel = Callable[[Tensor, Tensor, Tensor, Geometry], None]
GenerateKernel = Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor, Geometry], None]
GeneratorGradientKernel = Callable[
    [Tensor, Tensor, Tensor, Tensor, Geometry], tuple[Tensor, Tensor, Tensor]
]

OPERATIONS = ("forward", "grad_input", "grad_weight")
# Operations without a weight in memory, and those that they are or contain.
FUSED_OPERATIONS = dict(
    generate="forward", generate_grad_input="grad_input", grad_generator="grad_weight"
)


class Problem(NamedTuple):
    """All that the choice of a backend may depend on.

    Attributes:
        operation: One of ``OPERATIONS`` or of ``FUSED_OPERATIONS``.
        device: The tensors' device.
        dtype: Their dtype.
        batch: Images.
        channels: Channels of the images.
        groups: Groups of the weight.
        image: Height and width of the input.
        output: Height and width of the output.
        geometry: The window.
    """

    operation: str
    device: torch.device
    dtype: torch.dtype
    batch: int
    channels: int
    groups: int
    image: Pair
    output: Pair
    geometry: Geometry

    @classmethod
    def read(
        cls, operation: str, first: Tensor, second: Tensor, result: Tensor, geometry: Geometry
    ) -> Problem:
        """The problem of an operation on these tensors, in the order of a backend's arguments."""
        image = {"forward": first, "grad_input": result, "grad_weight": second}[operation]
        weight = result if operation == "grad_weight" else second
        batch, channels, height, width = image.shape
        _, groups, _, _, rows, columns = weight.shape
        return cls(
            *(operation, image.device, image.dtype, batch, channels, groups),
            image=(height, width),
            output=(rows, columns),
            geometry=geometry,
        )


@dataclass(frozen=True)
class Backend:
    """One implementation of involution and its two gradients.

    Attributes:
        name: What :func:`backend` and ``REDNET_BACKEND`` call it.
        forward: ``forward(input, weight, output, geometry)`` fills output.
        grad_input: ``grad_input(grad_output, weight, grad_input, geometry)`` fills grad_input.
        grad_weight: ``grad_weight(grad_output, input, grad_weight, geometry)`` fills grad_weight.
        unsupported_reason: ``unsupported_reason(problem)`` is None if the backend supports the
            problem, else the reason why it does not. It is asked about the operator's dtypes only,
            and about ``FUSED_OPERATIONS`` only if there is such a function.
        generate: ``generate(input, reduced, matrix, bias, output, geometry)`` fills output without
            a weight in memory, as :func:`rednet.ops.generating.generating_involution2d` says; None
            where the backend cannot.
        generate_grad_input: ``generate_grad_input(grad_output, reduced, matrix, bias, grad_input,
            geometry)`` fills grad_input in the same way; None where the backend cannot.
        grad_generator: ``grad_generator(grad_output, input, reduced, matrix, geometry)`` gives the
            gradients of reduced, matrix and bias without that of a weight in memory; None where the
            backend cannot.
        on_request: Whether it is used only where it is forced.
    """

    name: str
    forward: Kernel
    grad_input: Kernel
    grad_weight: Kernel
    unsupported_reason: Callable[[Problem], str | None]
    generate: GenerateKernel | None = None
    generate_grad_input: GenerateKernel | None = None
    grad_generator: GeneratorGradientKernel | None = None
    on_request: bool = False


_BACKENDS: dict[str, Backend] = {}
# Process-wide, not thread-local: autograd runs the backward pass of CUDA tensors in threads of its
# own.
_forced: str | None = None


def register_backend(candidate: Backend) -> None:
    """Adds a backend; those registered earlier are preferred."""
    if candidate.name in _BACKENDS:
        raise ValueError(f"a backend named {candidate.name!r} is registered already")
    _BACKENDS[candidate.name] = candidate


def explain_backends(
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    input_shape: Sequence[int] = (1, 16, 14, 14),
    groups: int = 1,
    kernel_size: IntOrPair = 7,
    stride: IntOrPair = 1,
    padding: IntOrPair = 3,
    dilation: IntOrPair = 1,
) -> dict[str, str | None]:
    """Says for every backend why it does not support a problem; None means that it does.

    Args:
        device: The tensors' device.
        dtype: Their dtype.
        input_shape: (N, C, H, W) of the input.
        groups: Groups of channels that share a kernel.
        kernel_size: As the operator's other arguments: an int or a pair.
        stride: See above.
        padding: See above.
        dilation: See above.

    Returns:
        Reasons by name, in the order of preference. A reason that holds for a gradient only begins
        with the gradient's name. Those whose names end in ``-fused`` come last: they are used only
        where they are forced.

    Example:
        >>> import torch
        >>> from rednet.ops import explain_backends
        >>> explain_backends("cpu", torch.float32)["reference"] is None
        True
    """
    if dtype not in SUPPORTED_DTYPES:
        return dict.fromkeys(_BACKENDS, f"involution supports {SUPPORTED_DTYPES} only")
    geometry = Geometry(
        pair("kernel_size", kernel_size, minimum=1),
        pair("stride", stride, minimum=1),
        pair("padding", padding, minimum=0),
        pair("dilation", dilation, minimum=1),
    )
    batch, channels, height, width = input_shape
    problem = Problem(
        operation="forward",
        device=torch.device(device),
        dtype=dtype,
        batch=batch,
        channels=channels,
        groups=groups,
        image=(height, width),
        output=geometry.output_size(height, width),
        geometry=geometry,
    )
    return {name: _reason(candidate, problem) for name, candidate in _BACKENDS.items()}


def _reason(candidate: Backend, problem: Problem) -> str | None:
    for operation in OPERATIONS:
        reason = candidate.unsupported_reason(problem._replace(operation=operation))
        if reason is not None:
            return reason if operation == "forward" else f"{operation}: {reason}"
    return None


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Forces a backend for the whole process while the context is open.

    Args:
        name: A backend's name, such as ``"reference"``. It wins over the environment variable.

    Raises:
        ValueError: If no backend has that name.
    """
    global _forced
    previous, _forced = _forced, _named(name, "name").name
    try:
        yield
    finally:
        _forced = previous


def select_backend(problem: Problem) -> Backend:
    """The backend that computes a problem.

    Raises:
        ArgumentError: If ``REDNET_BACKEND`` names no backend.
        RuntimeError: If the forced backend does not support the problem.
    """
    forced = _forced_backend()
    if forced is not None:
        return _eligible(forced, problem)
    return next(each for each in _unforced() if each.unsupported_reason(problem) is None)


def is_generating() -> bool:
    """Whether any backend that may be used generates weights where it applies them.

    Raises:
        ArgumentError: If ``REDNET_BACKEND`` names no backend.
    """
    return any(each.generate is not None for each in _candidates())


def select_fused(problem: Problem) -> Callable[..., Any] | None:
    """The function for one of the ``FUSED_OPERATIONS``; None where that takes two steps.

    It is the backend's that would compute the operation with a weight, if it has such a function
    and supports the problem.

    Raises:
        ArgumentError: If ``REDNET_BACKEND`` names no backend.
        RuntimeError: If the forced backend does not support the operation with a weight.
    """
    operation = FUSED_OPERATIONS[problem.operation]
    candidate = select_backend(problem._replace(operation=operation))
    kernel = getattr(candidate, problem.operation)
    if kernel is None or candidate.unsupported_reason(problem) is not None:
        return None
    return kernel


def _candidates() -> list[Backend]:
    """The backends to choose from, the preferred one first."""
    forced = _forced_backend()
    if forced is not None:
        return [forced]
    return list(_unforced())


def _unforced() -> Iterator[Backend]:
    return (each for each in _BACKENDS.values() if not each.on_request)


def _forced_backend() -> Backend | None:
    name = _forced or os.environ.get(ENVIRONMENT_VARIABLE)
    return _named(name, ENVIRONMENT_VARIABLE) if name else None


def _named(name: str, argument: str) -> Backend:
    if name not in _BACKENDS:
        raise ArgumentError(f"{argument} must be one of {sorted(_BACKENDS)}, got {name!r}")
    return _BACKENDS[name]


def _eligible(candidate: Backend, problem: Problem) -> Backend:
    reason = candidate.unsupported_reason(problem)
    if reason is not None:
        raise RuntimeError(
            f"the forced backend {candidate.name!r} does not support {problem.dtype} on "
            f"{problem.device}: {reason}"
        )
    return candidate
