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
OPERATIONS = ("forward", "grad_input", "grad_weight", "generate")
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
            dims = {"weight_strides": 6, "matrix_strides": 2}.get(name, 4)
            types[name] = ("i32",) * dims
        elif name == "reduced_channels":
            types[name] = "i32"
        else:
            types[name] = f"*{number}"
    return types


# Each number type, and each generation of GPUs.
@pytest.mark.parametrize(
    ("number", "capability"), [("fp64", 80), ("fp32", 90), ("fp16", 100), ("bf16", 90)]
)
def test_the_kernels_compile(number: str, capability: int) -> None:
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from rednet.ops.triton import generating, kernels

    constants = dict(
        KERNEL_HEIGHT=7,
        KERNEL_WIDTH=7,
        TILE_CHANNELS=16,
        TILE_PIXELS=128,
        TILE_REDUCED=16,
        TILE_TAPS=8,
        ACCUMULATOR=tl.float64 if number == "fp64" else tl.float32,
        PRECISION="tf32" if capability == 90 else "tf32x3",
        WIDE=capability == 80,
    )
    for operation in OPERATIONS:
        kernel = getattr(generating if operation == "generate" else kernels, operation)
        by_position = {
            (position,): constants[name]
            for position, name in enumerate(kernel.arg_names)
            if name in constants
        }
        source = ASTSource(kernel, _signature(kernel, number), by_position)
        options = {"num_warps": 8, "num_stages": 1} if operation == "generate" else {}
        compiled = compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        assert compiled.asm["cubin"]
