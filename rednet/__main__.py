"""Prints versions and backends for bug reports, or runs another program with RedNet imported.

    python -m rednet                        versions, backends, who serves mmcv's operators
    python -m rednet PROGRAM [ARGUMENTS]    runs a Python file, such as mmdet's tools/test.py

The second form is for programs that import ``mmcv.ops`` or read a checkpoint before a config could
import RedNet.
"""

from __future__ import annotations

import platform
import runpy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from rednet.cli.command import USER_ERROR
from rednet.errors import MissingDependencyError
from rednet.mmcv_ops.installation import (
    MMCV_PACKAGES,
    import_operators,
    installed_version,
    notes_on_mmcv,
)
from rednet.ops import explain_backends
from rednet.version import __version__

# What pip calls the packages, by what is imported.
PACKAGES = {
    "torchvision": ("torchvision",),
    "numpy": ("numpy",),
    "mmengine": ("mmengine", "onedl-mmengine"),
    "mmcv": MMCV_PACKAGES,
    "mmpretrain": ("mmpretrain", "onedl-mmpretrain"),
    "mmdet": ("mmdet", "onedl-mmdetection"),
    "mmseg": ("mmsegmentation", "onedl-mmsegmentation"),
    "cupy": ("cupy", "cupy-cuda12x", "cupy-cuda13x"),
    "triton": ("triton",),
}


def main(arguments: Sequence[str]) -> int:
    """Prints the report, or runs the program that the arguments name.

    Returns:
        The exit status: 2 if there is no such program.
    """
    if arguments:
        return _run(arguments)
    for line in (*_versions(), "", *_backends(), "", *_mmcv_operators()):
        print(line)
    return 0


def _run(arguments: Sequence[str]) -> int:
    program = Path(arguments[0])
    if not program.is_file():
        print(f"error: {program} is not a file", file=sys.stderr)
        return USER_ERROR
    sys.argv = list(arguments)
    sys.path[0] = str(program.resolve().parent)  # as Python does for a program
    runpy.run_path(str(program), run_name="__main__")
    return 0


def _versions() -> Iterator[str]:
    yield f"rednet {__version__}, Python {platform.python_version()}, {platform.platform()}"
    yield f"torch {torch.__version__}, CUDA {torch.version.cuda or 'none'}, {_gpu()}"
    for module, names in PACKAGES.items():
        found = [f"{name} {each}" for name in names if (each := installed_version(name))]
        yield f"{module}: {', '.join(found) or 'not installed'}"
    yield from (f"warning: {note}" for note in notes_on_mmcv())


def _gpu() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def _backends() -> Iterator[str]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    yield f"involution on {device}, float32:"
    for name, reason in explain_backends(device).items():
        yield f"  {name}: {reason or 'available'}"


def _mmcv_operators() -> Iterator[str]:
    """Who computes mmcv's operators, group by group, or why nobody does."""
    try:
        extension = import_operators()
    except MissingDependencyError as error:
        yield f"mmcv's operators: none, {error}"
        return
    if getattr(extension, "__file__", None):
        yield f"mmcv's operators: compiled mmcv ({extension.__file__})"
        return
    from rednet.mmcv_ops.operators import PYTORCH_GROUPS, TORCHVISION_GROUPS

    yield "mmcv's operators:"
    yield f"  torchvision: {', '.join(TORCHVISION_GROUPS)}"
    yield f"  PyTorch: {', '.join(PYTORCH_GROUPS)}"
    yield "  nobody: all others, such as rotated boxes, point clouds and sparse convolution"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
