"""The Triton kernels without a GPU: interpreted on the CPU, and compiled for three generations."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", minversion="3.8")

ROOT = Path(__file__).resolve().parents[2]
OPERATIONS = ("forward", "grad_input", "grad_weight")
PAIRS = ("channels", "input_size", "output_size")


def test_the_kernels_in_the_interpreter() -> None:
    """Triton decides at import whether it interprets, so this needs another process."""
    command = [sys.executable, "-m", "pytest", "-q", "tests/ops/interpreted_triton.py"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


def _signature(kernel: Any, number: str) -> dict[str, Any]:
    """The types of a kernel's arguments, as its launches pass them."""
    types: dict[str, Any] = {}
    for name in kernel.arg_names:
        if name.isupper():
            types[name] = "constexpr"
        elif name in PAIRS:
            types[name] = ("i32", "i32")
        elif name == "window":
            types[name] = ("i32",) * 6
        elif name.endswith("strides"):
            types[name] = ("i32",) * (6 if name.startswith("weight") else 4)
        else:
            types[name] = f"*{number}"
    return types


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("number", ["fp64", "fp32", "fp16", "bf16"])
def test_the_kernels_compile(number: str, capability: int) -> None:
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from rednet.ops.triton import kernels

    accumulator = tl.float64 if number == "fp64" else tl.float32
    for operation in OPERATIONS:
        kernel = getattr(kernels, operation)
        constants = dict(
            KERNEL_SIZE=(7, 7),
            TILE=(16, 128),
            ACCUMULATOR=accumulator,
            WIDE=capability == 80,
        )
        by_position = {(kernel.arg_names.index(name),): each for name, each in constants.items()}
        source = ASTSource(kernel, _signature(kernel, number), by_position)
        compiled = compile(source, target=GPUTarget("cuda", capability, 32))
        assert compiled.asm["cubin"]
