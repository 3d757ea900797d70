"""The kernels compile for three generations of GPUs and fit their registers; no GPU is needed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from rednet.ops.cuda.problem import Specialisation, all_specialisations
from tests.ops.cuda_host.report import HAS_NVRTC, NVCC, compile_all

pytestmark = pytest.mark.skipif(
    not (HAS_NVRTC or NVCC), reason="needs NVRTC (cuda-bindings, with PyTorch for CUDA) or nvcc"
)
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")


def _is_rednets(each: Specialisation) -> bool:
    window = (each.kernel_width, each.stride)
    return window == (7, 1) and each.dtype in (torch.float32, torch.float16)


def test_every_specialisation_compiles_without_spills(
    record_property: Callable[[str, int], None],
) -> None:
    # Each for one architecture in turn, RedNet's for all three; cuda_host/report.py does them all.
    jobs = [
        (each, architecture)
        for number, each in enumerate(all_specialisations())
        for turn, architecture in enumerate(ARCHITECTURES)
        if turn == number % len(ARCHITECTURES) or _is_rednets(each)
    ]
    reports = compile_all(jobs)
    assert len(reports) == len(jobs)
    assert [report for report in reports if report.spilled_bytes] == []
    for report in reports:
        record_property(f"{report.architecture} {report.specialisation}", report.registers)
    # Of 65,536 registers, so many let the blocks that the source asks for share a multiprocessor.
    for report in reports:
        macros = report.specialisation.macros()
        resident = int(macros["THREADS"]) * int(macros["BLOCKS_PER_MULTIPROCESSOR"])
        assert report.registers * resident <= 65536, report
