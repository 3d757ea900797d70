"""The CUDA backend without a GPU: its kernels run on the CPU, its launches are checked there."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rednet import ops
from rednet.ops import backends, involution2d
from rednet.ops.backends import Backend
from rednet.ops.cuda import availability
from rednet.ops.cuda.backend import CudaInvolution
from rednet.ops.cuda.compiler import CompilationError, compile_with_cupy, read_source
from rednet.ops.cuda.plan import MOST_BLOCKS, SHARED_BYTES, Launch, plan
from rednet.ops.cuda.problem import PROBLEM, THREADS, Call, Specialization, all_specializations
from rednet.ops.geometry import Geometry
from tests.ops.cases import Case, check_operations, random_case
from tests.ops.cuda_host.host import COMPILER, HostCompiler
from tests.tolerances import RELATIVE_ERROR, assert_close

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
OPERATIONS = ("forward", "grad_input", "grad_weight")
DTYPES = list(RELATIVE_ERROR)
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
# Each reaches code that the others do not.
CASES = {
    "RedNet": Case(Geometry((7, 7), (1, 1), (3, 3), (1, 1)), 2, 64, 4, 14, 14),
    "RedNet, several bands": Case(Geometry((7, 7), (1, 1), (3, 3), (1, 1)), 1, 32, 2, 24, 24),
    "RedNet, stride 2": Case(Geometry((7, 7), (2, 2), (3, 3), (1, 1)), 1, 32, 2, 15, 13),
    "RedNet's stem": Case(Geometry((3, 3), (1, 1), (1, 1), (1, 1)), 1, 32, 2, 17, 30),
    "tiles that see padding alone": Case(Geometry((1, 3), (1, 1), (20, 1), (1, 1)), 1, 64, 4, 1, 8),
    "tails of channels, dilated": Case(Geometry((3, 3), (1, 1), (2, 4), (2, 4)), 2, 15, 5, 9, 11),
    "groups of 40, rectangular, even": Case(
        Geometry((4, 6), (2, 3), (3, 0), (3, 2)), 2, 80, 2, 17, 14
    ),
    "stride meets dilation": Case(Geometry((5, 3), (2, 2), (5, 4), (2, 4)), 1, 6, 3, 12, 19),
}
# One thread format for each dtype: the index arithmetic has no dtype, the conversions no geometry.
COMBINATIONS = [
    *((name, torch.float64, format) for name in CASES for format in FORMATS),
    *(("RedNet, several bands", dtype, format) for dtype in DTYPES[1:] for format in FORMATS),
]


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> HostCompiler:
    return HostCompiler(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="module")
def cuda(compiler: HostCompiler) -> CudaInvolution:
    return CudaInvolution(compiler)


@needs_compiler
@pytest.mark.parametrize(("name", "dtype", "format"), COMBINATIONS, ids=str)
def test_kernels_agree_with_the_reference(
    cuda: CudaInvolution, name: str, dtype: torch.dtype, format: str
) -> None:
    check_operations(cuda, CASES[name], dtype, FORMATS[format])


def _random_image() -> Case:
    """RedNet's kernel width; image, batch, groups and padding are random."""
    geometry = Geometry((random.randint(1, 8), 7), (1, 1), (random.randint(0, 4), 3), (1, 1))
    groups = random.randint(1, 5)
    height, width = random.randint(8, 20), random.randint(1, 20)
    channels = groups * random.choice((3, 16))
    return Case(geometry, random.randint(1, 2), channels, groups, height, width)


@needs_compiler
@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
def test_random_images_agree_and_compile_once(
    cuda: CudaInvolution, compiler: HostCompiler, memory_format: torch.memory_format
) -> None:
    before = set(compiler.compiled)
    for _ in range(15):
        check_operations(cuda, _random_image(), torch.float32, memory_format)
    assert len(compiler.compiled) == len(set(compiler.compiled))
    assert len(set(compiler.compiled) - before) <= len(OPERATIONS)


@needs_compiler
@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
def test_random_geometries_agree(
    cuda: CudaInvolution, compiler: HostCompiler, memory_format: torch.memory_format
) -> None:
    for _ in range(15):
        # Widths that are not specialized, so that one kernel serves all of them.
        check_operations(cuda, random_case((1, 2, 4, 6, 8)), torch.float64, memory_format)
    assert len(compiler.compiled) == len(set(compiler.compiled))


