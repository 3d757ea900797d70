"""Finds and loads the compiled CPU kernels, a library that knows neither Python nor PyTorch.

The package's build compiles ``src/`` once for each instruction set (see setup.py). The best one
that the processor can run is loaded at the first use.
"""

from __future__ import annotations

import ctypes
import functools
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from rednet.ops.geometry import Geometry

# PyTorch's name for what the processor can do (and ATEN_CPU_CAPABILITY allows), to the builds that
# then run. Elsewhere than on x86-64 there is but one.
_BUILDS = {"AVX512": ("avx512", "avx2", "baseline"), "AVX2": ("avx2", "baseline")}
_FOLDER = Path(__file__).parent
# What sums are made in: the kernels that serve no others read and write maps as they are.
DTYPES = (torch.float64, torch.float32)


# The argument of involution's kernels, which src/involution.h has as nested structures, slow to
# build in ctypes: batch, channels and groups, two sides of six numbers, and three tensors of an
# address and six strides.
_NUMBERS = struct.Struct(f"={3 + 2 * 6 + 3 * 7}q")
Problem = ctypes.c_int64 * (_NUMBERS.size // 8)


def describe_problem(
    image: Tensor, weight: Tensor | None, pixels: Tensor, geometry: Geometry, groups: int = 0
) -> ctypes.Array[ctypes.c_int64]:
    """Describes tensors of (N, C, H, W), (N, G, Kh, Kw, Ho, Wo) and (N, C, Ho, Wo).

    ``groups`` is G where there is no weight.
    """
    batch, channels, height, width = image.shape
    rows, columns = pixels.shape[2:]
    vertical, horizontal = zip(*geometry, strict=True)
    held = (0,) * 7 if weight is None else (weight.data_ptr(), *weight.stride())
    numbers = _NUMBERS.pack(  # faster than ctypes
        *(batch, channels, groups if weight is None else weight.shape[1]),
        *(height, rows, *vertical),
        *(width, columns, *horizontal),
        *(image.data_ptr(), *image.stride(), 0, 0),
        *held,
        *(pixels.data_ptr(), *pixels.stride(), 0, 0),
    )
    return Problem.from_buffer_copy(numbers)


class Generation(ctypes.Structure):
    """The argument of the kernel that generates weights; src/generate.h has the same structure."""

    _fields_ = [
        ("problem", Problem),
        *((name, ctypes.c_void_p) for name in ("reduced", "matrix", "bias")),
        ("reduced_channels", ctypes.c_int64),
    ]


class GeneratorGradient(ctypes.Structure):
    """The argument of the kernel ``grad_generator``; src/grad_generator.h has the same."""

    _fields_ = [
        ("problem", Problem),
        *(
            (name, ctypes.c_void_p)
            for name in ("reduced", "matrix", "grad_reduced", "grad_matrix", "grad_bias")
        ),
        *(
            (name, ctypes.c_int64)
            for name in ("reduced_channels", "channels_last", "block", "chunks")
        ),
    ]


class _Matrix(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("data", "row_step", "column_step")]

    @classmethod
    def describe(cls, matrix: Tensor | None) -> _Matrix:
        return cls() if matrix is None else cls(matrix.data_ptr(), *matrix.stride())


class Mixture(ctypes.Structure):
    """The argument of the kernels that mix; src/mixing.h has the same structure."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("samples", "experts", "numbers", "piece")),
        ("shares", _Matrix),
        ("expert_rows", _Matrix),
        ("kernel_rows", _Matrix),
        ("expert_gradients", _Matrix),
        ("share_gradients", _Matrix),
        ("adds", ctypes.c_int64),
    ]

    @classmethod
    def describe(
        cls,
        experts: Tensor,
        shares: Tensor,
        kernels: Tensor,
        expert_gradients: Tensor | None = None,
        share_gradients: Tensor | None = None,
        *,
        piece: int,
        adds: bool = False,
    ) -> Mixture:
        """Describes tensors of (K, M), (N, K), (N, M) and gradients of (K, M), (pieces, N * K)."""
        matrices = (shares, experts, kernels, expert_gradients, share_gradients)
        described = (_Matrix.describe(matrix) for matrix in matrices)
        return cls(*shares.shape, experts.shape[1], piece, *described, adds)


class ExpertConvolution(ctypes.Structure):
    """The argument of the kernels that convolve experts; src/expert_conv.h has the same."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("samples", "experts", "filters", "channels")),
        ("rows", ctypes.c_int64 * 6),
        ("columns", ctypes.c_int64 * 6),
        ("image_steps", ctypes.c_int64 * 4),
        ("expert_step", ctypes.c_int64),
        *(
            (name, ctypes.c_void_p)
            for name in (
                *("image", "shares", "expert_rows", "scale", "bias", "unfolded", "output"),
                *("grad", "grad_panels", "grad_blocks"),
                *("grad_experts", "share_gradients", "grad_input", "scale_gradients"),
            )
        ),
        ("transposes", ctypes.c_int64),
        ("adds", ctypes.c_int64),
    ]


