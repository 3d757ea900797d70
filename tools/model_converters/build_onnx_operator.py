"""Build the library with which ONNX Runtime runs involution as one operator, on the CPU.

It is compiled from the package's own C++ sources and ONNX Runtime's C headers, which are not part
of this repository: they are include/ of its releases. The library needs ONNX Runtime 1.17 or newer,
not the version of the headers, and neither Python nor PyTorch.

    python tools/model_converters/build_onnx_operator.py onnxruntime/include --out librednet.so
    python tools/model_converters/export_onnx.py CONFIG --out FILE --custom-operator librednet.so
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rednet.cli.command import run
from rednet.cli.paths import check_output
from rednet.deploy.onnx_operator.building import HEADER, INSTRUCTIONS, build_library


def main(arguments: Sequence[str] | None = None) -> None:
    """Builds the library that the arguments name."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("headers", help=f"the folder of ONNX Runtime's {HEADER}")
    parser.add_argument("--out", required=True, metavar="FILE", help="the library to write")
    parser.add_argument(
        "--instructions",
        choices=INSTRUCTIONS,
        help="vector instructions that the library needs (those of this processor)",
    )
    args = parser.parse_args(arguments)
    check_output(args.out, "--out")
    build_library(args.headers, args.out, args.instructions)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    sys.exit(run(main))
