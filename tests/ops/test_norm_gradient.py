"""The compiled gradients of a batch norm in training and the ReLU after it."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rednet.ops.cpu import loader
from rednet.ops.cpu.norm_gradient import norm_relu_gradients, unsupported_reason
from tests.ops.cases import BUILD_NAMES, BUILDS, channels_last


def _operands(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Gradient, input, weight and bias."""
    generator = torch.Generator().manual_seed(0)
    maps = [channels_last(torch.randn(shape, generator=generator, dtype=dtype)) for _ in range(2)]
    return *maps, *torch.randn(2, shape[1], generator=generator, dtype=dtype).unbind()


@pytest.mark.parametrize("build", BUILDS, ids=BUILD_NAMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (2, 16, 3, 3), (1, 24, 40, 50), (2, 200, 9, 11)])
def test_gradients(
    build: Path, dtype: torch.dtype, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "load", lambda: ctypes.CDLL(str(build)))
    grad, *operands = _operands(shape, dtype)
    _, mean, deviation = torch.native_batch_norm(*operands, None, None, True, 0.1, 1e-5)
    exact = [each.double().requires_grad_() for each in operands]
    output = F.relu(F.batch_norm(exact[0], None, None, *exact[1:], training=True))
    expected = torch.autograd.grad(output, exact, grad.double())
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    for actual, reference in zip(
        norm_relu_gradients(grad, *operands, mean, deviation), expected, strict=True
    ):
        assert actual.dtype == dtype
        torch.testing.assert_close(actual.double(), reference, rtol=tolerance, atol=tolerance)


def test_what_it_does_not_support() -> None:
    grad, input, weight, _ = _operands((2, 3, 5, 7), torch.float32)
    assert "one dtype" in str(unsupported_reason(grad, input, weight.double()))
    assert "dense maps" in str(unsupported_reason(grad.contiguous(), input, weight))