class Finishing(ctypes.Structure):
    """The argument of the kernel that finishes a map; src/finish.h has the same structure."""

    _fields_ = [
        ("pixels", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        *(
            (name, ctypes.c_void_p)
            for name in ("input", "output", "addend", "mean", "variance", "weight", "bias")
        ),
        ("epsilon", ctypes.c_double),
        ("rectifies", ctypes.c_int64),
    ]


class PointwiseConvolution(ctypes.Structure):
    """The argument of the kernel of 1 x 1 convolutions; src/pointwise.h has the same structure."""

    _fields_ = [
        ("finishing", Finishing),
        *((name, ctypes.c_void_p) for name in ("filters", "bias")),
        *((name, ctypes.c_int64) for name in ("channels", "rows", "columns")),
        *((name, ctypes.c_int64) for name in ("image_step", "row_step", "column_step")),
    ]


class NormGradient(ctypes.Structure):
    """The argument of the kernels of a norm's gradient; src/norm_gradient.h has the same."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("pixels", "channels", "period", "block")),
        *(
            (name, ctypes.c_void_p)
            for name in (
                *("input", "grad", "grad_input"),
                *("mean", "scale", "shift", "slope", "offset", "sums"),
            )
        ),
    ]


def call(
    name: str, dtype: torch.dtype, argument: ctypes.Structure | ctypes.Array[ctypes.c_int64]
) -> None:
    """Runs the loaded library's kernel of that name for numbers of that type."""
    if _kernel(load(), name, dtype)(ctypes.byref(argument), torch.get_num_threads()) != 0:
        raise MemoryError(f"no memory for the scratch rows of the CPU kernel {name}")


@functools.cache
def _kernel(library: ctypes.CDLL, name: str, dtype: torch.dtype) -> Callable[..., int]:
    return getattr(library, f"rednet_{name}_{str(dtype).removeprefix('torch.')}")


@functools.cache
def load() -> ctypes.CDLL | None:
    """The compiled kernels; None, with a warning, where there are none that work."""
    problems = []
    for path in _candidates():
        try:
            library = ctypes.CDLL(str(path))
            library.rednet_checksum.restype = ctypes.c_uint32
        except (OSError, AttributeError) as error:
            # Built for another machine, PyTorch has no OpenMP, or not a library of ours.
            problems.append(str(error))
            continue
        if library.rednet_checksum() == _checksum():
            return library
        problems.append(f"{path.name} was built from other sources")
    warnings.warn(
        "rednet runs without its compiled CPU kernels, which make involution many times faster: "
        + ("; ".join(problems) or "they were not built")
        + ". Install rednet again where a C++ compiler (g++ or clang++) is.",
        RuntimeWarning,
        stacklevel=2,
    )
    return None


@functools.cache
def multiplies_fast() -> bool:
    """Whether the loaded kernels multiply large matrices faster than PyTorch does.

    Measured with AVX2. Without it they are slower. With AVX-512, where PyTorch's convolutions are
    near the processor's rate, they have not been measured.
    """
    library = load()
    return library is not None and Path(library._name).name.startswith("_avx2")


def _candidates() -> list[Path]:
    """The builds that the processor can run, the fastest first."""
    builds = _BUILDS.get(torch.backends.cpu.get_cpu_capability(), ("baseline",))
    paths = (_FOLDER / f"_{build}.so" for build in builds)
    return [path for path in paths if path.exists()]


def _checksum() -> int:
    """The checksum of the sources, which setup.py computes in the same way."""
    sources = (path for end in ("h", "cpp") for path in (_FOLDER / "src").glob(f"[!.]*.{end}"))
    return zlib.crc32(b"".join(path.read_bytes() for path in sorted(sources)))
