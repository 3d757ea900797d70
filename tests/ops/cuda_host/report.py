"""Compiles the CUDA kernels without a GPU and reads what the compiler says of their registers.

As a program it does so for every specialization:
``PYTHONPATH=. python tests/ops/cuda_host/report.py sm_80 sm_90 sm_100``.
"""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rednet.ops.cuda.compiler import OPTIONS, source
from rednet.ops.cuda.problem import Specialization, all_specializations

# It needs neither PyTorch nor rednet, whose import takes as long as five kernels.
_WORKER = Path(__file__).with_name("compile_sources.py")
_RESOURCES = re.compile(
    r"(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers", re.S
)


@dataclass(frozen=True)
class Report:
    """What one specialization takes on one architecture."""

    specialization: Specialization
    architecture: str
    registers: int
    spilled_bytes: int


def compile_all(jobs: list[tuple[Specialization, str]]) -> list[Report]:
    """Compiles pairs of a specialization and an architecture, ``"sm_90"``, in parallel."""
    # Each worker is a process: threads would wait for each other inside NVRTC.
    workers = min(len(jobs), os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        parts = pool.map(_run_worker, (jobs[number::workers] for number in range(workers)))
        return [report for part in parts for report in part]


def _run_worker(jobs: list[tuple[Specialization, str]]) -> list[Report]:
    sources = [(source(specialization), name, OPTIONS) for specialization, name in jobs]
    command = [sys.executable, _WORKER]
    done = subprocess.run(command, input=pickle.dumps(sources), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return [_read(*job, log) for job, log in zip(jobs, pickle.loads(done.stdout), strict=True)]


def _read(specialization: Specialization, architecture: str, log: str) -> Report:
    found = _RESOURCES.search(log)
    assert found is not None, log
    stored, loaded, registers = map(int, found.groups())
    return Report(specialization, architecture, registers, stored + loaded)


def main(architectures: list[str]) -> None:
    """Prints one line for each specialization and architecture."""
    jobs = [(each, name) for each in all_specializations() for name in architectures]
    for report in compile_all(jobs):
        each = report.specialization
        layout = "channels_last" if each.channels_last else "contiguous"
        width = f"{each.kernel_width}/{each.stride}" if each.kernel_width else "any"
        print(
            f"{report.architecture:7}{each.operation:12}{str(each.dtype):15}{layout:14}{width:4}"
            f"{report.registers:5} registers{report.spilled_bytes:5} bytes spilled"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
