"""Compiles the CUDA kernels without a GPU and reads what the compiler says of their registers.

As a program it does so for every specialization:
``PYTHONPATH=. python tests/ops/cuda_host/report.py sm_80 sm_90 sm_100``.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rednet.ops.cuda.compiler import OPTIONS, source
from rednet.ops.cuda.problem import Specialization, all_specializations

ROOT = Path(__file__).parents[3]
# What CuPy adds to its options when it compiles.
_CUPYS_OPTIONS = ("-ftz=true", "--device-as-default-execution-space")
_RESOURCES = re.compile(
    r"(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers", re.S
)
HAS_NVRTC = importlib.util.find_spec("cuda") is not None and (
    importlib.util.find_spec("cuda.bindings") is not None
)
NVCC = shutil.which("nvcc")


@dataclass(frozen=True)
class Report:
    """What one specialization takes on one architecture."""

    specialization: Specialization
    architecture: str
    registers: int
    spilled_bytes: int


def compile_all(jobs: list[tuple[Specialization, str]]) -> list[Report]:
    """Compiles pairs of a specialization and an architecture, ``"sm_90"``, in parallel."""
    # Each worker is this file as a program: threads would wait for each other inside NVRTC.
    workers = min(len(jobs), os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        parts = pool.map(_run_worker, (jobs[number::workers] for number in range(workers)))
        return [report for part in parts for report in part]


def _run_worker(jobs: list[tuple[Specialization, str]]) -> list[Report]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__]
    done = subprocess.run(command, input=pickle.dumps(jobs), env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return [
        Report(*job, *numbers) for job, numbers in zip(jobs, pickle.loads(done.stdout), strict=True)
    ]


def _registers_and_spills(specialization: Specialization, architecture: str) -> tuple[int, int]:
    """Compiles with NVRTC, as CuPy would; without it with nvcc."""
    log = (_log_of_nvrtc if HAS_NVRTC else _log_of_nvcc)(source(specialization), architecture)
    found = _RESOURCES.search(log)
    assert found is not None, log
    stored, loaded, registers = map(int, found.groups())
    return registers, stored + loaded


def _log_of_nvrtc(text: str, architecture: str) -> str:
    from cuda.bindings import nvrtc

    _, program = nvrtc.nvrtcCreateProgram(text.encode(), b"involution.cu", 0, [], [])
    own = (f"--gpu-architecture={architecture}", "--ptxas-options=-v")
    options = [option.encode() for option in (*OPTIONS, *_CUPYS_OPTIONS, *own)]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    _, size = nvrtc.nvrtcGetProgramLogSize(program)
    log = bytearray(size)
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcDestroyProgram(program)
    assert status == nvrtc.nvrtcResult.NVRTC_SUCCESS, log.decode()
    return log.decode()


def _log_of_nvcc(text: str, architecture: str) -> str:
    assert NVCC is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "involution.cu"
        path.write_text(text)
        command = [NVCC, *OPTIONS, f"-arch={architecture}", "-cubin", "-Xptxas=-v"]
        done = subprocess.run(
            [*command, "-o", path.with_suffix(".cubin"), path], capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr
    return done.stderr


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


def _work() -> None:
    """What a worker does: jobs come through standard input, numbers go through standard output."""
    results = [_registers_and_spills(*job) for job in pickle.load(sys.stdin.buffer)]
    sys.stdout.buffer.write(pickle.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1:]) if sys.argv[1:] else _work()
