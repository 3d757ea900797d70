"""The backends of the involution operator and the choice between them.

A backend is three functions that fill an output tensor which the operator has allocated. The first
registered backend that serves a tensor's device and dtype is used, unless one is forced by
:func:`backend` or by the environment variable ``REDNET_BACKEND``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from rednet.ops.dtypes import SUPPORTED_DTYPES
from rednet.ops.geometry import Geometry

ENVIRONMENT_VARIABLE = "REDNET_BACKEND"

Kernel = Callable[[Tensor, Tensor, Tensor, Geometry], None]


@dataclass(frozen=True)
class Backend:
    """One implementation of involution and its two gradients.

    Attributes:
        name: What :func:`backend` and ``REDNET_BACKEND`` call it.
        forward: ``forward(input, weight, output, geometry)`` fills output.
        grad_input: ``grad_input(grad_output, weight, grad_input, geometry)`` fills grad_input.
        grad_weight: ``grad_weight(grad_output, input, grad_weight, geometry)`` fills grad_weight.
        why_not: ``why_not(device, dtype)`` is None where the backend serves tensors of that kind,
            else the reason why it does not. It is asked about the operator's dtypes alone.
    """

    name: str
    forward: Kernel
    grad_input: Kernel
    grad_weight: Kernel
    why_not: Callable[[torch.device, torch.dtype], str | None]


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
    device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> dict[str, str | None]:
    """Says of every backend why it cannot serve such tensors; None means that it can.

    The backends come in the order of preference.

    Examples:
        >>> import torch
        >>> from rednet.ops import explain_backends
        >>> explain_backends("cpu", torch.float32)["reference"] is None
        True
    """
    if dtype not in SUPPORTED_DTYPES:
        return dict.fromkeys(_BACKENDS, f"involution serves {SUPPORTED_DTYPES} only")
    return {name: each.why_not(torch.device(device), dtype) for name, each in _BACKENDS.items()}


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


def select_backend(device: torch.device, dtype: torch.dtype) -> Backend:
    """The backend that computes involution for tensors of this device and dtype.

    Raises:
        ValueError: If ``REDNET_BACKEND`` names no backend.
        RuntimeError: If the forced backend cannot serve such tensors.
    """
    forced = _forced or os.environ.get(ENVIRONMENT_VARIABLE)
    if forced:
        return _eligible(_named(forced, ENVIRONMENT_VARIABLE), device, dtype)
    return next(each for each in _BACKENDS.values() if each.why_not(device, dtype) is None)


def _named(name: str, argument: str) -> Backend:
    if name not in _BACKENDS:
        raise ValueError(f"{argument} must be one of {sorted(_BACKENDS)}, got {name!r}")
    return _BACKENDS[name]


def _eligible(candidate: Backend, device: torch.device, dtype: torch.dtype) -> Backend:
    reason = candidate.why_not(device, dtype)
    if reason is not None:
        raise RuntimeError(
            f"the forced backend {candidate.name!r} cannot serve {dtype} on {device}: {reason}"
        )
    return candidate