def _count_only(launches: list[Launch]) -> CudaInvolution:
    """Kernels that do nothing but record their launches."""

    def compile_kernel(specialization: object, device: torch.device) -> object:
        compiled.append(specialization)
        return lambda launch, arguments, device: launches.append(launch)

    compiled: list[object] = []
    involution = CudaInvolution(compile_kernel)
    involution.compiled = compiled
    return involution


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
def test_a_hundred_shapes_compile_three_kernels(dtype: torch.dtype, memory_format: object) -> None:
    launches: list[Launch] = []
    counting = _count_only(launches)
    geometry = Geometry((7, 7), (1, 1), (3, 3), (1, 1))
    for _ in range(100):
        height, width, groups = random.randint(2, 40), random.randint(2, 40), random.randint(1, 4)
        input = torch.empty(1, groups * 16, height, width, dtype=dtype)
        weight = torch.empty(1, groups * 49, height, width, dtype=dtype)
        input, weight = (each.contiguous(memory_format=memory_format) for each in (input, weight))
        weight = weight.unflatten(1, (groups, 7, 7))
        counting.forward(input, weight, torch.empty_like(input), geometry)
        counting.grad_input(input, weight, torch.empty_like(input), geometry)
        counting.grad_weight(input, input, torch.empty_like(weight), geometry)
    assert len(launches) == 300
    assert len(counting.compiled) == 3


# ---- plans


def _call(operation: str, geometry: Geometry, image: tuple[int, int], **changes: object) -> Call:
    usual = Call(
        operation=operation,
        dtype=torch.float32,
        channels_last=False,
        batch=2,
        channels=64,
        groups=4,
        image=image,
        output=geometry.output_size(*image),
        geometry=geometry,
        alignment=16,
    )
    return replace(usual, **changes)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_launches_keep_to_the_limits(
    operation: str, channels_last: bool, dtype: torch.dtype
) -> None:
    for size in ((7, 7), (14, 14), (56, 56), (1, 500), (800, 1333)):
        for stride in (1, 2):
            geometry = Geometry((7, 7), (stride, stride), (3, 3), (1, 1))
            call = _call(operation, geometry, size, dtype=dtype, channels_last=channels_last)
            launch = plan(call)
            assert launch is not None
            assert 1 <= launch.threads <= THREADS and launch.threads % 32 == 0
            assert launch.shared_bytes <= SHARED_BYTES and 1 <= launch.blocks <= MOST_BLOCKS
            assert launch.problem["samples_bytes"] % 16 == 0


@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_the_kernels_cannot_hold_has_no_plan(operation: str) -> None:
    wide = Geometry((1, 3), (1, 1), (0, 2**29), (1, 2**29))
    assert plan(_call(operation, wide, (1, 4))) is None
    long = Geometry((1, 2000), (1, 1), (0, 0), (1, 1))
    assert plan(_call(operation, long, (1, 2001))) is None


@pytest.mark.parametrize("offset", [1, 2, 4])
def test_misaligned_views_are_not_read_in_packs(offset: int) -> None:
    geometry = Geometry((3, 3), (1, 1), (1, 1), (1, 1))
    for channels_last in (False, True):
        call = _call("forward", geometry, (8, 8), channels_last=channels_last)
        aligned, shifted = plan(call), plan(replace(call, alignment=offset))
        assert aligned.problem["packed"] and not shifted.problem["packed"]
        assert shifted.problem["copy_bytes"] <= offset


def test_python_and_cuda_agree_on_the_arguments() -> None:
    text = read_source("problem.cuh")
    for struct, dtype in (("Axis", PROBLEM["rows"]), ("Problem", PROBLEM)):
        body = re.search(rf"struct {struct} {{(.*?)}};", text, re.S)
        assert body is not None
        fields = re.findall(r"^\s+(?:int|Axis) (\w+);", body[1], re.M)
        assert fields == list(dtype.names)
    assert PROBLEM.itemsize == 4 * (2 * len(PROBLEM["rows"].names) + len(PROBLEM.names) - 2)


def test_every_call_has_a_specialization() -> None:
    known = set(all_specializations())
    for kernel in range(1, 9):
        for stride in (1, 2, 3, 4):
            for dilation in (1, 2, 3):
                window = Geometry((kernel, kernel), (stride, stride), (8, 8), (dilation, dilation))
                for operation in OPERATIONS:
                    assert _call(operation, window, (32, 32)).specialization() in known


# ---- the backend


