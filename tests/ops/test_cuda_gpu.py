"""The CUDA kernels on a GPU, with CuPy: ``python -m pytest -m gpu``."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rednet.ops import backend, explain_backends, involution2d, reference
from rednet.ops.cuda import BACKEND
from rednet.ops.cuda.backend import CudaInvolution
from rednet.ops.cuda.compiler import Kernel, compile_with_cupy
from rednet.ops.cuda.problem import Specialization
from rednet.ops.geometry import Geometry
from tests.ops.cases import Case, check_operations, random_case
from tests.tolerances import RELATIVE_ERROR, assert_close

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("error:involution uses the backend 'shifted' for"),
]
DEVICE = torch.device("cuda", 0)
ROOT = Path(__file__).resolve().parents[2]
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
REDNET = Geometry((7, 7), (1, 1), (3, 3), (1, 1))
CASE = Case(REDNET, batch=2, channels=64, groups=4, height=28, width=28)
# Cycles that keep a GPU busy for some tenths of a second.
LONG = 500_000_000


@pytest.fixture(autouse=True)
def kernels() -> Iterator[None]:
    """Nothing else may answer in the kernels' place."""
    reason = explain_backends(DEVICE)["cuda"]
    if reason is not None:
        pytest.skip(reason)
    with backend("cuda"):
        yield


def _leaves(device: torch.device = DEVICE) -> tuple[Tensor, Tensor, Tensor]:
    """Input and weight that want gradients, and a gradient of the output."""
    input, weight, grad = CASE.operands(torch.float32, torch.contiguous_format, device)
    return input.requires_grad_(), weight.requires_grad_(), grad


