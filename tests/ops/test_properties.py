"""Involution on random geometries, dtypes and layouts, against the float64 reference."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from rednet import ops
from rednet.ops.geometry import Geometry
from tests.ops.cases import channels_last, output_and_gradients, sliced, transposed
from tests.tolerances import RELATIVE_ERROR, assert_close

BACKENDS = [name for name, reason in ops.explain_backends("cpu").items() if reason is None]


def _of_a_larger_batch(tensor: Tensor) -> Tensor:
    return torch.cat((torch.full_like(tensor, torch.nan), tensor))[len(tensor) :]


LAYOUTS: list[Callable[[Tensor], Tensor]] = [
    Tensor.contiguous,
    channels_last,
    transposed,
    sliced,
    _of_a_larger_batch,
]


def _pairs(smallest: int, largest: int) -> st.SearchStrategy[tuple[int, int]]:
    numbers = st.integers(smallest, largest)
    return st.tuples(numbers, numbers)


@st.composite
def _geometries_and_sizes(draw: st.DrawFn) -> tuple[Geometry, tuple[int, int]]:
    """A window and an image on which it has at least one place."""
    geometry = Geometry(
        kernel_size=draw(_pairs(1, 7)),
        stride=draw(_pairs(1, 3)),
        padding=draw(_pairs(0, 4)),
        dilation=draw(_pairs(1, 3)),
    )
    smallest = [
        max(1, geometry.dilation[i] * (geometry.kernel_size[i] - 1) + 1 - 2 * geometry.padding[i])
        for i in range(2)
    ]
    height, width = (draw(st.integers(length, length + 9)) for length in smallest)
    return geometry, (height, width)


@pytest.mark.parametrize("backend", BACKENDS)
# The same examples at every run, and no limit on the first one's time, which loads the kernels.
@settings(
    derandomize=True,
    max_examples=200,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    window=_geometries_and_sizes(),
    batch=st.integers(0, 3),
    groups=st.integers(1, 3),
    channels_per_group=st.integers(1, 5),
    dtype=st.sampled_from(list(RELATIVE_ERROR)),
    layouts=st.tuples(*(st.sampled_from(LAYOUTS),) * 3),
    seed=st.integers(0, 2**16),
)
def test_output_and_gradients_follow_the_float64_reference(
    backend: str,
    window: tuple[Geometry, tuple[int, int]],
    batch: int,
    groups: int,
    channels_per_group: int,
    dtype: torch.dtype,
    layouts: tuple[Callable[[Tensor], Tensor], ...],
    seed: int,
) -> None:
    geometry, size = window
    channels, output_size = groups * channels_per_group, geometry.output_size(*size)
    generator = torch.Generator().manual_seed(seed)
    rounded = [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for shape in (
            (batch, channels, *size),
            (batch, groups, *geometry.kernel_size, *output_size),
            (batch, channels, *output_size),
        )
    ]
    with ops.backend("reference"):
        expected = output_and_gradients(*(tensor.double() for tensor in rounded), geometry)
    arranged = [arrange(tensor) for arrange, tensor in zip(layouts, rounded, strict=True)]
    with ops.backend(backend):
        actual = output_and_gradients(*arranged, geometry)
    for result, exact in zip(actual, expected, strict=True):
        assert result.dtype == dtype
        assert_close(result, exact)
