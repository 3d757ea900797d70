"""The kernels compile for three generations of GPUs and fit their registers; no GPU is needed."""

from __future__ import annotations

import os

import pytest
import torch

from rednet.ops.cuda.problem import Specialization, all_specializations
from tests.ops.cuda_host.compile_sources import HAS_NVRTC, NVCC
from tests.ops.cuda_host.report import compile_all

pytestmark = pytest.mark.skipif(
    not (HAS_NVRTC or NVCC), reason="needs NVRTC (cuda-bindings, with PyTorch for CUDA) or nvcc"
)
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
EVERYTHING = os.environ.get("CUDA_COMPILE", "sample") == "all"


def _is_rednets(each: Specialization) -> bool:
    """Its bottlenecks in 32 bits, and in 16 bits in channels_last, which is for them; its stem."""
    if (each.kernel_width, each.stride) not in ((7, 1), (7, 2), (3, 1)):
        return False
    return each.dtype == torch.float32 or (
        each.dtype == torch.float16 and each.channels_last and each.kernel_width == 7
    )


def _jobs() -> list[tuple[Specialization, str]]:
    """All of RedNet's for one architecture and a sample of the rest for each."""
    product = [(each, name) for each in all_specializations() for name in ARCHITECTURES]
    if EVERYTHING:
        return product
    rednets = [job for job in product if _is_rednets(job[0]) and job[1] == "sm_90"]
    # 37 shares no factor with the lengths of the loops, so that the sample has some of everything.
    return [*rednets, *(job for job in product[::37] if job not in rednets)]


def test_the_sample_has_everything_once() -> None:
    jobs = _jobs()
    assert {architecture for _, architecture in jobs} == set(ARCHITECTURES)
    for name in ("operation", "dtype", "channels_last", "kernel_width", "stride"):
        values = {getattr(each, name) for each in all_specializations()}
        assert {getattr(each, name) for each, _ in jobs} == values


def test_specializations_compile_without_spills() -> None:
    """``CUDA_COMPILE=all`` compiles every one for every architecture."""
    reports = compile_all(_jobs())
    assert [report for report in reports if report.spilled_bytes] == []
    # Of 65,536 registers, so many let the blocks that the source asks for share a multiprocessor.
    for report in reports:
        macros = report.specialization.macros()
        resident = int(macros["THREADS"]) * int(macros["BLOCKS_PER_MULTIPROCESSOR"])
        assert 0 < report.registers * resident <= 65536, report