def _step(input: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """The output and both gradients."""
    output = involution2d(input, weight, padding=3)
    return output.detach(), *torch.autograd.grad(output, (input, weight), grad)


def _assert_equal(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)


# ---- values


@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("dtype", RELATIVE_ERROR, ids=str)
def test_random_geometries(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    for _ in range(40):
        check_operations(BACKEND, random_case(), dtype, memory_format, DEVICE)


@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("dtype", RELATIVE_ERROR, ids=str)
@pytest.mark.parametrize(("channels", "side"), [(64, 56), (128, 28), (256, 14), (512, 7)])
@pytest.mark.parametrize("stride", [1, 2])
def test_rednets_shapes(
    stride: int,
    channels: int,
    side: int,
    dtype: torch.dtype,
    memory_format: torch.memory_format,
) -> None:
    geometry = Geometry((7, 7), (stride, stride), (3, 3), (1, 1))
    case = Case(geometry, 4, channels, channels // 16, side, side)
    check_operations(BACKEND, case, dtype, memory_format, DEVICE)


def test_any_strides_and_any_offset() -> None:
    storage = torch.randn(2 * 16 * 9 * 8 + 1, device=DEVICE)
    input = storage[1:].view(2, 16, 8, 9).transpose(2, 3)
    weight = torch.randn(2, 9, 8, 1, 3, 3, device=DEVICE).permute(0, 3, 4, 5, 1, 2)
    with backend("reference"):
        expected = involution2d(input.double(), weight.double(), padding=1)
    assert_close(involution2d(input, weight, padding=1), expected)


@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
def test_more_elements_than_32_bits_count(memory_format: torch.memory_format) -> None:
    side = 6700  # 49 weights for each pixel are more than 2**31
    if torch.cuda.mem_get_info(DEVICE)[0] < 20 * 2**30:
        pytest.skip("needs 20 GiB of free GPU memory")

    def draw(channels: int) -> Tensor:
        size = (1, channels, side, side)
        options = {"dtype": torch.float16, "device": DEVICE, "memory_format": memory_format}
        return torch.empty(size, **options).normal_()

    input, grad, weight = draw(2), draw(2), draw(49).unflatten(1, (1, 7, 7))
    assert weight.numel() > 2**31
    for operation, first, second, like in (
        ("forward", input, weight, grad),
        ("grad_input", grad, weight, input),
        ("grad_weight", grad, input, weight),
    ):
        actual = torch.empty_like(like)
        getattr(BACKEND, operation)(first, second, actual, REDNET)
        # The last pixels tell; those within the window of the cut are left out.
        first, second, actual = (each[..., -16:, -16:] for each in (first, second, actual))
        expected = torch.empty(actual.shape, dtype=torch.float64, device=DEVICE)
        getattr(reference, operation)(first.double(), second.double(), expected, REDNET)
        assert_close(actual[..., 4:, 4:], expected[..., 4:, 4:])


# ---- autograd, autocast, torch.compile


def test_derivatives_of_both_orders() -> None:
    input = torch.randn(1, 2, 5, 4, dtype=torch.float64, device=DEVICE, requires_grad=True)
    weight = torch.randn(1, 1, 3, 3, 3, 2, dtype=torch.float64, device=DEVICE, requires_grad=True)

    def operator(input: Tensor, weight: Tensor) -> Tensor:
        return involution2d(input, weight, stride=2, padding=1)

    assert torch.autograd.gradcheck(operator, (input, weight))
    assert torch.autograd.gradgradcheck(operator, (input, weight))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast(dtype: torch.dtype) -> None:
    input, weight, grad = _leaves()
    with torch.autocast(DEVICE.type, dtype=dtype):
        output = involution2d(input, weight, padding=3)
    assert output.dtype == dtype
    expected = torch.empty_like(output, dtype=torch.float64)
    rounded = (each.detach().to(dtype).double() for each in (input, weight))
    reference.forward(*rounded, expected, REDNET)
    assert_close(output, expected)
    output.backward(grad.to(dtype))
    assert input.grad is not None and input.grad.dtype == torch.float32
    assert weight.grad is not None and weight.grad.dtype == torch.float32


def test_channels_last_in_channels_last_out() -> None:
    input, weight, grad = CASE.operands(torch.float16, torch.channels_last, DEVICE)
    results = _step(input.requires_grad_(), weight.requires_grad_(), grad)
    for each in results:
        flat = each.flatten(1, 3) if each.dim() == 6 else each
        assert flat.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compile_has_no_graph_break(mode: str) -> None:
    def operator(input: Tensor, weight: Tensor) -> Tensor:
        return involution2d(input, weight, padding=3)

    input, weight, grad = _leaves()
    expected = _step(input, weight, grad)
    compiled = torch.compile(operator, fullgraph=True, mode=mode)
    for _ in range(3):  # with reduce-overhead: warm up, record, replay
        torch.compiler.cudagraph_mark_step_begin()
        output = compiled(input, weight)
        gradients = torch.autograd.grad(output, (input, weight), grad)
        _assert_equal((output.detach(), *gradients), expected)


# ---- streams, devices, graphs


def test_the_current_stream_is_used() -> None:
    input, weight, grad = _leaves()
    output, grad_input, grad_weight = _step(input, weight, grad)
    late = torch.full_like(input, torch.nan).requires_grad_()
    torch.cuda.synchronize(DEVICE)
    stream = torch.cuda.Stream(DEVICE)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(LONG)
        late.data.copy_(2 * input.detach())
        actual = _step(late, weight, grad)
    stream.synchronize()
    _assert_equal(actual, (2 * output, grad_input, 2 * grad_weight))


def test_cupy_shares_the_stream() -> None:
    cupy = pytest.importorskip("cupy")
    input, weight, _ = CASE.operands(torch.float32, torch.contiguous_format, DEVICE)
    expected = 2 * involution2d(input, weight, padding=3)
    late = torch.full_like(input, torch.nan)
    torch.cuda.synchronize(DEVICE)
    stream = torch.cuda.Stream(DEVICE)
    with torch.cuda.stream(stream), cupy.cuda.ExternalStream(stream.cuda_stream):
        torch.cuda._sleep(LONG)
        cupy.multiply(cupy.asarray(input), 2, out=cupy.asarray(late))
        output = involution2d(late, weight, padding=3)
    stream.synchronize()
    assert torch.equal(output, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a second CUDA device")
def test_two_devices() -> None:
    """Whichever is the current one; the backward pass runs in a thread of its own for each."""
    second = torch.device("cuda", 1)
    torch.manual_seed(0)
    expected = _step(*_leaves())
    for current in (DEVICE, second):
        for device in (DEVICE, second):
            torch.manual_seed(0)
            with torch.cuda.device(current):
                actual = _step(*_leaves(device))
            _assert_equal(tuple(each.to(DEVICE) for each in actual), expected)


def test_nothing_waits_for_the_gpu() -> None:
    leaves = _leaves()
    _step(*leaves)
    torch.cuda.synchronize(DEVICE)
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(LONG)
        _step(*leaves)
        done = torch.cuda.Event()
        done.record()
        assert not done.query()
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize(DEVICE)


def test_a_graph_of_forward_and_backward() -> None:
    leaves = _leaves()
    stream = torch.cuda.Stream(DEVICE)
    stream.wait_stream(torch.cuda.current_stream(DEVICE))
    with torch.cuda.stream(stream):
        for _ in range(3):
            _step(*leaves)
    torch.cuda.current_stream(DEVICE).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = _step(*leaves)
    for _ in range(2):
        for leaf in leaves:
            leaf.data.normal_()
        graph.replay()
        _assert_equal(captured, _step(*leaves))


# ---- compilation


def test_a_hundred_image_sizes_compile_three_kernels() -> None:
    compiled: list[Specialization] = []

    def counting(specialization: Specialization, device: torch.device) -> Kernel:
        compiled.append(specialization)
        return compile_with_cupy(specialization, device)

    involution = CudaInvolution(counting)
    for _ in range(100):
        case = CASE._replace(height=random.randint(1, 60), width=random.randint(1, 60))
        check_operations(involution, case, torch.float32, torch.contiguous_format, DEVICE)
    assert len(compiled) == 3


# CuPy is imported and NVRTC loaded when the backend says whether it serves; what is timed is
# forward and backward of a kernel size that this process has not met.
_START = """
import time
import torch
from rednet.ops import explain_backends, involution2d
input = torch.randn(2, 64, 28, 28, device="cuda", requires_grad=True)
weight = torch.randn(2, 4, 7, 7, 28, 28, device="cuda", requires_grad=True)
assert explain_backends("cuda")["cuda"] is None
torch.cuda.synchronize()
began = time.perf_counter()
output = involution2d(input, weight, padding=3)
torch.autograd.grad(output, (input, weight), torch.ones_like(output))
torch.cuda.synchronize()
print(time.perf_counter() - began)
"""


def test_a_warm_start_takes_less_than_50_milliseconds(tmp_path: Path) -> None:
    environment = {**os.environ, "CUPY_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    environment.pop("REDNET_BACKEND", None)
    cold, *warm = (
        float(subprocess.check_output([sys.executable, "-c", _START], env=environment, text=True))
        for _ in range(4)
    )
    assert list(tmp_path.iterdir()) != []
    assert min(warm) < 0.05, f"cold {cold:.3f} s, warm {warm} s"
