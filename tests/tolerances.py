"""How close to the float64 reference a result must be, in one table for all tests."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

# Largest ||actual - expected|| / ||expected||. Each is some ten units of the dtype's rounding:
# inputs are rounded to the dtype first, so that only the arithmetic and the rounding of the result
# are left.
RELATIVE_ERROR = {
    torch.float64: 1e-12,
    torch.float32: 2e-6,
    torch.float16: 2e-3,
    torch.bfloat16: 2e-2,
}


def _convolves(dtype: torch.dtype) -> bool:
    try:
        F.conv2d(torch.ones(1, 1, 3, 3, dtype=dtype), torch.ones(1, 1, 3, 3, dtype=dtype))
    except RuntimeError:
        return False
    return True


# float16 where this torch convolves it on the CPU: not in 2.1.
FLOAT16 = pytest.param(
    torch.float16,
    marks=pytest.mark.skipif(
        not _convolves(torch.float16), reason="this torch has no float16 convolution on the CPU"
    ),
)


def assert_close(actual: Tensor, expected: Tensor, factor: float = 1.0) -> None:
    """Compares with ``expected``, given in float64, by the norm of the difference.

    Args:
        actual: The result, whose dtype selects the tolerance.
        expected: The reference, of the same shape.
        factor: How many times the table's tolerance is allowed, for chains of several operators.
    """
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} != {tuple(expected.shape)}"
    expected = expected.double()
    difference = (actual.double() - expected).norm().item()
    bound = factor * RELATIVE_ERROR[actual.dtype] * expected.norm().item()
    assert difference <= bound, f"off by {difference:.3g}, allowed {bound:.3g} in {actual.dtype}"
