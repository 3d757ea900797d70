"""Compiles sources for GPUs; report.py runs this file, which needs neither PyTorch nor rednet.

Lists of a source, an architecture and the compiler's options come pickled through standard input;
what the compiler says of each goes to standard output.
"""

from __future__ import annotations

import importlib.util
import pickle
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# What CuPy adds to its options when it compiles.
_CUPYS_OPTIONS = ("-ftz=true", "--device-as-default-execution-space")
HAS_NVRTC = importlib.util.find_spec("cuda") is not None and (
    importlib.util.find_spec("cuda.bindings") is not None
)
NVCC = shutil.which("nvcc")
# A source, an architecture such as "sm_90", and options.
Job = tuple[str, str, tuple[str, ...]]


def compile_source(job: Job) -> str:
    """Compiles with NVRTC, as CuPy would, without it with nvcc; returns the compiler's log."""
    return (_log_of_nvrtc if HAS_NVRTC else _log_of_nvcc)(*job)


def _log_of_nvrtc(text: str, architecture: str, options: tuple[str, ...]) -> str:
    from cuda.bindings import nvrtc

    _, program = nvrtc.nvrtcCreateProgram(text.encode(), b"involution.cu", 0, [], [])
    own = (f"--gpu-architecture={architecture}", "--ptxas-options=-v")
    encoded = [option.encode() for option in (*options, *_CUPYS_OPTIONS, *own)]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(encoded), encoded)
    _, size = nvrtc.nvrtcGetProgramLogSize(program)
    log = bytearray(size)
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcDestroyProgram(program)
    assert status == nvrtc.nvrtcResult.NVRTC_SUCCESS, log.decode()
    return log.decode()


def _log_of_nvcc(text: str, architecture: str, options: tuple[str, ...]) -> str:
    assert NVCC is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "involution.cu"
        path.write_text(text)
        command = [NVCC, *options, f"-arch={architecture}", "-cubin", "-Xptxas=-v"]
        done = subprocess.run(
            [*command, "-o", path.with_suffix(".cubin"), path], capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr
    return done.stderr


if __name__ == "__main__":
    _logs = [compile_source(job) for job in pickle.load(sys.stdin.buffer)]
    sys.stdout.buffer.write(pickle.dumps(_logs))
