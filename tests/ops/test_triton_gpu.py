"""The Triton kernels on a GPU: ``python -m pytest -m gpu``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from rednet.layers import Involution2d
from rednet.ops import backend, explain_backends
from rednet.ops.geometry import Geometry
from rednet.ops.triton import FUSED
from tests.ops.cases import Case, check_generate, check_operations, random_case
from tests.tolerances import RELATIVE_ERROR, assert_close

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda", 0)
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@pytest.fixture(autouse=True)
def float32_as_it_is() -> Iterator[None]:
    """Without the kernels there is nothing to test; with TF32 the tolerances would not hold."""
    reason = explain_backends(DEVICE)["triton-fused"]
    if reason is not None:
        pytest.skip(reason)
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("dtype", RELATIVE_ERROR, ids=str)
def test_random_geometries(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    for reduced_channels in (4, 16, 33):
        case = random_case((2, 3, 7))
        check_operations(FUSED, case, dtype, memory_format, DEVICE)
        check_generate(FUSED, case, dtype, memory_format, reduced_channels, device=DEVICE)


@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("dtype", RELATIVE_ERROR, ids=str)
@pytest.mark.parametrize(("channels", "side"), [(64, 56), (128, 28), (256, 14), (512, 7)])
def test_rednets_shapes(
    channels: int, side: int, dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    geometry = Geometry((7, 7), (1, 1), (3, 3), (1, 1))
    case = Case(geometry, 4, channels, channels // 16, side, side)
    check_generate(FUSED, case, dtype, memory_format, channels // 4, device=DEVICE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_layer_in_inference(dtype: torch.dtype) -> None:
    """Autocast rounds the generated weight in two steps and not in one."""
    layer = Involution2d(64, 64, 7, stride=2, padding=3).eval().to(DEVICE)
    image = torch.randn(2, 64, 29, 30, device=DEVICE)
    with torch.no_grad(), torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
        expected = layer(image)
        with backend("triton-fused"):
            actual = layer(image)
    assert_close(actual, expected, factor=4.0)


def test_a_graph_is_captured() -> None:
    layer = Involution2d(64, 64, 7, padding=3).eval().to(DEVICE)
    image = torch.randn(2, 64, 14, 14, device=DEVICE)
    with torch.no_grad(), backend("triton-fused"):
        expected = layer(image)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = layer(image)
        image.mul_(0.5)
        graph.replay()
        assert torch.equal(captured, layer(image)) and not torch.equal(captured, expected)