@pytest.fixture
def host_backend(cuda: CudaInvolution, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The CUDA backend as one of the CPU's."""
    backend = Backend(
        "host", cuda.forward, cuda.grad_input, cuda.grad_weight, cuda.unsupported_reason
    )
    monkeypatch.setattr(backends, "_BACKENDS", {**backends._BACKENDS, "host": backend})
    with ops.backend("host"):
        yield


@needs_compiler
def test_derivatives_of_both_orders(host_backend: None) -> None:
    input = torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(1, 1, 3, 3, 2, 2, dtype=torch.float64, requires_grad=True)

    def operator(input: Tensor, weight: Tensor) -> Tensor:
        return involution2d(input, weight, stride=2, padding=1)

    assert torch.autograd.gradcheck(operator, (input, weight))
    assert torch.autograd.gradgradcheck(operator, (input, weight), fast_mode=True)


@needs_compiler
def test_any_strides_and_any_offset(host_backend: None) -> None:
    storage = torch.randn(2 * 16 * 9 * 8 + 1, dtype=torch.float32)
    input = storage[1:].view(2, 16, 8, 9).transpose(2, 3)
    weight = torch.randn(2, 9, 8, 1, 3, 3).permute(0, 3, 4, 5, 1, 2)
    output = involution2d(input, weight, padding=1)
    with ops.backend("reference"):
        assert_close(output, involution2d(input.double(), weight.double(), padding=1))


@needs_compiler
def test_windows_too_wide_are_left_to_the_next_backend(
    cuda: CudaInvolution, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Backend("host", cuda.forward, cuda.grad_input, cuda.grad_weight, cuda.unsupported_reason)
    monkeypatch.setattr(
        backends, "_BACKENDS", {"host": host, "shifted": backends._BACKENDS["shifted"]}
    )
    input, weight = torch.randn(1, 1, 1, 2001), torch.randn(1, 1, 1, 2000, 1, 2)
    output = involution2d(input, weight)
    with ops.backend("shifted"):
        assert torch.equal(involution2d(input, weight), output)
    wide = dict(input_shape=input.shape, kernel_size=(1, 2000), padding=0)
    assert "shared memory" in ops.explain_backends("cpu", **wide)["host"]
    assert ops.explain_backends("cpu")["host"] is None
    with ops.backend("host"), pytest.raises(RuntimeError, match="'host' does not support"):
        involution2d(input, weight)


# A stand-in for what only some compilers refuse.
def _refuse(specialization: Specialization, device: torch.device) -> None:
    raise CompilationError("out of registers")


def test_what_the_compiler_refuses_is_computed_all_the_same() -> None:
    backend, case = CudaInvolution(_refuse), CASES["tails of channels, dilated"]
    with pytest.warns(RuntimeWarning, match="'shifted' for .*: out of registers") as warned:
        for _ in range(2):
            check_operations(backend, case, torch.float32, torch.channels_last)
    said = [str(warning.message) for warning in warned]
    assert len(said) == len(OPERATIONS)
    for operation, message in zip(OPERATIONS, said, strict=True):
        assert f"operation='{operation}', dtype=torch.float32, channels_last=True" in message


# ---- availability


def test_other_devices_are_not_served() -> None:
    assert "CUDA tensors only" in availability.unsupported_reason(torch.device("cpu"))


@pytest.fixture
def gpu_in_name(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A PyTorch for CUDA 12 that says it has a GPU."""
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    availability._reason_on.cache_clear()
    yield
    availability._reason_on.cache_clear()


def _stand_in_for_cupy(monkeypatch: pytest.MonkeyPatch, folder: Path, text: str) -> None:
    (folder / "cupy.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setitem(sys.modules, "cupy", None)  # so that what is imported now goes afterwards
    del sys.modules["cupy"]


_CUPY = """
class cuda:
    class compiler:
        class CompileException(Exception): ...
    class runtime:
        @staticmethod
        def runtimeGetVersion():
            {version}
class RawModule:
    def __init__(self, code, options): ...
    def get_function(self, name):
        raise {failure}
"""


def _cupy(version: str = "return 12090", failure: str = "OSError('disk full')") -> str:
    """A CuPy whose compiler fails."""
    return _CUPY.format(version=version, failure=failure)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("raise ImportError('no such library')", "no such library.*rednet.cuda12.*cupy-cuda12x"),
        ("raise AttributeError('no np.product')", "AttributeError: no np.product.*cupy-cuda12x"),
        (_cupy("raise RuntimeError('old driver')"), "RuntimeError: old driver.*cupy-cuda12x"),
        (_cupy("return 13000"), "built for CUDA 13, PyTorch for CUDA 12.*cupy-cuda12x"),
        (_cupy(), "cannot compile for cuda:0: OSError: disk full"),
    ],
    ids=["absent", "at odds with NumPy", "at odds with the driver", "mismatched", "no compiler"],
)
def test_a_gpu_without_cupy_is_said_once(
    gpu_in_name: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, reason: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    _stand_in_for_cupy(monkeypatch, tmp_path, text)
    with pytest.warns(RuntimeWarning, match=reason) as warned:
        for _ in range(2):
            assert re.search(reason, availability.unsupported_reason(torch.device("cuda:0")))
    assert len(warned) == 1


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        ("cuda.compiler.CompileException('line 1')", CompilationError),
        ("OSError('line 1')", OSError),
    ],
    ids=["refused", "anything else"],
)
def test_only_what_cannot_be_compiled_is_given_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, failure: str, error: type[Exception]
) -> None:
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    _stand_in_for_cupy(monkeypatch, tmp_path, _cupy(failure=failure))
    with pytest.raises(error, match="^line 1$"):
        compile_with_cupy(next(all_specializations()), torch.device("cuda:0"))
