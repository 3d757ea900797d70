"""What is special to the compiled kernels; the operator's contract is in test_involution.py."""

from __future__ import annotations

import ctypes
import re
import shutil
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rednet import ops
from rednet.ops import involution2d
from rednet.ops.backends import Problem, select_backend
from rednet.ops.cpu import loader
from rednet.ops.geometry import Geometry
from tests.ops.cases import (
    BUILD_NAMES,
    BUILDS,
    GEOMETRIES,
    output_and_gradients,
    random_tensors,
)
from tests.tolerances import assert_close

pytestmark = pytest.mark.skipif(not BUILDS, reason="rednet was installed without a C++ compiler")


@pytest.fixture(autouse=True)
def forced() -> Iterator[None]:
    with ops.backend("cpu"):
        yield


def random_case(
    geometry: Geometry, size: tuple[int, int], group_channels: int = 16, dtype=torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    rows, columns = geometry.output_size(*size)
    channels = 2 * group_channels
    return (
        torch.randn(2, channels, *size, dtype=dtype),
        torch.randn(2, 2, *geometry.kernel_size, rows, columns, dtype=dtype),
        torch.randn(2, channels, rows, columns, dtype=dtype),
    )


@pytest.mark.parametrize("build", BUILDS, ids=BUILD_NAMES)
@pytest.mark.parametrize("group_channels", [1, 16, 20])
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_every_instruction_set_is_right(
    build: Path, geometry: Geometry, group_channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 21 columns: whole vectors of every length, and a rest.
    tensors = random_case(geometry, (11, 21), group_channels)
    with ops.backend("reference"):
        expected = output_and_gradients(*(tensor.double() for tensor in tensors), geometry)
    compiled = ctypes.CDLL(str(build))
    monkeypatch.setattr(loader, "load", lambda: compiled)
    for actual, exact in zip(output_and_gradients(*tensors, geometry), expected, strict=True):
        assert_close(actual, exact)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_all_sixteen_bit_numbers_survive(dtype: torch.dtype) -> None:
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    input = numbers.reshape(1, 1, 256, 256)
    output = involution2d(input, torch.ones(1, 1, 1, 1, 256, 256, dtype=dtype))
    assert torch.equal(output.isnan(), input.isnan())
    known = ~input.isnan()
    assert torch.equal(output[known], input[known])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_sixteen_bit_results_round_as_pytorch_rounds(dtype: torch.dtype) -> None:
    magnitudes = torch.logspace(-5, 3, 64 * 64).reshape(1, 1, 64, 64)
    input = (magnitudes * torch.randn(1, 1, 64, 64)).to(dtype)
    weight = (torch.randn(1, 1, 64, 64) * magnitudes.flip(-1)).to(dtype)
    output = involution2d(input, weight[:, :, None, None])
    expected = (input.float() * weight.float()).to(dtype)
    assert torch.equal(output.view(torch.int16), expected.view(torch.int16))


def test_results_do_not_depend_on_the_number_of_threads(threads: None) -> None:
    geometry = GEOMETRIES["RedNet"]
    tensors = random_case(geometry, (30, 30))
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(output_and_gradients(*tensors, geometry))
    assert all(result.any() for result in results[0])
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others, strict=True))


def test_threads_of_python_do_not_disturb_each_other() -> None:
    geometry = GEOMETRIES["RedNet"]
    cases = [random_case(geometry, (14, 14)) for _ in range(4)]
    expected = [output_and_gradients(*case, geometry) for case in cases]
    assert all(result.any() for results in expected for result in results)
    results: dict[int, list[Tensor]] = {}

    def work(index: int) -> None:
        results[index] = output_and_gradients(*cases[index], geometry)

    workers = [threading.Thread(target=work, args=(index,)) for index in range(len(cases))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for index, exact in enumerate(expected):
        assert all(torch.equal(a, b) for a, b in zip(results[index], exact, strict=True))


class Involuted(Dataset):
    """Applies the operator in whichever process loads the data."""

    def __init__(self, case: tuple[Tensor, Tensor]) -> None:
        self.case = case

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Tensor:
        return involution2d(*self.case, padding=3)


def test_workers_of_a_data_loader_can_use_it_after_their_parent() -> None:
    case = random_case(GEOMETRIES["RedNet"], (30, 30))[:2]
    expected = involution2d(*case, padding=3)  # wakes PyTorch's threads, which a fork loses
    assert expected.any()
    for batch in DataLoader(Involuted(case), num_workers=1, timeout=60):
        assert torch.equal(batch[0], expected)


@pytest.mark.parametrize("build", BUILDS, ids=BUILD_NAMES)
def test_no_build_brings_an_openmp_of_its_own(build: Path) -> None:
    content = build.read_bytes()
    assert b"GOMP_parallel" in content  # so that names of libraries would be seen too
    assert re.search(rb"lib(gomp|iomp|omp)", content) is None


@pytest.fixture
def fresh_load() -> Iterator[None]:
    loader.load.cache_clear()
    yield
    loader.load.cache_clear()


def _assert_fallback_with_one_warning(message: str) -> None:
    with ops.backend("reference"), pytest.warns(RuntimeWarning, match=message):
        assert ops.explain_backends("cpu")["cpu"] == "its kernels were not built"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ops.explain_backends("cpu")["cpu"] == "its kernels were not built"


def test_calls_go_to_the_build_that_is_loaded_now(monkeypatch: pytest.MonkeyPatch) -> None:
    # Else the tests of every instruction set would test the first one again and again.
    tensors = random_case(GEOMETRIES["3 x 3"], (5, 5))
    involution2d(*tensors[:2], 1, 1)
    monkeypatch.setattr(loader, "load", lambda: ctypes.CDLL(None))
    with pytest.raises(AttributeError, match="rednet_forward_float32"):
        involution2d(*tensors[:2], 1, 1)


def test_without_kernels_there_is_one_warning(
    fresh_load: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "_candidates", lambda: [])
    _assert_fallback_with_one_warning("they were not built. Install rednet again")


def test_kernels_of_other_sources_are_not_used(
    fresh_load: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "_checksum", lambda: 0)
    _assert_fallback_with_one_warning("was built from other sources")


def test_a_file_that_is_no_library_is_not_used(
    fresh_load: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"nothing")
    monkeypatch.setattr(loader, "_candidates", lambda: [broken])
    _assert_fallback_with_one_warning("broken.so")


def test_a_library_of_others_is_not_used(fresh_load: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "_candidates", lambda: [Path(torch._C.__file__)])
    _assert_fallback_with_one_warning("rednet_checksum")


def test_the_checksum_is_of_sources_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    expected = loader._checksum()
    sources = shutil.copytree(loader._FOLDER / "src", tmp_path / "src")
    monkeypatch.setattr(loader, "_FOLDER", tmp_path)
    (sources / "notes").mkdir()
    for left_by_an_editor in (".involution.h.swp", ".#involution.h", "involution.h~"):
        (sources / left_by_an_editor).write_text("unsaved")
    assert loader._checksum() == expected
    (sources / "another.h").write_text("// read by none")
    assert loader._checksum() != expected


def test_another_device_has_another_backend() -> None:
    assert ops.explain_backends("meta")["cpu"] == "it supports CPU tensors only"


def test_it_is_preferred_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rednet.ops.backends._forced", None)
    monkeypatch.delenv("REDNET_BACKEND", raising=False)
    input, weight, output = (tensor.float() for tensor in random_tensors(GEOMETRIES["3 x 3"]))
    problem = Problem.read("forward", input, weight, output, GEOMETRIES["3 x 3"])
    assert select_backend(problem).name == "cpu"
